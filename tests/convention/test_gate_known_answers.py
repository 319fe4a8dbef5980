"""Known-answer generators: what the gate must say of a copier, a collapse, shuffled labels, noise, blur, and of more real images.

The setting is the product's: digits, 50 labelled images to train on, 50 for val, 300 unlabelled ones as reference, the
networks trained on the 50 alone. Images that nobody saw play the generator.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

from synthgen.config.schema import GateConfig
from synthgen.data.planted import blurred
from synthgen.data.transforms import to_float
from synthgen.errors import DataError
from synthgen.extraction import feature_set
from synthgen.gate.evidence import Evidence, Real
from synthgen.gate.filters import Sifted, calibrate, sift
from synthgen.gate.judge import HIGHER_IS_BETTER, OF_FEATURES, judge
from synthgen.gate.least import LEAST
from synthgen.metrics import extractors
from synthgen.types import UNLABELLED, Batch, GateReport

SEEDS = (0, 1, 2)
FOLDS = 4
CONFIG = GateConfig(search_px=1)
NAMES = [str(digit) for digit in range(10)]
DIGITS = load_digits()
IMAGES = np.round(DIGITS.images * 255 / 16).astype(np.uint8)[:, None]
LABELS = DIGITS.target.astype(np.int64)


class Net(nn.Module):
    """Three convolutions, 48 features, 10 logits."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [(1, 24, 1), (24, 48, 2), (48, 48, 1)]
        layers = [nn.Sequential(nn.Conv2d(i, o, 3, s, 1), nn.BatchNorm2d(o), nn.ReLU()) for i, o, s in sizes]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def trained(images: np.ndarray, labels: np.ndarray, seed: int, steps: int = 150) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Net()
        optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3, weight_decay=0.02)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps + 1)
        x, y = to_float(images), torch.from_numpy(labels)
        for _ in range(steps):
            rows = torch.randint(len(x), (48,))
            angle, scale, *shift = (torch.rand(4, 48) * 2 - 1) * torch.tensor([0.14, 0.08, 0.25, 0.25])[:, None]
            cos, sin = (1 + scale) * angle.cos(), (1 + scale) * angle.sin()
            theta = torch.stack([cos, -sin, shift[0], sin, cos, shift[1]], dim=1).view(-1, 2, 3)
            grid = F.affine_grid(theta, [48, 1, 8, 8], align_corners=False)
            batch = F.grid_sample(x[rows], grid, padding_mode="border", align_corners=False)
            loss = F.cross_entropy(net.head(net(batch)), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


@dataclass
class Setting:
    """The real roles of one split, its networks, and the real images that nobody saw."""

    real: Real
    extractor: Net
    judges: list[Net]
    train: np.ndarray
    unseen: np.ndarray

    def evidence(self, images: np.ndarray, labels: np.ndarray) -> Evidence:
        keys = tuple(f"candidate-{i:06d}" for i in range(len(images)))
        return evidence(self.extractor, self.judges, images, labels, keys)

    def verdict(self, images: np.ndarray, labels: np.ndarray) -> tuple[GateReport, Sifted]:
        candidates = self.evidence(images, labels)
        sifted = sift(candidates, self.real, CONFIG)
        return judge(candidates, self.real, sifted, CONFIG, NAMES), sifted


def probabilities(nets: list[Net], images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        x = to_float(images)
        return torch.stack([net.head(net(x)).softmax(dim=1) for net in nets]).mean(dim=0).double().numpy()


def evidence(extractor: Net, judges: list[Net], images: np.ndarray, labels: np.ndarray, keys: tuple[str, ...]) -> Evidence:
    features = feature_set(extractors.domain(extractor, "digits"), Batch(images, labels, keys))
    return Evidence(images, features, probabilities(judges, images))


def make_setting(seed: int) -> Setting:
    train, rest = train_test_split(np.arange(len(LABELS)), train_size=50, stratify=LABELS, random_state=seed)
    val, rest = train_test_split(rest, train_size=50, stratify=LABELS[rest], random_state=seed)
    reference, unseen = train_test_split(rest, train_size=300, stratify=LABELS[rest], random_state=seed)
    fold = np.empty(50, dtype=int)
    fold[np.argsort(LABELS[train], kind="stable")] = np.arange(50) % FOLDS
    judges = [trained(IMAGES[train[fold != f]], LABELS[train[fold != f]], 10 * seed + f) for f in range(FOLDS)]
    extractor = trained(IMAGES[train], LABELS[train], 10 * seed + 9)

    def role(rows: np.ndarray, labels: np.ndarray, name: str) -> Evidence:
        return evidence(extractor, judges, IMAGES[rows], labels, tuple(f"{name}-{i}" for i in rows))

    seen = role(train, LABELS[train], "train")
    blind = np.stack([probabilities([judges[f]], IMAGES[row : row + 1])[0] for row, f in zip(train, fold, strict=True)])
    unlabelled = np.full(len(reference), UNLABELLED)
    keys = tuple(f"reference-{i}" for i in reference)
    real = Real(
        train=replace(seen, probabilities=blind),
        val=role(val, LABELS[val], "val"),
        reference=role(reference, unlabelled, "reference"),
        blurred=evidence(extractor, judges, blurred(IMAGES[reference]), unlabelled, keys).features,
    )
    return Setting(real, extractor, judges, train, unseen)


@pytest.fixture(scope="module")
def settings() -> dict[int, Setting]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = {seed: make_setting(seed) for seed in SEEDS}
    torch.set_num_threads(threads)
    return made


@pytest.fixture(scope="module")
def setting(settings: dict[int, Setting]) -> Setting:
    return settings[0]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def pixels(x: np.ndarray) -> np.ndarray:
    return np.clip(np.round(x), 0, 255).astype(np.uint8)


def shifted(images: np.ndarray, dy: int, dx: int) -> np.ndarray:
    """By whole pixels; what comes in repeats the edge."""
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    return padded[..., 1 - dy : 9 - dy, 1 - dx : 9 - dx]


def metric(report: GateReport, name: str):  # type: ignore[no-untyped-def]
    return next(m for m in report.metrics if m.name == name)


def share_dropped(report: GateReport, reason: str) -> float:
    return report.reason_counts().get(reason, 0) / report.num_candidates


# More real images pass


@pytest.mark.parametrize("seed", SEEDS)
def test_an_oracle_is_accepted(settings: dict[int, Setting], seed: int) -> None:
    s = settings[seed]
    report, _ = s.verdict(IMAGES[s.unseen[:1000]], LABELS[s.unseen[:1000]])
    assert report.verdict == "accept", report.reasons
    assert "all limits are kept" in report.reasons[0]


def test_unseen_real_images_are_dropped_no_more_often_than_allowed(settings: dict[int, Setting]) -> None:
    dropped, reported = [], []
    for s in settings.values():
        report, _ = s.verdict(IMAGES[s.unseen], LABELS[s.unseen])
        dropped.append(len(report.dropped) / report.num_candidates)
        reported.append(report.real_dropped)
    # a threshold at the worst of 50 val labels has a false rejection of 2% +- 2%: of three splits, +- 1.2%
    assert np.mean(dropped) <= CONFIG.false_rejection + 2 * 0.012
    assert np.mean(dropped) > 0.005  # the checks do look
    assert max(reported) <= CONFIG.false_rejection + 1e-9
    assert abs(np.mean(reported) - np.mean(dropped)) < 0.03


# A copier


def test_a_copier_is_rejected_and_every_copy_found(setting: Setting, rng: np.random.Generator) -> None:
    rows = setting.train[rng.integers(0, 50, 500)]
    report, sifted = setting.verdict(IMAGES[rows], LABELS[rows])
    assert report.verdict == "reject"
    assert report.reasons[0].startswith("copy_share is 1 ")
    assert share_dropped(report, "copy") == 1
    assert not sifted.kept.any()


def test_an_exact_copy_is_caught_even_alone_in_a_tiny_set(setting: Setting) -> None:
    rows = np.append(setting.unseen[:4], setting.train[7])
    report, _ = setting.verdict(IMAGES[rows], LABELS[rows])
    assert "copy" in report.dropped["candidate-000004"]
    assert report.verdict != "accept"


@pytest.mark.parametrize("kind", ["shifted", "mirrored", "noise 0.05"])
def test_disguised_copies_are_found(setting: Setting, rng: np.random.Generator, kind: str) -> None:
    rows = setting.train[rng.integers(0, 50, 500)]
    images, labels = IMAGES[rows], LABELS[rows]
    if kind == "shifted":
        images = np.concatenate([shifted(x[None], *rng.choice([(0, 1), (1, 0), (0, -1), (-1, 0), (1, 1)])) for x in images])
    elif kind == "mirrored":
        images = images[..., ::-1].copy()
    else:
        images = pixels(images + rng.normal(0, 0.05 * 255, images.shape))
    report, _ = setting.verdict(images, labels)
    assert report.verdict == "reject"
    assert report.reasons[0].startswith("copy_share")
    assert share_dropped(report, "copy") > 0.9


def test_a_fifth_of_copies_is_enough_to_reject(setting: Setting, rng: np.random.Generator) -> None:
    rows = np.concatenate([setting.unseen[:800], setting.train[rng.integers(0, 50, 200)]])
    report, sifted = setting.verdict(IMAGES[rows], LABELS[rows])
    assert report.verdict == "reject"
    assert report.reasons[0].startswith("copy_share")
    assert not sifted.kept[800:].any()
    assert sifted.kept[:800].mean() > 0.9


# A collapse


def test_one_image_a_class_is_rejected_as_duplicates(setting: Setting, rng: np.random.Generator) -> None:
    one = np.array([setting.unseen[LABELS[setting.unseen] == digit][0] for digit in range(10)])
    rows = np.tile(one, 50)
    report, _ = setting.verdict(pixels(IMAGES[rows] + rng.normal(0, 4, (500, 1, 8, 8))), LABELS[rows])
    assert report.verdict == "reject"
    assert share_dropped(report, "duplicate") > 0.9
    assert any(reason.startswith("kept_share") for reason in report.reasons)


def test_few_modes_are_rejected_for_recall(setting: Setting) -> None:
    """The quarter of each class nearest to its mean: every image is real, none is a duplicate, only variety is missing."""
    unseen = setting.unseen
    features = setting.evidence(IMAGES[unseen], LABELS[unseen]).features.features
    central = []
    for digit in range(10):
        rows = np.flatnonzero(LABELS[unseen] == digit)
        distance = np.square(features[rows] - features[rows].mean(axis=0)).sum(axis=1)
        central.extend(unseen[rows[np.argsort(distance)[: len(rows) // 4]]])
    report, sifted = setting.verdict(IMAGES[central], LABELS[central])
    assert sifted.kept.mean() > 0.9
    assert metric(report, "precision").verdict == "accept"
    assert metric(report, "recall").verdict == "reject"
    assert report.verdict == "reject"


def test_a_missing_class_is_named(setting: Setting) -> None:
    rows = setting.unseen[LABELS[setting.unseen] != 3]
    report, _ = setting.verdict(IMAGES[rows], LABELS[rows])
    assert report.verdict == "reject"
    assert report.reasons[0] == "class '3' has 0 kept candidates of 0, at least 5 are needed"


# Few images


def few(given: Setting, images: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> GateReport:
    """The verdict against these rows of the reference alone; nothing is dropped."""
    r, b = given.real.reference, given.real.blurred
    keys = tuple(r.features.keys[i] for i in rows)
    features = replace(r.features, features=r.features.features[rows], labels=r.labels[rows], keys=keys)
    less = Evidence(r.images[rows], features, r.probabilities[rows])
    real = replace(given.real, reference=less, blurred=replace(features, features=b.features[rows]))
    candidates = given.evidence(images, labels)
    sifted = sift(candidates, real, CONFIG)
    everything = np.ones(len(images), dtype=bool)
    return judge(candidates, real, replace(sifted, valid=everything, kept=everything, reasons={}), CONFIG, NAMES)


@pytest.mark.parametrize("n", sorted(set(LEAST.values())))
def test_with_the_fewest_images_a_plain_defect_of_the_whole_set_is_beyond_chance(
    settings: dict[int, Setting], rng: np.random.Generator, n: int
) -> None:
    """One image a class; blur for density, which sees no collapse; precision sees neither with so few images."""
    seen: dict[str, list[bool]] = {}
    for s in settings.values():
        rows, unseen = rng.permutation(300)[: 2 * n], rng.permutation(s.unseen)
        single = np.array([unseen[LABELS[unseen] == digit][0] for digit in range(10)])
        some = np.resize(single, 2 * n) if n < LEAST["density"] else unseen[: 2 * n]
        images = IMAGES[some] if n < LEAST["density"] else blurred(blurred(blurred(IMAGES[some])))
        for m in few(s, images, LABELS[some], rows).metrics:
            if LEAST.get(m.name) == n and m.name in OF_FEATURES and m.name != "precision":
                assert m.low is not None, m.note
                assert m.high is not None
                seen.setdefault(m.name, []).append(m.high < 0 if m.name in HIGHER_IS_BETTER else m.low > 0)
    assert seen
    assert {name: found for name, found in seen.items() if sum(found) < 2} == {}, "2 of 3 splits"


# Wrong labels


def test_shuffled_labels_are_rejected_for_label_agreement(setting: Setting, rng: np.random.Generator) -> None:
    rows = setting.unseen[:1000]
    report, _ = setting.verdict(IMAGES[rows], rng.permutation(LABELS[rows]))
    assert report.verdict == "reject"
    assert report.reasons[0].startswith("label_agreement")
    assert share_dropped(report, "label") > 0.6


def test_most_wrong_labels_are_dropped_and_right_ones_kept(settings: dict[int, Setting], rng: np.random.Generator) -> None:
    found, kept = [], []
    for s in settings.values():
        rows = s.unseen[:1000]
        labels, wrong = LABELS[rows].copy(), np.arange(1000) < 200
        labels[wrong] = (labels[wrong] + rng.integers(1, 10, 200)) % 10
        _, sifted = s.verdict(IMAGES[rows], labels)
        found.append(~sifted.kept[wrong])
        kept.append(sifted.kept[~wrong])
        surprise = sifted.signals["label"]
        auroc = (surprise[wrong][:, None] > surprise[~wrong][None]).mean()
        assert auroc > 0.95
    assert np.mean(found) > 0.77, "0.81 by docs/gate.md, 0.80 on another processor; less two standard errors of 600 images"
    assert np.mean(kept) > 0.9


# Broken pictures


def test_noise_is_rejected(setting: Setting, rng: np.random.Generator) -> None:
    report, _ = setting.verdict(rng.integers(0, 256, (500, 1, 8, 8)).astype(np.uint8), LABELS[setting.unseen[:500]])
    assert report.verdict == "reject"
    assert share_dropped(report, "low-level") == 1
    assert share_dropped(report, "off support") > 0.05


def test_blurred_images_are_rejected(setting: Setting) -> None:
    rows = setting.unseen[:500]
    report, _ = setting.verdict(blurred(IMAGES[rows]), LABELS[rows])
    assert report.verdict == "reject"
    assert share_dropped(report, "low-level") > 0.95


def test_images_of_something_else_are_off_support(setting: Setting) -> None:
    """Digits on their side: nothing is wrong with the pixels, only with what they show."""
    rows = setting.unseen[:500]
    report, _ = setting.verdict(np.ascontiguousarray(np.rot90(IMAGES[rows], axes=(2, 3))), LABELS[rows])
    assert report.verdict == "reject"
    assert share_dropped(report, "low-level") < 0.1
    assert share_dropped(report, "off support") > 0.3


def test_a_defect_that_no_single_image_shows_is_seen_in_the_set(setting: Setting, rng: np.random.Generator) -> None:
    """Wiping out the strokes' ends leaves each image plausible, but not the set."""
    rows = setting.unseen[:1000]
    images = IMAGES[rows].copy()
    for image in images:
        y, x = rng.integers(1, 5, 2)
        image[0, y : y + 3, x : x + 3] = 0
    report, sifted = setting.verdict(images, LABELS[rows])
    assert report.verdict == "reject"
    assert sifted.kept.mean() > 0.4
    assert {m.name for m in report.metrics if m.verdict == "reject"} & {"fid", "coverage"}


def test_a_constant_image_is_always_dropped(setting: Setting) -> None:
    rows = setting.unseen[:50]
    images = IMAGES[rows].copy()
    images[3] = 0
    report, _ = setting.verdict(images, LABELS[rows])
    assert "low-level" in report.dropped["candidate-000003"]


# Promises


def test_the_same_input_gives_the_same_report(setting: Setting) -> None:
    rows = setting.unseen[:300]
    first, second = (json.dumps(setting.verdict(IMAGES[rows], LABELS[rows])[0].to_json()) for _ in range(2))
    assert first == second
    assert GateReport.from_json(json.loads(first)).kept == setting.verdict(IMAGES[rows], LABELS[rows])[0].kept
    json.loads(first, parse_constant=lambda name: pytest.fail(f"{name} is no JSON number"))


def test_too_few_candidates_are_refused_by_name_and_never_accepted(setting: Setting) -> None:
    rows = setting.unseen[:90]
    report, _ = setting.verdict(IMAGES[rows], LABELS[rows])
    assert report.verdict != "accept"
    assert metric(report, "fid").value is None
    assert any(
        "fid, precision, recall, coverage: refused" in reason and "at least 100 of each" in reason for reason in report.reasons
    )


def test_the_copy_reference_does_not_grow_with_the_reference(setting: Setting) -> None:
    """The ratio compares with as many held-out images as there are training images, however many there are."""
    half = np.arange(0, 300, 2)
    reference = setting.real.reference
    smaller = Evidence(
        reference.images[half],
        replace(
            reference.features,
            features=reference.features.features[half],
            labels=reference.labels[half],
            keys=tuple(reference.features.keys[i] for i in half),
        ),
        reference.probabilities[half],
    )
    real = replace(setting.real, reference=smaller, blurred=replace(setting.real.blurred, keys=smaller.features.keys))
    medians = [np.median(calibrate(r, CONFIG, 500).null["copy"]) for r in (setting.real, real)]
    assert medians[0] == pytest.approx(medians[1], rel=0.05)
    assert medians[0] == pytest.approx(1, abs=0.1)


def test_what_cannot_be_compared_is_refused(setting: Setting) -> None:
    rows = setting.unseen[:20]
    good = setting.evidence(IMAGES[rows], LABELS[rows])
    with pytest.raises(DataError, match="features of train are by"):
        sift(replace(good, features=replace(good.features, extractor="another")), setting.real, CONFIG)
    with pytest.raises(DataError, match="candidates have labels from -1"):
        sift(replace(good, features=replace(good.features, labels=np.full(20, -1))), setting.real, CONFIG)
    broken = good.features.features.copy()
    broken[5, 3] = np.nan
    with pytest.raises(DataError, match="1 of 20 rows hold NaN or infinite values, the first is row 5"):
        replace(good, features=replace(good.features, features=broken))
    with pytest.raises(DataError, match="same key"):
        sift(replace(good, features=replace(good.features, keys=("a",) * 20)), setting.real, CONFIG)
