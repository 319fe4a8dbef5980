"""Names of classes, files, generators and runs are text wherever they are shown: in pages, cards, tables and on the screen."""

from __future__ import annotations

import csv
import errno
import io
import json
import re
import shutil
import subprocess
import unicodedata
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import markdown
import numpy as np
import pytest
import yaml
from rich.console import Console

from synthgen import cli, logs, screen, storage, tracking
from synthgen.report import compare, page
from synthgen.report.evidence import read_gate
from synthgen.shards import card, croissant, manifest
from synthgen.types import DatasetSpec
from tests.contract.test_report import fake_run
from tests.faults import targets

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--virtual-time-budget=5000", "--dump-dom",
]  # fmt: skip
RAN = "document.documentElement.id='it-ran'"
MARKUP = (
    f"<script>{RAN}</script>", f"</script><script>{RAN}</script>", f"<img src=x onerror={RAN}>", f"<svg/onload={RAN}>",
    f"\" onfocus={RAN} autofocus x=\"", f"' onmouseover={RAN} '", f"</title><script>{RAN}</script>",
    f"</style><script>{RAN}</script>",
    f"--><script>{RAN}</script>", f"<a href=javascript:{RAN}>x</a>", f"[x](javascript:{RAN})", f"![x](x onerror={RAN})",
    "{{ 7*7 }}{% raw %}", "&lt;script&gt;", "<iframe srcdoc='<script>x</script>'>", f"<math><mtext><script>{RAN}</script>",
    "]]><script>x</script>", "<base href=//evil.example>", "<meta http-equiv=refresh content=0;url=//evil.example>",
    "a|b|c", "`code`", "---\nlicense: evil\n---", "x\n\n# Heading", "<!--", "<![CDATA[", "\\u003cscript\\u003e",
)  # fmt: skip
UNSEEN = ("a\x1b[31mred", "b\x1b]8;;https://evil.example\x07link", "c\x1b]0;title\x07", "d\x9b2J", "e\u202egnp.exe",
          "f\u2066g\u2069", "h\x08\x08\x08i", "j\rk", "l\x07", "m\u200bn", "o\u061cp", "q\U000e0041",
          "r\nverdict: use")  # fmt: skip
