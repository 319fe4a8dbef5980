"""Extractors: what their id covers, what they refuse, and features that no cut, cache or number of devices changes."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from synthgen import extraction, storage
from synthgen.config.load import load
from synthgen.config.schema import FeaturesConfig
from synthgen.data.transforms import to_float
from synthgen.errors import ConfigError, DataError
from synthgen.jobs import Order, Split, audit
from synthgen.jobs import features as train_networks
from synthgen.jobs.gates import CACHE, Judging, check_extractor
from synthgen.metrics import extractors
from synthgen.metrics.features import as_features, as_pair, check_finite
from tests.conftest import toy_images


class Plain(nn.Module):
    """Float RGB images to six features: means and standard deviations of the channels, weighted."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == 3
        assert x.dtype == torch.float32
        return self.weight * torch.cat([x.mean((2, 3)), x.std((2, 3))], 1)


class Detector(nn.Module):
    """The calling convention of NVIDIA's Inception: levels in, logits or features out."""

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        x = img.to(torch.float32)
        features = torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)
        return features if return_features else features[:, :1]


class Map(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def scripted(network: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(network), str(path))
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def plain(tmp_path) -> Path:
    return scripted(Plain(1.0), tmp_path / "plain.pt")


@pytest.fixture
def images() -> np.ndarray:
    """300 grey 8x8 images: two micro-batches of 128 and a part of one."""
    return toy_images(300, (1, 8, 8), 3).images


def convolution(seed: int = 0) -> nn.Module:
    """A network whose last bits depend on how many images go through it at once."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.GELU(), nn.Flatten(), nn.Linear(16 * 64, 32)).eval()


class Counting(nn.Module):
    """A network that counts its calls and notes how many images each held."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.calls, self.sizes = network, 0, set[int]()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.sizes.add(len(x))
        return self.network(x)


# Ids


def test_the_id_follows_weights_and_size(tmp_path, plain):
    heavier = scripted(Plain(2.0), tmp_path / "heavier.pt")
    ids = [
        extractors.torchscript(plain).id,
        extractors.torchscript(heavier).id,
        extractors.torchscript(plain, size_px=16).id,
        extractors.torchscript(plain, size_px=32).id,
        extractors.inception(scripted(Detector(), tmp_path / "d.pt"), sha256(tmp_path / "d.pt")).id,
        extractors.domain(convolution(), "domain toy").id,
        extractors.domain(convolution(1), "domain toy").id,
    ]
    assert len(set(ids)) == len(ids)
    assert extractors.torchscript(plain, sha256(plain), 16).id == ids[2]
    assert sha256(plain) in ids[0]
    assert "16px bilinear antialias" in ids[2]


# Transforms


def test_torchscript_sees_rgb_in_range_at_its_size(plain):
    network = extractors.torchscript(plain, size_px=4).network
    levels = np.zeros((2, 1, 8, 8), np.uint8)
    levels[1] = 255
    assert network(torch.from_numpy(levels)).tolist() == [[-1.0] * 3 + [0.0] * 3, [1.0] * 3 + [0.0] * 3]


def test_grey_is_what_the_same_colour_image_is(tmp_path, plain, images):
    colour = np.repeat(images, 3, axis=1)
    detector = scripted(Detector(), tmp_path / "d.pt")
    for extractor in (
        extractors.torchscript(plain),
        extractors.torchscript(plain, size_px=11),
        extractors.inception(detector, sha256(detector)),
    ):
        assert extraction.extract(extractor, images).tobytes() == extraction.extract(extractor, colour).tobytes()


def test_an_image_of_the_right_size_is_left_as_it_is(plain, images):
    native, resized = extractors.torchscript(plain), extractors.torchscript(plain, size_px=8)
    assert extraction.extract(native, images).tobytes() == extraction.extract(resized, images).tobytes()
    smaller = extraction.extract(extractors.torchscript(plain, size_px=5), images)
    assert not np.allclose(smaller, extraction.extract(native, images))


def test_resizing_is_antialiased(plain):
    stripes = np.zeros((1, 1, 64, 64), np.uint8)
    stripes[..., ::4] = 255
    features = extraction.extract(extractors.torchscript(plain, size_px=16), stripes)
    assert np.abs(features[0, :3] + 0.5).max() < 0.02  # the mean level; without antialiasing all black or all white
    assert features[0, 3:].max() < 0.1


def test_inception_takes_levels_and_gives_features(tmp_path, images):
    detector = scripted(Detector(), tmp_path / "d.pt")
    features = extraction.extract(extractors.inception(detector, sha256(detector)), images)
    assert features.shape == (300, 6)
    assert features.dtype == np.float32
    assert np.allclose(features[:, 3], images.max((1, 2, 3)))


def test_domain_is_the_network_in_range(images):
    network = convolution()
    with torch.no_grad():
        expected = network(to_float(images[:128])).numpy()
    assert extraction.extract(extractors.domain(network, "toy"), images)[:128].tobytes() == expected.tobytes()


# What is refused


def test_another_sha256_is_refused(plain):
    with pytest.raises(ConfigError, match=f"features.path={plain}: its sha256 is {sha256(plain)}, expected {'0' * 64}; get"):
        extractors.torchscript(plain, "0" * 64)
    with pytest.raises(ConfigError, match=f"its sha256 is .*, expected {extractors.INCEPTION_SHA256}"):
        extractors.inception(plain)


def test_weights_without_a_network_are_named(tmp_path, monkeypatch):
    path = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    path.write_bytes(b"weights")
    monkeypatch.setattr(extractors, "STATE_DICT_SHA256", sha256(path))
    with pytest.raises(ConfigError, match="pytorch-fid's weights without their network; get the TorchScript file https://"):
        extractors.inception(path)


def test_what_is_no_torchscript_is_refused(tmp_path, plain):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"garbage")
    with pytest.raises(ConfigError, match=r"weights.pt: not a TorchScript file"):
        extractors.torchscript(path)
    path.write_bytes(plain.read_bytes()[:500])
    with pytest.raises(ConfigError, match=r"weights.pt: not a TorchScript file"):
        extractors.torchscript(path)


