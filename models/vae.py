"""Conditional convolutional VAE with a calibrated decoder: the control that better generators have to beat.

Kingma and Welling 2014; calibrated decoder: Rybkin, Daniilidis and Levine 2021, "Simple and effective VAE training with
calibrated decoders", equation 6: with the optimal shared variance, the reconstruction term is D/2 ln(mean squared
error), so the weight of the KL term needs no tuning.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from synthgen.config.generators import VAEConfig
from synthgen.config.schema import AugmentConfig
from synthgen.models.augmentation import NUM_PARAMETERS, non_leaking
from synthgen.models.base import Generator, Noise
from synthgen.models.blocks import ConditionalBlock, Decoder, resolutions, sum_per_image, widths
from synthgen.models.ema import EMA
from synthgen.shapes import Float, Int64
from synthgen.types import DatasetSpec

LEAST_VARIANCE = 1e-6
"""Of a decoded pixel in [-1, 1], well below the (1/255)^2 of rounding to bytes: keeps the logarithm finite."""


class Condition(nn.Module):
    """Label and augmentation parameters -> embedding."""

    def __init__(self, num_classes: int, embedding: int) -> None:
        super().__init__()
        self.label = nn.Embedding(num_classes, embedding)
        self.augmentation = nn.Linear(NUM_PARAMETERS, embedding, bias=False)

    def forward(self, labels: Int64[Tensor, " b"], parameters: Float[Tensor, "b p"]) -> Float[Tensor, "b e"]:
        return self.label(labels) + self.augmentation(parameters)


class VAENetwork(nn.Module):
    """Encoder and decoder over the same ladder of resolutions, both conditioned by FiLM."""

    def __init__(self, config: VAEConfig, spec: DatasetSpec) -> None:
        super().__init__()
        channels, height, _ = spec.image_shape
        sizes = resolutions(height)
        ladder = widths(config.width, len(sizes))
        embedding = 4 * config.width
        flat = ladder[-1] * sizes[-1] ** 2

        # encoder: image, condition -> mean and log variance of the latent
        self.encoder_condition = Condition(spec.num_classes, embedding)
        self.stem = nn.Conv2d(channels, ladder[0], 3, padding=1)
        self.down = nn.ModuleList(ConditionalBlock(a, b, embedding, "down") for a, b in itertools.pairwise(ladder))
        self.to_latent = nn.Linear(flat, 2 * config.latent_dim)

        # decoder: latent, condition -> mean of the image
        self.decoder_condition = Condition(spec.num_classes, embedding)
        self.decoder = Decoder(config.latent_dim, embedding, config.width, spec.image_shape)

    def encode(self, x: Tensor, labels: Tensor, parameters: Tensor) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]:
        """Mean and log variance of q(z | x, condition)."""
        condition = self.encoder_condition(labels, parameters)
        x = self.stem(x)
        for block in self.down:
            x = block(x, condition)
        mean, logvar = self.to_latent(x.flatten(1)).chunk(2, dim=1)
        return mean, logvar.clamp(-8, 4)

    def decode(self, z: Float[Tensor, "b d"], labels: Tensor, parameters: Tensor) -> Float[Tensor, "b c h w"]:
        """Mean of p(x | z, condition), in [-1, 1]."""
        return self.decoder(z, self.decoder_condition(labels, parameters))


class VAE(Generator):
    """Trains the evidence lower bound; samples decode standard normal latents."""

    kind: ClassVar[str] = "vae"
    Config = VAEConfig

    def __init__(
        self,
        config: VAEConfig,
        spec: DatasetSpec,
        augment: AugmentConfig,
        seed: int = 0,
        structure: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(config, spec, augment, seed, structure)
        self.config: VAEConfig = config
        self.network: Any = VAENetwork(config, spec)
        self.ema = EMA(self.network, config.ema)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Negative evidence lower bound per pixel, up to a constant.

        With free bits, a dimension's KL counts from `free_bits` nats on in the batch's mean (Kingma et al. 2016, "Improved
        variational inference with inverse autoregressive flow", appendix C.8): below, nothing pulls it to the prior.
        """
        images, labels = batch
        x, parameters = non_leaking(images, self.draws("augment"), self.augment, probability=0.5)
        mean, logvar = self.network.encode(x, labels, parameters)
        z = mean + torch.exp(logvar / 2) * self.normal("latent", tuple(mean.shape))
        error = (self.network.decode(z, labels, parameters) - x).square()
        kl = kl_divergence(mean, logvar).mean(0).clamp_min(self.config.free_bits).sum()
        anneal = min(1.0, (self.step + 1) / max(1.0, self.config.warmup * self.config.steps))
        pixels = error[0].numel()
        if self.config.beta == "learned":
            return error.mean().clamp_min(LEAST_VARIANCE).log() / 2 + anneal * kl / pixels
        return sum_per_image(error).mean() / (2 * pixels) + anneal * self.config.beta * kl / pixels

    def configure_optimizers(self) -> Any:
        return self.adam(self.network.parameters(), self.config.lr)

    @torch.no_grad()
    def sample(self, labels: Int64[Tensor, " b"], noise: Noise) -> Float[Tensor, "b c h w"]:
        z = noise("latent", (self.config.latent_dim,))
        return cast(VAENetwork, self.ema.network).decode(z, labels, z.new_zeros(len(labels), NUM_PARAMETERS))

    @torch.no_grad()
    def held_out_loss(self, images: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Negative evidence lower bound of each image, in nats per pixel and channel, KL in full (no free bits).

        One latent an image, drawn with numbers that are fixed by the seed and the image's place: the posterior's mean would
        leave out what its spread costs, and so prefer wide posteriors. The decoder's variance is the best one for the given
        images if beta is learned; else it is beta, for which training maximises this very bound.
        """
        network, pixels = cast(VAENetwork, self.ema.network), images[0].numel()
        none = images.new_zeros(len(images), NUM_PARAMETERS)
        mean, logvar = network.encode(images, labels, none)
        noise = Noise(self.seed, np.arange(len(images)), images.device)("held out", (self.config.latent_dim,))
        decoded = network.decode(mean + torch.exp(logvar / 2) * noise, labels, none)
        variance = None if self.config.beta == "learned" else float(self.config.beta)
        error = sum_per_image((decoded - images).square()) / pixels
        return kl_divergence(mean, logvar).sum(1) / pixels + gaussian_nll(error, variance)


def kl_divergence(mean: Float[Tensor, "b d"], logvar: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
    """KL(N(mean, exp(logvar)) || N(0, 1)) of each dimension in nats."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar)


def gaussian_nll(error: Float[Tensor, " n"], variance: float | None = None) -> Float[Tensor, " n"]:
    """-ln N(x; decoded, variance) of each image in nats per pixel and channel, from its mean squared errors.

    Without a `variance` it is the mean of `error`, which is the most likely one (Rybkin 2021, equation 6).
    """
    v = error.mean().clamp_min(LEAST_VARIANCE) if variance is None else error.new_tensor(variance)
    return (math.log(2 * math.pi) + v.log() + error / v) / 2
