"""What a run has left on disk, part by part; a part that is missing or damaged is named, never passed over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from synthgen import storage
from synthgen.errors import DataError, SynthgenError
from synthgen.shards import manifest, raw
from synthgen.shards.table import readable
from synthgen.types import Batch, DatasetSpec, GainReport, GateReport, ShardManifest

VERDICT_SCHEMA = "synthgen.verdict/1"

T = TypeVar("T")


@dataclass(frozen=True)
class Scores:
    """The gate's signals of each candidate, and the training image nearest to it.

    Attributes:
        signals: key -> signal -> figure.
        nearest: key -> (key of the nearest training image, distance).
    """

    signals: dict[str, dict[str, float]] = field(default_factory=dict)
    nearest: dict[str, tuple[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Looks:
    """What was found at the looks in training.

    Attributes:
        rows: one a look: step and figures.
        kept: step whose weights were kept.
        stopped: why training ended before its time; empty if it didn't.
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    kept: float | None = None
    stopped: str = ""


@dataclass(frozen=True)
class GeneratorEvidence:
    """What is known of one generator; None where a part is missing."""

    name: str
    losses: dict[str, list[tuple[float, float]]]
    gate: GateReport | None
    candidates: Batch | None
    scores: Scores
    looks: Looks = field(default_factory=Looks)


@dataclass(frozen=True)
class Evidence:
    """Everything the page is made of.

    Attributes:
        name: of the run's folder.
        verdict: `verdict.json`.
        config: `config.yaml` as text.
        spec, train, gain, manifest, audit: None where the part is missing.
        seconds: stage -> wall seconds.
        generators: in the order of the verdict.
        missing: one sentence each.
    """

    name: str
    verdict: dict[str, Any]
    config: str
    spec: DatasetSpec | None
    train: Batch | None
    audit: dict[str, Any] | None
    generators: tuple[GeneratorEvidence, ...]
    manifest: ShardManifest | None
    gain: GainReport | None
    seconds: dict[str, float]
    missing: tuple[str, ...]


def collect(run: Path) -> Evidence:
    """Reads a run folder; the test split is never opened.

    Raises:
        DataError: no `verdict.json`: the run isn't finished.
    """
    verdict = _verdict(run)
    missing: list[str] = []

    def part(name: str, read: Callable[[Path], T]) -> T | None:
        try:
            return read(run / name)
        except SynthgenError as error:
            missing.append(str(error).replace(f"{run}/", ""))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            missing.append(f"{name}: damaged ({type(error).__name__}: {error})")
        return None

    def generator(name: str) -> GeneratorEvidence:
        if (run / "gate" / "gate.json").is_file() and not (run / "gate" / name).is_dir():
            missing.append(f"the images of {name!r}: they were made elsewhere, and this run judged them where they are")
            judged = part("gate/gate.json", lambda path: GateReport.from_json(_object(path), str(path)))
            return GeneratorEvidence(name, {}, judged, None, part("gate/scores.parquet", _scores) or Scores())
        return GeneratorEvidence(
            name,
            losses=part(f"train/{name}/train.json", _losses) or {},
            gate=part(f"gate/{name}/gate.json", lambda path: GateReport.from_json(_object(path), str(path))),
            candidates=part(f"candidates/{name}/candidates.parquet", raw.read),
            scores=part(f"gate/{name}/scores.parquet", _scores) or Scores(),
            looks=(part(f"train/{name}/train.json", _looks) if (run / "train" / name / "train.json").is_file() else None)
            or Looks(),
        )

    return Evidence(
        name=run.resolve().name,
        verdict=verdict,
        config=part("config.yaml", _text) or "",
        spec=part("split/dataset.json", lambda path: DatasetSpec.from_json(_object(path), str(path))),
        train=part("split/train.parquet", raw.read),
        audit=part("audit/report.json", _object),
        generators=tuple(generator(name) for name in _generator_names(run, verdict)),
        manifest=part("shards", manifest.read),
        gain=part("gain/gain.json", lambda path: GainReport.from_json(_object(path), str(path))),
        seconds=_seconds(run, verdict),
        missing=tuple(missing),
    )


def _verdict(run: Path) -> dict[str, Any]:
    data = _object(run / "verdict.json")
    if data.get("schema") != VERDICT_SCHEMA:
        raise DataError(f"{run / 'verdict.json'}: the schema is {data.get('schema')!r}, expected {VERDICT_SCHEMA!r}")
    return data


def _object(path: Path) -> dict[str, Any]:
    data = storage.read_json(path)
    if not isinstance(data, dict):
        raise DataError(f"{path}: not a JSON object")
    return data


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable ({error})") from None


def _generator_names(run: Path, verdict: dict[str, Any]) -> list[str]:
    names = list(verdict.get("gate") or {})
    for stage in ("train", "candidates", "gate"):
        folders = sorted(path.name for path in (run / stage).glob("*") if path.is_dir()) if (run / stage).is_dir() else []
        names += [name for name in folders if name not in names]
    return [name for name in names if "/" not in name and name not in ("", ".", "..")]


def _losses(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Name of the curve -> (step, loss) pairs; one curve has the name ""."""
    found = _object(path)["losses"]
    curves = found if isinstance(found, dict) else {"": found}
    return {str(name): [(float(step), float(loss)) for step, loss in pairs] for name, pairs in curves.items()}


def _looks(path: Path) -> Looks:
    about = _object(path)
    rows = [{str(name): float(value) for name, value in look.items()} for look in about.get("looks") or ()]
    kept = about.get("step")
    return Looks(rows, None if kept is None else float(kept), str(about.get("stopped") or ""))


def _scores(path: Path) -> Scores:
    with readable(path):
        table = pq.read_table(path)
    keys = table.column("key").to_pylist()
    floats = [f.name for f in table.schema if pa.types.is_floating(f.type) and f.name != "nearest_distance"]
    columns = [table.column(name).to_pylist() for name in floats]
    signals = {key: dict(zip(floats, row, strict=True)) for key, *row in zip(keys, *columns, strict=True)}
    nearest: dict[str, tuple[str, float]] = {}
    if {"nearest", "nearest_distance"} <= set(table.schema.names):
        names, distances = table.column("nearest").to_pylist(), table.column("nearest_distance").to_pylist()
        found = zip(keys, names, distances, strict=True)
        nearest = {key: (str(name), float(distance)) for key, name, distance in found if name and distance is not None}
    return Scores({key: {n: v for n, v in row.items() if v is not None} for key, row in signals.items()}, nearest)


def _seconds(run: Path, verdict: dict[str, Any]) -> dict[str, float]:
    """Those of the verdict; else what each stage wrote beside its results."""
    told = verdict.get("seconds")
    if isinstance(told, dict) and told:
        return {str(stage): float(value) for stage, value in told.items() if isinstance(value, (int, float))}
    found = {}
    for path in sorted(run.rglob(storage.TIMING)):
        try:
            found[path.parent.relative_to(run).as_posix()] = storage.seconds(path.parent)
        except (SynthgenError, LookupError, TypeError, ValueError):
            continue  # a stage without a time is seen in the table
    return found