FORMULAS = ("=cmd|'/C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1", " =1", "\r=1")
NAMES = (*MARKUP, *UNSEEN)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run in which every name there can be is hostile, one after the other."""
    rng, folder = np.random.default_rng(1), tmp_path_factory.mktemp("runs")
    classes = NAMES
    labels = np.arange(4 * len(classes)) % len(classes)
    images = rng.integers(0, 256, (len(labels), 3, 8, 8), dtype=np.uint8)
    spec = DatasetSpec(MARKUP[0], (3, 8, 8), classes, False, "f" * 64)
    generator = MARKUP[2]
    run = fake_run(folder / re.sub(r"[/\x00]", "", MARKUP[3]), spec, images, labels, ("vae", generator))
    _spoil(run / "audit/report.json", {"notes": [*NAMES], "quarantined": {name: name for name in NAMES}})
    _spoil(
        run / "audit/report.json", {"class_counts": dict.fromkeys(NAMES, 1), "sizes": {MARKUP[0]: 3}, "converted": {MARKUP[1]: 2}}
    )
    verdict = storage.read_json(run / "verdict.json")
    arm = next(iter(verdict["arms"].values()))
    arms = {name: arm | {"meaning": name, "recipe": name} for name in NAMES}
    _spoil(run / "verdict.json", {"reasons": [*NAMES], "arms": verdict["arms"] | arms})
    for name in ("vae", generator):
        gate = storage.read_json(run / "gate" / name / "gate.json")
        metric, planted = gate["metrics"][0], gate["planted"][0]
        _spoil(run / "gate" / name / "gate.json", {
            "reasons": [*NAMES], "notices": [*NAMES], "extractor": MARKUP[0],
            "metrics": [*gate["metrics"], *(metric | {"name": name, "note": name} for name in NAMES)],
            "planted": [planted | {"name": name} for name in NAMES], "dropped": {key: [*MARKUP[:4]] for key in gate["dropped"]},
            "classes": [gate["classes"][1] | {"name": name, "note": name} for name in NAMES],
        })  # fmt: skip
    gain = storage.read_json(run / "gain/gain.json")
    interval = gain["intervals"][0]
    _spoil(run / "gain/gain.json", {
        "advice": [*NAMES], "reasons": [*NAMES], "skipped": {name: name for name in NAMES},
        "intervals": [*gain["intervals"], *(interval | {"arm": name} for name in NAMES)],
        "controls": [gain["controls"][0] | {"question": name, "answer": name} for name in NAMES],
        "classes": [gain["classes"][0] | {"name": name} for name in NAMES],
    })  # fmt: skip
    settings = {"name": "x", "data": {"path": MARKUP[0]}, "group": MARKUP[1], "export": {"licence": MARKUP[2]}}
    storage.write_text(run / "config.yaml", yaml.safe_dump(settings))
    return run


def _spoil(path: Path, changed: dict) -> None:
    storage.write_json(path, storage.read_json(path) | changed)


@pytest.fixture(scope="module")
def pages(run, tmp_path_factory) -> dict[str, str]:
    """The report of that run, and the comparison with its like."""
    other = shutil.copytree(run, tmp_path_factory.mktemp("other") / ("2 " + run.name))
    return {"report": page.build(run), "compare": compare.page(compare.compared([run, other]))}


class Elements(HTMLParser):
    """Every element with its attributes, and the texts of scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[str] = []
        self._in_script = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, {name: value or "" for name, value in attrs}))
        self._in_script = tag == "script"
        if self._in_script:
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._in_script = False

    def handle_data(self, data):
        if self._in_script:
            self.scripts[-1] += data


ALLOWED = {
    "a", "body", "br", "caption", "code", "dd", "details", "div", "dl", "dt", "em", "figcaption", "figure", "footer", "h1",
    "h2", "h3", "h4", "head", "header", "html", "i", "li", "link", "main", "meta", "nav", "noscript", "ol", "p", "pre",
    "script", "section", "span", "strong", "style", "summary", "sup", "table", "tbody", "td", "th", "thead", "title", "tr",
    "ul", "wbr",
}  # fmt: skip
"""Elements of our own pages."""


def active(html: str, scripts: int) -> list[str]:
    """Everything in a page that could do something, but for so many scripts of ours."""
    elements = Elements(html)
    wrong = [f"<{tag}>" for tag, _ in elements.found if tag not in ALLOWED]
    wrong += [
        f"{tag} {n}" for tag, attributes in elements.found for n in attributes if n.startswith("on") or n in ("style", "srcdoc")
    ]
    wrong += [
        f"{n}={v[:40]}"
        for _, a in elements.found
        for n, v in a.items()
        if n in ("href", "src") and not v.startswith(("#", "data:"))
    ]
    programs = [
        attributes for tag, attributes in elements.found if tag == "script" and attributes.get("type") != "application/json"
    ]
    wrong += ["another script"] * (len(programs) != scripts)
    wrong += ["a refresh" for tag, a in elements.found if tag == "meta" and a.get("http-equiv", "").lower() == "refresh"]
    return wrong


