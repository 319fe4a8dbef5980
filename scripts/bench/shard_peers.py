"""One measurement of `shards.py`: one contender writes or reads the same images once, in a process of its own.

    python shard_peers.py write "ours|parquet|balanced|all" IMAGES.npz FOLDER
    python shard_peers.py read "webdataset" IMAGES.npz FOLDER          what `write` left in the folder
    python shard_peers.py export 10000 IMAGES.npz FOLDER               candidates on disk -> shards: time and peak memory
    python shard_peers.py overlap cpu IMAGES.npz FOLDER                generation alone, and while another thread encodes

It runs in the peers' environment too, so it imports nothing of synthgen but where ours is measured. The answer is JSON on
the last line of stdout: samples, CPU seconds (with those of child processes), wall seconds, bytes. Imports aren't timed.
A reader has to give each image as a numpy array (h w c) or (c h w), and its label; both are checked on 32 samples.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.machinery
import io
import json
import os
import resource
import shutil
import sys
import time
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

SIGNALS = ("copy", "duplicate", "label", "set", "statistics", "support")
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Clock:
    """CPU seconds of this process and its children, and wall seconds, since it was made."""

    def __init__(self) -> None:
        self.started = self._now()

    @staticmethod
    def _now() -> tuple[float, float]:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + children.ru_utime + children.ru_stime, time.perf_counter()

    def read(self) -> dict[str, float]:
        return {name: b - a for name, a, b in zip(("cpu_s", "wall_s"), self.started, self._now(), strict=True)}


# Ours -------------------------------------------------------------------------------------------------------------------


def spec_of(images: np.ndarray) -> Any:
    from synthgen.types import DatasetSpec

    return DatasetSpec("bench", images.shape[1:], CLASSES, False, "f" * 64)


def infos_of(num: int, provenance: str) -> list[Any]:
    """What is said of each sample: `all` as a run of diffusion with the whole gate says it, `few` without figures."""
    from synthgen.types import SampleInfo

    rng = np.random.default_rng(0)
    if provenance == "few":
        return [SampleInfo("diffusion", "c" * 64, 7, i) for i in range(num)]
    scores, soft = rng.random((num, len(SIGNALS))).tolist(), rng.dirichlet(np.ones(10), num).astype(np.float32).tolist()
    return [
        SampleInfo(
            "diffusion", "c" * 64, 7, i, dict(zip(SIGNALS, scores[i], strict=True)), "dpmpp_2m, 12 steps, guidance 1.0",
            "cc-by-4.0", tuple(soft[i]), f"real-{i:06d}", scores[i][0], (),
        )
        for i in range(num)
    ]  # fmt: skip


def batches(images: np.ndarray, labels: np.ndarray, infos: list[Any]) -> Iterator[tuple[Any, list[Any]]]:
    from synthgen.types import Batch

    for start in range(0, len(images), 256):
        rows = slice(start, start + 256)
        keys = tuple(f"3fa9c1d2-{i:08d}" for i in range(start, start + len(images[rows])))
        yield Batch(images[rows], labels[rows], keys), infos[rows]


def write_ours(what: str) -> Callable[..., dict[str, float]]:
    def run(images: np.ndarray, labels: np.ndarray, folder: Path) -> dict[str, float]:
        from synthgen.shards import codec
        from synthgen.shards.encode import encoded
        from synthgen.shards.write import Limits, write

        form, preset, provenance = what.split("|")
        given = preset == "given"
        preset = "balanced" if given else preset
        spec, infos = spec_of(images), infos_of(len(images), provenance)
        ready = list(encoded(batches(images, labels, infos), spec, preset)) if given else None
        clock = Clock()
        write(folder, ready or encoded(batches(images, labels, infos), spec, preset), spec, [form], Limits(10**9, 2**40))
        found = clock.read()
        if given:
            return found
        clock = Clock()  # the bound: nothing but the encoder; and what no writer that leaves a hash and a safe file can save
        for start in range(0, len(images), 256):
            codec.encode(images[start : start + 256], preset)
        found["encode_s"] = clock.read()["cpu_s"]
        data = b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())
        clock = Clock()
        hashlib.sha256(data)
        found["hash_s"] = clock.read()["cpu_s"]
        clock = Clock()
        with open(folder / "again", "wb") as file:
            for start in range(0, len(data), 2**18):
                file.write(data[start : start + 2**18])
            file.flush()
            os.fsync(file.fileno())
        found["disk_s"] = clock.read()["cpu_s"]
        (folder / "again").unlink()
        return found

    return run


def read_ours(what: str) -> Callable[..., Iterable[tuple[np.ndarray, int]]]:
    def run(folder: Path) -> Iterator[tuple[np.ndarray, int]]:
        from synthgen.shards.write import FORMATS

        form = what.split("|")[0]
        for path in sorted(p for p in (folder / form).iterdir() if p.suffix in (".tar", ".parquet", ".mds", ".npz")):
            for member in FORMATS[form].read(path, 3):
                yield member.image, member.label

    return run


def decode_bound(what: str) -> Callable[[np.ndarray, np.ndarray, Path], dict[str, float]]:
    """Nothing but decoding files that are in memory."""

    def run(images: np.ndarray, labels: np.ndarray, folder: Path) -> dict[str, float]:
        from synthgen.shards import codec

        files = [codec.encode(images[i : i + 256], what) for i in range(0, len(images), 256)]
        codec.decode(files[0], str, 3)
        clock = Clock()
        for some in files:
            codec.decode(some, str, 3)
        return clock.read()

    return run


# webdataset -------------------------------------------------------------------------------------------------------------


def write_webdataset(images: np.ndarray, labels: np.ndarray, folder: Path) -> dict[str, float]:
    """Arrays, all defaults: it encodes by Pillow."""
    import webdataset

    folder.mkdir(parents=True)
    pixels = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    clock = Clock()
    with webdataset.ShardWriter(str(folder / "%06d.tar"), verbose=0) as sink:
        for i, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
            sink.write({"__key__": f"3fa9c1d2-{i:08d}", "png": image, "cls": label})
    return clock.read()


def write_webdataset_bytes(images: np.ndarray, labels: np.ndarray, folder: Path) -> dict[str, float]:
    """PNG bytes given, and no date, which spares it a second header a member."""
    import webdataset

    folder.mkdir(parents=True)
    files = list(_pngs(images))
    clock = Clock()
    with webdataset.ShardWriter(str(folder / "%06d.tar"), verbose=0, mtime=0) as sink:
        for i, (file, label) in enumerate(zip(files, labels.tolist(), strict=True)):
            sink.write({"__key__": f"3fa9c1d2-{i:08d}", "png": file, "cls": label})
    return clock.read()


def read_webdataset(folder: Path) -> Iterator[tuple[np.ndarray, int]]:
    import webdataset

    urls = sorted(str(path) for path in folder.rglob("*.tar"))
    for sample in webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"):
        yield sample["png"], sample["cls"]


# datasets ---------------------------------------------------------------------------------------------------------------


def write_datasets(images: np.ndarray, labels: np.ndarray, folder: Path) -> dict[str, float]:
    """PIL images -> to_parquet."""
    import datasets
    from PIL import Image

    datasets.disable_progress_bars()
    folder.mkdir(parents=True)
    pils = [Image.fromarray(image) for image in images.transpose(0, 2, 3, 1)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    clock = Clock()
    datasets.Dataset.from_dict({"image": pils, "label": labels.tolist()}, features=features).to_parquet(folder / "a.parquet")
    return clock.read()


def read_datasets(folder: Path) -> Iterator[tuple[np.ndarray, int]]:
    import datasets

    datasets.disable_progress_bars()
    files = sorted(str(path) for path in folder.rglob("*.parquet"))
    cache = folder.parent / f"{folder.name}-cache"
    data = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(cache))
    data = data.select_columns(["image", "label"])
    yield None, 0  # what stands before isn't timed: it copies the file into its own cache
    for row in data:
        yield np.asarray(row["image"]), row["label"]


# MDS and litdata --------------------------------------------------------------------------------------------------------


def write_mds(images: np.ndarray, labels: np.ndarray, folder: Path) -> dict[str, float]:
    streaming = _streaming()
    from PIL import Image

    pils = [Image.fromarray(image) for image in images.transpose(0, 2, 3, 1)]
    clock = Clock()
    with streaming.MDSWriter(out=str(folder), columns={"image": "png", "label": "int"}) as sink:
        for image, label in zip(pils, labels.tolist(), strict=True):
            sink.write({"image": image, "label": label})
    return clock.read()


def read_mds(folder: Path) -> Iterator[tuple[np.ndarray, int]]:
    data = _streaming().LocalDataset(str(folder))
    for i in range(len(data)):
        sample = data[i]
        yield np.asarray(sample["image"]), sample["label"]


def write_litdata(images: np.ndarray, labels: np.ndarray, folder: Path) -> dict[str, float]:
    """Through the writer that `optimize` has in each of its processes, in this one; PIL images, stored as they are."""
    from litdata.streaming.writer import BinaryWriter
    from PIL import Image

    folder.mkdir(parents=True)
    pils = [Image.fromarray(image) for image in images.transpose(0, 2, 3, 1)]
    clock = Clock()
    sink = BinaryWriter(str(folder), chunk_bytes="64MB")
    for i, (image, label) in enumerate(zip(pils, labels.tolist(), strict=True)):
        sink[i] = {"image": image, "label": label}
    sink.done()
    sink.merge()
    return clock.read()


def read_litdata(folder: Path) -> Iterator[tuple[np.ndarray, int]]:
    import litdata

    for sample in litdata.StreamingDataset(str(folder), shuffle=False):
        yield np.asarray(sample["image"]), sample["label"]


def _streaming() -> Any:
    """mosaicml-streaming, with a stand-in for torchvision, which it imports for data sets that aren't used here."""
    import transformers.models.auto.tokenization_auto  # noqa: F401  asks whether torchvision is there

    has = {
        "torchvision": {}, "torchvision.transforms": {}, "torchvision.datasets": {"VisionDataset": object},
        "torchvision.transforms.functional": {"to_tensor": None},
    }  # fmt: skip
    for name, attributes in has.items():
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
        sys.modules[name].__dict__.update(attributes)
    import streaming

    streaming.base.util.clean_stale_shared_memory()
    return streaming


