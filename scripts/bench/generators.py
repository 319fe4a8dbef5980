"""The diffusion generator beside its peers: images/s in training, in sampling and from a checkpoint to disk, by turns.

    .venv/bin/python scripts/bench/generators.py [--env FOLDER] [--json FILE]    every case, medians of 5: about 15 minutes
    .venv/bin/python scripts/bench/generators.py --only train/digits             one part of one case (any part of its name)
    .venv/bin/python scripts/bench/generators.py --quick                         a check, no result; under a minute
    .venv/bin/python scripts/bench/generators.py --device cuda                   on one GPU: a U-Net of 35M parameters, bf16

All contenders run diffusers' UNet2DModel of one configuration, at one batch size and one number of network calls: ours;
diffusers (its unconditional training script's loop; DDIMPipeline; DPM-Solver++), lucidrains' denoising-diffusion-pytorch
(its GaussianDiffusion and its Trainer's loop around that same network; what it imports from torchvision is stood in for,
and never called). Peers get decoded, normalised images from memory and are told no labels; ours also augments, conditions
on label and augmentation, keys its noise, and averages its weights.

On the CPU a figure is seconds of one thread (`time.process_time`), each contender waiting in a process of its own, and all
of them taking turns; `cores` are cases in wall time with a thread on each core. On a GPU it is wall time after a synchronise.

The bound is the bare network on fixed tensors: forward, backward and a fused Adam for training, as many forward passes as
there are network calls for sampling. `bare` is the network as ours runs it (its dropout, memory format and memory
settings); `bare, as shipped` is diffusers' module as it comes. Overhead is bare / ours - 1 in images/s. `waits` is the share
of training in which the step waits for its batch: held in memory, `streaming` from a file, `cold` from one that the page
cache forgets before each batch. lucidrains is installed from `generator_peers.txt` into `--env` (kept) or
a temporary folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

from generator_peers import CONTENDERS  # beside this script
from machine import machine

HERE = Path(__file__).resolve().parent
PINS = HERE / "generator_peers.txt"
BF16 = ("ours", "bare")
"""Contenders that are also shown in bfloat16 where a case asks for it: for the peers it isn't the default either."""

STREAMING = ("ours", "ours, streaming", "ours, streaming, cold")


@dataclass(frozen=True)
class Case:
    """A network, its images, and what is done with it."""

    kind: str  # train, sample or disk
    name: str
    px: int
    channels: int
    width: int
    mults: tuple[int, ...]
    batch: int
    unit: int = 1  # training steps timed at once
    images: int = 0  # sampled at once
    calls: int = 12  # network calls a sample
    layers: int = 1
    attention: bool = False
    dropout: float = 0.1
    threads: int = 1
    precision: str = "32-true"
    compile: bool = False
    device: str = "cpu"
    contenders: tuple[str, ...] = ()  # all if none are named
    also_bf16: bool = False
    scratch: str = ""

    @property
    def full_name(self) -> str:
        return f"{self.kind}/{self.name}"

    @property
    def images_per_unit(self) -> int:
        return self.batch * self.unit if self.kind == "train" else self.images


def cpu_cases() -> tuple[Case, ...]:
    digits = {"px": 8, "channels": 1, "width": 32, "mults": (1, 2)}
    photos = {"px": 32, "channels": 3, "width": 64, "mults": (1, 2, 2)}
    cores = os.cpu_count() or 1
    no_dropout = ("ours", "bare", "bare, as shipped", "diffusers", "lucidrains")  # which is the peers' default
    ours = ("ours", "ours, threads within operations", "diffusers DDIM", "diffusers DPM-Solver++")
    return (
        Case("train", "digits", **digits, batch=64, unit=20),
        Case("train", "32px", **photos, batch=16, unit=2),
        Case("train", "32px-no-dropout", **photos, batch=16, unit=2, dropout=0.0, contenders=no_dropout),
        Case("sample", "digits", **digits, batch=64, images=192, also_bf16=True),
        Case("sample", "digits-16", **digits, batch=16, images=128),
        Case("sample", "32px", **photos, batch=16, images=16, also_bf16=True),
        Case("sample", "digits-cores", **digits, batch=64, images=64 * cores, threads=cores, contenders=ours),
        Case("disk", "digits", **digits, batch=64, images=256, also_bf16=True),
        Case("disk", "32px", **photos, batch=16, images=32, also_bf16=True),
    )


