"""Augmentation that doesn't leak: the network is told what was done, and at sampling that nothing was done.

Jun et al. 2020, "Distribution augmentation"; Karras et al. 2022 (EDM), appendix F.2.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from synthgen.config.schema import AugmentConfig
from synthgen.data.transforms import warp
from synthgen.shapes import Float

NUM_PARAMETERS = 5
"""Mirror, shift along x and y, angle, size: each in [-1, 1], 0 is unchanged."""


def non_leaking(
    images: Float[Tensor, "b c h w"], draws: np.random.Generator, config: AugmentConfig, probability: float
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b p"]]:
    """Augmented images and, for the network's condition, what was done to each.

    Each kind of change is applied with `probability` on its own; amounts are uniform up to twice what leaves a
    classifier's label unchanged, since the network knows them.
    """
    b = len(images)
    applied = draws.random((NUM_PARAMETERS, b)) < probability
    amount = np.where(applied, draws.uniform(-1, 1, (NUM_PARAMETERS, b)), 0.0)
    amount[0] = np.where(applied[0] & config.flip, 1.0, 0.0)
    mirror, x, y, turn, grow = amount
    most = 2 * config.shift_px
    changed = warp(
        images, 1 - 2 * mirror, most * x, most * y, 2 * np.deg2rad(config.rotate_deg) * turn, 1 + 2 * config.scale * grow
    )
    untouched = torch.from_numpy(~np.any(amount != 0, axis=0)).to(images.device)
    parameters = torch.from_numpy(amount.T.astype(np.float32)).to(images.device)
    return torch.where(untouched[:, None, None, None], images, changed), parameters
