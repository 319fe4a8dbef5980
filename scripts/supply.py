#!/usr/bin/env python3
"""What the project is installed from: the locks, whether they fit, their known holes, and their bill of materials (SBOM).

supply.py fits LOCK      says nothing where the lock is for this Python and machine and for pyproject.toml as it is, else why not
supply.py pin NAME       the lines of the locks for one package
supply.py torch          torch==VERSION, as the locks were tested with it
supply.py lock           makes the locks anew (scripts/lock)
supply.py audit          asks OSV for known vulnerabilities of what is locked (scripts/check)
supply.py sbom FILE      what is locked, as CycloneDX JSON (scripts/sbom)

The standard library is enough for all but `lock` (uv) and `audit` (pip-audit).
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import tomllib
import urllib.request
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CORE, DEV = ROOT / "requirements.lock", ROOT / "requirements-dev.lock"
IGNORED = ROOT / "scripts" / "audit-ignored.toml"
OSV = "https://api.osv.dev/v1/query"
PYTHONS, SYSTEMS = ((3, 11), (3, 14)), ("Linux x86_64",)
"""Where the locks are tested: Python from, below; machines."""
WITH_TORCH = re.compile(r"torch|triton|(nvidia|cuda)-.*")
"""Not in the locks: torch comes from the index that fits the machine (CPU, CUDA, ROCm), with what it needs there."""
PATIENCE_S = 5.0
"""How long the first question to OSV may take; the checks then go on without."""
WEEK = "7 days"
"""No younger release is locked: stolen and broken ones are usually found within days."""


@dataclass(frozen=True)
class Locked:
    """One release of a lock."""

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]
    needed_by: tuple[str, ...]
    lines: str


def read(path: Path) -> list[Locked]:
    """The releases of one lock."""
    blocks = re.findall(r"^([A-Za-z0-9].*\n(?:[ \t].*\n)*)", path.read_text(encoding="utf-8"), re.M)
    return [_release(block) for block in blocks]


def _release(block: str) -> Locked:
    found = re.match(r"([\w.-]+)(?:\[[\w,.-]+\])?==([^\s;\\]+)(?:\s*;\s*([^\\\n]+?))?\s*(?:\\?\n)", block)
    if not found:
        raise SystemExit(f"a lock holds {block.splitlines()[0]!r}, not NAME==VERSION: scripts/lock makes it anew")
    via = re.findall(r"^    #(?: via|  ) (\w[\w.-]*)", block, re.M)
    hashes = tuple(re.findall(r"--hash=(sha256:[0-9a-f]{64})", block))
    return Locked(found[1].lower(), found[2], found[3] or "", hashes, tuple(via), block)


def torch(path: Path = CORE) -> str:
    """The release of torch that a lock was made with."""
    found = re.search(r"^# torch==([\w.]+)", path.read_text(encoding="utf-8"), re.M)
    return found[1] if found else ""


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def digest(of: dict[str, Any]) -> str:
    """sha256 of all that pyproject.toml asks for; a lock names the one that it was made from."""
    about = of["project"]
    asked = [about["requires-python"], of["build-system"]["requires"], about["dependencies"], about["optional-dependencies"]]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def misfit(path: Path) -> str:
    """Why a lock can't be used here; "" where it can."""
    here = f"{platform.system()} {platform.machine()}"
    if here not in SYSTEMS or not PYTHONS[0] <= sys.version_info[:2] < PYTHONS[1]:
        return f"{path.name} is not for Python {platform.python_version()} on {here}"
    if f"# pyproject.toml: {digest(project())}\n" not in path.read_text(encoding="utf-8"):
        return f"{path.name} is not of this pyproject.toml; scripts/lock makes it anew"
    return ""


# Making the locks