@pytest.mark.parametrize("name", ["report", "compare"])
def test_no_name_is_markup_in_a_page(name, pages, tally):
    html = pages[name]
    wrong = active(html, scripts=2)
    wrong += [] if 'http-equiv="Content-Security-Policy" content="default-src \'none\';' in html else ["no policy"]
    for text in Elements(html).scripts[:-2]:
        try:
            json.loads(text)  # a figure
        except ValueError:
            wrong.append(f"a script that is no figure: {text[:99]}")
    plotly = next(iter(page._scripts()))
    hidden = {char for char in html if unicodedata.category(char) in ("Cc", "Cf") and char not in "\n\t\r\xad\u200d"}
    wrong += [f"an unseen {char!r}" for char in hidden if char not in plotly]
    tally("scripts", cases=len(NAMES), bad=len(wrong))
    assert not wrong


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: apt-get install chromium)")
@pytest.mark.parametrize("name", ["report", "compare"])
def test_a_browser_runs_nothing_but_our_scripts(name, pages, tmp_path, tally):
    """Without the page's policy too, which would stop a script that got in."""
    bare = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", pages[name])
    assert bare != pages[name]
    wrong = []
    for html in (pages[name], bare):
        path = tmp_path / "page.html"
        path.write_text(html, encoding="utf-8", errors="surrogatepass")
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", path.as_uri()]
        dom = subprocess.run(command, capture_output=True, text=True, timeout=100).stdout
        assert "</html>" in dom
        assert "js-plotly-plot" in dom, "our own script ran"
        found = Elements(dom).found
        wrong += [f"<{tag}>" for tag, _ in found if tag in ("img", "iframe", "base", "math", "object", "embed", "foreignobject")]
        wrong += [f"{tag} {name}" for tag, attributes in found for name in attributes if name.startswith("on")]
        wrong += [
            f"{name}={v}" for _, a in found for name, v in a.items() if name.endswith("href") and not v.startswith(("#", "data:"))
        ]
        wrong += ["it ran"] * any(attributes.get("id") == "it-ran" for _, attributes in found)
        programs = [a for tag, a in found if tag == "script" and a.get("type") != "application/json"]
        wrong += ["another script"] * (len(programs) != 2)
    tally("scripts", cases=2 * len(NAMES), bad=len(wrong))
    assert not wrong


def test_no_name_is_markup_in_a_card(tmp_path, tally):
    """As Markdown and as the YAML at its head; every name in every place of the manifest."""
    whole = manifest.read(targets._export(tmp_path / "export"))
    wrong = []
    for name in NAMES:
        told = json.loads(json.dumps(whole.evidence).replace('"fine"', json.dumps(name)).replace('"fid"', json.dumps(name)))
        told["gain"]["pairs"][0] |= {"arm": name, "baseline": name}
        told["gain"]["best_real"] = told["gate"]["extractor"] = told["gate"]["verdict"] = name
        told["gate"] |= {"dropped": {name: 1}, "notices": [name], "reasons": [name]}
        told["reasons"] = [name]
        hostile = replace(
            whole,
            spec=replace(whole.spec, name=name, class_names=(name, "b", "c")),
            class_counts={name: 2, "b": 2, "c": 2},
            licence=name,
            evidence=told,
            provenance=replace(
                whole.provenance,
                checkpoint=name,
                code=name,
                sampler=name,
                device=name,
                libraries={name: name},
                parents={name: name},
            ),
        )
        text = card.text(hostile)
        head, body = re.fullmatch(r"---[\r\n]+([\S\s]*?)[\r\n]+---[\r\n]([\S\s]*)", text).groups()  # as the Hub parts them
        if list(yaml.safe_load(head)) != ["pretty_name", "license", "task_categories", "size_categories", "tags", "configs"]:
            wrong.append(f"{name!r} changes the head of the card")
        html = markdown.markdown(body, extensions=["tables"])
        wrong += [f"{name!r}: {found}" for found in active(html, scripts=0)]
        tables, headings = html.count("<table>"), html.count("<h")
        if (tables, headings) != (3, html.count("<h2>") + 1) or html.count("<h2>") != 6:
            wrong.append(f"{name!r} changes the structure of the card")
        wrong += [f"{name!r}: {char!r} in the card" for char in set(text) if not char.isprintable() and char != "\n"]
        json.loads(croissant.text(hostile))
    tally("scripts", cases=len(NAMES), bad=len(wrong))
    assert not wrong