def test_a_network_of_another_shape_or_convention_is_named(tmp_path, plain, images):
    with pytest.raises(DataError, match=r"map.pt: expected features of shape \(32, d\), found \(32, 3, 8, 8\)"):
        extraction.extract(extractors.torchscript(scripted(Map(), tmp_path / "map.pt")), images)
    with pytest.raises(DataError, match=r"plain.pt: fails on images of shape \(32, 3, 8, 8\) \(.*expected at most 2 argument"):
        extraction.extract(extractors.inception(plain, sha256(plain)), images)


def test_inception_is_taken_from_a_cache_or_missed_by_name(tmp_path, monkeypatch, images):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with pytest.raises(ConfigError, match=r"looked for .*cache/synthgen/.*torch/hub/checkpoints.*nothing is downloaded.*https"):
        extractors.check(FeaturesConfig(extractor="inception"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    path = scripted(Detector(), folder / extractors.INCEPTION_FILE)
    with pytest.raises(ConfigError, match="its sha256 is"):
        extractors.check(FeaturesConfig(extractor="inception"))
    monkeypatch.setattr(extractors, "INCEPTION_SHA256", sha256(path))
    assert extractors.check(FeaturesConfig(extractor="inception")) == sha256(path)
    assert extraction.extract(extractors.load(FeaturesConfig(extractor="inception")), images).shape == (300, 6)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["features.extractor=torchscript"], "features.path=FILE.pt"),
        (["features.extractor=dinov2"], "features.path=FOLDER"),
        (["features.path=x.pt"], "features: path is for extractor=inception, dinov2 or torchscript"),
        (["features.extractor=inception", "features.size_px=64"], "features: size_px is for dinov2 and torchscript"),
        (["features.extractor=torchscript", "features.path=x", "features.sha256=abc"], "features.sha256"),
        (["features.extractor=clip"], "features.extractor"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(overrides, said):
    with pytest.raises(ConfigError) as error:
        load("digits-smoke", overrides)
    assert said in str(error.value)


def test_a_missing_file_is_named_before_any_compute(tmp_path):
    for extractor in ("inception", "torchscript"):
        config = load("digits-smoke", [f"features.extractor={extractor}", f"features.path={tmp_path}/none.pt"])
        with pytest.raises(ConfigError, match=rf"features.path={tmp_path}/none.pt: can't be read \(No such file"):
            check_extractor(Order(config))


def test_more_gpus_than_there_are_is_refused():
    with pytest.raises(ConfigError, match=r"features.devices=99: torch finds \d+ CUDA devices"):
        extraction.check_devices("cuda", 99)


# The pass


def test_the_cut_of_the_images_changes_no_byte(images):
    extractor = extractors.domain(convolution(), "toy")
    whole = extraction.extract(extractor, images).tobytes()
    cut = iter([images[:1], images[1:1], images[1:140], images[140:]])
    assert extraction.extract(extractor, cut).tobytes() == whole
    parts = [extraction.extract(extractor, images[:128]), extraction.extract(extractor, images[128:])]
    assert np.concatenate(parts).tobytes() == whole


def test_every_forward_pass_holds_as_many_images(images):
    """The last one is padded: with fewer images, its features' last bits would be others."""
    network = Counting(convolution())
    extraction.extract(extractors.domain(network, "toy"), images)
    assert (network.calls, network.sizes) == (3, {128})


def test_no_images_is_an_error(images):
    extractor = extractors.domain(convolution(), "toy")
    for none in (images[:0], iter([])):
        with pytest.raises(DataError, match="no images"):
            extraction.extract(extractor, none)


@pytest.mark.slow
def test_two_processes_give_the_bytes_of_one(tmp_path, images):
    """A TorchScript network: pickled as its file. 300 images in blocks of 32: five blocks each, the last one padded."""
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.GELU(), nn.Flatten(), nn.Linear(16 * 36, 32)).eval()
    extractor = extractors.torchscript(scripted(network, tmp_path / "convolution.pt"))
    assert extraction.extract(extractor, images, devices=2).tobytes() == extraction.extract(extractor, images).tobytes()


def test_an_error_of_a_process_comes_back_as_it_was():
    said = "-- Process 1 terminated\nTraceback\n  File\nsynthgen.errors.DataError: map.pt: expected features"
    error = extraction._reraised(extraction.ProcessRaisedException(said, 1, 2), "map")
    assert isinstance(error, DataError)
    assert str(error) == "map.pt: expected features"
    error = extraction._reraised(extraction.ProcessRaisedException("Traceback\nValueError: so", 1, 2), "map")
    assert str(error) == "map: a process failed with ValueError: so"


def test_features_that_are_not_finite_are_named(images):
    class Roots(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)).sqrt()

    images = images.copy()
    images[:] = 255
    images[[7, 9, 200]] = 0
    with pytest.raises(DataError, match=r"features of roots .*: 3 of 300 rows hold NaN .* first is row 7 \(then 9, 200\)"):
        extraction.extract(extractors.domain(Roots(), "roots"), images)


