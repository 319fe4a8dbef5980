"""Class-conditional GAN for little data: relativistic loss with R1 and R2, or hinge; DiffAugment, EMA, truncation.

Relativistic pairing loss with zero-centred gradient penalties: Huang, Gokaslan, Kuleshov and Tompkin 2024, "The GAN is
dead; long live the GAN!" (R3GAN). Hinge: Lim and Ye 2017. DiffAugment (the discriminator sees real and fake through the
same random changes, so the generator doesn't learn them): Zhao et al. 2020; with a probability that follows how far the
discriminator overfits: Karras et al. 2020, "Training generative adversarial networks with limited data", section 3.
Mapping network and truncation: Karras et al. 2019 (StyleGAN).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synthgen import randomness
from synthgen.config.generators import GANConfig
from synthgen.config.schema import AugmentConfig
from synthgen.errors import ConfigError
from synthgen.models.base import Generator, Noise, warm_cosine
from synthgen.models.blocks import Decoder
from synthgen.models.discriminators import SLOPE, PlainDiscriminator, SpectralDiscriminator, variance_preserving
from synthgen.models.ema import EMA
from synthgen.shapes import Float, Int64
from synthgen.types import DatasetSpec

ADAPTATION = 0.2
"""Share of the steps in which the probability of adaptive augmentation can go from 0 to 1."""

MEAN_LATENTS = 512
"""Latents that a class's mean of w is taken over: the mean is then off by 4% of w's spread."""


class GeneratorNetwork(nn.Module):
    """Latent and label -> w (a mapping network) -> image in [-1, 1]."""

    def __init__(self, config: GANConfig, spec: DatasetSpec) -> None:
        super().__init__()
        dim = 2 * config.latent_dim
        self.label = nn.Embedding(spec.num_classes, config.latent_dim)
        self.mapping = nn.Sequential(nn.Linear(dim, dim), nn.LeakyReLU(SLOPE), nn.Linear(dim, dim), nn.LeakyReLU(SLOPE))
        variance_preserving(self.mapping[0], 1.0)
        variance_preserving(self.mapping[2], SLOPE)
        self.decoder = Decoder(dim, dim, config.width, spec.image_shape)

    def style(self, z: Float[Tensor, "b d"], labels: Int64[Tensor, " b"]) -> Float[Tensor, "b e"]:
        """w = M(z, y)."""
        return self.mapping(torch.cat([z, self.label(labels)], dim=1))

    def forward(
        self, z: Float[Tensor, "b d"], labels: Int64[Tensor, " b"], factors: Float[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b c h w"]:
        """Images; with `factors` psi, w is drawn towards its class's mean: w' = mean_y + psi (w - mean_y)."""
        w = self.style(z, labels)
        if factors is not None:
            w = torch.lerp(self.mean_style(z, labels), w, factors[:, None])  # lerp by 1 gives w to the last bit
        return self.decoder(w, w)

    def mean_style(self, z: Float[Tensor, "b d"], labels: Int64[Tensor, " b"]) -> Float[Tensor, "b e"]:
        """Mean of w over latents, of each row's class.

        Taken from the weights as they are, so it's that of whichever average is sampled from; a running mean would be
        the trained network's. One class at a time: a product's last bit depends on its shape, and a row must not depend
        on which classes its neighbours have.
        """
        draws = randomness.stream(0, "gan/mean latents").standard_normal((MEAN_LATENTS, z.shape[1]), dtype=np.float32)
        latents, means = torch.from_numpy(draws).to(z), torch.zeros(self.label.num_embeddings, self.decoder.stem.in_features)
        for label in labels.unique().tolist():
            means[label] = self.style(latents, labels.new_full((MEAN_LATENTS,), label)).mean(0)
        return means.to(z)[labels]


class GAN(Generator):
    """Alternates one discriminator and one generator step."""

    kind: ClassVar[str] = "gan"
    Config = GANConfig
    sampling_settings: ClassVar[tuple[str, ...]] = ("truncation",)
    augment_probability: Tensor

    def __init__(
        self,
        config: GANConfig,
        spec: DatasetSpec,
        augment: AugmentConfig,
        seed: int = 0,
        structure: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(config, spec, augment, seed, structure)
        self.config: GANConfig = config
        self.automatic_optimization = False
        _truncation(config, spec)
        self.network: Any = GeneratorNetwork(config, spec)
        self.relativistic = config.loss == "relativistic"
        self.discriminator = (PlainDiscriminator if self.relativistic else SpectralDiscriminator)(config, spec)
        self.ema = EMA(self.network, config.ema)
        self.register_buffer("augment_probability", torch.zeros(()))

    # Training

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """One step of each; returns the sum of their losses without penalties.

        Relativistic: 2 ln 2 = 1.39 while the discriminator can't tell the pairs apart, and larger the surer it is. Hinge:
        1 to 2 while the two are balanced.
        """
        images, labels = batch
        optimizers: Any = self.optimizers()
        for_generator, for_discriminator = optimizers
        draws = self.draws("diffaugment")

        # discriminator: real and fake of a pair have one label
        with torch.no_grad():
            fake = self.network(self._latent("discriminator", labels), labels)
        seen, twice = self._diffaugment(torch.cat([images, fake]), draws), torch.cat([labels, labels])
        if self.relativistic:
            on_real, on_fake, penalty = with_gradient_penalty(self.discriminator, seen, twice)
            discriminator_loss = F.softplus(on_fake - on_real).mean()
            to_minimise = discriminator_loss + self.config.gamma / 2 * penalty
        else:
            on_real, on_fake = self.discriminator(seen, twice).chunk(2)
            to_minimise = discriminator_loss = F.relu(1 - on_real).mean() + F.relu(1 + on_fake).mean()
        for_discriminator.zero_grad()
        self.manual_backward(to_minimise)
        for_discriminator.step()
        self._adapt(on_real.detach(), on_fake.detach())

        # generator: fake above real, or up
        self.discriminator.requires_grad_(False)
        fake = self._diffaugment(self.network(self._latent("generator", labels), labels), draws)
        on_fake = self.discriminator(fake, labels)
        if self.relativistic:
            on_real = self.discriminator(seen[: len(images)].detach(), labels)
            generator_loss = F.softplus(on_real - on_fake).mean()
        else:
            generator_loss = -on_fake.mean()
        for_generator.zero_grad()
        self.manual_backward(generator_loss)
        for_generator.step()
        self.discriminator.requires_grad_(True)

        schedules: Any = self.lr_schedulers()
        for schedule in schedules:
            schedule.step()
        return (discriminator_loss + generator_loss).detach()

    def configure_optimizers(self) -> Any:
        pairs = ((self.network, self.config.lr), (self.discriminator, self.config.lr_discriminator))
        betas = (0.0, 0.99 if self.relativistic else 0.9)
        optimizers = [torch.optim.Adam(net.parameters(), lr=lr, betas=betas, fused=True) for net, lr in pairs]
        schedules = [torch.optim.lr_scheduler.LambdaLR(o, warm_cosine(self.config.steps)) for o in optimizers]
        return optimizers, schedules

    def _latent(self, name: str, labels: Int64[Tensor, " b"]) -> Float[Tensor, "b d"]:
        return self.normal(f"latent/{name}", (len(labels), self.config.latent_dim))

    def _diffaugment(self, x: Tensor, draws: np.random.Generator) -> Tensor:
        probability = None if self.config.adaptive is None else self.augment_probability
        return diffaugment(x, draws, self.config.diffaugment, probability)

    def _adapt(self, on_real: Float[Tensor, " b"], on_fake: Float[Tensor, " b"]) -> None:
        """Moves the probability of augmentation up while the discriminator is surer of real images than the aim, else down.

        Karras et al. 2020, equation 1: r_t = E[sign D(real)]. Of a relativistic discriminator only differences mean
        something, so there r_t = E[sign(D(real) - D(fake))] over pairs: 0 where it guesses, 1 where it's always right.
        """
        if self.config.adaptive is None:
            return
        sure = (on_real - on_fake if self.relativistic else on_real).sign().mean()
        step = 1 / (ADAPTATION * self.config.steps)
        self.augment_probability.add_((sure - self.config.adaptive).sign(), alpha=step).clamp_(0, 1)

    # Sampling

    @property
    def sampler(self) -> str:
        """Name and truncation: `gan truncation=0.7`, one number or one a class."""
        return f"{self.kind} truncation=" + ",".join(f"{psi:g}" for psi in self.config.truncation)

    @torch.no_grad()
    def sample(self, labels: Int64[Tensor, " b"], noise: Noise) -> Float[Tensor, "b c h w"]:
        z = noise("latent", (self.config.latent_dim,))
        factors = _truncation(self.config, self.spec)
        if set(self.config.truncation) == {1.0}:
            return self.ema.network(z, labels)
        return self.ema.network(z, labels, factors.to(z)[labels])


def _truncation(config: GANConfig, spec: DatasetSpec) -> Float[Tensor, " k"]:
    """psi of each class.

    Raises:
        ConfigError: neither one number nor one a class.
    """
    if len(config.truncation) not in (1, spec.num_classes):
        raise ConfigError(
            f"generators.gan.truncation: {len(config.truncation)} numbers for the {spec.num_classes} classes of {spec.name}; "
            "give one number, or one a class"
        )
    return torch.tensor(config.truncation).expand(spec.num_classes)


def with_gradient_penalty(
    discriminator: nn.Module, x: Float[Tensor, "p c h w"], labels: Int64[Tensor, " p"]
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"], Float[Tensor, ""]]:
    """D(real), D(fake) and R1 + R2 of a batch whose first half is real and whose second half is fake.

    R1 = E |grad_x D(real)|^2 (Mescheder et al. 2018) and R2, the same of fake images, summed over pixels in [-1, 1]; with
    respect to what the discriminator sees, so after augmentation. Keeps the graph for a second backward.
    """
    x = x.detach().requires_grad_()
    scores = discriminator(x, labels)
    (gradient,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
    on_real, on_fake = scores.chunk(2)
    return on_real, on_fake, 2 * gradient.square().flatten(1).sum(1).mean()


def diffaugment(
    x: Float[Tensor, "b c h w"], draws: np.random.Generator, policy: tuple[str, ...], probability: Float[Tensor, ""] | None = None
) -> Float[Tensor, "b c h w"]:
    """Differentiable random changes (Zhao et al. 2020): brightness, translation by up to 1/8, cutout of a quarter side.

    With `probability`, each change is done to an image with that probability alone; the number stays on the device.
    """
    b, _, h, w = x.shape

    def uniform(*shape: int) -> Tensor:
        return torch.from_numpy(draws.random(shape, dtype=np.float32)).to(x.device)

    def maybe(changed: Tensor) -> Tensor:
        return changed if probability is None else torch.where(uniform(b, 1, 1, 1) < probability, changed, x)

    if "brightness" in policy:
        x = maybe(x + (uniform(b, 1, 1, 1) - 0.5))
    if "translation" in policy:
        most = max(1, round(h / 8))
        shift = torch.from_numpy(draws.integers(-most, most + 1, (b, 2))).to(x.device)
        rows = (torch.arange(h, device=x.device) + shift[:, :1] + most).clamp(0, h + 2 * most - 1)
        columns = (torch.arange(w, device=x.device) + shift[:, 1:] + most).clamp(0, w + 2 * most - 1)
        padded = F.pad(x, (most, most, most, most), mode="replicate").permute(0, 2, 3, 1)
        each = torch.arange(b, device=x.device)[:, None, None]
        x = maybe(padded[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2))
    if "cutout" in policy:
        side = max(1, h // 4)
        corner = torch.from_numpy(draws.integers(-side + 1, [h, w], (b, 2))).to(x.device)
        rows = torch.arange(h, device=x.device) - corner[:, :1]
        columns = torch.arange(w, device=x.device) - corner[:, 1:]
        inside = ((rows >= 0) & (rows < side))[:, :, None] & ((columns >= 0) & (columns < side))[:, None, :]
        x = maybe(x * (~inside)[:, None])
    return x
