"""The metric engine beside its peers: seconds, memory, error, ratio to ours, and ours against the machine's own bound.

    .venv/bin/python scripts/bench/metrics.py [--env FOLDER] [--json FILE]     every case, medians of 5: about 100 minutes
    .venv/bin/python scripts/bench/metrics.py --only fid-10000x512             one case (any part of its name)
    .venv/bin/python scripts/bench/metrics.py --quick                          a check, no result; half a CPU minute
    .venv/bin/python scripts/bench/metrics.py --device cuda                    on one GPU: ours, and torchmetrics

On the CPU the figures are seconds of one thread (`time.process_time`), each measured in a fresh process on the same
float32 features, ours and the peers by turns. Memory is the peak of resident memory above the features. Errors are
against float64 references computed another way: relative for FID and KID, the largest difference among the four
figures for precision, recall, density and coverage (k = 5). The peers (`peers.txt`) run in an environment of their own,
made with `python -m venv` and pip in `--env` (kept) or in a temporary folder; ours runs in this interpreter.

The bound is the time that the arithmetic needed takes at the peak of the machine's matrix product (the faster of torch.mm
and oneDNN's, see `synthgen.metrics.products`), measured in the same run with one thread; the share of the bound is
bound / seconds. Operations needed, each a multiplication or an addition:

    fid, n > d    moments (n + m) d^2 in float32, one triangle of each; in float64: Cholesky d^3 / 3, L' S L as two
                  triangular products 2 d^3, its reduction to tridiagonal form 4 d^3 / 3
    fid, n <= d   rows' product 2 n m d in float32, its reduction to bidiagonal form 8 n^3 / 3 in float64 (n = m)
    prdc, kid     2 d (n^2 / 2 + m^2 / 2 + n m) in float32: one triangle within each set, all pairs between them
    kid, small d  or the third moments (n + m) d^3 / 3 in float32, each product of three features once, where that is less

What isn't a matrix product (the k smallest, cubes, comparisons) isn't in the bound. `Share of peak in products` sets
the same operations against the seconds that ours spends within matrix products (one more run, which times each operation).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from machine import processor  # beside this script
from peers import CONTENDERS

HERE = Path(__file__).resolve().parent
PINS = HERE / "peers.txt"
PAIR_BYTES = 20
"""What the peers that keep all pairs take at their peak: 13-20 bytes a pair, measured at n = 10,000."""
ALL_PAIRS = ("prdc", "torchmetrics, all rows", "torch-fidelity, all rows", "clean-fid, all rows")
MODULES = {
    "prdc": "prdc",
    "faiss": "faiss",
    "scikit-learn": "sklearn",
    "torchmetrics": "torchmetrics",
    "torch-fidelity": "torch_fidelity",
    "clean-fid": "cleanfid",
    "pytorch-fid": "pytorch_fid",
}
GIVES = {
    "prdc": {"torch-fidelity": "precision, recall", "faiss": "coverage alone", "scikit-learn": "coverage alone"},
    "kid": dict.fromkeys(("torchmetrics", "torch-fidelity", "clean-fid"), "100 subsets of 1,000: not the full estimate"),
}
DISTANCE_SHARE = 0.6


@dataclass(frozen=True)
class Case:
    """n real and n synthetic features of width d under one metric."""

    metric: str
    n: int
    d: int
    at_least: float | None = None  # times the fastest of `against` that ours is to be
    against: tuple[str, ...] = ()
    at_most_mib: float | None = None
    referenced: bool = True  # whether the float64 reference is affordable

    @property
    def name(self) -> str:
        return f"{self.metric}-{self.n}x{self.d}"

    def flops(self) -> tuple[float, float, float]:
        """Operations needed: products in float32, in float64, and decompositions; see the head of this file."""
        n, d = float(self.n), float(self.d)
        if self.metric != "fid":
            return min(4 * n * n * d, 2 * n * d**3 / 3 if self.metric == "kid" else math.inf), 0.0, 0.0
        if n <= d:
            return 2 * n * n * d, 0.0, 8 / 3 * n**3
        return 2 * n * d * d, 2 * d**3, 5 / 3 * d**3


FID_PEERS = ("torchmetrics", "torch-fidelity", "clean-fid", "pytorch-fid")
CPU = (
    Case("fid", 500, 2048, 12, FID_PEERS),
    Case("fid", 1000, 2048, 12, FID_PEERS),
    Case("fid", 10_000, 512),
    Case("fid", 10_000, 2048),
    Case("fid", 50_000, 2048, 2.2, FID_PEERS),
    Case("prdc", 10_000, 512),
    Case("prdc", 10_000, 2048, 3, ("prdc", "torch-fidelity")),
    Case("prdc", 50_000, 64, 16, ("torch-fidelity",), at_most_mib=200),
    Case("kid", 10_000, 64),
    Case("kid", 10_000, 512),
    Case("kid", 10_000, 2048),
    Case("kid", 50_000, 64, at_most_mib=50_000 * 1024 * 8 / 2**20),
    Case("kid", 50_000, 2048, at_most_mib=50_000 * 1024 * 8 / 2**20, referenced=False),
)
QUICK = tuple(Case(metric, 2000, 64) for metric in ("fid", "prdc", "kid"))
GPU = tuple(
    Case(metric, n, d, referenced=False) for n, d in ((50_000, 2048), (1_000_000, 512)) for metric in ("fid", "kid", "prdc")
)


class Failed(Exception):
    """A measurement that gave no result, with the reason."""


def main() -> None:
    asked = arguments()
    gpu = asked.device != "cpu"
    cases = [case for case in (GPU if gpu else QUICK if asked.quick else CPU) if asked.only in case.name]
    if not cases:
        sys.exit(f"--only {asked.only}: no such case; there are {', '.join(case.name for case in (GPU if gpu else CPU))}")
    if gpu and asked.quick:
        sys.exit("--quick is a check on the CPU: leave --device away, or give --only for one case on the GPU")
    with tempfile.TemporaryDirectory(prefix="bench-metrics-") as temporary:
        scratch = asked.scratch or Path(temporary)
        own = gpu or (asked.quick and not (asked.env and asked.env.exists()))  # then the peers of this environment
        python = Path(sys.executable) if own else environment(asked.env or scratch / "env")
        result: dict = {"machine": machine(asked.device), "versions": versions(python), "device": asked.device}
        print("\n".join(f"{key}: {value}" for key, value in (*result["machine"].items(), ("versions", result["versions"]))))
        bench = Bench(python, scratch, asked.device, 1 if asked.quick else asked.repeats, asked.long)
        result["cases"] = []
        for case in cases:
            result["cases"].append(bench.case(case))
            if asked.json:  # after each case: the whole run is long
                asked.json.write_text(json.dumps(result, indent=2) + "\n")
    show(result)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", type=Path, help="folder of the peers' environment, made if it doesn't exist")
    parser.add_argument(
        "--scratch", type=Path, help="folder for the features (1 GB; 5 GB for the GPU), kept; a temporary one if not given"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--long", type=float, default=100, help="what takes more seconds than this is measured 3 times at most")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="small cases, once; the peers at hand if --env isn't there")
    return parser.parse_args()


# The peers' environment -------------------------------------------------------------------------------------------------


def environment(folder: Path, pins: Path = PINS, what: str = "the peers' environment", size: str = "1.3 GB") -> Path:
    """Python of an environment with what is pinned, which is made if it isn't there."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    done = folder / pins.name
    if not (done.exists() and done.read_text() == pins.read_text()):
        print(f"making {what} in {folder} (about {size})", flush=True)
        venv.create(folder, with_pip=True)
        wanted = [line for line in pins.read_text().splitlines() if line and not line.startswith("#")]
        plain, alone = ([pin.split("#")[0].strip() for pin in wanted if ("without-dependencies" in pin) == w] for w in (0, 1))
        for options in (plain, ["--no-deps", *alone]):
            got = subprocess.run([python, "-m", "pip", "install", "-q", *options], capture_output=True, text=True)
            if got.returncode:
                sys.exit(f"the peers could not be installed: {got.stderr.strip()[-2000:]}")
        done.write_text(pins.read_text())
    return python


