"""Shards: what leaves the factory is the same bytes every time, and other people's libraries read it."""

from __future__ import annotations

import io
import json
import re
import tarfile
import warnings
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from synthgen import storage
from synthgen.errors import DataError
from synthgen.shards import card, codec, croissant, folder, manifest, raw, webdataset
from synthgen.shards.arrange import arranged
from synthgen.shards.encode import encoded
from synthgen.shards.read import load
from synthgen.shards.write import FORMATS, Limits, file_of, write
from synthgen.types import Batch, DatasetSpec, Provenance, SampleInfo, ShardManifest

NUM = 23
HOSTILE = "<b>\"ünï'\\ class"


def spec_of(channels: int) -> DatasetSpec:
    return DatasetSpec("toy", (channels, 6, 5), ("cat", "dog", HOSTILE), False, "f" * 64)


def samples_of(channels: int) -> tuple[Batch, list[SampleInfo]]:
    rng = np.random.default_rng(channels)
    images = rng.integers(0, 256, (NUM, channels, 6, 5), dtype=np.uint8)
    batch = Batch(images, rng.integers(0, 3, NUM), tuple(f"3fa9c1d2-{i:08d}" for i in range(NUM)))
    infos = [
        SampleInfo(
            "diffusion", "c" * 64, 7, i, {"label": i / 7, "copy": 1.5}, "heun(18)", "cc-by-4.0", (0.25, 0.5, 0.25),
            f"real-{i:06d}", i / 3, ("copy", "label") if i == 3 else (),
        )
        for i in range(NUM)
    ]  # fmt: skip
    return batch, infos


def in_batches(batch: Batch, infos: list[SampleInfo], size: int):
    for start in range(0, len(batch), size):
        rows = np.arange(start, min(start + size, len(batch)))
        yield batch.take(rows), [infos[i] for i in rows]


EVIDENCE = {
    "gate": {"verdict": "accept", "reasons": ["fine"], "notices": [], "candidates": 30, "kept": NUM, "dropped": {"copy": 7},
             "copy_rate": 7 / 30, "real_dropped": 0.05, "extractor": "domain|x",
             "metrics": [{"name": "fid", "value": 1.0, "real": 0.5, "excess": 0.5, "low": -0.1, "high": 1.0,
                          "verdict": "accept"}]},
    "verdict": "use", "reasons": ["gain: <b>it</b> helps"],
    "gain": {"best_real": "real_aug", "best_synthetic": "synthetic_gated", "networks": 40,
             "pairs": [{"arm": "synthetic_gated", "baseline": "real_aug", "difference": 2.0, "low": 0.5, "high": 3.5,
                        "seeds": 10}],
             "exchange": {"arm": "synthetic_gated", "num_real": 50, "equivalent": 80.0, "low": 60.0, "high": None}},
}  # fmt: skip


def export(
    out: Path, channels: int, batch: int = 8, shard_size: int = 10, formats=tuple(FORMATS), preset="balanced", threads=1
) -> ShardManifest:
    spec, (real, infos) = spec_of(channels), samples_of(channels)
    chunks = encoded(in_batches(real, infos, batch), spec, preset, threads)
    shards, files = write(out, chunks, spec, formats, Limits(shard_size))
    counts = {name: int((real.labels == label).sum()) for label, name in enumerate(spec.class_names)}
    made_by = Provenance("c", "k" * 64, {"split": "s" * 64}, "0", 7, "dpmpp_2m", 16, "cpu", {"torch": "2"})
    plan = {"generator": "diffusion", "plan": {"labels": "match", "counts": counts}, "sampling": {}, "precision": "32-true"}
    whole = ShardManifest(
        spec, tuple(shards), tuple(files), NUM, counts, "accept", "use", made_by, plan, "cc-by-4.0", EVIDENCE, ()
    )
    for name, text in (("README.md", card.text(whole)), ("croissant.json", croissant.text(whole))):
        storage.write_text(out / name, text)
        whole = replace(whole, files=(*whole.files, file_of(out, name)))
    manifest.write(out, whole)
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
    write(tmp_path, encoded([(batch, infos)], spec), spec, ["parquet"], Limits())
    with pytest.raises(DataError, match="between its stages"):
        raw.read(tmp_path / "parquet" / "train-00000.parquet")
    (tmp_path / "text.parquet").write_text("not parquet at all")
    with pytest.raises(DataError, match="not readable as Parquet"):
        raw.read(tmp_path / "text.parquet")
    assert not (tmp_path / "b.parquet").exists()


