"""Class-conditional diffusion and flow matching: one network, one loss, every sampler.

Karras, Aittala, Aila and Laine 2022, "Elucidating the design space of diffusion-based generative models" (EDM):
preconditioning (table 1), sigma distribution and loss weight (section 5), augmentation conditioning (appendix F.2).
Flow matching: Lipman et al. 2023, with times drawn as Esser et al. 2024. Guidance: Ho and Salimans 2022; within an
interval of noise levels: Kynkäänniemi et al. 2024.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from synthgen import randomness
from synthgen.config.generators import DiffusionConfig
from synthgen.config.schema import AugmentConfig
from synthgen.models.augmentation import NUM_PARAMETERS, non_leaking
from synthgen.models.base import Generator, Noise, put
from synthgen.models.ema import EMA
from synthgen.models.samplers import SAMPLERS, SPACINGS, diffusers_scheduler, with_scheduler
from synthgen.models.unet import Denoiser
from synthgen.shapes import Float, Int64
from synthgen.types import DatasetSpec

HELD_OUT_LEVELS = 8
"""Noise levels at which the held-out loss is taken: the middles of equally likely parts of training's distribution."""


class Diffusion(Generator):
    """Trains the denoiser; samples solve the probability-flow ODE from noise."""

    kind: ClassVar[str] = "diffusion"
    Config = DiffusionConfig
    sampling_settings = (
        "sampler", "sampling_steps", "spacing", "guidance", "guidance_interval", "sigma_min", "sigma_max", "compile",
    )  # fmt: skip

    def __init__(
        self,
        config: DiffusionConfig,
        spec: DatasetSpec,
        augment: AugmentConfig,
        seed: int = 0,
        structure: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(config, spec, augment, seed, structure)
        self.config: DiffusionConfig = config
        self.network: Any = Denoiser(config, spec, self.structure)
        self.ema = EMA(self.network, config.ema)

    @property
    def sampler(self) -> str:
        c = self.config
        guided = f"{c.guidance}" + (f" in {c.guidance_interval[0]:g}..{c.guidance_interval[1]:g}" if c.guidance_interval else "")
        levels = "" if c.sampler.startswith("diffusers_") else f" {c.spacing} sigma={c.sigma_min}..{c.sigma_max}"
        return f"{c.sampler} steps={c.sampling_steps}{levels} guidance={guided}" + (" compiled" if c.compile else "")

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.config.compile:
            self.network.unet.compile()  # in place: the names of the weights stay

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Weighted denoising error |D(y + sigma n) - y|^2 / c_out(sigma)^2: EDM's lambda(sigma), for flow |v - (n - y)|^2."""
        images, labels = batch
        b, c = len(images), self.config
        y, parameters = non_leaking(images, self.draws("augment"), self.augment, c.augment)
        sigma = (self.normal("sigma", (b,)) * c.p_std + c.p_mean).exp()
        hidden = put(self.draws("label").random(b) < c.label_dropout, self.device)
        labels = torch.where(hidden, self.network.null_label, labels)
        return denoising_loss(self.network, y, sigma, self.normal("noise", tuple(y.shape)), labels, parameters).mean()

    @torch.no_grad()
    def held_out_loss(self, images: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Training's loss of each image, unaugmented, over `HELD_OUT_LEVELS` noise levels.

        Row i's noise at a level is the same at every call, so that two steps of training are compared pair by pair.
        """
        network = cast(Denoiser, self.ema.network)
        quantiles = torch.arange(HELD_OUT_LEVELS, dtype=torch.float64).add(0.5).div(HELD_OUT_LEVELS)
        levels = (torch.special.ndtri(quantiles) * self.config.p_std + self.config.p_mean).exp().tolist()
        rows, none = np.arange(len(images)), images.new_zeros(len(images), NUM_PARAMETERS)
        total = images.new_zeros(len(images))
        for number, level in enumerate(levels):
            noise = randomness.normal(self.seed, f"held-out/{number}", rows, tuple(images.shape[1:]))
            sigma = images.new_full((len(images),), level)
            total += denoising_loss(network, images, sigma, torch.from_numpy(noise).to(images), labels, none)
        return total / HELD_OUT_LEVELS

    def configure_optimizers(self) -> Any:
        return self.adam(self.network.parameters(), self.config.lr)

    @torch.no_grad()
    def sample(self, labels: Int64[Tensor, " b"], noise: Noise) -> Float[Tensor, "b c h w"]:
        c, denoise = self.config, self.denoiser(labels)
        unet = cast(Denoiser, self.ema.network).unet
        if c.compile and unet._compiled_call_impl is None:
            unet.compile()
        first = noise("image", self.spec.image_shape)
        if c.sampler.startswith("diffusers_"):
            return with_scheduler(diffusers_scheduler(c.sampler), denoise, first, c.sampling_steps).clamp(-1, 1)
        sigmas = SPACINGS[c.spacing](c.sampling_steps, c.sigma_min, c.sigma_max)
        return SAMPLERS[c.sampler](denoise, first * sigmas[0], sigmas).clamp(-1, 1)

    def denoiser(self, labels: Int64[Tensor, " b"]) -> Any:
        """denoise(x, sigma) for these labels under the averaged weights, guided as the settings say."""
        c, network = self.config, cast(Denoiser, self.ema.network)
        none = torch.zeros(len(labels), NUM_PARAMETERS, device=labels.device)
        nobody = torch.full_like(labels, network.null_label)

        def denoise(x: Tensor, sigma: float) -> Tensor:
            level = x.new_full((len(x),), sigma)
            guided = network(x, level, labels, none)
            low, high = c.guidance_interval or (0.0, float("inf"))
            if c.guidance == 1 or not low <= sigma <= high:
                return guided
            return torch.lerp(network(x, level, nobody, none), guided, c.guidance)

        return denoise


def denoising_loss(
    network: Denoiser,
    y: Float[Tensor, "b c h w"],
    sigma: Float[Tensor, " b"],
    noise: Float[Tensor, "b c h w"],
    labels: Int64[Tensor, " b"],
    parameters: Float[Tensor, "b p"],
) -> Float[Tensor, " b"]:
    """Mean squared error of each image over its pixels, divided by c_out(sigma)^2."""
    coefficients = network.coefficients(sigma)
    noisy = torch.addcmul(y, sigma[:, None, None, None], noise)
    error = network(noisy, sigma, labels, parameters, coefficients) - y
    return error.square().flatten(1).mean(1) / coefficients.out.square()
