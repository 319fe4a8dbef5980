"""One contender of generators.py, in a process of its own: each line "go" on stdin is one unit of work, its answer one of JSON.

Run by generators.py; not meant to be run by hand. What a unit is: for train some steps, for sample a number of batches, for
disk the whole way from a checkpoint to images on disk. Between units the process waits, so that contenders take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import types
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

IMAGES = 2048
"""Images trained on: random ones, since no time depends on what is in them."""


class Case:
    """What is measured: see `generators.Case`, whose fields these are."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.__dict__ |= given
        self.labels = np.arange(self.images, dtype=np.int64) % 10
        self.bf16 = self.precision == "bf16-mixed"

    def generator(self) -> Any:
        """Ours, with fresh weights; the last layer isn't 0, so that its samples aren't trivial."""
        from synthgen import models
        from synthgen.config.generators import DiffusionConfig
        from synthgen.config.schema import AugmentConfig
        from synthgen.types import DatasetSpec

        config = DiffusionConfig(
            width=self.width, channel_mults=self.mults, layers=self.layers, attention=self.attention, dropout=self.dropout,
            steps=10**6, batch_size=self.batch, sampling_steps=self.calls, sampler="dpmpp_2m", lr=1e-4,
        )  # fmt: skip
        spec = DatasetSpec("bench", (self.channels, self.px, self.px), tuple(map(str, range(10))), False, "")
        generator = models.build(config, spec, AugmentConfig())
        for network in (generator.network, *generator.ema.networks):
            nn.init.normal_(network.unet.conv_out.weight, std=0.02)
        return generator

    def unet(self) -> Any:
        """diffusers' own UNet2DModel of the same shape, unconditional, as its training script makes it."""
        from diffusers import UNet2DModel

        from synthgen.models.unet import own_shape

        torch.manual_seed(0)
        network = UNet2DModel(
            **own_shape(self.generator().config), sample_size=self.px, in_channels=self.channels, out_channels=self.channels
        )
        return network.to(self.device)

    def pixels(self) -> np.ndarray:
        rng = np.random.default_rng(0)
        return rng.integers(0, 256, (IMAGES, self.channels, self.px, self.px), dtype=np.uint8)

    def labelled(self) -> Any:
        from synthgen.types import Batch

        return Batch(self.pixels(), np.arange(IMAGES, dtype=np.int64) % 10, tuple(map(str, range(IMAGES))))

    def loader(self) -> Iterator[Tensor]:
        """Batches as the peers' scripts get theirs, but decoded and normalised before: in their favour."""
        images = torch.from_numpy(self.pixels()).float().div(127.5).sub(1).to(self.device)
        data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images), batch_size=self.batch, shuffle=True)
        while True:
            for (batch,) in data:
                if len(batch) == self.batch:
                    yield batch

    def precisely(self) -> Any:
        return torch.autocast(self.device, torch.bfloat16) if self.bf16 else nullcontext()


class Turns:
    """Called before each unit: answers for the one before, waits for "go", starts the clocks."""

    def __init__(self, case: Case) -> None:
        self.case, self.started, self.waited = case, False, 0.0

    def __call__(self) -> None:
        self.sync()
        if self.started:
            seconds = {"cpu_s": time.process_time() - self.cpu, "wall_s": time.perf_counter() - self.wall, "wait_s": self.waited}
            print("\n" + json.dumps(seconds), flush=True)
        if sys.stdin.readline().strip() != "go":
            sys.stdout.flush()
            os._exit(0)
        self.started, self.waited = True, 0.0
        self.sync()
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def sync(self) -> None:
        if self.case.device == "cuda":
            torch.cuda.synchronize()


# Training -----------------------------------------------------------------------------------------------------------------


def train_ours(case: Case, turn: Turns, data: Any = None) -> None:
    """`training.fit` as the jobs call it: Lightning, keyed batches, augmentation, keyed noise, averages."""
    from synthgen import training
    from synthgen.types import Silent

    generator = case.generator()
    start, fetch = generator.on_train_batch_start, training.Keyed.__getitem__

    def paced(batch: Any, batch_idx: int) -> None:
        if generator.step % case.unit == 0:
            turn()
        start(batch, batch_idx)

    def timed(data: Any, step: int) -> Any:
        began = time.perf_counter()
        found = fetch(data, step)
        turn.waited += time.perf_counter() - began
        return found

    generator.on_train_batch_start = paced
    training.Keyed.__getitem__ = timed  # type: ignore[method-assign]
    if case.compile:
        generator.network.unet.compile()
    training.fit(
        generator, [(data or case.labelled(), case.batch)], steps=10**6, seed=0, task="bench", progress=Silent(),
        device=case.device, precision=case.precision,
    )  # fmt: skip


