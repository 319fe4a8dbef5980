"""The whole factory, and the verdict with its dashboard and report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from synthgen import storage, training
from synthgen.errors import ConfigError, DataError
from synthgen.gain import arms as gain_arms
from synthgen.jobs.candidates import load_candidates
from synthgen.jobs.dashboards import check_tracking, track
from synthgen.jobs.exports import Decision, export
from synthgen.jobs.gains import Contest, Judged, check_study, gain, select
from synthgen.jobs.gates import check_extractor, check_judged, check_sizes, check_start, features, gate, load_gate
from synthgen.jobs.generators import check_generator, generate, train
from synthgen.jobs.order import Order
from synthgen.jobs.pools import label_pool
from synthgen.jobs.real import Split, audit, open_or_make_split, write_config
from synthgen.jobs.reports import make_report
from synthgen.shards import manifest
from synthgen.types import MAKING, GainReport, GateReport, Progress, Silent, Verdict
from synthgen.workers import Pool

VERDICT_SCHEMA = "synthgen.verdict/1"
LONGEST = ("diffusion", "gan", "vqvae", "vae")


@dataclass(frozen=True)
class _GeneratorTask:
    order: Order
    split: Split
    out: Path
    model: str


def _make_candidates(task: _GeneratorTask, progress: Progress) -> None:
    """One generator from training to candidates."""
    order, out, model = replace(task.order, progress=progress), task.out, task.model
    train(order, task.split, out / "features", model, out / "train" / model)
    generate(order, task.split, out / "train" / model, out / "candidates" / model)


def train_one(order: Order, data: Path, model: str, out: Path) -> None:
    """A folder of `audit` -> a trained generator; the networks that look at it are trained first where they aren't there."""
    check_tracking(order)
    split = Split.open(data)
    check_generator(order, split, model)
    if order.config.looks.times:
        check_extractor(order)
        with storage.lock(data / "features"), Pool(order.workers) as pool:
            features(order, split, data / "features", pool)
    if order.config.pool.train:
        with storage.lock(data / "pool"):
            label_pool(order, split, data / "pool")
    train(order, split, data / "features", model, out)


def _gate_candidates(task: _GeneratorTask, progress: Progress) -> None:
    out, model = task.out, task.model
    gate(
        replace(task.order, progress=progress),
        task.split,
        out / "features",
        out / "candidates" / model,
        out / "gate" / model,
        model,
    )


def _map(
    pool: Pool, function: Callable[[_GeneratorTask, Progress], None], tasks: list[_GeneratorTask], last: str, progress: Progress
) -> None:
    """Runs the tasks in the pool; those whose `last` stage is finished are only checked, which needs no process."""
    todo = [task for task in tasks if not (task.out / last / task.model / storage.STAGE_MANIFEST).is_file()]
    for task in tasks:
        if task not in todo:
            function(task, progress)
    pool.map(function, todo, progress)


def run(order: Order, out: Path) -> dict[str, Any]:
    """The whole factory: real images -> verdict. Returns what verdict.json holds."""
    config = order.config
    gain_arms.check_arms(config.gain.arms, config.gain.study)
    check_extractor(order)
    check_tracking(order)
    training.pick_device(config.device)
    with storage.lock(out), storage.unfinished(out), Pool(order.workers) as pool:
        audit(order, out)
        split = Split.open(out)
        check_sizes(order, split)
        check_start(order, split)
        check_study(order, split, config.models)
        for model in config.models:
            check_generator(order, split, model)
        quiet = replace(order, progress=Silent())
        features(order, split, out / "features", pool)
        if config.pool.train:
            label_pool(order, split, out / "pool")
        longest_first = sorted(config.models, key=lambda model: LONGEST.index(model) if model in LONGEST else -1)
        _map(pool, _make_candidates, [_GeneratorTask(quiet, split, out, m) for m in longest_first], "candidates", order.progress)
        _map(pool, _gate_candidates, [_GeneratorTask(quiet, split, out, m) for m in config.models], "gate", order.progress)
        folders: dict[str, tuple[Path, Path]] = {m: (out / "candidates" / m, out / "gate" / m) for m in config.models}
        chosen = select(order, split, folders, out / "select", pool)
        report = None
        if chosen is not None:
            others = [name for name in config.models if name != chosen] if config.gain.study == "full" else []
            judged = [Judged.of(order, split, name, *folders[name]) for name in (chosen, *others)]
            made = sum(seconds for stage, seconds in _seconds(out).items() if stage.split("/")[0] in MAKING)
            contest = Contest.of(order, split, judged[0], judged[1:], out / "features", made)
            report = gain(order, contest, out / "gain", pool)
        gates: dict[str, GateReport] = {m: load_gate(out / "gate" / m) for m in config.models}
        verdict, reasons = conclude(gates, chosen, report)
        if chosen is not None:
            export(order, split, *folders[chosen], out / "shards", Decision(verdict, tuple(reasons), report))
        return _conclude(order, out, gates, chosen, report)


