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

    @property
    def network(self) -> nn.Module:
        """The chosen average."""
        return self.networks[self.chosen]

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Takes one step of each average towards `network`; no host sync, one fused call an average."""
        theirs = [p.detach() for p in network.parameters()]
        for decay, mine in zip(self.decays, self.networks, strict=True):
            rate = min(decay, (1 + self.steps) / (10 + self.steps))
            torch._foreach_lerp_(list(mine.parameters()), theirs, 1 - rate)
            for buffer, source in zip(mine.buffers(), network.buffers(), strict=True):
                buffer.copy_(source)
        self.steps += 1

    def get_extra_state(self) -> dict[str, int]:
        """The step count, so that a resumed run goes on with the same decay, and which average was chosen."""
        return {"steps": self.steps, "chosen": self.chosen}

    def set_extra_state(self, state: Any) -> None:
        """Restores both."""
        self.steps, self.chosen = state["steps"], state["chosen"]
