"""Broken, hostile and unusual input through the real command line: one line that helps, nothing left, nothing in silence."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from synthgen import api, cli, storage, training
from synthgen.config.load import load
from synthgen.config.schema import RunConfig
from synthgen.data import tables
from synthgen.models.diffusion import Diffusion
from synthgen.models.gan import GAN
from synthgen.models.vae import VAE
from synthgen.models.vqvae import VQVAE
from synthgen.shards import raw
from tests.faults import bad_input, bad_tables
from tests.faults.bad_input import SIZE, Refused, Spoil, good_images
from tests.faults.figures import short_or_long

AUDIT = ("--recipe", "folder", f"data.size_px={SIZE}", "audit.label_folds=2")
COMMANDS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
"""Control characters but for the end of a line."""


@dataclass(frozen=True)
class Said:
    """What a command left and said: exit code, standard output, standard error, and its messages before any terminal saw them."""

    code: int
    out: str
    err: str
    messages: tuple[str, ...]


Call = Callable[..., Said]


@cache
def settings(recipe: str, overrides: tuple[str, ...]) -> RunConfig:
    return load(recipe, overrides)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch, tmp_path):
    """For the disk, since what survives a power cut is another suite's question; nor for the same settings time and again."""
    monkeypatch.setattr(os, "fsync", lambda file: None)
    monkeypatch.setattr(api, "load", lambda recipe, overrides=(): settings(recipe, tuple(overrides)))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


@pytest.fixture
def call(capfd, monkeypatch) -> Call:
    """The command in this process."""

    def run(*arguments: object) -> Said:
        messages: list[str] = []
        echo = cli.typer.echo
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["synthgen", *map(str, arguments)])
            patch.setattr(cli.typer, "echo", lambda text="", **how: (messages.append(str(text)), echo(text, **how)))
            code = cli._main()
        found = capfd.readouterr()
        return Said(code, found.out, found.err, tuple(messages))

    return run


def contents(root: Path) -> dict[str, tuple]:
    """Every name below a folder with its kind, its bytes, and where a link leads."""
    found: dict[str, tuple] = {}
    for here, folders, files in os.walk(root):
        for path in (os.path.join(here, name) for name in (*folders, *files)):
            mode = os.lstat(path).st_mode
            data = Path(path).read_bytes() if stat.S_ISREG(mode) else os.readlink(path) if stat.S_ISLNK(mode) else b""
            found[path] = (stat.S_IFMT(mode), data)
    return found


def faults(
    said: Said, code: int, words: tuple[str, ...], out: Path, before: dict[str, tuple] | None = None, leaves: bool = False
) -> list[str]:
    """What is wrong with how a command ended: its code, its words, its form, what it left, what it touched.

    Args:
        before: contents of the folder `in` beside `out`, which nothing may change.
        leaves: it may leave something in `out`, as a training that goes on does.
    """
    lines = said.err.splitlines()
    wrong = [f"{word!r} isn't said" for word in words if word not in said.err]
    if said.code != code:
        wrong.append(f"exit code {said.code}, expected {code}")
    if code and (len(lines) != 1 or not lines[0].startswith("synthgen: ") or len(lines[0]) > 2000):
        wrong.append("not one line")
    if "Traceback" in said.err or "defect of synthgen" in said.err:
        wrong.append("a traceback or a defect")
    if any(COMMANDS.search(text) for text in (said.out, said.err, *said.messages)):
        wrong.append("control characters on the screen")
    left = [path.name for path in (*out.rglob("*"), *Path(tempfile.gettempdir()).iterdir()) if path.name.endswith(".tmp")]
    if left or any(Path(tempfile.gettempdir()).iterdir()):
        wrong.append(f"left behind: {left}")
    if code and out.exists() and not leaves:
        wrong.append(f"an output is left: {sorted(path.name for path in out.rglob('*'))}")
    if before is not None and contents(out.parent / "in") != before:
        wrong.append("the images were changed")
    return [*wrong, f"it said: {said.err[:600]}"] if wrong else []


@pytest.fixture(scope="session")
def good(tmp_path_factory) -> Path:
    return good_images(tmp_path_factory.mktemp("good") / "in")


