"""Exponential moving averages of a network's weights, which samples are drawn with."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


class EMA(nn.Module):
    """theta_ema <- d theta_ema + (1 - d) theta, with d = min(decay, (1 + t) / (10 + t)) at step t; one average a decay.

    The early ramp keeps the random start out of the average. Which length suits is only known afterwards (Karras et al.
    2024, "Analyzing and improving the training dynamics of diffusion models", section 3), so several may be followed at
    the cost of their memory, and one is chosen. Buffers are copied.

    Attributes:
        chosen: number of the average that `network` is.
    """

    def __init__(self, network: nn.Module, decays: tuple[float, ...]) -> None:
        super().__init__()
        self.decays = decays
        self.networks = nn.ModuleList(copy.deepcopy(network).eval().requires_grad_(False) for _ in decays)
        self.steps, self.chosen = 0, 0
        self._of: nn.Module | None = None

    @property
    def network(self) -> nn.Module:
        """The chosen average."""
        return self.networks[self.chosen]

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Takes one step of each average towards `network`; no host sync, one fused call an average."""
        if self._of is not network:
            self._list(network)
        for decay, averages in zip(self.decays, self._averages, strict=True):
            rate = min(decay, (1 + self.steps) / (10 + self.steps))
            torch._foreach_lerp_(averages, self._theirs, 1 - rate)
        for mine, theirs in self._buffered:
            for name, buffer in theirs.named_buffers(recurse=False):
                mine.get_buffer(name).copy_(buffer)
        self.steps += 1

    def _list(self, network: nn.Module) -> None:
        """Who is averaged: walking through the modules at each step takes longer than the averages themselves."""
        object.__setattr__(self, "_of", network)  # not a part of this module
        self._theirs: list[torch.Tensor] = list(network.parameters())
        self._averages: list[list[torch.Tensor]] = [list(mine.parameters()) for mine in self.networks]
        pairs = [pair for mine in self.networks for pair in zip(mine.modules(), network.modules(), strict=True)]
        self._buffered = [pair for pair in pairs if any(True for _ in pair[1].buffers(recurse=False))]

    def get_extra_state(self) -> dict[str, int]:
        """The step count, so that a resumed run goes on with the same decay, and which average was chosen."""
        return {"steps": self.steps, "chosen": self.chosen}

    def set_extra_state(self, state: Any) -> None:
        """Restores both."""
        self.steps, self.chosen = state["steps"], state["chosen"]
