"""The four layouts that real images come in. Each lists its images with their labels; contents are decoded later."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from synthgen.config.schema import DataConfig
from synthgen.data.decoding import Content
from synthgen.errors import ConfigError, DataError, did_you_mean
from synthgen.shapes import Int64
from synthgen.storage import sha256_file
from synthgen.types import UNLABELLED

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"})
UNSUPPORTED = frozenset(
    {".avif", ".dcm", ".dng", ".eps", ".exr", ".heic", ".heif", ".jp2", ".jxl", ".npy", ".psd", ".svg", ".tga"}
)
"""Suffixes of images that aren't decoded here: they count as unreadable, not as files that happen to lie about."""

SPLIT_NAMES = frozenset({"train", "test", "val", "valid", "validation", "dev"})


class Source(NamedTuple):
    """Images in a stable order, a label each or `UNLABELLED`; `skipped` are files that aren't images (origin -> reason)."""

    name: str
    class_names: tuple[str, ...]
    labels: np.ndarray
    origins: list[str]
    contents: Iterator[Content]
    groups: list[str] | None = None
    given: list[str] | None = None
    skipped: dict[str, str] = {}  # noqa: RUF012  (a default that nobody writes to)


def _digits(config: DataConfig, root: Path) -> Source:
    """scikit-learn's 1,797 handwritten 8x8 digits; their levels 0..16 become 0..255."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = np.rint(found.images * (255 / 16)).astype(np.uint8)
    origins = [f"row {i}" for i in range(len(images))]
    return Source("digits", tuple("0123456789"), found.target.astype(np.int64), origins, iter(images))


def _folder(config: DataConfig, root: Path) -> Source:
    """class/name.png, or train/class/name.png and test/class/name.png; deeper folders belong to their class.

    The folder `config.unlabelled` stands beside class folders, or beside train/ and test/; its images come last, so that
    the labelled ones are named and split as they would be without it. Folders of classes that aren't asked for aren't read.
    Hidden files and folders are passed over. Links to folders aren't followed, nor links to files outside `root`.
    """
    if not root.is_dir():
        raise DataError(f"{config.path}: is a file, and data.source=folder expects a folder with one folder a class")
    skipped: dict[str, str] = {}
    tops = _visible_folders(root, root, skipped)
    blank = [("train", tops.pop(config.unlabelled))] if config.unlabelled in tops else []
    if tops and set(tops) <= SPLIT_NAMES and not {"train", "test"} <= set(tops):
        raise DataError(
            f"{config.path}: its folders {sorted(tops)} look like splits, expected train/ and test/, or one folder a class; "
            f"add the other one, or give data.path={config.path}/{min(tops)}"
        )
    if {"train", "test"} <= set(tops):
        if others := sorted(set(tops) - {"train", "test"}):
            raise DataError(
                f"{config.path}: beside train/ and test/ there is {others[0]!r}; "
                "move its images into train/ (val and reference are drawn from there) or out of the folder"
            )
        sides = {side: _visible_folders(tops[side], root, skipped) for side in ("train", "test")}
        blank += [(side, folders.pop(config.unlabelled)) for side, folders in sides.items() if config.unlabelled in folders]
    else:
        sides = {"": tops}
    class_names = tuple(sorted({name for folders in sides.values() for name in folders}))
    if not class_names:
        what = "images lie directly in it" if _any_image(root, list(sides)) else "no class folders in it"
        raise DataError(f"{config.path}: {what}; expected one folder a class: {config.path}/CLASS/name.png")

    if config.unlabelled is not None and not blank:
        known = did_you_mean(config.unlabelled, class_names)
        raise DataError(
            f"{config.path}: no folder {config.unlabelled!r}, as data.unlabelled calls it{known}; make it or leave it out"
        )

    listed = [
        (side, label, folders[name])
        for side, folders in sides.items()
        for label, name in enumerate(class_names)
        if name in folders and (config.classes is None or name in config.classes)
    ]
    labels: list[int] = []
    origins: list[str] = []
    given: list[str] = []
    contents: list[Content] = []
    for side, label, folder in [*listed, *((side, UNLABELLED, folder) for side, folder in blank)]:
        found = list(_files(folder, root, skipped))
        if not found:
            kind = "folder" if label == UNLABELLED else "class folder"
            raise DataError(f"{config.path}: {kind} {_origin(folder, root)!r} has no images; add some or remove it")
        labels += [label] * len(found)
        origins += [_origin(path, root) for path in found]
        given += [side] * len(found)
        contents += [content_of(path, root) for path in found]
    groups = None if config.group_pattern is None else _groups_from_paths(config.group_pattern, origins)
    return Source(
        name=root.resolve().name,
        class_names=class_names,
        labels=np.array(labels, dtype=np.int64),
        origins=origins,
        contents=iter(contents),
        groups=groups,
        given=given if "train" in sides else None,
        skipped=skipped,
    )


def _parquet(config: DataConfig, root: Path) -> Source:
    """Hugging Face image layout: `image` {bytes, path} and `label`, ints with ClassLabel names or strings."""
    import pyarrow.parquet as pq

    skipped: dict[str, str] = {}
    files = [("", root)] if root.is_file() else _parquet_files(root, str(config.path), skipped)
    values: list[Any] = []
    groups: list[str] = []
    origins: list[str] = []
    given: list[str] = []
    names: tuple[str, ...] | None = None
    for side, file in files:
        with _parquet_errors(file):
            schema = pq.read_schema(file)
            for column in filter(None, (config.image_column, config.label_column, config.group_column)):
                _check_column(column, schema.names, file.name, config)
            _check_image_type(schema.field(config.image_column).type, file.name, config)
            found = _class_label_names(schema, config.label_column, file.name)
            columns = [config.label_column, *([config.group_column] if config.group_column else [])]
            table = pq.read_table(file, columns=columns)
        if origins and found != names:
            raise DataError(f"{file.name}: its class names {found} differ from those of {files[0][1].name}, {names}")
        names = found
        values += table[config.label_column].to_pylist()
        origins += [f"{file.name}#{row}" for row in range(table.num_rows)]
        given += [side] * table.num_rows
        if config.group_column:
            groups += _groups(table[config.group_column].to_pylist(), f"{file.name}: column {config.group_column!r}")
    labels, class_names = _labels(values, names, f"{config.path}: column {config.label_column!r}", config.unlabelled is not None)
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


def _npz(config: DataConfig, root: Path) -> Source:
    """`images` (n h w, n h w c or n c h w; uint8, uint16, bool, or float in [0, 1]), `labels`, maybe `class_names`."""
    if root.is_dir():
        raise DataError(f"{config.path}: is a folder, and data.source=npz expects an .npz file")
    arrays = _npz_arrays(root, str(config.path))
    images = _npz_array(arrays, config.image_column, "image", config)
    values = _npz_array(arrays, config.label_column, "label", config)
    groups = None if config.group_column is None else _npz_array(arrays, config.group_column, "group", config)
    pixels = _npz_images(images, f"{config.path}: array {config.image_column!r}")
    values = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    for name, array in ((config.label_column, values), (config.group_column, groups)):
        if array is not None and array.shape != (len(pixels),):
            raise DataError(f"{config.path}: array {name!r} has shape {array.shape}, and there are {len(pixels)} images")
    names = tuple(str(name) for name in arrays["class_names"].ravel()) if "class_names" in arrays else None
    where = f"{config.path}: array {config.label_column!r}"
    labels, class_names = _labels(values.tolist(), names, where, config.unlabelled is not None)
    return Source(
        name=root.resolve().stem,
        class_names=class_names,
        labels=labels,
        origins=[f"row {i}" for i in range(len(pixels))],
        contents=iter(pixels),
        groups=None if groups is None else _groups(groups.tolist(), f"{config.path}: array {config.group_column!r}"),
    )


SOURCES = {"digits": _digits, "folder": _folder, "parquet": _parquet, "npz": _npz}


# Folders


def _origin(path: Path, root: Path) -> str:
    """The path inside `root`, as text that any file can hold (names needn't be UTF-8)."""
    return os.fsencode(path.relative_to(root).as_posix()).decode("utf-8", "replace")


def _visible_folders(folder: Path, root: Path, skipped: dict[str, str]) -> dict[str, Path]:
    """Name -> folder, sorted; files beside them and links are noted in `skipped`."""
    found: dict[str, Path] = {}
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{error.filename}: can't be listed ({error.strerror})") from None
    for path in paths:
        if path.name.startswith("."):
            continue
        if path.is_symlink() and not path.is_file():
            skipped[_origin(path, root)] = "a link to a folder or to nothing: not followed"
        elif path.is_dir():
            found[os.fsencode(path.name).decode("utf-8", "replace")] = path
        elif path.suffix.lower() in SUFFIXES:
            skipped[_origin(path, root)] = "an image outside the class folders"
        else:
            skipped[_origin(path, root)] = "not an image file"
    return found


def _any_image(root: Path, sides: list[str]) -> bool:
    return any(path.suffix.lower() in SUFFIXES for side in sides for path in (root / side).iterdir())


def walk(root: Path) -> Iterator[Path]:
    """Every visible file and every link to a folder, which isn't followed, sorted folder by folder."""
    for here, folders, files in os.walk(root, onerror=_cannot_list):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (path for name in folders if (path := Path(here, name)).is_symlink())
        yield from (Path(here, name) for name in sorted(files) if not name.startswith("."))


def _files(folder: Path, root: Path, skipped: dict[str, str]) -> Iterator[Path]:
    """Image files of a class folder; other files are noted in `skipped`."""
    for path in walk(folder):
        if path.is_symlink() and path.is_dir():
            skipped[_origin(path, root)] = "a link to a folder: not followed"
        elif path.suffix.lower() in SUFFIXES | UNSUPPORTED:
            yield path
        else:
            skipped[_origin(path, root)] = "not an image file"


def file_digest(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        return f"unreadable: {error.strerror}"


def _cannot_list(error: OSError) -> None:
    raise DataError(f"{error.filename}: can't be listed ({error.strerror})")


def content_of(path: Path, root: Path) -> Path | str:
    """The path, or why it isn't opened: a link out of `root`, a pipe, a format that isn't decoded."""
    if path.suffix.lower() in UNSUPPORTED:
        return f"{path.suffix.lower()} files aren't decoded; save it as PNG"
    if path.is_symlink():
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError):
            return "a link to nothing"
        if not target.is_relative_to(root.resolve()):
            return "a link that leaves the folder: not followed"
    return path if path.is_file() else "not a regular file"


def _groups_from_paths(pattern: str, origins: list[str]) -> list[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"data.group_pattern={pattern!r}: not a regular expression ({error})") from None
    if compiled.groups == 0:
        raise ConfigError(f"data.group_pattern={pattern!r}: has no (group) that would name the group")
    groups = []
    for origin in origins:
        match = compiled.search(origin)
        if match is None or match[1] is None:
            raise DataError(f"{origin}: data.group_pattern={pattern!r} finds no group in this path; every image needs one")
        groups.append(match[1])
    return groups


# Parquet and npz


@contextmanager
def _parquet_errors(file: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file.name}: not readable as Parquet ({str(error).splitlines()[0]})") from None


def _parquet_files(root: Path, where: str, skipped: dict[str, str]) -> list[tuple[str, Path]]:
    """(side, file) of a folder: train*.parquet and test*.parquet if both are there, else every .parquet file."""
    found = sorted(path for folder in (root, root / "data") if folder.is_dir() for path in folder.glob("*.parquet"))
    found = [path for path in found if not path.name.startswith(".")]
    if not found:
        raise DataError(f"{where}: no .parquet files in it; expected train*.parquet and test*.parquet, or one file")
    sides = {side: [path for path in found if path.name.startswith(side)] for side in ("train", "test")}
    if not all(sides.values()):
        return [("", path) for path in found]
    used = sides["train"] + sides["test"]
    skipped.update({_origin(path, root): "neither train*.parquet nor test*.parquet" for path in found if path not in used})
    return [(side, path) for side, paths in sides.items() for path in paths]


def _check_column(column: str, found: list[str], where: str, config: DataConfig) -> None:
    if column not in found:
        settings = {config.image_column: "image", config.label_column: "label", config.group_column: "group"}
        raise DataError(f"{where}: no column {column!r}, found {found}; name it with data.{settings[column]}_column=NAME")


def _check_image_type(kind: Any, where: str, config: DataConfig) -> None:
    """{bytes, path} or encoded bytes."""
    import pyarrow.types as pt

    inner = kind.field("bytes").type if pt.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
    if not (pt.is_binary(inner) or pt.is_large_binary(inner)):
        raise DataError(
            f"{where}: column {config.image_column!r} is {kind}, expected encoded images, {{bytes, path}} or bytes; "
            "name it with data.image_column=NAME"
        )


def _class_label_names(schema: Any, column: str, where: str) -> tuple[str, ...] | None:
    """Names of a ClassLabel feature in the Hugging Face metadata of a Parquet schema, if there are any."""
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return None
    try:
        feature = json.loads(text)["info"]["features"][column]
        names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{where}: its 'huggingface' metadata says nothing of column {column!r}; write the file again") from None
    return None if names is None else tuple(str(name) for name in names)


def _parquet_images(files: list[Path], column: str) -> Iterator[Content]:
    """The encoded images, a few hundred rows in memory at a time."""
    import pyarrow.parquet as pq

    for file in files:
        with _parquet_errors(file), pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(batch_size=512, columns=[column]):
                for value in batch.column(0).to_pylist():
                    data = value.get("bytes") if isinstance(value, dict) else value
                    yield data if data else "no bytes in this row"


def _groups(values: list[Any], where: str) -> list[str]:
    if None in values:
        raise DataError(f"{where}: row {values.index(None)} has no group; every image needs one")
    return [str(value) for value in values]


def _labels(
    values: list[Any], names: tuple[str, ...] | None, where: str, may_lack: bool
) -> tuple[Int64[np.ndarray, " n"], tuple[str, ...]]:
    """Labels 0..k-1 and class names, out of ints (with names or without) or strings.

    Where labels may lack, empty ones and -1 are `UNLABELLED`. With empty ones in it, a column of numbers is of floats.
    """
    if may_lack:
        values = [int(value) if isinstance(value, float) and value.is_integer() else value for value in values]
    lacks = [may_lack and (value is None or value != value or value in (-1, "-1")) for value in values]
    known = [value for value, lack in zip(values, lacks, strict=True) if not lack]
    for row, value in enumerate(values):
        if not (lacks[row] or isinstance(value, int | str)):
            none = value is None or value != value
            remedy = "; if such images have no label, data.unlabelled=-1 takes them as unlabelled" if none else ""
            raise DataError(f"{where}: row {row} is {value!r}, expected a whole number or a text in every row{remedy}")
    if len({type(value) for value in known}) > 1:
        raise DataError(f"{where}: holds numbers and texts; expected one of both")
    if names is None:
        classes = sorted(set(known))
        names, index = tuple(str(value) for value in classes), {value: i for i, value in enumerate(classes)}
    elif known and isinstance(known[0], str):
        index = {name: i for i, name in enumerate(names)}
    else:
        index = {i: i for i in range(len(names))}
    if unknown := sorted(set(known) - set(index)):
        row = values.index(unknown[0])
        raise DataError(f"{where}: row {row} is {unknown[0]!r}, and the {len(names)} classes are {list(names)}")
    if len(set(names)) < len(names):
        raise DataError(f"{where}: a class name stands twice in {list(names)}")
    labels = [UNLABELLED if lack else index[value] for value, lack in zip(values, lacks, strict=True)]
    return np.array(labels, dtype=np.int64), names


def _npz_arrays(root: Path, where: str) -> dict[str, np.ndarray]:
    try:
        with open(root, "rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"{where}: holds one array without labels (.npy); expected an .npz with images and labels")
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise DataError(f"{where}: not readable as .npz without pickle ({str(error).splitlines()[0]})") from None


def _npz_array(arrays: dict[str, np.ndarray], name: str, setting: str, config: DataConfig) -> np.ndarray:
    """The named array; the default names may also stand in the plural."""
    for candidate in (name, f"{name}s") if name == setting else (name,):
        if candidate in arrays:
            return arrays[candidate]
    raise DataError(f"{config.path}: no array {name!r}, found {sorted(arrays)}; name it with data.{setting}_column=NAME")


def _npz_images(images: np.ndarray, where: str) -> np.ndarray:
    """n h w or n h w c, of a type and range that `_from_array` scales."""
    if images.ndim == 4 and images.shape[-1] not in (1, 3, 4) and images.shape[1] in (1, 3, 4):
        images = np.moveaxis(images, 1, -1)
    if not (images.ndim == 3 or (images.ndim == 4 and images.shape[-1] in (1, 3, 4))):
        raise DataError(f"{where}: has shape {images.shape}, expected (n, h, w), (n, h, w, c) or (n, c, h, w), c one of 1, 3, 4")
    images = images[..., 0] if images.ndim == 4 and images.shape[-1] == 1 else images
    if images.dtype in (np.uint8, np.uint16, np.bool_):
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise DataError(f"{where}: holds {images.dtype}, expected uint8, uint16, bool, or float in [0, 1]")
    if images.size and not (float(images.min()) >= 0 and float(images.max()) <= 1):
        raise DataError(f"{where}: floats from {images.min():g} to {images.max():g}, expected [0, 1]; scale them or save uint8")
    return images
