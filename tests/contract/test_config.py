"""Settings: every recipe loads, and whatever is misspelt, hidden or of the wrong type is named before any compute."""

from __future__ import annotations

import itertools
import json

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from synthgen.config.generators import GeneratorsConfig
from synthgen.config.load import CONFIGS, known_keys, load, recipes, validate
from synthgen.config.schema import RunConfig, Section
from synthgen.errors import ConfigError

SIZES = sorted(path.stem for path in (CONFIGS / "size").glob("*.yaml"))


def refused(recipe: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load(recipe, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def own(tmp_path):
    """Writes a recipe of the user's own and gives its path."""
    numbers = itertools.count()

    def write(text: str, name: str = "") -> str:
        path = tmp_path / (name or f"mine-{next(numbers)}.yaml")
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


# Shipped recipes


@pytest.mark.parametrize("size", ["", *SIZES])
@pytest.mark.parametrize("recipe", recipes())
def test_every_recipe_loads_in_every_size(recipe, size):
    config = load(recipe, ["data.path=x", *([f"size={size}"] if size else [])])
    assert isinstance(config, RunConfig)
    assert config.name == recipe


def test_a_recipe_says_its_command_in_its_head_line():
    assert {"digits", "digits-smoke", "cifar10-2k", "folder"} <= set(recipes())
    for name, head in recipes().items():
        assert head.startswith(f"synthgen run {name}")


def test_the_size_dial_sets_the_rest():
    widths = {size: load("digits", [f"size={size}"]).generators.diffusion.width for size in ("tiny", "small", "base")}
    assert widths["tiny"] < widths["small"] < widths["base"]
    assert load("cifar10-2k", ["size=tiny", "data.path=x"]).generators.gan.width < load("cifar10-2k").generators.gan.width


def test_an_override_wins_over_recipe_and_size():
    config = load("digits", ["generators.vae.steps=7", "size=base", "models=[gan,vae]", "generators.vae.beta=0.5"])
    assert config.generators.vae.steps == 7
    assert config.models == ("gan", "vae")
    assert config.generators.vae.beta == 0.5
    assert load("digits", ["gain={seeds: 4}"]).gain.seeds == 4
    assert load("digits", ["gain=full"]).gain.study == "full"
    assert load("digits-pool", ["gain=full"]).gain.arms is None, "a study's own arms, whatever the recipe lists"
    assert load("digits-pool", ["gain=full", "gain.arms=[real_aug,synthetic_gated]"]).gain.arms == ("real_aug", "synthetic_gated")
    assert load("folder", ["data.path='a b, (c)=d'"]).data.path == "a b, (c)=d"


def test_what_was_loaded_comes_back_from_its_yaml(own):
    config = load("digits-smoke", ["generators.vae.steps=7", "gain.arms=[real_aug,synthetic_gated]"])
    written = own(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), "config.yaml")
    assert load(written) == config
    assert load(written, ["gain.seeds=9"]).gain.seeds == 9
    json.dumps(config.model_dump(mode="json"), allow_nan=False)


# Recipes of the user's own


@pytest.mark.parametrize("name", ["mine.yaml", "my own, recipe=2.yaml"])
def test_an_own_recipe_composes_schema_and_size(own, name):
    path = own("defaults: [schema, size: tiny, _self_]\nname: mine\ngenerators: {gan: {steps: 9}}\n", name)
    config, tiny = load(path, ["gain.seeds=3"]), load("digits-smoke")
    assert (config.name, config.gain.seeds, config.generators.gan.steps) == ("mine", 3, 9)
    assert config.generators.vae == tiny.generators.vae
    assert load(path, ["size=small"]).generators.vae == load("digits").generators.vae


@pytest.mark.parametrize(
    "inside", ["name: ${oc.env:HOME}", "name: ${project}", "data: {_target_: os.system}", "data: {path: 'a/${x}'}"]
)
def test_code_and_interpolation_in_an_own_recipe_are_refused(own, inside, monkeypatch):
    monkeypatch.setenv("HOME", "secret-of-the-environment")
    message = refused(own(f"defaults: [schema, _self_]\n{inside}\n"))
    assert "plain values" in message
    assert "secret" not in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("defaults: [schema, _self_]\nnmae: x\n", "nmae: no such setting; did you mean 'name'?"),
        ("nmae: x\n", "nmae: no such setting; did you mean 'name'?"),
        ("gate: {max_defetc: 0.1}\n", "gate.max_defetc: no such setting; did you mean 'gate.max_defect'"),
        ("name: [1, 2\nb: }", "while parsing a flow sequence"),
        ("name:\n\t- x", "found character"),
        ("- 1\n- 2\n", "must be a DictConfig"),
        ("", "holds no settings; write `defaults: [schema, _self_]`"),
        ("# name: x\n", "holds no settings; write `defaults: [schema, _self_]`"),
        ("defaults: [schema, size: huge, _self_]\n", "Could not find 'size/huge' Available options in 'size': base small tiny"),
    ],
)
def test_a_fault_in_an_own_recipe_is_named(own, text, message):
    assert message in refused(own(text))


def test_a_key_that_an_own_recipe_leaves_out_needs_the_schema(own):
    path = own("name: x\n")
    assert load(path) == RunConfig(name="x")
    assert "gain: not in this file; write `defaults: [schema, _self_]` at its top" in refused(path, "gain.seeds=3")


def test_a_file_that_is_no_recipe_is_named(tmp_path, own):
    assert refused(str(tmp_path / "none.yaml")).endswith("none.yaml: no such file")
    assert "rename it to mine.yaml" in refused(own("name: x", "mine.yml"))
    (tmp_path / "picture.yaml").write_bytes(b"\x89PNG\xff\xfe\x00")
    assert "picture: 'utf-8' codec" in refused(str(tmp_path / "picture.yaml"))
    assert "'digit': no such recipe; did you mean 'digits'" in refused("digit")


