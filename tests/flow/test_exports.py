"""What leaves the factory through the real command line: checked, made again, withdrawn, copied elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from synthgen import cli, elsewhere, storage
from synthgen.errors import ConfigError
from synthgen.jobs.checks import verify
from synthgen.shards import manifest, read

FEW = [
    *("models=[gan]", "features.steps=40", "features.defect_steps=0", "generators.gan.steps=100", "looks.times=0"),
    *("gain.seeds=2", "gain.tune_seeds=0", "gain.curve=false", "gain.arms=[real_aug,synthetic_gated]", "generate.num=300"),
    "workers=1",
]


def call(capsys, monkeypatch, *arguments: object) -> tuple[int, str, str]:
    """The command in this process: exit code, standard output, standard error."""
    monkeypatch.setattr(sys, "argv", ["synthgen", *map(str, arguments)])
    code = cli._main()
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run with shards in every format that needs no extra."""
    out = tmp_path_factory.mktemp("exports") / "run"
    formats = "export.formats=[webdataset,parquet,folder,npz]"
    command = [sys.executable, "-m", "synthgen", "run", "digits-smoke", "--out", str(out), *FEW, formats, "export.shard_size=60"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def copy(made, tmp_path) -> Path:
    """A copy of its export that a test may change."""
    return Path(shutil.copytree(made / "shards", tmp_path / "shards"))


def keys_of(export: Path) -> list[str]:
    return list(read.load(export)[0].keys)


def test_an_export_knows_where_each_sample_comes_from(made):
    batch, _, infos = read.load(made / "shards")
    about = storage.read_json(made / "candidates/gan/candidates.json")
    report = storage.read_json(made / "gate/gan/gate.json")
    assert sorted(batch.keys) == sorted(report["kept"])
    assert list(batch.keys) != report["kept"]  # shuffled
    real = {key for role in ("train",) for key in pq.read_table(made / f"split/{role}.parquet").column("key").to_pylist()}
    for key, info in zip(batch.keys, infos, strict=True):
        assert (info.generator, info.checkpoint) == ("gan", about["provenance"]["checkpoint"])
        assert key == f"{info.checkpoint[:8]}-{info.index:08d}"
        assert info.sampler == about["provenance"]["sampler"]
        assert info.nearest in real
        assert info.nearest_distance > 0
        assert sum(info.soft_label) == pytest.approx(1, abs=1e-4)
        assert {"copy", "label", "support"} <= set(info.scores)
        assert info.reasons == ()
    whole = manifest.read(made / "shards")
    assert whole.verdict == storage.read_json(made / "verdict.json")["verdict"]
    text = (made / "shards/README.md").read_text()
    assert f"**{whole.verdict.capitalize()}.**" in text
    for pair in whole.evidence["gain"]["pairs"]:
        assert f"{pair['low']:+.2f} to {pair['high']:+.2f}" in text


def test_a_sample_is_made_again_byte_by_byte(made, capsys, monkeypatch, tmp_path):
    for key in keys_of(made / "shards")[:3]:
        code, out, err = call(capsys, monkeypatch, "replay", key, made / "shards", "--image", tmp_path / f"{key}.png")
        assert code == 0, err
        assert "the same 64 bytes" in out
        batch, _, _ = read.load(made / "shards")
        image = batch.images[batch.keys.index(key)][0]
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"{key}.png")), image)


