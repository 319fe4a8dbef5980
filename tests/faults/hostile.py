"""What somebody who means harm would hand in: files that leave a mark if anything in them is ever run, and files that grow."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np


class Attack:
    """Unpickled, it would make a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def module(mark: Path) -> str:
    """Source of a module that makes a file when it is imported, whatever it is asked for."""
    return f"import pathlib\npathlib.Path({str(mark)!r}).touch()\ndef __getattr__(name):\n    return lambda *a, **k: None\n"


def pickles(mark: Path) -> dict[str, bytes]:
    """Name -> a pickle in one of the forms in which checkpoints are found."""
    import torch

    forms = {f"pickle {protocol}": pickle.dumps({"state_dict": Attack(mark)}, protocol) for protocol in (0, 2, 4)}
    for name, zipped in (("torch zip", True), ("torch legacy", False)):
        buffer = io.BytesIO()
        torch.save({"state_dict": Attack(mark), "w": torch.zeros(2)}, buffer, _use_new_zipfile_serialization=zipped)
        forms[name] = buffer.getvalue()
    header = json.dumps({"__metadata__": {"synthgen": forms["pickle 0"].decode("latin-1")}}).encode()
    forms["safetensors with a pickle for a header"] = len(header).to_bytes(8, "little") + header
    forms["safetensors before a pickle"] = (2).to_bytes(8, "little") + b"{}" + forms["pickle 2"]
    return forms


def object_array(mark: Path) -> np.ndarray:
    """An array that only a pickle can hold."""
    return np.array([Attack(mark), None], dtype=object)


def saved(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def npz(members: dict[str, bytes], packed: int = zipfile.ZIP_STORED) -> bytes:
    """An archive of arrays that were saved already."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packed) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return buffer.getvalue()


def tar(members: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    """An archive of plain files, and of headers without contents."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members.items():
            header = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            header.size = 0 if isinstance(data, tarfile.TarInfo) else len(data)
            archive.addfile(header, None if isinstance(data, tarfile.TarInfo) else io.BytesIO(data))
    return buffer.getvalue()


def special(kind: bytes, target: str = "") -> tarfile.TarInfo:
    """The header of a link, a device or a pipe."""
    header = tarfile.TarInfo("1.png")
    header.type, header.linkname, header.devmajor, header.devminor = kind, target, 1, 5
    return header


# What grows


def png(width: int, height: int, zeros: bool = True) -> bytes:
    """A grey PNG of zeros; without them, only its header says so."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(1 + width)) for _ in range(height if zeros else 0)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def laughs(levels: int = 12) -> str:
    """YAML of a few lines that stands for 10 ** levels values."""
    lines = ["l0: &l0 [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    lines += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


def laughing_merges(levels: int = 12) -> str:
    """The same with merged keys."""
    lines = ["m0: &m0 {a: 1, b: 2}"]
    lines += [f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 10)}]}}" for n in range(1, levels)]
    return "\n".join(lines) + "\n"
