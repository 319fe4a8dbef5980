"""Per set: accept, reject or insufficient evidence, by what real images score against real ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from synthgen.config.schema import GateConfig
from synthgen.gate.evidence import Evidence, Real
from synthgen.gate.filters import Sifted
from synthgen.gate.halves import Split, Views, draw_splits, draw_within_class, scored
from synthgen.gate.intervals import share_difference, somers_d, weighted_share_difference, wilson
from synthgen.gate.least import LEAST, too_few
from synthgen.gate.mix import LabelPlan, Mix, effective, expected_dropped, in_words, labels_of, least_kept, planned_mix, weigh
from synthgen.gate.signals import COPY_REASONS, FAMILIES, is_bad
from synthgen.metrics.diversity import vendi
from synthgen.metrics.frechet import frechet_distance
from synthgen.metrics.kernel import kid, median_distance, mmd_rbf
from synthgen.metrics.pixels import principal_components
from synthgen.metrics.prdc import prdc
from synthgen.shapes import Float
from synthgen.types import UNLABELLED, ClassFidelity, GateDecision, GateReport, Metric, Planted

LIMITED = (
    *("copy_share", "label_agreement", "kept_share", "fid", "class_conditional_fid", "precision", "recall", "coverage"),
    *("pixel_recall", "pixel_coverage", "defect_shift", "support_shift"),
)
"""Metrics with a limit of their own, the weightiest first; the others are shown, unless `gate.bounds` names them."""

NEEDED = ("copy_share", "label_agreement", "kept_share", "fid", "precision", "recall", "coverage")
"""Metrics without which a set can't be accepted. (Class-conditional FID needs labelled reference images.)"""

OF_FEATURES = ("fid", "kid", "mmd", "precision", "recall", "density", "coverage", "vendi", "pixel_recall", "pixel_coverage")
"""Metrics that are read on splits; the last two on principal components of the pixels, which no network has learnt."""

HIGHER_IS_BETTER = (
    *("precision", "recall", "density", "coverage", "vendi", "pixel_recall", "pixel_coverage", "label_agreement", "kept_share"),
)

SHIFTING = ("support", "low_level", "defect")
"""Families whose signals a whole set may be shifted in. (Of low-level statistics the shift is shown only: they also
tell what may not matter, such as a background of 1 in place of 0.)"""

CLASS_METRICS = ("fid", "precision", "recall", "coverage")

SHOWN = "shown only"

ENOUGH_LABELS = 200
"""Labelled held-out images from which train's aren't needed to say how often the judge agrees with real labels."""

CLASS_SPLITS = 20
"""Most splits within a class: there are as many times more sets as there are classes."""

NOTICED = 4
"""Spreads of real against real from which a metric is mentioned though it keeps its limit."""


