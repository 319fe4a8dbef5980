"""Which networks a study trains, in which order, and what val chooses; nothing here is really trained."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from synthgen.config.schema import AugmentConfig, ClassifierConfig, GainConfig
from synthgen.errors import ConfigError
from synthgen.gain.arms import ARMS, QUICK, RECIPES, TEACHER, recipe_of
from synthgen.gain.assess import decisive_pairs
from synthgen.gain.cells import Cell, Network, Setting, Trained
from synthgen.gain.study import Study, conduct, score, sizes, vote
from synthgen.types import DatasetSpec
from tests.conftest import blank_images as images
from tests.conftest import blank_study

NUM_VAL = 60
CONFIG = GainConfig(seeds=4, committee=3, large_committee=5, tune_seeds=2, together=4, curve=False, trials=6)
PLAIN = ("real_aug", "synthetic_gated")
Right = int | tuple[int, float] | tuple[int, float, int]


@pytest.fixture
def setting(toy_spec: DatasetSpec) -> Setting:
    """With everything that an arm may ask for."""
    data = blank_study(toy_spec, NUM_VAL, others={"gan": images(5, "gan")})
    return Setting(data, ClassifierConfig(), AugmentConfig(), CONFIG, "cpu")


def with_gain(setting: Setting, **changed) -> Setting:
    return replace(setting, gain=setting.gain.model_copy(update=changed))


def predicted(right: int, shift: int = 0, confidence: float = 0.9) -> np.ndarray:
    """Probabilities on val, right at `right` images from number `shift` on."""
    truth = np.arange(NUM_VAL) % 3
    is_right = (np.arange(NUM_VAL) - shift) % NUM_VAL < right
    label = np.where(is_right, truth, (truth + 1) % 3)
    found = np.full((NUM_VAL, 3), (1 - confidence) / 2, np.float32)
    found[np.arange(NUM_VAL), label] = confidence
    return found


@dataclass
class Fake:
    """Instead of training: val predictions that are right as often as `right` says of a cell.

    Attributes:
        right: (cell, network) -> images of val, or (images, confidence), or (images, confidence, the first of them).
        rounds: what was asked for, in order.
    """

    right: Callable[[Cell, Network], Right] = lambda cell, network: 40
    rounds: list[tuple[list[Cell], list[Cell]]] = field(default_factory=list)

    def __call__(self, cells: Sequence[Cell], teachers: Sequence[Cell]) -> dict[Cell, Trained]:
        before = self.every
        for cell in cells:
            assert cell not in before, f"{cell.name} was asked for before"
            self._check(cell, teachers)
        assert len(set(cells)) == len(cells)
        assert set(teachers) <= set(before), "who teaches is trained before"
        self.rounds.append((list(cells), list(teachers)))
        return {cell: self._trained(cell) for cell in cells}

    def _check(self, cell: Cell, teachers: Sequence[Cell]) -> None:
        recipe = recipe_of(cell.recipe)
        assert cell.value in (recipe.values if recipe.dial else (0.0,)), cell
        if recipe.taught or cell.extra.startswith("active"):
            taught = {(n.seed, n.member) for teacher in teachers for n in teacher.networks}
            members = range(CONFIG.committee if recipe.soft else 1)
            assert {(n.seed, m) for n in cell.networks for m in members} <= taught, f"{cell.name} has no teacher"

    def _trained(self, cell: Cell) -> Trained:
        val = []
        for network in cell.networks:
            right = self.right(cell, network)
            number, confidence, shift = (right, 0.9, 0) if isinstance(right, int) else (*right, 0)[:3]
            val.append(predicted(number, shift + 7 * network.seed, confidence))
        return Trained({}, np.stack(val), 12, 0, 300, 2.0 * len(cell.networks), 0.0, {})

    @property
    def every(self) -> list[Cell]:
        return [cell for cells, _ in self.rounds for cell in cells]

    def networks(self, recipe: str, extra: str = "") -> list[Network]:
        """All that were trained of a recipe."""
        return [n for cell in self.every if (cell.recipe, cell.extra) == (recipe, extra) for n in cell.networks]


def by_recipe(**right: Right) -> Callable[[Cell, Network], Right]:
    """Right as often as its recipe says, 30 of 60 if it says nothing."""
    return lambda cell, network: right.get(cell.recipe, 30)


def done(arms: Sequence[str], setting: Setting, fake: Fake | None = None) -> Study:
    return conduct(arms, setting, fake or Fake())


# Rounds


@pytest.mark.parametrize("arms", [QUICK, tuple(ARMS), (*ARMS, "generator_gan")], ids=["quick", "full", "others"])
@pytest.mark.parametrize("curve", [False, True])
@pytest.mark.parametrize("tune_seeds", [0, 2])
def test_a_whole_study_asks_for_each_network_once_and_for_teachers_first(setting, arms, curve, tune_seeds, monkeypatch):
    """What `Fake` checks of every cell; and that every arm has its votes or a reason."""
    monkeypatch.setitem(sys.modules, "optuna", None)
    fake = Fake(by_recipe(real_aug=45, real_mixup=50, synthetic_gated=48))
    study = done(arms, with_gain(setting, curve=curve, tune_seeds=tune_seeds), fake)
    assert set(study.votes) | set(study.skipped) == set(arms)
    assert not set(study.votes) & set(study.skipped)
    assert list(study.votes) == [arm for arm in arms if arm in study.votes], "in the order of the arms"
    networks = [(cell.recipe, cell.extra, cell.value, n) for cell in fake.every for n in cell.networks]
    assert len(set(networks)) == len(networks), "no network twice, whatever the cells are cut into"
    names = [cell.name for cell in fake.every]
    assert len(set(names)) == len(names), "each cell has a file of its own"
    for arm, votes in study.votes.items():
        assert len(votes) == 4
        for seed, each in enumerate(votes):
            assert {cell.networks[number].seed for cell, number in each} == {seed}, arm
            assert all(cell in study.trained for cell, _ in each)
            assert study.recipes[arm] == each[0][0].recipe


def test_only_what_is_asked_for_is_trained(setting):
    fake = Fake()
    study = done(PLAIN, setting, fake)
    assert {cell.recipe for cell in fake.every} == set(PLAIN)
    assert sorted(fake.networks("real_aug")) == [Network(seed, 0) for seed in range(4)]
    assert all(not teachers for _, teachers in fake.rounds)
    assert set(study.trained) == {cell for cell in fake.every if cell.extra != "tune"}


def test_cells_hold_as_many_networks_as_asked(setting):
    for together, lengths in ((4, {4}), (3, {3, 1}), (1, {1}), (10, {4})):
        fake = Fake()
        study = done(PLAIN, with_gain(setting, together=together, tune_seeds=0), fake)
        assert {len(cell.networks) for cell in fake.every} == lengths
        assert [[cell.networks[i].seed for cell, i in each] for each in study.votes["real_aug"]] == [[0], [1], [2], [3]]


def test_teachers_are_trained_though_they_are_no_arm(setting):
    fake = Fake()
    study = done(("real", "pseudo_labels", "synthetic_gated"), setting, fake)
    assert sorted(fake.networks(TEACHER)) == [Network(seed, 0) for seed in range(4)]
    assert TEACHER not in study.votes
    order = [cell.recipe for cell in fake.every if not cell.extra]
    assert order.index(TEACHER) < order.index("pseudo_labels")
    tuned = [
        i for i, (cells, _) in enumerate(fake.rounds) if any((c.recipe, c.extra) == ("pseudo_labels", "tune") for c in cells)
    ]
    taught = [i for i, (cells, _) in enumerate(fake.rounds) if any((c.recipe, c.extra) == (TEACHER, "") for c in cells)]
    assert min(tuned) > max(taught), "tuning needs teachers too"


def test_soft_labels_need_a_committee_of_teachers(setting):
    fake = Fake()
    study = done(("real_aug", "synthetic_soft"), setting, fake)
    assert sorted(fake.networks(TEACHER)) == [Network(seed, member) for seed in range(4) for member in range(3)]
    assert all(len(each) == 1 for each in study.votes["real_aug"]), "the arm itself is one network"
    assert {cell.networks[i].member for each in study.votes["real_aug"] for cell, i in each} == {0}
    (teachers,) = {tuple(t) for cells, t in fake.rounds if any(c.recipe == "synthetic_soft" for c in cells)}
    assert all((cell.recipe, cell.extra) == (TEACHER, "") for cell in teachers), "nothing of the tuning teaches"


# Tuning


def test_each_dial_takes_the_value_with_the_lowest_loss_on_val(setting):
    """Not the highest accuracy: of a few val images many have the same."""

    def right(cell: Cell, network: Network) -> tuple[int, float]:
        table = {("real_mixup", 0.1): (50, 0.5), ("real_mixup", 0.3): (45, 0.7), ("real_mixup", 1.0): (44, 0.7)}
        table |= {("synthetic_gated", 0.75): (45, 0.9)}
        return table.get((cell.recipe, cell.value), (40, 0.9))

    losses = {value: score(predicted(*each), setting.data.val)[1] for value, each in ((0.1, (50, 0, 0.5)), (0.3, (45, 0, 0.7)))}
    assert losses[0.3] < losses[0.1]
    fake = Fake(right)
    study = done(("real_mixup", "synthetic_gated", "svm_pixels"), setting, fake)
    assert study.tuned == {"real_mixup": 0.3, "synthetic_gated": 0.75}
    for recipe, value in study.tuned.items():
        tried = [cell for cell in fake.every if (cell.recipe, cell.extra) == (recipe, "tune")]
        assert {cell.value for cell in tried} == set(RECIPES[recipe].values)
        assert sorted(n for cell in tried for n in cell.networks) == sorted([Network(0, 0), Network(1, 0)] * 3)
        assert {cell.value for cell in fake.every if cell.recipe == recipe and not cell.extra} == {value}
        assert study.tuning_s[recipe] == pytest.approx(3 * 2 * 2.0)
    assert not any(cell.recipe == "svm_pixels" and cell.extra for cell in fake.every), "it has a search of its own"


def test_an_equal_loss_takes_the_earlier_value(setting):
    assert done(PLAIN, setting).tuned == {"real_aug": 0.5, "synthetic_gated": 0.25}


def test_without_tuning_every_dial_stands_in_the_middle(setting):
    """Of the arms on all labelled images too."""
    arms = (*PLAIN, "simclr", "real_trainval", "synthetic_trainval", "oracle")
    fake = Fake(by_recipe(simclr=50))
    study = done(arms, with_gain(setting, tune_seeds=0), fake)
    assert study.tuned == {}
    assert study.tuning_s == {}
    assert {cell.recipe for cell in fake.every} == {"real_aug", "synthetic_gated", "simclr", "simclr@all", "synthetic_gated@all"}
    for cell in fake.every:
        assert cell.value == recipe_of(cell.recipe).values[1], cell.name


# What val chooses


@pytest.mark.parametrize(("aug", "mixup", "best"), [(50, 40, "real_aug"), (40, 50, "real_mixup")])
def test_the_strongest_of_each_side_is_chosen_on_val(setting, aug, mixup, best):
    arms = ("real_aug", "real_mixup", "synthetic_gated", "synthetic_pool")
    study = done(arms, setting, Fake(by_recipe(real_aug=aug, real_mixup=mixup, synthetic_pool=45)))
    assert study.best_real == study.single_real == best
    assert study.best_synthetic == study.single_synthetic == "synthetic_pool"


@pytest.mark.parametrize("control", ["synthetic_ungated", "synthetic_with_copies", "generator_gan"])
def test_only_images_that_are_exported_make_the_synthetic_side(setting, control):
    """Val prefers images that the gate dropped, or that another generator made: they are shown, and nothing is made of them."""
    arms = ("real_aug", "synthetic_gated", control, "synthetic_partner", "synthetic_committee", "synthetic_trainval")
    study = done(arms, setting, Fake(by_recipe(**{control: 60})))
    assert control in study.votes
    assert study.best_synthetic in ("synthetic_gated", "synthetic_partner", "synthetic_committee")
    assert study.single_synthetic in ("synthetic_gated", "synthetic_partner")
    assert not {cell.recipe.removesuffix("@all") for cell in study.trained if cell.extra == ""} & {f"{control}@all"}
    assert study.recipes["synthetic_committee"] == study.recipes[study.single_synthetic]
    assert study.recipes["synthetic_trainval"] == f"{study.recipes[study.single_synthetic]}@all"


def test_a_tie_goes_to_the_smaller_loss_and_then_to_the_earlier_arm(setting):
    arms = ("real_aug", "real_mixup", "synthetic_gated")
    assert done(arms, setting, Fake(by_recipe(real_mixup=(30, 0.7)))).best_real == "real_mixup"
    assert done(arms, setting, Fake(by_recipe(real_aug=(30, 0.7)))).best_real == "real_aug"
    assert done(arms, setting).best_real == "real_aug"


def test_arms_that_saw_val_or_hidden_labels_are_never_the_strongest(setting):
    """However well they do on it."""
    arms = ("real_aug", "synthetic_gated", "real_trainval", "synthetic_trainval", "oracle", "active_margin")

    def right(cell: Cell, network: Network) -> int:
        return 60 if cell.recipe.endswith("@all") or cell.extra[:6] in ("oracle", "active") else 30

    study = done(arms, setting, Fake(right))
    assert (study.best_real, study.best_synthetic) == ("real_aug", "synthetic_gated")
    assert study.contenders == ["real_aug"]


def test_a_committee_is_of_the_strongest_network_of_its_side(setting):
    arms = ("svm_pixels", "real_aug", "real_mixup", "real_committee", "synthetic_only", "synthetic_gated", "synthetic_committee")
    fake = Fake(by_recipe(svm_pixels=58, real_mixup=50, real_aug=45, synthetic_only=55, synthetic_gated=44))
    study = done(arms, setting, fake)
    assert study.single_real == "svm_pixels"
    assert study.recipes["real_committee"] == "real_mixup", "a classical model is the same with any seed: no committee"
    assert study.recipes["synthetic_committee"] == "synthetic_gated", "the arm without real images is an arm of its own"
    for arm, recipe in (("real_committee", "real_mixup"), ("synthetic_committee", "synthetic_gated")):
        assert sorted(fake.networks(recipe)) == [Network(seed, member) for seed in range(4) for member in range(3)]
        for seed, each in enumerate(study.votes[arm]):
            assert sorted(cell.networks[i] for cell, i in each) == [Network(seed, member) for member in range(3)]
        assert all(each[0] == single[0] for each, single in zip(study.votes[arm], study.votes[recipe], strict=True)), (
            "the arm's own network is a member"
        )
    assert len(fake.networks("real_aug")) == 4


def test_committees_of_the_same_recipe_share_their_networks(setting):
    arms = ("real_aug", "real_committee", "real_committee_large", "synthetic_gated")
    fake = Fake()
    study = done(arms, setting, fake)
    assert sorted(fake.networks("real_aug")) == [Network(seed, member) for seed in range(4) for member in range(5)]
    assert {len(each) for each in study.votes["real_committee"]} == {3}
    assert {len(each) for each in study.votes["real_committee_large"]} == {5}
    assert {len(each) for each in study.votes["real_aug"]} == {1}


def test_a_committee_can_be_the_strongest(setting):
    """Its members are right on other images: together they are right on more."""

    def right(cell: Cell, network: Network) -> int:
        return 60 if cell.recipe == "real_aug" and network.member else 30

    study = done(("real_aug", "real_committee", "synthetic_gated"), setting, Fake(right))
    assert study.best_real == "real_committee"
    assert study.single_real == "real_aug"


def test_on_all_labelled_images_with_the_dial_that_was_tuned(setting):
    arms = ("real_mixup", "synthetic_gated", "real_trainval", "synthetic_trainval")

    def right(cell: Cell, network: Network) -> int:
        return 50 if (cell.recipe, cell.value) in (("real_mixup", 1.0), ("synthetic_gated", 0.75)) else 40

    fake = Fake(right)
    study = done(arms, setting, fake)
    assert study.recipes["real_trainval"] == "real_mixup@all"
    assert study.recipes["synthetic_trainval"] == "synthetic_gated@all"
    values = {cell.recipe: cell.value for cell in fake.every if cell.recipe.endswith("@all")}
    assert values == {"real_mixup@all": 1.0, "synthetic_gated@all": 0.75}
    assert not any(cell.extra == "tune" for cell in fake.every if cell.recipe.endswith("@all")), "val was trained on"


def test_teachers_of_an_arm_on_all_labelled_images_know_all_labels_too(setting):
    arms = ("real_aug", "real_distilled", "pseudo_labels", "synthetic_gated", "real_trainval", "synthetic_trainval")
    fake = Fake(by_recipe(real_distilled=50))
    study = done(arms, setting, fake)
    assert study.recipes["real_trainval"] == "real_distilled@all"
    (teachers,) = [teachers for cells, teachers in fake.rounds if any(c.recipe == "real_distilled@all" for c in cells)]
    assert {cell.recipe for cell in teachers} == {f"{TEACHER}@all"}
    assert sorted(n for cell in teachers for n in cell.networks) == [Network(seed, m) for seed in range(4) for m in range(3)]
    for recipe in ("real_distilled", "pseudo_labels"):
        (teachers,) = {tuple(t) for cells, t in fake.rounds if any(c.recipe == recipe for c in cells)}
        assert {cell.recipe for cell in teachers} == {TEACHER}, "but the others' don't: val chooses among them"
    assert study.tuned[f"{TEACHER}@all"] == study.tuned[TEACHER]


# The partner


def test_the_partner_is_the_strongest_real_only_recipe_with_the_gated_images(setting):
    arms = ("real_aug", "real_randaugment", "synthetic_gated", "synthetic_partner", "synthetic_committee")
    partner = "real_randaugment=0.5+synthetic"  # of equal values the dial takes the first, and the partner keeps it
    right = {"real_randaugment": 50, partner: 55}
    fake = Fake(lambda cell, network: right.get(cell.recipe, 40))
    study = done(arms, setting, fake)
    assert study.recipes["synthetic_partner"] == partner
    assert dict(recipe_of(partner).given) == {"strength": 0.5}
    tried = [cell for cell in fake.every if (cell.recipe, cell.extra) == (partner, "tune")]
    assert {cell.value for cell in tried} == {0.25, 0.5, 0.75}
    assert study.single_synthetic == "synthetic_partner"
    assert study.recipes["synthetic_committee"] == partner, "it may be the committee's network"


@pytest.mark.parametrize(
    ("best", "known"),
    [("real_aug", "synthetic_gated"), ("real_mixup", "synthetic_mixup")],
)
def test_a_partner_that_is_an_arm_already_is_not_trained_again(setting, best, known):
    arms = ("real_aug", "real_mixup", known, "synthetic_partner")
    fake = Fake(by_recipe(**{best: 50}))
    untuned = replace(setting, gain=setting.gain.model_copy(update={"tune_seeds": 0}))
    study = done(arms, untuned, fake)
    assert study.skipped["synthetic_partner"] == f"it is {known}"
    assert not any("+synthetic" in cell.recipe for cell in fake.every)
    assert study.single_synthetic == known


def test_the_partner_of_a_distilled_one_has_soft_labels_on_both(setting):
    """`synthetic_soft` leaves the real images theirs: another recipe."""
    study = done(
        ("real_aug", "real_distilled", "synthetic_soft", "synthetic_partner"), setting, Fake(by_recipe(real_distilled=50))
    )
    partner = recipe_of(study.recipes["synthetic_partner"])
    assert (partner.soft, partner.distilled, partner.synthetic) == (True, True, "gated")
    assert not RECIPES["synthetic_soft"].distilled


def test_a_partner_that_would_be_an_arm_which_is_not_run_is_trained(setting):
    study = done(("real_aug", "synthetic_1x", "synthetic_partner"), setting)
    assert study.recipes["synthetic_partner"] == "real_aug=0.5+synthetic"
    assert "synthetic_partner" in study.votes


def test_a_classical_arms_partner(setting):
    fake = Fake(by_recipe(svm_pixels=50))
    study = done(("svm_pixels", "real_aug", "synthetic_gated", "synthetic_partner"), setting, fake)
    assert study.recipes["synthetic_partner"] == "svm_pixels+synthetic"
    assert {cell.value for cell in fake.every if cell.recipe == "svm_pixels+synthetic"} == {0.0}


# Contenders


def test_every_real_only_arm_that_val_cannot_tell_from_the_best_is_a_contender(setting):
    arms = ("real", "real_aug", "real_mixup", "real_cutout", "synthetic_gated")
    right = {"real": 10, "real_aug": (49, 0.9, 20), "real_mixup": 50, "real_cutout": (48, 0.9, 40), "synthetic_gated": 60}
    study = done(arms, setting, Fake(by_recipe(**right)))
    assert study.best_real == "real_mixup"
    assert study.contenders == ["real_mixup", "real_aug", "real_cutout"], "the best first, and no arm that is clearly worse"


def test_val_images_of_few_patients_leave_more_contenders(setting):
    """60 val images tell `real` from the best; those of 4 patients, or of one, don't."""
    arms = ("real", "real_mixup", "synthetic_gated")
    fake = by_recipe(real=35, real_mixup=50, synthetic_gated=60)
    assert done(arms, setting, Fake(fake)).contenders == ["real_mixup"]
    for patients in (4, 1):
        blocks = np.arange(NUM_VAL) * patients // NUM_VAL
        given = replace(setting, data=replace(setting.data, val_blocks=blocks))
        assert done(arms, given, Fake(fake)).contenders == ["real_mixup", "real"]


