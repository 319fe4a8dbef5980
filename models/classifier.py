"""The small residual CNN of the factory: it measures the gain, judges labels, and gives the gate its features."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synthgen import randomness
from synthgen.config.schema import AugmentConfig, ClassifierConfig
from synthgen.data.transforms import augment as augmented
from synthgen.data.transforms import to_float
from synthgen.shapes import Float, Int64, UInt8
from synthgen.types import DatasetSpec


class Block(nn.Module):
    """conv-BN-ReLU-conv-BN plus a 1x1 shortcut (He et al. 2016), at half the resolution if `stride` is 2.

    With several `networks` it is as many blocks side by side: group g of the channels belongs to network g alone.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, networks: int = 1) -> None:
        super().__init__()
        i, o, groups = networks * inputs, networks * outputs, networks
        self.conv1, self.norm1 = nn.Conv2d(i, o, 3, stride, 1, bias=False, groups=groups), nn.BatchNorm2d(o)
        self.conv2, self.norm2 = nn.Conv2d(o, o, 3, 1, 1, bias=False, groups=groups), nn.BatchNorm2d(o)
        self.skip = nn.Conv2d(i, o, 1, stride, bias=False, groups=groups)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(y)) + self.skip(x), inplace=True)


def residual_stages(channels: int, width: int, networks: int = 1) -> nn.Sequential:
    """Images of `channels` channels -> a map of 4 w channels at a quarter of the size: a stem, then blocks of w, 2w, 4w.

    All widths are those of one of `networks` networks; see `Block`.
    """
    return nn.Sequential(
        nn.Conv2d(networks * channels, networks * width, 3, 1, 1, bias=False, groups=networks),
        nn.BatchNorm2d(networks * width),
        nn.ReLU(inplace=True),
        Block(width, width, 1, networks),
        Block(width, 2 * width, 2, networks),
        Block(2 * width, 4 * width, 2, networks),
    )


class ClassifierNetwork(nn.Module):
    """Three stages of width w, 2w, 4w, global average pooling, a `dim`-wide feature layer, class logits."""

    def __init__(self, width: int, dim: int, dropout: float, spec: DatasetSpec) -> None:
        super().__init__()
        self.stages = residual_stages(spec.image_shape[0], width)
        self.to_features = nn.Linear(4 * width, dim)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(dim, spec.num_classes)

    def features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """The layer before the logits, images in [-1, 1]."""
        return F.relu(self.to_features(self.stages(x).mean((2, 3))))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        return self.head(self.dropout(self.features(x)))


class FeatureLayer(nn.Module):
    """A classifier's network up to the layer before its logits, as the gate's extractor."""

    def __init__(self, network: ClassifierNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        return self.network.features(x)


class Classifier(pl.LightningModule):
    """Cross-entropy (soft labels if mixup is on), AdamW, one-cycle; random numbers keyed by (seed, step).

    Args:
        config: its settings.
        spec: image shape and classes.
        seed: of the weights' start and of every draw.
        augment: what leaves the class unchanged; None trains on the images as they are.
        mixup: alpha of mixup (Zhang et al. 2018), 0 is off.
        dim: width of the feature layer.
    """

    def __init__(
        self,
        config: ClassifierConfig,
        spec: DatasetSpec,
        seed: int,
        augment: AugmentConfig | None = None,
        mixup: float = 0.0,
        dim: int = 64,
    ) -> None:
        super().__init__()
        self.config, self.spec, self.seed, self.augment, self.mixup, self.step = config, spec, seed, augment, mixup, 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = ClassifierNetwork(config.width, dim, config.dropout, spec)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Keys dropout by the step."""
        randomness.seed_layers(self.seed, "classifier/layers", self.step, self.device.type)

    def training_step(self, batch: tuple[Float[Tensor, "b c h w"], Int64[Tensor, " b"]], batch_idx: int) -> Tensor:
        """Mean cross-entropy in nats."""
        images, labels = batch
        draws = randomness.stream(self.seed, "classifier/augment", self.step)
        self.step += 1
        if self.augment is not None:
            images = augmented(images, draws, self.augment)
        if not self.mixup:
            return F.cross_entropy(self.network(images), labels)
        share = float(draws.beta(self.mixup, self.mixup))
        partner = torch.from_numpy(draws.permutation(len(images))).to(images.device)
        logits = self.network(share * images + (1 - share) * images[partner])
        return share * F.cross_entropy(logits, labels) + (1 - share) * F.cross_entropy(logits, labels[partner])

    def configure_optimizers(self) -> Any:
        return one_cycle(self.network, self.config)


def one_cycle(network: nn.Module, config: ClassifierConfig) -> dict[str, Any]:
    """AdamW under a one-cycle schedule (Smith & Topin 2018), as Lightning takes it."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
    rising = 0.2 if config.steps != 4 else 0.4  # 0.2 of 5 steps is one, and OneCycleLR divides by one less
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=config.steps + 1, pct_start=rising)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@torch.no_grad()
def probabilities(
    network: nn.Module, images: UInt8[np.ndarray, "n c h w"], device: str = "cpu", chunk: int = 500
) -> Float[np.ndarray, "n k"]:
    """Class probabilities of uint8 images, float32, in chunks; the network stays on `device`, in eval mode."""
    network.eval().to(device)
    starts = range(0, len(images), chunk)
    parts = [network(to_float(images[i : i + chunk]).to(device)).softmax(1).cpu().numpy() for i in starts]
    return np.concatenate(parts).astype(np.float32)