def make(options: Sequence[str]) -> None:
    """Both locks anew; releases stay where they fit, unless `options` (uv's) say otherwise."""
    with tempfile.TemporaryDirectory() as folder:
        build, whole, core = (Path(folder) / name for name in ("build.in", "whole.txt", "core.txt"))
        build.write_text("\n".join(project()["build-system"]["requires"]))
        known = [f"{one.name}=={one.version}" + f" ; {one.marker}" * bool(one.marker) for one in _all()]
        whole.write_text("\n".join([*known, f"torch=={torch()}"] if known else []))
        _compile(build, whole, "--all-extras", *options)
        core.write_text(whole.read_text())
        _compile(build, core)
        made, inner = read(whole), read(core)
    version = next(one.version for one in made if one.name == "torch")
    CORE.write_text(_head("the package", version) + _lines(inner))
    there = {(one.name, one.version, one.marker) for one in inner}
    extra = [one for one in made if (one.name, one.version, one.marker) not in there]
    DEV.write_text(_head("the tests and every extra", version) + f"-r {CORE.name}\n" + _lines(extra))
    print(f"{CORE.name}: {len(_kept(inner))} releases; {DEV.name}: {len(_kept(extra))} more; torch {version} was there")


def _compile(build: Path, out: Path, *options: str) -> None:
    uv = Path(sys.executable).with_name("uv")
    if not uv.exists():
        raise SystemExit("scripts/lock: no uv in .venv: scripts/install dev")
    fixed = ["--universal", "--generate-hashes", "--no-header", "--quiet", "--exclude-newer", WEEK]
    files = ["pyproject.toml", str(build), "--output-file", str(out)]
    subprocess.run([uv, "pip", "compile", *files, *fixed, *options], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def _head(what: str, version: str) -> str:
    return (
        f"# What {what} is installed from: made by scripts/lock, read by scripts/install. Not edited by hand.\n"
        f"# pyproject.toml: {digest(project())}\n"
        f"# torch=={version} was there: it isn't below, for it comes from the index that fits the machine (CPU, CUDA, ROCm).\n"
    )


def _kept(releases: list[Locked]) -> list[Locked]:
    return [one for one in releases if not WITH_TORCH.fullmatch(one.name)]


def _lines(releases: list[Locked]) -> str:
    return "".join(re.sub(r"-r \S*/build\.in", "build-system", one.lines) for one in _kept(releases))


def _all() -> list[Locked]:
    return [one for path in (CORE, DEV) if path.exists() for one in read(path)]


# Known holes


def ignored() -> dict[str, str]:
    """Vulnerability -> why it is let through."""
    return tomllib.loads(IGNORED.read_text(encoding="utf-8"))


def audit(url: str) -> int:
    """Exit code: 1 on a known vulnerability that isn't ignored; 0 without one, and where nobody could be asked."""
    if silent := _unreachable(url):
        return _warn(f"{url}: {silent}")
    releases: dict[str, list[str]] = {"torch": [torch()]}
    for one in _all():
        if one.version not in releases.setdefault(one.name, []):
            releases[one.name].append(one.version)
    found = []
    for i in range(max(map(len, releases.values()))):  # pip-audit takes a package once
        found += _ask(url, [f"{name}=={versions[i]}" for name, versions in sorted(releases.items()) if i < len(versions)])
    return _verdict(found, sum(map(len, releases.values())))


def _ask(url: str, pins: list[str]) -> list[dict[str, Any]]:
    """What pip-audit found of each; OSV knows malicious releases, too, and PyPI's own service passes over what it can't find."""
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "pins.txt"
        listed.write_text("\n".join(pins))
        service = ["--vulnerability-service", "osv", "--osv-url", url, "--timeout", "10", "--progress-spinner", "off"]
        command = [sys.executable, "-m", "pip_audit", "-r", str(listed), "--disable-pip", "--no-deps", *service, "-f", "json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    try:
        return json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise SystemExit(f"audit: {url} answers, but pip-audit failed: {last[:300]}") from None


def _verdict(found: list[dict[str, Any]], num: int) -> int:
    passed, bad = ignored(), 0
    for package in found:
        for hole in package.get("vulns", []):
            names = [hole["id"], *hole.get("aliases", [])]
            if reason := next((passed[name] for name in names if name in passed), ""):
                print(f"audit: {package['name']} {package['version']}: {hole['id']} is ignored: {reason}")
                continue
            bad += 1
            mended = ", ".join(hole["fix_versions"]) or "no release"
            told = " ".join(hole.get("description", "").split())[:200]
            print(
                f"audit: {package['name']} {package['version']}: {' '.join(names)}, mended in {mended}: {told}", file=sys.stderr
            )
    asked = [package for package in found if "vulns" in package]
    if bad:
        print(f"audit: {bad} known vulnerabilities: raise the floor in pyproject.toml, then scripts/lock", file=sys.stderr)
        return 1
    if len(asked) < num:
        return _warn(f"only {len(asked)} of {num} releases could be asked about")
    print(f"audit: no known vulnerability in {num} locked releases")
    return 0


def _unreachable(url: str) -> str:
    question = json.dumps({"package": {"name": "torch", "ecosystem": "PyPI"}, "version": torch()}).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, question), timeout=PATIENCE_S) as answer:
            json.load(answer)
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def _warn(why: str) -> int:
    print(f"audit: WARNING: known vulnerabilities were not looked up: {why}", file=sys.stderr)
    return 0