def versions(python: Path) -> str:
    """Ours and the peers' versions; torch is to be the same on both sides."""
    names = ["torch", "numpy", "scipy", *MODULES]
    code = f"""
from importlib.metadata import PackageNotFoundError, version
for name in {[*names[:3], *(n + "-cpu" if n == "faiss" else n for n in names[3:])]}:
    try: print(name, version(name), end=", ")
    except PackageNotFoundError: pass
"""
    theirs = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip(", ")
    where = "this environment" if python == Path(sys.executable) else "an environment of their own"
    return f"ours with Python {platform.python_version()}, torch {version('torch')}; peers in {where}: {theirs}"


def machine(device: str) -> dict[str, str]:
    about = {"machine": f"{processor()}, {memory_gib():.0f} GiB, {platform.system()} {platform.machine()}"}
    if device != "cpu":
        import torch

        if not torch.cuda.is_available():
            sys.exit(f"--device {device}: torch finds no CUDA device here; leave it away to measure on the CPU")
        about["gpu"] = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, TF32 off"
    return about


def memory_gib() -> float:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


# Measuring --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """Runs cases, each measurement in a process of its own."""

    python: Path
    scratch: Path
    device: str
    repeats: int
    long: float

    def case(self, case: Case) -> dict:
        """All rows of a case: ours, the peers by turns with it, and ours against the bound."""
        folder = self.scratch / f"{case.n}x{case.d}"
        if not (folder / "synthetic.npy").exists():
            self.worker(sys.executable, "features", str(case.n), str(case.d), str(folder))
        measured: dict[str, list[dict]] = {}
        reasons: dict[str, str] = {}
        peaks = []
        for number in range(self.repeats):
            peaks.append(self.worker(sys.executable, "peak", str(case.d)))
            for contender in self.contenders(case.metric):
                runs = measured.setdefault(contender, [])
                if contender in reasons or (number >= 3 and runs[0]["s"] > self.long):
                    continue
                try:
                    self.can_run(case, contender)
                    python = sys.executable if contender == "ours" else self.python
                    runs.append(self.worker(python, "measure", case.metric, contender, str(folder)))
                    print(
                        f"{case.name} {number + 1}/{self.repeats} {contender}: {runs[-1]['s']:.3g} s", file=sys.stderr, flush=True
                    )
                except Failed as why:
                    reasons[contender] = str(why)
        reference = None
        if case.referenced:
            reference = self.worker(sys.executable, "measure", case.metric, "reference", str(folder))["values"]
        rows: list[dict] = [
            {"contender": contender, "gives": GIVES.get(case.metric, {}).get(contender, "all"), **summary(runs, reference)}
            if runs
            else {"contender": contender, "reason": reasons[contender]}
            for contender, runs in measured.items()
        ]
        about: dict = {"case": case.name, "reference": reference, "rows": rows}
        if measured["ours"]:
            peak = {name: max(p[name] for p in peaks) for name in peaks[0]}
            in_products = self.worker(sys.executable, "kinds", case.metric, "ours", str(folder))
            about |= {"peak_flops": peak, "bound": bound(case, peak, rows[0]["s"], in_products)}
            about["targets"] = list(targets(case, rows, about["bound"]))
        return about

    def contenders(self, metric: str) -> Iterator[str]:
        for contender in CONTENDERS[metric]:
            if contender != "reference" and (self.device == "cpu" or contender in ("ours", "torchmetrics")):
                yield contender

    def can_run(self, case: Case, contender: str) -> None:
        needed = PAIR_BYTES * case.n**2 / 2**30
        if contender in ALL_PAIRS and needed > 0.8 * memory_gib():
            raise Failed(f"not run: it keeps n x n values, about {needed:.0f} GiB here")
        module = MODULES.get(contender.split(",")[0])
        if module and self.python == Path(sys.executable) and find_spec(module) is None:
            raise Failed("not installed here; give --env")

    def worker(self, python: str | Path, *arguments: str) -> dict:
        """The answer of one process of peers.py, with one thread on the CPU."""
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        paths = {"PYTHONPATH": str(HERE.parents[1])} if python == sys.executable else {"PYTHONPATH": ""}
        device = [] if arguments[0] == "features" else ["--device", self.device]
        command = [str(python), "-W", "ignore", str(HERE / "peers.py"), *arguments, *device]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | paths | threads)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"ended with {done.returncode} (-9: out of memory)"])[-1]
            if "measure" in arguments and "reference" not in arguments:
                raise Failed(f"failed: {last[:200]}")
            sys.exit(f"{' '.join(arguments)}: {last}")
        return json.loads(done.stdout.splitlines()[-1])


