"""A generator from outside: the page's example, installed for a test, keeps the contract and is a setting like any other."""

from __future__ import annotations

import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from synthgen import cli, models, storage, testing, training
from synthgen.config import extensions
from synthgen.config.generators import GeneratorsConfig
from synthgen.config.load import known_keys, load
from synthgen.config.schema import AugmentConfig
from synthgen.errors import CheckpointError, ConfigError
from synthgen.models import base

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
EXAMPLE, ITS_TEST = re.findall(r"```python\n(.*?)```", PAGE, re.S)[:2]


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a distribution on the path: a module, and the metadata that an installer would write."""
    made: list[str] = []

    def write(code: str, points: str, distribution: str = "synthgen-pca", module: str = "synthgen_pca") -> None:
        folder = tmp_path / distribution
        about = folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
        about.mkdir(parents=True)
        (folder / f"{module}.py").write_text(code, encoding="utf-8")
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(f"[synthgen.generators]\n{points}\n")
        monkeypatch.syspath_prepend(str(folder))
        made.append(module)

    yield write
    for module in made:
        sys.modules.pop(module, None)


@pytest.fixture
def pca(install):
    """The page's example, installed as the page says."""
    points = re.search(r'\[project\.entry-points\."synthgen\.generators"\]\n(\w+) = "(\S+)"', PAGE)
    assert points
    install(EXAMPLE, f"{points[1]} = {points[2]}")
    return models.find("pca")


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load("digits-smoke", overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


# The page


def test_the_example_is_thirty_lines_and_keeps_the_contract_as_its_own_test_says(pca):
    assert len([line for line in EXAMPLE.splitlines() if line.strip()]) <= 30
    assert max(map(len, EXAMPLE.splitlines())) <= 110
    inside: dict = {}
    exec(ITS_TEST, inside)
    inside["test_pca"]()


def test_the_page_tells_what_each_promise_takes():
    assert re.findall(r"^\| `(\w+)` \|", PAGE, re.M) == list(testing.CHECKS)


def test_the_example_learns_the_classes(pca):
    subject = testing.Subject(pca, pca.Config(lr=0.02))
    generator, toy = subject.build(150), testing.toy_images(24, testing.TOY)
    subject.fit(generator, 150)
    labels = np.repeat([0, 1, 2], 8)
    made = testing.draw(generator, labels).images.astype(float)
    means, real = (
        np.stack([images[of == label].mean(0) for label in range(3)]) for images, of in ((made, labels), (toy.images, toy.labels))
    )
    assert (np.abs(means[:, None] - real[None]).mean((2, 3, 4)).argmin(1) == np.arange(3)).all()


# Settings


def test_an_installed_generator_is_a_setting_like_any_other(pca):
    config = load("digits-smoke", ["models=[vae,pca]", "generators.pca.dim=3", "generators.pca.ema=[0.9,0.99]"])
    assert config.models == ("vae", "pca")
    assert config.generators.pca == config.generators.of("pca") == pca.Config(dim=3, ema=(0.9, 0.99))
    assert config.generators.of("vae") is config.generators.vae
    assert load("digits-smoke", ["models=[pca]"]).generators.pca == pca.Config()
    assert load("digits-smoke", ["generators={pca: {dim: 4}}"]).generators.pca.dim == 4
    assert load("digits-smoke", ["generators.pca={dim: 4}", "generators.pca.steps=5"]).generators.pca == pca.Config(
        dim=4, steps=5
    )
    plain = load("digits-smoke")
    assert "pca" not in plain.generators.model_dump()
    assert plain.generators.of("pca") == pca.Config()


def test_its_settings_stand_in_yaml_and_come_back_from_there(pca, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("defaults: [schema, size: tiny, _self_]\nmodels: [pca]\ngenerators: {pca: {dim: 5}}\n", encoding="utf-8")
    config = load(str(path), ["generators.pca.steps=9"])
    assert config.generators.pca == pca.Config(dim=5, steps=9)
    written = tmp_path / "config.yaml"
    written.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    assert load(str(written)) == config
    assert load(str(written), ["generators.pca.dim=6"]).generators.pca == pca.Config(dim=6, steps=9)
    assert pickle.loads(pickle.dumps(config)) == config  # as a worker gets it


def test_a_recipe_that_never_heard_of_it_takes_its_settings(pca, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(load("digits-smoke").model_dump(mode="json")), encoding="utf-8")
    assert load(str(path), ["generators.pca.dim=6"]).generators.of("pca").dim == 6


def test_its_keys_are_listed(pca, capsys, monkeypatch):
    keys = known_keys()
    assert list(keys)[-1].startswith("generators.pca.")
    assert keys["generators.pca.dim"] == ("int [gt=0]", 8, "principal components")
    monkeypatch.setattr(sys, "argv", ["synthgen", "configs", "--keys"])
    assert cli._main() == 0
    assert "generators.pca.dim = 8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("generators.pca.dmi=3", "generators.pca.dmi: no such setting; did you mean 'generators.pca.dim'"),
        ("generators.pac.dim=3", "generators.pac.dim: no such setting"),
        ("generators.pca={dmi: 3}", "generators.pca.dmi: no such setting; did you mean 'generators.pca.dim'"),
        ("generators={pac: {dim: 3}}", "generators.pac: no such setting; did you mean 'generators.pca'"),
        ("generators.pca.dim=0", "generators.pca.dim: input should be greater than 0, found 0"),
        ("generators.pca.lr=inf", "generators.pca.lr: input should be a finite number"),
        ("generators.pca=3", "generators.pca: input should be a valid dictionary"),
        ("generators.pca.kind=vae", "generators.pca.kind: input should be 'pca', found 'vae'"),
        ("models=[vae,pac]", "models.1: no such generator; did you mean 'pca'?; known: vae, vqvae, gan, diffusion, pca"),
        ("models=[pca,pca]", "models names a generator twice"),
    ],
)
def test_a_fault_in_its_settings_is_named(pca, override, message):
    assert message in refused(override)


