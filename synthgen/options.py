"""What the commands have in common: their options, and a help that ends with the settings a command reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

EPILOG = (
    "Exit codes: 0 done, whatever the verdict; 1 a worker was killed; 2 a setting is wrong; 3 images or labels; "
    "4 a checkpoint; 5 a folder; "
    "6 training diverged; 10 (--exit-code) rejected; 11 (--exit-code) insufficient evidence; 70 a defect; 130 Ctrl-C; "
    "143 SIGTERM or SIGUSR1, saved first."
)

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings to change, see below")]
Out = Annotated[Path | None, typer.Option("--out", help="output folder; default: outputs/<name>")]
Restart = Annotated[bool, typer.Option("--restart", help="make stages again whose settings, inputs or code changed")]
Quiet = Annotated[bool, typer.Option("--quiet", help="print nothing but errors")]
Json = Annotated[bool, typer.Option("--json", help="print the result as JSON on standard output")]
Debug = Annotated[bool, typer.Option("--debug", help="show the traceback of an error")]
ExitCode = Annotated[bool, typer.Option("--exit-code", help="exit 10 on reject, 11 on insufficient evidence")]
RecipeOption = Annotated[
    str | None, typer.Option("--recipe", help="recipe or YAML file; default: config.yaml beside the data, else `folder`")
]


class JobCommand(typer.core.TyperCommand):
    """A command whose help ends with the settings it reads: key, type, default, meaning."""

    sections: tuple[str, ...] = ()

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        from synthgen.config.load import known_keys

        rows = []
        for key, (kind, default, meaning) in known_keys().items():
            section = key.split(".")[0]
            if section in self.sections:
                shown = "null" if default is None else str(default).lower() if isinstance(default, bool) else default
                shown = ",".join(map(str, default)) if isinstance(default, tuple | list) else shown
                rows.append((f"{key}={shown}", f"{meaning} ({kind})"))
        if rows:
            with formatter.section("Settings (KEY=default, meaning, type)"):
                formatter.write_dl(rows, col_max=44)
        formatter.write_paragraph()
        formatter.write_text(EPILOG)
