"""Configs: what is read, and the words of what is refused."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import yaml

from videomaskfeat.config import check_config, config_text, flat, free_keys, key, keys_of, load_config
from videomaskfeat.data.loader import FailureCounter
from videomaskfeat.errors import UserError
from videomaskfeat.jobs.detect import build_detector
from videomaskfeat.jobs.finetune import build_classifier
from videomaskfeat.jobs.tokenizer import build_tokenizer
from videomaskfeat.masking import MASKS
from videomaskfeat.methods.build import build_method
from videomaskfeat.models import create_model_from
from videomaskfeat.schemas import (
    CompareConfig,
    DetectConfig,
    FinetuneConfig,
    MaskConfig,
    PretrainConfig,
    TokenizerConfig,
)

SCHEMAS: dict[str, type] = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "detect": DetectConfig,
    "tokenizer": TokenizerConfig,
    "compare": CompareConfig,
}
CONFIGS = sorted(Path("configs").glob("*/*.yaml"))
TRAININGS = [path for path in CONFIGS if path.parent.name != "compare"]


def write(folder: Path, text: str) -> str:
    path = folder / "x.yaml"
    path.write_text(text)
    return str(path)


def test_overrides_win_over_file_and_file_over_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, "optim: {epochs: 7, learning_rate: 1e-6}\nclip: {crop: 64}\n")
    config = load_config(PretrainConfig, path, ["clip.crop=96", "model.arguments.depth=3"])
    assert (config.optim.epochs, config.clip.crop, config.clip.frames) == (7, 96, 16)
    # PyYAML alone reads 1e-6 as a string.
    assert config.optim.learning_rate == 1e-6
    assert config.model.arguments == {"depth": 3}


@pytest.mark.parametrize("kind", [PretrainConfig, FinetuneConfig, DetectConfig, TokenizerConfig])
def test_key_of_failures_says_that_one_may_always_fail(kind: type) -> None:
    """As the counter of failures has it, in a list of any length."""
    (meaning,) = [one.rules.meaning for one in keys_of(kind) if one.name == "data.failure_share"]
    assert meaning.endswith("; above 0, one always may")
    assert [FailureCounter(10, share=share).allowed for share in (0.0, 0.01, 0.5)] == [0, 1, 5]


def test_empty_override_is_empty_text() -> None:
    config = load_config(PretrainConfig, None, ["data.prefix=a", "data.prefix=", "optim.gradient_clip=null"])
    assert config.data.prefix == ""
    assert config.optim.gradient_clip is None


def test_written_config_reads_back_equal(tmp_path: Path) -> None:
    config = load_config(PretrainConfig, None, ["data.train=a b.csv", "run.seed=5"])
    assert load_config(PretrainConfig, write(tmp_path, config_text(config))) == config


def test_defaults_are_not_shared_between_configs() -> None:
    load_config(PretrainConfig, None).model.arguments["depth"] = 1
    assert load_config(PretrainConfig, None).model.arguments == {}


@pytest.mark.parametrize("schema", SCHEMAS.values())
def test_every_key_has_a_meaning_and_a_default_that_keeps_its_rules(schema: type) -> None:
    assert {one.name for one in keys_of(schema)} == set(flat(schema()))
    assert all(one.rules.meaning for one in keys_of(schema))
    check_config(schema(), complete=False)


def test_choices_of_masks_are_the_masks() -> None:
    (kind,) = [one for one in keys_of(PretrainConfig) if one.name == "mask.kind"]
    assert kind.section is MaskConfig
    assert tuple(kind.rules.choices) == tuple(MASKS)


def test_section_with_a_name_takes_the_name_alone(tmp_path: Path) -> None:
    path = write(tmp_path, "target: pixels\nmodel: {name: vit_s, arguments: {depth: 2}}")
    config = load_config(PretrainConfig, path, ["method=byol"])
    assert (config.target.name, config.target.arguments) == ("pixels", {})
    assert (config.model.name, config.model.arguments) == ("vit_s", {"depth": 2})
    assert config.method.name == "byol"


@pytest.mark.parametrize(
    ("overrides", "arguments"),
    [
        (["model.name=vit_s"], {"depth": 2}),
        (["model.arguments.heads=3"], {"depth": 2, "heads": 3}),
        (["model=vit_b"], {}),
        (["model.name=vit_b"], {}),
        (["model.arguments.heads=3", "model.name=vit_b"], {"heads": 3}),
    ],
)
def test_arguments_in_the_file_are_not_those_of_another_name(
    tmp_path: Path, overrides: list[str], arguments: dict[str, int]
) -> None:
    path = write(tmp_path, "model: {name: vit_s, arguments: {depth: 2}}")
    said: list[str] = []
    assert load_config(PretrainConfig, path, overrides, say=said.append).model.arguments == arguments
    words = f"{path}: model.arguments (depth) are those of vit_s, and not given to vit_b"
    assert said == ([] if "depth" in arguments else [words])


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        ("optim: {epoch: 3}", [], r"x\.yaml: unknown key 'optim\.epoch'; did you mean 'epochs'\?"),
        ("optm: {epochs: 3}", [], r"x\.yaml: unknown section 'optm'; did you mean 'optim'\?"),
        ("", ["epochs=3"], r"unknown section 'epochs'; did you mean 'optim\.epochs'\?"),
        ("", ["clip.batch_size=3"], r"unknown key 'clip\.batch_size'; did you mean 'optim\.batch_size'\?"),
        ("", ["optim.lr=1"], r"unknown key 'optim\.lr'; optim has epochs, .*, learning_rate, .*--keys"),
        ("", ["optim.epochs=abc"], r"argument 'optim\.epochs=abc': optim\.epochs 'abc' must be a number"),
        ("", ["clip.crop=2.5"], r"clip\.crop 2\.5 must be an integer"),
        ("clip: {crop: null}", [], r"x\.yaml: clip\.crop None must be an integer"),
        ("", ["run.compile=maybe"], r"run\.compile 'maybe' must be true or false"),
        ("", ["run.folder=[a]"], r"run\.folder \['a'\] must be a text"),
        ("", ["optim=adamw"], r"optim is a section of keys, and got 'adamw'; set optim\.KEY"),
        ("", ["optim=3"], r"optim is a section of keys, and got 3; set optim\.KEY"),
        ("", ["clip.crop_area=3"], r"clip\.crop_area 3 must be a list of 2 values, such as \[0\.5, 1\.0\]"),
        ("", ["clip.crop_area=[1]"], r"clip\.crop_area \[1\] must be a list of 2 values"),
        ("", ["model.arguments=3"], r"model\.arguments 3 must be a mapping of names to values"),
        ("", ["run.seed"], r"argument 'run\.seed' is not of the form section\.key=value"),
        ("", ["data.train=[1"], r"argument 'data\.train=\[1': the value is not YAML"),
        ("a: 1\n b: [", [], r"x\.yaml, line 2: not valid YAML"),
        ("- 1\n- 2", [], r"x\.yaml: holds a list, and a config is a mapping"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        load_config(PretrainConfig, write(tmp_path, text), overrides)
    assert "\n" not in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.yaml: no such file"):
        load_config(PretrainConfig, str(tmp_path / "gone.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_config_file_holds_only_differences_and_states_its_source(path: Path) -> None:
    schema = SCHEMAS[path.parent.name]
    loaded, defaults = flat(load_config(schema, str(path))), flat(schema())
    for section, keys in yaml.safe_load(path.read_text()).items():
        for item in ["name"] if isinstance(keys, str) else keys:
            name = f"{section}.{item}"
            assert loaded.get(name, "a mapping") != defaults.get(name, ""), f"{name} is the default"
    header = path.read_text().split("\n\n")[0]
    assert "EXPECTED" not in header
    for word in ("Command:", "Expected:", "Hardware:", "Source:"):
        assert word in header, f"{path}: its header does not state {word}"


@pytest.mark.parametrize("path", TRAININGS, ids=str)
def test_config_file_builds_its_network(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device, without the files that earlier runs leave: weights, tokenizers and teachers."""
    config = load_config(
        SCHEMAS[path.parent.name], str(path), ["model.weights="] * ("model.weights" in path.read_text())
    )
    monkeypatch.chdir(tmp_path)  # a demo may have left those files here
    with torch.device("meta"):
        if isinstance(config, FinetuneConfig):
            head = list(build_classifier(config, 7)[0].state_dict().items())[-1]
            assert head[1].shape[0] == 7, head[0]
        elif isinstance(config, DetectConfig):
            assert build_detector(config, 5)[0].classes == 5
        elif isinstance(config, TokenizerConfig):
            assert config.frames.size % build_tokenizer(config).stride == 0
        elif isinstance(config, PretrainConfig):
            if config.method.name == "masked" and re.search(
                r"'(weights|teacher)'", str(config.target.arguments)
            ):
                with pytest.raises(UserError, match=r"no such file|no folder with a config\.json|is missing"):
                    build_method(config)
                size = (config.clip.frames, config.clip.crop, config.clip.crop)
                create_model_from(
                    config.model.name, {"clip_size": size, **config.model.arguments, "values_per_token": 3}
                )
            else:
                assert build_method(config).recipe.method == config.method.name


