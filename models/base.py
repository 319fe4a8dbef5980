"""What every generator is: a LightningModule with a class-conditional `sample`.

A generator knows images and labels as tensors, nothing of files, data sets by name, W&B or the gate.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypedDict

import numpy as np
import pytorch_lightning as pl
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from synthgen import randomness
from synthgen.config.generators import GeneratorConfig
from synthgen.config.schema import AugmentConfig
from synthgen.errors import CheckpointError
from synthgen.models import lora
from synthgen.models.ema import EMA
from synthgen.shapes import Float, Int64
from synthgen.types import DatasetSpec
from synthgen.types.fits import misfit

CHECKPOINT_SCHEMA = "synthgen.generator/2"
MOST_LAYERS = 256
"""Of a network in a checkpoint, at each resolution; ours have 1 to 4."""


def put(array: np.ndarray, device: torch.device | str) -> Tensor:
    """The array as a tensor on a device, without waiting for it: a GPU fetches it from pinned memory in its own time."""
    tensor = torch.from_numpy(array)
    return tensor if torch.device(device).type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


@functools.cache
def keep_freed_memory() -> bool:
    """Whether freed memory now stays with the process, for the next step's tensors: they take a tenth less time so.

    glibc gives large tensors back to the system at once and gets them again as pages to be filled with zeros. Its bounds
    are raised here once, for all threads: 1 GiB may lie free, tensors of up to 32 MiB come from there, and threads share
    one heap. Elsewhere, and where MALLOC_* or GLIBC_TUNABLES say something of their own, nothing is changed.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8  # malloc.h
    return all([mallopt(trim_threshold, 2**30), mallopt(mmap_threshold, 2**25), mallopt(arena_max, 1)])


class Noise:
    """Index-addressed normal noise for one chunk of samples: row r depends on (seed, name, indices[r]) alone."""

    def __init__(self, seed: int, indices: np.ndarray, device: torch.device | str = "cpu") -> None:
        self.seed, self.indices, self.device = seed, indices, device

    def __call__(self, name: str, shape: tuple[int, ...]) -> Float[Tensor, "b *shape"]:
        """Standard normal noise of shape (b, *shape) for what `name` says; the same at every call."""
        return put(randomness.normal(self.seed, f"sample/{name}", self.indices, shape), self.device)


