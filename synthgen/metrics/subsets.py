"""Random subsets of a set that depend on its rows alone, not on the order in which they stand."""

from __future__ import annotations

import torch
from torch import Tensor

from synthgen.randomness import stream
from synthgen.shapes import Float, Int64

CHUNK = 8192


class Subsets:
    """Draws rows of `x` without replacement; the same set in another order gives the same draws.

    The rows are ranked along a fixed random direction first, and the draw is one of ranks. Rows of one rank are equal.

    Args:
        x: the set.
        name: what the draws are for; those of different names are independent.
        seed: of the draws.
    """

    def __init__(self, x: Float[Tensor, "n d"], name: str, seed: int) -> None:
        direction = torch.from_numpy(stream(0, "order of rows").standard_normal(x.shape[1])).to(x.device)
        self.order: Int64[Tensor, " n"] = torch.argsort(torch.cat([rows.double() @ direction for rows in x.split(CHUNK)]))
        self.rows, self.name, self.seed = x, name, seed

    def draw(self, size: int, index: int) -> Float[Tensor, "s d"]:
        """`size` rows, the same ones whenever the same `index` is asked for."""
        ranks = stream(self.seed, self.name, index).choice(len(self.rows), size, replace=False)
        return self.rows[self.order[torch.from_numpy(ranks).to(self.order.device)]]
