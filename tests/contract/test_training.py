"""Training: batches fixed by (seed, step), checkpoints that run no code, and mistakes named before any compute."""

from __future__ import annotations

import hashlib
import pickle
import signal
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from synthgen import models, training
from synthgen.checkpoints import AtomicCheckpointIO, NotFinite, newest
from synthgen.errors import CheckpointError, ConfigError, DataError
from synthgen.training import Keyed, Steps, pick_device
from synthgen.types import UNLABELLED, Batch, Silent

CPU = torch.device("cpu")


def numbered(n: int, first: int = 0) -> Batch:
    """Images whose pixels and label are both their number."""
    numbers = np.arange(first, first + n)
    images = np.broadcast_to(numbers[:, None, None, None], (n, 1, 4, 4)).astype(np.uint8)
    return Batch(images, numbers.astype(np.int64), tuple(str(i) for i in numbers))


def labels(data: Keyed, steps) -> np.ndarray:
    return np.concatenate([data[step][1].numpy() for step in steps])


# Keyed batches


@pytest.mark.parametrize("size", [8, 10, 24], ids=lambda size: f"batches of {size}")
def test_each_pass_is_a_permutation(size):
    seen = labels(Keyed([(numbered(24), size)], 0, CPU), range(3 * 24 // size + 1))
    passes = seen[:72].reshape(3, 24)
    assert (np.sort(passes, axis=1) == np.arange(24)).all()
    assert not np.array_equal(passes[0], np.arange(24))
    assert not np.array_equal(passes[0], passes[1])
    assert not np.array_equal(passes[1], passes[2])


def test_a_source_smaller_than_its_share_is_gone_through_evenly():
    counts = np.bincount(labels(Keyed([(numbered(5), 12)], 0, CPU), [0]))
    assert set(counts.tolist()) == {2, 3}


def test_a_batch_is_fixed_by_seed_and_step():
    whole, late = (Keyed([(numbered(24), 7)], 3, CPU) for _ in range(2))
    in_order = [whole[step] for step in range(20)]
    for step in (19, 4, 11):  # in any order, from any start
        assert torch.equal(late[step][0], in_order[step][0])
        assert torch.equal(late[step][1], in_order[step][1])
    other = Keyed([(numbered(24), 7)], 4, CPU)
    assert not np.array_equal(labels(other, range(20)), labels(whole, range(20)))


def test_images_stay_with_their_labels_and_lie_in_range():
    images, found = Keyed([(numbered(200), 50)], 0, CPU)[2]
    assert torch.equal(((images[:, 0, 0, 0] + 1) * 127.5).round().long(), found)
    assert images.dtype == torch.float32
    assert images.abs().max() <= 1


def test_a_mix_of_two_sources_has_the_right_counts():
    data = Keyed([(numbered(24), 6), (numbered(10, first=100), 2)], 0, CPU)
    each = [data[step][1].numpy() for step in range(20)]
    assert all((batch < 100).sum() == 6 and (batch >= 100).sum() == 2 for batch in each)
    seen = np.concatenate(each)
    assert np.array_equal(np.sort(seen[seen < 100][:24]), np.arange(24))
    assert np.array_equal(np.sort(seen[seen >= 100][:10]), np.arange(100, 110))


@pytest.mark.parametrize(("pauses", "ends"), [((), [7, 11, 13]), ((2, 5, 11, 20), [5, 7, 11, 13])])
def test_every_step_comes_once_and_an_epoch_ends_at_each_pause(pauses, ends, monkeypatch):
    monkeypatch.setattr(training, "EPOCH", 4)
    steps = Steps(3, 13, pauses)
    seen, found = [], []
    for epoch in range(steps.epochs):
        steps.set_epoch(epoch)
        assert len(list(steps)) == len(steps)
        seen += list(steps)
        found.append(seen[-1] + 1)
    assert seen == list(range(3, 13))
    assert found == ends


# Checkpoints


class Attack:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_checkpoint_comes_back_whole(tmp_path):
    state = {"state_dict": {"w": torch.arange(3.0)}, "callbacks": {"Watch": {"done": 7, "losses": [[1, 0.5]]}}}
    AtomicCheckpointIO().save_checkpoint(state, tmp_path / "a.ckpt")
    loaded = AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")
    assert torch.equal(loaded["state_dict"].pop("w"), state["state_dict"].pop("w"))
    assert loaded == state
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize("written_by", ["torch", "pickle"])
def test_a_checkpoint_with_code_in_it_is_refused_unrun(tmp_path, written_by):
    path, trace = tmp_path / "resume-0.ckpt", tmp_path / "it-ran"
    if written_by == "torch":
        torch.save({"state_dict": Attack(trace)}, path)
    else:
        path.write_bytes(pickle.dumps({"state_dict": Attack(trace)}, protocol=2))
    code = path.read_bytes()
    path.write_bytes(code + hashlib.sha256(code).digest())
    with pytest.raises(CheckpointError, match="not a checkpoint of a training"):
        AtomicCheckpointIO().load_checkpoint(path, weights_only=False)
    assert not trace.exists()
    path.write_bytes(code)
    torch.load(path, weights_only=False) if written_by == "torch" else pickle.loads(path.read_bytes())
    assert trace.exists(), "the attack works where code is run"


@pytest.mark.parametrize("part", ["state_dict", "optimizer_states"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_good_checkpoint_is_never_replaced_by_one_that_is_not_finite(tmp_path, part, value):
    good = {"state_dict": {"w": torch.ones(3)}, "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}]}
    AtomicCheckpointIO().save_checkpoint(good, tmp_path / "a.ckpt")
    before = (tmp_path / "a.ckpt").read_bytes()
    bad = {"state_dict": {"w": torch.ones(3)}, "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}]}
    found = bad[part]["w"] if part == "state_dict" else bad[part][0]["state"][0]["exp_avg"]
    found[1] = value
    with pytest.raises(NotFinite, match=part):
        AtomicCheckpointIO().save_checkpoint(bad, tmp_path / "a.ckpt")
    assert (tmp_path / "a.ckpt").read_bytes() == before


@pytest.mark.parametrize("place", range(0, 1200, 97))
def test_a_flipped_bit_of_a_checkpoint_is_seen(tmp_path, place):
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"w": torch.zeros(50)}}, tmp_path / "a.ckpt")
    data = bytearray((tmp_path / "a.ckpt").read_bytes())
    data[place % len(data)] ^= 4
    (tmp_path / "a.ckpt").write_bytes(data)
    with pytest.raises(CheckpointError, match="differs from the sha256"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")


def fit(tiny, toy, toy_spec, folder, steps=8, save_every_s=0.0):
    vae = tiny.generators.vae.model_copy(update={"steps": steps})
    module = models.build(vae, toy_spec, tiny.augment, seed=0)
    settings = {"steps": steps, "seed": 0, "task": "vae", "progress": Silent()}
    return module, training.fit(module, [(toy, 16)], folder=folder, save_every_s=save_every_s, **settings)


def same(one: nn.Module, two: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_a_kill_after_the_last_step_does_not_leave_an_untrained_network(tiny, toy, toy_spec, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "EPOCH", 4)
    first, first_fit = fit(tiny, toy, toy_spec, tmp_path)
    assert list(tmp_path.glob("resume-*.ckpt"))
    again, again_fit = fit(tiny, toy, toy_spec, tmp_path)
    assert same(first, again)
    assert first_fit.losses == again_fit.losses


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tiny, toy, toy_spec, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "EPOCH", 2)
    whole, _ = fit(tiny, toy, toy_spec, tmp_path)
    last = max(tmp_path.glob("resume-*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    last.write_bytes(last.read_bytes()[:100])
    assert newest(tmp_path)["callbacks"]["Watch"]["done"] == 4
    resumed, _ = fit(tiny, toy, toy_spec, tmp_path)
    assert same(whole, resumed)


# Mistakes


def test_an_interruption_by_the_user_is_one_to_the_caller(tiny, toy, toy_spec, tmp_path):
    """Lightning would end the process, and be deaf to any other from then on."""

    class Impatient(Silent):
        def advance(self, task: str, steps: int = 1, note: str = "") -> None:
            raise KeyboardInterrupt

    module = models.build(tiny.generators.vae, toy_spec, tiny.augment)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        training.fit(module, [(toy, 16)], steps=8, seed=0, task="vae", progress=Impatient(), folder=tmp_path)
    assert signal.getsignal(signal.SIGINT) is before


def test_nothing_to_train_on_is_named(toy):
    for source, message in (
        (toy.take(np.arange(0)), "vae: no images to train on"),
        (Batch(toy.images, np.where(np.arange(24) < 5, UNLABELLED, toy.labels), toy.keys), "vae: 5 images have no label"),
    ):
        with pytest.raises(DataError, match=message):
            training.fit(pl.LightningModule(), [(toy, 8), (source, 8)], steps=2, seed=0, task="vae", progress=Silent())


def test_cuda_without_cuda_is_refused_and_never_replaced(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == "cpu"
    with pytest.raises(ConfigError, match="device=cuda was asked for, but torch finds no CUDA device"):
        pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == pick_device("cuda") == "cuda"
    assert pick_device("cpu") == "cpu"
