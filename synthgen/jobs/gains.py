"""Candidates and the gate's word on them -> the choice of a generator, and the gain study."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from synthgen import storage
from synthgen.gain import arms as gain_arms
from synthgen.gain import study
from synthgen.gain.study import Cell, Trained
from synthgen.jobs.candidates import candidates_digest, load_candidates
from synthgen.jobs.gates import check_judged, load_gate
from synthgen.jobs.order import Order
from synthgen.jobs.real import Split
from synthgen.types import Batch, GainReport, Progress, Silent
from synthgen.workers import Pool


@dataclass(frozen=True)
class Contest:
    """The images of a gain study on disk: a split, candidates, and the gate's word on them.

    Attributes:
        digest: of the candidates and of the gate; part of what a process remembers the images by.
    """

    order: Order
    split: Split
    candidates: Path
    gate: Path
    digest: tuple[str, str]

    @staticmethod
    def of(order: Order, split: Split, candidates: Path, gate: Path) -> Contest:
        """Checks that they belong together.

        Raises:
            DataError: the gate judged other candidates, or against another split.
        """
        digest = candidates_digest(candidates, split.spec, order.config)
        check_judged(gate, split, digest)
        quiet = replace(order, progress=Silent())  # it is sent to other processes
        return Contest(quiet, split, candidates, gate, (digest, storage.folder_digest(gate)))

    @property
    def inputs(self) -> dict[str, str]:
        return {"split": self.split.digest, "candidates": self.digest[0], "gate": self.digest[1]}


@lru_cache(maxsize=2)
def _study_data(contest: Contest) -> gain_arms.StudyData:
    split = contest.split
    ungated, _, _ = load_candidates(contest.candidates, split.spec, contest.order.config)
    kept = set(load_gate(contest.gate).kept)
    gated = ungated.take(np.array([key in kept for key in ungated.keys], dtype=bool))
    return gain_arms.StudyData(split.spec, split.role("train"), split.role("val"), split.role("reference"), gated, ungated)


@dataclass(frozen=True)
class _CellTask:
    contest: Contest
    cell: Cell
    out: Path
    teacher: Path | None
    task: str


def _train_cell(task: _CellTask, progress: Progress) -> None:
    """Trains a cell of the study, unless an earlier, interrupted run has."""
    if not task.out.is_file():
        config = task.contest.order.config
        trained = study.train_cell(
            task.cell,
            _study_data(task.contest),
            config.classifier,
            config.augment,
            config.gain,
            teacher=Trained.from_bytes(task.teacher.read_bytes()) if task.teacher else None,
            device=task.contest.order.device,
            progress=Silent(),
            task=task.cell.name,
        )
        storage.write_bytes(task.out, trained.to_bytes())
    progress.advance(task.task)


@lru_cache(maxsize=1)
def _test_images(split: Split) -> Batch:
    return split.role("test")


def _predict_test(task: _CellTask, progress: Progress) -> np.ndarray:
    """A finished cell's class probabilities on the test split."""
    trained, order, split = Trained.from_bytes(task.out.read_bytes()), task.contest.order, task.contest.split
    predicted = study.predict(trained, split.spec, order.config.classifier, _test_images(split), order.device)
    progress.advance(task.task)
    return predicted


