"""Source -> audit and split, and a split as the other jobs see it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from synthgen import storage
from synthgen.config.schema import RunConfig
from synthgen.data import audit as auditing
from synthgen.data import sources, splits
from synthgen.data.names import shown
from synthgen.errors import DataError, StorageError
from synthgen.jobs.order import Order
from synthgen.shards import raw
from synthgen.types import UNLABELLED, Batch, DatasetSpec


def audit(order: Order, out: Path) -> None:
    """Source -> out/audit (report.json) and out/split: an image file a role, and what is known of the images.

    Beside train, val, reference, test and pool (.parquet) the split holds dataset.json; hidden.json, the labels that roles
    without labels have in the source; near.json, the test images with a near duplicate in another role; blocks.json, which
    images of a role aren't independent; and groups.json where images carry groups.
    """
    config, progress = order.config, order.progress
    _refuse_inside(out, config)
    settings = order.section("data", "split", "audit")
    inputs = {"source": sources.digest(config.data)}
    progress.start("audit", 2)
    made = False
    with ExitStack() as stack:
        audited = stack.enter_context(order.stage(out / "audit", "audit", settings, inputs))
        split = stack.enter_context(order.stage(out / "split", "split", settings, inputs))
        if made := not (audited.done and split.done):
            real = sources.load(config.data)
            near = auditing.near_duplicates(real.batch.images, config.audit.near_duplicate)
            rows = splits.split(real, config.split, near)
            progress.advance("audit")
            report = auditing.audit(real, rows, config.audit, config.split, near)
            if not audited.done:
                audited.write_json("report.json", report.to_json())
            if not split.done:
                for role in splits.ROLES:
                    batch = splits.role_batch(real, rows[role], role not in hiding(config))
                    raw.write(split.path(f"{role}.parquet"), [batch], real.spec)
                for name, content in _known(real, rows, near, config).items():
                    split.write_json(name, content)
    if made or not (out / "config.yaml").is_file():
        write_config(order, out)
    found = storage.read_json(out / "audit" / "report.json")
    progress.finish("audit", auditing.one_line(found))


def hiding(config: RunConfig) -> tuple[str, ...]:
    """The roles whose labels nobody is to know."""
    return ("pool",) if config.split.reference_labelled else ("pool", "reference")


def _known(real: sources.RealImages, rows: dict[str, np.ndarray], near: np.ndarray, config: RunConfig) -> dict[str, Any]:
    """File name -> what the split says of its images beside their pixels."""
    keys, labels, groups = real.batch.keys, real.batch.labels.tolist(), real.groups
    hidden = [i for role in hiding(config) for i in rows[role].tolist() if labels[i] != UNLABELLED]
    twins = splits.near_test(rows, near)
    blocks = splits.leakage_blocks(real, near if config.split.keep_near_duplicates_together else None)
    found = {
        "dataset.json": real.spec.to_json(),
        "hidden.json": {keys[i]: labels[i] for i in hidden},
        "near.json": {role: [keys[i] for i in taken.tolist()] for role, taken in twins.items()},
        "blocks.json": {role: np.unique(blocks[taken], return_inverse=True)[1].tolist() for role, taken in rows.items()},
    }
    if groups is None:
        return found
    return found | {"groups.json": {role: [groups[i] for i in taken.tolist()] for role, taken in rows.items()}}


def write_config(order: Order, out: Path) -> None:
    """All settings of a run, for the jobs that follow it."""
    text = yaml.safe_dump(order.config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    storage.write_text(out / "config.yaml", text)


def _refuse_inside(out: Path, config: RunConfig) -> None:
    """An output folder among the images would be taken for a class the next time."""
    if not config.data.path or not os.path.isdir(config.data.path):
        return
    root = Path(config.data.path).resolve()
    if out.resolve() == root or root in out.resolve().parents:
        raise StorageError(f"{out}: lies inside the images' own folder {config.data.path}; choose an --out elsewhere")


@dataclass(frozen=True)
class Split:
    """A finished split folder."""

    folder: Path
    spec: DatasetSpec
    digest: str

    @staticmethod
    def open(folder: Path) -> Split:
        """The split in `folder`, or in its subfolder split/.

        Raises:
            StorageError: neither is a finished split, or a file of it was changed since.
        """
        folder = folder / "split" if (folder / "split").is_dir() else folder
        if storage.read_manifest(folder)["stage"] != "split":
            raise StorageError(f"{folder}: not a split; make one with `synthgen audit SOURCE --out FOLDER`")
        storage.check_folder(folder)
        spec = DatasetSpec.from_json(storage.read_json(folder / "dataset.json"), str(folder / "dataset.json"))
        return Split(folder, spec, storage.folder_digest(folder))

    @property
    def source(self) -> str:
        """Digest of the files that the images come from, whatever size they were brought to."""
        return str(storage.read_manifest(self.folder)["inputs"].get("source", ""))

    @property
    def origin(self) -> str:
        """`source`, and which classes were taken of it: what `share_images` compares."""
        data = storage.read_manifest(self.folder)["config"].get("data", {})
        classes = data.get("classes")
        if classes is None or data.get("unlabelled") is not None:  # unlabelled images may be of any class
            return self.source
        return f"{self.source} {','.join(sorted(storage.sha256_json(name)[:12] for name in classes))}"

    def role(self, role: str) -> Batch:
        """The images of a role; those of pool, and of a reference without labels, are `UNLABELLED`.

        `test` is for the end of the gain study alone.
        """
        return raw.read(self.folder / f"{role}.parquet", self.spec)

    def on_disk(self, role: str) -> raw.OnDisk:
        """As `role`, the pixels left in their file: for what takes rows as it needs them."""
        return raw.on_disk(self.folder / f"{role}.parquet", self.spec)

    def hidden(self) -> dict[str, int]:
        """Key -> true label of the pool images, and of the reference where it is unlabelled, that have one in the source.

        Only a simulation may open it, one that says in the report that it did: the oracle (more real labels), active
        learning (the label that was asked for), a learning curve beyond train. No generator, gate, or arm that is compared.

        Raises:
            DataError: a split of an older version, or a label that isn't one of the classes.
        """
        found = self._about("hidden.json")
        for key, label in found.items():
            if not (isinstance(label, int) and 0 <= label < self.spec.num_classes):
                raise DataError(
                    f"{self.folder / 'hidden.json'}: {key} has the label {label!r}, and there are {self.spec.num_classes} "
                    "classes; make the split again"
                )
        return dict(found)

    def labelled(self, role: str) -> Batch:
        """The images of a role with their hidden labels, where they have one: for simulations alone, see `hidden`."""
        batch, known = self.role(role), self.hidden()
        pairs = zip(batch.keys, batch.labels.tolist(), strict=True)
        labels = [known.get(key, label) if label == UNLABELLED else label for key, label in pairs]
        return replace(batch, labels=np.array(labels, dtype=np.int64))

    def groups(self, role: str) -> tuple[str | None, ...]:
        """The group (patient, recording) of each image of a role, in its order; None for each where there are no groups."""
        if not self.spec.grouped:
            return (None,) * len(self.on_disk(role))
        return tuple(self._about("groups.json")[role])

    def blocks(self, role: str) -> np.ndarray:
        """Number of the block of each image of a role, in its order: those of one group, and near duplicates, share theirs.

        Near duplicates count where the split keeps them together; see `splits.leakage_blocks`.
        """
        return np.array(self._about("blocks.json")[role], dtype=np.int64)

    def near_train(self, roles: Sequence[str] = ("train",)) -> frozenset[str]:
        """Keys of the test images that have a near duplicate in `roles`: none where the split keeps near duplicates together."""
        found = self._about("near.json")
        return frozenset(key for role in roles for key in found[role])

    def _about(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        if not path.is_file():
            raise DataError(f"{path}: no such file, the split is of an older version; make it again with `synthgen audit`")
        found: dict[str, Any] = storage.read_json(path)
        return found


def share_images(one: str, other: str) -> bool:
    """Whether splits of these `Split.origin` may have images in common: the same files, and not two disjoint sets of classes."""
    (files, _, classes), (other_files, _, other_classes) = one.partition(" "), other.partition(" ")
    apart = classes and other_classes and not set(classes.split(",")) & set(other_classes.split(","))
    return bool(files) and files == other_files and not apart


def source_of(path: Path, config: RunConfig) -> RunConfig:
    """The settings with `data` pointing to `path`, its kind told by what it is.

    Raises:
        DataError: no such file or folder.
    """
    there = os.path.exists(path)  # a Path's own methods raise for a name that is too long
    if str(path) == "digits" and not there:
        return config.model_copy(
            update={"data": config.data.model_copy(update={"source": "digits", "path": None, "size_px": None})}
        )
    if not there:
        raise DataError(f"'{shown(str(path), 300)}': no such file or folder; give the path of your images")
    if is_split(path):
        raise DataError(f"{path}: already a folder of `synthgen audit`; give it to the other jobs as --real")
    tables = path.suffix == ".parquet" or any(path.glob("*.parquet")) or any(path.glob("data/*.parquet"))
    kind = "npz" if path.suffix == ".npz" else "parquet" if tables else "folder"
    return config.model_copy(update={"data": config.data.model_copy(update={"source": kind, "path": str(path)})})


def open_or_make_split(order: Order, real: Path, out: Path) -> Split:
    """The split in a folder of `audit`; for a source of images it is made in `out` first."""
    if is_split(real):
        return Split.open(real)
    audit(order, out)
    return Split.open(out)


def is_split(path: Path) -> bool:
    """Whether `path` is a folder that `audit` made."""
    return any(
        os.path.isfile(folder / storage.STAGE_MANIFEST) and os.path.isfile(folder / "dataset.json")
        for folder in (path, path / "split")
    )
