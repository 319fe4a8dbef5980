"""The classical arms: models of scikit-learn on pixels or features, each tuned by cross-validation on real images of train."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import product
from typing import Any

import numpy as np

from synthgen.data.folds import folds
from synthgen.errors import ConfigError, DataError, did_you_mean
from synthgen.randomness import stream
from synthgen.shapes import Float, Int64

Setting = dict[str, int | float]
Scorer = Callable[[np.ndarray], np.ndarray]

SEARCH_ROWS = 1000
"""Most rows, real and synthetic each, that the search looks at: more are searched on a stratified part and fitted in whole."""

BOOSTED_COLUMNS = 256
"""Most inputs of gradient boosting, drawn by the seed: its time grows with their number, for hundreds of trees."""

SHARPNESS = 1.5
"""Inverse temperature of an SVM's scores where no image can be held out to measure it; about what is found on digits."""


@dataclass(frozen=True)
class Model:
    """A classical model and its small search.

    Attributes:
        meaning: in the field's words, for the tables.
        fit: (x, y, weight, setting, seed) -> scores of other rows, one column for each class in y, classes ascending.
        default: taken where nothing can be held out; the first of the grid.
        grid: settings searched; equal ones by the earlier.
        folds: of the search.
        fewer: what the search has instead, to be quick.
        scaled: whether inputs are centred and divided by their standard deviation, one for all.
        tempered: whether scores are logits of unknown scale (see `fit_predict`), not probabilities.
    """

    meaning: str
    fit: Callable[[np.ndarray, np.ndarray, np.ndarray, Setting, int], Scorer]
    grid: tuple[Setting, ...]
    folds: int
    scaled: bool
    tempered: bool = False
    fewer: Setting | None = None


@dataclass(frozen=True)
class Fitted:
    """What a classical model says.

    Attributes:
        probabilities: of each query, float32, shape (n, k); 0 for a class that train hasn't.
        setting: chosen by the search, or the default.
        inner: accuracy of that setting on held-out images of train; None where nothing could be held out.
        seconds: wall time of search, fit and prediction.
        note: what was done differently from usual, in one sentence; "" where nothing was.
    """

    probabilities: tuple[np.ndarray, ...]
    setting: Setting
    inner: float | None
    seconds: float
    note: str


