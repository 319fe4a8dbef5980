"""The four layouts that real images come in. Each lists its images with their labels; contents are decoded later."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np

from synthgen.config.schema import DataConfig
from synthgen.data.decoding import Content
from synthgen.data.listing import Source
from synthgen.data.names import shown
from synthgen.data.tables import npz, parquet
from synthgen.errors import ConfigError, DataError, did_you_mean
from synthgen.storage import sha256_file
from synthgen.types import UNLABELLED

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"})
UNSUPPORTED = frozenset(
    {".avif", ".dcm", ".dng", ".eps", ".exr", ".heic", ".heif", ".jp2", ".jxl", ".npy", ".psd", ".svg", ".tga"}
)
"""Suffixes of images that aren't decoded here: they count as unreadable, not as files that happen to lie about."""

LINKED_CLASS, LINKED = "a link to a folder or to nothing: not followed", "a link to a folder: not followed"
STRAY = "an image outside the class folders"
LOST = frozenset({LINKED_CLASS, LINKED, STRAY})
"""Reasons for which what may be images isn't read, though its name doesn't hide it."""

SPLIT_NAMES = frozenset({"train", "test", "val", "valid", "validation", "dev"})


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
    Hidden files and folders aren't read; of those that are or hold images it is noted. Links to folders aren't followed, nor
    links to files outside `root`.
    """
    where = shown(str(config.path))
    if not root.is_dir():
        raise DataError(f"{where}: is a file, and data.source=folder expects a folder with one folder a class")
    skipped: dict[str, str] = {}
    tops = _visible_folders(root, root, skipped)
    blank = [("train", tops.pop(config.unlabelled))] if config.unlabelled in tops else []
    if tops and set(tops) <= SPLIT_NAMES and not {"train", "test"} <= set(tops):
        raise DataError(
            f"{where}: its folders {sorted(tops)} look like splits, expected train/ and test/, or one folder a class; "
            f"add the other one, or give data.path={where}/{shown(min(tops))}"
        )
    if {"train", "test"} <= set(tops):
        if others := sorted(set(tops) - {"train", "test"}):
            raise DataError(
                f"{where}: beside train/ and test/ there is {others[0]!r}; "
                "move its images into train/ (val and reference are drawn from there) or out of the folder"
            )
        sides = {side: _visible_folders(tops[side], root, skipped) for side in ("train", "test")}
        blank += [(side, folders.pop(config.unlabelled)) for side, folders in sides.items() if config.unlabelled in folders]
    else:
        sides = {"": tops}
    class_names = tuple(sorted({name for folders in sides.values() for name in folders}))
    if not class_names:
        what = "images lie directly in it" if _any_image(root, list(sides)) else "no class folders in it"
        raise DataError(f"{where}: {what}; expected one folder a class: {where}/CLASS/name.png")

    if config.unlabelled is not None and not blank:
        known = did_you_mean(config.unlabelled, class_names)
        raise DataError(f"{where}: no folder {config.unlabelled!r}, as data.unlabelled calls it{known}; make it or leave it out")

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
            raise DataError(f"{where}: {kind} '{_origin(folder, root)}' has no images; add some or remove it")
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


SOURCES = {"digits": _digits, "folder": _folder, "parquet": parquet, "npz": npz}


# Folders


def _origin(path: Path, root: Path) -> str:
    """The path inside `root`, as text that any file and any screen can hold (names needn't be UTF-8)."""
    return shown(os.fsencode(path.relative_to(root).as_posix()).decode("utf-8", "backslashreplace"))


def _visible_folders(folder: Path, root: Path, skipped: dict[str, str]) -> dict[str, Path]:
    """Name -> folder, sorted; files beside them and links are noted in `skipped`."""
    found: dict[str, Path] = {}
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        _cannot_list(error)
    for path in paths:
        if path.name.startswith("."):
            _note_hidden(path, root, skipped)
        elif path.is_symlink() and not path.is_file():
            skipped[_origin(path, root)] = LINKED_CLASS
        elif path.is_dir():
            found[path.name] = path
        elif path.suffix.lower() in SUFFIXES:
            skipped[_origin(path, root)] = STRAY
        else:
            skipped[_origin(path, root)] = "not an image file"
    return found


def _any_image(root: Path, sides: list[str]) -> bool:
    return any(path.suffix.lower() in SUFFIXES for side in sides for path in (root / side).iterdir())


def walk(root: Path) -> Iterator[Path]:
    """Every file, sorted folder by folder, and of the folders links and hidden ones, which aren't gone into, and those that are
    called as images are."""
    for here, folders, files in os.walk(root, onerror=_cannot_list):
        paths = [Path(here, name) for name in sorted(folders)]
        folders[:] = [path.name for path in paths if not path.name.startswith(".")]
        yield from (path for path in paths if path.name.startswith(".") or path.is_symlink() or path.suffix.lower() in SUFFIXES)
        yield from (Path(here, name) for name in sorted(files))


def _files(folder: Path, root: Path, skipped: dict[str, str]) -> Iterator[Path]:
    """Image files of a class folder; other files are noted in `skipped`."""
    for path in walk(folder):
        if path.name.startswith("."):
            _note_hidden(path, root, skipped)
        elif path.is_symlink() and path.is_dir():
            skipped[_origin(path, root)] = LINKED
        elif path.is_dir():
            skipped[_origin(path, root)] = "a folder, though it is called as an image is; files in it are read"
        elif path.suffix.lower() in SUFFIXES | UNSUPPORTED:
            yield path
        else:
            skipped[_origin(path, root)] = "not an image file"


def _note_hidden(path: Path, root: Path, skipped: dict[str, str]) -> None:
    """Of images alone: of .DS_Store and its like there is nothing to say."""
    within = (name for _, _, files in os.walk(path) for name in files)
    names = within if path.is_dir() and not path.is_symlink() else [path.name]
    if any(name.lower().endswith(tuple(SUFFIXES)) for name in names):
        skipped[_origin(path, root)] = "hidden, as its name begins with a dot: not read"


def file_digest(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        return f"unreadable: {error.strerror}"


def _cannot_list(error: OSError) -> NoReturn:
    raise DataError(f"{shown(str(error.filename))}: can't be listed ({error.strerror}); give a folder that can be read") from None


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
