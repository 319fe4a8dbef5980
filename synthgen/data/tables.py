"""Real images out of tables, a row an image: Parquet files in Hugging Face's image layout, and .npz archives."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from zipfile import ZipFile

import numpy as np

from synthgen.config.schema import DataConfig
from synthgen.data.decoding import Content
from synthgen.data.listing import Source, groups_of, labels_of
from synthgen.data.names import shown
from synthgen.errors import DataError

ROWS_AT_A_TIME = 64
"""Encoded images of a Parquet file in memory; a file may unpack to a thousand times its size."""


def parquet(config: DataConfig, root: Path) -> Source:
    """Hugging Face image layout: `image` {bytes, path} and `label`, ints with ClassLabel names or strings."""
    import pyarrow.parquet as pq

    where = shown(str(config.path))
    skipped: dict[str, str] = {}
    files = [("", root)] if root.is_file() else _parquet_files(root, where, skipped)
    values: list[Any] = []
    groups: list[str] = []
    origins: list[str] = []
    given: list[str] = []
    names: tuple[str, ...] | None = None
    for side, file in files:
        called = shown(file.name)
        with _parquet_errors(file):
            schema = pq.read_schema(file)
            for column in filter(None, (config.image_column, config.label_column, config.group_column)):
                _check_column(column, schema.names, called, config)
            _check_image_type(schema.field(config.image_column).type, called, config)
            found = _class_label_names(schema, config.label_column, called)
            columns = [config.label_column, *([config.group_column] if config.group_column else [])]
            table = pq.read_table(file, columns=columns)
            values += table[config.label_column].to_pylist()
            in_groups = table[config.group_column].to_pylist() if config.group_column else []
        if origins and found != names:
            raise DataError(f"{called}: its class names differ from those of {shown(files[0][1].name)}; write both with the same")
        names = found
        origins += [f"{called}#{row}" for row in range(table.num_rows)]
        given += [side] * table.num_rows
        if config.group_column:
            groups += groups_of(in_groups, f"{called}: column {config.group_column!r}")
    labels, class_names = labels_of(values, names, f"{where}: column {config.label_column!r}", config.unlabelled is not None)
    return Source(
        name=root.resolve().stem if root.is_file() else root.resolve().name,
        class_names=class_names,
        labels=labels,
        origins=origins,
        contents=_parquet_images([file for _, file in files], config.image_column),
        groups=groups if config.group_column else None,
        given=given if len({side for side, _ in files}) == 2 else None,
        skipped=skipped,
    )


def npz(config: DataConfig, root: Path) -> Source:
    """`images` (n h w, n h w c or n c h w; uint8, uint16, bool, or float in [0, 1]), `labels`, maybe `class_names`."""
    where = shown(str(config.path))
    if root.is_dir():
        raise DataError(f"{where}: is a folder, and data.source=npz expects an .npz file")
    wanted = {"image": config.image_column, "label": config.label_column}
    wanted |= {"group": config.group_column} if config.group_column is not None else {}
    arrays = _npz_arrays(root, wanted, where)
    pixels = _npz_images(arrays["image"], f"{where}: array {config.image_column!r}")
    values, groups = arrays["label"], arrays.get("group")
    values = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    for name, array in ((config.label_column, values), (config.group_column, groups)):
        if array is not None and array.shape != (len(pixels),):
            raise DataError(f"{where}: array {name!r} has shape {array.shape}, and there are {len(pixels)} images")
    names = _npz_names(arrays["class_names"], where) if "class_names" in arrays else None
    labels, class_names = labels_of(
        _listed(values, where), names, f"{where}: array {config.label_column!r}", config.unlabelled is not None
    )
    return Source(
        name=root.resolve().stem,
        class_names=class_names,
        labels=labels,
        origins=[f"row {i}" for i in range(len(pixels))],
        contents=iter(pixels),
        groups=None if groups is None else groups_of(_listed(groups, where), f"{where}: array {config.group_column!r}"),
    )


# Parquet


@contextmanager
def _parquet_errors(file: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # of a damaged file: ArrowException, OSError, KeyError, UnicodeDecodeError, ...
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{shown(file.name)}: not readable as Parquet ({shown(why, 300)}); write or copy it again") from None


def _parquet_files(root: Path, where: str, skipped: dict[str, str]) -> list[tuple[str, Path]]:
    """(side, file) of a folder: train*.parquet and test*.parquet if both are there, else every .parquet file."""
    found = sorted(path for folder in (root, root / "data") if folder.is_dir() for path in folder.glob("*.parquet"))
    found = [path for path in found if not path.name.startswith(".")]
    if not found:
        raise DataError(f"{where}: no .parquet files in it; expected train*.parquet and test*.parquet, or one file")
    for path in found:
        if not path.is_file():  # a pipe would be waited for for ever
            raise DataError(f"{where}: {shown(path.name)} is no file that can be read; remove it or put the file there")
    sides = {side: [path for path in found if path.name.startswith(side)] for side in ("train", "test")}
    if not all(sides.values()):
        return [("", path) for path in found]
    used = sides["train"] + sides["test"]
    unused = [path for path in found if path not in used]
    skipped.update({shown(path.relative_to(root).as_posix()): "neither train*.parquet nor test*.parquet" for path in unused})
    return [(side, path) for side, paths in sides.items() for path in paths]


def _check_column(column: str, found: list[str], where: str, config: DataConfig) -> None:
    settings = {config.image_column: "image", config.label_column: "label", config.group_column: "group"}
    if column not in found:
        shown_names = [shown(name, 60) for name in found[:20]]
        raise DataError(f"{where}: no column {column!r}, found {shown_names}; name it with data.{settings[column]}_column=NAME")
    if found.count(column) > 1:
        raise DataError(
            f"{where}: {found.count(column)} columns are called {column!r}; rename the others, or name another one with "
            f"data.{settings[column]}_column=NAME"
        )


def _check_image_type(kind: Any, where: str, config: DataConfig) -> None:
    """{bytes, path} or encoded bytes."""
    import pyarrow.types as pt

    inner = kind.field("bytes").type if pt.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
    if not (pt.is_binary(inner) or pt.is_large_binary(inner)):
        raise DataError(
            f"{where}: column {config.image_column!r} is {shown(str(kind), 200)}, expected encoded images, {{bytes, path}} or "
            "bytes; name it with data.image_column=NAME"
        )


def _class_label_names(schema: Any, column: str, where: str) -> tuple[str, ...] | None:
    """Names of a ClassLabel feature in the Hugging Face metadata of a Parquet schema, if there are any."""
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return None
    try:
        feature = json.loads(text)["info"]["features"][column]
        names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(f"{where}: its 'huggingface' metadata says nothing of column {column!r}; write the file again") from None
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise DataError(f"{where}: the class names in its 'huggingface' metadata are no list of texts; write the file again")
    return None if names is None else tuple(names)


def _parquet_images(files: list[Path], column: str) -> Iterator[Content]:
    """The encoded images, a few rows in memory at a time."""
    import pyarrow.parquet as pq

    for file in files:
        with _parquet_errors(file), pq.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=ROWS_AT_A_TIME, columns=[column]):
                for value in batch.column(0).to_pylist():
                    data = value.get("bytes") if isinstance(value, dict) else value
                    yield data if data else _no_bytes(value)


def _no_bytes(value: Any) -> str:
    path = value.get("path") if isinstance(value, dict) else None
    return f"no bytes in this row, only the path '{shown(str(path), 100)}'" if path else "no bytes in this row"


# npz


def _npz_arrays(root: Path, wanted: dict[str, str], where: str) -> dict[str, np.ndarray]:
    """The arrays that are asked for (setting -> name) and `class_names` if it is there; nothing else is unpacked.

    The default names may also stand in the plural. What an array takes is checked before it is unpacked.
    """
    with _npz_errors(where), open(root, "rb") as file:
        magic = file.read(6)
        if magic == np.lib.format.MAGIC_PREFIX:
            raise DataError(f"{where}: holds one array without labels (.npy); expected an .npz with images and labels")
        with ZipFile(file) as archive:
            found = {name.removesuffix(".npy"): name for name in archive.namelist()}
            chosen = {setting: _npz_name(name, setting, found, where) for setting, name in wanted.items()}
            if "class_names" in found:
                chosen["class_names"] = "class_names"
            left = _memory()
            for name in chosen.values():
                left -= _check_array(archive, found[name], f"{where}: array {shown(name, 60)!r}", left)
            return {setting: _npz_array(archive, found[name]) for setting, name in chosen.items()}


@contextmanager
def _npz_errors(where: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # of a damaged file: BadZipFile, zlib.error, ValueError, TokenError, MemoryError, ...
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{where}: not readable as .npz ({shown(why, 300)}); save it again with numpy.savez") from None


def _npz_name(name: str, setting: str, found: dict[str, str], where: str) -> str:
    for candidate in (name, f"{name}s") if name == setting else (name,):
        if candidate in found:
            return candidate
    names = [shown(each, 60) for each in sorted(found)[:20]]
    raise DataError(f"{where}: no array {name!r}, found {names}; name it with data.{setting}_column=NAME")


def _check_array(archive: ZipFile, member: str, where: str, left: int) -> int:
    """Bytes that an array takes when it is unpacked, which its header and the archive have to agree on.

    Raises:
        DataError: they don't; Python objects, whose unpickling could run code; more memory than is `left`.
    """
    with archive.open(member) as file:
        shape, dtype = _header(file)
        there = archive.getinfo(member).file_size - file.tell()
    if dtype.hasobject:
        raise DataError(f"{where}: holds Python objects, which are never unpickled; save it with a type of its own")
    size = math.prod(shape) * dtype.itemsize
    if size > left:
        raise DataError(
            f"{where}: takes {size / 2**30:,.1f} GiB of memory, and {left / 2**30:,.1f} GiB (half of this machine's) are all it "
            "may take; save the images as a folder or as Parquet, which are read one by one"
        )
    if size != there:
        raise DataError(f"{where}: its header says {size:,} bytes, and the archive holds {there:,}; save it again")
    return size


def _header(file: IO[bytes]) -> tuple[Sequence[int], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def _npz_array(archive: ZipFile, member: str) -> np.ndarray:
    with archive.open(member) as file:
        array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
        file.read(1)  # at its end the archive's checksum is looked at
    return array


def _memory() -> int:
    """Bytes that an archive may take: half of what the machine has."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):  # Windows
        return 8 * 2**30


