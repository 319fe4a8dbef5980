"""Seeds x arms -> rows, paired intervals and a verdict. Test images come in at the very end, through `assess`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from synthgen.config.schema import AugmentConfig, ClassifierConfig, GainConfig
from synthgen.errors import DataError
from synthgen.gain.arms import ARMS, RECIPES, RIVAL, Recipe, StudyData
from synthgen.gain.stats import paired_interval
from synthgen.models.classifier import Classifier, probabilities
from synthgen.training import fit
from synthgen.types import UNLABELLED, Batch, DatasetSpec, GainReport, GainRow, Interval, Progress, Verdict


class Cell(NamedTuple):
    """One network of the study: recipe, seed, and its number in a committee (0 also stands alone)."""

    recipe: str
    seed: int
    member: int

    @property
    def name(self) -> str:
        return f"{self.recipe}-s{self.seed}-m{self.member}"


@dataclass(frozen=True)
class Trained:
    """A finished cell.

    Attributes:
        weights: of the network.
        val: class probabilities, float32, shape (n, k).
        reference: the same for a network that may teach (`real_aug`, member 0), else of shape (0, 0).
        num_real, num_synthetic: images it was trained on.
        seconds: wall time.
    """

    weights: dict[str, np.ndarray]
    val: np.ndarray
    reference: np.ndarray
    num_real: int
    num_synthetic: int
    seconds: float

    def to_bytes(self) -> bytes:
        """As safetensors."""
        numbers = np.array([self.num_real, self.num_synthetic, self.seconds], dtype=np.float64)
        arrays = {"val": self.val, "reference": self.reference, "numbers": numbers}
        return save_arrays(arrays | {f"weights.{name}": array for name, array in self.weights.items()})

    @staticmethod
    def from_bytes(data: bytes) -> Trained:
        arrays = load_arrays(data)
        weights = {name.removeprefix("weights."): array for name, array in arrays.items() if name.startswith("weights.")}
        num_real, num_synthetic, seconds = arrays["numbers"]
        return Trained(weights, arrays["val"], arrays["reference"], int(num_real), int(num_synthetic), float(seconds))


def members(arm: str, seed: int, config: GainConfig) -> list[Cell]:
    """The networks that vote in an arm at a seed."""
    return [Cell(ARMS[arm].recipe, seed, number) for number in range(config.committee if ARMS[arm].committee else 1)]


def cells(arms: tuple[str, ...], config: GainConfig) -> list[list[Cell]]:
    """The networks to train, in two rounds: those of the second need their seed's `real_aug` network as a teacher."""
    wanted = {cell for arm in arms for seed in range(config.seeds) for cell in members(arm, seed, config)}
    taught = {cell for cell in wanted if RECIPES[cell.recipe].pseudo}
    teachers = {Cell("real_aug", cell.seed, 0) for cell in taught}
    return [sorted((wanted | teachers) - taught), sorted(taught)]


def train_cell(
    cell: Cell,
    data: StudyData,
    classifier: ClassifierConfig,
    augment: AugmentConfig,
    config: GainConfig,
    *,
    teacher: Trained | None,
    device: str,
    progress: Progress,
    task: str,
) -> Trained:
    """Trains one network. The same (seed, member) starts from the same weights and draws the same numbers in every arm."""
    recipe = RECIPES[cell.recipe]
    seed = 1000 * cell.seed + cell.member
    sources, num_real, num_synthetic = _sources(recipe, data, classifier.batch_size, config, teacher)
    module = Classifier(classifier, data.spec, seed, augment if recipe.augment else None, config.mixup if recipe.mixup else 0.0)
    done = fit(module, sources, steps=classifier.steps, seed=seed, task=task, progress=progress, device=device)
    weights = {name: tensor.numpy() for name, tensor in module.network.state_dict().items()}
    val = probabilities(module.network, data.val.images, device)
    teaches = cell.recipe == "real_aug" and cell.member == 0 and not data.reference_labelled and len(data.reference) > 0
    reference = np.zeros((0, 0), np.float32)
    if teaches:
        reference = probabilities(module.network, data.reference.images, device)
    return Trained(weights, val, reference, num_real, num_synthetic, done.seconds)


def _sources(
    recipe: Recipe, data: StudyData, batch_size: int, config: GainConfig, teacher: Trained | None
) -> tuple[list[tuple[Batch, int]], int, int]:
    """What a batch is drawn from: real, and in its share of each batch pseudo-labelled or synthetic images."""
    real = [data.train] if recipe.real else []
    if recipe.val:
        real += [data.val, data.reference] if data.reference_labelled else [data.val]
    synthetic = {"": None, "gated": data.gated, "ungated": data.ungated}[recipe.synthetic]
    extra = synthetic
    if recipe.pseudo:
        assert teacher is not None
        extra = pseudo_labelled(data.reference, teacher.reference, config.pseudo_confidence)
    num_real = sum(map(len, real)) + (len(extra) if recipe.pseudo and extra is not None else 0)
    num_synthetic = len(synthetic) if synthetic is not None else 0
    if extra is None or not len(extra):
        return [(Batch.concatenate(real), batch_size)], num_real, num_synthetic
    if not real:
        return [(extra, batch_size)], num_real, num_synthetic
    share = min(batch_size - 1, max(1, round(config.synthetic_share * batch_size)))
    return [(Batch.concatenate(real), batch_size - share), (extra, share)], num_real, num_synthetic


def pseudo_labelled(images: Batch, confidence: np.ndarray, threshold: float) -> Batch:
    """The images whose most likely class has at least `threshold` probability, with that class (Lee 2013)."""
    sure = confidence.max(1) >= threshold
    guessed = Batch(images.images, confidence.argmax(1).astype(np.int64), images.keys)
    return guessed.take(sure)


