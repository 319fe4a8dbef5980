"""A pool without labels: the committee's labels, what the generator trains on, and where copies are looked for then."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from synthgen import jobs
from synthgen.config.load import load
from synthgen.config.schema import RunConfig
from synthgen.errors import ConfigError, DataError
from synthgen.gate import signals
from synthgen.jobs import pools
from synthgen.jobs.gains import Contest, Judged, _setting, check_study
from synthgen.jobs.gates import Judging
from synthgen.jobs.real import Split
from synthgen.shards import raw
from synthgen.types import UNLABELLED, Batch

SETTINGS = [
    "split.pool=100",
    "pool.train=true",
    "pool.networks=2",
    "classifier.steps=60",
    *("features.steps=10", "features.defect_steps=0", "features.cache=false", "tracking=off"),
]


def config(*more: str) -> RunConfig:
    return load("digits-smoke", [*SETTINGS, *more])


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """A split with a pool, its labels and the gate's networks."""
    folder, order = tmp_path_factory.mktemp("pool"), jobs.Order(config())
    jobs.audit(order, folder)
    found = Split.open(folder)
    pools.label_pool(order, found, folder / "pool")
    jobs.features(order, found, folder / "features")
    return found


def test_the_committee_labels_what_it_is_sure_of_and_is_mostly_right(split):
    taken = raw.read(pools.folder_of(split) / pools.LABELS, split.spec)
    hidden, pool = split.hidden(), split.role("pool")
    assert set(taken.keys) <= set(pool.keys)
    assert (pool.labels == UNLABELLED).all()
    assert 20 < len(taken) <= 100
    truth = np.array([hidden[key] for key in taken.keys])
    assert (taken.labels == truth).mean() > 0.7


def test_rounds_of_pseudo_labels_are_another_way(split, tmp_path):
    pools.label_pool(jobs.Order(config("pool.method=pseudo", "pool.rounds=1", "pool.confidence=0.3")), split, tmp_path / "pool")
    assert len(raw.read(tmp_path / "pool" / pools.LABELS, split.spec)) > 20


def test_a_generator_sees_the_pool_only_where_it_may(split):
    seen = pools.with_pool(jobs.Order(config()), split)
    taken = raw.read(pools.folder_of(split) / pools.LABELS, split.spec)
    assert seen.keys == (*split.role("train").keys, *taken.keys)
    assert pools.with_pool(jobs.Order(config("pool.train=false")), split).keys == split.role("train").keys


def test_copies_are_looked_for_in_the_pool_too(split):
    judging = Judging(jobs.Order(config()), split, split.folder.parent / "features")
    real, taken = judging.real(), raw.read(pools.folder_of(split) / pools.LABELS, split.spec)
    assert set(real.copied.features.keys) == {*split.role("train").keys, *taken.keys}
    copies = Batch(taken.images[:20], taken.labels[:20], tuple(f"copy-{i}" for i in range(20)))
    found = signals.find(judging.evidence(copies), real, config().gate)
    assert (found.signals["copy"] == 0).all()
    assert (found.nearest >= len(split.role("train"))).all()


def test_the_study_may_use_the_same_labels(split, tmp_path):
    order = jobs.Order(config())
    nothing = Judged("none", tmp_path / "none", tmp_path / "gate", ("", ""))
    contest = Contest.of(order, split, nothing)
    assert "pool" in contest.inputs
    with pytest.MonkeyPatch.context() as patch:
        none = split.role("train").take(np.zeros(0, np.int64))
        patch.setattr(Judged, "kept", lambda self, *_: (none, none))
        data = _setting(contest).data
    assert data.pool_labels is not None
    assert len(data.pool_labels) == len(pools.with_pool(order, split)) - len(data.train)
    assert len(data.unlabelled) == 400


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["split.pool=0"], "there are no unlabelled images"),
        (["pool.confidence=1.0"], "the committee is sure of none of 100 images"),
    ],
)
def test_a_pool_that_helps_nobody_is_refused(settings, message, tmp_path: Path):
    order = jobs.Order(config(*settings, "classifier.steps=4"))
    jobs.audit(order, tmp_path)
    with pytest.raises(DataError, match=message):
        pools.label_pool(order, Split.open(tmp_path), tmp_path / "pool")


def test_rounds_are_for_pseudo_labels():
    with pytest.raises(ConfigError, match="rounds is for method=pseudo"):
        config("pool.rounds=3")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["gain.arms=[real_aug,generator_gan,synthetic_gated]"], "'generator_gan': no such generator"),
        (["gain.arms=[transfer,synthetic_gated]"], "no arm of real images alone is left .*gain.transfer=FOLDER"),
        (["gain.arms=[svm_pixels,real_committee,synthetic_gated]"], "'real_committee' is made of"),
    ],
)
def test_arms_that_cannot_be_run_are_refused_before_anything_is_trained(split, settings, message):
    with pytest.raises(ConfigError, match=message):
        check_study(jobs.Order(config(*settings)), split, ["vae"])


def test_a_test_split_of_a_single_patient_is_refused_before_anything_is_trained(tmp_path):
    """Its images say nothing of other patients; after hours of training that would come too late."""
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.tile([0, 1], 20), patient=[f"p{i // 10}" for i in range(40)])
    data = [f"data.path={tmp_path / 'a.npz'}", "data.source=npz", "data.group_column=patient"]
    sizes = ["split.train=10", "split.val=10", "split.reference=10", "split.test=10", "split.pool=0"]
    order = jobs.Order(config(*data, *sizes, "data.size_px=null"))
    jobs.audit(order, tmp_path / "run")
    found = Split.open(tmp_path / "run")
    assert len(set(found.blocks("test").tolist())) == 1
    with pytest.raises(DataError, match=r"10 test images of a single group \(patient.*raise split.test"):
        check_study(order, found, ["vae"])


def test_a_study_that_can_be_run_is_let_through(split):
    check_study(jobs.Order(config("gain=full")), split, ["vae", "gan"])
    check_study(jobs.Order(config("gain.arms=[real_aug,pool_labels,generator_gan,synthetic_gated]")), split, ["vae", "gan"])
