"""Class-conditional discriminators: one for the hinge loss, one for the relativistic loss with gradient penalties.

Both end in a projection (Miyato and Koyama 2018): D(x, y) = psi . phi(x) + e_y . phi(x), with e_y an embedding of the
label.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from synthgen.config.generators import GANConfig
from synthgen.models.blocks import change_resolution, resolutions, widths
from synthgen.shapes import Float, Int64
from synthgen.types import DatasetSpec

SLOPE = 0.2
"""Of the leaky ReLU where there is no normalisation (R3GAN)."""


class SpectralDiscriminator(nn.Module):
    """Residual network whose layers all have spectral norm 1 (Miyato et al. 2018), for the hinge loss."""

    def __init__(self, config: GANConfig, spec: DatasetSpec) -> None:
        super().__init__()
        channels, height, _ = spec.image_shape
        ladder = widths(config.width, len(resolutions(height)))
        self.stem = spectral_norm(nn.Conv2d(channels, ladder[0], 3, padding=1))
        self.conv1 = nn.ModuleList(spectral_norm(nn.Conv2d(a, b, 3, padding=1)) for a, b in itertools.pairwise(ladder))
        self.conv2 = nn.ModuleList(spectral_norm(nn.Conv2d(b, b, 3, padding=1)) for b in ladder[1:])
        self.skip = nn.ModuleList(spectral_norm(nn.Conv2d(a, b, 1)) for a, b in itertools.pairwise(ladder))
        self.out = spectral_norm(nn.Linear(ladder[-1], 1))
        self.label = spectral_norm(nn.Embedding(spec.num_classes, ladder[-1]))

    def forward(self, x: Float[Tensor, "b c h w"], labels: Int64[Tensor, " b"]) -> Float[Tensor, " b"]:
        x = self.stem(x)
        for conv1, conv2, skip in zip(self.conv1, self.conv2, self.skip, strict=True):
            y = conv2(F.leaky_relu(conv1(F.leaky_relu(x, 0.1)), 0.1))
            x = change_resolution(y, "down") + skip(change_resolution(x, "down"))
        phi = F.leaky_relu(x, 0.1).sum((2, 3))
        return self.out(phi)[:, 0] + (self.label(labels) * phi).sum(1)


class FixupBlock(nn.Module):
    """x + conv(act(conv(act(x)))) without normalisation, the second convolution 0 at the start (Zhang et al. 2019, Fixup).

    The first one is scaled down by the root of the number of blocks, so that a step of the optimiser doesn't move the
    output by more the deeper the network is.
    """

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        variance_preserving(self.conv1, SLOPE, blocks**-0.5)
        variance_preserving(self.conv2, SLOPE, 0.0)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x + self.conv2(F.leaky_relu(self.conv1(F.leaky_relu(x, SLOPE)), SLOPE))


class PlainDiscriminator(nn.Module):
    """Residual network without any normalisation, after R3GAN (Huang et al. 2024), for gradient penalties.

    A penalty on the gradient at one image must not depend on the other images or on a norm of the weights. One block a
    resolution, then half of it; at the last each channel is pooled by weights of its own, so that places count.
    """

    def __init__(self, config: GANConfig, spec: DatasetSpec) -> None:
        super().__init__()
        channels, height, _ = spec.image_shape
        sizes = resolutions(height)
        ladder = widths(config.width, len(sizes))
        last = ladder[-1]
        self.stem = nn.Conv2d(channels, ladder[0], 3, padding=1)
        self.blocks = nn.ModuleList(FixupBlock(width, len(ladder)) for width in ladder)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 1, bias=False) for a, b in itertools.pairwise(ladder))
        self.pool = nn.Conv2d(last, last, sizes[-1], groups=last, bias=False)
        self.out = nn.Linear(last, 1)
        self.label = nn.Embedding(spec.num_classes, last)
        for layer in (self.stem, *self.down, self.out):
            variance_preserving(layer, slope=1.0)
        variance_preserving(self.pool, SLOPE)
        nn.init.normal_(self.label.weight, std=last**-0.5)

    def forward(self, x: Float[Tensor, "b c h w"], labels: Int64[Tensor, " b"]) -> Float[Tensor, " b"]:
        x = self.blocks[0](self.stem(x))
        for down, block in zip(self.down, self.blocks[1:], strict=True):
            x = block(down(change_resolution(x, "down")))
        phi = self.pool(F.leaky_relu(x, SLOPE)).flatten(1)
        return self.out(phi)[:, 0] + (self.label(labels) * phi).sum(1)


def variance_preserving(layer: nn.Module, slope: float, gain: float = 1.0) -> None:
    """He initialisation for inputs from a leaky ReLU of that slope (1 is none), times `gain`; no bias at the start."""
    weight, bias = layer.weight, layer.bias
    if not isinstance(weight, Tensor):
        raise TypeError(f"{type(layer).__name__} has no weights")
    nn.init.kaiming_normal_(weight, a=slope)
    with torch.no_grad():
        weight.mul_(gain)
        if isinstance(bias, Tensor):
            bias.zero_()
