"""Extractors: networks from uint8 images to features, each with its own resizing and range, and an id that covers both.

Nothing is downloaded: weights come from a local file or from a cache that another tool filled, and their sha256 is
checked before a byte of them is used. A TorchScript file is a program and runs with the rights of this process, so
`inception` takes no file but the one it knows, unless `features.sha256` names another; a file of `torchscript` is the
user's word, which `features.sha256` pins.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from synthgen.config.schema import FeaturesConfig
from synthgen.data.transforms import to_float
from synthgen.errors import ConfigError, DataError
from synthgen.metrics.features import MICRO_BATCH, extractor_id
from synthgen.shapes import Float, UInt8

INCEPTION_FILE = "inception-2015-12-05.pt"
INCEPTION_URL = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
"""Of NVIDIA's file (95,607,719 bytes), as k-diffusion and others pin it."""
STATE_DICT_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""Of pytorch-fid's and torch-fidelity's weights of the same network, which hold no program: refused by name."""

LARGE = 32
"""Images a forward pass of the large networks: about 0.5 GB of activations in Inception at 299 px."""
DINOV2_PX = 224
DINOV2_KINDS = ("dinov2", "dinov2_with_registers")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Extractor:
    """A network with the transform that belongs to it.

    Attributes:
        id: what it is, its transform and the sha256 of its weights; two extractors of one id give the same features.
        network: maps uint8 images, shape (b, c, h, w), to features, shape (b, d).
        micro_batch: images a forward pass; fixed and padded, since a network's last bits change with the batch size.
    """

    id: str
    network: nn.Module
    micro_batch: int = MICRO_BATCH


def domain(network: nn.Module, description: str) -> Extractor:
    """The extractor of a network that was trained on images of this size and these channels, in [-1, 1]."""
    return Extractor(extractor_id(network, description), _InRange(network))


def torchscript(path: Path, sha256: str | None = None, size_px: int | None = None) -> Extractor:
    """Any TorchScript file: RGB float32 in [-1, 1], shape (b, 3, h, w), to features, shape (b, d).

    Grey images are repeated to three channels. With `size_px`, images of another size are resized to it first: bilinear
    with antialiasing (`torch.nn.functional.interpolate`, align_corners=False). The file's code runs with the rights of
    this process.

    Args:
        path: the file.
        sha256: what its sha256 must be; None takes any.
        size_px: height and width that the network sees; None leaves the images as they are.

    Raises:
        ConfigError: no such file, another sha256, or not a TorchScript file.
    """
    data, digest = _checked(path, sha256)
    shown = f"{size_px}px bilinear antialias" if size_px else "native size"
    network = _InRange(_Script(data, str(path)), size_px, rgb=True)
    return Extractor(f"torchscript rgb {shown} [-1,1] sha256:{digest}", network, LARGE)


def inception(path: Path | None = None, sha256: str | None = None) -> Extractor:
    """The pool features, d = 2,048, of the Inception-v3 of 2015 that FID is defined with (Heusel 2017).

    The TorchScript file of NVIDIA's StyleGAN repositories: levels 0 to 255 as RGB (grey is repeated), resized to 299 px
    by the file itself, bilinear as TensorFlow 1 did it, without antialiasing; called with `return_features=True`. With
    `sha256`, any file of that calling convention (a `vgg16.pt`, say).

    Args:
        path: the file; None looks in the caches, see `inception_places`.
        sha256: what its sha256 must be; None is that of the standard file.

    Raises:
        ConfigError: no such file, or another sha256.
    """
    data, digest = _checked(_inception_file(path), sha256 or INCEPTION_SHA256)
    network = _Levels(_Script(data, str(path or INCEPTION_FILE), return_features=True))
    return Extractor(f"inception rgb 299px bilinear in the file [0,255] sha256:{digest}", network, LARGE)


def dinov2(path: str, sha256: str | None = None, size_px: int | None = None) -> Extractor:
    """The class token of DINOv2 after the last layer norm (Oquab 2023), through transformers (`synthgen[dinov2]`).

    RGB (grey is repeated), resized to `size_px`, 224 if not given, bicubic with antialiasing, clamped to 0 to 255, and
    normalised with ImageNet's mean and standard deviation.

    Args:
        path: a folder with config.json and model.safetensors, or a name in the Hugging Face cache
            ("facebook/dinov2-base"); never fetched.
        sha256: what the sha256 of model.safetensors must be; None takes any, since the file holds numbers alone.
        size_px: height and width that the network sees; a multiple of the patch size.

    Raises:
        ConfigError: transformers isn't installed, no such folder, another sha256, or another kind of network.
    """
    folder = _dinov2_folder(path)
    digest = _sha256(folder / "model.safetensors", sha256)
    about = _sha256(folder / "config.json", None)[:12]
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if config.model_type not in DINOV2_KINDS:
            raise ConfigError(f"features.path={path}: holds a {config.model_type!r}, expected {' or '.join(DINOV2_KINDS)}")
        size_px = size_px or DINOV2_PX
        if size_px % config.patch_size:
            raise ConfigError(f"features.size_px={size_px}: not a multiple of this DINOv2's patches of {config.patch_size} px")
        model = transformers.AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
    except ConfigError:
        raise
    except Exception as error:  # transformers and safetensors raise what they like
        raise ConfigError(f"features.path={path}: not readable as a DINOv2 ({_one_line(error)})") from error
    shown = f"dinov2 rgb {size_px}px bicubic antialias imagenet config:{about}"
    return Extractor(f"{shown} sha256:{digest}", _Normalised(model, size_px), LARGE)


def load(config: FeaturesConfig) -> Extractor:
    """The extractor that the settings name, `domain` excepted: that one is a network of the run.

    Raises:
        ConfigError: see `inception`, `dinov2` and `torchscript`.
    """
    if config.extractor == "inception":
        return inception(Path(config.path) if config.path else None, config.sha256)
    if config.extractor == "dinov2":
        return dinov2(config.path or "", config.sha256, config.size_px)
    if config.extractor == "torchscript":
        return torchscript(Path(config.path or ""), config.sha256, config.size_px)
    raise ValueError(f"{config.extractor}: a network of the run, see `domain`")


def check(config: FeaturesConfig) -> str:
    """Whether the extractor's weights are there and are the right ones, without loading them; returns a digest of them.

    "" for `domain`, whose weights the run itself trains. Call it before any compute: it costs reading the file once.

    Raises:
        ConfigError: no such file or folder, another sha256, or transformers isn't installed.
    """
    if config.extractor == "domain":
        return ""
    if config.extractor == "inception":
        return _sha256(_inception_file(Path(config.path) if config.path else None), config.sha256 or INCEPTION_SHA256)
    if config.extractor == "dinov2":
        folder = _dinov2_folder(config.path or "")
        return _sha256(folder / "model.safetensors", config.sha256) + "+" + _sha256(folder / "config.json", None)[:12]
    return _sha256(Path(config.path or ""), config.sha256)


def inception_places() -> list[Path]:
    """Where `inception` looks for its file if no path is given: synthgen's cache, then torch hub's."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return [caches / "synthgen" / INCEPTION_FILE, Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE]