def judged(call: Call, tally, good: Path, folder: Path, case: Refused) -> None:
    """Spoils a copy of the good images and asks for an audit."""
    root = Path(shutil.copytree(good, folder / "in"))
    other = case.spoil(root)
    place = other if isinstance(other, Path | str) else root
    before = contents(folder / "in")
    said = call("audit", place, "--out", folder / "out", *AUDIT, *case.settings)
    wrong = faults(said, case.code, case.words, folder / "out", before)
    count(tally, wrong)


def count(tally, wrong: list[str]) -> None:
    """One case, said before it is asserted."""
    tally("input", 1, bool(wrong))
    tally("tracebacks", 1, any("traceback" in fault for fault in wrong))
    assert not wrong, "\n".join(wrong)


# What can't be used


@pytest.mark.parametrize("name", bad_input.FOLDERS)
def test_a_folder_that_is_no_data_set(name, call, tally, good, tmp_path):
    judged(call, tally, good, tmp_path, bad_input.FOLDERS[name])


@pytest.mark.parametrize("name", bad_tables.PARQUET)
def test_a_parquet_file_that_is_no_data_set(name, call, tally, good, tmp_path):
    judged(call, tally, good, tmp_path, bad_tables.PARQUET[name])


@pytest.mark.parametrize("name", bad_tables.NPZ)
def test_an_npz_that_is_no_data_set(name, call, tally, good, tmp_path):
    judged(call, tally, good, tmp_path, bad_tables.NPZ[name])


