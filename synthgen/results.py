"""What a finished run gives: the verdict, the records behind it, and its images as torch takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import Dataset

from synthgen import jobs, storage
from synthgen.config.load import validate
from synthgen.config.schema import RunConfig
from synthgen.data.splits import ROLES
from synthgen.errors import ConfigError, DataError, did_you_mean
from synthgen.jobs.order import CANDIDATES
from synthgen.report.portable import settings_in
from synthgen.shards import raw
from synthgen.shards.pages import Rows
from synthgen.shards.table import readable
from synthgen.types import GainReport, GateReport, Verdict


class Images(Dataset[tuple[Tensor, int]]):
    """Images with labels, as torch and torchvision have them: item i is (image, label), the image (c, h, w).

    The pixels stay in their file and are read as they are asked for, so memory doesn't grow with the set.

    Attributes:
        images: uint8 (n, c, h, w); indexing it reads rows, `images[:]` all of them.
        targets: label of each, int64; -1 where it isn't known (pool, a reference without labels).
        classes: names; label i is classes[i].
        keys: the name of each, which the gate and the report use too.
    """

    def __init__(self, path: Path, keys: Sequence[str] | None = None, uint8: bool = False) -> None:
        self.uint8 = uint8
        self.classes = raw.read_spec(path).class_names
        table = raw.on_disk(path)
        with readable(path):
            known = tuple(pq.read_table(path, columns=["key"]).column("key").to_pylist())
        wanted = set(known if keys is None else keys)
        rows = np.array([row for row, key in enumerate(known) if key in wanted], np.int64)
        self.images = Rows(path, table.images.offsets[rows], table.images.image_shape)
        self.targets = table.labels[rows]
        self.keys = tuple(known[row] for row in rows.tolist())

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, int]]:
        """A batch in one read: what a `DataLoader` asks for."""
        images = torch.from_numpy(self.images[np.asarray(indices, np.int64)])
        if not self.uint8:
            images = images.float() / 255
        return [(image, int(label)) for image, label in zip(images, self.targets[indices], strict=True)]

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.images.image_shape))
        return f"Images({len(self)} of {shape}, {len(self.classes)} classes)"


@dataclass(frozen=True, repr=False)
class Run:
    """A finished run: the verdict, and what it rests on. A notebook shows it with its reasons and the table of arms.

    Attributes:
        folder: where it stands.
        about: what verdict.json holds.

    Examples:
        >>> Run(Path("outputs/digits"), {"verdict": "reject", "reasons": ["gate, gan: reject"]})
        Run('outputs/digits', verdict='reject')
    """

    folder: Path
    about: Mapping[str, Any] = field(compare=False)

    @property
    def verdict(self) -> Verdict:
        """ "use", "reject" or "insufficient evidence"."""
        found: Verdict = self.about["verdict"]
        return found

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why, one sentence each."""
        return tuple(self.about["reasons"])

    @property
    def generators(self) -> tuple[str, ...]:
        """Those that were judged."""
        return tuple(self.about["gate"])

    @property
    def best_generator(self) -> str | None:
        """The one that val chose; None if no generator has a sample that passed the gate."""
        found: str | None = self.about["best_generator"]
        return found

    @property
    def arms(self) -> dict[str, dict[str, Any]]:
        """Arm -> what it was trained on, its scores, cost and difference; `pandas.DataFrame(run.arms).T` is a table."""
        return dict(self.about["arms"])

    @property
    def report(self) -> Path:
        """The page with everything."""
        return self.folder / str(self.about["report"])

    @property
    def shards(self) -> Path | None:
        """The folder of the shards; None if nothing was exported."""
        return self.folder / str(self.about["shards"]) if self.about["shards"] else None

    @property
    def config(self) -> RunConfig:
        """All settings that it ran with."""
        path = self.folder / "config.yaml"
        try:
            return validate(settings_in(path.read_text(encoding="utf-8")), str(path))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: not readable ({error})") from None

    @property
    def gain(self) -> GainReport:
        """The gain study: every classifier, paired intervals, learning curve, controls.

        Raises:
            DataError: the gate kept nothing, so nothing was measured.
        """
        path = self.folder / "gain" / "gain.json"
        if not path.is_file():
            raise DataError(f"{self.folder}: no gain was measured; the verdict says why: {self.reasons[0]}")
        return GainReport.from_json(storage.read_json(path), str(path))

    def gate(self, generator: str | None = None) -> GateReport:
        """The gate's word on a generator; on the best one if not named, on the first where there is none."""
        name = self._named(generator)
        own = self.folder / "gate" / name
        return jobs.load_gate(own if own.is_dir() else self.folder / "gate")

    def samples(self, generator: str | None = None, kept: bool = True, uint8: bool = False) -> Images:
        """Synthetic images of a generator, of the best one if not named.

        Args:
            generator: one of `generators`.
            kept: those that passed the gate; all candidates if False.
            uint8: levels 0 to 255 instead of float32 in [0, 1].

        Raises:
            ConfigError: no such generator.
            DataError: the images were made elsewhere and aren't in this folder.
        """
        name = self._named(generator)
        path = self.folder / "candidates" / name / CANDIDATES
        if not path.is_file():
            raise DataError(f"{path}: no such file; the images of {name!r} were made elsewhere and judged where they are")
        return Images(path, self.gate(name).kept if kept else None, uint8)

    def real(self, role: str = "train", uint8: bool = False) -> Images:
        """Real images of a role: train, val, reference, pool or test.

        The test images were opened once, after the last network was trained. Choose nothing by them: a classifier that was
        chosen by its test accuracy has none.
        """
        if role not in ROLES:
            raise ConfigError(f"{role!r}: no such role{did_you_mean(role, ROLES)}; known: {', '.join(ROLES)}")
        path = self.folder / "split" / f"{role}.parquet"
        if not path.is_file():
            raise DataError(f"{path}: no such file; the real images of this run were split in another folder")
        return Images(path, uint8=uint8)

    def _named(self, generator: str | None) -> str:
        name = generator or self.best_generator or self.generators[0]
        if name not in self.generators:
            known = ", ".join(self.generators)
            raise ConfigError(f"{name!r}: no such generator{did_you_mean(name, self.generators)}; this run has {known}")
        return name

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, verdict={self.verdict!r})"

    def _repr_html_(self) -> str:
        reasons = "".join(f"<li>{escape(reason)}</li>" for reason in self.reasons)
        return (
            f"<div><p>Verdict: <strong>{escape(self.verdict)}</strong> ({escape(str(self.folder))})</p>"
            f"<ul>{reasons}</ul>{_arms_html(self.arms)}<p>Report: <code>{escape(str(self.report))}</code></p></div>"
        )


def _arms_html(arms: Mapping[str, Mapping[str, Any]]) -> str:
    """A row an arm: images, test accuracy, and the paired difference to the strongest real-only arm."""
    if not arms:
        return ""
    heads = ("arm", "real + synthetic", "test accuracy in % (95%)", "minus the strongest real-only arm (95%)")
    covers = "95% intervals over seeds and test images"
    rows = []
    for name, arm in arms.items():
        accuracy = f"{100 * arm['test_accuracy']:.2f} ({100 * arm['low']:.1f} to {100 * arm['high']:.1f})"
        difference = f"{arm['difference']:+.2f} ({arm['difference_low']:+.2f} to {arm['difference_high']:+.2f})"
        cells = (name, f"{arm['num_real']} + {arm['num_synthetic']}", accuracy, "" if arm["best_real"] else difference)
        cell = "th" if arm["best_real"] or arm["best_synthetic"] else "td"
        rows.append("<tr>" + "".join(f"<{cell}>{escape(text)}</{cell}>" for text in cells) + "</tr>")
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    return f"<table><caption>{covers}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
