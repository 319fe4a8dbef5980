"""What a run has left on disk, part by part; a part that is missing or damaged is named, never passed over.

Pixels stay in their files until they are shown, so that memory doesn't grow with the images of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from synthgen import storage
from synthgen.errors import DataError, SynthgenError
from synthgen.report.lineage import Lineage, lineage
from synthgen.shards import manifest, raw
from synthgen.shards.table import readable
from synthgen.types import DatasetSpec, GainReport, GateReport, ShardManifest
from synthgen.types.fits import misfit

VERDICT_SCHEMA = "synthgen.verdict/1"
CURVE_POINTS = 400
"""Losses of a curve on the page; of more, every so many-th is taken."""

T = TypeVar("T")


class Judged(TypedDict, total=False):
    """What the verdict says of a generator at the gate."""

    verdict: str
    reasons: list[str]
    candidates: int
    kept: int
    dropped: dict[str, int]


class Arm(TypedDict, total=False):
    """What the verdict says of an arm."""

    meaning: str | None
    recipe: str | None
    dial: str | None
    synthetic: bool | None
    simulation: bool | None
    best_real: bool | None
    best_synthetic: bool | None
    networks: int | None
    num_real: int | None
    num_synthetic: int | None
    seeds: int | None
    dial_value: float | None
    val_accuracy: float | None
    test_accuracy: float | None
    low: float | None
    high: float | None
    difference: float | None
    difference_low: float | None
    difference_high: float | None
    boot_low: float | None
    boot_high: float | None
    p_holm: float | None
    effect_size: float | None
    macro_f1: float | None
    worst_class: float | None
    worst_group: float | None
    ece: float | None
    clean: float | None
    seconds: float | None
    device_seconds: float | None


class Verdict(TypedDict, total=False):
    """`verdict.json`, as far as the page tells it."""

    verdict: str
    reasons: list[str] | None
    best_generator: str | None
    arms: dict[str, Arm] | None
    gate: dict[str, Judged] | None
    seconds: dict[str, float] | None
    shards: str | None


class Audit(TypedDict, total=False):
    """`audit/report.json`, as far as it isn't looked at before it is told."""

    notes: list[str]
    class_counts: dict[str, int]
    split_counts: dict[str, dict[str, int]]
    sizes: dict[str, int]
    converted: dict[str, int]
    quarantined: dict[str, str]
    label_issues: LabelIssues


class LabelIssues(TypedDict, total=False):
    """Of the audit."""

    accuracy: float | None
    keys: list[str]
    note: str


@dataclass(frozen=True)
class Images:
    """Images of a run that stay in their file.

    Attributes:
        keys, labels: of each, in the order of the file.
        rows: the pixels, uint8 (n, c, h, w): indexing reads.
    """

    keys: tuple[str, ...]
    labels: np.ndarray
    rows: Any

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def shape(self) -> tuple[int, ...]:
        """(c, h, w)."""
        return tuple(self.rows.shape[1:])

    @cached_property
    def at(self) -> dict[str, int]:
        """Key -> row."""
        return {key: i for i, key in enumerate(self.keys)}

    def pixels(self, rows: Sequence[int]) -> list[np.ndarray]:
        """The images of some rows, in that order.

        Raises:
            DataError: the file is damaged or gone.
        """
        return list(self.rows[np.asarray(rows, dtype=np.int64)]) if len(rows) else []


@dataclass(frozen=True)
class Scores:
    """The gate's signals of each candidate, and the training image nearest to it.

    Attributes:
        at: key -> row.
        signals: signal -> float64 (n,), NaN where unknown.
        nearest: key of the nearest training image, "" where unknown.
        distance: to it, float64 (n,).
    """

    at: dict[str, int] = field(default_factory=dict)
    signals: dict[str, np.ndarray] = field(default_factory=dict)
    nearest: tuple[str, ...] = ()
    distance: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def of(self, key: str) -> dict[str, float]:
        """The signals of a candidate that are known."""
        row = self.at.get(key)
        if row is None:
            return {}
        return {name: float(column[row]) for name, column in self.signals.items() if not np.isnan(column[row])}

    def nearest_to(self, key: str) -> tuple[str, float] | None:
        """The training image nearest to a candidate, and how near."""
        row = self.at.get(key)
        if row is None or not self.nearest or not self.nearest[row] or not np.isfinite(self.distance[row]):
            return None
        return self.nearest[row], float(self.distance[row])


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
    candidates: Images | None
    scores: Scores
    looks: Looks = field(default_factory=Looks)


@dataclass(frozen=True)
class Evidence:
    """Everything the page is made of.

    Attributes:
        name: of the run's folder.
        folder: the run's folder itself; it never stands in a page.
        verdict: `verdict.json`.
        config: `config.yaml` as text.
        spec, train, gain, manifest, audit: None where the part is missing.
        seconds: stage -> wall seconds.
        generators: the one that was studied first, then in the order of the verdict.
        lineage: what was made from what.
        elsewhere: whether the images were made by another tool or in another run.
        missing: one sentence each.
    """

    name: str
    folder: str
    verdict: dict[str, Any]
    config: str
    spec: DatasetSpec | None
    train: Images | None
    audit: dict[str, Any] | None
    generators: tuple[GeneratorEvidence, ...]
    manifest: ShardManifest | None
    gain: GainReport | None
    seconds: dict[str, float]
    lineage: Lineage
    elsewhere: bool
    missing: tuple[str, ...]

    def generator(self, name: Any) -> GeneratorEvidence | None:
        """That of a name."""
        return next((each for each in self.generators if each.name == name), None)


