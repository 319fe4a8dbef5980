"""Who may see which image: train, val, reference, a locked test split, and a pool whose labels nobody may see."""

from __future__ import annotations

import numpy as np

from synthgen.config.schema import SplitConfig
from synthgen.data.sources import RealImages
from synthgen.errors import DataError
from synthgen.randomness import stream
from synthgen.shapes import Int64
from synthgen.types import UNLABELLED, Batch

ROLES = ("train", "val", "reference", "test", "pool")


def split(real: RealImages, config: SplitConfig, near: Int64[np.ndarray, " n"] | None = None) -> dict[str, np.ndarray]:
    """Role -> sorted row indices of `real.batch`, disjoint; fixed by the data, `config` and nothing else.

    A number of 1 or more is a count; a fraction is a share of the labelled images that aren't a given test split, and for
    test itself a share of all labelled ones. A given test split is the only source of test: a count takes that many of it,
    a fraction (0 too) takes all of it. `None` (train or pool) takes what is left; rows in no role are used by nobody.

    Test is drawn first and doesn't change with the other sizes; then val, reference, train and pool, so that of two runs
    that differ in `train` alone the smaller train split is a part of the larger (nearly, where there are blocks), and `pool`
    changes no other role; but where train is what is left over, pool is drawn before it and taken from it. Each draw is
    stratified: every class has the same share, rounded up where the count allows. A block of images (same group, or near
    duplicates) is never cut: it is taken when that brings the class counts nearer to the ones asked for, so with large
    blocks counts are only met as nearly as whole blocks allow; single images fill them exactly.

    Images without a label are in no role but pool: all of them, except those whose block reaches into test, val, reference
    or a given test split, which nobody uses. With train they may share a block: both are learned from.

    Args:
        real: what `sources.load` gave.
        config: sizes and seed.
        near: near-duplicate group of each image (`audit.near_duplicates`); ignored where
            `config.keep_near_duplicates_together` is off.

    Raises:
        DataError: more images are asked for than there are, or whole blocks can't fill a role at all.
    """
    blocks = leakage_blocks(real, near if config.keep_near_duplicates_together else None)
    labels = real.batch.labels
    in_given_test = np.zeros(len(labels), bool) if real.given is None else np.array(real.given) == "test"
    labelled = labels != UNLABELLED
    given_test = np.flatnonzero(labelled if real.given is None else labelled & in_given_test)
    given_train = np.flatnonzero(labelled & ~in_given_test)
    free = np.setdiff1d(given_train, leaking(real, blocks))

    num_test = _count("test", config.test, int(labelled.sum()))
    if real.given is not None and config.test < 1:
        num_test = len(given_test)
    num = {role: _count(role, getattr(config, role), len(given_train)) for role in ("val", "reference", "train", "pool")}
    _check_sizes(config, num_test, num, len(given_test), len(free), real.given is not None)

    roles = {"test": stratified(given_test, num_test, labels, blocks, config.seed, "split/test")}
    free = np.setdiff1d(free, roles["test"])
    for role in sorted(num, key=lambda role: num[role] < 0):  # what is left over comes last
        roles[role] = free if num[role] < 0 else stratified(free, num[role], labels, blocks, config.seed, f"split/{role}")
        free = np.setdiff1d(free, roles[role])
    judging = np.concatenate([np.flatnonzero(in_given_test), *(roles[role] for role in ("test", "val", "reference"))])
    roles["pool"] = np.union1d(roles["pool"], np.flatnonzero(~labelled & ~np.isin(blocks, blocks[judging])))
    if len(roles["train"]) == 0 and config.train != 0:
        raise DataError(f"split: no image is left for train; lower split.test, val, reference or pool ({_shown(config)})")
    return {role: roles[role] for role in ROLES}


def role_batch(real: RealImages, rows: Int64[np.ndarray, " n"], labelled: bool) -> Batch:
    """The images of a role; all labels are `UNLABELLED` where nobody is to know them."""
    batch = real.batch.take(rows)
    return batch if labelled else Batch(batch.images, np.full(len(batch), UNLABELLED, np.int64), batch.keys)


