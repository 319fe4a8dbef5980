"""Real images in: four sources, one form out, and an account of everything that was converted or left out.

A source lists its images with their labels first, so that what is wrong with a data set is said before anything is
decoded; then the images are decoded one by one. An image that can't be read is quarantined with the reason.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import compress
from pathlib import Path

import numpy as np

from synthgen.config.schema import DataConfig
from synthgen.data.decoding import SIZE_RULE, Unreadable, fits, nearest_size, pillow_limits, read_image, stack
from synthgen.data.layouts import LOST, SOURCES, SUFFIXES, content_of, file_digest, walk
from synthgen.data.listing import Source
from synthgen.data.names import check_class_names, shown
from synthgen.errors import ConfigError, DataError, did_you_mean
from synthgen.shapes import Int64, UInt8
from synthgen.types import UNLABELLED, Batch, DatasetSpec


@dataclass(frozen=True)
class RealImages:
    """The real images of a run.

    Attributes:
        spec: the data set without its pixels.
        batch: every readable image of the classes asked for; keys "real-000123" count them in the source's order; the label
            is `UNLABELLED` for those that `data.unlabelled` names, else 0 or more.
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


def load(config: DataConfig, any_classes: bool = False) -> RealImages:
    """Reads all images of a source into one uint8 array of one shape.

    16-bit is scaled by 1/257, transparency is composited on `config.background`, EXIF orientation is applied, CMYK is
    converted (without its colour profile, as all colour profiles are ignored), an animation gives its first frame.
    Another aspect ratio is cropped, padded or stretched, and only then resized. One core reads 60,000 JPEGs of 32x32
    in 4 s; memory is the decoded set twice.

    Args:
        config: where they are and what they become.
        any_classes: take what there is, one class or a class without images, as candidates may have; `config.classes` and
            `config.unlabelled` are of the real images and don't count then. No image may be left out of candidates, whatever
            `config.max_unreadable` allows: they are judged as a whole, and a broken one is a fault of theirs.

    Raises:
        ConfigError: a setting that this source doesn't have, or that can't be used; a class that it doesn't have.
        DataError: nothing there, nothing unlabelled though `data.unlabelled` is given, another layout than the source's,
            classes without images, images of several sizes without `data.size_px`, or more unreadable files than
            `data.max_unreadable`.
    """
    if any_classes:
        config = config.model_copy(update={"classes": None, "unlabelled": None})
    _check_settings(config)
    root = Path() if config.path is None else _find(config.path)
    where = shown(config.path or config.source)
    source = _chosen(SOURCES[config.source](config, root), config, where)
    check_class_names(source.class_names, where)
    if not any_classes:
        _check_classes(source.labels, source.class_names, where)

    rows: list[int] = []
    pixels: list[np.ndarray] = []
    converted: Counter[str] = Counter()
    sizes: Counter[tuple[int, int]] = Counter()
    unreadable: dict[str, str] = {}
    with pillow_limits(config.max_pixels):
        for row, content in enumerate(source.contents):
            try:
                size, array, changes = read_image(content, config, next(iter(sizes), None))
            except Unreadable as error:
                unreadable[source.origins[row]] = str(error)
                continue
            sizes[size] += 1
            converted.update(changes)
            rows.append(row)
            if array is not None:
                pixels.append(array)

    if any_classes:
        _check_complete({o: reason for o, reason in source.skipped.items() if reason in LOST} | unreadable, where)
    _check_unreadable(unreadable, len(rows), config, where)
    if config.size_px is None:
        _check_native_sizes(sizes, where)
    labels = source.labels[rows]
    if not any_classes:
        _check_classes(labels, source.class_names, where, len(unreadable))
    images = stack(pixels, config.channels, converted)
    keys = tuple(f"real-{i:06d}" for i in range(len(rows)))
    groups = tuple(source.groups[row] for row in rows) if source.groups is not None else None
    given = tuple(source.given[row] for row in rows) if source.given is not None else None
    return RealImages(
        spec=DatasetSpec(
            name=config.name or shown(source.name, 100),
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
        return file_digest(root)
    if not root.is_dir():
        raise DataError(f"{shown(str(config.path))}: neither a file nor a folder (a pipe, a device?); give the images' own place")
    found = hashlib.sha256()
    for path in walk(root):
        if path.name.startswith("."):
            continue  # never read, and .DS_Store comes and goes
        image = config.source == "folder" and path.suffix.lower() in SUFFIXES
        content = content_of(path, root) if image else path if path.suffix == ".parquet" and path.is_file() else "not read"
        found.update(os.fsencode(path.relative_to(root).as_posix()) + b"\0")
        found.update((file_digest(content) if isinstance(content, Path) else content).encode() + b"\0")
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


def _chosen(source: Source, config: DataConfig, where: str) -> Source:
    """The classes that were asked for, numbered in that order, and the unlabelled images; the rest is never decoded."""
    names = tuple(name for name in source.class_names if name != config.unlabelled)
    asked = names if config.classes is None else config.classes
    for name in asked:
        if name not in names:
            known = ", ".join(shown(each, 60) for each in names[:20]) + (
                f" and {len(names) - 20} more" if len(names) > 20 else ""
            )
            raise ConfigError(f"data.classes: {where} has no class {name!r}{did_you_mean(name, names)}; its classes are {known}")
    left_out = UNLABELLED - 1
    number = [asked.index(name) if name in asked else left_out for name in source.class_names]
    number = [UNLABELLED if name == config.unlabelled else i for name, i in zip(source.class_names, number, strict=True)]
    labels = np.array([*number, UNLABELLED], dtype=np.int64)[source.labels]  # UNLABELLED is -1: the last one
    if config.unlabelled is not None and not (labels == UNLABELLED).any():
        raise DataError(f"{where}: data.unlabelled={config.unlabelled!r}, and every image has a label; leave it out")
    keep = labels != left_out
    return source._replace(
        class_names=asked,
        labels=labels[keep],
        origins=list(compress(source.origins, keep)),
        contents=compress(source.contents, keep),
        groups=None if source.groups is None else list(compress(source.groups, keep)),
        given=None if source.given is None else list(compress(source.given, keep)),
    )


# Settings and paths


def _check_settings(config: DataConfig) -> None:
    """Settings that the source would have to ignore are refused, and so is a size that no generator can make."""
    if config.name is not None and shown(config.name) != config.name:
        raise ConfigError(f"data.name={config.name!r}: holds control characters; give it a plain name")
    if config.source == "digits" and config.path is not None:
        raise ConfigError(f"data.path={config.path!r}: data.source=digits brings its images; name another source or leave it out")
    if config.source != "digits" and config.path is None:
        raise ConfigError(f"data.path is not given, and data.source={config.source} needs it: data.path=FOLDER")
    if config.group_pattern is not None and config.source != "folder":
        raise ConfigError(f"data.group_pattern is for data.source=folder, found {config.source}; see data.group_column")
    if config.group_column is not None and config.source not in ("parquet", "npz"):
        raise ConfigError(f"data.group_column is for parquet and npz, found data.source={config.source}; see data.group_pattern")
    if config.unlabelled is not None and config.source == "digits":
        raise ConfigError(f"data.unlabelled={config.unlabelled!r}: every digit has a label; split.pool hides as many as you like")
    if config.size_px is not None and not fits(config.size_px, config.size_px):
        raise DataError(f"data.size_px={config.size_px}: {SIZE_RULE}; the nearest is data.size_px={nearest_size(config.size_px)}")


def _find(path: str) -> Path:
    """The path itself; a relative one is also looked for in $SYNTHGEN_DATA and in ../shared/data."""
    if not path.strip():
        raise DataError(f"data.path={path!r}: is empty; give the path of your images")
    try:
        path.encode()
        asked = Path(path).expanduser()
    except UnicodeEncodeError:  # it goes into files of this run, all of which are UTF-8
        raise DataError(f"data.path='{shown(path)}': isn't text (not UTF-8); rename the file or folder") from None
    except RuntimeError as error:
        raise DataError(f"data.path={path!r}: {error}; give the whole path of your images") from None
    places = {".": Path(), "$SYNTHGEN_DATA": os.environ.get("SYNTHGEN_DATA"), "../shared/data": Path("..", "shared", "data")}
    looked = [name for name, place in places.items() if place and (name == "." or not asked.is_absolute())]
    for name in looked:
        if os.path.exists(found := Path(places[name] or "") / asked):
            return found
    raise DataError(
        f"data.path='{shown(path, 300)}': no such file or folder (looked in {', '.join(looked)}); give the path of your images"
    )


def _check_native_sizes(sizes: Counter[tuple[int, int]], where: str) -> None:
    """Without `data.size_px`, all images have one size, square, that the generators can make."""
    commonest = ", ".join(f"{width}x{height} ({count})" for (width, height), count in sizes.most_common(4))
    if len(sizes) > 1:
        raise DataError(f"{where}: images of {len(sizes)} sizes, {commonest}, ...; give one, for example data.size_px=32")
    ((width, height),) = sizes
    if width != height:
        raise DataError(
            f"{where}: {width}x{height} images aren't square; data.size_px={nearest_size(min(width, height))} makes them so"
        )
    if not fits(width, height):
        raise DataError(f"{where}: images of {width}x{height}; {SIZE_RULE}; give data.size_px={nearest_size(width)}")


def _check_classes(labels: np.ndarray, class_names: tuple[str, ...], where: str, num_unreadable: int = 0) -> None:
    """At least two classes, each with an image (that can be read)."""
    if len(labels) == 0:
        raise DataError(f"{where}: no images in it")
    if not (labels != UNLABELLED).any():
        raise DataError(f"{where}: none of its {len(labels)} images has a label; label some of every class")
    if len(class_names) < 2:
        raise DataError(f"{where}: one class only, {class_names[0]!r}; at least two are needed (a folder or a label each)")
    counts = np.bincount(labels[labels != UNLABELLED], minlength=len(class_names))
    if empty := [class_names[i] for i in np.flatnonzero(counts == 0)]:
        more = f" (nor have {len(empty) - 1} others)" if len(empty) > 1 else ""
        left_out = f" that can be read, {num_unreadable} can't" if num_unreadable else ""
        raise DataError(f"{where}: class {empty[0]!r} has no images{left_out}{more}; add some or take the class out")


def _check_complete(left_out: dict[str, str], where: str) -> None:
    if left_out:
        raise DataError(
            f"{where}: {len(left_out)} of the candidates can't be read, and a set is judged as a whole; mend or remove them. "
            f"First: {_first(left_out)}"
        )


def _first(left_out: dict[str, str]) -> str:
    return "; ".join(f"{origin}: {reason}" for origin, reason in list(left_out.items())[:3])


def _check_unreadable(unreadable: dict[str, str], readable: int, config: DataConfig, where: str) -> None:
    total = len(unreadable) + readable
    if unreadable and (readable == 0 or len(unreadable) / total > config.max_unreadable):
        allowed = f"data.max_unreadable={config.max_unreadable} allows {int(config.max_unreadable * total)}"
        most = allowed if readable else "at least one has to be read"
        what = f"{len(unreadable)} of {total} images are unreadable, and {most}"
        raise DataError(f"{where}: {what}; mend or remove them. First: {_first(unreadable)}")