def test_an_unknown_generator_is_named_where_none_is_installed():
    assert "generators.pca.dim: no such setting" in refused("generators.pca.dim=3")
    assert refused("models=[gna]").startswith(
        "models.0: no such generator; did you mean 'gan'?; known: vae, vqvae, gan, diffusion"
    )
    with pytest.raises(ConfigError, match=r"'gna': no such generator; did you mean 'gan'\?"):
        GeneratorsConfig().of("gna")
    with pytest.raises(ConfigError, match="'vea': no such generator; did you mean 'vae'"):
        models.find("vea")


def test_nothing_is_looked_for_where_all_names_are_built_in(monkeypatch):
    def search(**_: object) -> None:
        raise RuntimeError("the installed packages' metadata was read")

    monkeypatch.setattr(extensions, "entry_points", search)
    config = load("digits-smoke", ["models=[vae,gan]", "generators.vae.steps=3", "gain.seeds=3"])
    assert config.generators.of("vqvae").steps > 3
    with pytest.raises(ConfigError, match=r"gain\.sede: no such setting"):
        load("digits-smoke", ["gain.sede=3"])
    with pytest.raises(RuntimeError, match="metadata was read"):
        load("digits-smoke", ["models=[mine]"])


def test_naming_an_installed_generator_imports_it_and_no_other(install):
    install("raise RuntimeError('imported')", "other = other_module:X", "synthgen-other", "other_module")
    install(EXAMPLE, "pca = synthgen_pca:PCA")
    assert set(extensions.installed()) >= {"other", "pca"}
    assert load("digits-smoke", ["models=[pca]"]).models == ("pca",)
    with pytest.raises(ConfigError, match=r"did you mean 'gain\.seeds'"):
        load("digits-smoke", ["gain.sede=3"])
    assert "other_module" not in sys.modules


