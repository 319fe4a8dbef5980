"""Low-rank changes of a trained network's attention layers (LoRA, Hu et al. 2021): W + B A, with B zero at the start.

They are parametrisations of the weights, so the layers stay what they are to everybody else, and `merged`
gives the state of a plain network.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from synthgen.errors import ConfigError
from synthgen.shapes import Float

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


class LowRank(nn.Module):
    """W -> W + B A, with A (rank, inputs) small and random and B (outputs, rank) zero."""

    def __init__(self, weight: Float[Tensor, "o i"], rank: int) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        self.down = nn.Parameter(torch.randn(rank, inputs, dtype=weight.dtype) / inputs**0.5)
        self.up = nn.Parameter(torch.zeros(outputs, rank, dtype=weight.dtype))

    def forward(self, weight: Float[Tensor, "o i"]) -> Float[Tensor, "o i"]:
        return weight + self.up @ self.down


def add(network: nn.Module, rank: int) -> None:
    """Freezes a network and puts a low-rank change on each of its attention layers.

    Raises:
        ConfigError: the network has no attention.
    """
    layers = [module for name, module in network.named_modules() if name.endswith(ATTENTION) and isinstance(module, nn.Linear)]
    if not layers:
        raise ConfigError("generators.diffusion.lora_rank: the network of init_from has no attention; set lora_rank=0")
    network.requires_grad_(False)
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank))


def merged(network: nn.Module) -> dict[str, Tensor]:
    """The network's state with the changes in the weights: what a network without them loads."""
    state: dict[str, Tensor] = dict(network.state_dict())
    for name, module in network.named_modules():
        parametrizations = getattr(module, "parametrizations", None)
        if parametrizations is not None and isinstance(parametrizations["weight"][0], LowRank):
            state[f"{name}.weight"] = module.weight.detach()
            for key in [key for key in state if key.startswith(f"{name}.parametrizations.")]:
                del state[key]
    return state
