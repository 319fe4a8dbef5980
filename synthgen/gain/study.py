"""Which networks a study trains, in which order, and which arms val chooses. The test split has no place here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from synthgen.config.schema import GainConfig
from synthgen.errors import ConfigError
from synthgen.gain.arms import RECIPES, TEACHER, Recipe, arm_of, makes_committees, partner_of, recipe_of
from synthgen.gain.cells import Cell, Network, Setting, Trained
from synthgen.gain.data import StudyData, why_not
from synthgen.gain.stats import paired_interval
from synthgen.types import Batch

Train = Callable[[Sequence[Cell], Sequence[Cell]], dict[Cell, Trained]]
"""(cells, cells of `TEACHER` whose networks teach them) -> the finished cells."""

TRIALS_AT_ONCE = 4

_FOLLOWERS = ("committee", "large committee", "trainval")
"""Roles whose recipe is that of the strongest arm on val."""


@dataclass
class Study:
    """What has been trained and chosen so far.

    Attributes:
        skipped: arm -> why it isn't run.
        tuned: recipe -> value of its dial.
        trained: every finished cell, those of the tuning excepted.
        votes: arm -> for each seed the networks that vote: (cell, its number in the cell).
        recipes: arm -> recipe, where val chose it.
        tuning_s: recipe -> seconds of tuning.
        curve: (number of real images, where they come from, cell by seed) of each size.
        best_real, best_synthetic: of all judged arms, by val.
        contenders: the real-only arms that val can't tell from `best_real`, that one first.
        single_real, single_synthetic: of the arms with one network.
    """

    skipped: dict[str, str] = field(default_factory=dict)
    tuned: dict[str, float] = field(default_factory=dict)
    trained: dict[Cell, Trained] = field(default_factory=dict)
    votes: dict[str, list[list[tuple[Cell, int]]]] = field(default_factory=dict)
    recipes: dict[str, str] = field(default_factory=dict)
    tuning_s: dict[str, float] = field(default_factory=dict)
    curve: list[tuple[int, str, list[list[tuple[Cell, int]]]]] = field(default_factory=list)
    curve_recipe: str = ""
    best_real: str = ""
    best_synthetic: str = ""
    contenders: list[str] = field(default_factory=list)
    single_real: str = ""
    single_synthetic: str = ""

    def cells_of(self, recipe: str) -> list[Cell]:
        """A recipe's finished cells, those of simulations, sizes and searches excepted."""
        return [cell for cell in self.trained if (cell.recipe, cell.extra, cell.settings) == (recipe, "", ())]


def conduct(arms: Sequence[str], setting: Setting, train: Train) -> Study:
    """Trains every network of the arms, in rounds: what is taught comes after its teachers, what val chooses last.

    Raises:
        ConfigError: no real-only arm, or none with synthetic images, is left that val can judge.
    """
    study, gain = Study(), setting.gain
    study.skipped, fixed = allowed(arms, setting.data)
    roles = {arm_of(arm).role for arm in arms if arm not in study.skipped}
    recipes = dict.fromkeys(arm_of(arm).recipe for arm in fixed)
    teach = any(recipe_of(recipe).taught for recipe in recipes) or "active" in roles
    soft = any(recipe_of(recipe).soft for recipe in recipes)
    if teach:
        recipes |= {TEACHER: None}
    untaught = [recipe for recipe in recipes if not recipe_of(recipe).taught]
    taught = [recipe for recipe in recipes if recipe_of(recipe).taught]
    _tune(study, untaught, setting, train, [])
    _train(study, {r: gain.committee if soft and r == TEACHER else 1 for r in untaught}, setting, train, [])
    teachers = study.cells_of(TEACHER) if teach else []
    _tune(study, taught, setting, train, teachers)
    _train(study, dict.fromkeys(taught, 1), setting, train, teachers)
    for arm in fixed:
        study.votes[arm] = _votes(study, arm_of(arm).recipe, gain, 1)
        study.recipes[arm] = arm_of(arm).recipe
    _choose_single(study, setting)
    rest = [arm for arm in arms if arm not in study.skipped and arm not in fixed]
    _follow(study, rest, setting, train, teachers)
    study.best_real = _strongest(study, setting, [arm for arm in study.votes if not arm_of(arm).synthetic and arm_of(arm).judged])
    synthetic = [arm for arm in study.votes if arm_of(arm).synthetic and arm_of(arm).judged]
    study.best_synthetic = _strongest(study, setting, _beside_real(study, synthetic))
    study.contenders = _contenders(study, setting)
    if gain.curve:
        _curve(study, setting, train)
    order = list(arms)
    study.votes = {arm: study.votes[arm] for arm in sorted(study.votes, key=order.index)}
    return study


