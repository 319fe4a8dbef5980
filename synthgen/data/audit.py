"""What is wrong with a data set, before anything is trained on it: duplicates, leakage, labels, broken files.

The audit reports; it stops a run only where a class is too small to go on with.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from synthgen.config.schema import AuditConfig, SplitConfig
from synthgen.data.sources import RealImages
from synthgen.data.splits import ROLES, leakage_blocks, leaking, stratified
from synthgen.errors import DataError
from synthgen.shapes import Bool, Float, Int64, UInt8
from synthgen.types import UNLABELLED, DatasetSpec, Record

MAX_LISTED = 100
"""Offenders and groups that a report lists; the totals beside them count all."""

MAX_JUDGED = 5_000
"""Images that the label judge looks at: 60,000 would take minutes and say the same of their kind."""

MIN_JUDGE_ACCURACY = 0.7
"""Below this the judge's own mistakes drown the labels': on CIFAR-10 it is right on 35% and would doubt 2,300 of 5,000."""

THUMBNAIL_PX = 16


@dataclass(frozen=True)
class Offenders:
    """How many images, and the keys of the first 100."""

    total: int
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Duplicates:
    """Groups of images that are the same, or nearly.

    Attributes:
        num_groups, num_images: groups of two or more, and the images in them.
        num_crossing: groups with images in more than one split, train and pool counting as one (both are learned from); 0
            where splits keep them together.
        num_conflicting: groups whose images carry different labels (counted where labels may be looked at: not in test).
        groups: the keys of the first 100 groups, at most 100 each.
    """

    num_groups: int
    num_images: int
    num_crossing: int
    num_conflicting: int
    groups: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class LabelIssues:
    """Labels of train and val that look wrong by cross-validated prediction (cleanlab; Northcutt 2021).

    Attributes:
        num_judged, folds, accuracy: images, folds and held-out accuracy of the judge, a logistic regression on pixels.
        total, keys: how many labels look wrong, and the first 100, the most doubtful first.
        note: how it was done, or why not.
    """

    num_judged: int
    folds: int
    accuracy: float | None
    total: int
    keys: tuple[str, ...]
    note: str


@dataclass(frozen=True)
class AuditReport(Record):
    """What the audit found.

    Attributes:
        spec: the data set.
        num_images: readable images.
        class_counts: class -> images, over all that have a label.
        split_counts: split -> class -> images; a split whose labels nobody knows has one entry, "unlabelled". No pool where
            it is empty.
        num_unused: images in no split.
        sizes: original "WxH" -> images, the 100 commonest.
        converted: what was done to images when they were read -> how many.
        num_quarantined, quarantined: files that were left out, and origin -> reason of the first 100.
        exact_duplicates: groups with the same pixels.
        near_duplicates: groups that are nearly the same (see `near_duplicates`), those with the same pixels alone left out.
        left_out: given train images that are in a group with given test images, and so in no split (labelled ones).
        constant: images of one colour.
        label_issues: labels that look wrong.
        notes: what deserves a look, one sentence each.
        num_unlabelled: images that came without a label.
        unlabelled_left_out: those of them that are in no split, since they are in a group with images of test, val or
            reference, or in the given test split.
    """

    SCHEMA: ClassVar[str] = "synthgen.audit/2"

    spec: DatasetSpec
    num_images: int
    class_counts: dict[str, int]
    split_counts: dict[str, dict[str, int]]
    num_unused: int
    sizes: dict[str, int]
    converted: dict[str, int]
    num_quarantined: int
    quarantined: dict[str, str]
    exact_duplicates: Duplicates
    near_duplicates: Duplicates
    left_out: Offenders
    constant: Offenders
    label_issues: LabelIssues
    notes: tuple[str, ...]
    num_unlabelled: int = 0
    unlabelled_left_out: Offenders = Offenders(0, ())

    @classmethod
    def _revive(cls, given: dict[str, Any]) -> dict[str, Any]:
        def duplicates(data: dict[str, Any]) -> Duplicates:
            return Duplicates(**data | {"groups": tuple(tuple(group) for group in data["groups"])})

        def offenders(data: dict[str, Any]) -> Offenders:
            return Offenders(data["total"], tuple(data["keys"]))

        return given | {
            "spec": DatasetSpec(**DatasetSpec._revive(given["spec"])),
            "exact_duplicates": duplicates(given["exact_duplicates"]),
            "near_duplicates": duplicates(given["near_duplicates"]),
            "left_out": offenders(given["left_out"]),
            "constant": offenders(given["constant"]),
            "unlabelled_left_out": offenders(given["unlabelled_left_out"]),
            "label_issues": LabelIssues(**given["label_issues"] | {"keys": tuple(given["label_issues"]["keys"])}),
            "notes": tuple(given["notes"]),
        }


def audit(
    real: RealImages,
    split: dict[str, np.ndarray],
    config: AuditConfig,
    split_config: SplitConfig,
    near: Int64[np.ndarray, " n"] | None = None,
) -> AuditReport:
    """Looks at the images as they were read and split.

    Labels are looked at in train and val (class counts apart); `split_config.reference_labelled=False` hides those of
    the reference, those of the pool are always hidden. Images without a label count for duplicates and leakage alone.

    Args:
        real: what `sources.load` gave.
        split: what `splits.split` gave.
        config: thresholds.
        split_config: what the split was made with; its seed also makes the label judge's folds.
        near: what `near_duplicates` gave, to save computing it again.

    Raises:
        DataError: a class has fewer train images than `config.min_per_class`, or none in val or test.
    """
    _check_class_sizes(real, split, config)
    near = near_duplicates(real.batch.images, config.near_duplicate) if near is None else near
    exact = exact_duplicates(real.batch.images)
    role_of = np.full(len(real.batch), -1)
    for i, role in enumerate(ROLES):
        role_of[split[role]] = i
    side_of = np.where(role_of == ROLES.index("pool"), ROLES.index("train"), role_of)
    known = ("train", "val", "reference") if split_config.reference_labelled else ("train", "val")
    labels = np.where(np.isin(role_of, [ROLES.index(role) for role in known]), real.batch.labels, -1)
    exact_groups = _groups(exact)
    near_groups = [rows for rows in _groups(near) if len(np.unique(exact[rows])) > 1]
    no_label = real.batch.labels == UNLABELLED
    blocks = leakage_blocks(real, near if split_config.keep_near_duplicates_together else None)
    report = AuditReport(
        spec=real.spec,
        num_images=len(real.batch),
        class_counts=_class_counts(real, np.arange(len(real.batch))),
        split_counts={
            role: _class_counts(real, split[role]) if role in ("test", *known) else {"unlabelled": len(split[role])}
            for role in ROLES
            if role != "pool" or len(split[role])
        },
        num_unused=int((role_of < 0).sum()),
        sizes=dict(list(real.sizes.items())[:MAX_LISTED]),
        converted=real.converted,
        num_quarantined=len(real.quarantined),
        quarantined=dict(list(real.quarantined.items())[:MAX_LISTED]),
        exact_duplicates=_duplicates(exact_groups, real.batch.keys, side_of, labels),
        near_duplicates=_duplicates(near_groups, real.batch.keys, side_of, labels),
        left_out=_offenders(np.setdiff1d(leaking(real, blocks), np.flatnonzero(no_label)), real.batch.keys),
        constant=_offenders(constant(real.batch.images), real.batch.keys),
        label_issues=label_issues(real, np.sort(np.concatenate([split["train"], split["val"]])), config, split_config.seed),
        notes=(),
        num_unlabelled=int(no_label.sum()),
        unlabelled_left_out=_offenders(np.flatnonzero(no_label & (role_of < 0)), real.batch.keys),
    )
    return AuditReport(**{**report.__dict__, "notes": _notes(report)})


def one_line(report: dict[str, Any]) -> str:
    """A report's JSON form in one line: the images, the splits, and how many notes there are."""
    channels, height, width = report["spec"]["image_shape"]
    splits = ", ".join(f"{role} {sum(counts.values()):,}" for role, counts in report["split_counts"].items())
    notes = report["notes"]
    more = f" (and {_plural(len(notes) - 1, 'more note')})" if len(notes) > 1 else ""
    return (
        f"{report['num_images']:,} images of {width}x{height}, {'grey' if channels == 1 else 'RGB'}, "
        f"{len(report['class_counts'])} classes; {splits}" + (f"; {notes[0]}{more}" if notes else "")
    )


