"""One sample as it goes into an export: its file, and what is said of it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import orjson

from synthgen.errors import DataError
from synthgen.shapes import UInt8
from synthgen.shards import codec
from synthgen.types import Batch, DatasetSpec, SampleInfo

CHUNK = 256
"""Samples that are encoded in one go; the tail is shorter."""
AHEAD = 2
"""Chunks in flight for each thread."""

Samples = Iterable[tuple[Batch, Sequence[SampleInfo]]]


class Encoded(NamedTuple):
    """One sample, ready to be written; `file` is the bytes of an image file with this extension."""

    key: str
    label: int
    image: UInt8[np.ndarray, "c h w"]
    file: bytes
    extension: str
    info: SampleInfo


class Member(NamedTuple):
    """One sample as it stands in an export, or in another tool's archive; `file` is the image file as it was found."""

    key: str
    image: UInt8[np.ndarray, "c h w"]
    label: int | str
    about: dict[str, Any]
    file: bytes
    extension: str


def encoded(samples: Samples, spec: DatasetSpec, preset: str = "balanced", threads: int = 1) -> Iterator[list[Encoded]]:
    """The samples in chunks of `CHUNK`, whatever batches they come in; encoded on `threads` threads, in their order.

    While a chunk is written the next ones are encoded: what is in flight is `AHEAD` chunks a thread.

    Raises:
        DataError: another shape or class count than `spec` says, a key twice, or one with '.', '/', a control character
            or a leading '-' (WebDataset takes a key to end at the first '.').
    """
    checked = _rechunked(_checked(samples, spec))
    if threads == 1:
        for chunk in checked:
            yield _encode(chunk, preset)
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting: list[Future[list[Encoded]]] = []
        try:
            for chunk in checked:
                waiting.append(pool.submit(_encode, chunk, preset))
                if len(waiting) > AHEAD * threads:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()


def about_json(sample: Encoded, spec: DatasetSpec) -> bytes:
    """What an export says of one sample, as JSON in UTF-8; a figure that isn't finite is null.

    What is the same for many samples is put into words once.
    """
    key, label, _, _, _, info = sample
    before, after = _words_of(
        label, spec.class_names[label], info.generator, info.checkpoint, info.seed, info.sampler, info.licence
    )
    rest = {
        "nearest": info.nearest or None,
        "nearest_distance": info.nearest_distance,
        "reasons": info.reasons,
        "scores": info.scores,
        "soft_label": info.soft_label or None,
    }
    text = orjson.dumps(rest, option=orjson.OPT_SORT_KEYS)
    return b'{"key":%b%b%d%b%b' % (orjson.dumps(key), before, info.index, after, text[1:])


@lru_cache(4096)
def _words_of(
    label: int, class_name: str, generator: str, checkpoint: str, seed: int, sampler: str, licence: str
) -> tuple[bytes, bytes]:
    """What stands between the key and the index, and between the index and what is each sample's own."""
    head = {"label": label, "class_name": class_name, "synthetic": True, "generator": generator, "checkpoint": checkpoint}
    before = orjson.dumps(head | {"seed": seed})
    after = orjson.dumps({"sampler": sampler, "licence": licence})
    return b",%b,%b" % (before[1:-1], b'"index":'), b",%b," % after[1:-1]


def about_from(text: bytes, where: str) -> dict[str, Any]:
    """The JSON object that stands beside a sample; raises DataError where it is none."""
    try:
        found = orjson.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise DataError(f"{where}: its .json isn't a JSON object")
    return found


def info_from(data: Mapping[str, Any], where: str) -> SampleInfo:
    """What an export says of one sample; raises DataError where it says something else."""
    try:
        return SampleInfo(
            generator=str(data["generator"]),
            checkpoint=str(data["checkpoint"]),
            seed=int(data["seed"]),
            index=int(data["index"]),
            scores={str(name): _number(value) for name, value in data["scores"].items()},
            sampler=str(data["sampler"]),
            licence=str(data["licence"]),
            soft_label=tuple(float(p) for p in data["soft_label"] or ()),
            nearest=str(data["nearest"] or ""),
            nearest_distance=_number(data["nearest_distance"]),
            reasons=tuple(str(reason) for reason in data["reasons"]),
        )
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise DataError(f"{where}: not what an export of synthgen says of a sample ({type(error).__name__}: {error})") from None


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


_IS_PLAIN, _IS_NO_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9_-]{0,199}").fullmatch, re.compile(r"[-_]|.*[./\\]", re.DOTALL).match


def _checked(samples: Samples, spec: DatasetSpec) -> Iterator[tuple[Batch, Sequence[SampleInfo]]]:
    seen: set[int] = set()
    for batch, infos in samples:
        if len(infos) != len(batch):
            raise DataError(f"a batch of {len(batch)} samples comes with {len(infos)} infos")
        if len(batch) and batch.images.shape[1:] != spec.image_shape:
            raise DataError(f"samples of shape {batch.images.shape[1:]}, the data set {spec.name!r} has {spec.image_shape}")
        outside = (batch.labels < 0) | (batch.labels >= spec.num_classes)
        if outside.any():
            label, key = batch.labels[outside][0], batch.keys[int(outside.argmax())]
            raise DataError(f"sample {key!r}: label {label}, the data set {spec.name!r} has {spec.num_classes} classes")
        for key in batch.keys:
            if not _IS_PLAIN(key) and (not key or _IS_NO_NAME(key) or not key.isprintable() or len(key) > 200):
                raise DataError(
                    f"sample {key!r}: the key can't name a file of an export ('.', '/', a leading '-' or '_'); rename the image"
                )
        numbers = set(map(hash, batch.keys))  # 8 bytes a sample; that two keys share one is next to impossible
        if len(numbers) < len(batch) or not seen.isdisjoint(numbers):
            twice = next(key for i, key in enumerate(batch.keys) if hash(key) in seen or key in batch.keys[:i])
            raise DataError(f"sample {twice!r}: the key stands twice; rename the image")
        seen |= numbers
        yield batch, infos


def _rechunked(samples: Iterable[tuple[Batch, Sequence[SampleInfo]]]) -> Iterator[tuple[Batch, list[SampleInfo]]]:
    """Batches of `CHUNK` samples."""
    waiting: list[tuple[Batch, Sequence[SampleInfo]]] = []
    count = 0
    for batch, infos in samples:
        if not count and len(batch) == CHUNK:
            yield batch, list(infos)
            continue
        waiting.append((batch, infos))
        count += len(batch)
        if count < CHUNK:
            continue
        whole, known = Batch.concatenate([b for b, _ in waiting]), [info for _, i in waiting for info in i]
        last = count - count % CHUNK
        for start in range(0, last, CHUNK):
            yield whole.take(np.arange(start, start + CHUNK)), known[start : start + CHUNK]
        waiting, count = [(whole.take(np.arange(last, count)), known[last:])], count - last
    if count:
        yield Batch.concatenate([b for b, _ in waiting]), [info for _, i in waiting for info in i]


def _encode(chunk: tuple[Batch, list[SampleInfo]], preset: str) -> list[Encoded]:
    batch, infos = chunk
    extension = codec.PRESETS[preset][1]
    files = codec.encode(batch.images, preset)
    rows = zip(batch.keys, batch.labels.tolist(), batch.images, files, [extension] * len(batch), infos, strict=True)
    return list(map(Encoded._make, rows))