# The bill of materials


def sbom() -> dict[str, Any]:
    """CycloneDX 1.6: every locked release with its hashes, who needs it, and its licence where it is installed here."""
    about = project()["project"]
    core = [*read(CORE), Locked("torch", torch(), "", (), (about["name"],), "")]
    known = {_purl(one) for one in core}
    parts = [(one, "required") for one in core] + [(one, "excluded") for one in read(DEV) if _purl(one) not in known]
    root = f"pkg:pypi/{about['name']}@{about['version']}"
    refs = {about["name"]: root} | {one.name: _purl(one) for one, _ in parts}
    needs: dict[str, set[str]] = {root: set()} | {_purl(one): set() for one, _ in parts}
    for one, _ in parts:
        for name in one.needed_by:
            if name in refs:
                needs[refs[name]].add(_purl(one))
    made = (
        datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), UTC)
        if "SOURCE_DATE_EPOCH" in os.environ
        else datetime.now(UTC)
    )
    own = {"type": "application", "bom-ref": root, "name": about["name"], "version": about["version"], "purl": root}
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, root + CORE.read_text() + DEV.read_text())}",
        "version": 1,
        "metadata": {"timestamp": made.strftime("%Y-%m-%dT%H:%M:%SZ"), "component": own},
        "components": [_component(one, scope) for one, scope in sorted(parts, key=lambda part: (part[0].name, part[0].version))],
        "dependencies": [{"ref": ref, "dependsOn": sorted(on)} for ref, on in sorted(needs.items())],
    }


def _purl(one: Locked) -> str:
    return f"pkg:pypi/{one.name}@{one.version}"


def _component(one: Locked, scope: str) -> dict[str, Any]:
    hashes = [{"alg": "SHA-256", "content": value.removeprefix("sha256:")} for value in one.hashes]
    told = {"url": f"https://pypi.org/project/{one.name}/{one.version}/", "type": "distribution"}
    return {
        "type": "library",
        "bom-ref": _purl(one),
        "name": one.name,
        "version": one.version,
        "scope": scope,
        "purl": _purl(one),
        **({"licenses": found} if (found := licenses(one.name, one.version)) else {}),
        "externalReferences": [told | ({"hashes": hashes} if hashes else {})],
    }


def licenses(name: str, version: str) -> list[dict[str, Any]]:
    """What the installed release says of its licence: an SPDX expression, else names; [] where it isn't installed."""
    try:
        about = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return []
    if about["Version"].split("+")[0] != version:
        return []
    if expression := about.get("License-Expression"):
        return [{"expression": expression}]
    named = [line.split(" :: ")[-1] for line in about.get_all("Classifier", []) if line.startswith("License :: ")]
    text = about.get("License", "").strip().split("\n")[0].strip()  # some put the whole text there: its first line is its name
    return [{"license": {"name": one}} for one in named or [text] if one]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["fits", "pin", "torch", "lock", "audit", "sbom"])
    parser.add_argument("of", nargs="?", help="LOCK, NAME or FILE")
    parser.add_argument("--osv-url", default=OSV)
    asked, options = parser.parse_known_args()
    if asked.what == "fits":
        why = misfit(ROOT / asked.of)
        print(why, end="")
        return int(bool(why))
    if asked.what == "pin":
        print(*(one.lines for one in _all() if one.name == asked.of), sep="", end="")
    elif asked.what == "torch":
        print(f"torch=={torch()}")
    elif asked.what == "lock":
        make([*([asked.of] if asked.of else []), *options])
    elif asked.what == "audit":
        return audit(asked.osv_url)
    else:
        Path(asked.of).write_text(json.dumps(sbom(), indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
