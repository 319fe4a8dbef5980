"""Images -> features in one streaming pass of Lightning's engine, the same bytes on one device and on several; cached.

Images go through the extractor in micro-batches of a fixed size, the last one padded. Several devices share them by
index, micro-batch i to device i mod devices, and their parts are put together in order.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from torch import Tensor
from torch.multiprocessing.spawn import ProcessException, ProcessRaisedException
from torch.utils.data import DataLoader, IterableDataset

from synthgen import storage
from synthgen.errors import ConfigError, DataError, SynthgenError
from synthgen.metrics.extractors import Extractor
from synthgen.metrics.features import check_finite, micro_batches
from synthgen.shapes import Float, UInt8
from synthgen.types import UNLABELLED, Batch, FeatureSet

# Lightning's notes on hardware and on loaders with few workers aren't for our users
for _name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
    logging.getLogger(_name).setLevel(logging.ERROR)

SCHEMA = "synthgen.features/1"
Images = UInt8[np.ndarray, "n c h w"] | Iterable[UInt8[np.ndarray, "b c h w"]]


def extract(
    extractor: Extractor, images: Images, device: str = "cpu", devices: int = 1, keys: Sequence[str] = ()
) -> Float[np.ndarray, "n d"]:
    """Features, float32, of uint8 images in their order; the same bytes for any number of devices.

    One device holds a micro-batch of images and all features; several get the images as an array each, so that an
    iterable is read into memory for them.

    Args:
        extractor: see `synthgen.metrics.extractors`.
        images: one array (a memory map, say), or arrays of images of one shape, however they are cut.
        device: "cpu" or "cuda".
        devices: GPUs, or processes on the CPU.
        keys: of the images, for errors.

    Raises:
        DataError: no images, or features that aren't finite: how many rows, and which.
        ConfigError: more GPUs than there are.
    """
    check_devices(device, devices)
    if isinstance(images, np.ndarray):  # a process without a micro-batch would be started for nothing
        devices = max(1, min(devices, -(-len(images) // extractor.micro_batch)))
    features = _on_one(extractor, images, device) if devices == 1 else _on_several(extractor, images, device, devices)
    check_finite(torch.from_numpy(features), f"features of {extractor.id}", keys)
    return features


def embed(extractor: Extractor, images: UInt8[np.ndarray, "n c h w"], device: str = "cpu") -> Float[np.ndarray, "n d"]:
    """`feature_set` of images that have no labels and no names: their features alone."""
    nameless = Batch(images, np.full(len(images), UNLABELLED, np.int64), tuple(map(str, range(len(images)))))
    return feature_set(extractor, nameless, device).features


def feature_set(
    extractor: Extractor,
    batch: Batch,
    device: str = "cpu",
    devices: int = 1,
    cache: Path | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> FeatureSet:
    """`extract` of a batch, with its labels and keys; taken from `cache` where it holds these images' features.

    An entry is named by (fingerprint of the images, extractor's id, torch's version, model of the device, micro-batch) and
    carries them, and a sha256 of the features: whatever doesn't agree is computed again, and `note` is told if it lies
    under this entry's name.

    Args:
        extractor: see `synthgen.metrics.extractors`.
        batch: at least one image.
        device: "cpu" or "cuda".
        devices: GPUs, or processes on the CPU.
        cache: folder of entries; made if need be. None keeps none.
        note: is handed a line for the user.
    """
    if cache is None:
        features = extract(extractor, batch.images, device, devices, batch.keys)
        return FeatureSet(extractor.id, features, batch.labels, batch.keys)
    about = {
        "schema": SCHEMA,
        "images": fingerprint(batch.images),
        "extractor": extractor.id,
        "torch": torch.__version__,
        "device": _device_model(device),
        "micro_batch": str(extractor.micro_batch),
    }
    path = cache / f"{storage.sha256_json(about)}.safetensors"
    found = _read_entry(path, about, len(batch))
    if isinstance(found, str):
        if path.exists():
            note(f"{path}: {found}; the features are computed again")
        features = extract(extractor, batch.images, device, devices, batch.keys)
        storage.write_bytes(path, save_arrays({"features": features}, {**about, "sha256": _sha256(features)}))
    else:
        features = found
    return FeatureSet(extractor.id, features, batch.labels, batch.keys)


def fingerprint(images: UInt8[np.ndarray, "n c h w"]) -> str:
    """sha256 over shape and pixels; labels and keys aren't in it."""
    digest = hashlib.sha256(f"uint8 {images.shape}\n".encode())
    for start in range(0, len(images), 1024):
        digest.update(np.ascontiguousarray(images[start : start + 1024]).tobytes())
    return digest.hexdigest()


def _device_model(device: str) -> str:
    """What a feature's last bits depend on besides torch: the GPU's model, or the vector instructions that the CPU has."""
    return f"{device} {torch.cuda.get_device_name() if device == 'cuda' else torch.backends.cpu.get_cpu_capability()}"


def check_devices(device: str, devices: int) -> None:
    """Refuses more GPUs than there are.

    Raises:
        ConfigError: with how many there are.
    """
    if device == "cuda" and devices > torch.cuda.device_count():
        raise ConfigError(
            f"features.devices={devices}: torch finds {torch.cuda.device_count()} CUDA devices; give that many at most"
        )


# The pass