def fit_predict(
    model: str,
    train_x: Float[np.ndarray, "n d"],
    train_y: Int64[np.ndarray, " n"],
    num_classes: int,
    query: Sequence[np.ndarray],
    seed: int,
    groups: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    real: np.ndarray | None = None,
) -> Fitted:
    """Class probabilities by a model of `MODELS` whose setting was chosen by stratified cross-validation on train.

    Only real rows are held out. Synthetic ones stand in the training part of every fold: what is asked is how well a setting
    does on real images with them beside it, not how alike they are among themselves. (They were made from all real images of
    train, those held out among them, so that the accuracy found within, `inner`, is too high for such a mix.)

    Inputs are centred and divided by one standard deviation for all of them: pixels, and features of one network, have
    one unit, and each divided by its own would blow up the pixels at the border (an SVM on 50 digits: 80% right, not 86%).
    Trees take them as they are. The setting with the lowest cross-entropy on held-out images wins: with 50 images many
    have the same accuracy.

    An SVM's probabilities are softmax(b * scores) of its one-against-rest scores, with the one number b fitted to the
    held-out scores by maximum likelihood (temperature scaling, Guo et al. 2017). Platt's, which libsvm offers, draws
    folds of its own inside each fit and can disagree with the classes it predicts.

    A class with one image is never held out, and one with two is in two folds: no class is missing from training.

    Fixed by the data and `seed`, on one thread. Cost on it for 50 or 200 images of 64 pixels in 10 classes: logistic 0.1 s,
    svm 0.1 s, forest 1 s, boosting 1.5 to 2.5 s; for 500
    of 3,072 pixels 18, 6, 8 and 6 s.

    Args:
        model: name in `MODELS`.
        train_x: pixels in [0, 1], flattened, or features.
        train_y: labels in 0 .. num_classes - 1.
        num_classes: columns of the probabilities.
        query: rows to predict, each of shape (m, d).
        seed: of the folds and of the models that draw numbers.
        groups: images of a group are held out together.
        weight: of each row in the fit, 0 or more; 1 for all if not given.
        real: whether each row is a real image; all are if not given. Groups of others don't matter.

    Raises:
        ConfigError: an unknown model.
        DataError: no rows, other shapes, a label out of range, a value or weight that isn't finite.
    """
    started = time.perf_counter()
    if model not in MODELS:
        raise ConfigError(f"no classical model {model!r}{did_you_mean(model, MODELS)}; known: {', '.join(MODELS)}")
    weight = np.ones(len(train_x)) if weight is None else np.asarray(weight, np.float64)
    real = np.ones(len(train_x), dtype=bool) if real is None else np.asarray(real, dtype=bool)
    _check(train_x, train_y, num_classes, query, groups, weight, real)
    used = weight > 0
    x, y, weight = train_x[used].astype(np.float64), train_y[used], weight[used] / weight[used].mean()
    groups, real = None if groups is None else np.asarray(groups)[used], real[used]

    # imported first: what is loaded under the limit doesn't keep to it, and boosting's threads would wait for each other
    for part in ("ensemble", "linear_model", "svm"):
        import_module(f"sklearn.{part}")
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        chosen = _search(MODELS[model], x, y, weight, groups, real, num_classes, seed)
        scores = _scorer(MODELS[model], x, y, weight, chosen.setting, num_classes, seed)
        given = tuple(_probabilities(scores(rows.astype(np.float64)), chosen.sharpness).astype(np.float32) for rows in query)
    return Fitted(given, chosen.setting, chosen.inner, time.perf_counter() - started, chosen.note)


@dataclass(frozen=True)
class _Choice:
    """The setting chosen, the inverse temperature that goes with it (None: scores are probabilities), and how well it did."""

    setting: Setting
    sharpness: float | None
    inner: float | None
    note: str


def _search(
    model: Model,
    x: np.ndarray,
    y: np.ndarray,
    weight: np.ndarray,
    groups: np.ndarray | None,
    real: np.ndarray,
    num_classes: int,
    seed: int,
) -> _Choice:
    default = SHARPNESS if model.tempered else None
    if len(np.unique(y)) == 1:
        return _Choice(model.grid[0], default, None, "train has one class")
    note = ""
    if max(real.sum(), (~real).sum()) > SEARCH_ROWS:
        parts = _part(y, np.flatnonzero(real), seed, groups), _part(y, np.flatnonzero(~real), seed, None)
        rows = np.sort(np.concatenate(parts))
        x, y, weight, real, groups = x[rows], y[rows], weight[rows], real[rows], None if groups is None else groups[rows]
        note = f"its setting was searched on {len(rows)} of the images"
    fold = np.full(len(y), -1)
    if real.any():
        fold[real] = folds(y[real], model.folds, seed, "classical/folds", None if groups is None else groups[real])
    held = fold >= 0
    if not held.any():
        return _Choice(model.grid[0], default, None, "no image of train could be held out: the setting is the default")
    best: tuple[float, _Choice] | None = None
    for setting in model.grid:
        scores = np.full((len(y), num_classes), -np.inf if model.tempered else 0.0)
        for each in np.unique(fold[held]):
            own = fold == each
            quick = setting | (model.fewer or {})
            scores[own] = _scorer(model, x[~own], y[~own], weight[~own], quick, num_classes, seed)(x[own])
        sharpness = _fitted_sharpness(scores[held], y[held], weight[held]) if model.tempered else None
        of_label = _probabilities(scores[held], sharpness)[np.arange(held.sum()), y[held]]
        loss = float(np.average(-np.log(np.clip(of_label, 1e-3, 1)), weights=weight[held]))
        if best is None or loss < best[0]:
            inner = float(np.average(scores[held].argmax(1) == y[held], weights=weight[held]))
            best = loss, _Choice(setting, sharpness, inner, note)
    assert best is not None
    return best[1]


