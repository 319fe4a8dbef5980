"""A whole run at its smallest, stage by stage, and what of its folders has to be the same whenever it is made again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from synthgen import storage
from synthgen.config.load import load
from synthgen.jobs import runs
from synthgen.jobs.exports import Decision, export
from synthgen.jobs.gains import Contest, Judged, gain, select
from synthgen.jobs.gates import features, gate, load_gate
from synthgen.jobs.generators import generate, train
from synthgen.jobs.order import Order
from synthgen.jobs.real import Split, audit
from synthgen.types import GainReport
from synthgen.workers import Pool

SMALLEST = [
    "models=[diffusion]",  # 150 steps, enough for a few samples to pass
    "generators.diffusion.sampling_steps=4",
    "looks.times=2",
    "features.steps=4",
    "features.defect_steps=3",
    "features.folds=2",
    "classifier.steps=4",
    "gate.planted=5",
    "gate.false_rejection=0.4",
    "generate.num=150",
    "gain.arms=[real_aug,synthetic_gated]",
    "gain.seeds=2",
    "gain.select_seeds=2",
    "export.formats=[webdataset,parquet,folder,npz,mds]",
    "export.shard_size=20",
    "workers=1",
    "tracking=off",
]
MEASURED = {"seconds", "device_seconds", "look_seconds", "at", "timing", "advice"}
"""Keys of JSON files whose values are measured, or follow from what is."""
TOLD = {"commands", "facts", "gain", "provenance", "run", "files"}
"""Those of the report and of run.json that tell measured times or the folder's name."""
MODEL = "diffusion"


def order(*more: str) -> Order:
    """Settings of the smallest run."""
    return Order(load("digits-smoke", [*SMALLEST, *more]))


def small(stage: str) -> Order:
    """The settings with which a stage is spoilt: a training of a few steps, else the same."""
    return order("generators.diffusion.steps=6") if stage == "train" else order()


def _judged(order: Order, out: Path) -> tuple[Split, dict[str, tuple[Path, Path]]]:
    return Split.open(out), {MODEL: (out / "candidates" / MODEL, out / "gate" / MODEL)}


def _select(order: Order, out: Path) -> None:
    split, folders = _judged(order, out)
    with Pool(1) as pool:
        select(order, split, folders, out / "select", pool)


def _gain(order: Order, out: Path) -> None:
    split, folders = _judged(order, out)
    judged = Judged.of(order, split, MODEL, *folders[MODEL])
    with Pool(1) as pool:
        gain(order, Contest.of(order, split, judged, (), out / "features", 0.0), out / "gain", pool)


def _report_of(out: Path) -> GainReport:
    return GainReport.from_json(storage.read_json(out / "gain" / "gain.json"))


def _export(order: Order, out: Path) -> None:
    split, folders = _judged(order, out)
    verdict, reasons = runs.conclude({MODEL: load_gate(folders[MODEL][1])}, MODEL, _report_of(out))
    export(order, split, *folders[MODEL], out / "shards", Decision(verdict, tuple(reasons), _report_of(out)))


def _conclude(order: Order, out: Path) -> None:
    _, folders = _judged(order, out)
    runs._conclude(order, out, {MODEL: load_gate(folders[MODEL][1])}, MODEL, _report_of(out))


def _features(order: Order, out: Path) -> None:
    with Pool(1) as pool:
        features(order, Split.open(out), out / "features", pool)


def _train(order: Order, out: Path) -> None:
    train(order, Split.open(out), out / "features", MODEL, out / "train" / MODEL)


STAGES: dict[str, Callable[[Order, Path], Any]] = {
    "audit": audit,
    "features": _features,
    "train": _train,
    "generate": lambda order, out: generate(order, Split.open(out), out / "train" / MODEL, out / "candidates" / MODEL),
    "gate": lambda order, out: gate(
        order, Split.open(out), out / "features", out / "candidates" / MODEL, out / "gate" / MODEL, MODEL
    ),
    "select": _select,
    "gain": _gain,
    "export": _export,
    "report": _conclude,
}
"""As `jobs.run` calls them."""
MADE = {
    "audit": ("audit", "split"),
    "features": ("features",),
    "train": ("train",),
    "generate": ("candidates",),
    "gate": ("gate", "features-cache"),
    "select": ("select",),
    "gain": ("gain", "gain-networks"),
    "export": ("shards",),
    "report": ("verdict.json", "config.yaml", "report", "run.json"),
}
"""What each of them makes."""


class Calm:
    """A run that nothing troubles, made as far as it is needed; not to be changed."""

    def __init__(self, out: Path, of: Callable[[str], Order]) -> None:
        self.out, self.of, self.made = out, of, list[str]()

    def up_to(self, stage: str) -> Path:
        """The run folder with everything up to a stage in it, the stage included."""
        for name in list(STAGES)[len(self.made) : list(STAGES).index(stage) + 1]:
            STAGES[name](self.of(name), self.out)
            self.made.append(name)
        return self.out


def before(stage: str, calm: Calm, out: Path) -> Path:
    """A run folder in which everything up to a stage is finished, linked from a finished run."""
    out.mkdir(parents=True)
    earlier_stages = list(STAGES)[: list(STAGES).index(stage)]
    if not earlier_stages:
        return out
    finished = calm.up_to(earlier_stages[-1])
    for earlier in earlier_stages:
        for name in MADE[earlier]:
            if (finished / name).is_dir():
                shutil.copytree(finished / name, out / name, copy_function=os.link)
            elif (finished / name).exists():
                os.link(finished / name, out / name)
    return out


def contents(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """File -> digest of what is the same in every run, whatever happened to it on its way."""
    found = {}
    for name in names:
        place = folder / name
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.is_file() and path.name != storage.TIMING and not storage.is_passing(path.name):
                found[path.relative_to(folder).as_posix()] = _digest(path)
    return found


def _digest(path: Path) -> str:
    if path.name == "index.html" or {"gain-networks", "features-cache"} & set(path.parts):
        return "there"  # how long it took is in them, or their header has no fixed order
    data = path.read_bytes()
    if path.suffix == ".json":
        found, seal = json.loads(data), {storage.SEAL}
        about = TOLD if path.name in ("report.json", "run.json") and "audit" not in path.parts else set()
        if isinstance(found, dict):
            found = {key: value for key, value in found.items() if key not in about | seal}
        if path.name == "stage.json":  # hashes of files with times in them
            found["files"] = sorted(found["files"])
        data = json.dumps(_without_times(found), sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()


def _without_times(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _without_times(value) for key, value in data.items() if key not in MEASURED}
    return [_without_times(value) for value in data] if isinstance(data, list) else data
