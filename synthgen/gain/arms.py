"""The arms of the study: one literal table. Every network has the same architecture (but for what a search finds), batch
size and number of steps (but for `real_longer`, which asks whether more steps would do).

Equal information: a real image that any part of the factory saw may be used by the real-only side too, with its label
where it had one: the reference and the pool as unlabelled images, val (which chose generator, dial and arm) by the arms on
all labelled images.

Equal tuning: every recipe has one dial with three values, and val chooses among them with the same number of networks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from synthgen.errors import ConfigError, did_you_mean

STRENGTHS = (0.5, 1.0, 2.0)
SHARES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Recipe:
    """What one network is trained on, and how.

    Attributes:
        kind: a network, or a classical model on "pixels" or "features" (`gain.classical`).
        model: name of the classical model.
        labelled: the real images in the batches: train, all labelled ones (train, val, and the reference where it has
            labels), or none.
        policy: augmentation, of `data.policies`; "" for the images as they are.
        mixing: "", mixup, cutmix or smote.
        unlabelled: what is done with unlabelled real images: nothing, labels of a real-only network where it is sure
            (Lee 2013), FixMatch, or the labels that the generator had of the pool.
        synthetic: which synthetic images are mixed in: none, those that the gate kept, all candidates, those kept or dropped
            for nothing but being copies, or another generator's (its name).
        times: synthetic images for each train image; None takes them all.
        soft: labels of the synthetic images are the mean probabilities of this seed's committee of real-only networks.
        distilled: those of the train images are, too.
        start: fresh weights; SimCLR on every real image; first trained on the synthetic images alone; or those of
            `gain.transfer`.
        given: further settings of its training (`models.stacked.Training`, or `steps`), name and value.
        dial: what the tuned value sets: strength, lr, alpha, smoothing, dropout, decay, steps (times those of the others),
            share (of a batch, synthetic, or of the pool where nothing is), confidence.
        values: the dial's three values; the middle one is taken where nothing is tuned.
    """

    kind: Literal["network", "pixels", "features"] = "network"
    model: str = ""
    labelled: Literal["train", "all", "none"] = "train"
    policy: str = "standard"
    mixing: str = ""
    unlabelled: Literal["", "pseudo", "fixmatch", "pool"] = ""
    synthetic: str = ""
    times: float | None = None
    soft: bool = False
    distilled: bool = False
    start: Literal["fresh", "simclr", "synthetic", "transfer"] = "fresh"
    given: tuple[tuple[str, float], ...] = ()
    dial: str = "strength"
    values: tuple[float, ...] = STRENGTHS

    @property
    def taught(self) -> bool:
        """Whether it needs networks of `TEACHER` first."""
        return self.unlabelled == "pseudo" or self.soft

    @property
    def exported(self) -> bool:
        """Whether its synthetic images are among those that a run exports: those that the gate kept of the chosen generator."""
        return self.synthetic == "gated" or self.start == "synthetic"


SETTINGS = {name: name for name in ("strength", "lr", "alpha", "smoothing", "dropout", "confidence")}
SETTINGS |= {"decay": "weight_decay", "steps": "steps"}
"""Dial -> the setting of `models.stacked.Training` that it sets, or `steps`, times those of the classifier; a share of each
batch is none of these."""

SINGLE = ("", "partner", "searched")
"""Roles of arms that are one network, or one classical model."""

FOLLOWERS = ("committee", "large committee", "trainval")
"""Roles whose recipe is that of the strongest network of their side on val."""

TEACHER = "real_aug"
"""Recipe whose networks label what others learn from."""

RECIPES: dict[str, Recipe] = {
    # real images alone
    "real": Recipe(policy="", dial="lr"),
    "real_aug": Recipe(),
    "real_randaugment": Recipe(policy="randaugment"),
    "real_trivialaugment": Recipe(policy="trivialaugment"),
    "real_cutout": Recipe(policy="cutout"),
    "real_mixup": Recipe(mixing="mixup", dial="alpha", values=(0.1, 0.3, 1.0)),
    "real_cutmix": Recipe(mixing="cutmix", dial="alpha", values=(0.1, 0.3, 1.0)),
    "real_smote": Recipe(mixing="smote", dial="alpha", values=(0.25, 0.5, 0.75)),
    "real_smoothing": Recipe(dial="smoothing", values=(0.05, 0.1, 0.2)),
    "real_regularised": Recipe(dial="dropout", values=(0.2, 0.35, 0.5)),
    "real_decay": Recipe(dial="decay", values=(0.0, 0.05, 0.2)),
    "real_longer": Recipe(dial="steps", values=(1.0, 2.0, 4.0)),
    "real_distilled": Recipe(soft=True, distilled=True),
    "real_searched": Recipe(dial=""),
    "simclr": Recipe(start="simclr", dial="lr"),
    "transfer": Recipe(start="transfer", dial="lr"),
    "pseudo_labels": Recipe(unlabelled="pseudo", dial="confidence", values=(0.6, 0.8, 0.95)),
    "pool_labels": Recipe(unlabelled="pool", dial="share", values=SHARES),
    "fixmatch": Recipe(unlabelled="fixmatch", dial="confidence", values=(0.6, 0.8, 0.95)),
    "transfer_pool": Recipe(start="transfer", unlabelled="pool", dial="share", values=SHARES),
    "transfer_fixmatch": Recipe(start="transfer", unlabelled="fixmatch", dial="confidence", values=(0.6, 0.8, 0.95)),
    "logistic_pixels": Recipe("pixels", "logistic", dial=""),
    "svm_pixels": Recipe("pixels", "svm", dial=""),
    "forest_pixels": Recipe("pixels", "forest", dial=""),
    "boosting_pixels": Recipe("pixels", "boosting", dial=""),
    "logistic_features": Recipe("features", "logistic", dial=""),
    "svm_features": Recipe("features", "svm", dial=""),
    "forest_features": Recipe("features", "forest", dial=""),
    "boosting_features": Recipe("features", "boosting", dial=""),
    "transfer_probe": Recipe("features", "logistic", start="transfer", dial=""),
    # with synthetic images
    "synthetic_gated": Recipe(synthetic="gated", dial="share", values=SHARES),
    "synthetic_1x": Recipe(synthetic="gated", times=1.0, dial="share", values=SHARES),
    "synthetic_3x": Recipe(synthetic="gated", times=3.0, dial="share", values=SHARES),
    "synthetic_10x": Recipe(synthetic="gated", times=10.0, dial="share", values=SHARES),
    "synthetic_ungated": Recipe(synthetic="ungated", dial="share", values=SHARES),
    "synthetic_with_copies": Recipe(synthetic="with copies", dial="share", values=SHARES),
    "synthetic_soft": Recipe(synthetic="gated", soft=True, dial="share", values=SHARES),
    "synthetic_mixup": Recipe(synthetic="gated", mixing="mixup", dial="share", values=SHARES),
    "synthetic_pretrain": Recipe(synthetic="", start="synthetic", dial="lr"),
    "synthetic_pseudo": Recipe(synthetic="gated", unlabelled="pseudo", dial="share", values=SHARES),
    "synthetic_pool": Recipe(synthetic="gated", unlabelled="pool", dial="share", values=SHARES),
    "synthetic_pool_with_copies": Recipe(synthetic="with copies", unlabelled="pool", dial="share", values=SHARES),
    "synthetic_fixmatch": Recipe(
        synthetic="gated", unlabelled="fixmatch", given=(("confidence", 0.8),), dial="share", values=SHARES
    ),
    "synthetic_only": Recipe(labelled="none", synthetic="gated"),
    "synthetic_only_soft": Recipe(labelled="none", synthetic="gated", soft=True),
}


@dataclass(frozen=True)
class Arm:
    """A row of the study.

    Attributes:
        recipe: of each of its networks; "" where the study finds it on val (see `role`).
        meaning: in the field's words, for the tables.
        role: "" for a fixed recipe. "committee" and "trainval" take the strongest real-only or synthetic network on val,
            as a committee or on all labelled images, "classical trainval" the strongest classical model; "partner" is the
            strongest real-only recipe with the gated images mixed in; "large committee" is a real-only committee of more
            networks; "oracle" and "active" are simulations with labels that are hidden from every other arm; "searched" is a
            search over settings and sizes of the network, whose finding stands in the recipe's name (see `searched`).
        synthetic: whether its images are partly synthetic.
    """

    recipe: str
    meaning: str
    role: str = ""
    synthetic: bool = False

    @property
    def judged(self) -> bool:
        """Whether val can choose it: it was trained on no label of val or hidden one, the other side has its like, and its
        synthetic images are those that a run exports: nobody gets what was ungated, copied or another generator's."""
        shipped = not self.synthetic or not self.recipe or recipe_of(self.recipe).exported
        return shipped and self.role not in ("trainval", "classical trainval", "oracle", "active", "large committee")


