"""An export -> a new one without some of its samples: a request to withdraw them, or what hangs on a real image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from synthgen import elsewhere, storage
from synthgen.errors import ConfigError, DataError
from synthgen.jobs.exports import conclude
from synthgen.jobs.order import Order
from synthgen.shards import manifest, read
from synthgen.shards.encode import CHUNK, Encoded, info_from
from synthgen.shards.write import Limits, write
from synthgen.types import ShardManifest


def drop(order: Order, export: Path, keys: Iterable[str], near: Iterable[str], out: Path) -> ShardManifest:
    """Writes an export anew without the samples named; the image files of the others are copied byte for byte.

    Args:
        order: `export.shard_size`, `export.shard_mb` and `export.to` are read; formats and encoding are those of the export.
            At `export.to` this export itself is replaced, and what went is removed there.
        export: folder with MANIFEST.json, which stays as it is.
        keys: of samples.
        near: keys of real images: every sample whose nearest real image is one of these goes too.
        out: of the new export.

    Raises:
        DataError: a key that the export doesn't hold, a damaged export, or nothing left.
        ConfigError: nothing to drop was named.
    """
    wanted, real = set(keys), set(near)
    if not wanted and not real:
        raise ConfigError("nothing to drop: name keys of samples, --keys FILE, or --near KEY of a real image")
    whole = manifest.verify(export)
    if out.resolve().is_relative_to(export.resolve()):
        raise ConfigError(f"{out}: lies in the export, which stays as it is; give --out another folder")
    gone = _going(export, whole, wanted, real)
    config = order.config.export
    settings = {"keys": sorted(wanted), "near": sorted(real), "shard_size": config.shard_size, "shard_mb": config.shard_mb}
    with order.stage(out, "export", settings, {"export": storage.sha256_file(export / manifest.NAME)}) as work:
        if not work.done:
            order.progress.start("drop", whole.num_samples)
            counts = dict.fromkeys(whole.spec.class_names, 0)
            formats = list(dict.fromkeys(shard.format for shard in whole.shards))
            limits = Limits(config.shard_size, config.shard_mb * 2**20)
            shards, files = write(out, _kept(order, export, whole, set(gone), counts), whole.spec, formats, limits)
            conclude(
                out,
                replace(
                    whole,
                    shards=tuple(shards),
                    files=tuple(files),
                    num_samples=whole.num_samples - len(gone),
                    class_counts=counts,
                    dropped=(*whole.dropped, *gone),
                ),
            )
    made = manifest.read(out)
    if config.to:
        mine = storage.sha256_file(export / manifest.NAME)
        elsewhere.push(out, config.to, manifest.paths(made), manifest.listed, order.restart, mine)
    order.progress.finish("drop", f"{len(gone)} of {whole.num_samples} samples left out, {made.num_samples} written to {out}")
    return made


def _going(export: Path, whole: ShardManifest, wanted: set[str], real: set[str]) -> list[str]:
    """Keys of the samples to leave out, in the order of the export."""
    gone, found, near = [], set(), set()
    for member in read.members(export, whole):
        nearest = info_from(member.about, f"{export}: sample {member.key!r}").nearest
        if member.key in wanted or nearest in real:
            gone.append(member.key)
            found.add(member.key)
            near.add(nearest)
    for what, names in (("sample", wanted - found), ("sample whose nearest real image is", real - near)):
        if names:
            shown = ", ".join(repr(name) for name in sorted(names)[:5])
            raise DataError(f"{export}: holds no {what} {shown}{' ...' if len(names) > 5 else ''}; nothing was dropped")
    if len(gone) == whole.num_samples:
        raise DataError(f"{export}: every one of its {len(gone)} samples would go, so there is nothing to write; delete it")
    return gone


def _kept(order: Order, export: Path, whole: ShardManifest, gone: set[str], counts: dict[str, int]) -> Iterator[list[Encoded]]:
    """The samples that stay, with their image files as they are; counts them by class."""
    rest: list[Encoded] = []
    for member in read.members(export, whole):
        order.progress.advance("drop")
        if member.key in gone:
            continue
        counts[whole.spec.class_names[int(member.label)]] += 1
        info = info_from(member.about, f"{export}: sample {member.key!r}")
        rest.append(Encoded(member.key, int(member.label), member.image, member.file, member.extension, info))
        if len(rest) == CHUNK:
            yield rest
            rest = []
    if rest:
        yield rest
