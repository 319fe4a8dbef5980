"""What a power cut, a kill or a full disk leaves of a file that is replaced: ours and other libraries' writers in one harness.

    .venv/bin/python scripts/bench/durability.py [--json FILE]
    .venv/bin/python scripts/bench/durability.py --quick          (fewer bytes: a check, no result)

Each writer replaces a good file by a new one (or writes a new shard). The harness (tests/faults) sees every change of the disk.
"power": the power fails after each change, unsynced bytes dropped, zeroed or torn, unsynced names there or not; neither the old
nor the new file is there whole. "reported": the same after the writer has returned, so that its caller believes in the new file.
"kill", "torn", "ENOSPC", "EIO": each change goes wrong once; then neither of both stands there whole. "said nothing": an error of
the disk, and the writer returns as if all were well, without the new file. Below 1 is better, and 0 is the aim.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import sys
import tempfile
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from machine import processor  # beside this script

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from synthgen import storage
from synthgen.checkpoints import AtomicCheckpointIO
from synthgen.shards import raw
from synthgen.types import Batch, DatasetSpec
from tests.faults import power
from tests.faults.disk import Killed, Layer

FAULTS = ("kill", "torn", "ENOSPC", "EIO")
Write = Callable[[Path, int], None]


def _state(seed: int) -> dict[str, Any]:
    return {"state_dict": {"w": torch.full((SIZE,), float(seed))}, "optimizer_states": []}


def ours_bytes(path: Path, seed: int) -> None:
    storage.write_bytes(path, bytes([seed]) * SIZE * 4)


def ours_checkpoint(path: Path, seed: int) -> None:
    AtomicCheckpointIO().save_checkpoint(_state(seed), path)


def ours_parquet(path: Path, seed: int) -> None:
    spec = DatasetSpec("bench", (1, 8, 8), ("a", "b"), False, "0" * 64)
    images = np.full((SIZE // 16, 1, 8, 8), seed, np.uint8)
    raw.write(path, [Batch(images, np.zeros(len(images), np.int64), tuple(f"k-{i}" for i in range(len(images))))], spec)


def lightning(path: Path, seed: int) -> None:
    from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

    TorchCheckpointIO().save_checkpoint(_state(seed), path)


def torch_save(path: Path, seed: int) -> None:
    with open(path, "wb") as file:
        torch.save(_state(seed), file)


def webdataset_shard(path: Path, seed: int) -> None:
    import webdataset

    pattern = str(path.with_name("shard-%06d.tar"))
    with webdataset.ShardWriter(pattern, maxcount=10**9, verbose=0, mtime=0) as writer:
        for i in range(20):
            writer.write({"__key__": f"{i:06d}", "bin": bytes([seed]) * (SIZE // 5), "cls": b"0"})
    assert path.name == "shard-000000.tar"


def pyarrow_table(path: Path, seed: int) -> None:
    table = pa.table({"image": pa.array([bytes([seed]) * 64] * (SIZE // 16))})
    with open(path, "wb") as file:
        pq.write_table(table, file, compression="none", use_dictionary=False)


WRITERS: dict[str, tuple[Write, str, str]] = {
    "synthgen, a file": (ours_bytes, "file.bin", "synthgen"),
    "synthgen, a checkpoint": (ours_checkpoint, "a.ckpt", "synthgen"),
    "synthgen, Parquet": (ours_parquet, "a.parquet", "synthgen"),
    "Lightning, TorchCheckpointIO": (lightning, "a.ckpt", "pytorch-lightning"),
    "torch.save": (torch_save, "a.ckpt", "torch"),
    "webdataset, ShardWriter": (webdataset_shard, "shard-000000.tar", "webdataset"),
    "pyarrow, write_table": (pyarrow_table, "a.parquet", "pyarrow"),
}
SIZE = 100_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="files of 8 kB: a check, no result")
    asked = parser.parse_args()
    if asked.quick:
        globals()["SIZE"] = 2000
    warnings.simplefilter("ignore")
    machine = f"{processor()}, Python {platform.python_version()}"
    print(machine)
    found = [measure(name, *about) for name, about in WRITERS.items() if _version(about[2])]
    show(found)
    if asked.json:
        asked.json.write_text(json.dumps({"machine": machine, "bytes": SIZE * 4, "writers": found}, indent=2) + "\n")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def measure(name: str, write: Write, file: str, package: str) -> dict[str, Any]:
    """Every power cut and every fault of one writer: what was lost, of how many cases."""
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["TMPDIR"], tempfile.tempdir = scratch, scratch
        old, new = _content(write, Path(scratch), file, 1), _content(write, Path(scratch), file, 2)
        about: dict[str, Any] = {"writer": name, "version": _version(package), "changes": 0}
        root = _start(write, Path(scratch, "log"), file)
        before = power.Disk.of(root)
        with pytest.MonkeyPatch.context() as patch:
            layer = Layer(root).mounted(patch)
            write(root / file, 2)
            gc.collect()
        about["changes"] = len(layer.log)
        lost = {"power": [0, 0], "reported": [0, 0]}
        for made, _, there, _ in power.crashes(before, layer.log):
            over = made == len(layer.log)
            lost["power"][0] += there.get(file) not in (old, new)
            lost["power"][1] += 1
            if over:
                lost["reported"][0] += there.get(file) != new
                lost["reported"][1] += 1
        silent = [0, 0]
        for how in FAULTS:
            lost[how] = [0, 0]
            for at in range(len(layer.log)):
                wrong, said = _spoilt(write, Path(scratch, f"{how}-{at}"), file, at, how, (old, new))
                lost[how][0] += wrong
                lost[how][1] += 1
                if how in ("ENOSPC", "EIO"):
                    silent[0] += not said
                    silent[1] += 1
        tempfile.tempdir = None
        os.environ.pop("TMPDIR")
    return about | lost | {"said nothing": silent}


def _start(write: Write, root: Path, file: str) -> Path:
    root.mkdir(parents=True)
    write(root / file, 1)
    return root


def _content(write: Write, scratch: Path, file: str, seed: int) -> bytes:
    root = scratch / f"seed-{seed}"
    root.mkdir()
    write(root / file, seed)
    return (root / file).read_bytes()


def _spoilt(write: Write, root: Path, file: str, at: int, how: str, whole: tuple[bytes, bytes]) -> tuple[bool, bool]:
    """Whether neither the old nor the new file is there after a fault, and whether the writer said that something is wrong."""
    _start(write, root, file)
    said = False
    with pytest.MonkeyPatch.context() as patch:
        Layer(root, at, how).mounted(patch)
        try:
            write(root / file, 2)
        except (Killed, Exception):
            said = True
        gc.collect()
    there = (root / file).read_bytes() if (root / file).is_file() else b""
    return there not in whole, said or there == whole[1]


def show(found: list[dict[str, Any]]) -> None:
    """A table: of how many cases the file was lost."""
    columns = ["power", "reported", *FAULTS, "said nothing"]
    print(f"{'writer':30} {'version':10} {'changes':>7} " + " ".join(f"{name:>12}" for name in columns))
    for each in found:
        cells = " ".join(f"{each[name][0]:>5} of {each[name][1]:<4}" for name in columns)
        print(f"{each['writer']:30} {each['version']:10} {each['changes']:>7} {cells}")
    worst = sum(each[name][0] for each in found if each["writer"].startswith("synthgen") for name in columns)
    print(f"synthgen: {worst} lost (aim 0)")


if __name__ == "__main__":
    main()
