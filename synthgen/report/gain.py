"""What the page says of the gain study: from `gain/gain.json`, and of each arm from `verdict.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from synthgen.report import charts
from synthgen.report.evidence import Evidence
from synthgen.report.wording import MINUS, words
from synthgen.types import MAKING, ClassGain, GainReport, Interval, LearningCurve

CLASSES_SHOWN = 60
"""Classes and groups in the table; the page says how many there are."""
FIT_POINTS = 80
SOURCES = {
    "train": "train",
    "train and val": "train, val added",
    "hidden labels": "simulation with hidden labels",
}


def gain_view(evidence: Evidence) -> dict[str, Any] | None:
    """Everything the page shows of the study; None where neither study nor arms are there."""
    gain, names = evidence.gain, arm_names(evidence.verdict)
    rows = arms(evidence)
    forest = forest_view(evidence, rows)
    if gain is None and not rows:
        return None
    return {
        "report": gain,
        "forest": forest,
        "decisive": _decisive(gain),
        "arms": rows,
        "has_groups": any(row["worst_group"] is not None for row in rows),
        "has_clean": any(row["clean"] is not None and row["clean"] != row["test_accuracy"] for row in rows),
        "curve": curve_view(gain),
        "classes": classes_view(gain),
        "cost": cost_view(evidence, rows),
        "names": names,
    }


def arm_names(verdict: Mapping[str, Any]) -> dict[str, str]:
    """Arm -> what it is, in words."""
    return {arm: str(said.get("meaning") or words(arm)) for arm, said in (verdict.get("arms") or {}).items()}


# Arms


COLUMNS = (
    "meaning", "synthetic", "simulation", "recipe", "dial", "dial_value", "networks", "num_real", "num_synthetic", "seeds",
    "val_accuracy", "test_accuracy", "low", "high", "difference", "difference_low", "difference_high", "boot_low", "boot_high",
    "p_holm", "effect_size", "macro_f1", "worst_class", "worst_group", "ece", "clean", "seconds", "device_seconds", "best_real",
    "best_synthetic",
)  # fmt: skip


def arms(evidence: Evidence) -> list[dict[str, Any]]:
    """The table of arms, the most accurate first; what the verdict doesn't say is None."""
    gain = evidence.gain
    deciding = {arm for arm, base in gain.decisive if base == gain.best_real} if gain else set()
    made_s = made_in_s(evidence)
    rows = []
    for name, said in (evidence.verdict.get("arms") or {}).items():
        row = {"name": name, **{column: said.get(column) for column in COLUMNS}, "decisive": name in deciding}
        seeds = row["seeds"] or 1
        for column in ("seconds", "device_seconds"):
            row[column] = row[column] / seeds if isinstance(row[column], (int, float)) else None
        row["whole_s"] = row["seconds"] + (made_s if row["synthetic"] else 0.0) if row["seconds"] is not None else None
        gains = None if row["best_real"] or row["simulation"] else row["difference"]  # what a simulation costs is labels
        row["per_minute"] = gains / (row["whole_s"] / 60) if gains and gains > 0 and row["whole_s"] else None
        rows.append(row)
    return sorted(rows, key=lambda row: -(row["test_accuracy"] or 0))


def made_in_s(evidence: Evidence) -> float:
    """Seconds of the generators, those that weren't chosen too, of their samples and the gate; 0 where somebody else made
    the images."""
    if f"train/{evidence.verdict.get('best_generator')}" not in evidence.seconds:
        return 0.0
    return sum(seconds for stage, seconds in evidence.seconds.items() if stage.split("/")[0] in MAKING)