# Simulations and searches


def test_simulations_are_of_the_teacher_at_its_tuned_value(setting):
    arms = (*PLAIN, "oracle", "active_random", "active_kcenter")

    def right(cell: Cell, network: Network) -> int:
        return 50 if cell.value == 2.0 else 40

    fake = Fake(right)
    study = done(arms, setting, fake)
    for arm, extra in (("oracle", "oracle"), ("active_random", "active random"), ("active_kcenter", "active kcenter")):
        found = [cell for cell in fake.every if cell.extra == extra]
        assert [(cell.recipe, cell.value) for cell in found] == [(TEACHER, 2.0)]
        assert {cell for each in study.votes[arm] for cell, _ in each} == set(found)
        assert study.recipes[arm] == TEACHER
    assert all(cell.extra == "" for each in study.votes["real_aug"] for cell, _ in each), "the arm itself is none of them"


# What can't be run


def test_what_the_images_do_not_allow_is_skipped_and_not_trained(setting):
    lacking = replace(setting, data=replace(setting.data, pretrained=None, truth=None))
    fake = Fake()
    study = done((*PLAIN, "transfer", "oracle"), lacking, fake)
    assert set(study.skipped) == {"transfer", "oracle"}
    assert set(study.votes) == set(PLAIN)
    assert {cell.recipe for cell in fake.every} == set(PLAIN)


