"""Samplers of diffusion models: plain functions over a denoiser, one signature, deterministic given the first noise.

`denoise(x, sigma)` returns the expected clean image for x = clean + sigma * noise, shape as x; sigma is a float, so that
nothing waits for a GPU. Flow matching's straight path is the same path in x / (1 + sigma), so every sampler serves both.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from synthgen.errors import ConfigError
from synthgen.shapes import Float

Denoise = Callable[[Tensor, float], Tensor]
Sampler = Callable[[Denoise, Tensor, Sequence[float]], Tensor]


def karras_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> list[float]:
    """Noise levels from sigma_max down to sigma_min, then 0; steps + 1 of them (Karras et al. 2022, equation 5)."""
    ramp = np.linspace(0, 1, steps)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return [*((high + ramp * (low - high)) ** rho).tolist(), 0.0]


def angle_sigmas(steps: int, sigma_min: float, sigma_max: float) -> list[float]:
    """Levels evenly spaced in the angle arctan(sigma): the cosine schedule (Nichol and Dhariwal 2021)."""
    return [*np.tan(np.linspace(math.atan(sigma_max), math.atan(sigma_min), steps)).tolist(), 0.0]


def flow_sigmas(steps: int, sigma_min: float, sigma_max: float) -> list[float]:
    """Levels evenly spaced in flow matching's time t = sigma / (1 + sigma)."""
    t = np.linspace(sigma_max / (1 + sigma_max), sigma_min / (1 + sigma_min), steps)
    return [*(t / (1 - t)).tolist(), 0.0]


SPACINGS: dict[str, Callable[[int, float, float], list[float]]] = {
    "karras": karras_sigmas,
    "angle": angle_sigmas,
    "flow": flow_sigmas,
}


def heun(denoise: Denoise, x: Float[Tensor, "b c h w"], sigmas: Sequence[float]) -> Float[Tensor, "b c h w"]:
    """Heun's second-order method (Karras et al. 2022, algorithm 1 without churn): 2 steps - 1 network calls."""
    for sigma, following in itertools.pairwise(sigmas):
        slope = (x - denoise(x, sigma)) / sigma
        euler_step = x + (following - sigma) * slope
        if following == 0:
            return euler_step
        corrected = (slope + (euler_step - denoise(euler_step, following)) / following) / 2
        x = x + (following - sigma) * corrected
    return x


def euler(denoise: Denoise, x: Float[Tensor, "b c h w"], sigmas: Sequence[float]) -> Float[Tensor, "b c h w"]:
    """Euler's method, one network call a step: DDIM without noise (Song et al. 2021) and flow matching's Euler steps too.

    x' = (sigma' / sigma) x + (1 - sigma' / sigma) D(x; sigma) is all three, since each is exact where D stands still.
    """
    for sigma, following in itertools.pairwise(sigmas):
        x = torch.lerp(denoise(x, sigma), x, following / sigma)
    return x


