"""Which networks a study trains, in which order, and which arms val chooses. The test split has no place here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from synthgen.config.schema import GainConfig
from synthgen.errors import TrainingError
from synthgen.gain.arms import FOLLOWERS, RECIPES, SINGLE, TEACHER, Recipe, arm_of, check_sides, partner_of, recipe_of
from synthgen.gain.cells import Cell, Setting, Trained, side_by_side
from synthgen.gain.data import StudyData, why_not
from synthgen.gain.scores import score
from synthgen.gain.stats import num_clusters, paired_interval
from synthgen.gain.tuning import Train, search, tune

SEARCHED, LONGER = "real_searched", "real_longer"


@dataclass
class Study:
    """What has been trained and chosen so far.

    Attributes:
        skipped: arm -> why it isn't run, or why its training failed.
        lost: arms whose training failed, or that of what they are made of.
        failed: cells whose training failed -> why.
        tuned: recipe -> value of its dial.
        trained: every finished cell, those of the tuning and those that failed excepted.
        votes: arm -> for each seed the networks that vote: (cell, its number in the cell).
        recipes: arm -> recipe, where val chose it.
        tuning_s: recipe -> seconds of tuning.
        curve: (number of real images, where they come from, cell by seed) of each size.
        best_real, best_synthetic: of all judged arms, by val.
        contenders: the real-only arms that val can't tell from `best_real`, that one first.
        single_real, single_synthetic: of the arms with one network.
    """

    skipped: dict[str, str] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    tuned: dict[str, float] = field(default_factory=dict)
    failed: dict[Cell, str] = field(default_factory=dict)
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

    def network_s(self, cell: Cell) -> float:
        """Seconds that one of a cell's networks took: they were trained side by side."""
        return self.trained[cell].seconds / len(cell.networks)

    def cells_of(self, recipe: str) -> list[Cell]:
        """A recipe's finished cells, those of simulations and sizes excepted."""
        return [cell for cell in self.trained if (cell.recipe, cell.extra) == (recipe, "")]

    def add(self, done: Mapping[Cell, Trained]) -> None:
        """Takes up cells that were trained, or weren't."""
        self.trained |= {cell: trained for cell, trained in done.items() if not trained.failure}
        self.failed |= {cell: trained.failure for cell, trained in done.items() if trained.failure}

    def failure(self, recipe: str, extra: str = "", members: int | None = None) -> str:
        """Why the networks of a recipe, members below `members` alone, can't all be had; empty where they can."""
        for cell, why in self.failed.items():
            within = members is None or any(network.member < members for network in cell.networks)
            if (cell.recipe, cell.extra) == (recipe, extra) and within:
                return f"its training failed: {why}"
        return ""