class Cold:
    """Images in a file that is forgotten by the page cache before each batch."""

    def __init__(self, images: Any) -> None:
        self.images, self.shape, self.nbytes = images, images.shape, images.nbytes
        self.file = os.open(images.path, os.O_RDONLY)

    def __getitem__(self, rows: Any) -> np.ndarray:
        os.posix_fadvise(self.file, 0, 0, os.POSIX_FADV_DONTNEED)
        return self.images[rows]


def train_streamed(case: Case, turn: Turns, cold: bool = False) -> None:
    """As `train_ours`, from a file that counts as too large to be held."""
    from synthgen import training
    from synthgen.shards import raw

    path = Path(mkdtemp(dir=case.scratch)) / "train.parquet"
    raw.write(path, [case.labelled()], case.generator().spec)
    data = raw.on_disk(path)
    training.resident_bytes = lambda device: 0
    train_ours(case, turn, replace(data, images=Cold(data.images)) if cold else data)  # type: ignore[arg-type]


def train_streamed_cold(case: Case, turn: Turns) -> None:
    """As `train_streamed`, each batch from the disk itself."""
    train_streamed(case, turn, cold=True)


def train_bare(case: Case, turn: Turns, ours: bool = False) -> None:
    """Forward, backward and optimiser alone, always on the same tensors."""
    network = as_ours(case, case.generator().network) if ours else case.unet()
    if case.device == "cuda":
        network.to(memory_format=torch.channels_last)
    if case.compile:
        network.compile()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)
    shape = (case.batch, case.channels, case.px, case.px)
    x, target, noise = torch.randn(shape).to(case.device), torch.randn(shape).to(case.device), torch.ones(case.batch)
    noise = noise.to(case.device)
    condition = {"class_labels": torch.randn(case.batch, 4 * case.width).to(case.device)} if ours else {}
    while True:
        turn()
        for _ in range(case.unit):
            with case.precisely():
                loss = F.mse_loss(network(x, noise, **condition, return_dict=False)[0], target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def as_ours(case: Case, denoiser: Any) -> Any:
    """The U-Net under a denoiser, in a process whose memory is set as ours sets it."""
    from synthgen.models.base import keep_freed_memory

    keep_freed_memory()
    return denoiser.unet.to(case.device)


def train_bare_ours(case: Case, turn: Turns) -> None:
    """As `train_bare`, on the network as ours has it: its conditioning and its dropout."""
    train_bare(case, turn, ours=True)


def train_diffusers(case: Case, turn: Turns, ema: bool = False) -> None:
    """The loop of diffusers' examples/unconditional_image_generation/train_unconditional.py with its defaults, in plain torch."""
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    network, scheduler = case.unet(), DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    schedule = get_scheduler("cosine", optimizer=optimizer, num_warmup_steps=500, num_training_steps=10**6)
    average = None
    if ema:
        average = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    batches = case.loader()
    while True:
        turn()
        for _ in range(case.unit):
            clean = next(batches)
            noise = torch.randn(clean.shape, device=clean.device)
            timesteps = torch.randint(0, 1000, (len(clean),), device=clean.device).long()
            noisy = scheduler.add_noise(clean, noise, timesteps)
            with case.precisely():
                out = network(noisy, timesteps).sample
            loss = F.mse_loss(out.float(), noise.float())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if average is not None:
                average.step(network.parameters())
            loss.detach().item()  # its progress bar and its log, at each step


def train_diffusers_ema(case: Case, turn: Turns) -> None:
    """... with its --use_ema, which ours always has."""
    train_diffusers(case, turn, ema=True)


class Adapter(nn.Module):
    """diffusers' U-Net under the interface that lucidrains' GaussianDiffusion asks of a network."""

    def __init__(self, network: nn.Module, channels: int) -> None:
        super().__init__()
        self.network, self.channels, self.out_dim, self.self_condition = network, channels, channels, False

    def forward(self, x: Tensor, t: Tensor, x_self_cond: Tensor | None = None) -> Tensor:
        return self.network(x, t, return_dict=False)[0]


def lucidrains(case: Case) -> Any:
    """Its GaussianDiffusion around the same UNet2DModel. What it takes from torchvision isn't used here, and stood in for."""
    adapter = Adapter(case.unet(), case.channels)  # first: torchmetrics, within, mustn't find what stands in
    for name in ("torchvision", "torchvision.transforms", "torchvision.utils"):
        module = sys.modules[name] = types.ModuleType(name)
        module.__spec__, module.__path__ = ModuleSpec(name, None), []
        if "." in name:
            setattr(sys.modules["torchvision"], name.split(".")[1], module)
    from denoising_diffusion_pytorch import GaussianDiffusion

    return GaussianDiffusion(adapter, image_size=case.px, sampling_timesteps=case.calls).to(case.device)


def train_lucidrains(case: Case, turn: Turns) -> None:
    """The loop of its Trainer, with its defaults, in plain torch and without its reading of image files."""
    diffusion = lucidrains(case)
    from ema_pytorch import EMA

    optimizer = torch.optim.Adam(diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99))
    average = EMA(diffusion, beta=0.995, update_every=10)
    batches = case.loader()
    while True:
        turn()
        for _ in range(case.unit):
            images = next(batches).add(1).div(2)  # it wants [0, 1]
            with case.precisely():
                loss = diffusion(images)
            loss.item()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            average.update()


