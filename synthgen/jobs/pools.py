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
from synthgen.types import Batch

LABELS = "pseudo.parquet"

NO_POOL = "pool.train: there are no unlabelled images; give split.pool or data.unlabelled, or leave pool.train out"

FIXMATCH = 0.8
"""Threshold of the committee's FixMatch: the middle one of its dial."""


def folder_of(split: Split) -> Path:
    """Where the pool's labels of a split lie."""
    return split.folder.parent / "pool"


def label_pool(order: Order, split: Split, out: Path) -> None:
    """Split -> out/pseudo.parquet: images of the pool with the class that a committee gives them, and out/pool.json.

    The committee learns from the train fold (not from val, which is to judge what comes of it) and, by FixMatch (Sohn et
    al. 2020) or in rounds of pseudo-labels (Lee 2013), from the pool. So do diffusion models and semi-supervised
    classifiers help each other (You et al. 2023, "DPT").

    Raises:
        DataError: there is no pool, or no committee is sure of any image.
    """
    config, pool = order.config, split.role("pool")
    if not len(pool):
        raise DataError(NO_POOL)
    settings = {**order.section("classifier", "augment", "pool"), "device": order.device}
    with order.stage(out, "pool", settings, {"split": split.digest}) as work:
        if not work.done:
            none = pool.take(np.zeros(0, np.int64))
            data = StudyData(split.spec, split.role("train"), split.role("val"), none, pool, none, none, none)
            setting = Setting(data, config.classifier, config.augment, config.gain, order.device)
            guess = _guess(order, setting, pool)
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


def _guess(order: Order, setting: Setting, pool: Batch) -> np.ndarray:
    """Mean class probabilities of the committee for each image of the pool."""
    own = order.config.pool
    networks = tuple(Network(0, member) for member in range(own.networks))
    first = Cell("fixmatch", FIXMATCH, networks) if own.method == "fixmatch" else Cell("real_aug", 1.0, networks)
    rounds = 0 if own.method == "fixmatch" else own.rounds or 2
    order.progress.start("pool", 1 + rounds)
    teach = _committee(first, cells.train_cell(first, setting, None), setting)
    order.progress.advance("pool")
    for number in range(rounds):
        cell = Cell("pseudo_labels", own.confidence, networks)
        teach = _committee(cell, cells.train_cell(cell, setting, teach), setting)
        order.progress.advance("pool", 1, f"round {number + 1}")
    return teach(pool.images, 0, True)


def _committee(cell: Cell, trained: Trained, setting: Setting) -> Teach:
    return lambda images, seed, committee: cells.predict(cell, trained, setting, images).mean(0)


def with_pool(order: Order, split: Split) -> Batch:
    """Every image that a generator trains on: the train fold and, where it may, the labelled part of the pool."""
    train = split.role("train")
    if not order.config.pool.train:
        return train
    return Batch.concatenate([train, raw.read(folder_of(split) / LABELS, split.spec)])
