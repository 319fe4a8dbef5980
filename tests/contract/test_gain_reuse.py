"""A study's networks outlive it: what is asked for later trains what isn't there, and the openings of the test set are told."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synthgen import jobs, storage
from synthgen.config.load import load
from synthgen.config.schema import RunConfig
from synthgen.errors import StorageError
from synthgen.gain import assess, cells
from synthgen.gain.arms import RECIPES
from synthgen.gain.cells import Cell, Network
from synthgen.jobs import gains
from synthgen.jobs.finished import FOLDER, OPENED, Finished, openings
from synthgen.jobs.gains import Contest, Judged
from synthgen.jobs.real import Split
from synthgen.types import Batch, GainReport
from synthgen.workers import Pool

SETTINGS = [
    "gain.arms=[real,real_aug,pseudo_labels,synthetic_gated]",
    "gain.seeds=2",
    "gain.together=2",
    "gain.tune_seeds=0",
    *("classifier.steps=3", "classifier.width=4", "classifier.batch_size=8", "features.cache=false", "tracking=off"),
]


def config(*more: str) -> RunConfig:
    return load("digits-smoke", [*SETTINGS, *more])


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    folder = tmp_path_factory.mktemp("real")
    jobs.audit(jobs.Order(config()), folder)
    return Split.open(folder)


class Run:
    """A run folder in which studies are made; what they train and which test images they look at is counted."""

    def __init__(self, split: Split, out: Path, patch: pytest.MonkeyPatch) -> None:
        self.split, self.out = split, out
        self.settings: list[str] = []
        self.trained: list[Cell] = []
        self.predicted: list[Cell] = []
        self.stop: Callable[[Cell], bool] = lambda cell: False
        train, predict, ours = cells.train_cell, cells.predict, split.role("test").images.tobytes()

        def training(cell: Cell, *rest: Any) -> Any:
            if self.stop(cell):
                raise KeyboardInterrupt
            self.trained.append(cell)
            return train(cell, *rest)

        def predicting(cell: Cell, done: Any, setting: Any, images: np.ndarray) -> np.ndarray:
            if images.tobytes() == ours:
                self.predicted.append(cell)
            return predict(cell, done, setting, images)

        def kept(judged: Judged, order: Any, split: Split, ignoring: frozenset[str] = frozenset()) -> tuple[Batch, Batch]:
            batch = split.role("val")
            return replace(batch, keys=tuple(f"{judged.name}-{key}" for key in batch.keys)), batch

        patch.setattr(cells, "train_cell", training)
        patch.setattr(cells, "predict", predicting)
        patch.setattr(Judged, "kept", kept)

    def study(self, *settings: str, candidates: str = "one", restart: bool = False) -> GainReport:
        """Makes the study; `trained` and `predicted` hold this one's cells alone."""
        self.trained.clear()
        self.predicted.clear()
        order = jobs.Order(config(*self.settings, *settings), restart)
        judged = Judged("vae", self.out / "candidates", self.out / "gate", (candidates, candidates))
        return gains.gain(order, Contest.of(order, self.split, judged), self.out / "gain", Pool(1))

    @property
    def opened(self) -> dict[str, Any]:
        return storage.read_json(self.out / "gain" / "opened.json")


@pytest.fixture
def run(split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(split, tmp_path / "run", monkeypatch)


@pytest.fixture(scope="module")
def made(split: Split, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Cell]]:
    """A finished study, and what it trained."""
    with pytest.MonkeyPatch.context() as patch:
        run = Run(split, tmp_path_factory.mktemp("made") / "run", patch)
        run.study("gain.tune_seeds=1")
        return run.out, run.trained


@pytest.fixture
def finished(made: tuple[Path, list[Cell]], run: Run) -> Run:
    """The finished study, to be added to."""
    shutil.copytree(made[0], run.out)
    run.settings.append("gain.tune_seeds=1")
    run.trained += made[1]
    return run


def without_time(report: GainReport) -> GainReport:
    """Wall seconds differ from run to run, and what is said of them."""
    rows = tuple(replace(row, seconds=0.0, device_seconds=0.0) for row in report.rows)
    return replace(report, rows=rows, advice=())


def test_samples_that_are_test_images_are_told(run, split, monkeypatch):
    """A generator from elsewhere may have been trained on what became the test images."""
    shown = split.role("test")

    def kept(judged: Judged, order: Any, split: Split, ignoring: frozenset[str] = frozenset()) -> tuple[Batch, Batch]:
        batch = replace(shown, keys=tuple(f"candidate-{key}" for key in shown.keys)).take(np.arange(20))
        return batch, batch

    def told(report: GainReport) -> Any:
        return next(control for control in report.controls if "near duplicates of training images" in control.question)

    assert told(run.study("gain.curve=false")).answer.startswith("no test image has a near duplicate")
    monkeypatch.setattr(Judged, "kept", kept)
    report = run.study("gain.curve=false", candidates="two", restart=True)
    assert re.search(
        r"^20 have one, 20 among the synthetic images, whose generator may have seen them; without", told(report).answer
    )
    assert report.verdict != "use"


