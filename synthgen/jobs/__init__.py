"""One function a job, from folders to a folder: the only place with paths and wiring.

A run folder holds config.yaml, audit/, split/, features/, train/<model>/, candidates/<model>/, gate/<model>/, select/,
shards/, gain/, report/ and verdict.json. Each is a stage (`storage.stage`): whole or to be made again, skipped when its
settings, inputs and code agree, refused when they don't.
"""

from __future__ import annotations

from synthgen.jobs.candidates import load_candidates
from synthgen.jobs.checks import verify
from synthgen.jobs.exports import Decision, export
from synthgen.jobs.gains import Contest, gain, select
from synthgen.jobs.gates import features, gate, load_gate
from synthgen.jobs.generators import generate, train
from synthgen.jobs.order import Order
from synthgen.jobs.real import Split, audit, is_split, source_of
from synthgen.jobs.replays import replay
from synthgen.jobs.reports import compare, lockable, make_report
from synthgen.jobs.runs import assess, conclude, run, train_one
from synthgen.jobs.withdrawals import drop

__all__ = [
    "Contest", "Decision", "Order", "Split", "assess", "audit", "compare", "conclude", "drop", "export", "features", "gain",
    "gate", "generate", "is_split", "load_candidates", "load_gate", "lockable", "make_report", "replay", "run", "select",
    "source_of", "train", "train_one", "verify",
]  # fmt: skip
