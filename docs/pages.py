"""What the site writes by itself, so that it can't go stale: a line `<!-- written: NAME -->` becomes the part of that name.

A hook of mkdocs (`hooks` in mkdocs.yml). The parts come from the code: the commands from the parser, the settings from the
schema, the recipes from configs/, the tutorial from the notebook with the outputs that are stored in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from synthgen.config.load import known_keys, recipes
from synthgen.errors import ConfigError

DOCS = Path(__file__).resolve().parent
MARK = re.compile(r"^<!-- written: ([a-z]+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for each page."""
    return MARK.sub(lambda found: _part(found[1]), markdown)


def _part(name: str) -> str:
    if name not in PARTS:
        raise ConfigError(f"docs/: <!-- written: {name} -->: no such part; known: {', '.join(PARTS)}")
    return PARTS[name]()


def commands() -> str:
    """A section a command: what it does, its arguments and options, the sections of the settings that it reads."""
    import typer

    from synthgen import cli

    group: Any = typer.main.get_command(cli.app)
    lines = []
    for name, (function, sections) in cli.COMMANDS.items():
        given = [parameter for parameter in group.commands[name].params if parameter.name != "help"]
        usage = " ".join(_usage(parameter) for parameter in given if _is_argument(parameter) or parameter.required)
        lines += [
            f"## synthgen {name}",
            "",
            _paragraphs(function.__doc__ or ""),
            "",
            "```",
            f"synthgen {name} {usage}",
            "```",
            "",
        ]
        rows = [(_spelling(parameter), parameter.help or "") for parameter in given]
        lines += [
            "| argument or option | meaning |",
            "|---|---|",
            *(f"| {spelling} | {_cell(meaning)} |" for spelling, meaning in rows),
            "",
        ]
        if sections:
            links = ", ".join(f"[`{section}`](settings.md#{_section_of(section)})" for section in sections)
            lines += [f"Settings that it reads: {links}.", ""]
    return "\n".join(lines)


def _section_of(section: str) -> str:
    """Settings at the top stand in one table, the others in one a section."""
    return section if any(key.startswith(f"{section}.") for key in known_keys()) else "run"


def _is_argument(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")


def _usage(parameter: Any) -> str:
    name = parameter.metavar or parameter.name.upper()
    return f"{parameter.opts[0]} {name}" if not _is_argument(parameter) else name


def _spelling(parameter: Any) -> str:
    if _is_argument(parameter):
        return f"`{_usage(parameter)}`"
    return f"`{', '.join(parameter.opts)}{'' if parameter.is_flag else ' ' + parameter.name.upper()}`"


def _paragraphs(docstring: str) -> str:
    """A docstring as Markdown: the indentation of the code taken off."""
    return "\n".join(line.strip() for line in docstring.strip().splitlines())


def settings() -> str:
    """A table a section of the settings, in the schema's order."""
    sections: dict[str, list[str]] = {"run": []}
    for key, (kind, default, meaning) in known_keys().items():
        section = key.split(".")[0] if "." in key else "run"
        name = escape(key).replace(".", ".<wbr>").replace("_", "_<wbr>")  # where a phone may break the line
        told = _cell(f"{meaning} ({kind.replace(', lt=9223372036854775808', '')})")
        sections.setdefault(section, []).append(f"| <code>{name}</code> | `{_cell(_plain(default))}` | {told} |")
    head = ["", "| setting | default | meaning, type |", "|---|---|---|"]
    return "\n".join(line for name, rows in sections.items() for line in (f"## {name}", *head, *rows, ""))


def _plain(default: Any) -> str:
    """A default as the command line has it."""
    if isinstance(default, tuple | list):
        return f"[{','.join(map(_plain, default))}]"
    return default if isinstance(default, str) else json.dumps(default)


def recipe_table() -> str:
    """Every shipped recipe with its head line: the command, what it is, how long it takes."""
    rows = []
    for name, head in recipes().items():
        command, _, about = head.partition(": ")
        rows.append(f"| `{name}` | {_cell(about[0].upper() + about[1:])} | `{command}` |")
    return "\n".join(["| recipe | what it is, on which device, how long | command |", "|---|---|---|", *rows])


def recipe_files() -> str:
    """Each recipe's file, folded."""
    from synthgen.config.load import CONFIGS

    blocks = []
    for name in recipes():
        text = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
        body = "\n".join(f"    {line}" for line in text.splitlines())
        blocks.append(f'??? note "configs/{name}.yaml"\n\n    ```yaml\n{body}\n    ```\n')
    return "\n".join(blocks)


def arms() -> str:
    """Every arm of the gain study."""
    from synthgen.gain import arms as gain_arms
    from synthgen.screen import arm_needs

    rows = []
    for name, arm in gain_arms.ARMS.items():
        study = "quick" if name in gain_arms.QUICK else "full"
        rows.append(f"| `{name}` | {_cell(arm.meaning)} | {_cell(arm_needs(name))} | {study} |")
    return "\n".join(["| arm | what it is | needs | study |", "|---|---|---|---|", *rows])


def decisions() -> str:
    """A line a decision, with its first paragraph's first sentence."""
    lines = []
    for path in sorted((DOCS / "decisions").glob("0*.md")):
        title = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ").strip()
        lines.append(f"- [{title}]({path.name})")
    return "\n".join(lines)


def notebook() -> str:
    """The tutorial's cells with the outputs that are stored in it."""
    cells = json.loads((DOCS / "tutorial.ipynb").read_text(encoding="utf-8"))["cells"]
    return "\n\n".join(_cell_text(cell) for cell in cells)


def _cell_text(cell: dict[str, Any]) -> str:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return source
    return "\n\n".join([f"```python\n{source}\n```", *(_output(output) for output in cell["outputs"])])


def _output(output: dict[str, Any]) -> str:
    """Text in a box, a table or an image as it is."""
    data = output.get("data", {})
    if "text/html" in data:
        return f'<div class="output">{"".join(data["text/html"])}</div>'
    if "image/png" in data:
        image = "".join(data["image/png"]).strip()
        return f'<div class="output"><img alt="Output of the cell above" src="data:image/png;base64,{image}"></div>'
    text = "".join(output.get("text") or data["text/plain"])
    return f'<div class="output"><pre tabindex="0">{escape(text.rstrip())}</pre></div>'


def _cell(text: str) -> str:
    """Text in a cell of a table."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


PARTS: dict[str, Callable[[], str]] = {
    "arms": arms,
    "commands": commands,
    "decisions": decisions,
    "files": recipe_files,
    "notebook": notebook,
    "recipes": recipe_table,
    "settings": settings,
}
