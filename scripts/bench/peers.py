"""One measurement of `metrics.py`: one metric by one package, on features in files, in a process of its own.

    python peers.py measure fid torch-fidelity FOLDER [--device cuda]   seconds, peak memory, values
    python peers.py kinds prdc ours FOLDER                              ours: seconds by kind of operation
    python peers.py features 10000 512 FOLDER                           real.npy and synthetic.npy, float32
    python peers.py peak 64 [--device cuda]                             FLOP/s of matrix products

It runs in the peers' environment too, so it imports nothing of synthgen but where ours is measured. The answer is JSON
on the last line of stdout. Each contender takes both feature sets and gives the call to be timed: what stands before
the call (imports, the form that the package's own extraction leaves its features in) isn't timed.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.util
import json
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

K = 5
SUBSETS, SUBSET_SIZE = 100, 1000  # the peers' own defaults for KID
ROWS_IN_MEMORY = 20_000  # above it torch-fidelity is asked to save memory: its n x n distances don't fit otherwise
Call = Callable[[], dict[str, float]]


# FID ------------------------------------------------------------------------------------------------------------------


def ours_fid(real: Tensor, synthetic: Tensor) -> Call:
    from synthgen.metrics.frechet import frechet_distance

    return lambda: {"fid": frechet_distance(real, synthetic)}


def torchmetrics_fid(real: Tensor, synthetic: Tensor) -> Call:
    _stand_in_for_torchvision()  # it loads torch-fidelity where that is installed
    from torchmetrics.image.fid import FrechetInceptionDistance

    def call() -> dict[str, float]:
        metric = FrechetInceptionDistance(feature=_given_features(real.shape[1])).to(real.device)
        for features, is_real in ((real, True), (synthetic, False)):
            for batch in features.split(1000):
                metric.update(batch, real=is_real)
        return {"fid": float(metric.compute())}

    return call


def torch_fidelity_fid(real: Tensor, synthetic: Tensor) -> Call:
    _stand_in_for_torchvision()
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    def call() -> dict[str, float]:
        statistics = fid_features_to_statistics(synthetic), fid_features_to_statistics(real)
        return {"fid": fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]}

    return call


def clean_fid(real: Tensor, synthetic: Tensor) -> Call:
    _stand_in_for_torchvision()
    from cleanfid.fid import fid_from_feats

    return lambda: {"fid": float(fid_from_feats(real.numpy(), synthetic.numpy()))}


def pytorch_fid(real: Tensor, synthetic: Tensor) -> Call:
    _stand_in_for_torchvision()
    from pytorch_fid.fid_score import calculate_frechet_distance

    activations = [features.double().numpy() for features in (real, synthetic)]  # its get_activations gives float64

    def call() -> dict[str, float]:  # the lines of its calculate_activation_statistics
        (mean_1, cov_1), (mean_2, cov_2) = ((np.mean(act, axis=0), np.cov(act, rowvar=False)) for act in activations)
        return {"fid": float(calculate_frechet_distance(mean_1, cov_1, mean_2, cov_2))}

    return call


def reference_fid(real: Tensor, synthetic: Tensor) -> Call:
    """float64 by another way than ours: nuclear norm of the rows' product if n <= d, else tr (R S_2 R)^(1/2), R = S_1^(1/2)."""

    def call() -> dict[str, float]:
        x, y = real.double().numpy(), synthetic.double().numpy()
        shift = x.mean(axis=0) - y.mean(axis=0)
        x, y = ((z - z.mean(axis=0)) / np.sqrt(len(z) - 1) for z in (x, y))
        if min(len(x), len(y)) <= x.shape[1]:
            root = np.linalg.svd(x @ y.T, compute_uv=False).sum()
        else:
            values, vectors = np.linalg.eigh(x.T @ x)
            half = (vectors * np.sqrt(values.clip(0))) @ vectors.T
            root = np.sqrt(np.linalg.eigvalsh(half @ (y.T @ y) @ half).clip(0)).sum()
        return {"fid": float(shift @ shift + (x * x).sum() + (y * y).sum() - 2 * root)}

    return call


# Precision, recall, density, coverage -----------------------------------------------------------------------------------


def ours_prdc(real: Tensor, synthetic: Tensor) -> Call:
    from synthgen.metrics.prdc import prdc

    return lambda: dict(prdc(real, synthetic, k=K)._asdict())


def prdc_package(real: Tensor, synthetic: Tensor) -> Call:
    from prdc import compute_prdc

    return lambda: {name: float(v) for name, v in compute_prdc(real.numpy(), synthetic.numpy(), nearest_k=K).items()}


