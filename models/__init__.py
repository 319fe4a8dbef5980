"""Generators and the classifier, as LightningModules. Import this package as `synthgen.models`."""

from __future__ import annotations

from synthgen.config.schema import AugmentConfig, DiffusionConfig, GANConfig, GeneratorConfig, VAEConfig
from synthgen.errors import CheckpointError
from synthgen.models import base
from synthgen.models.base import Generator, Noise
from synthgen.models.classifier import Classifier
from synthgen.models.diffusion import Diffusion
from synthgen.models.gan import GAN
from synthgen.models.vae import VAE
from synthgen.types import DatasetSpec

__all__ = ["GAN", "MODELS", "VAE", "Classifier", "Diffusion", "Generator", "Noise", "build", "from_bytes"]

MODELS: dict[str, tuple[type[Generator], type[GeneratorConfig]]] = {
    "vae": (VAE, VAEConfig),
    "gan": (GAN, GANConfig),
    "diffusion": (Diffusion, DiffusionConfig),
}


def build(config: GeneratorConfig, spec: DatasetSpec, augment: AugmentConfig, seed: int = 0) -> Generator:
    """A generator with fresh weights, fixed by `seed`."""
    import torch

    model, _ = MODELS[config.kind]  # type: ignore[attr-defined]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model(config, spec, augment, seed)


def from_bytes(data: bytes, where: str = "checkpoint") -> Generator:
    """A generator, ready to sample, from the bytes of a checkpoint.

    Raises:
        CheckpointError: not a synthgen checkpoint, damaged, or of an unknown kind of generator.
    """
    about = base.read_header(data, where)
    if about["kind"] not in MODELS:
        raise CheckpointError(f"{where}: holds a {about['kind']!r}, known are {', '.join(MODELS)}")
    _, config = MODELS[about["kind"]]
    try:
        settings, augment = config.model_validate(about["config"]), AugmentConfig.model_validate(about["augment"])
        generator = build(settings, DatasetSpec.from_json(about["spec"], where), augment, int(about["seed"]))
    except (ValueError, KeyError) as error:
        raise CheckpointError(
            f"{where}: its header is damaged, or of another version ({' '.join(str(error).split())[:200]})"
        ) from error
    base.load_weights(generator, data, where)
    generator.step = about["steps"]
    return generator.eval()


if __name__ != "synthgen.models":
    raise ImportError(f"this package is synthgen.models, imported here as {__name__!r}; `from synthgen import models`")
