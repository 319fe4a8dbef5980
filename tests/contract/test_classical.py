"""The classical arms on digits: far above chance, fixed by the seed, and right about classes that train hardly has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from synthgen.errors import ConfigError, DataError
from synthgen.gain import classical
from synthgen.gain.classical import MODELS, fit_predict

ROOT = Path(__file__).resolve().parents[2]
PIXELS, LABELS = load_digits(return_X_y=True)
PIXELS, LABELS = (PIXELS / 16).astype(np.float32), LABELS.astype(np.int64)
CHEAP = ("logistic", "svm")
LEAST = {"logistic": (0.75, 0.85, 0.89), "svm": (0.77, 0.86, 0.91), "forest": (0.60, 0.78, 0.86), "boosting": (0.55, 0.75, 0.85)}
"""Accuracy at 50, 100 and 200 images that a sound model is above, whatever the subset."""


@pytest.fixture
def fast(monkeypatch):
    """Two settings and few trees: what is tested is not how well they do."""
    few = {name: model.grid[:2] for name, model in MODELS.items()}
    few["forest"] = tuple(setting | {"trees": 10} for setting in few["forest"])
    few["boosting"] = tuple(setting | {"rounds": 10} for setting in few["boosting"])
    for name, model in MODELS.items():
        shorter = type(model)(model.meaning, model.fit, few[name], 2, model.scaled, model.tempered, None)
        monkeypatch.setitem(MODELS, name, shorter)


def subset(n: int, seed: int = 0, test: int = 600) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rows = np.random.default_rng(seed).permutation(len(LABELS))
    return PIXELS[rows[:n]], LABELS[rows[:n]], PIXELS[rows[-test:]], LABELS[rows[-test:]]


@pytest.mark.parametrize(("size", "n"), [(0, 50), (1, 100), (2, 200)])
@pytest.mark.parametrize("model", MODELS)
def test_far_above_chance(model, size, n):
    if model in ("forest", "boosting") and n == 100:
        pytest.skip("slow, and between the two others")
    x, y, query, truth = subset(n, seed=1)
    found = fit_predict(model, x, y, 10, [query, query[:3]], seed=0)
    probabilities = found.probabilities[0]
    assert [p.shape for p in found.probabilities] == [(600, 10), (3, 10)]
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    assert probabilities.min() >= 0
    np.testing.assert_array_equal(found.probabilities[1], probabilities[:3])
    accuracy = (probabilities.argmax(1) == truth).mean()
    assert accuracy > LEAST[model][size]
    assert found.inner is not None
    assert abs(found.inner - accuracy) < 0.3
    assert found.setting in MODELS[model].grid
    assert found.seconds > 0
    assert found.note == ""


def test_an_svms_confidence_fits_its_accuracy():
    x, y, query, truth = subset(200)
    probabilities = fit_predict("svm", x, y, 10, [query], seed=0).probabilities[0]
    assert abs(probabilities.max(1).mean() - (probabilities.argmax(1) == truth).mean()) < 0.1
    sharper, flatter = (-np.log(scaled(probabilities, b)[np.arange(600), truth]).mean() for b in (3.0, 1 / 3))
    assert -np.log(probabilities[np.arange(600), truth]).mean() < min(sharper, flatter)


def scaled(probabilities: np.ndarray, b: float) -> np.ndarray:
    powers = np.maximum(probabilities, 1e-30) ** b
    return powers / powers.sum(1, keepdims=True)


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("model", MODELS)
def test_the_same_seed_gives_the_same_bytes(model):
    x, y, query, _ = subset(60)
    one, two, other = (fit_predict(model, x, y, 10, [query], seed) for seed in (3, 3, 4))
    assert one.probabilities[0].tobytes() == two.probabilities[0].tobytes()
    assert (one.setting, one.inner) == (two.setting, two.inner)
    assert other.probabilities[0].tobytes() != one.probabilities[0].tobytes() or model == "logistic"
    if model in CHEAP:
        assert other.inner != one.inner  # other folds


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("model", MODELS)
def test_only_models_that_draw_numbers_differ_by_the_seed(model):
    x, y, query, _ = subset(60)
    setting, one = MODELS[model].grid[0], np.ones(60)
    scores = [MODELS[model].fit(x.astype(float), y, one, setting, seed)(query.astype(float)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(scores[0], scores[1])
    assert np.array_equal(scores[0], scores[2]) == (model in CHEAP)


def test_logistic_regression_on_more_inputs_than_rows_is_scikit_learns():
    from sklearn.linear_model import LogisticRegression

    x, y, query, _ = subset(40)
    x, query = x.astype(float) - x.mean(0), query.astype(float) - x.mean(0)
    ours = MODELS["logistic"].fit(x, y, np.ones(40), {"C": 1.0}, 0)(query)
    plain = LogisticRegression(C=1.0, tol=1e-8, max_iter=5000).fit(x, y).predict_proba(query)
    np.testing.assert_allclose(ours, plain, atol=2e-3)


def test_a_fit_that_does_not_converge_is_quiet(monkeypatch):
    plain = MODELS["logistic"]
    monkeypatch.setitem(MODELS, "logistic", type(plain)(plain.meaning, plain.fit, ({"C": 1e8},), 2, True))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 40)) * np.logspace(0, -3, 40), rng.integers(0, 5, 300)
    assert fit_predict("logistic", x, y, 5, [x], seed=0).inner is not None


def test_one_thread_even_if_nothing_was_imported_before():
    code = """