def allowed(arms: Sequence[str], data: StudyData) -> tuple[dict[str, str], list[str]]:
    """Arms that the images at hand don't allow, with the reason, and the others that have a recipe of their own.

    Raises:
        ConfigError: no real-only arm, or none with synthetic images, is left that val can judge, or that followers are made of.
    """
    skipped = {arm: why for arm in arms if (why := why_not(arm, data))}
    fixed = [arm for arm in arms if arm not in skipped and arm_of(arm).recipe and not arm_of(arm).role]
    reasons = "; ".join(f"{arm!r} can't run: {why}" for arm, why in skipped.items())
    because = f" ({reasons})" if reasons else ""
    for synthetic in (False, True):
        kind = "with synthetic images" if synthetic else "of real images alone"
        own = [arm for arm in fixed if arm_of(arm).synthetic == synthetic]
        if not own:
            raise ConfigError(f"gain.arms: no arm {kind} is left that val can judge{because}")
        followers = [arm for arm in arms if arm_of(arm).role in _FOLLOWERS and arm_of(arm).synthetic == synthetic]
        if followers and not any(makes_committees(arm) for arm in own):
            raise ConfigError(f"gain.arms: {followers[0]!r} is made of a network {kind}, and none is left{because}; add one")
    return skipped, fixed


def _follow(study: Study, arms: Sequence[str], setting: Setting, train: Train, teachers: Sequence[Cell]) -> None:
    """The arms that depend on what val has chosen, and the simulations."""
    gain = setting.gain
    if "synthetic_partner" in arms:
        base = study.recipes[study.single_real]
        partner = partner_of(base, study.tuned.get(base, _middle(base)))
        known = next((name for name in RECIPES if name in study.recipes.values() and RECIPES[name] == recipe_of(partner)), "")
        if known:
            study.skipped["synthetic_partner"] = f"it is {known}"
        else:
            _tune(study, [partner], setting, train, teachers)
            _train(study, {partner: 1}, setting, train, teachers)
            study.votes["synthetic_partner"] = _votes(study, partner, gain, 1)
            study.recipes["synthetic_partner"] = partner
            _choose_single(study, setting)
    sides = {arm_of(arm).synthetic for arm in arms if arm_of(arm).role in _FOLLOWERS}
    best = {side: study.recipes[_best_single(study, setting, side, "network")] for side in sides}
    wanted: dict[str, int] = {}
    for arm in arms:
        role, side = arm_of(arm).role, arm_of(arm).synthetic
        if role in ("committee", "large committee"):
            number = gain.committee if role == "committee" else gain.large_committee
            recipe = best[side]
            wanted[recipe], study.recipes[arm] = max(number, wanted.get(recipe, 1)), recipe
        elif role == "classical trainval":
            classical = _best_single(study, setting, False, "classical")
            if not classical:
                study.skipped[arm] = "there is no classical arm"
                continue
            wanted[f"{study.recipes[classical]}@all"], study.recipes[arm] = 1, f"{study.recipes[classical]}@all"
        elif role == "trainval":
            recipe = f"{best[side]}@all"
            if best[side] in study.tuned:
                study.tuned[recipe] = study.tuned[best[side]]
            wanted[recipe], study.recipes[arm] = 1, recipe
    taught = {recipe: number for recipe, number in wanted.items() if recipe.endswith("@all") and recipe_of(recipe).taught}
    _train(study, {recipe: number for recipe, number in wanted.items() if recipe not in taught}, setting, train, teachers)
    if taught:  # with val's labels too, so that they know all that the real-only side may know
        better = f"{TEACHER}@all"
        study.tuned.update({better: study.tuned[TEACHER]} if TEACHER in study.tuned else {})
        _train(study, {better: gain.committee}, setting, train, [])
        _train(study, taught, setting, train, study.cells_of(better))
    for arm in arms:
        role = arm_of(arm).role
        if role in _FOLLOWERS or (role == "classical trainval" and arm in study.recipes):
            number = {"committee": gain.committee, "large committee": gain.large_committee}.get(role, 1)
            study.votes[arm] = _votes(study, study.recipes[arm], gain, number)
        elif role in ("oracle", "active"):
            extra = role if role == "oracle" else f"active {arm.removeprefix('active_')}"
            recipe = arm_of(arm).recipe
            value = study.tuned.get(recipe, _middle(recipe))
            cells = [cell._replace(extra=extra) for cell in _cells(recipe, value, gain.seeds, 1, gain.together)]
            study.trained |= train(cells, teachers)
            study.votes[arm], study.recipes[arm] = _by_seed(cells, gain.seeds), recipe
        elif role == "searched":
            _search(study, arm, setting, train)


