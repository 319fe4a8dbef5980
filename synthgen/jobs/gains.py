"""Candidates and the gate's word on them -> the choice of a generator, and the gain study."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from synthgen import storage
from synthgen.data.audit import near_any
from synthgen.errors import ConfigError, DataError, TrainingError
from synthgen.gain import arms as gain_arms
from synthgen.gain import assess, cells, study
from synthgen.gain.cells import Cell, Network, Setting, Trained
from synthgen.gain.data import StudyData
from synthgen.gain.scores import score
from synthgen.jobs import pools, transfer
from synthgen.jobs.candidates import candidates_digest, load_candidates
from synthgen.jobs.finished import ASSESSED, Finished, open_test, told
from synthgen.jobs.gates import Judging, check_judged, load_gate
from synthgen.jobs.order import CHECKPOINT, Order
from synthgen.jobs.real import Split
from synthgen.metrics import extractors
from synthgen.shards import raw
from synthgen.types import UNLABELLED, Batch, GainReport, Progress, Silent
from synthgen.workers import Pool

COPIES = {"copy", "feature copy"}
"""The gate's reasons that the arm with copies doesn't listen to."""

SEEN = ("train", "val", "reference", "pool")
"""Roles whose images some arm trains on, with labels or without."""


@dataclass(frozen=True)
class Judged:
    """Candidates and the gate's word on them, on disk.

    Attributes:
        digest: of the candidates and of the gate; part of what a process remembers the images by.
    """

    name: str
    candidates: Path
    gate: Path
    digest: tuple[str, str]

    @staticmethod
    def of(order: Order, split: Split, name: str, candidates: Path, gate: Path) -> Judged:
        """Checks that they belong together.

        Raises:
            DataError: the gate judged other candidates, or against another split.
        """
        digest = candidates_digest(candidates, split.spec, order.config)
        check_judged(gate, split, digest)
        return Judged(name, candidates, gate, (digest, storage.folder_digest(gate)))

    def kept(self, order: Order, split: Split, ignoring: frozenset[str] = frozenset()) -> tuple[Batch, Batch]:
        """What the gate kept, or would have if it didn't know some reasons; and all candidates."""
        everything, _, _ = load_candidates(self.candidates, split.spec, order.config)
        report = load_gate(self.gate)
        keys = set(report.kept) | {key for key, why in report.dropped.items() if ignoring and set(why) <= ignoring}
        return everything.take(np.array([key in keys for key in everything.keys], dtype=bool)), everything


@dataclass(frozen=True)
class Contest:
    """The images of a gain study on disk.

    Attributes:
        chosen: the generator that is studied.
        others: the others, for the arms of each.
        networks: folder of `features`; None where there is none.
        made_in_s: seconds that generator, samples and gate took.
        to_choose: only `synthetic_gated` is trained, to choose a generator: what other arms need isn't read.
    """

    order: Order
    split: Split
    chosen: Judged
    others: tuple[Judged, ...] = ()
    networks: Path | None = None
    made_in_s: float = 0.0
    to_choose: bool = False

    @staticmethod
    def of(
        order: Order,
        split: Split,
        chosen: Judged,
        others: Sequence[Judged] = (),
        networks: Path | None = None,
        made_in_s: float = 0.0,
    ) -> Contest:
        """As it is sent to other processes."""
        there = networks if networks is not None and (networks / storage.STAGE_MANIFEST).is_file() else None
        return Contest(replace(order, progress=Silent()), split, chosen, tuple(others), there, made_in_s)

    @property
    def inputs(self) -> dict[str, str]:
        found = {"split": self.split.digest, "candidates": self.chosen.digest[0], "gate": self.chosen.digest[1]}
        if self.to_choose:
            return found
        found |= {f"other {each.name}": " ".join(each.digest) for each in self.others}
        if self.networks is not None:
            found["features"] = storage.folder_digest(self.networks)
            if self.order.config.features.extractor != "domain":
                found["extractor"] = extractors.check(self.order.config.features)
        if self.order.config.pool.train:
            found["pool"] = storage.folder_digest(pools.folder_of(self.split))
        if self.order.config.gain.transfer:
            found["transfer"] = transfer.digest(Path(self.order.config.gain.transfer))
        return found


@lru_cache(maxsize=2)
def _setting(contest: Contest) -> Setting:
    """The images of a study and how its networks are trained; read once in each process."""
    order, split = contest.order, contest.split
    config, train = order.config, split.role("train")
    gated, ungated = contest.chosen.kept(order, split)
    none = train.take(np.zeros(0, np.int64))
    blocks = split.blocks("val")
    data = StudyData(split.spec, train, split.role("val"), none, none, gated, ungated, none, val_blocks=blocks)
    if not contest.to_choose:
        data = _with_the_rest(contest, data)
    return Setting(data, config.classifier, config.augment, config.gain, order.device)


