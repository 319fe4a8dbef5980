"""Shards beside their peers: samples a second written and read, encoding and decoding included, on the same images.

    .venv/bin/python scripts/bench/shards.py [--env FOLDER] [--json FILE]   everything, medians of 5: about 15 minutes
    .venv/bin/python scripts/bench/shards.py --only write/parquet           one part (any part of a row's name)
    .venv/bin/python scripts/bench/shards.py --quick                        a check, no result; under a minute
    .venv/bin/python scripts/bench/shards.py --only overlap --device cuda   whether writing slows generation on a GPU

Images are 32x32 RGB from CIFAR-10 ($SYNTHGEN_DATA or ../shared/data: cifar10/train.parquet), else smooth fields with a little
noise, which take about as many bytes a PNG. Each measurement is one process with one thread; all contenders take turns, so
that a busy machine slows all alike. Figures are samples a CPU second (`time.process_time`, children included); wall stands
beside it. webdataset and datasets run in this environment (they come with the extra `dev`), mosaicml-streaming and litdata
in one of their own (`shard_peers.txt`), made with `--env` (kept; 2 GB) and left out with a word where none is given.

Two bounds. `encoder`: nothing but encoding (or decoding) the same images. `needed`: encoding, one sha256 of the shards'
bytes, and writing and fsyncing them: what ours can't do without. No peer hashes or fsyncs. Provenance `all` is what a run of
diffusion with the whole gate says of a sample (some 600 bytes of JSON), `few` is without the gate's figures; the peers write
image and label alone, but for reading, where ours gives the whole provenance too.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import numpy as np
from machine import processor  # beside this script
from metrics import environment

HERE = Path(__file__).resolve().parent
PINS = HERE / "shard_peers.txt"
NUM, NUM_QUICK = 10_240, 1_024
OWN_ENVIRONMENT = ("mds", "litdata")
PRESETS = ("balanced", "fast", "small")
PEERS = ("webdataset", "datasets", "mds", "litdata")


@dataclass(frozen=True)
class Row:
    """One contender at one job; `folder` holds the shards that it writes or reads."""

    role: str
    what: str
    folder: str

    @property
    def name(self) -> str:
        return f"{self.role}/{self.what.replace('ours|', '').replace('|', '/')}"


def rows(quick: bool) -> list[Row]:
    """Writers before those that read what they wrote."""
    ours = [f"ours|{form}|{preset}|{kind}" for form in ("webdataset", "parquet") for preset in PRESETS for kind in ("all", "few")]
    ours = [what for what in ours if not (what.endswith("small|few") or (quick and ("few" in what or "small" in what)))]
    ours += ["ours|mds|balanced|all", "ours|webdataset|given|few"]
    written = [*ours, "webdataset", "webdataset, bytes given", "datasets", "mds", "litdata"]
    read = [what for what in ours if what.endswith("all")]
    foreign = () if quick else (("webdataset", "webdataset"), ("datasets", "parquet"))
    return [
        *(Row("write", what, what) for what in written),
        *(Row("read", what, what) for what in (*read, *PEERS)),
        *(Row("read", peer, f"ours|{form}|balanced|all") for peer, form in foreign),
        *(Row("read", f"decode|{preset}", "") for preset in PRESETS if not (quick and preset == "small")),
    ]


TARGETS = (
    ("write/webdataset/balanced/all", "write/webdataset", 6, 9),
    ("write/parquet/balanced/all", "write/datasets", 4, 6),
    ("write/webdataset/fast/all", "write/webdataset", 20, 35),
    ("write/parquet/fast/all", "write/datasets", 12, 22),
    ("write/webdataset/given/few", "write/webdataset, bytes given", 5, 10),
    ("write/parquet/balanced/all", "encoder", 0.8, 0.87),
    ("write/parquet/fast/all", "encoder", 0.5, 0.7),
    ("read/parquet/balanced/all", "read/datasets", 2, 2.9),
    ("read/webdataset/balanced/all", "read/webdataset", 4, 5),
    ("read/parquet/fast/all", "read/datasets", 12, 23),
)
"""What is measured, against what, the least ratio, and the ratio aimed at."""


def main() -> None:
    asked = arguments()
    with tempfile.TemporaryDirectory(prefix="bench-shards-", dir=asked.scratch) as temporary:
        scratch = Path(temporary)
        python = environment(asked.env, PINS, "the environment of MDS and litdata", "2 GB") if asked.env else None
        num = NUM_QUICK if asked.quick else NUM
        images, source = pictures(num)
        np.savez(scratch / "images.npz", images=images[0], labels=images[1])
        bench = Bench(python, scratch, 1 if asked.quick else asked.repeats)
        result: dict = {"machine": machine(), "versions": versions(python), "images": f"{num} of {source}"}
        print("\n".join(f"{name}: {value}" for name, value in result.items()), flush=True)
        chosen = [row for row in rows(asked.quick) if asked.only in row.name]
        needed = {row.folder for row in chosen if row.role == "read"}
        chosen += [row for row in rows(asked.quick) if row.role == "write" and row.what in needed and row not in chosen]
        result["rows"] = bench.rows(sorted(chosen, key=lambda row: row.role, reverse=True))
        if asked.only in "export":
            sizes = (1_000,) if asked.quick else (10_000, 100_000)
            threads = (1,) if asked.quick else (1, os.cpu_count() or 1)
            cases = [(n, "webdataset+parquet", t) for n in sizes for t in threads]
            result["export"] = [bench.export(*case) for case in cases]
        if asked.only in "overlap" and (asked.only or not asked.quick):
            result["overlap"] = bench.overlap(asked.device, asked.quick)
    show(result)
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=2) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", type=Path, help="folder of the environment with MDS and litdata, made if it doesn't exist")
    parser.add_argument("--scratch", type=Path, help="where the shards are written for the while; a temporary folder")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="rows whose name holds this; export; overlap")
    parser.add_argument("--device", default="cpu", help="of the generator in `overlap`: cpu or cuda")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="few images, once; without `overlap`")
    return parser.parse_args()


def pictures(num: int) -> tuple[tuple[np.ndarray, np.ndarray], str]:
    """Images (n c h w) with labels, and what they are."""
    for place in (os.environ.get("SYNTHGEN_DATA"), HERE.parents[2] / "shared" / "data"):
        path = Path(place or ".") / "cifar10" / "train.parquet"
        if place and path.is_file():
            import pyarrow.parquet as pq
            from PIL import Image

            table = pq.read_table(path).slice(0, num)
            files = [Image.open(io.BytesIO(row["bytes"])).convert("RGB") for row in table.column("image").to_pylist()]
            pixels = np.stack([np.asarray(file).transpose(2, 0, 1) for file in files])
            return (pixels, np.array(table.column("label").to_pylist(), np.int64)), "CIFAR-10"
    rng = np.random.default_rng(0)
    coarse = rng.normal(128, 50, (num, 3, 5, 5))
    at = np.linspace(0, 3.999, 32)
    low, part = at.astype(int), at % 1
    lines = coarse[:, :, low] * (1 - part)[:, None] + coarse[:, :, low + 1] * part[:, None]
    smooth = lines[..., low] * (1 - part) + lines[..., low + 1] * part
    pixels = np.clip(smooth + rng.normal(0, 7, smooth.shape), 0, 255).astype(np.uint8)
    return (pixels, rng.integers(0, 10, num)), "smooth fields with noise, no photographs"


def machine() -> str:
    busy = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{processor()}{busy}, {platform.system()} {platform.machine()}, Python {platform.python_version()}"


def versions(python: Path | None) -> str:
    own = ("isal", "pyarrow", "orjson", "numpy", "pillow", "webdataset", "datasets")
    found = ", ".join(f"{name} {version(name)}" for name in own if find_spec("PIL" if name == "pillow" else name))
    if python is None:
        return found
    names = "'mosaicml-streaming', 'litdata'"
    code = f"from importlib.metadata import version as v; print(*(n + ' ' + v(n) for n in ({names})), sep=', ')"
    theirs = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    return f"{found}; in an environment of their own {theirs}"


@dataclass(frozen=True)
class Bench:
    """Runs rows by turns, each measurement in a process of its own."""

    python: Path | None
    scratch: Path
    repeats: int

    def rows(self, chosen: list[Row]) -> list[dict]:
        runs: dict[Row, list[dict]] = {row: [] for row in chosen}
        reasons: dict[Row, str] = {}
        for number in range(self.repeats):
            for row in chosen:
                if row in reasons:
                    continue
                reason = self.missing(row) or self.measure(row, runs[row])
                if reason:
                    reasons[row] = reason
                else:
                    speed = runs[row][-1]["samples"] / runs[row][-1]["cpu_s"]
                    print(f"{number + 1}/{self.repeats} {label(row)}: {speed:,.0f} /s", file=sys.stderr, flush=True)
        return [{"name": label(row), **(summary(runs[row]) if runs[row] else {"reason": reasons[row]})} for row in chosen]

    def missing(self, row: Row) -> str:
        if row.what in OWN_ENVIRONMENT:
            return "" if self.python else "not measured: give --env"
        module = row.what.split(",")[0]
        return "" if module not in PEERS or find_spec(module) else "not installed here: pip install 'synthgen[dev]'"

    def measure(self, row: Row, runs: list[dict]) -> str:
        python = str(self.python) if row.what in OWN_ENVIRONMENT else sys.executable
        done = self.worker(python, row.role, row.what, self.scratch / (row.folder or row.what).replace("|", "-"))
        if isinstance(done, str):
            return done
        runs.append(done)
        return ""

    def export(self, num: int, formats: str, threads: int) -> dict:
        done = self.worker(sys.executable, "export", f"{num}|{formats}|{threads}", self.scratch / "export")
        return {"num": num, "formats": formats, "threads": threads, **(done if isinstance(done, dict) else {"reason": done})}

    def overlap(self, device: str, quick: bool) -> dict:
        rounds = 1 if quick else 8 if device == "cpu" else 40
        done = self.worker(sys.executable, "overlap", f"{device}|{rounds}", self.scratch / "overlap", threads="")
        return {"device": device, **(done if isinstance(done, dict) else {"reason": done})}

    def worker(self, python: str, role: str, what: str, folder: Path, threads: str = "1") -> dict | str:
        """The answer of one process of shard_peers.py, or why there is none."""
        names = ("OMP_NUM_THREADS", "ARROW_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        more = dict.fromkeys(names, threads) if threads else {}
        more |= {"PYTHONPATH": str(HERE.parents[1]) if python == sys.executable else "", "HF_HUB_OFFLINE": "1"}
        command = [
            python,
            "-W",
            "ignore",
            str(HERE / "shard_peers.py"),
            role,
            what,
            str(self.scratch / "images.npz"),
            str(folder),
        ]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | more)
        if done.returncode:
            return f"failed: {(done.stderr.strip().splitlines() or [f'ended with {done.returncode}'])[-1][:200]}"
        return json.loads(done.stdout.splitlines()[-1])


def label(row: Row) -> str:
    foreign = row.role == "read" and row.folder not in ("", row.what)
    return f"{row.name} (shards of ours)" if foreign else row.name


def summary(runs: list[dict]) -> dict:
    """Medians over the runs; the encoder's share from the same process."""
    speeds = [run["samples"] / run["cpu_s"] for run in runs]
    found = {
        "runs": len(runs),
        "per_cpu_s": median(speeds),
        "least": min(speeds),
        "most": max(speeds),
        "per_wall_s": median(run["samples"] / run["wall_s"] for run in runs),
    }
    if "bytes" in runs[0]:
        found["bytes"] = runs[0]["bytes"] / runs[0]["samples"]
    if "encode_s" in runs[0]:
        found["encoder"] = median(run["encode_s"] / run["cpu_s"] for run in runs)
        found["needed"] = median((run["encode_s"] + run["hash_s"] + run["disk_s"]) / run["cpu_s"] for run in runs)
        found["encoder_per_s"] = median(run["samples"] / run["encode_s"] for run in runs)
    return found


