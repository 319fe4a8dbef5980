"""The torchmetrics modules: the value of the plain functions, however batches and processes share the rows."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Metric, MetricCollection

from synthgen.errors import ConfigError, DataError
from synthgen.metrics import modules
from synthgen.metrics.diversity import vendi
from synthgen.metrics.frechet import frechet_distance
from synthgen.metrics.infinity import fid_infinity
from synthgen.metrics.kernel import cmmd, kid, mmd_rbf
from synthgen.metrics.prdc import prdc

D = 8

EVERY: dict[str, tuple[Callable[[], Metric], Callable[[Tensor, Tensor], float]]] = {
    "fid": (lambda: modules.FrechetDistance(D), frechet_distance),
    "kid": (modules.KernelDistance, kid),
    "kid of degree 2": (lambda: modules.KernelDistance(degree=2, coef=0.5), lambda x, y: kid(x, y, degree=2, coef=0.5)),
    "rbf": (modules.RBFDistance, mmd_rbf),
    "biased rbf": (lambda: modules.RBFDistance(3.0, unbiased=False), lambda x, y: mmd_rbf(x, y, 3.0, unbiased=False)),
    "cmmd": (modules.CMMD, cmmd),
    "recall": (lambda: modules.PrecisionRecallDensityCoverage(k=3), lambda x, y: prdc(x, y, 3).recall),
    "fid infinity": (modules.FrechetInfinity, lambda x, y: fid_infinity(x, y).value),
    "vendi": (modules.Vendi, lambda x, y: vendi(y)),
}


def rows(n: int = 130, m: int = 110, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.normal(size=(n, D)) + 5).to(dtype), torch.from_numpy(1.3 * rng.normal(size=(m, D)) + 5.2).to(
        dtype
    )


def value(metric: Metric) -> float:
    computed = metric.compute()
    return float(computed["recall"] if isinstance(computed, dict) else computed)


def fill(metric: Metric, real: Tensor, synthetic: Tensor, batch: int) -> Metric:
    for part in real.split(batch):
        metric.update(part, real=True)
    for part in synthetic.split(batch):
        metric.update(part, real=False)
    return metric


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("batch", [1, 37, 200])
def test_a_module_gives_the_value_of_its_function(name: str, batch: int) -> None:
    make, function = EVERY[name]
    x, y = rows()
    metric = fill(make(), x, y, batch)
    assert value(metric) == pytest.approx(function(x, y), rel=1e-9)
    assert value(pickle.loads(pickle.dumps(metric))) == value(metric)
    metric.reset()
    assert value(fill(metric, y, x, batch)) == pytest.approx(function(y, x), rel=1e-9)


@pytest.mark.parametrize("name", EVERY)
def test_two_halves_merge_into_the_whole(name: str) -> None:
    make, function = EVERY[name]
    x, y = rows()
    whole = fill(make(), x[:50], y[:20], 40)
    whole.merge_state(fill(make(), x[50:], y[20:], 40))
    assert value(whole) == pytest.approx(function(x, y), rel=1e-9)


@pytest.mark.parametrize("name", EVERY)
def test_calling_a_module_adds_the_batch(name: str) -> None:
    make, function = EVERY[name]
    x, y = rows()
    metric = make()
    assert metric(x, real=True) is None
    assert metric(y, real=False) is None
    assert value(metric) == pytest.approx(function(x, y), rel=1e-9)


def test_which_way_is_better() -> None:
    better = {name: make().higher_is_better for name, (make, _) in EVERY.items()}
    assert {name for name, higher in better.items() if higher} == {"recall", "vendi"}
    assert {name for name, higher in better.items() if higher is False} == set(EVERY) - {"recall", "vendi"}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_a_side_without_rows_is_named(name: str) -> None:
    make, _ = EVERY[name]
    x, y = rows()
    with pytest.raises(DataError, match=r"no (real|synthetic) rows: call update\(..., real=(True|False)\) first"):
        make().compute()
    one_sided = make()
    one_sided.update(x, real=True)
    with pytest.raises(DataError, match=r"no synthetic rows: call update\(..., real=False\) first"):
        one_sided.compute()
    one_sided.update(y, real=False)
    value(one_sided)


def test_bad_batches_are_refused_when_they_come() -> None:
    x, _ = rows()
    metric = modules.FrechetDistance(D)
    metric.update(x, real=True)
    x[3, 1] = torch.nan
    with pytest.raises(DataError, match=r"a batch of synthetic features: 1 of 130 rows hold NaN.* row 3"):
        metric.update(x, real=False)
    with pytest.raises(DataError, match="features of 5 dimensions, num_features is 8"):
        metric.update(x[:, :5].nan_to_num(), real=False)
    with pytest.raises(DataError, match="images need an extractor"):
        metric.update(torch.zeros((2, 3, 8, 8), dtype=torch.uint8), real=False)
    with pytest.raises(DataError, match="no synthetic rows"):  # none of them was kept
        metric.compute()
    with pytest.raises(ConfigError, match="num_features=512"):
        modules.FrechetDistance()


def test_moments_stay_small_and_exact_far_from_zero() -> None:
    """4 d rows at a time become moments, so the state doesn't grow; an offset of 10^4 costs float64 nothing."""
    x, y = rows(1000, 900)
    metric = fill(modules.FrechetDistance(D), x + 1e4, y + 1e4, 50)
    assert sum(map(len, metric.real_features)) < 4 * D + 50
    assert int(metric.real_moments[0]) + sum(map(len, metric.real_features)) == 1000
    assert value(metric) == pytest.approx(frechet_distance(x, y), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_features_are_widened(dtype: torch.dtype) -> None:
    x, y = rows(dtype=dtype)
    assert value(fill(modules.KernelDistance(), x, y, 50)) == pytest.approx(kid(x.double(), y.double()), rel=1e-5)


class Pixels(nn.Module):
    """uint8 images -> 8 features, with dropout that only a forgotten eval() would show."""

    num_features = D

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 16, D, bias=False)
        nn.init.normal_(self.layer.weight, generator=torch.Generator().manual_seed(0))
        self.dropout = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> Tensor:
        return self.dropout(self.layer(images.flatten(1).float() / 255))


