"""The README keeps its word: its commands parse, its settings exist, its tree is the tree."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from synthgen import cli
from synthgen.config.load import known_keys, recipes

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.S)
    for line in block.splitlines()
    if line.startswith("synthgen ")
]


def test_there_are_commands():
    assert len(COMMANDS) >= 10


@pytest.mark.parametrize("line", COMMANDS)
def test_its_commands_parse(line):
    _, command, *rest = shlex.split(line.split(">")[0])
    assert command in cli.COMMANDS
    options = {option for parameter in click_command(command).params for option in parameter.opts}
    for word in rest:
        if word.startswith("--"):
            assert word in options, word
        elif "=" in word:
            assert word.split("=")[0] in {*known_keys(), "size"}, word
    if command == "run":
        assert rest[0] in recipes() or rest[0].endswith(".yaml")


def click_command(name: str):
    import typer

    group = typer.main.get_command(cli.app)
    return group.commands[name]


def test_its_tree_names_every_file():
    tree = README.split("## The tree")[1]
    for folder in ("synthgen", "models"):
        for path in (ROOT / folder).rglob("*.py"):
            inside = path.relative_to(ROOT).parts
            if inside[:2] in (("synthgen", "models"), ("synthgen", "configs")) or path.name in ("__init__.py", "__main__.py"):
                continue
            assert re.search(rf"\b{re.escape(path.name)}\s{{2,}}\S", tree), path


def test_the_files_that_it_points_to_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    for script in ("demo", "test", "check", "smoke"):
        assert (ROOT / "scripts" / script).stat().st_mode & 0o111
