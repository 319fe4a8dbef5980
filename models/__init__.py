"""Generators and the classifier, as LightningModules. Import this package as `synthgen.models`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from synthgen.config import extensions
from synthgen.config.generators import GeneratorConfig
from synthgen.config.schema import AugmentConfig
from synthgen.errors import CheckpointError, ConfigError, SynthgenError
from synthgen.models import base
from synthgen.models.base import Generator, Noise
from synthgen.models.classifier import Classifier
from synthgen.models.diffusion import Diffusion
from synthgen.models.gan import GAN
from synthgen.models.vae import VAE
from synthgen.models.vqvae import VQVAE
from synthgen.types import DatasetSpec

__all__ = ["GAN", "MODELS", "VAE", "VQVAE", "Classifier", "Diffusion", "Generator", "Noise", "build", "find", "from_bytes"]

MODELS: dict[str, type[Generator]] = {model.kind: model for model in (VAE, VQVAE, GAN, Diffusion)}


def find(kind: str) -> type[Generator]:
    """The class of a generator, built in or registered by an installed distribution.

    Raises:
        ConfigError: no such generator, or its distribution is at fault.
    """
    model = MODELS.get(kind) or extensions.class_of(kind)
    if not issubclass(model, Generator):
        raise ConfigError(f"{kind!r}: {model.__module__}.{model.__name__} is no subclass of synthgen.models.Generator")
    return model


def build(
    config: GeneratorConfig,
    spec: DatasetSpec,
    augment: AugmentConfig,
    seed: int = 0,
    structure: Mapping[str, Any] | None = None,
    model: type[Generator] | None = None,
) -> Generator:
    """A generator with fresh weights, fixed by `seed`; `model` is its class where that isn't registered (yet)."""
    model = model or find(config.kind)  # type: ignore[attr-defined]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model(config, spec, augment, seed, structure)


def from_bytes(data: bytes, where: str = "checkpoint", model: type[Generator] | None = None) -> Generator:
    """A generator, ready to sample, from the bytes of a checkpoint; `model` as in `build`.

    Raises:
        CheckpointError: not a synthgen checkpoint, damaged, or of an unknown kind of generator.
    """
    about = base.read_header(data, where)
    try:
        model = model or find(about["kind"])
    except ConfigError as error:
        raise CheckpointError(f"{where}: holds a {about['kind']!r}, which can't be built here: {error}") from error
    try:
        settings, augment = model.Config.model_validate(about["config"]), AugmentConfig.model_validate(about["augment"])
        spec = DatasetSpec.from_json(about["spec"], where)
        make = partial(build, settings, spec, augment, about["seed"], about["structure"], model)
        base.check_size(make, data, where)
        generator = make()
    except SynthgenError:
        raise
    except Exception as error:  # a network of settings that nobody meant fails as it likes
        raise CheckpointError(
            f"{where}: its header is damaged, or of another version ({' '.join(str(error).split())[:200]})"
        ) from error
    base.load_weights(generator, data, where)
    generator.step = about["steps"]
    generator.ancestors = tuple((str(source), str(split)) for source, split in about["ancestors"])
    return generator.eval()


if __name__ != "synthgen.models":
    raise ImportError(f"this package is synthgen.models, imported here as {__name__!r}; `from synthgen import models`")