def _arms(synthetic: bool, **meanings: str) -> dict[str, Arm]:
    return {name: Arm(name, meaning, synthetic=synthetic) for name, meaning in meanings.items()}


ARMS: dict[str, Arm] = {
    **_arms(
        False,
        logistic_pixels="real, logistic regression on pixels",
        svm_pixels="real, RBF-SVM on pixels",
        forest_pixels="real, random forest on pixels",
        boosting_pixels="real, gradient boosting on pixels",
        logistic_features="real, logistic regression on the gate's features",
        svm_features="real, RBF-SVM on the gate's features",
        forest_features="real, random forest on the gate's features",
        boosting_features="real, gradient boosting on the gate's features",
        real="real alone",
        real_aug="real, standard augmentation",
        real_randaugment="real, RandAugment",
        real_trivialaugment="real, TrivialAugment",
        real_cutout="real, augmentation and cutout",
        real_mixup="real, augmentation and mixup",
        real_cutmix="real, augmentation and cutmix",
        real_smote="real, augmentation and in-class interpolation (SMOTE)",
        real_smoothing="real, augmentation and label smoothing",
        real_regularised="real, augmentation and stronger dropout",
        real_decay="real, augmentation and tuned weight decay",
        real_longer="real, augmentation, up to 4 times as many steps",
        real_distilled="real, augmentation, soft labels of a real-only committee",
        simclr="real, SimCLR on all real images, then fine-tuned",
        transfer_probe="real, logistic regression on pre-trained features",
        transfer="real, fine-tuned from pre-trained weights",
        pseudo_labels="real, pseudo-labelled unlabelled images",
        pool_labels="real, pool with the labels of a committee that the generator had",
        fixmatch="real, FixMatch on unlabelled images",
        transfer_pool="real, fine-tuned from pre-trained weights, pool with the labels that the generator had",
        transfer_fixmatch="real, fine-tuned from pre-trained weights, FixMatch on unlabelled images",
    ),
    "real_searched": Arm("real_searched", "real, architecture and settings found by a search on val", "searched"),
    "real_committee": Arm("", "committee of the strongest real-only network", "committee"),
    "real_committee_large": Arm("", "larger committee of the strongest real-only network", "large committee"),
    "real_trainval": Arm("", "strongest real-only network on all labelled images (val too)", "trainval"),
    "classical_trainval": Arm("", "strongest classical model on all labelled images (val too)", "classical trainval"),
    "active_random": Arm("real_aug", "simulation: more labels, drawn at random", "active"),
    "active_margin": Arm("real_aug", "simulation: more labels, smallest margin", "active"),
    "active_entropy": Arm("real_aug", "simulation: more labels, largest entropy", "active"),
    "active_kcenter": Arm("real_aug", "simulation: more labels, k-center", "active"),
    "oracle": Arm("real_aug", "simulation: real images with true labels instead of the synthetic ones", "oracle"),
    **_arms(
        True,
        synthetic_gated="real, augmentation, gated synthetic",
        synthetic_1x="real, augmentation, gated synthetic, 1 a train image",
        synthetic_3x="real, augmentation, gated synthetic, 3 a train image",
        synthetic_10x="real, augmentation, gated synthetic, 10 a train image",
        synthetic_ungated="real, augmentation, ungated synthetic",
        synthetic_with_copies="real, augmentation, gated synthetic with the copies left in",
        synthetic_soft="real, augmentation, gated synthetic with soft labels of a real-only committee",
        synthetic_mixup="real, augmentation, gated synthetic, mixup",
        synthetic_pretrain="trained on gated synthetic, then fine-tuned on real",
        synthetic_pseudo="real, pseudo-labelled unlabelled images, gated synthetic",
        synthetic_pool="real, pool with the labels that the generator had, gated synthetic (DPT)",
        synthetic_pool_with_copies="real, pool with the labels that the generator had, gated synthetic with the copies left in",
        synthetic_fixmatch="real, FixMatch on unlabelled images, gated synthetic",
        synthetic_only="gated synthetic alone, augmentation",
        synthetic_only_soft="gated synthetic alone, soft labels of a real-only committee",
    ),
    "synthetic_partner": Arm("", "strongest real-only recipe with gated synthetic mixed in", "partner", True),
    "synthetic_committee": Arm("", "committee of the strongest synthetic network", "committee", True),
    "synthetic_trainval": Arm("", "strongest synthetic network on all labelled images (val too)", "trainval", True),
}