def leakage_blocks(real: RealImages, near: Int64[np.ndarray, " n"] | None) -> Int64[np.ndarray, " n"]:
    """Block of each image: images of one group or one near-duplicate group, directly or through others, share theirs."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(real.batch)
    kinds = [kind for kind in (real.groups, near) if kind is not None]
    if not kinds:
        return np.arange(n)
    # A graph of images and of the groups they belong to.
    first, edges = n, []
    for kind in kinds:
        index = np.unique(np.asarray(kind), return_inverse=True)[1].reshape(-1)
        edges.append(np.stack([np.arange(n), first + index]))
        first += int(index.max()) + 1
    rows, columns = np.concatenate(edges, axis=1)
    graph = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(first, first))
    return connected_components(graph, directed=False)[1][:n].astype(np.int64)


def leaking(real: RealImages, blocks: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " m"]:
    """Rows of the given train split whose block reaches into the given test split: they are used by nobody."""
    if real.given is None:
        return np.zeros(0, np.int64)
    test = np.array(real.given) == "test"
    return np.flatnonzero(~test & np.isin(blocks, blocks[test]))


def stratified(
    pool: Int64[np.ndarray, " m"],
    num: int,
    labels: Int64[np.ndarray, " n"],
    blocks: Int64[np.ndarray, " n"],
    seed: int,
    name: str,
) -> Int64[np.ndarray, " k"]:
    """`num` rows of `pool`, sorted: the same share of every class, and whole blocks; fixed by (seed, name).

    Images are put in one order in which every beginning is stratified: the r-th image of a class of m stands at r / m.
    The first `num` images in that order say how many of each class are wanted; blocks are then taken in the order of
    their first image, where that brings the class counts nearer to the wanted ones. Without blocks that gives these
    very images.

    Raises:
        DataError: every block is so large that none is taken.
    """
    if num == 0 or len(pool) == 0:
        return np.zeros(0, np.int64)
    names, block = np.unique(blocks[pool], return_inverse=True)
    classes, label = np.unique(labels[pool], return_inverse=True)
    luck = stream(seed, name).permutation(len(names))[block]
    order = np.lexsort((pool, luck, label))
    sizes = np.bincount(label)
    starts = np.cumsum(sizes) - sizes
    place = np.empty(len(pool))
    place[order] = (np.arange(len(pool)) - np.repeat(starts, sizes)) / np.repeat(sizes, sizes)
    order = np.lexsort((pool, luck, place))
    wanted = np.bincount(label[order[:num]], minlength=len(classes))

    members: dict[int, list[int]] = {}
    for i in order.tolist():
        members.setdefault(int(block[i]), []).append(i)
    missing, taken = wanted.tolist(), []
    for rows in members.values():
        counts: dict[int, int] = {}
        for i in rows:
            counts[int(label[i])] = counts.get(int(label[i]), 0) + 1
        if sum(abs(missing[k] - c) - abs(missing[k]) for k, c in counts.items()) < 0:
            taken += rows
            for k, c in counts.items():
                missing[k] -= c
    if not taken:
        smallest = min(len(rows) for rows in members.values())
        groups = "the only group has" if len(names) == 1 else f"the smallest of {len(names)} groups has"
        raise DataError(
            f"{name.replace('/', '.')}: {num} images can't be taken without cutting a group (near duplicates, a patient): "
            f"{groups} {smallest} images; add others, or give split.keep_near_duplicates_together=false if it is near duplicates"
        )
    return np.sort(pool[taken])


def near_test(roles: dict[str, np.ndarray], near: Int64[np.ndarray, " n"]) -> dict[str, np.ndarray]:
    """Role -> the test rows that have a near duplicate in it: none where near duplicates are kept together."""
    test = roles["test"]
    return {role: test[np.isin(near[test], near[rows])] for role, rows in roles.items() if role != "test"}


def _count(role: str, value: float | None, num: int) -> int:
    """A fraction below 1 is a share of `num`, anything else a whole number; -1 is what is left over."""
    if value is None:
        return -1
    if value < 1:
        return round(value * num)
    if value != int(value):
        raise DataError(f"split.{role}={value}: a count must be whole; give {int(value)}, or a fraction below 1")
    return int(value)


def _check_sizes(
    config: SplitConfig, num_test: int, num: dict[str, int], num_given_test: int, num_free: int, has_given: bool
) -> None:
    if num_test > num_given_test:
        place = "the given test split has" if has_given else "there are"
        raise DataError(f"split.test={config.test:g}: asks for {num_test} images, and {place} {num_given_test}; ask for fewer")
    left = num_free - (0 if has_given else num_test)
    asked = sum(max(count, 0) for count in num.values())
    if asked > left:
        raise DataError(f"split: {_shown(config)} ask for {asked} images beside test, and {left} are left; ask for fewer")


def _shown(config: SplitConfig) -> str:
    given = {role: value for role in ROLES if (value := getattr(config, role)) is not None and (role != "pool" or value)}
    return ", ".join(f"{role}={value:g}" for role, value in given.items())
