"""A cell of the study: the networks of one recipe that are trained side by side, and what is left of them."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from synthgen.config.schema import AugmentConfig, ClassifierConfig, GainConfig
from synthgen.data.stacks import Source, Stack, one_hot
from synthgen.errors import ConfigError, DataError, TrainingError
from synthgen.gain import classical
from synthgen.gain.active import k_center, uncertainty
from synthgen.gain.arms import SETTINGS, Recipe, recipe_of
from synthgen.gain.data import StudyData, nested
from synthgen.models.contrastive import SimCLR
from synthgen.models.finetuned import FineTuned, TunedNetworks
from synthgen.models.stacked import SideBySide, StackedClassifier, StackedNetwork, Training, channels_last, stacked_probabilities
from synthgen.randomness import stream
from synthgen.training import fit
from synthgen.types import Batch, DatasetSpec, Silent

MEMBERS = 1000
"""Network `member` of seed s draws from stream 1000 s + member."""


class Network(NamedTuple):
    """A network's seed, and its number in a committee (0 also stands alone)."""

    seed: int
    member: int

    @property
    def stream(self) -> int:
        return MEMBERS * self.seed + self.member


class Cell(NamedTuple):
    """Networks of one recipe under one value of its dial.

    Attributes:
        recipe: see `arms.recipe_of`.
        value: of its dial, 0 where it has none.
        networks: side by side.
        extra: "", "size N" (N labelled images, nested), "oracle", "active CRITERION", or one of `TRIED`.
    """

    recipe: str
    value: float
    networks: tuple[Network, ...]
    extra: str = ""

    @property
    def name(self) -> str:
        """Fit for a file, and for people."""
        first, last = self.networks[0], self.networks[-1]
        parts = [self.recipe, f"{self.value:g}", self.extra, f"s{first.seed}m{first.member}-s{last.seed}m{last.member}"]
        return "-".join(part.replace(" ", "") for part in parts if part)


def side_by_side(recipe: str, value: float, seeds: int, members: int, together: int, first: int = 0) -> list[Cell]:
    """The networks of a recipe, members `first` and on of every seed, cut into cells of `together`."""
    every = [Network(seed, member) for member in range(first, members) for seed in range(seeds)]
    return [Cell(recipe, value, tuple(every[i : i + together])) for i in range(0, len(every), together)]


@dataclass(frozen=True)
class Trained:
    """A finished cell.

    Attributes:
        weights: of the stack; none for classical models, for those that val only compares, and where only what they said of
            the images is kept.
        val: class probabilities of each network on val, float32, shape (s, n, k).
        num_real, num_synthetic: images each was trained on.
        steps: gradient steps of each, those before its own training included; 0 for classical models.
        drawn: images that each drew in all its steps, again and again, labelled or not.
        seconds: wall time of all of them together.
        device_seconds: of a GPU.
        chosen: settings that a classical model's inner search found, or keys that active learning had labelled.
        failure: why training failed, in one line: then `val` says nothing; empty where it didn't.
        test: class probabilities of each network on the test images, as `val`; None before they were opened.
    """

    weights: dict[str, np.ndarray]
    val: np.ndarray
    num_real: int
    num_synthetic: int
    steps: int
    seconds: float
    device_seconds: float
    chosen: dict[str, Any]
    failure: str = ""
    test: np.ndarray | None = None
    drawn: int = 0

    def to_bytes(self) -> bytes:
        """As safetensors, with a sha256 over everything in it."""
        arrays = {"val": self.val} | {f"weights.{name}": array for name, array in self.weights.items()}
        if self.test is not None:
            arrays["test"] = self.test
        about = {name: getattr(self, name) for name in _ABOUT}
        return save_arrays(arrays, {"about": json.dumps(about | {"sha256": _sha256(arrays, about)})})

    @staticmethod
    def from_bytes(data: bytes) -> Trained:
        """Reads it back.

        Raises:
            DataError: damaged.
        """
        try:
            arrays = load_arrays(data)
            size = int.from_bytes(data[:8], "little")
            about = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["about"])
        except (SafetensorError, ValueError, KeyError) as error:
            raise DataError(f"not a finished cell of a study ({error})") from error
        if about.pop("sha256", "") != _sha256(arrays, about):
            raise DataError("a finished cell of a study differs from its sha256")
        weights = {name.removeprefix("weights."): array for name, array in arrays.items() if name.startswith("weights.")}
        return Trained(weights, arrays["val"], test=arrays.get("test"), **about)


