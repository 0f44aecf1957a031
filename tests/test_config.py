"""Configs: values, files, and error messages."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from videomaskfeat.config import Override, load_config
from videomaskfeat.config_keys import (
    SPELLINGS,
    check_config,
    config_text,
    current_values,
    flat,
    free_keys,
    key,
    keys_of,
    section,
)
from videomaskfeat.data.loader import FailureCounter
from videomaskfeat.engine.sections import build_schedule
from videomaskfeat.errors import UserError
from videomaskfeat.jobs.detect import build_detector
from videomaskfeat.jobs.finetune import build_classifier
from videomaskfeat.jobs.tokenizer import build_tokenizer
from videomaskfeat.masking import MASKS
from videomaskfeat.methods.build import build_method
from videomaskfeat.models import create_model_from
from videomaskfeat.recipe import PretrainRecipe
from videomaskfeat.schemas.compare import CompareConfig
from videomaskfeat.schemas.detect import DetectConfig
from videomaskfeat.schemas.detect_video import DetectVideoConfig
from videomaskfeat.schemas.finetune import FinetuneConfig
from videomaskfeat.schemas.pretrain import MaskConfig, PretrainConfig
from videomaskfeat.schemas.tokenizer import TokenizerConfig

SCHEMAS: dict[str, type] = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "detect": DetectConfig,
    "tokenizer": TokenizerConfig,
    "compare": CompareConfig,
}
CONFIGS = sorted(Path("configs").glob("*/*.yaml"))
TRAININGS = [path for path in CONFIGS if path.parent.name != "compare"]


Load = Callable[..., Any]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """``load(text, *overrides)`` reads a pre-training config from x.yaml."""

    def read(text: str, *overrides: str | Override, schema: type = PretrainConfig, **options: Any) -> Any:
        path = tmp_path / "x.yaml"
        path.write_text(text, encoding="utf-8")
        return load_config(schema, str(path), overrides, **options)

    return read


def test_overrides_win_over_file_and_file_over_defaults(load: Load) -> None:
    text = "optim: {epochs: 7, learning_rate: 1e-6}\nclip: {crop: 64}\n"
    config = load(text, "clip.crop=96", "model.arguments.depth=3", "data.prefix=a", "data.prefix=")
    assert (config.optim.epochs, config.clip.crop, config.clip.frames) == (7, 96, 16)
    # PyYAML alone reads 1e-6 as a string.
    assert config.optim.learning_rate == 1e-6
    assert config.model.arguments == {"depth": 3}
    assert config.data.prefix == ""
    assert load("", "optim.gradient_clip=null").optim.gradient_clip is None
    assert load("").model.arguments == {}, "defaults are shared between configs"


@pytest.mark.parametrize("schema", [PretrainConfig, FinetuneConfig, DetectConfig, TokenizerConfig])
def test_meaning_of_failure_share_agrees_with_the_counter(schema: type) -> None:
    (meaning,) = [one.rules.meaning for one in keys_of(schema) if one.name == "data.failure_share"]
    assert meaning.endswith("; above 0: at least one record")
    assert [FailureCounter(10, share=share).allowed for share in (0.0, 0.01, 0.5)] == [0, 1, 5]


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.train=a b.csv", "run.seed=5"],
        ["data.train=/a/\udce9: [x.csv", "run.folder='1e-3'"],  # a name that is not UTF-8
    ],
)
def test_written_config_reads_back_equal(load: Load, overrides: list[str]) -> None:
    config = load("", *overrides)
    assert config.data.train == overrides[0].partition("=")[2]
    assert load(config_text(config)) == config


@pytest.mark.parametrize("schema", SCHEMAS.values())
def test_every_key_has_a_meaning_and_a_default_that_keeps_its_rules(schema: type) -> None:
    assert {one.name for one in keys_of(schema)} == set(flat(schema()))
    assert all(one.rules.meaning for one in keys_of(schema))
    check_config(schema(), complete=False)


def test_choices_of_masks_are_the_masks() -> None:
    (kind,) = [one for one in keys_of(PretrainConfig) if one.name == "mask.kind"]
    assert kind.section is MaskConfig
    assert tuple(kind.rules.choices) == tuple(MASKS)


def test_section_with_a_name_may_be_the_name_alone(load: Load) -> None:
    config = load("target: pixels\nmodel: {name: vit_s, arguments: {depth: 2}}", "method=byol")
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
def test_arguments_in_the_file_are_dropped_if_an_override_sets_another_name(
    load: Load, tmp_path: Path, overrides: list[str], arguments: dict[str, int]
) -> None:
    lines: list[str] = []
    config = load("model: {name: vit_s, arguments: {depth: 2}}", *overrides, log=lines.append)
    assert config.model.arguments == arguments
    note = f"{tmp_path}/x.yaml: model.arguments (depth) are arguments of vit_s; they are not passed to vit_b"
    assert lines == ([] if "depth" in arguments else [note])


BRITISH = {present: former for former, present in SPELLINGS.items()}
EARLIER = {
    "centre": "center",
    "centre_momentum": "center_momentum",
    "centred": "centered",
    "colour": "color",
    "grey": "gray",
    "normalise": "normalize",
    "normalised": "normalized",
}


def test_former_name_of_a_section_is_accepted_with_a_note(load: Load, tmp_path: Path) -> None:
    lines: list[str] = []
    former = BRITISH["color"]
    texts = f"{former}: {{contrast: 0.5}}", f"{former}.saturation=1"
    config = load(*texts, schema=DetectConfig, log=lines.append)
    assert (config.color.contrast, config.color.saturation) == (0.5, 1)
    places = (f"argument '{former}.saturation=1'", f"{tmp_path}/x.yaml")
    assert lines == [f"{place}: the section {former} is now named color" for place in places]
    assert load("told: {top: 7}", schema=DetectVideoConfig).actions.top == 7


def test_every_spelling_of_earlier_versions_is_known() -> None:
    """Written out: files of users contain these words."""
    assert {british: SPELLINGS.get(british) for british in EARLIER} == EARLIER


@pytest.mark.parametrize(("former", "present"), SPELLINGS.items())
def test_british_spelling_of_arguments_is_accepted_with_a_note(
    load: Load, tmp_path: Path, former: str, present: str
) -> None:
    lines: list[str] = []
    config = load(
        f"target: {{arguments: {{targets: {{pixels: {{arguments: {{{former}: false}}}}}}}}}}",
        f"method.arguments.{former}.hue=0.5",
        log=lines.append,
    )
    assert config.target.arguments == {"targets": {"pixels": {"arguments": {present: False}}}}
    assert config.method.arguments == {present: {"hue": 0.5}}
    assert lines == [
        f"argument 'method.arguments.{former}.hue=0.5': method.arguments.{former} is now named {present}",
        f"{tmp_path}/x.yaml: target.arguments.targets.pixels.arguments.{former} is now named {present}",
    ]


def test_british_spelling_of_a_choice_is_accepted(load: Load) -> None:
    assert load(f"model: {{inflate: {BRITISH['centered']}}}").model.inflate == "centered"
    area = Override("evaluate.area", BRITISH["center"], "--area", literal=True)
    assert load("", area, schema=DetectConfig).evaluate.area == "center"


def test_names_outside_arguments_keep_their_spelling(load: Load) -> None:
    """Files and names of the user may be spelled like a former name."""
    former = list(SPELLINGS)
    targets = ", ".join(f"{name}: {{}}" for name in former)
    config = load(f"compare: {{targets: {{{targets}}}}}", f"compare.folder={former[0]}", schema=CompareConfig)
    assert (list(config.compare.targets), config.compare.folder) == (former, former[0])


def test_flat_values_of_an_earlier_version_get_the_present_names() -> None:
    color, center = BRITISH["color"], BRITISH["center"]
    former = {f"method.arguments.{color}.{BRITISH['gray']}": 0.5, "data.train": center}
    present = {"method.arguments.color.gray": 0.5, "data.train": center}
    assert current_values(PretrainConfig, former) == present
    former = {"evaluate.area": center, f"{color}.contrast": 1, "run.seed": 3}
    present = {"evaluate.area": "center", "color.contrast": 1, "run.seed": 3}
    assert current_values(DetectConfig, former) == present


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("optim: {epoch: 3}", [], r"x\.yaml: unknown key 'optim\.epoch'; did you mean 'optim\.epochs'\?"),
        ("optm: {epochs: 3}", [], r"x\.yaml: unknown section 'optm'; did you mean 'optim'\?"),
        ("", ["epochs=3"], r"unknown section 'epochs'; did you mean 'optim\.epochs'\?"),
        ("", ["clip.batch_size=3"], r"unknown key 'clip\.batch_size'; did you mean 'optim\.batch_size'\?"),
        (
            "",
            ["optim.lr=1"],
            r"unknown key 'optim\.lr'; the keys of optim are epochs, .*, learning_rate, .*--keys",
        ),
        ("", ["optim.epochs=abc"], r"argument 'optim\.epochs=abc': optim\.epochs 'abc' must be a number"),
        ("", ["clip.frames=2.5"], r"clip\.frames 2\.5 must be an integer"),
        ("clip: {frames: null}", [], r"x\.yaml: clip\.frames None must be an integer"),
        ("", ["run.compile=maybe"], r"run\.compile 'maybe' must be true or false"),
        ("", ["run.folder=[a]"], r"run\.folder \['a'\] must be a text"),
        ("", ["optim=adamw"], r"optim is a section and cannot be set to 'adamw'; set optim\.KEY"),
        ("", ["optim=3"], r"optim is a section and cannot be set to 3; set optim\.KEY"),
        ("", ["clip.crop_area=3"], r"clip\.crop_area 3 must be a list of 2 values, such as \[0\.5, 1\.0\]"),
        ("", ["clip.crop_area=[1]"], r"clip\.crop_area \[1\] must be a list of 2 values"),
        ("", ["model.arguments=3"], r"model\.arguments 3 must be a mapping of names to values"),
        ("", ["run.seed"], r"argument 'run\.seed' is not of the form section\.key=value"),
        ("", ["data.train=[1"], r"argument 'data\.train=\[1': the value is not YAML"),
        ("a: 1\n b: [", [], r"x\.yaml, line 2: not valid YAML"),
        ("- 1\n- 2", [], r"x\.yaml contains a list; a config must be a mapping"),
        ("5", [], "contains the value '5'; a config must be a mapping of sections"),
        ("optim:", [], "optim is a section and cannot be set to None; set optim.KEY"),
        ("optim: ${optim}", [], r"optim is a section and cannot be set to '\$\{optim\}'"),
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
        ("optim: {betas: [1, .nan]}", [], "optim.betas.1 is nan; it must be a finite number"),
        ("optim: {epochs: .inf}", [], "optim.epochs is inf; it must be a finite number"),
        ('optim: {epochs: "???"}', ["run.seed=1"], "optim.epochs is .*; set optim.epochs=VALUE"),
        ('run: {folder: "a\\0"}', [], "run.folder is 'a.x00', which contains a character"),
        (
            "",
            ["optim.epochs=" + "[" * 100_000],
            "argument .*: the value is not YAML: YAML nested more than 16",
        ),
        ("", ["run.seed=" + "9" * 6000], "the value is not YAML: .* of at most 64 bits"),
        ("", ["a" + ".a" * 1000 + "=1"], "a key has at most 16 parts"),
        ("", ["optim.betas[0]=1"], r"unknown key 'optim.betas\[0\]'; did you mean 'optim.betas'"),
        ("", ["run.folder.x=1"], r"^argument 'run\.folder\.x=1': "),
        ("", ["optim.betas.0=1"], r"^argument 'optim\.betas\.0=1': "),
    ],
)
def test_error_is_one_line_with_place_rule_and_remedy(
    load: Load, text: str, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        load(text, *overrides)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.yaml: no such file"):
        load_config(PretrainConfig, str(tmp_path / "gone.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_config_file_holds_only_differences_and_states_its_source(path: Path) -> None:
    schema = SCHEMAS[path.parent.name]
    loaded, defaults = flat(load_config(schema, str(path))), flat(schema())
    for section_name, keys in yaml.safe_load(path.read_text()).items():
        for item in ["name"] if isinstance(keys, str) else keys:
            name = f"{section_name}.{item}"
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
    assert ("Not run by us" in lines["Expected"]) == published
    # An accuracy of ours has its number of runs.
    assert ("%" in lines["Expected"]) == (published or "one run" in lines["Expected"])
    assert f" --config {path} " in f"{lines['Command']} "


IMAGE_RECIPES: dict[str, tuple[Any, ...]] = {
    # epochs, warm-up, batch, rate (start, peak, end), betas, clip, weight decay, smallest crop, mask, hidden
    "mae": (800, 40, 4096, (0, 2.4e-3, 0), [0.9, 0.95], None, 0.05, 0.2, "random", 147),
    "beit": (800, 10, 2048, (1e-6, 1.5e-3, 1e-5), [0.9, 0.999], 3.0, 0.05, 0.08, "block_beit", 75),
    "simmim": (800, 10, 2048, (2e-6, 4e-4, 4e-5), [0.9, 0.999], 5.0, 0.05, 0.67, "random", 30),
    "ibot": (400, 10, 2048, (0, 2e-3, 1e-6), [0.9, 0.999], None, 0.04, 0.5, "block_beit", 78),
    "maskfeat": (1600, 30, 256, (1e-6, 2e-4, 1e-6), [0.9, 0.999], 0.02, 0.05, 0.5, "block", 78),
}
"""From the published scripts that the headers name."""


@pytest.mark.parametrize("name", IMAGE_RECIPES)
def test_image_recipes_are_the_published_ones(name: str) -> None:
    config = load_config(PretrainConfig, f"configs/pretrain/in1k_{name}_vit_b.yaml")
    optim, recipe = config.optim, PretrainRecipe.of(config)
    schedule = build_schedule(optim)
    rates = tuple(pytest.approx(schedule(epoch)) for epoch in (0, optim.warmup_epochs, optim.epochs))
    masks = [recipe.draw_mask(np.random.default_rng(seed)) for seed in range(100)]
    assert (
        *(optim.epochs, optim.warmup_epochs, optim.batch_size, rates, optim.betas, optim.gradient_clip),
        *(optim.weight_decay, config.clip.crop_area[0], recipe.mask.kind, max(map(np.sum, masks))),
    ) == IMAGE_RECIPES[name]


def test_every_data_set_has_both_sizes_of_both_recipes() -> None:
    names = {path.stem for path in Path("configs/finetune").glob("*.yaml")}
    names_of_recipes = {
        f"{data}_{recipe}_{size}"
        for data in ("k400", "k600", "k700", "ssv2")
        for recipe in ("maskfeat_mvitv2", "mvitv2")
        for size in "sl"
    }
    assert names_of_recipes <= names


def test_no_two_configs_share_a_run_folder() -> None:
    """A fine-tuning in the folder of the pre-training that it starts from would be refused."""
    folders: list[str] = [flat(load_config(SCHEMAS[p.parent.name], str(p)))["run.folder"] for p in TRAININGS]
    assert len(set(folders)) == len(folders), sorted(folders)


def test_interpolations_and_missing_values_are_filled_in(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "/there")
    text = 'run: {folder: "${oc.env:PLACE}/run", seed: "???"}\ndata: {train: "${run.folder}"}'
    config = load(text, "run.seed=3")
    assert (config.run.folder, config.data.train, config.run.seed) == ("/there/run", "/there/run", 3)


def test_required_key_is_named_with_its_meaning(load: Load) -> None:
    message = r"^data\.train is not set: list file, or folder of videos.*; set it, such as data\.train=train"
    with pytest.raises(UserError, match=message):
        check_config(load(""))


@dataclass
class Section:
    crop: str = key("area", "way to crop", choices={"area": "random area", "side": ""})
    share: float | None = key(None, "share of the frame", above=0, greatest=1, free=True)
    sides: list[int] = key([2, 3], "short sides", unit="pixels", least=1)
    decay: float = key(0.9, "decay", least=0, below=1)


@dataclass
class Schema:
    one: Section = section(Section)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("one.crop=sid", "one.crop 'sid' is unknown; did you mean 'side'\\? Choose from area, side"),
        ("one.share=0.0", "one.share 0 must be above 0 and at most 1"),
        ("one.share=1.5", "one.share 1.5 must be above 0 and at most 1"),
        ("one.sides=[4,0]", r"one.sides \[4, 0\] must be at least 1"),
        ("one.decay=1.0", "one.decay 1 must be at least 0 and below 1"),
        ("one.decay=-0.5", "one.decay -0.5 must be at least 0 and below 1"),
    ],
)
def test_value_that_breaks_the_rule_of_its_key_is_refused(
    load: Load, tmp_path: Path, override: str, words: str
) -> None:
    with pytest.raises(UserError, match=f"^argument .{re.escape(override)}.: {words}$"):
        load("one: {share: 0.5}", "one.share=1", override, schema=Schema)
    name, value = override.removeprefix("one.").split("=")
    with pytest.raises(UserError, match=f"^{tmp_path}/x.yaml: {words}$"):
        load(f"one: {{{name}: {value}}}", schema=Schema)
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