@pytest.mark.parametrize("path", sorted(Path("configs/finetune").glob("*.yaml")), ids=lambda path: path.stem)
def test_only_published_recipes_state_a_published_accuracy(path: Path) -> None:
    lines = dict(re.findall(r"^# (\w+): +(.+)$", path.read_text(), re.MULTILINE))
    assert lines["Status"] in ("released", "paper", "derived")
    published = lines["Status"] != "derived"
    for words in ("%", "Not run by us"):
        assert (words in lines["Expected"]) == published
    assert f" --config {path} " in f"{lines['Command']} "


def test_every_data_set_has_both_sizes_of_both_recipes() -> None:
    names = {path.stem for path in Path("configs/finetune").glob("*.yaml")}
    wanted = {
        f"{data}_{recipe}_{size}"
        for data in ("k400", "k600", "k700", "ssv2")
        for recipe in ("maskfeat_mvitv2", "mvitv2")
        for size in "sl"
    }
    assert wanted <= names


def test_no_two_configs_share_a_run_folder() -> None:
    """A fine-tuning in the folder of the pre-training that it starts from would be refused."""
    folders: list[str] = [flat(load_config(SCHEMAS[p.parent.name], str(p)))["run.folder"] for p in TRAININGS]
    assert len(set(folders)) == len(folders), sorted(folders)


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        ("5", [], "holds the value '5', and a config is a mapping of sections"),
        ("optim:", [], "optim is a section of keys, and got None; set optim.KEY"),
        ("optim: ${optim}", [], r"optim is a section of keys, and got '\$\{optim\}'"),
        ("optim: {epochs: 1, epochs: 2}", [], "line 1: .* the key 'epochs' is repeated"),
        ("optim: {epochs: ${optim.epochs}}".replace("${", '"${').replace("s}}", 's}"}'), [], "Recursive"),
        ('run: {seed: "${foo:1}"}', [], "run.seed: the interpolation .*Unsupported interpolation type"),
        (
            'run: {folder: "${oc.env:NO_SUCH_NAME}"}',
            [],
            "run.folder: the interpolation .* cannot be resolved",
        ),
        ('run: {folder: "${"}', [], "no viable alternative"),
        ('run: {folder: "' + "${a" * 400 + "}" * 400 + '"}', [], "an interpolation of 1600 characters"),
        ("optim: {betas: {}}", [], r"optim.betas \{\} must be a list of 2 values, such as \[0.9, 0.999\]"),
        ("optim: {betas: [0.9, {}]}", [], r"optim.betas \[0.9, \{\}\] must be a list of numbers"),
        ("optim: {betas: [1, .nan]}", [], "optim.betas.1 is nan; a finite number is needed"),
        ("optim: {epochs: .inf}", [], "optim.epochs is inf; a finite number is needed"),
        ('optim: {epochs: "???"}', ["run.seed=1"], "optim.epochs is .*; give optim.epochs=VALUE"),
        ('run: {folder: "a\\0"}', [], "run.folder is 'a.x00', which holds a character"),
        (
            "",
            ["optim.epochs=" + "[" * 100_000],
            "argument .*: the value is not YAML: YAML nested more than 16",
        ),
        ("", ["run.seed=" + "9" * 6000], "the value is not YAML: .* of at most 64 bits"),
        ("", ["a" + ".a" * 1000 + "=1"], "a key has at most 16 parts"),
        ("", ["optim.betas[0]=1"], r"unknown key 'optim.betas\[0\]'; did you mean 'betas'"),
    ],
)
def test_odd_trees_are_refused_in_one_line(
    tmp_path: Path, text: str, overrides: list[str], words: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=words) as caught:
        load_config(PretrainConfig, path, overrides)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_values_that_the_environment_or_an_override_fills_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLACE", "/there")
    path = write(
        tmp_path, 'run: {folder: "${oc.env:PLACE}/run", seed: "???"}\ndata: {train: "${run.folder}"}'
    )
    config = load_config(PretrainConfig, path, ["run.seed=3"])
    assert (config.run.folder, config.data.train, config.run.seed) == ("/there/run", "/there/run", 3)


