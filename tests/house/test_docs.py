"""The documentation: every page of the site is there, every link leads somewhere, its commands parse, and it builds strictly."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from synthgen import cli
from synthgen.config.load import known_keys, load, recipes

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = {path: path.read_text(encoding="utf-8") for path in PAGES}
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.S | re.M)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def pages_of(nav: list | dict | str) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [page for item in (nav if isinstance(nav, list) else nav.values()) for page in pages_of(item)]


def hook():
    """docs/pages.py, as mkdocs imports it."""
    spec = importlib.util.spec_from_file_location("pages_of_the_site", DOCS / "pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prose(path: Path) -> str:
    """A page as it is shown, without its code."""
    return FENCE.sub("", hook().on_page_markdown(TEXTS[path]))


def anchors(path: Path) -> set[str]:
    """Of the headings, as Python-Markdown's `toc` names them; and what mkdocstrings adds, as far as the page says."""
    heads = re.findall(r"^#+ (.+?)\s*$", prose(path), re.M)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", re.sub(r"[`*]", "", head)).strip().lower()) for head in heads}


def where(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_every_page_is_in_the_navigation_and_there():
    listed = pages_of(SITE["nav"])
    assert len(set(listed)) == len(listed)
    found = {path.relative_to(DOCS).as_posix() for path in PAGES} - {f"decisions/{p.name}" for p in DOCS.glob("decisions/0*.md")}
    assert set(listed) == found


@pytest.mark.parametrize("path", PAGES, ids=where)
def test_links_lead_somewhere(path):
    for target in LINK.findall(prose(path)):
        if re.match(r"https?://|data:", target):
            continue
        file, _, anchor = target.partition("#")
        other = (path.parent / file).resolve() if file else path
        assert other.is_file(), f"{target}: no such file"
        assert DOCS in other.parents, f"{target}: not a part of the site"
        if anchor and other.suffix == ".md":
            assert anchor in anchors(other), f"{target}: no such heading"


def test_nothing_is_fetched():
    """The site is read without a network: no fonts, scripts or images from elsewhere."""
    assert SITE["theme"]["font"] is False
    assert not [value for value in SITE.get("extra_javascript", []) + SITE["extra"]["polyfills"] if "//" in value]
    for path in PAGES:
        assert not re.search(r"!\[[^\]]*\]\(https?:|<(script|img|link)[^>]*https?:|```mermaid", TEXTS[path]), path


def test_the_parts_that_are_written_at_the_build_are_whole():
    parts = hook().PARTS
    used = {name for text in TEXTS.values() for name in re.findall(r"^<!-- written: (\w+) -->$", text, re.M)}
    assert used == set(parts)
    assert all(f"`{name}`" in parts["recipes"]() for name in recipes())
    assert all(f"## synthgen {name}\n" in parts["commands"]() for name in cli.COMMANDS)
    shown = re.sub("<wbr>", "", parts["settings"]())
    assert all(f"<code>{key}</code>" in shown for key in known_keys())
    assert "data:image/png;base64," in parts["notebook"]()


BASH = [
    (path, line.split("#")[0].split(">")[0].strip())
    for path in PAGES
    for _, language, block in FENCE.findall(TEXTS[path])
    if language in ("bash", "sh")
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("synthgen ")
]


@pytest.mark.parametrize(("path", "line"), BASH, ids=[line for _, line in BASH])
def test_its_commands_parse(path, line):
    import typer

    _, command, *rest = shlex.split(line)
    options = {option for p in typer.main.get_command(cli.app).commands[command].params for option in p.opts}
    for word in rest:
        if word.startswith("--"):
            assert word in options, word
        elif "=" in word and word.split("=")[0] not in ("models",) and not word.startswith("generators.pca"):
            assert word.split("=")[0] in {*known_keys(), "size", "gain"}, word
    if command == "run":
        assert rest[0] in recipes() or rest[0].endswith(".yaml")


CALLS = [
    (path, call)
    for path in [DOCS / "index.md", DOCS / "python.md", DOCS / "faq.md"]
    for _, language, block in FENCE.findall(TEXTS[path])
    if language == "python"
    for call in ast.walk(ast.parse(block))
    if isinstance(call, ast.Call) and ast.unparse(call.func).startswith("sg.")
]


@pytest.mark.parametrize(("path", "call"), CALLS, ids=[ast.unparse(call) for _, call in CALLS])
def test_its_calls_fit_the_functions_and_the_settings(path, call):
    import inspect

    from synthgen import api

    function = getattr(api, ast.unparse(call.func).removeprefix("sg."))
    bound = inspect.signature(function).bind(
        *(value(argument) for argument in call.args), **{keyword.arg: value(keyword.value) for keyword in call.keywords}
    )
    given = api.written(bound.arguments.get("overrides", ()), bound.arguments.get("settings", {}))
    load("digits", [line for line in given if not line.startswith("data.path")])


def value(node: ast.expr) -> object:
    try:
        return ast.literal_eval(node)
    except ValueError:  # an expression: its text stands for it
        return ast.unparse(node)


def test_it_builds_without_a_warning(tmp_path):
    """Ten seconds. In a process of its own, as its plugins raise warnings of their own libraries."""
    pytest.importorskip("mkdocs", reason="the site needs the extra `docs`")
    pytest.importorskip("mkdocstrings", reason="the site needs the extra `docs`")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    built = {path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("*.html")}
    assert {page.replace(".md", ".html") for page in pages_of(SITE["nav"])} <= built
    for name in built:
        page = (tmp_path / "site" / name).read_text(encoding="utf-8")
        assert not re.search(r"<(script|img|iframe)[^>]*src=\"?(https?:)?//|<link[^>]*href=\"?(https?:)?//", page), name
    api = (tmp_path / "site" / "reference" / "api.html").read_text(encoding="utf-8")
    assert "synthgen.results.Run.samples" in api


def test_the_script_builds_where_it_is_told():
    text = (ROOT / "scripts" / "docs").read_text(encoding="utf-8")
    assert text.startswith("#!")
    assert "set -eu" in text
    assert "--strict" in text
    assert "--quiet" not in re.sub(r"#.*", "", text), "it hides the warnings from --strict"
    assert os.access(ROOT / "scripts" / "docs", os.X_OK)