class Generator(pl.LightningModule):
    """The contract: train with Lightning, sample by label and noise, come back from bytes.

    A subclass names its `kind` and its `Config`, sets `network` (all that sampling needs) and `ema` (its averages),
    implements `sample` and `training_step`, and draws every random number of a step from `self.draws(name)`.

    Attributes:
        config: its frozen settings.
        spec: image shape and classes of the data set it was trained on.
        step: training steps done; kept in Lightning's checkpoints, so that a resumed run draws the same numbers.
        structure: what of the network isn't said by `config` (a network that came from elsewhere), as JSON types.
        ancestors: (images' files, split) of what the networks that this one started from were trained on, as digests.
        sampling_settings: keys of `config` that say how to sample and not what the weights are.
    """

    kind: ClassVar[str]
    Config: ClassVar[type[GeneratorConfig]]
    sampling_settings: ClassVar[tuple[str, ...]] = ()
    network: nn.Module
    ema: EMA

    def __init__(
        self,
        config: GeneratorConfig,
        spec: DatasetSpec,
        augment: AugmentConfig,
        seed: int = 0,
        structure: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.config, self.spec, self.augment, self.seed, self.step = config, spec, augment, seed, 0
        self.structure = dict(structure or {})
        self.ancestors: tuple[tuple[str, str], ...] = ()

    # Sampling

    def sample(self, labels: Int64[Tensor, " b"], noise: Noise) -> Float[Tensor, "b c h w"]:
        """One image for each label, in [-1, 1], with the averaged weights."""
        raise TypeError(f"{type(self).__name__} has no sample()")

    @property
    def sampler(self) -> str:
        """Name and settings of the sampler in one line, for provenance."""
        return self.kind

    def held_out_loss(self, images: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"]) -> Float[Tensor, " n"] | None:
        """Loss of each image, in [-1, 1], under the averaged weights; the same random numbers at every call.

        None where a generator has no likelihood or denoising loss to hold out (a GAN).
        """
        return None

    # Training

    def draws(self, name: str) -> np.random.Generator:
        """Random numbers of this training step, fixed by (seed, generator, name, rank, step)."""
        return randomness.stream(self.seed, f"{self.kind}/{name}/{self.global_rank}", self.step)

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Standard normal numbers of this training step, on the module's device."""
        return put(self.draws(name).standard_normal(shape, dtype=np.float32), self.device)

    def on_fit_start(self) -> None:
        keep_freed_memory()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Keys what torch draws inside layers (dropout) by the step: a resumed run then equals an uninterrupted one."""
        randomness.seed_layers(self.seed, f"{self.kind}/layers/{self.global_rank}", self.step, self.device.type)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """The average follows; the step is counted."""
        self.ema.update(self.network)
        self.step += 1

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["synthgen_step"] = self.step

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.step = checkpoint["synthgen_step"]

    def adam(self, parameters: Any, lr: float, betas: tuple[float, float] = (0.9, 0.99)) -> dict[str, Any]:
        """Adam with a short linear warm-up and a cosine decay to a tenth, in Lightning's form."""
        steps = self.config.steps
        optimizer = torch.optim.Adam([p for p in parameters if p.requires_grad], lr=lr, betas=betas, fused=True)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_cosine(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def warm_cosine(steps: int, floor: float = 0.1) -> Callable[[int], float]:
    """Factor on the learning rate: linear from 0 over the first 5% of the steps, then a cosine down to `floor`."""
    warm = max(1, steps // 20)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return floor + (1 - floor) * 0.5 * (1 + float(np.cos(np.pi * min(1.0, (step - warm) / max(1, steps - warm)))))

    return factor


def to_bytes(generator: Generator, trained_on: str = "", source: str = "") -> bytes:
    """A generator as safetensors: the averaged weights, with config and data set inside. Same generator, same bytes.

    Args:
        generator: what to keep.
        trained_on: digest of the split it was trained on, so that it isn't used with another split of the same images.
        source: digest of the images' files that the split was made from.
    """
    state = lora.merged(generator.ema.network)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    about = {
        "schema": CHECKPOINT_SCHEMA,
        "kind": generator.kind,
        # where its start lay is nobody's business, and a low-rank change is part of the weights by now
        "config": generator.config.model_dump(mode="json", exclude={"init_from", "lora_rank"}),
        "augment": generator.augment.model_dump(mode="json"),
        "structure": generator.structure,
        "spec": generator.spec.to_json(),
        "seed": generator.seed,
        "steps": generator.step,
        "trained_on": trained_on,
        "source": source,
        "ancestors": [list(pair) for pair in generator.ancestors],
    }
    return save_tensors(tensors, metadata={"synthgen": json.dumps(about, sort_keys=True)})


def read_header(data: bytes, where: str) -> dict[str, Any]:
    """What a checkpoint says of itself.

    Raises:
        CheckpointError: not safetensors, or not written by synthgen.
    """
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        about: dict[str, Any] = json.loads(header["__metadata__"]["synthgen"])
        schema = about.get("schema")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{where}: not a synthgen checkpoint (safetensors with a synthgen header); train one first"
        ) from error
    if schema != CHECKPOINT_SCHEMA:
        raise CheckpointError(f"{where}: the schema is {schema!r}, expected {CHECKPOINT_SCHEMA!r}; train it again")
    if wrong := misfit(about, _Header) or _endless({**about["config"], **_table(about["structure"].get("unet"))}):
        raise CheckpointError(f"{where}: its header is damaged: {wrong}; train it again")
    return about


def _endless(settings: dict[str, Any]) -> str:
    """A setting by which building the network alone would never end."""
    for name, value in settings.items():
        if ("layers" in name and isinstance(value, int) and value > MOST_LAYERS) or (isinstance(value, list) and len(value) > 64):
            return f"{name} is {str(value)[:40]}"
    return ""


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


class _Header(TypedDict):
    """What a checkpoint says of itself, see `to_bytes`."""

    kind: str
    config: dict[str, Any]
    augment: dict[str, Any]
    structure: dict[str, Any]
    spec: dict[str, Any]
    seed: int
    steps: int
    trained_on: str
    source: str
    ancestors: list[tuple[str, str]]


def check_size(build: Callable[[], Generator], data: bytes, where: str) -> None:
    """A few settings may ask for a network of any size: what has more weights than the checkpoint has bytes isn't built.

    Raises:
        CheckpointError: with both numbers.
    """
    try:
        with torch.device("meta"):
            needed = sum(tensor.numel() for tensor in build().network.state_dict().values())
    except (NotImplementedError, RuntimeError) as error:
        if "overflow" in str(error):  # more bytes than can be counted
            raise CheckpointError(f"{where}: its settings ask for weights without end; train it again") from error
        return  # an installed generator that looks at its weights while it is built
    if needed > len(data):
        raise CheckpointError(f"{where}: its settings ask for {needed:,} weights, and it has {len(data):,} bytes; train it again")


def load_weights(generator: Generator, data: bytes, where: str) -> None:
    """Fills a generator's averaged weights from checkpoint bytes.

    Raises:
        CheckpointError: names or shapes of the tensors differ from the network's, or a weight isn't finite.
    """
    try:
        tensors = load_tensors(data)
        generator.ema.network.load_state_dict(tensors)
    except Exception as error:  # safetensors and torch raise bare exceptions of their own
        raise CheckpointError(f"{where}: damaged, or of another network: {' '.join(str(error).split())[:200]}") from error
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(f"{where}: weights of {broken[0]!r} are not finite; train it again")
