"""Real images in: four sources, one form out, and an account of everything that was converted or left out.

A source lists its images with their labels first, so that what is wrong with a data set is said before anything is
decoded; then the images are decoded one by one. An image that can't be read is quarantined with the reason.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from synthgen.config.schema import DataConfig
from synthgen.errors import ConfigError, DataError
from synthgen.shapes import Int64, UInt8
from synthgen.storage import sha256_file
from synthgen.types import Batch, DatasetSpec

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What Pillow may decode; its other readers (EPS runs Ghostscript) are never tried."""

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"})
UNSUPPORTED = frozenset(
    {".avif", ".dcm", ".dng", ".eps", ".exr", ".heic", ".heif", ".jp2", ".jxl", ".npy", ".psd", ".svg", ".tga"}
)
"""Suffixes of images that aren't decoded here: they count as unreadable, not as files that happen to lie about."""

MIN_PX, MAX_PX, STEP_PX = 8, 256, 4
"""The generators halve an image's size twice."""

SPLIT_NAMES = frozenset({"train", "test", "val", "valid", "validation", "dev"})

LEVELS = {"white": 255, "grey": 128, "black": 0}
FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "nearest": Image.Resampling.NEAREST,
}


@dataclass(frozen=True)
class RealImages:
    """The real images of a run.

    Attributes:
        spec: the data set without its pixels.
        batch: every readable image; keys "real-000123" count rows in the source's order, labels are 0 or more.
        groups: of each image (patient, recording); None where there are none.
        given: "train" or "test" for each image where the source brings its own split, else None.
        origins: of each image: its path inside the source, or its row. For messages and the audit.
        converted: what was done to images -> how many.
        quarantined: origin -> why it was left out.
        sizes: original "WxH" -> how many.
    """

    spec: DatasetSpec
    batch: Batch
    groups: tuple[str, ...] | None
    given: tuple[str, ...] | None
    origins: tuple[str, ...]
    converted: dict[str, int]
    quarantined: dict[str, str]
    sizes: dict[str, int]


def load(config: DataConfig) -> RealImages:
    """Reads all images of a source into one uint8 array of one shape.

    16-bit is scaled by 1/257, transparency is composited on `config.background`, EXIF orientation is applied, CMYK is
    converted (without its colour profile, as all colour profiles are ignored), an animation gives its first frame.
    Another aspect ratio is cropped, padded or stretched, and only then resized. One core reads 60,000 JPEGs of 32x32
    in 4 s; memory is the decoded set twice.

    Raises:
        ConfigError: a setting that this source doesn't have, or that can't be used.
        DataError: nothing there, another layout than the source's, classes without images, images of several sizes
            without `data.size_px`, or more unreadable files than `data.max_unreadable`.
    """
    _check_settings(config)
    root = Path() if config.path is None else _find(config.path)
    source = SOURCES[config.source](config, root)
    where = config.path or config.source
    _check_classes(source.labels, source.class_names, where)

    rows: list[int] = []
    pixels: list[np.ndarray] = []
    converted: Counter[str] = Counter()
    sizes: Counter[tuple[int, int]] = Counter()
    unreadable: dict[str, str] = {}
    with _pillow_limits(config.max_pixels):
        for row, content in enumerate(source.contents):
            try:
                size, array, changes = _read(content, config, next(iter(sizes), None))
            except _Unreadable as error:
                unreadable[source.origins[row]] = str(error)
                continue
            sizes[size] += 1
            converted.update(changes)
            rows.append(row)
            if array is not None:
                pixels.append(array)

    _check_unreadable(unreadable, len(rows), config, where)
    if config.size_px is None:
        _check_native_sizes(sizes, where)
    labels = source.labels[rows]
    _check_classes(labels, source.class_names, where)
    images = _stack(pixels, config.channels, converted)
    keys = tuple(f"real-{i:06d}" for i in range(len(rows)))
    groups = tuple(source.groups[row] for row in rows) if source.groups is not None else None
    given = tuple(source.given[row] for row in rows) if source.given is not None else None
    return RealImages(
        spec=DatasetSpec(
            name=config.name or source.name,
            image_shape=(images.shape[1], images.shape[2], images.shape[3]),
            class_names=source.class_names,
            grouped=groups is not None,
            fingerprint=fingerprint(images, labels, keys, groups, given),
        ),
        batch=Batch(images, labels, keys),
        groups=groups,
        given=given,
        origins=tuple(source.origins[row] for row in rows),
        converted=dict(sorted(converted.items())),
        quarantined=dict(sorted((source.skipped | unreadable).items())),
        sizes={f"{width}x{height}": count for (width, height), count in sizes.most_common()},
    )