# Duplicates


def exact_duplicates(images: UInt8[np.ndarray, "n c h w"]) -> Int64[np.ndarray, " n"]:
    """Group of each image: the first row with the same pixels."""
    first: dict[bytes, int] = {}
    hashes = (hashlib.sha256(image).digest() for image in np.ascontiguousarray(images))
    return np.array([first.setdefault(digest, row) for row, digest in enumerate(hashes)], dtype=np.int64)


def near_duplicates(images: UInt8[np.ndarray, "n c h w"], threshold: float, chunk: int = 2048) -> Int64[np.ndarray, " n"]:
    """Group of each image: the first row of those that are nearly the same, directly or through others.

    The distance of two images is that of their thumbnails: grey, 16x16 (area-averaged; smaller images as they are), mean
    taken off, divided by the norm, so that brightness and contrast don't matter: sqrt(2 - 2 correlation), 0 for the same
    picture, sqrt 2 for unrelated ones. Crops, shifts by a pixel and mirror images aren't found. Images of one colour
    have no thumbnail: they are the same only as another with the same pixels.

    Measured at 0.12, the default, with 500 planted copies of each kind on digits (8x8) and CIFAR-10 (32x32), found:
    JPEG of quality 90 100% and 100%, of quality 75 100% and 100%, 15 levels brighter 100% and 100%, 15% brighter 100%
    and 97%, 1% noise 100% and 100%. Beside them it flags 1 pair of the 1,797 digits and 26 pairs of the 60,000 CIFAR-10
    images, which are the same photograph; at 0.2, 28 pairs of digits that merely look alike.

    Cost: 11 s for 60,000 images of 32x32 on one core (one thread is used: a busy machine's second core made it ten times
    slower); memory is the thumbnails and chunk x chunk numbers.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    group = exact_duplicates(images)
    unique = np.flatnonzero(group == np.arange(len(group)))
    thumbnails, textured = _thumbnails(images[unique])
    unique, thumbnails = unique[textured], thumbnails[textured]
    for a, b in _near_pairs(thumbnails, threshold, chunk) if threshold > 0 else ():
        one, other = group[unique[a]], group[unique[b]]
        if (one != other).any():
            edges = coo_array((np.ones(len(one), np.int8), (one, other)), shape=(len(group),) * 2)
            component = connected_components(edges, directed=False)[1]
            group = _first_rows(component[group])
    return group


def near_any(
    images: UInt8[np.ndarray, "n c h w"], others: UInt8[np.ndarray, "m c h w"], threshold: float, chunk: int = 2048
) -> Bool[np.ndarray, " n"]:
    """Which images have a near duplicate among others, by the distance of `near_duplicates`; of the same pixels always one.

    Cost: 6 s for 10,000 images and 50,000 others of 32x32 on one core; memory is the thumbnails and chunk x chunk numbers.
    """
    known = {hashlib.sha256(image).digest() for image in np.ascontiguousarray(others)}
    found = np.array([hashlib.sha256(image).digest() in known for image in np.ascontiguousarray(images)], dtype=bool)
    if threshold <= 0 or not len(images) or not len(others):
        return found
    (own, textured), (theirs, theirs_textured) = _thumbnails(images), _thumbnails(others)
    rows = np.flatnonzero(textured)
    for near, _ in _near_pairs(own[rows], threshold, chunk, theirs[theirs_textured]):
        found[rows[near]] = True
    return found


def _near_pairs(
    vectors: Float[np.ndarray, "n d"], threshold: float, chunk: int, others: Float[np.ndarray, "m d"] | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of unit vectors within the threshold (each with itself too), or of a vector and one of the others, a block of
    chunk x chunk at a time."""
    from threadpoolctl import threadpool_limits

    least, second = 1 - threshold**2 / 2, vectors if others is None else others
    with threadpool_limits(1):
        for i in range(0, len(vectors), chunk):
            for j in range(i if others is None else 0, len(second), chunk):
                a, b = np.nonzero(vectors[i : i + chunk] @ second[j : j + chunk].T >= least)
                yield a + i, b + j