def conduct(arms: Sequence[str], setting: Setting, train: Train) -> Study:
    """Trains every network of the arms, in rounds: what is taught comes after its teachers, what val chooses last.

    An arm whose training diverges is skipped with the reason, and what would be made of it too.

    Raises:
        ConfigError: no real-only arm, or none with synthetic images, is left that val can judge.
        TrainingError: all of one side diverged.
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
    _drop_twin(study, untaught, fixed)
    if "searched" in roles:
        untaught += _searched(study, setting, train)
    _train(study, {r: gain.committee if soft and r == TEACHER else 1 for r in untaught}, setting, train, [])
    teachers = study.cells_of(TEACHER) if teach else []
    taught = [recipe for recipe in taught if not _untaught(study, recipe)]
    _tune(study, taught, setting, train, teachers)
    _train(study, dict.fromkeys(taught, 1), setting, train, teachers)
    for arm in fixed:
        _vote(study, arm, arm_of(arm).recipe, gain, 1)
    if SEARCHED in study.recipes:
        _vote(study, SEARCHED, study.recipes[SEARCHED], gain, 1)
    _choose_single(study, setting)
    rest = [arm for arm in arms if arm not in study.skipped and arm not in study.votes]
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


def _drop_twin(study: Study, recipes: list[str], fixed: list[str]) -> None:
    """Longer training at once the steps and the middle strength is standard augmentation, which may be there already."""
    longer, usual = study.tuned.get(LONGER), study.tuned.get(TEACHER)
    if (longer, usual) == (1.0, 1.0) and LONGER in fixed and TEACHER in fixed:
        study.skipped[LONGER] = "val chose no more steps: it is real_aug"
        recipes.remove(LONGER)
        fixed.remove(LONGER)


def allowed(arms: Sequence[str], data: StudyData) -> tuple[dict[str, str], list[str]]:
    """Arms that the images at hand don't allow, with the reason, and the others that have a recipe of their own.

    Raises:
        ConfigError: no real-only arm, or none with synthetic images, is left that val can judge, or that followers are made of.
    """
    skipped = {arm: why for arm in arms if (why := why_not(arm, data))}
    left = [arm for arm in arms if arm not in skipped]
    reasons = "; ".join(f"{arm!r} can't run: {why}" for arm, why in skipped.items())
    check_sides(arms, left, f" ({reasons})" if reasons else "")
    return skipped, [arm for arm in left if arm_of(arm).recipe and not arm_of(arm).role]


def _follow(study: Study, arms: Sequence[str], setting: Setting, train: Train, teachers: Sequence[Cell]) -> None:
    """The arms that depend on what val has chosen, and the simulations."""
    gain = setting.gain
    if "synthetic_partner" in arms:
        _partner(study, setting, train, teachers)
    sides = {arm_of(arm).synthetic for arm in arms if arm_of(arm).role in FOLLOWERS}
    best = {side: study.recipes[arm] for side in sides if (arm := _best_single(study, setting, side, "network"))}
    classical = _best_single(study, setting, False, "classical")
    wanted: dict[str, tuple[str, int]] = {}
    for arm in arms:
        role, side = arm_of(arm).role, arm_of(arm).synthetic
        if role in FOLLOWERS and side not in best:
            study.skipped[arm] = "every network that it could be made of failed"
            study.lost.append(arm)
        elif role in ("committee", "large committee"):
            wanted[arm] = best[side], gain.committee if role == "committee" else gain.large_committee
        elif role == "trainval":
            wanted[arm] = f"{best[side]}@all", 1
            study.tuned.update({f"{best[side]}@all": study.tuned[best[side]]} if best[side] in study.tuned else {})
        elif role == "classical trainval" and not classical:
            study.skipped[arm] = "there is no classical arm"
        elif role == "classical trainval":
            wanted[arm] = f"{study.recipes[classical]}@all", 1
    members = {recipe: max(n for r, n in wanted.values() if r == recipe) for recipe, _ in wanted.values()}
    taught = {recipe: number for recipe, number in members.items() if recipe.endswith("@all") and recipe_of(recipe).taught}
    _train(study, {recipe: number for recipe, number in members.items() if recipe not in taught}, setting, train, teachers)
    if taught:  # with val's labels too, so that they know all that the real-only side may know
        better = f"{TEACHER}@all"
        study.tuned.update({better: study.tuned[TEACHER]} if TEACHER in study.tuned else {})
        _train(study, {better: gain.committee}, setting, train, [])
        taught = {recipe: number for recipe, number in taught.items() if not _untaught(study, recipe)}
        _train(study, taught, setting, train, study.cells_of(better))
    for arm, (recipe, number) in wanted.items():
        _vote(study, arm, recipe, gain, number)
    for arm in arms:
        if arm_of(arm).role in ("oracle", "active"):
            _simulate(study, arm, setting, train, teachers)


def _partner(study: Study, setting: Setting, train: Train, teachers: Sequence[Cell]) -> None:
    base = study.recipes[study.single_real]
    partner = partner_of(base, study.tuned.get(base, _middle(base)))
    known = next((name for name in RECIPES if name in study.recipes.values() and RECIPES[name] == recipe_of(partner)), "")
    if known:
        study.skipped["synthetic_partner"] = f"it is {known}"
        return
    _tune(study, [partner], setting, train, teachers)
    _train(study, {partner: 1}, setting, train, teachers)
    _vote(study, "synthetic_partner", partner, setting.gain, 1)
    _choose_single(study, setting)


def _simulate(study: Study, arm: str, setting: Setting, train: Train, teachers: Sequence[Cell]) -> None:
    """The oracle, and active learning: of the teacher's recipe at its tuned value."""
    role, gain, recipe = arm_of(arm).role, setting.gain, arm_of(arm).recipe
    extra = role if role == "oracle" else f"active {arm.removeprefix('active_')}"
    why = study.failure(TEACHER, members=1) if role == "active" else ""
    if not why:
        cells = side_by_side(recipe, study.tuned.get(recipe, _middle(recipe)), gain.seeds, 1, gain.together)
        cells = [cell._replace(extra=extra) for cell in cells]
        study.add(train(cells, teachers))
        why = study.failure(recipe, extra)
    if why:
        study.skipped[arm] = why
        return
    study.votes[arm], study.recipes[arm] = _by_seed(cells, gain.seeds), recipe


