"""Generators and the classifier, as LightningModules. Import this package as `synthgen.models`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from synthgen.config.generators import GeneratorConfig
from synthgen.config.schema import AugmentConfig
from synthgen.errors import CheckpointError
from synthgen.models import base
from synthgen.models.base import Generator, Noise
from synthgen.models.classifier import Classifier
from synthgen.models.diffusion import Diffusion
from synthgen.models.gan import GAN
from synthgen.models.vae import VAE
from synthgen.types import DatasetSpec

__all__ = ["GAN", "MODELS", "VAE", "Classifier", "Diffusion", "Generator", "Noise", "build", "from_bytes"]

MODELS: dict[str, type[Generator]] = {model.kind: model for model in (VAE, GAN, Diffusion)}


def build(
    config: GeneratorConfig,
    spec: DatasetSpec,
    augment: AugmentConfig,
    seed: int = 0,
    structure: Mapping[str, Any] | None = None,
) -> Generator:
    """A generator with fresh weights, fixed by `seed`."""
    model = MODELS[config.kind]  # type: ignore[attr-defined]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model(config, spec, augment, seed, structure)


def from_bytes(data: bytes, where: str = "checkpoint") -> Generator:
    """A generator, ready to sample, from the bytes of a checkpoint.

    Raises:
        CheckpointError: not a synthgen checkpoint, damaged, or of an unknown kind of generator.
    """
    about = base.read_header(data, where)
    if about["kind"] not in MODELS:
        raise CheckpointError(f"{where}: holds a {about['kind']!r}, known are {', '.join(MODELS)}")
    model = MODELS[about["kind"]]
    try:
        settings, augment = model.Config.model_validate(about["config"]), AugmentConfig.model_validate(about["augment"])
        spec = DatasetSpec.from_json(about["spec"], where)
        generator = build(settings, spec, augment, int(about["seed"]), about["structure"])
    except (ValueError, KeyError) as error:
        raise CheckpointError(
            f"{where}: its header is damaged, or of another version ({' '.join(str(error).split())[:200]})"
        ) from error
    base.load_weights(generator, data, where)
    generator.step = about["steps"]
    return generator.eval()


if __name__ != "synthgen.models":
    raise ImportError(f"this package is synthgen.models, imported here as {__name__!r}; `from synthgen import models`")