# Exports


def test_export_is_the_same_bytes_every_time(tmp_path):
    export(tmp_path / "a", 3, batch=8)
    export(tmp_path / "b", 3, batch=1, threads=3)
    export(tmp_path / "c", 3, batch=NUM)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "c")
    classes = folder.class_folders(spec_of(3).class_names)
    batch, _ = samples_of(3)
    assert sorted(contents(tmp_path / "a")) == sorted(
        [
            "MANIFEST.json", "README.md", "croissant.json", "webdataset/index.json", "folder/metadata.jsonl",
            *(f"folder/{classes[label]}/{key}.png" for label, key in zip(batch.labels, batch.keys, strict=True)),
            *("mds/index.json", *(f"mds/shard.0000{i}.mds" for i in range(3))),
            *(f"npz/train-0000{i}.npz" for i in range(3)),
            *(f"parquet/train-0000{i}.parquet" for i in range(3)),
            *(f"webdataset/synthgen-00000{i}.tar" for i in range(3)),
        ]
    )  # fmt: skip


@pytest.mark.parametrize("preset", list(codec.PRESETS))
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", list(FORMATS))
def test_export_comes_back(tmp_path, channels, kind, preset):
    export(tmp_path, channels, formats=(kind,), preset=preset)
    batch, infos = samples_of(channels)
    back, names, known = load(tmp_path)
    np.testing.assert_array_equal(back.images, batch.images)
    np.testing.assert_array_equal(back.labels, batch.labels)
    assert (back.keys, names, known) == (batch.keys, spec_of(channels).class_names, infos)


def test_every_class_has_a_folder_of_its_own_in_the_export(tmp_path):
    names = ("..", ".", "a", "a ", " a", "A", "con", "x/../y", "ä", " ")
    found = folder.class_folders(names)
    assert len({name.casefold() for name in found}) == len(names)
    for name in found:
        assert re.fullmatch(r"[A-Za-z0-9%_-]+( [A-Za-z0-9%_-]+)*", name), name
    assert folder.class_folders(("cat", "big dog")) == ["cat", "big dog"]
    assert folder.class_folders(("a", "A", "a-0")) == ["a-0", "A-1", "a-0-2"]
    long = folder.class_folders(("語" * 60, "語" * 60 + "本", "x" * 300))
    assert len({*long}) == 3
    assert all(len(name) <= 210 and re.fullmatch(r"(%[0-9A-F]{2}|x)+-[0-2]", name) for name in long)
    spec = replace(spec_of(3), class_names=("..", "a", "a "))
    batch, infos = samples_of(3)
    write(tmp_path / "in" / "out", encoded([(batch, infos)], spec), spec, ["folder"], Limits())
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "in" / "out").iterdir()] == ["folder"]


def test_every_format_ends_its_shards_at_the_same_samples(tmp_path):
    whole = export(tmp_path, 3)
    for kind in ("webdataset", "parquet", "npz"):
        assert [shard.num_samples for shard in whole.shards if shard.format == kind] == [10, 10, 3]
    assert manifest.verify(tmp_path) == whole


def test_a_shard_ends_before_it_has_too_many_bytes(tmp_path):
    real, infos = samples_of(3)
    chunks = list(encoded([(real, infos)], spec_of(3)))
    sizes = [len(sample.file) for sample in chunks[0]]
    limit = sizes[0] + sizes[1] + sizes[2]
    shards, _ = write(tmp_path / "a", chunks, spec_of(3), ["webdataset"], Limits(100, limit))
    start = 0
    for i, shard in enumerate(shards):
        inside = sizes[start : start + shard.num_samples]
        start += shard.num_samples
        assert sum(inside) <= limit
        assert i == len(shards) - 1 or sum(inside) + sizes[start] > limit
    assert start == NUM
    shards, _ = write(tmp_path / "b", chunks, spec_of(3), ["webdataset"], Limits(100, 1))
    assert [shard.num_samples for shard in shards] == [1] * NUM