def judge(
    candidates: Evidence,
    real: Real,
    sifted: Sifted,
    config: GateConfig,
    class_names: Sequence[str],
    seed: int = 0,
    planted: tuple[Planted, ...] = (),
    plan: LabelPlan | None = None,
) -> GateReport:
    """The verdict on a set of candidates: every metric beside real against real, with a 95% interval of the excess.

    For `config.splits` random halves (A, B) of the reference, of equal class mix, metric(A, B) is real against real, and
    metric(A, C) is read for sets C of kept candidates, of B's size and mix, that make up half of the kept. The mean
    difference is the excess. Its standard error is the spread over the splits: a delete-half jackknife, as the variance
    over subsamples of half the data estimates that of the whole without a factor (Shao & Wu 1989, "A general theory for
    jackknife variance estimation", with d = n / 2; McCarthy 1969 for balanced halves). Near excess 0, where a distance
    has no linear part, it errs on the wide side. Excesses hardly move with n (5% blurred MNIST digits: FID .189 to .192
    for n of 500 to 5,000), so half the data speak for all. Equal mixes make A, B and C more alike than independent draws:
    FID is lower in both columns than elsewhere, and KID of real against real falls below 0; the excess is what counts.

    A limit is a statement about real images (`GateConfig`); a user's own bound on a value counts beside it, the stricter
    of the two. A metric accepts if its whole interval keeps the limit, rejects if none of it does. The set is rejected if
    any limit is broken, accepted if all are kept, else there isn't enough evidence. What isn't finite, or is computed on
    too few images, never accepts.

    Args:
        candidates: as given to `filters.sift`.
        real: the same.
        sifted: what `filters.sift` said of them.
        config: limits.
        class_names: label i is class_names[i].
        seed: of the splits.
        planted: recall of the per-sample checks (`sensitivity.planted_recall`), for the report.
        plan: the class mix that was asked for. Only its classes are expected, and real images are drawn and weighed in its
            mix. None expects every class, in the mix of the reference.

    Returns:
        The report; the same input gives the same bytes.
    """
    mix = planned_mix(plan, real) if plan else None
    splits = draw_splits(candidates, real, sifted.kept, config, seed, mix)
    classes, class_conditional = _by_class(candidates, real, sifted.kept, config, class_names, seed, plan)
    metrics = (
        *_feature_metrics(candidates, real, sifted.kept, config, splits, mix),
        class_conditional,
        *_shifts(sifted, real, config, mix),
        _label_agreement(candidates, real, config, class_names, plan),
        _copy_share(sifted, config),
        _kept_share(sifted, config),
    )
    thin = _thin_classes(classes, config, plan)
    verdicts = {metric.verdict for metric in metrics if _decides(metric, config)}
    verdict: GateDecision = "accept"
    if "insufficient evidence" in verdicts:
        verdict = "insufficient evidence"
    if thin or "reject" in verdicts:
        verdict = "reject"
    report = GateReport(
        verdict=verdict,
        notices=(*_compared(splits, real, mix, classes), *_dropped_often(sifted, real, mix), *_beyond_chance(metrics)),
        reasons=(),
        metrics=metrics,
        classes=classes,
        planted=planted,
        selection=sifted.selection,
        thresholds=dict(sifted.calibration.thresholds),
        real_dropped=sifted.calibration.real_dropped,
        num_candidates=len(candidates),
        kept=tuple(key for key, kept in zip(candidates.features.keys, sifted.kept, strict=True) if kept),
        dropped=dict(sifted.reasons),
        extractor=candidates.features.extractor,
    )
    return replace(report, reasons=tuple(_reasons(report, thin, config)))


def _decides(metric: Metric, config: GateConfig) -> bool:
    """Whether the verdict depends on it: it has a limit, or it was refused and is needed or bounded by the user."""
    wanted = metric.name in NEEDED or getattr(config.bounds, metric.name, None) is not None
    return metric.limit is not None or (metric.value is None and wanted)


def _compared(splits: Sequence[Split], real: Real, mix: Mix | None, classes: Sequence[ClassFidelity]) -> list[str]:
    """What was planned, in which mix sets are compared, and of which class the only candidate is missing, in words."""
    if mix is None:
        return []
    drawn = np.bincount(mix.classes(real.reference)[splits[0].b], minlength=len(classes))
    alone = [c.name for c, planned in zip(classes, mix.plan.counts, strict=True) if planned == 1 and not c.kept]
    missing = [
        f"class {name!r}: the only candidate asked for is missing, which alone isn't held against the set" for name in alone
    ]
    return [*in_words(mix, [c.name for c in classes], drawn, real), *missing]


