"""Source -> audit and split, and a split as the other jobs see it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import yaml

from synthgen import storage
from synthgen.config.schema import RunConfig
from synthgen.data import audit as auditing
from synthgen.data import sources, splits
from synthgen.errors import DataError, StorageError
from synthgen.jobs.order import Order
from synthgen.shards import raw
from synthgen.types import Batch, DatasetSpec


def audit(order: Order, out: Path) -> None:
    """Source -> out/audit (report.json) and out/split (train, val, reference, test, dataset.json)."""
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
                    labelled = role != "reference" or config.split.reference_labelled
                    raw.write(split.path(f"{role}.parquet"), [splits.role_batch(real, rows[role], labelled)], real.spec)
                split.write_json("dataset.json", real.spec.to_json())
    if made or not (out / "config.yaml").is_file():
        write_config(order, out)
    found = storage.read_json(out / "audit" / "report.json")
    progress.finish("audit", auditing.one_line(found))


def write_config(order: Order, out: Path) -> None:
    """All settings of a run, for the jobs that follow it."""
    text = yaml.safe_dump(order.config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    storage.write_text(out / "config.yaml", text)


def _refuse_inside(out: Path, config: RunConfig) -> None:
    """An output folder among the images would be taken for a class the next time."""
    root = Path(config.data.path).resolve() if config.data.path else None
    if root is not None and root.is_dir() and (out.resolve() == root or root in out.resolve().parents):
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

    def role(self, role: str) -> Batch:
        """The images of a role. `test` is for the end of the gain study alone."""
        return raw.read(self.folder / f"{role}.parquet", self.spec)


def source_of(path: Path, config: RunConfig) -> RunConfig:
    """The settings with `data` pointing to `path`, its kind told by what it is.

    Raises:
        DataError: no such file or folder.
    """
    if str(path) == "digits" and not path.exists():
        return config.model_copy(
            update={"data": config.data.model_copy(update={"source": "digits", "path": None, "size_px": None})}
        )
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
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
        (folder / storage.STAGE_MANIFEST).is_file() and (folder / "dataset.json").is_file() for folder in (path, path / "split")
    )
