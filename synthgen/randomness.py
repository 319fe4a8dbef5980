"""All randomness: numpy's Philox, keyed by what it is for and drawn on the CPU.

`torch.randn` depends on the CPU's instruction set and on the layout; a Philox counter gives the same bytes everywhere,
and no generator state has to be stored: the number at (seed, stream, index) can be drawn again at any time, by any
worker, in any order (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
"""

from __future__ import annotations

import hashlib

import numpy as np

from synthgen.shapes import Float


def stream(seed: int, name: str, index: int = 0) -> np.random.Generator:
    """A generator that is fixed by (seed, name, index).

    Args:
        seed: the user's seed, 0 or more.
        name: what the numbers are for ("noise", "order", "dropout"); streams of different names are independent.
        index: sample, step or epoch number, 0 or more.

    >>> float(stream(0, "noise", 3).random()) == float(stream(0, "noise", 3).random())
    True
    """
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    # as uint64: a list with a number of 2**63 or more would become float64 and lose the key's last bits
    key = np.array([int.from_bytes(digest, "little"), index], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def seed_layers(seed: int, name: str, index: int, device: str) -> None:
    """Keys what torch draws by itself (dropout) by (seed, name, index): the one place that touches a global generator.

    Not `torch.manual_seed`: where there is no GPU it queues a call for one each time, at 1 ms and some memory.
    """
    import torch

    number = int(stream(seed, name, index).integers(2**62))
    torch.default_generator.manual_seed(number)
    if device == "cuda":
        torch.cuda.manual_seed(number)


def normal(seed: int, name: str, indices: np.ndarray, shape: tuple[int, ...]) -> Float[np.ndarray, "b *shape"]:
    """Standard normal numbers for each index, float32, of shape (len(indices), *shape).

    Row r depends on (seed, name, indices[r]) alone, not on its neighbours.
    """
    rows = [stream(seed, name, int(i)).standard_normal(shape, dtype=np.float32) for i in indices]
    return np.stack(rows) if rows else np.zeros((0, *shape), np.float32)
