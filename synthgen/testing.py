"""The contract of a generator as checks that anybody can run, for the built-in ones and for those from outside alike.

    from synthgen.testing import check_generator

    def test_my_generator():
        check_generator(MyGenerator)

Each check raises `ContractError`, an AssertionError, with a sentence that says what is wrong; an error that the generator
itself raises goes through. They need nothing but synthgen, and under a minute for a small generator on the CPU.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from synthgen import models, randomness, sampling, training
from synthgen.config import extensions
from synthgen.config.generators import GeneratorConfig
from synthgen.config.schema import AugmentConfig
from synthgen.data.transforms import to_float
from synthgen.errors import TrainingError
from synthgen.models import Generator, Noise
from synthgen.models.base import to_bytes
from synthgen.types import Batch, DatasetSpec, Silent

SHAPES = ((1, 8, 8), (3, 16, 16), (3, 28, 28))
"""Channels, height and width that a generator is asked for if no `spec` is given; 28 can't be halved thrice."""

TOY = DatasetSpec("toy", (1, 8, 8), ("a", "b", "c"), False, "0" * 64)


class ContractError(AssertionError):
    """A generator doesn't keep its promise."""


@dataclass(frozen=True)
class Subject:
    """A class of generators, and under which settings and on what it is checked.

    Attributes:
        model: the class.
        config: its settings; the number of steps is each check's own.
        spec: image shape and classes; None checks the shapes of `SHAPES`, and trains on `TOY`.
        steps: training steps after which the label must matter.
    """

    model: type[Generator]
    config: GeneratorConfig
    spec: DatasetSpec | None = None
    steps: int = 30

    @property
    def toy(self) -> DatasetSpec:
        """What it is trained on."""
        return self.spec or TOY

    def build(self, steps: int, spec: DatasetSpec | None = None, model: type[Generator] | None = None) -> Generator:
        """A fresh generator, fixed by seed 0."""
        model = model or self.model
        config = self.config.model_copy(update={"steps": steps})
        return models.build(config, spec or self.toy, AugmentConfig(), 0, model=model)

    def fit(self, generator: Generator, steps: int, **settings: Any) -> training.Fit:
        """Trains it on 16 of 24 toy images a step."""
        settings = {"task": generator.kind, "progress": Silent(), "seed": 0, **settings}
        return training.fit(generator, [(toy_images(24, self.toy), 16)], steps=steps, **settings)

    def trained(self, steps: int = 4) -> Generator:
        """A generator after some steps."""
        generator = self.build(steps)
        self.fit(generator, steps)
        return generator

    def labels(self, n: int) -> np.ndarray:
        """Labels of n samples, the classes in turn."""
        return np.arange(n, dtype=np.int64) % self.toy.num_classes