def test_a_study_without_a_side_is_refused_before_any_training(setting):
    lacking = replace(setting, data=replace(setting.data, pretrained=None, backbone=None))
    fake = Fake()
    with pytest.raises(ConfigError, match=r"no arm of real images alone is left .*'transfer' can't run: needs pre-trained"):
        done(("transfer", "synthetic_gated"), lacking, fake)
    few = replace(setting, data=replace(setting.data, gated=images(20, "gated")))
    with pytest.raises(
        ConfigError, match=r"no arm with the synthetic images that the gate kept is left .*'synthetic_10x' can't run"
    ):
        done(("real_aug", "synthetic_10x"), few, fake)
    assert fake.rounds == []


def test_classical_arms_alone_are_a_study_without_committees(setting):
    study = done(("svm_pixels", "synthetic_gated", "synthetic_committee"), setting)
    assert study.best_real == "svm_pixels"
    assert "synthetic_committee" in study.votes


def test_a_committee_of_no_network_is_refused(setting):
    with pytest.raises(
        ConfigError, match="'real_committee' is made of a network of real images alone, and there is none; add 'real_aug'"
    ):
        done(("svm_pixels", "synthetic_gated", "real_committee"), setting)


def test_all_labelled_images_for_classical_models_too(setting):
    arms = ("svm_pixels", "forest_pixels", "real_aug", "classical_trainval", "synthetic_gated", "synthetic_trainval")
    fake = Fake(by_recipe(forest_pixels=50))
    study = done(arms, setting, fake)
    assert study.recipes["classical_trainval"] == "forest_pixels@all"
    assert all(len(networks) == 1 for networks in study.votes["classical_trainval"])
    assert study.best_real == "forest_pixels", "what saw val isn't judged by it"
    assert ("synthetic_trainval", "classical_trainval") in decisive_pairs(study)
    without = done(("real_aug", "classical_trainval", "synthetic_gated"), setting)
    assert without.skipped["classical_trainval"] == "there is no classical arm"