def torch_fidelity_prc(real: Tensor, synthetic: Tensor) -> Call:
    _stand_in_for_torchvision()
    from torch_fidelity.metric_prc import prc_features_to_metric

    def call() -> dict[str, float]:  # the first argument is the generated set
        few = len(real) <= ROWS_IN_MEMORY
        found = prc_features_to_metric(synthetic, real, prc_neighborhood=K, save_cpu_ram=not few, verbose=False)
        return {"precision": found["precision"], "recall": found["recall"]}

    return call


def faiss_coverage(real: Tensor, synthetic: Tensor) -> Call:
    import faiss

    faiss.omp_set_num_threads(1)

    def call() -> dict[str, float]:
        searched = [faiss.IndexFlatL2(real.shape[1]) for _ in range(2)]
        for index, features in zip(searched, (real, synthetic), strict=True):
            index.add(features.numpy())
        radius = searched[0].search(real.numpy(), K + 1)[0][:, -1]
        nearest = searched[1].search(real.numpy(), 1)[0][:, 0]
        return {"coverage": float((nearest < radius).mean())}

    return call


def sklearn_coverage(real: Tensor, synthetic: Tensor) -> Call:
    from sklearn.neighbors import NearestNeighbors

    def call() -> dict[str, float]:
        x, y = real.numpy(), synthetic.numpy()
        radius = NearestNeighbors(n_neighbors=K + 1, algorithm="brute").fit(x).kneighbors(x)[0][:, -1]
        nearest = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(y).kneighbors(x)[0][:, 0]
        return {"coverage": float((nearest < radius).mean())}

    return call


def reference_prdc(real: Tensor, synthetic: Tensor) -> Call:
    def call() -> dict[str, float]:
        centre = real.double().mean(dim=0)
        x, y = real.double() - centre, synthetic.double() - centre
        radius_x, radius_y = (torch.cat([tile.kthvalue(K + 1).values for tile in _squared(z, z)]) for z in (x, y))
        balls, covered, recalled = torch.zeros(len(y)), 0, 0
        for number, tile in enumerate(_squared(x, y)):
            inside = tile < radius_x[1000 * number :][: len(tile), None]
            balls += inside.sum(dim=0)
            covered += int(inside.any(dim=1).sum())
            recalled += int((tile < radius_y).any(dim=1).sum())
        density = balls.double().sum().item() / (K * len(y))
        precision = (balls > 0).double().mean().item()
        return {"precision": precision, "recall": recalled / len(x), "density": density, "coverage": covered / len(x)}

    return call


