"""What val chooses before an arm is trained: the value of a recipe's dial, and what a search over settings finds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from synthgen.errors import TrainingError
from synthgen.gain.arms import recipe_of, searched
from synthgen.gain.cells import Cell, Setting, Trained, side_by_side
from synthgen.gain.scores import score

Train = Callable[[Sequence[Cell], Sequence[Cell]], dict[Cell, Trained]]
"""(cells, cells of `TEACHER` whose networks teach them) -> the finished cells."""

TRIALS_AT_ONCE = 4

FIRST_TRIALS = 6
"""Drawn at random before the estimator has something to go by."""


def tune(
    recipes: Sequence[str], setting: Setting, train: Train, teachers: Sequence[Cell]
) -> tuple[dict[str, float], dict[str, float]]:
    """Each recipe's dial: the value whose networks have the lowest mean cross-entropy on val; and the seconds that it took.

    A value that diverges isn't chosen unless all do.
    """
    tune_seeds, together = setting.gain.tune_seeds, setting.gain.together
    tried = {
        recipe: {
            value: [cell._replace(extra="tune") for cell in side_by_side(recipe, value, tune_seeds, 1, together)]
            for value in recipe_of(recipe).values
        }
        for recipe in recipes
        if recipe_of(recipe).dial and tune_seeds
    }
    if not tried:
        return {}, {}
    done = train([cell for values in tried.values() for cells in values.values() for cell in cells], teachers)
    chosen, seconds = {}, {}
    for recipe, values in tried.items():
        losses = {value: _loss([done[cell] for cell in cells], setting) for value, cells in values.items()}
        chosen[recipe] = min(losses, key=lambda value: losses[value])
        seconds[recipe] = sum(done[cell].seconds for cells in values.values() for cell in cells)
    return chosen, seconds


def search(setting: Setting, train: Train) -> tuple[str, float]:
    """The recipe `real_searched` with the settings that a tree-structured Parzen estimator found (Optuna); and its seconds.

    Searched are learning rate, weight decay, dropout, strength of augmentation, width (half, once, 1.5 times and twice that
    of the classifier) and depth (1 or 2 blocks at each resolution); networks of a trial stand side by side, trials don't.
    What is found has three significant digits.

    Raises:
        ImportError: Optuna isn't installed.
        TrainingError: every trial diverged.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    gain, seeds, seconds = setting.gain, max(1, setting.gain.tune_seeds), 0.0
    sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=FIRST_TRIALS)
    study = optuna.create_study(direction="minimize", sampler=sampler)
    best = (np.inf, "")
    for start in range(0, gain.trials, TRIALS_AT_ONCE):
        trials = [study.ask() for _ in range(min(TRIALS_AT_ONCE, gain.trials - start))]
        recipes = [searched(_suggested(trial, setting.classifier.width)) for trial in trials]
        cells = {recipe: side_by_side(recipe, 0.0, seeds, 1, seeds)[0]._replace(extra="search") for recipe in recipes}
        done = train(list(cells.values()), [])
        for trial, recipe in zip(trials, recipes, strict=True):
            loss = _loss([done[cells[recipe]]], setting)
            study.tell(trial, loss if np.isfinite(loss) else None, None if np.isfinite(loss) else optuna.trial.TrialState.FAIL)
            best = min(best, (loss, recipe))
        seconds += sum(trained.seconds for trained in done.values())
    if not best[1]:
        raise TrainingError(f"all {gain.trials} trials diverged")
    return best[1], seconds


def _suggested(trial: Any, width: int) -> dict[str, int | float]:
    def digits(value: float) -> float:
        return float(f"{value:.3g}")

    return {
        "depth": trial.suggest_int("depth", 1, 2),
        "dropout": digits(trial.suggest_float("dropout", 0.0, 0.5)),
        "lr": digits(trial.suggest_float("lr", 0.25, 4.0, log=True)),
        "strength": digits(trial.suggest_float("strength", 0.25, 3.0)),
        "weight_decay": digits(trial.suggest_float("weight_decay", 1e-3, 0.3, log=True)),
        "width": max(1, round(width * trial.suggest_categorical("width", [0.5, 1.0, 1.5, 2.0]))),
    }


def _loss(tried: Sequence[Trained], setting: Setting) -> float:
    """Mean cross-entropy on val of all networks; infinite where any diverged."""
    if any(trained.failure for trained in tried):
        return float("inf")
    return float(np.mean([score(each, setting.data.val)[1] for trained in tried for each in trained.val]))