def test_samples_alone_are_chosen_only_where_there_is_nothing_else(setting):
    fake = Fake(by_recipe(synthetic_only=55))
    study = done(("real_aug", "synthetic_gated", "synthetic_only"), setting, fake)
    assert (study.single_synthetic, study.best_synthetic) == ("synthetic_gated", "synthetic_gated")
    assert done(("real_aug", "synthetic_only"), setting).single_synthetic == "synthetic_only"


# The learning curve


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((50, 100, 0, 10), [(12, "train"), (25, "train"), (50, "train"), (100, "train and val")]),
        ((50, 50, 0, 10), [(12, "train"), (25, "train"), (50, "train")]),
        ((30, 60, 0, 10), [(15, "train"), (30, "train"), (60, "train and val")]),
        (
            (50, 100, 300, 10),
            [(12, "train"), (25, "train"), (50, "train"), (100, "train and val"), (200, "hidden labels"), (400, "hidden labels")],
        ),
        (
            (50, 300, 1000, 10),
            [
                *[(12, "train"), (25, "train"), (50, "train"), (100, "train and val"), (200, "train and val")],
                *[(300, "train and val"), (400, "hidden labels"), (800, "hidden labels"), (1300, "hidden labels")],
            ],
        ),
    ],
)
def test_sizes_of_the_curve(given, expected):
    assert sizes(*given) == expected


