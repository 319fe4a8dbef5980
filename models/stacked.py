"""Several classifiers trained side by side in one pass: grouped convolutions, one optimiser, each with its own numbers.

Small networks on small images leave a processor waiting for the next call. Side by side, ten of them make one call of
ten times the work: network i is group i of every convolution and row i of every linear layer, batch norm is per channel
anyway and AdamW per weight, so each trains as if it were alone (up to rounding: convolutions of another shape add up in
another order). The same as `torch.func.stack_module_state` under `vmap`, which turns convolutions into grouped ones too
but keeps their inputs contiguous: on the CPU that costs half of the gain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synthgen.config.schema import AugmentConfig, ClassifierConfig
from synthgen.data.mixing import cutmix, mixup, smote
from synthgen.data.policies import POLICIES
from synthgen.data.stacks import StackBatch
from synthgen.data.transforms import to_float
from synthgen.models.classifier import Block, ClassifierNetwork, one_cycle, residual_stages
from synthgen.randomness import stream
from synthgen.shapes import Float, UInt8
from synthgen.types import DatasetSpec

FEATURES = 64
"""Width of the layer before the logits."""


class StackedLinear(nn.Module):
    """One linear layer a network: (s, b, i) -> (s, b, o)."""

    def __init__(self, networks: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(networks, outputs, inputs))
        self.bias = nn.Parameter(torch.empty(networks, 1, outputs))

    def forward(self, x: Float[Tensor, "s b i"]) -> Float[Tensor, "s b o"]:
        return torch.baddbmm(self.bias, x, self.weight.transpose(1, 2))


class SideBySide(nn.Module):
    """Classifiers that `StackedClassifier` trains in one pass: a feature layer of each, and a linear head.

    Attributes:
        networks: how many.
        spec: image shape and classes.
    """

    networks: int
    spec: DatasetSpec
    head: StackedLinear

    def features(self, x: Float[Tensor, "s b c h w"]) -> Float[Tensor, "s b d"]:
        """The layer before the logits, images in [-1, 1]."""
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "s b c h w"]) -> Float[Tensor, "s b k"]:
        return self.head(self.features(x))


class StackedNetwork(SideBySide):
    """`ClassifierNetwork`s side by side, without dropout (see `StackedClassifier`).

    Args:
        networks: how many.
        width: of each.
        spec: image shape and classes.
        dim: width of the feature layer.
        depth: residual blocks at each resolution; 1 is `ClassifierNetwork`.
    """

    def __init__(self, networks: int, width: int, spec: DatasetSpec, dim: int = FEATURES, depth: int = 1) -> None:
        super().__init__()
        self.networks, self.spec, self.width, self.dim, self.depth = networks, spec, width, dim, depth
        self.stages = deep_stages(spec.image_shape[0], width, depth, networks)
        self.to_features = StackedLinear(networks, 4 * width, dim)
        self.head = StackedLinear(networks, dim, spec.num_classes)

    def features(self, x: Float[Tensor, "s b c h w"]) -> Float[Tensor, "s b d"]:
        """The layer before the logits, images in [-1, 1]."""
        s, b, c, h, w = x.shape
        side_by_side = x.transpose(0, 1).reshape(b, s * c, h, w).contiguous(memory_format=torch.channels_last)
        pooled = self.stages(side_by_side).mean((2, 3)).reshape(b, s, 4 * self.width).transpose(0, 1)
        return F.relu(self.to_features(pooled))

    def put(self, number: int, state: Mapping[str, Tensor]) -> None:
        """Gives network `number` the weights of a `ClassifierNetwork`, or those of them that `state` has.

        Raises:
            RuntimeError: a weight of another shape.
        """
        own = self.state_dict()
        for name, value in state.items():
            if name.endswith("num_batches_tracked"):
                continue
            with torch.no_grad():
                self._slice(name, own[name], number).copy_(value.reshape(self._slice(name, own[name], number).shape))

    def get(self, number: int) -> dict[str, Tensor]:
        """The weights of network `number`, as a `ClassifierNetwork` has them."""
        shapes = {name: value.shape for name, value in _single(self).state_dict().items()}
        own = self.state_dict()
        return {
            name: own[name].clone()
            if name.endswith("num_batches_tracked")
            else self._slice(name, own[name], number).reshape(shape).clone(memory_format=torch.contiguous_format)
            for name, shape in shapes.items()
        }

    def _slice(self, name: str, stacked: Tensor, number: int) -> Tensor:
        if not name.startswith("stages."):
            return stacked[number]
        size = len(stacked) // self.networks
        return stacked[number * size : (number + 1) * size]


def deep_stages(channels: int, width: int, depth: int, networks: int) -> nn.Sequential:
    """`residual_stages`, with `depth` blocks at each resolution instead of one."""
    stem_and_blocks = list(residual_stages(channels, width, networks))
    stages = stem_and_blocks[:3]
    for block, channels in zip(stem_and_blocks[3:], (width, 2 * width, 4 * width), strict=True):
        stages += [block, *(Block(channels, channels, 1, networks) for _ in range(depth - 1))]
    return nn.Sequential(*stages)


def channels_last(network: StackedNetwork) -> StackedNetwork:
    """Convolution weights in the layout that grouped convolutions are fastest in."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _single(network: StackedNetwork) -> ClassifierNetwork:
    single = ClassifierNetwork(network.width, network.dim, 0.0, network.spec)
    if network.depth > 1:
        single.stages = deep_stages(network.spec.image_shape[0], network.width, network.depth, 1)
    return single