def _with_the_rest(contest: Contest, data: StudyData) -> StudyData:
    """What arms beside `synthetic_gated` look at."""
    order, split = contest.order, contest.split
    config, reference, pool = order.config, split.role("reference"), split.role("pool")
    truth = None
    if config.gain.simulate:
        hidden = split.hidden()
        truth = np.array([hidden.get(key, UNLABELLED) for key in (*reference.keys, *pool.keys)], dtype=np.int64)
    labelled = {"train": data.train, "val": data.val, "reference": reference}
    grouped = {key: group for role, batch in labelled.items() for key, group in zip(batch.keys, split.groups(role), strict=True)}
    judging = Judging(order, split, contest.networks) if contest.networks is not None else None
    start = transfer.read(Path(config.gain.transfer), order, split) if config.gain.transfer else None
    start_of: str | None = getattr(getattr(config.generators, contest.chosen.name, None), "init_from", None)
    return replace(
        data,
        reference=reference,
        pool=pool,
        with_copies=contest.chosen.kept(order, split, frozenset(COPIES))[0],
        others={other.name: other.kept(order, split)[0] for other in contest.others},
        pool_labels=raw.read(pools.folder_of(split) / pools.LABELS, split.spec) if config.pool.train else None,
        elsewhere=start_of is not None,
        unknown_start=start_of is not None and Path(start_of).is_dir() and not (Path(start_of) / CHECKPOINT).is_file(),
        truth=truth,
        groups={key: group for key, group in grouped.items() if group is not None},
        features=transfer.embedding(judging.extractor, order, split) if judging is not None else None,
        pretrained=start.weights if start is not None else None,
        pretrained_note=start.note if start is not None else "",
        transformer=start.transformer if start is not None else None,
        backbone=start.embed if start is not None else None,
        pool_s=storage.seconds(pools.folder_of(split)) if config.pool.train else 0.0,
        made_in_s=contest.made_in_s,
    )


@dataclass(frozen=True)
class _CellTask:
    contest: Contest
    cell: Cell
    out: Path
    teachers: tuple[tuple[Cell, Path], ...]
    task: str


def _train_cell(task: _CellTask, progress: Progress) -> None:
    """Trains a cell of the study."""
    trained = cells.attempt(task.cell, _setting(task.contest), _Teach(task) if task.teachers else None)
    storage.write_bytes(task.out, trained.to_bytes())
    progress.advance(task.task, len(task.cell.networks), f"{task.cell.recipe} {'diverged' if trained.failure else 'done'}")


class _Teach:
    """The real-only networks of a study, read from their cells; see `cells.Teach`."""

    def __init__(self, task: _CellTask) -> None:
        self.task = task

    def __call__(self, images: np.ndarray, seed: int, committee: bool) -> np.ndarray:
        """Class probabilities of the seed's network, or the mean of its committee's."""
        found = [
            _predictions(self.task.contest, cell, path, images.tobytes(), images.shape)[number]
            for cell, path in self.task.teachers
            for number, network in enumerate(cell.networks)
            if network.seed == seed and (committee or network.member == 0)
        ]
        return np.mean(found, axis=0)


@lru_cache(maxsize=16)
def _predictions(contest: Contest, cell: Cell, path: Path, images: bytes, shape: tuple[int, ...]) -> np.ndarray:
    trained = Trained.from_bytes(path.read_bytes())
    return cells.predict(cell, trained, _setting(contest), np.frombuffer(images, np.uint8).reshape(shape).copy())


@lru_cache(maxsize=1)
def _test_images(split: Split) -> Batch:
    return split.role("test")


def _predict_test(task: _CellTask, progress: Progress) -> None:
    """What a finished cell's networks say of the test images, written beside what they say of val.

    After that the weights are needed no more, but for the teachers', from whom arms may learn that are asked for later.
    """
    trained = Trained.from_bytes(task.out.read_bytes())
    found = cells.predict(task.cell, trained, _setting(task.contest), _test_images(task.contest.split).images)
    weights = trained.weights if _teaches(task.cell) else {}
    storage.write_bytes(task.out, replace(trained, test=found, weights=weights).to_bytes())
    progress.advance(task.task, len(task.cell.networks))


def _teaches(cell: Cell) -> bool:
    """Whether networks of a cell may teach others."""
    return gain_arms.base_of(cell.recipe) == gain_arms.TEACHER and not cell.extra and "+" not in cell.recipe


