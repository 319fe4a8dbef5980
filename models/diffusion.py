"""Class-conditional diffusion: EDM preconditioning on a diffusers UNet2DModel.

Karras, Aittala, Aila and Laine 2022, "Elucidating the design space of diffusion-based generative models" (EDM):
preconditioning (table 1), sigma distribution and loss weight (section 5), augmentation conditioning (appendix F.2).
Guidance: Ho and Salimans 2022.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from synthgen.config.generators import DiffusionConfig
from synthgen.config.schema import AugmentConfig
from synthgen.models.augmentation import NUM_PARAMETERS, non_leaking
from synthgen.models.base import Generator, Noise
from synthgen.models.blocks import group_norm
from synthgen.models.ema import EMA
from synthgen.models.samplers import SAMPLERS, karras_sigmas
from synthgen.shapes import Float, Int64
from synthgen.types import DatasetSpec


class EDMNetwork(nn.Module):
    """The denoiser D(x; sigma, label, augmentation) = c_skip x + c_out F(c_in x; c_noise)."""

    def __init__(self, config: DiffusionConfig, spec: DatasetSpec) -> None:
        super().__init__()
        channels, height, width = spec.image_shape
        ladder = [config.width * m for m in config.channel_mults]
        levels = len(ladder)
        attention = [config.attention and level == levels - 1 for level in range(levels)]
        embedding = 4 * ladder[0]  # what UNet2DModel takes for its time embedding
        self.sigma_data = config.sigma_data
        self.null_label = spec.num_classes
        self.label = nn.Embedding(spec.num_classes + 1, embedding)
        self.augmentation = nn.Linear(NUM_PARAMETERS, embedding, bias=False)
        self.unet = unet = cast(Any, UNet2DModel)(
            sample_size=(height, width),
            in_channels=channels,
            out_channels=channels,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
            block_out_channels=tuple(ladder),
            layers_per_block=config.layers,
            norm_num_groups=group_norm(math.gcd(*ladder)).num_groups,
            dropout=config.dropout,
            add_attention=config.attention,
            class_embed_type="identity",
        )
        nn.init.zeros_(unet.conv_out.weight)
        nn.init.zeros_(unet.conv_out.bias)

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        sigma: Float[Tensor, " b"],
        labels: Int64[Tensor, " b"],
        parameters: Float[Tensor, "b p"],
    ) -> Float[Tensor, "b c h w"]:
        s, d = sigma[:, None, None, None], self.sigma_data
        c_skip = d**2 / (s**2 + d**2)
        c_out = s * d / (s**2 + d**2).sqrt()
        c_in = 1 / (s**2 + d**2).sqrt()
        c_noise = sigma.log() / 4
        condition = self.label(labels) + self.augmentation(parameters)
        # the sinusoidal embedding expects timesteps of the order of hundreds
        out = self.unet(c_in * x, 250 * c_noise, class_labels=condition, return_dict=False)[0]
        return c_skip * x + c_out * out


class Diffusion(Generator):
    """Trains the denoiser; samples solve the probability-flow ODE from noise."""

    kind: ClassVar[str] = "diffusion"
    Config = DiffusionConfig

    def __init__(
        self, config: DiffusionConfig, spec: DatasetSpec, augment: AugmentConfig, seed: int = 0, structure: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(config, spec, augment, seed, structure)
        self.config: DiffusionConfig = config
        self.network: Any = EDMNetwork(config, spec)
        self.ema = EMA(self.network, config.ema)

    @property
    def sampler(self) -> str:
        c = self.config
        return f"{c.sampler} steps={c.sampling_steps} sigma={c.sigma_min}..{c.sigma_max} guidance={c.guidance}"

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Weighted denoising error, lambda(sigma) |D(y + n) - y|^2 with lambda = (sigma^2 + sd^2) / (sigma sd)^2."""
        images, labels = batch
        b, c = len(images), self.config
        y, parameters = non_leaking(images, self.draws("augment"), self.augment, c.augment)
        sigma = (self.normal("sigma", (b,)) * c.p_std + c.p_mean).exp()
        hidden = torch.from_numpy(self.draws("label").random(b) < c.label_dropout).to(self.device)
        labels = torch.where(hidden, self.network.null_label, labels)
        noised = y + sigma[:, None, None, None] * self.normal("noise", tuple(y.shape))
        weight = (sigma**2 + c.sigma_data**2) / (sigma * c.sigma_data) ** 2
        error = (self.network(noised, sigma, labels, parameters) - y).square()
        return (weight[:, None, None, None] * error).mean()

    def configure_optimizers(self) -> Any:
        return self.adam(self.network.parameters(), self.config.lr)

    @torch.no_grad()
    def sample(self, labels: Int64[Tensor, " b"], noise: Noise) -> Float[Tensor, "b c h w"]:
        c, network = self.config, cast(EDMNetwork, self.ema.network)
        first = noise("image", self.spec.image_shape)
        none = first.new_zeros(len(labels), NUM_PARAMETERS)
        nobody = torch.full_like(labels, network.null_label)

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            level = sigma.expand(len(x))
            guided = network(x, level, labels, none)
            if c.guidance == 1:
                return guided
            free = network(x, level, nobody, none)
            return free + c.guidance * (guided - free)

        sigmas = karras_sigmas(c.sampling_steps, c.sigma_min, c.sigma_max).to(first.device)
        return SAMPLERS[c.sampler](denoise, first * sigmas[0], sigmas).clamp(-1, 1)
