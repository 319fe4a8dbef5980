"""Mixtures of the images of a batch, for several networks at once: (s, b, c, h, w) is one batch of b for each of s networks."""

from __future__ import annotations

import torch
from torch import Tensor

from synthgen.shapes import Bool, Float, Int64

Images = Float[Tensor, "s b c h w"]
Targets = Float[Tensor, "s b k"]


def mixup(images: Images, targets: Targets, share: Float[Tensor, " s"], partner: Int64[Tensor, "s b"]) -> tuple[Images, Targets]:
    """share * image + (1 - share) * partner's, and the targets alike (mixup, Zhang et al. 2018, eq. 2).

    Args:
        images: any range.
        targets: of each class; a row adds up to 1.
        share: Beta(alpha, alpha), one a network.
        partner: row of the same network's batch, usually a permutation.
    """
    of_image, of_target = share[:, None, None, None, None], share[:, None, None]
    mixed = of_image * images + (1 - of_image) * _of(images, partner)
    return mixed, of_target * targets + (1 - of_target) * _of(targets, partner)


def cutmix(
    images: Images,
    targets: Targets,
    share: Float[Tensor, " s"],
    centre: Float[Tensor, "s 2"],
    partner: Int64[Tensor, "s b"],
) -> tuple[Images, Targets]:
    """Each image with a box of its partner's in place of its own; targets by the area (CutMix, Yun et al. 2019, eq. 1 and 2).

    The box has sqrt(1 - share) of the height and width, rounded down, and is cut off at the frame. Targets are mixed by
    the area that is left of it, as in the authors' code, not by `share`.

    Args:
        images: any range.
        targets: of each class; a row adds up to 1.
        share: Beta(alpha, alpha), one a network: what stays of the image if the box lies inside.
        centre: uniform in [0, 1): the box's middle, down and across.
        partner: row of the same network's batch, usually a permutation.
    """
    h, w = images.shape[3:]
    in_rows, in_columns = _within(h, share, centre[:, 0]), _within(w, share, centre[:, 1])
    box = (in_rows[:, :, None] & in_columns[:, None, :])[:, None, None]
    kept = (1 - in_rows.sum(1) * in_columns.sum(1) / (h * w)).to(targets.dtype)[:, None, None]
    return torch.where(box, _of(images, partner), images), kept * targets + (1 - kept) * _of(targets, partner)


def smote(images: Images, targets: Targets, share: Float[Tensor, "s b"], partner: Int64[Tensor, "s b"]) -> tuple[Images, Targets]:
    """image + share * (partner's - image) within a class (SMOTE, Chawla et al. 2002), and the targets as they were.

    In pixels, and with any partner of the class, not one of the 5 nearest: with a few images a class it is the same, and
    a control must cost nothing.

    Args:
        images: any range.
        targets: of each class.
        share: how far towards the partner, one an image: 0 leaves the image as it is.
        partner: row of the same network's batch and class. This isn't checked: a look at the targets would wait for the
            device.
    """
    return images + share[:, :, None, None, None] * (_of(images, partner) - images), targets


def _within(size: int, share: Float[Tensor, " s"], centre: Float[Tensor, " s"]) -> Bool[Tensor, "s {size}"]:
    """Which rows (or columns) of `size` the box covers."""
    side = torch.floor(size * (1 - share).clamp(0, 1).sqrt())[:, None]
    low = torch.floor(centre * size)[:, None] - torch.floor(side / 2)
    at = torch.arange(size, device=share.device)
    return (at >= low) & (at < low + side)


def _of(values: Tensor, partner: Int64[Tensor, "s b"]) -> Tensor:
    """values[i, partner[i]] for each network i."""
    s, b = partner.shape
    first = torch.arange(0, s * b, b, device=partner.device)[:, None]
    return values.flatten(0, 1).index_select(0, (partner + first).flatten()).view(values.shape)