# Sampling -----------------------------------------------------------------------------------------------------------------


def sample_ours(case: Case, turn: Turns) -> None:
    """`sampling.sample`: keyed noise, labels, DPM-Solver++(2M), uint8; chunks of `batch`, as many at a time as threads."""
    from synthgen import sampling

    generator = case.generator().eval()
    if case.compile:
        generator.to(case.device).ema.network.unet.compile()
    threads, number = torch.get_num_threads(), 0
    torch.set_num_threads(1)  # a thread a chunk
    while True:
        turn()
        number += 1
        for _ in sampling.sample(
            generator, case.labels, seed=number, chunk=case.batch, batch=case.batch * threads, prefix="bench",
            device=case.device, precision=case.precision,
        ):  # fmt: skip
            pass


def sample_ours_within(case: Case, turn: Turns) -> None:
    """The same, a chunk after the other with all threads within each operation."""
    from synthgen import sampling

    generator, number = case.generator().eval(), 0
    while True:
        turn()
        number += 1
        for _ in sampling.sample(generator, case.labels, seed=number, chunk=case.batch, batch=case.batch, prefix="bench"):
            pass


def sample_bare(case: Case, turn: Turns, ours: bool = False) -> None:
    """As many forward passes as the samplers ask for, and nothing else."""
    from synthgen.models.unet import laid_out

    network = as_ours(case, case.generator().eval().ema.network) if ours else case.unet().eval()
    if case.device == "cuda":
        network.to(memory_format=torch.channels_last)
    if case.compile:
        network.compile()
    x = torch.randn(case.batch, case.channels, case.px, case.px).to(case.device)
    t = torch.ones(case.batch).to(case.device)
    condition = {"class_labels": torch.randn(case.batch, 4 * case.width).to(case.device)} if ours else {}
    while True:
        turn()
        with torch.inference_mode(), case.precisely():
            given = laid_out(x) if ours or case.device == "cuda" else x
            for _ in range(case.calls * (case.images // case.batch)):
                network(given, t, **condition, return_dict=False)


def sample_bare_ours(case: Case, turn: Turns) -> None:
    """... of the network as ours has it: its conditioning, and channels last."""
    sample_bare(case, turn, ours=True)


def ddim(network: Any) -> Any:
    from diffusers import DDIMPipeline, DDIMScheduler

    pipeline = DDIMPipeline(unet=network.eval(), scheduler=DDIMScheduler(num_train_timesteps=1000, beta_schedule="linear"))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample_ddim(case: Case, turn: Turns) -> None:
    """diffusers' DDIMPipeline, to numpy in [0, 1]."""
    pipeline = ddim(case.unet())
    while True:
        turn()
        for _ in range(case.images // case.batch):
            with case.precisely():
                pipeline(batch_size=case.batch, num_inference_steps=case.calls, output_type="np")


def sample_dpm(case: Case, turn: Turns) -> None:
    """diffusers' DPMSolverMultistepScheduler (DPM-Solver++ 2M) in the plain loop of its documentation, to uint8."""
    from diffusers import DPMSolverMultistepScheduler

    network = case.unet().eval()
    while True:
        turn()
        for _ in range(case.images // case.batch):
            scheduler = DPMSolverMultistepScheduler(num_train_timesteps=1000, beta_schedule="linear")
            scheduler.set_timesteps(case.calls)
            with torch.no_grad(), case.precisely():
                x = torch.randn(case.batch, case.channels, case.px, case.px).to(case.device)
                for t in scheduler.timesteps:
                    x = scheduler.step(network(x, t).sample, t, x).prev_sample
            (x / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8).cpu().numpy()


def sample_lucidrains(case: Case, turn: Turns) -> None:
    """lucidrains' GaussianDiffusion.sample (DDIM), in [0, 1]."""
    diffusion = lucidrains(case).eval()
    while True:
        turn()
        for _ in range(case.images // case.batch):
            with case.precisely():
                diffusion.sample(batch_size=case.batch).cpu().numpy()


# From a checkpoint to uint8 on disk ---------------------------------------------------------------------------------------


def disk_ours(case: Case, turn: Turns) -> None:
    """`models.from_bytes`, `sampling.sample`, `shards.raw.write`: what the job does."""
    from synthgen import models, sampling
    from synthgen.models.base import to_bytes
    from synthgen.shards import raw

    folder, made = Path(mkdtemp(dir=case.scratch)), case.generator()
    (folder / "generator.safetensors").write_bytes(to_bytes(made))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    while True:
        turn()
        generator = models.from_bytes((folder / "generator.safetensors").read_bytes())
        batches = sampling.sample(
            generator, case.labels, seed=0, chunk=case.batch, batch=case.batch * threads, prefix="bench", device=case.device,
            precision=case.precision,
        )  # fmt: skip
        raw.write(folder / "candidates.parquet", batches, made.spec)


def disk_diffusers(case: Case, turn: Turns, png: bool = True) -> None:
    """`DDIMPipeline.from_pretrained`, its call, and one PNG file an image (PIL's `save`)."""
    from diffusers import DDIMPipeline

    folder = Path(mkdtemp(dir=case.scratch))
    ddim(case.unet().cpu()).save_pretrained(folder / "checkpoint")
    while True:
        turn()
        pipeline = DDIMPipeline.from_pretrained(folder / "checkpoint").to(case.device)
        pipeline.set_progress_bar_config(disable=True)
        arrays = []
        for start in range(0, case.images, case.batch):
            with case.precisely():
                made = pipeline(batch_size=case.batch, num_inference_steps=case.calls, output_type="pil" if png else "np").images
            if png:
                for number, image in enumerate(made, start):
                    image.save(folder / f"{number:08d}.png")
            else:
                arrays.append((made * 255).round().astype(np.uint8))
        if arrays:
            np.save(folder / "images.npy", np.concatenate(arrays))


def disk_diffusers_npy(case: Case, turn: Turns) -> None:
    """... and one file of numpy's for all."""
    disk_diffusers(case, turn, png=False)


CONTENDERS: dict[str, dict[str, Callable[[Case, Turns], None]]] = {
    "train": {
        "ours": train_ours,
        "ours, streaming": train_streamed,
        "ours, streaming, cold": train_streamed_cold,
        "bare": train_bare_ours,
        "bare, as shipped": train_bare,
        "diffusers": train_diffusers,
        "diffusers, EMA": train_diffusers_ema,
        "lucidrains": train_lucidrains,
    },
    "sample": {
        "ours": sample_ours,
        "bare": sample_bare_ours,
        "bare, as shipped": sample_bare,
        "ours, threads within operations": sample_ours_within,
        "diffusers DDIM": sample_ddim,
        "diffusers DPM-Solver++": sample_dpm,
        "lucidrains": sample_lucidrains,
    },
    "disk": {"ours": disk_ours, "diffusers, PNG": disk_diffusers, "diffusers, npy": disk_diffusers_npy},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=list(CONTENDERS))
    parser.add_argument("contender")
    parser.add_argument("case", help="a case of generators.py as JSON")
    asked = parser.parse_args()
    case = Case(json.loads(asked.case))
    torch.set_num_threads(case.threads)
    CONTENDERS[asked.kind][asked.contender](case, Turns(case))


if __name__ == "__main__":
    main()
