"""Samples and runs are the same bytes for any number of workers, any `batch`, any order of work and any point of resumption."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest

from synthgen import jobs, models, sampling, training
from synthgen.types import Batch, Silent
from tests.faults import runs
from tests.faults.figures import LONG, short_or_long

KINDS = ("vae", "vqvae", "gan", "diffusion")
CHUNKS = (1, 3, 8)
IN_FLIGHT = (1, 2, 5)
NUM = 21


def samples(generator: models.Generator, chunk: int, in_flight: int, first: int = 0) -> dict[str, str]:
    """Key -> digest of every sample from `first` on."""
    labels = np.arange(NUM) % 3
    how = {"seed": 5, "chunk": chunk, "batch": chunk * in_flight, "prefix": "p", "first": first}
    whole = Batch.concatenate(list(sampling.sample(generator, labels, **how)))
    return {key: hashlib.sha256(image.tobytes()).hexdigest() for key, image in zip(whole.keys, whole.images, strict=True)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_is_fixed_by_checkpoint_seed_and_index(tiny, toy, toy_spec, kind, tally):
    generator = models.build(tiny.generators.of(kind), toy_spec, tiny.augment, seed=0)
    training.fit(generator, [(toy, 8)], steps=4, seed=0, task=kind, progress=Silent())
    wrong, cases = [], 0
    for chunk in CHUNKS:
        whole = samples(generator, chunk, 1)
        assert len(whole) == NUM
        for in_flight, first in itertools.product(IN_FLIGHT, range(0, NUM, chunk)):
            if not LONG and first not in (0, chunk, NUM // chunk * chunk):
                continue
            cases += 1
            found = samples(generator, chunk, in_flight, first)
            if found != {key: digest for key, digest in whole.items() if int(key.rsplit("-", 1)[1]) >= first}:
                wrong.append((chunk, in_flight, first))
    tally("determinism", cases, len(wrong))
    assert not wrong


@pytest.mark.timeout(1800)
def test_a_run_is_the_same_for_any_number_of_workers_threads_and_images_in_flight(tmp_path, tally):
    """Two generators, so that there is something to do side by side."""
    both = ["models=[vae,diffusion]", "generators.vae.steps=10", "generators.diffusion.steps=60", "gate.false_rejection=0.45"]
    names = [name for names in runs.MADE.values() for name in names]
    ways = [["workers=2"], ["workers=1", "generate.batch=1000"], ["workers=3", "export.threads=3", "generate.batch=1"]]
    calm, wrong = whole(tmp_path / "calm", both, names), []
    tried = short_or_long(ways, 2)
    for number, more in enumerate(tried):
        found = whole(tmp_path / str(number), [*both, *more], names)
        wrong += [f"{more}: {name}" for name in {*calm, *found} if calm.get(name) != found.get(name)]
    tally("determinism", len(tried), len({line.partition(":")[0] for line in wrong}))
    assert not wrong


def whole(out: Path, settings: list[str], names: list[str]) -> dict[str, str]:
    """A run as a whole; what its settings say of workers isn't compared."""
    jobs.run(runs.order(*settings), out)
    return {
        name: digest for name, digest in runs.contents(out, names).items() if name not in ("config.yaml", "report/report.json")
    }