# Only assessed anew


@pytest.mark.parametrize(
    ("setting", "where"),
    [
        ("gain.extrapolate=true", lambda report: report.curve),
        ("gain.next_images=7", lambda report: report.curve.next_images),
        ("gain.smallest_gain=30", lambda report: report.reasons),
        ("gain.watts=55", lambda report: report.watts),
    ],
)
def test_how_a_study_is_told_trains_nothing_and_needs_no_restart(finished, setting, where):
    before = GainReport.from_json(storage.read_json(finished.out / "gain" / "gain.json"))
    report = finished.study(setting)
    assert finished.trained == []
    assert finished.predicted == [], "the test images are looked at once"
    assert where(report) != where(before)
    assert report.rows == before.rows
    assert report == GainReport.from_json(storage.read_json(finished.out / "gain" / "gain.json"))
    assert finished.study(setting) == report
    again = finished.study()
    assert finished.trained == []
    assert again.intervals == before.intervals


def test_the_openings_are_told(finished):
    first = finished.opened
    assert first["split"] == "test"
    assert first["again"] == []
    report = finished.study("gain.extrapolate=true")
    (again,) = finished.opened["again"]
    assert {**finished.opened, "again": []} == first, "the first opening stays what it was"
    assert again["after"] == "no network was trained"
    assert again["changed"] == ["gain.extrapolate"]
    control = next(c for c in report.controls if "after the test images had been seen" in c.question)
    assert not control.alarm
    assert "the same networks were assessed anew" in control.answer
    finished.study("gain.extrapolate=true")
    assert len(finished.opened["again"]) == 1, "a finished study isn't opened by looking at it"


def test_more_arms_after_the_opening_are_an_alarm(finished):
    arms = "gain.arms=[real,real_aug,real_mixup,pseudo_labels,synthetic_gated]"
    with pytest.raises(StorageError, match=r"gain\.arms was .* --restart"):
        finished.study(arms)
    report = finished.study(arms, restart=True)
    assert {cell.recipe for cell in finished.trained} == {"real_mixup"}
    assert {cell.recipe for cell in finished.predicted} == {"real_mixup"}
    (again,) = finished.opened["again"]
    number = sum(len(cell.networks) for cell in finished.predicted)
    assert again["after"] == f"{number} more networks were trained"
    control = next(c for c in report.controls if "after the test images had been seen" in c.question)
    assert control.alarm
    assert control.answer.startswith(f"{number} networks were trained after them")


# What the arms are given


def test_where_the_generator_started_is_known_to_the_arms(run, split, tmp_path):
    (tmp_path / "diffusers").mkdir()
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "generator.safetensors").write_bytes(b"")
    expected = {"null": (False, False), "diffusers": (True, True), "ours": (True, False), "gone.safetensors": (True, False)}
    for name, known in expected.items():
        order = jobs.Order(config(f"generators.vae.init_from={name if name == 'null' else tmp_path / name}"))
        contest = Contest.of(order, split, Judged("vae", run.out / "candidates", run.out / "gate", ("one", name)))
        data = gains._setting.__wrapped__(contest).data
        assert (data.elsewhere, data.unknown_start) == known, name


def test_the_groups_of_labelled_images_are_known_to_the_arms(run, split, monkeypatch):
    def groups(self: Split, role: str) -> tuple[str | None, ...]:
        return tuple(f"{role} {place}" if place < 2 else None for place in range(len(self.on_disk(role))))

    order = jobs.Order(config())
    contest = Contest.of(order, split, Judged("vae", run.out / "candidates", run.out / "gate", ("one", "one")))
    assert gains._setting.__wrapped__(contest).data.groups == {}
    monkeypatch.setattr(Split, "groups", groups)
    found = gains._setting.__wrapped__(contest).data.groups
    keys = {role: split.role(role).keys[:2] for role in ("train", "val", "reference")}
    assert found == {key: f"{role} {place}" for role, two in keys.items() for place, key in enumerate(two)}


# What is trained again