def test_the_order_is_shuffled_and_every_stretch_has_the_class_mix():
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    order = arranged(labels, seed=3)
    assert sorted(order.tolist()) == list(range(1000))
    for start in range(0, 1000, 100):
        np.testing.assert_allclose(np.bincount(labels[order[start : start + 100]], minlength=3), [60, 30, 10], atol=1)
    assert not (np.diff(order[labels[order] == 0]) > 0).all()
    np.testing.assert_array_equal(order, arranged(labels, seed=3))
    assert (order != arranged(labels, seed=4)).any()


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
        assert sample["json"]["nearest"] == infos[i].nearest
        assert sample["json"]["soft_label"] == list(infos[i].soft_label)


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
        assert row["scores"] == infos[i].scores
        assert (row["reasons"], row["soft_label"]) == (list(infos[i].reasons), list(infos[i].soft_label))


@pytest.mark.parametrize("kind", ["webdataset", "folder"])
def test_datasets_reads_the_other_formats(tmp_path, kind, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    export(tmp_path / "export", 3, formats=(kind,))
    batch, _ = samples_of(3)
    data = datasets.load_dataset(str(tmp_path / "export"), split="train", cache_dir=str(tmp_path / "cache"))
    column = {"webdataset": "png", "folder": "image"}[kind]
    keys = [row["key"] if kind == "folder" else row["__key__"] for row in data]
    found = {key: np.asarray(row[column]) for key, row in zip(keys, data, strict=True)}
    for image, key in zip(batch.images, batch.keys, strict=True):
        np.testing.assert_array_equal(found[key], image.transpose(1, 2, 0))


def test_wids_reads_the_index(tmp_path):
    export(tmp_path, 3, formats=("webdataset",))
    index = json.loads((tmp_path / "webdataset" / "index.json").read_text())
    assert [(entry["url"], entry["nsamples"]) for entry in index["shardlist"]] == [
        ("synthgen-000000.tar", 10), ("synthgen-000001.tar", 10), ("synthgen-000002.tar", 3),
    ]  # fmt: skip
    wids = pytest.importorskip("wids")
    data = wids.ShardListDataset(str(tmp_path / "webdataset" / "index.json"), keep=True, cache_dir=str(tmp_path / "cache"))
    batch, _ = samples_of(3)
    assert len(data) == NUM
    for i in (0, 9, 10, NUM - 1):
        assert data[i]["__key__"] == batch.keys[i]


def test_mlcroissant_reads_an_export(tmp_path):
    mlcroissant = pytest.importorskip("mlcroissant")
    export(tmp_path, 3, formats=("parquet", "webdataset"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rdflib's own, of what it will remove
        found = mlcroissant.Dataset(jsonld=str(tmp_path / "croissant.json"))
        assert not found.metadata.issues.errors, found.metadata.issues.report()
        rows = list(found.records("samples"))
    batch, _ = samples_of(3)
    assert [row["samples/key"].decode() for row in rows] == list(batch.keys)
    assert [row["samples/label"] for row in rows] == batch.labels.tolist()
    np.testing.assert_array_equal(np.asarray(rows[0]["samples/image"]), batch.images[0].transpose(1, 2, 0))


def test_the_card_tells_the_verdict_and_holds_no_markup_of_others(tmp_path):
    export(tmp_path, 3)
    text = (tmp_path / "README.md").read_text()
    for part in ("**Use.**", "+2.00", "+0.50 to +3.50", "80 real ones", "23.33% were copies", "license: cc-by-4.0"):
        assert part in text
    assert "<b>" not in text
    assert "synthgen replay KEY" in text


@pytest.mark.parametrize("preset", list(codec.PRESETS))
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 1, 1), (1, 300, 300), (3, 150, 151)])
def test_every_preset_opens_elsewhere_without_loss(preset, shape):
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    images = np.stack([rng.integers(0, 256, shape), np.full(shape, 255), np.zeros(shape)]).astype(np.uint8)
    files = codec.encode(images, preset)
    assert files == codec.encode(images, preset)
    for image, file, back in zip(images, files, codec.decode(files, str, shape[0]), strict=True):
        np.testing.assert_array_equal(back, image)
        wide = np.broadcast_to(image, (3, *shape[1:])).transpose(1, 2, 0)
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(file)).convert("RGB")), wide)
        bgr = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR)
        np.testing.assert_array_equal(bgr[..., ::-1], wide)


