"""A cell of the study: which images stand in its batches, how its networks are trained, and what comes back of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.torch import save

from synthgen.config.load import load
from synthgen.config.schema import AugmentConfig, ClassifierConfig, GainConfig
from synthgen.data.stacks import Stack, one_hot
from synthgen.errors import CheckpointError
from synthgen.gain import cells, classical
from synthgen.gain.active import k_center
from synthgen.gain.arms import RECIPES, TEACHER, partner_of, recipe_of, searched
from synthgen.gain.cells import (
    Cell,
    Network,
    Setting,
    Trained,
    predict,
    sources_of,
    stack_of,
    times_of,
    train_cell,
    training_of,
)
from synthgen.gain.data import StudyData
from synthgen.jobs import Order, backbones, transfer
from synthgen.models.classifier import Classifier, ClassifierNetwork
from synthgen.models.stacked import FEATURES, StackedNetwork, Training
from synthgen.types import UNLABELLED, Batch, DatasetSpec

PAIR = (Network(0, 0), Network(1, 0))
BATCH = 16
EXTRAS = ["oracle", "size 6"]


def images(n: int, prefix: str, labels=None, seed: int | None = None) -> Batch:
    labels = np.arange(n) % 3 if labels is None else np.asarray(labels)
    pixels = np.random.default_rng(n if seed is None else seed).integers(0, 256, (n, 1, 8, 8), dtype=np.uint8)
    return Batch(pixels, labels.astype(np.int64), tuple(f"{prefix}-{i:03d}" for i in range(n)))


def embed(pixels: np.ndarray) -> np.ndarray:
    return pixels.reshape(len(pixels), -1)[:, ::9].astype(np.float32) / 255


@pytest.fixture
def setting(toy_spec: DatasetSpec) -> Setting:
    spec = toy_spec
    data = StudyData(
        spec,
        images(12, "train"),
        images(7, "val"),
        images(9, "reference", np.full(9, UNLABELLED)),
        images(8, "pool", np.full(8, UNLABELLED)),
        gated=images(126, "gated"),
        ungated=images(150, "ungated"),
        with_copies=images(135, "copies"),
        others={"gan": images(5, "gan")},
        pool_labels=images(7, "guessed", seed=77),
        truth=np.arange(17) % 3,
        features=embed,
        pretrained={
            k: v for k, v in Classifier(ClassifierConfig(width=4), spec, 99).network.state_dict().items() if "head" not in k
        },
        backbone=embed,
    )
    return Setting(
        data, ClassifierConfig(width=4, batch_size=BATCH, steps=4), AugmentConfig(), GainConfig(pretrain_steps=3), "cpu"
    )


def teach(pixels: np.ndarray, seed: int, committee: bool) -> np.ndarray:
    """Fixed guesses that differ by seed and between network and committee; sure of every third image."""
    draws = np.random.default_rng(10 * seed + committee)
    guess = (0.5 * draws.dirichlet(np.ones(3), len(pixels)) + 0.5 / 3).astype(np.float32)  # sure by 2/3 at most
    guess[::3] = one_hot(draws.integers(0, 3, len(guess[::3])), 3) * 0.97 + 0.01
    return guess


def cell_of(name: str, **changed) -> Cell:
    recipe = recipe_of(name)
    return Cell(name, recipe.values[1] if recipe.dial else 0.0, PAIR)._replace(**changed)


def keys_of(setting: Setting) -> dict[bytes, str]:
    data = setting.data
    batches = [data.train, data.val, data.reference, data.pool, data.gated, data.ungated, data.with_copies, *data.others.values()]
    batches += [data.pool_labels]
    return {image.tobytes(): key for batch in batches for image, key in zip(batch.images, batch.keys, strict=True)}


def roles(setting: Setting, source, network: int = 0) -> dict[str, int]:
    """Role -> how many of its images a network draws from in a source."""
    known = keys_of(setting)
    names = [known[source.images[row].tobytes()].split("-")[0] for row in source.rows[network]]
    return {name: names.count(name) for name in dict.fromkeys(names)}


# Names


def test_streams_of_networks_are_their_own():
    streams = [Network(seed, member).stream for seed in range(20) for member in range(1000)]
    assert len(set(streams)) == len(streams)
    assert Network(3, 0).stream == 3000


def test_names_of_cells_are_fit_for_files_and_tell_them_apart():
    some = [cell_of(name, extra=extra) for name in RECIPES for extra in ("", "tune", *EXTRAS, "active margin")]
    some += [cell_of("real_aug", value=value) for value in (0.5, 2.0)]
    some += [cell_of("real_aug", networks=(Network(0, 1), Network(1, 1)))]
    some += [cell_of(searched({"lr": x, "dropout": 0.1})) for x in (0.5, 0.501)]
    some += [cell_of("real_mixup+synthetic"), cell_of("real_aug@all")]
    names = [cell.name for cell in some]
    assert len(set(names)) == len(names)
    assert not any(set(name) & set(" /\\:") for name in names)


# How it is trained


@pytest.mark.parametrize("name", RECIPES)
def test_the_dial_sets_what_it_names_and_nothing_else(name):
    recipe = RECIPES[name]
    base = replace(Training(policy=recipe.policy, mixing=recipe.mixing), **dict(recipe.given))
    kept = ("", "share", "steps")
    field = "weight_decay" if recipe.dial == "decay" else recipe.dial
    for value in recipe.values if recipe.dial else (0.0,):
        found = training_of(cell_of(name, value=value), recipe)
        expected = base if recipe.dial in kept else replace(base, **{field: value})
        assert found == expected
        assert times_of(cell_of(name, value=value), recipe) == (value if recipe.dial == "steps" else 1.0)
        if recipe.dial not in kept:
            assert getattr(found, field) == value


def test_an_arm_that_takes_longer_takes_all_of_its_steps(setting):
    usual = train_cell(cell_of("real_aug", value=1.0), setting, None)
    same, longer = (train_cell(cell_of("real_longer", value=value), setting, None) for value in (1.0, 4.0))
    assert np.array_equal(same.val, usual.val), "once the steps is standard augmentation"
    assert (longer.steps, longer.drawn) == (4 * usual.steps, 4 * usual.drawn)
    assert not np.array_equal(longer.val, usual.val)
    assert recipe_of(partner_of("real_longer", 1.0)) == RECIPES["synthetic_gated"], "which is there already"
    partner = partner_of("real_longer", 4.0)
    beside = train_cell(cell_of(partner, value=0.25), setting, None)
    assert (partner, beside.steps) == ("real_longer=4+synthetic", 4 * usual.steps), "as long beside synthetic images"


def test_what_a_search_found_is_how_its_networks_are_trained():
    found = {"depth": 2, "dropout": 0.2, "lr": 0.5, "strength": 3.0, "weight_decay": 0.1, "width": 6}
    expected = Training(strength=3.0, dropout=0.2, lr=0.5, weight_decay=0.1, width=6, depth=2)
    for name in (searched(found), f"{searched(found)}@all"):
        assert training_of(cell_of(name), recipe_of(name)) == expected
        assert isinstance(training_of(cell_of(name), recipe_of(name)).width, int)
    partner = f"{searched(found)}+synthetic"
    assert training_of(cell_of(partner, value=0.25), recipe_of(partner)) == expected
    assert recipe_of(partner).dial == "share"


# What stands in a batch

SURE = {"reference": 3, "pool": 3}
"""Every third of the unlabelled images: `teach` is sure of them."""

EXPECTED: dict[str, tuple[list[tuple[dict[str, int], int]], tuple[int, int]]] = {
    **{name: ([({"train": 12}, BATCH)], (12, 0)) for name in RECIPES if name.startswith("real") or name == "transfer"},
    "transfer_pool": ([({"train": 12}, 8), ({"guessed": 7}, 8)], (19, 0)),
    "transfer_fixmatch": ([({"train": 12}, BATCH), ({"reference": 9, "pool": 8}, BATCH)], (29, 0)),
    "real_distilled+synthetic": ([({"train": 12}, 8), ({"gated": 126}, 8)], (12, 126)),
    "simclr": ([({"train": 12}, BATCH)], (29, 0)),
    "pseudo_labels": ([({"train": 12}, 8), (SURE, 8)], (18, 0)),
    "fixmatch": ([({"train": 12}, BATCH), ({"reference": 9, "pool": 8}, BATCH)], (29, 0)),
    **{
        name: ([({"train": 12}, 8), ({"gated": 126}, 8)], (12, 126))
        for name in ("synthetic_gated", "synthetic_soft", "synthetic_mixup")
    },
    "synthetic_1x": ([({"train": 12}, 8), ({"gated": 12}, 8)], (12, 12)),
    "synthetic_3x": ([({"train": 12}, 8), ({"gated": 36}, 8)], (12, 36)),
    "synthetic_10x": ([({"train": 12}, 8), ({"gated": 120}, 8)], (12, 120)),
    "synthetic_ungated": ([({"train": 12}, 8), ({"ungated": 150}, 8)], (12, 150)),
    "synthetic_with_copies": ([({"train": 12}, 8), ({"copies": 135}, 8)], (12, 135)),
    "synthetic_pretrain": ([({"train": 12}, BATCH)], (12, 126)),
    "synthetic_pseudo": ([({"train": 12}, 4), ({"gated": 126}, 8), (SURE, 4)], (18, 126)),
    "synthetic_fixmatch": ([({"train": 12}, 8), ({"gated": 126}, 8), ({"reference": 9, "pool": 8}, BATCH)], (29, 126)),
    "pool_labels": ([({"train": 12}, 8), ({"guessed": 7}, 8)], (19, 0)),
    "synthetic_pool": ([({"train": 12}, 4), ({"gated": 126}, 8), ({"guessed": 7}, 4)], (19, 126)),
    "synthetic_pool_with_copies": ([({"train": 12}, 4), ({"copies": 135}, 8), ({"guessed": 7}, 4)], (19, 135)),
    "synthetic_only": ([({"gated": 126}, BATCH)], (0, 126)),
    "synthetic_only_soft": ([({"gated": 126}, BATCH)], (0, 126)),
    "generator_gan": ([({"train": 12}, 8), ({"gan": 5}, 8)], (12, 5)),
    "real_aug@all": ([({"train": 12, "val": 7}, BATCH)], (19, 0)),
    "synthetic_gated@all": ([({"train": 12, "val": 7}, 8), ({"gated": 126}, 8)], (19, 126)),
    "fixmatch+synthetic": ([({"train": 12}, 8), ({"gated": 126}, 8), ({"reference": 9, "pool": 8}, BATCH)], (29, 126)),
}


def test_every_network_of_the_table_is_expected_here():
    assert {name for name, recipe in RECIPES.items() if recipe.kind == "network"} <= set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_recipe_is_made_of_the_images_it_names(setting, name):
    found, *counts = sources_of(cell_of(name), recipe_of(name), setting, teach)
    expected, numbers = EXPECTED[name]
    # every seed's teacher is sure of as many images here: a third of them
    assert [(dict(sorted(roles(setting, s, n).items())), s.count) for s in found for n in range(2)] == [
        (dict(sorted(own.items())), count) for own, count in expected for _ in range(2)
    ]
    assert tuple(counts) == numbers
    assert sum(source.count for source in found if source.targets is not None) == BATCH, "the unlabelled ones stand beside"
    Stack(found, [0, 1])[0]


@pytest.mark.parametrize("name", EXPECTED)
def test_labels_are_the_images_own_unless_taught(setting, name):
    recipe = recipe_of(name)
    data = setting.data
    batches = [data.train, data.val, data.gated, data.ungated, data.with_copies, data.pool_labels, *data.others.values()]
    known = {image.tobytes(): label for batch in batches for image, label in zip(batch.images, batch.labels, strict=True)}
    found, *_ = sources_of(cell_of(name), recipe, setting, teach)
    for source in found:
        if source.targets is None or "pool" in roles(setting, source):
            continue
        pixels = [source.images[row] for row in source.rows[1]]
        soft = recipe.distilled if "train" in roles(setting, source) else recipe.soft
        expected = teach(np.stack(pixels), 1, True) if soft else one_hot(np.array([known[p.tobytes()] for p in pixels]), 3)
        assert np.array_equal(source.targets[1], expected)


@pytest.mark.parametrize(
    ("share", "expected"), [(0.25, [12, 4]), (0.5, [8, 8]), (0.75, [4, 12]), (0.001, [15, 1]), (0.999, [1, 15])]
)
def test_a_mix_keeps_its_share_and_never_loses_a_side(setting, share, expected):
    found, *_ = sources_of(cell_of("synthetic_gated", value=share), recipe_of("synthetic_gated"), setting, None)
    assert [source.count for source in found] == expected


def test_pseudo_labels_are_the_networks_own_where_it_is_sure(setting):
    """By the seed's network, not its committee; the threshold is the dial's."""
    pixels = setting.data.unlabelled.images
    for threshold in (0.6, 0.95, 0.99):
        found, num_real, _ = sources_of(cell_of("pseudo_labels", value=threshold), RECIPES["pseudo_labels"], setting, teach)
        sizes = []
        for network in range(2):
            guess = teach(pixels, network, False)
            sure = np.flatnonzero(guess.max(1) >= threshold)
            if threshold == 0.99:  # nobody is as sure as that: the surest image a class
                sure = np.unique(guess.argmax(0))
            assert np.array_equal(found[1].rows[network], sure)
            assert np.array_equal(found[1].targets[network], one_hot(guess[sure].argmax(1), 3))
            sizes.append(len(sure))
        assert num_real == 12 + round(np.mean(sizes))
    assert not np.array_equal(found[1].rows[0], found[1].rows[1])


def test_pseudo_labels_beside_synthetic_images_have_a_fixed_threshold(setting):
    found, *_ = sources_of(cell_of("synthetic_pseudo", value=0.25), RECIPES["synthetic_pseudo"], setting, teach)
    guess = teach(setting.data.unlabelled.images, 0, False)
    assert np.array_equal(found[2].rows[0], np.flatnonzero(guess.max(1) >= 0.8))
    assert [source.count for source in found] == [6, 4, 6]


def test_the_oracle_draws_from_all_real_images_alike(setting):
    """As whoever had them would: a share kept for the train fold is no ceiling."""
    found, num_real, num_synthetic = sources_of(cell_of("real_aug", extra="oracle"), RECIPES["real_aug"], setting, None)
    assert [source.count for source in found] == [16]
    assert roles(setting, found[0]) == {"train": 12, "reference": 9, "pool": 8}
    labels = np.concatenate([setting.data.train.labels, setting.data.truth])
    assert np.array_equal(found[0].targets[0], one_hot(labels, 3))
    assert (num_real, num_synthetic) == (12 + 17, 0)


# Sizes


def sized(setting: Setting, size: int) -> tuple[list[set[str]], list[np.ndarray]]:
    """Keys and labels that each network is trained on at a size."""
    found, num_real, _ = sources_of(cell_of("real_aug", extra=f"size {size}"), RECIPES["real_aug"], setting, None)
    assert num_real == size
    assert [source.count for source in found] == [BATCH]
    known = keys_of(setting)
    keys = [[known[found[0].images[row].tobytes()] for row in rows] for rows in found[0].rows]
    assert all(len(set(own)) == len(own) == size for own in keys)
    return [set(own) for own in keys], [target.argmax(1) for target in found[0].targets]


def test_sizes_are_nested_for_a_seed_and_differ_between_seeds(setting):
    by_size = [sized(setting, size)[0] for size in (3, 6, 12, 19, 28, 36)]
    for smaller, larger in pairwise(by_size):
        assert all(few < many for few, many in zip(smaller, larger, strict=True))
    assert by_size[0][0] != by_size[0][1]
    assert by_size[2][0] == by_size[2][1] == set(setting.data.train.keys)
    assert by_size[3][0] == by_size[3][1] == set(setting.data.labelled.keys), "no hidden label before those that everybody has"
    assert by_size[5][0] == set(setting.data.labelled.keys) | set(setting.data.simulated.keys)


@pytest.mark.parametrize("size", [3, 6, 9, 12, 36])
def test_every_size_has_the_classes_in_their_shares_and_true_labels(setting, size):
    keys, labels = sized(setting, size)
    data = setting.data
    truth = dict(zip(data.labelled.keys, data.labelled.labels, strict=True)) | dict(
        zip(data.simulated.keys, data.simulated.labels, strict=True)
    )
    for own, found in zip(keys, labels, strict=True):
        assert sorted(found) == sorted(truth[key] for key in own)
        assert np.ptp(np.bincount(found, minlength=3)) <= 2


# Starts


def weights(trained: Trained, setting: Setting, number: int) -> dict:
    return stack_of(trained, setting).get(number)


def test_a_transfer_starts_from_the_given_weights(setting):
    none = replace(setting, classifier=setting.classifier.model_copy(update={"steps": 1, "lr": 1e-12, "weight_decay": 0.0}))
    found = weights(train_cell(cell_of("transfer"), none, None), none, 1)
    plain = weights(train_cell(cell_of("real_aug"), none, None), none, 1)
    name = "stages.0.weight"
    given = setting.data.pretrained[name]
    assert np.allclose(found[name], given, atol=1e-6)
    assert not np.allclose(plain[name], given, atol=1e-2)
    assert np.allclose(found["head.weight"], plain["head.weight"], atol=1e-6), "the head is fresh, and the same as without"


@pytest.mark.parametrize("name", ["simclr", "synthetic_pretrain"])
def test_pre_training_changes_where_training_starts(setting, name):
    none = replace(setting, classifier=setting.classifier.model_copy(update={"lr": 1e-12, "weight_decay": 0.0}))
    before, spent = cells._start(cell_of(name), RECIPES[name], setting)
    assert before is not None
    assert spent.steps == {"simclr": 3, "synthetic_pretrain": 2}[name], "half of a network's steps, but for SimCLR"
    assert ("head.weight" in before[0]) == (name == "synthetic_pretrain"), "SimCLR knows no classes"
    assert cells._start(cell_of("real_aug"), RECIPES["real_aug"], setting) == (None, (0, 0))
    fresh = weights(train_cell(cell_of("real_aug"), none, None), none, 0)
    assert not np.allclose(before[0]["stages.0.weight"], fresh["stages.0.weight"], atol=1e-3)
    again, _ = cells._start(cell_of(name), RECIPES[name], setting)
    assert all(np.array_equal(before[1][k], again[1][k]) for k in before[1])


def test_simclr_sees_every_unlabelled_image_and_the_fine_tuning_none(setting, monkeypatch):
    asked = []
    original = cells._fit
    monkeypatch.setattr(
        cells, "_fit", lambda module, sources, *rest: asked.append((module, sources)) or original(module, sources, *rest)
    )
    train_cell(cell_of("simclr"), setting, None)
    (first, images_alone), (second, labelled) = asked
    assert type(first).__name__ == "SimCLR"
    assert roles(setting, images_alone[0]) == {"train": 12, "reference": 9, "pool": 8}
    assert not images_alone[0].targets[0].any(), "no label is there to be looked at"
    assert first.config.steps == 3
    assert roles(setting, labelled[0]) == {"train": 12}
    assert second.config.steps == 4


@pytest.mark.parametrize(
    ("width", "dim", "fresh"),
    [(4, FEATURES, {"head"}), (4, 48, {"head", "to_features"}), (6, FEATURES, None)],
    ids=["fits", "other feature layer", "other width"],
)
def test_what_fits_is_taken_up_from_another_runs_network(tmp_path, toy_spec, width, dim, fresh):
    """Of another width nothing fits, and counters, which fit anything, don't make a fresh network a pre-trained one."""
    theirs = ClassifierNetwork(width, dim, 0.0, replace(toy_spec, class_names=("x", "y"))).state_dict()
    (tmp_path / "extractor.safetensors").write_bytes(save(theirs))
    order = Order(load("digits-smoke", ["classifier.width=4", "device=cpu"]))
    split = SimpleNamespace(spec=toy_spec, folder=tmp_path / "here" / "split", origin="mine", digest="0")
    with pytest.raises(CheckpointError, match=r"gain\.transfer=.*nothing says what it was trained on .* or a whole copy of it"):
        transfer.read(tmp_path, order, split)
    backbones.write_trained_on(tmp_path / backbones.TRAINED_ON, SimpleNamespace(origin="theirs", digest="1"), ())
    found = transfer.read(tmp_path, order, split)
    assert found.embed(images(5, "x").images).shape == (5, dim), "the probe needs no fit"
    if fresh is None:
        assert found.weights is None
        return
    assert found.weights is not None
    mine = StackedNetwork(1, 4, toy_spec).get(0)
    assert {name.split(".")[0] for name in mine if name not in found.weights} - {"stages"} == fresh
    assert all(np.array_equal(value, theirs[name]) for name, value in found.weights.items())
    colour = SimpleNamespace(spec=replace(toy_spec, image_shape=(3, 8, 8)))
    with pytest.raises(CheckpointError, match=r"trained on images of 1 channels, here they have 3"):
        transfer.read(tmp_path, order, colour)


