"""One image, from a file, bytes or pixels, to uint8 of the shape that was asked for; every conversion is named."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from synthgen.config.schema import DataConfig
from synthgen.shapes import UInt8

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What Pillow may decode; its other readers (EPS runs Ghostscript) are never tried."""

LEVELS = {"white": 255, "grey": 128, "black": 0}
FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "nearest": Image.Resampling.NEAREST,
}


Content = Path | bytes | np.ndarray | str
"""Where an image lies, its encoded bytes, its pixels (h w or h w c; see `_from_array`), or why it can't be read."""

MIN_PX, MAX_PX, STEP_PX = 8, 256, 4
"""The generators halve an image's size twice."""

SIZE_RULE = f"the size must be a multiple of {STEP_PX} from {MIN_PX} to {MAX_PX}"


def fits(width: int, height: int) -> bool:
    """Whether the generators can make images of this size."""
    return width == height and MIN_PX <= width <= MAX_PX and width % STEP_PX == 0


def nearest_size(size_px: int) -> int:
    """The nearest size that they can."""
    return min(max(round(size_px / STEP_PX) * STEP_PX, MIN_PX), MAX_PX)


class Unreadable(Exception):
    """Why an image is quarantined."""


@contextmanager
def pillow_limits(max_pixels: int) -> Iterator[None]:
    """Pillow refuses more than `max_pixels` from the header (and in an animation's frames), and keeps its warnings."""
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        Image.MAX_IMAGE_PIXELS = max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def read_image(
    content: Content, config: DataConfig, first: tuple[int, int] | None
) -> tuple[tuple[int, int], np.ndarray | None, list[str]]:
    """(original size, pixels uint8 h w or h w 3, what was converted).

    Without `data.size_px` only images of the first one's size, and of one that will do, are decoded: the others are an
    error anyway, and their sizes are all that its message needs.
    """
    if isinstance(content, str):
        raise Unreadable(content)
    try:
        changes: list[str] = []
        with _open(content, changes) as image:
            size = image.size
            if config.size_px is None and not (fits(*size) and size == (first or size)):
                return size, None, []
            image = _square(_eight_bit(_upright(image, changes), config, changes), config, changes)
            return size, np.asarray(image), changes
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise Unreadable(f"more than data.max_pixels={config.max_pixels} pixels") from None
    except UnidentifiedImageError:
        raise Unreadable(f"not an image: its contents are none of {', '.join(FORMATS)}") from None
    except Unreadable:
        raise
    except Exception as error:  # whatever a decoder makes of a damaged file (struct.error, IndexError, ...)
        system = error.strerror if isinstance(error, OSError) else None
        raise Unreadable(system or f"damaged: {(str(error) or type(error).__name__).splitlines()[0]}") from None


def _open(content: Path | bytes | np.ndarray, changes: list[str]) -> Image.Image:
    if isinstance(content, np.ndarray):
        return Image.fromarray(_from_array(content, changes))
    return Image.open(BytesIO(content) if isinstance(content, bytes) else content, formats=FORMATS)


def _from_array(pixels: np.ndarray, changes: list[str]) -> np.ndarray:
    """uint8 as it is, uint16 by 1/257, bool and float in [0, 1] by 255."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.uint16:
        changes.append("16-bit scaled")
        return _scale_16_bit(pixels)
    changes.append("1-bit expanded" if pixels.dtype == bool else "float scaled")
    return np.rint(pixels.astype(np.float64) * 255).astype(np.uint8)


def _scale_16_bit(levels: np.ndarray) -> np.ndarray:
    """0..65535 -> 0..255, rounded; Pillow's own `convert` would clip at 255."""
    return ((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _upright(image: Image.Image, changes: list[str]) -> Image.Image:
    """Decoded, and turned as EXIF says."""
    if getattr(image, "is_animated", False) and image.format != "MPO":
        changes.append("animated: first frame")
    if any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())):
        changes.append("16-bit scaled")
    image.load()
    try:
        turned = image.getexif().get(0x0112, 1) in range(2, 9)
    except Exception:  # a damaged EXIF block says nothing of the pixels
        changes.append("EXIF unreadable")
        turned = False
    if turned:
        changes.append("EXIF rotated")
        image = ImageOps.exif_transpose(image)
    return image