# Transforms


class _InRange(nn.Module):
    """float32 in [-1, 1]; resized bilinearly, and RGB, where asked for."""

    def __init__(self, network: nn.Module, size_px: int | None = None, rgb: bool = False) -> None:
        super().__init__()
        self.network, self.size_px, self.rgb = network, size_px, rgb

    def forward(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        levels = _resized(_rgb(images) if self.rgb else images, self.size_px, "bilinear")
        return self.network(to_float(levels) if levels.dtype == torch.uint8 else levels / 127.5 - 1)


class _Levels(nn.Module):
    """Levels 0 to 255 as RGB, at the images' own size."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        return self.network(_rgb(images))


class _Normalised(nn.Module):
    """Resized bicubically, ImageNet's mean and standard deviation; the pooled output of a transformers model."""

    def __init__(self, model: Any, size_px: int) -> None:
        super().__init__()
        self.model, self.size_px = model, size_px

    def forward(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        levels = _resized(_rgb(images), self.size_px, "bicubic").float()
        mean, std = (levels.new_tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
        return self.model(pixel_values=(levels / 255 - mean) / std).pooler_output


def _rgb(images: UInt8[Tensor, "b c h w"]) -> Tensor:
    """Grey is repeated to three channels."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def _resized(images: Tensor, size_px: int | None, mode: str) -> Tensor:
    """Levels 0 to 255 at size_px x size_px, float32 where they were resized; antialiased."""
    if size_px is None or images.shape[-2:] == (size_px, size_px):
        return images
    return interpolate(images.float(), (size_px, size_px), mode=mode, align_corners=False, antialias=True).clamp(0, 255)


class _Script(nn.Module):
    """A TorchScript network. It is pickled as its file, so that other processes can be given one."""

    def __init__(self, data: bytes, name: str, return_features: bool = False) -> None:
        super().__init__()
        self.data, self.name, self.options = data, name, {"return_features": True} if return_features else {}
        with warnings.catch_warnings():  # torch would have us use torch.export, which can't read these files
            warnings.simplefilter("ignore", DeprecationWarning)
            try:
                self.script = torch.jit.load(io.BytesIO(data), map_location="cpu").eval()
            except (RuntimeError, torch.jit.Error) as error:
                raise ConfigError(f"features.path={name}: not a TorchScript file ({_one_line(error)})") from error

    def __reduce__(self) -> Any:
        return _Script, (self.data, self.name, bool(self.options))

    def forward(self, images: Tensor) -> Float[Tensor, "b d"]:
        try:
            with torch.jit.optimized_execution(False):  # else the first calls run other kernels than the later ones
                features = self.script(images, **self.options)
        except (RuntimeError, torch.jit.Error) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise DataError(f"{self.name}: fails on images of shape {tuple(images.shape)} ({_one_line(error)})") from error
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(images):
            found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise DataError(f"{self.name}: expected features of shape ({len(images)}, d), found {found}")
        return features.float()


# Files


def _checked(path: Path, sha256: str | None) -> tuple[bytes, str]:
    """A file's bytes, the very ones that were hashed, and their sha256."""
    try:
        data = path.expanduser().read_bytes()
    except OSError as error:
        raise ConfigError(f"features.path={path}: can't be read ({error.strerror}); give the path of the weights' file") from None
    return data, _expected(path, hashlib.sha256(data).hexdigest(), sha256)


def _sha256(path: Path, sha256: str | None) -> str:
    """The sha256 of a file, checked; read in pieces."""
    try:
        with open(path.expanduser(), "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"features.path={path}: can't be read ({error.strerror}); give the path of the weights' file") from None
    return _expected(path, found, sha256)


def _expected(path: Path, found: str, sha256: str | None) -> str:
    if sha256 is None or found == sha256:
        return found
    if found == STATE_DICT_SHA256:
        raise ConfigError(
            f"features.path={path}: holds pytorch-fid's weights without their network; get the TorchScript file {INCEPTION_URL}"
        )
    raise ConfigError(
        f"features.path={path}: its sha256 is {found}, expected {sha256}; "
        "get the right file, or set features.sha256 to this one's if you trust it"
    )


def _inception_file(path: Path | None) -> Path:
    if path is not None:
        return path
    for place in inception_places():
        if place.is_file():
            return place
    looked = " and ".join(map(str, inception_places()))
    raise ConfigError(
        f"features.extractor=inception: {INCEPTION_FILE} isn't there (looked for {looked}), and nothing is downloaded; "
        f"get it from {INCEPTION_URL} and put it there, or give features.path=FILE"
    )


def _dinov2_folder(path: str) -> Path:
    if find_spec("transformers") is None:
        raise ConfigError("features.extractor=dinov2 needs transformers, which isn't installed: pip install 'synthgen[dinov2]'")
    folder = Path(path).expanduser()
    if not folder.exists() and path.count("/") == 1 and not path.startswith(("/", ".", "~")):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        try:
            folder = Path(snapshot_download(path, local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError):
            raise ConfigError(
                f"features.path={path}: neither a folder nor in the Hugging Face cache, and nothing is downloaded; "
                f"fetch it once with `hf download {path}`, or give features.path=FOLDER"
            ) from None
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ConfigError(
                f"features.path={path}: no {name} in {folder}; give a folder that transformers' save_pretrained made"
            )
    return folder


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