QUICK = (
    "svm_pixels",
    "real",
    "real_aug",
    "real_randaugment",
    "real_mixup",
    "real_longer",
    "real_distilled",
    "pseudo_labels",
    "pool_labels",
    "real_committee",
    "real_trainval",
    "classical_trainval",
    "oracle",
    "synthetic_gated",
    "synthetic_ungated",
    "synthetic_with_copies",
    "synthetic_soft",
    "synthetic_only",
    "synthetic_partner",
    "synthetic_committee",
    "synthetic_trainval",
)
"""Arms of `gain.study=quick`: the rivals that a few images allow, and what a sceptic's questions need."""

OTHER_GENERATOR = "generator_"
"""Arms that `gain.study=full` adds: `generator_gan` is `synthetic_gated` with the images that the gate kept of the GAN."""


def arm_of(name: str) -> Arm:
    """The table's arm, or that of another generator."""
    if name.startswith(OTHER_GENERATOR):
        return Arm(name, f"real, augmentation, gated synthetic of {name.removeprefix(OTHER_GENERATOR)}", synthetic=True)
    return ARMS[name]


def recipe_of(name: str) -> Recipe:
    """The table's recipe; `NAME[SETTING=VALUE,...]` is that with settings that a search found, `NAME=VALUE+synthetic` its
    partner with the dial's value kept, `generator_NAME` that of another generator, `NAME@all` on all labelled images."""
    if name.endswith("@all"):
        return replace(recipe_of(name.removesuffix("@all")), labelled="all")
    if name.endswith("+synthetic"):
        base_name, value = name.removesuffix("+synthetic"), ""
        if not base_name.endswith("]"):
            base_name, _, value = base_name.partition("=")
        base = recipe_of(base_name)
        kept = ((SETTINGS[base.dial], float(value)),) if value else ()
        partner = replace(base, synthetic="gated", given=base.given + kept)
        return replace(partner, dial="share", values=SHARES) if base.kind == "network" else partner
    if name.endswith("]"):
        base_name, _, found = name.removesuffix("]").partition("[")
        pairs = (setting.split("=") for setting in found.split(","))
        return replace(RECIPES[base_name], given=tuple((setting, float(value)) for setting, value in pairs))
    if name.startswith(OTHER_GENERATOR):
        return replace(RECIPES["synthetic_gated"], synthetic=name.removeprefix(OTHER_GENERATOR))
    return RECIPES[name]


