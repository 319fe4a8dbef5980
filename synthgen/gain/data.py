"""The images of a study, and which of them a recipe trains on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from synthgen.gain.arms import Recipe, arm_of, recipe_of
from synthgen.gain.stats import cluster_ids
from synthgen.models.finetuned import Transformer
from synthgen.randomness import stream
from synthgen.types import UNLABELLED, Batch, DatasetSpec


@dataclass(frozen=True)
class StudyData:
    """The images of a study, test excepted.

    Attributes:
        spec: image shape and classes.
        train, val: labelled.
        reference: labelled or not.
        pool: images without labels beside them.
        gated, ungated, with_copies: synthetic, labelled: what passed the gate, all, and what would have if copies were none.
        others: what the gate kept of each other generator.
        pool_labels: images of the pool with the labels that the generator had of them; None where it saw no pool.
        truth: labels of reference and pool in a simulation, -1 where they aren't known either; None without one.
        groups: key of a labelled real image -> its group (patient, recording); empty where images carry none.
        features: the gate's extractor, images -> (n, d); None where there is none.
        elsewhere: whether the generator started from trained weights.
        unknown_start: whether nobody here knows what those were trained on: not a checkpoint of ours, which says so.
        pretrained: weights of `ClassifierNetwork` that the transfer arm starts from (some of them), or None.
        pretrained_note: what was taken up of it, and what wasn't.
        transformer: a pre-trained one that the transfer arm fine-tunes instead, or None.
        backbone: a pre-trained extractor for the transfer probe, images -> (n, d); None without one.
        pool_s: seconds that the pool's labels took.
        made_in_s: seconds that the generator, its samples and the gate took.
        val_blocks: number of each val image's block, see `assess.TestSet`; None where all are independent.
    """

    spec: DatasetSpec
    train: Batch
    val: Batch
    reference: Batch
    pool: Batch
    gated: Batch
    ungated: Batch
    with_copies: Batch
    others: Mapping[str, Batch] = field(default_factory=dict)
    pool_labels: Batch | None = None
    elsewhere: bool = False
    unknown_start: bool = False
    truth: np.ndarray | None = None
    groups: Mapping[str, str] = field(default_factory=dict)
    features: Callable[[np.ndarray], np.ndarray] | None = None
    pretrained: Mapping[str, Tensor] | None = None
    pretrained_note: str = ""
    transformer: Transformer | None = None
    backbone: Callable[[np.ndarray], np.ndarray] | None = None
    pool_s: float = 0.0
    made_in_s: float = 0.0
    val_blocks: np.ndarray | None = None

    @property
    def reference_labelled(self) -> bool:
        return len(self.reference) > 0 and bool((self.reference.labels != UNLABELLED).all())

    @property
    def unlabelled(self) -> Batch:
        """Real images that every arm may use without a label: the pool, and the reference where nobody knows its labels."""
        return self.pool if self.reference_labelled else Batch.concatenate([self.reference, self.pool])

    @property
    def labelled(self) -> Batch:
        """Every labelled real image."""
        return Batch.concatenate([self.train, self.val, *([self.reference] if self.reference_labelled else [])])

    @property
    def simulated(self) -> Batch:
        """The unlabelled images with their hidden labels, those that nobody knows left out; empty without a simulation."""
        if self.truth is None:
            return self.unlabelled.take(np.zeros(0, np.int64))
        all_of_them = Batch.concatenate([self.reference, self.pool])
        known = dict(zip(all_of_them.keys, self.truth.tolist(), strict=True))
        labels = np.array([known[key] for key in self.unlabelled.keys], dtype=np.int64)
        return Batch(self.unlabelled.images, labels, self.unlabelled.keys).take(labels != UNLABELLED)

    def synthetic(self, recipe: Recipe) -> Batch | None:
        """The synthetic images of a recipe, in its number; None where it has none."""
        if not recipe.synthetic and recipe.start != "synthetic":
            return None
        named = {"gated": self.gated, "ungated": self.ungated, "with copies": self.with_copies, "": self.gated}
        batch = named[recipe.synthetic] if recipe.synthetic in named else self.others[recipe.synthetic]
        if recipe.times is None:
            return batch
        return batch.take(nested(batch.labels, 0, "times")[: round(recipe.times * len(self.train))])

    def groups_of(self, batch: Batch) -> np.ndarray | None:
        """A number for the group of each image, one of none alone in its own; None where no image carries a group."""
        return cluster_ids([self.groups.get(key) for key in batch.keys]) if self.groups else None

    def real(self, recipe: Recipe) -> Batch:
        """The labelled real images of a recipe."""
        if recipe.labelled == "none":
            return self.train.take(np.zeros(0, np.int64))
        return self.train if recipe.labelled == "train" else self.labelled


def nested(labels: np.ndarray, seed: int, name: str) -> np.ndarray:
    """All rows in an order of which every beginning has each class in its share; another seed, another order.

    The r-th image of a class of m, in an order of its own, stands at (r + 1/2) / m.
    """
    luck = stream(seed, f"gain/{name}").permutation(len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        place[rows[np.argsort(luck[rows])]] = (np.arange(len(rows)) + 0.5) / len(rows)
    return np.lexsort((luck, place))


def why_not(name: str, data: StudyData) -> str:
    """Why the images at hand don't allow an arm; empty where they do."""
    arm = arm_of(name)
    if arm.role in ("oracle", "active"):
        return (
            ""
            if len(data.simulated)
            else "a simulation with hidden labels wasn't asked for (gain.simulate=true), or there are none"
        )
    if not arm.recipe:
        return ""
    return _why_not(recipe_of(arm.recipe), data)


def _why_not(recipe: Recipe, data: StudyData) -> str:
    if recipe.unlabelled == "pool" and data.pool_labels is None:
        return "needs a pool that the generator was trained on: split.pool and pool.train=true"
    if recipe.unlabelled and not len(data.unlabelled):
        why = "the reference images have labels; real_trainval uses them" if data.reference_labelled else "there are none"
        return f"needs unlabelled images, and {why}"
    if recipe.start == "simclr" and len(data.train) + len(data.unlabelled) < 2:
        return "needs at least 2 images"
    if recipe.kind == "features" and recipe.start == "fresh" and data.features is None:
        return "needs the gate's extractor, and there is no features folder"
    if recipe.start == "transfer":
        missing = data.backbone is None if recipe.kind == "features" else data.pretrained is None and data.transformer is None
        if missing:
            fits = f"no weights of gain.transfer fit this network ({data.pretrained_note})"
            return fits if data.pretrained_note else "needs pre-trained weights: gain.transfer=FOLDER"
    found = data.others.get(recipe.synthetic)
    if recipe.synthetic not in ("", "gated", "ungated", "with copies") and (found is None or not len(found)):
        return (
            f"the gate kept none of {recipe.synthetic}'s samples"
            if found is not None
            else f"no generator {recipe.synthetic!r} beside the one studied; gain.study=full brings the others"
        )
    synthetic = data.synthetic(recipe)
    if synthetic is not None and not len(synthetic):
        return "there are no such samples"
    if synthetic is not None and recipe.times is not None and len(synthetic) < round(recipe.times * len(data.train)):
        return f"asks for {round(recipe.times * len(data.train))} synthetic images, and {len(data.gated)} passed the gate"
    if recipe.synthetic == "with copies" and len(data.with_copies) == len(data.gated):
        without = "synthetic_pool" if recipe.unlabelled == "pool" else "synthetic_gated"
        return f"no sample was dropped for being a copy alone: it would equal {without}"
    return ""