def assess(
    order: Order, real: Path, candidates: Path, out: Path, study_gain: bool, judged: Path | None = None
) -> dict[str, Any] | None:
    """Somebody's candidates against real images: the gate, and the gain study if asked for.

    Args:
        order: settings; `data` already points to the real images where they aren't split yet.
        real: a folder of `audit`, or a source of images.
        candidates: see `load_candidates`.
        out: run folder.
        study_gain: measure the gain, and conclude with a verdict.
        judged: a finished gate folder for these candidates, if there is one.
    """
    gain_arms.check_arms(order.config.gain.arms, order.config.gain.study)
    check_extractor(order)
    check_tracking(order)
    if order.config.pool.train:
        raise ConfigError("pool.train is for generators that are trained here, and these images are there already; leave it out")
    if not candidates.exists():
        raise DataError(f"{candidates}: no such file or folder; --candidates takes a folder of images, an export, or a .tar")
    with storage.lock(out), storage.unfinished(out), Pool(order.workers) as pool:
        split = open_or_make_split(order, real, out)
        check_sizes(order, split)
        if judged is None:
            check_start(order, split)
        if study_gain:
            check_study(order, split)
        _, _, digest = load_candidates(candidates, split.spec, order.config)
        name = candidates.stem
        if judged is None:
            features(order, split, out / "features", pool)
            gate(order, split, out / "features", candidates, out / "gate", name)
        else:
            check_judged(judged, split, digest)
            _adopt_gate(order, judged, out / "gate", name)
        judged = out / "gate"
        if not study_gain:
            return None
        report = load_gate(judged)
        studied = None
        if report.kept:
            contest = Contest.of(order, split, Judged.of(order, split, name, candidates, judged), (), out / "features")
            studied = gain(order, contest, out / "gain", pool)
        return _conclude(order, out, {name: report}, name if report.kept else None, studied)


def _adopt_gate(order: Order, judged: Path, out: Path, name: str) -> None:
    """Copies a gate's word into the run folder, so that the folder speaks for itself."""
    if judged.resolve() == out.resolve():
        return
    made = storage.read_manifest(judged)
    with order.stage(out, f"gate {name}", made["config"], made["inputs"]) as work:
        if not work.done:
            for file in made["files"]:
                work.write_bytes(file, (judged / file).read_bytes())


def _conclude(
    order: Order, out: Path, gates: dict[str, GateReport], chosen: str | None, report: GainReport | None
) -> dict[str, Any]:
    """verdict.json, the dashboard and the report."""
    verdict, reasons = conclude(gates, chosen, report)
    about = {
        "schema": VERDICT_SCHEMA,
        "verdict": verdict,
        "reasons": reasons,
        "best_generator": chosen,
        "arms": summarise_arms(report) if report else {},
        "gate": {
            name: {
                "verdict": gate_report.verdict,
                "reasons": list(gate_report.reasons),
                "candidates": gate_report.num_candidates,
                "kept": len(gate_report.kept),
                "dropped": gate_report.reason_counts(),
            }
            for name, gate_report in gates.items()
        },
        "seconds": _seconds(out),
        "shards": "shards" if (out / "shards" / manifest.NAME).is_file() else None,
        "report": "report/index.html",
    }
    storage.write_json(out / "verdict.json", about)
    write_config(order, out)
    make_report(order, out)
    track(order, out, about)
    return about


