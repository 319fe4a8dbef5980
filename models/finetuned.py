"""A pre-trained vision transformer, fine-tuned: several classifiers on one frozen trunk, each with its own last block."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from synthgen.models.stacked import SideBySide, StackedClassifier, StackedLinear
from synthgen.shapes import Float
from synthgen.types import DatasetSpec

BLOCK_LR = 1 / 40
"""Of the head's learning rate: 1e-4 beside the classifier's usual 4e-3. At a fresh layer's rate a block forgets what it knows."""


@dataclass(frozen=True, eq=False)
class Transformer:
    """A transformers model of the DINOv2 kind, and the images that it takes.

    Attributes:
        model: with `embeddings`, `encoder.layer` and `layernorm`.
        size_px: height and width that images are resized to, bicubic with antialiasing.
        mean, std: of each of three channels, of levels in [0, 1].
    """

    model: Any
    size_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class TunedNetworks(SideBySide):
    """Classifiers that share a frozen trunk: copies of the last block and of the layer norm, and a linear head, are their own.

    The class token is the feature, as the extractor of the same folder takes it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, networks: int, transformer: Transformer, spec: DatasetSpec) -> None:
        super().__init__()
        self.networks, self.spec, self.size_px = networks, spec, transformer.size_px
        model = transformer.model
        self.trunk = nn.ModuleList([model.embeddings, *model.encoder.layer[:-1]]).requires_grad_(False)
        self.blocks = nn.ModuleList([copy.deepcopy(model.encoder.layer[-1]).requires_grad_(True) for _ in range(networks)])
        self.norms = nn.ModuleList([copy.deepcopy(model.layernorm).requires_grad_(True) for _ in range(networks)])
        self.head = StackedLinear(networks, model.config.hidden_size, spec.num_classes)
        self.register_buffer("mean", torch.tensor(transformer.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(transformer.std)[:, None, None], persistent=False)

    def train(self, mode: bool = True) -> TunedNetworks:
        """Its own dropout stays off: that before the head is drawn by the network's seed."""
        super().train(mode)
        self.trunk.eval()
        self.blocks.eval()
        return self

    def features(self, x: Float[Tensor, "s b c h w"]) -> Float[Tensor, "s b d"]:
        """The class token after the last layer norm, images in [-1, 1]."""
        shared = self._trunk(x[0]) if self.networks > 1 and x.stride(0) == 0 else None  # every network looks at the same images
        hidden = (self._trunk(each) if shared is None else shared for each in x)
        tokens = [norm(_called(block, h))[:, 0] for block, norm, h in zip(self.blocks, self.norms, hidden, strict=True)]
        return torch.stack(tokens)

    def own(self) -> dict[str, Tensor]:
        """The weights that aren't the trunk's; `load_state_dict(..., strict=False)` takes them up."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("trunk.")}

    @torch.no_grad()
    def _trunk(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b t d"]:
        levels = (images.expand(-1, 3, -1, -1) + 1) * 127.5
        size = (self.size_px, self.size_px)
        if levels.shape[-2:] != size:
            levels = interpolate(levels, size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 255)
        hidden = (levels / 255 - self.mean) / self.std
        for layer in self.trunk:
            hidden = _called(layer, hidden)
        return hidden


def _called(layer: nn.Module, hidden: Tensor) -> Tensor:
    found = layer(hidden)
    return found[0] if isinstance(found, tuple) else found  # a tuple before transformers 5


class FineTuned(StackedClassifier):
    """`StackedClassifier` on a pre-trained transformer: last block, layer norm and head are trained, the trunk is left as it is.

    Side by side its networks are the very ones that they are alone. A step costs the trunk's pass over each network's
    batch; memory is that of one network's.
    """

    network: TunedNetworks  # type: ignore[assignment]

    def __init__(self, transformer: Transformer, *arguments: Any) -> None:
        self.transformer = (transformer,)  # in a tuple, so that it is no part of this module
        super().__init__(*arguments)

    def _fresh(self, start: Sequence[Mapping[str, Tensor]] | None) -> TunedNetworks:  # type: ignore[override]
        network = TunedNetworks(len(self.seeds), self.transformer[0], self.spec)
        for number, seed in enumerate(self.seeds):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                layer = nn.Linear(network.head.weight.shape[2], self.spec.num_classes)
            with torch.no_grad():
                network.head.weight[number], network.head.bias[number, 0] = layer.weight, layer.bias
        return network

    def configure_optimizers(self) -> Any:
        """AdamW, one-cycle; `BLOCK_LR` of the head's rate for what is pre-trained."""
        network, config = self.network, self.config
        rates = [BLOCK_LR * config.lr, config.lr]
        tuned = [*network.blocks.parameters(), *network.norms.parameters()]
        groups = [{"params": tuned, "lr": rates[0]}, {"params": network.head.parameters(), "lr": rates[1]}]
        optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)
        rising = 0.2 if config.steps != 4 else 0.4  # see `classifier.one_cycle`
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=config.steps + 1, pct_start=rising)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