import numpy as np
from synthgen.gain import classical
seen = []
plain = classical.MODELS["boosting"]
def fit(*given):
    from threadpoolctl import threadpool_info
    seen.extend(pool["num_threads"] for pool in threadpool_info())
    return lambda rows: np.full((len(rows), 2), 0.5)
classical.MODELS["boosting"] = type(plain)(plain.meaning, fit, plain.grid[:1], 2, False)
x = np.random.default_rng(0).normal(size=(20, 3))
classical.fit_predict("boosting", x, np.arange(20) % 2, 2, [x], 0)
print(len(seen) > 0, set(seen))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, cwd=ROOT)
    assert found.stdout.strip() == "True {1}", found.stderr


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("model", MODELS)
def test_absent_and_rare_classes(model):
    """No image of 7, one of 3, two of 5: 7 is never said, nothing fails, and what is left is still learnt."""
    x, y, query, truth = subset(150)
    keep = y != 7
    for label, most in ((3, 1), (5, 2)):
        keep &= (y != label) | (np.cumsum(y == label) <= most)
    found = fit_predict(model, x[keep], y[keep], 10, [query], seed=0)
    probabilities = found.probabilities[0]
    assert float(probabilities[:, 7].max()) == 0
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    common = ~np.isin(truth, (3, 5, 7))
    assert (probabilities.argmax(1) == truth)[common].mean() > 0.6
    assert found.note == ""


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("model", MODELS)
def test_one_image_a_class_takes_the_default(model):
    first = np.array([np.argmax(label == LABELS) for label in range(10)])
    found = fit_predict(model, PIXELS[first], LABELS[first], 10, [PIXELS], seed=0)
    assert found.setting == MODELS[model].grid[0]
    assert found.inner is None
    assert "default" in found.note
    np.testing.assert_allclose(found.probabilities[0].sum(1), 1, atol=1e-5)
    if model in CHEAP:
        assert (found.probabilities[0].argmax(1) == LABELS).mean() > 0.4


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("model", MODELS)
def test_one_class_and_two_classes(model):
    x, y, query, truth = subset(200)
    alone = fit_predict(model, x[y == 4], y[y == 4], 10, [query], seed=0)
    assert (alone.probabilities[0] == np.eye(10, dtype=np.float32)[4]).all()
    assert alone.note == "train has one class"
    two = np.isin(y, (4, 8))
    found = fit_predict(model, x[two], y[two], 10, [query], seed=0).probabilities[0]
    asked = np.isin(truth, (4, 8))
    assert (found.argmax(1) == truth)[asked].mean() > 0.8
    np.testing.assert_allclose(found[:, [4, 8]].sum(1), 1, atol=1e-5)


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("model", MODELS)
def test_weights_count(model):
    """Wrong labels of weight 0 are as if they weren't there; of little weight they do little harm."""
    x, y, query, truth = subset(100)
    both, labels = np.concatenate([x, x]), np.concatenate([y, (y + 1) % 10])
    clean = fit_predict(model, x, y, 10, [query], seed=0).probabilities[0]
    none = fit_predict(model, both, labels, 10, [query], seed=0, weight=np.repeat([1.0, 0.0], 100)).probabilities[0]
    np.testing.assert_array_equal(none, clean)
    little, alike = (
        fit_predict(model, both, labels, 10, [query], seed=0, weight=np.repeat([1.0, other], 100)).probabilities[0]
        for other in (0.05, 1.0)
    )
    right = [(each.argmax(1) == truth).mean() for each in (little, alike)]
    assert right[0] > right[1] + 0.1