def summary(runs: list[dict], reference: dict[str, float] | None) -> dict:
    """Medians over the runs, the values of the last, and their error."""
    seconds = [run["s"] for run in runs]
    memory = [run["peak_mib"] for run in runs if run["peak_mib"] is not None]
    values = runs[-1]["values"]
    error = None
    if reference:
        error = max(
            abs(value - reference[name]) / (abs(reference[name]) if name in ("fid", "kid") else 1)
            for name, value in values.items()
        )
    return {
        "runs": len(runs),
        "s": median(seconds),
        "s_least": min(seconds),
        "s_most": max(seconds),
        "peak_mib": median(memory) if memory else None,
        "values": values,
        "error": error,
    }


def bound(case: Case, peak: dict[str, float], seconds: float, kinds: dict[str, float]) -> dict[str, float]:
    """Seconds that the operations needed take at the peak, and what share of ours that is."""
    single, double, decompositions = case.flops()
    products = single / peak["float32"] + double / peak["float64"]
    at_peak = products + decompositions / peak["float64"]
    at_tile_peak = single / peak["float32_tile"] + double / peak["float64"]
    return {
        "s": at_peak,
        "share": at_peak / seconds,
        "share_in_products": products / kinds["products"] if kinds["products"] else 0.0,
        "share_of_tile_peak": at_tile_peak / kinds["products"] if kinds["products"] else 0.0,
        **{f"{kind}_s": spent for kind, spent in kinds.items()},
    }


