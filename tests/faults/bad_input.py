"""Input that is broken, hostile or merely unusual, and what synthgen has to say of it: one table a kind.

The good images beside it are 16x16 and in colour, in the folders cat and dog.
"""

from __future__ import annotations

import io
import os
import shutil
import socket
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE, EACH = 16, 12
RAMP = np.arange(256, dtype=np.uint8).reshape(SIZE, SIZE)
"""Every level once."""


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def colours(seed: int = 1000) -> np.ndarray:
    return noise(seed, SIZE, SIZE, 3)


def encoded(pixels: np.ndarray | Image.Image, form: str = "PNG", **settings: Any) -> bytes:
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, form, **settings)
    return file.getvalue()


def good_images(root: Path) -> Path:
    for k, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for i in range(EACH):
            (root / name / f"{i:02d}.png").write_bytes(encoded(colours(100 * k + i)))
    return root


def images_of(root: Path) -> list[Path]:
    return sorted(root.glob("*/*.png"))


# Files that are left out

Make = Callable[[Path], object]
"""Puts something under a path."""


def content(data: bytes) -> Make:
    return lambda path: path.write_bytes(data)


def cut(data: bytes, share: float = 0.5) -> Make:
    return content(data[: int(share * len(data))])


def link(target: str) -> Make:
    return lambda path: path.symlink_to(target)


def a_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path may have a hundred characters
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)


def loop_of_two(path: Path) -> None:
    path.symlink_to(path.with_suffix(".gif"))
    path.with_suffix(".gif").symlink_to(path)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, pixels: bytes = b"", depth: int = 8, colour: int = 2, extra: bytes = b"") -> bytes:
    """A PNG whose header says what it likes."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def wrong_checksum(data: bytes) -> bytes:
    """Pixels as they were: Pillow notices nothing."""
    at = data.index(b"IDAT")
    end = at + 4 + int.from_bytes(data[at - 4 : at], "big")
    return data[:end] + bytes([data[end] ^ 1]) + data[end + 1 :]


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def zeros_at_the_end(data: bytes) -> bytes:
    """What a power cut leaves of a file."""
    return data[: len(data) // 2] + bytes(len(data) - len(data) // 2)


def tiff(width: int, height: int) -> bytes:
    """A TIFF's head alone."""
    entries = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, height), (279, 9)]
    return b"II*\0" + struct.pack("<IH", 8, 9) + b"".join(struct.pack("<HHII", tag, 4, 1, v) for tag, v in entries) + bytes(4)


