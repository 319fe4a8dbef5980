"""Network pieces that the VAE, the GAN and the classifier share."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synthgen.shapes import Float


def resolutions(size_px: int, smallest: int = 4) -> list[int]:
    """Side lengths from `size_px` down, halved while even and above `smallest`.

    >>> resolutions(32), resolutions(28), resolutions(8)
    ([32, 16, 8, 4], [28, 14, 7], [8, 4])
    """
    sizes = [size_px]
    while sizes[-1] > smallest and sizes[-1] % 2 == 0:
        sizes.append(sizes[-1] // 2)
    return sizes


def widths(width: int, levels: int, most: int = 4) -> list[int]:
    """Channels of each resolution: doubled at each halving, up to `most` times `width`."""
    return [width * min(2**level, most) for level in range(levels)]


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with groups of 8 channels or more, at most 32 groups; the number of groups divides the channels."""
    groups = max(g for g in range(1, 33) if channels % g == 0 and channels // g >= min(8, channels))
    return nn.GroupNorm(groups, channels)


class FiLM(nn.Module):
    """Feature-wise affine conditioning, y = norm(x) (1 + scale(e)) + shift(e) (Perez et al. 2018)."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.affine = nn.Linear(embedding, 2 * channels)
        nn.init.zeros_(self.affine.weight)
        nn.init.zeros_(self.affine.bias)

    def forward(self, x: Float[Tensor, "b c h w"], embedding: Float[Tensor, "b e"]) -> Float[Tensor, "b c h w"]:
        scale, shift = self.affine(embedding)[:, :, None, None].chunk(2, dim=1)
        return self.norm(x) * (1 + scale) + shift


class ConditionalBlock(nn.Module):
    """Residual block: two FiLM-conditioned 3x3 convolutions, with an optional change of resolution in between."""

    def __init__(self, inputs: int, outputs: int, embedding: int, resample: str = "none") -> None:
        super().__init__()
        self.resample = resample
        self.film1, self.conv1 = FiLM(inputs, embedding), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.film2, self.conv2 = FiLM(outputs, embedding), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"], embedding: Float[Tensor, "b e"]) -> Tensor:
        y = change_resolution(F.silu(self.film1(x, embedding)), self.resample)
        y = self.conv2(F.silu(self.film2(self.conv1(y), embedding)))
        return y + self.skip(change_resolution(x, self.resample))


class Decoder(nn.Module):
    """Flat vector and condition -> image in [-1, 1], up the ladder of resolutions."""

    def __init__(self, inputs: int, embedding: int, width: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        sizes = resolutions(image_shape[1])
        ladder = widths(width, len(sizes))
        self.top = (ladder[-1], sizes[-1], sizes[-1])
        self.stem = nn.Linear(inputs, ladder[-1] * sizes[-1] ** 2)
        self.up = nn.ModuleList(ConditionalBlock(b, a, embedding, "up") for a, b in reversed(list(itertools.pairwise(ladder))))
        last = nn.Conv2d(ladder[0], image_shape[0], 3, padding=1)
        self.head = nn.Sequential(group_norm(ladder[0]), nn.SiLU(), last, nn.Tanh())

    def forward(self, z: Float[Tensor, "b d"], embedding: Float[Tensor, "b e"]) -> Float[Tensor, "b c h w"]:
        x = self.stem(z).unflatten(1, self.top)
        for block in self.up:
            x = block(x, embedding)
        return self.head(x)


def change_resolution(x: Float[Tensor, "b c h w"], resample: str) -> Tensor:
    """ "down" averages 2x2 pixels, "up" repeats them, "none" does nothing."""
    if resample == "down":
        return F.avg_pool2d(x, 2)
    if resample == "up":
        return F.interpolate(x, scale_factor=2.0, mode="nearest")
    return x


def sum_per_image(x: Float[Tensor, "b *rest"]) -> Float[Tensor, " b"]:
    """Sum over all axes but the first."""
    return torch.flatten(x, 1).sum(1)
