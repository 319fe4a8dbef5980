"""Self-supervised pre-training of the classifier's network on images without labels: SimCLR (Chen et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synthgen.config.schema import AugmentConfig, ClassifierConfig
from synthgen.data.stacks import StackBatch
from synthgen.models.classifier import ClassifierNetwork, one_cycle
from synthgen.models.stacked import FEATURES, StackedLinear, StackedNetwork, changed, channels_last
from synthgen.randomness import stream
from synthgen.shapes import Float
from synthgen.types import DatasetSpec

TEMPERATURE = 0.5
"""Of NT-Xent: the paper's best at small batches."""

PROJECTED = 32
"""Width of the space in which views are compared; the layer behind it is thrown away."""


class SimCLR(pl.LightningModule):
    """Two strongly changed views of an image are to be each other's nearest among all of the batch (NT-Xent).

    For several networks side by side, see `stacked`; AdamW, one-cycle; random numbers keyed by (network's seed, step).

    Args:
        config: width, steps and learning rate.
        spec: image shape.
        seeds: of the networks.
        augment: the largest changes; the views are twice that of RandAugment.
    """

    def __init__(self, config: ClassifierConfig, spec: DatasetSpec, seeds: Sequence[int], augment: AugmentConfig) -> None:
        super().__init__()
        self.config, self.seeds, self.augment, self.step = config, tuple(seeds), augment, 0
        self.network = StackedNetwork(len(seeds), config.width, spec)
        self.projection = StackedLinear(len(seeds), FEATURES, PROJECTED)
        for number, seed in enumerate(seeds):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.network.put(number, ClassifierNetwork(config.width, FEATURES, 0.0, spec).state_dict())
                layer = nn.Linear(FEATURES, PROJECTED)
            with torch.no_grad():
                self.projection.weight[number], self.projection.bias[number, 0] = layer.weight, layer.bias
        channels_last(self.network)

    def training_step(self, batch: StackBatch, batch_idx: int) -> Tensor:
        """Sum over the networks of each one's mean NT-Xent loss in nats; labels aren't looked at."""
        draws = [stream(seed, "contrastive/step", self.step) for seed in self.seeds]
        self.step += 1
        views = torch.cat([self._view(batch.images, draws), self._view(batch.images, draws)], dim=1)
        return nt_xent(self.projection(self.network.features(views))).sum()

    def _view(self, images: Tensor, draws: list[np.random.Generator]) -> Tensor:
        for policy in ("standard", "randaugment"):
            images = changed(images, draws, policy, 2.0, self.augment)
        return images

    def configure_optimizers(self) -> Any:
        return one_cycle(nn.ModuleList([self.network.stages, self.network.to_features, self.projection]), self.config)


def nt_xent(projected: Float[Tensor, "s v d"], temperature: float = TEMPERATURE) -> Float[Tensor, " s"]:
    """Normalised temperature-scaled cross-entropy (Chen et al. 2020, eq. 1); view i and view i + v / 2 are of one image."""
    z = F.normalize(projected, dim=2)
    v = z.shape[1]
    likeness = torch.bmm(z, z.transpose(1, 2)) / temperature
    likeness = likeness.masked_fill(torch.eye(v, dtype=torch.bool, device=z.device), float("-inf"))
    partner = torch.arange(v, device=z.device).roll(v // 2)
    log_share = likeness.log_softmax(2)
    return -log_share[:, torch.arange(v, device=z.device), partner].mean(1)