# Cells and votes


def _cells(recipe: str, value: float, seeds: int, members: int, together: int, first: int = 0) -> list[Cell]:
    """The networks of a recipe, members `first` and on of every seed, cut into cells of `together`."""
    every = [Network(seed, member) for member in range(first, members) for seed in range(seeds)]
    return [Cell(recipe, value, tuple(every[i : i + together])) for i in range(0, len(every), together)]


def _by_seed(cells: Iterable[Cell], seeds: int) -> list[list[tuple[Cell, int]]]:
    votes: list[list[tuple[Cell, int]]] = [[] for _ in range(seeds)]
    for cell in cells:
        for number, network in enumerate(cell.networks):
            votes[network.seed].append((cell, number))
    return votes


def _votes(study: Study, recipe: str, gain: GainConfig, members: int) -> list[list[tuple[Cell, int]]]:
    votes = _by_seed(study.cells_of(recipe), gain.seeds)
    return [[(cell, i) for cell, i in each if cell.networks[i].member < members] for each in votes]


def _train(study: Study, wanted: dict[str, int], setting: Setting, train: Train, teachers: Sequence[Cell]) -> None:
    """So many networks of each recipe and seed, those that are there excepted."""
    todo = []
    for recipe, members in wanted.items():
        there = {network.member for cell in study.cells_of(recipe) for network in cell.networks}
        value = study.tuned.get(recipe, _middle(recipe))
        todo += _cells(recipe, value, setting.gain.seeds, members, setting.gain.together, first=len(there))
    if todo:
        study.trained |= train(todo, teachers)


