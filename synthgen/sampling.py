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
from synthgen.errors import DataError
from synthgen.models import Generator, Noise
from synthgen.shapes import Int64
from synthgen.types import Batch


def label_plan(labels: Int64[np.ndarray, " n"], num_classes: int, num: int, plan: str, seed: int) -> Int64[np.ndarray, " m"]:
    """Which class each candidate gets: "match" the class mix of `labels`, or "balanced".

    Counts are exact (largest remainders); the order is shuffled by the seed, so a chunk mixes classes.
    """
    share = np.bincount(labels, minlength=num_classes) / len(labels) if plan == "match" else np.full(num_classes, 1 / num_classes)
    counts = np.floor(share * num).astype(int)
    remainder = share * num - counts
    counts[np.argsort(-remainder, kind="stable")[: num - counts.sum()]] += 1
    planned = np.repeat(np.arange(num_classes), counts)
    return randomness.stream(seed, "label plan").permutation(planned).astype(np.int64)


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

    Raises:
        DataError: the generator returned images that aren't finite.
    """
    if first % chunk:
        raise ValueError(f"first={first} isn't a multiple of chunk={chunk}")
    network = generator.to(device)
    threads = torch.get_num_threads()

    def compute(start: int) -> Batch:
        torch.set_num_threads(threads)  # a thread's own setting
        indices = np.arange(start, start + chunk)
        padded = np.concatenate([labels[start : start + chunk], np.zeros(max(0, start + chunk - len(labels)), np.int64)])
        noise = Noise(seed, indices, device)
        images = network.sample(torch.from_numpy(padded).to(device), noise)
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
