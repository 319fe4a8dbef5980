"""The denoiser: a diffusers UNet2DModel under a preconditioning, conditioned on label and augmentation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from synthgen.config.generators import DiffusionConfig
from synthgen.errors import ConfigError
from synthgen.models import preconditioning
from synthgen.models.augmentation import NUM_PARAMETERS
from synthgen.models.blocks import group_norm
from synthgen.models.preconditioning import Coefficients
from synthgen.shapes import Float, Int64
from synthgen.types import DatasetSpec


class Denoiser(nn.Module):
    """D(x; sigma, label, augmentation): the clean image that x = y + sigma n most likely came from.

    Attributes:
        objective: row of the table of preconditionings.
        null_label: label that stands for "not told".
        levels: of a discrete-time model, the sigma of each timestep; else empty.
    """

    levels: Tensor

    def __init__(self, config: DiffusionConfig, spec: DatasetSpec, structure: Mapping[str, Any]) -> None:
        super().__init__()
        self.objective: str = structure.get("objective", config.objective)
        self.sigma_data = config.sigma_data
        self.null_label = spec.num_classes
        shape = own_shape(config) | dict(structure.get("unet", {}))
        channels, height, width = spec.image_shape
        check_halvings(shape["block_out_channels"], height)
        self.unet = unet = cast(Any, UNet2DModel)(
            **shape, sample_size=(height, width), in_channels=channels, out_channels=channels, class_embed_type="identity"
        )
        embedding = unet.time_embedding.linear_2.out_features
        self.label = nn.Embedding(spec.num_classes + 1, embedding)
        self.augmentation = nn.Linear(NUM_PARAMETERS, embedding, bias=False)
        nn.init.zeros_(unet.conv_out.weight)
        nn.init.zeros_(unet.conv_out.bias)
        self.register_buffer("levels", torch.tensor(structure.get("levels", []), dtype=torch.float32))

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        sigma: Float[Tensor, " b"],
        labels: Int64[Tensor, " b"],
        parameters: Float[Tensor, "b p"],
    ) -> Float[Tensor, "b c h w"]:
        c = self.coefficients(sigma)
        condition = self.label(labels) + self.augmentation(parameters)
        out = self.unet(_each(c.into) * x, c.noise, class_labels=condition, return_dict=False)[0]
        return _each(c.skip) * x + _each(c.out) * out.to(x.dtype)

    def coefficients(self, sigma: Float[Tensor, " b"]) -> Coefficients:
        """The preconditioning at these noise levels."""
        if self.objective == "edm":
            return preconditioning.edm(sigma, self.sigma_data)
        if self.objective == "flow":
            return preconditioning.flow(sigma)
        return preconditioning.DISCRETE[self.objective](sigma, preconditioning.timestep_of(sigma, self.levels))


def own_shape(config: DiffusionConfig) -> dict[str, Any]:
    """Arguments of UNet2DModel that the settings stand for."""
    ladder = [config.width * m for m in config.channel_mults]
    attention = [config.attention and level == len(ladder) - 1 for level in range(len(ladder))]
    return {
        "down_block_types": tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        "up_block_types": tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
        "block_out_channels": tuple(ladder),
        "layers_per_block": config.layers,
        "norm_num_groups": group_norm(math.gcd(*ladder)).num_groups,
        "dropout": config.dropout,
        "add_attention": config.attention,
    }


def check_halvings(ladder: Any, size_px: int) -> None:
    """Refuses more resolutions than the images have.

    Raises:
        ConfigError: the image size can't be halved that often.
    """
    halvings = len(ladder) - 1
    if size_px % 2**halvings or size_px >> halvings < 2:
        raise ConfigError(
            f"generators.diffusion.channel_mults: {len(ladder)} resolutions, and {size_px} px can't be halved so often; "
            "give fewer"
        )


def _each(x: Float[Tensor, " b"]) -> Float[Tensor, "b 1 1 1"]:
    return x[:, None, None, None]