def digest(config: DataConfig) -> str:
    """sha256 of what a source would read: names and bytes of its files, nothing decoded.

    Raises:
        ConfigError, DataError: as `load`, as far as it can be told without decoding.
    """
    _check_settings(config)
    if config.source == "digits":
        return hashlib.sha256(f"digits of scikit-learn {version('scikit-learn')}".encode()).hexdigest()
    root = _find(str(config.path))
    if root.is_file():
        return _file_digest(root)
    found = hashlib.sha256()
    for path in _walk(root):
        image = config.source == "folder" and path.suffix.lower() in SUFFIXES
        content = _content(path, root) if image else path if path.suffix == ".parquet" else "not read"
        found.update(os.fsencode(path.relative_to(root).as_posix()) + b"\0")
        found.update((_file_digest(content) if isinstance(content, Path) else content).encode() + b"\0")
    return found.hexdigest()


def fingerprint(
    images: UInt8[np.ndarray, "n c h w"],
    labels: Int64[np.ndarray, " n"],
    keys: Sequence[str],
    groups: Sequence[str] | None = None,
    given: Sequence[str] | None = None,
) -> str:
    """sha256 over keys, labels, groups, the given split and pixels: the same everywhere for the same data."""
    head = json.dumps([list(images.shape), list(keys), list(groups or ()), list(given or ())]).encode()
    found = hashlib.sha256(head)
    found.update(labels.astype("<i8").tobytes())
    found.update(np.ascontiguousarray(images).data)
    return found.hexdigest()


# The sources: each lists its images; contents are decoded later, in the same order

_Content = Path | bytes | np.ndarray | str
"""Where an image lies, its encoded bytes, its pixels (h w or h w c; see `_from_array`), or why it can't be read."""


class _Source(NamedTuple):
    """Images in a stable order; `skipped` are files that aren't images (origin -> reason)."""

    name: str
    class_names: tuple[str, ...]
    labels: np.ndarray
    origins: list[str]
    contents: Iterator[_Content]
    groups: list[str] | None = None
    given: list[str] | None = None
    skipped: dict[str, str] = {}  # noqa: RUF012  (a default that nobody writes to)


