"""Run folder -> the run on a dashboard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from synthgen import elsewhere, logs, storage, tracking
from synthgen.jobs.gates import load_gate
from synthgen.jobs.looks import grid, png
from synthgen.jobs.order import CANDIDATES, CHECKPOINT, Order
from synthgen.shards import manifest, raw
from synthgen.tracking import Tracker
from synthgen.types import GainReport, LearningCurve, Metric

RANK = {"use": 2, "insufficient evidence": 1, "reject": 0}
"""Of a verdict, so that runs can be sorted by it."""


def check_tracking(order: Order) -> None:
    """Refuses a dashboard that can't be had, before anything is computed.

    Raises:
        ConfigError: tracking=tensorboard without TensorBoard.
    """
    logs.check(order.config.tracking)


def track(order: Order, out: Path, about: Mapping[str, Any]) -> None:
    """The run on its dashboard: curves, sample grids, gate and gain with tables and plots, checkpoints, shards, summary.

    Args:
        order: settings; `tracking` says which dashboard.
        out: run folder, finished.
        about: what verdict.json holds.
    """
    config = order.config
    if config.tracking == "off":
        return
    settings = config.model_dump(mode="json", exclude={"data": {"path"}})
    group = config.group or _data_set(out) or config.name
    what = [{name: value for name, value in settings.items() if name not in ("tracking", "workers")}, about]
    private = _places(config.model_dump(mode="json"))
    with tracking.open_run(config.tracking, config.project, group, config.name, out, settings, what, private) as run:
        for name in about["gate"]:
            _generator(run, out, name)
            _gate(run, _judged(out, name), name)
        studied = out / "gain" / "gain.json"
        report = GainReport.from_json(storage.read_json(studied), str(studied)) if about["arms"] else None
        if report:
            _gain(run, about["arms"], report)
        lineage = {name: _checkpoint(run, out, config.name, name) for name in about["gate"]}
        if about["shards"]:
            _shards(run, out, config.name, lineage)
        run.summary(_summary(out, about, report))
        if about["verdict"] == "reject":
            run.alert(f"{config.name}: reject", "\n".join(about["reasons"]))
    if run.where:
        order.progress.finish("tracking", f"{config.tracking}: {run.where}")


def _places(settings: Any) -> list[str]:
    """Every place on this machine that the settings name."""
    if isinstance(settings, Mapping):
        return [place for value in settings.values() for place in _places(value)]
    if isinstance(settings, (list, tuple)):
        return [place for value in settings for place in _places(value)]
    return [settings] if isinstance(settings, str) and elsewhere.ON_THIS_MACHINE.match(settings) else []


def _data_set(out: Path) -> str:
    """The name of the data set; empty where the run has no split of its own."""
    path = out / "split" / "dataset.json"
    return str(storage.read_json(path)["name"]) if path.is_file() else ""


# Generators


def _generator(run: Tracker, out: Path, name: str) -> None:
    """Losses, learning rates, and the looks with a grid of the same noise and labels each; then the candidates."""
    trained, candidates = out / "train" / name, out / "candidates" / name / CANDIDATES
    axis = f"train/{name}/step"
    if (trained / "train.json").is_file():
        about = storage.read_json(trained / "train.json")
        losses = about["losses"]["loss"]
        run.curve(f"train/{name}/loss", axis, losses)
        rates = [(step, logs.named(now)) for (step, _), now in zip(losses, about.get("learning_rates", ()), strict=False)]
        for rate in dict.fromkeys(key for _, each in rates for key in each):
            run.curve(f"train/{name}/{rate}", axis, [(step, each[rate]) for step, each in rates if rate in each])
        for figure in dict.fromkeys(key for look in about["looks"] for key in look if key != "step"):
            points = [(look["step"], look[figure]) for look in about["looks"] if figure in look]
            run.curve(f"looks/{name}/{figure}", axis, points)
        for look in about["looks"]:
            picture = trained / "looks" / f"step-{look['step']:06d}.png"
            if picture.is_file():
                run.image(f"looks/{name}/samples", picture.read_bytes(), f"{name}, step {look['step']}", axis, look["step"])
    if candidates.is_file():
        run.image(f"samples/{name}", png(grid(raw.read(candidates))), f"{name}: the first candidates of each class")


def _judged(out: Path, name: str) -> Path:
    """The gate's folder: of a generator, or of the one set that was judged."""
    return out / "gate" / name if (out / "gate" / name).is_dir() else out / "gate"


