"""How many classifiers of the gain study are trained in a minute, side by side and one by one, in one run.

    .venv/bin/python scripts/bench/gain.py [--json FILE]     medians of 5: about 5 minutes on two quiet cores
    .venv/bin/python scripts/bench/gain.py --quick           2 seeds, 3 steps: a check, no result; seconds
    .venv/bin/python scripts/bench/gain.py --device cuda     on one GPU, the 32x32 network too

ours          the networks of an arm side by side (`models.stacked`)
one by one    one `training.fit` a network with the factory's own batches (`models.classifier.Classifier`)
lightning     one plain `pytorch_lightning.Trainer` a network: TensorDataset, DataLoader of random rows, the same augmentation
bare          forward, backward and optimiser of the stacked networks on one fixed batch: the bound

Each over the same two processes of one thread each, and in one process with one thread; lightning also in one process with
torch's own number of threads. The first ratio is the target's: ours as the study runs it, over two processes, against
Lightning fits one after the other in one process. It counts what stacking and what the second process bring. The others are
like with like: as many processes and threads on both sides, against the faster of `one by one` and lightning.

All train the same network for the same steps on as many images; wall seconds, medians. Before the clock the processes are
started and every contender takes a step. Digits: two arms of 5 seeds, 1x8x8, width 16, batch 32. On a GPU all is one
process, and there is also the 32x32 network of size=base (width 64, batch 128), 10 seeds.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from machine import machine, versions  # beside this script
from torch.nn import functional as F
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from synthgen.config.schema import AugmentConfig, ClassifierConfig, GainConfig
from synthgen.data.stacks import one_hot
from synthgen.data.transforms import augment, to_float
from synthgen.gain.cells import Cell, Network, Setting, train_cell
from synthgen.gain.data import StudyData
from synthgen.models.classifier import Classifier, ClassifierNetwork, one_cycle
from synthgen.models.stacked import StackedClassifier, Training, soft_cross_entropy
from synthgen.randomness import stream
from synthgen.training import fit
from synthgen.types import Batch, DatasetSpec, Progress, Silent
from synthgen.workers import Pool, single_thread

ARMS = ("real_aug", "real")
"""Two arms, so that two processes have a cell each."""

TARGETS = {"cpu": 3.0, "cuda": 8.0}
"""Times the rate of one-by-one Lightning fits on the same machine."""


@dataclass(frozen=True)
class Case:
    """What is trained."""

    name: str
    shape: tuple[int, int, int]
    images: int
    seeds: int
    classifier: ClassifierConfig
    device: str

    def setting(self) -> Setting:
        """As the study's cells take it; pixels are noise, which costs what images cost."""
        spec = DatasetSpec(self.name, self.shape, tuple("0123456789"), False, "")
        pixels = stream(0, "bench").integers(0, 256, (self.images, *self.shape), dtype=np.uint8)
        train = Batch(pixels, np.arange(self.images) % 10, tuple(map(str, range(self.images))))
        none = train.take(np.zeros(0, np.int64))
        data = StudyData(spec, train, train.take(np.arange(10)), none, none, none, none, none)
        return Setting(data, self.classifier, AugmentConfig(rotate_deg=10), GainConfig(together=self.seeds), self.device)


class Contender(NamedTuple):
    """A way to train, the processes that its tasks are shared by, and whether each has one thread or torch's own number."""

    way: str
    processes: int
    own_threads: bool = False

    def __str__(self) -> str:
        processes = "1 process" if self.processes == 1 else f"{self.processes} processes"
        num = torch.get_num_threads() if self.own_threads else 1
        return f"{self.way}, {processes} of {num} thread{'s' * (num > 1)}{' (default)' * self.own_threads}"


ONE_BY_ONE = ("one by one", "lightning")


