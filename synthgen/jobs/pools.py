"""Unlabelled images -> the labels of real-only classifiers, where these are sure: what else a generator may train on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from synthgen import storage
from synthgen.errors import DataError
from synthgen.gain import cells
from synthgen.gain.cells import Cell, Network, Setting, Teach, Trained
from synthgen.gain.data import StudyData
from synthgen.jobs.order import Order
from synthgen.jobs.real import Split
from synthgen.shards import raw
from synthgen.types import UNLABELLED, Batch

LABELS = "pseudo.parquet"


def folder_of(split: Split) -> Path:
    """Where the pool's labels of a split lie."""
    return split.folder.parent / "pool"


def label_pool(order: Order, split: Split, out: Path) -> None:
    """Split -> out/pseudo.parquet: images of the pool with the class that a committee gives them, and out/pool.json.

    In rounds: a committee learns from the labelled images; each further one from train and from what the one before was sure
    of (Lee 2013). So do diffusion models and semi-supervised classifiers help each other (You et al. 2023, "DPT").

    Raises:
        DataError: there is no pool, or no committee is sure of any image.
    """
    config, pool = order.config, split.role("pool")
    if not len(pool):
        raise DataError("pool.train: there are no unlabelled images; give split.pool or data.unlabelled, or leave pool.train out")
    settings = {**order.section("classifier", "augment", "pool", "gain"), "device": order.device}
    with order.stage(out, "pool", settings, {"split": split.digest}) as work:
        if not work.done:
            none = pool.take(np.zeros(0, np.int64))
            labelled = [split.role("train")]
            if config.pool.labels == "all":
                reference = split.role("reference")
                labelled += [split.role("val"), reference.take(reference.labels != UNLABELLED)]
            train = Batch.concatenate(labelled)
            data = StudyData(split.spec, train, split.role("val"), none, pool, none, none, none)
            setting = Setting(data, config.classifier, config.augment, config.gain, order.device)
            order.progress.start("pool", config.pool.rounds)
            guess = _in_rounds(order, setting, pool)
            sure = guess.max(1) >= config.pool.confidence
            if not sure.any():
                raise DataError(
                    f"pool.train: the committee is sure of none of {len(pool)} images (highest mean probability "
                    f"{guess.max():.2f}); lower pool.confidence={config.pool.confidence:g}, or give more labelled images"
                )
            taken = Batch(pool.images, guess.argmax(1).astype(np.int64), pool.keys).take(sure)
            raw.write(work.path(LABELS), [taken], split.spec)
            counts = np.bincount(taken.labels, minlength=split.spec.num_classes).tolist()
            about = {"images": len(pool), "taken": len(taken), "classes": dict(zip(split.spec.class_names, counts, strict=True))}
            work.write_json("pool.json", about)
    found = storage.read_json(out / "pool.json")
    order.progress.finish(
        "pool", f"{found['taken']} of {found['images']} unlabelled images labelled, {storage.seconds(out):.0f} s"
    )


def _in_rounds(order: Order, setting: Setting, pool: Batch) -> np.ndarray:
    """Mean class probabilities of the last committee for each image of the pool."""
    networks = tuple(Network(0, member) for member in range(order.config.gain.committee))
    teach: Teach | None = None
    for number in range(order.config.pool.rounds):
        cell = Cell("real_aug", 1.0, networks) if teach is None else Cell("pseudo_labels", order.config.pool.confidence, networks)
        teach = _committee(cell, cells.train_cell(cell, setting, teach), setting)
        order.progress.advance("pool", 1, f"round {number + 1}")
    assert teach is not None
    return teach(pool.images, 0, True)


def _committee(cell: Cell, trained: Trained, setting: Setting) -> Teach:
    return lambda images, seed, committee: cells.predict(cell, trained, setting, images).mean(0)


def with_pool(order: Order, split: Split) -> Batch:
    """Every image that a generator trains on: the train fold and, where it may, the labelled part of the pool."""
    train = split.role("train")
    if not order.config.pool.train:
        return train
    return Batch.concatenate([train, raw.read(folder_of(split) / LABELS, split.spec)])
