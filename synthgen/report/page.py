"""A run folder -> one self-contained HTML page that opens from disk, with no network, and the same content as data."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import BytecodeCache, Environment, FileSystemLoader, StrictUndefined
from jinja2.bccache import Bucket
from markupsafe import Markup, escape

from synthgen.report import again, plain
from synthgen.report.audit import audit_view
from synthgen.report.data import as_data
from synthgen.report.evidence import Evidence, collect
from synthgen.report.gain import arm_names, gain_view
from synthgen.report.gate import gate_view
from synthgen.report.portable import Portable
from synthgen.report.samples import DETAILS, MOST_BYTES, Detail, generator_view
from synthgen.report.styles import Styles
from synthgen.report.wording import chance, duration, interval, num, pct, shorten, signed, visible, words

FOLDER = Path(__file__).parent
MAP_STYLES = re.compile(r"""(createElement\("style"\);e\.id="[0-9a-f]+",e\.textContent=)'(?:[^'\\]|\\.)*'""")
"""Styles of plotly's maps, which it would write into every page; there are no maps here, and the page's policy forbids it."""


class Report(NamedTuple):
    """A page, and its content as JSON types (`synthgen.report/1`, see `data.as_data`)."""

    html: str
    data: dict[str, Any]


def build(run: Path) -> str:
    """The report of a run as HTML, from what stands in its folder alone.

    Raises:
        DataError: no `verdict.json`. Any other part that is missing is said in the page.
    """
    return make(run).html


def make(run: Path) -> Report:
    """The report of a run as HTML and as data; raises as `build`.

    What is shown of the images is a selection, and only that is read.
    """
    evidence = collect(run)
    portable = Portable(evidence.folder, evidence.config)
    for detail in DETAILS:
        styles = Styles(detail.size_px)
        view = view_of(evidence, styles, detail)
        if styles.num_bytes <= MOST_BYTES:
            break
    title = f"{view['headline']} {evidence.name}, synthgen"
    return Report(render("body.html", title, view, styles, portable), portable.data(as_data(view)))


def view_of(evidence: Evidence, styles: Styles, detail: Detail = DETAILS[0]) -> dict[str, Any]:
    """Everything that a report says, for the page and for the data."""
    names, missing = arm_names(evidence.verdict), list(evidence.missing)
    return {
        "evidence": evidence,
        "verdict": evidence.verdict,
        "kind": evidence.verdict.get("verdict"),
        "headline": plain.headline(evidence.verdict),
        "explained": plain.explained(evidence),
        "in_words": plain.in_plain_words(evidence, names),
        "facts": key_facts(evidence, names),
        "generators": [generator_view(evidence, generator, styles, detail, missing) for generator in evidence.generators],
        "gate": gate_view(evidence),
        "gain": gain_view(evidence),
        "audit": audit_view(evidence, styles, missing),
        "cost": cost(evidence.seconds),
        "provenance": again.provenance(evidence),
        "stages": again.stages(evidence),
        "exported": again.exported(evidence),
        "commands": again.commands(evidence),
        "missing": missing,
    }


def render(template: str, title: str, view: Mapping[str, Any], styles: Styles, portable: Portable) -> str:
    """The page around a template: its styles, its policy, plotly and our script.

    Nothing in it is loaded from anywhere, and of its own scripts and styles only those run whose sha256 the policy names.
    """
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: portable.text(value) if type(value) is str else value,
        bytecode_cache=COMPILED,
    )
    environment.filters |= {
        "chance": chance, "named": named, "num": num, "signed": signed, "pct": pct, "duration": duration, "words": words,
        "interval": interval, "portable": portable.data, "short": shorten,
    }  # fmt: skip
    body = environment.get_template(template).render(view, styles=styles)
    scripts, css = _scripts(), (FOLDER / "page.css").read_text(encoding="utf-8")
    return environment.get_template("page.html").render(
        title=title,
        body=Markup(body),
        styles=[Markup(css), styles.css()],
        scripts=list(scripts),
        script_hashes=list(scripts.values()),
        style_hashes=[_csp_hash(css), _csp_hash(styles.css()), _csp_hash("")],  # plotly begins with an empty one
    )


class _Compiled(BytecodeCache):
    """Templates that this process has compiled: compiling them takes longer than all the rest of a page."""

    def __init__(self) -> None:
        self._known: dict[str, bytes] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        if bucket.key in self._known:
            bucket.bytecode_from_string(self._known[bucket.key])

    def dump_bytecode(self, bucket: Bucket) -> None:
        self._known[bucket.key] = bucket.bytecode_to_string()


COMPILED = _Compiled()


@cache
def _scripts() -> dict[Markup, str]:
    """plotly and our script, each with the hash by which the page's policy names it."""
    from plotly.offline import get_plotlyjs

    plotly = MAP_STYLES.sub(r"\1''", get_plotlyjs().replace("\r\n", "\n").replace("</script", "<\\/script"))
    script = (FOLDER / "page.js").read_text(encoding="utf-8")
    return {Markup(text): _csp_hash(text) for text in (plotly, script)}


# What is said on top


def key_facts(evidence: Evidence, names: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(what, figure, explanation) of the figures that matter most."""
    verdict, facts = evidence.verdict, []
    best = verdict.get("best_generator")
    first = plain.first_interval(evidence.gain) if evidence.gain else None
    if first:
        compared = f"{names.get(first.arm, words(first.arm))}, against {names.get(first.baseline, words(first.baseline))}"
        said = f"95% interval {interval((first.low, first.high))}, {first.seeds} seeds. {compared}"
        facts.append(("gain", f"{signed(first.difference)} points", said))
    if best:
        gate = (verdict.get("gate") or {}).get(best) or {}
        kept, candidates = gate.get("kept"), gate.get("candidates")
        share = f"{num(kept)} of {num(candidates)} samples passed the gate" if candidates else "not judged by the gate"
        facts.append(("best generator", str(best), f"{share}; the set: {gate.get('verdict', 'not judged')}"))
    if evidence.manifest:
        formats = list(dict.fromkeys(shard.format for shard in evidence.manifest.shards))
        said = f"all of them in each of {len(formats)} formats: {', '.join(formats)}" if len(formats) > 1 else f"as {formats[0]}"
        facts.append(("exported", f"{num(evidence.manifest.num_samples)} samples", said if formats else "no files"))
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
    return escape(visible(arm)).replace("_", Markup("_<wbr>"))


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