def _feature_metrics(
    candidates: Evidence, real: Real, kept: np.ndarray, config: GateConfig, splits: Sequence[Split], mix: Mix | None
) -> list[Metric]:
    """`OF_FEATURES` of the kept candidates: distances, shares and diversity in features, recall and coverage in pixels."""
    n, in_mix = len(splits[0].a), f", {mix.offered(real.reference)} of them of the planned classes," if mix else ""
    found = f"{len(real.reference)} reference images{in_mix} and {int(kept.sum())} kept candidates"
    refused = {name: _refused(name, n, too_few(n, LEAST[name], found)) for name in OF_FEATURES if n < LEAST[name]}
    if len(refused) == len(OF_FEATURES):
        return list(refused.values())
    basis = np.concatenate([real.train.images, real.val.images])
    reference, synthetic = (
        (e.features.features, principal_components(e.images, basis).numpy()) for e in (real.reference, candidates)
    )
    k, sigma = config.neighbours, median_distance(torch.from_numpy(reference[0])) or 1.0

    def score(a: Views, b: Views) -> tuple[float, ...]:
        (x, u), (y, v) = a, b
        plain = prdc(u, v, k)
        return frechet_distance(x, y), kid(x, y), mmd_rbf(x, y, sigma), *prdc(x, y, k), vendi(y), plain.recall, plain.coverage

    scores, defect = scored(splits, reference, synthetic, real.blurred.features, score, config.max_defect)
    limits = {"fid": _yardstick(defect, scores[:, 0, 0], config)}
    least = {"precision": config.min_precision, "recall": config.min_recall, "coverage": config.min_coverage}
    for name, share in (least | {f"pixel_{name}": least[name] for name in ("recall", "coverage")}).items():
        floor = float(scores[:, 0, OF_FEATURES.index(name)].mean())
        limits[name] = (-(1 - share) * floor, f"at least {share:.0%} of real against real")
    return [
        refused.get(name)
        or _jackknifed(name, scores[:, :, i], n, *_bounded(name, limits.get(name, (None, SHOWN)), scores[:, 0, i].mean(), config))
        for i, name in enumerate(OF_FEATURES)
    ]


def _yardstick(defect: Float[np.ndarray, " s"], null: Float[np.ndarray, " s"], config: GateConfig) -> tuple[float, str]:
    """The largest excess FID, and in words.

    Where the extractor hardly sees blur, it is what n images can tell apart: FID of real against real itself.
    """
    blur = f"at most the excess of real images of which {config.max_defect:.0%} are blurred, or FID of real against real if more"
    return max(float(defect.mean()), float(null.mean())), blur


def _bounded(name: str, limit: tuple[float | None, str], reference: float, config: GateConfig) -> tuple[float | None, str]:
    """The stricter of a limit on the excess and the user's own bound on the value."""
    bound = getattr(config.bounds, name, None)
    if bound is None:
        return limit
    higher = name in HIGHER_IS_BETTER
    own, words = bound - float(reference), f"gate.bounds.{name}: {'at least' if higher else 'at most'} {bound:g}"
    if limit[0] is not None and (limit[0] >= own if higher else limit[0] <= own):
        return limit
    return own, words


def _jackknifed(name: str, scores: Float[np.ndarray, "s 2"], n: int, limit: float | None, note: str) -> Metric:
    """A metric from its values on splits: real against real in column 0, candidates in column 1."""
    excess = scores[:, 1] - scores[:, 0]
    error = 1.96 * excess.std(ddof=1)
    reference, value = scores.mean(axis=0)
    return _metric(name, value, reference, excess.mean() - error, excess.mean() + error, scores[:, 0].std(ddof=1), n, limit, note)