def predict(trained: Trained, spec: DatasetSpec, classifier: ClassifierConfig, images: Batch, device: str = "cpu") -> np.ndarray:
    """Class probabilities of a finished cell's network, float32, shape (n, k)."""
    module = Classifier(classifier, spec, seed=0)
    module.network.load_state_dict({name: torch.from_numpy(array) for name, array in trained.weights.items()})
    return probabilities(module.network, images.images, device)


def choose_best_real(arms: tuple[str, ...], trained: dict[Cell, Trained], val: Batch, config: GainConfig) -> str:
    """The strongest real-only arm on val by mean accuracy, ties by mean loss; arms that trained on val can't be judged."""
    judged = [arm for arm in arms if arm in RIVAL and not RECIPES[ARMS[arm].recipe].val]
    on_val = {cell: done.val for cell, done in trained.items()}

    def strength(arm: str) -> tuple[float, float]:
        scores = [score(mean_probabilities(arm, seed, config, on_val), val) for seed in range(config.seeds)]
        return float(np.mean([s[0] for s in scores])), -float(np.mean([s[1] for s in scores]))

    return max(judged, key=strength)


def mean_probabilities(arm: str, seed: int, config: GainConfig, predictions: dict[Cell, np.ndarray]) -> np.ndarray:
    """The arm's vote at a seed: the mean of its networks' probabilities."""
    return np.mean([predictions[cell] for cell in members(arm, seed, config)], axis=0)


def score(predicted: np.ndarray, images: Batch) -> tuple[float, float]:
    """Accuracy and cross-entropy in nats (probabilities clipped at 1e-7)."""
    own = predicted[np.arange(len(images)), images.labels]
    return float((predicted.argmax(1) == images.labels).mean()), float(-np.log(np.clip(own, 1e-7, 1)).mean())


def assess(
    arms: tuple[str, ...],
    skipped: dict[str, str],
    best_real: str,
    trained: dict[Cell, Trained],
    on_test: dict[Cell, np.ndarray],
    val: Batch,
    test: Batch,
    steps: int,
    config: GainConfig,
) -> GainReport:
    """Rows, paired intervals and the verdict, once the test split has been opened.

    Raises:
        DataError: a test image without a label.
    """
    if (test.labels == UNLABELLED).any():
        raise DataError("the test split has images without a label")
    rows, correct = [], {}
    on_val = {cell: done.val for cell, done in trained.items()}
    for arm in arms:
        votes = [mean_probabilities(arm, seed, config, on_test) for seed in range(config.seeds)]
        correct[arm] = np.array([vote.argmax(1) == test.labels for vote in votes], dtype=np.float64)
        for seed, vote in enumerate(votes):
            voters = [trained[cell] for cell in members(arm, seed, config)]
            val_accuracy, val_loss = None, None
            if not RECIPES[ARMS[arm].recipe].val:
                val_accuracy, val_loss = score(mean_probabilities(arm, seed, config, on_val), val)
            test_accuracy, test_loss = score(vote, test)
            seconds = round(sum(voter.seconds for voter in voters), 3)
            rows.append(
                GainRow(
                    arm,
                    seed,
                    voters[0].num_real,
                    voters[0].num_synthetic,
                    steps,
                    len(voters),
                    val_accuracy,
                    val_loss,
                    test_accuracy,
                    test_loss,
                    seconds,
                )
            )
    decisive = tuple((RIVAL[base], base) for base in (best_real, "real_aug_trainval") if base in arms)
    pairs = [(arm, best_real) for arm in arms if arm != best_real]
    pairs += [pair for pair in decisive if pair not in pairs]
    intervals = tuple(paired_interval(arm, base, correct[arm], correct[base]) for arm, base in pairs)
    deciding = [i for i in intervals if (i.arm, i.baseline) in decisive]
    verdict, reasons = decide(deciding, config.smallest_gain, len(test))
    return GainReport(verdict, reasons, best_real, tuple(rows), intervals, skipped, decisive)


def decide(intervals: list[Interval], smallest_gain: float, num_test: int) -> tuple[Verdict, tuple[str, ...]]:
    """use: every interval lies above 0. reject: one of them stays below a gain worth having. Else more evidence is needed."""
    reasons = [
        f"{i.arm} against {i.baseline}: {i.difference:+.2f} points of test accuracy "
        f"(95% interval {i.low:+.2f} to {i.high:+.2f}, {i.seeds} seeds, {num_test} test images)"
        for i in intervals
    ]
    if intervals and all(i.low > 0 for i in intervals):
        return "use", tuple(reasons)
    hopeless = [i for i in intervals if i.low <= 0 and i.high < max(smallest_gain, 1e-12)]
    if hopeless:
        worst = min(hopeless, key=lambda i: i.high)
        harm = "it harms" if worst.high < 0 else f"it can't bring {smallest_gain} points, the smallest gain worth having"
        return "reject", (*reasons, f"{worst.arm} doesn't beat {worst.baseline}: {harm}")
    open_ones = [i for i in intervals if i.low <= 0]
    for i in open_ones:
        if i.seeds_needed is None:
            more = f"{num_test} test images are too few to settle a difference of {i.difference:+.2f}, whatever the seeds"
        else:
            more = f"a true difference of {i.difference:+.2f} would need about {max(i.seeds_needed, i.seeds + 1)} seeds"
        reasons.append(f"{i.arm} against {i.baseline} is open: {more}")
    return "insufficient evidence", tuple(reasons)