def _eight_bit(image: Image.Image, config: DataConfig, changes: list[str]) -> Image.Image:
    """Mode L or RGB."""
    mode = image.mode
    if mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if mode == "F" or mode.startswith("I"):
        return _from_deep(image, changes)
    if mode == "P":
        changes.append("palette expanded")
    if image.has_transparency_data:
        whole = image.convert("RGBA")
        if np.asarray(whole)[..., 3].min() < 255:
            level = LEVELS[config.background]
            whole = Image.alpha_composite(Image.new("RGBA", whole.size, (level, level, level, 255)), whole)
            changes.append(f"alpha composited on {config.background}")
        return whole.convert("L" if mode in ("1", "L", "LA", "La") else "RGB")
    if mode == "1":
        changes.append("1-bit expanded")
        return image.convert("L")
    if mode != "P":
        changes.append(f"{mode} converted")
    return image.convert("RGB")


def _from_deep(image: Image.Image, changes: list[str]) -> Image.Image:
    """Integers up to 65535 by 1/257, floats in [0, 1] by 255; other ranges can't be told apart, so they are refused."""
    levels = np.asarray(image)
    low, high = levels.min(), levels.max()
    if "transparency" in image.info:
        raise Unreadable("16-bit with a transparent colour; save it with an alpha channel")
    if image.mode == "F":
        if not (low >= 0 and high <= 1):
            raise Unreadable(f"float pixels from {low:g} to {high:g}, expected [0, 1]; save it with 8 or 16 bits")
        changes.append("float scaled")
        return Image.fromarray(np.rint(levels * 255).astype(np.uint8))
    if low < 0 or high > 65535:
        raise Unreadable(f"integer pixels from {low} to {high}, expected 0 to 65535; save it with 8 or 16 bits")
    if "16-bit scaled" not in changes:
        changes.append("16-bit scaled")
    return Image.fromarray(_scale_16_bit(levels))


def _square(image: Image.Image, config: DataConfig, changes: list[str]) -> Image.Image:
    """`data.size_px` square: cropped about the centre, padded or stretched, then resized by `data.filter`."""
    side, (width, height) = config.size_px, image.size
    if side is None or (width, height) == (side, side):
        return image
    if width != height and config.fit == "crop":
        changes.append("cropped")
        short = min(width, height)
        left, top = (width - short) // 2, (height - short) // 2
        image = image.crop((left, top, left + short, top + short))
    elif width != height and config.fit == "pad":
        changes.append("padded")
        long, level = max(width, height), LEVELS[config.background]
        ground = Image.new(image.mode, (long, long), level if image.mode == "L" else (level, level, level))
        ground.paste(image, ((long - width) // 2, (long - height) // 2))
        image = ground
    elif width != height:
        changes.append("stretched")
    if image.size != (side, side):
        changes.append("resized")
        image = image.resize((side, side), FILTERS[config.filter])
    return image


def stack(pixels: list[np.ndarray], channels: int | None, converted: Counter[str]) -> UInt8[np.ndarray, "n c h w"]:
    """One array: 3 channels if any image has colour (not merely three equal channels), or as asked."""
    if channels is None:
        channels = 3 if any(array.ndim == 3 and bool((array != array[..., :1]).any()) for array in pixels) else 1
    side = len(pixels[0])
    images = np.empty((len(pixels), channels, side, side), np.uint8)
    for image, array in zip(images, pixels, strict=True):
        if array.ndim == 2:
            image[:] = array
        elif channels == 3:
            image[:] = array.transpose(2, 0, 1)
        else:
            image[0] = np.asarray(Image.fromarray(array).convert("L"))
    grey = sum(array.ndim == 2 for array in pixels)
    if channels == 3 and grey:
        converted["grey to RGB"] += grey
    if channels == 1 and grey < len(pixels):
        converted["RGB to grey"] += len(pixels) - grey
    return images
