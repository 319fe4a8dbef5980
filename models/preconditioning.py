"""What a denoising network is asked for, as one table: D(x; sigma) = c_skip x + c_out F(c_in x; c_noise).

x = y + sigma n throughout, y the clean image and n standard normal (Karras et al. 2022, equation 7). Every objective in
use is a row of it: EDM's own (table 1), flow matching's velocity, and the noise, v- and x0-prediction of discrete-time
models, whose x_t is x scaled by sqrt(alpha_t), at t = the timestep whose sigma it is. Training with the weight
1 / c_out^2 then is the plain squared error of F against its target, in every row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from synthgen.shapes import Float


class Coefficients(NamedTuple):
    """One value an image each; `noise` is what the network's time embedding is given, of the order of hundreds."""

    skip: Float[Tensor, " b"]
    out: Float[Tensor, " b"]
    into: Float[Tensor, " b"]
    noise: Float[Tensor, " b"]


def edm(sigma: Float[Tensor, " b"], data: float) -> Coefficients:
    """Karras et al. 2022, table 1, with c_noise = 250 (ln sigma / 4), since the embedding expects hundreds."""
    total = sigma**2 + data**2
    return Coefficients(data**2 / total, sigma * data / total.sqrt(), total.rsqrt(), 250 * sigma.log() / 4)


def flow(sigma: Float[Tensor, " b"]) -> Coefficients:
    """Rectified flow (Lipman et al. 2023; Liu et al. 2023): x_t = (1 - t) y + t n, F = n - y.

    x_t is x / (1 + sigma) at t = sigma / (1 + sigma), and y = x_t - t F.
    """
    t = sigma / (1 + sigma)
    return Coefficients(1 - t, -t, 1 - t, 1000 * t)


def epsilon(sigma: Float[Tensor, " b"], timestep: Float[Tensor, " b"]) -> Coefficients:
    """Noise prediction (Ho et al. 2020): y = x - sigma F."""
    return Coefficients(torch.ones_like(sigma), -sigma, (1 + sigma**2).rsqrt(), timestep)


def v_prediction(sigma: Float[Tensor, " b"], timestep: Float[Tensor, " b"]) -> Coefficients:
    """v = sqrt(alpha) n - sqrt(1 - alpha) y (Salimans and Ho 2022): y = sqrt(alpha) x_t - sqrt(1 - alpha) F."""
    into = (1 + sigma**2).rsqrt()
    return Coefficients(into**2, -sigma * into, into, timestep)


def sample(sigma: Float[Tensor, " b"], timestep: Float[Tensor, " b"]) -> Coefficients:
    """x0-prediction: y = F."""
    return Coefficients(torch.zeros_like(sigma), torch.ones_like(sigma), (1 + sigma**2).rsqrt(), timestep)


DISCRETE: dict[str, Callable[[Tensor, Tensor], Coefficients]] = {
    "epsilon": epsilon,
    "v_prediction": v_prediction,
    "sample": sample,
}


def timestep_of(sigma: Float[Tensor, " b"], sigmas: Float[Tensor, " t"]) -> Float[Tensor, " b"]:
    """The timestep, between whole ones too, at which a discrete-time model has this sigma; linear in ln sigma.

    Args:
        sigma: noise levels; those beyond the table get its first or last timestep.
        sigmas: of timestep 0, 1, ..., rising.
    """
    logs, wanted = sigmas.log(), sigma.log().clamp(sigmas[0].log(), sigmas[-1].log())
    above = torch.searchsorted(logs, wanted).clamp(1, len(logs) - 1)
    low, high = logs[above - 1], logs[above]
    return above - 1 + (wanted - low) / (high - low)