def select(order: Order, split: Split, generators: dict[str, tuple[Path, Path]], out: Path, pool: Pool) -> str | None:
    """Which generator is exported and studied, chosen on val: out/select.json.

    Among those with the best gate verdict, the one whose gated samples, added to real and augmentation, give the lowest
    cross-entropy on val (mean of `gain.select_seeds` classifiers); one of which less than `gate.min_keep` was kept comes
    after the others, since a handful of samples changes nothing and so does no harm. None where no generator has any.
    """
    config = order.config
    contests = {name: Contest.of(order, split, candidates, judged) for name, (candidates, judged) in generators.items()}
    settings = {**order.section("classifier", "augment", "gain", "models"), "device": order.device}
    inputs = {f"{name} {key}": digest for name, contest in contests.items() for key, digest in contest.inputs.items()}
    with order.stage(out, "select", settings, inputs) as work:
        if not work.done:
            usable = {name: contest for name, contest in contests.items() if load_gate(contest.gate).kept}
            cells = [Cell("synthetic_gated", seed, 0) for seed in range(config.gain.select_seeds)]
            tasks = {
                (name, cell): _CellTask(contest, cell, out / f"{storage.RESUME}-{name}-{cell.name}", None, "select")
                for name, contest in usable.items()
                for cell in cells
            }
            order.progress.start("select", len(tasks))
            pool.map(_train_cell, list(tasks.values()), order.progress)
            val = split.role("val")
            scores: dict[str, dict[str, Any]] = {}
            for name, contest in usable.items():
                each = [study.score(Trained.from_bytes(tasks[name, cell].out.read_bytes()).val, val) for cell in cells]
                accuracy, loss = np.mean(each, axis=0)
                report = load_gate(contest.gate)
                share = len(report.kept) / report.num_candidates
                scores[name] = {"val_accuracy": float(accuracy), "val_loss": float(loss), "gate": report.verdict, "kept": share}
            chosen = min(scores, key=lambda name: preference(scores[name], config.gate.min_keep)) if scores else None
            criterion = (
                f"best gate verdict, then {config.gate.min_keep:.0%} kept or more, then lowest cross-entropy on val of "
                f"{len(cells)} classifiers on real + augmentation + gated"
            )
            work.write_json("select.json", {"criterion": criterion, "scores": scores, "chosen": chosen})
    found = storage.read_json(out / "select.json")
    losses = ", ".join(f"{name} {s['val_loss']:.3f}" for name, s in found["scores"].items())
    order.progress.finish(
        "select", f"{found['chosen'] or 'none'} (val cross-entropy: {losses or 'no generator has kept samples'})"
    )
    chosen_name: str | None = found["chosen"]
    return chosen_name


def preference(score: dict[str, Any], min_keep: float) -> tuple[int, bool, float]:
    """Sorts generators, the best first: by the gate's verdict, whether enough was kept, cross-entropy on val."""
    rank = {"accept": 0, "insufficient evidence": 1, "reject": 2}
    return rank[score["gate"]], score["kept"] < min_keep, score["val_loss"]


def gain(order: Order, contest: Contest, out: Path, pool: Pool) -> GainReport:
    """Split, candidates and gate -> out/gain.json: what the synthetic images add, on the test split.

    The test split is opened when every network is trained and the strongest real-only arm is chosen; out/opened.json
    says so.
    """
    config, split = order.config, contest.split
    arms = gain_arms.check_arms(config.gain.arms)
    settings = {**order.section("classifier", "augment", "gain"), "device": order.device}
    with order.stage(out, "gain", settings, contest.inputs) as work:
        if not work.done:
            data = _study_data(contest)
            skipped = gain_arms.skipped(arms, data)
            arms = tuple(arm for arm in arms if arm not in skipped)
            rounds = study.cells(arms, config.gain)
            # cells survive a kill (`resume`), and are removed when the stage is whole
            path = {cell: out / storage.RESUME / f"{cell.name}.safetensors" for cells in rounds for cell in cells}
            order.progress.start("gain", len(path))
            for cells in rounds:
                teachers = [
                    path[Cell("real_aug", cell.seed, 0)] if gain_arms.RECIPES[cell.recipe].pseudo else None for cell in cells
                ]
                tasks = [_CellTask(contest, c, path[c], t, "gain") for c, t in zip(cells, teachers, strict=True)]
                pool.map(_train_cell, tasks, order.progress)
            trained = {cell: Trained.from_bytes(file.read_bytes()) for cell, file in path.items()}
            best_real = study.choose_best_real(arms, trained, data.val, config.gain)
            opened = work.path(f"{storage.RESUME}-opened.json")  # the first opening counts, whatever is killed after it
            if not opened.is_file():
                now, after = datetime.now(UTC).isoformat(timespec="seconds"), f"all {len(path)} networks were trained"
                storage.write_json(opened, {"split": "test", "at": now, "after": after, "best_real_on_val": best_real})
            work.write_json("opened.json", storage.read_json(opened))
            test = split.role("test")
            order.progress.start("gain: test", len(path))
            looks = [_CellTask(contest, cell, file, None, "gain: test") for cell, file in path.items()]
            on_test = dict(zip(path, pool.map(_predict_test, looks, order.progress), strict=True))
            report = study.assess(
                arms, skipped, best_real, trained, on_test, data.val, test, config.classifier.steps, config.gain
            )
            work.write_json("gain.json", report.to_json())
    report = GainReport.from_json(storage.read_json(out / "gain.json"), str(out / "gain.json"))
    order.progress.finish("gain", f"{report.verdict}: {report.reasons[0]}, {storage.seconds(out):.0f} s")
    return report