def collect(run: Path) -> Evidence:
    """Reads a run folder; the test split is never opened.

    Raises:
        DataError: no `verdict.json`: the run isn't finished.
    """
    verdict = read_verdict(run)
    missing: list[str] = []

    def part(name: str, read: Callable[[Path], T]) -> T | None:
        try:
            return read(run / name)
        except SynthgenError as error:
            missing.append(str(error).replace(f"{run}/", ""))
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            missing.append(f"{name}: damaged ({type(error).__name__}: {error})")
        return None

    elsewhere = (run / "gate" / "gate.json").is_file()

    def generator(name: str) -> GeneratorEvidence:
        if elsewhere and not (run / "gate" / name).is_dir():
            missing.append(f"the images of {name!r}: they were made elsewhere, and this run judged them where they are")
            judged = part("gate/gate.json", read_gate)
            return GeneratorEvidence(name, {}, judged, None, part("gate/scores.parquet", _scores) or Scores())
        return GeneratorEvidence(
            name,
            losses=part(f"train/{name}/train.json", _losses) or {},
            gate=part(f"gate/{name}/gate.json", read_gate),
            candidates=part(f"candidates/{name}/candidates.parquet", _images),
            scores=part(f"gate/{name}/scores.parquet", _scores) or Scores(),
            looks=(part(f"train/{name}/train.json", _looks) if (run / "train" / name / "train.json").is_file() else None)
            or Looks(),
        )

    return Evidence(
        name=run.resolve().name,
        folder=str(run.resolve()),
        verdict=verdict,
        config=part("config.yaml", _text) or "",
        spec=part("split/dataset.json", lambda path: DatasetSpec.from_json(json_object(path), str(path))),
        train=part("split/train.parquet", _images),
        audit=part("audit/report.json", _audit),
        generators=tuple(generator(name) for name in generator_names(run, verdict)),
        manifest=part("shards", manifest.read) if verdict.get("shards") or (run / "shards").is_dir() else None,
        gain=part("gain/gain.json", read_gain) if verdict.get("best_generator") or (run / "gain").is_dir() else None,
        seconds=_seconds(run, verdict),
        lineage=lineage(run),
        elsewhere=elsewhere,
        missing=tuple(missing),
    )


def read_verdict(run: Path) -> dict[str, Any]:
    """`verdict.json` of a run.

    Raises:
        DataError: none, or that of another version.
    """
    data = json_object(run / "verdict.json")
    if data.get("schema") != VERDICT_SCHEMA:
        raise DataError(f"{run / 'verdict.json'}: the schema is {data.get('schema')!r}, expected {VERDICT_SCHEMA!r}")
    if wrong := misfit(data, Verdict):
        raise DataError(f"{run / 'verdict.json'}: damaged: {wrong}; run the same command again")
    return data


def read_gate(path: Path) -> GateReport:
    """`gate.json`."""
    return GateReport.from_json(json_object(path), str(path))


def read_gain(path: Path) -> GainReport:
    """`gain.json`."""
    return GainReport.from_json(json_object(path), str(path))


def json_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        DataError: it is missing, or holds something else.
    """
    data = storage.read_json(path)
    if not isinstance(data, dict):
        raise DataError(f"{path}: not a JSON object")
    return data


def generator_names(run: Path, verdict: dict[str, Any]) -> list[str]:
    """The one that was studied, those of the verdict, then those that have a folder."""
    gates, best = list(verdict.get("gate") or {}), verdict.get("best_generator")
    names = [*(name for name in gates if name == best), *(name for name in gates if name != best)]
    for stage in ("train", "candidates", "gate"):
        folders = sorted(path.name for path in (run / stage).glob("*") if path.is_dir()) if (run / stage).is_dir() else []
        names += [name for name in folders if name not in names]
    return [name for name in names if "/" not in name and name not in ("", ".", "..")]


def _audit(path: Path) -> dict[str, Any]:
    found = json_object(path)
    if wrong := misfit(found, Audit):
        raise DataError(f"{path}: damaged: {wrong}")
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable ({error})") from None


def _images(path: Path) -> Images:
    stored = raw.on_disk(path)
    with readable(path):
        keys = pq.read_table(path, columns=["key"]).column("key").to_pylist()
    return Images(tuple(map(str, keys)), stored.labels, stored.images)


def _losses(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Name of the curve -> (step, loss) pairs; one curve has the name ""."""
    found = json_object(path)["losses"]
    curves = found if isinstance(found, dict) else {"": found}
    return {str(name): _thinned([(float(step), float(loss)) for step, loss in pairs]) for name, pairs in curves.items()}


def _thinned(pairs: list[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(pairs) <= CURVE_POINTS:
        return pairs
    rows = {round(i * (len(pairs) - 1) / (CURVE_POINTS - 1)) for i in range(CURVE_POINTS)}
    return [pairs[i] for i in sorted(rows)]


def _looks(path: Path) -> Looks:
    about = json_object(path)
    rows = [{str(name): float(value) for name, value in look.items()} for look in about.get("looks") or ()]
    kept = about.get("step")
    return Looks(rows, None if kept is None else float(kept), str(about.get("stopped") or ""))


def _scores(path: Path) -> Scores:
    with readable(path):
        table = pq.read_table(path)
    keys = table.column("key").to_pylist()
    floats = [f.name for f in table.schema if pa.types.is_floating(f.type) and f.name != "nearest_distance"]
    signals = {name: _column(table, name) for name in floats}
    at = {str(key): i for i, key in enumerate(keys)}
    if not {"nearest", "nearest_distance"} <= set(table.schema.names):
        return Scores(at, signals)
    nearest = tuple(str(key or "") for key in table.column("nearest").to_pylist())
    return Scores(at, signals, nearest, _column(table, "nearest_distance"))


def _column(table: pa.Table, name: str) -> np.ndarray:
    return np.asarray(table.column(name).to_numpy(zero_copy_only=False), dtype=np.float64)


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