def test_images_go_through_the_extractor() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (90, 3, 4, 4)).astype(np.uint8))
    network = Pixels()
    metric = modules.FrechetDistance(extractor=network).train()
    fill(metric, images[:50], images[50:] // 2, 20)
    with torch.no_grad():
        features = network.eval()(images[:50]), network(images[50:] // 2)
    assert value(metric) == pytest.approx(frechet_distance(*features), rel=1e-5)
    assert not any(weight.requires_grad for weight in metric.parameters())


def test_a_collection_of_all() -> None:
    x, y = rows()
    collection = MetricCollection({name.replace(" ", "_"): make() for name, (make, _) in EVERY.items()})
    for real, part in ((True, x), (False, y[:60]), (False, y[60:])):
        collection.update(part, real=real)
    found = collection.compute()
    for name, (_, function) in EVERY.items():
        key = "recall" if name == "recall" else name.replace(" ", "_")
        assert float(found[key]) == pytest.approx(function(x, y), rel=1e-9), name


# Lightning


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*isinstance\\(treespec, LeafSpec\\)")
def test_lightning_logs_the_epoch_and_resets(tmp_path: Path) -> None:
    import pytorch_lightning as pl  # not above: the processes below import this file, and don't need it

    class Judge(pl.LightningModule):
        """Logs two metrics of an epoch as a user would."""

        def __init__(self) -> None:
            super().__init__()
            self.fid = modules.FrechetDistance(extractor=Pixels())
            self.kid = modules.KernelDistance(extractor=Pixels())

        def validation_step(self, batch: list[Tensor], index: int) -> None:
            for metric in (self.fid, self.kid):
                metric(batch[0], real=True)
                metric(batch[0] // 2, real=False)
            self.log("fid", self.fid, on_step=False, on_epoch=True)
            self.log("kid", self.kid, on_step=False, on_epoch=True)

    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (60, 3, 4, 4)).astype(np.uint8))
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    judge = Judge()
    for use in (images, images[:40]):
        (logged,) = trainer.validate(judge, DataLoader(TensorDataset(use), batch_size=16), verbose=False)
        with torch.no_grad():
            features = [judge.fid.extractor.eval()(part) for part in (use, use // 2)]
        assert logged["fid"] == pytest.approx(frechet_distance(*features), rel=1e-4)
        assert logged["kid"] == pytest.approx(kid(*features), rel=1e-4)


# Two processes


def part_of(rank: int, x: Tensor, y: Tensor, case: str) -> tuple[Tensor, Tensor]:
    """What a process sees: unequal shares, one side only, or nothing at all."""
    if case == "one side each":
        return (x, y[:0]) if rank == 0 else (x[:0], y)
    if case == "nothing on one":
        return (x[:0], y[:0]) if rank == 0 else (x, y)
    return (x[:90], y[:30]) if rank == 0 else (x[90:], y[30:])


CASES = ("unequal shares", "one side each", "nothing on one")


def one_process(rank: int, folder: str) -> None:
    import warnings

    warnings.filterwarnings("ignore", message="The ``compute`` method")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    x, y = rows()
    found: dict[str, float | str] = {}
    for case in CASES:
        for name, (make, _) in EVERY.items():
            real, synthetic = part_of(rank, x, y, case)
            metric = make()
            if len(real) or len(synthetic):
                fill(metric, real, synthetic, 25) if len(real) and len(synthetic) else metric.update(
                    real if len(real) else synthetic, real=bool(len(real))
                )
            found[f"{case}: {name}"] = value(metric)
    for name, (make, _) in EVERY.items():
        try:
            value(make())
        except DataError as error:
            found[f"nothing on both: {name}"] = str(error)
    torch.distributed.destroy_process_group()
    Path(folder, f"{rank}.pickle").write_bytes(pickle.dumps(found))


def test_two_processes_give_the_value_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_process, (str(tmp_path),), nprocs=2)
    first, second = (pickle.loads((tmp_path / f"{rank}.pickle").read_bytes()) for rank in range(2))
    assert first == second
    x, y = rows()
    for case in CASES:
        for name, (_, function) in EVERY.items():
            assert first[f"{case}: {name}"] == pytest.approx(function(x, y), rel=1e-9), (case, name)
    assert all("rows: call update" in first[f"nothing on both: {name}"] for name in EVERY)
