"""Samplers against what a Gaussian's exact denoiser must give, and against diffusers' own schedulers and pipelines."""

from __future__ import annotations

import itertools

import diffusers
import numpy as np
import pytest
import torch

from synthgen.errors import ConfigError
from synthgen.models.samplers import SAMPLERS, SPACINGS, diffusers_scheduler, euler, flow_sigmas, with_scheduler

pytestmark = [  # of diffusers, about itself
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning"),
]
MEAN, SD = 0.3, 0.4


def exact(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """E[y | y + sigma n = x] for y normal: what a perfect network says."""
    return (x * SD**2 + MEAN * sigma**2) / (SD**2 + sigma**2)


@pytest.fixture(scope="module")
def noise() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal((4000, 1, 3, 3), dtype=np.float32))


@pytest.mark.parametrize("spacing", SPACINGS)
def test_noise_levels_fall_from_the_highest_to_the_lowest_and_end_at_zero(spacing):
    sigmas = SPACINGS[spacing](9, 0.01, 50.0)
    assert len(sigmas) == 10
    assert sigmas[0] == pytest.approx(50)
    assert sigmas[-2] == pytest.approx(0.01)
    assert sigmas[-1] == 0
    assert all(a > b for a, b in itertools.pairwise(sigmas))


@pytest.mark.parametrize(("sampler", "steps", "tolerance"), [("euler", 200, 0.01), ("heun", 40, 0.01), ("dpmpp_2m", 40, 0.01)])
def test_a_sampler_gives_the_distribution_that_its_denoiser_knows(sampler, steps, tolerance, noise):
    sigmas = SPACINGS["karras"](steps, 0.002, 80.0)
    made = SAMPLERS[sampler](exact, noise * sigmas[0], sigmas)
    assert made.mean() == pytest.approx(MEAN, abs=0.01)
    assert made.std() == pytest.approx(SD, abs=tolerance)


def test_a_higher_order_needs_fewer_steps(noise):
    sigmas = SPACINGS["karras"](12, 0.002, 80.0)
    error = {name: abs(float(SAMPLERS[name](exact, noise * sigmas[0], sigmas).std()) - SD) for name in SAMPLERS}
    assert max(error["heun"], error["dpmpp_2m"]) < 0.8 * error["euler"]
    assert error["ddim"] == error["euler"]


def test_euler_in_sigma_is_flow_matching_s_euler_in_time(noise):
    """x_t = x / (1 + sigma) moved along the velocity (x_t - D) / t, step by step."""
    sigmas = flow_sigmas(7, 0.01, 1000.0)
    times = [sigma / (1 + sigma) for sigma in sigmas]
    x = noise * sigmas[0] / (1 + sigmas[0])
    for now, following in itertools.pairwise(times):
        x = x + (following - now) * (x - exact(x / (1 - now), now / (1 - now))) / now
    assert torch.allclose(x, euler(exact, noise * sigmas[0], sigmas), atol=1e-5)


DETERMINISTIC = [
    "DDIMScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler",
    "DEISMultistepScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler",
    "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler",
]  # fmt: skip


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_schedulers_of_diffusers_of_every_family_serve(name, noise):
    clip = {"clip_sample": False} if name == "DDIMScheduler" else {}
    scheduler = getattr(diffusers, name)(**clip)
    made = with_scheduler(scheduler, exact, noise, 60)
    assert made.mean() == pytest.approx(MEAN, abs=0.02)
    assert made.std() == pytest.approx(SD, abs=0.035)
    assert torch.equal(made, with_scheduler(scheduler, exact, noise, 60)), "the scheduler kept a state"


def test_a_scheduler_that_adds_noise_takes_a_generator_an_image(noise):
    def drawn(rows: slice) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(i) for i in range(*rows.indices(len(noise)))]
        return with_scheduler(diffusers.DDPMScheduler(clip_sample=False), exact, noise[rows], 50, generators)

    assert torch.allclose(drawn(slice(0, 6))[2:4], drawn(slice(2, 4)), atol=1e-5)
    assert drawn(slice(0, 2000)).mean() == pytest.approx(MEAN, abs=0.02)


def test_ddim_equals_diffusers_at_its_own_noise_levels(noise):
    scheduler = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(20)
    alphas = [*scheduler.alphas_cumprod[scheduler.timesteps].tolist(), float(scheduler.final_alpha_cumprod)]
    sigmas = [((1 - alpha) / alpha) ** 0.5 for alpha in alphas]
    theirs = with_scheduler(scheduler, exact, noise, 20)
    start = noise / alphas[0] ** 0.5
    ours = euler(exact, start, sigmas) * alphas[-1] ** 0.5
    assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("name", ["diffusers_ddim", "diffusers_dpmpp", "diffusers_unipc", "diffusers_euler"])
def test_the_named_schedulers_serve(name, noise):
    made = with_scheduler(diffusers_scheduler(name), exact, noise, 40)
    assert made.mean() == pytest.approx(MEAN, abs=0.02)
    assert made.std() == pytest.approx(SD, abs=0.04)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
        ("KDPM2DiscreteScheduler", {}),
    ],
)
def test_schedulers_whose_noise_levels_would_be_misread_are_refused(name, settings, noise):
    with pytest.raises(ConfigError, match="flow sigmas outside FlowMatch schedulers, and interpolated sigmas"):
        with_scheduler(getattr(diffusers, name)(**settings), exact, noise, 30)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("EDMEulerScheduler", {"prediction_type": "v_prediction"}),
        ("DDIMScheduler", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "clip_sample": False}),
    ],
)
def test_what_a_scheduler_is_set_to_predict_does_not_matter(name, settings, noise):
    made = with_scheduler(getattr(diffusers, name)(**settings), exact, noise, 60)
    assert made.mean() == pytest.approx(MEAN, abs=0.02)
    assert made.std() == pytest.approx(SD, abs=0.035)


def test_a_scheduler_of_no_known_family_is_refused(noise):
    with pytest.raises(ConfigError, match="Unknown: none of the schedulers"):
        with_scheduler(Unknown(), exact, noise, 4)


class Unknown:
    """Neither alphas nor sigmas."""

    config: dict = {}  # noqa: RUF012

    @classmethod
    def from_config(cls, config: dict) -> Unknown:
        return cls()

    def register_to_config(self, **_: object) -> None:
        pass

    def set_timesteps(self, steps: int) -> None:
        pass
