"""The verdict in plain words: what was found, why, and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from synthgen.report.evidence import Evidence
from synthgen.report.gate import in_words
from synthgen.report.wording import interval, num, pct, signed, words
from synthgen.types import GainReport, Interval

HEADLINES = {
    "use": "Use these samples.",
    "reject": "Don\u2019t use these samples.",
    "insufficient evidence": "There isn\u2019t enough evidence.",
}


def headline(verdict: Mapping[str, Any]) -> str:
    """The verdict as a sentence."""
    kind = str(verdict.get("verdict", ""))
    return HEADLINES.get(kind, f"Verdict: {kind}")


def explained(evidence: Evidence) -> str:
    """What the verdict means here, in one sentence; empty for a verdict of another version."""
    verdict, gain = evidence.verdict, evidence.gain
    kind, best = verdict.get("verdict"), evidence.generator(verdict.get("best_generator"))
    if kind == "use":
        return "Training on real and synthetic images together beat the best that real images alone could do."
    if kind == "reject":
        gate, lost = best.gate.verdict if best and best.gate else "", gain is not None and gain.verdict == "reject"
        if gate == "reject":
            rest = "and real images alone do as well" if lost else "whatever training on them gains"
            return f"The samples didn\u2019t pass the gate, {rest}."
        if lost:
            passed = "The samples passed the gate, but real" if gate == "accept" else "Real"
            return f"{passed} images alone do as well."
        return "No generator has samples that passed the gate." if not verdict.get("best_generator") else ""
    if kind == "insufficient evidence":
        if gain is not None and gain.verdict == "use":
            return "Training on them helps, but whether they are good enough as a set can\u2019t be told."
        return "With this many images and seeds, the difference can\u2019t be told from chance."
    return ""


def in_plain_words(evidence: Evidence, names: Mapping[str, str]) -> list[str]:
    """The reasons in the order in which they weigh, then what to do; one sentence each.

    Args:
        evidence: of the run.
        names: arm -> what it is, in words.
    """
    gain = evidence.gain
    best = evidence.generator(evidence.verdict.get("best_generator"))
    lines = [in_words(best)] if best else [in_words(each) for each in evidence.generators]
    if gain is not None:
        said = _gain(gain, names)
        lines = [*said, *lines] if gain.verdict != "reject" else [*lines, *said]
        lines += _worth(gain)
    lines.append(_advice(evidence, names))
    return [line for line in lines if line]


def first_interval(gain: GainReport) -> Interval | None:
    """The comparison with the strongest real-only arm that decided."""
    found = {(i.arm, i.baseline): i for i in gain.intervals}
    return next((found[pair] for pair in gain.decisive if pair in found), None)


def _gain(gain: GainReport, names: Mapping[str, str]) -> list[str]:
    first = first_interval(gain)
    if first is None:
        return []
    arm, base = (names.get(name, words(name)) for name in (first.arm, first.baseline))
    reached, without = (_accuracy(gain, name) for name in (first.arm, first.baseline))
    ends = f"95% interval {interval((first.low, first.high))}, {first.seeds} seeds"
    scores = f": {pct(reached)} against {pct(without)}" if reached is not None and without is not None else ""
    against = f"the strongest of real images alone ({base})"
    if first.low > 0:
        lines = [f"With them ({arm}) test accuracy is {num(round(first.difference, 2))} points above {against}{scores}; {ends}."]
    elif first.high < 0:
        lines = [f"With them ({arm}) test accuracy is {num(round(-first.difference, 2))} points below {against}{scores}; {ends}."]
    else:
        lines = [
            f"With them ({arm}) test accuracy differs by {signed(first.difference)} points from {against}{scores}; {ends}, "
            "so it may be no difference at all."
        ]
    intervals = {(i.arm, i.baseline): i for i in gain.intervals}
    others = [intervals[pair] for pair in gain.decisive if pair in intervals and intervals[pair] is not first]
    lost = [i for i in others if i.low <= 0]
    if lost and first.low > 0:
        against = ", ".join(dict.fromkeys(names.get(i.baseline, words(i.baseline)) for i in lost[:3]))
        are = "is" if len(lost) == 1 else "are"
        lines.append(f"But {len(lost)} of the {len(others) + 1} comparisons that decide {are} open: {against}.")
    harmed = [f"{c.kind} {c.name}" for c in gain.classes if c.harmed]
    if harmed:
        lines.append(f"Some lose by them: {', '.join(harmed[:5])}{' and others' if len(harmed) > 5 else ''}.")
    return lines


def _worth(gain: GainReport) -> list[str]:
    first, curve = first_interval(gain), gain.curve
    found = next((e for e in curve.exchange if first and e.arm == first.arm), None) if curve else None
    if found is None or found.equivalent is None:
        return []
    low, high = (None if end is None else f"{round(end):,}" for end in (found.low, found.high))
    ends = (
        f" (95% interval {low} to {high})"
        if low and high
        else f" (at least {low})"
        if low
        else f" (at most {high})"
        if high
        else ""
    )
    return [
        f"{found.num_real:,} real images with the synthetic ones are worth about {round(found.equivalent):,} real images{ends}."
    ]


def _advice(evidence: Evidence, names: Mapping[str, str]) -> str:
    kind, gain = evidence.verdict.get("verdict"), evidence.gain
    if kind == "use":
        where = "the exported shards" if evidence.manifest else "the kept samples"
        return f"What to do: train on your real images together with {where}."
    if kind == "reject":
        best = names.get(gain.best_real, words(gain.best_real)) if gain else ""
        return f"What to do: train on your real images alone{f' ({best})' if best else ''}."
    if kind == "insufficient evidence" and gain is not None:
        pairs = set(gain.decisive)
        unsettled = [i for i in gain.intervals if (i.arm, i.baseline) in pairs and i.low <= 0]
        if any(i.seeds_needed is None for i in unsettled):
            return "What to do: label more test images; more seeds alone can\u2019t settle it."
        if unsettled:
            seeds = max(max(i.seeds_needed or 0, i.seeds + 1) for i in unsettled)
            return f"What to do: run more classifier seeds, about {seeds} (gain.seeds={seeds})."
    return ""


def _accuracy(gain: GainReport, arm: str) -> float | None:
    found = [row.test.accuracy for row in gain.rows if row.arm == arm]
    return sum(found) / len(found) if found else None
