"""What is fuzzed: each target takes the bytes of a file and must end well or with a `SynthgenError`. No test is in here.

The short form feeds them what hypothesis mutates, the long one (`scripts/fuzz`) what atheris finds by coverage.
"""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from synthgen import digests, models, storage
from synthgen.config.load import load as load_config
from synthgen.config.schema import DataConfig
from synthgen.data import sources
from synthgen.data.decoding import Unreadable, pillow_limits, read_image
from synthgen.jobs.candidates import load_candidates
from synthgen.jobs.gates import load_gate
from synthgen.models import base
from synthgen.report import evidence, page
from synthgen.shards import card, codec, croissant, manifest, raw, read
from synthgen.shards.encode import about_from, encoded, info_from
from synthgen.shards.write import FORMATS, Limits, write
from synthgen.types import Batch, DatasetSpec, GainReport, Provenance, SampleInfo, ShardManifest
from tests.contract.test_report import fake_run
from tests.faults import mutations

Mutate = Callable[..., bytes]
DEEP = [b"[" * 100_000, b'{"a":' * 100_000, b"[" * 990 + b"]" * 990]
"""JSON that is nested too deep for most readers."""
EXTREMES = [b"", b"null", b"[]", b"{}", b"NaN", b'"x"', b"1e999", b"\xff\xfe", b"9" * 5000, *DEEP]


@dataclass(frozen=True)
class Target:
    """Something that reads bytes.

    Attributes:
        run: reads them.
        seeds: good ones.
        mutate: (random, seed, other seeds) -> bytes that are less good.
        extremes: bad ones that are always tried.
    """

    run: Callable[[bytes], object]
    seeds: Sequence[bytes]
    mutate: Mutate = mutations.mutated
    extremes: Sequence[bytes] = (b"", b"\0" * 5000)

    def example(self, rng: random.Random) -> bytes:
        """Bytes to try."""
        return self.mutate(rng, rng.choice(list(self.seeds)), self.seeds)


def build(folder: Path) -> dict[str, Target]:
    """Every target, with its files below `folder`."""
    run, export = _run(folder / "run"), _export(folder / "export")
    found = {**_records(run, export, folder), **_shards(export, folder), **_pages(run), **_config(folder)}
    images = _images()
    found["image in a shard"] = Target(lambda data: codec.decode_one(data, "x"), images[:OURS], extremes=images[OURS:])
    found["png in a shard"] = Target(
        lambda data: codec.decode_one(data, "x"), images[:3], mutations.then(mutations.mutated, mutations.mended_png)
    )
    found["real image"] = Target(_real_image, images)
    found["checkpoint"] = Target(_checkpoint, [_vae()], _either(mutations.mutated, mutations.mutated_safetensors))
    return found


def _either(*ways: Mutate) -> Mutate:
    return lambda rng, data, others=(): rng.choice(ways)(rng, data, others)


