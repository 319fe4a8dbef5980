"""A detector of local and global defects, trained on real images against the same images with defects planted in them.

After Li et al. 2021, "CutPaste: self-supervised learning for anomaly detection and localization". It never sees a
candidate, so what it says of one isn't circular; and it finds only what looks like some kind of `KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synthgen import randomness
from synthgen.config.schema import AugmentConfig, ClassifierConfig
from synthgen.data.transforms import to_float, warp
from synthgen.models.classifier import one_cycle, residual_stages
from synthgen.shapes import Bool, Float, Int64, UInt8
from synthgen.types import DatasetSpec

RESAMPLED = 0.5
"""Share of the sound images that are turned and scaled by a fraction of a pixel. Without them a detector on digits learnt that
real ones hold 17 grey levels and no others: it dropped 50 to 55% of a diffusion model's samples, with them 9 to 14%."""

INVISIBLE = 0.01
"""Largest sd of the noise that sound and defective images get alike, in units of the full range: 2.5 grey levels."""

VISIBLE = 0.04
"""Root mean square change within its region, in units of the full range, below which a planted defect isn't learnt from."""

SHIFTS = ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))
"""Shifts (y, x) in pixels that a small image is judged under; the margins are their mean. On digits, at 1% false alarms, it
finds 42% of erased patches and 65% of blends instead of 40 and 61%; at 32x32 px it brings a point, not worth five passes."""

SMALL_PX = 16
"""Images with a shorter side than this are judged under `SHIFTS`."""


class DefectNetwork(nn.Module):
    """Three stages of width w, 2w, 4w, mean and maximum over the image, logits of "sound" and of each kind of defect."""

    def __init__(self, width: int, dropout: float, channels: int) -> None:
        super().__init__()
        self.stages = residual_stages(channels, width)
        hidden = nn.Linear(8 * width, 64)
        self.head = nn.Sequential(hidden, nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Linear(64, 1 + len(KINDS)))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        y = self.stages(x)
        return self.head(torch.cat([y.mean((2, 3)), y.amax((2, 3))], dim=1))


