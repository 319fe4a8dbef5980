"""The audit: planted faults are found, and next to nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from synthgen.config.schema import AuditConfig, DataConfig, SplitConfig
from synthgen.data.audit import AuditReport, audit, constant, exact_duplicates, label_issues, near_any, near_duplicates, one_line
from synthgen.data.sources import RealImages, load
from synthgen.data.splits import split
from synthgen.errors import DataError
from synthgen.types import Batch

SPLIT = SplitConfig(train=200, val=100, reference=300, reference_labelled=False, test=0.5)
THRESHOLD = AuditConfig().near_duplicate


@pytest.fixture(scope="module")
def digits() -> RealImages:
    return load(DataConfig())


def with_images(real: RealImages, images: np.ndarray, labels: np.ndarray | None = None) -> RealImages:
    return replace(real, batch=Batch(images, real.batch.labels if labels is None else labels, real.batch.keys))


def look(real: RealImages, config: SplitConfig = SPLIT) -> AuditReport:
    near = near_duplicates(real.batch.images, THRESHOLD)
    return audit(real, split(real, config, near), AuditConfig(), config, near)


def jpeg(image: np.ndarray) -> np.ndarray:
    file = BytesIO()
    Image.fromarray(image[0]).save(file, "JPEG", quality=90)
    return np.asarray(Image.open(file))[None]


def photographs(num: int, size_px: int) -> np.ndarray:
    """Smooth random colour images, of the contrast of photographs."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (num, 6, 6, 3), dtype=np.uint8)
    big = [np.asarray(Image.fromarray(s).resize((size_px, size_px), Image.Resampling.BICUBIC)) for s in small]
    return np.stack(big).transpose(0, 3, 1, 2)


PLANTED = {
    "re-encoded": jpeg,
    "brighter": lambda image: np.clip(image.astype(int) + 15, 0, 255).astype(np.uint8),
    "noisy": lambda image: np.clip(image + np.random.default_rng(1).normal(0, 2.55, image.shape), 0, 255).astype(np.uint8),
    "the same": lambda image: image,
}


@pytest.mark.parametrize("kind", PLANTED)
def test_planted_near_duplicates_of_digits_are_found_and_little_else(digits: RealImages, kind: str):
    images = digits.batch.images
    group = near_duplicates(np.concatenate([images, np.stack([PLANTED[kind](image) for image in images[:200]])]), THRESHOLD)
    assert (group[1797:] == group[:200]).all()
    assert len(np.unique(group)) >= 1797 - 1  # one pair of genuine digits is that alike


@pytest.mark.parametrize("size_px", [12, 20, 32, 48])
def test_near_duplicates_of_other_sizes(size_px: int):
    images = photographs(100, size_px)
    noisy = np.clip(images + np.random.default_rng(1).normal(0, 2.55, images.shape), 0, 255).astype(np.uint8)
    group = near_duplicates(np.concatenate([images, noisy]), THRESHOLD, chunk=32)
    assert group.tolist() == [*range(100), *range(100)]


def test_groups_do_not_depend_on_the_chunk_and_can_be_switched_off(digits: RealImages):
    images = digits.batch.images[:500]
    loose = near_duplicates(images, 0.3)
    assert len(np.unique(loose)) < 500
    for chunk in (7, 100, 5000):
        np.testing.assert_array_equal(near_duplicates(images, 0.3, chunk), loose)
    assert len(np.unique(near_duplicates(images, 0.0))) == 500


@pytest.mark.parametrize("kind", PLANTED)
def test_which_images_have_a_near_duplicate_among_others(digits: RealImages, kind: str):
    """As `near_duplicates` has it, but for two images that only a third one joins."""
    images, planted = digits.batch.images[:600], np.stack([PLANTED[kind](image) for image in digits.batch.images[100:200]])
    for chunk in (64, 2048):
        found = near_any(images, planted, THRESHOLD, chunk)
        assert found[100:200].all()
        assert np.count_nonzero(found) <= 101
    exact = near_any(images, planted, 0.0)
    assert np.flatnonzero(exact).tolist() == (list(range(100, 200)) if kind == "the same" else [])
    assert not near_any(images[:100], images[:0], THRESHOLD).any()
    flat = np.stack([np.full((1, 8, 8), level, np.uint8) for level in (0, 10)])
    assert near_any(flat, flat[1:], THRESHOLD).tolist() == [False, True]


