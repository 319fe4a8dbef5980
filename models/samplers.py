"""Samplers of diffusion models: plain functions over a denoiser, one signature, deterministic given the first noise.

`denoise(x, sigma)` returns the expected clean image for x = clean + sigma * noise, shape as x; sigma is a 0-d tensor.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from synthgen.shapes import Float

Denoiser = Callable[[Tensor, Tensor], Tensor]


def karras_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Float[Tensor, " t"]:
    """Noise levels from sigma_max down to sigma_min, then 0; shape (steps + 1,) (Karras et al. 2022, equation 5)."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64)]).float()


def heun(denoise: Denoiser, x: Float[Tensor, "b c h w"], sigmas: Float[Tensor, " t"]) -> Float[Tensor, "b c h w"]:
    """Heun's second-order method (Karras et al. 2022, algorithm 1 without churn): 2 steps - 1 network calls."""
    for sigma, following in itertools.pairwise(sigmas):
        slope = (x - denoise(x, sigma)) / sigma
        euler = x + (following - sigma) * slope
        if following == 0:
            return euler
        corrected = (slope + (euler - denoise(euler, following)) / following) / 2
        x = x + (following - sigma) * corrected
    return x


def dpmpp_2m(denoise: Denoiser, x: Float[Tensor, "b c h w"], sigmas: Float[Tensor, " t"]) -> Float[Tensor, "b c h w"]:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2) in the EDM parametrisation: one network call a step."""
    previous = None
    for i, (sigma, following) in enumerate(itertools.pairwise(sigmas)):
        denoised = denoise(x, sigma)
        if previous is None or following == 0:
            direction = denoised
        else:
            step, last = torch.log(sigma / following), torch.log(sigmas[i - 1] / sigma)
            ratio = last / step
            direction = (1 + 1 / (2 * ratio)) * denoised - 1 / (2 * ratio) * previous
        x = following / sigma * x + (1 - following / sigma) * direction
        previous = denoised
    return x


SAMPLERS: dict[str, Callable[[Denoiser, Tensor, Tensor], Tensor]] = {"dpmpp_2m": dpmpp_2m, "heun": heun}