def forest_view(evidence: Evidence, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The differences of all arms as a figure; from the study, or else from the verdict."""
    gain, known = evidence.gain, {row["name"]: row for row in rows}
    found = []
    for i in gain.intervals if gain else ():
        against = "" if gain and i.baseline == gain.best_real else f" {MINUS} {i.baseline}"
        decided, row = gain is not None and (i.arm, i.baseline) in gain.decisive, known.get(i.arm, {})
        meaning = f"{row.get('meaning') or words(i.arm)}{against}"
        found.append(charts.Estimate(i.arm + against, i.difference, i.low, i.high, decided, bool(row.get("synthetic")), meaning))
    for row in rows if not found else ():
        mean, low, high = (row[key] for key in ("difference", "difference_low", "difference_high"))
        if all(isinstance(figure, (int, float)) for figure in (mean, low, high)) and not row["best_real"]:
            meaning = str(row["meaning"] or words(row["name"]))
            found.append(charts.Estimate(row["name"], mean, low, high, False, bool(row["synthetic"]), meaning))
    if not found:
        return None
    found.sort(key=lambda row: -row.difference)
    return {
        "figure": charts.forest(found, "difference, points of test accuracy"),
        "baseline": gain.best_real if gain else next((row["name"] for row in rows if row["best_real"]), ""),
    }


def _decisive(gain: GainReport | None) -> list[Interval]:
    if gain is None:
        return []
    return [i for pair in gain.decisive for i in gain.intervals if (i.arm, i.baseline) == pair]


# The learning curve


def curve_view(gain: GainReport | None) -> dict[str, Any] | None:
    """Figure and rows of the learning curve; `best` is the arm whose equivalent is marked."""
    if gain is None or gain.curve is None or not gain.curve.points:
        return None
    curve = gain.curve
    sizes = [
        (charts.Size(point.num_real, *point.estimate, point.source), len(point.accuracies))
        for point in curve.points
        if point.accuracies
    ]
    reached = {}
    for exchange in curve.exchange:
        accuracies = [row.test.accuracy for row in gain.rows if row.arm == exchange.arm]
        if accuracies:
            reached[exchange.arm] = 100 * sum(accuracies) / len(accuracies)
    best = _marked(gain, list(reached))
    worths = {e.arm: charts.Worth(e.arm, reached[e.arm], e.equivalent, e.low, e.high) for e in curve.exchange if e.arm in reached}
    others = [worth for arm, worth in worths.items() if arm != best]
    outside = [n for e in curve.exchange if e.extrapolated and e.arm == best for n in (e.equivalent, e.low, e.high) if n]
    figure = charts.learning([size for size, _ in sizes], fitted(curve, outside), worths.get(best), others) if sizes else None
    return {
        "figure": figure,
        "report": curve,
        "sizes": [(size, SOURCES.get(size.source, size.source), num_seeds) for size, num_seeds in sizes],
        "sources": dict.fromkeys(size.source for size, _ in sizes),
        "exchange": sorted(curve.exchange, key=lambda e: (e.arm != best, -reached.get(e.arm, 0.0))),
        "reached": reached,
        "best": best,
        "others": len(others),
    }  # fmt: skip


def _marked(gain: GainReport, offered: Sequence[str]) -> str:
    """The synthetic arm that decided, or else the most accurate one on val: the test split chooses nothing here either."""

    def on_val(arm: str) -> float:
        found = [row.val.accuracy for row in gain.rows if row.arm == arm and row.val]
        return sum(found) / len(found) if found else 0.0

    first = next((arm for arm, _ in gain.decisive if arm in offered), None)
    return first or max(offered, key=on_val, default="")


def fitted(curve: LearningCurve, outside: Sequence[float]) -> list[tuple[float, float]]:
    """(number of images, accuracy in percent) along the fit, over the sizes and what lies outside; empty without a fit."""
    if curve.offset is None or curve.scale is None or curve.exponent is None:
        return []
    low = min(curve.points[0].num_real, *outside, curve.points[-1].num_real)
    high = max(curve.points[-1].num_real, *outside, low)
    ends = {float(curve.points[0].num_real), float(curve.points[-1].num_real)}
    steps = {low * (high / low) ** (i / FIT_POINTS) for i in range(FIT_POINTS + 1)} | ends
    return [(n, 100 * (1 - curve.offset - curve.scale * n**-curve.exponent)) for n in sorted(steps) if low <= n <= high]


# Classes, cost


def classes_view(gain: GainReport | None) -> dict[str, Any] | None:
    """Rows with the ends of their bars in percent of the scale; the harmed ones and the largest changes if there are many."""
    if gain is None or not gain.classes:
        return None
    shown = list(gain.classes)
    if len(shown) > CLASSES_SHOWN:
        most = sorted(shown, key=lambda c: (not c.harmed, -abs(c.difference)))[:CLASSES_SHOWN]
        shown = [c for c in shown if c in most]
    span = max(max(abs(c.low), abs(c.high), abs(c.difference)) for c in shown) or 1.0
    return {
        "rows": [(c, _bar(c, span)) for c in shown],
        "total": len(gain.classes),
        "harmed": [c for c in gain.classes if c.harmed],
        "has_groups": any(c.kind == "group" for c in gain.classes),
        "pair": next(iter(gain.decisive), None),
        "span": span,
    }


def _bar(c: ClassGain, span: float) -> dict[str, float]:
    """Places on a scale of 0 to 100 whose middle is no difference."""

    def at(value: float) -> float:
        return round(50 + 50 * max(-1.0, min(1.0, value / span)), 2)

    low, high, mean = at(c.low), at(c.high), at(c.difference)
    return {"low": low, "width": round(high - low, 2), "mean": mean, "from": min(50.0, mean), "long": round(abs(mean - 50), 2)}


def cost_view(evidence: Evidence, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What generator, samples, gate and study took, and the arms that matter side by side, the cheapest first."""
    best, seconds = evidence.verdict.get("best_generator"), evidence.seconds
    made = made_in_s(evidence)
    stages = {
        "the gate's networks": "features", "the generator": f"train/{best}", "its samples": f"candidates/{best}",
        "the gate": f"gate/{best}",
    }  # fmt: skip
    compared = {arm for pair in evidence.gain.decisive for arm in pair} if evidence.gain else set()
    matter = [row for row in rows if row["name"] in compared or row["best_real"] or row["best_synthetic"]]
    chosen = [row for row in matter if row["whole_s"] is not None]
    most = max((row["whole_s"] for row in chosen), default=0) or 1
    return {
        "made_s": made,
        "stages": [(what, seconds[stage]) for what, stage in stages.items() if made and stage in seconds],
        "study_s": seconds.get("gain"),
        "watts": evidence.gain.watts if evidence.gain else 0.0,
        "device": any(row["device_seconds"] for row in rows),
        "rows": [(row, row["whole_s"] / most) for row in sorted(chosen, key=lambda row: row["whole_s"])],
    }
