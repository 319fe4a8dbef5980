"""What is done for speed changes nothing but speed: layouts, dropout's own numbers, sampling in bfloat16."""

from __future__ import annotations

import dataclasses
import os
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from synthgen import models, sampling, training
from synthgen.config.schema import GenerateConfig
from synthgen.models import MODELS
from synthgen.models.base import put
from synthgen.models.unet import Dropout, laid_out
from synthgen.types import Batch, Silent

LABELS = np.arange(10, dtype=np.int64) % 3


@pytest.fixture
def diffusion(tiny, toy_spec):
    generator = models.build(tiny.generators.diffusion, toy_spec, tiny.augment)
    for network in (generator.network, *generator.ema.networks):
        nn.init.normal_(network.unet.conv_out.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    return generator.eval()


def inputs(b: int = 4):
    x = torch.randn(b, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return x, torch.full((b,), 0.7), torch.arange(b) % 3, torch.zeros(b, 5)


def draw(generator, **kwargs) -> np.ndarray:
    asked = {"seed": 3, "chunk": 4, "batch": 4, "prefix": "x"} | kwargs
    return Batch.concatenate(list(sampling.sample(generator, LABELS, **asked))).images


# Layout


def layouts_within(network) -> list[bool]:
    """Whether each convolution of a ResNet block was given its images channels last."""
    seen: list[bool] = []
    hooks = [
        block.conv2.register_forward_pre_hook(lambda _, args: seen.append(not args[0].is_contiguous()))
        for block in network.unet.modules()
        if type(block).__name__ == "ResnetBlock2D"
    ]
    network(*inputs())
    for hook in hooks:
        hook.remove()
    return seen


def test_sampling_runs_channels_last_and_training_on_a_cpu_does_not(diffusion):
    network = diffusion.network
    with torch.no_grad():
        sampling_layouts = layouts_within(network)
    assert sampling_layouts
    assert all(sampling_layouts)  # also for one channel, where both layouts are the same bytes
    assert not any(layouts_within(network))


def test_the_layout_changes_nothing(diffusion):
    with_gradient = diffusion.network(*inputs()).detach()
    with torch.no_grad():
        without = diffusion.network(*inputs())
    assert without.std() > 0.1
    assert torch.allclose(with_gradient, without, atol=1e-5)


def test_what_leaves_the_network_lies_as_it_came(tiny, toy_spec):
    spec = dataclasses.replace(toy_spec, image_shape=(3, 8, 8))
    generator = models.build(tiny.generators.diffusion, spec, tiny.augment).eval()
    with torch.no_grad():
        assert generator.network(torch.zeros(2, 3, 8, 8), *inputs(2)[1:]).is_contiguous()


def test_laid_out_keeps_the_gradient_and_the_values():
    x = torch.randn(2, 1, 4, 4, requires_grad=True)
    laid_out(x).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    with torch.no_grad():
        assert torch.equal(laid_out(x), x)


def test_beyond_a_cpu_the_weights_lie_channels_last(diffusion):
    weight = diffusion.network.unet.mid_block.resnets[0].conv1.weight
    assert weight.is_contiguous()
    moved = diffusion.network.to("meta").unet.mid_block.resnets[0].conv1.weight
    assert moved.is_contiguous(memory_format=torch.channels_last)


def test_the_network_knows_its_dtype(diffusion):
    assert diffusion.network.unet.dtype == torch.float32
    assert diffusion.network.unet.to(torch.bfloat16).dtype == torch.bfloat16


def test_on_a_cpu_nothing_is_copied():
    array = np.zeros(3, np.float32)
    put(array, "cpu")[0] = 5
    assert array[0] == 5


# Memory

FAULTS = """
import resource, torch
from synthgen.models.base import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(20 * 2**18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(keep_freed_memory(), faults(), faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone gives memory back at once")
@pytest.mark.parametrize("own", [{}, {"MALLOC_MMAP_THRESHOLD_": "65536"}], ids=["", "unless the user has settings"])
def test_freed_memory_is_used_again(own):
    free = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run([sys.executable, "-c", FAULTS], env=free | own, capture_output=True, text=True, check=True)
    changed, _, faults = done.stdout.split()
    assert changed == str(not own)
    if own:
        assert int(faults) > 1000
    else:
        assert int(faults) < 100


# Dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(p):
    torch.manual_seed(0)
    x = torch.ones(64, 32, 8, 8)
    out = Dropout(p).train()(x)
    dropped = (out == 0).float().mean()
    assert abs(dropped - p) < 4 * (p * (1 - p) / x.numel()) ** 0.5
    assert abs(out.mean() - 1) < 4 * (p / (1 - p) / x.numel()) ** 0.5
    assert len(out.unique()) == 2
    neighbours = ((out == 0).flatten()[:-1] & (out == 0).flatten()[1:]).float().mean()  # four share a number
    assert abs(neighbours - p * p) < 0.005


def test_dropout_s_gradient_has_its_mask_and_the_layers_seed_fixes_it():
    x = torch.randn(3, 5, 7, requires_grad=True)  # a size that is no multiple of four
    torch.manual_seed(1)
    out = Dropout(0.3).train()(x)
    out.sum().backward()
    assert torch.allclose(out, x * x.grad)
    assert ((x.grad == 0) == (out == 0)).all()
    torch.manual_seed(1)
    assert torch.equal(Dropout(0.3).train()(x), out)
    assert not torch.equal(Dropout(0.3).train()(x), out)


def test_dropout_is_off_in_evaluation_and_at_0_and_all_at_1():
    x = torch.randn(4, 4)
    assert Dropout(0.5).eval()(x) is x
    assert torch.equal(Dropout(0.0).train()(x), x)
    assert Dropout(1 - 1e-9).train()(x).isfinite().all()


def test_every_residual_block_has_it(diffusion):
    blocks = [block for block in diffusion.network.unet.modules() if type(block).__name__ == "ResnetBlock2D"]
    assert blocks
    assert all(type(block.dropout) is Dropout for block in blocks)
    assert all(block.dropout.p == diffusion.config.dropout for block in blocks)


# Precision and mode of sampling


def test_bfloat16_changes_samples_a_little_and_no_weight(diffusion):
    exact, rounded = draw(diffusion), draw(diffusion, precision="bf16-mixed")
    difference = np.abs(exact.astype(int) - rounded)
    assert 0 < difference.max() <= 16
    assert difference.mean() < 2
    assert exact.std() > 10
    assert all(p.dtype == torch.float32 for p in diffusion.parameters())
    assert np.array_equal(draw(diffusion), exact)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_chunks_in_flight_change_no_byte(diffusion, precision):
    alone, together = (draw(diffusion, precision=precision, batch=batch) for batch in (4, 12))
    assert np.array_equal(alone, together)


@pytest.mark.parametrize("kind", list(MODELS))
def test_every_generator_samples_in_bfloat16(tiny, toy_spec, kind):
    generator = models.build(getattr(tiny.generators, kind), toy_spec, tiny.augment).eval()
    images = draw(generator, precision="bf16-mixed")
    assert images.shape == (10, *toy_spec.image_shape)
    assert images.dtype == np.uint8
    assert images.std() > 0


@pytest.mark.parametrize("kind", list(MODELS))
def test_a_generator_trains_on_after_it_was_sampled_from(tiny, toy, toy_spec, kind):
    generator = models.build(getattr(tiny.generators, kind), toy_spec, tiny.augment).eval()
    draw(generator)
    training.fit(generator.train(), [(toy, 8)], steps=4, seed=0, task=kind, progress=Silent())


def test_the_precision_is_one_of_two():
    assert GenerateConfig().precision == "32-true"
    assert GenerateConfig(precision="bf16-mixed").precision == "bf16-mixed"
    with pytest.raises(ValueError, match="precision"):
        GenerateConfig(precision="16")