def test_a_folder_without_weights_is_refused(tmp_path, toy_spec):
    with pytest.raises(CheckpointError, match=r"gain\.transfer=.*neither a run's features/ folder .* nor a transformers folder"):
        transfer.read(tmp_path, Order(load("digits-smoke", ["device=cpu"])), SimpleNamespace(spec=toy_spec))


# Active learning


@pytest.fixture
def acquiring(setting: Setting) -> Setting:
    return replace(setting, gain=GainConfig(acquire=8))


@pytest.mark.parametrize("criterion", ["random", "margin", "entropy", "kcenter"])
def test_active_learning_picks_simulated_images_once_each(acquiring, criterion):
    cell = cell_of(TEACHER, extra=f"active {criterion}")
    found = train_cell(cell, acquiring, teach)
    assert (found.num_real, found.num_synthetic) == (12 + 8, 0)
    for keys in found.chosen["keys"]:
        assert len(keys) == len(set(keys)) == 8
        assert set(keys) <= set(acquiring.data.simulated.keys)
    assert len(found.chosen["keys"]) == 2
    assert set(found.chosen["keys"][0]) != set(found.chosen["keys"][1]), "each seed by its own networks"
    again = train_cell(cell, acquiring, teach)
    assert again.chosen == found.chosen
    assert np.array_equal(again.val, found.val)


