"""Nothing that is only read is ever run: each hostile file would leave a mark if it were, and none may take all the memory."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from synthgen import checkpoints, extraction, models, storage, tracking
from synthgen.config.load import load
from synthgen.config.schema import DataConfig
from synthgen.data import sources
from synthgen.errors import SynthgenError
from synthgen.gain.cells import Trained
from synthgen.jobs import checks, pretrained, transfer
from synthgen.jobs.candidates import load_candidates
from synthgen.metrics import extractors
from synthgen.shards import codec, manifest, npz, parquet, raw, read
from synthgen.types import DatasetSpec
from tests.faults import hostile, targets

ROOT = Path(__file__).resolve().parents[2]
SPEC = DatasetSpec("toy", (3, 8, 8), ("cat", "dog", "eel"), False, "f" * 64)
ENVIRONMENT = "secret-of-the-environment"
Attempt = Callable[[], object]
PNG = codec.encode(np.zeros((1, 3, 4, 4), np.uint8), "balanced")[0]
MODULE = "evil_module"


@pytest.fixture
def mark(tmp_path, monkeypatch) -> Path:
    """The file that hostile code would make. A module that makes it can be imported, and stands in the working folder."""
    mark = tmp_path / "it-ran"
    (tmp_path / f"{MODULE}.py").write_text(hostile.module(mark))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("CANARY", ENVIRONMENT)
    monkeypatch.setattr("builtins.input", lambda *prompt: "y")  # somebody who says yes to everything
    yield mark
    sys.modules.pop(MODULE, None)


def put(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def tried(attempts: dict[str, Attempt], mark: Path, refused: bool = True) -> list[str]:
    """Every attempt that ran something, failed in a way of its own, told a secret, or wasn't refused."""
    wrong = []
    for name, attempt in attempts.items():
        try:
            attempt()
            said = "" if refused else "refused"
        except SynthgenError as error:
            said = str(error)
        except Exception as error:
            said = "refused"
            wrong.append(f"{name}: {type(error).__name__}: {error}")
        if mark.exists():
            wrong.append(f"{name}: it ran")
            mark.unlink()
        if not said or ENVIRONMENT in said or "\n" in said:
            wrong.append(f"{name}: {said or 'not refused'}")
    return wrong


# What is handed in


def checkpoints_of(folder: Path, mark: Path) -> dict[str, Attempt]:
    """Pickles in the place of every file with weights, and headers that name code."""
    found: dict[str, Attempt] = {}
    split = SimpleNamespace(spec=SPEC)
    for name, data in hostile.pickles(mark).items():
        path = put(folder / name / "generator.safetensors", data)
        other = put(folder / name / "transfer" / "extractor.safetensors", data).parent
        resume = put(folder / name / "run" / "resume-0.ckpt", data + hashlib.sha256(data).digest())
        found |= {
            f"{name} as a checkpoint": lambda path=path: models.from_bytes(path.read_bytes(), str(path)),
            f"{name} to start from": lambda path=path: pretrained.read(path, "vae", split),
            f"{name} to transfer from": lambda other=other: transfer.read(other, None, split),
            f"{name} of an interrupted training": lambda path=resume: checkpoints.AtomicCheckpointIO().load_checkpoint(path),
            f"{name} of a cell": lambda data=data: Trained.from_bytes(data),
        }
        assert checkpoints.newest(resume.parent) is None
        assert isinstance(extraction._read_entry(path, {}, 1), str)
    good = targets._vae()
    config = models.from_bytes(good).config.model_dump(mode="json")
    for key, value in (
        ("kind", MODULE), ("kind", f"{MODULE}:Evil"), ("kind", f"../{MODULE}"), ("kind", "os.system"), ("kind", ["vae"]),
        ("config", {**config, "_target_": f"{MODULE}.Evil"}), ("config", {**config, "width": 10**9}),
        ("config", {**config, "width": 30_000}), ("spec", {**SPEC.to_json(), "image_shape": [3, 2**15, 2**15]}),
    ):  # fmt: skip
        data = _with(good, key, value)
        found[f"a checkpoint with {key}={value!r:.60}"] = lambda data=data: models.from_bytes(data, "x")
    named = {"_target_": f"{MODULE}.Evil", "unet": {"_class_name": f"{MODULE}.Evil", "norm_num_groups": f"{MODULE}.Evil"}}
    found["a checkpoint whose structure names code"] = lambda: _ignored(models.from_bytes(_with(good, "structure", named), "x"))
    return found


