"""Pixels <-> the bytes of an image file, lossless, a batch at a time; the same pixels give the same bytes on one platform.

Three presets. `balanced`: PNG, each row minus the pixel to its left, deflated by ISA-L. `fast`: PNG whose deflate blocks are
stored, not compressed. `small`: lossless WebP. All three open in Pillow, OpenCV and browsers. What `balanced` and `fast` write
is read back a batch at a time as well; any other PNG, JPEG or WebP goes through Pillow.
"""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from isal import isal_zlib
from PIL import Image, ImageOps

from synthgen.errors import DataError
from synthgen.shapes import UInt8

MAX_PIXELS = 64_000_000
"""An image with more pixels isn't decoded."""
SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOUR = {1: 0, 3: 2}
"""Channels -> PNG's colour type."""
NONE, SUB = 0, 1
"""PNG's filters of a row (PNG specification 9.2): as it is; minus the pixel to the left."""
LEVEL = 1
"""Of ISA-L's deflate: 2 and 3 gave the same size on 32x32 photographs, 0 forty per cent more at twice the speed."""
STORED_BLOCK = 65_535
"""Bytes in a stored block of deflate, at most (RFC 1951)."""
AT_ONCE_BYTES = 64 * 2**20
"""Pixels of one shape that are decoded in one go: 300 images of 256x256."""
_uint32 = struct.Struct(">I").pack
_crc32, _adler32 = isal_zlib.crc32, isal_zlib.adler32  # zlib's values, at three times its speed and more
_IDAT = _crc32(b"IDAT")


def encode(images: UInt8[np.ndarray, "b c h w"], preset: str) -> list[bytes]:
    """A file for each image, 1 channel as grey and 3 as RGB (WebP knows only RGB).

    Args:
        images: uint8, c is 1 or 3.
        preset: a key of `PRESETS`.
    """
    return PRESETS[preset][0](np.ascontiguousarray(images))


def decode(files: Sequence[bytes], where: Callable[[int], str], channels: int | None = None) -> list[UInt8[np.ndarray, "c h w"]]:
    """Pixels of each file: grey or RGB PNG, JPEG or WebP, turned as its EXIF says.

    Args:
        files: their bytes.
        where: number of a file -> how an error names it.
        channels: 1 makes grey of an RGB file whose channels are equal: WebP has no grey.

    Raises:
        DataError: not readable, too large, or of another mode (16 bits, alpha, palette, CMYK).
    """
    return list(decoded(files, where, channels))


def decoded(
    files: Sequence[bytes], where: Callable[[int], str], channels: int | None = None
) -> Iterator[UInt8[np.ndarray, "c h w"]]:
    """As `decode`, one image after the other: what is more than `AT_ONCE_BYTES` isn't held together."""
    found: list[UInt8[np.ndarray, "c h w"] | None] = [None] * len(files)
    held, later = 0, set[int]()
    for head, numbers in _by_head(files).items():
        size = len(numbers) * math.prod(_shape(head) or (0,))
        if held + size > AT_ONCE_BYTES:
            later.update(numbers)
            continue
        pixels = _decode_own(head, [files[i] for i in numbers])
        if pixels is not None:
            held += size
            for i, image in zip(numbers, pixels, strict=True):
                found[i] = image
    for i, data in enumerate(files):
        if i in later and (alone := _decode_own(data[:_HEAD_BYTES], [data])) is not None:
            yield _grey(alone[0], channels)
            continue
        each = found[i]
        yield _grey(_with_pillow(data, where(i)) if each is None else each, channels)


def decode_one(data: bytes, where: str, channels: int | None = None) -> UInt8[np.ndarray, "c h w"]:
    """Pixels of one file; raises as `decode`."""
    return decode([data], lambda _: where, channels)[0]


# Writing


def _filter(images: UInt8[np.ndarray, "b c h w"], kind: int, out: UInt8[np.ndarray, "b h m"]) -> None:
    """Rows as PNG wants them into `out`: the filter's number, then w pixels of c filtered bytes, m = 1 + w c.

    Differences are taken while the channels are apart, over all pixels at once: the pixels are put in turn just once.
    """
    b, c, h, w = images.shape
    if kind == SUB:
        flat = images.reshape(-1)
        differences = np.empty_like(images)
        np.subtract(flat[1:], flat[:-1], out=differences.reshape(-1)[1:])
        differences[..., 0] = images[..., 0]
        images = differences
    out[:, :, 0] = kind
    pixels = out[:, :, 1:].reshape(b, h, w, c)  # a view
    for channel in range(c):
        pixels[..., channel] = images[:, channel]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return _uint32(len(data)) + kind + data + _uint32(_crc32(data, _crc32(kind)))


