"""What the page shows of a generator's samples: grids beside real images, nearest real images, the worst of each reason.

What is shown is a selection; only its pixels are read.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from synthgen.errors import SynthgenError
from synthgen.report import charts
from synthgen.report.evidence import Evidence, GeneratorEvidence, Images
from synthgen.report.styles import Styles
from synthgen.report.wording import num, words


class Detail(NamedTuple):
    """How much of the images is shown.

    Attributes:
        classes: whose samples are shown; the page says how many there are.
        near: whether each sample in the grids carries the training image nearest to it.
        size_px: larger images are shrunk to this.
    """

    classes: int
    near: bool
    size_px: int


DETAILS = (Detail(20, True, 96), Detail(20, False, 64), Detail(10, False, 64), Detail(10, False, 48), Detail(5, False, 32))
"""The first whose images fit into `MOST_BYTES` is taken."""
MOST_BYTES = 4_500_000
"""Of all images in a page, as base64: it stays below 10 MB beside plotly's 4.8."""
REAL_SHOWN, KEPT_SHOWN, DROPPED_SHOWN = 6, 8, 4
NEAREST_SHOWN = {"kept": 12, "dropped": 6}
WORST_SHOWN = 8


@dataclass(frozen=True)
class Tile:
    """One image on the page.

    Attributes:
        key: of the image.
        mark: real, kept or dropped.
        of: name of its class.
        place: class that shows it, see `Styles.place`.
        reasons: why it was dropped.
        signals: signal -> (figure, threshold or NaN, whether it was dropped for it).
        near: key of the nearest training image, distance, and the class that shows it ("" where it isn't shown).
        caption: what stands under it.
    """

    key: str
    mark: str
    of: str
    place: str = ""
    reasons: tuple[str, ...] = ()
    signals: Mapping[str, tuple[float, float, bool]] = field(default_factory=dict)
    near: tuple[str, float, str] | None = None
    caption: str = ""

    @property
    def title(self) -> str:
        """What a pointer or the keyboard's focus on it shows, a line each."""
        lines = [f"{self.key}, {self.of}: {self.mark}" + (f" ({', '.join(self.reasons)})" if self.reasons else "")]
        for name, (value, limit, beyond) in self.signals.items():
            bound = f", threshold {num(limit, 3)}" if math.isfinite(limit) else ""
            lines.append(f"{words(name)} {num(value, 3)}{bound}{', beyond it' if beyond else ''}")
        if self.near:
            lines.append(f"nearest training image {self.near[0]}, distance {num(self.near[1], 3)}")
        return "\n".join(lines)


def generator_view(
    evidence: Evidence, generator: GeneratorEvidence, styles: Styles, detail: Detail, missing: list[str]
) -> dict[str, Any]:
    """Everything the page shows of one generator; pixels that can't be read are added to `missing`."""
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
        "nearest": [],
        "worst": [],
    }
    if candidates is not None and len(candidates):
        try:
            view["grid"] = sample_grid(evidence, generator, candidates, styles, detail)
            view["nearest"] = nearest_pairs(evidence, generator, candidates, styles)
            view["worst"] = worst_offenders(evidence, generator, candidates, styles)
        except SynthgenError as error:
            missing.append(str(error).replace(f"{evidence.folder}/", ""))
    return view


def sample_grid(
    evidence: Evidence, generator: GeneratorEvidence, candidates: Images, styles: Styles, detail: Detail = DETAILS[0]
) -> dict[str, Any]:
    """Per class: the first real images, the first samples that were kept and the first that were dropped."""
    dropped = generator.gate.dropped if generator.gate else {}
    real, names = _comparable(evidence, candidates), _class_names(evidence, candidates)
    chosen: list[tuple[str, list[tuple[str, list[int]]]]] = []
    for label, name in list(enumerate(names))[: detail.classes]:
        rows = np.flatnonzero(candidates.labels == label).tolist()
        groups = [] if real is None else [("real", np.flatnonzero(real.labels == label)[:REAL_SHOWN].tolist())]
        groups.append(("kept", _first((i for i in rows if candidates.keys[i] not in dropped), KEPT_SHOWN)))
        groups.append(("dropped", _first((i for i in rows if candidates.keys[i] in dropped), DROPPED_SHOWN)))
        chosen.append((name, groups))
    shown = [i for _, groups in chosen for mark, rows in groups if mark != "real" for i in rows]
    of_real = [i for _, groups in chosen for mark, rows in groups if mark == "real" for i in rows]
    if real is not None and detail.near:
        near = (generator.scores.nearest_to(candidates.keys[i]) for i in shown)
        of_real = list(dict.fromkeys([*of_real, *(real.at[found[0]] for found in near if found and found[0] in real.at)]))
    view: dict[str, Any] = {"rows": [], "sheet": "", "num_classes": len(names), "real": real is not None}
    if not shown and not of_real:
        return view
    sheet, sprite = styles.sheet([*candidates.pixels(shown), *(real.pixels(of_real) if real else [])])
    place = {i: styles.place(sprite, n) for n, i in enumerate(shown)}
    real_place = {i: styles.place(sprite, len(shown) + n) for n, i in enumerate(of_real)}

    def tile(mark: str, name: str, i: int) -> Tile:
        if mark == "real" and real is not None:
            return Tile(real.keys[i], "real, from train", name, f"real {real_place[i]}")
        return _tile(generator, candidates.keys[i], mark, name, place[i], real, real_place)

    view["rows"] = [(name, [(mark, [tile(mark, name, i) for i in found]) for mark, found in groups]) for name, groups in chosen]
    return view | {"sheet": sheet}


