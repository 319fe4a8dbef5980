"""A layer between Python and one folder of the disk: it writes down every change, and can fail, tear or end any of them.

It stands below everything that Python opens, ours and other libraries' alike: `open`, `os.open`, `os.fsync`, `os.replace`,
`os.unlink`, ... What compiled code writes by itself is not seen, and `Layer.unseen` says so.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

CHANGES = ("create", "write", "truncate", "fsync", "fsync folder", "rename", "unlink", "mkdir", "rmdir")
FAULTS = ("kill", "torn", "ENOSPC", "EIO", "short")
"""kill: the process is gone before the change. torn: half of a write is done, then it is gone. ENOSPC: the disk is full from
here on. EIO: this one change fails. short: a write takes fewer bytes than it was given, as write(2) may."""


class Killed(BaseException):
    """The process is gone: nothing that it does after this changes the disk."""


@dataclass(frozen=True)
class Change:
    """One change of the disk, or what was reported after it.

    Attributes:
        kind: of `CHANGES`, or "report": from here on the files of `path` are promised.
        path: below the root; of a write that of the file when it was opened.
        inode: a number for the file, whatever its name; 0 for one that stood there before.
        offset, data: of a write; of a truncation the new size is the offset.
        to: of a rename.
    """

    kind: str
    path: str
    inode: int = 0
    offset: int = 0
    data: bytes = b""
    to: str = ""


@dataclass
class Layer:
    """Sees, and from change `at` on spoils, what happens below `root` while `with layer.mounted(monkeypatch)` lasts.

    Attributes:
        root: the folder.
        at: number of the change that goes wrong; None spoils nothing.
        how: of `FAULTS`.
        log: what happened.
        hit: whether the fault has come.
    """

    root: Path
    at: int | None = None
    how: str = "kill"
    log: list[Change] = field(default_factory=list)
    hit: bool = False
    dead: bool = False
    files: dict[int, int] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)
    count: int = 0

    def report(self, path: Path) -> None:
        """What stands in this file or folder is promised from here on."""
        self.log.append(Change("report", self._name(path)))

    def inside(self, path: Any) -> bool:
        if isinstance(path, int):
            return False
        text = os.path.abspath(os.fsdecode(path))
        return text == str(self.root) or text.startswith(f"{self.root}{os.sep}")

    def _name(self, path: Any) -> str:
        return os.path.relpath(os.path.abspath(os.fsdecode(path)), self.root)

    def change(self, made: Change, do: Callable[[], Any], torn: Callable[[], Any] | None = None) -> Any:
        """Does one change, or lets it go wrong."""
        if self.dead:
            raise Killed
        number, self.count = self.count, self.count + 1
        due = self.at is not None and (number == self.at or (self.how == "ENOSPC" and number > self.at))
        if due:
            self.hit = True
            if self.how == "torn" and torn is not None:
                torn()
            if self.how in ("kill", "torn"):
                self.dead = True
                raise Killed
            if self.how == "EIO":
                raise OSError(errno.EIO, os.strerror(errno.EIO), made.path)
            if self.how == "ENOSPC" and made.kind in ("create", "write", "mkdir", "rename", "fsync"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), made.path)
            if self.how == "short" and torn is not None:
                return torn()
        found = do()
        self.log.append(made)
        return found

    def mounted(self, monkeypatch: pytest.MonkeyPatch) -> Layer:
        """Puts the layer in place until the monkeypatch is undone."""
        real = {name: getattr(os, name) for name in ("open", "fsync", "replace", "rename", "unlink", "remove", "mkdir", "rmdir")}
        real_open = builtins.open

        def opened(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **kwargs: Any) -> Any:
            if not set(mode) & set("wax+") or not self.inside(file):
                return real_open(file, mode, buffering, *args, **kwargs)
            return _opened(self, file, mode, buffering, *args, **kwargs)

        def low_opened(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if not flags & os.O_CREAT or kwargs.get("dir_fd") is not None or not self.inside(path) or os.path.lexists(path):
                return real["open"](path, flags, *args, **kwargs)
            made = Change("create", self._name(path), len(self.sizes) + 1)
            descriptor = self.change(made, lambda: real["open"](path, flags, *args, **kwargs))
            self.files[os.fstat(descriptor).st_ino] = made.inode
            self.sizes[made.inode] = 0
            return descriptor

        def fsync(descriptor: Any) -> None:
            number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
            path = os.readlink(f"/proc/self/fd/{number}")
            if not self.inside(path):
                return real["fsync"](number)
            if os.path.isdir(path):
                return self.change(Change("fsync folder", self._name(path)), lambda: real["fsync"](number))
            self._compare(number)
            made = Change("fsync", self._name(path), self.files.get(os.fstat(number).st_ino, 0))
            return self.change(made, lambda: real["fsync"](number))

        def rename(name: str) -> Callable[..., None]:
            def moved(source: Any, target: Any, **more: Any) -> None:
                if not self.inside(target):
                    return real[name](source, target, **more)
                made = Change("rename", self._name(source), to=self._name(target))
                return self.change(made, lambda: real[name](source, target, **more))

            return moved

        def named(name: str, kind: str) -> Callable[..., None]:
            def done(path: Any, *args: Any, dir_fd: int | None = None, **more: Any) -> None:
                whole = path if dir_fd is None else os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), os.fsdecode(path))
                given = more if dir_fd is None else {**more, "dir_fd": dir_fd}
                if not self.inside(whole):
                    return real[name](path, *args, **given)
                if kind in ("unlink", "rmdir") and not os.path.lexists(whole):
                    return real[name](path, *args, **given)  # fails as it does without us, and changes nothing
                if kind == "mkdir" and os.path.lexists(whole):
                    return real[name](path, *args, **given)
                return self.change(Change(kind, self._name(whole)), lambda: real[name](path, *args, **given))

            return done

        for module in (builtins, io):
            monkeypatch.setattr(module, "open", opened)
        monkeypatch.setattr("shutil._USE_CP_SENDFILE", False, raising=False)  # shutil's copies then are writes of Python
        monkeypatch.setattr(os, "open", low_opened)
        monkeypatch.setattr(os, "fsync", fsync)
        for name in ("replace", "rename"):
            monkeypatch.setattr(os, name, rename(name))
        for name, kind in {"unlink": "unlink", "remove": "unlink", "mkdir": "mkdir", "rmdir": "rmdir"}.items():
            monkeypatch.setattr(os, name, named(name, kind))
        return self

    def _compare(self, descriptor: int) -> None:
        """Fails where something wrote into a file and the layer didn't see it."""
        about = os.fstat(descriptor)
        seen = self.sizes.get(self.files.get(about.st_ino, 0), about.st_size)
        if seen != about.st_size:
            raise AssertionError(f"{os.readlink(f'/proc/self/fd/{descriptor}')}: {about.st_size} bytes, {seen} were seen")