def _digits(config: DataConfig, root: Path) -> _Source:
    """scikit-learn's 1,797 handwritten 8x8 digits; their levels 0..16 become 0..255."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = np.rint(found.images * (255 / 16)).astype(np.uint8)
    origins = [f"row {i}" for i in range(len(images))]
    return _Source("digits", tuple("0123456789"), found.target.astype(np.int64), origins, iter(images))


def _folder(config: DataConfig, root: Path) -> _Source:
    """class/name.png, or train/class/name.png and test/class/name.png; deeper folders belong to their class.

    Hidden files and folders are passed over. Links to folders aren't followed, nor links to files outside `root`.
    """
    if not root.is_dir():
        raise DataError(f"{config.path}: is a file, and data.source=folder expects a folder with one folder a class")
    skipped: dict[str, str] = {}
    tops = _visible_folders(root, root, skipped)
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
    else:
        sides = {"": tops}
    class_names = tuple(sorted({name for folders in sides.values() for name in folders}))
    if not class_names:
        what = "images lie directly in it" if _any_image(root, list(sides)) else "no class folders in it"
        raise DataError(f"{config.path}: {what}; expected one folder a class: {config.path}/CLASS/name.png")

    labels: list[int] = []
    origins: list[str] = []
    given: list[str] = []
    contents: list[_Content] = []
    for side, folders in sides.items():
        for label, name in enumerate(class_names):
            found = list(_files(folders[name], root, skipped)) if name in folders else []
            if name in folders and not found:
                raise DataError(
                    f"{config.path}: class folder {_origin(folders[name], root)!r} has no images; add some or remove it"
                )
            for path in found:
                labels.append(label)
                origins.append(_origin(path, root))
                given.append(side)
                contents.append(_content(path, root))
    groups = None if config.group_pattern is None else _groups_from_paths(config.group_pattern, origins)
    return _Source(
        name=root.resolve().name,
        class_names=class_names,
        labels=np.array(labels, dtype=np.int64),
        origins=origins,
        contents=iter(contents),
        groups=groups,
        given=given if "train" in sides else None,
        skipped=skipped,
    )


def _parquet(config: DataConfig, root: Path) -> _Source:
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
    labels, class_names = _labels(values, names, f"{config.path}: column {config.label_column!r}")
    return _Source(
        name=root.resolve().stem if root.is_file() else root.resolve().name,
        class_names=class_names,
        labels=labels,
        origins=origins,
        contents=_parquet_images([file for _, file in files], config.image_column),
        groups=groups if config.group_column else None,
        given=given if len({side for side, _ in files}) == 2 else None,
        skipped=skipped,
    )


def _npz(config: DataConfig, root: Path) -> _Source:
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
    labels, class_names = _labels(values.tolist(), names, f"{config.path}: array {config.label_column!r}")
    return _Source(
        name=root.resolve().stem,
        class_names=class_names,
        labels=labels,
        origins=[f"row {i}" for i in range(len(pixels))],
        contents=iter(pixels),
        groups=None if groups is None else _groups(groups.tolist(), f"{config.path}: array {config.group_column!r}"),
    )


SOURCES = {"digits": _digits, "folder": _folder, "parquet": _parquet, "npz": _npz}


# Settings and paths


def _check_settings(config: DataConfig) -> None:
    """Settings that the source would have to ignore are refused, and so is a size that no generator can make."""
    if config.source == "digits" and config.path is not None:
        raise ConfigError(f"data.path={config.path!r}: data.source=digits brings its images; name another source or leave it out")
    if config.source != "digits" and config.path is None:
        raise ConfigError(f"data.path is not given, and data.source={config.source} needs it: data.path=FOLDER")
    if config.group_pattern is not None and config.source != "folder":
        raise ConfigError(f"data.group_pattern is for data.source=folder, found {config.source}; see data.group_column")
    if config.group_column is not None and config.source not in ("parquet", "npz"):
        raise ConfigError(f"data.group_column is for parquet and npz, found data.source={config.source}; see data.group_pattern")
    if config.size_px is not None and not _fits(config.size_px, config.size_px):
        raise DataError(f"data.size_px={config.size_px}: {_SIZE_RULE}; the nearest is data.size_px={_nearest(config.size_px)}")


def _find(path: str) -> Path:
    """The path itself; a relative one is also looked for in $SYNTHGEN_DATA and in ../shared/data."""
    places = {".": Path(), "$SYNTHGEN_DATA": os.environ.get("SYNTHGEN_DATA"), "../shared/data": Path("..", "shared", "data")}
    asked = Path(path).expanduser()
    looked = [name for name, place in places.items() if place and (name == "." or not asked.is_absolute())]
    for name in looked:
        if os.path.exists(found := Path(places[name] or "") / asked):
            return found
    raise DataError(f"data.path={path!r}: no such file or folder (looked in {', '.join(looked)}); give the path of your images")


_SIZE_RULE = f"the size must be a multiple of {STEP_PX} from {MIN_PX} to {MAX_PX}"


def _fits(width: int, height: int) -> bool:
    return width == height and MIN_PX <= width <= MAX_PX and width % STEP_PX == 0


def _nearest(size_px: int) -> int:
    return min(max(round(size_px / STEP_PX) * STEP_PX, MIN_PX), MAX_PX)


def _check_native_sizes(sizes: Counter[tuple[int, int]], where: str) -> None:
    """Without `data.size_px`, all images have one size, square, that the generators can make."""
    shown = ", ".join(f"{width}x{height} ({count})" for (width, height), count in sizes.most_common(4))
    if len(sizes) > 1:
        raise DataError(f"{where}: images of {len(sizes)} sizes, {shown}, ...; give one, for example data.size_px=32")
    ((width, height),) = sizes
    if width != height:
        raise DataError(f"{where}: images of {width}x{height} aren't square; give data.size_px={_nearest(min(width, height))}")
    if not _fits(width, height):
        raise DataError(f"{where}: images of {width}x{height}; {_SIZE_RULE}; give data.size_px={_nearest(width)}")


def _check_classes(labels: np.ndarray, class_names: tuple[str, ...], where: str) -> None:
    """At least two classes, each with an image."""
    if len(labels) == 0:
        raise DataError(f"{where}: no images in it")
    if len(class_names) < 2:
        raise DataError(f"{where}: one class only, {class_names[0]!r}; at least two are needed (a folder or a label each)")
    counts = np.bincount(labels, minlength=len(class_names))
    if empty := [class_names[i] for i in np.flatnonzero(counts == 0)]:
        more = f" (nor have {len(empty) - 1} others)" if len(empty) > 1 else ""
        raise DataError(f"{where}: class {empty[0]!r} has no images{more}; add some or take the class out")


def _check_unreadable(unreadable: dict[str, str], readable: int, config: DataConfig, where: str) -> None:
    total = len(unreadable) + readable
    if unreadable and (readable == 0 or len(unreadable) / total > config.max_unreadable):
        first = "; ".join(f"{origin}: {reason}" for origin, reason in list(unreadable.items())[:3])
        raise DataError(
            f"{where}: {len(unreadable)} of {total} images are unreadable, and data.max_unreadable={config.max_unreadable} "
            f"allows {int(config.max_unreadable * total)}; mend or remove them. First: {first}"
        )


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


def _walk(root: Path) -> Iterator[Path]:
    """Every visible file and every link to a folder, which isn't followed, sorted folder by folder."""
    for here, folders, files in os.walk(root, onerror=_cannot_list):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (path for name in folders if (path := Path(here, name)).is_symlink())
        yield from (Path(here, name) for name in sorted(files) if not name.startswith("."))


