"""(checkpoint, seed, indices, labels) -> batches: sample i is fixed by the checkpoint, the seed and i alone.

The network's output for one image depends in its last bit on the batch it sits in, so `chunk` belongs to the recipe:
sample i always sits in slot i mod chunk of chunk i div chunk, and a chunk is always computed whole, whoever asks for
whichever part of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch

from synthgen import randomness
from synthgen.data.transforms import to_uint8
from synthgen.errors import ConfigError, DataError
from synthgen.models import Generator, Noise
from synthgen.models.base import keep_freed_memory
from synthgen.shapes import Float, Int64
from synthgen.types import UNLABELLED, Batch


def label_plan(
    labels: Int64[np.ndarray, " n"],
    num_classes: int,
    num: int,
    plan: str,
    seed: int,
    *,
    fill_to: int | None = None,
    errors: Float[np.ndarray, " k"] | None = None,
) -> Int64[np.ndarray, " m"]:
    """Which class each candidate gets: the counts of `label_counts`, in an order that the seed shuffles.

    A chunk so mixes classes. Arguments and errors as `label_counts`.
    """
    counts = label_counts(labels, num_classes, num, plan, fill_to=fill_to, errors=errors)
    return planned(counts, seed)


def planned(counts: Int64[np.ndarray, " k"], seed: int) -> Int64[np.ndarray, " m"]:
    """The class of each candidate where every class has so many, in an order that the seed shuffles."""
    return randomness.stream(seed, "label plan").permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.int64)


def label_counts(
    labels: Int64[np.ndarray, " n"],
    num_classes: int,
    num: int,
    plan: str,
    *,
    fill_to: int | None = None,
    errors: Float[np.ndarray, " k"] | None = None,
) -> Int64[np.ndarray, " k"]:
    """How many candidates each class gets; exact, by largest remainders.

    Args:
        labels: of the train fold.
        num_classes: k.
        num: candidates in all, m; under "fill" it isn't read, m follows from `fill_to`.
        plan: "match", the class mix of `labels`; "balanced", the same number of each; "fill", what each class of `labels`
            lacks of `fill_to`; "weak", in proportion to `errors`, and at least one of each class if num >= k.
        fill_to: images and candidates of a class together; as many as the largest class has if None.
        errors: of each class, above 0 (`class_errors`); "weak" needs them.

    Raises:
        ConfigError: "fill", and no class has fewer than `fill_to` images.
    """
    have = np.bincount(labels, minlength=num_classes)
    if plan == "fill":
        target = int(have.max()) if fill_to is None else fill_to
        lacking = np.maximum(0, target - have)
        if not lacking.any():
            fullest = int(have.max())
            raise ConfigError(
                f"generate.labels=fill: every class has {target} train images or more, so there is nothing to fill up; "
                f"give generate.fill_to above {fullest} to add to each, or generate.labels=match"
            )
        return lacking.astype(np.int64)
    if plan == "match":
        share = have / len(labels)
    elif plan == "balanced":
        share = np.full(num_classes, 1 / num_classes)
    elif plan == "weak" and errors is not None:
        share = errors / errors.sum()
    else:
        raise ValueError(f"no such plan: {plan!r}, or weak without errors")
    counts = np.floor(share * num).astype(np.int64)
    remainder = share * num - counts
    counts[np.argsort(-remainder, kind="stable")[: num - counts.sum()]] += 1
    if plan == "weak" and num >= num_classes:
        for label in np.flatnonzero(counts == 0):
            counts[counts.argmax()] -= 1
            counts[label] = 1
    return counts


def class_errors(probabilities: Float[np.ndarray, "n k"], labels: Int64[np.ndarray, " n"]) -> Float[np.ndarray, " k"]:
    """Share of each class's images that a classifier gets wrong, smoothed by one right and one wrong (Laplace's rule).

    So it lies strictly between 0 and 1, and is 1/2 for a class without images.

    Args:
        probabilities: of each class, of images that the classifier wasn't trained on.
        labels: what they are.

    Raises:
        DataError: no images, or some have no label.
    """
    if not len(labels):
        raise DataError(
            "generate.labels=weak: there are no val images to tell the weak classes by; give split.val, or labels=match"
        )
    if (labels == UNLABELLED).any():
        raise DataError("generate.labels=weak: val images have no labels, and the error of a class needs them; give labels=match")
    num_classes = probabilities.shape[1]
    wrong = np.bincount(labels[probabilities.argmax(1) != labels], minlength=num_classes)
    return (wrong + 1) / (np.bincount(labels, minlength=num_classes) + 2)


def sample(
    generator: Generator,
    labels: Int64[np.ndarray, " n"],
    *,
    seed: int,
    chunk: int,
    batch: int,
    prefix: str,
    device: str = "cpu",
    first: int = 0,
    precision: str = "32-true",
) -> Iterator[Batch]:
    """Yields samples 0 to n - 1 (or from `first` on), a chunk at a time, in order.

    Args:
        generator: in eval mode.
        labels: of all n samples; a chunk needs those of its neighbours too.
        seed: of sampling.
        chunk: micro-batch; part of the recipe.
        batch: images in flight: chunks are computed max(1, batch div chunk) at a time, which changes no byte.
        prefix: of the keys, `<prefix>-<index>`.
        device: "cpu" or "cuda".
        first: first index wanted, a multiple of `chunk`.
        precision: "32-true", or "bf16-mixed" for products and convolutions in bfloat16; part of the recipe.

    Raises:
        DataError: the generator returned images that aren't finite.
    """
    if first % chunk:
        raise ValueError(f"first={first} isn't a multiple of chunk={chunk}")
    keep_freed_memory()
    network = generator.to(device)
    threads, rounded = torch.get_num_threads(), precision == "bf16-mixed"

    def compute(start: int) -> Batch:
        torch.set_num_threads(threads)  # a thread's own setting
        indices = np.arange(start, start + chunk)
        padded = np.concatenate([labels[start : start + chunk], np.zeros(max(0, start + chunk - len(labels)), np.int64)])
        noise = Noise(seed, indices, device)
        # both are a thread's own, too
        with torch.inference_mode(), torch.autocast(torch.device(device).type, torch.bfloat16, enabled=rounded):
            images = network.sample(torch.from_numpy(padded).to(device), noise).float()
        if not torch.isfinite(images).all():
            raise DataError(f"{prefix}: samples {start} to {start + chunk - 1} are not finite; train the generator again")
        count = min(chunk, len(labels) - start)
        keys = tuple(f"{prefix}-{i:08d}" for i in indices[:count])
        return Batch(to_uint8(images[:count]).cpu().numpy(), labels[start : start + count], keys)

    starts = iter(range(first, len(labels), chunk))
    in_flight = max(1, batch // chunk)
    with ThreadPoolExecutor(in_flight) as threads_pool:
        waiting = [threads_pool.submit(compute, start) for start in islice(starts, in_flight)]
        while waiting:
            done = waiting.pop(0).result()
            following = next(starts, None)
            if following is not None:
                waiting.append(threads_pool.submit(compute, following))
            yield done