def test_the_search_pays_where_the_default_is_wrong(monkeypatch):
    """It finds the sound setting among bad ones by train alone."""
    logistic = MODELS["logistic"]
    bad = ({"C": 1e-9}, {"C": 1.0}, {"C": 1e-8})
    worse = type(logistic)(logistic.meaning, logistic.fit, bad, 5, True)
    monkeypatch.setitem(MODELS, "logistic", worse)
    x, y, query, _ = subset(100)
    assert fit_predict("logistic", x, y, 10, [query], seed=0).setting == {"C": 1.0}


@pytest.mark.usefixtures("fast")
def test_a_large_train_set_is_searched_in_part_and_fitted_in_whole(monkeypatch):
    monkeypatch.setattr(classical, "SEARCH_ROWS", 100)
    x, y, query, truth = subset(400)
    found = fit_predict("logistic", x, y, 10, [query], seed=0)
    assert found.note == "its setting was searched on 100 of the images"
    assert (found.probabilities[0].argmax(1) == truth).mean() > 0.93


def test_held_out_groups_are_not_learnt_by_heart():
    """Each image four times, once a group: without groups the copies tell, with them the inner accuracy is honest."""
    x, _, query, _ = subset(40)
    noise = np.random.default_rng(0).integers(0, 10, 40)
    copies, labels, groups = np.tile(x, (4, 1)), np.tile(noise, 4), np.tile(np.arange(40), 4)
    by_heart = fit_predict("svm", copies, labels, 10, [query], seed=0)
    honest = fit_predict("svm", copies, labels, 10, [query], seed=0, groups=groups)
    assert by_heart.inner > 0.9
    assert honest.inner < 0.4


def test_what_is_wrong_is_said():
    x, y, query, _ = subset(30)
    with pytest.raises(ConfigError, match="did you mean 'forest'"):
        fit_predict("forrest", x, y, 10, [query], 0)
    with pytest.raises(DataError, match="labels"):
        fit_predict("svm", x, y, 5, [query], 0)
    with pytest.raises(DataError, match="NaN"):
        fit_predict("svm", np.where(x > 0.9, np.nan, x).astype(np.float32), y, 10, [query], 0)
    with pytest.raises(DataError, match="64 inputs"):
        fit_predict("svm", x, y, 10, [query[:, :5]], 0)
    with pytest.raises(DataError, match="weights"):
        fit_predict("svm", x, y, 10, [query], 0, weight=np.full(30, -1.0))
    with pytest.raises(DataError, match="rows of numbers"):
        fit_predict("svm", x[:0], y[:0], 10, [query], 0)


