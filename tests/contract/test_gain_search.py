"""The search over settings and sizes of the network: what it finds is told, is an arm like any other, and its cost is counted."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from synthgen.config.schema import AugmentConfig, ClassifierConfig, GainConfig
from synthgen.gain import cells
from synthgen.gain.arms import recipe_of, searched
from synthgen.gain.assess import TestSet as Locked
from synthgen.gain.assess import assess
from synthgen.gain.cells import Cell, Network, Setting, Trained, predict, stack_of, train_cell
from synthgen.gain.study import Study, conduct
from synthgen.jobs.runs import summarise_arms
from synthgen.types import DatasetSpec
from tests.conftest import blank_images as images
from tests.conftest import blank_study
from tests.contract.test_gain_study import PLAIN, Fake

optuna = pytest.importorskip("optuna")

CONFIG = GainConfig(seeds=4, committee=3, large_committee=5, tune_seeds=2, together=4, curve=True, trials=6)
FOLLOWERS = ("real_committee", "real_trainval", "synthetic_partner")
FOUND = {"depth": 2, "dropout": 0.0, "lr": 1.0, "strength": 1.0, "weight_decay": 0.02, "width": 6}


@pytest.fixture
def setting(toy_spec: DatasetSpec) -> Setting:
    return Setting(blank_study(toy_spec, 60), ClassifierConfig(), AugmentConfig(), CONFIG, "cpu")


def found_in(recipe: str) -> dict[str, float]:
    return dict(recipe_of(recipe).given)


def strong(cell: Cell, network: Network) -> int:
    """A searched network is the better the nearer its learning rate to 1, and better than every other."""
    return round(55 - 5 * abs(found_in(cell.recipe)["lr"] - 1)) if cell.recipe.startswith("real_searched") else 30


def searching(setting: Setting, fake: Fake, arms: Sequence[str] = ("real_searched", *FOLLOWERS)) -> Study:
    return conduct((*PLAIN, *arms), setting, fake)


def test_the_settings_with_the_lowest_loss_are_taken(setting):
    fake = Fake(strong)
    study = searching(setting, fake)
    tried = [cell for cell in fake.every if cell.extra == "search"]
    assert len(tried) == 6
    assert all(cell.networks == (Network(0, 0), Network(1, 0)) for cell in tried)
    best = max(tried, key=lambda cell: strong(cell, cell.networks[0]))
    assert strong(best._replace(recipe=study.recipes["real_searched"]), Network(0, 0)) == strong(best, Network(0, 0))
    assert {cell.recipe for each in study.votes["real_searched"] for cell, _ in each} == {study.recipes["real_searched"]}
    assert {len(each) for each in study.votes["real_aug"]} == {1}, "searched networks are no networks of the plain arm"
    again = Fake(strong)
    searching(setting, again)
    assert again.every == fake.every, "fixed by its seed"


def test_size_and_settings_are_searched(setting):
    fake = Fake(strong)
    searching(replace(setting, gain=CONFIG.model_copy(update={"trials": 30})), fake)
    tried = [found_in(cell.recipe) for cell in fake.every if cell.extra == "search"]
    assert {each["depth"] for each in tried} == {1, 2}
    assert {each["width"] for each in tried} == {12, 24, 36, 48}, "half to twice the classifier's 24"
    for name in ("dropout", "lr", "strength", "weight_decay"):
        assert len({each[name] for each in tried}) > 10, name
        assert all(float(f"{each[name]:.3g}") == each[name] for each in tried), "the name holds every digit"


def test_what_was_found_can_be_the_strongest_with_its_committee_and_all_labels(setting):
    """Equal terms: the partner mixes the gated images into the very settings that were found."""
    study = searching(setting, Fake(strong))
    recipe = study.recipes["real_searched"]
    assert study.single_real == "real_searched"
    assert study.best_real in ("real_searched", "real_committee")
    assert study.recipes["real_committee"] == recipe
    assert {len(each) for each in study.votes["real_committee"]} == {3}
    assert study.recipes["real_trainval"] == f"{recipe}@all"
    assert study.recipes["synthetic_partner"] == f"{recipe}+synthetic"
    assert study.curve_recipe == recipe
    assert study.tuned[f"{recipe}+synthetic"] in recipe_of("synthetic_gated").values


def test_the_record_and_the_table_tell_what_was_found_and_count_its_cost(setting):
    study = searching(setting, Fake(strong))
    test = images(30, "test")
    on_test = {cell: np.full((len(cell.networks), 30, 3), 1 / 3, np.float32) for cell in study.trained}
    report = assess(study, on_test, Locked(test), setting)
    name = report.recipes["real_searched"]
    assert found_in(name).keys() == {"depth", "dropout", "lr", "strength", "weight_decay", "width"}
    table = summarise_arms(report)
    assert table["real_searched"]["recipe"] == name
    assert table["real_searched"]["dial_value"] is None
    search_s = 6 * 2 * 2.0  # trials, networks, seconds of each
    assert table["real_searched"]["seconds"] == pytest.approx(4 * 2.0 + search_s)
    assert table["real_committee"]["seconds"] == pytest.approx(3 * 4 * 2.0 + search_s)
    assert table["real_trainval"]["seconds"] == pytest.approx(4 * 2.0 + search_s)
    tuning_s = 3 * 2 * 2.0
    assert table["synthetic_partner"]["seconds"] == pytest.approx(4 * 2.0 + tuning_s + search_s), "it keeps what was found"


def test_a_search_without_optuna_says_how_to_get_it(setting, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    study = searching(setting, Fake())
    assert "pip install 'synthgen[search]'" in study.skipped["real_searched"]
    assert "real_searched" not in study.votes
    assert study.recipes["real_committee"] == "real_aug"


def test_trials_that_diverge_are_not_taken(setting):
    class Diverging(Fake):
        def _trained(self, cell: Cell) -> Trained:
            done = super()._trained(cell)
            bad = cell.extra == "search" and found_in(cell.recipe)["lr"] > self.most
            return replace(done, failure="the loss is nan") if bad else done

        most = 1.0

    fake = Diverging(lambda cell, network: 60 if found_in(cell.recipe).get("lr", 0) > 1 else 40)
    study = searching(setting, fake)
    assert found_in(study.recipes["real_searched"])["lr"] <= 1
    Diverging.most = 0.0
    study = searching(setting, Diverging())
    assert study.skipped["real_searched"] == "its training failed: all 6 trials diverged"
    assert "real_searched" not in study.recipes


# Networks of another size


@pytest.fixture
def small(toy_spec: DatasetSpec) -> Setting:
    data = blank_study(toy_spec, 7)
    return Setting(data, ClassifierConfig(width=4, batch_size=8, steps=4), AugmentConfig(), CONFIG, "cpu")


@pytest.mark.parametrize(("width", "depth"), [(4, 1), (6, 2), (3, 3)])
def test_a_network_of_another_size_is_trained_kept_and_read_back(small, width, depth):
    name = searched(FOUND | {"width": width, "depth": depth})
    cell = Cell(name, 0.0, (Network(0, 0), Network(1, 0)))
    done = train_cell(cell, small, None)
    back = Trained.from_bytes(done.to_bytes())
    network = stack_of(back, small)
    assert (network.width, network.depth, len(network.stages)) == (width, depth, 3 + 3 * depth)
    assert np.array_equal(predict(cell, back, small, small.data.val.images), done.val)
    alone = train_cell(cell._replace(networks=(Network(1, 0),)), small, None)
    assert np.allclose(alone.val[0], done.val[1], atol=1e-4), "its seed, not its company, fixes it"


def test_what_was_found_at_the_usual_size_is_the_usual_network(small):
    usual = {"depth": 1, "dropout": 0.1, "lr": 1.0, "strength": 1.0, "weight_decay": 0.02, "width": 4}
    pair = (Network(0, 0), Network(1, 0))
    found, plain = (
        train_cell(Cell(name, value, pair), small, None) for name, value in ((searched(usual), 0.0), ("real_aug", 1.0))
    )
    assert np.array_equal(found.val, plain.val)


def test_trials_keep_no_weights(small):
    cell = Cell(searched(FOUND), 0.0, (Network(0, 0),))
    assert train_cell(cell._replace(extra="search"), small, None).weights == {}
    assert cells.TRIED == ("tune", "search")
    assert train_cell(cell, small, None).weights
