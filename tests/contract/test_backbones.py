"""`features.init_from`: the gate's networks start from another run's, which has seen none of this one's test images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save

from synthgen import jobs, storage
from synthgen.config.load import load
from synthgen.errors import CheckpointError, StorageError
from synthgen.jobs import backbones, gates, transfer
from synthgen.jobs.real import Split

KEY = "features.init_from"
FEW = ["features.steps=2", "features.defect_steps=0", "features.folds=2", "features.width=4", "features.dim=8", "tracking=off"]
FEW += ["device=cpu", "split.train=20", "split.val=10", "split.reference=100", "split.test=0.3", "features.cache=false"]
LOW, HIGH, ODD = "[0,1,2,3]", "[4,5,6,7,8]", "[1,3,9]"


def order(classes: str, *settings: str) -> jobs.Order:
    return jobs.Order(load("digits-smoke", [*FEW, f"data.classes={classes}", *settings]))


def made(folder: Path, classes: str, *settings: str) -> Split:
    """A run folder with its split and its features."""
    given = order(classes, *settings)
    jobs.audit(given, folder)
    split = Split.open(folder)
    gates.features(given, split, folder / "features")
    return split


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs: `low`, digits 0 to 3; `low-again`, another split of them; `high`, digits 4 to 8."""
    folder = tmp_path_factory.mktemp("runs")
    made(folder / "low", LOW)
    made(folder / "low-again", LOW, "split.seed=1")
    made(folder / "high", HIGH)
    return folder


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_tensors(path.read_bytes())


def test_extractor_and_judges_start_from_it_and_the_class_layer_is_fresh(runs, monkeypatch):
    """What training is handed, before its first step."""
    start, split = {}, Split.open(runs / "high")
    given = order(HIGH, f"{KEY}={runs / 'low' / 'features'}")

    def fit(module, *_, **__):
        start[module.seed] = {name: tensor.clone() for name, tensor in module.network.state_dict().items()}

    monkeypatch.setattr(gates.training, "fit", fit)
    theirs = weights(runs / "low" / "features" / "extractor.safetensors")
    for name in ("extractor", "judge-0", "judge-1"):
        gates._train_network(gates._NetworkTask(given, split, name), given.progress)
    assert len(start) == 3
    for found in start.values():
        assert {name for name in found if not name.startswith("head.")} == {n for n in theirs if not n.startswith("head.")}
        assert all(torch.equal(found[name], theirs[name]) for name in found if not name.startswith("head."))
        assert found["head.weight"].shape == (5, 8)
        assert theirs["head.weight"].shape == (4, 8), "the number of classes may differ"
    assert len({found["head.weight"].numpy().tobytes() for found in start.values()}) == 3, "each has its own"


def test_its_weights_are_an_input_and_a_change_of_them_is_noticed(runs, tmp_path):
    other = shutil.copytree(runs / "low" / "features", tmp_path / "other")
    split = made(tmp_path / "run", HIGH, f"{KEY}={other}")
    inputs = storage.read_manifest(tmp_path / "run" / "features")["inputs"]
    assert inputs == {"split": split.digest, "init_from": storage.sha256_file(other / "extractor.safetensors")}
    plain = weights(runs / "high" / "features" / "extractor.safetensors")
    found = weights(tmp_path / "run" / "features" / "extractor.safetensors")
    assert not torch.equal(found["stages.0.weight"], plain["stages.0.weight"])
    moved = other.rename(tmp_path / "moved")
    gates.features(order(HIGH, f"{KEY}={moved}"), split, tmp_path / "run" / "features")  # where it lies is nobody's business
    again = runs / "low-again" / "features"
    with pytest.raises(StorageError, match=r"'features' was made differently: inputs\.init_from was"):
        gates.features(order(HIGH, f"{KEY}={again}"), split, tmp_path / "run" / "features")
    with pytest.raises(StorageError, match=r"inputs\.init_from was .* is null"):
        gates.features(order(HIGH), split, tmp_path / "run" / "features")


# What is refused, before anything is trained


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ["features.width=6"],
            r"its network has features\.width=4 and features\.dim=8, here they are 6 and 8; give features\.wid",
        ),
        (["features.dim=9"], r"here they are 4 and 9; give features\.width=4 features\.dim=8"),
        (["data.channels=3"], r"trained on images of 1 channels, here they have 3; give data\.channels"),
    ],
)
def test_what_does_not_fit_is_refused(runs, tmp_path, settings, said):
    given = order(HIGH, f"{KEY}={runs / 'low' / 'features'}", *settings)
    jobs.audit(given, tmp_path)
    with pytest.raises(CheckpointError, match=rf"features\.init_from=.*{said}"):
        gates.check_start(given, Split.open(tmp_path))