def test_name_of_any_bytes_is_kept_and_comes_back(tmp_path: Path) -> None:
    config = load_config(PretrainConfig, None, ["data.train=/a/\udce9: [x.csv", "run.folder='1e-3'"])
    assert config.data.train == "/a/\udce9: [x.csv"
    path = tmp_path / "config.yaml"
    path.write_text(config_text(config), encoding="utf-8")
    assert load_config(PretrainConfig, str(path)) == config


@dataclass
class Section:
    crop: str = key("area", "way to crop", choices={"area": "random area", "side": ""})
    share: float | None = key(None, "share of the frame", above=0, greatest=1, free=True)
    sides: list[int] = key([2, 3], "short sides", unit="pixels", least=1)
    decay: float = key(0.9, "decay", least=0, below=1)


@dataclass
class Schema:
    one: Section = field(default_factory=Section)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("one.crop=sid", "one.crop 'sid' is unknown; did you mean 'side'\\? there are area, side"),
        ("one.share=0.0", "one.share 0 must be above 0 and at most 1"),
        ("one.share=1.5", "one.share 1.5 must be above 0 and at most 1"),
        ("one.sides=[4,0]", r"one.sides \[4, 0\] must be at least 1"),
        ("one.decay=1.0", "one.decay 1 must be at least 0 and below 1"),
        ("one.decay=-0.5", "one.decay -0.5 must be at least 0 and below 1"),
    ],
)
def test_value_that_breaks_the_rule_of_its_key_is_refused(tmp_path: Path, override: str, words: str) -> None:
    with pytest.raises(UserError, match=f"^argument .{re.escape(override)}.: {words}$"):
        load_config(Schema, write(tmp_path, "one: {share: 0.5}"), ["one.share=1", override])
    name, value = override.removeprefix("one.").split("=")
    path = write(tmp_path, f"one: {{{name}: {value}}}")
    with pytest.raises(UserError, match=f"^{path}: {words}$"):
        load_config(Schema, path)
    config = Schema()
    setattr(config.one, name, yaml.safe_load(value))
    with pytest.raises(UserError, match=f"^{words}$"):
        check_config(config)


def test_rules_leave_null_and_bounds_alone_and_are_printed() -> None:
    load_config(Schema, None, ["one.share=null", "one.sides=[1,1]", "one.decay=0"])
    assert free_keys(Schema) == {"one.share"}
    assert [one.rules.explain() for one in keys_of(Schema)] == [
        "way to crop: area (random area) | side",
        "share of the frame [above 0 and at most 1]",
        "short sides [pixels, at least 1]",
        "decay [at least 0 and below 1]",
    ]


@pytest.mark.parametrize("override", ["run.folder.x=1", "optim.betas.0=1"])
def test_a_value_inside_a_plain_key_is_blamed_on_its_argument(override: str) -> None:
    with pytest.raises(UserError, match=f"^argument '{override}': "):
        load_config(PretrainConfig, "configs/pretrain/sample.yaml", [override])