def targets(case: Case, rows: list[dict], bounds: dict[str, float]) -> Iterator[dict]:
    """What was aimed at, what was found, and whether it is met."""
    ours = rows[0]
    if case.at_least:
        rivals = [(row["s"], row["contender"]) for row in rows if row["contender"] in case.against and "s" in row]
        if rivals:
            seconds, fastest = min(rivals)
            yield target(f"at least {case.at_least:g}x the fastest exact peer ({fastest})", seconds / ours["s"], case.at_least)
    if case.at_most_mib and ours["peak_mib"] is not None:
        yield target(f"at most {case.at_most_mib:.0f} MiB above the features", ours["peak_mib"], case.at_most_mib, below=True)
    if case.metric != "fid":
        yield target("share of the GEMM peak in the distance part", bounds["share_in_products"], DISTANCE_SHARE)


def target(aim: str, found: float, limit: float, below: bool = False) -> dict:
    met = found <= limit if below else found >= limit
    return {"target": aim, "limit": limit, "found": found, "met": met, "missed_by": 0.0 if met else abs(found / limit - 1)}


# Tables -----------------------------------------------------------------------------------------------------------------


def show(result: dict) -> None:
    """The tables, in Markdown."""
    unit = "CPU s" if result["device"] == "cpu" else "GPU s"
    print(f"\n| case | package | runs | {unit} (least-most) | ratio to ours | MiB above the features | error | gives |")
    print("|---|---|---|---|---|---|---|---|")
    for case in result["cases"]:
        ours = case["rows"][0].get("s")
        for row in case["rows"]:
            print(f"| {case['case']} | {row['contender']} | {line(row, ours)} |")
    found = [case for case in result["cases"] if "bound" in case]
    print(
        "\n| case | ours, s | bound, s | share of the bound | products / decompositions / rest, s | share of peak in products |"
    )
    print("|---|---|---|---|---|---|")
    for case in found:
        at = case["bound"]
        kinds = " / ".join(f"{at[f'{kind}_s']:.3g}" for kind in ("products", "decompositions", "rest"))
        shares = f"{at['share_in_products']:.0%} ({at['share_of_tile_peak']:.0%} of the peak at this width)"
        print(f"| {case['case']} | {case['rows'][0]['s']:.3g} | {at['s']:.3g} | {at['share']:.0%} | {kinds} | {shares} |")
    print("\n| case | target | found | |\n|---|---|---|---|")
    for case in found:
        for aim in case["targets"]:
            verdict = "met" if aim["met"] else f"missed by {aim['missed_by']:.0%}"
            print(f"| {case['case']} | {aim['target']} ({aim['limit']:g}) | {aim['found']:.3g} | {verdict} |")
    peaks = (
        {name: max(case["peak_flops"][name] for case in found) / 1e9 for name in ("float32", "torch.mm", "float64")}
        if found
        else {}
    )
    print("\nGEMM peak, one thread of the CPU or the GPU: " + ", ".join(f"{name} {gf:.0f} GFLOP/s" for name, gf in peaks.items()))


def line(row: dict, ours: float | None) -> str:
    """The cells of one row behind its package."""
    if "reason" in row:
        return f"- | {row['reason']} | | | | "
    spread = f"{row['s']:.3g}" + (f" ({row['s_least']:.3g}-{row['s_most']:.3g})" if row["runs"] > 1 else "")
    ratio = f"{row['s'] / ours:.2f}" if ours else "-"
    memory = "-" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
    error = "-" if row["error"] is None or "subsets" in row["gives"] else f"{row['error']:.1g}"
    return f"{row['runs']} | {spread} | {ratio} | {memory} | {error} | {row['gives']}"


if __name__ == "__main__":
    main()