def _by_class(
    candidates: Evidence,
    real: Real,
    kept: np.ndarray,
    config: GateConfig,
    class_names: Sequence[str],
    seed: int,
    plan: LabelPlan | None,
) -> tuple[tuple[ClassFidelity, ...], Metric]:
    """Each class by itself, and the mean over classes of the FID within a class.

    The latter sees wrong labels, which no other metric of features does; its limit is FID's, within classes. It is there
    if every class of train has enough images, or every class of the plan.
    """
    reference, synthetic = real.reference.features.features, candidates.features.features
    rows, columns, defects, sides = [], [], [], []
    expected = set((np.unique(real.train.labels) if plan is None else np.flatnonzero(plan.counts)).tolist())
    least, refusal = LEAST["class_conditional_fid"], ""

    def score(x: Views, y: Views) -> tuple[float, ...]:
        precision, recall, _, coverage = prdc(x[0], y[0], config.neighbours)
        return frechet_distance(x[0], y[0]), precision, recall, coverage

    for label, name in enumerate(class_names):
        own = candidates.labels == label
        held, pool = np.flatnonzero(real.reference.labels == label), np.flatnonzero(kept & own)
        n = min(len(held) // 2, len(pool) // 2, config.max_side)
        made, left = int(own.sum()), len(pool)
        if plan is not None and not made and label not in expected:
            rows.append(ClassFidelity(name, 0, 0, 0, {}, {}, f"not asked for by labels={plan.labels}"))
            continue
        if n < least:
            note = too_few(n, least, f"{len(held)} labelled reference images and {left} kept candidates of {name!r}")
            rows.append(ClassFidelity(name, made, left, 0, {}, {}, note))
            refusal = refusal or (note if label in expected else "")
            continue
        splits = draw_within_class(held, pool, n, min(config.splits, CLASS_SPLITS), label, seed)
        scores, defect = scored(splits, (reference,), (synthetic,), real.blurred.features, score, config.max_defect)
        null, value = (dict(zip(CLASS_METRICS, map(float, means), strict=True)) for means in scores.mean(axis=0))
        rows.append(ClassFidelity(name, made, left, n, value, null, ""))
        columns.append(scores[:, :, 0])
        defects.append(defect)
        sides.append(n)
    if refusal or not columns:
        return tuple(rows), _refused("class_conditional_fid", 0, refusal or "refused: no class has images")
    scores = np.mean(columns, axis=0)
    limit = _yardstick(np.mean(defects, axis=0), scores[:, 0], config)
    return tuple(rows), _jackknifed("class_conditional_fid", scores, min(sides), *limit)


def _label_agreement(
    candidates: Evidence, real: Real, config: GateConfig, class_names: Sequence[str], plan: LabelPlan | None
) -> Metric:
    """Share of all candidates whose label the judge agrees with, against the same of images it wasn't trained on."""
    if plan is not None:
        return _planned_agreement(candidates, real, config, class_names, plan)
    agreed = _agreement(candidates)
    held_out = np.concatenate([_agreement(e) for e in (real.val, real.reference)])
    if len(held_out) < ENOUGH_LABELS:  # train is judged by one network each, which is less often right than all together
        held_out = np.concatenate([_agreement(real.train), held_out])
    return _agreeing(agreed, float(held_out.mean()), share_difference(agreed, held_out), len(held_out), config)


def _planned_agreement(
    candidates: Evidence, real: Real, config: GateConfig, class_names: Sequence[str], plan: LabelPlan
) -> Metric:
    """The same with held-out images weighed to the planned mix: judges are right more often in some classes than in others."""
    judged, labels = [real.val, real.reference], labels_of(real.val, real.reference)
    wanted = np.flatnonzero(plan.counts)
    if len(labels) < ENOUGH_LABELS or not np.isin(wanted, labels).all():
        judged, labels = [*judged, real.train], labels_of(*judged, real.train)
    missing = wanted[~np.isin(wanted, labels)]
    if len(missing):
        return _refused("label_agreement", 0, f"refused: no labelled real image of class {class_names[missing[0]]!r}")
    agreed, held_out = _agreement(candidates), np.concatenate([_agreement(e) for e in judged])
    weights = weigh(labels, plan.share)
    n, reference = effective(weights), float((weights * held_out).sum() / weights.sum())
    return _agreeing(agreed, reference, weighted_share_difference(agreed, held_out, weights, n), n, config)


def _agreeing(agreed: np.ndarray, reference: float, interval: tuple[float, float], n: float, config: GateConfig) -> Metric:
    limit, note = -(1 - config.min_agreement) * reference, f"at least {config.min_agreement:.0%} of that of held-out real images"
    spread = math.sqrt(reference * (1 - reference) * (1 / len(agreed) + 1 / n))
    return _metric("label_agreement", agreed.mean(), reference, *interval, spread, len(agreed), limit, note)


def _agreement(evidence: Evidence) -> np.ndarray:
    known = evidence.labels != UNLABELLED
    return (evidence.probabilities.argmax(axis=1) == evidence.labels)[known]


def _copy_share(sifted: Sifted, config: GateConfig) -> Metric:
    """Share of all candidates that are copies of training images, against the same of held-out real images."""
    families = [name for name, family in FAMILIES.items() if family.reason in COPY_REASONS]
    copies, held_out = (
        np.any([is_bad(name, signals[name], sifted.calibration.thresholds[name]) for name in families], axis=0)
        for signals in (sifted.signals, sifted.calibration.null)
    )
    reference = held_out.mean()
    return _share(
        "copy_share", copies, reference, config.max_copy_share, f"copies of training images: at most {config.max_copy_share:.0%}"
    )


def _kept_share(sifted: Sifted, config: GateConfig) -> Metric:
    """Share of the candidates that pass the per-sample checks, against the same of held-out real images."""
    return _share(
        "kept_share",
        sifted.valid,
        1 - sifted.calibration.real_dropped,
        config.min_keep,
        f"at least {config.min_keep:.0%} must pass",
    )


def _share(name: str, hits: np.ndarray, reference: float, bound: float, note: str) -> Metric:
    """A share among all candidates with its Wilson interval; the bound is on the share itself."""
    n, value = len(hits), hits.mean()
    low, high = wilson(int(hits.sum()), n)
    spread = math.sqrt(reference * (1 - reference) / n)
    return _metric(name, value, reference, low - reference, high - reference, spread, n, bound - reference, note)


def _shifts(sifted: Sifted, real: Real, config: GateConfig, mix: Mix | None) -> list[Metric]:
    """How far the kept samples as a whole lie above held-out real images in the signals of quality: Somers' D, in -1 to 1.

    D = 2 AUROC - 1 is the share of the set that would have to be plainly defective, and the rest as real images, to make
    the same AUROC. It sees what every sample has a little of, such as faint noise, and no single one enough of.
    """
    metrics = []
    weights = mix.of(real.reference, real.val) if mix else None
    for family in (name for name in SHIFTING if name in sifted.signals):
        name, held_out = f"{family}_shift", sifted.calibration.null[family]
        kept = sifted.signals[family][sifted.kept]
        num_real = len(held_out) if weights is None else int(effective(weights))
        n = min(len(kept), num_real)
        if n < LEAST[name]:
            note = f"refused: {len(kept)} kept candidates against {num_real} real images, at least {LEAST[name]} are needed"
            metrics.append(_refused(name, n, note))
            continue
        d, error = somers_d(kept, held_out, weights)
        spread = math.sqrt((1 / len(kept) + 1 / num_real) / 3)  # of D between two draws of one distribution
        words = f"at most that of a set of which {config.max_shift:.0%} is plainly defective"
        limit, note = (config.max_shift, words) if name in LIMITED else (None, SHOWN)
        metrics.append(_metric(name, d, 0.0, d - 1.96 * error, d + 1.96 * error, spread, len(kept), limit, note))
    return metrics


def _thin_classes(classes: tuple[ClassFidelity, ...], config: GateConfig, plan: LabelPlan | None) -> tuple[str, ...]:
    """A sentence for each class that was asked for and of which too few candidates were kept."""
    if plan is None:
        least, told = [config.min_kept_per_class] * len(classes), [""] * len(classes)
    else:
        least = [least_kept(planned, config) for planned in plan.counts]
        told = [f" ({planned} planned)" for planned in plan.counts]
    return tuple(
        f"class {c.name!r} has {c.kept} kept candidates of {c.candidates}{words}, at least {need} are needed"
        for c, need, words in zip(classes, least, told, strict=True)
        if c.kept < need
    )


def _metric(
    name: str, value: float, reference: float, low: float, high: float, spread: float, n: int, limit: float | None, note: str
) -> Metric:
    """A `Metric` with its own verdict; what isn't finite never accepts."""
    excess = value - reference
    if not all(math.isfinite(x) for x in (value, reference, low, high, limit or 0.0)):
        return _refused(name, n, "refused: a figure isn't finite")
    verdict: GateDecision = "accept"
    if limit is not None:
        best, worst = (-high, -low) if name in HIGHER_IS_BETTER else (low, high)
        bound = -limit if name in HIGHER_IS_BETTER else limit
        verdict = "reject" if best > bound else "accept" if worst <= bound else "insufficient evidence"
    return Metric(
        name=name,
        value=float(value),
        reference=float(reference),
        excess=float(excess),
        low=float(low),
        high=float(high),
        z=float(excess / spread) if spread > 0 else None,
        n=n,
        limit=None if limit is None else float(limit),
        verdict=verdict,
        note=note,
    )


def _refused(name: str, n: int, note: str) -> Metric:
    return Metric(name, None, None, None, None, None, None, n, None, "insufficient evidence", note)


def _reasons(report: GateReport, thin: tuple[str, ...], config: GateConfig) -> list[str]:
    """What decided, in plain sentences, the weightiest first."""
    limited = [metric for metric in report.metrics if _decides(metric, config)]
    limited.sort(key=lambda metric: LIMITED.index(metric.name) if metric.name in LIMITED else len(LIMITED))
    broken = [_sentence(metric) for metric in limited if metric.verdict == "reject"]
    unclear = [_sentence(metric) for metric in limited if metric.verdict == "insufficient evidence" and metric.value is not None]
    refused: dict[str, list[str]] = {}  # note -> names of the metrics that it refuses
    for metric in limited:
        if metric.value is None:
            refused.setdefault(metric.note, []).append(metric.name)
    sentences = [*broken, *thin, *unclear, *(f"{', '.join(names)}: {note}" for note, names in refused.items())]
    if report.verdict == "accept":
        sentences = [f"all limits are kept: {', '.join(metric.name for metric in limited)}"]
    if report.dropped:
        counts = ", ".join(f"{reason} {count}" for reason, count in report.reason_counts().items())
        sentences.append(f"{len(report.dropped)} of {report.num_candidates} candidates were dropped: {counts}")
    return sentences


def _dropped_often(sifted: Sifted, real: Real, mix: Mix | None) -> list[str]:
    """A sentence for each reason for which clearly more candidates were dropped than real images would be."""
    told = []
    for name, family in FAMILIES.items():
        hits = sum(family.reason in reasons for reasons in sifted.reasons.values())
        expected = sifted.calibration.alphas.get(name, 1.0)
        if mix is not None and name in sifted.calibration.thresholds:
            null, threshold = sifted.calibration.null[name], sifted.calibration.thresholds[name]
            expected = max(expected, expected_dropped(mix, real, name, null, threshold))
        if wilson(hits, len(sifted.kept))[0] > 2 * expected:
            share = hits / len(sifted.kept)
            told.append(
                f"{share:.1%} of the candidates were dropped as {family.reason!r}, {expected:.1%} of real images would be"
            )
    return told


def _beyond_chance(metrics: Sequence[Metric]) -> list[str]:
    """A sentence for each metric that keeps its limit, or has none, and is worse than real images beyond chance."""
    told = []
    for m in metrics:
        if m.value is None or m.low is None or m.high is None or m.verdict == "reject" or m.name in ("copy_share", "kept_share"):
            continue
        worse = m.high < 0 if m.name in HIGHER_IS_BETTER else m.low > 0
        if worse and m.z is not None and abs(m.z) > NOTICED:
            told.append(f"{m.name} is {m.value:.3g} against {m.reference:.3g} for real images (z {m.z:+.1f}), more than chance")
    return told


def _sentence(metric: Metric) -> str:
    assert metric.value is not None
    assert metric.limit is not None
    words = "breaks its limit" if metric.verdict == "reject" else "may or may not keep its limit"
    return (
        f"{metric.name} is {metric.value:.3g} against {metric.reference:.3g} for real images, which {words} ({metric.note}): "
        f"excess {metric.excess:+.3g}, 95% interval {metric.low:+.3g} to {metric.high:+.3g}, limit {metric.limit:+.3g}"
    )
