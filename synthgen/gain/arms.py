"""The arms of the study: one literal table. Every arm has the same network, batch size and number of gradient steps.

Equal information: a real image that any part of the factory saw may be used by the real-only side too, with its label
where it had one. So the real-only side has an arm on train and val together (val chose generator and arm) and one on
pseudo-labels for the reference images (they chose the samples).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from synthgen.errors import ConfigError, did_you_mean
from synthgen.types import UNLABELLED, Batch, DatasetSpec


@dataclass(frozen=True)
class Recipe:
    """What one network is trained on, and how.

    Attributes:
        real: train images are in the batches.
        val: ... and val, and the reference where it has labels.
        augment, mixup: see `models.classifier`.
        pseudo: half of each batch are reference images with labels of this seed's `real_aug` network.
        synthetic: which synthetic images are mixed in.
    """

    real: bool = True
    val: bool = False
    augment: bool = True
    mixup: bool = False
    pseudo: bool = False
    synthetic: Literal["", "gated", "ungated"] = ""


RECIPES: dict[str, Recipe] = {
    "real": Recipe(augment=False),
    "real_aug": Recipe(),
    "real_aug_mixup": Recipe(mixup=True),
    "real_aug_trainval": Recipe(val=True),
    "pseudo_labels": Recipe(pseudo=True),
    "synthetic_gated": Recipe(synthetic="gated"),
    "synthetic_gated_trainval": Recipe(val=True, synthetic="gated"),
    "synthetic_ungated": Recipe(synthetic="ungated"),
    "synthetic_only": Recipe(real=False, synthetic="gated"),
}


@dataclass(frozen=True)
class Arm:
    """A row of the study: one network of a recipe, or a committee of several.

    Attributes:
        recipe: of each of its networks.
        committee: whether `gain.committee` networks vote (mean of their probabilities).
        meaning: in the field's words, for the tables.
    """

    recipe: str
    committee: bool
    meaning: str


ARMS: dict[str, Arm] = {
    "real": Arm("real", False, "real alone"),
    "real_aug": Arm("real_aug", False, "real, standard augmentation"),
    "real_aug_mixup": Arm("real_aug_mixup", False, "real, augmentation and mixup"),
    "real_aug_committee": Arm("real_aug", True, "real, augmentation, committee of networks"),
    "pseudo_labels": Arm("pseudo_labels", False, "real, augmentation, pseudo-labelled reference images"),
    "real_aug_trainval": Arm("real_aug_trainval", False, "all labelled real images (val too), augmentation"),
    "synthetic_gated": Arm("synthetic_gated", False, "real, augmentation, gated synthetic"),
    "synthetic_gated_committee": Arm("synthetic_gated", True, "real, augmentation, gated synthetic, committee of networks"),
    "synthetic_gated_trainval": Arm("synthetic_gated_trainval", False, "all labelled real images, augmentation, gated synthetic"),
    "synthetic_ungated": Arm("synthetic_ungated", False, "real, augmentation, ungated synthetic"),
    "synthetic_only": Arm("synthetic_only", False, "gated synthetic alone, augmentation"),
}

RIVAL: dict[str, str] = {
    "real": "synthetic_gated",
    "real_aug": "synthetic_gated",
    "real_aug_mixup": "synthetic_gated",
    "pseudo_labels": "synthetic_gated",
    "real_aug_committee": "synthetic_gated_committee",
    "real_aug_trainval": "synthetic_gated_trainval",
}
"""Real-only arm -> the gated synthetic arm with as many networks and the same labels, which must beat it."""


@dataclass(frozen=True)
class StudyData:
    """The images of a study, test excepted.

    Attributes:
        spec: image shape and classes.
        train, val: labelled.
        reference: labelled or not.
        gated, ungated: synthetic, labelled; what passed the gate, and as many or more as they came.
    """

    spec: DatasetSpec
    train: Batch
    val: Batch
    reference: Batch
    gated: Batch
    ungated: Batch

    @property
    def reference_labelled(self) -> bool:
        return len(self.reference) > 0 and bool((self.reference.labels != UNLABELLED).all())


def check_arms(asked: Iterable[str] | None) -> tuple[str, ...]:
    """The arms to run, in the table's order.

    Raises:
        ConfigError: an unknown arm; or no real-only arm that val can judge, or not the synthetic arm that rivals it.
    """
    if asked is None:
        return tuple(ARMS)
    names = list(asked)
    for name in names:
        if name not in ARMS:
            raise ConfigError(f"gain.arms: no arm {name!r}{did_you_mean(name, ARMS)}; known: {', '.join(ARMS)}")
    for baseline in (name for name in names if name in RIVAL):
        if RIVAL[baseline] not in names:
            raise ConfigError(f"gain.arms: {baseline!r} needs {RIVAL[baseline]!r} to be compared with; add it")
    if not _judged(names):
        raise ConfigError("gain.arms: no real-only arm that val can judge; add 'real_aug'")
    return tuple(name for name in ARMS if name in names)


def skipped(arms: Iterable[str], data: StudyData) -> dict[str, str]:
    """Arms that the images at hand don't allow -> why.

    Raises:
        ConfigError: no real-only arm that val can judge is left.
    """
    asked = set(arms)
    reasons = {}
    if not len(data.reference):
        reasons["pseudo_labels"] = "there are no reference images"
    elif data.reference_labelled:
        reasons["pseudo_labels"] = "the reference images have labels; real_aug_trainval uses them"
    reasons = {arm: why for arm, why in reasons.items() if arm in asked}
    if reasons and not _judged(asked - set(reasons)):
        left_out = "; ".join(f"{arm!r} can't run: {why}" for arm, why in reasons.items())
        raise ConfigError(f"gain.arms: {left_out}; no real-only arm that val can judge is left; add 'real_aug'")
    return reasons


def _judged(arms: Iterable[str]) -> list[str]:
    """The real-only arms among them that didn't train on val."""
    return [arm for arm in arms if arm in RIVAL and not RECIPES[ARMS[arm].recipe].val]