def quick_cases(device: str) -> tuple[Case, ...]:
    tiny = {"px": 8, "channels": 1, "width": 16, "mults": (1, 2), "batch": 16, "device": device}
    train = (*STREAMING, "bare", "diffusers", "lucidrains")
    return (
        Case("train", "quick", **tiny, unit=5, contenders=train),
        Case("sample", "quick", **tiny, images=32, calls=4, contenders=("ours", "bare", "diffusers DDIM")),
        Case("disk", "quick", **tiny, images=32, calls=4, contenders=("ours", "diffusers, npy")),
    )


def gpu_cases() -> tuple[Case, ...]:
    unet = {"px": 32, "channels": 3, "width": 128, "mults": (1, 2, 2, 2), "layers": 2, "attention": True, "device": "cuda"}
    few = ("ours", "bare")
    train = [
        Case(
            "train", f"35M-{batch}-{precision}{'-compiled' * compiled}", **unet, batch=batch, unit=20, precision=precision,
            compile=compiled, contenders=() if (batch, compiled) == (512, False) else few,
        )
        for precision, compiled in (("32-true", False), ("bf16-mixed", False), ("bf16-mixed", True))
        for batch in (128, 256, 512, 1024)
    ]  # fmt: skip
    sample = [
        Case(
            "sample", f"35M-{batch}{'-compiled' * compiled}", **unet, batch=batch, images=batch, calls=18, precision="bf16-mixed",
            compile=compiled, contenders=() if (batch, compiled) == (512, False) else few,
        )
        for compiled in (False, True)
        for batch in (64, 256, 512, 1024)
    ]  # fmt: skip
    disk = Case("disk", "35M", **unet, batch=512, images=2048, calls=18, precision="bf16-mixed")
    return (*train, *sample, disk)


def main() -> None:
    asked = arguments()
    gpu = asked.device == "cuda"
    every = quick_cases(asked.device) if asked.quick else gpu_cases() if gpu else cpu_cases()
    cases = [case for case in every if asked.only in case.full_name]
    if not cases:
        sys.exit(f"--only {asked.only}: no such case; there are {', '.join(case.full_name for case in every)}")
    with tempfile.TemporaryDirectory(prefix="bench-generators-") as scratch:
        peers = asked.env or Path(scratch) / "peers"
        installed = (not asked.quick or (peers / PINS.name).exists()) and install(peers)
        result: dict = {"machine": machine(asked.device), "versions": versions(peers), "device": asked.device, "cases": []}
        print("\n".join(f"{key}: {value}" for key, value in (*result["machine"].items(), ("versions", result["versions"]))))
        if gpu:
            result["peak_bf16_tflops"] = peak()
            print(f"peak: {result['peak_bf16_tflops']:.0f} TFLOP/s, bf16 product of 8192 x 8192")
        for case in cases:
            case = dataclasses.replace(case, scratch=scratch)
            result["cases"].append(measure(case, peers if installed else None, 1 if asked.quick else asked.repeats))
            if gpu:
                result["cases"][-1] |= utilisation(case, result["cases"][-1], result["peak_bf16_tflops"])
            if asked.json:  # after each case: the whole run is long
                asked.json.write_text(json.dumps(result, indent=2) + "\n")
        result["targets"] = [] if asked.quick else list(targets(result, gpu))
        if asked.json:
            asked.json.write_text(json.dumps(result, indent=2) + "\n")
    show(result)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", type=Path, help="folder for lucidrains' package, made if it doesn't exist")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="a tiny network, once; lucidrains only if --env has it")
    return parser.parse_args()


# Where it runs ------------------------------------------------------------------------------------------------------------


def install(folder: Path) -> bool:
    """The peers that aren't ours too, in a folder; ours isn't touched. False where there is no network."""
    done = folder / PINS.name
    if not (done.exists() and done.read_text() == PINS.read_text()):
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--upgrade", "--target", folder, "-r", PINS]
        got = subprocess.run(command, capture_output=True, text=True)
        if got.returncode:
            print(f"lucidrains could not be installed: {got.stderr.strip()[-500:]}", file=sys.stderr)
            return False
        done.write_text(PINS.read_text())
    return True


def versions(peers: Path) -> str:
    names = ["torch", "diffusers", "pytorch-lightning", "numpy"]
    ours = ", ".join(f"{name} {version(name)}" for name in names)
    pins = (
        [line for line in PINS.read_text().splitlines() if line.startswith("denoising")] if (peers / PINS.name).exists() else []
    )
    return f"Python {platform.python_version()}, {ours}, {', '.join(pins) or 'without denoising-diffusion-pytorch'}"