def test_networks_that_are_there_give_what_a_fresh_study_gives(finished, split, tmp_path, monkeypatch):
    more = ["gain.arms=[real_aug,real_distilled,pseudo_labels,synthetic_gated]", "gain.seeds=3", "gain.curve=false"]
    grown = finished.study(*more, restart=True)
    added = {cell.name for cell in finished.trained}
    fresh = Run(split, tmp_path / "other", monkeypatch)
    fresh.settings.append("gain.tune_seeds=1")
    whole = fresh.study(*more)
    assert added < {cell.name for cell in fresh.trained}
    assert without_time(replace(grown, controls=())) == without_time(replace(whole, controls=()))


@pytest.mark.parametrize(
    ("change", "recipes"),
    [
        ({"candidates": "two"}, {"synthetic_gated"}),
        ({"settings": ["gain.pretrain_steps=9", "gain.acquire=9", "gain.trials=3", "gain.select_seeds=1"]}, set()),
        ({"settings": ["classifier.lr=0.001"]}, {"real", "real_aug", "pseudo_labels", "synthetic_gated"}),
        ({"settings": ["augment.rotate_deg=3"]}, {"real", "real_aug", "pseudo_labels", "synthetic_gated"}),
    ],
    ids=["other samples", "settings of arms that aren't run", "the network", "the augmentation"],
)
def test_only_what_depends_on_a_change_is_trained_again(finished, change, recipes):
    finished.study(*change.get("settings", ()), candidates=change.get("candidates", "one"), restart=True)
    assert {cell.recipe for cell in finished.trained} == recipes


def test_other_code_trains_everything_again(finished, monkeypatch):
    trained = len(set(finished.trained))
    monkeypatch.setattr(storage, "code_version", lambda: "other")
    with pytest.raises(StorageError, match="code was"):
        finished.study("gain.extrapolate=true")
    finished.study(restart=True)
    assert len(finished.trained) == trained
    assert len([path for path in (finished.out / FOLDER).iterdir() if path.is_dir()]) == 1, "what nobody can use is removed"


@pytest.mark.parametrize("library", ["torch", "numpy", "scikit-learn", "pytorch-lightning"])
def test_no_cell_of_another_version_of_a_library_is_taken_up(library, monkeypatch):
    """Arms trained under two versions of torch, or of scikit-learn, would be paired as if they differed by their images."""
    before = {cell: Finished(jobs.Order(config("device=cpu")), INPUTS, Path("run")).path(cell, ()) for cell in (TEACHER, SVM)}
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9" if name == library else real(name))
    after = {cell: Finished(jobs.Order(config("device=cpu")), INPUTS, Path("run")).path(cell, ()) for cell in (TEACHER, SVM)}
    assert all(before[cell] != after[cell] for cell in before)


def test_a_finished_study_outlives_other_libraries_but_is_not_assessed_anew_under_them(finished, monkeypatch):
    """To be assessed anew it would have to be trained again, which nobody asked for."""
    versions = storage.library_versions()
    trained = len(set(finished.trained))
    monkeypatch.setattr(storage, "library_versions", lambda: versions | {"torch": "9.9"})
    finished.study()
    assert finished.trained == []
    with pytest.raises(StorageError, match=r'gain\.watts was .* libraries\.torch was .*, is "9\.9".*--restart'):
        finished.study("gain.watts=55")
    finished.study("gain.watts=55", restart=True)
    assert len(finished.trained) == trained
    (again,) = finished.opened["again"]
    assert again["changed"] == ["gain.watts", "torch"]


def test_a_damaged_cell_is_trained_again(finished):
    paths = sorted((finished.out / FOLDER).glob("*/real-*.safetensors"))
    data = bytearray(paths[0].read_bytes())
    data[-3] ^= 1
    paths[0].write_bytes(bytes(data))
    paths[1].write_bytes(b"")
    finished.study("gain.watts=5")
    assert len(finished.trained) == 2


def test_a_killed_study_goes_on_where_it_was(run, split, tmp_path, monkeypatch):
    run.stop = lambda cell: cell.recipe == "pseudo_labels"
    with pytest.raises(KeyboardInterrupt):
        run.study()
    before = list(run.trained)
    run.stop = lambda cell: False
    report = run.study()
    assert before
    assert not set(before) & set(run.trained)
    calm = Run(split, tmp_path / "calm", monkeypatch)
    assert without_time(calm.study()) == without_time(report)


def test_a_study_that_is_killed_after_the_opening_opened_it_once(run, monkeypatch):
    told, kill = assess.assess, True

    def dying(*arguments: Any) -> GainReport:
        if kill:
            raise KeyboardInterrupt
        return told(*arguments)

    monkeypatch.setattr(assess, "assess", dying)
    with pytest.raises(KeyboardInterrupt):
        run.study()
    first = openings(run.out / FOLDER / OPENED)
    kill = False
    run.study()
    assert (run.trained, run.predicted) == ([], [])
    assert openings(run.out / FOLDER / OPENED) == first
    assert run.opened["again"] == []
    assert run.opened["at"] == first[0]["at"]