def test_the_first_rows_that_are_not_finite_are_named():
    x = torch.zeros(20, 2)
    x[[3, 4, 5, 6, 7, 8], 1] = float("inf")
    with pytest.raises(
        DataError, match=r"f: 6 of 20 rows hold NaN or infinite values, the first is row 3 \(then 4, 5, 6, 7, ...\)"
    ):
        check_finite(x, "f")


def test_features_keep_their_precision_where_asked_to():
    single, double = torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.float64)
    assert as_features(single, "x").dtype == torch.float64
    assert [as_features(x, "x", dtype=None).dtype for x in (single, double)] == [torch.float32, torch.float64]
    assert [as_features(x, "x", dtype=None).dtype for x in (single.half(), single.bfloat16())] == [torch.float32] * 2
    assert {x.dtype for x in as_pair(single, single.numpy(), "fid", 1, None)} == {torch.float32}
    assert {x.dtype for x in as_pair(single, double, "fid", 1, None)} == {torch.float64}


# The cache


def test_a_cached_set_is_not_computed_again(tmp_path):
    network = Counting(convolution())
    extractor = extractors.domain(network, "toy")
    batch = toy_images(50, (1, 8, 8), 3)
    first = extraction.feature_set(extractor, batch, cache=tmp_path)
    relabelled = toy_images(50, (1, 8, 8), 3)
    relabelled.labels[:] = 1
    again = extraction.feature_set(extractor, relabelled, cache=tmp_path, note=pytest.fail)
    assert network.calls == 1
    assert again.features.tobytes() == first.features.tobytes()
    assert (again.labels == 1).all()
    assert again.extractor == extractor.id
    extraction.feature_set(extractor, toy_images(50, (1, 8, 8), 3, seed=1), cache=tmp_path, note=pytest.fail)
    extraction.feature_set(extractors.domain(network, "other"), batch, cache=tmp_path, note=pytest.fail)
    assert network.calls == 3
    assert len(list(tmp_path.iterdir())) == 3


