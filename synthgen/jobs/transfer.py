"""What the transfer arms start from: networks of another run, or a pre-trained transformer on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from synthgen import extraction, storage
from synthgen.config.schema import FeaturesConfig
from synthgen.errors import CheckpointError
from synthgen.jobs import backbones
from synthgen.jobs.gates import CACHE
from synthgen.jobs.order import Order
from synthgen.jobs.real import Split
from synthgen.metrics import extractors
from synthgen.models.classifier import ClassifierNetwork, FeatureLayer
from synthgen.models.finetuned import Transformer
from synthgen.models.stacked import FEATURES
from synthgen.types import UNLABELLED, Batch

KEY = "gain.transfer"


@dataclass(frozen=True)
class Start:
    """Pre-trained weights.

    Attributes:
        weights: those that fit the study's network, by name; None where none can.
        embed: images -> features (n, d), for the probe.
        note: what was taken up and what wasn't.
        transformer: what is fine-tuned in place of the study's network, or None.
    """

    weights: dict[str, Tensor] | None
    embed: Callable[[np.ndarray], np.ndarray]
    note: str
    transformer: Transformer | None = None


def digest(folder: Path) -> str:
    """Of the weights.

    Raises:
        CheckpointError: neither a features folder of a run nor a transformers folder.
    """
    if (folder / backbones.EXTRACTOR).is_file():
        return backbones.digest(folder, KEY)
    if (folder / "config.json").is_file() and (folder / "model.safetensors").is_file():
        files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))
        return storage.sha256_json({path.name: storage.sha256_file(path) for path in files})
    raise CheckpointError(
        f"{KEY}={folder}: neither a run's features/ folder ({backbones.EXTRACTOR}) nor a transformers folder "
        "(config.json, model.safetensors)"
    )


def read(folder: Path, order: Order, split: Split) -> Start:
    """The weights in `folder`, as far as they fit.

    Raises:
        CheckpointError: no such weights, a network for images of other channels, or one that may have seen the test images:
            of a features/ folder that can be told, of a transformer it can't.
    """
    digest(folder)
    spec = split.spec
    if not (folder / backbones.EXTRACTOR).is_file():
        settings = FeaturesConfig(extractor="dinov2", path=str(folder))
        extractor = extractors.load(settings)
        transform: Any = extractor.network  # the model within its transform
        size_px = transform.size_px
        tuned = Transformer(transform.model, size_px, extractors.IMAGENET_MEAN, extractors.IMAGENET_STD)
        return Start(None, embedding(extractor, order, split), f"a transformer, images at {size_px} px", tuned)
    network = backbones.read(folder, KEY, split)
    found = network.state_dict()
    mine = ClassifierNetwork(order.config.classifier.width, FEATURES, 0.0, spec).state_dict()
    mine = {name: value for name, value in mine.items() if not name.endswith("num_batches_tracked")}  # a scalar fits anything
    fits = {k: v for k, v in found.items() if not k.startswith("head.") and k in mine and v.shape == mine[k].shape}
    if not any(name.startswith("stages.") and fits[name].ndim > 1 for name in fits):
        fits = {}
    left = [name for name in mine if name not in fits]
    note = f"{len(fits)} of {len(mine)} tensors taken up, fresh: {', '.join(left)}"
    extractor = extractors.domain(FeatureLayer(network.eval()), "pre-training")
    return Start(fits or None, embedding(extractor, order, split), note)


def embedding(extractor: extractors.Extractor, order: Order, split: Split) -> Callable[[np.ndarray], np.ndarray]:
    """Images -> features, which are computed once for all arms and seeds: they go into the run's cache, if it may have one."""
    config = order.config.features
    cache = split.folder.parent / CACHE if config.cache else None

    def embed(images: np.ndarray) -> np.ndarray:
        nameless = Batch(images, np.full(len(images), UNLABELLED, np.int64), tuple(map(str, range(len(images)))))
        return extraction.feature_set(extractor, nameless, order.device, config.devices, cache).features

    return embed
