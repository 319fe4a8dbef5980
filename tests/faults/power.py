"""What a disk may hold after the power failed at any moment, given the changes that were made and what was synced of them.

POSIX promises only this: a file's bytes are there once `fsync` of the file has returned, its name once `fsync` of its folder has.
Everything else may be there, half there, or not.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.faults.disk import Change

LOSSES = ("dropped", "zeroed", "torn", "some")
"""dropped: nothing unsynced is there. zeroed: all names are, unsynced bytes are zeros. torn: all names, half of the unsynced
bytes. some: of the unsynced names each is there or not by chance, their unsynced bytes are gone."""


@dataclass
class _File:
    data: bytes = b""
    synced: bytes = b""


@dataclass
class Disk:
    """Files by name, now and as far as they are synced.

    Attributes:
        now: name -> file.
        synced: the same as of the last sync of each folder.
        folders: likewise.
        waiting: changes of names that aren't synced: (folder, name, file or None where it is gone).
    """

    now: dict[str, _File] = field(default_factory=dict)
    synced: dict[str, _File] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    synced_folders: set[str] = field(default_factory=set)
    inodes: dict[int, _File] = field(default_factory=dict)
    waiting: list[tuple[str, _File | None]] = field(default_factory=list)

    @classmethod
    def of(cls, root: Path) -> Disk:
        """A folder of which everything is synced."""
        disk = cls()
        for path in sorted(root.rglob("*")):
            name = path.relative_to(root).as_posix()
            if path.is_dir():
                disk.folders.add(name)
            else:
                data = path.read_bytes()
                disk.now[name] = _File(data, data)
        disk.synced, disk.synced_folders = dict(disk.now), set(disk.folders)
        return disk

    def apply(self, change: Change) -> None:
        """One change of the log."""
        kind, name = change.kind, change.path
        if kind == "create":
            self._name(name, _File())
            self.inodes[change.inode] = self.now[name]
        elif kind in ("write", "truncate"):
            file = self.inodes.get(change.inode) or self.now[name]
            self.inodes[change.inode] = file
            end = change.offset if kind == "truncate" else max(len(file.data), change.offset + len(change.data))
            data = bytearray(file.data[:end].ljust(end, b"\0"))
            data[change.offset : change.offset + len(change.data)] = change.data
            file.data = bytes(data)
        elif kind == "fsync":
            file = self.inodes.get(change.inode) or self.now[name]
            file.synced = file.data
        elif kind == "rename":
            self._name(change.to, self.now.get(name) or _File())  # from outside: nothing of it is known to be synced
            self._name(name, None)
        elif kind == "unlink":
            self._name(name, None)
        elif kind == "mkdir":
            self.folders.add(name)
        elif kind == "rmdir":
            self.folders.discard(name)
            self.synced_folders.discard(name)
        elif kind == "fsync folder":
            self._sync("" if name == "." else name)

    def _name(self, name: str, file: _File | None) -> None:
        if file is None:
            self.now.pop(name, None)
        else:
            self.now[name] = file
        self.waiting.append((name, file))

    def _sync(self, folder: str) -> None:
        for name, file in self.waiting:
            if os.path.dirname(name) == folder:
                self._keep(self.synced, name, file)
        self.waiting = [each for each in self.waiting if os.path.dirname(each[0]) != folder]
        self.synced_folders |= {each for each in self.folders if os.path.dirname(each) == folder}

    @staticmethod
    def _keep(names: dict[str, _File], name: str, file: _File | None) -> None:
        if file is None:
            names.pop(name, None)
        else:
            names[name] = file

    def after(self, loss: str, draws: np.random.Generator) -> dict[str, bytes]:
        """What is there when the power is back: name -> bytes."""
        if loss == "dropped":
            there = {name: file.synced for name, file in self.synced.items() if self._reached(name)}
        elif loss == "some":
            names = dict(self.synced)
            for name, file in self.waiting:
                if draws.random() < 0.5:
                    self._keep(names, name, file)
            there = {name: file.synced for name, file in names.items()}
        else:
            there = {name: _unsynced(file, loss) for name, file in self.now.items()}
        return there

    def _reached(self, name: str) -> bool:
        """Whether every folder above a name is synced too."""
        folder = os.path.dirname(name)
        return not folder or (folder in self.synced_folders and self._reached(folder))


def _unsynced(file: _File, loss: str) -> bytes:
    if file.data == file.synced:
        return file.synced
    start = len(file.synced) if file.data.startswith(file.synced) else 0
    rest = len(file.data) - start
    if loss == "zeroed":
        return file.data[:start] + bytes(rest)
    return file.data[: start + rest // 2]


def crashes(before: Disk, log: Sequence[Change], seed: int = 0) -> Iterator[tuple[int, str, dict[str, bytes], set[str]]]:
    """For every prefix of the log and every loss: (changes made, loss, what is there, what was reported by then)."""
    draws = np.random.default_rng(seed)
    reported: set[str] = set()
    for made in range(len(log) + 1):
        if made:
            change = log[made - 1]
            if change.kind == "report":
                reported.add(change.path)
            else:
                before.apply(change)
        for loss in LOSSES:
            yield made, loss, before.after(loss, draws), set(reported)


def put(there: dict[str, bytes], root: Path) -> Path:
    """Makes a folder of it."""
    root.mkdir(parents=True)
    for name, data in there.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root
