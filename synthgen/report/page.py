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
from synthgen.report.evidence import Evidence, collect
from synthgen.report.samples import Sheets, generator_view
from synthgen.report.wording import duration, interval, num, pct, signed, words
from synthgen.types import GainReport

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
        DataError: no `verdict.json` or no `config.yaml`. Any other part that is missing is said in the page.
    """
    return render(collect(run))


def render(evidence: Evidence) -> str:
    """The page of what `evidence.collect` has found."""
    from plotly.offline import get_plotlyjs

    sheets = Sheets()
    folder = Path(__file__).parent
    verdict = evidence.verdict
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
        facts=key_facts(evidence),
        generators=shown,
        forest=forest(evidence),
        arms=arms(verdict),
        audit=outline(evidence.audit),
        cost=cost(evidence.seconds),
        command=f"synthgen run {shlex.quote(evidence.name + '/config.yaml')} --out {shlex.quote(evidence.name + '-again')}",
        sheets=sheets.css(),
        css=Markup((folder / "page.css").read_text(encoding="utf-8")),
        plotly=Markup(plotly),
        script=Markup(script),
        script_hashes=[_csp_hash(plotly), _csp_hash(script)],
    )


# What is said on top


def key_facts(evidence: Evidence) -> list[tuple[str, str, str]]:
    """(what, figure, explanation) of the figures that matter most."""
    verdict, facts = evidence.verdict, []
    best = verdict.get("best_generator")
    decisive = _decisive(evidence.gain)
    for interval_ in evidence.gain.intervals if evidence.gain else ():
        if (interval_.arm, interval_.baseline) == next(iter(decisive), None):
            facts.append(
                (
                    "gain",
                    f"{signed(interval_.difference)} points",
                    f"95% interval {signed(interval_.low)} to {signed(interval_.high)}; {words(interval_.arm)} against "
                    f"{words(interval_.baseline)}, {interval_.seeds} seeds",
                )
            )
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
        facts.append(("cost", duration(sum(evidence.seconds.values())), "wall time of all stages"))
    return facts


# Gain, audit, cost


def forest(evidence: Evidence) -> dict[str, Any] | None:
    """The differences of all arms: figure and rows; from the gain study, or else from the verdict."""
    rows = []
    decisive = _decisive(evidence.gain)
    for i in evidence.gain.intervals if evidence.gain else ():
        against = "" if i.baseline == (evidence.gain.best_real if evidence.gain else "") else f" against {words(i.baseline)}"
        rows.append(charts.Estimate(words(i.arm) + against, i.difference, i.low, i.high, (i.arm, i.baseline) in decisive))
    if not rows:
        for name, arm in (evidence.verdict.get("arms") or {}).items():
            mean, low, high = (arm.get(key) for key in ("difference", "difference_low", "difference_high"))
            if all(isinstance(figure, (int, float)) for figure in (mean, low, high)):
                rows.append(charts.Estimate(words(name), mean, low, high, False))
    if not rows:
        return None
    rows.sort(key=lambda row: -row.difference)
    baseline = words(evidence.gain.best_real) if evidence.gain else "the best arm of real images"
    return {
        "figure": charts.forest(rows, "difference, points of test accuracy"),
        "rows": rows,
        "baseline": baseline,
        "intervals": sorted(evidence.gain.intervals, key=lambda i: -i.difference) if evidence.gain else [],
        "decisive": decisive,
    }


def arms(verdict: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The table of arms, the most accurate first; what the verdict doesn't say is None."""
    columns = ["test_accuracy", "low", "high", "seeds", "num_real", "num_synthetic", "seconds", "difference"]
    rows = [
        {"name": name, **{column: arm.get(column) for column in columns}} for name, arm in (verdict.get("arms") or {}).items()
    ]
    return sorted(rows, key=lambda row: -(row["test_accuracy"] or 0))


def cost(seconds: Mapping[str, float]) -> list[tuple[str, float, float]]:
    """(stage, seconds, share of the longest)."""
    longest = max(seconds.values(), default=0) or 1
    return [(stage, value, value / longest) for stage, value in seconds.items()]


def outline(data: Mapping[str, Any] | None) -> list[tuple[str, str, Any]]:
    """JSON of any layout as blocks: ("facts", "", pairs), ("counts", title, pairs) or ("list", title, lines)."""
    if data is None:
        return []
    plain = {k: v for k, v in data.items() if k != "schema"}
    scalars = [(words(k), _shown(v)) for k, v in plain.items() if not isinstance(v, (dict, list))]
    blocks: list[tuple[str, str, Any]] = [("facts", "", scalars)] if scalars else []
    for key, value in plain.items():
        if isinstance(value, dict) and value:
            blocks.append(("counts", words(key), [(str(k), _shown(v)) for k, v in value.items()]))
        elif isinstance(value, list) and value:
            blocks.append(("list", words(key), [_shown(item) for item in value]))
        elif isinstance(value, (dict, list)):
            blocks.append(("facts", "", [(words(key), "none")]))
    return blocks


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "—"}[value]
    if isinstance(value, (int, float)):
        return num(value)
    if isinstance(value, dict):
        return ", ".join(f"{words(str(k))} {_shown(v)}" for k, v in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(_shown(item) for item in value) or "none"
    return str(value)


def _decisive(gain: GainReport | None) -> tuple[tuple[str, str], ...]:
    return gain.decisive if gain else ()


def _csp_hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
