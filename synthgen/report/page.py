"""A run folder -> one self-contained HTML page that opens from disk, with no network and nothing beside it."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from synthgen.report import charts
from synthgen.report.audit import audit_view
from synthgen.report.evidence import Evidence, collect
from synthgen.report.samples import Sheets, generator_view
from synthgen.report.wording import duration, interval, num, pct, signed, words

HEADLINES = {
    "use": "Use these samples.",
    "reject": "Don\u2019t use these samples.",
    "insufficient evidence": "There isn\u2019t enough evidence.",
}
EXPLAINED = {
    "use": "Training on real and synthetic images together beat the best that real images alone could do.",
    "reject": "Real images alone do as well, or the samples didn\u2019t pass the gate.",
    "insufficient evidence": "With this many images and seeds, the difference can\u2019t be told from chance.",
}


def build(run: Path) -> str:
    """The report of a run as HTML, from what stands in its folder alone.

    Raises:
        DataError: no `verdict.json`. Any other part that is missing is said in the page.
    """
    return render(collect(run))


def render(evidence: Evidence) -> str:
    """The page of what `evidence.collect` has found."""
    from plotly.offline import get_plotlyjs

    sheets = Sheets()
    folder = Path(__file__).parent
    verdict = evidence.verdict
    names = arm_names(verdict)
    shown = [generator_view(evidence, generator, sheets) for generator in evidence.generators]
    plotly = get_plotlyjs().replace("\r\n", "\n").replace("</script", "<\\/script")
    script = (folder / "page.js").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "num": num,
        "signed": signed,
        "pct": pct,
        "duration": duration,
        "words": words,
        "interval": interval,
    }
    return environment.get_template("page.html").render(
        evidence=evidence,
        verdict=verdict,
        kind=verdict.get("verdict"),
        headline=HEADLINES.get(verdict.get("verdict", ""), f"Verdict: {verdict.get('verdict')}"),
        explained=EXPLAINED.get(verdict.get("verdict", ""), ""),
        facts=key_facts(evidence, names),
        generators=shown,
        names=names,
        forest=forest(evidence, names),
        arms=arms(verdict),
        audit=audit_view(evidence, sheets),
        cost=cost(evidence.seconds),
        command=f"synthgen run {shlex.quote(evidence.name + '/config.yaml')} --out {shlex.quote(evidence.name + '-again')}",
        sheets=sheets.css(),
        css=Markup((folder / "page.css").read_text(encoding="utf-8")),
        plotly=Markup(plotly),
        script=Markup(script),
        script_hashes=[_csp_hash(plotly), _csp_hash(script)],
    )


# What is said on top


def key_facts(evidence: Evidence, names: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(what, figure, explanation) of the figures that matter most."""
    verdict, facts = evidence.verdict, []
    best = verdict.get("best_generator")
    gain = evidence.gain
    for i in gain.intervals if gain else ():
        if gain and (i.arm, i.baseline) == next(iter(gain.decisive), None):
            compared = f"{_named(names, i.arm)}, against {_named(names, i.baseline)}"
            said = f"95% interval {interval((i.low, i.high))}, {i.seeds} seeds. {compared}"
            facts.append(("gain", f"{signed(i.difference)} points", said))
    if best:
        gate = (verdict.get("gate") or {}).get(best) or {}
        kept, candidates = gate.get("kept"), gate.get("candidates")
        share = f"{num(kept)} of {num(candidates)} samples passed the gate" if candidates else "not judged by the gate"
        facts.append(("best generator", str(best), f"{share}; the set: {gate.get('verdict', 'not judged')}"))
    if evidence.manifest:
        shards = evidence.manifest.shards
        files = f"{num(len(shards))} file{'s' if len(shards) != 1 else ''}, every one listed with its sha256"
        facts.append(("exported", f"{num(evidence.manifest.num_samples)} samples", files))
    if evidence.seconds:
        facts.append(("cost", duration(sum(evidence.seconds.values())), "all stages added up; some ran side by side"))
    return facts


# Gain, cost


def forest(evidence: Evidence, names: Mapping[str, str]) -> dict[str, Any] | None:
    """The differences of all arms: figure and rows; from the gain study, or else from the verdict."""
    gain, rows = evidence.gain, []
    decisive = gain.decisive if gain else ()
    for i in gain.intervals if gain else ():
        against = "" if gain and i.baseline == gain.best_real else f" (against: {_named(names, i.baseline)})"
        row = charts.Estimate(_named(names, i.arm) + against, i.difference, i.low, i.high, (i.arm, i.baseline) in decisive)
        rows.append(row)
    for arm, said in (evidence.verdict.get("arms") or {}).items() if not rows else ():
        mean, low, high = (said.get(key) for key in ("difference", "difference_low", "difference_high"))
        if all(isinstance(figure, (int, float)) for figure in (mean, low, high)) and not said.get("best_real"):
            rows.append(charts.Estimate(_named(names, arm), mean, low, high, False))
    if not rows:
        return None
    rows.sort(key=lambda row: -row.difference)
    return {
        "figure": charts.forest(rows, "difference, points of test accuracy"),
        "baseline": _named(names, gain.best_real) if gain else "the best arm of real images",
        "intervals": sorted(gain.intervals, key=lambda i: -i.difference) if gain else [],
        "decisive": decisive,
    }


def arm_names(verdict: Mapping[str, Any]) -> dict[str, str]:
    """Arm -> what it is, in words."""
    return {arm: str(said.get("meaning") or words(arm)) for arm, said in (verdict.get("arms") or {}).items()}


def _named(names: Mapping[str, str], arm: str) -> str:
    return names.get(arm, words(arm))


def arms(verdict: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The table of arms, the most accurate first; what the verdict doesn't say is None."""
    columns = ["test_accuracy", "low", "high", "seeds", "num_real", "num_synthetic", "seconds", "difference", "best_real"]
    rows = [
        {"name": name, **{column: arm.get(column) for column in columns}} for name, arm in (verdict.get("arms") or {}).items()
    ]
    return sorted(rows, key=lambda row: -(row["test_accuracy"] or 0))


def cost(seconds: Mapping[str, float]) -> list[tuple[str, float, float]]:
    """(stage, seconds, share of the longest)."""
    longest = max(seconds.values(), default=0) or 1
    return [(stage, value, value / longest) for stage, value in seconds.items()]


def _csp_hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