JPEG_ = encoded(colours(), "JPEG")
SOF = JPEG_.index(b"\xff\xc0")
WEBP_ = encoded(Image.fromarray(colours()), "WEBP", save_all=True, append_images=[Image.fromarray(colours(1))], lossless=True)
BOMB = "more than data.max_pixels=64000000 pixels"
LEFT_OUT: dict[str, tuple[str, Make, str]] = {
    "a link to nothing": ("cat/x.png", link("nowhere.png"), "a link to nothing"),
    "a link to itself": ("cat/x.png", link("x.png"), "a link to nothing"),
    "two links in a loop": ("cat/x.png", loop_of_two, "a link to nothing"),
    "a link out of the folder": ("cat/x.png", link("/etc/passwd"), "a link that leaves the folder: not followed"),
    "a pipe": ("cat/x.png", os.mkfifo, "not a regular file"),
    "a socket": ("cat/x.png", a_socket, "not a regular file"),
    "a device": ("cat/x.png", link("/dev/zero"), "a link that leaves the folder: not followed"),
    "an empty file": ("cat/x.png", content(b""), "an empty file"),
    "a text": ("cat/x.png", content(b"I am no picture"), "not an image: its contents are none of BMP, GIF, JPEG"),
    "a web page": ("cat/x.jpg", content(b"<!DOCTYPE html><title>404"), "not an image"),
    "an archive": ("cat/x.webp", content(b"PK\x03\x04" + bytes(30)), "not an image"),
    "a drawing": ("cat/x.svg", content(b"<svg onload='alert(1)'/>"), ".svg files aren't decoded; save it as PNG"),
    "a photograph of a telephone": ("cat/x.HEIC", content(b"\0\0\0\x18ftypheic"), ".heic files aren't decoded"),
    "PNG cut in its head": ("cat/x.png", content(encoded(colours())[:20]), "damaged"),
    "PNG cut in its pixels": ("cat/x.png", cut(encoded(colours())), "damaged: cut off"),
    "PNG without its end": ("cat/x.png", content(encoded(colours())[:-12]), "damaged: cut off"),
    "PNG with a wrong checksum": ("cat/x.png", content(wrong_checksum(encoded(colours()))), "damaged: the checksum of its IDAT"),
    "PNG with zeros at its end": ("cat/x.png", content(zeros_at_the_end(encoded(colours()))), "damaged: the checksum"),
    "JPEG cut": ("cat/x.jpg", cut(JPEG_, 0.8), "damaged: cut off"),
    "JPEG with zeros at its end": ("cat/x.jpg", content(zeros_at_the_end(encoded(noise(1, 64, 64), "JPEG"))), "damaged: cut off"),
    "GIF cut": ("cat/x.gif", cut(encoded(colours(), "GIF"), 0.9), "damaged: image file is truncated"),
    "WebP cut": ("cat/x.webp", cut(WEBP_), "damaged"),
    "TIFF cut": ("cat/x.tif", cut(encoded(colours(), "TIFF")), "damaged: image file is truncated"),
    "BMP cut": ("cat/x.bmp", cut(encoded(colours(), "BMP")), "damaged: image file is truncated"),
    "PPM cut": ("cat/x.ppm", cut(encoded(colours(), "PPM")), "damaged: image file is truncated"),
    "PNG of a pixel too many": ("cat/x.png", content(png(8000, 8001)), BOMB),
    "PNG that says 64 megapixels and has none": ("cat/x.png", content(png(8000, 8000)), "damaged"),
    "PNG without a pixel": ("cat/x.png", content(png(0, 0)), "not an image"),
    "JPEG bomb": ("cat/x.jpg", content(patched(JPEG_, SOF + 5, struct.pack(">HH", 65500, 65500))), BOMB),
    "GIF bomb": ("cat/x.gif", content(patched(encoded(RAMP, "GIF"), 6, b"\xff\xff\xff\xff")), BOMB),
    "WebP bomb": ("cat/x.webp", content(patched(WEBP_, 24, b"\xfe\x3f\x00\xfe\x3f\x00")), BOMB),
    "TIFF bomb": ("cat/x.tif", content(tiff(90000, 90000)), BOMB),
    "BMP bomb": ("cat/x.bmp", content(patched(encoded(RAMP, "BMP"), 18, struct.pack("<ii", 60000, 60000))), BOMB),
    "PPM bomb": ("cat/x.ppm", content(b"P6 99999 99999 255\n"), BOMB),
    "PNG with a text that unpacks to 50 MB": (
        "cat/x.png",
        content(png(SIZE, SIZE, bytes(49 * SIZE), extra=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(50_000_000))))),
        "damaged: Decompressed data too large",
    ),
    "floats of an unknown range": ("cat/x.tif", content(encoded(RAMP.astype(np.float32), "TIFF")), "float pixels from 0 to 255"),
    "float NaN": ("cat/x.tif", content(encoded(np.full((SIZE, SIZE), np.nan, np.float32), "TIFF")), "float pixels from nan"),
    "negative pixels": ("cat/x.tif", content(encoded(RAMP.astype(np.int32) - 9, "TIFF")), "integer pixels from -9 to 246"),
    "16 bits with a transparent colour": (
        "cat/x.png",
        content(png(SIZE, SIZE, bytes(33 * SIZE), 16, 0, chunk(b"tRNS", b"\0\0"))),
        "16-bit with a transparent colour; save it with an alpha channel",
    ),
    "control characters in a bad file's name": ("cat/\x1b[2J\nx.png", content(b""), "an empty file"),
}
"""What -> (where it lies, what lies there, the reason that the audit lists). By default one is enough to stop the run."""