def constant(images: UInt8[np.ndarray, "n c h w"]) -> Int64[np.ndarray, " m"]:
    """Rows of images that have one colour."""
    flat = images.reshape(*images.shape[:2], -1)
    return np.flatnonzero((flat == flat[:, :, :1]).all(axis=(1, 2)))


def _thumbnails(images: UInt8[np.ndarray, "n c h w"]) -> tuple[Float[np.ndarray, "n d"], Bool[np.ndarray, " n"]]:
    """Unit vectors, and whether an image has any texture; a thousand images in memory as floats at a time."""
    n, _, h, w = images.shape
    rows, columns = _area_average(h), _area_average(w)
    out = np.empty((n, len(rows) * len(columns)), np.float32)
    for start in range(0, n, 1024):
        grey = images[start : start + 1024].mean(axis=1, dtype=np.float32)
        out[start : start + 1024] = (rows @ grey @ columns.T).reshape(len(grey), -1)
    out -= out.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(out, axis=1, keepdims=True)
    textured = norm[:, 0] > 1e-2
    return out / np.where(textured[:, None], norm, 1), textured


def _area_average(size_px: int) -> Float[np.ndarray, "t s"]:
    """Matrix that averages `size_px` pixels down to 16, each output pixel over the span that it covers."""
    if size_px <= THUMBNAIL_PX:
        return np.eye(size_px, dtype=np.float32)
    span = size_px / THUMBNAIL_PX
    start, pixel = np.arange(THUMBNAIL_PX)[:, None] * span, np.arange(size_px)[None]
    overlap = np.minimum(start + span, pixel + 1) - np.maximum(start, pixel)
    return (np.clip(overlap, 0, None) / span).astype(np.float32)