def contenders(device: str) -> list[Contender]:
    processes = (1,) if device == "cuda" else (2, 1)
    found = [Contender(way, each) for each in processes for way in ("ours", *ONE_BY_ONE, "bare")]
    return [*found, Contender("lightning", 1, own_threads=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 seeds, 3 steps, one run: a check, no result")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    steps, seeds, runs = (3, 2, 1) if asked.quick else (asked.steps, 5, asked.runs)
    small = ClassifierConfig(width=16, batch_size=32, steps=steps)
    cases = [Case("digits", (1, 8, 8), 50, seeds, small, asked.device)]
    if asked.device == "cuda":
        large = ClassifierConfig(width=64, batch_size=128, steps=steps)
        cases.append(Case("32px", (3, 32, 32), 2000, 10, large, "cuda"))
    about: dict[str, Any] = {"machine": machine(asked.device), "versions": versions("torch", "pytorch-lightning", "numpy")}
    about |= {"device": asked.device, "threads": torch.get_num_threads(), "steps": steps, "runs": runs}
    print("\n".join(f"{key}: {value}" for key, value in (about | about["machine"]).items()))
    about["cases"] = [measure(case, runs) for case in cases]
    if asked.json:
        asked.json.write_text(json.dumps(about, indent=2) + "\n")


def measure(case: Case, runs: int) -> dict[str, Any]:
    """All contenders of a case in turn, `runs` times; what they took, and what follows."""
    ways = contenders(case.device)
    seconds: dict[Contender, list[float]] = {contender: [] for contender in ways}
    with Pool(max(contender.processes for contender in ways)) as pool:
        short = replace(case, classifier=case.classifier.model_copy(update={"steps": 1}))
        for contender in ways:
            train(contender, short.setting(), pool)
        for _ in range(runs):
            for contender in ways:
                started = time.perf_counter()
                train(contender, case.setting(), pool)
                if case.device == "cuda":
                    torch.cuda.synchronize()
                seconds[contender].append(time.perf_counter() - started)
    networks = len(ARMS) * case.seeds
    result = {"case": case.name, "networks": networks, **summary(seconds, networks, TARGETS[case.device])}
    show(case, result)
    return result


def train(contender: Contender, setting: Setting, pool: Pool) -> None:
    """All networks of both arms."""
    seeds = [Network(seed, 0) for seed in range(setting.gain.together)]
    parts = [(seed,) for seed in seeds] if contender.way in ONE_BY_ONE else [tuple(seeds)]
    tasks = [(setting, Cell(arm, 1.0, part)) for arm in ARMS for part in parts]
    if contender.processes > 1:
        pool.map(WAYS[contender.way], tasks, Silent())
        return
    with nullcontext() if contender.own_threads else single_thread():
        for task in tasks:
            WAYS[contender.way](task, Silent())


def summary(seconds: Mapping[Contender, list[float]], networks: int, target: float) -> dict[str, Any]:
    """What each took, ours against the one-by-one ways under each rule, and against the bare networks."""
    middle = {contender: median(each) for contender, each in seconds.items()}
    processes = sorted({contender.processes for contender in middle}, reverse=True)
    ours, alone = Contender("ours", processes[0]), Contender("lightning", 1, own_threads=True)
    against = {"target: ours as the study runs it, against Lightning fits one by one in one process": (ours, alone)}
    for each in processes:
        rival = min((Contender(way, each) for way in ONE_BY_ONE), key=middle.__getitem__)
        against[f"like with like: {str(rival).removeprefix(f'{rival.way}, ')} on both sides"] = (Contender("ours", each), rival)
    return {
        "contenders": {
            str(contender): {"s": each, "median_s": middle[contender], "networks_a_minute": 60 * networks / middle[contender]}
            for contender, each in seconds.items()
        },
        "ratios": [
            {"what": what, "ours": str(a), "against": str(b), "ratio": middle[b] / middle[a], "target": target,
             "met": middle[b] / middle[a] >= target}
            for what, (a, b) in against.items()
        ],
        "bounds": [
            {"ours": str(Contender("ours", each)), "bound": str(Contender("bare", each)),
             "share": middle[Contender("bare", each)] / middle[Contender("ours", each)]}
            for each in processes
        ],
    }  # fmt: skip


def show(case: Case, result: Mapping[str, Any]) -> None:
    """The tables, as they go into the docs."""
    print(f"\n{case.name}: {result['networks']} networks of {case.classifier.steps} steps, batch {case.classifier.batch_size}")
    print("\n| contender | s (least-most) | networks/min |\n|---|---|---|")
    for name, row in result["contenders"].items():
        spread = f"{row['median_s']:.2f} ({min(row['s']):.2f}-{max(row['s']):.2f})"
        print(f"| {name} | {spread} | {row['networks_a_minute']:.0f} |")
    print("\n| ratio | ours | against | times the rate | target | |\n|---|---|---|---|---|---|")
    for row in result["ratios"]:
        met = "met" if row["met"] else "missed"
        print(f"| {row['what']} | {row['ours']} | {row['against']} | {row['ratio']:.2f} | {row['target']:g} | {met} |")
    print("\n| ours | bound | share of the bound's rate |\n|---|---|---|")
    for row in result["bounds"]:
        print(f"| {row['ours']} | {row['bound']} | {row['share']:.0%} |")


def _ours(task: tuple[Setting, Cell], progress: Progress) -> None:
    train_cell(task[1], task[0], None)


def _one_by_one(task: tuple[Setting, Cell], progress: Progress) -> None:
    setting, (seed, augmented) = task[0], _asked(task[1])
    module = Classifier(setting.classifier, setting.data.spec, seed, setting.augment if augmented else None)
    sources = [(setting.data.train, setting.classifier.batch_size)]
    fit(module, sources, steps=setting.classifier.steps, seed=seed, task="bench", progress=Silent(), device=setting.device)


class Plain(pl.LightningModule):
    """What a user of Lightning writes."""

    def __init__(self, setting: Setting, seed: int, augmented: bool) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.setting, self.augmented, self.draws = setting, augmented, np.random.default_rng(seed)
        self.network = ClassifierNetwork(setting.classifier.width, 64, setting.classifier.dropout, setting.data.spec)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        images, labels = batch
        if self.augmented:
            images = augment(images, self.draws, self.setting.augment)
        return F.cross_entropy(self.network(images), labels)

    def configure_optimizers(self) -> object:
        return one_cycle(self.network, self.setting.classifier)


def _lightning(task: tuple[Setting, Cell], progress: Progress) -> None:
    setting, (seed, augmented) = task[0], _asked(task[1])
    train, batch = setting.data.train, setting.classifier.batch_size
    data = TensorDataset(to_float(train.images), torch.from_numpy(train.labels))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # one epoch: what an epoch costs isn't counted against it
        sampler = RandomSampler(data, replacement=True, num_samples=batch * setting.classifier.steps)
        loader = DataLoader(data, batch, sampler=sampler)
        trainer = pl.Trainer(
            max_epochs=1,
            accelerator="gpu" if setting.device == "cuda" else "cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Plain(setting, seed, augmented), loader)


def _bare(task: tuple[Setting, Cell], progress: Progress) -> None:
    setting, cell = task
    module = StackedClassifier(
        setting.classifier, setting.data.spec, [n.stream for n in cell.networks], setting.augment, Training("")
    ).to(setting.device)
    made = module.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    rows = np.arange(setting.classifier.batch_size) % len(setting.data.train)
    images = to_float(setting.data.train.images[rows]).to(setting.device).expand(len(cell.networks), -1, -1, -1, -1)
    targets = torch.from_numpy(one_hot(setting.data.train.labels[rows], 10)).to(setting.device)
    targets = targets.expand(len(cell.networks), -1, -1)
    module.train()
    for _ in range(setting.classifier.steps):
        optimizer.zero_grad()
        soft_cross_entropy(module.network(images), targets).mean(1).sum().backward()
        optimizer.step()
        schedule.step()


def _asked(cell: Cell) -> tuple[int, bool]:
    """Seed of a cell's only network, and whether it augments."""
    return cell.networks[0].seed, cell.recipe == "real_aug"


WAYS: dict[str, Callable[[tuple[Setting, Cell], Progress], None]] = {
    "ours": _ours,
    "one by one": _one_by_one,
    "lightning": _lightning,
    "bare": _bare,
}


if __name__ == "__main__":
    main()