def _json(rng: random.Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Mostly good JSON of a bad content, sometimes bad JSON."""
    how = rng.randint(0, 30)
    return (
        rng.choice(DEEP) if how == 0 else mutations.mutated(rng, data, others) if how < 5 else mutations.mutated_json(rng, data)
    )


# Files to begin with


def _run(folder: Path) -> Path:
    rng = np.random.default_rng(1)
    spec = DatasetSpec("toy", (3, 8, 8), ("cat", "dog", "eel"), False, "f" * 64)
    run = fake_run(folder, spec, rng.integers(0, 256, (40, 3, 8, 8), dtype=np.uint8), rng.integers(0, 3, 40), ("vae",))
    storage.write_json(run / "candidates/vae/candidates.json", {
        "generator": "vae", "plan": {"labels": "match", "counts": {"cat": 14, "dog": 13, "eel": 13}}, "sampling": {},
        "precision": "32-true", "provenance": {"checkpoint": "b" * 64, "seed": 0, "sampler": "vae", "chunk": 16, "config": "",
        "parents": {}, "code": "0", "device": "cpu", "libraries": {"torch": "2"}},
    })  # fmt: skip
    for stage in ("candidates/vae", "split"):
        made = {"schema": storage.STAGE_SCHEMA, "stage": stage, "config": {}, "inputs": {}, "code": "0", "files": {}}
        storage.write_sealed(run / stage / storage.STAGE_MANIFEST, made)
    storage.write_json(
        run / "select" / "select.json", {"chosen": "vae", "criterion": "val", "scores": {"vae": {"val_loss": 1.0}}}
    )
    storage.write_json(run / "gain" / "opened.json", {"split": "test", "at": "2026-01-01T00:00:00", "after": "all"})
    return run


def _export(folder: Path) -> Path:
    """A whole export in every format, with all that its manifest may hold."""
    rng, n = np.random.default_rng(2), 6
    spec = DatasetSpec("toy", (3, 8, 8), ("cat", "dog", "eel"), False, "f" * 64)
    batch = Batch(rng.integers(0, 256, (n, 3, 8, 8), dtype=np.uint8), np.arange(n) % 3, tuple(f"3fa9-{i:08d}" for i in range(n)))
    infos = [
        SampleInfo("vae", "c" * 64, 0, i, {"label": 0.5}, "vae", "mit", (0.2, 0.3, 0.5), "real-1", 0.5, ("copy",))
        for i in range(n)
    ]
    shards, files = write(folder, encoded([(batch, infos)], spec), spec, list(FORMATS), Limits())
    made_by = Provenance("c", "c" * 64, {"split": "s"}, "0", 0, "vae", 16, "cpu", {"torch": "2"})
    counts = {"cat": 2, "dog": 2, "eel": 2}
    plan = {"generator": "vae", "plan": {"labels": "match", "counts": counts}, "sampling": {}, "precision": "32-true"}
    metric = {"name": "fid", "value": 1.0, "real": 0.5, "excess": 0.5, "low": -0.1, "high": 1.0, "verdict": "accept"}
    gate = {"verdict": "accept", "reasons": ["fine"], "notices": ["so"], "candidates": 9, "kept": n, "dropped": {"copy": 3},
            "copy_rate": 0.3, "real_dropped": 0.05, "extractor": "x", "metrics": [metric]}  # fmt: skip
    pair = {"arm": "synthetic_gated", "baseline": "real_aug", "difference": 2.0, "low": 0.5, "high": 3.5, "seeds": 10}
    gain = {"best_real": "real_aug", "best_synthetic": "synthetic_gated", "networks": 40, "pairs": [pair],
            "exchange": {"arm": "synthetic_gated", "num_real": 50, "equivalent": 80.0, "low": 60.0, "high": 90.0}}  # fmt: skip
    told = {"gate": gate, "verdict": "use", "reasons": ["it helps"], "gain": gain}
    whole = ShardManifest(spec, tuple(shards), tuple(files), n, counts, "accept", "use", made_by, plan, "mit", told, ("3fa9-9",))
    manifest.write(folder, whole)
    return folder


OURS = 6
"""Images that a shard may hold."""


def _images() -> list[bytes]:
    """One of each format and mode that is read; our own PNGs first."""
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (2, 3, 9, 8), dtype=np.uint8)
    found = [*codec.encode(pixels, "balanced"), *codec.encode(pixels[:, :1], "fast"), *codec.encode(pixels, "small")]
    picture = Image.fromarray(pixels[0].transpose(1, 2, 0).copy())
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    for kind, mode, more in (
        ("PNG", "RGBA", {}), ("PNG", "P", {}), ("PNG", "1", {}), ("PNG", "I;16", {}), ("JPEG", "RGB", {"exif": exif}),
        ("JPEG", "CMYK", {}), ("JPEG", "L", {"progressive": True}), ("GIF", "P", {"save_all": True, "append_images": [picture]}),
        ("WEBP", "RGBA", {"exif": exif}), ("TIFF", "RGB", {"compression": "tiff_lzw"}), ("TIFF", "F", {}), ("BMP", "RGB", {}),
        ("PPM", "RGB", {}), ("TIFF", "I;16", {}), ("BMP", "P", {}),
    ):  # fmt: skip
        buffer = io.BytesIO()
        image = Image.fromarray(rng.integers(0, 65536, (9, 8)).astype(np.uint16)) if mode == "I;16" else picture.convert(mode)
        image.save(buffer, kind, **more)
        found.append(buffer.getvalue())
    return found


def _vae() -> bytes:
    config = load_config("digits-smoke", ["generators.vae.width=4", "generators.vae.latent_dim=4"])
    spec = DatasetSpec("toy", (1, 8, 8), ("cat", "dog"), False, "f" * 64)
    return base.to_bytes(models.build(config.generators.vae, spec, config.augment))


# Targets


def _sealed(data: bytes) -> bytes:
    """The same with a seal that fits, where it is a JSON object: else nothing behind the seal would be reached."""
    try:
        found = json.loads(data)
        found.pop(digests.SEAL, None)
        return digests.as_text({**found, digests.SEAL: digests.sha256_json(found)}).encode()
    except (ValueError, TypeError, AttributeError, RecursionError):
        return data


def _records(run: Path, export: Path, folder: Path) -> dict[str, Target]:
    def reader(source: Path, place: Path, read_it: Callable[[Path], object]) -> Target:
        place.parent.mkdir(parents=True, exist_ok=True)

        def run_it(data: bytes) -> None:
            place.write_bytes(_sealed(data) if place.name in (manifest.NAME, storage.STAGE_MANIFEST) else data)
            read_it(place)

        return Target(run_it, [source.read_bytes()], _json, EXTREMES)

    copied = folder / "copied"
    shutil.copytree(export, copied)
    candidates = folder / "judged" / "vae"
    shutil.copytree(run / "candidates/vae", candidates)
    spec = DatasetSpec("toy", (3, 8, 8), ("cat", "dog", "eel"), False, "f" * 64)
    config, digits = load_config("digits-smoke"), folder / "records"

    def of_manifest(path: Path) -> None:
        whole = manifest.read(path.parent)
        manifest.problems(path.parent, whole)
        text = card.text(whole)
        croissant.text(whole)
        assert yaml.safe_load(text.split("---\n")[1])["tags"]

    def of_stage(path: Path) -> None:
        storage.check_folder(path.parent)
        storage.folder_digest(path.parent)

    def of_candidates(path: Path) -> None:
        load_candidates(path.parent, spec, config)

    def of_sample(path: Path) -> None:
        info_from(about_from(path.read_bytes(), "x"), "x")

    (folder / "sample.json").write_bytes((export / "folder/metadata.jsonl").read_bytes().splitlines()[0])
    return {
        "manifest": reader(export / manifest.NAME, copied / manifest.NAME, of_manifest),
        "stage.json": reader(run / "split/stage.json", digits / "stage/stage.json", of_stage),
        "candidates.json": reader(run / "candidates/vae/candidates.json", candidates / "candidates.json", of_candidates),
        "gate.json": reader(run / "gate/vae/gate.json", digits / "gate.json", lambda path: load_gate(path.parent)),
        "gain.json": reader(
            run / "gain/gain.json", digits / "gain.json", lambda path: GainReport.from_json(storage.read_json(path), str(path))
        ),
        "verdict.json": reader(run / "verdict.json", digits / "verdict.json", lambda path: evidence.read_verdict(path.parent)),
        "sample": reader(folder / "sample.json", digits / "sample.json", of_sample),
    }


def _shards(export: Path, folder: Path) -> dict[str, Target]:
    place = folder / "shards"
    place.mkdir()

    def reader(name: str, file: str) -> Callable[[bytes], None]:
        def run_it(data: bytes) -> None:
            (place / file).write_bytes(data)
            for _ in FORMATS[name].read(place / file, 3):
                pass

        return run_it

    def archive(data: bytes) -> None:
        (place / "a.tar").write_bytes(data)
        read.load(place / "a.tar")

    def between(data: bytes) -> None:
        (place / "b.parquet").write_bytes(data)
        read.load(place / "b.parquet")
        table = raw.on_disk(place / "b.parquet")
        raw.keys(place / "b.parquet")
        if len(table) and table.images.nbytes < 10**7:
            table.images[:]

    for path in (export / "folder").rglob("*"):
        if path.is_file() and path.suffix == ".png":
            (place / "images" / path.parent.name).mkdir(parents=True, exist_ok=True)
            (place / "images" / path.parent.name / path.name).write_bytes(path.read_bytes())
    spec = DatasetSpec("toy", (3, 4, 4), ("cat", "dog"), False, "f" * 64)
    pixels = np.random.default_rng(4).integers(0, 256, (5, 3, 4, 4), dtype=np.uint8)
    raw.write(place / "seed.parquet", [Batch(pixels, np.arange(5) % 2, tuple("abcde"))], spec)
    tars = [(export / "webdataset/synthgen-000000.tar").read_bytes(), *foreign_tars()]
    tables = [(export / "parquet/train-00000.parquet").read_bytes()]
    lines = [(export / "folder/metadata.jsonl").read_bytes()]

    def real(kind: str, file: str) -> Callable[[bytes], None]:
        def run_it(data: bytes) -> None:
            (place / file).write_bytes(data)
            sources.load(DataConfig(source=kind, path=str(place / file), max_unreadable=1))

        return run_it

    given = place / "given.npz"
    np.savez(given, images=pixels.repeat(4, 2).repeat(4, 3), labels=np.arange(5) % 2, class_names=np.array(["cat", "dog"]))
    zips = _either(mutations.mutated, mutations.mutated_zip)
    return {
        "webdataset": Target(archive, tars, _either(mutations.mutated, mutations.then(mutations.mutated, mutations.mended_tar))),
        "parquet": Target(reader("parquet", "c.parquet"), tables),
        "raw": Target(between, [(place / "seed.parquet").read_bytes()]),
        "npz": Target(reader("npz", "d.npz"), [(export / "npz/train-00000.npz").read_bytes()], zips),
        "real parquet": Target(real("parquet", "r.parquet"), tables),
        "real npz": Target(real("npz", "s.npz"), [given.read_bytes()], zips),
        "mds": Target(reader("mds", "e.mds"), [(export / "mds/shard.00000.mds").read_bytes()]),
        "folder": Target(reader("folder", "images/metadata.jsonl"), lines, _lines),
    }


def _lines(rng: random.Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """A file of JSON lines one of which was changed."""
    lines = data.splitlines()
    at = rng.randint(0, len(lines) - 1)
    lines[at] = _json(rng, lines[at]).replace(b"\n", b" ")
    return b"\n".join(lines)


def foreign_tars() -> list[bytes]:
    """Archives as other tools write them: long names, PAX headers, folders."""
    import tarfile

    png = codec.encode(np.zeros((1, 3, 4, 4), np.uint8), "balanced")[0]
    found = []
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
            folder = tarfile.TarInfo("a")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
            for i in range(3):
                for extension, data in (("png", png), ("cls", b"%d" % (i % 2)), ("json", b'{"label": 1, "class_name": "x"}')):
                    header = tarfile.TarInfo(f"a/{'long/' * 12 if i else ''}{'n' * (90 if i else 3)}{i}.{extension}")
                    header.size, header.mtime = len(data), 1.5 if form == tarfile.PAX_FORMAT else 1
                    tar.addfile(header, io.BytesIO(data))
        found.append(buffer.getvalue())
    return found


def _pages(run: Path) -> dict[str, Target]:
    """The report of a run one of whose parts is another."""
    found = {}

    def maker(part: str, good: bytes) -> Callable[[bytes], None]:
        def run_it(data: bytes) -> None:
            try:
                (run / part).write_bytes(_sealed(data) if part.endswith(storage.STAGE_MANIFEST) else data)
                page.make(run)
            finally:
                (run / part).write_bytes(good)

        return run_it

    for part, mutate in PARTS.items():
        good = (run / part).read_bytes()
        found[f"report of {part}"] = Target(maker(part, good), [good], mutate)
    return found


def _config(folder: Path) -> dict[str, Target]:
    place = folder / "recipes"
    place.mkdir()
    whole = yaml.safe_dump(load_config("digits-smoke").model_dump(mode="json"), sort_keys=False).encode()
    own = b"defaults: [schema, size: tiny, _self_]\nname: mine\ndata: {source: folder, path: x}\ngenerators: {gan: {steps: 9}}\n"

    def of_yaml(data: bytes) -> None:
        (place / "own.yaml").write_bytes(data)
        load_config(str(place / "own.yaml"))

    def of_overrides(data: bytes) -> None:
        load_config("digits-smoke", data.decode("utf-8", "surrogateescape").split("\n"))

    overrides = [
        b"seed=3\ngain.seeds=4",
        b"models=[vae,gan]\ndata.path=a b",
        b"gain={seeds: 4}\ngenerators.vae.beta=0.5",
        b"gain=full",
    ]
    return {"recipe": Target(of_yaml, [whole, own], _yaml), "overrides": Target(of_overrides, overrides, _override)}


YAMLS = [
    "&a [*a]", "!!python/object/apply:os.system [x]", "${oc.env:HOME}", "*x", "<<: *x", "!!binary x", "? [a, b]\n: c", "- - - -",
    "0x" + "f" * 6000, "1" * 5000, "{a: [1, {b: 2}]}", "'", '"\\ud800"', "[" * 2000, "|\n  x", "2001-13-45", "!!set {a}", "\x00",
    "\ufeff", "%YAML 9.9", "---\n---\n", "null", ".nan", "~", "hydra: {searchpath: [pkg://os]}", "defaults: [../x]",
    "_target_: os.system",
]  # fmt: skip


def _yaml(rng: random.Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """A recipe with a line of another kind, or other bytes."""
    if rng.randint(0, 2) == 0:
        return mutations.mutated(rng, data, others)
    lines = data.decode().splitlines()
    at = rng.randint(0, len(lines) - 1)
    key = lines[at].partition(":")[0]
    lines[at] = rng.choice(
        [f"{key}: {rng.choice(YAMLS)}", rng.choice(YAMLS), f"{key}: {json.dumps(rng.choice(mutations.NASTY))}"]
    )
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _override(rng: random.Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    if rng.randint(0, 1):
        return mutations.mutated(rng, data, others)
    key = rng.choice(
        ["seed", "data.path", "models", "gain", "generators.vae", "size", "gate.bounds.fid", "gain.arms", "hydra.run.dir"]
    )
    value = rng.choice(
        [*YAMLS, "choice(1,2)", "range(3)", "glob(*)", "extend_list(a)", "[a,b", "{a:1", "../../x", "sort(b,a)", "int(x)"]
    )
    return f"{key}={value}".encode("utf-8", "surrogatepass")


def _real_image(data: bytes) -> None:
    config = DataConfig(source="folder", path="x", size_px=8)
    with pillow_limits(config.max_pixels):
        try:
            read_image(data, config, None)
        except Unreadable:  # quarantined with this reason
            return


def _checkpoint(data: bytes) -> None:
    models.from_bytes(data, "x")


PARTS: dict[str, Mutate] = {
    "verdict.json": _json, "gate/vae/gate.json": _json, "gain/gain.json": _json, "audit/report.json": _json,
    "train/vae/train.json": _json, "select/select.json": _json, "split/dataset.json": _json, "shards/MANIFEST.json": _json,
    "candidates/vae/candidates.json": _json, "candidates/vae/stage.json": _json, "gain/opened.json": _json,
    "config.yaml": _yaml, "gate/vae/scores.parquet": mutations.mutated, "candidates/vae/candidates.parquet": mutations.mutated,
}  # fmt: skip
"""Parts of a run whose change the report has to bear, and how they are changed."""
RECORDS = ("manifest", "stage.json", "candidates.json", "gate.json", "gain.json", "verdict.json", "sample")
SHARDS = ("webdataset", "parquet", "raw", "npz", "mds", "folder", "real parquet", "real npz")
IMAGES = ("image in a shard", "png in a shard", "real image")
NAMES = (*RECORDS, *SHARDS, *(f"report of {part}" for part in PARTS), "recipe", "overrides", *IMAGES, "checkpoint")
"""Of all targets."""
