"""Shards: what leaves the factory is the same bytes every time, and other people's libraries read it."""

from __future__ import annotations

import io
import json
import tarfile
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from synthgen import storage
from synthgen.errors import DataError
from synthgen.shards import manifest, parquet, raw, webdataset
from synthgen.shards.read import load
from synthgen.types import Batch, DatasetSpec, Provenance, SampleInfo, ShardManifest

NUM = 23
HOSTILE = "<b>\"ünï'\\ class"


def spec_of(channels: int) -> DatasetSpec:
    return DatasetSpec("toy", (channels, 6, 5), ("cat", "dog", HOSTILE), False, "f" * 64)


def samples_of(channels: int) -> tuple[Batch, list[SampleInfo]]:
    rng = np.random.default_rng(channels)
    images = rng.integers(0, 256, (NUM, channels, 6, 5), dtype=np.uint8)
    batch = Batch(images, rng.integers(0, 3, NUM), tuple(f"3fa9c1d2-{i:08d}" for i in range(NUM)))
    infos = [SampleInfo("diffusion", "c" * 64, 7, i, {"label": i / 7, "copy": 1.5}) for i in range(NUM)]
    return batch, infos


def in_batches(batch: Batch, infos: list[SampleInfo], size: int):
    for start in range(0, len(batch), size):
        rows = np.arange(start, min(start + size, len(batch)))
        yield batch.take(rows), [infos[i] for i in rows]


def export(folder: Path, channels: int, batch: int = 8, shard_size: int = 10) -> ShardManifest:
    spec, (real, infos) = spec_of(channels), samples_of(channels)
    shards = webdataset.write(folder, in_batches(real, infos, batch), spec, shard_size)
    shards += parquet.write(folder, in_batches(real, infos, batch), spec, shard_size, num_samples=NUM)
    counts = {name: int((real.labels == label).sum()) for label, name in enumerate(spec.class_names)}
    made_by = Provenance("c", "k", {}, "0", 7, "dpmpp_2m", 16, "cpu", {})
    whole = ShardManifest(spec, tuple(shards), NUM, counts, "accept", made_by)
    manifest.write(folder, whole)
    return whole


def contents(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): storage.sha256_file(p) for p in folder.rglob("*") if p.is_file()}


# Between stages


@pytest.mark.parametrize("channels", [1, 3])
def test_raw_comes_back_and_does_not_depend_on_batches(tmp_path, channels, monkeypatch):
    monkeypatch.setattr(raw, "ROW_GROUP_BYTES", channels * 30 * 7)
    batch, _ = samples_of(channels)
    batch = replace(batch, labels=np.where(batch.labels == 2, -1, batch.labels))
    spec, digests = spec_of(channels), set()
    for size in (1, 5, NUM):
        rows = [np.arange(i, min(i + size, NUM)) for i in range(0, NUM, size)]
        raw.write(tmp_path / "a.parquet", (batch.take(r) for r in rows), spec)
        digests.add(storage.sha256_file(tmp_path / "a.parquet"))
    assert len(digests) == 1
    for back in (raw.read(tmp_path / "a.parquet", spec), Batch.concatenate(list(raw.iterate(tmp_path / "a.parquet", 4)))):
        np.testing.assert_array_equal(back.images, batch.images)
        np.testing.assert_array_equal(back.labels, batch.labels)
        assert back.keys == batch.keys
    assert raw.read_spec(tmp_path / "a.parquet") == spec


def test_raw_holds_no_rows_too(tmp_path):
    raw.write(tmp_path / "a.parquet", [], spec_of(3))
    assert raw.read(tmp_path / "a.parquet").images.shape == (0, 3, 6, 5)


