"""A run folder -> one self-contained HTML page that opens from disk, with no network and nothing beside it."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from synthgen.report.audit import audit_view
from synthgen.report.evidence import Evidence, collect
from synthgen.report.gain import arm_names, gain_view
from synthgen.report.samples import Sheets, generator_view
from synthgen.report.wording import chance, duration, interval, num, pct, signed, words

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
        "chance": chance,
        "named": named,
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
        gain=gain_view(evidence),
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
            compared = f"{names.get(i.arm, words(i.arm))}, against {names.get(i.baseline, words(i.baseline))}"
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


# Cost


def cost(seconds: Mapping[str, float]) -> list[tuple[str, float, float]]:
    """(stage, seconds, share of the longest)."""
    longest = max(seconds.values(), default=0) or 1
    return [(stage, value, value / longest) for stage, value in seconds.items()]


def named(arm: str) -> Markup:
    """The name of an arm, which may break after an underscore."""
    return escape(arm).replace("_", Markup("_<wbr>"))


def _csp_hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