def _gate(run: Tracker, judged: Path, name: str) -> None:
    if (judged / "gate.json").is_file():
        columns = ["metric", "value", "real_against_real", "excess", "low", "high", "z", "limit", "verdict"]
        metrics = load_gate(judged).metrics
        rows = [[m.name, m.value, m.reference, m.excess, m.low, m.high, m.z, m.limit, m.verdict] for m in metrics]
        run.table(f"gate/{name}", columns, rows)


# Gain


def _gain(run: Tracker, arms: Mapping[str, Any], report: GainReport) -> None:
    """Every part of the study as a table; the learning curve and the arms as plots."""
    run.table("gain/arms", ["arm", *next(iter(arms.values()))], [[arm, *values.values()] for arm, values in arms.items()])
    curve = report.curve
    found: dict[str, list[dict[str, Any]]] = {
        "intervals": [asdict(i) | {"decisive": (i.arm, i.baseline) in report.decisive} for i in report.intervals],
        "exchange": [asdict(e) for e in curve.exchange] if curve else [],
        "controls": [asdict(control) for control in report.controls],
        "classes": [asdict(c) for c in report.classes],
        "advice": [{"advice": line} for line in report.advice],
        "skipped": [{"arm": arm, "reason": why} for arm, why in report.skipped.items()],
    }
    for name, rows in found.items():
        if rows:
            run.table(f"gain/{name}", list(rows[0]), [list(row.values()) for row in rows])
    if any(i.baseline == report.best_real for i in report.intervals):
        run.plot("gain/plot/arms", forest(report))
    if curve and curve.points:
        means = [(point.num_real, sum(point.accuracies) / len(point.accuracies)) for point in curve.points]
        run.curve("gain/curve/accuracy", "gain/curve/num_real", means)
        run.plot("gain/plot/learning_curve", learning_curve(curve))


def forest(report: GainReport) -> Any:
    """The arms' differences to the strongest real-only arm with their 95% intervals, the best on top."""
    import plotly.graph_objects as go

    rows = sorted((i for i in report.intervals if i.baseline == report.best_real), key=lambda i: i.difference)
    ends = {"array": [i.high - i.difference for i in rows], "arrayminus": [i.difference - i.low for i in rows]}
    marks = ["diamond" if (i.arm, i.baseline) in report.decisive else "circle" for i in rows]
    figure = go.Figure()
    figure.add_scatter(
        x=[i.difference for i in rows],
        y=[i.arm for i in rows],
        error_x={"type": "data", "symmetric": False, **ends},
        mode="markers",
        marker={"symbol": marks, "size": 9},
    )
    figure.add_vline(x=0)
    title = f"test accuracy minus that of {report.best_real}, in points"
    figure.update_layout(xaxis_title=title, height=120 + 24 * len(rows), showlegend=False)
    return figure


def learning_curve(curve: LearningCurve) -> Any:
    """Accuracy over the number of labelled real images with 95% intervals over seeds and test images, and what synthetic arms
    are worth."""
    import plotly.graph_objects as go

    sizes = [point.num_real for point in curve.points]
    found = [point.estimate for point in curve.points]
    ends = {"array": [high - mean for mean, _, high in found], "arrayminus": [mean - low for mean, low, _ in found]}
    figure = go.Figure()
    figure.add_scatter(
        x=sizes,
        y=[mean for mean, _, _ in found],
        error_y={"type": "data", "symmetric": False, **ends},
        mode="markers+lines",
        name=f"real only: {curve.recipe}",
    )
    for exchange in curve.exchange:
        if exchange.equivalent is not None:
            figure.add_vline(x=exchange.equivalent, line_dash="dot", annotation_text=exchange.arm)
    figure.update_xaxes(type="log", title="labelled real images")
    figure.update_yaxes(title="test accuracy, %")
    return figure


# Artifacts