def test_images_of_one_colour_are_no_near_duplicates_of_each_other():
    images = np.stack([np.full((3, 8, 8), level, np.uint8) for level in (0, 10, 0)])
    assert near_duplicates(images, THRESHOLD).tolist() == [0, 1, 0]
    assert constant(images).tolist() == [0, 1, 2]
    images[1, 0, 0, 0] = 9
    assert constant(images).tolist() == [0, 2]


def test_exact_duplicates():
    images = np.arange(4, dtype=np.uint8).repeat(64).reshape(4, 1, 8, 8)[[0, 1, 0, 3, 1]]
    assert exact_duplicates(images).tolist() == [0, 1, 0, 3, 1]


def test_duplicates_are_kept_together_and_counted_where_they_cross(digits: RealImages):
    images = digits.batch.images.copy()
    images[900:950] = images[:50]
    images[950:1000] = [PLANTED["noisy"](image) for image in images[100:150]]
    real = with_images(digits, images)
    together = look(real)
    assert (together.exact_duplicates.num_groups, together.exact_duplicates.num_crossing) == (50, 0)
    assert (together.near_duplicates.num_groups, together.near_duplicates.num_crossing) == (51, 0)
    assert together.exact_duplicates.groups[0] == ("real-000000", "real-000900")
    apart = look(real, SPLIT.model_copy(update={"keep_near_duplicates_together": False}))
    assert apart.exact_duplicates.num_crossing > 10
    assert apart.near_duplicates.num_crossing > 10
    assert "duplicates across splits" in apart.notes[0]


def test_labels_of_unlabelled_reference_and_of_test_are_not_looked_at(digits: RealImages):
    images = digits.batch.images.copy()
    rows = split(digits, SPLIT)
    for role in ("test", "reference", "train"):
        one = rows[role][0]
        other = rows[role][digits.batch.labels[rows[role]] != digits.batch.labels[one]][0]
        images[other] = images[one]
    report = look(with_images(digits, images), SPLIT.model_copy(update={"keep_near_duplicates_together": False}))
    assert report.exact_duplicates.num_groups == 3
    assert report.exact_duplicates.num_conflicting == 1
    assert report.split_counts["reference"] == {"unlabelled": 300}


def test_mislabelled_digits_are_found(digits: RealImages):
    rows = split(digits, SPLIT)
    labels = digits.batch.labels.copy()
    wrong = [rows["train"][labels[rows["train"]] == label][0] for label in range(8)]
    labels[wrong] = (labels[wrong] + 5) % 10
    real = with_images(digits, digits.batch.images, labels)
    found = label_issues(real, np.sort(np.concatenate([rows["train"], rows["val"]])), AuditConfig(), seed=0)
    assert found.num_judged == 300
    assert len({digits.batch.keys[row] for row in wrong} & set(found.keys)) >= 4  # 0.4 by chance
    assert found.total < 30
    assert found.accuracy is not None
    assert found.accuracy > 0.85


def test_the_label_judge_says_why_it_does_not_judge(digits: RealImages):
    rows = np.concatenate([np.flatnonzero(digits.batch.labels != 3)[:200], np.flatnonzero(digits.batch.labels == 3)[:1]])
    few = label_issues(digits, rows, AuditConfig(), seed=0)
    assert few.note == "not judged: class '3' has 1 image in train and val, and 2 folds need 2"
    noise = np.random.default_rng(0).integers(0, 256, digits.batch.images.shape, dtype=np.uint8)
    weak = label_issues(with_images(digits, noise), np.arange(500), AuditConfig(), seed=0)
    assert weak.total == 0
    assert "too few to doubt a label" in weak.note


def test_the_label_judge_lowers_the_folds_for_a_small_class(digits: RealImages):
    rows = np.concatenate([np.flatnonzero(digits.batch.labels != 3)[:200], np.flatnonzero(digits.batch.labels == 3)[:3]])
    assert label_issues(digits, rows, AuditConfig(), seed=0).folds == 3


