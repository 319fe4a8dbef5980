"""Per set: accept, reject or insufficient evidence, by what real images score against real ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from synthgen.config.schema import GateConfig
from synthgen.errors import DataError
from synthgen.gate.filters import Evidence, Real, Sifted, is_bad
from synthgen.metrics.frechet import frechet_distance
from synthgen.metrics.kernel import kid
from synthgen.metrics.prdc import prdc
from synthgen.randomness import stream
from synthgen.shapes import Float, Int64
from synthgen.types import UNLABELLED, GateDecision, GateReport, Metric

MIN_SIDE = 50
"""Fewest images a side for a metric of features: below it FID and recall of real against real vary as much as they are."""


def judge(
    candidates: Evidence, real: Real, sifted: Sifted, config: GateConfig, class_names: Sequence[str], seed: int = 0
) -> GateReport:
    """The verdict on a set of candidates: every metric beside real against real, with a 95% interval of the excess.

    For `config.splits` random halves (A, B) of the reference, metric(A, B) is real against real, and metric(A, C) is
    read for a subset C of the kept candidates of B's size and class mix. The mean difference is the excess. Its standard
    error is the spread over the splits: a delete-half jackknife, for which the variance over subsamples of half the data
    estimates the variance of the whole without a factor (Shao & Wu 1989, "A general theory for jackknife variance
    estimation", with r = d = n / 2). Excesses hardly move with n (MEASURED.md, 2), so half the data speak for all.

    A limit is a statement about real images (`GateConfig`). A metric accepts if its whole interval keeps the limit,
    rejects if none of it does. The set is rejected if any limit is broken, accepted if all are kept, else there isn't
    enough evidence. What isn't finite, or is computed on too few images, never accepts.

    Args:
        candidates: as given to `filters.sift`.
        real: the same.
        sifted: what `filters.sift` said of them.
        config: limits.
        class_names: label i is class_names[i].
        seed: of the splits.

    Returns:
        The report; the same input gives the same bytes.
    """
    raise NotImplementedError