def _checkpoint(run: Tracker, out: Path, prefix: str, name: str) -> dict[str, str]:
    """Sends a checkpoint with what it was made from; returns what the shards say of it."""
    path, folder = out / "train" / name / CHECKPOINT, out / "train" / name
    if not path.is_file():
        return {}
    made = storage.read_manifest(folder)
    sha256 = made["files"][CHECKPOINT]["sha256"]
    alias = f"sha256-{sha256[:16]}"
    inputs = {f"{key}_digest": value for key, value in made["inputs"].items()}
    about = {"checkpoint_sha256": sha256, "config_digest": storage.sha256_json(made["config"]), "code": made["code"]}
    run.artifact(f"{prefix}-{name}", "model", {CHECKPOINT: path}, {"generator": name, **about, **inputs}, alias)
    return {"checkpoint": f"{prefix}-{name}:{alias}", "checkpoint_sha256": sha256}


def _shards(run: Tracker, out: Path, prefix: str, checkpoints: Mapping[str, Mapping[str, str]]) -> None:
    """Sends the shards, which say which checkpoint artifact they come from.

    In their metadata: wandb refuses `use_artifact` offline ("Cannot use artifact when in offline mode", 0.31).
    """
    folder = out / "shards"
    whole = manifest.read(folder)
    inputs = {f"{key}_digest": value for key, value in storage.read_manifest(folder)["inputs"].items()}
    by_hash = {said["checkpoint_sha256"]: dict(said) for said in checkpoints.values() if said}
    source = by_hash.get(whole.provenance.checkpoint, {"checkpoint_sha256": whole.provenance.checkpoint})
    about = {"num_samples": whole.num_samples, "gate_verdict": whole.gate_verdict, "config_digest": whole.provenance.config}
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    own = {name: path for name, path in files.items() if name not in (storage.STAGE_MANIFEST, storage.TIMING, storage.LOCK)}
    run.artifact(f"{prefix}-shards", "dataset", own, {**about, **source, **inputs})


# Summary


def _summary(out: Path, about: Mapping[str, Any], report: GainReport | None) -> dict[str, Any]:
    """Fields that runs are sorted by; what a run hasn't is left out."""
    found: dict[str, Any] = {"verdict": about["verdict"], "verdict_rank": RANK[about["verdict"]]}
    found["best_generator"] = about["best_generator"]
    for name, gate in about["gate"].items():
        found[f"gate/{name}/verdict"] = gate["verdict"]
        found[f"gate/{name}/kept_share"] = gate["kept"] / max(1, gate["candidates"])
        judged = _judged(out, name)
        if (judged / "gate.json").is_file():
            found |= {f"gate/{name}/{key}": v for m in load_gate(judged).metrics for key, v in _of_metric(m)}
    if (out / "select" / "select.json").is_file():
        selected = storage.read_json(out / "select" / "select.json")
        for name, scores in selected["scores"].items():
            found |= {f"select/{name}/{key}": scores[key] for key in ("val_loss", "val_accuracy")}
        if selected["chosen"]:
            best = selected["scores"][selected["chosen"]]
            found |= {f"select/{key}": best[key] for key in ("val_loss", "val_accuracy")}
    if report:
        found |= _of_gain(report)
    found |= {f"seconds/{stage}": s for stage, s in about["seconds"].items()}
    return {**found, "seconds/all": sum(s for stage, s in about["seconds"].items() if stage != "split")}  # audit's time has it


def _of_metric(metric: Metric) -> Iterator[tuple[str, float]]:
    """A metric, the same of real against real, and their difference."""
    for name, value in (("", metric.value), ("/real_against_real", metric.reference), ("/excess", metric.excess)):
        if value is not None:
            yield metric.name + name, value


def _of_gain(report: GainReport) -> dict[str, Any]:
    first = next((i for i in report.intervals if (i.arm, i.baseline) == next(iter(report.decisive), None)), None)
    found: dict[str, Any] = {"verdict": report.verdict, "best_real": report.best_real, "best_synthetic": report.best_synthetic}
    if first:
        found |= {"arm": first.arm, "baseline": first.baseline, "difference": first.difference}
        found |= {"low": first.low, "high": first.high, "p_holm": first.p_holm}
    for exchange in report.curve.exchange if report.curve else ():
        if exchange.arm == report.best_synthetic and exchange.factor is not None:
            found["exchange_factor"] = exchange.factor
    return {f"gain/{name}": value for name, value in found.items()}