def _first_rows(component: np.ndarray) -> Int64[np.ndarray, " n"]:
    """Names each component by its first row."""
    _, first, index = np.unique(component, return_index=True, return_inverse=True)
    return first[index.reshape(-1)].astype(np.int64)


def _groups(group: Int64[np.ndarray, " n"]) -> list[np.ndarray]:
    """Rows of every group of two or more, by their first row."""
    order = np.argsort(group, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    return [part for part in parts if len(part) > 1]


def _duplicates(groups: list[np.ndarray], keys: tuple[str, ...], side_of: np.ndarray, labels: np.ndarray) -> Duplicates:
    def several(values: np.ndarray) -> bool:
        return len(np.unique(values[values >= 0])) > 1

    return Duplicates(
        num_groups=len(groups),
        num_images=sum(len(rows) for rows in groups),
        num_crossing=sum(several(side_of[rows]) for rows in groups),
        num_conflicting=sum(several(labels[rows]) for rows in groups),
        groups=tuple(tuple(keys[i] for i in rows[:MAX_LISTED].tolist()) for rows in groups[:MAX_LISTED]),
    )


def _offenders(rows: np.ndarray, keys: tuple[str, ...]) -> Offenders:
    return Offenders(len(rows), tuple(keys[i] for i in rows[:MAX_LISTED].tolist()))


# Labels


def label_issues(real: RealImages, rows: Int64[np.ndarray, " m"], config: AuditConfig, seed: int) -> LabelIssues:
    """Labels of `rows` that look wrong to a judge that hasn't seen them.

    The judge is a logistic regression on standardised pixels (their first 100 principal components, where there are
    more), cross-validated. Of 35 labels planted wrong in 1,797 digits it finds 30 and doubts 5 others; of 10 in 500, 8
    and 4 others.

    Args:
        real: the images.
        rows: those whose labels may be looked at: train and val.
        config: number of folds.
        seed: of the folds, and of the sample where there are more than 5,000 images.
    """
    labels = real.batch.labels
    num_all = len(rows)
    if num_all > MAX_JUDGED:
        rows = stratified(rows, MAX_JUDGED, labels, np.arange(len(labels)), seed, "audit/judged")
    counts = np.bincount(labels[rows], minlength=real.spec.num_classes)
    folds = min(config.label_folds, int(counts.min()))
    if folds < 2:
        name = real.spec.class_names[int(counts.argmin())]
        few = _plural(int(counts.min()), "image")
        return LabelIssues(0, 0, None, 0, (), f"not judged: class {name!r} has {few} in train and val, and 2 folds need 2")
    probabilities = _cross_validated(real.batch.images[rows], labels[rows], folds, seed)
    accuracy = float((probabilities.argmax(axis=1) == labels[rows]).mean())
    note = f"logistic regression on pixels, {folds} folds, {len(rows)} of the {num_all} images of train and val"
    if accuracy < MIN_JUDGE_ACCURACY:
        note = f"not judged: {note}, is right on {accuracy:.0%} only, too few to doubt a label ({MIN_JUDGE_ACCURACY:.0%} needed)"
        return LabelIssues(len(rows), folds, accuracy, 0, (), note)
    from cleanlab.filter import find_label_issues

    doubtful = find_label_issues(labels[rows], probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    found = _offenders(rows[np.asarray(doubtful, dtype=np.int64)], real.batch.keys)
    return LabelIssues(len(rows), folds, accuracy, found.total, found.keys, note)


def _cross_validated(images: np.ndarray, labels: np.ndarray, folds: int, seed: int) -> Float[np.ndarray, "m k"]:
    """Class probabilities of each image by a judge that was fitted on the other folds."""
    from sklearn.decomposition import PCA
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    pixels = images.reshape(len(images), -1).astype(np.float32) / 255
    reduced = min(100, len(images) // 2)
    large = pixels.shape[1] > 100
    steps = [StandardScaler(), PCA(reduced, svd_solver="randomized", random_state=0)] if large else [StandardScaler()]
    judge = make_pipeline(*steps, LogisticRegression(C=0.1, max_iter=300))
    parts = StratifiedKFold(folds, shuffle=True, random_state=seed % 2**32)
    with warnings.catch_warnings(), threadpool_limits(1):  # one thread, so that the core count doesn't change the last bit
        warnings.simplefilter("ignore", ConvergenceWarning)  # a judge that stopped early still judges
        probabilities: np.ndarray = cross_val_predict(judge, pixels, labels, cv=parts, method="predict_proba")
    return probabilities


# Counts and words


def _class_counts(real: RealImages, rows: np.ndarray) -> dict[str, int]:
    labels = real.batch.labels[rows]
    counts = np.bincount(labels[labels != UNLABELLED], minlength=real.spec.num_classes)
    return dict(zip(real.spec.class_names, counts.tolist(), strict=True))


def _check_class_sizes(real: RealImages, split: dict[str, np.ndarray], config: AuditConfig) -> None:
    for role, least in (("train", config.min_per_class), ("val", 1), ("test", 1)):
        for name, count in _class_counts(real, split[role]).items():
            if count < least:
                asked = f"audit.min_per_class asks for {least}" if role == "train" else "at least 1 is needed"
                raise DataError(
                    f"class {name!r} has {_plural(count, 'image')} in {role}, and {asked}; "
                    f"raise split.{role}, add images of the class or take it out"
                )


def _notes(report: AuditReport) -> tuple[str, ...]:
    """What deserves a look, worst first."""
    exact, near, doubtful = report.exact_duplicates, report.near_duplicates, report.label_issues
    crossing = exact.num_crossing + near.num_crossing
    conflicting = exact.num_conflicting + near.num_conflicting
    smallest = Counter(report.split_counts["train"]).most_common()[-1]
    lacking, apart = report.num_unlabelled, report.unlabelled_left_out.total
    trap = next((name for name in report.spec.class_names if name.lower() in ("unlabelled", "unlabeled", "-1")), None)
    lines = (
        (crossing, f"duplicates across splits, which flatter the scores on test: {_plural(crossing, 'group')}"),
        (conflicting, f"duplicates that carry different labels: {_plural(conflicting, 'group')}"),
        (doubtful.total, f"labels in train and val that look wrong: {doubtful.total} of {doubtful.num_judged}"),
        (doubtful.note.startswith("not judged"), f"labels {doubtful.note}"),
        (report.num_quarantined, f"left out when reading: {_plural(report.num_quarantined, 'file')}"),
        (report.left_out.total, f"left out of train, being tied to given test images: {_plural(report.left_out.total, 'image')}"),
        (apart, f"without a label and used by nobody, being tied to test, val or reference: {_plural(apart, 'image')}"),
        (trap, f"{trap!r} is taken for a class; if it means that there is no label: data.unlabelled={trap}"),
        (lacking, f"without a label, in the pool: {_plural(lacking - apart, 'image')}"),
        (report.constant.total, f"of one colour: {_plural(report.constant.total, 'image')}"),
        (exact.num_groups, f"the same pixels: {_plural(exact.num_groups, 'group')} ({exact.num_images} images)"),
        (near.num_groups, f"nearly the same: {_plural(near.num_groups, 'group')} ({near.num_images} images)"),
        (smallest[1] < 20, f"the smallest class in train: {smallest[0]!r} with {_plural(smallest[1], 'image')}"),
        *((count, f"{what}: {_plural(count, 'image')}") for what, count in report.converted.items()),
    )
    return tuple(line for flag, line in lines if flag)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