# Cells and votes


def _by_seed(cells: Iterable[Cell], seeds: int) -> list[list[tuple[Cell, int]]]:
    votes: list[list[tuple[Cell, int]]] = [[] for _ in range(seeds)]
    for cell in cells:
        for number, network in enumerate(cell.networks):
            votes[network.seed].append((cell, number))
    return votes


def _votes(study: Study, recipe: str, gain: GainConfig, members: int) -> list[list[tuple[Cell, int]]]:
    votes = _by_seed(study.cells_of(recipe), gain.seeds)
    return [[(cell, i) for cell, i in each if cell.networks[i].member < members] for each in votes]


def _vote(study: Study, arm: str, recipe: str, gain: GainConfig, members: int) -> None:
    """Makes an arm of a recipe's networks, or says why it can't be one."""
    if why := _untaught(study, recipe) or study.failure(recipe, members=members):
        study.skipped[arm] = why
        study.lost.append(arm)
        study.recipes.pop(arm, None)
    else:
        study.votes[arm], study.recipes[arm] = _votes(study, recipe, gain, members), recipe


def _untaught(study: Study, recipe: str) -> str:
    """Why a recipe has no teacher; empty where it has, or needs none."""
    own, teacher = recipe_of(recipe), f"{TEACHER}@all" if recipe.endswith("@all") else TEACHER
    why = study.failure(teacher, members=None if own.soft else 1) if own.taught else ""
    return f"{teacher} was to label its images, and {why}" if why else ""


def _train(study: Study, wanted: dict[str, int], setting: Setting, train: Train, teachers: Sequence[Cell]) -> None:
    """So many networks of each recipe and seed, those that are there excepted."""
    todo = []
    for recipe, members in wanted.items():
        there = {network.member for cell in study.cells_of(recipe) for network in cell.networks}
        value = study.tuned.get(recipe, _middle(recipe))
        todo += side_by_side(recipe, value, setting.gain.seeds, members, setting.gain.together, first=len(there))
    if todo:
        study.add(train(todo, teachers))


