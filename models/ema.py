"""Exponential moving average of a network's weights, which samples are drawn with."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class EMA(nn.Module):
    """theta_ema <- d theta_ema + (1 - d) theta, with d = min(decay, (1 + t) / (10 + t)) at step t.

    The early ramp keeps the random start out of the average. Buffers are copied.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.steps = 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Takes one step of the average towards `network`; no host sync."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        mine: list[Tensor] = list(self.network.parameters())
        torch._foreach_lerp_(mine, [p.detach() for p in network.parameters()], 1 - decay)
        for buffer, source in zip(self.network.buffers(), network.buffers(), strict=True):
            buffer.copy_(source)

    def get_extra_state(self) -> int:
        """The step count, so that a resumed run goes on with the same decay."""
        return self.steps

    def set_extra_state(self, state: int) -> None:
        """Restores the step count."""
        self.steps = state