def _pngs(images: np.ndarray) -> Iterator[bytes]:
    from PIL import Image

    for image in images.transpose(0, 2, 3, 1):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        yield buffer.getvalue()


WRITE: dict[str, Callable[[np.ndarray, np.ndarray, Path], dict[str, float]]] = {
    "webdataset": write_webdataset,
    "webdataset, bytes given": write_webdataset_bytes,
    "datasets": write_datasets,
    "mds": write_mds,
    "litdata": write_litdata,
}
READ: dict[str, Callable[[Path], Iterable[tuple[np.ndarray, int]]]] = {
    "webdataset": read_webdataset,
    "datasets": read_datasets,
    "mds": read_mds,
    "litdata": read_litdata,
}


def write(what: str, images: np.ndarray, labels: np.ndarray, folder: Path) -> dict[str, float]:
    shutil.rmtree(folder, ignore_errors=True)
    name, _, rest = what.partition("|")
    run = write_ours(rest) if name == "ours" else WRITE[what]
    run(images[:256], labels[:256], folder)  # what a library does once: its imports, its tables
    shutil.rmtree(folder)
    found = run(images, labels, folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {"samples": len(images), "bytes": size, **found}


def read(what: str, images: np.ndarray, labels: np.ndarray, folder: Path) -> dict[str, float]:
    name, _, rest = what.partition("|")
    if name == "decode":
        return {"samples": len(images), **decode_bound(rest)(images, labels, folder)}
    reader = read_ours(rest) if name == "ours" else READ[name]
    for _ in range(2):  # the first time: caches, first imports within the library
        clock, count = Clock(), 0
        for image, label in reader(folder):
            if image is None:
                clock = Clock()
                continue
            if count < 32:
                expected = images[count] if image.shape == images[count].shape else images[count].transpose(1, 2, 0)
                if not (np.array_equal(image, expected) and label == labels[count]):
                    raise SystemExit(f"{what}: sample {count} isn't what was written")
            count += 1
        found = clock.read()
    if count != len(images):
        raise SystemExit(f"{what}: {count} samples of {len(images)}")
    return {"samples": count, **found}


# Whole exports ----------------------------------------------------------------------------------------------------------


def export(what: str, images: np.ndarray, labels: np.ndarray, folder: Path) -> dict[str, float]:
    """`num|formats|threads`: candidates that lie on disk, as a run leaves them, through what `synthgen export` calls."""
    import pyarrow as pa

    from synthgen.jobs import exports
    from synthgen.shards import raw
    from synthgen.shards.arrange import arranged
    from synthgen.shards.encode import encoded
    from synthgen.shards.write import Limits
    from synthgen.shards.write import write as write_shards
    from synthgen.types import Batch, SampleInfo

    size, formats, threads = what.split("|")
    num, spec, path = int(size), spec_of(images), folder / "candidates.parquet"
    shutil.rmtree(folder, ignore_errors=True)

    def made() -> Iterator[Batch]:
        for start in range(0, num, 1000):
            rows = np.arange(start, min(start + 1000, num))
            yield Batch(images[rows % len(images)], labels[rows % len(images)], tuple(f"3fa9c1d2-{i:08d}" for i in rows))

    raw.write(path, made(), spec)
    rng = np.random.default_rng(0)
    figures: dict[str, Any] = {name: rng.random(num) for name in exports.FAMILIES}
    soft = pa.FixedSizeListArray.from_arrays(pa.array(rng.random(num * 10, np.float32)), 10).cast(pa.list_(pa.float32()))
    nearest = [f"real-{i % 50_000:06d}" for i in range(num)]
    scores = pa.table(figures | {"nearest": nearest, "nearest_distance": rng.random(num), "soft_label": soft})
    del figures, nearest, soft
    before, clock = _memory_mib("VmRSS"), Clock()
    found = raw.on_disk(path, spec)
    common = SampleInfo("diffusion", "c" * 64, 7, -1, sampler="dpmpp_2m, 12 steps")
    whole = exports._Set(found.images, found.labels, raw.keys(path), None, common, {}, "")
    rows = arranged(whole.labels, 0)
    samples = exports._samples(whole, rows, scores, types.SimpleNamespace(dropped={}), "cc-by-4.0")  # type: ignore[arg-type]
    write_shards(folder, encoded(samples, spec, "balanced", int(threads)), spec, formats.split("+"), Limits())
    answer = {"samples": num, "rss_before_mib": before, "rss_peak_mib": _memory_mib("VmHWM"), **clock.read()}
    shutil.rmtree(folder)
    return answer


def _memory_mib(field: str) -> float:
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    return int(next(line for line in status.read_text().splitlines() if line.startswith(field)).split()[1]) / 1024


def overlap(what: str, images: np.ndarray, labels: np.ndarray, folder: Path) -> dict[str, float]:
    """`device|batches`: wall seconds of sampling alone, and while the samples before are written by other threads.

    The generator is diffusers' U-Net of 32x32 images (12 passes a batch); on the CPU it has one thread, as writing has.
    """
    import threading
    from queue import Queue

    import torch
    from diffusers import UNet2DModel

    from synthgen.shards.encode import encoded
    from synthgen.shards.write import Limits
    from synthgen.shards.write import write as write_shards
    from synthgen.types import Batch

    name, rounds = what.split("|")
    device, small = torch.device(name), name == "cpu"
    if small:
        torch.set_num_threads(1)
    torch.manual_seed(0)
    width, size = (32, 16) if small else (128, 512)
    kinds = ("DownBlock2D",) * 3, ("UpBlock2D",) * 3
    net = UNet2DModel(
        sample_size=32, layers_per_block=1 if small else 2, block_out_channels=(width, width * 2, width * 2),
        down_block_types=kinds[0], up_block_types=kinds[1],
    ).to(device)  # fmt: skip
    if not small:
        net = net.to(torch.bfloat16)
    noise = torch.randn(size, 3, 32, 32, device=device, dtype=next(net.parameters()).dtype)

    @torch.no_grad()
    def sample() -> np.ndarray:
        x = noise
        for step in range(12):
            x = x + 0.01 * net(x, torch.full((size,), step, device=device)).sample
        return (x.float() * 40 + 128).clamp(0, 255).to(torch.uint8).cpu().numpy()

    def generate(take: Callable[[np.ndarray], None]) -> float:
        started = time.perf_counter()
        for _ in range(int(rounds)):
            take(sample())
        return time.perf_counter() - started

    def drawn(queue: Queue[np.ndarray | None]) -> Iterator[tuple[Batch, list[Any]]]:
        start = 0
        while (batch := queue.get()) is not None:
            keys = tuple(f"3fa9c1d2-{i:08d}" for i in range(start, start + len(batch)))
            yield Batch(batch, np.zeros(len(batch), np.int64), keys), infos[start : start + len(batch)]
            start += len(batch)

    spec, infos = spec_of(images), infos_of(int(rounds) * size, "all")
    generate(lambda batch: None)
    alone, beside = [], []
    for _ in range(4):
        alone.append(generate(lambda batch: None))
        shutil.rmtree(folder, ignore_errors=True)
        queue: Queue[np.ndarray | None] = Queue(8)
        work = threading.Thread(
            target=lambda q: write_shards(folder, encoded(drawn(q), spec, "balanced", 2), spec, ["webdataset"], Limits()),
            args=(queue,),
        )
        work.start()
        beside.append(generate(queue.put))
        queue.put(None)
        work.join()
    shutil.rmtree(folder)
    return {"samples": int(rounds) * size, "alone_s": min(alone), "beside_s": min(beside), "slower": min(beside) / min(alone) - 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("role", choices=["write", "read", "export", "overlap"])
    parser.add_argument("what")
    parser.add_argument("images", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--num", type=int)
    asked = parser.parse_args()
    with np.load(asked.images) as arrays:
        images, labels = arrays["images"][: asked.num], arrays["labels"][: asked.num]
    roles = {"write": write, "read": read, "export": export, "overlap": overlap}
    print("\n" + json.dumps(roles[asked.role](asked.what, images, labels, asked.folder)))


if __name__ == "__main__":
    main()