@pytest.mark.parametrize("preset", ["balanced", "fast"])
def test_no_flipped_bit_of_a_png_passes(preset):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1, 3, 6, 5), dtype=np.uint8)
    file = codec.encode(image, preset)[0]
    for place in range(len(file)):
        damaged = bytearray(file)
        damaged[place] ^= 1 << (place % 8)
        try:
            back = codec.decode([bytes(damaged)], str)
        except DataError:
            continue
        np.testing.assert_array_equal(back[0], image[0])  # a flag that no decoder reads


@pytest.mark.parametrize("preset", list(codec.PRESETS))
def test_a_file_cut_off_anywhere_is_refused_or_whole(preset):
    image = np.arange(3 * 6 * 5, dtype=np.uint8).reshape(1, 3, 6, 5)
    file = codec.encode(image, preset)[0]
    refused = 0
    for length in range(len(file)):
        try:
            back = codec.decode([file[:length]], str)
        except DataError:
            refused += 1
        else:  # all pixels are there, a check sum or the end isn't
            np.testing.assert_array_equal(back[0], image[0])
    assert refused > len(file) - 40


def test_other_filters_and_a_bomb_go_through_pillow():
    rng = np.random.default_rng(0)
    smooth = np.cumsum(rng.integers(0, 3, (40, 40, 3)), axis=0).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(smooth).save(buffer, "PNG", optimize=True)
    np.testing.assert_array_equal(codec.decode_one(buffer.getvalue(), "x"), smooth.transpose(2, 0, 1))
    body = zlib.compress(bytes(50_000_000), 9)
    bomb = codec._head((6, 5, 3)) + codec._chunk(b"IDAT", body) + codec.END
    assert codec._decode_own(bomb[: codec._HEAD_BYTES], [bomb]) is None
    assert codec.decode_one(bomb, "x").shape == (3, 6, 5)


def test_a_score_that_is_not_finite_is_null(tmp_path):
    batch, infos = samples_of(1)
    infos[0] = replace(infos[0], scores={"copy": float("nan"), "z": float("inf")})
    write(tmp_path, encoded([(batch.take(np.arange(1)), infos[:1])], spec_of(1)), spec_of(1), ["webdataset"], Limits())
    first = next(webdataset.read(tmp_path / "webdataset" / "synthgen-000000.tar"))
    assert first.about["scores"] == {"copy": None, "z": None}


@pytest.mark.parametrize("key", ["a.b", "a/b", "", "-a", "a\nb", "__a", "3fa9c1d2-00000001"])
def test_a_key_that_webdataset_would_misread_is_refused(tmp_path, key):
    batch, infos = samples_of(1)
    batch = replace(batch, keys=(key, *batch.keys[1:]))
    with pytest.raises(DataError, match="the key"):
        write(tmp_path, encoded([(batch, infos)], spec_of(1)), spec_of(1), ["webdataset", "parquet"], Limits())
    assert contents(tmp_path) == {}


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
    for broken in (text[:100], text.replace("synthgen.shards/2", "other/9"), text.replace('"sha256"', '"sha1"'), "[]", "{}"):
        (tmp_path / manifest.NAME).write_text(broken)
        with pytest.raises(DataError, match=manifest.NAME):
            load(tmp_path)
    outside = json.loads(text.replace("webdataset/synthgen-000000.tar", "../synthgen-000000.tar"))
    (tmp_path / manifest.NAME).write_text(json.dumps(outside))
    with pytest.raises(DataError, match="differs from the sha256 in it"):
        load(tmp_path)
    del outside["sha256"]
    storage.write_sealed(tmp_path / manifest.NAME, outside)
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
    monkeypatch.setattr("synthgen.shards.codec.MAX_PIXELS", 20)
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