def check_generator(
    model: type[Generator], *, spec: DatasetSpec | None = None, steps: int = 30, config: GeneratorConfig | None = None
) -> None:
    """Runs every check of `CHECKS` on a toy data set, with one thread.

    Args:
        model: the class; it needs no entry point yet.
        spec: image shape and classes, where a generator can't make those of `SHAPES`; two classes at least.
        steps: training steps after which the label must matter; the other checks train 4 to 8.
        config: settings to check it under; its defaults if not given.

    Raises:
        ContractError: the first promise that isn't kept, in a sentence.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # same input, same bytes holds for one thread
    try:
        _require(isinstance(model, type) and issubclass(model, Generator), f"{model!r} is no subclass of Generator")
        declares_itself_class(model)
        subject = Subject(model, config or model.Config(), spec, steps)
        for check in CHECKS.values():
            check(subject)
    finally:
        torch.set_num_threads(threads)


# The promises


def declares_itself(subject: Subject) -> None:
    """`kind`, `Config`, a meaning for each setting, settings that come back from JSON, and a line on the sampler."""
    model, config = subject.model, subject.config
    declares_itself_class(model)
    for name, field in type(config).model_fields.items():
        _require(bool(field.description), f"{model.kind}: Config.{name} has no description, which is its help")
    again = type(config).model_validate(config.model_dump(mode="json"))
    _require(again == config, f"{model.kind}: the settings come back from JSON as others: {config!r} as {again!r}")
    unknown = [name for name in model.sampling_settings if name not in type(config).model_fields]
    _require(not unknown, f"{model.kind}: sampling_settings names {unknown}, which aren't settings")
    line = subject.build(4).sampler
    _require(bool(line) and "\n" not in line, f"{model.kind}: sampler must be one line, found {line!r}")


def declares_itself_class(model: type[Generator]) -> None:
    """What a class must be before it can be asked for anything else."""
    kind = getattr(model, "kind", None)
    _require(isinstance(kind, str), f"{model.__name__}.kind is {kind!r}, which isn't a name")
    wrong = extensions.fault(model, str(kind))
    _require(wrong is None, f"{model.__name__} {wrong}")
    taken = models.MODELS.get(str(kind), model)
    _require(taken is model, f"{model.__name__} has kind={kind!r}, which is built in ({taken.__name__}); take another name")


def samples_have_the_shape_and_range_of_the_data(subject: Subject) -> None:
    """(b, c, h, w), float32, in [-1, 1], finite, without a gradient."""
    specs = [subject.spec] if subject.spec else [DatasetSpec("x", shape, ("a", "b"), False, "") for shape in SHAPES]
    for spec in specs:
        generator = subject.build(4, spec).eval()
        images = generator.sample(torch.tensor([0, 1, 1]), Noise(0, np.arange(3)))
        what = f"{generator.kind}: samples of {spec.image_shape} images"
        _require(images.shape == (3, *spec.image_shape), f"{what} have the shape {tuple(images.shape)}")
        _require(images.dtype == torch.float32, f"{what} are {images.dtype}, not float32")
        _require(bool(torch.isfinite(images).all()), f"{what} aren't finite")
        low, high = float(images.min()), float(images.max())
        _require(-1 <= low <= high <= 1, f"{what} lie between {low:.3g} and {high:.3g}, not in [-1, 1]")
        _require(not images.requires_grad, f"{what} hold a gradient; decorate sample with @torch.no_grad()")


def same_seed_same_bytes_whatever_is_in_flight(subject: Subject) -> None:
    """Sample i is fixed by the checkpoint, the seed and i, however many chunks are computed at a time."""
    generator, labels = subject.trained(), subject.labels(10)
    one = draw(generator, labels, batch=4)
    for what, images in (
        ("drawn again", draw(generator, labels, batch=4).images),
        ("with four chunks in flight", draw(generator, labels, batch=16).images),
        ("with a smaller batch", draw(generator, labels, batch=1).images),
        ("after other random numbers", _after_other_random_numbers(generator, labels)),
    ):
        _require((images == one.images).all(), f"{generator.kind}: samples differ {what}; all randomness must come from `noise`")
    rest = draw(generator, labels, batch=4, first=4)
    _require((rest.images == one.images[4:]).all(), f"{generator.kind}: samples from the fifth on differ when drawn alone")
    other = draw(generator, labels, batch=4, seed=8)
    _require(bool((other.images != one.images).any()), f"{generator.kind}: another seed gives the same samples; use `noise`")


def a_sample_does_not_depend_on_how_many_are_asked_for(subject: Subject) -> None:
    """The first five of eight are the five, though the fifth has other neighbours in its chunk."""
    generator, labels = subject.trained(), subject.labels(8)[::-1].copy()
    few, many = draw(generator, labels[:5]).images, draw(generator, labels).images
    _require(
        (few == many[:5]).all(),
        f"{generator.kind}: the first 5 of 8 samples aren't the 5 drawn alone; a sample may not depend on its neighbours",
    )


def the_label_matters(subject: Subject) -> None:
    """The same noise with another label is another image, after some training."""
    generator = subject.trained(subject.steps)
    noise = Noise(0, np.arange(4))
    as_first, as_second = (generator.sample(torch.full((4,), label), noise) for label in (0, 1))
    difference = float((as_first - as_second).abs().mean())
    _require(
        difference > 1e-3,
        f"{generator.kind}: after {subject.steps} steps, samples of two classes from the same noise differ by {difference:.2g} "
        "in the mean, of 2; is the label used?",
    )


def training_is_fixed_by_the_seed(subject: Subject) -> None:
    """Two trainings leave the same bytes, whatever the global random numbers were."""
    first = to_bytes(subject.trained())
    with _other_random_numbers():
        again = to_bytes(subject.trained())
    _require(
        again == first,
        f"{subject.model.kind}: two trainings with one seed differ; draw from self.draws(name) or self.normal(name)",
    )


def a_checkpoint_comes_back(subject: Subject) -> None:
    """Generator -> bytes -> generator: the same bytes, and the same samples."""
    generator, labels = subject.trained(), subject.labels(6)
    data = to_bytes(generator)
    again = models.from_bytes(data, "its own bytes", subject.model)
    _require(to_bytes(again) == data, f"{generator.kind}: what came back from a checkpoint writes another one")
    _require(
        (draw(again, labels).images == draw(generator, labels).images).all(),
        f"{generator.kind}: what came back from a checkpoint draws other samples; "
        "all that sampling needs must be weights or buffers of `network`, or said by `config` and `structure`",
    )


def training_resumes_bit_exactly(subject: Subject) -> None:
    """Killed at step 7 of 8 and started again, it ends as if nothing had happened."""
    with _checkpoints_every_three_steps(), tempfile.TemporaryDirectory() as folder:
        whole = subject.build(8)
        losses = subject.fit(whole, 8).losses
        kept: dict[str, Any] = {"folder": Path(folder), "save_every_s": 0.0}
        try:
            subject.fit(subject.build(8), 8, progress=_KillAt(7), **kept)
        except _Killed:
            pass
        else:
            raise ContractError(f"{subject.model.kind}: a training of 8 steps didn't come to its 7th")
        _require(any(Path(folder).glob("resume-*.ckpt")), f"{subject.model.kind}: training left no checkpoint to resume from")
        resumed = subject.build(8)
        with _other_random_numbers():
            again = subject.fit(resumed, 8, **kept).losses
    _require(
        again == losses and to_bytes(resumed) == to_bytes(whole),
        f"{subject.model.kind}: a resumed training ends elsewhere than an uninterrupted one; what training keeps between steps "
        "must be in state_dict or on_save_checkpoint, and its random numbers from self.draws(name)",
    )


def a_loss_that_is_not_finite_stops_the_run(subject: Subject) -> None:
    """NaN ends in a TrainingError at the first step."""

    class Diverged(subject.model):  # type: ignore[name-defined]
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return torch.tensor(float("nan"), requires_grad=True)

    generator = subject.build(4, model=Diverged)
    try:
        subject.fit(generator, 4)
    except TrainingError as error:
        _require("the loss is nan at step 1" in str(error), f"{generator.kind}: a loss of NaN is noticed late: {error}")
    else:
        raise ContractError(
            f"{generator.kind}: training goes on with a loss of NaN; don't override Lightning's hooks without super()"
        )


def the_held_out_loss_is_one_figure_an_image(subject: Subject) -> None:
    """None, or shape (n,), finite, and the same at every call."""
    generator, batch = subject.trained(), toy_images(5, subject.toy)
    images, labels = to_float(torch.from_numpy(batch.images)), torch.from_numpy(batch.labels)
    loss = generator.held_out_loss(images, labels)
    if loss is None:
        return
    _require(loss.shape == (5,), f"{generator.kind}: held_out_loss of 5 images has the shape {tuple(loss.shape)}")
    _require(bool(torch.isfinite(loss).all()), f"{generator.kind}: held_out_loss isn't finite")
    with _other_random_numbers():
        again = generator.held_out_loss(images, labels)
    _require(
        again is not None and torch.equal(loss, again),
        f"{generator.kind}: held_out_loss differs from call to call; give it the same random numbers each time",
    )


CHECKS: Mapping[str, Callable[[Subject], None]] = {
    check.__name__: check
    for check in (
        declares_itself,
        samples_have_the_shape_and_range_of_the_data,
        same_seed_same_bytes_whatever_is_in_flight,
        a_sample_does_not_depend_on_how_many_are_asked_for,
        the_label_matters,
        training_is_fixed_by_the_seed,
        a_checkpoint_comes_back,
        training_resumes_bit_exactly,
        a_loss_that_is_not_finite_stops_the_run,
        the_held_out_loss_is_one_figure_an_image,
    )
}
"""Name of a promise -> its check, the cheap ones first."""


# What the checks are made of


def toy_images(n: int, spec: DatasetSpec, seed: int = 0) -> Batch:
    """Images whose pattern tells the class, with noise; the classes in turn."""
    rng = randomness.stream(seed, "toy images")
    labels = np.arange(n, dtype=np.int64) % spec.num_classes
    patterns = rng.integers(0, 200, (spec.num_classes, *spec.image_shape))
    images = np.clip(patterns[labels] + rng.normal(0, 25, (n, *spec.image_shape)), 0, 255).astype(np.uint8)
    return Batch(images, labels, tuple(f"real-{i:06d}" for i in range(n)))


def draw(generator: Generator, labels: np.ndarray, chunk: int = 4, batch: int = 4, seed: int = 7, first: int = 0) -> Batch:
    """Samples of these labels, as `synthgen generate` draws them."""
    made = sampling.sample(generator, labels, seed=seed, chunk=chunk, batch=batch, prefix="x", first=first)
    return Batch.concatenate(list(made))


def _after_other_random_numbers(generator: Generator, labels: np.ndarray) -> np.ndarray:
    with _other_random_numbers():
        return draw(generator, labels, batch=4).images


@contextmanager
def _other_random_numbers() -> Iterator[None]:
    """Another state of torch's global generator inside, its old one afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        yield


@contextmanager
def _checkpoints_every_three_steps() -> Iterator[None]:
    """They are taken between Lightning's epochs: of three steps inside, so that few steps are enough."""
    before, training.EPOCH = training.EPOCH, 3
    try:
        yield
    finally:
        training.EPOCH = before


class _Killed(Exception):
    pass


class _KillAt:
    """A `Progress` that ends the run at a step."""

    def __init__(self, step: int) -> None:
        self.left = step

    def start(self, task: str, total: int) -> None:
        """Ignored."""

    def advance(self, task: str, steps: int = 1, note: str = "") -> None:
        """Counts down."""
        self.left -= steps
        if self.left == 0:
            raise _Killed

    def finish(self, task: str, line: str) -> None:
        """Ignored."""


def _require(holds: bool | np.bool_, sentence: str) -> None:
    if not holds:
        raise ContractError(sentence)
