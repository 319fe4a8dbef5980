"""The arms of the study: one consistent table, an equal information budget, and every number from the right networks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from synthgen.config.schema import AugmentConfig, ClassifierConfig, GainConfig
from synthgen.errors import ConfigError, DataError
from synthgen.gain.arms import ARMS, RECIPES, RIVAL, Recipe, StudyData, check_arms, skipped
from synthgen.gain.study import (
    Cell,
    Trained,
    _sources,
    assess,
    cells,
    choose_best_real,
    mean_probabilities,
    predict,
    pseudo_labelled,
    score,
    train_cell,
)
from synthgen.types import UNLABELLED, Batch, DatasetSpec, GainReport, Silent

CONFIG = GainConfig(seeds=2, committee=3)


def images(n: int, prefix: str, labels=None) -> Batch:
    labels = np.arange(n) % 3 if labels is None else np.asarray(labels)
    pixels = np.random.default_rng(n).integers(0, 256, (n, 1, 8, 8), dtype=np.uint8)
    return Batch(pixels, labels.astype(np.int64), tuple(f"{prefix}-{i:03d}" for i in range(n)))


@pytest.fixture
def data(toy_spec: DatasetSpec) -> StudyData:
    unlabelled = images(9, "reference", np.full(9, UNLABELLED))
    return StudyData(toy_spec, images(12, "train"), images(6, "val"), unlabelled, images(15, "gated"), images(21, "ungated"))


def labelled(data: StudyData) -> StudyData:
    return replace(data, reference=images(9, "reference"))


def sure(labels, confidence: float = 0.9) -> np.ndarray:
    """Probabilities of three classes that put `confidence` on the given one."""
    labels = np.asarray(labels)
    found = np.full((len(labels), 3), (1 - confidence) / 2, dtype=np.float32)
    found[np.arange(len(labels)), labels] = confidence
    return found


def fake(val: np.ndarray, reference=None, seconds: float = 1.0) -> Trained:
    weights = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "steps": np.array(7, dtype=np.int64)}
    return Trained(weights, val, sure([0, 1]) if reference is None else reference, 12, 15, seconds)


# The table


def test_every_arm_has_a_recipe_and_every_recipe_an_arm():
    assert {arm.recipe for arm in ARMS.values()} == set(RECIPES)
    assert all(arm.meaning for arm in ARMS.values())


@pytest.mark.parametrize(("baseline", "rival"), RIVAL.items())
def test_a_rival_has_as_many_networks_and_the_same_labels(baseline, rival):
    ours, theirs = ARMS[rival], ARMS[baseline]
    assert ours.committee == theirs.committee
    assert RECIPES[ours.recipe].val == RECIPES[theirs.recipe].val
    assert RECIPES[ours.recipe].synthetic == "gated"
    assert RECIPES[ours.recipe].real
    assert RECIPES[theirs.recipe].synthetic == ""
    assert RECIPES[ours.recipe].augment


def test_every_real_only_arm_has_its_rival():
    assert set(RIVAL) == {name for name, arm in ARMS.items() if not RECIPES[arm.recipe].synthetic}


# What is asked for


def test_all_arms_unless_asked_and_always_in_the_tables_order():
    assert check_arms(None) == tuple(ARMS)
    assert check_arms(["synthetic_gated", "real_aug", "real"]) == ("real", "real_aug", "synthetic_gated")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["real_agu", "synthetic_gated"], "no arm 'real_agu'; did you mean 'real_aug'"),
        (["real_aug"], "'real_aug' needs 'synthetic_gated' to be compared with"),
        (["real_aug", "synthetic_gated", "real_aug_committee"], "'real_aug_committee' needs 'synthetic_gated_committee'"),
        (["real_aug_trainval", "synthetic_gated_trainval"], "no real-only arm that val can judge; add 'real_aug'"),
        (["synthetic_gated"], "no real-only arm that val can judge"),
        ([], "no real-only arm that val can judge"),
    ],
)
def test_a_choice_that_cannot_be_judged_is_refused(asked, message):
    with pytest.raises(ConfigError, match=rf"gain\.arms: {message}"):
        check_arms(asked)


def test_an_arm_that_the_images_do_not_allow_is_skipped_with_its_reason(data):
    assert skipped(ARMS, data) == {}
    assert skipped(ARMS, labelled(data)) == {"pseudo_labels": "the reference images have labels; real_aug_trainval uses them"}
    nobody = replace(data, reference=data.reference.take(np.arange(0)))
    assert skipped(ARMS, nobody) == {"pseudo_labels": "there are no reference images"}
    assert skipped(["real_aug", "synthetic_gated"], nobody) == {}


def test_a_study_that_is_left_without_a_real_only_arm_is_refused(data):
    with pytest.raises(ConfigError, match=r"'pseudo_labels' can't run: the reference images have labels.*add 'real_aug'"):
        skipped(["pseudo_labels", "synthetic_gated"], labelled(data))


# The networks


def test_the_networks_of_an_arm_are_shared_and_teachers_come_first():
    arms = ("pseudo_labels", "synthetic_gated", "synthetic_gated_committee")
    first, second = cells(arms, CONFIG)
    assert set(second) == {Cell("pseudo_labels", seed, 0) for seed in range(2)}
    gated = {Cell("synthetic_gated", seed, member) for seed in range(2) for member in range(3)}
    teachers = {Cell("real_aug", seed, 0) for seed in range(2)}
    assert set(first) == gated | teachers
    assert len(first) == len(set(first))
    assert cells(("real_aug", "synthetic_gated"), CONFIG)[1] == []


def test_the_whole_study_trains_every_network_of_every_arm_once():
    both = [cell for cells_of in cells(tuple(ARMS), CONFIG) for cell in cells_of]
    needed = {(arm.recipe, seed, m) for arm in ARMS.values() for seed in range(2) for m in range(3 if arm.committee else 1)}
    assert sorted(both) == sorted(needed)


@pytest.mark.parametrize(
    ("recipe", "sizes", "counts"),
    [
        ("real", [12], (12, 0)),
        ("real_aug", [12], (12, 0)),
        ("real_aug_trainval", [18], (18, 0)),
        ("synthetic_gated", [12, 15], (12, 15)),
        ("synthetic_gated_trainval", [18, 15], (18, 15)),
        ("synthetic_ungated", [12, 21], (12, 21)),
        ("synthetic_only", [15], (0, 15)),
    ],
)
def test_a_recipe_is_made_of_the_images_it_names(data, recipe, sizes, counts):
    sources, *found = _sources(RECIPES[recipe], data, 8, CONFIG, None)
    assert [len(batch) for batch, _ in sources] == sizes
    assert tuple(found) == counts
    assert sum(rows for _, rows in sources) == 8
    keys = {key.split("-")[0] for batch, _ in sources for key in batch.keys}
    expected = {"train"} if RECIPES[recipe].real else set()
    expected |= {"val"} if RECIPES[recipe].val else set()
    assert keys == expected | ({RECIPES[recipe].synthetic} - {""})


def test_labelled_reference_images_belong_to_the_real_only_side_too(data):
    sources, num_real, _ = _sources(RECIPES["real_aug_trainval"], labelled(data), 8, CONFIG, None)
    assert num_real == len(sources[0][0]) == 12 + 6 + 9
    _, num_real, num_synthetic = _sources(RECIPES["synthetic_gated_trainval"], labelled(data), 8, CONFIG, None)
    assert (num_real, num_synthetic) == (27, 15)


@pytest.mark.parametrize(("share", "expected"), [(0.5, [4, 4]), (0.25, [6, 2]), (0.001, [7, 1]), (0.999, [1, 7])])
def test_a_mix_keeps_its_share_and_never_loses_a_side(data, share, expected):
    config = CONFIG.model_copy(update={"synthetic_share": share})
    sources, *_ = _sources(RECIPES["synthetic_gated"], data, 8, config, None)
    assert [rows for _, rows in sources] == expected


def test_pseudo_labels_are_the_teachers_where_it_is_sure(data):
    confidence = np.concatenate([sure([2, 1, 0, 1], 0.95), sure([0, 1, 2, 0, 1], 0.6)])
    found = pseudo_labelled(data.reference, confidence, 0.8)
    assert found.labels.tolist() == [2, 1, 0, 1]
    assert found.keys == data.reference.keys[:4]
    assert len(pseudo_labelled(data.reference, sure([0] * 9, 0.75), 0.75)) == 9, "the threshold itself is enough"
    sources, num_real, _ = _sources(RECIPES["pseudo_labels"], data, 8, CONFIG, fake(sure([0]), confidence))
    assert [(len(batch), rows) for batch, rows in sources] == [(12, 4), (4, 4)]
    assert num_real == 16


def test_a_teacher_that_is_never_sure_leaves_the_real_images(data):
    sources, num_real, _ = _sources(RECIPES["pseudo_labels"], data, 8, CONFIG, fake(sure([0]), sure([0] * 9, 0.4)))
    assert [(len(batch), rows) for batch, rows in sources] == [(12, 8)]
    assert num_real == 12


def test_a_finished_network_comes_back_from_its_bytes():
    whole = fake(sure([0, 1, 2]), seconds=1.25)
    back = Trained.from_bytes(whole.to_bytes())
    assert (back.num_real, back.num_synthetic, back.seconds) == (12, 15, 1.25)
    for one, two in ((whole.val, back.val), (whole.reference, back.reference)):
        assert np.array_equal(one, two)
        assert one.dtype == two.dtype
    assert set(back.weights) == set(whole.weights)
    assert all(np.array_equal(back.weights[name], whole.weights[name]) for name in whole.weights)
    assert back.weights["steps"].shape == ()


def test_only_a_teacher_looks_at_the_reference_images(data):
    small = ClassifierConfig(width=4, batch_size=8, steps=2)
    options = {"teacher": None, "device": "cpu", "progress": Silent(), "task": "gain"}
    for cell, given, shape in [
        (Cell("real_aug", 0, 0), data, (9, 3)),
        (Cell("real_aug", 0, 1), data, (0, 0)),
        (Cell("synthetic_gated", 0, 0), data, (0, 0)),
        (Cell("real_aug", 0, 0), labelled(data), (0, 0)),
        (Cell("real_aug", 0, 0), replace(data, reference=data.reference.take(np.arange(0))), (0, 0)),
    ]:
        assert train_cell(cell, given, small, AugmentConfig(), CONFIG, **options).reference.shape == shape


def test_a_trained_network_predicts_the_same_from_its_bytes(data):
    small = ClassifierConfig(width=4, batch_size=8, steps=3)
    options = {"teacher": None, "device": "cpu", "progress": Silent(), "task": "gain"}
    done = train_cell(Cell("synthetic_gated", 0, 1), data, small, AugmentConfig(), CONFIG, **options)
    assert (done.num_real, done.num_synthetic) == (12, 15)
    assert np.allclose(done.val.sum(1), 1, atol=1e-5)
    back = Trained.from_bytes(done.to_bytes())
    assert np.array_equal(predict(back, data.spec, small, data.val), done.val)
    other = train_cell(Cell("synthetic_gated", 0, 2), data, small, AugmentConfig(), CONFIG, **options)
    assert not np.array_equal(other.val, done.val), "the members of a committee differ"


# The choice and the record

ALL = ("real", "real_aug", "real_aug_committee", "real_aug_trainval", "synthetic_gated", "synthetic_gated_committee")
TRUTH = [0, 1, 2, 0, 1, 2]
WRONG = [1, 2, 0, 1, 2, 0]


def study(**right: list[int]) -> dict[Cell, Trained]:
    """Networks whose val predictions are right at so many of 6 images: recipe -> count by (seed, member)."""
    every = [cell for round_ in cells((*ALL, "synthetic_gated_trainval"), CONFIG) for cell in round_]
    found = {}
    for cell in every:
        count = right.get(cell.recipe, [3])[(3 * cell.seed + cell.member) % len(right.get(cell.recipe, [3]))]
        found[cell] = fake(sure(TRUTH[:count] + WRONG[count:]))
    return found


def test_the_strongest_real_only_arm_is_chosen_on_val(data):
    assert choose_best_real(ALL, study(real=[4], real_aug=[5]), data.val, CONFIG) == "real_aug"
    assert choose_best_real(ALL, study(real=[6], real_aug=[5]), data.val, CONFIG) == "real"


def test_arms_that_trained_on_val_and_synthetic_arms_are_not_candidates(data):
    trained = study(real=[3], real_aug=[4], real_aug_trainval=[6], synthetic_gated=[6])
    assert choose_best_real(ALL, trained, data.val, CONFIG) == "real_aug"


def test_a_tie_goes_to_the_smaller_loss(data):
    for better in ("real", "real_aug"):
        trained = study(real=[6], real_aug=[6])
        for cell in trained:
            if cell.recipe == better:
                trained[cell] = replace(trained[cell], val=sure(TRUTH, 0.99))
        assert choose_best_real(("real", "real_aug", "synthetic_gated"), trained, data.val, CONFIG) == better


def test_the_choice_is_by_the_mean_over_seeds(data):
    trained = study(real=[5, 0, 0, 5], real_aug=[6, 0, 0, 1])  # members 0 of both seeds: 5 and 5 against 6 and 1
    assert choose_best_real(("real", "real_aug", "synthetic_gated"), trained, data.val, CONFIG) == "real"


def test_a_committee_votes_by_mean_probability():
    predictions = {Cell("real_aug", 0, 0): sure([0], 0.98)}
    predictions |= {Cell("real_aug", 0, member): sure([1], 0.5) for member in (1, 2)}
    vote = mean_probabilities("real_aug_committee", 0, CONFIG, predictions)
    assert vote[0] == pytest.approx([(0.98 + 0.25 + 0.25) / 3, (0.01 + 0.5 + 0.5) / 3, (0.01 + 0.25 + 0.25) / 3], abs=1e-6)
    assert np.array_equal(mean_probabilities("real_aug", 0, CONFIG, predictions), predictions[Cell("real_aug", 0, 0)])


def test_the_score_is_accuracy_and_cross_entropy(data):
    accuracy, loss = score(sure([0, 1, 2, 0, 1, 0], 0.8), data.val)
    assert accuracy == pytest.approx(5 / 6)
    assert loss == pytest.approx(-(5 * np.log(0.8) + np.log(0.1)) / 6, abs=1e-6)
    assert score(np.eye(3, dtype=np.float32)[WRONG], data.val)[1] == pytest.approx(-np.log(1e-7), rel=1e-5), "finite"


def assessed(data: StudyData, gated_right: int) -> GainReport:
    arms = (*ALL, "synthetic_gated_trainval")
    trained = study()
    test = images(600, "test")
    truth, wrong = test.labels, (test.labels + 1) % 3

    def prediction(cell: Cell) -> np.ndarray:
        right = gated_right if cell.recipe.startswith("synthetic") else 400
        right += cell.seed  # one image's luck a seed
        return sure(np.where(np.arange(600) < right, truth, wrong))

    on_test = {cell: prediction(cell) for cell in trained}
    return assess(arms, {"pseudo_labels": "why"}, "real_aug", trained, on_test, data.val, test, 20, CONFIG)


@pytest.mark.parametrize(("gated_right", "verdict"), [(500, "use"), (300, "reject"), (402, "insufficient evidence")])
def test_the_record_holds_what_decided(data, gated_right, verdict):
    report = assessed(data, gated_right)
    assert report.verdict == verdict
    assert report.decisive == (("synthetic_gated", "real_aug"), ("synthetic_gated_trainval", "real_aug_trainval"))
    assert report.skipped == {"pseudo_labels": "why"}
    assert len(report.rows) == 7 * 2
    found = {(i.arm, i.baseline): i for i in report.intervals}
    assert set(report.decisive) <= set(found)
    assert {arm for arm, baseline in found if baseline == "real_aug"} == {*ALL, "synthetic_gated_trainval"} - {"real_aug"}
    assert found["synthetic_gated", "real_aug"].difference == pytest.approx((gated_right - 400) / 6)
    committee = next(row for row in report.rows if row.arm == "real_aug_committee")
    assert (committee.networks, committee.seconds, committee.steps) == (3, 3.0, 20)
    for row in report.rows:
        assert (row.val_accuracy is None) == row.arm.endswith("trainval")
    assert GainReport.from_json(report.to_json()) == report


def test_a_test_image_without_a_label_is_refused(data):
    with pytest.raises(DataError, match="test split has images without a label"):
        assess(("real_aug",), {}, "real_aug", {}, {}, data.val, images(3, "test", [0, UNLABELLED, 1]), 20, CONFIG)


def test_recipes_are_frozen():
    with pytest.raises(AttributeError):
        Recipe().val = True  # type: ignore[misc]