def _ignored(result: object) -> None:
    """It may be read too, as long as nothing of it is run."""
    raise SynthgenError(f"read: {type(result).__name__}")


def _with(checkpoint: bytes, key: str, value: object) -> bytes:
    """A checkpoint that says something else of itself."""
    length = int.from_bytes(checkpoint[:8], "little")
    header = json.loads(checkpoint[8 : 8 + length])
    about = json.loads(header["__metadata__"]["synthgen"])
    text = json.dumps(header | {"__metadata__": {"synthgen": json.dumps(about | {key: value})}}).encode()
    return len(text).to_bytes(8, "little") + text + checkpoint[8 + length :]


def arrays_of(folder: Path, mark: Path) -> dict[str, Attempt]:
    """Arrays of objects, which only a pickle can hold."""
    evil = hostile.saved(hostile.object_array(mark))
    own = {"image": np.zeros((2, 4, 4, 3), np.uint8), "label": np.zeros(2, np.int64), "key": np.array(["a", "b"]),
           "class_names": np.array(["x", "y"]), "about": np.array([b"{}", b"{}"])}  # fmt: skip
    good = {name: hostile.saved(array) for name, array in own.items()}
    found: dict[str, Attempt] = {}
    for name in good:
        path = put(folder / f"{name}.npz", hostile.npz(good | {name: evil}))
        if name != "class_names":  # not looked at in a shard
            found[f"{name} of a shard"] = lambda path=path: list(npz.read(path))
        if name not in ("key", "about"):  # not looked at in a data set
            found[f"{name} of real images"] = lambda path=path: sources.load(DataConfig(source="npz", path=str(path)))
    for suffix in ("npy", "npz"):
        path = put(folder / f"bare.{suffix}", evil)
        found[f"a bare array as .{suffix}"] = lambda path=path: sources.load(DataConfig(source="npz", path=str(path)))
    return found


def tables_of(folder: Path, mark: Path) -> dict[str, Attempt]:
    """Columns of a type that Arrow once unpickled, and pandas' own notes."""
    bad = pickle.dumps(hostile.Attack(mark), 0)
    notes = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": bad}
    names = [*parquet.COLUMNS]
    fields = [pa.field(name, pa.binary() if name == "image" else pa.int64(), metadata=notes) for name in names]
    columns = [pa.array([b"x"] if name == "image" else [1], pa.binary() if name == "image" else pa.int64()) for name in names]
    pandas = {b"pandas": json.dumps({"columns": [{"name": "label", "pandas_type": "object"}]}).encode(), b"pickle": bad}
    found: dict[str, Attempt] = {}
    for kind, schema in (("type", pa.schema(fields)), ("pandas", pa.schema(fields, metadata=pandas))):
        for name, metadata in (("", {}), ("of ours", {raw.METADATA_KEY: json.dumps(SPEC.to_json()).encode()})):
            path = folder / f"{kind}{name}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = schema.with_metadata({**(schema.metadata or {}), **metadata})
            pq.write_table(pa.Table.from_arrays(columns, schema=whole), path)
            found |= {
                f"{kind} {name} as a shard": lambda path=path: list(parquet.read(path)),
                f"{kind} {name} between stages": lambda path=path: read.load(path),
                f"{kind} {name} as real images": lambda path=path: sources.load(DataConfig(source="parquet", path=str(path))),
            }
    return found