def searched(settings: Mapping[str, int | float]) -> str:
    """The name of the recipe `real_searched` with these settings: its networks, its cells and every table tell what was found.

    >>> searched({"lr": 0.51, "width": 24})
    'real_searched[lr=0.51,width=24]'
    """
    return f"real_searched[{','.join(f'{name}={value:g}' for name, value in settings.items())}]"


def base_of(recipe: str) -> str:
    """The recipe that a partner or one on all labelled images is made of; the recipe itself where it is neither."""
    base = recipe.removesuffix("@all")
    if not base.endswith("+synthetic"):
        return base
    base = base.removesuffix("+synthetic")
    return base if base.endswith("]") else base.partition("=")[0]


def check_arms(asked: Iterable[str] | None, study: str, others: Iterable[str] = ()) -> tuple[str, ...]:
    """The arms to run, in the table's order, other generators' last.

    Args:
        asked: names, or None for those of the study.
        study: quick or full.
        others: generators beside the one that was chosen.

    Raises:
        ConfigError: an unknown arm; or no real-only arm, or none with synthetic images, that val can judge.
    """
    more = tuple(f"{OTHER_GENERATOR}{name}" for name in others)
    if asked is None:
        return QUICK if study == "quick" else (*ARMS, *more)
    names = list(asked)
    for name in names:
        if name not in ARMS and not name.startswith(OTHER_GENERATOR):
            raise ConfigError(f"gain.arms: no arm {name!r}{did_you_mean(name, ARMS)}; `synthgen arms` lists them")
    check_sides(names, names)
    known = dict.fromkeys((*ARMS, *more, *(name for name in names if name.startswith(OTHER_GENERATOR))))
    return tuple(name for name in known if name in names)  # a generator that isn't there is skipped with its reason