def first_round(setting: Setting, criterion: str, known, monkeypatch) -> list[int]:
    """Places among the simulated images of what is labelled first."""
    monkeypatch.setattr(cells, "stacked_probabilities", lambda network, pixels, device: np.full((2, len(pixels), 3), 1 / 3))
    found = train_cell(cell_of(TEACHER, extra=f"active {criterion}"), setting, known)
    places = {key: i for i, key in enumerate(setting.data.simulated.keys)}
    return [places[key] for key in found.chosen["keys"][0][:4]]


@pytest.mark.parametrize(
    ("criterion", "wanted"),
    [("margin", [16, 15, 14, 13]), ("entropy", [0, 1, 2, 3])],
)
def test_the_least_certain_come_first(acquiring, monkeypatch, criterion, wanted):
    """Two kinds of doubt that differ: equal halves have the smallest margin, equal thirds the largest entropy."""
    rising = np.linspace(0.0, 0.3, 17)

    def known(pixels: np.ndarray, seed: int, committee: bool) -> np.ndarray:
        if len(pixels) != 17:
            return np.full((len(pixels), 3), 1 / 3)
        of_margin = np.stack([0.45 + 0.05 * (rising[::-1] / 0.3), 0.45 - 0.05 * (rising[::-1] / 0.3), np.full(17, 0.1)], axis=1)
        of_entropy = np.stack([1 / 3 + rising, 1 / 3 - rising / 2, 1 / 3 - rising / 2], axis=1)
        return of_margin if criterion == "margin" else of_entropy

    assert first_round(acquiring, criterion, known, monkeypatch) == wanted


