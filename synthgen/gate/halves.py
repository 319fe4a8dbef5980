"""Random halves of the reference with sets of candidates to match, and what they score: real against real, and beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from synthgen.config.schema import GateConfig
from synthgen.gate.evidence import Evidence, Real
from synthgen.gate.mix import Mix, side_counts
from synthgen.metrics.frechet import frechet_distance
from synthgen.randomness import stream
from synthgen.shapes import Float, Int64

MAX_SETS = 4
"""Most sets of candidates that are read against one half of the reference: they share its noise, so more hardly help."""

Views = tuple[np.ndarray, ...]
"""What is read of a set of images: arrays with a row an image, the extractor's features first."""


class Split(NamedTuple):
    """Rows of two halves of the reference, and of as large sets of candidates to match the second."""

    a: Int64[np.ndarray, " n"]
    b: Int64[np.ndarray, " n"]
    c: list[Int64[np.ndarray, " n"]]


def draw_splits(
    candidates: Evidence, real: Real, kept: np.ndarray, config: GateConfig, seed: int, mix: Mix | None = None
) -> list[Split]:
    """Halves (A, B) of the reference of equal class mix, and half of the kept candidates in sets C of the same size and mix.

    Classes are labels if the reference has them, else what the judge takes the images for, on both sides. (With chance
    mixes most of FID's spread on digits was that of the class counts: 3.7 at 150 images a side, with equal ones 0.9.)
    Under a `mix` both halves have as many images of each class as it says, as many as the reference has to give.
    """
    classes, offered = (
        e.labels if real.reference.labelled else e.probabilities.argmax(axis=1) for e in (real.reference, candidates)
    )
    pool = np.flatnonzero(kept)
    n = min(len(classes) // 2, len(pool) // 2, config.max_side)
    num_sets = min(MAX_SETS, len(pool) // (2 * n)) if n else 0
    drawn = None
    if mix is not None:
        drawn = side_counts(mix.weights, np.bincount(classes, minlength=len(mix.weights)) // 2, n)
        num_sets = _sets_in_mix(drawn, mix, len(pool))
    splits = []
    for split in range(config.splits):
        rng = stream(seed, "gate splits", split)
        a, b = _draw_halves(classes, n, rng) if drawn is None else _draw_in_counts(classes, drawn, rng)
        wanted = np.bincount(classes[b])
        left, sets = pool, []
        for _ in range(num_sets):
            sets.append(_draw_in_mix(left, offered[left], wanted, rng))
            left = np.setdiff1d(left, sets[-1], assume_unique=True)
        splits.append(Split(a, b, sets))
    return splits


def _sets_in_mix(drawn: Int64[np.ndarray, " k"], mix: Mix, num_kept: int) -> int:
    """How many sets of these counts half of the kept candidates give, if of each class as many as planned are kept."""
    if not drawn.any():
        return 0
    own = drawn > 0
    return max(1, min(MAX_SETS, int((num_kept * mix.weights[own] / (2 * drawn[own])).min())))


def draw_within_class(
    held: Int64[np.ndarray, " m"], pool: Int64[np.ndarray, " k"], n: int, num: int, label: int, seed: int
) -> list[Split]:
    """`num` times n and n rows of a class's reference images, and n of its kept candidates."""
    splits = []
    for split in range(num):
        rng = stream(seed, f"gate splits within class {label}", split)
        order = rng.permutation(held)
        splits.append(Split(order[:n], order[n : 2 * n], [rng.permutation(pool)[:n]]))
    return splits


def scored(
    splits: Sequence[Split],
    reference: Views,
    synthetic: Views,
    blurred: Float[np.ndarray, "n d"],
    score: Callable[[Views, Views], tuple[float, ...]],
    share: float,
) -> tuple[Float[np.ndarray, "s 2 k"], Float[np.ndarray, " s"]]:
    """What real against real and candidates score on each split, and the excess FID of real images of which a share is blurred.

    Args:
        splits: rows of `reference` (and `blurred`) and of `synthetic`; at least one set of candidates each.
        reference: of the reference images.
        synthetic: of the candidates.
        blurred: features of the reference images, blurred.
        score: k figures of two sets, FID first.
        share: of B that is blurred.

    Returns:
        score(A, B) and the mean of score(A, C), float64; and FID(A, B partly blurred) - FID(A, B).
    """
    scores, defect = [], np.empty(len(splits))
    for i, split in enumerate(splits):
        a, b = (tuple(view[rows] for view in reference) for rows in (split.a, split.b))
        null = score(a, b)
        scores.append((null, np.mean([score(a, tuple(view[rows] for view in synthetic)) for rows in split.c], axis=0)))
        defect[i] = frechet_distance(a[0], _partly(b[0], blurred[split.b], share)) - null[0]
    return np.array(scores), defect


def _draw_halves(classes: Int64[np.ndarray, " m"], n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two disjoint sets of n rows at random: images are paired within their class, and each pair is parted."""
    order = rng.permutation(len(classes))
    order = order[np.argsort(classes[order], kind="stable")]
    pairs = rng.permuted(order[: len(order) // 2 * 2].reshape(-1, 2), axis=1)
    a, b = pairs[rng.permutation(len(pairs))[:n]].T
    return a, b


def _draw_in_counts(
    classes: Int64[np.ndarray, " m"], counts: Int64[np.ndarray, " k"], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Two disjoint sets of rows at random, each with `counts` rows of each class."""
    order = rng.permutation(len(classes))
    chosen = [order[classes[order] == label][: 2 * count] for label, count in enumerate(counts)]
    pairs = np.concatenate(chosen).reshape(-1, 2)
    a, b = pairs[rng.permutation(len(pairs))].T
    return a, b


def _draw_in_mix(
    pool: Int64[np.ndarray, " m"], labels: Int64[np.ndarray, " m"], wanted: Int64[np.ndarray, " k"], rng: np.random.Generator
) -> Int64[np.ndarray, " n"]:
    """As many rows of the pool of each class as wanted, at random; where a class runs out, others fill up."""
    order = rng.permutation(len(pool))
    chosen = np.zeros(len(pool), dtype=bool)
    for label, count in enumerate(wanted):
        chosen[order[labels[order] == label][:count]] = True
    spare = order[~chosen[order]]
    chosen[spare[: int(wanted.sum() - chosen.sum())]] = True
    return pool[chosen]


def _partly(real: Float[np.ndarray, "n d"], defective: Float[np.ndarray, "n d"], share: float) -> Float[np.ndarray, "n d"]:
    """The real features, `share` of them replaced by those of the same images with a defect."""
    num = round(share * len(real))
    return np.concatenate([defective[:num], real[num:]])
