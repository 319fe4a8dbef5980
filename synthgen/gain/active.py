"""Active learning: which unlabelled images to label next."""

from __future__ import annotations

import numpy as np

from synthgen.shapes import Float


def uncertainty(guess: Float[np.ndarray, "n k"], criterion: str, draws: np.random.Generator) -> Float[np.ndarray, " n"]:
    """How little a network knows of each image: its entropy in nats, or minus its margin between the best two classes; or,
    for any other criterion, luck.

    Args:
        guess: class probabilities.
        criterion: margin, entropy or random.
        draws: for luck.
    """
    if criterion == "margin":
        two = np.sort(guess, axis=1)[:, -2:]
        return two[:, 0] - two[:, 1]
    if criterion == "entropy":
        return -(guess * np.log(np.clip(guess, 1e-12, 1))).sum(1)
    return draws.random(len(guess))


def k_center(points: np.ndarray, centres: np.ndarray, number: int) -> np.ndarray:
    """Rows of `points` that greedily cover them: each the farthest from the centres so far (Sener & Savarese 2018)."""
    nearest = np.full(len(points), np.inf)
    for centre in centres:
        nearest = np.minimum(nearest, ((points - centre) ** 2).sum(1))
    chosen: list[int] = []
    for _ in range(min(number, len(points))):
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, ((points - points[chosen[-1]]) ** 2).sum(1))
        nearest[chosen] = -1
    return np.array(chosen, dtype=np.int64)