def _npz_names(array: np.ndarray, where: str) -> tuple[str, ...]:
    if array.dtype.kind not in "Ui":
        raise DataError(f"{where}: array 'class_names' holds {array.dtype}, expected texts")
    return tuple(map(str, _listed(array.ravel(), where)))


def _listed(array: np.ndarray, where: str) -> list[Any]:
    if array.dtype.kind == "U" and array.size and array.dtype.itemsize:  # numpy keeps numbers that no character has
        numbers = np.ascontiguousarray(array).view(np.dtype(np.uint32).newbyteorder(array.dtype.byteorder))
        if numbers.max() > sys.maxunicode:
            raise DataError(f"{where}: holds a text that isn't Unicode; save it again")
    return array.tolist()


def _npz_images(images: np.ndarray, where: str) -> np.ndarray:
    """n h w or n h w c, of a type and range that `_from_array` scales."""
    if images.ndim == 4 and images.shape[-1] not in (1, 3, 4) and images.shape[1] in (1, 3, 4):
        images = np.moveaxis(images, 1, -1)
    if not (images.ndim == 3 or (images.ndim == 4 and images.shape[-1] in (1, 3, 4))):
        raise DataError(f"{where}: has shape {images.shape}, expected (n, h, w), (n, h, w, c) or (n, c, h, w), c one of 1, 3, 4")
    if len(images) and not images.size:
        raise DataError(f"{where}: has shape {images.shape}, images without a pixel")
    images = images[..., 0] if images.ndim == 4 and images.shape[-1] == 1 else images
    images = images.astype(images.dtype.newbyteorder("="), copy=False)
    if images.dtype in (np.uint8, np.uint16, np.bool_):
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise DataError(f"{where}: holds {images.dtype}, expected uint8, uint16, bool, or float in [0, 1]")
    if images.size and not (float(images.min()) >= 0 and float(images.max()) <= 1):
        if not np.isfinite(images).all():
            at = int(np.flatnonzero(~np.isfinite(images).reshape(len(images), -1).all(axis=1))[0])
            raise DataError(f"{where}: holds NaN or infinite values, the first in image {at}; mend or remove these images")
        raise DataError(f"{where}: floats from {images.min():g} to {images.max():g}, expected [0, 1]; scale them or save uint8")
    return images