def networks_of(folder: Path, mark: Path) -> dict[str, Attempt]:
    """Folders of transformers and of diffusers that bring code of their own, and weights as pickles."""
    code, weights = hostile.module(mark), hostile.pickles(mark)["torch zip"]
    mapped = {"auto_map": {"AutoConfig": f"{MODULE}.Evil", "AutoModel": f"{MODULE}.Evil"}, "architectures": ["Evil"]}
    found: dict[str, Attempt] = {}
    for kind in ("dinov2", "evil"):
        place = folder / "transformers" / kind
        put(place / f"{MODULE}.py", code)
        put(place / "config.json", json.dumps({"model_type": kind, "hidden_size": 8, "num_hidden_layers": 1, **mapped}))
        for name in ("pytorch_model.bin", "model.safetensors"):
            put(place / name, weights)
        if find_spec("transformers"):
            found[f"a {kind} of transformers"] = lambda place=place: extractors.dinov2(str(place))
    about = {"_class_name": "UNet2DModel", "block_out_channels": [4], "down_block_types": ["DownBlock2D"], **mapped,
             "up_block_types": ["UpBlock2D"], "norm_num_groups": 1, "sample_size": 8, "in_channels": 1,
             "out_channels": 1}  # fmt: skip
    scheduler = {"_class_name": f"{MODULE}.Evil", "beta_schedule": "linear"}
    index = {"metadata": {}, "weight_map": {"conv_in.weight": "../../evil.bin", "conv_in.bias": "diffusion_pytorch_model.bin"}}
    for name, changed in (
        ("a class of its own", {"_class_name": f"{MODULE}.Evil"}), ("two names", {"_class_name": [MODULE, "Evil"]}),
        ("pickles", {}), ("pickled pieces", {}), ("a pickle for weights", {}), ("a quantizer",
        {"quantization_config": {"quant_method": MODULE}}),
        ("a block of its own", {"down_block_types": [f"{MODULE}.Evil"]}), ("a function", {"act_fn": f"{MODULE}.Evil"}),
        ("no end of layers", {"block_out_channels": [2**16, 2**16]}),
    ):  # fmt: skip
        place = folder / "diffusers" / name.replace(" ", "-")
        put(place / "unet" / f"{MODULE}.py", code)
        put(place / "unet" / "config.json", json.dumps(about | changed))
        put(place / "scheduler" / "scheduler_config.json", json.dumps(scheduler))
        put(place / "unet" / "diffusion_pytorch_model.bin", weights)
        if name != "pickles":
            put(place / "unet" / pretrained.WEIGHTS, weights)
        if name == "pickled pieces":
            put(place / "unet" / f"{pretrained.WEIGHTS}.index.json", json.dumps(index))
            put(place.parent / "evil.bin", weights)
        found[f"a diffusers folder with {name}"] = lambda place=place: pretrained.read(place, "diffusion", None)
    return found


def configs_of(folder: Path, mark: Path) -> dict[str, Attempt]:
    """Recipes and overrides that name code, or the environment."""
    own = "defaults: [schema, _self_]\n"
    texts = {
        "_target_": f"{own}data: {{_target_: {MODULE}.evil}}", "_target_ at the top": f"{own}_target_: {MODULE}.evil",
        "a call": f"{own}name: !!python/object/apply:{MODULE}.evil [x]",
        "an object": f"{own}name: !!python/object:{MODULE}.Evil {{}}",
        "a name": f"{own}name: !!python/name:{MODULE}.evil ''", "a module": f"{own}name: !!python/module:{MODULE} ''",
        "new": f"{own}name: !!python/object/new:{MODULE}.Evil [x]",
        "a path": f"{own}name: !!python/object/apply:pathlib.Path [/etc]",
        "the environment": own + "name: ${oc.env:CANARY}", "decoded": own + "name: ${oc.decode:${oc.env:CANARY}}",
        "created": own + "data: ${oc.create:{path: x}}", "a key of another": own + "name: ${project}",
        "now": own + "name: ${now:%Y}",
        "hydra": own + "name: ${hydra:runtime.cwd}",
        "the environment in defaults": "defaults: [schema, {size: '${oc.env:CANARY}'}]",
        "a search path": f"hydra: {{searchpath: [pkg://{MODULE}]}}\n{own}name: x",
        "a launcher": f"defaults: [schema, _self_, {{override hydra/launcher: {MODULE}}}]",
        "a callback": f"{own}hydra: {{callbacks: {{x: {{_target_: {MODULE}.evil}}}}}}",
        "a file elsewhere": "defaults: [schema, ../../../../etc/passwd]", "an absolute file": "defaults: [schema, /etc/passwd]",
        "a package": f"defaults: [schema, pkg://{MODULE}/x]", "another file": "defaults: [schema, other]",
        "a generator": f"{own}models: [{MODULE}]", "a generator's settings": f"{own}generators: {{{MODULE}: {{x: 1}}}}",
    }  # fmt: skip
    put(folder / "other.yaml", f"_target_: {MODULE}.evil\n")
    put(folder / "size" / "tiny.yaml", f"# @package _global_\nhydra: {{searchpath: [pkg://{MODULE}]}}\n")
    texts["a size of its own"] = "defaults: [schema, size: tiny, _self_]\n"
    program = folder / "program.pt"
    torch.jit.save(torch.jit.script(_Writes(str(mark))), str(program))
    digest = storage.sha256_file(program)
    for extractor in ("torchscript", "inception"):
        settings = {"extractor": extractor, "path": str(program), "sha256": digest}
        texts[f"a program as {extractor}"] = f"{own}{yaml.safe_dump({'features': settings})}"
    found: dict[str, Attempt] = {}
    for number, (name, text) in enumerate(texts.items()):
        path = put(folder / f"recipe-{number}.yaml", text)
        found[f"a recipe with {name}"] = lambda path=path: extractors.check(load(str(path)).features)
    for override in (
        "name=${oc.env:CANARY}", "data.path=x/${oc.env:CANARY}", f"data._target_={MODULE}.evil",
        f"hydra.searchpath=[pkg://{MODULE}]",
        f"+hydra.callbacks.x._target_={MODULE}.evil", f"hydra/launcher={MODULE}", "size=../../x", "size=${oc.env:CANARY}",
        f"models=[{MODULE}]", f"generators.{MODULE}.x=1", "data={_target_: " + MODULE + ".evil}", "data.name=${oc.decode:'1'}",
        "hydra.run.dir=/tmp/x", "~hydra", "size@x=tiny",
    ):  # fmt: skip
        found[override] = lambda override=override: load("digits", [override])
    return found