class DefectDetector(pl.LightningModule):
    """Cross-entropy over sound and each kind of defect, a batch of real images against itself with defects planted.

    Trained by `training.fit` like a classifier; the labels of its batches aren't looked at (but must not be
    `UNLABELLED`). AdamW, one-cycle; random numbers keyed by (seed, step). The network sees 2 x `config.batch_size` images
    a step.

    Args:
        config: width, steps, batch size, learning rate, weight decay, dropout.
        spec: image shape.
        seed: of the weights' start and of every draw.
        augment: what leaves an image sound; its contrast isn't used, since a change of contrast is a defect here.
    """

    def __init__(self, config: ClassifierConfig, spec: DatasetSpec, seed: int, augment: AugmentConfig) -> None:
        super().__init__()
        self.config, self.seed, self.augment, self.step = config, seed, augment, 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = DefectNetwork(config.width, config.dropout, spec.image_shape[0])

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Keys dropout by the step."""
        randomness.seed_layers(self.seed, "defects/layers", self.step, self.device.type)

    def training_step(self, batch: tuple[Float[Tensor, "b c h w"], Int64[Tensor, " b"]], batch_idx: int) -> Tensor:
        """Mean cross-entropy in nats over the sound images and the visible defects."""
        draws = randomness.stream(self.seed, "defects/plant", self.step)
        self.step += 1
        sound = varied(batch[0], draws, self.augment)
        defective, kind, change = plant(sound, draws)
        images = _as_stored(torch.cat([sound, defective]), draws)
        target = torch.cat([torch.zeros_like(kind), kind + 1])
        weight = torch.cat([torch.ones_like(change), (change >= VISIBLE).to(change.dtype)])
        losses = F.cross_entropy(self.network(images), target, reduction="none")
        return (losses * weight).sum() / weight.sum()

    def configure_optimizers(self) -> Any:
        return one_cycle(self.network, self.config)


@torch.no_grad()
def margins(
    network: nn.Module, images: UInt8[np.ndarray, "n c h w"], device: str = "cpu", chunk: int = 500
) -> Float[np.ndarray, "n k"]:
    """ln p(kind) - ln p(sound) of each of `KINDS`, float32; of small images the mean over `SHIFTS` (edges repeated).

    The network stays on `device`, in eval mode.
    """
    network.eval().to(device)
    height, width = images.shape[2:]
    shifts = SHIFTS if min(height, width) < SMALL_PX else SHIFTS[:1]
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    parts = []
    for start in range(0, len(images), chunk):
        rows = padded[start : start + chunk]
        views = [to_float(rows[:, :, 1 + y : 1 + y + height, 1 + x : 1 + x + width]).to(device) for y, x in shifts]
        logits = torch.stack([network(view) for view in views]).mean(dim=0)
        parts.append((logits[:, 1:] - logits[:, :1]).float().cpu().numpy())
    return np.concatenate(parts) if parts else np.zeros((0, len(KINDS)), np.float32)


def varied(images: Float[Tensor, "b c h w"], draws: np.random.Generator, config: AugmentConfig) -> Float[Tensor, "b c h w"]:
    """Sound images, mirrored and shifted by whole pixels; `RESAMPLED` of them turned, scaled and shifted by fractions too."""
    b = len(images)
    uniform = draws.random((6, b))
    x, y, turn, grow = 2 * uniform[:4] - 1
    free = uniform[4] < RESAMPLED
    mirror = np.where((uniform[5] < 0.5) & config.flip, -1.0, 1.0)
    x, y = config.shift_px * x, config.shift_px * y
    x, y = np.where(free, x, np.round(x)), np.where(free, y, np.round(y))
    return warp(images, mirror, x, y, np.deg2rad(config.rotate_deg) * turn * free, 1 + config.scale * grow * free)


def plant(
    images: Float[Tensor, "b c h w"], draws: np.random.Generator
) -> tuple[Float[Tensor, "b c h w"], Int64[Tensor, " b"], Float[Tensor, " b"]]:
    """Each image with one defect, its kind (place in `KINDS`), and the root mean square change within the defect's region.

    Kinds are drawn with their shares; sizes, shapes, places and strengths are random.

    Args:
        images: in [-1, 1].
        draws: see `randomness.stream`.

    Returns:
        Images in [-1, 1]; int64; units of the full range.
    """
    b, device = len(images), images.device
    shares = np.array([kind.share for kind in KINDS.values()])
    drawn = draws.choice(len(KINDS), b, p=shares / shares.sum())
    uniform = torch.from_numpy(draws.random((4, b, 1, 1, 1), dtype=np.float32)).to(device)
    normal = torch.from_numpy(draws.standard_normal(images.shape, dtype=np.float32)).to(device)
    patches = torch.from_numpy(_patches(draws, b, *images.shape[2:])).to(device)
    local = torch.from_numpy(draws.random(b) < 1 / 3).to(device)[:, None, None, None]
    partners = images.roll(int(draws.integers(1, max(2, b))), 0)
    moved = partners.roll((int(draws.integers(images.shape[2])), int(draws.integers(images.shape[3]))), (2, 3))
    partners = torch.where(torch.from_numpy(draws.random(b) < 0.3).to(device)[:, None, None, None], moved, partners)
    out, region = images.clone(), patches.clone()
    for number, kind in enumerate(KINDS.values()):
        rows = torch.from_numpy(np.flatnonzero(drawn == number)).to(device)
        if not len(rows):
            continue
        if kind.region != "patch":
            region[rows] |= ~local[rows] if kind.region == "either" else torch.ones_like(local[rows])
        filling = kind.fill(images[rows], partners[rows], uniform[:, rows], normal[rows])
        out[rows] = torch.where(region[rows], filling.clamp(-1, 1), images[rows])
    squares = (out - images).square().sum((1, 2, 3)) / (region.sum((1, 2, 3)) * images.shape[1])
    return out, torch.from_numpy(drawn).to(device), squares.sqrt() / 2


Fill = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(images, partners, four uniform numbers an image, normal numbers) -> what stands in the defect's region."""


class Kind(NamedTuple):
    """A kind of defect: what fills its region, whether that is a patch, the whole image or either, how often it is planted."""

    fill: Fill
    region: str
    share: float


