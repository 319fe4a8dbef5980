"""What a split folder says of its images: the pool, hidden labels, groups, near duplicates of test, where they come from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from synthgen import storage
from synthgen.config.schema import DataConfig, RunConfig, SplitConfig
from synthgen.data.sources import load
from synthgen.data.splits import ROLES
from synthgen.errors import DataError, StorageError
from synthgen.jobs.order import Order
from synthgen.jobs.real import Split, audit, share_images
from synthgen.types import UNLABELLED

FEW = SplitConfig(train=50, val=50, reference=300, reference_labelled=False, test=0.5, pool=100)


def made(out: Path, split: SplitConfig = FEW, **data: object) -> Split:
    audit(Order(RunConfig(data=DataConfig(**data), split=split)), out)  # type: ignore[arg-type]
    return Split.open(out)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return made(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """200 labelled images and 40 unlabelled ones of 60 patients."""
    root = tmp_path_factory.mktemp("patients")
    images = np.random.default_rng(0).integers(0, 256, (240, 8, 8), dtype=np.uint8)
    labels = np.concatenate([np.tile([0, 1], 100), np.full(40, -1)])
    np.savez(root / "a.npz", images=images, labels=labels, patient=[f"p{i % 60}" for i in range(240)])
    config = SplitConfig(train=60, val=40, reference=20, test=40, pool=20)
    return made(root / "run", config, source="npz", path=str(root / "a.npz"), group_column="patient", unlabelled=-1)


def test_the_pool_is_on_disk_without_labels_and_hidden_json_has_them(digits: Split):
    truth = load(DataConfig()).batch
    number = dict(zip(truth.keys, truth.labels.tolist(), strict=True))
    hidden = digits.hidden()
    keys = [key for role in ("reference", "pool") for key in digits.role(role).keys]
    assert (len(digits.role("pool")), set(hidden)) == (100, set(keys))
    assert hidden == {key: number[key] for key in keys}
    for role in ("reference", "pool"):
        assert (digits.role(role).labels == UNLABELLED).all()
        assert digits.labelled(role).labels.tolist() == [number[key] for key in digits.role(role).keys]
        np.testing.assert_array_equal(digits.labelled(role).images, digits.role(role).images)
    assert digits.labelled("train").labels.tolist() == digits.role("train").labels.tolist()


def test_a_labelled_reference_hides_nothing(tmp_path: Path):
    config = FEW.model_copy(update={"reference_labelled": True, "pool": 0})
    split = made(tmp_path, config)
    assert split.hidden() == {}
    assert len(split.role("pool")) == 0
    assert (split.role("reference").labels != UNLABELLED).all()


def test_what_has_no_label_in_the_source_has_none_in_a_simulation(patients: Split):
    pool, simulated = patients.role("pool"), patients.labelled("pool")
    assert (pool.labels == UNLABELLED).all()
    own = np.array([int(key.removeprefix("real-")) >= 200 for key in pool.keys])
    assert 0 < own.sum() < len(own)
    assert (simulated.labels[own] == UNLABELLED).all()
    assert (simulated.labels[~own] != UNLABELLED).all()
    assert set(patients.hidden()) == {key for key, is_own in zip(pool.keys, own, strict=True) if not is_own}


def test_groups_stand_beside_their_images(patients: Split, digits: Split):
    for role in ROLES:
        keys = patients.role(role).keys
        assert patients.groups(role) == tuple(f"p{int(key.removeprefix('real-')) % 60}" for key in keys)
    judging = {group for role in ("test", "val", "reference") for group in patients.groups(role)}
    assert not judging & {*patients.groups("train"), *patients.groups("pool")}
    assert digits.groups("test") == (None,) * 898
    assert not (digits.folder / "groups.json").exists()


def test_blocks_stand_beside_their_images(patients: Split, digits: Split, tmp_path: Path):
    for role in ROLES:
        blocks, groups = patients.blocks(role), patients.groups(role)
        assert len(blocks) == len(groups)
        assert len(set(zip(blocks.tolist(), groups, strict=True))) == len(set(groups)) == len(set(blocks.tolist()))
    assert len(set(digits.blocks("test").tolist())) in (897, 898), "two digits are nearly the same"
    images = np.random.default_rng(0).integers(0, 256, (120, 8, 8), dtype=np.uint8)
    images[60:] = images[:60]
    np.savez(tmp_path / "a.npz", images=images, labels=np.tile([0, 1], 60))
    for together, expected in ((True, 20), (False, 40)):
        config = SplitConfig(train=30, val=20, reference=20, test=40, keep_near_duplicates_together=together)
        split = made(tmp_path / str(together), config, source="npz", path=str(tmp_path / "a.npz"))
        assert len(set(split.blocks("test").tolist())) == expected


def test_near_duplicates_of_test_images_are_named(tmp_path: Path):
    images = np.random.default_rng(0).integers(0, 256, (120, 8, 8), dtype=np.uint8)
    images[60:] = images[:60]
    np.savez(tmp_path / "a.npz", images=images, labels=np.tile([0, 1], 60))
    source = {"source": "npz", "path": str(tmp_path / "a.npz")}
    config = SplitConfig(train=30, val=20, reference=20, test=40, pool=10, keep_near_duplicates_together=False)
    split = made(tmp_path / "apart", config, **source)

    def pictures(role: str) -> dict[bytes, str]:
        batch = split.role(role)
        return {image.tobytes(): key for image, key in zip(batch.images, batch.keys, strict=True)}

    test = split.role("test")
    for roles in (("train",), ("train", "val", "reference", "pool")):
        elsewhere = {picture for role in roles for picture in pictures(role)}
        twins = {key for image, key in zip(test.images, test.keys, strict=True) if image.tobytes() in elsewhere}
        assert split.near_train(roles) == twins
        assert twins
    together = made(tmp_path / "together", config.model_copy(update={"keep_near_duplicates_together": True}), **source)
    assert together.near_train(("train", "val", "reference", "pool")) == frozenset()


def test_hidden_labels_are_part_of_the_split(tmp_path: Path):
    split = made(tmp_path)
    storage.write_text(split.folder / "hidden.json", "{}")
    with pytest.raises(StorageError, match=r"hidden.json: differs from its sha256"):
        Split.open(tmp_path)
    storage.write_text(split.folder / "hidden.json", '{"real-000001": 10}')
    with pytest.raises(DataError, match=r"hidden.json: real-000001 has the label 10, and there are 10 classes; make the split"):
        split.hidden()
    (split.folder / "hidden.json").unlink()
    with pytest.raises(DataError, match=r"hidden.json: no such file, the split is of an older version; make it again"):
        split.labelled("pool")


def test_disjoint_classes_of_one_source_share_no_images(tmp_path: Path, digits: Split):
    small = SplitConfig(train=20, val=20, reference=20, test=20)
    low, high, middle = (
        made(tmp_path / str(first), small, classes=tuple(map(str, range(first, first + 5)))) for first in (0, 5, 3)
    )
    assert (low.source, low.spec.num_classes) == (digits.source, 5)
    assert not share_images(low.origin, high.origin)
    for one, other in ((low, middle), (high, middle), (low, digits), (digits, high), (low, low), (digits, digits)):
        assert share_images(one.origin, other.origin)
    assert not share_images("", "")
    assert not share_images(digits.origin, "another digest")


def test_unlabelled_images_may_be_of_any_class(tmp_path: Path):
    images, labels = np.random.default_rng(0).integers(0, 256, (90, 8, 8), dtype=np.uint8), np.tile([0, 1, 2, 3, -1], 18)
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    small = SplitConfig(train=8, val=8, reference=8, test=8)
    source = {"source": "npz", "path": str(tmp_path / "a.npz"), "unlabelled": "-1"}
    one, other = (made(tmp_path / name, small, classes=tuple(name), **source) for name in ("01", "23"))
    assert len(one.role("pool")) == 18
    assert share_images(one.origin, other.origin)