def test_k_center_covers_what_is_far_from_train(acquiring, monkeypatch):
    """Train lies in one corner; four of the others are in two corners: one of each is taken before a second."""

    def known(pixels: np.ndarray, seed: int, committee: bool) -> np.ndarray:
        guess = np.tile(np.array([[0.98, 0.01, 0.01]]), (len(pixels), 1))
        if len(pixels) == 17:
            guess[:, 0] += np.arange(17) * 1e-5
            guess[[3, 4]], guess[[7, 8]] = [0.01, 0.98, 0.01], [0.01, 0.01, 0.98]
        return guess

    found = first_round(acquiring, "kcenter", known, monkeypatch)
    assert set(found[:2]) in ({3, 7}, {3, 8}, {4, 7}, {4, 8})


def test_k_center_is_greedy():
    points = np.array([[0.0], [1.0], [5.0], [6.0], [10.0]])
    assert k_center(points, np.array([[0.0]]), 3).tolist() == [4, 2, 1]
    assert k_center(points, np.array([[0.0], [10.0]]), 1).tolist() == [2]
    assert sorted(k_center(points, points[:1], 9)) == [0, 1, 2, 3, 4], "no point twice, and no more than there are"
    rng = np.random.default_rng(0)
    cloud, centres = rng.normal(size=(60, 3)), rng.normal(size=(4, 3))
    chosen, have = k_center(cloud, centres, 10), list(centres)
    for row in chosen:
        distances = ((cloud[:, None] - np.array(have)) ** 2).sum(2).min(1)
        assert distances[row] == pytest.approx(distances.max())
        have.append(cloud[row])