# Overrides


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("gain.sede=3", "gain.sede: no such setting; did you mean 'gain.seeds'"),
        ("gate.max_defetc=1", "did you mean 'gate.max_defect'"),
        ("generators.diffusion.stpes=3", "did you mean 'generators.diffusion.steps'"),
        ("seeds=3", "seeds: no such setting; did you mean 'seed' or 'gain.seeds'?"),
        ("gain={sede: 4}", "gain.sede: no such setting; did you mean 'gain.seeds'"),
        ("hydra.run.dir=/tmp/x", "hydra.run.dir: no such setting"),
        ("data._target_=os.system", "data._target_: no such setting"),
        ("data={_target_: os.system}", "_target_: no such setting"),
        ("+new=1", "'+new=1': not of the form key=value"),
        ("++gain.seeds=3", "not of the form key=value"),
        ("~gain", "'~gain': not of the form key=value"),
        ("~gain=1", "'~gain=1': not of the form key=value"),
        ("gain.seeds", "'gain.seeds': not of the form key=value"),
        ("=1", "not of the form key=value"),
        ("name=${oc.env:HOME}", "a config holds plain values, no _target_ and no ${...}"),
        ("data.path=a/${oc.env:HOME}", "a config holds plain values"),
        ("models=[${oc.env:HOME}]", "a config holds plain values"),
        ("models=vae,gan", "models=vae,gan: can't be read; write a list as KEY=[a,b]"),
        ("data.path=a(b", "data.path=a(b: can't be read"),
        ("size=huge", "Could not find 'size/huge'"),
        ("size.x=1", "size.x: no such setting"),
    ],
)
def test_an_override_that_means_nothing_is_named(override, message, monkeypatch):
    monkeypatch.setenv("HOME", "secret-of-the-environment")
    found = refused("digits", override)
    assert message in found
    assert "secret" not in found
    assert "search path" not in found


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("gain.seeds=many", "gain.seeds: input should be a valid integer"),
        ("gain.seeds=2.5", "gain.seeds: input should be a valid integer"),
        ("gain.seeds=1", "gain.seeds: input should be greater than or equal to 2, found 1"),
        ("models=[vae,gna]", "models.1: no such generator; did you mean 'gan'?; known: vae, vqvae, gan, diffusion, found 'gna'"),
        ("models=[vae,vae]", "models names a generator twice"),
        ("models=[]", "models: "),
        ("generate.num=true", "generate.num: expected another value than true or false, found True"),
        ("gate.max_defect=false", "gate.max_defect: expected another value than true or false, found False"),
        ("split.train=-3", "split.train: input should be greater than or equal to 0, found -3"),
        ("generators.vae.beta=-1", "generators.vae.beta: input should be greater than 0"),
        ("generators.vae.lr=inf", "generators.vae.lr: input should be a finite number"),
        ("split.test=nan", "split.test: input should be a finite number"),
        ("name=../x", "name: string should match pattern"),
        ("gain=3", "gain: input should be a valid dictionary"),
        ("generators.diffusion.sigma_min=100", "generators.diffusion: sigma_min must be below sigma_max=80"),
        ("data.source=folder", "data.path is not given, and data.source='folder' needs it: data.path=FOLDER"),
    ],
)
def test_a_value_of_the_wrong_type_or_range_names_its_key(override, message):
    found = refused("digits", override)
    assert message in found
    assert "literal[" not in found
    assert len(found) < 300


def test_every_fault_is_named_at_once():
    found = refused("digits", "gain.seeds=1", "gate.splits=3")
    assert "gain.seeds" in found
    assert "gate.splits" in found


# The schema


def test_settings_are_frozen():
    config = load("digits")
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3
    with pytest.raises(ValidationError, match="frozen"):
        config.gain.seeds = 3


def sections(model: type[BaseModel] = RunConfig) -> list[type[BaseModel]]:
    inner = [field.annotation for field in model.model_fields.values()]
    return [model, *(s for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel) for s in sections(kind))]


def test_every_section_refuses_unknown_keys():
    assert len(sections()) > 12
    for section in sections():
        assert issubclass(section, Section)
        with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
            section.model_validate({"no_such_key": 1})
        assert section.__doc__


def test_every_key_has_a_meaning_a_type_and_its_default():
    keys = known_keys()
    assert len(keys) > 80
    for key, (kind, _, meaning) in keys.items():
        assert len(meaning) > 3, key
        assert kind, key
        assert "typing" not in kind, key
        assert "annotation" not in kind.lower(), key
    plain = RunConfig.model_construct().model_dump()
    for key, (_, default, _) in keys.items():
        value = plain
        for part in key.split("."):
            value = value[part]
        assert value == default, key
    assert keys["gain.seeds"][0] == "int [ge=2]"
    assert keys["models"][0] == "list of str [min_length=1]"
    assert all(name in keys["models"][2] for name in GeneratorsConfig.model_fields)
    assert keys["data.path"][:2] == ("str|null", None)


def test_a_value_that_was_never_composed_is_checked_too():
    assert validate({"name": "x"}, "here") == RunConfig(name="x")
    with pytest.raises(ConfigError, match=r"here: gain\.arms\[0\]='\$\{x\}'"):
        validate({"gain": {"arms": ["${x}"]}}, "here")
    with pytest.raises(ConfigError, match="plain values"):
        validate({"data": {"_target_": "x"}}, "here")


def test_a_recipe_does_not_depend_on_the_working_folder(tmp_path, monkeypatch):
    here = load("digits")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits.yaml").write_text("name: another\n")
    assert load("digits") == here
    assert load("digits.yaml").name == "another"