def _erased(x: Tensor, partners: Tensor, uniform: Tensor, normal: Tensor) -> Tensor:
    """One colour: the border's median, the image's mean, one of its pixels, or any grey."""
    ring = torch.cat([x[:, :, 0], x[:, :, -1], x[:, :, 1:-1, 0], x[:, :, 1:-1, -1]], dim=2)
    border = ring.median(dim=2).values[:, :, None, None]
    place = (uniform[1] * (x[0, 0].numel() - 1)).long().flatten(1).expand(-1, x.shape[1])
    pixel = x.flatten(2).gather(2, place[:, :, None])[..., None]
    which, mean = uniform[0], x.mean((2, 3), keepdim=True)
    colour = torch.where(which < 0.6, mean, torch.where(which < 0.8, pixel, 2 * uniform[2] - 1))
    return torch.where(which < 0.45, border, colour).expand_as(x)


def _pasted(x: Tensor, partners: Tensor, uniform: Tensor, normal: Tensor) -> Tensor:
    return partners


def _noisy(x: Tensor, partners: Tensor, uniform: Tensor, normal: Tensor) -> Tensor:
    """Standard deviation 0.05 to 0.5 of the full range, uniform in its logarithm."""
    return x + 2 * 0.05 * 10 ** uniform[0] * normal


def _blurred(x: Tensor, partners: Tensor, uniform: Tensor, normal: Tensor) -> Tensor:
    """Under the 3x3 binomial filter, one to four times."""
    for times in range(4):
        y = F.pad(x, (1, 1, 1, 1), mode="replicate")
        y = (y[..., :-2] + 2 * y[..., 1:-1] + y[..., 2:]) / 4
        y = (y[..., :-2, :] + 2 * y[..., 1:-1, :] + y[..., 2:, :]) / 4
        x = torch.where(4 * uniform[0] >= times, y, x)
    return x


def _blended(x: Tensor, partners: Tensor, uniform: Tensor, normal: Tensor) -> Tensor:
    """With 30 to 70% of another image."""
    return torch.lerp(x, partners, 0.3 + 0.4 * uniform[0])


def _contrast(x: Tensor, partners: Tensor, uniform: Tensor, normal: Tensor) -> Tensor:
    """Contrast 1.6 to 4 times, or 0 (one colour) to 0.6 times, about the mean or mid-grey."""
    gain = torch.where(uniform[0] < 0.4, 1.6 + 2.4 * uniform[1], 0.6 * uniform[1])
    middle = torch.where(uniform[2] < 0.5, x.mean((2, 3), keepdim=True), 0.0)
    return middle + gain * (x - middle)


KINDS: dict[str, Kind] = {
    "erased": Kind(_erased, "patch", 0.22),
    "pasted": Kind(_pasted, "patch", 0.22),
    "noise": Kind(_noisy, "either", 0.16),
    "blur": Kind(_blurred, "either", 0.1),
    "blend": Kind(_blended, "whole", 0.2),
    "contrast": Kind(_contrast, "either", 0.1),
}
"""What the detector is trained to tell from sound images, and from each other."""


def _patches(draws: np.random.Generator, b: int, height: int, width: int) -> Bool[np.ndarray, "b 1 h w"]:
    """Masks of patches with sides of about 15 to 65% of the image's; a third are ellipses, the others rectangles."""
    side, aspect = draws.uniform(0.15, 0.65, b), np.exp(draws.uniform(-0.45, 0.45, b))
    inside, squares = [], []
    for size, share in ((height, side * aspect), (width, side / aspect)):
        length = np.clip(np.round(size * share), min(2, size), max(1, size - 1))[:, None]
        start = np.floor(draws.random((b, 1)) * (size - length + 1))
        offset = (np.arange(size) + 0.5 - start - length / 2) / (length / 2)  # -1 to 1 across the patch
        inside.append(np.abs(offset) < 1)
        squares.append(np.square(offset))
    rectangle = inside[0][:, :, None] & inside[1][:, None, :]
    ellipse = squares[0][:, :, None] + squares[1][:, None, :] <= 1
    round_ones = draws.random((b, 1, 1)) < 1 / 3
    return np.where(round_ones, ellipse, rectangle)[:, None]


def _as_stored(images: Float[Tensor, "b c h w"], draws: np.random.Generator) -> Float[Tensor, "b c h w"]:
    """With a little noise, at the 256 levels of a file: what can't be seen must not tell sound from defective."""
    sd = draws.random((len(images), 1, 1, 1), dtype=np.float32) * (2 * INVISIBLE)
    noise = torch.from_numpy(sd * draws.standard_normal(images.shape, dtype=np.float32)).to(images.device)
    return ((images + noise).clamp(-1, 1).add(1) * 127.5).round() / 127.5 - 1