def nearest_pairs(
    evidence: Evidence, generator: GeneratorEvidence, candidates: Images, styles: Styles
) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """(mark, sheet, pairs): of the kept samples, then of the dropped ones, those that lie closest to a training image."""
    train, scores = _comparable(evidence, candidates), generator.scores
    if train is None or not scores.nearest:
        return []
    dropped, names = generator.gate.dropped if generator.gate else {}, _class_names(evidence, candidates)
    keys = list(scores.at)
    order = [keys[i] for i in np.argsort(scores.distance, kind="stable") if np.isfinite(scores.distance[i])]
    known = [key for key in order if key in candidates.at and scores.nearest[scores.at[key]] in train.at]
    blocks = []
    for mark, limit in NEAREST_SHOWN.items():
        chosen = _first((key for key in known if (key in dropped) == (mark == "dropped")), limit)
        if not chosen:
            continue
        near = [scores.nearest[scores.at[key]] for key in chosen]
        samples = candidates.pixels([candidates.at[key] for key in chosen])
        sheet, sprite = styles.sheet([*samples, *train.pixels([train.at[key] for key in near])])
        pairs = []
        for n, (key, real) in enumerate(zip(chosen, near, strict=True)):
            of, of_real = (_name(names, images.labels[images.at[k]]) for images, k in ((candidates, key), (train, real)))
            pairs.append(
                {
                    "sample": _tile(generator, key, mark, of, styles.place(sprite, n)),
                    "real": Tile(real, "real, from train", of_real, f"real {styles.place(sprite, len(chosen) + n)}"),
                    "distance": float(scores.distance[scores.at[key]]),
                }
            )
        blocks.append((mark, sheet, pairs))
    return blocks


def worst_offenders(evidence: Evidence, generator: GeneratorEvidence, candidates: Images, styles: Styles) -> list[dict[str, Any]]:
    """For each drop reason the samples that are furthest beyond its threshold, each with its nearest training image."""
    if generator.gate is None:
        return []
    names, thresholds = _class_names(evidence, candidates), generator.gate.thresholds
    train = _comparable(evidence, candidates)
    blocks = []
    for reason, count in generator.gate.reason_counts().items():
        keys = [key for key, why in generator.gate.dropped.items() if reason in why and key in candidates.at]
        signal = signal_of(reason, thresholds)
        limit, column = thresholds.get(signal, math.nan), generator.scores.signals.get(signal)
        rows = [generator.scores.at.get(key, -1) for key in keys]
        if column is not None and math.isfinite(limit) and all(row >= 0 for row in rows):
            far = np.abs(column[rows] - limit)
            keys = [keys[i] for i in np.argsort(-far, kind="stable")] if np.isfinite(far).all() else keys
        keys = keys[:WORST_SHOWN]
        if not keys:
            continue
        near = [found[0] for key in keys if train and (found := generator.scores.nearest_to(key)) and found[0] in train.at]
        of_real = list(dict.fromkeys(train.at[key] for key in near)) if train else []
        pixels = candidates.pixels([candidates.at[key] for key in keys])
        sheet, sprite = styles.sheet([*pixels, *(train.pixels(of_real) if train else [])])
        real_place = {i: styles.place(sprite, len(keys) + n) for n, i in enumerate(of_real)}
        tiles = []
        for n, key in enumerate(keys):
            value = generator.scores.of(key).get(signal, math.nan)
            of = _name(names, candidates.labels[candidates.at[key]])
            tiles.append(_tile(generator, key, "dropped", of, styles.place(sprite, n), train, real_place, num(value, 3)))
        blocks.append({"reason": reason, "count": count, "signal": signal, "threshold": limit, "sheet": sheet, "tiles": tiles})
    return blocks


def signal_of(reason: str, signals: Collection[str]) -> str:
    """The signal that a reason speaks of: "off support" of `support`."""
    plain = reason.lower().replace("-", "_").replace(" ", "_")
    return plain if plain in signals else next((signal for signal in signals if signal.lower() in plain), plain)


def _tile(
    generator: GeneratorEvidence,
    key: str,
    mark: str,
    of: str,
    place: str,
    train: Images | None = None,
    real_place: Mapping[int, str] | None = None,
    caption: str = "",
) -> Tile:
    gate, found = generator.gate, generator.scores.nearest_to(key)
    reasons = tuple(gate.dropped.get(key, ())) if gate else ()
    thresholds = gate.thresholds if gate else {}
    beyond = {signal_of(reason, thresholds) for reason in reasons}
    signals = {n: (v, thresholds.get(n, math.nan), n in beyond) for n, v in generator.scores.of(key).items()}
    row = train.at.get(found[0], -1) if train and found else -1
    near = (*found, (real_place or {}).get(row, "")) if found else None
    return Tile(key, mark, of, f"{mark} {place}", reasons, signals, near, caption)


def _first(found: Iterable[Any], limit: int) -> list[Any]:
    return [each for each, _ in zip(found, range(limit), strict=False)]


def _comparable(evidence: Evidence, candidates: Images) -> Images | None:
    """The training images, if they have the candidates' shape."""
    train = evidence.train
    return train if train is not None and train.shape == candidates.shape else None


def _class_names(evidence: Evidence, images: Images) -> tuple[str, ...]:
    if evidence.spec is not None:
        return evidence.spec.class_names
    return tuple(str(label) for label in range(int(images.labels.max(initial=0)) + 1))


def _name(names: tuple[str, ...], label: int) -> str:
    return names[label] if 0 <= label < len(names) else "no label"