def _part(y: np.ndarray, rows: np.ndarray, seed: int, groups: np.ndarray | None) -> np.ndarray:
    """About `SEARCH_ROWS` of the rows, each class in its share and groups as a whole; all of them if they aren't more."""
    if len(rows) <= SEARCH_ROWS:
        return rows
    own = None if groups is None else groups[rows]
    return rows[folds(y[rows], -(-len(rows) // SEARCH_ROWS), seed, "classical/part", own) <= 0]


def _scorer(
    model: Model, x: np.ndarray, y: np.ndarray, weight: np.ndarray, setting: Setting, num_classes: int, seed: int
) -> Scorer:
    """Scores of all classes; -inf (of logits) or 0 (of probabilities) for those that y hasn't."""
    classes = np.unique(y)
    mean, scale = 0.0, 1.0
    if model.scaled:
        mean = x.mean(0)
        scale = float(np.sqrt(np.mean((x - mean) ** 2))) or 1.0
    number = int(stream(seed, "classical/model").integers(2**31))
    some = model.fit((x - mean) / scale, y, weight, setting, number) if len(classes) > 1 else None

    def scores(rows: np.ndarray) -> np.ndarray:
        every = np.full((len(rows), num_classes), -np.inf if model.tempered else 0.0)
        if len(rows):
            every[:, classes] = 1.0 if some is None else some((rows - mean) / scale)
        return every

    return scores


def _probabilities(scores: Float[np.ndarray, "n k"], sharpness: float | None) -> Float[np.ndarray, "n k"]:
    if sharpness is not None:
        scores = np.exp(sharpness * (scores - scores.max(1, keepdims=True)))
    return scores / np.maximum(scores.sum(1, keepdims=True), 1e-300)


def _fitted_sharpness(scores: Float[np.ndarray, "n k"], y: np.ndarray, weight: np.ndarray) -> float:
    """The b of softmax(b * scores) under which the labels are likeliest, in [0.1, 100]."""
    from scipy.optimize import minimize_scalar

    known = np.isfinite(scores[np.arange(len(y)), y])
    if not known.any():
        return SHARPNESS
    scores, y, weight = scores[known], y[known], weight[known]

    def loss(log_b: float) -> float:
        of_label = _probabilities(scores, float(np.exp(log_b)))[np.arange(len(y)), y]
        return float(np.average(-np.log(np.maximum(of_label, 1e-12)), weights=weight))

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.1), np.log(100)), method="bounded").x))


def _logistic(x: np.ndarray, y: np.ndarray, weight: np.ndarray, setting: Setting, seed: int) -> Scorer:
    from sklearn.linear_model import LogisticRegression

    # fewer rows than inputs: the weights lie in the rows' span, so that this is exact and shorter
    basis = np.linalg.qr(x.T)[0] if x.shape[1] > len(x) else None
    fitted = LogisticRegression(C=setting["C"], max_iter=100).fit(x if basis is None else x @ basis, y, weight)
    return lambda rows: fitted.predict_proba(rows if basis is None else rows @ basis)


def _svm(x: np.ndarray, y: np.ndarray, weight: np.ndarray, setting: Setting, seed: int) -> Scorer:
    from sklearn.svm import SVC

    fitted = SVC(C=setting["C"], gamma=setting["gamma_d"] / x.shape[1]).fit(x, y, weight)

    def scores(rows: np.ndarray) -> np.ndarray:
        found = fitted.decision_function(rows)
        return np.stack([-found, found], axis=1) / 2 if found.ndim == 1 else found

    return scores


