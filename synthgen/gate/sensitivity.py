"""What the per-sample checks would find: recall on copies and defects planted in this very data set."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from synthgen.config.schema import GateConfig
from synthgen.data.planted import COPIES, DEFECTS
from synthgen.gate.evidence import Evidence, Real
from synthgen.gate.filters import Calibration, dropped
from synthgen.gate.signals import COPY_REASONS, FAMILIES, find
from synthgen.randomness import stream
from synthgen.types import Batch, Planted

Witness = Callable[[Batch], Evidence]
"""Images with labels -> all that the gate looks at."""


def planted_recall(
    real: Real, calibration: Calibration, config: GateConfig, witness: Witness, seed: int, device: str = "cpu"
) -> tuple[Planted, ...]:
    """Share found of each kind of copy of up to `config.planted` train images, and of each defect in as many val images.

    A copy counts as found if it is dropped as a copy; a defect if it is dropped for any reason. Val images aren't among
    those that candidates are compared with, as a new sample's source wouldn't be. The key of a planted image is that of
    its source and the kind, "real-000017|flip", so that a witness can leave out networks that learnt from the source.

    Args:
        real: each set in its role.
        calibration: the thresholds.
        config: how many are planted; 0 plants none.
        witness: takes features, probabilities and defect scores of new images.
        seed: of the choice of images, and of what is planted.
        device: where copies are searched.
    """
    if not config.planted:
        return ()
    found = []
    for kind, plants, source in (("copy", COPIES, real.train), ("defect", DEFECTS, real.val)):
        chosen = np.sort(stream(seed, f"gate planted {kind}").permutation(len(source))[: config.planted])
        images, labels = source.images[chosen], source.labels[chosen]
        px = min(images.shape[2:])
        possible = {name: plant for name, plant in plants.items() if not (name.startswith("shift 2") and px < 6)}
        if not len(chosen):
            continue
        changed = [plant(images, stream(seed, f"gate planted {name}")) for name, plant in possible.items()]
        keys = tuple(f"{source.features.keys[row]}|{name}" for name in possible for row in chosen)
        evidence = witness(Batch(np.concatenate(changed), np.tile(labels, len(possible)), keys))
        bad = dropped(evidence, find(evidence, real, config, device).signals, calibration)
        for i, name in enumerate(possible):
            own = slice(i * len(chosen), (i + 1) * len(chosen))
            reasons = {FAMILIES[family].reason: float(values[own].mean()) for family, values in bad.items() if values[own].any()}
            counted = [
                values[own] for family, values in bad.items() if kind == "defect" or FAMILIES[family].reason in COPY_REASONS
            ]
            share = float(np.any(counted, axis=0).mean())
            found.append(Planted("copy" if kind == "copy" else "defect", name, len(chosen), share, reasons))
    return tuple(found)