@dataclass(frozen=True)
class Training:
    """How a stack is trained, beyond `ClassifierConfig`.

    Attributes:
        policy: of `data.policies.POLICIES`, or "" for the images as they are.
        strength: of the policy; 1 is its usual one.
        mixing: "", mixup, cutmix or smote.
        alpha: of mixup's and cutmix's Beta distribution; share of the images that smote replaces.
        smoothing: label smoothing (Szegedy et al. 2016).
        dropout: before the logits; None takes that of `ClassifierConfig`.
        weight_decay: of AdamW; None takes that of `ClassifierConfig`.
        lr: factor on the learning rate.
        confidence: FixMatch's threshold (Sohn et al. 2020); used where batches hold unlabelled images.
        width: of the first stage; None takes that of `ClassifierConfig`.
        depth: residual blocks at each resolution.
    """

    policy: str = "standard"
    strength: float = 1.0
    mixing: str = ""
    alpha: float = 0.3
    smoothing: float = 0.0
    dropout: float | None = None
    weight_decay: float | None = None
    lr: float = 1.0
    confidence: float = 0.95
    width: int | None = None
    depth: int = 1


class StackedClassifier(pl.LightningModule):
    """Cross-entropy with soft targets, AdamW, one-cycle, for several networks; random numbers keyed by (network's seed, step).

    Args:
        config: width, steps, learning rate, ...
        spec: image shape and classes.
        seeds: one for each network, of its first weights and of all its draws.
        augment: the largest changes of the augmentation.
        training: see `Training`.
        start: a network's weights (all or some of `ClassifierNetwork`'s) for each, put over the fresh ones.
    """

    def __init__(
        self,
        config: ClassifierConfig,
        spec: DatasetSpec,
        seeds: Sequence[int],
        augment: AugmentConfig,
        training: Training,
        start: Sequence[Mapping[str, Tensor]] | None = None,
    ) -> None:
        super().__init__()
        settings = {"lr": config.lr * training.lr}
        if training.weight_decay is not None:
            settings["weight_decay"] = training.weight_decay
        self.config = config.model_copy(update=settings)
        self.dropout = config.dropout if training.dropout is None else training.dropout
        self.spec, self.seeds, self.augment, self.training_settings, self.step = spec, tuple(seeds), augment, training, 0
        self.network = self._fresh(start)

    def _fresh(self, start: Sequence[Mapping[str, Tensor]] | None) -> StackedNetwork:
        """Fresh networks, each of its seed alone, with the given weights over them."""
        width = self.training_settings.width or self.config.width
        network = StackedNetwork(len(self.seeds), width, self.spec, depth=self.training_settings.depth)
        for number, seed in enumerate(self.seeds):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                network.put(number, _single(network).state_dict())
            if start is not None:
                network.put(number, start[number])
        return channels_last(network)

    def training_step(self, batch: StackBatch, batch_idx: int) -> Tensor:
        """Sum over the networks of each one's mean cross-entropy in nats."""
        draws = [stream(seed, "classifier/step", self.step) for seed in self.seeds]
        self.step += 1
        images, targets = self._mixed(self._augmented(batch.images, draws, self.training_settings.policy), batch.targets, draws)
        if self.training_settings.smoothing:
            targets = torch.lerp(targets, torch.full_like(targets, 1 / targets.shape[2]), self.training_settings.smoothing)
        if batch.unlabelled is None:
            return soft_cross_entropy(self._logits(images, draws), targets).mean(1).sum()
        return self._fixmatch(images, targets, batch.unlabelled, draws)

    def _fixmatch(self, images: Tensor, targets: Tensor, unlabelled: Tensor, draws: list[np.random.Generator]) -> Tensor:
        """FixMatch (Sohn et al. 2020, eq. 3 and 4): the guess on a weakly changed image, where it is sure, is the target of
        the same image strongly changed. One pass for all, so that batch norm sees them together."""
        b, u = images.shape[1], unlabelled.shape[1]
        weak = self._augmented(unlabelled, draws, "standard")
        strong = self._augmented(self._augmented(unlabelled, draws, "randaugment"), draws, "cutout")
        logits = self._logits(torch.cat([images, weak, strong], dim=1), draws)
        guess = logits[:, b : b + u].detach().softmax(2)
        sure, label = guess.max(2)
        counted = (sure >= self.training_settings.confidence).to(logits.dtype)
        unsupervised = soft_cross_entropy(logits[:, b + u :], F.one_hot(label, guess.shape[2]).to(logits.dtype)) * counted
        return (soft_cross_entropy(logits[:, :b], targets).mean(1) + unsupervised.mean(1)).sum()

    def _augmented(self, images: Tensor, draws: list[np.random.Generator], policy: str) -> Tensor:
        if not policy:
            return images
        return changed(images, draws, policy, self.training_settings.strength, self.augment)

    def _mixed(self, images: Tensor, targets: Tensor, draws: list[np.random.Generator]) -> tuple[Tensor, Tensor]:
        settings, b = self.training_settings, images.shape[1]
        if not settings.mixing:
            return images, targets

        def tensor(rows: list[Any]) -> Tensor:
            return torch.from_numpy(np.stack(rows)).to(images.device)

        if settings.mixing == "smote":
            chosen = [np.where(each.random(b) < settings.alpha, each.random(b), 0).astype(np.float32) for each in draws]
            labels = targets.argmax(2).cpu().numpy()
            partner = [_of_own_class(labels[i], each) for i, each in enumerate(draws)]
            return smote(images, targets, tensor(chosen), tensor(partner))
        share = torch.tensor([each.beta(settings.alpha, settings.alpha) for each in draws], dtype=images.dtype)
        partner = [each.permutation(b) for each in draws]
        if settings.mixing == "mixup":
            return mixup(images, targets, share.to(images.device), tensor(partner))
        centre = tensor([each.random(2, dtype=np.float32) for each in draws])
        return cutmix(images, targets, share.to(images.device), centre, tensor(partner))

    def _logits(self, images: Tensor, draws: list[np.random.Generator]) -> Tensor:
        features = self.network.features(images)
        if self.dropout:
            kept = np.stack([each.random(features.shape[1:], dtype=np.float32) >= self.dropout for each in draws])
            features = features * (torch.from_numpy(kept).to(features.device) / (1 - self.dropout))
        return self.network.head(features)

    def configure_optimizers(self) -> Any:
        return one_cycle(self.network, self.config)


