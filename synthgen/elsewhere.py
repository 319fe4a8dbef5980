"""Places that fsspec knows: s3://, gs://, file://. An export is copied there, its manifest last."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import Any, BinaryIO

from synthgen import storage
from synthgen.errors import ConfigError, StorageError, SynthgenError

LOGIN = re.compile(r"(\w{1,32}://)(?:[^\s/@:]{0,200}:\S{0,500}|[^\s/@]{1,200})@")
"""User or password in a URL; a password may hold a '/', as keys of S3 do. Bounded, so that no text takes long to search."""
ON_THIS_MACHINE = re.compile(r"^(?:/|~|[A-Za-z]:[\\/]|\\\\|file:)")
"""How a text begins that names a place on this machine."""


def push(
    folder: Path, url: str, names: Sequence[str], listed: Callable[[bytes], Sequence[str]], restart: bool = False, mine: str = ""
) -> None:
    """Copies files below `folder` to a place that fsspec knows (s3://, gs://, file://, memory://), in their order.

    The last one is the manifest: where it stands, the copy is whole. What stands there with another manifest is somebody
    else's and left alone, unless `restart` is given or its sha256 is `mine`; then what it lists and this one doesn't is
    removed. With the same manifest there is nothing to do, unless `restart` is given: then all is copied again.

    Args:
        folder: of the export.
        url: of the place.
        names: of the files, the manifest last.
        listed: bytes of a manifest -> the files that it lists; [] for one that can't be read.
        restart: replace whatever stands there.
        mine: sha256 of a manifest that may be replaced.

    Raises:
        ConfigError: no such protocol, or its library isn't installed.
        StorageError: the place can't be written, holds another export, or keeps other bytes than were sent.
    """
    place, root = _remote(url)
    from fsspec.implementations.local import LocalFileSystem

    shown, manifest, stale = without_login(url), (folder / names[-1]).read_bytes(), set[str]()
    try:
        there = f"{root}/{names[-1]}"
        if place.exists(there):
            old = place.cat_file(there)
            if old == manifest and not restart:
                return
            # a manifest that breaks off is what a kill left of this one where a place isn't atomic
            if not restart and hashlib.sha256(old).hexdigest() != mine and not manifest.startswith(old):
                raise StorageError(f"{shown}: holds another export; give export.to another folder, or --restart to replace it")
            stale = set(listed(old)) - set(names)
            place.rm_file(there)  # from here on it is unfinished
        for name in sorted(stale):
            if place.exists(f"{root}/{name}"):
                place.rm_file(f"{root}/{name}")
        for name in names:
            place.makedirs(f"{root}/{name}".rpartition("/")[0], exist_ok=True)
            place.put_file(str(folder / name), f"{root}/{name}")
            if isinstance(place, LocalFileSystem):
                _sync(Path(root), Path(root, name))
            size = (folder / name).stat().st_size
            if (there_now := place.info(f"{root}/{name}")["size"]) != size:
                raise StorageError(f"{shown}: {name!r} has {there_now} bytes there, {size} were sent")
    except StorageError:
        raise
    except Exception as error:  # each of fsspec's file systems raises its own
        why = without_login(f"{type(error).__name__}: {error}")
        raise StorageError(f"{shown}: can't be written ({why}); the export itself is in {folder}") from error


def _sync(root: Path, path: Path) -> None:
    """A file of this machine's disk, and the names that lead to it, outlive a power cut."""
    for each in (path, *(parent for parent in path.parents if root in (parent, *parent.parents)), root.parent):
        storage.sync(each)


def without_login(text: str) -> str:
    """A text in which no URL names user or password.

    >>> without_login("s3://KEY:SECRET@bucket/set")
    's3://...@bucket/set'
    """
    return LOGIN.sub(r"\1...@", text)


def without_places(value: Any) -> Any:
    """JSON types, of every path on this machine the last part alone, and no login: what others may know of settings.

    >>> without_places({"path": "/home/me/images", "sizes": [8]})
    {'path': 'images', 'sizes': [8]}
    """
    if isinstance(value, Mapping):
        return {key: without_places(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_places(item) for item in value]
    if not isinstance(value, (str, Path)):
        return value
    text = str(value)
    return PureWindowsPath(text).name if ON_THIS_MACHINE.match(text) else without_login(text)  # parted at / and \ alike


@contextmanager
def fetched(url: str) -> Iterator[Callable[[str], BinaryIO]]:
    """Opens files below a place that fsspec knows, by name, for reading.

    Raises:
        ConfigError: no such protocol, or its library isn't installed.
    """
    place, root = _remote(url)
    try:
        yield lambda name: place.open(f"{root}/{name}", "rb")
    except SynthgenError:
        raise
    except Exception as error:
        raise StorageError(without_login(f"{url}: can't be read ({type(error).__name__}: {error}); try again")) from error


def listing(url: str) -> dict[str, int]:
    """Name -> bytes of every file below a place that fsspec knows; {} where nothing stands."""
    place, root = _remote(url)
    try:
        found = place.find(root, detail=True)
    except FileNotFoundError:
        return {}
    except Exception as error:
        raise StorageError(without_login(f"{url}: can't be read ({type(error).__name__}: {error})")) from error
    return {path[len(root) :].lstrip("/"): int(about["size"]) for path, about in found.items()}


def _remote(url: str) -> tuple[Any, str]:
    import fsspec

    if "://" not in url and not Path(url).is_absolute():
        raise ConfigError(f"{url!r}: neither a URL (s3://bucket/folder, gs://, file:///) nor an absolute path")
    try:
        place, root = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"{without_login(url)}: {error}; s3:// needs `pip install s3fs`, gs:// `pip install gcsfs`") from None
    return place, root.rstrip("/")