def _head(shape: tuple[int, int, int]) -> bytes:
    """All that stands before the pixels of an image of (h, w, c)."""
    h, w, c = shape
    return SIGNATURE + _chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 8, COLOUR[c], 0, 0, 0))


END = _chunk(b"IEND", b"")


def _balanced(images: UInt8[np.ndarray, "b c h w"]) -> list[bytes]:
    b, c, h, w = images.shape
    head, compress = _head((h, w, c)), isal_zlib.compress
    rows = np.empty((b, h, 1 + w * c), np.uint8)
    _filter(images, SUB, rows)
    packed = [compress(row, LEVEL) for row in rows.reshape(b, -1)]
    return [b"".join((head, _uint32(len(z)), b"IDAT", z, _uint32(_crc32(z, _IDAT)), END)) for z in packed]


def _fast(images: UInt8[np.ndarray, "b c h w"]) -> list[bytes]:
    b, c, h, w = images.shape
    size = h * (1 + w * c)
    if size > STORED_BLOCK:  # several blocks: zlib writes them
        rows = np.empty((b, h, 1 + w * c), np.uint8)
        _filter(images, NONE, rows)
        head, packed = _head((h, w, c)), [zlib.compress(row.tobytes(), 0) for row in rows.reshape(b, -1)]
        return [b"".join((head, _uint32(len(z)), b"IDAT", z, _uint32(_crc32(z, _IDAT)), END)) for z in packed]
    before = _before_stored((h, w, c))
    start, after = len(before), len(before) + size
    length = after + 8 + len(END)
    files = np.empty((b, length), np.uint8)  # all files of the batch, one a row
    files[:, :start] = np.frombuffer(before, np.uint8)
    files[:, after + 8 :] = np.frombuffer(END, np.uint8)
    _filter(images, NONE, files[:, start:after].reshape(b, h, 1 + w * c))
    checks = files[:, after : after + 8].view(">u4")
    checks[:, 0] = [_adler32(row) for row in files[:, start:after]]
    checks[:, 1] = [_crc32(row, _IDAT) for row in files[:, start - len(_stored(size)) : after + 4]]
    whole = files.tobytes()
    return [whole[i : i + length] for i in range(0, b * length, length)]


def _stored(size: int) -> bytes:
    """What stands before `size` bytes in a zlib stream of one stored block."""
    return b"\x78\x01\x01" + struct.pack("<HH", size, size ^ 0xFFFF)


def _before_stored(shape: tuple[int, int, int]) -> bytes:
    """All that stands before the rows of an image of (h, w, c) in one stored block."""
    h, w, c = shape
    block = _stored(h * (1 + w * c))
    return _head(shape) + _uint32(len(block) + h * (1 + w * c) + 4) + b"IDAT" + block


def _small(images: UInt8[np.ndarray, "b c h w"]) -> list[bytes]:
    files = []
    for image in images.transpose(0, 2, 3, 1):
        buffer = io.BytesIO()
        pixels = np.ascontiguousarray(image[..., 0] if image.shape[-1] == 1 else image)
        Image.fromarray(pixels).save(buffer, "WEBP", lossless=True, method=0, quality=0)
        files.append(buffer.getvalue())
    return files


PRESETS: dict[str, tuple[Callable[[UInt8[np.ndarray, "b c h w"]], list[bytes]], str]] = {
    "balanced": (_balanced, "png"),
    "fast": (_fast, "png"),
    "small": (_small, "webp"),
}
"""Preset -> its encoder and the extension of its files."""


# Reading

_HEAD_BYTES = len(SIGNATURE) + 25
"""Signature and IHDR."""


def _by_head(files: Sequence[bytes]) -> dict[bytes, list[int]]:
    """Numbers of the files that begin alike: they have one shape."""
    groups: dict[bytes, list[int]] = {}
    for i, data in enumerate(files):
        groups.setdefault(bytes(data[:_HEAD_BYTES]), []).append(i)
    return groups


def _decode_own(head: bytes, files: list[bytes]) -> UInt8[np.ndarray, "b c h w"] | None:
    """Images of one shape whose files are a header, one block of pixels and an end; None where any of them is more than that."""
    shape = _shape(head)
    if shape is None:
        return None
    h, w, c = shape
    rows = _rows_stored(files, shape)
    if rows is None:
        rows = _rows_deflated(files, h * (1 + w * c))
    if rows is None:
        return None  # Pillow says what is wrong, if anything is
    lines = rows.reshape(len(files), h, 1 + w * c)
    kinds = lines[:, :, 0]
    pixels = lines[:, :, 1:].reshape(len(files), h, w, c)
    subtracted = bool((kinds == SUB).all())
    if not subtracted and kinds.any():
        return None
    images = np.empty((len(files), c, h, w), np.uint8)
    for channel in range(c):
        images[:, channel] = pixels[..., channel]
    if subtracted:
        _sum_along_rows(images)
    return images