def changed(
    images: Float[Tensor, "s b c h w"], draws: Sequence[np.random.Generator], policy: str, strength: float, config: AugmentConfig
) -> Float[Tensor, "s b c h w"]:
    """Every network's images under a policy of `POLICIES`, each network's by its own numbers, in one call."""
    chosen = POLICIES[policy]
    uniform = np.concatenate([each.random((chosen.NUMBERS, images.shape[1]), dtype=np.float32) for each in draws], axis=1)
    return chosen.apply(images.flatten(0, 1), uniform, strength, config).reshape(images.shape)


def _of_own_class(labels: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    """For each row another row of the same label (itself where it is alone)."""
    order = np.lexsort((draws.random(len(labels)), labels))
    sizes = np.unique(labels[order], return_counts=True)[1]
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    following = starts + (np.arange(len(labels)) - starts + 1) % np.repeat(sizes, sizes)
    partner = np.empty(len(labels), np.int64)
    partner[order] = order[following]
    return partner


def soft_cross_entropy(logits: Float[Tensor, "s b k"], targets: Float[Tensor, "s b k"]) -> Float[Tensor, "s b"]:
    """Cross-entropy in nats of each image of each network."""
    return -(targets * logits.log_softmax(2)).sum(2)


@torch.no_grad()
def stacked_probabilities(
    network: SideBySide, images: UInt8[np.ndarray, "n c h w"], device: str = "cpu", chunk: int = 250
) -> Float[np.ndarray, "s n k"]:
    """Class probabilities of the same uint8 images by every network, float32; the stack stays on `device`, in eval mode."""
    network.eval().to(device)
    parts = []
    for start in range(0, len(images), chunk):
        batch = to_float(images[start : start + chunk]).to(device)
        parts.append(network(batch.expand(network.networks, *batch.shape)).softmax(2).float().cpu().numpy())
    if not parts:
        return np.zeros((network.networks, 0, network.spec.num_classes), np.float32)
    return np.concatenate(parts, axis=1)
