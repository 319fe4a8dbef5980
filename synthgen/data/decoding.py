"""One image, from a file, bytes or pixels, to uint8 of the shape that was asked for; every conversion is named."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from synthgen.config.schema import DataConfig
from synthgen.data.names import shown
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

    Bytes that were damaged since they were written are found where the format can tell: PNG by its checksums, the others by
    what is missing of them. A JPEG or GIF with other bytes in its midst often decodes, to other pixels.

    Without `data.size_px` only images of the first one's size, and of one that will do, are decoded: the others are an
    error anyway, and their sizes are all that its message needs.
    """
    if isinstance(content, str):
        raise Unreadable(content)
    try:
        changes: list[str] = []
        with _opened(content, config, changes) as (image, file):
            size = image.size
            if config.size_px is None and not (fits(*size) and size == (first or size)):
                return size, None, []
            if file is not None:
                _check_whole(file)
            image = _square(_eight_bit(_upright(image, changes), config, changes), config, changes)
            return size, np.asarray(image), changes
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise Unreadable(_too_many(config)) from None
    except UnidentifiedImageError:
        raise Unreadable(f"not an image: its contents are none of {', '.join(FORMATS)}") from None
    except Unreadable:
        raise
    except Exception as error:  # whatever a decoder makes of a damaged file (struct.error, IndexError, ...)
        system = error.strerror if isinstance(error, OSError) else None
        raise Unreadable(system or f"damaged: {shown((str(error) or type(error).__name__).splitlines()[0], 200)}") from None


def _too_many(config: DataConfig) -> str:
    return f"more than data.max_pixels={config.max_pixels} pixels"


@contextmanager
def _opened(
    content: Path | bytes | np.ndarray, config: DataConfig, changes: list[str]
) -> Iterator[tuple[Image.Image, BinaryIO | None]]:
    """An image whose header was read, and the file that its pixels are still to be read from."""
    if isinstance(content, np.ndarray):
        if content.shape[0] * content.shape[1] > config.max_pixels:
            raise Unreadable(_too_many(config))
        yield Image.fromarray(_from_array(content, changes)), None
        return
    with BytesIO(content) if isinstance(content, bytes) else open(content, "rb") as file:
        if not file.read(1):
            raise Unreadable("an empty file")
        file.seek(0)
        with Image.open(file, formats=FORMATS) as image:
            yield image, file


PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
START_OF_SCAN, END_OF_IMAGE = 0xDA, b"\xff\xd9"
PIECE = 2**20


def _check_whole(file: BinaryIO) -> None:
    """Refuses a PNG whose checksums don't fit or whose end is missing, and a JPEG without an end: Pillow shows both.

    The place in the file stays as it is.
    """
    before = file.tell()
    file.seek(0)
    head = file.read(len(PNG))
    if head == PNG:
        _check_png(file)
    elif head.startswith(JPEG):
        _check_jpeg(file)
    file.seek(before)


def _check_png(file: BinaryIO) -> None:
    """Every chunk that pixels depend on (its name begins with a capital) against its CRC, up to the last (PNG 5.3 to 5.5)."""
    name = b""
    while name != b"IEND":
        head = file.read(8)
        if len(head) < 8:
            raise Unreadable("damaged: cut off, the end is missing")
        length, name = struct.unpack(">I4s", head)
        crc, left = zlib.crc32(name), length
        while left and (data := file.read(min(left, PIECE))):
            crc, left = zlib.crc32(data, crc), left - len(data)
        found = file.read(4)
        if left or len(found) < 4:
            raise Unreadable("damaged: cut off, the end is missing")
        if found != struct.pack(">I", crc) and name[:1].isupper():
            raise Unreadable(f"damaged: the checksum of its {name.decode('ascii', 'replace')} chunk differs")


def _check_jpeg(file: BinaryIO) -> None:
    """An end after the first scan (ITU-T T.81, B.1.1): what a half-written file lacks, and Pillow then fills up with grey."""
    file.seek(-len(END_OF_IMAGE), 2)
    if file.read() == END_OF_IMAGE:  # nearly always
        return
    file.seek(len(JPEG))
    while len(found := file.read(2)) == 2 and found[0] == 0xFF:
        if found[1] == START_OF_SCAN:
            last = b""
            while data := file.read(PIECE):
                if END_OF_IMAGE in last + data:
                    return
                last = data[-1:]
            raise Unreadable("damaged: cut off, the end is missing")
        if found[1] == 0xFF:  # a fill byte
            file.seek(-1, 1)
        elif found[1] not in (0x01, *range(0xD0, 0xD8)):
            length = file.read(2)
            file.seek(max(0, int.from_bytes(length, "big") - 2), 1)


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
    # a TIFF is turned by Pillow when it loads the pixels, and says nothing of it then
    found = [_orientation(image)] if image.format == "TIFF" else []
    image.load()
    found.append(_orientation(image))
    if DAMAGED in found:
        changes.append("EXIF unreadable")
    elif any(orientation in range(2, 9) for orientation in found):
        changes.append("EXIF rotated")
        image = ImageOps.exif_transpose(image)
    profile = image.info.get("icc_profile") or b""
    if profile and not any(name in profile for name in (b"sRGB", "sRGB".encode("utf-16-be"))):
        changes.append("colour profile ignored")
    return image


DAMAGED = -1
"""The orientation of an image whose EXIF block can't be read, which says nothing of the pixels."""


def _orientation(image: Image.Image) -> int:
    """As EXIF numbers them: 1 is upright."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # whatever Pillow makes of a damaged block
        return DAMAGED


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
