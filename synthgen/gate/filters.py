"""Per sample: keep, or drop with a reason. Every threshold is a quantile of the same signal on held-out real images.

The thresholds are conformal (Vovk et al. 2005, chapter 2; Bates et al. 2023, "Testing for outliers with conformal
p-values"): a new real image exceeds the ceil((n + 1)(1 - alpha))-th of n held-out ones with probability at most alpha.
The alphas of all families add up to `GateConfig.false_rejection`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from synthgen.config.schema import GateConfig
from synthgen.gate import selection
from synthgen.gate.evidence import Evidence, Real
from synthgen.gate.mix import LabelPlan, crowding
from synthgen.gate.signals import FAMILIES, Found, Signals, find, is_bad, null
from synthgen.metrics.copies import duplicate_groups
from synthgen.shapes import Bool, Float, Int64
from synthgen.types import Selection


@dataclass(frozen=True)
class Calibration:
    """Thresholds and the real signals that they come from.

    Attributes:
        null: family -> its signal on real images that the generator didn't see (for `label`: that the judge didn't see).
        thresholds: family -> the last value that passes.
        alphas: family -> expected share of real images it drops.
        real_dropped: share of held-out real images that are dropped in all; an upper bound, as `label` is added on top.
    """

    null: Signals
    thresholds: dict[str, float]
    alphas: dict[str, float]
    real_dropped: float


@dataclass(frozen=True)
class Sifted:
    """The candidates after the per-sample checks.

    Attributes:
        signals: family -> figure of each candidate; what the export writes beside a sample.
        nearest, nearest_distance: row of the training image that each candidate is nearest to, and how near.
        calibration: of the thresholds.
        valid: mask of the candidates that passed every check.
        kept: mask of those that the budget takes, all valid ones without a budget.
        reasons: key -> why it was dropped, for those that were.
        selection: how the budget was filled, None where it takes all.
    """

    signals: Signals
    nearest: Int64[np.ndarray, " n"]
    nearest_distance: Float[np.ndarray, " n"]
    calibration: Calibration
    valid: Bool[np.ndarray, " n"]
    kept: Bool[np.ndarray, " n"]
    reasons: dict[str, tuple[str, ...]]
    selection: Selection | None


def sift(
    candidates: Evidence, real: Real, config: GateConfig, seed: int = 0, device: str = "cpu", plan: LabelPlan | None = None
) -> Sifted:
    """All per-sample checks, and the budget: `signals.find`, `calibrate`, `keep` and `selection.select` in one call.

    Args:
        candidates: to be judged.
        real: each set in its role.
        config: thresholds and budget.
        seed: of what the budget draws at random.
        device: where copies are searched.
        plan: the class mix that was asked for, if it isn't the real images'.

    Raises:
        DataError: other shapes or extractors, candidates without labels, too few held-out real images.
    """
    found = find(candidates, real, config, device)
    among = round(len(candidates) * crowding(plan, real.train.labels))
    calibration = calibrate(real, config, among, device)
    valid, reasons = keep(candidates, found, calibration)
    kept, chosen = selection.select(candidates, valid, real.reference, config, seed)
    spared = {candidates.features.keys[row]: (selection.REASON,) for row in np.flatnonzero(valid & ~kept)}
    return Sifted(found.signals, found.nearest, found.distance, calibration, valid, kept, reasons | spared, chosen)


def calibrate(real: Real, config: GateConfig, num_candidates: int, device: str = "cpu") -> Calibration:
    """Thresholds at which held-out real images are dropped at most `config.false_rejection` of the time, in all.

    A reference image is judged as a candidate would be, itself left out. `num_candidates` matters for duplicates: among
    more images more pairs are close by chance. A family whose share of the budget is below 1/(n + 1) for its n real
    images takes their worst value as threshold; `alphas` then says what that costs. A family without evidence (no defect
    detector) leaves its share unused.
    """
    signals = null(real, config, device)
    thresholds, alphas = {}, {}
    for name in signals:
        alpha = FAMILIES[name].budget * config.false_rejection
        if name == "duplicate":
            thresholds[name], alphas[name] = _duplicate_threshold(signals[name], alpha, num_candidates)
        else:
            thresholds[name], alphas[name] = conformal_threshold(signals[name], alpha, FAMILIES[name].bad)
    thresholds["duplicate"] = min(thresholds["duplicate"], config.duplicate_ratio)
    return Calibration(signals, thresholds, alphas, _real_dropped(signals, thresholds, alphas["duplicate"]))


def keep(
    candidates: Evidence, found: Found, calibration: Calibration
) -> tuple[Bool[np.ndarray, " n"], dict[str, tuple[str, ...]]]:
    """Mask of the candidates that pass, and key -> reasons of those that don't.

    Of near-duplicates the one with the best support among those that pass all other checks is kept. A constant image
    is dropped as "low-level" whatever the thresholds.
    """
    bad = dropped(candidates, found.signals, calibration)
    passes = ~np.any(list(bad.values()), axis=0)
    best_first = np.lexsort((np.arange(len(candidates)), found.signals["support"], ~passes))
    reach = calibration.thresholds["duplicate"] * found.expected
    leaders = duplicate_groups(candidates.images, torch.from_numpy(reach), torch.from_numpy(best_first)).numpy()
    bad["duplicate"] = leaders != np.arange(len(candidates))
    kept = passes & ~bad["duplicate"]
    reasons = {
        candidates.features.keys[row]: tuple(family.reason for name, family in FAMILIES.items() if name in bad and bad[name][row])
        for row in np.flatnonzero(~kept)
    }
    return kept, reasons


def dropped(evidence: Evidence, signals: Signals, calibration: Calibration) -> dict[str, Bool[np.ndarray, " n"]]:
    """Family -> which images it drops, all but duplicates: those depend on the other images of the set."""
    bad = {name: is_bad(name, signals[name], limit) for name, limit in calibration.thresholds.items() if name != "duplicate"}
    bad["low_level"] |= np.ptp(evidence.images.reshape(len(evidence), -1), axis=1) == 0
    return bad


def conformal_threshold(null: Float[np.ndarray, " n"], alpha: float, bad: Literal["high", "low"]) -> tuple[float, float]:
    """The value that a new draw from the null is beyond with probability at most alpha, and that probability.

    With too few values for alpha (n + 1 < 1 / alpha) it is the worst of them, beyond which is one in n + 1.

    >>> conformal_threshold(np.arange(99.0), 0.05, "high")
    (94.0, 0.05)
    """
    n = len(null)
    allowed = math.floor((n + 1) * alpha + 1e-9)  # how many of the n may lie at or beyond
    allowed = max(1, allowed)
    ordered = np.sort(null)
    threshold = ordered[n - allowed] if bad == "high" else ordered[allowed - 1]
    return float(threshold), allowed / (n + 1)


def _real_dropped(null: Signals, thresholds: dict[str, float], duplicates: float) -> float:
    """Share of real images dropped: in all by what every held-out image has, plus labels (known of others), plus `duplicates`.

    The one image that a threshold was taken from counts: as of a new image, it would be as likely beyond.
    """
    bad = {}
    for name, limit in thresholds.items():
        bad[name] = is_bad(name, null[name], limit)
        at = np.flatnonzero(null[name] == limit)
        bad[name][at] |= len(at) == 1
    together = np.any([values for name, values in bad.items() if name not in ("label", "duplicate")], axis=0)
    return min(1.0, float(together.mean() + bad["label"].mean() + duplicates))


def _duplicate_threshold(null: np.ndarray, alpha: float, num_candidates: int) -> tuple[float, float]:
    """The threshold for a set of `num_candidates`, from nearest distances inside sets of half the reference's size.

    The chance that an image has any neighbour nearer than t grows with the number of others; of a pair one is dropped.
    So the level is 2 alpha (n_null - 1) / (n - 1). Below one in n_null + 1 the tail is extrapolated: the chance falls as
    t^D, D being the dimension in which images vary; a low D = 4 is on the safe side.
    """
    others = max(len(null) // 2 - 1, 1)
    level = min(alpha, 2 * alpha * others / max(num_candidates - 1, 1))
    threshold, used = conformal_threshold(null, level, "low")
    if used > level:
        threshold *= (level / used) ** (1 / 4)
    return threshold, alpha