def test_a_sample_that_its_checkpoint_does_not_make_is_found_out(made, copy, capsys, monkeypatch):
    checkpoint = made / "train/gan/generator.safetensors"
    keys = keys_of(copy)
    whole = storage.read_sealed(copy / manifest.NAME)
    whole["plan"]["sampling"]["truncation"] = 0.5
    storage.write_sealed(copy / manifest.NAME, whole)
    code, _, err = call(capsys, monkeypatch, "replay", keys[0], copy, "--checkpoint", checkpoint)
    assert (code, "bytes differ" in err) == (4, True)
    label = read.load(copy)[0].labels[0]
    other = (label + 1) % 10
    whole["plan"]["plan"]["counts"] = {str(i): 300 * int(i == other) for i in range(10)}
    storage.write_sealed(copy / manifest.NAME, whole)
    code, _, err = call(capsys, monkeypatch, "replay", keys[0], copy, "--checkpoint", checkpoint)
    assert (code, "label plan" in err) == (3, True)
    code, _, err = call(capsys, monkeypatch, "replay", "nothing", copy, "--checkpoint", checkpoint)
    assert (code, "no sample 'nothing'" in err) == (3, True)
    code, _, err = call(capsys, monkeypatch, "replay", keys[0], copy)
    assert (code, "--checkpoint" in err) == (4, True)
    other = made / "features/extractor.safetensors"
    code, _, err = call(capsys, monkeypatch, "replay", keys[0], copy, "--checkpoint", other)
    assert (code, "another checkpoint" in err) == (4, True)


def test_verify_names_each_file_that_is_not_as_written(made, copy, capsys, monkeypatch):
    code, out, _ = call(capsys, monkeypatch, "verify", copy)
    assert (code, "as it was written" in out) == (0, True)
    tar = copy / "webdataset/synthgen-000000.tar"
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 4
    tar.write_bytes(data)
    (copy / "README.md").unlink()
    (copy / "parquet/more.parquet").write_bytes(b"x")
    code, out, err = call(capsys, monkeypatch, "verify", copy)
    assert code == 5
    for line in ("changed 'webdataset/synthgen-000000.tar'", "missing 'README.md'", "extra 'parquet/more.parquet'"):
        assert line in out
    code, out, _ = call(capsys, monkeypatch, "verify", copy, "--json")
    assert code == 5
    found = json.loads(out)["problems"]
    assert sorted(found) == sorted(set(found))
    code, _, err = call(capsys, monkeypatch, "verify", copy / "webdataset")
    assert (code, "neither an export nor a run folder" in err) == (3, True)


def test_verify_reads_a_whole_run(made, tmp_path):
    run = Path(shutil.copytree(made, tmp_path / "run"))
    assert verify(str(run))["problems"] == []
    path = run / "candidates/gan/candidates.parquet"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    (run / "gate/gan/scores.parquet").unlink()
    said = run / "verdict.json"
    said.write_text(said.read_text().replace('"verdict": "', '"verdict": "use, not ', 1))
    assert verify(str(run))["problems"] == [
        "changed 'verdict.json'", "changed 'candidates/gan/candidates.parquet'", "missing 'gate/gan/scores.parquet'",
    ]  # fmt: skip
    (run / "run.json").unlink()
    assert "unfinished: no run.json" in verify(str(run))["problems"]


def test_samples_are_withdrawn(made, capsys, monkeypatch, tmp_path):
    batch, _, infos = read.load(made / "shards")
    real, gone = infos[0].nearest, batch.keys[-1]
    (tmp_path / "keys.txt").write_text(f"{gone}\n")
    out = tmp_path / "less"
    code, _, err = call(
        capsys, monkeypatch, "drop", made / "shards", "--keys", tmp_path / "keys.txt", "--near", real, "--out", out,
        "--set", "export.shard_size=60",
    )  # fmt: skip
    assert code == 0, err
    expected = [key for key, info in zip(batch.keys, infos, strict=True) if key != gone and info.nearest != real]
    less, _, known = read.load(out)
    assert list(less.keys) == expected
    kept = [batch.keys.index(key) for key in expected]
    np.testing.assert_array_equal(less.images, batch.images[kept])
    assert known == [infos[i] for i in kept]
    whole = manifest.verify(out)
    assert set(whole.dropped) == set(batch.keys) - set(expected)
    assert sum(whole.class_counts.values()) == whole.num_samples == len(expected)
    assert f"{len(whole.dropped)} samples of the first export were withdrawn" in (out / "README.md").read_text()
    code, _, err = call(capsys, monkeypatch, "drop", made / "shards", "unknown", "--out", tmp_path / "none")
    assert (code, "nothing was dropped" in err, (tmp_path / "none").exists()) == (3, True, False)
    code, _, err = call(capsys, monkeypatch, "drop", made / "shards", *batch.keys, "--out", tmp_path / "none")
    assert (code, "every one" in err) == (3, True)
    code, _, err = call(capsys, monkeypatch, "drop", made / "shards", "--out", tmp_path / "none")
    assert (code, "nothing to drop" in err) == (2, True)