class _Writes(torch.nn.Module):
    """A TorchScript program can write files."""

    def __init__(self, mark: str) -> None:
        super().__init__()
        self.mark = mark

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        torch.save(images, self.mark)
        return images


def archives_of(folder: Path, mark: Path) -> dict[str, Attempt]:
    """Archives and manifests that lead out of their folder."""
    bad = hostile.pickles(mark)["pickle 2"]
    cls, inside = {"1.cls": b"0"}, {"1.png": PNG}
    out = os.path.relpath(mark, folder)
    members = {
        "a member above it": {out: PNG, f"{out}.cls": b"0"}, "an absolute member": {str(mark): PNG, f"{mark}.cls": b"0"},
        "a backslash": {"..\\..\\it-ran": PNG, "..\\..\\it-ran.cls": b"0"}, "a member of its own": {"a/../../1.png": PNG, **cls},
        "a link to a file": {"1.png": hostile.special(tarfile.SYMTYPE, str(mark)), **cls},
        "a hard link": {"1.png": hostile.special(tarfile.LNKTYPE, "/etc/passwd"), **cls},
        "a device": {"1.png": hostile.special(tarfile.CHRTYPE), **cls},
        "a disk": {"1.png": hostile.special(tarfile.BLKTYPE), **cls},
        "a pipe": {"1.png": hostile.special(tarfile.FIFOTYPE), **cls}, "a kind unknown": {"1.png": hostile.special(b"Z"), **cls},
        **{f"a label as {suffix}": {"1.png": PNG, f"1.{suffix}": bad}
           for suffix in ("pyd", "pickle", "pkl", "pth", "pyc", "npy")},
        "an image that is a pickle": {"1.png": bad, **cls}, "a label that is a pickle": {"1.png": PNG, "1.json": bad},
    }  # fmt: skip
    found: dict[str, Attempt] = {}
    for number, (name, content) in enumerate(members.items()):
        path = put(folder / f"{number}.tar", hostile.tar(content))
        found[f"an archive with {name}"] = lambda path=path: load_candidates(path, SPEC, load("digits-smoke"))
    packed = subprocess.run(["gzip", "-c"], input=hostile.tar(inside | cls), capture_output=True, check=True).stdout
    put(folder / "packed.tar", packed)
    os.mkfifo(folder / "pipe.tar")
    for name in ("packed.tar", "pipe.tar"):
        found[name] = lambda name=name: read.load(folder / name)
    export = targets._export(folder / "export")
    text = (export / manifest.NAME).read_text()
    (shard,) = (export / "webdataset").glob("*.tar")
    for number, place in enumerate(("../x.tar", "/etc/passwd", "a/../../x", "", "..", "a\\b", "webdataset/\\u0000")):
        other = shutil.copytree(export, folder / f"export-{number}")
        put(other / manifest.NAME, text.replace(f"webdataset/{shard.name}", place.replace("\\b", "\\\\b")))
        found[f"a manifest that lists {place!r}"] = lambda other=other: read.load(other)
    linked = shutil.copytree(export, folder / "linked")
    (linked / "webdataset" / shard.name).rename(folder / "elsewhere.tar")
    (linked / "webdataset" / shard.name).symlink_to(folder / "elsewhere.tar")
    found["a shard that is a link"] = lambda: read.load(linked)
    for number, place in enumerate(("../secret", "/etc/passwd", "a/../../x")):
        made = {"schema": storage.STAGE_SCHEMA, "stage": "x", "config": {}, "inputs": {}, "code": "0"}
        entry = storage.entry_of(put(folder / "secret", "secret")) if number == 0 else {"bytes": 1, "sha256": "0"}
        stage = folder / f"stage-{number}"
        storage.write_sealed(stage / storage.STAGE_MANIFEST, made | {"files": {place: entry}})
        found[f"a stage that lists {place!r}"] = lambda stage=stage: storage.check_folder(stage)
        found[f"a run that lists {place!r}"] = lambda stage=stage: _verified(stage)
    return found


