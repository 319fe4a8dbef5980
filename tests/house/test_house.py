"""The house: imports go down only, bytes are written in one place, and the wheel holds everything."""

from __future__ import annotations

import ast
import doctest
import importlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def folders() -> Iterator[Path]:
    """The packages' folders, through the links to models/ and configs/."""
    for folder, inner, files in os.walk(ROOT / "synthgen", followlinks=True):
        inner[:] = [name for name in inner if name != "__pycache__"]
        if "__init__.py" in files:
            yield Path(folder)


FILES = sorted(path for folder in folders() for path in folder.glob("*.py"))
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in FILES
    if path.stem != "__main__"
}


def where(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG", "SYSTEMROOT") if name in os.environ}
    environment = {**kept, "PYTHONPATH": str(ROOT)}  # not what this process's own imports may have set
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)


def imported(tree: ast.AST) -> set[str]:
    """Every module that a file imports, inside functions too."""
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}


def test_the_walk_finds_the_whole_house():
    assert {"synthgen", "synthgen.cli", "synthgen.models.vae", "synthgen.configs", "synthgen.gain.stats"} <= set(MODULES)


# Floors


def test_imports_go_down_only():
    linted = python("import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))")
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_light_modules_do_not_import_torch():
    """The command line answers at once, and settings, records and pages can be read without a 2 GB library."""
    light = [
        m
        for m in MODULES
        if re.match(r"synthgen(\.(cli|screen|errors|shapes|types.*|randomness|storage|config.*|report.*))?$", m)
    ]
    assert len(light) > 15
    code = (
        "import sys, importlib\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    heavy = {'torch', 'pytorch_lightning', 'diffusers', 'wandb'} & set(sys.modules)\n"
        "    assert not heavy, f'{name} imports {heavy}'\n"
    )
    found = python(code, *light)
    assert found.returncode == 0, found.stderr


def test_the_command_line_imports_nothing_heavy_before_a_command_runs():
    heavy = {"torch", "pandas", "sklearn", "scipy", "plotly", "jinja2", "hydra", "pyarrow", "PIL", "wandb", "diffusers"}
    found = python("import sys, synthgen.cli; print(*{name.split('.')[0] for name in sys.modules})")
    assert found.returncode == 0, found.stderr
    assert not heavy & set(found.stdout.split())


def test_every_module_imports_on_its_own_and_does_nothing():
    """No hidden order of imports; no output, no file, no random number, no environment variable."""
    code = """
import importlib, os, random, sys, tempfile, warnings
import numpy, torch

def state():
    return (
        dict(os.environ), os.getcwd(), sorted(os.listdir()), random.getstate(), numpy.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(), torch.get_num_threads(), torch.get_default_dtype(), list(warnings.filters),
    )

names, environment = sys.argv[1:], dict(os.environ)
for name in names:  # other libraries do at their first import what they like
    importlib.import_module(name)
os.chdir(tempfile.mkdtemp())
os.environ.clear()
os.environ.update(environment)
warnings.resetwarnings()
random.seed(987), numpy.random.seed(987), torch.manual_seed(987), torch.set_num_threads(3)
for name in names:
    for loaded in [m for m in sys.modules if m == "synthgen" or m.startswith("synthgen.")]:
        del sys.modules[loaded]
    before = state()
    importlib.import_module(name)
    assert state() == before, f"importing {name} does something"
"""
    found = python(code, *MODULES)
    assert found.returncode == 0, found.stderr
    assert found.stdout == ""


@pytest.mark.parametrize(("library", "home"), [("hydra", "synthgen/config/load.py"), ("wandb", "synthgen/tracking.py")])
def test_one_file_alone_imports(library, home):
    users = {where(path) for path in FILES for name in imported(ast.parse(path.read_text())) if name.split(".")[0] == library}
    assert users == {home}


def test_models_under_its_bare_name_is_refused():
    """In a wheel that name would shadow a folder of the user's."""
    found = python("import models")
    assert found.returncode == 1
    assert (
        "ImportError: this package is synthgen.models, imported here as 'models'; `from synthgen import models`" in found.stderr
    )


# Only storage.py writes

MOVES = {
    "os": {"replace", "rename", "open", "link", "symlink", "fdopen"},
    "shutil": {"copy", "copy2", "copyfile", "copytree", "move"},
}
SAVES = {"save", "savez", "savez_compressed", "savetxt", "save_file", "write_table", "to_parquet", "tofile", "dump", "to_csv"}