@pytest.fixture
def searched(monkeypatch):
    """What the search fits and what it holds out, fit by fit; the last column of the inputs tells the rows apart."""
    seen, plain = [], classical._scorer

    def watched(model, x, *rest):
        scorer, held = plain(model, x, *rest), []
        seen.append((x[:, -1].astype(int).tolist(), held))

        def scores(rows):
            held.extend(rows[:, -1].astype(int).tolist())
            return scorer(rows)

        return scores

    monkeypatch.setattr(classical, "_scorer", watched)
    return seen


def numbered(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Digits, the number of each in a last column."""
    x, y, _, _ = subset(n, seed)
    return np.concatenate([x, np.arange(n, dtype=np.float32)[:, None]], axis=1), y


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("model", MODELS)
def test_no_synthetic_row_is_ever_held_out_and_each_is_learnt_from_in_every_fold(model, searched):
    x, y = numbered(80)
    real = np.arange(80) < 50
    fit_predict(model, x, y, 10, [x[:1]], seed=0, real=real)
    *folds_seen, (last, _) = searched
    assert len(folds_seen) == 4, "two settings, two folds"
    for fitted, held in folds_seen:
        assert held
        assert set(held) <= set(range(50))
        assert not set(held) & set(fitted)
        assert set(range(50, 80)) <= set(fitted)
        assert len(fitted) + len(held) == 80
    assert sorted(last) == list(range(80)), "the fit is on all"


def test_synthetic_rows_among_themselves_choose_no_setting():
    """1,000 images of noise that repeat each other's labels would have an SVM of the narrowest kernel win."""
    x, y, _, _ = subset(60)
    rng = np.random.default_rng(0)
    noise = np.repeat(rng.random((100, 64), dtype=np.float32), 5, axis=0)
    labels = np.repeat(rng.integers(0, 10, 100), 5)
    both, of_both = np.concatenate([x, noise]), np.concatenate([y, labels])
    real = np.arange(len(both)) < len(x)
    told = fit_predict("svm", both, of_both, 10, [x], seed=0, real=real)
    untold = fit_predict("svm", both, of_both, 10, [x], seed=0)
    assert untold.inner is not None
    assert told.inner is not None
    assert untold.inner > 0.95, "copies of what was learnt from"
    assert told.inner < 0.95, "unseen digits"


@pytest.mark.usefixtures("fast")
def test_many_rows_are_searched_on_a_part_of_each_kind(searched, monkeypatch):
    monkeypatch.setattr(classical, "SEARCH_ROWS", 40)
    x, y = numbered(150)
    real = np.arange(150) < 60
    found = fit_predict("logistic", x, y, 10, [x[:1]], seed=0, real=real)
    looked_at = {row for fitted, held in searched[:-1] for row in (*fitted, *held)}
    assert 20 <= len([row for row in looked_at if row < 60]) <= 40
    assert 20 <= len([row for row in looked_at if row >= 60]) <= 40
    assert found.note == f"its setting was searched on {len(looked_at)} of the images"


@pytest.mark.usefixtures("fast")
def test_a_mix_without_a_real_row_takes_the_default():
    x, y, query, _ = subset(50)
    found = fit_predict("logistic", x, y, 10, [query], seed=0, real=np.zeros(50, bool))
    assert found.inner is None
    assert "default" in found.note


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("model", CHEAP)
def test_groups_are_held_out_together_beside_synthetic_rows(model, searched):
    x, y = numbered(90)
    group = np.arange(90) % 12
    fit_predict(model, x, y, 10, [x[:1]], seed=0, groups=group, real=np.arange(90) < 60)
    for fitted, held in searched[:-1]:
        assert held
        of_held = {group[row] for row in held}
        assert not of_held & {group[row] for row in fitted if row < 60}


def test_other_lengths_are_refused():
    x, y, _, _ = subset(20)
    with pytest.raises(DataError, match="as many labels, weights and groups"):
        fit_predict("logistic", x, y, 10, [x], seed=0, real=np.ones(19, bool))