def _verified(folder: Path) -> None:
    problems = checks.verify(str(folder))["problems"]
    if problems:
        raise SynthgenError(problems[0])


GROUPS = {
    "checkpoints": checkpoints_of, "arrays": arrays_of, "tables": tables_of, "networks": networks_of, "configs": configs_of,
    "archives": archives_of,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # of torch.save and torch.jit, that make what is handed in
@pytest.mark.parametrize("group", GROUPS)
def test_no_code_runs_and_everything_is_refused(group, tmp_path, mark, tally):
    attempts = GROUPS[group](tmp_path / group, mark)
    assert not mark.exists(), "making them runs nothing"
    wrong = tried(attempts, mark)
    tally("code", cases=len(attempts), bad=sum(line.endswith(": it ran") for line in wrong))
    assert not wrong


def test_the_attacks_work_where_code_is_run(tmp_path, mark):
    """Else their failing would prove nothing."""
    for name, data in hostile.pickles(mark).items():
        if name.startswith(("torch", "pickle")):
            torch.load(put(tmp_path / "x", data), weights_only=False) if name.startswith("torch") else pickle.loads(data)
            assert mark.exists(), name
            mark.unlink()
    np.load(put(tmp_path / "x.npy", hostile.saved(hostile.object_array(mark))), allow_pickle=True)
    assert mark.exists()
    mark.unlink()
    __import__(MODULE)
    assert mark.exists()
    mark.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(_Writes(str(mark)))(torch.zeros(1))
    assert mark.exists()


def test_a_name_in_the_run_folder_is_not_imported_when_a_run_is_sent(tmp_path, mark, tally, monkeypatch):
    """`python -m wandb` would look for wandb in its working folder first, and that is the run's."""
    folder = put(tmp_path / "run" / "wandb" / "offline-run-1" / "run-1.wandb", b"").parent
    for name in ("wandb/__init__.py", "wandb/__main__.py", "yaml.py", "sitecustomize.py", "json.py"):
        put(tmp_path / "run" / name, hostile.module(mark))
    started = []

    def popen(command, **settings):
        started.append(command)
        return subprocess.Popen([*command[: command.index("sync")], "--version"], **settings)

    monkeypatch.setattr(tracking, "_base_url", lambda: "x")
    monkeypatch.setattr(tracking, "_silence_of", lambda url: "")
    monkeypatch.setattr(tracking, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": popen}))
    tracking._sync(folder)
    assert started[0][-1] == str(folder)
    tally("code", cases=1, bad=int(mark.exists()))
    assert not mark.exists()


def test_a_program_is_started_where_the_command_line_names_it(tmp_path, mark):
    """What the user says counts: the same recipe with `features.path=...` beside it."""
    path = put(tmp_path / "mine.yaml", "defaults: [schema, _self_]\nfeatures: {extractor: torchscript, path: a.pt}\n")
    assert load(str(path), ["features.path=b.pt"]).features.path == "b.pt"
    assert load("digits", ["features.extractor=torchscript", "features.path=a.pt"]).features.path == "a.pt"
