"""Small files that would fill the memory or never end, read under a limit on both: `python -m tests.faults.bombs FOLDER`.

Writes a line a case: its name, what came of it, seconds, and the most memory that the process has had by then, in MB.
"""

from __future__ import annotations

import io
import json
import resource
import signal
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from synthgen import elsewhere, storage
from synthgen.config.load import load as load_config
from synthgen.errors import SynthgenError
from synthgen.report.evidence import read_gate
from synthgen.report.portable import Portable
from synthgen.report.wording import visible
from synthgen.shards import codec, manifest, mds, npz, parquet, raw, read
from synthgen.types import DatasetSpec
from tests.faults import hostile

LIMIT_BYTES, LIMIT_S = 5 * 2**29, 10
"""Of address space, most of which the libraries reserve and never use; of CPU seconds a case."""


class Endless(BaseException):
    """Not caught by what catches everything."""


def put(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def header(kind: bytes, size: int = 0, name: str = "x") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def images(folder: Path) -> dict[str, Callable[[], object]]:
    """Pictures of a few kilobytes that are of many megabytes."""
    zeros, label = hostile.png(4000, 4000), b"0"
    many = {f"{i}.{kind}": data for i in range(256) for kind, data in (("png", zeros), ("cls", label))}
    wide = {"1.png": hostile.png(60_000, 60_000, zeros=False), "1.cls": label}
    return {
        "256 images of 16 megapixels": lambda: read.load(put(folder / "many.tar", hostile.tar(many))),
        "an image of 3,600 megapixels": lambda: read.load(put(folder / "wide.tar", hostile.tar(wide))),
        "half of an image": lambda: codec.decode_one(hostile.png(8000, 8000, zeros=False), "x"),
    }


def archives(folder: Path) -> dict[str, Callable[[], object]]:
    """Headers that promise more than there is, or call for each other without end."""
    end = bytes(1024)
    tars = {
        "a member of 8 GiB that isn't there": header(b"0", 2**33, "1.png") + end,
        "a member of 200 MB that isn't there": header(b"0", 200_000_000, "1.png") + end,
        "a sparse member of 1 TiB": header(b"S", 2**40, "1.png") + end,
        "a negative size": b"x.png".ljust(100, b"\0") + b"0000644\0" * 3 + b"\xff" * 12 + bytes(376),
        "100,000 headers on one file": header(b"x") * 100_000 + end, "100,000 long names": header(b"L", 0) * 100_000 + end,
        "100,000 global headers": header(b"g") * 100_000 + end, "100,000 folders": header(b"5") * 100_000 + end,
        "a long name of 1 GB": header(b"L", 10**9) + end,
    }  # fmt: skip
    found = {
        name: (lambda data=data, n=n: read.load(put(folder / f"{n}.tar", data))) for n, (name, data) in enumerate(tars.items())
    }
    zeros = np.zeros((40_000, 32, 32, 3), np.uint8)
    own = {"image": zeros, "label": np.zeros(1, np.int64), "key": np.array(["a"]), "about": np.array([b"{}"])}
    packed = hostile.npz({name: hostile.saved(array) for name, array in own.items()}, zipfile.ZIP_DEFLATED)
    claims = io.BytesIO()
    about = {"descr": "|u1", "fortran_order": False, "shape": (10**7, 999, 999, 3)}
    np.lib.format.write_array_header_1_0(claims, about)
    big = hostile.npz(
        {name: hostile.saved(array) for name, array in own.items() if name != "image"} | {"image": claims.getvalue()}
    )
    found["an .npz that is packed"] = lambda: list(npz.read(put(folder / "packed.npz", packed)))
    found["an .npz that claims more than it has"] = lambda: list(npz.read(put(folder / "claims.npz", big)))
    count = (2**32 - 1).to_bytes(4, "little") + bytes(4096)
    found["an MDS of 4,294,967,295 samples"] = lambda: list(mds.read(put(folder / "a.mds", count)))
    return found


def tables(folder: Path) -> dict[str, Callable[[], object]]:
    """Columns in which one large value stands for many."""
    spec = DatasetSpec("toy", (3, 256, 256), ("cat", "dog"), False, "f" * 64)
    group, row = 500, 3 * 256 * 256
    pixels = pa.Array.from_buffers(pa.binary(row), group, [None, pa.py_buffer(bytes(group * row))])
    rows = [pa.array(["a"] * group), pa.array(np.zeros(group, np.int64)), pixels]
    with pq.ParquetWriter(folder / "raw.parquet", raw._schema(spec), compression="zstd") as writer:
        for _ in range(18):
            writer.write_batch(pa.record_batch(rows, schema=raw._schema(spec)))
    export = {name: pa.nulls(200, kind) for name, kind in parquet.COLUMNS.items()}
    export["class_name"] = pa.array(["x" * 1_000_000] * 200)
    pq.write_table(pa.table(export), folder / "names.parquet", compression="zstd", use_dictionary=["class_name"])
    export["key"] = export.pop("class_name")
    export = {name: export.get(name, pa.nulls(200, kind)) for name, kind in parquet.COLUMNS.items()}
    pq.write_table(pa.table(export), folder / "keys.parquet", compression="zstd")
    return {
        "9,000 images that are one": lambda: read.load(folder / "raw.parquet"),
        "200 names that are one of 1 MB": lambda: list(parquet.read(folder / "names.parquet")),
        "200 keys that are one of 1 MB": lambda: list(parquet.read(folder / "keys.parquet")),
    }


def texts(folder: Path) -> dict[str, Callable[[], object]]:
    """YAML, JSON and texts that grow, or on which a search would never end."""
    own = "defaults: [schema, _self_]\n"
    recipes = {
        "YAML that laughs": hostile.laughs(), "YAML that merges": hostile.laughing_merges(), "an alias of itself": "a: &a [*a]",
        "YAML 3,000 deep": "a: " + "[" * 3000 + "]" * 3000, "10 MB of YAML": own + "name: " + "x" * 10**7,
        "100,000 values": own + "models: [" + "vae," * 100_000 + "]",
    }  # fmt: skip
    found: dict[str, Callable[[], object]] = {
        name: (lambda text=text, n=n: load_config(str(put(folder / f"recipe-{n}.yaml", text))))
        for n, (name, text) in enumerate(recipes.items())
    }
    deep = "[" * 200_000
    found["JSON 200,000 deep"] = lambda: read_gate(put(folder / "gate.json", deep))
    found["a manifest 200,000 deep"] = lambda: manifest.read(put(folder / manifest.NAME, deep).parent)
    found["a manifest of the numbers 10 ** 9999"] = lambda: storage.read_json(put(folder / "n.json", "[" + "9" * 9999 + "]"))
    for name, text in (("letters", "a" * 300_000), ("addresses", "a://a:" * 50_000), ("signs", "@" * 300_000)):
        found[f"300,000 {name} without an end"] = lambda text=text: (elsewhere.without_login(text), visible(text), None)[2]
    laughs = hostile.laughs()
    found["settings of a run that laugh"] = lambda: Portable("/x", laughs).text("x")
    found["settings of a run that merge"] = lambda: Portable("/x", hostile.laughing_merges()).text("x")
    return found


def peak_mb() -> int:
    """The most memory that this program has had. Linux counts what its parent had before it was started, but in /proc."""
    status = Path("/proc/self/status")
    if status.is_file():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) // 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**20  # macOS


def main(folder: Path) -> None:
    def endless(*_: object) -> None:
        raise Endless

    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    signal.signal(signal.SIGVTALRM, endless)
    for group in (archives, texts, images, tables):
        place = folder / group.__name__
        place.mkdir()
        for name, attempt in group(place).items():
            start = time.process_time()
            signal.setitimer(signal.ITIMER_VIRTUAL, LIMIT_S)
            try:
                attempt()
                what = "read"
            except SynthgenError as error:
                what = f"refused: {error}"
            except BaseException as error:
                what = f"{type(error).__name__}: {error}"
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            peak = peak_mb()
            print(json.dumps([name, what[:300], round(time.process_time() - start, 2), peak]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