TRIED = ("tune", "search")
"""Cells whose networks val compares and nobody keeps."""

_ABOUT = ("num_real", "num_synthetic", "steps", "drawn", "seconds", "device_seconds", "chosen", "failure")


def _sha256(arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(
            f"{name} {arrays[name].dtype} {arrays[name].shape}\n".encode() + np.ascontiguousarray(arrays[name]).tobytes()
        )
    return digest.hexdigest()


Teach = Callable[[np.ndarray, int, bool], np.ndarray]
"""(images, seed, whether the committee votes) -> class probabilities (n, k) of the real-only networks of a seed."""


@dataclass(frozen=True)
class Setting:
    """What every cell of a study shares."""

    data: StudyData
    classifier: ClassifierConfig
    augment: AugmentConfig
    gain: GainConfig
    device: str

    @property
    def watts(self) -> float:
        """Power that energy is estimated with: what the settings say, or that of a CPU core, or an H200's limit."""
        return self.gain.watts or (700.0 if self.device == "cuda" else 10.0)


def attempt(cell: Cell, setting: Setting, teach: Teach | None) -> Trained:
    """`train_cell`, with a `failure` instead of an error where training diverges: one arm's failure isn't the study's."""
    started, data = time.perf_counter(), setting.data
    try:
        return train_cell(cell, setting, teach)
    except TrainingError as error:
        nothing = np.full((len(cell.networks), len(data.val), data.spec.num_classes), 1 / data.spec.num_classes, np.float32)
        seconds, why = time.perf_counter() - started, "; ".join(str(error).splitlines())
        return Trained({}, nothing, 0, 0, 0, seconds, seconds if setting.device == "cuda" else 0.0, {}, why)


def train_cell(cell: Cell, setting: Setting, teach: Teach | None) -> Trained:
    """Trains the networks of a cell. A network starts from the same weights and draws the same numbers in every arm.

    Args:
        cell: which.
        setting: images and configs.
        teach: the real-only networks, for a recipe that is taught by them.

    Raises:
        TrainingError: a loss or a weight is no longer finite.
    """
    started = time.perf_counter()
    recipe, data = recipe_of(cell.recipe), setting.data
    if recipe.kind != "network":
        found = _classical(cell, recipe, setting, data.val.images)
        val, counts = np.stack([predicted for predicted, _ in found]), _counts(recipe, data)
        return Trained({}, val, *counts, 0, time.perf_counter() - started, 0.0, {"settings": [chosen for _, chosen in found]})
    module, num_real, num_synthetic, chosen, spent = _trained(cell, recipe, setting, teach)
    val = stacked_probabilities(module.network, data.val.images, setting.device, **_chunk(recipe, data))
    own = {} if cell.extra in TRIED else _weights(module.network)
    seconds = time.perf_counter() - started
    on_gpu = seconds if setting.device == "cuda" else 0.0
    return Trained(own, val, num_real, num_synthetic, spent.steps, seconds, on_gpu, chosen, drawn=spent.drawn)


def _trained(
    cell: Cell, recipe: Recipe, setting: Setting, teach: Teach | None
) -> tuple[StackedClassifier, int, int, dict[str, Any], Spent]:
    """The trained networks, how many real and synthetic images they saw, what was chosen on the way, and its length."""
    data, chosen = setting.data, {}
    if cell.extra.startswith("active"):
        assert teach is not None
        rows = _acquired(cell, setting, teach)
        chosen = {"keys": [[data.simulated.keys[i] for i in each] for each in rows]}
        sources = [_real_source(_with_extra(data, rows), setting.classifier.batch_size, data.spec)]
        num_real, num_synthetic = len(data.train) + len(rows[0]), 0
    else:
        sources, num_real, num_synthetic = sources_of(cell, recipe, setting, teach)
    module, before = _module(cell, recipe, setting)
    spent = _fit(module, sources, cell, setting)
    return module, num_real, num_synthetic, chosen, Spent(before.steps + spent.steps, before.drawn + spent.drawn)


def _module(cell: Cell, recipe: Recipe, setting: Setting) -> tuple[StackedClassifier, Spent]:
    """The networks of a cell before their training, and what they had of it already."""
    data, config = setting.data, setting.classifier
    start, spent = _start(cell, recipe, setting)
    before = spent.steps if recipe.start == "synthetic" else 0
    config = config.model_copy(update={"steps": round(times_of(cell, recipe) * config.steps) - before})
    given = (config, data.spec, _streams(cell), setting.augment, training_of(cell, recipe))
    if recipe.start == "transfer" and data.transformer is not None:
        return FineTuned(data.transformer, *given), spent
    return StackedClassifier(*given, start), spent


def _weights(network: SideBySide) -> dict[str, np.ndarray]:
    """Those that were trained."""
    state = network.own() if isinstance(network, TunedNetworks) else network.state_dict()
    return {name: tensor.cpu().contiguous().numpy() for name, tensor in state.items()}


def _chunk(recipe: Recipe, data: StudyData) -> dict[str, int]:
    """Images that are looked at together, where they are many pixels inside the network."""
    return {"chunk": 32} if recipe.start == "transfer" and data.transformer is not None else {}


def predict(cell: Cell, trained: Trained, setting: Setting, images: np.ndarray) -> np.ndarray:
    """Class probabilities of each of a finished cell's networks, float32, shape (s, n, k).

    A classical model is fitted again: nothing is kept of it that would have to be unpickled, and it is the same each time.
    """
    recipe, data = recipe_of(cell.recipe), setting.data
    if recipe.kind != "network":
        return np.stack([predicted for predicted, _ in _classical(cell, recipe, setting, images)])
    if recipe.start == "transfer" and data.transformer is not None:
        tuned = TunedNetworks(len(trained.val), data.transformer, data.spec)
        tuned.load_state_dict({name: torch.from_numpy(array) for name, array in trained.weights.items()}, strict=False)
        return stacked_probabilities(tuned, images, setting.device, **_chunk(recipe, data))
    return stacked_probabilities(stack_of(trained, setting), images, setting.device)


def stack_of(trained: Trained, setting: Setting) -> StackedNetwork:
    """The networks of a finished cell, of the width and depth that its weights have."""
    number, stages = len(trained.val), {int(name.split(".")[1]) for name in trained.weights if name.startswith("stages.")}
    width, depth = len(trained.weights["stages.0.weight"]) // number, (max(stages) - 2) // 3
    network = StackedNetwork(number, width, setting.data.spec, depth=depth)
    network.load_state_dict({name: torch.from_numpy(array) for name, array in trained.weights.items()})
    return channels_last(network)


def training_of(cell: Cell, recipe: Recipe) -> Training:
    """How the networks of a cell are trained: the recipe, with the dial at the cell's value."""
    settings: dict[str, Any] = {name: value for name, value in _settings(cell, recipe).items() if name != "steps"}
    settings |= {name: int(settings[name]) for name in ("width", "depth") if name in settings}
    return Training(policy=recipe.policy, mixing=recipe.mixing, **settings)


def times_of(cell: Cell, recipe: Recipe) -> float:
    """For how many times the classifier's steps the networks of a cell are trained."""
    return _settings(cell, recipe).get("steps", 1.0)


def _settings(cell: Cell, recipe: Recipe) -> dict[str, float]:
    return dict(recipe.given) | ({SETTINGS[recipe.dial]: cell.value} if recipe.dial in SETTINGS else {})


def sources_of(cell: Cell, recipe: Recipe, setting: Setting, teach: Teach | None) -> tuple[list[Source], int, int]:
    """What a batch is drawn from, and how many real and synthetic images that are.

    The synthetic images have the dial's share of each batch (half where the dial sets something else); of the rest,
    pseudo-labelled images, or those of the pool, have half. Without synthetic images the dial's share is the pool's.

    Raises:
        ConfigError: batches too small to hold some of each.
    """
    data, s, total = setting.data, len(cell.networks), setting.classifier.batch_size
    real, synthetic = data.real(recipe), data.synthetic(recipe) if recipe.synthetic else None
    classes = data.spec.num_classes
    shares: list[tuple[float, Callable[[int], Source], int]] = []  # of what is left of a batch, how to make it, its real images
    dialled = cell.value if recipe.dial == "share" else 0.5
    if synthetic is not None and len(synthetic):
        targets = _targets(synthetic, recipe, cell, classes, teach)
        every = (np.arange(len(synthetic)),) * s
        shares.append((dialled if len(real) else 1.0, lambda n: Source(synthetic.images, every, targets, n), 0))
    if recipe.unlabelled == "pseudo":
        guessed = _pseudo_labelled(data.unlabelled, cell, recipe, teach, classes)
        taken = round(float(np.mean([len(rows) for rows in guessed[1]])))
        shares.append((0.5, lambda n: Source(*guessed, n), taken))
    if recipe.unlabelled == "pool":
        assert data.pool_labels is not None
        pool, labels = data.pool_labels.images, one_hot(data.pool_labels.labels, classes)
        shares.append((0.5 if shares else dialled, lambda n: Source.shared(pool, labels, s, n), len(pool)))
    sources, num_real, left = [], len(real), total
    for share, source, count in shares:
        number = left if share == 1.0 else min(left - 1, max(1, round(share * left)))
        if number < 1:
            raise ConfigError(f"classifier.batch_size={total} is too small to hold some of each kind of image; give 8 or more")
        sources.append(source(number))
        left, num_real = left - number, num_real + count
    if cell.extra == "oracle":
        real = Batch.concatenate([real, data.simulated])
        num_real += len(data.simulated)
    if len(real):
        if cell.extra.startswith("size"):
            own, num_real = _sized(cell, setting, left)
        elif recipe.distilled:
            own = Source(real.images, (np.arange(len(real)),) * s, _targets(real, recipe, cell, classes, teach), left)
        else:
            own = Source.shared(real.images, one_hot(real.labels, classes), s, left)
        sources.insert(0, own)
    if recipe.unlabelled == "fixmatch":
        rows = np.arange(len(data.unlabelled))
        sources.append(Source(data.unlabelled.images, (rows,) * s, None, total))
        num_real += len(rows)
    if recipe.start == "simclr":
        num_real += len(_without_labels(recipe, data)) - len(real)
    used = data.synthetic(recipe)
    return sources, num_real, 0 if used is None else len(used)


def _without_labels(recipe: Recipe, data: StudyData) -> np.ndarray:
    """Every real image that a recipe may look at, val only where it may train on it."""
    reference = [data.reference.images] if data.reference_labelled and recipe.labelled != "all" else []
    return np.concatenate([data.real(recipe).images, data.unlabelled.images, *reference])


def _targets(batch: Batch, recipe: Recipe, cell: Cell, classes: int, teach: Teach | None) -> tuple[np.ndarray, ...]:
    if not recipe.soft:
        return (one_hot(batch.labels, classes),) * len(cell.networks)
    assert teach is not None
    by_seed = {seed: teach(batch.images, seed, True) for seed in dict.fromkeys(n.seed for n in cell.networks)}
    return tuple(by_seed[network.seed] for network in cell.networks)


def _pseudo_labelled(
    images: Batch, cell: Cell, recipe: Recipe, teach: Teach | None, classes: int
) -> tuple[np.ndarray, tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """Images on which a seed's real-only network is sure, with its guess (Lee 2013).

    Below the threshold nothing is left for a network that is never sure: it takes its surest image a class instead.
    """
    assert teach is not None
    threshold = cell.value if recipe.dial == "confidence" else dict(recipe.given).get("confidence", 0.8)
    rows, targets = {}, {}
    for seed in dict.fromkeys(network.seed for network in cell.networks):
        guess = teach(images.images, seed, False)
        sure = np.flatnonzero(guess.max(1) >= threshold)
        if not len(sure):
            sure = np.unique(guess.argmax(0))
        rows[seed], targets[seed] = sure, one_hot(guess[sure].argmax(1), classes)
    of_each = [network.seed for network in cell.networks]
    return images.images, tuple(rows[seed] for seed in of_each), tuple(targets[seed] for seed in of_each)


def _sized(cell: Cell, setting: Setting, count: int) -> tuple[Source, int]:
    """So many labelled images, of each seed its own: from train first, then from the other labelled, then the simulated ones."""
    data, size = setting.data, int(cell.extra.split()[1])
    first, last = len(data.train), len(data.labelled)
    everything = Batch.concatenate([data.labelled, data.simulated])
    rows = []
    for network in cell.networks:
        inside = nested(everything.labels[:first], network.seed, "size")
        outside = first + nested(everything.labels[first:last], network.seed, "size beyond")
        hidden = last + nested(everything.labels[last:], network.seed, "size hidden")
        rows.append(np.concatenate([inside, outside, hidden])[:size])
    targets = one_hot(everything.labels, data.spec.num_classes)
    return Source(everything.images, tuple(rows), tuple(targets[each] for each in rows), count), size


def _with_extra(data: StudyData, rows: Sequence[np.ndarray]) -> tuple[Batch, tuple[np.ndarray, ...]]:
    everything = Batch.concatenate([data.train, data.simulated])
    return everything, tuple(np.concatenate([np.arange(len(data.train)), len(data.train) + each]) for each in rows)


def _real_source(chosen: tuple[Batch, tuple[np.ndarray, ...]], count: int, spec: DatasetSpec) -> Source:
    batch, rows = chosen
    targets = one_hot(batch.labels, spec.num_classes)
    return Source(batch.images, rows, tuple(targets[each] for each in rows), count)


def _acquired(cell: Cell, setting: Setting, teach: Teach) -> list[np.ndarray]:
    """Rows of the simulated images that each network's seed would have labelled, `gain.acquire` in two rounds.

    The first round is chosen by the seed's `TEACHER` network, the second by networks trained with the first round's labels.
    k-center covers the space of class probabilities (Sener & Savarese 2018 take that of the last hidden layer).
    """
    data, criterion = setting.data, cell.extra.split()[1]
    images, wanted = data.simulated.images, min(setting.gain.acquire, len(data.simulated))
    guesses = [teach(images, network.seed, False) for network in cell.networks]
    of_train = [teach(data.train.images, network.seed, False) for network in cell.networks]
    chosen = [np.zeros(0, np.int64) for _ in cell.networks]
    for number, count in enumerate((wanted // 2, wanted - wanted // 2)):
        if number:
            sources = [_real_source(_with_extra(data, chosen), setting.classifier.batch_size, data.spec)]
            module = StackedClassifier(
                setting.classifier, data.spec, _streams(cell), setting.augment, training_of(cell, recipe_of(cell.recipe))
            )
            _fit(module, sources, cell, setting)
            guesses = list(stacked_probabilities(module.network, images, setting.device))
            of_train = list(stacked_probabilities(module.network, data.train.images, setting.device))
        for i, network in enumerate(cell.networks):
            left = np.setdiff1d(np.arange(len(images)), chosen[i])
            if criterion == "kcenter":
                centres = np.concatenate([of_train[i], guesses[i][chosen[i]]])
                new = left[k_center(guesses[i][left], centres, count)]
            else:
                draws = stream(network.stream, "gain/acquire", number)
                new = left[np.argsort(-uncertainty(guesses[i][left], criterion, draws), kind="stable")[:count]]
            chosen[i] = np.concatenate([chosen[i], new])
    return chosen


class Spent(NamedTuple):
    """How long each network of a cell was trained: gradient steps, and images drawn in them."""

    steps: int
    drawn: int


def _start(cell: Cell, recipe: Recipe, setting: Setting) -> tuple[list[Mapping[str, torch.Tensor]] | None, Spent]:
    """The weights that each network starts from, None for fresh ones, and their training.

    Synthetic images have the first half of a network's steps, so that it takes as many as every other.
    """
    data, s = setting.data, len(cell.networks)
    if recipe.start == "transfer":
        return None if data.transformer is not None else [data.pretrained or {}] * s, Spent(0, 0)
    if recipe.start == "simclr":
        config = setting.classifier.model_copy(update={"steps": setting.gain.pretrain_steps})
        images = _without_labels(recipe, data)
        blank = np.zeros((len(images), data.spec.num_classes), np.float32)
        sources = [Source.shared(images, blank, s, min(2 * config.batch_size, len(images)))]
        simclr = SimCLR(config, data.spec, _streams(cell), setting.augment)
        spent = _fit(simclr, sources, cell, setting)
        body = [simclr.network.get(i) for i in range(s)]
        return [{name: value for name, value in each.items() if not name.startswith("head.")} for each in body], spent
    if recipe.start == "synthetic":
        batch = data.gated
        sources = [Source.shared(batch.images, one_hot(batch.labels, data.spec.num_classes), s, setting.classifier.batch_size)]
        config = setting.classifier.model_copy(update={"steps": setting.classifier.steps // 2})
        module = StackedClassifier(config, data.spec, _streams(cell), setting.augment, Training())
        spent = _fit(module, sources, cell, setting)
        return [module.network.get(i) for i in range(s)], spent
    return None, Spent(0, 0)


def _fit(module: Any, sources: list[Source], cell: Cell, setting: Setting) -> Spent:
    stack, steps = Stack(sources, _streams(cell), setting.device), module.config.steps
    fit(module, stack, steps=steps, seed=0, task=cell.name, progress=Silent(), device=setting.device)
    return Spent(steps, steps * sum(source.count for source in sources))


def _streams(cell: Cell) -> list[int]:
    return [network.stream for network in cell.networks]


def _counts(recipe: Recipe, data: StudyData) -> tuple[int, int]:
    synthetic = data.synthetic(recipe)
    return len(data.real(recipe)), 0 if synthetic is None else len(synthetic)


def _classical(cell: Cell, recipe: Recipe, setting: Setting, images: np.ndarray) -> list[tuple[np.ndarray, dict[str, Any]]]:
    """Classical models on pixels in [0, 1] or on features, one of each network's seed: what each says of the images, and the
    setting it found. An extractor looks at the images once for all seeds.

    The search within holds out real images alone, those of a group together.
    """
    data = setting.data
    parts = [data.real(recipe)] + ([] if (synthetic := data.synthetic(recipe)) is None else [synthetic])
    batch = Batch.concatenate(parts)
    if recipe.kind == "pixels":
        x, query = (each.reshape(len(each), -1).astype(np.float32) / 255 for each in (batch.images, images))
    else:
        embed = data.features if recipe.start == "fresh" else data.backbone
        assert embed is not None
        x, query = embed(batch.images), embed(images)
    about = {"groups": data.groups_of(batch), "real": np.arange(len(batch)) < len(parts[0])}
    classes, seeds = data.spec.num_classes, [network.seed for network in cell.networks]
    each = [classical.fit_predict(recipe.model, x, batch.labels, classes, [query], seed, **about) for seed in seeds]
    return [(fitted.probabilities[0], dict(fitted.setting)) for fitted in each]
