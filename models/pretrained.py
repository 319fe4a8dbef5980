"""Starting from a trained network: one of ours, or a UNet2DModel of diffusers; what fits is loaded, the rest is listed.

A tensor fits if its name and shape agree. Rows of the label embedding are taken by the classes' names, so another number
or order of classes keeps what is common.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from synthgen.errors import CheckpointError
from synthgen.models import lora
from synthgen.models.base import Generator
from synthgen.models.ema import EMA
from synthgen.models.preconditioning import DISCRETE

LEAST_SHARE = 0.5
"""Share of the network's parameters that must fit; below it, starting there is a mistake in the settings."""

SHAPE = (
    "down_block_types", "up_block_types", "block_out_channels", "layers_per_block", "mid_block_scale_factor",
    "downsample_padding", "downsample_type", "upsample_type", "act_fn", "attention_head_dim", "norm_num_groups",
    "attn_norm_num_groups", "norm_eps", "resnet_time_scale_shift", "add_attention", "center_input_sample",
    "time_embedding_type", "time_embedding_dim", "freq_shift", "flip_sin_to_cos",
)  # fmt: skip
BETAS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")

MOST_STEPS = 100_000
"""Of a scheduler; the usual number is 1,000."""


@dataclass(frozen=True)
class Pretrained:
    """A trained network, wherever it came from.

    Attributes:
        where: what messages call it.
        tensors: its weights, under the names of our network.
        structure: what of the network our settings don't say (see `Generator.structure`).
        class_names: of the rows of its label embeddings; empty if it has none.
        settings: those of its settings that must agree with ours, since the weights mean nothing without them.
        ancestors: see `Generator.ancestors`; it included.
    """

    where: str
    tensors: Mapping[str, Tensor]
    structure: Mapping[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    ancestors: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Start:
    """What training starts from, for the record.

    Attributes:
        loaded: tensors that were taken over.
        fresh: those of our network that weren't, with the reason.
        unused: those of the other network that have no place here.
        classes: classes whose embedding was taken over.
    """

    loaded: int
    fresh: dict[str, str]
    unused: tuple[str, ...]
    classes: tuple[str, ...]


def of_diffusers(unet: Any, scheduler: Mapping[str, Any], where: str) -> Pretrained:
    """A UNet2DModel with the settings of the scheduler that it was trained with.

    Raises:
        CheckpointError: trained with a scheduler whose noise levels aren't known here.
    """
    name = str(scheduler.get("_class_name", ""))
    structure: dict[str, Any] = {"unet": {key: _plain(unet.config[key]) for key in SHAPE if key in unet.config}}
    if unet.config.get("time_embedding_type", "positional") != "positional":
        raise CheckpointError(
            f"{where}: time embedding of type {unet.config['time_embedding_type']!r}; only discrete-time models and flow "
            "matching (positional) can be taken up"
        )
    if name.startswith("FlowMatch"):
        structure["objective"] = "flow"
    elif "beta_schedule" in scheduler:
        alphas = _alphas({key: scheduler[key] for key in BETAS if key in scheduler}, where)
        structure["objective"] = said = scheduler.get("prediction_type", "epsilon")
        if said not in DISCRETE:
            raise CheckpointError(f"{where}: predicts {said!r}; {', '.join(DISCRETE)} and flow matching can be taken up")
        structure["levels"] = ((1 - alphas) / alphas).sqrt().clamp(max=1e4).tolist()
    else:
        raise CheckpointError(f"{where}: the scheduler {name!r} has no beta_schedule; DDPM's kin and FlowMatch can be taken up")
    tensors = {f"unet.{key}": tensor for key, tensor in unet.state_dict().items()}
    rows = tensors.pop("unet.class_embedding.weight", None)
    if rows is None:
        return Pretrained(where, tensors, structure)
    return Pretrained(where, tensors | {"label.weight": rows}, structure, tuple(str(i) for i in range(len(rows))))


def _alphas(settings: dict[str, Any], where: str) -> Tensor:
    """Share of the image at each step of a scheduler; raises CheckpointError for one that can't be."""
    steps = settings.get("num_train_timesteps", 1000)
    if type(steps) is not int or not 1 <= steps <= MOST_STEPS:
        raise CheckpointError(f"{where}: a scheduler of {steps!r} steps; 1 to {MOST_STEPS:,} can be taken up")
    try:
        noising: Any = DDPMScheduler(**settings)
        found: Tensor = noising.alphas_cumprod.double()
    except Exception as error:  # diffusers raises what it likes
        raise CheckpointError(f"{where}: its scheduler can't be built ({' '.join(str(error).split())[:200]})") from error
    return found


def take_up(generator: Generator, trained: Pretrained) -> Start:
    """Fills a fresh generator's network and averages with what fits of a trained one.

    Raises:
        CheckpointError: less than half of the network's parameters fit, or a setting differs that they depend on.
    """
    for name, value in trained.settings.items():
        mine = getattr(generator.config, name)
        if mine != value:
            raise CheckpointError(
                f"{trained.where}: trained with {name}={value!r}, here it is {mine!r}; "
                f"give generators.{generator.kind}.{name}={value}"
            )
    own = generator.network.state_dict()
    taken: dict[str, Tensor] = {}
    fresh: dict[str, str] = {}
    classes: tuple[str, ...] = ()
    for name, tensor in own.items():
        given = trained.tensors.get(name)
        if name == "levels":  # of the structure, not of the weights
            continue
        if given is None:
            fresh[name] = "not in the checkpoint"
        elif name.endswith("label.weight") and given.shape[1:] == tensor.shape[1:]:
            taken[name], classes = _by_name(tensor, given, generator.spec.class_names, trained.class_names)
            if len(classes) < generator.spec.num_classes:
                fresh[name] = f"rows of {generator.spec.num_classes - len(classes)} classes that aren't there"
        elif given.shape != tensor.shape:
            fresh[name] = f"{tuple(tensor.shape)} here, {tuple(given.shape)} there"
        else:
            taken[name] = given.to(tensor)
    share = sum(taken[name].numel() for name in taken) / max(1, sum(tensor.numel() for tensor in own.values()))
    if share < LEAST_SHARE:
        first = next((f"{name} is {why}" for name, why in fresh.items() if "here" in why), "names differ")
        raise CheckpointError(
            f"{trained.where}: only {share:.0%} of the network's weights fit ({first}); give the generator the settings that it "
            "was trained with (width, channel_mults, layers, ...), or another checkpoint"
        )
    generator.network.load_state_dict(own | taken)
    rank = getattr(generator.config, "lora_rank", 0)
    if rank:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator.seed)
            lora.add(generator.network, rank)
        for name, parameter in generator.network.named_parameters():
            plain = name.replace(".parametrizations.weight.original", ".weight")
            if plain in fresh or plain.startswith(("label.", "augmentation.")):
                parameter.requires_grad_(True)
    generator.ema = EMA(generator.network, generator.config.ema)
    generator.ancestors = trained.ancestors
    unused = tuple(name for name in trained.tensors if name not in own)
    return Start(len(taken), fresh, unused, classes)


def _by_name(own: Tensor, given: Tensor, mine: tuple[str, ...], theirs: tuple[str, ...]) -> tuple[Tensor, tuple[str, ...]]:
    """Rows of a label embedding by class name, and of "no label", which is the last where there is one more than classes."""
    rows, found = own.clone(), []
    for number, name in enumerate(mine):
        if name in theirs and theirs.index(name) < len(given):
            rows[number] = given[theirs.index(name)].to(own)
            found.append(name)
    if len(own) == len(mine) + 1 and len(given) == len(theirs) + 1:
        rows[-1] = given[-1].to(own)
    return rows, tuple(found)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
