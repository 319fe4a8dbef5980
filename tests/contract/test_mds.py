"""MDS shards: the same bytes every time, what synthgen reads back, and what MosaicML's own library reads."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from test_shards import HOSTILE, NUM, contents, export, samples_of, spec_of

from synthgen import storage
from synthgen.errors import DataError
from synthgen.shards import manifest, mds
from synthgen.shards.encode import encoded
from synthgen.shards.read import load
from synthgen.shards.write import Limits, write

READ = """
import hashlib, json, sys, types
import numpy as np
import transformers.models.auto.tokenization_auto  # asks whether torchvision is there
for name, has in {"torchvision": {}, "torchvision.transforms": {}, "torchvision.datasets": {"VisionDataset": object},
                  "torchvision.transforms.functional": {"to_tensor": None}}.items():  # imported and not used
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__dict__.update(has)
import streaming

def row(sample):
    image = np.asarray(sample["image"])
    return [sample["key"], int(sample["label"]), list(image.shape), hashlib.sha256(image.tobytes()).hexdigest(), sample["about"]]

streaming.base.util.clean_stale_shared_memory()
found = []
for folder in sys.argv[1:]:
    found.append([row(sample) for sample in streaming.LocalDataset(folder)])
    whole = streaming.StreamingDataset(local=folder, shuffle=False, batch_size=1, validate_hash="sha256")
    found.append([row(sample) for sample in whole])
print(json.dumps(found))
"""


def interpreter() -> str:
    """Where MosaicML's library is; the test is skipped if it is nowhere."""
    named = os.environ.get("SYNTHGEN_MDS_PYTHON", sys.executable if find_spec("streaming") else "")
    if not named:
        pytest.skip(
            "mosaicml-streaming isn't here, and belongs into an environment of its own: make one with "
            "`scripts/bench/shards.py --quick --env FOLDER` and set SYNTHGEN_MDS_PYTHON=FOLDER/bin/python"
        )
    return named


def test_mosaicml_streaming_reads_an_export(tmp_path):
    python = interpreter()
    cases = [(1, "balanced"), (3, "fast"), (3, "small")]
    folders = [tmp_path / f"{channels}-{preset}" for channels, preset in cases]
    for folder, (channels, preset) in zip(folders, cases, strict=True):
        export(folder, channels, formats=("mds",), preset=preset)
    command = [python, "-W", "ignore", "-c", READ, *(str(folder / "mds") for folder in folders)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=os.environ | {"PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for (channels, _), pair in zip(cases, zip(found[::2], found[1::2], strict=True), strict=True):
        batch, infos = samples_of(channels)
        for rows in pair:
            assert len(rows) == NUM
            for i, (key, label, shape, digest, known) in enumerate(rows):
                image = batch.images[i][0] if channels == 1 else batch.images[i].transpose(1, 2, 0)
                assert (key, label, shape) == (batch.keys[i], batch.labels[i], list(image.shape))
                assert digest == hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()
                assert known["class_name"] == spec_of(channels).class_names[label]
                assert (known["synthetic"], known["scores"], known["nearest"]) == (True, infos[i].scores, infos[i].nearest)


@pytest.mark.parametrize("preset", ["balanced", "fast"])
@pytest.mark.parametrize("channels", [1, 3])
def test_it_comes_back_and_is_the_same_bytes_every_time(tmp_path, channels, preset):
    whole = export(tmp_path / "a", channels, batch=8, formats=("mds",), preset=preset)
    export(tmp_path / "b", channels, batch=NUM, threads=3, formats=("mds",), preset=preset)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert [(shard.path, shard.num_samples) for shard in whole.shards] == [
        ("mds/shard.00000.mds", 10), ("mds/shard.00001.mds", 10), ("mds/shard.00002.mds", 3),
    ]  # fmt: skip
    assert manifest.verify(tmp_path / "a") == whole
    batch, infos = samples_of(channels)
    back, names, known = load(tmp_path / "a")
    np.testing.assert_array_equal(back.images, batch.images)
    np.testing.assert_array_equal(back.labels, batch.labels)
    assert (back.keys, names, known) == (batch.keys, spec_of(channels).class_names, infos)
    assert HOSTILE in names


def test_the_index_tells_each_file_with_its_hash(tmp_path):
    whole = export(tmp_path, 3, formats=("mds",))
    listed = storage.read_json(tmp_path / "mds" / "index.json")["shards"]
    assert [(entry["raw_data"]["basename"], entry["samples"]) for entry in listed] == [
        (Path(shard.path).name, shard.num_samples) for shard in whole.shards
    ]
    for entry in listed:
        data = (tmp_path / "mds" / entry["raw_data"]["basename"]).read_bytes()
        assert entry["raw_data"]["bytes"] == len(data)
        assert entry["raw_data"]["hashes"] == {"sha256": hashlib.sha256(data).hexdigest()}


def test_what_is_said_of_a_sample_is_the_same_in_every_format(tmp_path):
    batch, infos = samples_of(3)
    chunks = list(encoded([(batch, infos)], spec_of(3)))
    write(tmp_path, chunks, spec_of(3), ["mds"], Limits())
    for sample, member in zip(chunks[0], mds.read(tmp_path / mds.path_of(0)), strict=True):
        info = asdict(sample.info)
        own = {"key": sample.key, "label": sample.label, "class_name": spec_of(3).class_names[sample.label], "synthetic": True}
        assert member.about == json.loads(json.dumps(info | own))
        assert (member.file, member.extension) == (sample.file, "png")


def test_damage_is_named(tmp_path, monkeypatch):
    export(tmp_path, 3, formats=("mds",))
    path = tmp_path / "mds" / "shard.00000.mds"
    data = path.read_bytes()
    first = int.from_bytes(data[4:8], "little")
    changed = bytearray(data)
    changed[first] ^= 1
    for broken in (data[:-1], data[: first - 5], b"", b"\xff" * 60, data + b"x", bytes(changed)):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=str(path)):
            list(mds.read(path))
    with pytest.raises(DataError, match="no such file"):
        list(mds.read(tmp_path / "none.mds"))
    monkeypatch.setattr(mds, "MOST_BYTES", 1000)
    with pytest.raises(DataError, match="4 GiB"):
        export(tmp_path / "b", 3, formats=("mds",))