def peak() -> float:
    """TFLOP/s of a large product in bfloat16: the best of ten."""
    import torch

    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(12):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        torch.mm(a, b)
        end.record()
        torch.cuda.synchronize()
        best = min(best, start.elapsed_time(end) / 1e3)
    return 2 * 8192**3 / best / 1e12


# Measuring ----------------------------------------------------------------------------------------------------------------


class Contender:
    """A process that does one unit of work whenever it is its turn."""

    def __init__(self, case: Case, name: str, peers: Path | None) -> None:
        self.name, self.runs, self.reason = name, [], ""
        if name == "lucidrains" and peers is None:
            self.reason = "not installed; give --env"
            return
        plain = name.removesuffix(", bf16")
        given = dataclasses.asdict(case) | ({"precision": "bf16-mixed"} if name != plain else {})
        paths = [str(HERE.parents[1]), *([str(peers)] if name == "lucidrains" else [])]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(case.threads))
        self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115  (open as long as the process)
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(HERE / "generator_peers.py"), case.kind, plain, json.dumps(given)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said, text=True,
            env=os.environ | threads | {"PYTHONPATH": os.pathsep.join(paths)},
        )  # fmt: skip

    def turn(self, counts: bool) -> None:
        """One unit; if it fails, the reason is kept and there are no more turns."""
        if self.reason:
            return
        to, answers = self.process.stdin, self.process.stdout
        assert to is not None
        assert answers is not None
        with suppress(BrokenPipeError):
            to.write("go\n")
            to.flush()
        for line in answers:
            if line.startswith("{"):
                if counts:
                    self.runs.append(json.loads(line))
                return
        self.said.seek(0)
        last = (self.said.read().strip().splitlines() or ["ended without a word"])[-1]
        self.reason = f"failed: {last[:200]}"

    def end(self) -> None:
        if not self.reason:
            self.process.communicate("end\n")


def measure(case: Case, peers: Path | None, repeats: int) -> dict:
    """All contenders of a case, by turns: a first turn that doesn't count, then `repeats` that do."""
    names = [name for name in CONTENDERS[case.kind] if not case.contenders or name in case.contenders]
    names += [f"{name}, bf16" for name in BF16 if case.also_bf16 and name in names]
    contenders = [Contender(case, name, peers) for name in names]
    for number in range(repeats + 1):
        for contender in contenders[:: -1 if number % 2 else 1]:
            contender.turn(counts=number > 0)
        print(f"{case.full_name}: {number}/{repeats}", file=sys.stderr, flush=True)
    for contender in contenders:
        contender.end()
    clock = "wall_s" if case.device == "cuda" or case.threads > 1 else "cpu_s"
    return {"case": case.full_name, "settings": dataclasses.asdict(case), "clock": clock,
            "rows": [row(case, contender, clock) for contender in contenders]}  # fmt: skip


def row(case: Case, contender: Contender, clock: str) -> dict:
    if not contender.runs:
        return {"contender": contender.name, "reason": contender.reason}
    seconds = [run[clock] for run in contender.runs]
    per_image = median(seconds) / case.images_per_unit
    return {
        "contender": contender.name,
        "runs": len(seconds),
        "images_per_s": 1 / per_image,
        "ms_per_image": 1e3 * per_image,
        "s": seconds,
        "waits": median(run["wait_s"] / run["wall_s"] for run in contender.runs),
    }


def utilisation(case: Case, found: dict, peak_tflops: float) -> dict:
    """Model FLOPs utilisation of ours and of the bare network: counted FLOPs (three forward passes a step) at the peak."""
    import torch
    from generator_peers import Case as Built
    from torch.utils.flop_counter import FlopCounterMode

    unet = Built(dataclasses.asdict(dataclasses.replace(case, device="cpu"))).unet()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(torch.zeros(1, case.channels, case.px, case.px), 1)
    flops = counter.get_total_flops() * (3 if case.kind == "train" else case.calls)
    shares = {r["contender"]: flops * r["images_per_s"] / peak_tflops / 1e12 for r in found["rows"] if "images_per_s" in r}
    return {"parameters": sum(p.numel() for p in unet.parameters()), "flops_per_image": flops, "mfu": shares}


# Tables -------------------------------------------------------------------------------------------------------------------


