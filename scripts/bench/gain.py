"""How many classifiers of the gain study are trained in a minute, side by side and one by one, in one run.

    .venv/bin/python scripts/bench/gain.py [--quick] [--json FILE] [--device cuda] [--runs 5]

ours          the networks of an arm side by side (`models.stacked`), cells over processes of one thread each
ours, 1 core  the same cells in this process with one thread
one by one    one `training.fit` a network with the factory's own batches (`models.classifier.Classifier`)
lightning     one plain `pytorch_lightning.Trainer` a network: TensorDataset, DataLoader of random rows, the same augmentation
bare          forward, backward and optimiser of the stacked networks on one fixed batch, over the same processes: the bound

`one by one` and `lightning` have the machine to themselves, with torch's own number of threads and with one; the faster
counts. All train the same network for the same steps on as many images; wall seconds, medians; processes are started before
the clock. Digits: 5 seeds, 1x8x8, width 16, batch 32. On a GPU also the 32x32 network of size=base (width 64, batch 128), 10
seeds.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import pytorch_lightning as pl
import torch
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps, one run: a check, no result")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    steps, runs = (20, 1) if asked.quick else (asked.steps, asked.runs)
    small = ClassifierConfig(width=16, batch_size=32, steps=steps)
    cases = [Case("digits", (1, 8, 8), 50, 5, small, asked.device)]
    if asked.device == "cuda":
        large = ClassifierConfig(width=64, batch_size=128, steps=steps)
        cases.append(Case("32px", (3, 32, 32), 2000, 10, large, "cuda"))
    about = {"machine": platform.processor() or platform.machine(), "python": platform.python_version(), "device": asked.device}
    about |= {name: version(name) for name in ("torch", "pytorch-lightning", "numpy")}
    about |= {"threads": torch.get_num_threads(), "steps": steps, "runs": runs}
    print(json.dumps(about))
    results = [measure(case, runs) for case in cases]
    if asked.json:
        asked.json.write_text(json.dumps({"about": about, "results": results}, indent=1) + "\n")


def measure(case: Case, runs: int) -> dict[str, object]:
    """All contenders of a case in turn, `runs` times."""
    setting = case.setting()
    workers = 1 if case.device == "cuda" else 0
    with Pool(workers) as pool:
        pool.map(_warm, list(range(2 * pool.workers)), Silent())
        contenders: dict[str, Callable[[], None]] = {
            "ours": lambda: _ours(setting, case, pool),
            "ours, 1 core": lambda: _ours(setting, case, Pool(1)),
            "one by one": lambda: _each(setting, case, _one_by_one),
            "one by one, 1 thread": lambda: _alone(setting, case, _one_by_one),
            "lightning": lambda: _each(setting, case, _lightning),
            "lightning, 1 thread": lambda: _alone(setting, case, _lightning),
            "bare": lambda: _bare_over(setting, case, pool),
        }
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(runs):
            for name, run in contenders.items():
                started = time.perf_counter()
                run()
                if case.device == "cuda":
                    torch.cuda.synchronize()
                seconds[name].append(time.perf_counter() - started)
    networks = len(ARMS) * case.seeds
    ours = median(seconds["ours"])
    print(f"\n{case.name}: {networks} networks of {case.classifier.steps} steps, batch {case.classifier.batch_size}")
    print("\n| contender | s (least-most) | networks/min | time, ours = 1 |\n|---|---|---|---|")
    for name, each in seconds.items():
        rate = 60 * networks / median(each)
        print(f"| {name} | {median(each):.2f} ({min(each):.2f}-{max(each):.2f}) | {rate:.0f} | {median(each) / ours:.2f} |")
    fastest = min((name for name in seconds if name.startswith(("one", "light"))), key=lambda name: median(seconds[name]))
    target = 8 if case.device == "cuda" else 3
    print(f"\n{median(seconds[fastest]) / ours:.1f} times the rate of the fastest one by one ({fastest}); target {target}")
    print(f"ours / bound: {median(seconds['bare']) / ours:.0%} of the bare networks' rate")
    return {"case": case.name, "networks": networks, "seconds": seconds}


def _cells(case: Case) -> list[Cell]:
    networks = tuple(Network(seed, 0) for seed in range(case.seeds))
    return [Cell(arm, 1.0, networks) for arm in ARMS]


def _warm(number: int, progress: Progress) -> None:
    torch.zeros(1) + number


def _train(task: tuple[Setting, Cell], progress: Progress) -> None:
    train_cell(task[1], task[0], None)


def _ours(setting: Setting, case: Case, pool: Pool) -> None:
    pool.map(_train, [(setting, cell) for cell in _cells(case)], Silent())


def _each(setting: Setting, case: Case, train: Callable[[Setting, int, bool], None]) -> None:
    for arm in ARMS:
        for seed in range(case.seeds):
            train(setting, seed, arm == "real_aug")


def _alone(setting: Setting, case: Case, train: Callable[[Setting, int, bool], None]) -> None:
    with single_thread():
        _each(setting, case, train)


def _one_by_one(setting: Setting, seed: int, augmented: bool) -> None:
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


def _lightning(setting: Setting, seed: int, augmented: bool) -> None:
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


def _bare_over(setting: Setting, case: Case, pool: Pool) -> None:
    with single_thread():
        pool.map(_bare, [(setting, cell) for cell in _cells(case)], Silent())


if __name__ == "__main__":
    main()
