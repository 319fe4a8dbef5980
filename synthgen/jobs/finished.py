"""Finished cells of gain studies on disk, each under a key of everything that its networks are made from.

They lie beside `gain/`, in `gain-networks/`, and outlive the study: one that is killed goes on where it was, and one that is
asked for something more trains only what isn't there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from synthgen import storage
from synthgen.errors import DataError
from synthgen.gain.arms import recipe_of
from synthgen.gain.cells import Cell, Trained
from synthgen.jobs.order import Order

FOLDER = "gain-networks"
OPENED, OPENED_SCHEMA = "opened.json", "synthgen.openings/1"

ASSESSED = ("watts", "extrapolate", "smallest_gain", "next_images")
"""Settings of `gain` that no network depends on, and no choice on val: only how a study is told."""


class Finished:
    """The cells of a split under one classifier and augmentation; other settings have another folder.

    Args:
        order: settings.
        inputs: name -> digest of everything that the study is made from, split, candidates, gate, ... (`Contest.inputs`).
        folder: of the run.
    """

    def __init__(self, order: Order, inputs: dict[str, str], folder: Path) -> None:
        self.inputs = inputs
        self.settings = order.section("gain", "features")
        made_by = {"code": storage.code_version(), "libraries": storage.library_versions()}
        shared = {**order.section("classifier", "augment"), "device": order.device, **made_by}
        self.folder = folder / FOLDER / storage.sha256_json(shared | {"split": inputs["split"]})[:16]

    def path(self, cell: Cell, teachers: Sequence[Cell]) -> Path:
        """Where a cell lies, or will."""
        return self.folder / f"{cell.name}-{self.key(cell, teachers)[:16]}.safetensors"

    def key(self, cell: Cell, teachers: Sequence[Cell]) -> str:
        """sha256 over what a cell is made from: itself, the inputs and settings that it looks at, and its teachers' keys."""
        own, active = recipe_of(cell.recipe), cell.extra.startswith("active")
        names = []
        if own.synthetic or own.start == "synthetic":
            other = f"other {own.synthetic}"
            names += [other] if other in self.inputs else ["candidates", "gate"]
        if own.kind == "features" and own.start == "fresh":
            names += ["features", "extractor"]
        names += ["transfer"] * (own.start == "transfer") + ["pool"] * (own.unlabelled == "pool")
        settings: list[str] = ["acquire"] * active + ["pretrain_steps"] * (own.start == "simclr")
        settings += ["simulate"] * (active or cell.extra == "oracle" or cell.extra.startswith("size"))
        teaching: list[Cell] = []
        if own.taught or active:
            teaching = [each for each in teachers if own.soft or any(network.member == 0 for network in each.networks)]
        return storage.sha256_json(
            {
                "cell": [cell.recipe, cell.value, [list(network) for network in cell.networks], cell.extra],
                "inputs": {name: self.inputs.get(name, "") for name in names},
                "settings": {name: self.settings["gain"][name] for name in settings},
                "features": self.settings["features"] if own.kind == "features" else {},
                "teachers": [self.key(each, ()) for each in teaching],
            }
        )

    def read(self, path: Path) -> Trained | None:
        """A finished cell; None where it isn't there, or is damaged and has to be trained again."""
        try:
            return Trained.from_bytes(path.read_bytes())
        except (OSError, DataError):
            return None

    def sweep(self) -> None:
        """Removes the cells of other settings, splits and versions of code and libraries: nothing here can use them again."""
        for other in self.folder.parent.iterdir():
            if re.fullmatch("[0-9a-f]{16}", other.name) and other != self.folder:
                storage.remove(other)


def open_test(folder: Path, split: str, study: dict[str, Any], networks: int, unseen: int, chosen: dict[str, str]) -> list[Any]:
    """Notes that the test images of a split are opened, in `gain-networks/opened.json`, and returns every opening so far.

    A study that was killed after it had opened them doesn't open them again.

    Args:
        folder: of the run.
        split: digest.
        study: settings, inputs, code and libraries of the study that opens them (`storage.Stage.identity`).
        networks: that were trained.
        unseen: those of them that haven't seen the test images yet.
        chosen: what val chose.
    """
    path = folder / FOLDER / OPENED
    before = [each for each in openings(path) if each["split"] == split] if path.is_file() else []
    if before and before[-1]["study"] == study:
        return before
    now = datetime.now(UTC).isoformat(timespec="seconds")
    every = [*before, {"split": split, "at": now, "networks": networks, "unseen": unseen, **chosen, "study": study}]
    storage.write_sealed(path, {"schema": OPENED_SCHEMA, "openings": every})
    return every


def openings(path: Path) -> list[Any]:
    """What `open_test` wrote.

    Raises:
        DataError: changed since, so that nobody knows what was seen of the test images.
    """
    found = storage.read_sealed(path)
    if not isinstance(found, dict) or found.get("schema") != OPENED_SCHEMA:
        raise DataError(f"{path}: not the record of when the test images were opened; start in another --out")
    return list(found["openings"])


def told(openings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The openings as `gain/opened.json` tells them: the first, then each later one with what was different."""
    first = openings[0]
    chosen = {name: first[name] for name in first if name.endswith("_on_val")}
    after = f"all {first['networks']} networks were trained"
    again = [
        {
            "at": each["at"],
            "after": f"{each['unseen']} more networks were trained" if each["unseen"] else "no network was trained",
            "changed": _changed(before["study"], each["study"]),
        }
        for before, each in pairwise(openings)
    ]
    return {"split": "test", "at": first["at"], "after": after, **chosen, "again": again}


def _changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Settings, inputs, code and libraries that differ, by name."""

    def flat(study: dict[str, Any]) -> dict[str, Any]:
        settings = {
            f"{section}.{name}": value
            for section, values in study["config"].items()
            for name, value in (values.items() if isinstance(values, dict) else [("", values)])
        }
        return {**settings, **study["inputs"], "code": study["code"], **study.get("libraries", {})}

    old, new = flat(before), flat(after)
    return sorted(name.removesuffix(".") for name in {*old, *new} if old.get(name) != new.get(name))