class _File(io.FileIO):
    """A file whose writes are changes of the layer."""

    def __init__(self, layer: Layer, path: Any, mode: str) -> None:
        self.layer, self.where = layer, layer._name(path)
        new, empties = not os.path.lexists(path), "w" in mode
        if new or empties:
            layer.change(Change("create" if new else "truncate", self.where), lambda: super(_File, self).__init__(path, mode))
            about = os.fstat(self.fileno())
            if new:  # the disk gives the number of a file that is gone to the next one
                layer.files[about.st_ino] = len(layer.sizes) + 1
        else:
            super().__init__(path, mode)
            about = os.fstat(self.fileno())
        self.inode = layer.files.setdefault(about.st_ino, len(layer.sizes) + 1)
        layer.sizes[self.inode] = about.st_size
        if new or empties:
            layer.log[-1] = Change(layer.log[-1].kind, self.where, self.inode)

    def write(self, data: Any) -> int:
        whole = bytes(data)
        offset = os.fstat(self.fileno()).st_size if "a" in self.mode else self.tell()
        made = Change("write", self.where, self.inode, offset, whole)

        def do(part: bytes = whole) -> int:
            done = super(_File, self).write(part)
            self.layer.sizes[self.inode] = max(self.layer.sizes[self.inode], offset + done)
            return done

        def half() -> int:
            part = whole[: max(1, len(whole) // 2)]
            done = do(part)
            self.layer.log.append(Change("write", self.where, self.inode, offset, part))
            return done

        return self.layer.change(made, do, half)

    def truncate(self, size: int | None = None) -> int:
        size = self.tell() if size is None else size
        made = Change("truncate", self.where, self.inode, size)
        found = self.layer.change(made, lambda: super(_File, self).truncate(size))
        self.layer.sizes[self.inode] = size
        return found


def _opened(
    layer: Layer,
    file: Any,
    mode: str,
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Any = None,
) -> Any:
    """What `open` gives, over a `_File`."""
    raw = _File(layer, file, mode.replace("b", "").replace("t", ""))
    if buffering == 0:
        return raw
    buffered: Any = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
    return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)