def test_a_run_refuses_it_before_anything_is_trained(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(gates.training, "fit", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(CheckpointError, match=r"features\.init_from=nowhere: no such folder; it should hold extractor"):
        jobs.run(order(HIGH, f"{KEY}=nowhere"), tmp_path / "a")
    assert not (tmp_path / "a" / "split").exists(), "nor is anything read"
    with pytest.raises(CheckpointError, match=r"low: holds no extractor\.safetensors; give the features/ folder of another run"):
        jobs.run(order(HIGH, f"{KEY}={runs / 'low'}"), tmp_path / "b")
    with pytest.raises(CheckpointError, match="trained on another split of the same images"):
        jobs.run(order(LOW, "split.seed=2", f"{KEY}={runs / 'low' / 'features'}"), tmp_path / "c")


def test_what_may_have_seen_the_test_images_is_refused(runs):
    """Another split of the same classes, or of classes that have one in common; other classes and the very same split pass."""
    low = Split.open(runs / "low")
    for classes, run in ((LOW, "low"), (LOW, "low-again"), (HIGH, "high")):
        given = order(classes, f"{KEY}={runs / run / 'features'}")
        if run == "low-again":
            with pytest.raises(CheckpointError, match=r"it, or its own start, was trained on another split of the same images"):
                gates.check_start(given, low)
        else:
            gates.check_start(given, low)


def test_classes_in_common_are_refused(runs, tmp_path):
    jobs.audit(order(ODD), tmp_path)
    with pytest.raises(CheckpointError, match="another split of the same images"):
        gates.check_start(order(ODD, f"{KEY}={runs / 'low' / 'features'}"), Split.open(tmp_path))
    gates.check_start(order(ODD, f"{KEY}={runs / 'high' / 'features'}"), Split.open(tmp_path))


def test_what_a_start_started_from_counts_too(runs, tmp_path):
    """low-again -> high -> low: the first saw images that are in the test split of the last."""
    middle = made(tmp_path / "high", HIGH, f"{KEY}={runs / 'low-again' / 'features'}")
    first = Split.open(runs / "low-again")
    folder = tmp_path / "high" / "features"
    assert backbones.trained_on(folder, KEY) == ((middle.origin, middle.digest), (first.origin, first.digest))
    with pytest.raises(CheckpointError, match="its own start, was trained on another split of the same images"):
        gates.check_start(order(LOW, f"{KEY}={folder}"), Split.open(runs / "low"))
    with pytest.raises(CheckpointError, match=r"gain\.transfer=.* its own start"):
        transfer.read(folder, order(LOW), Split.open(runs / "low"))


def test_a_copy_of_the_folder_says_what_it_was_trained_on(runs, tmp_path):
    copied = shutil.copytree(runs / "low-again" / "features", tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="another split of the same images"):
        transfer.read(copied, order(LOW), Split.open(runs / "low"))
    transfer.read(copied, order(HIGH), Split.open(runs / "high"))


def test_a_folder_that_says_nothing_is_believed_beside_its_split_alone(runs, tmp_path):
    """Of an older version, or only a part of one."""
    bare = tmp_path / "run" / "features"
    bare.mkdir(parents=True)
    shutil.copy(runs / "low-again" / "features" / "extractor.safetensors", bare)
    with pytest.raises(
        CheckpointError, match=r"nothing says what it was trained on \(no trained_on\.json in it, no split/ beside"
    ):
        transfer.read(bare, order(HIGH), Split.open(runs / "high"))
    shutil.copytree(runs / "low-again" / "split", tmp_path / "run" / "split")
    transfer.read(bare, order(HIGH), Split.open(runs / "high"))
    with pytest.raises(CheckpointError, match="another split of the same images"):
        transfer.read(bare, order(LOW), Split.open(runs / "low"))


def test_what_it_was_trained_on_can_not_be_edited(runs, tmp_path):
    copied = shutil.copytree(runs / "low-again" / "features", tmp_path / "elsewhere")
    path = copied / backbones.TRAINED_ON
    said = json.loads(path.read_text())
    path.write_text(storage.as_text(said | {"images": []}))
    with pytest.raises(StorageError, match=r"trained_on\.json: differs from its sha256"):
        backbones.trained_on(copied, KEY)
    (copied / storage.STAGE_MANIFEST).unlink()
    with pytest.raises(CheckpointError, match=r"features\.init_from=.*trained_on\.json: differs from the sha256 in it"):
        backbones.trained_on(copied, KEY)
    storage.write_sealed(path, {"schema": backbones.TRAINED_ON_SCHEMA, "images": [["a", 3]]})
    with pytest.raises(CheckpointError, match=r"trained_on\.json: images\[0\]\[1\] is 3, expected a text"):
        backbones.trained_on(copied, KEY)
    storage.write_sealed(path, {"schema": "another/1", "images": []})
    with pytest.raises(CheckpointError, match="images is null, expected a list"):
        backbones.trained_on(copied, KEY)


@pytest.mark.parametrize("content", [b"", b"\x80\x04.", save({"a": torch.zeros(2)}), "NaN"])
def test_what_is_no_extractor_is_refused(runs, tmp_path, content):
    copied = shutil.copytree(runs / "low" / "features", tmp_path / "elsewhere")
    (copied / storage.STAGE_MANIFEST).unlink()
    if content == "NaN":
        found = weights(copied / "extractor.safetensors")
        content = save(found | {"to_features.bias": found["to_features.bias"] * torch.nan})
    (copied / "extractor.safetensors").write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"features\.init_from=.*extractor\.safetensors can't be read .*; give the features/"
    ):
        gates.check_start(order(HIGH, f"{KEY}={copied}"), Split.open(runs / "high"))