def _sum_along_rows(images: UInt8[np.ndarray, "b c h w"]) -> None:
    """Each pixel becomes the sum of those to its left and itself, in place.

    By doubling: after the step of 2^i a pixel holds the sum of 2^(i+1). All rows of an image are one vector, in which a mask
    keeps a sum from reaching into the row before: five times as fast as `np.add.accumulate` for rows of 32.
    """
    w = images.shape[3]
    flat = images.reshape(len(images), -1)
    column = np.arange(flat.shape[1]) % w
    step = 1
    while step < w:
        mask = np.where(column >= step, np.uint8(255), np.uint8(0))
        flat[:, step:] += flat[:, :-step] & mask[step:]
        step *= 2


def _rows_stored(files: list[bytes], shape: tuple[int, int, int]) -> UInt8[np.ndarray, "b n"] | None:
    """Filtered rows out of files that `_fast` made, all at once; None if any of them is another's, or damaged."""
    h, w, c = shape
    size = h * (1 + w * c)
    if size > STORED_BLOCK:
        return None
    before = _before_stored(shape)
    start, after = len(before), len(before) + size
    length = after + 8 + len(END)
    if any(len(file) != length for file in files):
        return None
    whole = np.frombuffer(b"".join(files), np.uint8).reshape(-1, length)
    fixed = np.frombuffer(before, np.uint8), np.frombuffer(END, np.uint8)
    if (whole[:, :start] != fixed[0]).any() or (whole[:, after + 8 :] != fixed[1]).any():
        return None
    rows, begun = whole[:, start:after], _crc32(_stored(size), _IDAT)
    found = [_adler32(row) for row in rows], [_crc32(row, begun) for row in whole[:, start : after + 4]]
    checks = whole[:, after : after + 8].view(">u4")
    return rows if (checks[:, 0].tolist(), checks[:, 1].tolist()) == found else None


def _rows_deflated(files: list[bytes], size: int) -> UInt8[np.ndarray, "b n"] | None:
    """Filtered rows out of files with one IDAT, each a zlib stream of `size` bytes; None if any of them is more than that."""
    before, rows = _HEAD_BYTES + 8, []
    for file in files:
        end = len(file) - len(END) - 4
        if end < before or file[_HEAD_BYTES:before] != _uint32(end - before) + b"IDAT" or file[end + 4 :] != END:
            return None
        block = file[before:end]
        if file[end : end + 4] != _uint32(_crc32(block, _IDAT)):
            return None
        inflater = isal_zlib.decompressobj()
        try:
            row = inflater.decompress(block, size + 1)  # a bomb stops here
        except isal_zlib.IsalError:  # type: ignore[misc]
            return None
        if len(row) != size or not inflater.eof:
            return None
        rows.append(row)
    return np.frombuffer(b"".join(rows), np.uint8).reshape(len(files), size)


def _shape(head: bytes) -> tuple[int, int, int] | None:
    """(h, w, c) of a PNG's first bytes; None if it isn't one of 8-bit grey or RGB, not interlaced, of a sane size."""
    if len(head) < _HEAD_BYTES or head[:8] != SIGNATURE or head[8:16] != b"\0\0\0\rIHDR":
        return None
    w, h, depth, colour, *rest = struct.unpack(">IIBBBBB", head[16:29])
    channels = {number: c for c, number in COLOUR.items()}.get(colour)
    if depth != 8 or channels is None or any(rest) or not 0 < w * h <= MAX_PIXELS or head[29:33] != _uint32(_crc32(head[12:29])):
        return None
    return h, w, channels


def _with_pillow(data: bytes, where: str) -> UInt8[np.ndarray, "c h w"]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise DataError(f"{where}: {image.width} x {image.height} pixels, at most {MAX_PIXELS:,} are decoded")
                if image.mode not in ("L", "RGB"):
                    raise DataError(
                        f"{where}: an image of mode {image.mode!r}, expected grey ('L') or RGB; "
                        "unpack the archive and give it as an image folder, where other modes are converted"
                    )
                pixels = np.asarray(ImageOps.exif_transpose(image))
    except DataError:
        raise
    except Exception as error:  # whatever a decoder makes of a damaged file (struct.error, IndexError, MemoryError, ...)
        why = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{where}: not readable as PNG, JPEG or WebP ({why})") from None
    return pixels[None].copy() if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _grey(image: UInt8[np.ndarray, "c h w"], channels: int | None) -> UInt8[np.ndarray, "d h w"]:
    same = channels == 1 and len(image) == 3 and (image[0] == image[1]).all() and (image[0] == image[2]).all()
    return image[:1].copy() if same else image