def _squared(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """Squared distances from 1,000 rows of x after the other to all of y."""
    for rows in x.split(1000):
        yield rows.square().sum(dim=1)[:, None] + y.square().sum(dim=1) - 2 * rows @ y.T


# KID ----------------------------------------------------------------------------------------------------------------------


def ours_kid(real: Tensor, synthetic: Tensor) -> Call:
    from synthgen.metrics.kernel import kid

    return lambda: {"kid": kid(real, synthetic)}


def torchmetrics_kid(real: Tensor, synthetic: Tensor, subsets: int = SUBSETS, size: int = SUBSET_SIZE) -> Call:
    _stand_in_for_torchvision()
    from torchmetrics.image.kid import KernelInceptionDistance

    def call() -> dict[str, float]:
        torch.manual_seed(0)
        given = _given_features(real.shape[1])
        metric = KernelInceptionDistance(feature=given, subsets=subsets, subset_size=min(size, len(real))).to(real.device)
        metric.update(real, real=True)
        metric.update(synthetic, real=False)
        return {"kid": float(metric.compute()[0])}

    return call


def torch_fidelity_kid(real: Tensor, synthetic: Tensor, subsets: int = SUBSETS, size: int = SUBSET_SIZE) -> Call:
    _stand_in_for_torchvision()
    from torch_fidelity.metric_kid import kid_features_to_metric

    def call() -> dict[str, float]:
        asked = {"kid_subsets": subsets, "kid_subset_size": min(size, len(real)), "verbose": False}
        return {"kid": kid_features_to_metric(synthetic, real, **asked)["kernel_inception_distance_mean"]}

    return call


def clean_kid(real: Tensor, synthetic: Tensor, subsets: int = SUBSETS, size: int = SUBSET_SIZE) -> Call:
    _stand_in_for_torchvision()
    from cleanfid.fid import kernel_distance

    def call() -> dict[str, float]:
        np.random.seed(0)  # noqa: NPY002  (it draws from numpy's global generator)
        return {"kid": kernel_distance(real.numpy(), synthetic.numpy(), num_subsets=subsets, max_subset_size=size)}

    return call


def _of_all_rows(of_subsets: Callable[..., Call]) -> Callable[[Tensor, Tensor], Call]:
    """The peer asked for one subset of all rows: the full estimate, in n x n memory."""
    return lambda real, synthetic: of_subsets(real, synthetic, subsets=1, size=len(real))


def reference_kid(real: Tensor, synthetic: Tensor) -> Call:
    def mean(x: Tensor, y: Tensor, pairs: int, omitted: float = 0.0) -> float:
        total = sum(((rows @ y.T / x.shape[1] + 1) ** 3).sum().item() for rows in x.split(1000))
        return (total - omitted) / pairs

    def call() -> dict[str, float]:
        x, y = real.double(), synthetic.double()
        n, m = len(x), len(y)
        own = [((z.square().sum(dim=1) / z.shape[1] + 1) ** 3).sum().item() for z in (x, y)]
        within = mean(x, x, n * (n - 1), own[0]) + mean(y, y, m * (m - 1), own[1])
        return {"kid": within - 2 * mean(x, y, n * m)}

    return call


# ----------------------------------------------------------------------------------------------------------------------------


CONTENDERS: dict[str, dict[str, Callable[[Tensor, Tensor], Call]]] = {
    "fid": {
        "ours": ours_fid,
        "torchmetrics": torchmetrics_fid,
        "torch-fidelity": torch_fidelity_fid,
        "clean-fid": clean_fid,
        "pytorch-fid": pytorch_fid,
        "reference": reference_fid,
    },
    "prdc": {
        "ours": ours_prdc,
        "prdc": prdc_package,
        "torch-fidelity": torch_fidelity_prc,
        "faiss": faiss_coverage,
        "scikit-learn": sklearn_coverage,
        "reference": reference_prdc,
    },
    "kid": {
        "ours": ours_kid,
        "torchmetrics": torchmetrics_kid,
        "torch-fidelity": torch_fidelity_kid,
        "clean-fid": clean_kid,
        "torchmetrics, all rows": _of_all_rows(torchmetrics_kid),
        "torch-fidelity, all rows": _of_all_rows(torch_fidelity_kid),
        "clean-fid, all rows": _of_all_rows(clean_kid),
        "reference": reference_kid,
    },
}


def _given_features(num_features: int) -> torch.nn.Module:
    """torchmetrics' custom feature extractor: what it is given are features already."""
    module = torch.nn.Identity()
    module.num_features = num_features  # type: ignore[assignment]
    return module


class _Empty(types.ModuleType):
    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def _stand_in_for_torchvision() -> None:
    """Peers import torchvision for their extractors; what is measured here never uses it, so empty classes will do."""
    if "torchvision" not in sys.modules and importlib.util.find_spec("torchvision") is not None:
        return
    parts = ("", ".datasets", ".models", ".models.inception", ".models.utils", ".transforms", ".transforms.functional")
    for name in (f"torchvision{part}" for part in parts):
        if name not in sys.modules:
            module = sys.modules[name] = _Empty(name)
            module.__spec__ = importlib.machinery.ModuleSpec(name, None)
            module.__path__ = []
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, module)


def measure(metric: str, contender: str, folder: Path, device: str) -> dict:
    """Seconds (of the CPU, or of the GPU's clock), peak memory above the features in MiB, and the values.

    A call on 64 rows goes first: what is loaded and started at first use isn't timed.
    """
    setup = CONTENDERS[metric][contender]
    real, synthetic = load(folder, device)
    setup(real[:64, :8].contiguous(), synthetic[:64, :8].contiguous())()
    call = setup(real, synthetic)
    if device != "cpu":
        return measure_on_gpu(call)
    _write_if_there("/proc/self/clear_refs", "5")  # the peak starts from what is in memory now
    before = _memory_mib("VmRSS")
    wall, cpu = time.perf_counter(), time.process_time()
    values = call()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = _memory_mib("VmHWM")
    return {"s": cpu, "wall_s": wall, "peak_mib": None if peak is None or before is None else peak - before, "values": values}


def measure_on_gpu(call: Call) -> dict:
    call()  # the first call at this size picks kernels and fills the allocator
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    wall = time.perf_counter()
    start.record()
    values = call()
    end.record()
    torch.cuda.synchronize()
    wall = time.perf_counter() - wall
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20
    return {"s": start.elapsed_time(end) / 1e3, "wall_s": wall, "peak_mib": peak, "values": values}


class ByKind(TorchDispatchMode):
    """Adds up the seconds within each kind of operation. torch's own profiler has wall-clock time alone."""

    PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "_linear_pointwise")

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self.clock = clock
        self.seconds = {"products": 0.0, "decompositions": 0.0, "rest": 0.0}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__.rstrip("_")
        kind = "products" if name in self.PRODUCTS else "decompositions" if "linalg" in name else "rest"
        started = self.clock()
        result = func(*args, **(kwargs or {}))
        self.seconds[kind] += self.clock() - started
        return result