def _forest(x: np.ndarray, y: np.ndarray, weight: np.ndarray, setting: Setting, seed: int) -> Scorer:
    from sklearn.ensemble import RandomForestClassifier

    fitted = RandomForestClassifier(
        int(setting["trees"]),
        max_features=_columns(x, setting["columns"]),
        min_samples_leaf=int(setting["leaf"]),
        n_jobs=1,
        random_state=seed,
    ).fit(x.astype(np.float32), y, weight)
    return lambda rows: fitted.predict_proba(rows.astype(np.float32))


def _boosting(x: np.ndarray, y: np.ndarray, weight: np.ndarray, setting: Setting, seed: int) -> Scorer:
    from sklearn.ensemble import HistGradientBoostingClassifier

    columns = np.arange(x.shape[1])
    if len(columns) > BOOSTED_COLUMNS:
        columns = np.sort(stream(seed, "classical/columns").permutation(len(columns))[:BOOSTED_COLUMNS])
    x = x[:, columns]
    fitted = HistGradientBoostingClassifier(
        learning_rate=setting["rate"],
        max_iter=int(setting["rounds"]),
        max_leaf_nodes=int(setting["leaves"]),
        min_samples_leaf=3,  # the usual 20 would leave 50 images of 10 classes without a split
        max_features=_columns(x, 1.0) / x.shape[1],
        max_bins=32,
        early_stopping=False,
        random_state=seed,
    ).fit(x, y, weight if (weight != 1).any() else None)  # with weights the bins take half of the time
    return lambda rows: fitted.predict_proba(rows[:, columns])


def _columns(x: np.ndarray, factor: float) -> int:
    """Inputs looked at for a split: the square root of their number, times a factor."""
    return min(x.shape[1], max(1, round(factor * x.shape[1] ** 0.5)))


def _grid(**values: Any) -> tuple[Setting, ...]:
    return tuple(dict(zip(values, each, strict=True)) for each in product(*values.values()))


MODELS: dict[str, Model] = {
    "logistic": Model("logistic regression", _logistic, _grid(C=(1.0, 0.3, 0.1, 0.03, 3.0, 10.0)), 5, True),
    "svm": Model("SVM with RBF kernel", _svm, _grid(C=(10.0, 3.0, 30.0), gamma_d=(0.3, 0.1)), 5, True, tempered=True),
    "forest": Model(
        "random forest", _forest, _grid(columns=(1.0, 0.5, 2.0), leaf=(1, 3), trees=(300,)), 3, False, fewer={"trees": 50}
    ),
    "boosting": Model("gradient boosting", _boosting, _grid(rate=(0.1, 0.2, 0.05), leaves=(4, 12), rounds=(50,)), 3, False),
}


def _check(
    x: np.ndarray,
    y: np.ndarray,
    num_classes: int,
    query: Sequence[np.ndarray],
    groups: np.ndarray | None,
    weight: np.ndarray,
    real: np.ndarray,
) -> None:
    if x.ndim != 2 or len(x) == 0:
        raise DataError(f"a classical model needs rows of numbers to learn from, not an array of shape {x.shape}")
    lengths = {len(y), len(weight), len(real), len(x) if groups is None else len(groups)}
    if lengths != {len(x)} or weight.ndim != 1 or real.ndim != 1:
        raise DataError(f"{len(x)} rows need as many labels, weights and groups; there are {len(y)} labels")
    if y.min() < 0 or y.max() >= num_classes:
        raise DataError(f"labels {y.min()} to {y.max()} with {num_classes} classes: unlabelled rows can't be learnt from")
    if not np.isfinite(weight).all() or weight.min() < 0 or weight.max() == 0:
        raise DataError("weights must be finite, 0 or more, and not all 0")
    for rows in (x, *query):
        if rows.ndim != 2 or rows.shape[1] != x.shape[1]:
            raise DataError(f"rows of shape {rows.shape} for a model of {x.shape[1]} inputs")
        if not np.isfinite(rows).all():
            raise DataError("an input holds NaN or infinity: the features' extractor diverged, or an image was read wrongly")