def targets(result: dict) -> Iterator[tuple[str, str, float, float, float]]:
    """What was measured, against what, the ratio found, the least and the aim."""
    found = {row["name"]: row for row in result["rows"] if "per_cpu_s" in row}
    for ours, against, least, aim in TARGETS:
        if ours in found and against == "encoder":
            yield ours, "the encoder alone", found[ours]["encoder"], least, aim
        elif ours in found and against in found:
            yield ours, against, found[ours]["per_cpu_s"] / found[against]["per_cpu_s"], least, aim


def show(result: dict) -> None:
    """The tables, in Markdown."""
    found = {row["name"]: row for row in result["rows"]}
    result["targets"] = [dict(zip(("ours", "against", "ratio", "least", "aim"), t, strict=True)) for t in targets(result)]
    print("\n| | runs | samples / CPU s (least-most) | / wall s | bytes a sample | of the encoder's speed | of what is needed |")
    print("|---|---|---|---|---|---|---|")
    for name, row in found.items():
        print(f"| {name} | {line(row, found)} |")
    print("\n| ours | against | ratio | least | aim | |\n|---|---|---|---|---|---|")
    for t in result["targets"]:
        verdict = "aim met" if t["ratio"] >= t["aim"] else "met" if t["ratio"] >= t["least"] else "missed"
        print(f"| {t['ours']} | {t['against']} | {t['ratio']:.2f} | {t['least']:g} | {t['aim']:g} | {verdict} |")
    if "export" in result:
        print("\n| samples | formats | threads | CPU s | wall s | MiB before | peak MiB |\n|---|---|---|---|---|---|---|")
        for e in result["export"]:
            rest = (
                e.get("reason") or f"{e['cpu_s']:.2f} | {e['wall_s']:.2f} | {e['rss_before_mib']:.0f} | {e['rss_peak_mib']:.0f}"
            )
            print(f"| {e['num']:,} | {e['formats']} | {e['threads']} | {rest} |")
    if "overlap" in result:
        o = result["overlap"]
        said = o.get("reason") or (
            f"{o['samples']} samples alone {o['alone_s']:.2f} s, while others are encoded and written {o['beside_s']:.2f} s: "
            f"{o['slower']:+.1%} (fastest of 4 each)"
        )
        print(f"\ngeneration on {o['device']}: {said}")


def line(row: dict, found: dict[str, dict]) -> str:
    """The cells of one row behind its name."""
    if "reason" in row:
        return f"- | {row['reason']} | | | | "
    speed = f"{row['per_cpu_s']:,.0f} ({row['least']:,.0f}-{row['most']:,.0f})"
    size = f"{row['bytes']:,.0f}" if "bytes" in row else ""
    share = f"{row['encoder']:.2f} of {row['encoder_per_s']:,.0f}" if "encoder" in row else ""
    decoder = next(
        (found.get(f"read/decode/{p}") for p in PRESETS if row.get("name", "").startswith("read/") and p in row["name"]), None
    )
    if decoder and "per_cpu_s" in decoder and "decode" not in row["name"]:
        share = f"{row['per_cpu_s'] / decoder['per_cpu_s']:.2f} of {decoder['per_cpu_s']:,.0f}"
    needed = f"{row['needed']:.2f}" if "needed" in row else ""
    return f"{row['runs']} | {speed} | {row['per_wall_s']:,.0f} | {size} | {share} | {needed}"


if __name__ == "__main__":
    main()