def export_again(made: Path, out: Path, *settings: str) -> list[object]:
    return [
        "export", "--real", made, "--candidates", made / "candidates/gan", "--gate", made / "gate/gan", "--gain", made,
        "--out", out, "export.formats=[webdataset,parquet,folder,npz]", "export.shard_size=60", *settings,
    ]  # fmt: skip


def test_the_export_command_writes_what_the_run_wrote(made, capsys, monkeypatch, tmp_path):
    code, _, err = call(capsys, monkeypatch, *export_again(made, tmp_path / "a", "export.threads=3"))
    assert code == 0, err
    assert (tmp_path / "a" / manifest.NAME).read_bytes() == (made / "shards" / manifest.NAME).read_bytes()
    more = ("export.samples=all", "export.licence=cc0-1.0", "export.encoding=fast", "export.shuffle=false")
    code, _, err = call(capsys, monkeypatch, *export_again(made, tmp_path / "b", *more))
    assert code == 0, err
    batch, _, infos = read.load(tmp_path / "b")
    report = storage.read_json(made / "gate/gan/gate.json")
    assert len(batch) == report["num_candidates"] > len(report["kept"])
    assert {key: list(info.reasons) for key, info in zip(batch.keys, infos, strict=True) if info.reasons} == report["dropped"]
    assert {info.licence for info in infos} == {"cc0-1.0"}
    assert list(batch.keys) == sorted(batch.keys)


def test_an_export_goes_to_a_bucket_its_manifest_last(made, capsys, monkeypatch, tmp_path):
    import fsspec

    place = fsspec.filesystem("memory")
    monkeypatch.setattr(place, "store", {})
    order: list[str] = []
    put = type(place).put_file
    monkeypatch.setattr(
        type(place), "put_file", lambda self, here, there, **k: (order.append(there), put(self, here, there, **k))
    )
    code, _, err = call(capsys, monkeypatch, *export_again(made, tmp_path / "a", "export.to=memory://bucket/set"))
    assert code == 0, err
    whole = manifest.read(tmp_path / "a")
    assert [path.removeprefix("/bucket/set/") for path in order] == manifest.paths(whole)
    assert verify("memory://bucket/set")["problems"] == []
    order.clear()
    code, _, err = call(capsys, monkeypatch, *export_again(made, tmp_path / "a", "export.to=memory://bucket/set"))
    assert (code, order) == (0, [])
    some = whole.shards[0].path
    place.pipe_file(f"/bucket/set/{some}", b"x" * whole.shards[0].num_bytes)
    place.pipe_file("/bucket/set/extra", b"x")
    place.rm_file("/bucket/set/README.md")
    found = verify("memory://bucket/set")["problems"]
    assert sorted(found) == sorted([f"changed '{some}'", "extra 'extra'", "missing 'README.md'"])
    other = export_again(made, tmp_path / "b", "export.shard_size=25")
    code, _, err = call(capsys, monkeypatch, *other)
    assert code == 0, err
    before = dict(place.store)
    code, _, err = call(capsys, monkeypatch, *other, "export.to=memory://bucket/set")
    assert (code, "another export" in err) == (5, True)  # finished here, and not its own there
    assert place.store == before
    code, _, err = call(capsys, monkeypatch, *export_again(made, tmp_path / "a", "export.to=memory://bucket/set", "--restart"))
    assert code == 0, err
    assert verify("memory://bucket/set")["problems"] == ["extra 'extra'"]
    assert "SECRET" not in elsewhere.without_login("s3://KEY:SECRET@bucket/set: can't be read")