def _middle(recipe: str) -> float:
    """The dial's value where nothing is tuned."""
    own = recipe_of(recipe)
    return own.values[len(own.values) // 2] if own.dial else 0.0


# Choices on val


def _tune(study: Study, recipes: Sequence[str], setting: Setting, train: Train, teachers: Sequence[Cell]) -> None:
    """Each recipe's dial: the value whose networks have the lowest mean cross-entropy on val."""
    tune_seeds, val = setting.gain.tune_seeds, setting.data.val
    dials = [recipe for recipe in recipes if recipe_of(recipe).dial and recipe not in study.tuned]
    if not tune_seeds or not dials:
        return
    tried = {
        recipe: {
            value: [cell._replace(extra="tune") for cell in _cells(recipe, value, tune_seeds, 1, setting.gain.together)]
            for value in recipe_of(recipe).values
        }
        for recipe in dials
    }
    done = train([cell for values in tried.values() for cells in values.values() for cell in cells], teachers)
    for recipe, values in tried.items():
        losses = {
            value: float(np.mean([score(each, val)[1] for cell in cells for each in done[cell].val]))
            for value, cells in values.items()
        }
        study.tuned[recipe] = min(losses, key=lambda value: losses[value])
        study.tuning_s[recipe] = sum(done[cell].seconds for cells in values.values() for cell in cells)


def _search(study: Study, arm: str, setting: Setting, train: Train) -> None:
    """Learning rate, weight decay, dropout and strength of augmentation by a tree-structured Parzen estimator (Optuna)."""
    try:
        import optuna
    except ImportError:
        study.skipped[arm] = "needs Optuna: pip install 'synthgen[search]'"
        return
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    gain, val = setting.gain, setting.data.val
    seeds = max(1, gain.tune_seeds)
    search = optuna.create_study(direction="minimize", sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=6))
    seconds = 0.0
    best: tuple[float, tuple[tuple[str, float], ...]] = (np.inf, ())
    for start in range(0, gain.trials, TRIALS_AT_ONCE):
        trials = [search.ask() for _ in range(min(TRIALS_AT_ONCE, gain.trials - start))]
        cells = [_cells(TEACHER, 0.0, seeds, 1, seeds)[0]._replace(extra="search", settings=_suggest(t)) for t in trials]
        done = train(cells, [])
        for trial, cell in zip(trials, cells, strict=True):
            loss = float(np.mean([score(each, val)[1] for each in done[cell].val]))
            search.tell(trial, loss)
            seconds += done[cell].seconds
            best = min(best, (loss, cell.settings))
    cells = [cell._replace(settings=best[1]) for cell in _cells(TEACHER, 0.0, gain.seeds, 1, gain.together)]
    study.trained |= train(cells, [])
    study.votes[arm], study.recipes[arm], study.tuning_s[arm] = _by_seed(cells, gain.seeds), TEACHER, seconds


def _suggest(trial: Any) -> tuple[tuple[str, float], ...]:
    return (
        ("dropout", trial.suggest_float("dropout", 0.0, 0.5)),
        ("lr", trial.suggest_float("lr", 0.25, 4.0, log=True)),
        ("strength", trial.suggest_float("strength", 0.25, 3.0)),
        ("weight_decay", trial.suggest_float("weight_decay", 1e-3, 0.3, log=True)),
    )


def _choose_single(study: Study, setting: Setting) -> None:
    singles = {arm: arm_of(arm).synthetic for arm in study.votes if arm_of(arm).role in ("", "partner")}
    study.single_real = _strongest(study, setting, [arm for arm, synthetic in singles.items() if not synthetic])
    synthetic = [arm for arm, is_synthetic in singles.items() if is_synthetic]
    study.single_synthetic = _strongest(study, setting, _beside_real(study, synthetic))


def _beside_real(study: Study, arms: Sequence[str]) -> list[str]:
    """Those with real images in their batches, if there are any: who has both doesn't deploy samples alone."""
    return [arm for arm in arms if recipe_of(study.recipes[arm]).labelled != "none"] or list(arms)


def _best_single(study: Study, setting: Setting, synthetic: bool, kind: Literal["network", "classical"]) -> str:
    """The strongest arm of its kind that stands alone and trains on real images; empty if there is none."""
    arms = [
        arm
        for arm in study.votes
        if arm_of(arm).synthetic == synthetic
        and arm_of(arm).role in ("", "partner")
        and (recipe_of(study.recipes[arm]).kind == "network") == (kind == "network")
        and recipe_of(study.recipes[arm]).labelled != "none"
    ]
    return _strongest(study, setting, arms) if arms else ""


def _strongest(study: Study, setting: Setting, arms: Sequence[str]) -> str:
    """The arm with the highest mean accuracy on val, ties by mean loss, then the earlier one."""

    def strength(arm: str) -> tuple[float, float]:
        each = [score(vote(study, arm, seed), setting.data.val) for seed in range(setting.gain.seeds)]
        return float(np.mean([s[0] for s in each])), -float(np.mean([s[1] for s in each]))

    return max(arms, key=strength)


