"""The denoiser: a diffusers UNet2DModel under a preconditioning, conditioned on label and augmentation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from diffusers import UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
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
        self.unet = unet = cast(Any, UNet)(
            **shape, sample_size=(height, width), in_channels=channels, out_channels=channels, class_embed_type="identity"
        )
        embedding = unet.time_embedding.linear_2.out_features
        self.label = nn.Embedding(spec.num_classes + 1, embedding)
        self.augmentation = nn.Linear(NUM_PARAMETERS, embedding, bias=False)
        nn.init.zeros_(unet.conv_out.weight)
        nn.init.zeros_(unet.conv_out.bias)
        for block in unet.modules():
            if isinstance(block, ResnetBlock2D):
                block.dropout = Dropout(block.dropout.p)
        self.register_buffer("levels", torch.tensor(structure.get("levels", []), dtype=torch.float32))

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        sigma: Float[Tensor, " b"],
        labels: Int64[Tensor, " b"],
        parameters: Float[Tensor, "b p"],
        coefficients: Coefficients | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """`coefficients`: those of sigma, where they are at hand."""
        c = coefficients or self.coefficients(sigma)
        condition = self.label(labels) + self.augmentation(parameters)
        out = self.unet(laid_out(_each(c.into) * x), c.noise, class_labels=condition, return_dict=False)[0]
        return torch.addcmul(_each(c.skip) * x, _each(c.out), out.to(x)).contiguous()

    def _apply(self, fn: Any, recurse: bool = True) -> Denoiser:
        """What moves the weights: beyond a CPU they lie channels last too, or each call would turn them round."""
        super()._apply(fn, recurse)
        if self.label.weight.device.type != "cpu":
            self.unet.to(memory_format=torch.channels_last)
        return self

    def coefficients(self, sigma: Float[Tensor, " b"]) -> Coefficients:
        """The preconditioning at these noise levels."""
        if self.objective == "edm":
            return preconditioning.edm(sigma, self.sigma_data)
        if self.objective == "flow":
            return preconditioning.flow(sigma)
        return preconditioning.DISCRETE[self.objective](sigma, preconditioning.timestep_of(sigma, self.levels))


class UNet(UNet2DModel):
    """UNet2DModel, which asks for its own dtype twice a call: by walking through all of its parameters, a quarter of a ms."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(cast(nn.Module, self).parameters()).dtype


class Dropout(nn.Dropout):
    """Dropout in two fifths of torch's time on a CPU, where torch draws one number of 32 bits an element, one by one.

    Here four elements share a number of 64 bits, from the same generator; the probability is rounded to 1/65,536.
    """

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        if not self.training or not self.p or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        dropped = min(round(self.p * 2**16), 2**16 - 1)
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        keep = bits.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - 2**15
        return x * keep.to(x.dtype).mul_(2**16 / (2**16 - dropped))


def laid_out(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """x in the layout that the network is fastest in: channels last, but for training on a CPU."""
    if torch.is_grad_enabled() and x.device.type == "cpu":
        return x.contiguous()
    # not `contiguous()`: one channel lies both ways, and the layers behind take theirs from the strides
    return torch.empty_like(x, memory_format=torch.channels_last).copy_(x)


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