def test_no_name_moves_the_cursor_or_fakes_a_line(run, tally):
    """On the screen: tables, progress, and what is printed as JSON."""
    verdict, audit = (storage.read_json(run / name) for name in ("verdict.json", "audit/report.json"))
    wrong = []
    for terminal in (False, True):
        out = io.StringIO()
        console = Console(file=out, force_terminal=terminal, color_system=None, width=300, highlight=False, soft_wrap=True)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(screen, "output", lambda console=console: console)
            screen.show_verdict(verdict, UNSEEN[0], console)
            screen.show_gate(read_gate(run / "gate/vae/gate.json"), UNSEEN[1])
            screen.show_audit(audit, UNSEEN[2])
            screen.show_compare(_compared(), UNSEEN[3])
        with screen.Screen(console=console) as watched:
            for name in NAMES:
                watched.start(name, 2)
                watched.advance(name, 1, name)
                watched.finish(name, name)
        text = re.sub(r"\x1b\[(\?25[hl]|\d*[A-K]|\d*m|0;?)|\r", "", out.getvalue()) if terminal else out.getvalue()
        wrong += [f"{char!r} in {line!r}" for line in text.splitlines() for char in line if _commands(char)]
        wrong += [line for line in text.splitlines() if line.startswith("verdict: use")]
    tally("scripts", cases=2 * len(NAMES), bad=len(wrong))
    assert not wrong


def _compared() -> dict:
    rows = [{"section": name, "name": name, "cells": [name, "use"]} for name in NAMES]
    return {
        "columns": [*NAMES[:2]],
        "rows": rows,
        "settings": [{"key": name, "values": [name, None]} for name in NAMES],
        "notes": NAMES,
    }


def _commands(char: str) -> bool:
    return (
        unicodedata.category(char) in ("Cc", "Zl", "Zp", "Cs")
        or char in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200b"
    )


def test_a_path_in_an_error_of_the_disk_moves_nothing(tally, monkeypatch):
    said = []
    monkeypatch.setattr(cli.typer, "echo", lambda text, err: said.append(text))
    wrong = []
    for name in NAMES:
        cli._trouble_of_the_disk(OSError(errno.ENAMETOOLONG, "File name too long", f"/tmp/{name}"))
        wrong += [f"{char!r} in {said[-1]!r}" for char in said[-1] if _commands(char)]
        assert said[-1].endswith("File name too long; give another path")
    tally("scripts", cases=len(NAMES), bad=len(wrong))
    assert not wrong


def test_json_on_the_screen_is_whole_and_moves_nothing(capsys, tally):
    screen.show_json({name: [name] for name in NAMES})
    said = capsys.readouterr().out
    wrong = [char for char in said if char != "\n" and _commands(char)]
    tally("scripts", cases=len(NAMES), bad=len(wrong))
    assert not wrong
    assert json.loads(said) == {name: [name] for name in NAMES}


def test_no_cell_of_a_table_is_a_formula(tmp_path, tally):
    """tracking=csv: each text that a spreadsheet would compute begins with an apostrophe."""
    log = tracking.Files("csv", tmp_path)
    log.table("t", ["name", "value"], [[name, 1.5] for name in (*FORMULAS, *NAMES)])
    log.summary({"best_generator": FORMULAS[0], "difference": -0.5})
    log.finish()
    wrong, cells = [], 0
    for path in (tmp_path / logs.FOLDER).rglob("*.csv"):
        for row in csv.reader(path.read_text(encoding="utf-8").splitlines(keepends=True)):
            for cell in row:
                cells += 1
                number = re.fullmatch(r"-?[\d.]+(e-?\d+)?", cell)
                wrong += [cell] if cell.strip().startswith(("=", "+", "-", "@")) and not number else []
    tally("scripts", cases=cells, bad=len(wrong))
    assert cells > 50
    assert not wrong