def _files(folder: Path, root: Path, skipped: dict[str, str]) -> Iterator[Path]:
    """Image files of a class folder; other files are noted in `skipped`."""
    for path in _walk(folder):
        if path.is_symlink() and path.is_dir():
            skipped[_origin(path, root)] = "a link to a folder: not followed"
        elif path.suffix.lower() in SUFFIXES | UNSUPPORTED:
            yield path
        else:
            skipped[_origin(path, root)] = "not an image file"


def _file_digest(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        return f"unreadable: {error.strerror}"


def _cannot_list(error: OSError) -> None:
    raise DataError(f"{error.filename}: can't be listed ({error.strerror})")


def _content(path: Path, root: Path) -> Path | str:
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


def _parquet_images(files: list[Path], column: str) -> Iterator[_Content]:
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


def _labels(values: list[Any], names: tuple[str, ...] | None, where: str) -> tuple[Int64[np.ndarray, " n"], tuple[str, ...]]:
    """Labels 0..k-1 and class names, out of ints (with names or without) or strings."""
    for row, value in enumerate(values):
        if not isinstance(value, int | str):
            raise DataError(f"{where}: row {row} is {value!r}, expected a whole number or a text in every row")
    if len({type(value) for value in values}) > 1:
        raise DataError(f"{where}: holds numbers and texts; expected one of both")
    if names is None:
        classes = sorted(set(values))
        names, index = tuple(str(value) for value in classes), {value: i for i, value in enumerate(classes)}
    elif values and isinstance(values[0], str):
        index = {name: i for i, name in enumerate(names)}
    else:
        index = {i: i for i in range(len(names))}
    if unknown := sorted(set(values) - set(index)):
        row = values.index(unknown[0])
        raise DataError(f"{where}: row {row} is {unknown[0]!r}, and the {len(names)} classes are {list(names)}")
    if len(set(names)) < len(names):
        raise DataError(f"{where}: a class name stands twice in {list(names)}")
    return np.array([index[value] for value in values], dtype=np.int64), names


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


# Decoding


class _Unreadable(Exception):
    """Why an image is quarantined."""


@contextmanager
def _pillow_limits(max_pixels: int) -> Iterator[None]:
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


def _read(
    content: _Content, config: DataConfig, first: tuple[int, int] | None
) -> tuple[tuple[int, int], np.ndarray | None, list[str]]:
    """(original size, pixels uint8 h w or h w 3, what was converted).

    Without `data.size_px` only images of the first one's size, and of one that will do, are decoded: the others are an
    error anyway, and their sizes are all that its message needs.
    """
    if isinstance(content, str):
        raise _Unreadable(content)
    try:
        changes: list[str] = []
        with _open(content, changes) as image:
            size = image.size
            if config.size_px is None and not (_fits(*size) and size == (first or size)):
                return size, None, []
            image = _square(_eight_bit(_upright(image, changes), config, changes), config, changes)
            return size, np.asarray(image), changes
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise _Unreadable(f"more than data.max_pixels={config.max_pixels} pixels") from None
    except UnidentifiedImageError:
        raise _Unreadable(f"not an image: its contents are none of {', '.join(FORMATS)}") from None
    except _Unreadable:
        raise
    except Exception as error:  # whatever a decoder makes of a damaged file (struct.error, IndexError, ...)
        system = error.strerror if isinstance(error, OSError) else None
        raise _Unreadable(system or f"damaged: {(str(error) or type(error).__name__).splitlines()[0]}") from None


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
        raise _Unreadable("16-bit with a transparent colour; save it with an alpha channel")
    if image.mode == "F":
        if not (low >= 0 and high <= 1):
            raise _Unreadable(f"float pixels from {low:g} to {high:g}, expected [0, 1]; save it with 8 or 16 bits")
        changes.append("float scaled")
        return Image.fromarray(np.rint(levels * 255).astype(np.uint8))
    if low < 0 or high > 65535:
        raise _Unreadable(f"integer pixels from {low} to {high}, expected 0 to 65535; save it with 8 or 16 bits")
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


def _stack(pixels: list[np.ndarray], channels: int | None, converted: Counter[str]) -> UInt8[np.ndarray, "n c h w"]:
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
