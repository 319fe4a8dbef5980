"""The records that flow through the factory: frozen, without I/O, numpy alone (importing this package imports no torch).

A record that lands on disk has a JSON form (`to_json`, `from_json`) that carries its schema and version.
"""

from synthgen.types.gain import (
    MAKING,
    ArmAccuracy,
    ClassGain,
    Control,
    CurvePoint,
    Exchange,
    GainReport,
    GainRow,
    Interval,
    LearningCurve,
    Scores,
)
from synthgen.types.gate import ClassFidelity, GateReport, Metric, Planted, Selection
from synthgen.types.images import Batch, DatasetSpec, FeatureSet
from synthgen.types.progress import Progress, Silent
from synthgen.types.record import UNLABELLED, GateDecision, Record, Verdict
from synthgen.types.shards import ExportFile, Provenance, SampleInfo, Shard, ShardManifest

__all__ = [
    "MAKING",
    "UNLABELLED",
    "ArmAccuracy",
    "Batch",
    "ClassFidelity",
    "ClassGain",
    "Control",
    "CurvePoint",
    "DatasetSpec",
    "Exchange",
    "ExportFile",
    "FeatureSet",
    "GainReport",
    "GainRow",
    "GateDecision",
    "GateReport",
    "Interval",
    "LearningCurve",
    "Metric",
    "Planted",
    "Progress",
    "Provenance",
    "Record",
    "SampleInfo",
    "Scores",
    "Selection",
    "Shard",
    "ShardManifest",
    "Silent",
    "Verdict",
]
