"""The table of arms: each can be looked up, tuned with the same budget, and refused or skipped with a reason."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from synthgen.data.policies import POLICIES
from synthgen.errors import ConfigError
from synthgen.gain.arms import (
    ARMS,
    OTHER_GENERATOR,
    QUICK,
    RECIPES,
    SHARES,
    TEACHER,
    Recipe,
    arm_of,
    base_of,
    check_arms,
    partner_of,
    recipe_of,
    searched,
)
from synthgen.gain.classical import MODELS
from synthgen.gain.data import StudyData, nested, why_not
from synthgen.types import UNLABELLED, Batch, DatasetSpec

ROLES = {"", "committee", "large committee", "trainval", "classical trainval", "partner", "oracle", "active", "searched"}
DIALS = {"strength", "lr", "alpha", "smoothing", "dropout", "decay", "steps", "share", "confidence"}
SOURCES = {"", "gated", "ungated", "with copies"}


def images(n: int, prefix: str, labels=None) -> Batch:
    labels = np.arange(n) % 3 if labels is None else np.asarray(labels)
    pixels = np.random.default_rng(n).integers(0, 256, (n, 1, 8, 8), dtype=np.uint8)
    return Batch(pixels, labels.astype(np.int64), tuple(f"{prefix}-{i:03d}" for i in range(n)))


def embed(pixels: np.ndarray) -> np.ndarray:
    return pixels.reshape(len(pixels), -1)[:, :4].astype(np.float32)


@pytest.fixture
def data(toy_spec: DatasetSpec) -> StudyData:
    """Everything that an arm may ask for."""
    hidden = np.full(9, UNLABELLED), np.full(6, UNLABELLED)
    return StudyData(
        toy_spec,
        images(12, "train"),
        images(6, "val"),
        images(9, "reference", hidden[0]),
        images(6, "pool", hidden[1]),
        gated=images(126, "gated"),
        ungated=images(150, "ungated"),
        with_copies=images(135, "copies"),
        others={"gan": images(5, "gan")},
        pool_labels=images(6, "pool"),
        truth=np.arange(15) % 3,
        features=embed,
        pretrained={},
        backbone=embed,
    )


# The table


def test_every_arm_has_a_recipe_or_a_role():
    for name, arm in ARMS.items():
        assert arm.role in ROLES
        assert arm.meaning
        assert bool(arm.recipe) or arm.role in ROLES - {"", "oracle", "active"}, name
        if arm.recipe:
            assert arm.recipe in RECIPES
    assert len({arm.meaning for arm in ARMS.values()}) == len(ARMS), "two rows of a table that read alike"


def test_every_recipe_is_an_arms():
    assert {arm.recipe for arm in ARMS.values()} - {""} == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_holds_what_it_says(name):
    recipe = RECIPES[name]
    assert recipe.policy in ("", *POLICIES)
    assert recipe.mixing in ("", "mixup", "cutmix", "smote")
    assert recipe.synthetic in SOURCES
    assert recipe.labelled in ("train", "none")
    if recipe.kind == "network":
        assert not recipe.model
        assert recipe.dial in DIALS or name == "real_searched", "whose settings are found, all at once"
        assert len(recipe.values) == 3, "val chooses among as many values for every network"
        assert list(recipe.values) == sorted(set(recipe.values))
    else:
        assert recipe.model in MODELS
        assert recipe.dial == ""
    assert recipe.labelled == "train" or recipe.synthetic
    with pytest.raises(FrozenInstanceError):
        recipe.policy = "cutout"  # type: ignore[misc]


def test_the_name_of_a_searched_recipe_tells_what_was_found():
    found = {"depth": 2, "dropout": 0.214, "lr": 0.51, "strength": 1.0, "weight_decay": 0.00213, "width": 24}
    name = searched(found)
    assert dict(recipe_of(name).given) == found
    assert replace(recipe_of(name), given=()) == RECIPES["real_searched"]
    everything = f"{name}+synthetic@all"
    assert dict(recipe_of(everything).given) == found
    assert (recipe_of(everything).labelled, recipe_of(everything).synthetic) == ("all", "gated")
    assert partner_of(name, 0.0) == f"{name}+synthetic"
    assert {base_of(each) for each in (name, f"{name}@all", f"{name}+synthetic", everything)} == {name}
    assert base_of("real_mixup=0.1+synthetic@all") == "real_mixup"
    assert base_of("synthetic_gated") == "synthetic_gated"


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_is_synthetic_where_its_images_are(name):
    arm = ARMS[name]
    if arm.recipe:
        recipe = RECIPES[arm.recipe]
        assert arm.synthetic == (bool(recipe.synthetic) or recipe.start == "synthetic")
    else:
        assert arm.synthetic == name.startswith("synthetic_")


def test_no_two_recipes_are_the_same():
    seen: dict[Recipe, str] = {}
    for name, recipe in RECIPES.items():
        assert recipe not in seen, f"{name} is {seen.get(recipe)}"
        seen[recipe] = name


def test_who_needs_a_teacher():
    taught = {name for name, recipe in RECIPES.items() if recipe.taught}
    expected = {"real_distilled", "pseudo_labels", "synthetic_soft", "synthetic_pseudo", "synthetic_only_soft"}
    assert taught == expected
    assert not RECIPES[TEACHER].taught
    assert not RECIPES[TEACHER].synthetic, "a teacher knows real images alone"


def test_arms_that_saw_val_or_hidden_labels_are_not_judged_on_val():
    unjudged = {name for name, arm in ARMS.items() if not arm.judged}
    assert unjudged == {
        *("real_trainval", "synthetic_trainval", "oracle", "real_committee_large", "classical_trainval"),
        *("active_random", "active_margin", "active_entropy", "active_kcenter"),
        *("synthetic_ungated", "synthetic_with_copies", "synthetic_pool_with_copies"),  # nobody gets those images
    }


def test_the_quick_study_is_a_part_of_the_full_one():
    assert set(QUICK) < set(ARMS)
    assert len(set(QUICK)) == len(QUICK)
    kinds = {(arm_of(name).synthetic, arm_of(name).role) for name in QUICK}
    for role in ("", "committee", "trainval"):
        assert {(False, role), (True, role)} <= kinds, "like is compared with like"
    assert check_arms(QUICK, "quick") == tuple(name for name in ARMS if name in QUICK), "it can be asked for by its names"


# Names of recipes


@pytest.mark.parametrize(
    "name", [name for name, recipe in RECIPES.items() if not recipe.synthetic and recipe.start != "synthetic"]
)
def test_a_partner_is_its_recipe_with_the_gated_images(name):
    base, partner = RECIPES[name], recipe_of(f"{name}+synthetic")
    assert partner.synthetic == "gated"
    if base.kind == "network":
        assert (partner.dial, partner.values) == ("share", SHARES)
        assert replace(partner, synthetic=base.synthetic, dial=base.dial, values=base.values) == base
    else:
        assert replace(partner, synthetic="") == base


@pytest.mark.parametrize("name", ["real_aug", "synthetic_gated", "fixmatch", "real_mixup+synthetic", "generator_gan"])
def test_on_all_labelled_images(name):
    assert recipe_of(f"{name}@all") == replace(recipe_of(name), labelled="all")


def test_another_generators_recipe_is_that_of_the_gated_images():
    assert recipe_of("generator_gan") == replace(RECIPES["synthetic_gated"], synthetic="gan")
    arm = arm_of("generator_gan")
    assert arm.synthetic
    assert not arm.judged, "the run exports the images of the generator that was chosen"
    assert "gan" in arm.meaning
    assert recipe_of(arm.recipe).synthetic == "gan"


def test_a_recipe_that_is_none():
    with pytest.raises(KeyError):
        recipe_of("real_agu")


# What is asked for


def test_the_studys_own_arms_unless_asked():
    assert check_arms(None, "quick") == QUICK
    assert check_arms(None, "full") == tuple(ARMS)
    assert check_arms(None, "full", ["gan", "vae"]) == (*ARMS, "generator_gan", "generator_vae")
    assert check_arms(None, "quick", ["gan"]) == QUICK


def test_arms_asked_for_come_in_the_tables_order():
    assert check_arms(["synthetic_gated", "real_aug", "real"], "full") == ("real", "real_aug", "synthetic_gated")
    asked = ["generator_gan", "real_aug", "synthetic_gated"]
    assert check_arms(asked, "quick", ["gan"]) == ("real_aug", "synthetic_gated", "generator_gan")
    assert check_arms(asked, "quick", ["vae"]) == ("real_aug", "synthetic_gated", "generator_gan"), "kept, to be skipped"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["real_agu", "synthetic_gated"], "no arm 'real_agu'; did you mean 'real_aug'.*`synthgen arms` lists them"),
        (["real_aug"], "no arm with the synthetic images that the gate kept that val can judge; add 'synthetic_gated'"),
        (["real_aug", "synthetic_committee"], "no arm with the synthetic images that the gate kept that val can judge"),
        (["real_aug", "synthetic_trainval"], "no arm with the synthetic images that the gate kept that val can judge"),
        (["real_aug", "synthetic_ungated"], "no arm with the synthetic images that the gate kept that val can judge"),
        (["real_aug", "generator_gan"], "no arm with the synthetic images that the gate kept that val can judge"),
        (["synthetic_gated"], "no arm of real images alone that val can judge; add 'real_aug'"),
        (["real_committee", "real_searched", "synthetic_gated"], "no arm of real images alone that val can judge"),
        (["oracle", "active_margin", "synthetic_gated"], "no arm of real images alone that val can judge"),
        ([], "no arm of real images alone that val can judge"),
    ],
)
def test_a_choice_that_cannot_be_judged_is_refused(asked, message):
    with pytest.raises(ConfigError, match=rf"gain\.arms: {message}"):
        check_arms(asked, "quick")


# What the images allow


def none(batch: Batch) -> Batch:
    return batch.take(np.arange(0))


def test_with_everything_at_hand_no_arm_is_skipped(data):
    assert {name: why for name in (*ARMS, "generator_gan") if (why := why_not(name, data))} == {}


POOL_ARMS = {"pool_labels", "transfer_pool", "synthetic_pool", "synthetic_pool_with_copies"}
COPIES_ARMS = {"synthetic_with_copies", "synthetic_pool_with_copies"}
UNLABELLED_ARMS = {"pseudo_labels", "fixmatch", "transfer_fixmatch", "synthetic_pseudo", "synthetic_fixmatch"}
TRANSFER_ARMS = {"transfer", "transfer_pool", "transfer_fixmatch"}
SIMULATED = {"oracle", "active_random", "active_margin", "active_entropy", "active_kcenter"}


@pytest.mark.parametrize(
    ("missing", "skipped", "reason"),
    [
        (
            {"features": None},
            {"logistic_features", "svm_features", "forest_features", "boosting_features"},
            "needs the gate's extractor, and there is no features folder",
        ),
        ({"pool_labels": None}, POOL_ARMS, r"needs a pool that the generator was trained on: split\.pool and pool\.train=true"),
        ({"pretrained": None}, TRANSFER_ARMS, r"needs pre-trained weights: gain\.transfer=FOLDER"),
        ({"backbone": None}, {"transfer_probe"}, r"needs pre-trained weights: gain\.transfer=FOLDER"),
        ({"truth": None}, SIMULATED, r"a simulation with hidden labels wasn't asked for \(gain\.simulate=true\)"),
        ({"truth": np.full(15, UNLABELLED)}, SIMULATED, "or there are none"),
        ({"others": {}}, {"generator_gan"}, "no generator 'gan' beside the one studied"),
        ({"others": {"gan": images(0, "gan")}}, {"generator_gan"}, "the gate kept none of gan's samples"),
        ({"with_copies": images(126, "gated")}, COPIES_ARMS, "no sample was dropped for being a copy alone"),
        ({"gated": images(119, "gated")}, {"synthetic_10x"}, "asks for 120 synthetic images, and 119 passed the gate"),
        ({"gated": images(35, "gated")}, {"synthetic_10x", "synthetic_3x"}, "asks for (120|36) .*, and 35 passed the gate"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_an_arm_that_lacks_something_says_what(data, missing, skipped, reason):
    lacking = replace(data, **missing)
    found = {name: why for name in (*ARMS, "generator_gan") if (why := why_not(name, lacking))}
    assert set(found) == skipped
    for why in found.values():
        assert re.search(reason, why), why


def test_without_unlabelled_images(data):
    nobody = replace(data, reference=none(data.reference), pool=none(data.pool), pool_labels=None, truth=None)
    found = {name: why for name in ARMS if (why := why_not(name, nobody))}
    assert set(found) == UNLABELLED_ARMS | POOL_ARMS | SIMULATED
    assert all(found[name] == "needs unlabelled images, and there are none" for name in UNLABELLED_ARMS)


def test_reference_images_with_labels_are_no_unlabelled_ones(data):
    known = replace(data, reference=images(9, "reference"), pool=none(data.pool), pool_labels=None, truth=np.arange(9) % 3)
    found = {name: why for name in ARMS if (why := why_not(name, known))}
    assert set(found) == UNLABELLED_ARMS | POOL_ARMS | SIMULATED, "labels that everybody has simulate nothing"
    assert all("the reference images have labels; real_trainval uses them" in found[name] for name in UNLABELLED_ARMS)
    beside = replace(data, reference=images(9, "reference"))
    assert {name for name in ARMS if why_not(name, beside)} == set()


def test_without_any_sample_that_passed_the_gate(data):
    """An arm with synthetic images but without any would be a real-only one under another name."""
    found = {name for name in ARMS if why_not(name, replace(data, gated=none(data.gated)))}
    gated = {name for name, arm in ARMS.items() if arm.synthetic and arm.recipe} - {"synthetic_ungated"} - COPIES_ARMS
    assert found == gated
    assert why_not("synthetic_ungated", replace(data, ungated=none(data.ungated)))


# Which images


def test_unlabelled_images_are_the_pool_and_the_reference_nobody_labelled(data):
    assert data.unlabelled.keys == (*data.reference.keys, *data.pool.keys)
    assert data.labelled.keys == (*data.train.keys, *data.val.keys)
    known = replace(data, reference=images(9, "reference"))
    assert known.unlabelled.keys == data.pool.keys
    assert known.labelled.keys == (*data.train.keys, *data.val.keys, *known.reference.keys)


def test_a_simulation_has_the_hidden_labels_that_somebody_knows(data):
    truth = np.arange(15) % 3
    truth[[2, 11]] = UNLABELLED
    found = replace(data, truth=truth).simulated
    everything = (*data.reference.keys, *data.pool.keys)
    kept = [i for i in range(15) if i not in (2, 11)]
    assert found.keys == tuple(everything[i] for i in kept)
    assert found.labels.tolist() == [truth[i] for i in kept]
    pixels = np.concatenate([data.reference.images, data.pool.images])
    assert np.array_equal(found.images, pixels[kept])
    known = replace(data, reference=images(9, "reference"), truth=truth)
    assert known.simulated.keys == tuple(data.pool.keys[i] for i in range(6) if i != 2), "labelled ones have nothing to hide"
    assert len(replace(data, truth=None).simulated) == 0


@pytest.mark.parametrize(
    ("recipe", "source", "number"),
    [
        ("synthetic_gated", "gated", 126),
        ("synthetic_ungated", "ungated", 150),
        ("synthetic_with_copies", "copies", 135),
        ("synthetic_pretrain", "gated", 126),
        ("synthetic_1x", "gated", 12),
        ("synthetic_3x", "gated", 36),
        ("synthetic_10x", "gated", 120),
        ("generator_gan", "gan", 5),
        ("real_mixup+synthetic", "gated", 126),
    ],
)
def test_a_recipes_synthetic_images(data, recipe, source, number):
    found = data.synthetic(recipe_of(recipe))
    assert found is not None
    assert len(found) == number
    assert {key.split("-")[0] for key in found.keys} == {source}


@pytest.mark.parametrize("recipe", ["real", "simclr", "real_distilled", "svm_pixels", "fixmatch"])
def test_a_real_only_recipe_has_none(data, recipe):
    assert data.synthetic(recipe_of(recipe)) is None


def test_fewer_synthetic_images_are_part_of_more(data):
    one, three, ten = (set(data.synthetic(RECIPES[f"synthetic_{n}x"]).keys) for n in (1, 3, 10))
    assert one < three < ten < set(data.gated.keys)
    assert np.bincount(data.synthetic(RECIPES["synthetic_1x"]).labels).tolist() == [4, 4, 4]


def test_a_recipes_real_images(data):
    assert data.real(RECIPES["real_aug"]).keys == data.train.keys
    assert len(data.real(RECIPES["synthetic_only"])) == 0
    assert data.real(recipe_of("real_aug@all")).keys == data.labelled.keys


# Nested orders


@pytest.mark.parametrize("labels", [[0] * 30 + [1] * 20 + [2] * 10, [2, 1, 0] * 7, [0, 0, 0, 1], [5] * 4])
def test_every_beginning_has_each_class_in_its_share(labels):
    labels = np.array(labels)
    order = nested(labels, 3, "x")
    assert sorted(order) == list(range(len(labels)))
    share = np.bincount(labels) / len(labels)
    for size in range(1, len(labels) + 1):
        counts = np.bincount(labels[order[:size]], minlength=len(share))
        assert (np.abs(counts - share * size) <= 1 + 1e-9).all()


def test_other_seeds_and_names_have_other_orders():
    labels = np.arange(40) % 4
    orders = [tuple(nested(labels, seed, name)) for seed in range(3) for name in ("a", "b")]
    assert len(set(orders)) == 6
    assert tuple(nested(labels, 1, "a")) == orders[2]


def test_the_prefix_of_another_generators_arms():
    assert not any(name.startswith(OTHER_GENERATOR) for name in (*ARMS, *RECIPES))
