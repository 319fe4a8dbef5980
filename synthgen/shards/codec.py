"""Pixels <-> the bytes of an image file, lossless, a batch at a time; the same pixels give the same bytes on one platform.

Three presets. `balanced`: PNG, each row minus the pixel to its left, deflated by ISA-L. `fast`: PNG whose deflate blocks are
stored, not compressed. `small`: lossless WebP. All three open in Pillow, OpenCV and browsers. What `balanced` and `fast` write
is read back a batch at a time as well; any other PNG, JPEG or WebP goes through Pillow.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence

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
_uint32 = struct.Struct(">I").pack
_IDAT = zlib.crc32(b"IDAT")


def encode(images: UInt8[np.ndarray, "b c h w"], preset: str) -> list[bytes]:
    """A file for each image, 1 channel as grey and 3 as RGB (WebP knows only RGB).

    Args:
        images: uint8, c is 1 or 3.
        preset: a key of `PRESETS`.
    """
    return PRESETS[preset][0](np.ascontiguousarray(images.transpose(0, 2, 3, 1)))


def decode(files: Sequence[bytes], where: Callable[[int], str], channels: int | None = None) -> list[UInt8[np.ndarray, "c h w"]]:
    """Pixels of each file: grey or RGB PNG, JPEG or WebP, turned as its EXIF says.

    Args:
        files: their bytes.
        where: number of a file -> how an error names it.
        channels: 1 makes grey of an RGB file whose channels are equal: WebP has no grey.

    Raises:
        DataError: not readable, too large, or of another mode (16 bits, alpha, palette, CMYK).
    """
    found: list[UInt8[np.ndarray, "c h w"] | None] = [None] * len(files)
    for head, numbers in _by_head(files).items():
        pixels = _decode_own(head, [files[i] for i in numbers])
        for row, i in enumerate(numbers) if pixels is not None else ():
            found[i] = pixels[row]
    return [_grey(_with_pillow(files[i], where(i)) if image is None else image, channels) for i, image in enumerate(found)]


def decode_one(data: bytes, where: str, channels: int | None = None) -> UInt8[np.ndarray, "c h w"]:
    """Pixels of one file; raises as `decode`."""
    return decode([data], lambda _: where, channels)[0]


# Writing


def _filtered(images: UInt8[np.ndarray, "b h w c"], kind: int) -> UInt8[np.ndarray, "b n"]:
    """Rows as PNG wants them: the filter's number, then the filtered bytes."""
    b, h, w, c = images.shape
    rows = images.reshape(b, h, w * c)
    out = np.empty((b, h, 1 + w * c), np.uint8)
    out[:, :, 0] = kind
    if kind == NONE:
        out[:, :, 1:] = rows
    else:
        out[:, :, 1 : 1 + c] = rows[:, :, :c]
        np.subtract(rows[:, :, c:], rows[:, :, :-c], out=out[:, :, 1 + c :])
    return out.reshape(b, -1)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return _uint32(len(data)) + kind + data + _uint32(zlib.crc32(data, zlib.crc32(kind)))


def _head(shape: tuple[int, ...]) -> bytes:
    """All that stands before the pixels of an image of (h, w, c)."""
    h, w, c = shape
    return SIGNATURE + _chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 8, COLOUR[c], 0, 0, 0))


END = _chunk(b"IEND", b"")


def _balanced(images: UInt8[np.ndarray, "b h w c"]) -> list[bytes]:
    head, crc, compress = _head(images.shape[1:]), zlib.crc32, isal_zlib.compress
    packed = [compress(row, LEVEL) for row in _filtered(images, SUB)]
    return [b"".join((head, _uint32(len(z)), b"IDAT", z, _uint32(crc(z, _IDAT)), END)) for z in packed]


def _fast(images: UInt8[np.ndarray, "b h w c"]) -> list[bytes]:
    rows = _filtered(images, NONE)
    size, crc, adler = rows.shape[1], zlib.crc32, zlib.adler32
    if size > STORED_BLOCK:  # several blocks: zlib writes them
        packed = [zlib.compress(row, 0) for row in rows]
        head = _head(images.shape[1:])
        return [b"".join((head, _uint32(len(z)), b"IDAT", z, _uint32(crc(z, _IDAT)), END)) for z in packed]
    block = b"\x78\x01\x01" + struct.pack("<HH", size, size ^ 0xFFFF)
    before = _head(images.shape[1:]) + _uint32(len(block) + size + 4) + b"IDAT" + block
    started, files = crc(block, _IDAT), []
    for row in rows:
        check = _uint32(adler(row))
        files.append(b"".join((before, row, check, _uint32(crc(check, crc(row, started))), END)))
    return files


def _small(images: UInt8[np.ndarray, "b h w c"]) -> list[bytes]:
    files = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "WEBP", lossless=True, method=0, quality=0)
        files.append(buffer.getvalue())
    return files


PRESETS: dict[str, tuple[Callable[[UInt8[np.ndarray, "b h w c"]], list[bytes]], str]] = {
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
    size = h * (1 + w * c)
    before, crc, rows = _HEAD_BYTES + 8, zlib.crc32, []
    for data in files:
        end = len(data) - len(END) - 4
        if data[_HEAD_BYTES:before] != _uint32(end - before) + b"IDAT" or data[end + 4 :] != END:
            return None
        block = data[before:end]
        if data[end : end + 4] != _uint32(crc(block, _IDAT)):
            return None  # Pillow says what is wrong
        row = _inflate(block, size)
        if row is None:
            return None
        rows.append(row)
    flat = np.frombuffer(b"".join(rows), np.uint8).reshape(len(files), h, 1 + w * c)
    kinds = flat[:, :, 0]
    pixels = flat[:, :, 1:].reshape(len(files), h, w, c)
    if (kinds == SUB).all():
        pixels = np.add.accumulate(pixels, axis=2, dtype=np.uint8)
    elif kinds.any():
        return None
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def _shape(head: bytes) -> tuple[int, int, int] | None:
    """(h, w, c) of a PNG's first bytes; None if it isn't one of 8-bit grey or RGB, not interlaced, of a sane size."""
    if len(head) < _HEAD_BYTES or head[:8] != SIGNATURE or head[8:16] != b"\0\0\0\rIHDR":
        return None
    w, h, depth, colour, *rest = struct.unpack(">IIBBBBB", head[16:29])
    channels = {number: c for c, number in COLOUR.items()}.get(colour)
    if (
        depth != 8
        or channels is None
        or any(rest)
        or not 0 < w * h <= MAX_PIXELS
        or head[29:33] != _uint32(zlib.crc32(head[12:29]))
    ):
        return None
    return h, w, channels


def _inflate(block: bytes, size: int) -> bytes | None:
    """`size` bytes out of a zlib stream; None if it holds another number of them."""
    if block[:3] == b"\x78\x01\x01" and len(block) == size + 11 and block[3:7] == struct.pack("<HH", size, size ^ 0xFFFF):
        row = block[7:-4]
        return row if block[-4:] == _uint32(zlib.adler32(row)) else None
    inflater = isal_zlib.decompressobj()
    try:
        row = inflater.decompress(block, size + 1)  # a bomb stops here
    except isal_zlib.IsalError:
        return None
    return row if len(row) == size and inflater.eof else None


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
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{where}: not readable as PNG, JPEG or WebP ({error})") from None
    return pixels[None].copy() if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _grey(image: UInt8[np.ndarray, "c h w"], channels: int | None) -> UInt8[np.ndarray, "d h w"]:
    same = channels == 1 and len(image) == 3 and (image[0] == image[1]).all() and (image[0] == image[2]).all()
    return image[:1].copy() if same else image
