"""Which step's weights are kept: of all looks at a network in training, the best that neither overfits nor copies."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from synthgen.shapes import Float

COLLAPSED, IN_A_ROW, SPREAD = 0.25, 2, 0.2
"""Recall below this share of its best earlier value, in so many looks in a row, is a collapse; a best below `SPREAD` tells
nothing. A held-out loss above that of the first look, in as many after a better one, is a divergence."""


@dataclass(frozen=True)
class Finding:
    """One look at a network in training.

    Attributes:
        step: training steps done.
        values: what was measured, for the record: FID, recall, copy share, held-out loss, ...
        score: what is compared between looks; lower is better, infinite if the network can't be used.
        losses: held-out loss of each val image, if the generator has one.
        stop: why training must stop here, if it must; such a look isn't kept.
    """

    step: int
    values: dict[str, float]
    score: float
    losses: Float[np.ndarray, " n"] | None = None
    stop: str = ""


@dataclass
class Choice:
    """The looks so far, and the weights of the one that is kept.

    A look can be kept if it has no reason to stop and its held-out loss isn't worse than the lowest so far by more than
    `tolerance` standard errors of their paired difference over images. Of those, the lowest score is kept; the later at
    equal scores.

    Attributes:
        tolerance: see above.
        findings: all looks.
        kept: number of the look whose weights are kept; None before the first that could be.
        weights: its weights.
        stopped: why training ended before its time; empty if it didn't.
    """

    tolerance: float = 2.0
    findings: list[Finding] = field(default_factory=list)
    kept: int | None = None
    weights: dict[str, Any] = field(default_factory=dict)
    stopped: str = ""

    def consider(self, finding: Finding, weights: Callable[[], dict[str, Any]]) -> None:
        """Takes note of a look, keeps its weights if they are the best so far, and decides whether training goes on."""
        self.findings.append(finding)
        usable = not finding.stop and math.isfinite(finding.score)
        if usable and self._generalises(finding):
            kept = None if self.kept is None else self.findings[self.kept]
            if kept is None or not self._generalises(kept) or finding.score <= kept.score:
                self.kept, self.weights = len(self.findings) - 1, weights()
        self.stopped = finding.stop or self._collapsed() or self._diverged()

    def _generalises(self, finding: Finding) -> bool:
        if finding.losses is None:
            return True
        best = min((f.losses for f in self.findings if f.losses is not None), key=lambda losses: float(losses.mean()))
        worse = finding.losses - best
        error = worse.std(ddof=1) / math.sqrt(len(worse)) if len(worse) > 1 else 0.0
        return float(worse.mean()) <= self.tolerance * float(error)

    def _collapsed(self) -> str:
        recalls = [finding.values["recall"] for finding in self.findings if "recall" in finding.values]
        best = max(recalls[:-IN_A_ROW], default=0.0)
        last = recalls[-IN_A_ROW:]
        if best < SPREAD or max(last) >= COLLAPSED * best:
            return ""
        return f"recall collapsed from {best:.2f} to {last[-1]:.2f}"

    def _diverged(self) -> str:
        if len(self.findings) > 1 and not math.isfinite(self.findings[-1].score) and self.kept is not None:
            return f"samples are not finite at step {self.findings[-1].step}"
        means = [float(finding.losses.mean()) for finding in self.findings if finding.losses is not None]
        if len(means) <= IN_A_ROW + 1 or min(means[1:-IN_A_ROW]) >= means[0] or min(means[-IN_A_ROW:]) <= means[0]:
            return ""
        return f"the held-out loss rose to {means[-1]:.3g}, above the {means[0]:.3g} of the first look"

    def state_dict(self) -> dict[str, Any]:
        """Everything, in the types that a checkpoint may hold."""
        looks = [
            {
                "step": f.step,
                "values": dict(f.values),
                "score": f.score,
                "losses": None if f.losses is None else torch.from_numpy(np.asarray(f.losses, dtype=np.float64)),
                "stop": f.stop,
            }
            for f in self.findings
        ]
        return {"looks": looks, "kept": self.kept, "weights": self.weights, "stopped": self.stopped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        self.findings = [
            Finding(f["step"], f["values"], f["score"], None if f["losses"] is None else f["losses"].numpy(), f["stop"])
            for f in state["looks"]
        ]
        self.kept, self.weights, self.stopped = state["kept"], state["weights"], state["stopped"]
