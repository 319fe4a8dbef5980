"""What was made from what: the stages of a run with their digests, and how each generator's images were drawn."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from synthgen import storage
from synthgen.errors import SynthgenError
from synthgen.types.fits import misfit

DIGEST_CHARS = 12


class Drawn(TypedDict, total=False):
    """How candidates were drawn, see `types.Provenance`."""

    config: str | None
    checkpoint: str | None
    parents: dict[str, str]
    code: str | None
    seed: int | None
    sampler: str | None
    chunk: int | None
    device: str | None
    libraries: dict[str, str] | None


class Plan(TypedDict):
    """Which labels were asked for."""

    labels: str
    counts: dict[str, int]


@dataclass(frozen=True)
class MadeStage:
    """A finished stage.

    Attributes:
        name: its folder inside the run.
        code: synthgen's version and the digest of its sources.
        digest: of its files.
        inputs: name -> digest of what it was made from.
    """

    name: str
    code: str
    digest: str
    inputs: dict[str, str]


@dataclass(frozen=True)
class Lineage:
    """Where the results of a run come from; what isn't there is left out.

    Attributes:
        stages: the finished ones, in the order of the work.
        drawn: generator -> provenance of its candidates.
        plans: generator -> the class mix that was asked for.
        opened: when, and after what, the locked test split was opened.
        chosen: how the generator that was studied was chosen.
    """

    stages: tuple[MadeStage, ...] = ()
    drawn: dict[str, dict[str, Any]] = field(default_factory=dict)
    plans: dict[str, dict[str, Any]] = field(default_factory=dict)
    opened: dict[str, Any] = field(default_factory=dict)
    chosen: dict[str, Any] = field(default_factory=dict)

    @property
    def codes(self) -> list[str]:
        """The code versions of all stages, each once."""
        return list(dict.fromkeys(stage.code for stage in self.stages if stage.code))


ORDER = ("audit", "split", "features", "pool", "train", "candidates", "gate", "select", "gain", "shards")


def lineage(run: Path) -> Lineage:
    """That of a run folder, from the small files beside its results."""
    folders = [path.parent for pattern in ("*/", "*/*/") for path in run.glob(f"{pattern}{storage.STAGE_MANIFEST}")]
    folders.sort(key=lambda folder: (_rank(folder.relative_to(run)), folder.as_posix()))
    drawn, plans = {}, {}
    for path in sorted(run.glob("candidates/*/candidates.json")):
        about = _object(path)
        if not misfit(about.get("provenance"), Drawn):
            drawn[path.parent.name] = about["provenance"]
        if not misfit(about.get("plan"), Plan):
            plans[path.parent.name] = about["plan"]
    return Lineage(
        stages=tuple(stage for folder in folders if (stage := _stage(run, folder)) is not None),
        drawn=drawn,
        plans=plans,
        opened=_object(run / "gain" / "opened.json"),
        chosen=_object(run / "select" / "select.json"),
    )


def _rank(inside: Path) -> int:
    return ORDER.index(inside.parts[0]) if inside.parts[0] in ORDER else len(ORDER)


def _stage(run: Path, folder: Path) -> MadeStage | None:
    try:
        found = storage.read_manifest(folder)
        inputs = {str(name): str(digest) for name, digest in dict(found.get("inputs") or {}).items()}
        digest = storage.sha256_json(found["files"])
    except (SynthgenError, LookupError, TypeError, ValueError):
        return None
    return MadeStage(folder.relative_to(run).as_posix(), str(found.get("code") or ""), digest, inputs)


def _object(path: Path) -> dict[str, Any]:
    """A small JSON file, empty where it is missing or damaged: its absence shows in the page."""
    try:
        data = storage.read_json(path)
    except SynthgenError:
        return {}
    return data if isinstance(data, dict) else {}