def test_a_replaced_export_leaves_nothing_of_the_old_one_behind(made, capsys, monkeypatch, tmp_path):
    there = tmp_path / "there"
    code, _, err = call(capsys, monkeypatch, *export_again(made, tmp_path / "a", f"export.to=file://{there}"))
    assert code == 0, err
    batch, _, _ = read.load(tmp_path / "a")
    gone = [str(key) for key in batch.keys[:70]]
    command = ["drop", tmp_path / "a", *gone, "--out", tmp_path / "less", "--set", "export.shard_size=60"]
    code, _, err = call(capsys, monkeypatch, *command, "--set", f"export.to=file://{there}")
    assert code == 0, err
    assert verify(str(there))["problems"] == []
    assert set(read.load(there)[0].keys) == set(batch.keys) - set(gone)
    for rest in there.rglob("*"):
        assert not any(key in rest.name for key in gone)
    code, _, err = call(capsys, monkeypatch, *command, "--set", "export.formats=[npz]")
    assert (code, "drop takes" in err) == (2, True)
    code, _, err = call(capsys, monkeypatch, "drop", tmp_path / "a", gone[0], "--out", tmp_path / "a" / "less")
    assert (code, "lies in the export" in err) == (2, True)


def test_what_was_sampled_in_bfloat16_is_made_again_in_bfloat16(made, capsys, monkeypatch, tmp_path):
    drawn, judged, out = tmp_path / "drawn", tmp_path / "judged", tmp_path / "out"
    settings = ["generate.precision=bf16-mixed", "generate.num=200"]
    code, _, err = call(capsys, monkeypatch, "generate", made / "train/gan", "--real", made, "--out", drawn, *settings)
    assert code == 0, err
    code, _, err = call(capsys, monkeypatch, "gate", "--real", made, "--candidates", drawn, "--out", judged)
    assert code == 0, err
    code, _, err = call(
        capsys, monkeypatch, "export", "--real", made, "--candidates", drawn, "--gate", judged, "--out", out, "export.samples=all"
    )
    assert code == 0, err
    checkpoint = made / "train/gan/generator.safetensors"
    code, said, err = call(capsys, monkeypatch, "replay", keys_of(out)[0], out, "--checkpoint", checkpoint)
    assert (code, "the same 64 bytes" in said) == (0, True), err


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("shards", 0, "path"), 5),
        (("shards", 0, "path"), None),
        (("shards", 0, "path"), "a\\b"),
        (("plan", "plan"), {}),
        (("plan", "precision"), None),
        (("provenance", "chunk"), 0),
        (("verdict",), "great"),
        (("num_samples",), "many"),
    ],
)
def test_a_manifest_that_says_what_cannot_be_is_refused(copy, place, value, capsys, monkeypatch):
    data = storage.read_sealed(copy / manifest.NAME)
    inside = data
    for step in place[:-1]:
        inside = inside[step]
    if value is None and place[-1] == "precision":
        del inside["precision"]
    else:
        inside[place[-1]] = value
    storage.write_json(copy / manifest.NAME, data)
    for command in (["verify", copy], ["replay", "x", copy], ["drop", copy, "x"]):
        code, _, err = call(capsys, monkeypatch, *command)
        assert (code, manifest.NAME in err) == (3, True), err