def select(order: Order, split: Split, generators: dict[str, tuple[Path, Path]], out: Path, pool: Pool) -> str | None:
    """Which generator is exported and studied, chosen on val: out/select.json.

    Among those with the best gate verdict, the one whose gated samples, added to real and augmentation, give the lowest
    cross-entropy on val (mean of `gain.select_seeds` classifiers); one of which less than `gate.min_keep` was kept comes
    after the others, since a handful of samples changes nothing and so does no harm. None where no generator has any.
    """
    config = order.config
    contests = {
        name: replace(Contest.of(order, split, Judged.of(order, split, name, candidates, judged)), to_choose=True)
        for name, (candidates, judged) in generators.items()
    }
    settings = {**order.section("classifier", "augment", "models"), "device": order.device}
    settings["select_seeds"] = config.gain.select_seeds
    inputs = {f"{name} {key}": digest for name, contest in contests.items() for key, digest in contest.inputs.items()}
    with order.stage(out, "select", settings, inputs) as work:
        if not work.done:
            usable = {name: contest for name, contest in contests.items() if load_gate(contest.chosen.gate).kept}
            networks = tuple(Network(seed, 0) for seed in range(config.gain.select_seeds))
            cell = Cell("synthetic_gated", 0.5, networks)
            tasks = {
                name: _CellTask(contest, cell, out / f"{storage.RESUME}-{name}", (), "select") for name, contest in usable.items()
            }
            order.progress.start("select", len(tasks) * len(networks))
            pool.map(_train_cell, [task for task in tasks.values() if not task.out.is_file()], order.progress)
            val = split.role("val")
            scores: dict[str, dict[str, Any]] = {}
            for name, contest in usable.items():
                trained = Trained.from_bytes(tasks[name].out.read_bytes())
                if trained.failure:
                    raise TrainingError(f"select {name}: {trained.failure}")
                each = [score(on_val, val) for on_val in trained.val]
                accuracy, loss = np.mean(each, axis=0)
                report = load_gate(contest.chosen.gate)
                share = len(report.kept) / report.num_candidates
                scores[name] = {"val_accuracy": float(accuracy), "val_loss": float(loss), "gate": report.verdict, "kept": share}
            chosen = min(scores, key=lambda name: preference(scores[name], config.gate.min_keep)) if scores else None
            criterion = (
                f"best gate verdict, then {config.gate.min_keep:.0%} kept or more, then lowest cross-entropy on val of "
                f"{len(networks)} classifiers on real + augmentation + gated"
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


def check_study(order: Order, split: Split, models: Sequence[str] = ()) -> None:
    """Refuses arms that can't be run, and a test split that can prove nothing, before anything is trained.

    Args:
        models: generators of the run, which arms of other generators may name.

    Raises:
        ConfigError: unknown arms, or too few that the images allow.
        DataError: a test split of fewer than 2 independent images.
    """
    config = order.config.gain
    _check_test(split)
    arms = gain_arms.check_arms(config.arms, config.study, models)
    for name in arms:
        if name.startswith(gain_arms.OTHER_GENERATOR) and name.removeprefix(gain_arms.OTHER_GENERATOR) not in models:
            raise ConfigError(f"gain.arms: {name!r}: no such generator in models={list(models)}; add it there")
    train = split.role("train")
    # any samples stand for those that will be: what isn't known yet is not refused
    data = StudyData(
        split.spec, train, split.role("val"), split.role("reference"), split.role("pool"), train, train, train,
        others=dict.fromkeys(models, train),
        pool_labels=train if order.config.pool.train else None,
        truth=np.zeros(len(split.role("reference")) + len(split.role("pool")), np.int64) if config.simulate else None,
        features=lambda images: np.zeros((len(images), 1), np.float32),
        pretrained={} if config.transfer else None,
        backbone=(lambda images: np.zeros((len(images), 1), np.float32)) if config.transfer else None,
    )  # fmt: skip
    study.allowed(arms, data)
    if config.transfer:
        transfer.read(Path(config.transfer), order, split)
    if order.config.pool.train and not len(split.role("pool")):
        raise ConfigError(pools.NO_POOL)


def _check_test(split: Split) -> None:
    blocks = split.blocks("test")
    if len(np.unique(blocks)) < 2:
        grouped = " of a single group (patient, recording, near duplicates)" if len(blocks) > 1 else ""
        raise DataError(
            f"{split.folder}: {len(blocks)} test image{'s' * (len(blocks) != 1)}{grouped}: no interval can say what holds for "
            "others; raise split.test, try another split.seed, or give images of more groups (data.group_pattern, "
            "data.group_column name them)"
        )


def gain(order: Order, contest: Contest, out: Path, pool: Pool) -> GainReport:
    """Split, candidates and gate -> out/gain.json: what the synthetic images add, on the test split.

    The test split is opened when every network is trained and every arm is chosen; out/opened.json says so, and whenever
    that was again. Networks of an earlier study in this run folder are taken up as far as nothing that they are made from
    has changed (see `finished`); a study that is only to be assessed in another way is assessed anew.
    """
    config, split = order.config, contest.split
    arms = gain_arms.check_arms(config.gain.arms, config.gain.study, [other.name for other in contest.others])
    settings, inputs = {**order.section("classifier", "augment", "gain"), "device": order.device}, contest.inputs
    settings["near_duplicate"] = config.audit.near_duplicate
    told_anew = storage.finished_but_for(out, settings, inputs, ["near_duplicate", *(f"gain.{name}" for name in ASSESSED)])
    anew = order.restart or told_anew
    with replace(order, restart=anew).stage(out, "gain", settings, inputs) as work:
        if not work.done:
            finished = Finished(order, inputs, out.parent)
            rounds = _Rounds(order, contest, finished, pool)
            done = study.conduct(arms, _setting(contest), rounds)
            networks, unseen = (sum(len(cell.networks) for cell in some) for some in (done.trained, rounds.unseen(done.trained)))
            chosen = {"best_real_on_val": done.best_real, "best_synthetic_on_val": done.best_synthetic}
            openings = open_test(out.parent, split.digest, work.identity, networks, unseen, chosen)
            said = told(openings)
            work.write_json("opened.json", said)
            again = tuple(f"{each['after']}; changed: {', '.join(each['changed']) or 'nothing'}" for each in said["again"])
            since = sum(each["unseen"] for each in openings[1:])
            about = split.groups("test"), split.near_train(SEEN)
            images, kept = split.role("test"), _setting(contest).data.gated
            near = near_any(images.images, kept.images, config.audit.near_duplicate)
            given = frozenset(key for key, found in zip(images.keys, near, strict=True) if found)
            test = assess.TestSet(images, *about, again, since, split.blocks("test"), given)
            report = assess.assess(done, rounds.predictions(done.trained), test, _setting(contest))
            work.write_json("gain.json", report.to_json())
            finished.sweep()
    report = GainReport.from_json(storage.read_json(out / "gain.json"), str(out / "gain.json"))
    order.progress.finish("gain", f"{report.verdict}: {report.reasons[0]}, {storage.seconds(out):.0f} s")
    return report


class _Rounds:
    """Trains the cells of a study in the pool, those that are there excepted; see `tuning.Train`."""

    def __init__(self, order: Order, contest: Contest, finished: Finished, pool: Pool) -> None:
        self.order, self.contest, self.finished, self.pool = order, contest, finished, pool
        self.paths: dict[Cell, Path] = {}

    def __call__(self, wanted: Sequence[Cell], teachers: Sequence[Cell]) -> dict[Cell, Trained]:
        self.paths |= {cell: self.finished.path(cell, teachers) for cell in wanted}
        there = {cell: found for cell in wanted if (found := self.finished.read(self.paths[cell])) is not None}
        taught = tuple((teacher, self.paths[teacher]) for teacher in teachers)
        todo = [cell for cell in wanted if cell not in there]
        self._map(_train_cell, todo, "gain", taught)
        return {cell: there[cell] if cell in there else self._read(cell) for cell in wanted}

    def unseen(self, trained: Mapping[Cell, Trained]) -> list[Cell]:
        """Those whose networks haven't seen the test images yet."""
        return [cell for cell, found in trained.items() if found.test is None]

    def predictions(self, trained: Mapping[Cell, Trained]) -> dict[Cell, np.ndarray]:
        """Of every cell on the test split."""
        self._map(_predict_test, self.unseen(trained), "gain: test")
        found = {cell: each.test if each.test is not None else self._read(cell).test for cell, each in trained.items()}
        return {cell: predicted for cell, predicted in found.items() if predicted is not None}

    def _map(
        self,
        function: Callable[[_CellTask, Progress], None],
        todo: Sequence[Cell],
        task: str,
        taught: tuple[tuple[Cell, Path], ...] = (),
    ) -> None:
        self.order.progress.start(task, sum(len(cell.networks) for cell in todo))
        tasks = [_CellTask(self.contest, cell, self.paths[cell], taught, task) for cell in todo]
        self.pool.map(function, tasks, self.order.progress)

    def _read(self, cell: Cell) -> Trained:
        return Trained.from_bytes(self.paths[cell].read_bytes())