# Distributions at fault


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("pca", "import nothing_of_this_name", "can't be imported: ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("pca", "1 / 0", "can't be imported: ZeroDivisionError"),
        ("pca", "", "can't be imported: AttributeError"),
        ("pca", "PCA = 3", "is no class but a int"),
        ("pca", "class PCA: pass", "calls itself kind=None"),
        ("pca", EXAMPLE.replace('kind, Config = "pca"', 'kind, Config = "cpa"'), "calls itself kind='cpa'"),
        ("pca", "class PCA: kind = 'pca'", "has no Config that is a subclass of"),
        (
            "pca",
            EXAMPLE.replace('Field("pca"', 'Field("acp"').replace('["pca"]', "[str]"),
            "without `kind: Literal['pca'] = 'pca'`",
        ),
        ("pca", EXAMPLE.replace("Field(8, ", "Field("), "isn't complete without dim"),
        ("pca", EXAMPLE.replace("    dim:", "    model_config = {'extra': 'ignore'}\n    dim:"), "accepts settings"),
        ("PCA", EXAMPLE.replace('"pca"', '"PCA"'), "has a name that isn't lower-case"),
        ("copy", EXAMPLE.replace('"pca"', '"copy"'), "has a name that is taken by something else"),
        ("features", EXAMPLE.replace('"pca"', '"features"'), "has a name that is taken by something else"),
        ("vae", EXAMPLE.replace('"pca"', '"vae"'), "registers a generator 'vae', which is built in"),
    ],
)
def test_a_distribution_at_fault_is_named_with_what_is_wrong(install, name, code, message):
    install(code, f"{name} = synthgen_pca:PCA")
    with pytest.raises(ConfigError) as error:
        extensions.config_of(name)
    assert str(error.value).startswith("synthgen-pca 1.0: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    if name != "vae":
        assert "synthgen-pca 1.0" in refused(f"models=[{name}]")
    listed = known_keys()[f"generators.{name}"]  # one at fault doesn't hide the others
    assert listed[0] == "unusable"
    assert message in listed[2]


def test_two_distributions_of_one_name_are_refused(install):
    install(EXAMPLE, "pca = synthgen_pca:PCA")
    install(EXAMPLE, "pca = other_pca:PCA", "other-pca", "other_pca")
    with pytest.raises(ConfigError, match=r"synthgen-pca 1\.0.*both register") as error:
        extensions.config_of("pca")
    assert "other-pca 1.0" in str(error.value)


def test_a_class_that_is_no_generator_is_refused(install):
    install(EXAMPLE.replace("class PCA(Generator)", "class PCA(nn.Module)"), "pca = synthgen_pca:PCA")
    with pytest.raises(ConfigError, match=r"synthgen_pca\.PCA is no subclass of synthgen\.models\.Generator"):
        models.find("pca")


def test_a_checkpoint_of_a_generator_that_is_not_installed_says_so(install, monkeypatch):
    install(EXAMPLE, "pca = synthgen_pca:PCA")
    generator = models.build(extensions.config_of("pca")(), testing.TOY, AugmentConfig())
    data = base.to_bytes(generator)
    assert models.from_bytes(data).kind == "pca"
    monkeypatch.setattr(extensions, "entry_points", lambda **_: ())
    with pytest.raises(CheckpointError, match=r"here: holds a 'pca', which can't be built here: 'pca': no such generator"):
        models.from_bytes(data, "here")


# Jobs


def test_it_is_trained_and_sampled_by_the_command_line(pca, tmp_path, capsys, monkeypatch):
    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["synthgen", *map(str, arguments)])
        return cli._main(), capsys.readouterr().err

    run = tmp_path / "run"
    quick = ["generators.pca.steps=5", "looks.times=0"]
    assert call("audit", "digits", "--recipe", "digits-smoke", "--out", run, "--quiet")[0] == 0
    code, said = call("train", run, "pac")
    assert (code, "'pac': no such generator; did you mean 'pca'?" in said) == (2, True), said
    code, said = call("train", run, "pca", *quick, "--quiet")
    assert code == 0, said
    assert storage.read_manifest(run / "train" / "pca")["config"]["model"]["dim"] == 8
    code, said = call("generate", run / "train" / "pca", "generate.num=20", "--quiet")
    assert code == 0, said
    assert storage.read_json(run / "candidates" / "pca" / "candidates.json")["generator"] == "pca"


# The checks can fail: ten generators, each with one fault


class Named:
    sampling_settings = ("dims",)