def _middle(recipe: str) -> float:
    """The dial's value where nothing is tuned."""
    own = recipe_of(recipe)
    return own.values[len(own.values) // 2] if own.dial else 0.0


# Choices on val


def _tune(study: Study, recipes: Sequence[str], setting: Setting, train: Train, teachers: Sequence[Cell]) -> None:
    chosen, seconds = tune([recipe for recipe in recipes if recipe not in study.tuned], setting, train, teachers)
    study.tuned |= chosen
    study.tuning_s |= seconds


def _searched(study: Study, setting: Setting, train: Train) -> list[str]:
    """The recipe that a search finds, if there can be one."""
    try:
        recipe, seconds = search(setting, train)
    except ImportError:
        study.skipped[SEARCHED] = "needs Optuna: pip install 'synthgen[search]'"
        return []
    except TrainingError as error:
        study.skipped[SEARCHED] = f"its training failed: {error}"
        return []
    study.recipes[SEARCHED], study.tuning_s[recipe] = recipe, seconds
    return [recipe]


def _choose_single(study: Study, setting: Setting) -> None:
    for synthetic in (False, True):
        arms = [arm for arm in study.votes if arm_of(arm).synthetic == synthetic and stands(arm)]
        if not arms:
            kind = "with synthetic images" if synthetic else "of real images alone"
            raise TrainingError(
                f"no arm {kind} could be trained: " + "; ".join(f"{arm}: {w}" for arm, w in study.skipped.items())
            )
        if synthetic:
            study.single_synthetic = _strongest(study, setting, _beside_real(study, arms))
        else:
            study.single_real = _strongest(study, setting, arms)


def _beside_real(study: Study, arms: Sequence[str]) -> list[str]:
    """Those with real images in their batches, if there are any: who has both doesn't deploy samples alone."""
    return [arm for arm in arms if recipe_of(study.recipes[arm]).labelled != "none"] or list(arms)


def _best_single(study: Study, setting: Setting, synthetic: bool, kind: Literal["network", "classical"]) -> str:
    """The strongest arm of its kind that stands alone and trains on real images; empty if there is none."""
    arms = [
        arm
        for arm in study.votes
        if arm_of(arm).synthetic == synthetic
        and stands(arm)
        and (recipe_of(study.recipes[arm]).kind == "network") == (kind == "network")
        and recipe_of(study.recipes[arm]).labelled != "none"
    ]
    return _strongest(study, setting, arms) if arms else ""


def stands(arm: str) -> bool:
    """Whether an arm is one network or classical model that val can choose."""
    return arm_of(arm).role in SINGLE and arm_of(arm).judged


def _strongest(study: Study, setting: Setting, arms: Sequence[str]) -> str:
    """The arm with the highest mean accuracy on val, ties by mean loss, then the earlier one."""

    def strength(arm: str) -> tuple[float, float]:
        each = [score(vote(study, arm, seed), setting.data.val) for seed in range(setting.gain.seeds)]
        return float(np.mean([s[0] for s in each])), -float(np.mean([s[1] for s in each]))

    return max(arms, key=strength)


def _contenders(study: Study, setting: Setting) -> list[str]:
    """A few val images choose badly: every real-only arm whose 95% interval against the best on val reaches 0 may be the
    strongest, and a gain has to hold against each (cf. the model confidence set, Hansen et al. 2011). Of a single image, or
    of a single patient's, val can't tell any arm from the best."""
    labels, blocks = setting.data.val.labels, setting.data.val_blocks

    def correct(arm: str) -> np.ndarray:
        each = [vote(study, arm, seed).argmax(1) == labels for seed in range(setting.gain.seeds)]
        return np.array(each, dtype=np.float64)

    real = [arm for arm in study.votes if not arm_of(arm).synthetic and arm_of(arm).judged and arm != study.best_real]
    if num_clusters(blocks, len(labels)) < 2:
        return [study.best_real, *real]
    best = correct(study.best_real)
    # without the images that are added elsewhere: of 5 to 15 val images they would leave every arm in
    against = {arm: paired_interval(arm, study.best_real, correct(arm), best, blocks, added=0.0) for arm in real}
    return [study.best_real, *(arm for arm in real if against[arm].high >= 0)]


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
    """The strongest real-only recipe that is trained on labelled images alone, at each size; sizes that fail are left out."""
    gain, data = setting.gain, setting.data
    real = [arm for arm in study.votes if not arm_of(arm).synthetic and arm_of(arm).role in ("", "searched")]
    arms = [arm for arm in real if plain(recipe_of(study.recipes[arm]))]
    if not arms:
        return
    study.curve_recipe = study.recipes[_strongest(study, setting, arms)]
    value = study.tuned.get(study.curve_recipe, _middle(study.curve_recipe))
    wanted = sizes(len(data.train), len(data.labelled), len(data.simulated), data.spec.num_classes)
    cells = {
        size: [
            cell._replace(extra=f"size {size}") for cell in side_by_side(study.curve_recipe, value, gain.seeds, 1, gain.together)
        ]
        for size, _ in wanted
        if size != len(data.train)
    }
    study.add(train([cell for size in reversed(cells) for cell in cells[size]], []))
    for size, source in wanted:
        if size in cells and study.failure(study.curve_recipe, f"size {size}"):
            continue
        votes = _by_seed(cells[size], gain.seeds) if size in cells else _votes(study, study.curve_recipe, gain, 1)
        study.curve.append((size, source, votes))


def plain(own: Recipe) -> bool:
    """Whether nothing but labelled images, real or synthetic, goes into a network, and no dial sets its steps: then a gain is
    worth so many real images, if the curve's networks are of its size (see `size_of`)."""
    usual = own.kind == "network" and own.start in ("fresh", "synthetic") and own.dial != "steps"
    return usual and not own.taught and not own.unlabelled


def size_of(own: Recipe, width: int) -> dict[str, float]:
    """Steps (times the usual ones), width and depth of a recipe's networks, where the classifier's width is `width`."""
    found = {"steps": 1.0, "width": float(width), "depth": 1.0} | dict(own.given)
    return {name: found[name] for name in ("steps", "width", "depth")}