def test_raw_refuses_what_does_not_belong(tmp_path):
    batch, infos = samples_of(3)
    path, spec = tmp_path / "a.parquet", spec_of(3)
    raw.write(path, [batch], spec)
    for other in (replace(spec, class_names=("a", "b", "c")), replace(spec, fingerprint="0")):
        with pytest.raises(DataError, match="another data set"):
            raw.read(path, other)
    with pytest.raises(DataError, match="no such file"):
        raw.read(tmp_path / "b.parquet")
    with pytest.raises(DataError, match="twice"):
        raw.write(tmp_path / "b.parquet", [batch, batch], spec)
    with pytest.raises(DataError, match="shape"):
        raw.write(tmp_path / "b.parquet", [batch], spec_of(1))
    with pytest.raises(DataError, match="label 3"):
        raw.write(tmp_path / "b.parquet", [replace(batch, labels=batch.labels + 1)], spec)
    parquet.write(tmp_path, [(batch, infos)], spec, 100, num_samples=NUM)
    with pytest.raises(DataError, match="between its stages"):
        raw.read(tmp_path / "parquet" / "train-00000-of-00001.parquet")
    (tmp_path / "text.parquet").write_text("not parquet at all")
    with pytest.raises(DataError, match="not readable as Parquet"):
        raw.read(tmp_path / "text.parquet")
    assert not (tmp_path / "b.parquet").exists()


# Exports


def test_export_is_the_same_bytes_every_time(tmp_path):
    export(tmp_path / "a", 3, batch=8)
    export(tmp_path / "b", 3, batch=1)
    export(tmp_path / "c", 3, batch=NUM)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "c")
    assert sorted(contents(tmp_path / "a")) == [
        "MANIFEST.json",
        *(f"parquet/train-0000{i}-of-00003.parquet" for i in range(3)),
        *(f"webdataset/synthgen-00000{i}.tar" for i in range(3)),
    ]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_export_comes_back(tmp_path, channels, kind):
    whole = export(tmp_path, channels)
    shards = tuple(shard for shard in whole.shards if shard.format == kind)
    for shard in set(whole.shards) - set(shards):
        (tmp_path / shard.path).unlink()
    manifest.write(tmp_path, replace(whole, shards=shards))
    batch, infos = samples_of(channels)
    back, names, known = load(tmp_path)
    np.testing.assert_array_equal(back.images, batch.images)
    np.testing.assert_array_equal(back.labels, batch.labels)
    assert (back.keys, names, known) == (batch.keys, spec_of(channels).class_names, infos)