PASSED_OVER: dict[str, tuple[str, Make, str]] = {
    "a folder called as an image": ("cat/x.png", os.mkdir, "a folder, though it is called as an image is"),
    "a link to a folder": ("cat/loop", link(".."), "a link to a folder: not followed"),
    "a class that is a link": ("bird", link("cat"), "a link to a folder or to nothing: not followed"),
    "a hidden image": ("cat/.x.png", content(encoded(colours())), "hidden, as its name begins with a dot: not read"),
    "a hidden folder": (
        ".thumbs",
        lambda path: (path.mkdir(), content(encoded(colours()))(path / "x.png")),
        "hidden, as its name begins with a dot: not read",
    ),
    "an image outside of the class folders": ("x.png", content(encoded(colours())), "an image outside the class folders"),
    "an image without a suffix": ("cat/x", content(encoded(colours())), "not an image file"),
}
"""The same of what stops no run."""


# Files that are converted, or merely have unusual names


def half_transparent() -> Image.Image:
    image = Image.fromarray(colours(7)).convert("RGBA")
    image.putalpha(Image.fromarray(np.repeat(np.uint8([[0, 255]]), SIZE, 0).repeat(SIZE // 2, 1)))
    return image


def on_white(seed: int) -> np.ndarray:
    pixels = colours(seed)
    pixels[:, : SIZE // 2] = 255
    return pixels


def solid(*levels: int) -> np.ndarray:
    return np.full((SIZE, SIZE, len(levels)), levels, np.uint8)


def palette(transparency: int | None = None) -> bytes:
    image = Image.fromarray((RAMP % 2).astype(np.uint8), "L").convert("P")
    image.putpalette([10, 20, 30, 200, 100, 0])
    return encoded(image, **({} if transparency is None else {"transparency": transparency}))


def two_tone(first: tuple[int, ...], second: tuple[int, ...]) -> np.ndarray:
    return np.where(RAMP[..., None] % 2 == 0, np.uint8([[first]]), np.uint8([[second]]))


def frames(form: str, **settings: Any) -> bytes:
    return encoded(Image.fromarray(colours(8)), form, save_all=True, append_images=[Image.fromarray(colours(9))], **settings)


def halves() -> np.ndarray:
    """What JPEG's blocks of 8 pixels keep as it is."""
    return np.repeat(np.uint8([[[0] * 3] * SIZE, [[255] * 3] * SIZE]), SIZE // 2, 0)


def rotated(form: str, pixels: np.ndarray | None = None) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    return encoded(colours(6) if pixels is None else pixels, form, exif=exif)


DEEP = (RAMP.astype(np.uint16) * 257).byteswap().tobytes()
GREY = RAMP[..., None].repeat(3, 2)
CONVERTED: dict[str, tuple[bytes, bytes, np.ndarray, tuple[str, ...]]] = {
    "16-bit PNG": (
        b"a.png",
        encoded(Image.frombytes("I;16", (SIZE, SIZE), (RAMP.astype(np.uint16) * 257).tobytes())),
        GREY,
        ("16-bit scaled", "grey to RGB"),
    ),
    "16-bit colour PNG": (
        b"b.png",
        png(SIZE, SIZE, b"".join(b"\0" + row.repeat(2).tobytes() for row in colours(5).reshape(SIZE, -1)), 16, 2),
        colours(5),
        ("16-bit scaled",),
    ),
    "16-bit big-endian TIFF": (
        b"c.tif",
        encoded(Image.frombytes("I;16B", (SIZE, SIZE), DEEP), "TIFF"),
        GREY,
        ("16-bit scaled", "grey to RGB"),
    ),
    "32-bit TIFF": (b"d.tif", encoded(RAMP.astype(np.int32) * 257, "TIFF"), GREY, ("16-bit scaled", "grey to RGB")),
    "float TIFF": (b"e.tif", encoded((RAMP / 255).astype(np.float32), "TIFF"), GREY, ("float scaled", "grey to RGB")),
    "CMYK TIFF": (
        b"f.tif",
        encoded(Image.new("CMYK", (SIZE, SIZE), (0, 255, 255, 0)), "TIFF"),
        solid(255, 0, 0),
        ("CMYK converted",),
    ),
    "CMYK JPEG": (
        b"g.jpg",
        encoded(Image.new("CMYK", (SIZE, SIZE), (255, 0, 0, 0)), "JPEG"),
        solid(0, 255, 255),
        ("CMYK converted",),
    ),
    "alpha": (b"h.png", encoded(half_transparent()), on_white(7), ("alpha composited on white",)),
    "grey with alpha": (
        b"i.png",
        encoded(Image.merge("LA", [Image.new("L", (SIZE, SIZE), 9), Image.new("L", (SIZE, SIZE), 0)])),
        solid(255, 255, 255),
        ("alpha composited on white", "grey to RGB"),
    ),
    "palette": (b"j.png", palette(), two_tone((10, 20, 30), (200, 100, 0)), ("palette expanded",)),
    "palette with transparency": (
        b"k.png",
        palette(transparency=0),
        two_tone((255, 255, 255), (200, 100, 0)),
        ("palette expanded", "alpha composited on white"),
    ),
    "1 bit": (b"l.png", encoded(Image.new("1", (SIZE, SIZE), 1)), solid(255, 255, 255), ("1-bit expanded", "grey to RGB")),
    "animated GIF": (
        b"m.gif",
        encoded(Image.new("L", (SIZE, SIZE), 7), "GIF", save_all=True, append_images=[Image.new("L", (SIZE, SIZE), 9)]),
        solid(7, 7, 7),
        ("animated: first frame", "palette expanded"),
    ),
    "animated WebP": (b"n.webp", frames("WEBP", lossless=True), colours(8), ("animated: first frame",)),
    "animated PNG": (b"o.png", frames("PNG"), colours(8), ("animated: first frame",)),
    "TIFF of two pages": (b"p.tif", frames("TIFF"), colours(8), ("animated: first frame",)),
    "EXIF-rotated PNG": (b"q.png", rotated("PNG"), np.rot90(colours(6), -1), ("EXIF rotated",)),
    "EXIF-rotated JPEG": (b"q.jpg", rotated("JPEG", halves()), np.rot90(halves(), -1), ("EXIF rotated",)),
    "EXIF-rotated TIFF": (b"r.tif", rotated("TIFF"), np.rot90(colours(6), -1), ("EXIF rotated",)),
    "YCbCr TIFF": (
        b"s.tif",
        encoded(Image.new("YCbCr", (SIZE, SIZE), (99, 128, 128)), "TIFF"),
        solid(99, 99, 99),
        ("YCbCr converted",),
    ),
    "a larger one of another shape": (
        b"t.png",
        encoded(np.full((24, 20, 3), 77, np.uint8)),
        solid(77, 77, 77),
        ("cropped", "resized"),
    ),
    "one pixel": (b"u.png", encoded(np.uint8([[[1, 2, 3]]])), solid(1, 2, 3), ("resized",)),
    "another colour profile": (b"v.png", encoded(colours(4), icc_profile=b"Display P3"), colours(4), ("colour profile ignored",)),
    "damaged EXIF": (b"w.png", encoded(colours(3), exif=b"Exif\0\0no TIFF"), colours(3), ("EXIF unreadable",)),
    "a JPEG called .PNG": (b"x.PNG", encoded(solid(50, 50, 50), "JPEG"), solid(50, 50, 50), ()),
    "name with a newline": (b"y\n1.png", encoded(colours(20)), colours(20), ()),
    "name with a terminal escape": (b"y\x1b[31m2.png", encoded(colours(21)), colours(21), ()),
    "name that isn't UTF-8": (b"y\xff3.png", encoded(colours(22)), colours(22), ()),
    "name in two Unicode forms, one": ("yé4.png".encode(), encoded(colours(23)), colours(23), ()),
    "name in two Unicode forms, the other": ("ye\u03014.png".encode(), encoded(colours(24)), colours(24), ()),
    "name with marks from right to left": ("y\u202egnp\u200f.png".encode(), encoded(colours(25)), colours(25), ()),
    "name that begins with a dash": (b"-rf.png", encoded(colours(26)), colours(26), ()),
    "name with quotes and blanks": (b"y \"'$(id)`;&|*?<b>.png", encoded(colours(27)), colours(27), ()),
    "name of 255 bytes": (b"y" * 251 + b".png", encoded(colours(28)), colours(28), ()),
    "name of two dots": (b"y..png", encoded(colours(29)), colours(29), ()),
}
"""What -> (name of the file in cat/, its bytes, the pixels that come of it, the conversions that the audit lists)."""


# Folders that are no data set

Spoil = Callable[[Path], object]
"""Changes a folder of good images; a path that it returns is given to `synthgen audit` in its place."""


@dataclass(frozen=True)
class Refused:
    """Input that is refused: what the one line has to hold, with which exit code, under which settings."""

    spoil: Spoil
    words: tuple[str, ...]
    code: int = 3
    settings: tuple[str, ...] = ()


def every(change: Callable[[int, Path], object], *classes: str) -> Spoil:
    """Changes every image (of some classes)."""
    return lambda root: ([change(i, p) for i, p in enumerate(images_of(root)) if p.parent.name in (classes or ("cat", "dog"))])


def all_but(keep: int, *classes: str) -> Spoil:
    """Removes all images but the first few of each class."""
    return every(lambda i, path: path.unlink() if i % EACH >= keep else None, *classes)


def further_class(*names: bytes | str) -> Spoil:
    """Classes beside cat and dog."""

    def spoil(root: Path) -> None:
        for k, name in enumerate(names):
            folder = Path(os.fsdecode(os.path.join(os.fsencode(root), name if isinstance(name, bytes) else name.encode())))
            folder.mkdir()
            for i in range(EACH):
                (folder / f"{i}.png").write_bytes(encoded(colours(500 + 50 * k + i)))

    return spoil


def instead(make: Callable[[Path], object], name: str) -> Spoil:
    """Something else beside the folder, given to the command in its place."""
    return lambda root: (make(root.parent / name), root.parent / name)[1]


def renamed(name: bytes) -> Spoil:
    def spoil(root: Path) -> Path:
        place = os.path.join(os.fsencode(root.parent), name)
        os.rename(os.fsencode(root), place)
        return Path(os.fsdecode(place))

    return spoil


def gone(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


TEXT, ONE_COLOUR = content(b"not a picture"), content(encoded(np.zeros((SIZE, SIZE, 3), np.uint8)))
NATIVE = ("data.size_px=null",)
FOLDERS: dict[str, Refused] = {
    "an empty folder": Refused(
        lambda root: [gone(path) for path in root.iterdir()], ("no class folders in it; expected one folder a class",)
    ),
    "a folder that isn't there": Refused(lambda root: root / "nowhere", ("nowhere", "no such file or folder; give the path")),
    "a path of 5,000 characters": Refused(lambda root: "x" * 5000, ("...", "no such file or folder")),
    "a link to itself": Refused(instead(link("loop"), "loop"), ("loop", "no such file or folder")),
    "a pipe": Refused(instead(os.mkfifo, "pipe"), ("pipe: neither a file nor a folder",)),
    "a device": Refused(lambda root: "/dev/zero", ("/dev/zero: neither a file nor a folder",)),
    "a file": Refused(lambda root: root / "cat" / "00.png", ("00.png: is a file, and data.source=folder expects a folder",)),
    "a name that isn't UTF-8": Refused(renamed(b"in\xff"), (r"\udcff", "isn't text (not UTF-8); rename the file or folder")),
    "a name with a terminal escape": Refused(
        lambda root: (further_class("e")(root), gone(root / "e"), (root / "e").mkdir(), renamed(b"in\x1b[2J")(root))[-1],
        (r"in\x1b[2J", "class folder 'e' has no images"),
    ),
    "an empty class": Refused(lambda root: (root / "eel").mkdir(), ("class folder 'eel' has no images; add some or remove it",)),
    "one class": Refused(lambda root: gone(root / "dog"), ("one class only, 'cat'; at least two are needed",)),
    "one image": Refused(lambda root: (gone(root / "dog"), all_but(1)(root)), ("one class only, 'cat'",)),
    "an image a class": Refused(all_but(1), ("class 'cat' has 0 images in train, and audit.min_per_class asks for 2",)),
    "a class of one image": Refused(all_but(1, "dog"), ("class 'dog' has", "add images of the class or take it out")),
    "300 classes": Refused(
        further_class(*(f"c{i}" for i in range(3))), ("class 'c0' has", "raise split.train"), settings=("split.train=4",)
    ),
    "one colour everywhere": Refused(
        every(lambda i, path: ONE_COLOUR(path)), ("can't be taken without cutting a group", "the only group has 24 images")
    ),
    "copies of one image": Refused(
        every(lambda i, path: content(encoded(colours()))(path)), ("split.test: ", "keep_near_duplicates_together=false")
    ),
    "no image that can be read": Refused(
        every(lambda i, path: TEXT(path)),
        ("24 of 24 images are unreadable, and at least one has to be read", "First: cat/00.png: not an image"),
        settings=("data.max_unreadable=1",),
    ),
    "a class without an image that can be read": Refused(
        every(lambda i, path: TEXT(path), "dog"),
        ("class 'dog' has no images that can be read, 12 can't",),
        settings=("data.max_unreadable=1",),
    ),
    "sizes that differ": Refused(
        lambda root: content(encoded(noise(1, 24, 20)))(root / "cat" / "x.png"),
        ("images of 2 sizes, 16x16 (24), 20x24 (1)", "data.size_px=32"),
        settings=NATIVE,
    ),
    "one pixel each": Refused(
        every(lambda i, path: content(encoded(noise(i, 1, 1, 3)))(path)), ("images of 1x1", "data.size_px=8"), settings=NATIVE
    ),
    "images that aren't square": Refused(
        every(lambda i, path: content(encoded(noise(i, 12, 20, 3)))(path)),
        ("20x12 images aren't square; data.size_px=12",),
        settings=NATIVE,
    ),
    "images in the folder itself": Refused(
        lambda root: root / "cat", ("images lie directly in it; expected one folder a class",)
    ),
    "a split without its other half": Refused(
        lambda root: [(root / a).rename(root / b) for a, b in (("cat", "train"), ("dog", "val"))],
        ("look like splits", "add the other one"),
    ),
    "a class whose name is a newline": Refused(
        further_class("a\nb"), (r"the class name 'a\x0ab' holds control characters; give the class another name",)
    ),
    "a class whose name is a terminal escape": Refused(
        further_class("\x1b[31mred\x1b[0m"), (r"the class name '\x1b[31mred\x1b[0m' holds control",)
    ),
    "a class whose name turns the line about": Refused(
        further_class("\u202egnp"), (r"the class name '\u202egnp' holds control characters",)
    ),
    "a class whose name is blank": Refused(further_class("  "), ("the class name '  ' is empty",)),
    "a class whose name isn't UTF-8": Refused(
        further_class(b"\xff", b"\xfe"), (r"the class name '\udcfe' isn't text (not UTF-8)",)
    ),
    "two classes in two Unicode forms": Refused(
        further_class("café", "cafe\u0301"), ("two classes are called 'café', in two Unicode forms", r"'caf\xe9'")
    ),
    "a class of 255 characters": Refused(further_class("x" * 255), ("has 255 characters, at most 200 are allowed",)),
}
"""Wholes that can't be split."""

READ: dict[str, Spoil] = {
    "classes with dashes, quotes and dots": further_class("-rf", 'it\'s "x" $(id)', "..a", "<b>&amp;"),
    "classes in other scripts, with a mark from right to left": further_class("\u0627\u0644\u200f", "犬", "Ünï"),
    "a folder whose name begins with a dash": renamed(b"-x"),
    "constant images of different colours": every(lambda i, path: content(encoded(np.full((SIZE, SIZE, 3), i, np.uint8)))(path)),
    "a folder behind a link": lambda root: ((root.parent / "link").symlink_to(root), root.parent / "link")[1],
}
"""Unusual, and as good as any."""