def test_features_of_another_torch_or_cpu_are_not_taken(tmp_path, monkeypatch):
    """Their last bits are others. An entry that only bears the right name is refused by what it says of itself."""
    network = Counting(convolution())
    extractor, batch = extractors.domain(network, "toy"), toy_images(50, (1, 8, 8), 3)
    extraction.feature_set(extractor, batch, cache=tmp_path)
    (first,) = tmp_path.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "2.0.0")
        extraction.feature_set(extractor, batch, cache=tmp_path, note=pytest.fail)
        assert network.calls == 2
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "a CPU of another kind")
        extraction.feature_set(extractor, batch, cache=tmp_path, note=pytest.fail)
        assert network.calls == 3
    others = set(tmp_path.iterdir()) - {first}
    assert len(others) == 2
    for other in others:
        first.write_bytes(other.read_bytes())
        said: list[str] = []
        extraction.feature_set(extractor, batch, cache=tmp_path, note=said.append)
        assert said == [f"{first}: belongs to other images, another extractor, torch or device; the features are computed again"]
    assert network.calls == 5


def test_features_of_one_gpu_are_not_taken_for_those_of_another(tmp_path, monkeypatch):
    made: list[str] = []
    monkeypatch.setattr(extraction, "extract", lambda *_: made.append("") or np.zeros((50, 2), np.float32))
    extractor, batch = extractors.domain(convolution(), "toy"), toy_images(50, (1, 8, 8), 3)
    for device, model in (("cuda", "H100"), ("cuda", "A100"), ("cuda", "H100"), ("cpu", "H100")):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda model=model: model)
        extraction.feature_set(extractor, batch, device, cache=tmp_path, note=pytest.fail)
    assert len(made) == len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("damage", ["cut", "bit", "header", "foreign", "empty"])
def test_a_damaged_entry_is_computed_again_and_said_so(tmp_path, damage):
    extractor = extractors.domain(convolution(), "toy")
    batch = toy_images(50, (1, 8, 8), 3)
    good = extraction.feature_set(extractor, batch, cache=tmp_path)
    (entry,) = tmp_path.iterdir()
    data = bytearray(entry.read_bytes())
    if damage == "cut":
        data = data[:-100]
    elif damage == "bit":
        data[-5] ^= 1
    elif damage == "header":
        data[:9] = b"\xff" * 9
    elif damage == "empty":
        data = bytearray()
    else:
        tensors = load_tensors(bytes(data))
        data = bytearray(save_tensors(tensors, {"extractor": "another"}))
    entry.write_bytes(bytes(data))
    said: list[str] = []
    again = extraction.feature_set(extractor, batch, cache=tmp_path, note=said.append)
    assert again.features.tobytes() == good.features.tobytes()
    assert len(said) == 1
    assert str(entry) in said[0]
    assert "computed again" in said[0]
    extraction.feature_set(extractor, batch, cache=tmp_path, note=pytest.fail)