def test_weights_go_once_the_test_images_were_predicted_but_for_teachers(finished):
    for path in (finished.out / FOLDER).glob("*/*.safetensors"):
        trained = cells.Trained.from_bytes(path.read_bytes())
        teaches = path.name.startswith("real_aug-") and "tune" not in path.name and "size" not in path.name
        assert bool(trained.weights) == teaches, path.name
        assert (trained.test is None) == ("tune" in path.name), path.name


def test_a_study_without_its_folder_knows_that_the_test_set_was_opened(finished):
    shutil.rmtree(finished.out / "gain")
    finished.study()
    assert finished.trained == []
    assert finished.opened["again"] == [], "the very same study"
    shutil.rmtree(finished.out / "gain")
    finished.study("gain.seeds=3")
    assert len(finished.opened["again"]) == 1


# Keys


INPUTS = dict.fromkeys(("split", "candidates", "gate", "other gan", "features", "extractor", "transfer", "pool"), "0")
PAIR = (Network(0, 0), Network(1, 0))
TEACHER = Cell("real_aug", 1.0, PAIR)
SVM = Cell("svm_pixels", 0.0, PAIR)


def keys(inputs: dict[str, str] = INPUTS, *settings: str, teachers: tuple[Cell, ...] = (TEACHER,)) -> dict[str, str]:
    """The key of each recipe's cell, and of each kind of simulation's."""
    every = Finished(jobs.Order(config("device=cpu", *settings)), inputs, Path("run"))
    wanted = [Cell(recipe, 1.0, PAIR) for recipe in (*RECIPES, "generator_gan")]
    wanted += [TEACHER._replace(extra=extra) for extra in ("oracle", "active margin", "size 6", "tune")]
    return {f"{cell.recipe} {cell.extra}".strip(): every.key(cell, teachers) for cell in wanted}


def changed(**changes: str) -> set[str]:
    given = {name.replace("_", " ") if name.startswith("other") else name: value for name, value in changes.items()}
    usual = keys()
    return {name for name, key in keys(INPUTS | given).items() if key != usual[name]}


TAUGHT = {
    "pseudo_labels",
    "real_distilled",
    "synthetic_soft",
    "synthetic_pseudo",
    "synthetic_only_soft",
    "real_aug active margin",
}


def test_a_cells_key_is_of_what_it_looks_at():
    assert len(set(keys().values())) == len(keys())
    synthetic = {name for name in RECIPES if name.startswith("synthetic_")}
    assert changed(candidates="1") == changed(gate="1") == synthetic
    assert changed(other_gan="1") == {"generator_gan"}
    on_features = {"logistic_features", "svm_features", "forest_features", "boosting_features"}
    assert changed(features="1") == changed(extractor="1") == on_features
    assert changed(transfer="1") == {"transfer", "transfer_pool", "transfer_fixmatch", "transfer_probe"}
    assert changed(pool="1") == {"pool_labels", "transfer_pool", "synthetic_pool", "synthetic_pool_with_copies"}
    assert changed(split="1") == set(), "that is the folder's"


def test_a_cells_key_is_of_the_settings_and_teachers_that_it_has():
    usual = keys()

    def differ(*settings: str, **given: Any) -> set[str]:
        return {name for name, key in keys(INPUTS, *settings, **given).items() if key != usual[name]}

    assert differ("gain.acquire=7") == {"real_aug active margin"}
    assert differ("gain.pretrain_steps=7") == {"simclr"}
    assert differ("gain.simulate=true") == {"real_aug oracle", "real_aug active margin", "real_aug size 6"}
    assert differ("gain.seeds=3", "gain.extrapolate=true", "gain.large_committee=5") == set()
    assert differ(teachers=(TEACHER._replace(value=2.0),)) == TAUGHT
    member = TEACHER._replace(networks=(Network(0, 1), Network(1, 1)))
    assert differ(teachers=(TEACHER, member)) == {name for name in TAUGHT if name in RECIPES and RECIPES[name].soft}


def test_another_split_or_network_has_another_folder():
    folder = Finished(jobs.Order(config("device=cpu")), INPUTS, Path("run")).folder
    assert folder != Finished(jobs.Order(config("device=cpu")), INPUTS | {"split": "1"}, Path("run")).folder
    assert folder != Finished(jobs.Order(config("device=cpu", "classifier.width=5")), INPUTS, Path("run")).folder
    assert folder == Finished(jobs.Order(config("device=cpu", "gain.seeds=5")), INPUTS, Path("run")).folder