def writes(tree: ast.AST) -> list[int]:
    """Lines that write a file by themselves: not into a buffer, and not into a file of `storage.atomic`."""
    safe = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and ast.unparse(node.value.func).endswith("BytesIO")
        for target in node.targets
        if isinstance(target, ast.Name)
    } | {
        item.optional_vars.id
        for node in ast.walk(tree)
        if isinstance(node, ast.With)
        for item in node.items
        if isinstance(item.optional_vars, ast.Name) and ast.unparse(item.context_expr).startswith("storage.atomic(")
    }
    return sorted(call.lineno for call in ast.walk(tree) if isinstance(call, ast.Call) and _writes(call, safe))


def _writes(call: ast.Call, safe: set[str]) -> bool:
    given = [*call.args, *(keyword.value for keyword in call.keywords)]
    if any(ast.unparse(value) == "os.devnull" for value in given):
        return False
    into_safe = any(isinstance(value, ast.Name) and value.id in safe for value in given)
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ast.unparse(call.func)
    of = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
    if name in MOVES.get(of, ()):
        return True
    if name in ("open", "ZipFile", "TarFile", "ParquetWriter"):
        modes = [v.value for v in given if isinstance(v, ast.Constant) and isinstance(v.value, str)]
        to_write = name == "ParquetWriter" or any(re.fullmatch(r"[rwxabt+]*[wxa+][rwxabt+:gz2]*", mode) for mode in modes)
        return to_write and not into_safe
    if name in ("write_text", "write_bytes"):  # Path's take one argument, storage's a name as well
        return len(given) == 1 and of != "formatter"
    return name in SAVES and not into_safe and (len(given) > 1 or name == "tofile")  # save(x) gives the bytes back


@pytest.mark.parametrize(
    ("code", "caught"),
    [
        ("open(path, 'w')", True),
        ("open(path, mode='ab')", True),
        ("open(os.devnull, 'w')", False),
        ("path.open('x')", True),
        ("open(path)", False),
        ("open(path, 'rb')", False),
        ("path.write_text(text)", True),
        ("path.write_bytes(data)", True),
        ("storage.write_text(path, text)", False),
        ("np.savez(path, x=x)", True),
        ("torch.save(x, path)", True),
        ("buffer = io.BytesIO()\ntorch.save(x, buffer)", False),
        ("image.save(path, 'PNG')", True),
        ("with storage.atomic(path) as file:\n    pq.write_table(table, file)", False),
        ("pq.write_table(table, path)", True),
        ("tarfile.open(path, 'w:gz')", True),
        ("with storage.atomic(path) as file, tarfile.open(fileobj=file, mode='w') as tar: pass", False),
        ("json.dump(data, file)", True),
        ("os.replace(a, b)", True),
        ("shutil.move(a, b)", True),
    ],
)
def test_the_search_for_writers_catches(code, caught):
    assert bool(writes(ast.parse(code))) == caught


def test_only_storage_writes():
    found = {where(path): lines for path in FILES if (lines := writes(ast.parse(path.read_text())))}
    assert set(found) == {"synthgen/storage.py"}, found


# The files


def test_no_file_is_longer_than_a_sitting():
    assert [where(path) for path in FILES if len(path.read_text().splitlines()) > 500] == []


@pytest.mark.parametrize("name", [name for name, path in MODULES.items() if ">>> " in path.read_text()])
def test_examples_in_docstrings_run(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted > 0
    assert found.failed == 0


# The wheel


def test_the_wheel_holds_every_package():
    settings = PROJECT["tool"]["setuptools"]
    assert set(settings["packages"]) == {".".join(folder.relative_to(ROOT).parts) for folder in folders()}
    for package, folder in settings["package-dir"].items():
        assert (ROOT / folder).samefile(ROOT.joinpath(*package.split(".")))


def test_the_wheel_holds_every_file_that_is_no_code():
    data = PROJECT["tool"]["setuptools"]["package-data"]
    for folder in folders():
        package = ".".join(folder.relative_to(ROOT).parts)
        for path in folder.iterdir():
            if path.is_file() and path.suffix not in (".py", ".pyc"):
                assert any(fnmatch(path.name, pattern) for pattern in data.get(package, [])), where(path)
