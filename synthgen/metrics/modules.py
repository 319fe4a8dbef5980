"""The metrics as `torchmetrics.Metric`: update with batches, compute at the end, the same value on one device and on many.

    self.fid = FrechetDistance(num_features=512)                # in a LightningModule's __init__
    self.fid.update(features, real=True)                        # a batch
    self.log("fid", self.fid, on_step=False, on_epoch=True)     # compute over all processes, and reset, at the epoch's end

With an `extractor` the batches are images. A batch has no distance of its own, so calling a metric (`forward`) adds the
batch and gives None.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat
from torchmetrics.utilities.distributed import gather_all_tensors

from synthgen.errors import ConfigError, DataError
from synthgen.metrics.diversity import vendi
from synthgen.metrics.features import as_features
from synthgen.metrics.frechet import Moments, frechet_distance_of
from synthgen.metrics.infinity import fid_infinity
from synthgen.metrics.kernel import CMMD_SIGMA, Polynomial, cmmd, kid, mmd_rbf
from synthgen.metrics.prdc import prdc
from synthgen.shapes import Float


class _TwoSets(Metric):
    """Features of a real and of a synthetic set, all kept: O(n d) memory.

    Args:
        extractor: maps a batch of images to features (b, d); then `update` takes images, as the extractor wants them
            (uint8 for the networks of `extractors`). It is frozen, runs in eval mode, moves with the metric and is saved
            with it. Without one `update` takes features (b, d).
        kwargs: torchmetrics' own (`sync_on_compute`, `compute_with_cache`, ...).
    """

    is_differentiable = False
    full_state_update = False
    higher_is_better: bool | None = False
    real_features: list[Tensor] | Tensor
    synthetic_features: list[Tensor] | Tensor

    def __init__(self, extractor: nn.Module | None = None, **kwargs: Any) -> None:
        kwargs.setdefault("dist_sync_fn", gather_rows)
        super().__init__(**kwargs)
        self.extractor = None if extractor is None else extractor.requires_grad_(False)
        self.add_state("real_features", [], dist_reduce_fx="cat")
        self.add_state("synthetic_features", [], dist_reduce_fx="cat")

    def update(self, features: Tensor, real: bool) -> None:
        """Adds a batch of one of the two sets: features, or with an extractor images.

        Raises:
            DataError: not of shape (b, d), or values that aren't finite.
        """
        self._kept(real).append(self._extract(features, real))

    def forward(self, features: Tensor, real: bool) -> None:
        """Adds a batch, see `update`; a batch of one set has no value."""
        self.update(features, real)

    def _kept(self, real: bool) -> list[Tensor]:
        kept = self.real_features if real else self.synthetic_features
        assert isinstance(kept, list)  # a tensor only while `compute` runs
        return kept

    def _extract(self, batch: Tensor, real: bool) -> Float[Tensor, "b d"]:
        if self.extractor is not None:
            self.extractor.eval()  # also after Lightning's switch to training
            with torch.no_grad():
                batch = self.extractor(batch)
        elif not batch.is_floating_point():
            raise DataError(f"{self._name}: features are floats, found {batch.dtype}; images need an extractor")
        return as_features(batch.detach(), f"{self._name}: a batch of {'real' if real else 'synthetic'} features", dtype=None)

    def _sets(self) -> tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]]:
        return self._all(self.real_features, True), self._all(self.synthetic_features, False)

    def _all(self, kept: list[Tensor] | Tensor, real: bool) -> Float[Tensor, "n d"]:
        rows = dim_zero_cat(kept) if len(kept) else torch.zeros(0)
        if not len(rows):
            raise DataError(f"{self._name}: no {'real' if real else 'synthetic'} rows: call update(..., real={real}) first")
        return rows

    def _scalar(self, value: float) -> Float[Tensor, ""]:
        return torch.tensor(value, dtype=torch.float64, device=self.device)

    @property
    def _name(self) -> str:
        return type(self).__name__


class FrechetDistance(_TwoSets):
    """FID, `frechet.frechet_distance`, in O(d^2) memory: each set is kept as its moments, which processes merge.

    The last rows wait until there are 4 d of them: a product of many rows is faster than many of few.

    Args:
        num_features: d; that of the extractor (`extractor.num_features`) if not given.
        extractor: see `_TwoSets`.
    """

    real_moments: Tensor
    synthetic_moments: Tensor

    def __init__(self, num_features: int | None = None, extractor: nn.Module | None = None, **kwargs: Any) -> None:
        super().__init__(extractor, **kwargs)
        found = getattr(extractor, "num_features", None) if num_features is None else num_features
        if not isinstance(found, int) or found < 1:
            raise ConfigError("FrechetDistance: say how many dimensions the features have: num_features=512, say")
        self.num_features = found
        empty = torch.zeros(1 + found + found**2, dtype=torch.float64)
        self.add_state("real_moments", empty.clone(), dist_reduce_fx=_merged)
        self.add_state("synthetic_moments", empty.clone(), dist_reduce_fx=_merged)

    def update(self, features: Tensor, real: bool) -> None:
        """Adds a batch of one of the two sets, see `_TwoSets.update`."""
        super().update(features, real)
        waiting = self._kept(real)
        width = waiting[-1].shape[1]
        if width != self.num_features:
            waiting.pop()
            raise DataError(f"FrechetDistance: features of {width} dimensions, num_features is {self.num_features}")
        if sum(map(len, waiting)) >= 4 * self.num_features:
            name = "real_moments" if real else "synthetic_moments"
            setattr(self, name, _merged(torch.stack([getattr(self, name), _packed(Moments.of(torch.cat(waiting)))])))
            waiting.clear()

    def compute(self) -> Float[Tensor, ""]:
        """The distance, float64.

        Raises:
            DataError: fewer than 2 rows of a set.
        """
        real = self._moments(self.real_moments, self.real_features, True)
        return self._scalar(frechet_distance_of(real, self._moments(self.synthetic_moments, self.synthetic_features, False)))

    def _moments(self, packed: Tensor, waiting: list[Tensor] | Tensor, real: bool) -> Moments:
        if not packed[0]:
            return Moments.of(self._all(waiting, real))
        moments = _unpacked(packed)
        rows = dim_zero_cat(waiting) if len(waiting) else torch.zeros(0)
        return moments.merge(Moments.of(rows)) if len(rows) else moments


class KernelDistance(_TwoSets):
    """KID over all pairs, `kernel.kid`.

    Args:
        degree: of the polynomial kernel.
        gamma: factor of the inner product, 1 / d if None.
        coef: what is added to it.
        extractor: see `_TwoSets`.
    """

    def __init__(
        self,
        degree: int = 3,
        gamma: float | None = None,
        coef: float = 1.0,
        extractor: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(extractor, **kwargs)
        self.kernel = Polynomial(degree, gamma, coef)

    def compute(self) -> Float[Tensor, ""]:
        """The estimate, float64; see `kid` for errors."""
        kernel = self.kernel
        return self._scalar(kid(*self._sets(), degree=kernel.degree, gamma=kernel.gamma, coef=kernel.coef))


class RBFDistance(_TwoSets):
    """MMD^2 under a Gaussian kernel, `kernel.mmd_rbf`.

    Args:
        sigma: bandwidth; the real set's median distance if None.
        unbiased: the U-statistic, else the V-statistic.
        extractor: see `_TwoSets`.
    """

    def __init__(
        self, sigma: float | None = None, unbiased: bool = True, extractor: nn.Module | None = None, **kwargs: Any
    ) -> None:
        super().__init__(extractor, **kwargs)
        self.sigma, self.unbiased = sigma, unbiased

    def compute(self) -> Float[Tensor, ""]:
        """The estimate, float64; see `mmd_rbf` for errors."""
        return self._scalar(mmd_rbf(*self._sets(), self.sigma, unbiased=self.unbiased))


class CMMD(_TwoSets):
    """CMMD of CLIP embeddings, `kernel.cmmd`.

    Args:
        sigma: bandwidth.
        extractor: see `_TwoSets`.
    """

    def __init__(self, sigma: float = CMMD_SIGMA, extractor: nn.Module | None = None, **kwargs: Any) -> None:
        super().__init__(extractor, **kwargs)
        self.sigma = sigma

    def compute(self) -> Float[Tensor, ""]:
        """The distance times 1,000, float64; see `cmmd` for errors."""
        return self._scalar(cmmd(*self._sets(), sigma=self.sigma))


class PrecisionRecallDensityCoverage(_TwoSets):
    """`prdc.prdc`; in Lightning `self.log_dict(self.prdc.compute())`, since it has four values.

    Args:
        k: neighbours.
        extractor: see `_TwoSets`.
    """

    higher_is_better = True

    def __init__(self, k: int = 5, extractor: nn.Module | None = None, **kwargs: Any) -> None:
        super().__init__(extractor, **kwargs)
        self.k = k

    def compute(self) -> dict[str, Tensor]:
        """precision, recall, density and coverage, float64; see `prdc` for errors."""
        return {name: self._scalar(value) for name, value in prdc(*self._sets(), self.k)._asdict().items()}


class FrechetInfinity(_TwoSets):
    """FID extrapolated to infinite sets, `infinity.fid_infinity`, without its standard error.

    Args:
        num_points: subsets on the line.
        min_share: the smallest subset's share.
        seed: of the draws.
        extractor: see `_TwoSets`.
    """

    def __init__(
        self,
        num_points: int = 15,
        min_share: float = 0.2,
        seed: int = 0,
        extractor: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(extractor, **kwargs)
        self.num_points, self.min_share, self.seed = num_points, min_share, seed

    def compute(self) -> Float[Tensor, ""]:
        """The extrapolated distance, float64; see `fid_infinity` for errors."""
        return self._scalar(fid_infinity(*self._sets(), self.num_points, self.min_share, self.seed).value)


class Vendi(_TwoSets):
    """Effective number of different synthetic images, `diversity.vendi`.

    Real rows are left out; `update` takes them so that the metric can stand in a collection with the others.

    Args:
        q: order of the entropy.
        extractor: see `_TwoSets`.
    """

    higher_is_better = True

    def __init__(self, q: float = 1.0, extractor: nn.Module | None = None, **kwargs: Any) -> None:
        super().__init__(extractor, **kwargs)
        self.q = q

    def update(self, features: Tensor, real: bool = False) -> None:
        """Adds a batch of synthetic features or images; a real one is left out."""
        if not real:
            super().update(features, real)

    def forward(self, features: Tensor, real: bool = False) -> None:
        """Adds a batch, see `update`."""
        self.update(features, real)

    def compute(self) -> Float[Tensor, ""]:
        """The score, float64; see `vendi` for errors."""
        return self._scalar(vendi(self._all(self.synthetic_features, False), self.q))


def gather_rows(rows: Tensor, group: Any = None) -> list[Tensor]:
    """The tensors of all processes, where some may have no rows yet, and so no width and no precision of their own.

    torchmetrics' own gather waits for ever if one process holds features and another an empty state.
    """
    known = torch.tensor([rows.shape[1] if rows.ndim == 2 else 0, int(rows.dtype == torch.float64)], device=rows.device)
    torch.distributed.all_reduce(known, op=torch.distributed.ReduceOp.MAX, group=group)
    width, wide = known.tolist()
    if width:
        rows = rows.reshape(len(rows), width).to(torch.float64 if wide else rows.dtype)
    return gather_all_tensors(rows, group)


def _packed(moments: Moments) -> Float[Tensor, " s"]:
    """n, mean and scatter as one state: what merges them needs all three."""
    return torch.cat([moments.mean.new_tensor([moments.n]), moments.mean, moments.scatter.flatten()])


def _unpacked(packed: Float[Tensor, " s"]) -> Moments:
    packed = packed.double()  # whatever `set_dtype` made of it
    d = int((len(packed) - 1) ** 0.5)  # 1 + d + d^2 numbers, d^2 < d + d^2 < (d + 1)^2
    return Moments(int(packed[0]), packed[1 : 1 + d], packed[1 + d :].reshape(d, d))


def _merged(stacked: Float[Tensor, "p s"]) -> Float[Tensor, " s"]:
    """The packed moments of all processes as those of one set."""
    filled = [_unpacked(packed) for packed in stacked if packed[0]]
    if not filled:
        return stacked[0]
    total = filled[0]
    for moments in filled[1:]:
        total = total.merge(moments)
    return _packed(total)