# What is left


@pytest.mark.parametrize("name", ["svm_pixels", "svm_pixels+synthetic", "forest_features@all", "boosting_features+synthetic"])
def test_a_classical_search_is_told_which_images_are_real_and_whose_they_are(setting, monkeypatch, name):
    told = {}
    monkeypatch.setattr(cells.classical, "fit_predict", lambda *given, **about: told.update(about) or fitted(given))

    def fitted(given):
        return classical.Fitted(tuple(np.full((len(q), 3), 1 / 3, np.float32) for q in given[4]), {}, None, 0.0, "")

    train_cell(cell_of(name), setting, None)
    own = recipe_of(name)
    keys = setting.data.real(own).keys + (setting.data.gated.keys if own.synthetic else ())
    assert told["real"].tolist() == [not key.startswith("gated") for key in keys]
    assert told["groups"] is None
    grouped = replace(setting.data, groups={"train-000": "ann", "train-002": "bob", "train-005": "ann", "val-001": "ann"})
    train_cell(cell_of(name), replace(setting, data=grouped), None)
    of = dict(zip(keys, told["groups"].tolist(), strict=True))
    assert of["train-000"] == of["train-005"] != of["train-002"]
    assert "val-001" not in of or of["val-001"] == of["train-000"]
    assert len(set(of.values())) == len(keys) - (2 if "val-001" in of else 1), "each of the others stands alone"