def test_an_archive_of_zeros_is_refused_before_it_is_unpacked(call, tally, good, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_memory", lambda: 2**20)
    monkeypatch.setattr(tables, "_npz_array", lambda *_: pytest.fail("unpacked"))
    bomb = bad_tables.npz(images=np.zeros((24, 256, 256), np.uint8))
    judged(call, tally, good, tmp_path, Refused(bomb, ("takes 0.0 GiB of memory", "which are read one by one")))


@pytest.mark.parametrize("name", bad_input.LEFT_OUT)
def test_a_file_that_cannot_be_read_stops_the_run_and_is_named(name, call, tally, good, tmp_path):
    place, make, reason = bad_input.LEFT_OUT[name]
    shown = place.replace("\x1b", r"\x1b").replace("\n", r"\x0a")
    words = (
        "1 of 25 images are unreadable",
        "data.max_unreadable=0.01 allows 0; mend or remove them",
        f"First: {shown}: {reason}",
    )
    if name == "two links in a loop":
        words = ("2 of 26 images are unreadable", reason)
    judged(call, tally, good, tmp_path, Refused(lambda root: [make(root / place)], words))


# What is read, with everything that was left out or converted in the report


def audited(folder: Path, place: Path, *settings: str) -> tuple[dict, dict[str, np.ndarray]]:
    """The report, and every image of the split by its key."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["synthgen", "audit", str(place), "--out", str(folder), "--quiet", *AUDIT, *settings])
        assert cli._main() == 0
    images = {}
    for role in ("train", "val", "reference", "test"):
        batch = raw.read(folder / "split" / f"{role}.parquet")
        images.update(zip(batch.keys, batch.images.transpose(0, 2, 3, 1), strict=True))
    return storage.read_json(folder / "audit" / "report.json"), images


@pytest.fixture(scope="session")
def listed(good, tmp_path_factory) -> dict[str, tuple[str, int]]:
    """Case -> the reason that an audit lists for its file, when many are allowed, all of them in one folder."""
    here = tmp_path_factory.mktemp("left out")
    root, places = Path(shutil.copytree(good, here / "in")), {}
    for number, (name, (place, make, _)) in enumerate([*bad_input.LEFT_OUT.items(), *bad_input.PASSED_OVER.items()]):
        folder, _, file = place.rpartition("/")
        own = place if name in bad_input.PASSED_OVER else f"{folder}/{number:02d}/{file}"
        (root / own).parent.mkdir(exist_ok=True)
        places[name] = own.replace("\x1b", r"\x1b").replace("\n", r"\x0a")
        make(root / own)
    before = contents(root)
    report, images = audited(here / "out", root, "data.max_unreadable=0.9")
    assert contents(root) == before
    assert len(images) == report["num_images"] == 2 * bad_input.EACH
    reasons = report["quarantined"]
    assert report["num_quarantined"] == len(reasons) == len(places) + 1  # two links in a loop are two
    return {name: reasons.get(place, "not listed") for name, place in places.items()}


@pytest.mark.parametrize("name", [*bad_input.LEFT_OUT, *bad_input.PASSED_OVER])
def test_a_file_that_is_left_out_is_listed_with_the_reason(name, listed, tally):
    _, _, reason = (bad_input.LEFT_OUT | bad_input.PASSED_OVER)[name]
    count(tally, [] if reason in listed[name] else [f"listed as {listed[name]!r}, expected {reason!r}"])


@pytest.fixture(scope="session")
def unusual(good, tmp_path_factory) -> tuple[dict, dict[str, np.ndarray]]:
    """The report on a folder with every kind of unusual image, and what became of each: case -> pixels."""
    here = tmp_path_factory.mktemp("unusual")
    root = os.fsencode(shutil.copytree(good, here / "in"))
    for file, data, _, _ in bad_input.CONVERTED.values():
        Path(os.fsdecode(os.path.join(root, b"cat", file))).write_bytes(data)
    report, images = audited(here / "out", here / "in")
    cats = sorted(os.listdir(os.path.join(root, b"cat")), key=os.fsdecode)
    keys = {file: f"real-{i:06d}" for i, file in enumerate(cats)}
    return report, {name: images[keys[file]] for name, (file, *_) in bad_input.CONVERTED.items()}


@pytest.mark.parametrize("name", bad_input.CONVERTED)
def test_an_unusual_image_is_read_and_its_conversion_listed(name, unusual, tally):
    report, images = unusual
    _, _, pixels, conversions = bad_input.CONVERTED[name]
    every = Counter(label for *_, labels in bad_input.CONVERTED.values() for label in labels)
    wrong = [f"{label}: {report['converted'].get(label)} times, expected {every[label]}" for label in conversions
             if report["converted"].get(label) != every[label]]  # fmt: skip
    wrong += [f"listed, and never done: {label}" for label in report["converted"] if label not in every]
    if report["quarantined"] or report["num_images"] != 2 * bad_input.EACH + len(bad_input.CONVERTED):
        wrong.append(f"left out: {report['quarantined']}")
    if np.abs(images[name].astype(int) - pixels).max() > 3 * ("JPEG" in name):
        wrong.append("other pixels")
    count(tally, wrong)


@pytest.mark.parametrize("name", [*bad_input.READ, *bad_tables.READ])
def test_what_is_merely_unusual_is_read(name, call, tally, good, tmp_path):
    spoil: Spoil = (bad_input.READ | bad_tables.READ)[name]
    judged(call, tally, good, tmp_path, Refused(spoil, (), 0))


# Settings

DIGITS = ("audit", "digits", "--recipe", "digits-smoke")
SETTINGS: dict[str, tuple[str, ...]] = {
    "gate.max_defect=nan": ("gate.max_defect: input should be a finite number, found nan",),
    "gate.max_defect=inf": ("gate.max_defect: input should be a finite number, found inf",),
    "gate.max_defect=1e400": ("gate.max_defect: input should be a finite number",),
    "gate.max_defect=-1": ("gate.max_defect: input should be greater than 0, found -1",),
    "gate.max_defect=much": ("gate.max_defect: input should be a valid number", "found 'much'"),
    "gate.max_defcet=1": ("gate.max_defcet: no such setting; did you mean 'gate.max_defect'",),
    "gate.max_defect": ("'gate.max_defect': not of the form key=value",),
    "gate=": ("gate: ",),
    "gate.bounds.kid=nan": ("gate.bounds.kid: input should be a finite number",),
    "seed=-1": ("seed: input should be greater than or equal to 0, found -1",),
    "seed=1e30": ("seed: ", "found 1e+30"),
    f"seed={2**63}": ("seed: input should be less than 9223372036854775808",),
    "seed=[1]": ("seed: input should be a valid integer, found [1]",),
    "seed=[[[": ("seed=[[[: can't be read",),
    "generate.num=0": ("generate.num: input should be greater than 0, found 0",),
    "generators.vae.lr=nan": ("generators.vae.lr: input should be a finite number, found nan",),
    "generators.vae.lr=-1": ("generators.vae.lr: input should be greater than 0",),
    "split.val=nan": ("split.val: input should be a finite number",),
    "split.train=-3": ("split.train: input should be greater than or equal to 0",),
    "data.max_pixels=-1": ("data.max_pixels: input should be greater than 0",),
    "data.max_unreadable=2": ("data.max_unreadable: input should be less than or equal to 1",),
    "data.classes=[3]": ("data.classes: ", "at least 2 items"),
    "data.classes=[3,nine]": ("digits has no class 'nine'", "its classes are 0, 1"),
    "data.name='\x1b[31mx'": (r"data.name='\x1b[31mx': holds control characters",),
    "name=../../x": ("name: string should match pattern", "found '../../x'"),
    "models=[vae,nope]": ("models.1: no such generator", "known: vae"),
}
"""Overrides -> what is said of them; the exit code is 2."""


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_that_cannot_be(setting, call, tally, tmp_path):
    said = call(*DIGITS, "--out", tmp_path / "out", setting)
    count(tally, faults(said, 2, SETTINGS[setting], tmp_path / "out"))


SCHEMA = b"defaults: [schema, _self_]\n"
RECIPES: dict[str, tuple[bytes | None, int, str]] = {
    "a folder": (None, 2, "x.yaml: no such file"),
    "data that isn't there": (SCHEMA + b"data: {source: folder, path: nowhere}\n", 3, "data.path='nowhere': no such file"),
    "a path that is empty": (SCHEMA + b"data: {source: folder, path: ''}\n", 3, "data.path='': is empty"),
    "a home that nobody has": (SCHEMA + b"data: {source: npz, path: ~nobody-at-all/x}\n", 3, "give the whole path"),
    "a key that isn't": (SCHEMA + b"gate: {max_defcet: 1}\n", 2, "gate.max_defcet: no such setting; did you mean 'gate"),
    "a path with a zero": (SCHEMA + b'data: {source: folder, path: "a\\0b"}\n', 3, r"data.path='a\x00b': no such file"),
    "bytes that are no text": (b"\xff\xfe\0\0", 2, "x: "),
    "no YAML": (b"a: [b", 2, "x: "),
    "a list": (b"- 1\n- 2\n", 2, "x"),
}  # fmt: skip
"""A YAML file -> its bytes, the exit code, what is said."""


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_that_cannot_be(name, call, tally, tmp_path):
    data, code, words = RECIPES[name]
    path = tmp_path / "x.yaml"
    path.mkdir() if data is None else path.write_bytes(data)
    said = call("run", path, "--out", tmp_path / "out")
    count(tally, faults(said, code, (words,), tmp_path / "out"))


# Folders that a job is pointed to

PLACES: dict[str, tuple[tuple[str, ...], int, str]] = {
    "train on nothing": (("train", "nowhere", "vae"), 3, "'nowhere': no such file or folder"),
    "train on images": (("train", "IN", "vae"), 5, "in: no stage.json"),
    "train nobody": (("train", "IN", "vea"), 2, "did you mean 'vae'"),
    "generate from nothing": (("generate", "nowhere", "--real", "IN"), 5, "in: no stage.json"),
    "generate from a text": (("generate", "IN/cat/00.png", "--real", "IN"), 5, "in: no stage.json"),
    "gate against nothing": (("gate", "--real", "nowhere", "--candidates", "IN"), 3, "'nowhere': no such file or folder"),
    "gate nothing": (("gate", "--real", "IN", "--candidates", "nowhere"), 3, "nowhere: no such file or folder"),
    "report on images": (("report", "IN"), 3, "in"),
    "verify images": (("verify", "IN"), 3, "in"),
}


@pytest.mark.parametrize("name", PLACES)
def test_a_place_that_is_not_what_a_job_needs(name, call, tally, good, tmp_path):
    arguments, code, words = PLACES[name]
    shutil.copytree(good, tmp_path / "in")
    before = contents(tmp_path / "in")
    given = [argument.replace("IN", str(tmp_path / "in")) for argument in arguments]
    said = call(*given, *(() if given[0] in ("report", "verify") else ("--out", tmp_path / "out")))
    count(tally, faults(said, code, (words,), tmp_path / "out", before))


# Training that diverges

KINDS = {"vae": VAE, "vqvae": VQVAE, "gan": GAN, "diffusion": Diffusion}
STEPS = 6
TINY = ("looks.times=0", "generators.diffusion.sampling_steps=2", "--quiet")
DIVERGED = [(kind, step) for kind in KINDS for step in range(1, STEPS + 1)]


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """A folder of `audit`."""
    folder = tmp_path_factory.mktemp("digits") / "data"
    sizes = ("split.train=200", "split.val=150", "split.reference=300", "split.test=400", "audit.label_folds=2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["synthgen", *DIGITS, "--out", str(folder), "--quiet", *sizes])
        assert cli._main() == 0
    return folder


@pytest.mark.parametrize(("kind", "step"), short_or_long(DIVERGED, 10))
def test_training_that_becomes_nan_says_so_and_goes_on_from_the_last_good_checkpoint(
    kind, step, call, tally, digits, tmp_path, monkeypatch
):
    monkeypatch.setattr(training, "EPOCH", 2)  # a checkpoint after every second step
    monkeypatch.setattr(training, "fit", partial(training.fit, save_every_s=0.0))
    own, out = KINDS[kind].training_step, tmp_path / "out"

    def diverging(module, batch, number):
        loss = own(module, (batch[0] * float("nan"), batch[1]) if kind == "gan" and module.step == step - 1 else batch, number)
        return loss * float("nan") if kind != "gan" and module.step == step - 1 else loss

    arguments = ("train", digits, kind, "--out", out, f"generators.{kind}.steps={STEPS}", *TINY)
    with monkeypatch.context() as patch:
        patch.setattr(KINDS[kind], "training_step", diverging)
        said = call(*arguments)
    words = (f"train {kind}: the loss is nan at step {step}", "lower its lr, or check the images")
    kept = sorted(out.glob("resume-*.ckpt"))
    wrong = faults(said, 6, words, out, leaves=bool(kept))
    done = [torch.load(path, weights_only=True) for path in kept]
    if sorted(each["callbacks"]["Watch"]["done"] for each in done) != list(range(2, step, 2))[-2:]:
        wrong.append("not the last two good checkpoints")
    if not all(torch.isfinite(leaf).all() for each in done for leaf in tree_leaves(each) if torch.is_tensor(leaf)):
        wrong.append("a checkpoint isn't finite")
    again = call(*arguments)
    if again.code or not (out / "generator.safetensors").is_file():
        wrong.append(f"the same command again: {again.err}")
    count(tally, wrong)


# Features that aren't finite


class Planted(nn.Module):
    """Random projections; some dimensions hold another value, of every image or of those whose first pixel is white."""

    def __init__(self, marked: bool, dimensions: int, value: float, scale: float = 1.0) -> None:
        super().__init__()
        self.marked, self.dimensions, self.value, self.scale = marked, dimensions, value, scale
        self.register_buffer("weights", torch.randn(192, 8, generator=torch.Generator().manual_seed(0)) / 14)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = images.flatten(1) @ self.weights * self.scale
        hit = (images[:, 0, 0, 0] > 0.9) if self.marked else torch.ones(len(images), dtype=torch.bool)
        columns = torch.arange(features.shape[1]) < self.dimensions
        return torch.where(hit[:, None] & columns[None], torch.full_like(features, self.value), features)


NAN, INF = float("nan"), float("inf")
FEATURES: dict[str, tuple[Planted, int, int, str]] = {
    "NaN of every image": (Planted(False, 8, NAN), 300, 3, "hold NaN or infinite values, the first is row 0"),
    "infinity of every image": (Planted(False, 8, INF), 300, 3, "hold NaN or infinite values"),
    "NaN of every candidate": (Planted(True, 8, NAN), 300, 3, "300 of 300 rows hold NaN or infinite values"),
    "minus infinity of every candidate": (Planted(True, 8, -INF), 300, 3, "300 of 300 rows hold NaN or infinite"),
    "NaN in a dimension of three candidates": (
        Planted(True, 1, NAN),
        3,
        3,
        "3 of 300 rows hold NaN or infinite values, the first is row 0, 'candidate-000000' (then 1, 2); leave them",
    ),
    "infinity in a dimension of one candidate": (Planted(True, 1, INF), 1, 3, "1 of 300 rows hold NaN or infinite values"),
    "the same of every image": (Planted(False, 8, 0.5), 300, 3, "all 300 reference images the same features"),
    "the same of every candidate": (Planted(True, 8, 0.5), 300, 0, "reject"),
    "1e38 of every candidate": (Planted(True, 8, 1e38), 300, 0, "reject"),
    "features near 1e30": (Planted(True, 0, 0.0, 1e30), 0, 3, "overflow torch.float32"),
    "features near 1e-30": (Planted(True, 0, 0.0, 1e-30), 0, 0, "not told"),
}
"""What -> (extractor, marked candidates, exit code, what is said, or the verdict)."""


@pytest.fixture(scope="session")
def judging(digits, tmp_path_factory) -> Callable[[Path, Planted, int], list[str]]:
    """The arguments of a gate with this extractor, as a TorchScript file, on 300 held-out digits of which some are marked."""
    folder = tmp_path_factory.mktemp("judging")
    test = raw.read(digits / "split" / "test.parquet")
    few = ("features.steps=3", "features.folds=2", "features.width=4", "features.dim=8", "features.defect_steps=3")
    few += ("features.cache=false", "gate.planted=0", "gate.splits=20", "gate.search_px=0", "workers=1")

    def arguments(here: Path, extractor: Planted, marked: int) -> list[str]:
        images = test.images[:300, 0].copy()
        images[:marked, 0, 0] = 255
        np.savez(here / "candidates.npz", images=images, labels=test.labels[:300].astype(str))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch would have us use torch.export
            torch.jit.save(torch.jit.script(extractor), str(here / "extractor.pt"))
        planted = ("features.extractor=torchscript", f"features.path={here / 'extractor.pt'}")
        places = ("--real", str(digits), "--candidates", str(here / "candidates.npz"), "--out", str(folder / "out"))
        return ["gate", *places, "--restart", "--quiet", "--json", *few, *planted]

    return arguments


@pytest.mark.parametrize("name", FEATURES)
def test_the_gate_says_nothing_without_finite_features(name, call, tally, judging, tmp_path):
    extractor, marked, code, words = FEATURES[name]
    arguments = judging(tmp_path, extractor, marked)
    said = call(*arguments)
    wrong = faults(said, code, (words,) if code else (), tmp_path / "out")
    verdict = json.loads(said.out)["verdict"] if said.code == 0 else ""
    if verdict == "accept" or (words == "reject" and verdict != "reject"):
        wrong.append(f"the verdict is {verdict!r}")
    if code and (Path(arguments[6]) / "gate" / storage.STAGE_MANIFEST).exists():
        wrong.append("a verdict is left")
    count(tally, wrong)


@pytest.mark.parametrize("place", ["4/x.png", "x.png"])
def test_candidates_of_which_one_cannot_be_read_are_not_judged(place, call, tally, digits, judging, tmp_path):
    test = raw.read(digits / "split" / "test.parquet")
    for key, label, image in zip(test.keys[:300], test.labels[:300], test.images[:300], strict=True):
        (tmp_path / "in" / str(label)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / str(label) / f"{key}.png").write_bytes(bad_input.encoded(image[0]))
    (tmp_path / "in" / place).write_bytes(bad_input.encoded(test.images[0][0])[:-12] if "/" in place else b"")
    before = contents(tmp_path / "in")
    arguments = judging(tmp_path, Planted(True, 0, 0.0), 0)
    arguments[4] = str(tmp_path / "in")
    said = call(*arguments, "data.max_unreadable=0.5")
    words = ("1 of the candidates can't be read, and a set is judged as a whole; mend or remove them", f"First: {place}: ")
    count(tally, faults(said, 3, words, tmp_path / "out", before))


def test_what_was_done_to_candidates_when_they_were_read_stands_in_the_report(call, tally, digits, judging, tmp_path):
    arguments = judging(tmp_path, Planted(True, 0, 0.0), 0)
    images = np.load(tmp_path / "candidates.npz")
    larger = images["images"].repeat(2, 1).repeat(2, 2).astype(np.uint16) * 257
    np.savez(tmp_path / "candidates.npz", images=larger, labels=images["labels"])
    said = call(*arguments)
    notices = json.loads(said.out)["notices"] if said.code == 0 else []
    told = [f"300 of the 300 candidates were changed when they were read: {what}" for what in ("16-bit scaled", "resized")]
    wrong = faults(said, 0, (), tmp_path / "out") + [f"not told: {line}" for line in told if line not in notices]
    count(tally, wrong)