def test_a_place_that_cannot_be_written_is_named_and_the_export_stays(made, capsys, monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="pip install"):
        elsewhere.push(made / "shards", "nosuch://bucket/set", [manifest.NAME], manifest.listed)
    with pytest.raises(ConfigError, match="neither a URL"):
        elsewhere.push(made / "shards", "s3", [manifest.NAME], manifest.listed)
    (tmp_path / "file").write_text("")
    code, _, err = call(capsys, monkeypatch, *export_again(made, tmp_path / "a", f"export.to=file://{tmp_path}/file/below"))
    assert (code, "can't be written" in err, "the export itself is in" in err) == (5, True, True)
    assert verify(str(tmp_path / "a"))["problems"] == []


@pytest.mark.skipif(sys.platform == "win32", reason="moto's server is tested on POSIX")
def test_an_export_goes_to_s3(made, monkeypatch):
    moto = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    for name, value in {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    server = moto.ThreadedMotoServer(port=0)
    server.start()
    try:
        _, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("bucket")
        whole = manifest.read(made / "shards")
        elsewhere.push(made / "shards", "s3://bucket/set", manifest.paths(whole), manifest.listed)
        assert verify("s3://bucket/set") == {"what": "export", "files": len(manifest.everything(whole)),
                                             "samples": whole.num_samples, "problems": []}  # fmt: skip
        s3fs.S3FileSystem().rm("bucket/set/README.md")
        assert verify("s3://bucket/set")["problems"] == ["missing 'README.md'"]
    finally:
        server.stop()


PEAKS = """
import sys, tracemalloc
from pathlib import Path
import numpy as np
from synthgen.shards.encode import encoded
from synthgen.shards.write import Limits, write
from synthgen.types import Batch, DatasetSpec, SampleInfo

spec = DatasetSpec("toy", (3, 64, 64), ("a", "b"), False, "f" * 64)
info = SampleInfo("x", "", 0, 0, {"copy": 1.0})

def stream(num):
    for start in range(0, num, 100):
        images = np.full((100, 3, 64, 64), start % 251, np.uint8)
        yield Batch(images, np.zeros(100, np.int64), tuple(f"k{i:06d}" for i in range(start, start + 100))), [info] * 100

for num in (100, 2_000, 8_000):  # the first imports what the others use
    tracemalloc.start()
    write(Path(sys.argv[1], str(num)), encoded(stream(num), spec), spec, ["webdataset", "parquet", "folder"], Limits())
    print(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
"""


def test_memory_does_not_grow_with_the_pixels(tmp_path):
    """Peak of Python's allocations while 2,000 and 8,000 images of 64 x 64 (24 and 98 MB of pixels) are written.

    In a process of its own: the peak counts what any thread of the process allocates. What grows is the list of files, 700
    bytes a sample (570 of them for the folder's); the pixels of one are 12,288.
    """
    done = subprocess.run([sys.executable, "-c", PEAKS, str(tmp_path)], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    _, small, large = map(int, done.stdout.split())
    assert large - small < 6_000 * 800, (small, large)
    assert sorted(os.listdir(tmp_path / "8000")) == ["folder", "parquet", "webdataset"]


def test_a_study_told_anew_is_exported_anew_without_restart(made, capsys, monkeypatch, tmp_path):
    run = Path(shutil.copytree(made, tmp_path / "run"))
    before = manifest.read(run / "shards")
    formats = "export.formats=[webdataset,parquet,folder,npz]"
    command = ["run", "digits-smoke", "--out", run, "--quiet", *FEW, formats, "export.shard_size=60"]
    code, _, err = call(capsys, monkeypatch, *command, "gain.smallest_gain=90")
    assert code == 0, err
    after = manifest.read(run / "shards")
    assert after.shards == before.shards
    harm = any("it harms" in reason for reason in before.evidence["reasons"])  # on some processors: then no smallest gain matters
    assert (after.evidence != before.evidence) == (not harm)
    code, _, err = call(capsys, monkeypatch, *command, "gain.smallest_gain=90", "export.licence=cc0-1.0")
    assert (code, "--restart" in err) == (5, True)
