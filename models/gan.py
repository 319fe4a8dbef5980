"""Class-conditional GAN for little data: hinge loss, spectral norm, projection discriminator, DiffAugment, EMA.

Hinge: Lim and Ye 2017. Spectral normalisation: Miyato et al. 2018. Projection: Miyato and Koyama 2018. DiffAugment
(the discriminator sees real and fake through the same random changes, so the generator doesn't learn them): Zhao et
al. 2020.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from synthgen.config.generators import GANConfig
from synthgen.config.schema import AugmentConfig
from synthgen.models.base import Generator, Noise, warm_cosine
from synthgen.models.blocks import Decoder, change_resolution, resolutions, widths
from synthgen.models.ema import EMA
from synthgen.shapes import Float, Int64
from synthgen.types import DatasetSpec


class GeneratorNetwork(nn.Module):
    """Latent and label -> image in [-1, 1]."""

    def __init__(self, config: GANConfig, spec: DatasetSpec) -> None:
        super().__init__()
        embedding = 2 * config.latent_dim
        self.label = nn.Embedding(spec.num_classes, config.latent_dim)
        self.decoder = Decoder(embedding, embedding, config.width, spec.image_shape)

    def forward(self, z: Float[Tensor, "b d"], labels: Int64[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        embedding = torch.cat([z, self.label(labels)], dim=1)
        return self.decoder(embedding, embedding)


class Discriminator(nn.Module):
    """Spectrally normalised residual network; output psi(phi(x)) + <embedding(label), phi(x)>."""

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


class GAN(Generator):
    """Alternates one discriminator and one generator step."""

    kind: ClassVar[str] = "gan"
    Config = GANConfig

    def __init__(
        self, config: GANConfig, spec: DatasetSpec, augment: AugmentConfig, seed: int = 0, structure: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(config, spec, augment, seed, structure)
        self.config: GANConfig = config
        self.automatic_optimization = False
        self.network = GeneratorNetwork(config, spec)
        self.discriminator = Discriminator(config, spec)
        self.ema = EMA(self.network, config.ema)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Hinge losses; returns their sum, which stays near 1 to 2 while the two are balanced."""
        images, labels = batch
        optimizers: Any = self.optimizers()
        for_generator, for_discriminator = optimizers
        b, d = len(images), self.config.latent_dim
        draws = self.draws("diffaugment")

        # discriminator: real above 1, fake below -1
        with torch.no_grad():
            fake = self.network(self.normal("latent/discriminator", (b, d)), labels)
        pair, twice = self._diffaugment(torch.cat([images, fake]), draws), torch.cat([labels, labels])
        on_real, on_fake = self.discriminator(pair, twice).chunk(2)
        discriminator_loss = F.relu(1 - on_real).mean() + F.relu(1 + on_fake).mean()
        for_discriminator.zero_grad()
        self.manual_backward(discriminator_loss)
        for_discriminator.step()

        # generator: fake up
        self.discriminator.requires_grad_(False)
        fake = self._diffaugment(self.network(self.normal("latent/generator", (b, d)), labels), draws)
        generator_loss = -self.discriminator(fake, labels).mean()
        for_generator.zero_grad()
        self.manual_backward(generator_loss)
        for_generator.step()
        self.discriminator.requires_grad_(True)

        schedules: Any = self.lr_schedulers()
        for schedule in schedules:
            schedule.step()
        return (discriminator_loss + generator_loss).detach()

    def _diffaugment(self, x: Tensor, draws: np.random.Generator) -> Tensor:
        return diffaugment(x, draws, self.config.diffaugment)

    def configure_optimizers(self) -> Any:
        pairs = ((self.network, self.config.lr), (self.discriminator, self.config.lr_discriminator))
        optimizers = [torch.optim.Adam(net.parameters(), lr=lr, betas=(0.0, 0.9), fused=True) for net, lr in pairs]
        schedules = [torch.optim.lr_scheduler.LambdaLR(o, warm_cosine(self.config.steps)) for o in optimizers]
        return optimizers, schedules

    @torch.no_grad()
    def sample(self, labels: Int64[Tensor, " b"], noise: Noise) -> Float[Tensor, "b c h w"]:
        return self.ema.network(noise("latent", (self.config.latent_dim,)), labels)


def diffaugment(x: Float[Tensor, "b c h w"], draws: np.random.Generator, policy: tuple[str, ...]) -> Float[Tensor, "b c h w"]:
    """Differentiable random changes (Zhao et al. 2020): brightness, translation by up to 1/8, cutout of a quarter side."""
    b, _, h, w = x.shape

    def uniform(*shape: int) -> Tensor:
        return torch.from_numpy(draws.random(shape, dtype=np.float32)).to(x.device)

    if "brightness" in policy:
        x = x + (uniform(b, 1, 1, 1) - 0.5)
    if "translation" in policy:
        most = max(1, round(h / 8))
        shift = torch.from_numpy(draws.integers(-most, most + 1, (b, 2))).to(x.device)
        rows = (torch.arange(h, device=x.device) + shift[:, :1] + most).clamp(0, h + 2 * most - 1)
        columns = (torch.arange(w, device=x.device) + shift[:, 1:] + most).clamp(0, w + 2 * most - 1)
        padded = F.pad(x, (most, most, most, most), mode="replicate").permute(0, 2, 3, 1)
        each = torch.arange(b, device=x.device)[:, None, None]
        x = padded[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if "cutout" in policy:
        side = max(1, h // 4)
        corner = torch.from_numpy(draws.integers(-side + 1, [h, w], (b, 2))).to(x.device)
        rows = torch.arange(h, device=x.device) - corner[:, :1]
        columns = torch.arange(w, device=x.device) - corner[:, 1:]
        inside = ((rows >= 0) & (rows < side))[:, :, None] & ((columns >= 0) & (columns < side))[:, None, :]
        x = x * (~inside)[:, None]
    return x