def conclude(gates: Mapping[str, GateReport], chosen: str | None, report: GainReport | None) -> tuple[Verdict, list[str]]:
    """The verdict: "use" needs an accepting gate and a proven gain; either of them alone can reject."""
    if chosen is None or report is None:
        every = [f"{name}: {reason}" for name, gate_report in gates.items() for reason in gate_report.reasons[:2]]
        return "reject", ["no generator has a sample that passed the gate", *every]
    judged = gates[chosen]
    gate_says = [f"gate, {chosen}: {judged.verdict}", *(f"gate, {chosen}: {reason}" for reason in judged.reasons[:3])]
    gain_says = [f"gain: {reason}" for reason in report.reasons]
    if judged.verdict == "reject":
        return "reject", [*gate_says, *gain_says]
    if report.verdict == "reject":
        return "reject", [*gain_says, *gate_says]
    if judged.verdict == "accept" and report.verdict == "use":
        return "use", [*gain_says, *gate_says]
    return "insufficient evidence", [*gain_says, *gate_says]


def summarise_arms(report: GainReport) -> dict[str, Any]:
    """Arm -> what it was trained on, its scores (means over seeds), cost, and its paired difference to the strongest
    real-only arm, both intervals over seeds and test images; None for what an arm hasn't."""
    against = {i.arm: i for i in report.intervals if i.baseline == report.best_real}
    accuracies = {a.arm: a for a in report.accuracies}
    summary = {}
    for arm in dict.fromkeys(row.arm for row in report.rows):
        rows, about, recipe = [row for row in report.rows if row.arm == arm], gain_arms.arm_of(arm), report.recipes[arm]
        accuracy, i = accuracies[arm], against.get(arm)
        dial = gain_arms.recipe_of(recipe).dial if about.role != "searched" else ""
        summary[arm] = {
            "meaning": about.meaning,
            "synthetic": about.synthetic,
            "simulation": about.role in ("oracle", "active"),
            "recipe": recipe,
            "dial": dial,
            "dial_value": report.tuned.get(recipe) if dial else None,
            "networks": rows[0].networks,
            "num_real": rows[0].num_real,
            "num_synthetic": rows[0].num_synthetic,
            "seeds": len(rows),
            "val_accuracy": _mean([row.val.accuracy if row.val else None for row in rows]),
            "test_accuracy": accuracy.accuracy,
            "low": accuracy.low,
            "high": accuracy.high,
            "difference": i.difference if i else 0.0,
            "difference_low": i.low if i else 0.0,
            "difference_high": i.high if i else 0.0,
            "boot_low": i.boot_low if i else None,
            "boot_high": i.boot_high if i else None,
            "p_holm": i.p_holm if i else None,
            "effect_size": i.effect_size if i else None,
            "macro_f1": _mean([row.test.macro_f1 for row in rows]),
            "worst_class": _mean([row.test.worst_class for row in rows]),
            "worst_group": _mean([row.test.worst_group for row in rows]),
            "ece": _mean([row.test.ece for row in rows]),
            "clean": _mean([row.clean for row in rows]),
            "seconds": round(sum(row.seconds for row in rows), 3),
            "device_seconds": round(sum(row.device_seconds for row in rows), 3),
            "best_real": arm == report.best_real,
            "best_synthetic": arm == report.best_synthetic,
        }
    return summary


def _mean(values: Sequence[float | None]) -> float | None:
    """None where a seed has no value."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _seconds(out: Path) -> dict[str, float]:
    """Wall seconds of every finished stage of a run."""
    folders = sorted(path.parent for path in out.rglob(storage.TIMING))
    return {folder.relative_to(out).as_posix(): storage.seconds(folder) for folder in folders}