def test_the_curve_is_of_the_strongest_plain_recipe_at_its_tuned_value(setting):
    """Not of one that sees other images, nor of a committee: a size would not be its number of images."""
    arms = ("real_aug", "real_mixup", "simclr", "pseudo_labels", "fixmatch", "svm_pixels", "real_committee", "synthetic_gated")

    def right(cell: Cell, network: Network) -> int:
        table = {"simclr": 55, "fixmatch": 58, "pseudo_labels": 56, "svm_pixels": 57, "real_mixup": 50 + (cell.value == 0.3)}
        return table.get(cell.recipe, 40)

    fake = Fake(right)
    study = done(arms, with_gain(setting, curve=True), fake)
    assert study.curve_recipe == "real_mixup"
    # 12 train, 60 val, 15 hidden
    assert [(size, source) for size, source, _ in study.curve] == [
        *[(3, "train"), (6, "train"), (12, "train"), (24, "train and val"), (48, "train and val")],
        *[(72, "train and val"), (87, "hidden labels")],
    ]
    for size, _, votes in study.curve:
        cells = {cell for each in votes for cell, _ in each}
        assert {(cell.recipe, cell.value) for cell in cells} == {("real_mixup", 0.3)}
        assert {cell.extra for cell in cells} == ({f"size {size}"} if size != 12 else {""})
        assert [[cell.networks[i] for cell, i in each] for each in votes] == [[Network(seed, 0)] for seed in range(4)]
        assert cells <= set(study.trained)