class Loud:
    def sample(self, labels, noise):
        return super().sample(labels, noise) * 20


class Careless:
    def sample(self, labels, noise):
        return (super().sample(labels, noise) + 0.1 * torch.randn(1)).clamp(-1, 1)


class Sociable:
    def sample(self, labels, noise):
        images = super().sample(labels, noise)
        return (images - images.mean()) / 2


class Blind:
    def sample(self, labels, noise):
        return super().sample(torch.zeros_like(labels), noise)


class Moody:
    times = 0

    def on_fit_start(self):
        type(self).times += 1

    def training_step(self, batch, batch_idx):
        return super().training_step((batch[0] + self.times, batch[1]), batch_idx)


class Lossy:
    shift = 0.0

    def on_fit_end(self):
        self.shift = 0.3

    def sample(self, labels, noise):
        return (super().sample(labels, noise) + self.shift).clamp(-1, 1)


class Forgetful:
    seen = 0.0

    def training_step(self, batch, batch_idx):
        self.seen += 0.1
        return super().training_step((batch[0] + self.seen, batch[1]), batch_idx)


class Idle:
    def on_train_batch_start(self, batch, batch_idx):
        return -1


class Restless:
    def held_out_loss(self, images, labels):
        return torch.rand(len(images))


class Summed:
    def held_out_loss(self, images, labels):
        return torch.zeros(())


@pytest.mark.parametrize(
    ("faulty", "promise", "says"),
    [
        (Named, "declares_itself", r"sampling_settings names \['dims'\]"),
        (Loud, "samples_have_the_shape_and_range_of_the_data", r"not in \[-1, 1\]"),
        (Careless, "same_seed_same_bytes_whatever_is_in_flight", "all randomness must come from `noise`"),
        (Sociable, "a_sample_does_not_depend_on_how_many_are_asked_for", "the first 5 of 8"),
        (Blind, "the_label_matters", "is the label used"),
        (Moody, "training_is_fixed_by_the_seed", "two trainings with one seed differ"),
        (Lossy, "a_checkpoint_comes_back", "draws other samples"),
        (Forgetful, "training_resumes_bit_exactly", "ends elsewhere"),
        (Idle, "a_loss_that_is_not_finite_stops_the_run", "goes on with a loss of NaN"),
        (Restless, "the_held_out_loss_is_one_figure_an_image", "differs from call to call"),
        (Summed, "the_held_out_loss_is_one_figure_an_image", r"has the shape \(\)"),
    ],
)
def test_a_promise_that_is_not_kept_is_named(pca, faulty, promise, says):
    model = type(faulty.__name__, (faulty, pca), {})
    with pytest.raises(testing.ContractError, match=says):
        testing.CHECKS[promise](testing.Subject(model, pca.Config(), steps=8))
    if faulty not in (Moody, Idle):  # theirs would be noticed by another check before
        with pytest.raises(testing.ContractError, match=says):
            testing.check_generator(model, steps=8)


def test_what_is_no_generator_is_named():
    with pytest.raises(testing.ContractError, match="no subclass of Generator"):
        testing.check_generator(int)


def test_a_generator_under_a_built_in_name_is_no_candidate(install):
    install(EXAMPLE.replace('"pca"', '"vae"'), "pca = synthgen_pca:PCA")
    import synthgen_pca

    with pytest.raises(testing.ContractError, match=r"kind='vae', which is built in \(VAE\)"):
        testing.check_generator(synthgen_pca.PCA)


def test_the_checks_leave_no_trace(pca):
    def state():
        return torch.get_num_threads(), training.EPOCH, dict(models.MODELS)

    before = state()
    testing.CHECKS["training_resumes_bit_exactly"](testing.Subject(pca, pca.Config()))
    with pytest.raises(testing.ContractError):
        testing.CHECKS["training_resumes_bit_exactly"](testing.Subject(type("Forgetful", (Forgetful, pca), {}), pca.Config()))
    assert state() == before


def test_the_checks_need_no_pytest():
    assert not re.search(r"import (pytest|hypothesis)", Path(testing.__file__).read_text(encoding="utf-8"))