@pytest.mark.parametrize("channels", [1, 3])
def test_webdataset_reads_an_export(tmp_path, channels):
    import webdataset as wds

    whole = export(tmp_path, channels)
    batch, infos = samples_of(channels)
    urls = [str(tmp_path / shard.path) for shard in whole.shards if shard.format == "webdataset"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=ResourceWarning)  # webdataset leaves the last file to the collector
        samples = list(wds.WebDataset(urls, shardshuffle=False).decode("rgb8"))
        pils = list(wds.WebDataset(urls, shardshuffle=False).decode("pil"))
    wide = np.broadcast_to(batch.images, (NUM, 3, 6, 5)) if channels == 1 else batch.images
    for i, (sample, pil) in enumerate(zip(samples, pils, strict=True)):
        np.testing.assert_array_equal(sample["png"], wide[i].transpose(1, 2, 0))
        np.testing.assert_array_equal(np.asarray(pil["png"].convert("RGB")), wide[i].transpose(1, 2, 0))
        assert sample["__key__"] == batch.keys[i]
        assert sample["cls"] == batch.labels[i] == sample["json"]["label"]
        assert sample["json"]["class_name"] == spec_of(channels).class_names[batch.labels[i]]
        assert sample["json"]["synthetic"] is True
        assert sample["json"]["scores"] == infos[i].scores


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("way", ["files", "folder"])
def test_datasets_reads_an_export(tmp_path, channels, way, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    export(tmp_path / "export", channels)
    for name in ("stage.json", "timing.json"):  # stand beside an export that a run made
        storage.write_json(tmp_path / "export" / name, {})
    batch, infos = samples_of(channels)
    if way == "files":
        where = {"path": "parquet", "data_files": str(tmp_path / "export" / "parquet" / "*.parquet")}
    else:
        where = {"path": str(tmp_path / "export")}
    data = datasets.load_dataset(**where, split="train", cache_dir=str(tmp_path / "cache"))
    assert isinstance(data.features["image"], datasets.Image)
    assert data.features["label"].names == list(spec_of(channels).class_names)
    assert len(data) == NUM
    for i, row in enumerate(data):
        pixels = np.asarray(row["image"])
        expected = batch.images[i][0] if channels == 1 else batch.images[i].transpose(1, 2, 0)
        np.testing.assert_array_equal(pixels, expected)
        assert (row["label"], row["key"], row["index"]) == (batch.labels[i], batch.keys[i], i)
        assert (row["synthetic"], row["generator"]) == (True, "diffusion")
        assert json.loads(row["scores"]) == infos[i].scores


def test_a_score_that_is_not_finite_is_null(tmp_path):
    batch, infos = samples_of(1)
    infos[0] = replace(infos[0], scores={"copy": float("nan"), "z": float("inf")})
    webdataset.write(tmp_path, [(batch, infos)], spec_of(1), 100)
    first = next(webdataset.read(tmp_path / "webdataset" / "synthgen-000000.tar"))
    assert first.about["scores"] == {"copy": None, "z": None}


@pytest.mark.parametrize("key", ["a.b", "a/b", "", "-a", "a\nb", "__a", "3fa9c1d2-00000001"])
def test_a_key_that_webdataset_would_misread_is_refused(tmp_path, key):
    batch, infos = samples_of(1)
    batch = replace(batch, keys=(key, *batch.keys[1:]))
    with pytest.raises(DataError, match="the key"):
        webdataset.write(tmp_path, [(batch, infos)], spec_of(1), 100)
    assert contents(tmp_path) == {}


def test_the_announced_number_of_samples_has_to_come(tmp_path):
    batch, infos = samples_of(1)
    for announced in (NUM - 1, NUM + 1):
        with pytest.raises(DataError, match="announced"):
            parquet.write(tmp_path, [(batch, infos)], spec_of(1), 100, num_samples=announced)


# The manifest


def test_a_folder_without_manifest_is_unfinished(tmp_path):
    export(tmp_path, 1)
    (tmp_path / manifest.NAME).unlink()
    with pytest.raises(DataError, match=r"no MANIFEST\.json, so the export is unfinished"):
        load(tmp_path)


def test_missing_changed_and_extra_files_are_named(tmp_path):
    whole = export(tmp_path, 1)
    assert manifest.verify(tmp_path) == whole
    (tmp_path / "stage.json").write_text("{}")
    (tmp_path / "timing.json").write_text("{}")
    (tmp_path / ".lock").write_text("")
    assert manifest.verify(tmp_path) == whole
    missing, changed = whole.shards[0].path, whole.shards[1].path
    (tmp_path / missing).unlink()
    data = bytearray((tmp_path / changed).read_bytes())
    data[700] ^= 1
    (tmp_path / changed).write_bytes(data)
    (tmp_path / "webdataset" / "more.tar").write_bytes(b"")
    with pytest.raises(DataError) as error:
        load(tmp_path)
    for part in (f"missing '{missing}'", f"changed '{changed}'", "extra 'webdataset/more.tar'"):
        assert part in str(error.value)


def test_a_damaged_manifest_is_one_line(tmp_path):
    export(tmp_path, 1)
    text = (tmp_path / manifest.NAME).read_text()
    for broken in (text[:100], text.replace("synthgen.shards/1", "other/9"), text.replace('"sha256"', '"sha1"'), "[]", "{}"):
        (tmp_path / manifest.NAME).write_text(broken)
        with pytest.raises(DataError, match=manifest.NAME):
            load(tmp_path)
    (tmp_path / manifest.NAME).write_text(text.replace("webdataset/synthgen-000000.tar", "../synthgen-000000.tar"))
    with pytest.raises(DataError, match="outside"):
        load(tmp_path)


# Archives of other tools


def png(mode: str = "RGB", size: tuple[int, int] = (5, 6)) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG")
    return buffer.getvalue()


def tar_of(path: Path, members: dict[str, bytes | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            if isinstance(data, tarfile.TarInfo):
                tar.addfile(data)
            else:
                header = tarfile.TarInfo(name)
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
    return path


def test_a_foreign_archive_is_read(tmp_path):
    jpeg = io.BytesIO()
    Image.new("RGB", (5, 6), (255, 0, 0)).save(jpeg, "JPEG")
    files = {"README": b"x", "a/1.jpg": jpeg.getvalue(), "a/1.json": b'{"label": "dog"}', "a/2.png": png(), "a/2.cls": b"cat\n"}
    batch, names, infos = load(tar_of(tmp_path / "a.tar", files))
    assert (batch.keys, names, infos, batch.labels.tolist()) == (("a-1", "a-2"), ("cat", "dog"), None, [1, 0])
    assert batch.images.shape == (2, 3, 6, 5)
    numbered = {"1.png": png("L"), "1.cls": b"2", "2.png": png("L"), "2.json": b'{"label": 0, "class_name": "zero"}'}
    batch, names, _ = load(tar_of(tmp_path / "b.tar", numbered))
    assert (names, batch.labels.tolist(), batch.images.shape) == (("zero", "1", "2"), [2, 0], (2, 1, 6, 5))


def test_ones_own_archive_is_read_without_its_folder(tmp_path):
    export(tmp_path, 3, shard_size=100)
    back, names, infos = load(tmp_path / "webdataset" / "synthgen-000000.tar")
    np.testing.assert_array_equal(back.images, samples_of(3)[0].images)
    assert (names, infos) == (spec_of(3).class_names, None)


def link(kind: bytes) -> tarfile.TarInfo:
    header = tarfile.TarInfo("1.png")
    header.type, header.linkname = kind, "/etc/passwd"
    return header


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"1.png": link(tarfile.SYMTYPE), "1.cls": b"0"}, "link or a special file"),
        ({"1.png": link(tarfile.LNKTYPE), "1.cls": b"0"}, "link or a special file"),
        ({"1.png": link(tarfile.FIFOTYPE), "1.cls": b"0"}, "link or a special file"),
        ({"../1.png": png(), "../1.cls": b"0"}, "leads out"),
        ({"/1.png": png(), "/1.cls": b"0"}, "leads out"),
        ({"1.png": png()}, "no label"),
        ({"1.cls": b"0"}, "0 images"),
        ({"1.png": b"text", "1.cls": b"0"}, "not readable as PNG"),
        ({"1.png": png("RGBA"), "1.cls": b"0"}, "mode 'RGBA'"),
        ({"1.png": png(), "1.cls": b"0", "2.png": png(size=(9, 9)), "2.cls": b"0"}, "2 shapes"),
        ({"1.png": png(), "1.cls": b"0", "2.png": png(), "2.cls": b"cat"}, "some labels are numbers"),
        ({"1.png": png(), "1.json": b"[" * 100_000}, "isn't a JSON object"),
        ({"1.png": png(), "1.pyd": b"cos\nsystem\n(S'false'\ntR."}, "no label"),
        ({"1.png": png(), "1.cls": b"0", "2.png": png(), "2.cls": b"0", "sub/1.png": png(), "sub/1.cls": b"0"}, None),
        ({}, "no samples"),
    ],
)
def test_a_hostile_archive_is_refused(tmp_path, members, said):
    path = tar_of(tmp_path / "a.tar", members)
    if said is None:
        assert len(load(path)[0]) == 3
        return
    with pytest.raises(DataError, match=said):
        load(path)


