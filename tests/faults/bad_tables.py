"""Parquet files and .npz archives that are broken, hostile or mistaken, and what synthgen has to say of each."""

from __future__ import annotations

import datetime
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.faults.bad_input import Refused, colours, encoded, noise, patched

NUM = 24
LABELS = [0, 1] * (NUM // 2)
FILES = [encoded(colours(i)) for i in range(NUM)]
PIXELS = np.stack([colours(i) for i in range(NUM)])


# Parquet


def table(labels: Any = LABELS, images: Any = FILES, **further: Any) -> pa.Table:
    return pa.table({"image": images, "label": labels, **further})


def with_names(names: Any, labels: Sequence[int] = LABELS) -> pa.Table:
    return with_metadata(json.dumps({"info": {"features": {"label": {"_type": "ClassLabel", "names": names}}}}), labels)


def with_metadata(text: str | bytes, labels: Sequence[int] = LABELS) -> pa.Table:
    return table(labels).replace_schema_metadata({"huggingface": text})


def parquet(made: pa.Table | bytes) -> Callable[[Path], Path]:
    def spoil(root: Path) -> Path:
        path = root.parent / "x.parquet"
        path.write_bytes(made) if isinstance(made, bytes) else pq.write_table(made, path)
        return path

    return spoil


def whole() -> bytes:
    file = io.BytesIO()
    pq.write_table(table(), file)
    return file.getvalue()


def beside(make: Callable[[Path], object]) -> Callable[[Path], Path]:
    """A folder with a good train.parquet and something else as test.parquet."""

    def spoil(root: Path) -> Path:
        folder = root.parent / "tables"
        folder.mkdir()
        shutil.move(parquet(table())(root), folder / "train.parquet")
        make(folder / "test.parquet")
        return folder

    return spoil


def two_columns(name: str) -> pa.Table:
    columns = {"image": pa.array(FILES), "label": pa.array(LABELS)}
    return pa.Table.from_arrays([*columns.values(), columns[name]], names=[*columns, name])


DAY = datetime.date(2020, 1, 1)
NO_LABEL = "if such images have no label, data.unlabelled=-1 takes them as unlabelled"
EXPECTED = "expected encoded images, {bytes, path} or bytes; name it with data.image_column=NAME"
METADATA = "its 'huggingface' metadata says nothing of column 'label'; write the file again"
GROUPED = ("data.group_column=who",)
PARQUET: dict[str, Refused] = {
    "empty": Refused(parquet(b""), ("x.parquet: not readable as Parquet",)),
    "cut": Refused(parquet(whole()[:3000]), ("x.parquet: not readable as Parquet", "write or copy it again")),
    "a text": Refused(parquet(b"hello"), ("x.parquet: not readable as Parquet",)),
    "a head that lies": Refused(parquet(b"PAR1<html>PAR1"), ("x.parquet: not readable as Parquet",)),
    "other bytes among its pages": Refused(parquet(patched(whole(), 60, b"\xff" * 30)), ("unreadable", "First: x.parquet#0")),
    "a pipe": Refused(beside(os.mkfifo), ("test.parquet is no file that can be read",)),
    "a folder of its name": Refused(beside(os.mkdir), ("test.parquet is no file that can be read",)),
    "a link to nothing": Refused(beside(lambda path: path.symlink_to("gone")), ("test.parquet is no file that can be read",)),
    "other class names in the other file": Refused(
        beside(lambda path: pq.write_table(with_names(["a", "b"]), path)),
        ("test.parquet: its class names differ from those of train.parquet; write both",),
    ),
    "no rows": Refused(parquet(table(pa.array([], pa.int64()), pa.array([], pa.binary()))), ("no images in it",)),
    "one class": Refused(parquet(table([0] * NUM)), ("one class only, '0'",)),
    "no column of labels": Refused(
        parquet(pa.table({"image": FILES})), ("no column 'label', found ['image']", "data.label_column=")
    ),
    "no column of images": Refused(parquet(pa.table({"label": LABELS})), ("no column 'image', found ['label']",)),
    "two columns of labels": Refused(parquet(two_columns("label")), ("2 columns are called 'label'", "data.label_column=NAME")),
    "two columns of images": Refused(parquet(two_columns("image")), ("2 columns are called 'image'", "data.image_column=NAME")),
    "labels beyond the names": Refused(parquet(with_names(["cat", "dog"], [0, 2] * 12)), ("row 1 is 2, and the 2 classes are",)),
    "labels below 0": Refused(parquet(with_names(["cat", "dog"], [0, -1] * 12)), ("row 1 is -1, and the 2 classes are",)),
    "labels as floats": Refused(parquet(table([0.0, 1.5] * 12)), ("row 0 is 0.0, expected a whole number or a text",)),
    "labels that lack": Refused(parquet(table([0, None] * 12)), ("row 1 is None", NO_LABEL)),
    "labels of NaN": Refused(parquet(table([float("nan")] * NUM)), ("row 0 is nan", NO_LABEL)),
    "labels of nothing": Refused(parquet(table(pa.nulls(NUM))), ("row 0 is None", NO_LABEL)),
    "labels as bytes": Refused(parquet(table([b"a", b"b"] * 12)), ("row 0 is b'a', expected a whole number",)),
    "labels as lists": Refused(parquet(table([[0], [1]] * 12)), ("row 0 is [0], expected a whole number",)),
    "labels as dates": Refused(parquet(table([DAY, DAY] * 12)), ("row 0 is datetime.date(2020, 1, 1), expected",)),
    "a class for each image": Refused(
        parquet(table(list(range(NUM)))), ("class '0' has", "in train, and audit.min_per_class asks for 2")
    ),
    "a class name of a megabyte": Refused(parquet(table(["a" * 10**6, "b"] * 12)), ("has 1,000,000 characters, at most 200",)),
    "a class name that is an escape": Refused(parquet(table(["\x1b]0;x\x07", "b"] * 12)), (r"'\x1b]0;x\x07' holds control",)),
    "an empty class name": Refused(parquet(table(["", "b"] * 12)), ("the class name '' is empty",)),
    "a class name twice": Refused(parquet(with_names(["cat", "cat"])), ("a class name stands twice in ['cat', 'cat']",)),
    "class names that are a text": Refused(parquet(with_names("ab")), ("are no list of texts; write the file again",)),
    "class names that are lists": Refused(parquet(with_names([["a"], {"b": 1}])), ("are no list of texts",)),
    "metadata that isn't JSON": Refused(parquet(with_metadata(b"\xff\xfe")), (METADATA,)),
    "metadata without end": Refused(parquet(with_metadata("[" * 100_000)), (METADATA,)),
    "images in lists": Refused(parquet(table(images=[[{"bytes": b"x"}]] * NUM)), ("column 'image' is list<", EXPECTED)),
    "images as numbers": Refused(parquet(table(images=[[1, 2, 3]] * NUM)), ("column 'image' is list<", EXPECTED)),
    "images as paths": Refused(parquet(table(images=["a.png"] * NUM)), ("column 'image' is string, " + EXPECTED,)),
    "images of nothing": Refused(parquet(table(images=pa.nulls(NUM))), ("column 'image' is null, " + EXPECTED,)),
    "images that lack": Refused(parquet(table(images=[None, *FILES[1:]])), ("First: x.parquet#0: no bytes in this row",)),
    "images as paths in a struct": Refused(
        parquet(table(images=[{"bytes": None, "path": "/home/x.png"}, *({"bytes": f, "path": None} for f in FILES[1:])])),
        ("x.parquet#0: no bytes in this row, only the path '/home/x.png'",),
    ),
    "no column of groups": Refused(parquet(table()), ("no column 'who'", "data.group_column=NAME"), settings=GROUPED),
    "groups that lack": Refused(parquet(table(who=["a", None] * 12)), ("row 1 has no group",), settings=GROUPED),
    "one group": Refused(parquet(table(who=["a"] * NUM)), ("without cutting a group",), settings=GROUPED),
}


# npz


def npz(**arrays: Any) -> Callable[[Path], Path]:
    given = {"images": PIXELS, "labels": LABELS} | arrays
    return archive({name: saved(np.asarray(array)) for name, array in given.items() if array is not None})


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def claimed(shape: tuple[int, ...], kind: str = "|u1", body: bytes = b"") -> bytes:
    """An array's head that says what it likes."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
    return file.getvalue() + body


def packed(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in members.items():
            made.writestr(f"{name}.npy", data)
    return file.getvalue()


def archive(members: dict[str, bytes] | bytes) -> Callable[[Path], Path]:
    def spoil(root: Path) -> Path:
        path = root.parent / "x.npz"
        path.write_bytes(members if isinstance(members, bytes) else packed(members))
        return path

    return spoil


def in_heads(data: bytes, local: int, central: int, byte: int) -> bytes:
    """The archive with a byte changed in every member's two heads."""
    changed = bytearray(data)
    for magic, offset in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
        at = -1
        while (at := changed.find(magic, at + 1)) >= 0:
            changed[at + offset] = byte
    return bytes(changed)


GOOD = packed({"images": saved(PIXELS), "labels": saved(np.array(LABELS))})
LABELS_ = saved(np.array(LABELS))
SHAPE = "expected (n, h, w), (n, h, w, c) or (n, c, h, w), c one of 1, 3, 4"
NEVER = "holds Python objects, which are never unpickled"
AS_ARCHIVE = "x.npz: not readable as .npz"
OBJECTS = np.array([{}] * NUM, dtype=object)
FLOATS = PIXELS / 255
NPZ: dict[str, Refused] = {
    "empty": Refused(archive(b""), (AS_ARCHIVE, "save it again with numpy.savez")),
    "cut": Refused(archive(GOOD[: len(GOOD) // 2]), (AS_ARCHIVE,)),
    "a text": Refused(archive(b"hello"), (AS_ARCHIVE,)),
    "one array": Refused(archive(saved(PIXELS)), ("holds one array without labels (.npy)",)),
    "other bytes among its pixels": Refused(archive(patched(GOOD, 5000, b"\xff" * 20)), (AS_ARCHIVE,)),
    "encrypted": Refused(archive(in_heads(GOOD, 6, 8, 1)), (AS_ARCHIVE, "is encrypted")),
    "packed in an unknown way": Refused(archive(in_heads(GOOD, 8, 10, 99)), (AS_ARCHIVE, "method is not supported")),
    "a bomb of 100 GB": Refused(
        archive({"images": claimed((10**5, 10**3, 10**3)), "labels": LABELS_}),
        ("takes 93.1 GiB of memory", "save the images as a folder or as Parquet"),
    ),
    "a size beyond numbers": Refused(
        archive({"images": claimed((10**15, 10**15)), "labels": LABELS_}), ("'images'", "GiB of memory")
    ),
    "a size below 0": Refused(archive({"images": claimed((-1, 16, 16)), "labels": LABELS_}), ("its header says -256 bytes",)),
    "a head that lies": Refused(
        archive({"images": claimed((NUM, 16, 16), body=b"x"), "labels": LABELS_}),
        ("its header says 6,144 bytes, and the archive holds 1",),
    ),
    "a head that is code": Refused(
        archive({"images": b"\x93NUMPY\x01\x00\x10\x00{'a': __import", "labels": LABELS_}), (AS_ARCHIVE,)
    ),
    "an image with too many pixels": Refused(
        npz(images=noise(1, 2, 64, 64), labels=[0, 1]),
        ("2 of 2 images are unreadable", "row 0: more than data.max_pixels=4000"),
        settings=("data.max_pixels=4000",),
    ),
    "objects as images": Refused(npz(images=OBJECTS), (NEVER,)),
    "objects as labels": Refused(npz(labels=OBJECTS), (NEVER,)),
    "objects as class names": Refused(npz(class_names=np.array(["a", None], dtype=object)), (NEVER,)),
    "no labels": Refused(npz(labels=None), ("no array 'label', found ['images']", "data.label_column=NAME")),
    "no images": Refused(npz(images=None), ("no array 'image', found ['labels']", "data.image_column=NAME")),
    "fewer labels than images": Refused(npz(labels=LABELS[1:]), ("array 'label' has shape (23,), and there are 24 images",)),
    "labels one-hot": Refused(npz(labels=np.eye(2)[LABELS]), ("array 'label' has shape (24, 2)",)),
    "labels beyond the names": Refused(
        npz(labels=[0, 2] * 12, class_names=["a", "b"]), ("row 1 is 2, and the 2 classes are ['a', 'b']",)
    ),
    "labels of NaN": Refused(npz(labels=np.full(NUM, np.nan)), ("row 0 is nan", NO_LABEL)),
    "labels of infinity": Refused(npz(labels=np.full(NUM, np.inf)), ("row 0 is inf, expected a whole number",)),
    "labels as bytes": Refused(npz(labels=np.array([b"a", b"b"] * 12)), ("row 0 is b'a'",)),
    "pixels of NaN": Refused(
        npz(images=np.where(PIXELS == 255, np.nan, FLOATS)), ("holds NaN or infinite values, the first in image",)
    ),
    "pixels of infinity": Refused(npz(images=np.where(PIXELS == 255, np.inf, FLOATS)), ("holds NaN or infinite values",)),
    "pixels from -1 to 1": Refused(
        npz(images=FLOATS * 2 - 1), ("floats from -1 to 1, expected [0, 1]; scale them or save uint8",)
    ),
    "floats from 0 to 255": Refused(npz(images=PIXELS * 1.0), ("floats from 0 to 255, expected [0, 1]",)),
    "whole numbers of 64 bits": Refused(
        npz(images=PIXELS.astype(np.int64)), ("holds int64, expected uint8, uint16, bool, or float",)
    ),
    "complex numbers": Refused(npz(images=PIXELS * 1j), ("holds complex128",)),
    "texts as pixels": Refused(npz(images=noise(1, NUM, 8, 8).astype(str)), ("holds <U3",)),
    "no images in it": Refused(npz(images=PIXELS[:0], labels=[]), ("no images in it",)),
    "(0, 0, 3)": Refused(npz(images=np.zeros((0, 0, 3), np.uint8), labels=[]), ("no images in it",)),
    "images without a pixel": Refused(npz(images=np.zeros((NUM, 0, 0, 3), np.uint8)), ("images without a pixel",)),
    "the images last": Refused(npz(images=np.moveaxis(PIXELS, 0, -1)), ("has shape (16, 16, 3, 24), " + SHAPE,)),
    "the channels in the middle": Refused(npz(images=np.moveaxis(PIXELS, -1, 2)), ("has shape (24, 16, 3, 16), " + SHAPE,)),
    "two channels": Refused(npz(images=PIXELS[..., :2]), ("has shape (24, 16, 16, 2)",)),
    "an axis too many": Refused(npz(images=PIXELS[None]), ("has shape (1, 24, 16, 16, 3)",)),
    "a class name of 300 characters": Refused(npz(class_names=["a" * 300, "b"]), ("has 300 characters, at most 200",)),
    "a class name that is no text": Refused(npz(class_names=["a\udcff", "b"]), (r"'a\udcff' isn't text (not UTF-8)",)),
    "class names as floats": Refused(npz(class_names=[1.5, 2.5]), ("array 'class_names' holds float64, expected texts",)),
    "groups that lack": Refused(npz(who=[1.0, np.nan] * 12), ("row 1 has no group",), settings=GROUPED),
    "fewer groups than images": Refused(npz(who=["a"]), ("array 'who' has shape (1,)",), settings=GROUPED),
}

READ = {
    "Parquet with class names that are paths": parquet(table(["..", "../../etc/passwd", "/", "a/b"] * 6)),
    "Parquet with labels from a dictionary": parquet(table(pa.array(["cat", "dog"] * 12).dictionary_encode())),
    "npz with the channels first": npz(images=np.moveaxis(PIXELS, -1, 1)),
    "npz of 16 bits, big-endian": npz(images=(PIXELS.astype(np.uint16) * 257).astype(">u2")),
    "npz with objects that nobody asks for": npz(further=OBJECTS),
    "npz with labels as texts": npz(labels=["cat", "dog"] * 12),
}
"""Unusual, and as good as any."""