def kinds(metric: str, contender: str, folder: Path, device: str) -> dict:
    """Seconds within matrix products, within decompositions, and in all else (what isn't torch's, too)."""

    def clock() -> float:
        if device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    real, synthetic = load(folder, device)
    setup = CONTENDERS[metric][contender]
    with ByKind(clock):  # its first use loads much of torch
        setup(real[:64, :8].contiguous(), synthetic[:64, :8].contiguous())()
    call = setup(real, synthetic)
    with ByKind(clock) as mode:
        started = clock()
        call()
        total = clock() - started
    products, decompositions = mode.seconds["products"], mode.seconds["decompositions"]
    return {"products": products, "decompositions": decompositions, "rest": total - products - decompositions}


def load(folder: Path, device: str) -> tuple[Tensor, Tensor]:
    real, synthetic = (torch.from_numpy(np.load(folder / f"{side}.npy")) for side in ("real", "synthetic"))
    return real.to(device), synthetic.to(device)


def features(n: int, d: int, folder: Path) -> dict:
    """Writes both sets: rectified, correlated over a decaying spectrum, ten modes; the synthetic one slightly off."""
    folder.mkdir(parents=True, exist_ok=True)
    law = np.random.Generator(np.random.Philox(key=[0, 0]))
    width = min(d, 128)
    modes = law.standard_normal((10, width), dtype=np.float32)
    mixing = (law.standard_normal((width, d)) / np.sqrt(1 + np.arange(width))[:, None]).astype(np.float32)
    for number, side in enumerate(("real", "synthetic")):
        out = np.lib.format.open_memmap(folder / f"{side}.npy", mode="w+", dtype=np.float32, shape=(n, d))
        for start in range(0, n, 5000):
            rng = np.random.Generator(np.random.Philox(key=[1 + number, start]))
            rows = min(5000, n - start)
            latent = modes[rng.integers(10, size=rows)] + rng.standard_normal((rows, width), dtype=np.float32)
            x = (latent * (1 - 0.02 * number) + 0.02 * number) @ mixing
            out[start : start + rows] = np.maximum(x + 0.3 * rng.standard_normal((rows, d), dtype=np.float32), 0)
        out.flush()
    return {}


def peak(d: int, device: str) -> dict[str, float]:
    """FLOP/s of large square products in float32 and float64, and of tiles at width d in float32: the best of several.

    float32 is the faster of `torch.mm` (also given alone, as what the peers use) and ours.
    """
    from synthgen.metrics.products import product

    def best(m: int, width: int, dtype: torch.dtype, times: int, multiply: Callable = torch.mm) -> float:
        drawn = torch.Generator(device).manual_seed(0)  # random numbers: a GPU multiplies constants at a higher clock
        a = torch.rand((m, width), dtype=dtype, device=device, generator=drawn)
        b = torch.rand((m, width), dtype=dtype, device=device, generator=drawn)
        b = b.T if multiply is torch.mm else b
        seconds = []
        for _ in range(4):
            started = time.perf_counter() if device != "cpu" else time.process_time()
            for _ in range(times):
                multiply(a, b)
            if device != "cpu":
                torch.cuda.synchronize()
            seconds.append((time.perf_counter() if device != "cpu" else time.process_time()) - started)
        return 2 * m * m * width * times / min(seconds)

    side = 2048 if device == "cpu" else 8192
    tile = 1024 if device == "cpu" else 8192
    plain = best(side, side, torch.float32, 1)
    times = max(1, 2048 // d)
    return {
        "torch.mm": plain,
        "float32": max(plain, best(side, side, torch.float32, 1, product)),
        "float64": best(side, side, torch.float64, 1),
        "float32_tile": max(best(tile, d, torch.float32, times), best(tile, d, torch.float32, times, product)),
    }


def _memory_mib(field: str) -> float | None:
    """VmRSS (now) or VmHWM (the peak); ru_maxrss would carry over the parent's peak."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    return int(next(line for line in status.read_text().splitlines() if line.startswith(field)).split()[1]) / 1024


def _write_if_there(path: str, text: str) -> None:
    if Path(path).exists():
        Path(path).write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("role", choices=["measure", "kinds", "features", "peak"])
    parser.add_argument("what", nargs="+")
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    if asked.device == "cpu" and asked.role != "features":
        torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = False
    what = asked.what
    if asked.role == "features":
        answer = features(int(what[0]), int(what[1]), Path(what[2]))
    elif asked.role == "peak":
        answer = peak(int(what[0]), asked.device)
    else:
        run = measure if asked.role == "measure" else kinds
        answer = run(what[0], what[1], Path(what[2]), asked.device)
    print("\n" + json.dumps(answer))


if __name__ == "__main__":
    main()