def test_limits_and_damage(tmp_path, monkeypatch):
    path = tar_of(tmp_path / "a.tar", {f"{i}.{ext}": data for i in range(9) for ext, data in (("png", png()), ("cls", b"0"))})
    data = path.read_bytes()
    boundary = 6 * 1024  # a header and a block of data for each file: the fourth sample begins here
    for damaged in (data[:3000], data[:boundary], data[:boundary] + b"\xff" * 512 + data[boundary + 512 :], b"plain text", b""):
        path.write_bytes(damaged)
        with pytest.raises(DataError):
            load(path)
    path.write_bytes(data)
    monkeypatch.setattr(webdataset, "MAX_MEMBER_BYTES", 10)
    with pytest.raises(DataError, match="at most 10 are read"):
        load(path)
    monkeypatch.setattr(webdataset, "MAX_MEMBER_BYTES", 10_000)
    monkeypatch.setattr("synthgen.shards.encode.MAX_PIXELS", 20)
    with pytest.raises(DataError, match="pixels"):
        load(path)


def test_other_things_are_named(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match="neither"):
        load(tmp_path / "a.txt")
    with pytest.raises(DataError, match="no such file"):
        load(tmp_path / "b")
    raw.write(tmp_path / "c.parquet", [samples_of(3)[0]], spec_of(3))
    back, names, infos = load(tmp_path / "c.parquet")
    assert (back.keys, names, infos) == (samples_of(3)[0].keys, spec_of(3).class_names, None)