def check_sides(names: Sequence[str], left: Sequence[str], because: str = "") -> None:
    """Refuses arms that no verdict can come of.

    Args:
        names: all that were asked for.
        left: those of them that can be run.
        because: why the others can't, for the message.

    Raises:
        ConfigError: no real-only arm, or none with synthetic images, that val can judge; or none that is a network, where
            a committee, or an arm on all labelled images, is made of one.
    """
    for synthetic, kind, example in (
        (False, "of real images alone", "real_aug"),
        (True, "with the synthetic images that the gate kept", "synthetic_gated"),
    ):
        fixed = [name for name in left if arm_of(name).recipe and not arm_of(name).role and arm_of(name).judged]
        own = [name for name in fixed if arm_of(name).synthetic == synthetic]
        if not own:
            left_over = " is left" if because else ""
            raise ConfigError(f"gain.arms: no arm {kind}{left_over} that val can judge{because}; add {example!r}")
        followers = [name for name in names if arm_of(name).role in FOLLOWERS and arm_of(name).synthetic == synthetic]
        if followers and not any(makes_committees(name) for name in own):
            lacking = f"none is left{because}" if because else "there is none"
            raise ConfigError(f"gain.arms: {followers[0]!r} is made of a network {kind}, and {lacking}; add {example!r}")


def partner_of(recipe: str, value: float) -> str:
    """The recipe with gated synthetic images mixed in, its dial left at `value`."""
    own = recipe_of(recipe)
    usual = {"strength": 1.0, "lr": 1.0, "alpha": 0.3, "steps": 1.0}.get(own.dial)
    kept = own.kind == "network" and own.dial in SETTINGS and value != usual
    return f"{recipe}={value:g}+synthetic" if kept else f"{recipe}+synthetic"


def makes_committees(name: str) -> bool:
    """Whether an arm is one network that committees can be made of."""
    arm = arm_of(name)
    return (
        bool(arm.recipe) and not arm.role and recipe_of(arm.recipe).kind == "network" and recipe_of(arm.recipe).labelled != "none"
    )