def test_the_report_comes_back_from_json_and_is_told_in_a_line(digits: RealImages):
    real = replace(digits, quarantined={"a.png": "damaged"}, converted={"CMYK converted": 2})
    report = look(real)
    assert AuditReport.from_json(json.loads(json.dumps(report.to_json()))) == report
    assert report == look(real)
    assert report.class_counts["3"] == 183
    assert report.num_unused == 1797 - 200 - 100 - 300 - 898
    assert "left out when reading: 1 file" in report.notes
    assert "CMYK converted: 2 images" in report.notes
    line = one_line(report.to_json())
    assert line.startswith("1,797 images of 8x8, grey, 10 classes; train 200, val 100, reference 300, test 898; ")


def test_lists_hold_at_most_a_hundred(digits: RealImages):
    real = with_images(digits, np.repeat(digits.batch.images[::10], 10, axis=0)[:1797])
    report = look(real)
    assert report.exact_duplicates.num_groups > 100
    assert len(report.exact_duplicates.groups) == 100


def test_a_class_too_small_is_named(digits: RealImages):
    labels = digits.batch.labels.copy()
    labels[np.flatnonzero(labels == 7)[1:]] = 8
    with pytest.raises(
        DataError, match=r"class '7' has 0 images in train, and audit.min_per_class asks for 2; raise split.train"
    ):
        look(with_images(digits, digits.batch.images, labels))
    rows = split(digits, SPLIT)
    rows["val"] = rows["val"][digits.batch.labels[rows["val"]] != 2]
    with pytest.raises(DataError, match=r"class '2' has 0 images in val, and at least 1 is needed; raise split.val"):
        audit(digits, rows, AuditConfig(), SPLIT)


def test_given_train_images_tied_to_test_are_listed(digits: RealImages):
    images = digits.batch.images.copy()
    images[1700] = images[5]
    real = replace(with_images(digits, images), given=("train",) * 1600 + ("test",) * 197)
    report = look(real)
    assert report.left_out.keys[0] == "real-000005"
    assert report.left_out.total <= 2  # one pair of genuine digits is that alike
    assert report.exact_duplicates.num_crossing == 0


def test_unlabelled_images_count_for_duplicates_and_not_for_labels(digits: RealImages):
    images, labels = digits.batch.images.copy(), digits.batch.labels.copy()
    labels[-400:] = -1
    rows = split(with_images(digits, images, labels), SPLIT)
    images[1790:1793] = images[rows["test"][:3]]
    images[1793:1795] = images[rows["train"][:2]]
    report = look(with_images(digits, images, labels), SPLIT.model_copy(update={"pool": 50.0, "test": float(len(rows["test"]))}))
    assert (report.num_images, sum(report.class_counts.values()), report.num_unlabelled) == (1797, 1397, 400)
    assert report.split_counts["pool"] == {"unlabelled": 50 + 400 - report.unlabelled_left_out.total}
    assert {"real-001790", "real-001791", "real-001792"} <= set(report.unlabelled_left_out.keys)
    assert not {"real-001793", "real-001794"} & set(report.unlabelled_left_out.keys)
    assert report.unlabelled_left_out.total <= 4  # one pair of genuine digits is that alike
    assert (report.exact_duplicates.num_groups, report.exact_duplicates.num_crossing) == (5, 0)  # train and pool are one side
    assert report.exact_duplicates.num_conflicting == 0
    assert report.label_issues.num_judged == 300
    out = report.unlabelled_left_out.total
    assert f"without a label and used by nobody, being tied to test, val or reference: {out} images" in report.notes
    assert f"without a label, in the pool: {400 - out} images" in report.notes
    assert AuditReport.from_json(json.loads(json.dumps(report.to_json()))) == report
    assert f"; train 200, val 100, reference 300, test {len(rows['test'])}, pool " in one_line(report.to_json())
    apart = look(with_images(digits, images, labels), SPLIT.model_copy(update={"keep_near_duplicates_together": False}))
    assert apart.exact_duplicates.num_crossing == 3
    assert apart.unlabelled_left_out.total == 0


def test_a_class_that_seems_to_mean_no_label_is_noted(digits: RealImages):
    names = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "Unlabeled")
    report = look(replace(digits, spec=replace(digits.spec, class_names=names)))
    assert any("'Unlabeled' is taken for a class" in note and "data.unlabelled=Unlabeled" in note for note in report.notes)
    assert not any("taken for a class" in note for note in look(digits).notes)