def test_the_fingerprint_is_of_shape_and_pixels(images):
    assert extraction.fingerprint(images) == extraction.fingerprint(images.copy())
    changed = images.copy()
    changed[-1, 0, 7, 7] ^= 1
    prints = {extraction.fingerprint(x) for x in (images, changed, images[:-1], images.reshape(300, 1, 4, 16))}
    assert len(prints) == 4


# DINOv2


def test_dinov2_without_transformers_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(extractors, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'synthgen\[dinov2\]'"):
        extractors.check(FeaturesConfig(extractor="dinov2", path=str(tmp_path)))


@pytest.fixture
def dinov2(tmp_path) -> Path:
    """A randomly initialised DINOv2 of one layer."""
    transformers = pytest.importorskip("transformers", reason="the optional extra synthgen[dinov2]")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 14, "image_size": 56}
    model = transformers.Dinov2Model(transformers.Dinov2Config(**sizes)).eval()
    model.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_dinov2_is_read_from_a_folder(dinov2, images):
    extractor = extractors.dinov2(str(dinov2), size_px=28)
    features = extraction.extract(extractor, images)
    assert features.shape == (300, 16)
    assert features.std() > 0.01
    assert features.tobytes() == extraction.extract(extractors.dinov2(str(dinov2), size_px=28), images).tobytes()
    assert sha256(dinov2 / "model.safetensors") in extractor.id
    assert extractor.id != extractors.dinov2(str(dinov2), size_px=42).id
    assert "224px" in extractors.dinov2(str(dinov2)).id
    config = FeaturesConfig(extractor="dinov2", path=str(dinov2), size_px=28)
    assert extractors.load(config).id == extractor.id
    assert extractors.check(config).startswith(sha256(dinov2 / "model.safetensors"))


def test_dinov2_refuses_what_is_none(dinov2, tmp_path):
    with pytest.raises(ConfigError, match=r"features.size_px=30: not a multiple"):
        extractors.dinov2(str(dinov2), size_px=30)
    with pytest.raises(ConfigError, match="its sha256 is"):
        extractors.dinov2(str(dinov2), "0" * 64)
    with pytest.raises(ConfigError, match="neither a folder nor in the Hugging Face cache, and nothing is downloaded"):
        extractors.dinov2("nobody/nothing-of-this-name")
    with pytest.raises(ConfigError, match=r"no config.json in"):
        extractors.dinov2(str(tmp_path))
    about = json.loads((dinov2 / "config.json").read_text())
    (dinov2 / "config.json").write_text(json.dumps(about | {"model_type": "vit"}))
    with pytest.raises(ConfigError, match="holds a 'vit', expected dinov2"):
        extractors.dinov2(str(dinov2))


# In the gate


def test_the_gate_takes_its_features_from_the_chosen_extractor_and_the_cache(tiny, tmp_path, plain, monkeypatch):
    features = tiny.features.model_copy(
        update={"extractor": "torchscript", "path": str(plain), "sha256": sha256(plain), "steps": 8, "defect_steps": 8}
    )
    order = Order(tiny.model_copy(update={"features": features}))
    audit(order, tmp_path / "run")
    split = Split.open(tmp_path / "run")
    train_networks(order, split, tmp_path / "run" / "features")
    assert len(list((tmp_path / "run" / CACHE).iterdir())) == 4  # train, val, reference, blurred
    monkeypatch.setattr(extraction, "extract", lambda *_: pytest.fail("computed again"))
    real = Judging(order, split, tmp_path / "run" / "features").real()
    assert real.train.features.extractor == extractors.torchscript(plain).id
    assert real.val.features.features.shape[1] == 6
    settings = storage.read_manifest(tmp_path / "run" / "features")["config"]["features"]
    assert settings.keys() == {"folds", "width", "steps", "dim", "defect_steps", "defect_batch_size"}
