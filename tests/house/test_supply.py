"""What is installed: every dependency has a floor, the locks fit it, each file has a hash, known holes stop the checks."""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]


def script():
    """scripts/supply.py as a module."""
    spec = importlib.util.spec_from_file_location("supply", ROOT / "scripts" / "supply.py")
    module = sys.modules["supply"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


supply = script()
PROJECT = supply.project()
NEEDED = [Requirement(line) for line in PROJECT["project"]["dependencies"]]
EXTRA = [Requirement(line) for lines in PROJECT["project"]["optional-dependencies"].values() for line in lines]
BUILD = [Requirement(line) for line in PROJECT["build-system"]["requires"]]


def pins(*paths: Path) -> dict[str, set[str]]:
    """Package -> its locked releases: more than one where they differ by Python."""
    found: dict[str, set[str]] = {"torch": {supply.torch()}}
    for path in paths:
        for one in supply.read(path):
            found.setdefault(canonicalize_name(one.name), set()).add(one.version)
    return found


# Floors


@pytest.mark.parametrize("needed", [*NEEDED, *EXTRA, *BUILD], ids=str)
def test_a_dependency_has_a_floor(needed):
    assert {one.operator for one in needed.specifier} & {">=", "=="}
    assert not needed.url


@pytest.mark.parametrize(
    ("name", "releases", "why"),
    [
        ("torch", ["2.9.1", "2.10.0"], "CVE-2026-24747 and CVE-2026-4538: files that load with weights_only=True run code"),
        ("pytorch-lightning", ["2.6.2", "2.6.3"], "GHSA-w37p-236h-pfx3: malicious releases"),
        ("diffusers", ["0.37.1"], "CVE-2026-44513 and -44827: remote code without trust_remote_code"),
        ("scikit-learn", ["1.4.2"], "CVE-2024-5206"),
        (
            "pillow",
            ["10.2.0", "11.2.1", "12.1.0", "12.2.0"],
            "CVE-2026-25990, -40192, -42308 to -42311 and PYSEC-2026-2253 to -2257",
        ),
        ("pyarrow", ["14.0.0", "17.0.0", "23.0.0"], "CVE-2023-47248 and CVE-2026-25087"),
        ("orjson", ["3.9.14", "3.11.5"], "CVE-2024-27454 and CVE-2025-67221"),
        ("hydra-core", ["1.3.2", "1.3.7"], "GHSA-2cp2-2r3c-7p7r"),
        ("typer", ["0.12.5", "0.25.0"], "with click 8.5 every command printed the version, or warned"),
        ("jinja2", ["3.1.5"], "CVE-2025-27516"),
        ("plotly", ["5.24.1"], "its script loads a style sheet from the web"),
        ("tensorboard", ["2.16.2", "2.20.0"], "numpy 2 lacks np.string_, setuptools 82 pkg_resources"),
        ("wandb", ["0.28.1"], "CVE-2026-71556 and others in the Go program that it brings"),
        ("transformers", ["4.57.6", "5.2.0", "5.4.0"], "CVE-2026-1839, -4372 and -5241"),
        ("datasets", ["4.8.4"], "PYSEC-2026-3716"),
        ("opencv-python-headless", ["4.10.0.84", "4.11.0.86"], "CVE-2025-53644"),
        ("pytest", ["9.0.2"], "CVE-2025-71176"),
        ("setuptools", ["78.1.0", "80.9.0"], "CVE-2025-47273, CVE-2026-23949 and -24049"),
    ],
)
def test_known_bad_releases_are_excluded(name, releases, why):
    asked = [needed for needed in [*NEEDED, *EXTRA, *BUILD] if needed.name == name]
    assert asked
    for needed in asked:
        assert not [release for release in releases if needed.specifier.contains(release)], why


# The locks


@pytest.mark.parametrize("needed", [*NEEDED, *BUILD], ids=str)
def test_what_the_package_needs_is_locked_within_its_range(needed):
    found = pins(supply.CORE)[canonicalize_name(needed.name)]
    assert all(needed.specifier.contains(version) for version in found), found


@pytest.mark.parametrize("needed", EXTRA, ids=str)
def test_every_extra_is_locked_within_its_range(needed):
    found = pins(supply.CORE, supply.DEV)[canonicalize_name(needed.name)]
    assert all(needed.specifier.contains(version) for version in found), found


@pytest.mark.parametrize("path", [supply.CORE, supply.DEV], ids=lambda path: path.name)
def test_every_locked_file_has_a_hash(path):
    text, releases = path.read_text(encoding="utf-8"), supply.read(path)
    assert len(releases) > 80
    assert [one.name for one in releases if not one.hashes] == []
    assert text.count("--hash=") == sum(len(one.hashes) for one in releases)
    for line in text.splitlines():  # nothing that pip would take from elsewhere
        assert line.startswith(("#", "    #", "    --hash=sha256:")) or "==" in line or line == f"-r {supply.CORE.name}", line


def test_the_locks_are_of_this_pyproject_and_a_changed_one_is_noticed(monkeypatch, tmp_path):
    for path in (supply.CORE, supply.DEV):
        assert f"# pyproject.toml: {supply.digest(PROJECT)}\n" in path.read_text(encoding="utf-8"), "scripts/lock makes it anew"
    monkeypatch.setattr(supply.platform, "system", lambda: "Linux")
    monkeypatch.setattr(supply.platform, "machine", lambda: "x86_64")
    assert supply.misfit(supply.CORE) == ""
    monkeypatch.setattr(supply.platform, "machine", lambda: "riscv64")
    assert "not for Python" in supply.misfit(supply.CORE)
    monkeypatch.setattr(supply.platform, "machine", lambda: "x86_64")
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text(text.replace('"numpy>=', '"numpy>=1.'))
    monkeypatch.setattr(supply, "ROOT", tmp_path)
    assert "scripts/lock makes it anew" in supply.misfit(supply.CORE)


def test_a_line_without_a_release_is_refused(tmp_path):
    (tmp_path / "lock").write_text("numpy>=1\n")
    with pytest.raises(SystemExit, match="numpy"):
        supply.read(tmp_path / "lock")


def test_ci_installs_what_is_locked_and_asks_about_it():
    installs, checks = ((ROOT / "scripts" / name).read_text() for name in ("install", "check"))
    from_lock = [line for line in installs.splitlines() if "-r " in line and "$pip install" in line]
    assert len(from_lock) == 2
    assert all("--require-hashes --no-deps" in line for line in from_lock)
    assert "supply.py audit" in checks
    for name in ("check", "test"):
        assert "scripts/install dev" in (ROOT / "scripts" / name).read_text()
        assert f"scripts/{name}" in (ROOT / ".ci" / "run").read_text()


# Known holes


class Stub(ThreadingHTTPServer):
    """OSV on this machine: knows at most one hole."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.hole: dict = {}
        self.status, self.wait_s = 200, 0.0
        self.asked: list[tuple[str, str]] = []
        self.url = f"http://127.0.0.1:{self.server_port}/v1/query"


class Answers(BaseHTTPRequestHandler):
    def do_POST(self):
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((question["package"]["name"], question["version"]))
        time.sleep(self.server.wait_s)
        found = {"vulns": [self.server.hole]} if question["package"]["name"] == self.server.hole.get("_of") else {}
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(json.dumps(found).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def osv() -> Iterator[Stub]:
    server = Stub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


HOLE = {
    "_of": "pillow",
    "id": "GHSA-0000-0000-0000",
    "aliases": ["CVE-2099-1"],
    "summary": "an image runs code",
    "affected": [{"package": {"name": "pillow", "ecosystem": "PyPI"}, "ranges": []}],
}


def test_every_locked_release_is_asked_about_and_a_known_hole_stops_the_checks(osv, capsys):
    pytest.importorskip("pip_audit")
    osv.hole = HOLE
    assert supply.audit(osv.url) == 1
    everything = {(name, version) for name, versions in pins(supply.CORE, supply.DEV).items() for version in versions}
    assert {(canonicalize_name(name), version) for name, version in osv.asked} == everything
    told = capsys.readouterr()
    assert "pillow" in told.err
    assert "GHSA-0000-0000-0000" in told.err
    assert "no known vulnerability" not in told.out
    assert supply._verdict([{"name": "pillow", "version": "13.0.0", "vulns": []}], 1) == 0
    assert "no known vulnerability in 1 locked" in capsys.readouterr().out


def test_a_hole_that_is_ignored_for_a_reason_is_said_and_no_more(monkeypatch, tmp_path, capsys):
    found = [{"name": "pillow", "version": "13.0.0", "vulns": [{**HOLE, "fix_versions": []}]}]
    assert supply._verdict(found, 1) == 1
    (tmp_path / "ignored.toml").write_text('CVE-2099-1 = "no such images here"\n')
    monkeypatch.setattr(supply, "IGNORED", tmp_path / "ignored.toml")
    capsys.readouterr()
    assert supply._verdict(found, 1) == 0
    assert "no such images here" in capsys.readouterr().out


def test_what_could_not_be_asked_about_is_no_clean_bill(capsys):
    skipped = [{"name": "pillow", "skip_reason": "not found"}]
    assert supply._verdict(skipped, 1) == 0
    said = capsys.readouterr()
    assert "WARNING" in said.err
    assert "no known vulnerability" not in said.out


def test_pip_audit_that_fails_is_not_taken_for_no_network(osv, monkeypatch):
    monkeypatch.setattr(supply.sys, "executable", "/bin/false")
    with pytest.raises(SystemExit, match="answers, but pip-audit failed"):
        supply.audit(osv.url)


def test_what_is_ignored_has_a_reason():
    assert [name for name, reason in supply.ignored().items() if len(reason) < 20] == []


@pytest.mark.parametrize("trouble", ["refuses", "fails", "hangs"])
def test_without_an_answer_the_checks_warn_and_go_on(osv, capsys, monkeypatch, trouble):
    url = osv.url
    if trouble == "refuses":
        url = "http://127.0.0.1:9/v1/query"
    elif trouble == "fails":
        osv.status = 500
    else:
        osv.wait_s = 1.0
        monkeypatch.setattr(supply, "PATIENCE_S", 0.2)
    begun = time.monotonic()
    assert supply.audit(url) == 0
    assert time.monotonic() - begun < 5
    assert "WARNING: known vulnerabilities were not looked up" in capsys.readouterr().err


# The bill of materials


def test_the_bill_of_materials_lists_every_locked_release(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    bill = supply.sbom()
    assert bill == supply.sbom()
    assert bill["metadata"]["timestamp"] == "1970-01-01T00:00:00Z"
    parts = bill["components"]
    listed: dict[str, set[str]] = {}
    for part in parts:
        listed.setdefault(canonicalize_name(part["name"]), set()).add(part["version"])
    assert listed == pins(supply.CORE, supply.DEV)
    refs = [part["bom-ref"] for part in parts]
    assert len(set(refs)) == len(refs)
    unhashed = [part["name"] for part in parts if not part["externalReferences"][0].get("hashes")]
    assert unhashed == ["torch"]
    required = {part["name"] for part in parts if part["scope"] == "required"}
    assert {needed.name for needed in NEEDED} <= required
    assert not {"pytest", "moto"} & required
    direct = {entry["ref"]: entry["dependsOn"] for entry in bill["dependencies"]}[bill["metadata"]["component"]["bom-ref"]]
    names = {ref.removeprefix("pkg:pypi/").split("@")[0] for ref in direct}
    assert names == {canonicalize_name(needed.name) for needed in [*NEEDED, *EXTRA]}


def test_licences_are_those_of_what_is_installed():
    import numpy

    (found, *_) = supply.licenses("numpy", numpy.__version__)
    assert "BSD" in json.dumps(found)
    assert supply.licenses("numpy", "0.1") == supply.licenses("no-such-package", "1") == []


def test_it_is_valid_cyclonedx():
    validation = pytest.importorskip("cyclonedx.validation.json")
    from cyclonedx.schema import SchemaVersion

    assert validation.JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(supply.sbom())) is None