def _contenders(study: Study, setting: Setting) -> list[str]:
    """A few val images choose badly: every real-only arm whose 95% interval against the best on val reaches 0 may be the
    strongest, and a gain has to hold against each (cf. the model confidence set, Hansen et al. 2011)."""
    labels = setting.data.val.labels

    def correct(arm: str) -> np.ndarray:
        each = [vote(study, arm, seed).argmax(1) == labels for seed in range(setting.gain.seeds)]
        return np.array(each, dtype=np.float64)

    real = [arm for arm in study.votes if not arm_of(arm).synthetic and arm_of(arm).judged and arm != study.best_real]
    best = correct(study.best_real)
    return [study.best_real, *(arm for arm in real if paired_interval(arm, study.best_real, correct(arm), best).high >= 0)]


def vote(study: Study, arm: str, seed: int) -> np.ndarray:
    """An arm's class probabilities on val at a seed: the mean over its networks."""
    return mean_vote(study.votes[arm][seed], lambda cell: study.trained[cell].val)


def mean_vote(networks: Sequence[tuple[Cell, int]], predicted: Callable[[Cell], np.ndarray]) -> np.ndarray:
    """Mean over networks of their class probabilities, shape (n, k).

    Args:
        networks: cell, and number in it.
        predicted: cell -> class probabilities of all its networks, shape (s, n, k).
    """
    return np.mean([predicted(cell)[number] for cell, number in networks], axis=0)


def score(predicted: np.ndarray, images: Batch) -> tuple[float, float]:
    """Accuracy and cross-entropy in nats (probabilities clipped at 1e-7)."""
    own = predicted[np.arange(len(images)), images.labels]
    return float((predicted.argmax(1) == images.labels).mean()), float(-np.log(np.clip(own, 1e-7, 1)).mean())


# The learning curve


def sizes(num_train: int, num_labelled: int, num_simulated: int, num_classes: int) -> list[tuple[int, str]]:
    """Numbers of real images at which the learning curve is measured, and where they come from."""
    found = {n: "train" for n in (num_train // 4, num_train // 2, num_train) if n >= num_classes}
    if num_labelled > num_train:
        found[num_labelled] = "train and val"
    most, size = num_labelled + num_simulated, 2 * num_train
    if num_simulated:
        while size < 0.75 * most:
            found[size] = "hidden labels" if size > num_labelled else "train and val"
            size *= 2
        found[most] = "hidden labels"
    return sorted(found.items())


def _curve(study: Study, setting: Setting, train: Train) -> None:
    """The strongest real-only recipe that is trained on labelled images alone, at each size."""
    gain, data = setting.gain, setting.data
    real = [arm for arm in study.votes if not arm_of(arm).synthetic and not arm_of(arm).role]
    arms = [arm for arm in real if plain(recipe_of(study.recipes[arm]))]
    if not arms:
        return
    study.curve_recipe = study.recipes[_strongest(study, setting, arms)]
    value = study.tuned.get(study.curve_recipe, _middle(study.curve_recipe))
    wanted = sizes(len(data.train), len(data.labelled), len(data.simulated), data.spec.num_classes)
    cells = {
        size: [c._replace(extra=f"size {size}") for c in _cells(study.curve_recipe, value, gain.seeds, 1, gain.together)]
        for size, _ in wanted
        if size != len(data.train)
    }
    study.trained |= train([cell for size in reversed(cells) for cell in cells[size]], [])
    for size, source in wanted:
        votes = _by_seed(cells[size], gain.seeds) if size in cells else _votes(study, study.curve_recipe, gain, 1)
        study.curve.append((size, source, votes))


def plain(own: Recipe) -> bool:
    """Whether nothing but labelled images, real or synthetic, goes into a network: then a gain is worth so many real images."""
    return own.kind == "network" and own.start in ("fresh", "synthetic") and not own.taught and not own.unlabelled
