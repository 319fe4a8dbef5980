"""What the page says of the gate: each metric beside real against real, and how much of its limit is used up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from synthgen.report import gate_charts
from synthgen.report.evidence import Evidence, GeneratorEvidence
from synthgen.types import GateReport, Metric

SHARES = (*("precision", "recall", "coverage", "pixel_recall", "pixel_coverage", "label_agreement", "copy_share", "kept_share"),)
"""Metrics that lie in 0 to 1."""
SCALE = 2.0
"""Bars in the table end at this many times the limit."""


class MetricRow(NamedTuple):
    """A metric as it is shown.

    Attributes:
        metric: as the gate wrote it.
        real: what 95% of splits of real images score against each other; None where that isn't known.
        share: excess as a share of its limit with its 95% interval: 0 is as real images, 1 the limit, below 0 is better
            than real images; None without a limit.
    """

    metric: Metric
    real: tuple[float, float] | None
    share: tuple[float, float, float] | None

    @property
    def bar(self) -> tuple[float, float, float, float] | None:
        """Start and width of the bar, and of the interval's line, in percent of the scale from 0 to `SCALE` limits."""
        if self.share is None:
            return None
        at = [50 * SCALE / 2 * min(max(value, 0.0), SCALE) for value in self.share]
        return 0.0, at[0], at[1], at[2] - at[1]


def gate_view(evidence: Evidence) -> dict[str, Any]:
    """The rows of each generator's table, and the figures of all of them."""
    judged = [each for each in evidence.generators if each.gate]
    tables = {each.name: [metric_row(metric) for metric in each.gate.metrics] for each in judged if each.gate}
    best = evidence.verdict.get("best_generator")
    named = sorted(tables.items(), key=lambda item: item[0] != best)
    shares = {
        name: [gate_charts.Share(row.metric.name, *row.share) for row in rows if row.share is not None] for name, rows in named
    }
    return {
        "tables": tables,
        "limits": gate_charts.limits(shares) if any(shares.values()) else None,
        "planes": [
            (x, y, figure)
            for x, y in (("precision", "recall"), ("density", "coverage"))
            if (figure := plane(named, x, y, gate_charts.marks([name for name, _ in named]))) is not None
        ],
    }


def metric_row(metric: Metric) -> MetricRow:
    """A metric with the spread of real against real, which z tells."""
    real, share = None, None
    value, reference, excess = metric.value, metric.reference, metric.excess
    if value is None or reference is None or excess is None:
        return MetricRow(metric, None, None)
    if metric.z:
        half = 1.96 * abs(excess / metric.z)
        real = (reference - half, reference + half)
        if metric.name in SHARES:
            real = (max(real[0], 0.0), min(real[1], 1.0))
    if metric.limit and metric.low is not None and metric.high is not None:
        low, high = sorted((metric.low / metric.limit, metric.high / metric.limit))
        share = (excess / metric.limit, low, high) if math.isfinite(low) and math.isfinite(high) else None
    return MetricRow(metric, real, share)


def plane(
    tables: Sequence[tuple[str, Sequence[MetricRow]]], x: str, y: str, looks: Mapping[str, tuple[str, str]]
) -> dict[str, Any] | None:
    """Two metrics against each other, a point a generator beside real images; None where none has both."""
    points = []
    for name, rows in tables:
        by_name = {row.metric.name: row for row in rows}
        if x in by_name and y in by_name and by_name[x].metric.value is not None and by_name[y].metric.value is not None:
            points.append(gate_charts.Point(name, _axis(by_name[x]), _axis(by_name[y])))
    return gate_charts.plane(points, x, y, looks) if points else None


def _axis(row: MetricRow) -> gate_charts.Axis:
    metric = row.metric
    value, reference = metric.value or 0.0, metric.reference or 0.0
    low, high = metric.low or 0.0, metric.high or 0.0
    bound = None if metric.limit is None else reference + metric.limit
    return gate_charts.Axis(value, reference + low, reference + high, reference, row.real or (reference, reference), bound)


# In plain words

PLAIN: Mapping[str, str] = {
    "copy_share": "too many samples are copies of training images",
    "label_agreement": "judges trained on real images too often see another class in a sample than its label says",
    "kept_share": "too few samples pass the checks of single images",
    "fid": "as a set they differ too much from real images (FID)",
    "class_conditional_fid": "within their classes they differ too much from real images (FID by class)",
    "kid": "as a set they differ too much from real images (KID)",
    "mmd": "as a set they differ too much from real images (MMD)",
    "precision": "too many samples lie where no real images are (precision)",
    "density": "too many samples lie where real images are rare (density)",
    "recall": "they show too little of the variety of real images (recall)",
    "coverage": "too many real images have no sample near them (coverage)",
    "pixel_recall": "pixel by pixel they show too little of the variety of real images (recall in pixels)",
    "pixel_coverage": "pixel by pixel too many real images have no sample near them (coverage in pixels)",
    "defect_shift": "as a set they look more defective than real images",
    "support_shift": "as a set they lie further from real images than real images from each other",
    "low_level_shift": "as a set their sharpness, noise or contrast isn't that of real images",
    "vendi": "they vary too little (Vendi score)",
}
"""What it means that a metric breaks its limit."""


def in_words(generator: GeneratorEvidence) -> str:
    """The gate's word on a generator in one sentence."""
    gate = generator.gate
    if gate is None:
        return ""
    kept = f"{len(gate.kept):,} of {gate.num_candidates:,} samples of {generator.name} passed the checks of single images"
    if gate.verdict == "accept":
        return f"{kept}, and as a set they keep every limit that was set beside real images."
    faults = _faults(gate, "reject") or _thin(gate)
    open_ = _faults(gate, "insufficient evidence")
    if gate.verdict == "reject":
        return f"{kept}, but the gate turned them down: {_listed(faults) or 'see its reasons below'}."
    return f"{kept}, but the gate can't tell whether they are good enough: {_listed(open_) or 'see its reasons below'}."


def _faults(gate: GateReport, verdict: str) -> list[str]:
    found = [m for m in gate.metrics if m.verdict == verdict and m.limit is not None and m.value is not None]
    said = [PLAIN.get(m.name, m.name.replace("_", " ")) for m in found]
    return [f"perhaps {line}" for line in said] if verdict == "insufficient evidence" else said


def _thin(gate: GateReport) -> list[str]:
    empty = [c.name for c in gate.classes if c.candidates and not c.kept]
    return [f"no sample of {len(empty)} {'class' if len(empty) == 1 else 'classes'} was kept"] if empty else []


def _listed(parts: Sequence[str]) -> str:
    return "; ".join(parts[:4]) + (f"; and {len(parts) - 4} more" if len(parts) > 4 else "")