def targets(result: dict, gpu: bool) -> Iterator[dict]:
    """What was aimed at, what was found, and whether it is met."""
    limits = {"train": 0.05, "sample": 0.03}
    for case in result["cases"]:
        kind = case["settings"]["kind"]
        speed = {r["contender"]: r["images_per_s"] for r in case["rows"] if "images_per_s" in r}
        if "ours" not in speed:
            continue
        ours = speed["ours"]
        peers = {name: s for name, s in speed.items() if name.startswith(("diffusers", "lucidrains"))}
        for name in ("bare", "bare, as shipped"):
            if name in speed and not gpu:
                yield target(case, f"overhead over {name} at most", speed[name] / ours - 1, limits[kind], below=True)
        if "ours, bf16" in speed and "bare, bf16" in speed:
            over = speed["bare, bf16"] / speed["ours, bf16"] - 1
            yield target(case, "overhead over bare, bf16, at most", over, limits[kind], below=True)
        if peers:
            fastest = max(peers, key=lambda name: peers[name])
            least = 1.5 if kind == "disk" else 1.0
            yield target(case, f"times the fastest peer ({fastest}), at least", ours / peers[fastest], least)
            if kind == "disk" and "ours, bf16" in speed:
                yield target(case, "... and in bf16-mixed, at least", speed["ours, bf16"] / peers[fastest], least)
    if gpu:
        best = {kind: max((c for c in result["cases"] if c["settings"]["kind"] == kind), default=None,
                          key=lambda c: next((r.get("images_per_s", 0) for r in c["rows"] if r["contender"] == "ours"), 0))
                for kind in ("train", "sample")}  # fmt: skip
        if best["train"]:
            speed = next(r["images_per_s"] for r in best["train"]["rows"] if r["contender"] == "ours")
            yield target(best["train"], "training images/s at the best setting, at least", speed, 3000)
            yield target(best["train"], "model FLOPs utilisation, at least", best["train"]["mfu"]["ours"], 0.35)
        if best["sample"]:
            bare = max(r["images_per_s"] for c in result["cases"] if c["settings"]["kind"] == "sample" for r in c["rows"]
                       if r["contender"] == "bare" and "images_per_s" in r)  # fmt: skip
            speed = next(r["images_per_s"] for r in best["sample"]["rows"] if r["contender"] == "ours")
            yield target(best["sample"], "share of the forward-only rate at the best batch, at least", speed / bare, 0.6)


def target(case: dict, aim: str, found: float, limit: float, below: bool = False) -> dict:
    return {
        "case": case["case"],
        "target": aim,
        "limit": limit,
        "found": found,
        "met": found <= limit if below else found >= limit,
    }


def show(result: dict) -> None:
    """The tables, in Markdown."""
    print("\n| case | contender | runs | images/s (least-most) | ms an image | time, ours = 1 | share of the bound | waits |")
    print("|---|---|---|---|---|---|---|---|")
    for case in result["cases"]:
        speed = {r["contender"]: r["images_per_s"] for r in case["rows"] if "images_per_s" in r}
        for r in case["rows"]:
            if "reason" in r:
                print(f"| {case['case']} | {r['contender']} | - | {r['reason']} | | | | |")
                continue
            name, n = r["contender"], case["settings"]["images"] or case["settings"]["batch"] * case["settings"]["unit"]
            spread = f"{r['images_per_s']:.4g} ({n / max(r['s']):.4g}-{n / min(r['s']):.4g})"
            against = f"{speed['ours'] / r['images_per_s']:.2f}" if "ours" in speed else "-"
            bound = speed.get("bare, bf16" if name.endswith("bf16") else "bare")
            share = f"{r['images_per_s'] / bound:.1%}" if bound else "-"
            waits = f"{r['waits']:.2%}" if name.startswith("ours") and case["settings"]["kind"] == "train" else ""
            print(
                f"| {case['case']} | {name} | {r['runs']} | {spread} | {r['ms_per_image']:.3g} | {against} | {share} | {waits} |"
            )
        if "mfu" in case:
            shares = ", ".join(f"{name} {share:.1%}" for name, share in case["mfu"].items())
            print(f"| {case['case']} | {case['parameters'] / 1e6:.1f}M parameters; FLOPs utilisation: {shares} | | | | | | |")
    if result["targets"]:
        print("\n| case | target | limit | found | |\n|---|---|---|---|---|")
    for aim in result["targets"]:
        verdict = "met" if aim["met"] else "missed"
        print(f"| {aim['case']} | {aim['target']} | {aim['limit']:g} | {aim['found']:.3g} | {verdict} |")


if __name__ == "__main__":
    main()
