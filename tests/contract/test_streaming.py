"""Sets too large to be held: rows read from their file a step ahead, the same batches, no more memory, no thread left."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from synthgen import checkpoints, jobs, models, training
from synthgen.errors import DataError
from synthgen.jobs import generators
from synthgen.jobs.real import Split, audit
from synthgen.shards import pages, raw
from synthgen.training import Keyed, ReadAhead
from synthgen.types import Batch, DatasetSpec, Silent
from tests.conftest import toy_images

CPU = torch.device("cpu")
SPEC = DatasetSpec("many", (1, 8, 8), ("a", "b", "c"), False, "0" * 64)
WAIT_S = 20.0


@pytest.fixture
def many() -> Batch:
    """20,000 images: two data pages in one row group."""
    return toy_images(20_000, (1, 8, 8), 3)


@pytest.fixture
def toy_path(toy, toy_spec, tmp_path):
    raw.write(tmp_path / "toy.parquet", [toy], toy_spec)
    return tmp_path / "toy.parquet"


@pytest.fixture
def streaming(monkeypatch):
    """No image may be held."""
    monkeypatch.setattr(training, "RESIDENT_BYTES", 0)


def readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


# Rows of a file


@pytest.mark.parametrize(("group_bytes", "groups"), [(raw.ROW_GROUP_BYTES, 1), (2**18, 5)])
def test_rows_are_those_of_the_whole_file_however_they_are_asked_for(many, tmp_path, monkeypatch, group_bytes, groups):
    monkeypatch.setattr(raw, "ROW_GROUP_BYTES", group_bytes)
    path = tmp_path / "many.parquet"
    raw.write(path, [many], SPEC)
    assert pq.read_metadata(path).num_row_groups == groups
    found = raw.on_disk(path, SPEC)
    assert len(found) == len(found.images) == 20_000
    assert found.images.shape == many.images.shape
    assert found.images.nbytes == many.images.nbytes
    np.testing.assert_array_equal(found.labels, many.labels)
    np.testing.assert_array_equal(found.images[:], raw.read(path).images)
    some = np.random.default_rng(0).permutation(20_000)[:50]
    for rows in (some, slice(16_380, 16_390), many.labels == 2, -1, np.array([], np.int64), np.array([[3, 3], [0, 19_999]])):
        read = found.images[rows]
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, many.images[rows])
    with pytest.raises(IndexError):
        found.images[np.array([20_000])]


def test_a_file_of_no_rows_or_of_another_data_set(toy_path, toy_spec, tmp_path):
    raw.write(tmp_path / "none.parquet", [], toy_spec)
    assert raw.on_disk(tmp_path / "none.parquet").images[:].shape == (0, 1, 8, 8)
    with pytest.raises(DataError, match="another data set"):
        raw.on_disk(toy_path, replace(toy_spec, fingerprint="1"))
    with pytest.raises(DataError, match="no such file"):
        raw.on_disk(tmp_path / "other.parquet")


@pytest.mark.parametrize(
    "layout",
    [
        {"compression": "snappy"},
        {"use_dictionary": True},
        {"data_page_version": "2.0"},
        {"write_statistics": True},
        {"column_encoding": {"image": "BYTE_STREAM_SPLIT"}},
    ],
    ids=lambda layout: "-".join(layout),
)
def test_pixels_that_lie_otherwise_are_refused_and_never_misread(toy, toy_path, tmp_path, layout):
    table = pq.read_table(toy_path)
    pq.write_table(table, tmp_path / "a.parquet", **(raw.LAYOUT | layout))
    assert raw.read(tmp_path / "a.parquet").images.shape == toy.images.shape
    with pytest.raises(DataError, match="don't lie as synthgen writes them"):
        raw.on_disk(tmp_path / "a.parquet")


def test_a_row_without_pixels_or_label_is_refused(toy, toy_path, tmp_path):
    table = pq.read_table(toy_path)
    for name, message in (("image", "don't lie as"), ("label", "a row without a value")):
        number = table.schema.get_field_index(name)
        without = pa.array([None, *table.column(name).to_pylist()[1:]], table.schema.field(name).type)
        pq.write_table(table.set_column(number, table.schema.field(name), without), tmp_path / "a.parquet", **raw.LAYOUT)
        with pytest.raises(DataError, match=message):
            raw.on_disk(tmp_path / "a.parquet")


def test_every_damaged_byte_of_a_header_is_refused_or_changes_nothing(toy, toy_path):
    whole = pages.offsets(toy_path, 64)
    start = pq.read_metadata(toy_path).row_group(0).column(2).data_page_offset
    data = toy_path.read_bytes()
    refused = 0
    for at in range(start, whole[0]):
        for value in (0, 255, data[at] ^ 1, data[at] ^ 128):
            toy_path.write_bytes(data[:at] + bytes([value]) + data[at + 1 :])
            try:
                places = pages.offsets(toy_path, 64)
            except DataError:
                refused += 1
            else:
                np.testing.assert_array_equal(places, whole)
    assert refused > whole[0] - start


def test_a_file_that_changes_or_goes_while_it_is_read_is_named(toy, toy_spec, toy_path):
    found = raw.on_disk(toy_path)
    raw.write(toy_path, [toy.take(np.arange(24)[::-1])], toy_spec)
    with pytest.raises(DataError, match="changed while it was in use"):
        found.images[0]
    found = raw.on_disk(toy_path)
    toy_path.unlink()
    with pytest.raises(DataError, match="can no longer be read"):
        found.images[0]


# Batches


def test_batches_are_the_same_bytes_held_or_read(many, toy, tmp_path, monkeypatch):
    raw.write(tmp_path / "many.parquet", [many], SPEC)
    stored = raw.on_disk(tmp_path / "many.parquet")
    held = Keyed([(many, 12), (toy, 4)], 3, CPU)
    held_from_file = Keyed([(stored, 12), (toy, 4)], 3, CPU)
    assert held.ahead is held_from_file.ahead is None
    limits = {"all read": 0, "the larger one read": toy.images.nbytes, "the second no longer fits": many.images.nbytes}
    for name, limit in limits.items():
        monkeypatch.setattr(training, "RESIDENT_BYTES", limit)
        for source in (many, stored):
            read = Keyed([(source, 12), (toy, 4)], 3, CPU)
            assert [isinstance(images, torch.Tensor) for images in read.images] == {
                "all read": [False, False],
                "the larger one read": [False, True],
                "the second no longer fits": [True, False],
            }[name]
            for step in (0, 1, 2, 7, 3, 4, 1700, 1701):
                for a, b, c in zip(held[step], held_from_file[step], read[step], strict=True):
                    assert a.dtype == c.dtype
                    assert torch.equal(a, b)
                    assert torch.equal(a, c), name
            read.close()
    assert readers() == []


def test_on_a_gpu_half_of_what_is_free_may_be_held(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 8000))
    assert training.resident_bytes(torch.device("cuda")) == 500
    assert training.resident_bytes(CPU) == training.RESIDENT_BYTES == 2**30


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_on_a_gpu_are_the_same_bytes_held_or_read(many, tmp_path, monkeypatch):
    raw.write(tmp_path / "many.parquet", [many], SPEC)
    stored, cuda = raw.on_disk(tmp_path / "many.parquet"), torch.device("cuda")
    held = Keyed([(stored, 256)], 3, cuda)
    monkeypatch.setattr(training, "resident_bytes", lambda device: 0)
    read = Keyed([(stored, 256)], 3, cuda)
    for step in range(200):
        assert all(torch.equal(a, b) for a, b in zip(held[step], read[step], strict=True))
    read.close()


@dataclass
class Seen:
    """Images that note who reads which batch, and break at one of them."""

    batch: Batch
    breaks_at: int = -1

    def __post_init__(self):
        self.by: list[str] = []
        self.read = [threading.Event() for _ in range(100)]
        self.images, self.labels = self, self.batch.labels
        self.shape, self.nbytes = self.batch.images.shape, self.batch.images.nbytes

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Any) -> np.ndarray:
        number = len(self.by)
        self.by.append(threading.current_thread().name)
        self.read[number].set()
        if number == self.breaks_at:
            raise DataError("the disk is gone")
        return self.batch.images[rows]


def test_the_next_batch_is_read_by_one_thread_before_it_is_asked_for(toy, streaming):
    seen = Seen(toy)
    data = Keyed([(seen, 8)], 0, CPU)
    assert readers() == []
    for step in range(4):
        data[step]
        assert seen.read[step + 1].wait(WAIT_S), "nobody reads ahead"
        assert len(seen.by) == step + 2, "one batch ahead and no more"
    assert len(readers()) == 1
    assert set(seen.by) == set(readers())
    data.close()
    assert readers() == []


def test_an_error_is_raised_in_its_own_step():
    def read(step):
        if step == 2:
            raise DataError("the disk is gone")
        return step

    ahead = ReadAhead(read)
    assert [ahead(0), ahead(1)] == [0, 1]
    with pytest.raises(DataError, match="the disk is gone"):
        ahead(2)
    assert [ahead(3), ahead(1)] == [3, 1]
    ahead.close()


# Training


def fit(tiny, spec, source, folder=None, steps=8):
    vae = tiny.generators.vae.model_copy(update={"steps": steps})
    module = models.build(vae, spec, tiny.augment, seed=0)
    settings = {"steps": steps, "seed": 0, "task": "vae", "progress": Silent(), "folder": folder, "save_every_s": 0.0}
    return module, training.fit(module, [(source, 16)], **settings)


def weights(module) -> bytes:
    return b"".join(tensor.detach().numpy().tobytes() for tensor in (*module.parameters(), *module.ema.parameters()))


def test_training_gives_the_same_weights_and_leaves_no_thread(tiny, toy, toy_spec, toy_path, monkeypatch):
    held, held_fit = fit(tiny, toy_spec, toy)
    from_file, _ = fit(tiny, toy_spec, raw.on_disk(toy_path))
    monkeypatch.setattr(training, "RESIDENT_BYTES", 0)
    read, read_fit = fit(tiny, toy_spec, raw.on_disk(toy_path))
    assert weights(held) == weights(from_file) == weights(read)
    assert held_fit.losses == read_fit.losses
    assert readers() == []


@pytest.mark.parametrize("breaks_at", [1, 3, 4, 6])
def test_a_run_that_broke_off_is_resumed_to_the_same_weights(tiny, toy, toy_spec, tmp_path, streaming, monkeypatch, breaks_at):
    monkeypatch.setattr(training, "EPOCH", 2)
    whole, _ = fit(tiny, toy_spec, Seen(toy))
    with pytest.raises(DataError, match="the disk is gone"):
        fit(tiny, toy_spec, Seen(toy, breaks_at), tmp_path)
    assert readers() == []
    saved = checkpoints.newest(tmp_path)
    assert (saved["callbacks"]["Watch"]["done"] if saved else 0) == breaks_at // 2 * 2, "the step before still trained"
    rest = Seen(toy)
    resumed, _ = fit(tiny, toy_spec, rest, tmp_path)
    assert len(rest.by) == 8 - breaks_at // 2 * 2 + 1  # and one ahead
    assert weights(resumed) == weights(whole)


def test_the_job_never_reads_the_train_fold_as_a_whole(tiny, tmp_path, monkeypatch):
    order = jobs.Order(tiny.model_copy(update={"looks": tiny.looks.model_copy(update={"times": 0})}))
    audit(order, tmp_path)
    split = Split.open(tmp_path)
    np.testing.assert_array_equal(split.on_disk("train").images[:], split.role("train").images)
    generators.train(order, split, tmp_path, "vae", tmp_path / "held")
    monkeypatch.setattr(training, "RESIDENT_BYTES", 0)
    monkeypatch.setattr(raw, "read", None)
    generators.train(order, split, tmp_path, "vae", tmp_path / "read")
    held, read = ((tmp_path / name / "generator.safetensors").read_bytes() for name in ("held", "read"))
    assert held == read
    assert readers() == []


PEAK = """
import sys
from pathlib import Path
import torch
from synthgen import training
from synthgen.shards import raw

def peak_kb():
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))

torch.set_num_threads(1)
for limit, path in zip(sys.argv[1::2], sys.argv[2::2]):
    training.RESIDENT_BYTES = int(limit)
    stored = raw.on_disk(Path(path))
    data = training.Keyed([(stored, 256)], 0, torch.device("cpu"))
    for step in range(len(stored) // 256):
        data[step]
    data.close()
    print(peak_kb())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_set(tmp_path):
    spec, rows = replace(SPEC, image_shape=(3, 32, 32)), 2000
    piece = toy_images(rows, spec.image_shape, 3).images
    for name, pieces in (("small", 1), ("large", 16)):
        batches = (
            Batch(piece, np.zeros(rows, np.int64), tuple(f"{i}-{j}" for j in range(rows))) for i in range(pieces)
        )  # 6 and 98 MB
        raw.write(tmp_path / name, batches, spec)
    small, large = str(tmp_path / "small"), str(tmp_path / "large")
    command = [sys.executable, "-c", PEAK, "0", small, "0", large, str(2**30), large]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    first, second, held = (int(peak) / 1e3 for peak in said.split())
    assert second - first < 10
    assert held - second > 60, "the measurement sees what is held"