@pytest.mark.parametrize("name", ["synthetic_gated", "fixmatch", "svm_pixels", "forest_features", "transfer_probe"])
def test_a_finished_cell_predicts_the_same_from_its_bytes(setting, name):
    cell = cell_of(name)
    done = train_cell(cell, setting, None)
    assert done.val.shape == (2, 7, 3)
    assert done.val.dtype == np.float32
    assert np.allclose(done.val.sum(2), 1, atol=1e-5)
    back = Trained.from_bytes(done.to_bytes())
    assert np.array_equal(predict(cell, back, setting, setting.data.val.images), done.val)
    again = train_cell(cell, setting, None)
    assert np.array_equal(again.val, done.val)
    assert done.steps == (4 if RECIPES[name].kind == "network" else 0)


def test_a_finished_cell_comes_back_from_its_bytes():
    whole = Trained(
        {"stages.0.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(7, dtype=np.int64)},
        np.random.default_rng(0).random((2, 5, 3), dtype=np.float32),
        num_real=12,
        num_synthetic=15,
        steps=20,
        seconds=1.25,
        device_seconds=0.5,
        chosen={"keys": [["a", "b"], ["c"]]},
    )
    back = Trained.from_bytes(whole.to_bytes())
    for field in ("num_real", "num_synthetic", "steps", "seconds", "device_seconds", "chosen"):
        assert getattr(back, field) == getattr(whole, field)
    assert np.array_equal(back.val, whole.val)
    assert back.weights.keys() == whole.weights.keys()
    for name, array in whole.weights.items():
        assert np.array_equal(back.weights[name], array)
        assert back.weights[name].dtype == array.dtype
        assert back.weights[name].shape == array.shape


def test_a_network_is_the_same_in_any_company(setting):
    """Its seed, not its cell, fixes it (single precision: up to rounding)."""
    together = train_cell(cell_of("synthetic_gated", networks=(Network(0, 0), Network(2, 1), Network(1, 0))), setting, None)
    alone = train_cell(cell_of("synthetic_gated", networks=(Network(1, 0),)), setting, None)
    assert np.allclose(together.val[2], alone.val[0], atol=1e-4)
    assert not np.allclose(together.val[0], together.val[2], atol=1e-2)
    assert not np.allclose(together.val[1], together.val[2], atol=1e-2)


def test_classical_models_learn_from_real_and_synthetic_images(setting):
    """The partner of a classical recipe has the gated images in its rows."""
    real = train_cell(cell_of("svm_pixels"), setting, None)
    both = train_cell(cell_of("svm_pixels+synthetic", value=0.0), setting, None)
    assert (real.num_real, real.num_synthetic) == (12, 0)
    assert (both.num_real, both.num_synthetic) == (12, 126)
    assert not np.allclose(real.val, both.val)
    assert real.weights == {}