def dpmpp_2m(denoise: Denoise, x: Float[Tensor, "b c h w"], sigmas: Sequence[float]) -> Float[Tensor, "b c h w"]:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2) in the EDM parametrisation: one network call a step."""
    previous = None
    for i, (sigma, following) in enumerate(itertools.pairwise(sigmas)):
        denoised = denoise(x, sigma)
        direction = denoised
        if previous is not None and following > 0:
            step, last = math.log(sigma / following), math.log(sigmas[i - 1] / sigma)
            direction = torch.lerp(denoised, previous, -step / (2 * last))
        x = torch.lerp(direction, x, following / sigma)
        previous = denoised
    return x


SAMPLERS: dict[str, Sampler] = {"dpmpp_2m": dpmpp_2m, "heun": heun, "euler": euler, "ddim": euler}


def with_scheduler(
    scheduler: Any, denoise: Denoise, x: Float[Tensor, "b c h w"], steps: int, generators: list[torch.Generator] | None = None
) -> Float[Tensor, "b c h w"]:
    """Samples with a scheduler of diffusers, of any of its four families.

    Args:
        scheduler: variance preserving (DDIM, DDPM, DPMSolverMultistep, UniPC, PNDM, ...), in sigma (Euler, Heun, LMS,
            ...), EDM's, or flow matching's Euler. Its own noise levels count, whatever the prediction type it is set to.
        denoise: as for the other samplers.
        x: standard normal noise.
        steps: of the scheduler.
        generators: one an image, for schedulers that add noise.

    Raises:
        ConfigError: a scheduler of none of these families.
    """
    scheduler = type(scheduler).from_config(scheduler.config)  # a scheduler keeps the state of one sampling
    step_noise = {"generator": generators} if generators is not None else {}
    scheduler.set_timesteps(steps)
    translate = _translation(scheduler, denoise)
    x = x * float(scheduler.init_noise_sigma if hasattr(scheduler, "init_noise_sigma") else 1)
    for timestep in scheduler.timesteps:
        x = scheduler.step(translate(x, timestep), timestep, x, return_dict=False, **step_noise)[0]
    return x


def _translation(scheduler: Any, denoise: Denoise) -> Callable[[Tensor, Tensor], Tensor]:
    """(x in the scheduler's scale, its timestep) -> what the scheduler expects a network to say."""
    name = type(scheduler).__name__

    def at(timestep: Tensor) -> float:
        if scheduler.step_index is None:
            scheduler._init_step_index(timestep)
        return float(scheduler.sigmas[scheduler.step_index])

    def from_flow(x: Tensor, timestep: Tensor) -> Tensor:
        t = at(timestep)
        return (x - denoise(x / max(1 - t, 1e-4), t / max(1 - t, 1e-4))) / t

    def from_edm(x: Tensor, timestep: Tensor) -> Tensor:
        sigma, data = at(timestep), scheduler.config.sigma_data
        scheduler.scale_model_input(x, timestep)  # it insists on having been asked
        c_skip, c_out = data**2 / (sigma**2 + data**2), sigma * data / math.sqrt(sigma**2 + data**2)
        return (denoise(x, sigma) - c_skip * x) / c_out

    def from_sigma(x: Tensor, timestep: Tensor) -> Tensor:
        scheduler.scale_model_input(x, timestep)
        sigma = at(timestep)
        return (x - denoise(x, sigma)) / sigma

    def from_alpha(x: Tensor, timestep: Tensor) -> Tensor:
        alpha = max(float(scheduler.alphas_cumprod[timestep.long()]), 1e-8)  # 0 at the end of a zero-SNR schedule
        sigma = math.sqrt((1 - alpha) / alpha)
        if from_nothing:
            return denoise(x / math.sqrt(alpha), sigma)
        return (x - math.sqrt(alpha) * denoise(x / math.sqrt(alpha), sigma)) / math.sqrt(1 - alpha)

    if name.startswith("FlowMatch"):
        return from_flow
    if scheduler.config.get("use_flow_sigmas") or hasattr(scheduler, "sigmas_interpol"):
        raise ConfigError(f"{name}: flow sigmas outside FlowMatch schedulers, and interpolated sigmas, aren't understood")
    from_nothing = bool(scheduler.config.get("rescale_betas_zero_snr"))  # at alpha = 0 the noise says nothing of the image
    scheduler.register_to_config(prediction_type="sample" if from_nothing else "epsilon")
    if hasattr(scheduler, "precondition_inputs"):
        return from_edm
    if float(getattr(scheduler, "init_noise_sigma", 1)) > 1 and hasattr(scheduler, "sigmas"):
        return from_sigma
    if hasattr(scheduler, "alphas_cumprod"):
        return from_alpha
    raise ConfigError(
        f"{name}: none of the schedulers that are understood: variance preserving, in sigma, EDM, flow matching's Euler"
    )


def diffusers_scheduler(name: str) -> Any:
    """The scheduler of diffusers behind a sampler's name, with the settings of its paper."""
    import diffusers

    betas = {"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "epsilon"}
    known: dict[str, tuple[str, dict[str, Any]]] = {
        "diffusers_ddim": ("DDIMScheduler", {**betas, "clip_sample": False, "timestep_spacing": "trailing"}),
        "diffusers_dpmpp": ("DPMSolverMultistepScheduler", {**betas, "timestep_spacing": "trailing"}),
        "diffusers_unipc": ("UniPCMultistepScheduler", {**betas, "timestep_spacing": "trailing"}),
        "diffusers_euler": ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "timestep_spacing": "trailing"}),
    }
    scheduler, settings = known[name]
    return getattr(diffusers, scheduler)(**settings)