class _Pass(pl.LightningModule):
    """Features of this process's micro-batches; several processes leave them in `folder`, one file each."""

    def __init__(self, extractor: Extractor, images: Images, folder: Path | None = None) -> None:
        super().__init__()
        self.network, self.size, self.images, self.folder = extractor.network, extractor.micro_batch, images, folder
        self.threads = torch.get_num_threads()  # their number can change the last bit, and Lightning sets it by itself
        self.parts: list[Tensor] = []

    def predict_dataloader(self) -> DataLoader:
        blocks = _Blocks(self.images, self.size, self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(blocks, batch_size=None, num_workers=0, collate_fn=_as_is)

    def setup(self, stage: str) -> None:
        if self.folder is not None:  # in a process of its own, which has neither
            torch.set_num_threads(self.threads)
            warnings.simplefilter("ignore")

    def predict_step(self, batch: tuple[Tensor, int], batch_idx: int) -> int:
        """The features go to `parts`; what is returned is only how many they are."""
        images, count = batch
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            self.parts.append(self.network(images)[:count].float().cpu())
        return count

    def on_predict_end(self) -> None:
        if self.folder is not None and self.parts:
            data = save_arrays({"features": torch.cat(self.parts).numpy()})
            storage.write_bytes(_part(self.folder, self.trainer.global_rank), data)


class _Blocks(IterableDataset):
    """Micro-batches number rank, rank + world, ... with the count of images in each that aren't padding."""

    def __init__(self, images: Images, size: int, rank: int, world: int) -> None:
        self.images, self.size, self.rank, self.world = images, size, rank, world

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        for block, count in micro_batches(self._arrays(), self.size):
            yield torch.from_numpy(block), count

    def _arrays(self) -> Iterator[np.ndarray]:
        if not isinstance(self.images, np.ndarray):
            yield from self.images
            return
        for start in range(self.rank * self.size, len(self.images), self.world * self.size):
            yield self.images[start : start + self.size]


def _on_one(extractor: Extractor, images: Images, device: str) -> np.ndarray:
    work = _Pass(extractor, images)
    _predict(work, device, 1)
    if not work.parts:
        raise DataError(f"{extractor.id}: no images to take features of")
    return torch.cat(work.parts).numpy()


def _on_several(extractor: Extractor, images: Images, device: str, devices: int) -> np.ndarray:
    """Each process leaves a file with the rows of its micro-batches."""
    images = images if isinstance(images, np.ndarray) else np.concatenate([*images] or [np.empty(0, np.uint8)])
    if not len(images):
        raise DataError(f"{extractor.id}: no images to take features of")
    features: np.ndarray | None = None
    with tempfile.TemporaryDirectory(prefix="synthgen-") as name:
        try:
            _predict(_Pass(extractor, images, Path(name)), device, devices)
        except ProcessRaisedException as error:
            raise _reraised(error, extractor.id) from error
        except ProcessException as error:
            raise SynthgenError(
                f"{extractor.id}: a process was killed ({error}); out of memory? Give features.devices=1"
            ) from error
        owner = np.arange(len(images)) // extractor.micro_batch % devices
        for rank in np.unique(owner):
            part = load_arrays(_part(Path(name), int(rank)).read_bytes())["features"]
            features = np.empty((len(images), part.shape[1]), np.float32) if features is None else features
            features[owner == rank] = part
    assert features is not None
    return features


def _reraised(error: ProcessRaisedException, name: str) -> SynthgenError:
    """What a process raised: only its text comes back, whose last line is "module.Error: message"."""
    kind, _, message = str(error).strip().splitlines()[-1].partition(": ")
    known = {f"{cls.__module__}.{cls.__name__}": cls for cls in SynthgenError.__subclasses__()}
    return known[kind](message) if kind in known else SynthgenError(f"{name}: a process failed with {kind}: {message}")


def _predict(work: _Pass, device: str, devices: int) -> None:
    work.eval()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning)  # advice about loader workers
        warnings.filterwarnings("ignore", category=FutureWarning, module="pytorch_lightning|lightning_fabric")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="pytorch_lightning|lightning_fabric")
        trainer = pl.Trainer(
            accelerator="gpu" if device == "cuda" else "cpu",
            devices=devices,
            strategy="auto" if devices == 1 else "ddp_spawn",  # "ddp" would run the whole command once more a device
            precision="32-true",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        trainer.predict(work, return_predictions=False)
    work.cpu()


def _as_is(batch: Any) -> Any:
    return batch


def _part(folder: Path, rank: int) -> Path:
    return folder / f"part-{rank}.safetensors"


# Cache entries


def _read_entry(path: Path, about: dict[str, str], n: int) -> np.ndarray | str:
    """The features, or what is wrong with the entry."""
    try:
        with safe_open(path, framework="numpy") as file:
            found, features = file.metadata() or {}, file.get_tensor("features")
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        return f"not readable ({error})"
    if {key: value for key, value in found.items() if key != "sha256"} != about:
        return "belongs to other images, another extractor, torch or device"
    if features.dtype != np.float32 or features.ndim != 2 or len(features) != n or _sha256(features) != found.get("sha256"):
        return "is damaged"
    return features


def is_entry(path: Path) -> bool:
    """Whether a cache entry is as it was written."""
    try:
        with safe_open(path, framework="numpy") as file:
            about, features = file.metadata() or {}, file.get_tensor("features")
    except (OSError, SafetensorError, json.JSONDecodeError):
        return False
    return _sha256(features) == about.pop("sha256", "") and storage.sha256_json(about) == path.stem


def _sha256(features: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(features).tobytes()).hexdigest()
