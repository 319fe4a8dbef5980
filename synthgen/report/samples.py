"""What the page shows of a generator's samples: grids beside real images, nearest real images, the worst of each reason."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from synthgen.report import charts
from synthgen.report.evidence import Evidence, GeneratorEvidence
from synthgen.report.sprites import Sprite, sprite
from synthgen.report.wording import num
from synthgen.types import Batch

MAX_CLASSES = 20
"""Classes whose samples are shown; the page says how many there are."""
REAL_SHOWN, KEPT_SHOWN, DROPPED_SHOWN = 6, 8, 4
NEAREST_SHOWN, WORST_SHOWN = 12, 8


class Sheets:
    """The sprites of a page; each becomes one CSS rule, however many windows show it."""

    def __init__(self) -> None:
        self._sprites: list[Sprite] = []

    def add(self, images: Sequence[Any]) -> tuple[str, Sprite]:
        """Class name and sprite of some images of one shape."""
        self._sprites.append(sprite(images))
        return f"sheet-{len(self._sprites) - 1}", self._sprites[-1]

    def css(self) -> Markup:
        """The rules; there is nothing but numbers and base64 in them."""
        rules = [
            f".sheet-{i} .tile{{width:{s.width:g}px;height:{s.height:g}px;background-image:url({s.url});"
            f"background-size:{s.sheet_width:g}px auto;image-rendering:{'pixelated' if s.pixelated else 'auto'}}}"
            for i, s in enumerate(self._sprites)
        ]
        return Markup("\n".join(rules))


@dataclass(frozen=True)
class Tile:
    """One image on the page: where it lies in its sprite, how it is marked, what is said of it."""

    position: str
    mark: str
    title: str
    caption: str = ""


def generator_view(evidence: Evidence, generator: GeneratorEvidence, sheets: Sheets) -> dict[str, Any]:
    """Everything the page shows of one generator."""
    candidates, gate = generator.candidates, generator.gate
    view: dict[str, Any] = {
        "name": generator.name,
        "gate": gate,
        "counts": gate.reason_counts() if gate else {},
        "curves": charts.losses(generator.losses) if any(generator.losses.values()) else None,
        "last_losses": {name: pairs[-1] for name, pairs in generator.losses.items() if pairs},
        "looks": generator.looks,
        "num_candidates": len(candidates) if candidates else 0,
        "grid": None,
        "nearest": None,
        "worst": [],
    }
    if candidates is not None and len(candidates):
        view["grid"] = sample_grid(evidence, generator, candidates, sheets)
        view["nearest"] = nearest_pairs(evidence, generator, candidates, sheets)
        view["worst"] = worst_offenders(generator, candidates, sheets)
    return view


def sample_grid(evidence: Evidence, generator: GeneratorEvidence, candidates: Batch, sheets: Sheets) -> dict[str, Any]:
    """Per class: the first real images, the first samples that were kept and the first that were dropped."""
    dropped = generator.gate.dropped if generator.gate else {}
    real = evidence.train
    if real is not None and real.images.shape[1:] != candidates.images.shape[1:]:
        real = None
    names = _class_names(evidence, candidates)
    images: list[Any] = []
    rows: list[tuple[str, list[tuple[str, list[tuple[int, str, str]]]]]] = []
    for label, name in list(enumerate(names))[:MAX_CLASSES]:
        groups: list[tuple[str, list[tuple[int, str, str]]]] = []
        for mark, batch, limit in (
            ("real", real, REAL_SHOWN),
            ("kept", candidates, KEPT_SHOWN),
            ("dropped", candidates, DROPPED_SHOWN),
        ):
            if batch is None:
                continue
            of_class = [i for i in range(len(batch)) if batch.labels[i] == label]
            chosen = [i for i in of_class if mark == "real" or (batch.keys[i] in dropped) == (mark == "dropped")][:limit]
            tiles = [(len(images) + n, mark, _said(generator, batch.keys[i], mark)) for n, i in enumerate(chosen)]
            images += [batch.images[i] for i in chosen]
            groups.append((mark, tiles))
        rows.append((name, groups))
    if not images:
        return {"rows": [], "sheet": "", "num_classes": len(names), "real": real is not None}
    sheet, sheet_sprite = sheets.add(images)
    placed = [
        (name, [(mark, [Tile(sheet_sprite.position(n), m, title) for n, m, title in tiles]) for mark, tiles in groups])
        for name, groups in rows
    ]
    return {"rows": placed, "sheet": sheet, "num_classes": len(names), "real": real is not None}


def nearest_pairs(evidence: Evidence, generator: GeneratorEvidence, candidates: Batch, sheets: Sheets) -> dict[str, Any] | None:
    """The samples that lie closest to a training image, each beside it."""
    train = evidence.train
    if train is None or train.images.shape[1:] != candidates.images.shape[1:]:
        return None
    where, at = {key: i for i, key in enumerate(candidates.keys)}, {key: i for i, key in enumerate(train.keys)}
    found = sorted((d, key, near) for key, (near, d) in generator.scores.nearest.items() if key in where and near in at)
    closest = [entry for entry in found if math.isfinite(entry[0])][:NEAREST_SHOWN]
    if not closest:
        return None
    names = _class_names(evidence, candidates)
    sheet, sheet_sprite = sheets.add(
        [image for _, key, near in closest for image in (candidates.images[where[key]], train.images[at[near]])]
    )
    pairs = []
    for n, (distance, key, near) in enumerate(closest):
        mark = "dropped" if generator.gate and key in generator.gate.dropped else "kept"
        pairs.append(
            {
                "sample": Tile(sheet_sprite.position(2 * n), mark, _said(generator, key, mark)),
                "real": Tile(sheet_sprite.position(2 * n + 1), "real", near),
                "distance": distance,
                "key": key,
                "near": near,
                "classes": (_name(names, candidates.labels[where[key]]), _name(names, train.labels[at[near]])),
                "reasons": generator.gate.dropped.get(key, ()) if generator.gate else (),
            }
        )
    return {"sheet": sheet, "pairs": pairs}


def worst_offenders(generator: GeneratorEvidence, candidates: Batch, sheets: Sheets) -> list[dict[str, Any]]:
    """For each drop reason the samples that are furthest beyond its threshold."""
    if generator.gate is None:
        return []
    where = {key: i for i, key in enumerate(candidates.keys)}
    blocks = []
    for reason, count in generator.gate.reason_counts().items():
        keys = [key for key, why in generator.gate.dropped.items() if reason in why and key in where]
        signal = _signal_of(reason, generator.gate.thresholds)
        limit = generator.gate.thresholds.get(signal, math.nan)
        values = {key: generator.scores.signals.get(key, {}).get(signal, math.nan) for key in keys}
        if all(math.isfinite(value) for value in values.values()) and math.isfinite(limit):
            keys.sort(key=lambda key: (-abs(values[key] - limit), key))
        keys = keys[:WORST_SHOWN]
        if not keys:
            continue
        sheet, sheet_sprite = sheets.add([candidates.images[where[key]] for key in keys])
        tiles = [
            Tile(sheet_sprite.position(n), "dropped", _said(generator, key, "dropped"), num(values[key], 3))
            for n, key in enumerate(keys)
        ]
        blocks.append({"reason": reason, "count": count, "signal": signal, "threshold": limit, "sheet": sheet, "tiles": tiles})
    return blocks


def _signal_of(reason: str, signals: Collection[str]) -> str:
    """The signal that a reason speaks of: "off support" of `support`."""
    plain = reason.lower().replace("-", "_").replace(" ", "_")
    return plain if plain in signals else next((signal for signal in signals if signal.lower() in plain), plain)


def _said(generator: GeneratorEvidence, key: str, mark: str) -> str:
    """What a pointer over an image shows."""
    why = generator.gate.dropped.get(key, ()) if generator.gate else ()
    signals = [f"{name} {num(value, 3)}" for name, value in generator.scores.signals.get(key, {}).items()]
    return "\n".join([f"{key}: {mark}" + (f" ({', '.join(why)})" if why else ""), *signals])


def _class_names(evidence: Evidence, batch: Batch) -> tuple[str, ...]:
    if evidence.spec is not None:
        return evidence.spec.class_names
    return tuple(str(label) for label in range(int(batch.labels.max(initial=0)) + 1))


def _name(names: tuple[str, ...], label: int) -> str:
    return names[label] if 0 <= label < len(names) else "no label"