def test_the_curve_does_not_change_the_arms(setting):
    without, with_it = (done(PLAIN, with_gain(setting, curve=curve)) for curve in (False, True))
    assert without.curve == []
    assert with_it.votes == without.votes
    assert with_it.best_real == without.best_real


def test_a_study_of_arms_without_a_plain_one_has_no_curve(setting):
    study = done(("simclr", "synthetic_gated"), with_gain(setting, curve=True))
    assert study.curve == []
    assert study.curve_recipe == ""


# Votes and scores


def test_a_vote_is_the_mean_probability():
    one, two = Cell("real_aug", 1.0, (Network(0, 0), Network(0, 1))), Cell("real_aug", 1.0, (Network(0, 2),))
    each = [predicted(10, confidence=0.5), predicted(20), predicted(30)]
    study = Study(votes={"real_committee": [[(one, 0), (one, 1), (two, 0)]]})
    study.trained = {cell: Trained({}, np.stack(val), 12, 0, 1, 1.0, 0.0, {}) for cell, val in ((one, each[:2]), (two, each[2:]))}
    assert vote(study, "real_committee", 0) == pytest.approx(np.mean(each, axis=0))


def test_a_score_is_accuracy_and_cross_entropy(setting):
    accuracy, loss = score(predicted(45, confidence=0.8), setting.data.val)
    assert accuracy == pytest.approx(0.75)
    assert loss == pytest.approx(-(45 * np.log(0.8) + 15 * np.log(0.1)) / 60, abs=1e-6)
    wrong = np.eye(3, dtype=np.float32)[(setting.data.val.labels + 1) % 3]
    assert score(wrong, setting.data.val)[1] == pytest.approx(-np.log(1e-7), rel=1e-5), "finite"
