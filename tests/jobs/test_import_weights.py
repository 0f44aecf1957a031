"""``import-slowfast``: imported files give the outputs and recipes of the PySlowFast files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from tests.jobs.slowfast_yamls import PUBLIC
from videomaskfeat import cli
from videomaskfeat.config import load_config
from videomaskfeat.errors import UserError
from videomaskfeat.inference.classifiers import load_classifier
from videomaskfeat.interop import load_slowfast
from videomaskfeat.interop.slowfast_export import slowfast_state
from videomaskfeat.jobs import finetune
from videomaskfeat.jobs.import_weights import WeightsImport, import_slowfast
from videomaskfeat.methods.build import build_student
from videomaskfeat.models import create_unset
from videomaskfeat.models.loading import load_model
from videomaskfeat.recipe import PretrainRecipe, normalize
from videomaskfeat.schemas.finetune import FinetuneConfig
from videomaskfeat.schemas.pretrain import PretrainConfig
from videomaskfeat.stored_recipe import ClassifyRecipe, read_classify_recipe, read_recipe
from videomaskfeat.targets import build_target


def recorded(golden: Path, case: str, folder: Path, changes: dict[str, Any]) -> tuple[Path, Path]:
    """A recorded YAML with some SECTION.KEY changed, and its checkpoint."""
    content = yaml.safe_load((golden / case / "config.yaml").read_text())
    for key, value in changes.items():
        section, _, name = key.partition(".")
        content[section][name] = value
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path, golden / case / "checkpoint.pyth"


def as_pyslowfast_sees(frames: Tensor, clip_keys: dict[str, Any], *, pictures: bool) -> Tensor:
    """RGB frames uint8 [T, H, W, 3] -> the network's input float [1, 3, T, H, W], step by step.

    Pictures are read as blue, green, red; then values go to 0..1, are normalized per channel, and at
    last the channels are reversed if the YAML requires it.
    """
    pixels = frames.flip(-1) if pictures else frames
    mean = torch.tensor(clip_keys.get("DATA.MEAN", [0.45, 0.45, 0.45]))
    std = torch.tensor(clip_keys.get("DATA.STD", [0.225, 0.225, 0.225]))
    pixels = (pixels.float() / 255 - mean) / std
    pixels = pixels.permute(3, 0, 1, 2)  # [3, T, H, W]
    return (pixels[[2, 1, 0]] if clip_keys.get("DATA.REVERSE_INPUT_CHANNEL") else pixels)[None]


STATISTICS = {"DATA.MEAN": [0.485, 0.456, 0.406], "DATA.STD": [0.229, 0.224, 0.225]}


@torch.no_grad()
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dataset", ["kinetics", "ssv2"])
@pytest.mark.parametrize("statistics", [{}, STATISTICS], ids=["one value", "one value per channel"])
def test_logits_of_the_same_frames_are_the_same(
    golden: Path, tmp_path: Path, statistics: dict[str, Any], dataset: str, reverse: bool
) -> None:
    changes = {
        **statistics,
        "TEST.DATASET": dataset,
        "TEST.NUM_SPATIAL_CROPS": 3,
        "DATA.REVERSE_INPUT_CHANNEL": reverse,
    }
    files = recorded(golden, "mvitv2_kinetics", tmp_path, changes)
    frames = torch.randint(256, (4, 64, 64, 3), dtype=torch.uint8)
    theirs = load_slowfast(*files).model(as_pyslowfast_sees(frames, changes, pictures=dataset == "ssv2"))
    weights = import_slowfast(*files, tmp_path / "out").weights
    clip = read_classify_recipe(weights).clip
    ours = load_model(weights)(normalize(frames[None], mean=clip.mean, std=clip.std))
    # The channels are summed in another order.
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    other = normalize(frames[None].flip(-1), mean=clip.mean, std=clip.std)
    assert (load_model(weights)(other) - theirs).abs().max() > 1e-3  # the test sees the order of channels


@torch.no_grad()
def test_video_is_scored_as_by_the_yaml(golden: Path, tmp_path: Path) -> None:
    """Five views of 4 frames x stride 4, center crop of 64 from frames of 72x96, softmax averaged."""
    files = recorded(golden, "mvitv2_kinetics", tmp_path, {"DATA.TRAIN_JITTER_SCALES": [72, 90]})
    frames = torch.randint(256, (60, 72, 96, 3), dtype=torch.uint8)
    model = load_slowfast(*files).model
    scores = []
    for view in range(5):
        # 60 frames at 30 a second, a clip spans 16: 44 are left, and views start 11 apart. The four
        # indices of linspace(start, start + 15, 4) are cut to whole numbers.
        clip = frames[[11 * view + place for place in (0, 5, 10, 15)], 4:68, 16:80]
        scores.append(model(as_pyslowfast_sees(clip, {}, pictures=False)).softmax(-1))
    weights = import_slowfast(*files, tmp_path / "out").weights
    probabilities = load_classifier(weights, device="cpu").predict(frames, fps=30).probabilities
    torch.testing.assert_close(probabilities, torch.cat(scores).mean(0), atol=1e-5, rtol=1e-4)


def written(folder: Path, name: str, model: nn.Module) -> tuple[Path, Path]:
    """A public YAML and a checkpoint of it, as PySlowFast saves them."""
    path, checkpoint = folder / "public.yaml", folder / "public.pyth"
    path.write_text(yaml.safe_dump(PUBLIC[name]))
    torch.save({"epoch": 199, "model_state": slowfast_state(model), "cfg": "TRAIN:\n"}, checkpoint)
    return path, checkpoint


def full_size(name: str, **arguments: Any) -> nn.Module:
    model = create_unset(name, **arguments).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02, generator=generator)
    return model


def imported(folder: Path, name: str, model: nn.Module) -> WeightsImport:
    outcome = import_slowfast(*written(folder, name, model), folder / "out")
    assert outcome.table.splitlines()[2:3] == ["new          0"]
    own = load_model(outcome.weights)
    assert own.created_as[0] == model.created_as[0]  # type: ignore[index]
    for key, value in own.state_dict().items():
        assert torch.equal(value, model.get_parameter(key)), key
    return outcome


K400 = {"sampling": "clip", "mean": 0.45, "std": 0.225, "crops": 1, "short_side": 256}
SSV2 = {"sampling": "segments", "views": 1, "crops": 3}
CLASSIFIERS = [
    ("k400_MVITv2_S_16x4_FT", "maskfeat_mvitv2_s_classifier", {**K400, "clip": (16, 4, 224), "views": 10}),
    ("Kinetics/MVITv2_S_16x4", "mvitv2_s", {**K400, "clip": (16, 4, 224), "views": 5}),
    (
        "SSv2/MVITv2_S_16x4",
        "mvitv2_s",
        {**SSV2, "clip": (16, 4, 224), "short_side": 224, "mean": 0.45, "std": 0.225},
    ),
    ("Kinetics/MVITv2_B_32x3", "mvitv2_b", {**K400, "clip": (32, 3, 224), "views": 5}),
]
LARGE = [
    (
        "SSv2/MVITv2_B_32x3",
        "mvitv2_b",
        {**SSV2, "clip": (32, 3, 224), "short_side": 224, "mean": 0.45, "std": 0.225},
    ),
    (
        "k400_MVITv2_L_16x4_FT",
        "maskfeat_mvitv2_l_classifier",
        {**K400, "clip": (16, 4, 224), "views": 10},
    ),
    (
        "Kinetics/MVITv2_L_40x3_test",
        "mvitv2_l",
        {
            "sampling": "clip",
            "clip": (40, 3, 312),
            "views": 5,
            "crops": 3,
            "short_side": 312,
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
        },
    ),
    (
        "SSv2/MVITv2_L_40x3",
        "mvitv2_l",
        # Normalized as BGR, then reversed.
        {
            **SSV2,
            "clip": (40, 3, 312),
            "short_side": 312,
            "mean": (0.406, 0.456, 0.485),
            "std": (0.225, 0.224, 0.229),
        },
    ),
]


@pytest.mark.parametrize(
    ("name", "model_name", "facts"),
    [*CLASSIFIERS, *(pytest.param(*case, marks=pytest.mark.slow) for case in LARGE)],
    ids=[name for name, _, _ in (*CLASSIFIERS, *LARGE)],
)
def test_public_classifier_of_full_size_is_imported(
    tmp_path: Path, name: str, model_name: str, facts: dict[str, Any]
) -> None:
    classes = 174 if name.startswith("SSv2") else 400
    outcome = imported(tmp_path, name, full_size(model_name, classes=classes))
    recipe = read_classify_recipe(outcome.weights)
    clip = recipe.clip
    values = {
        "sampling": recipe.sampling,
        "views": recipe.views,
        "crops": recipe.crops,
        "short_side": recipe.short_side,
        "mean": clip.mean,
        "std": clip.std,
        "clip": (clip.frames, clip.stride, clip.crop),
    }
    assert values == facts
    config = load_config(FinetuneConfig, str(outcome.config))
    assert ClassifyRecipe.of(config.clip, config.evaluate) == recipe
    assert config.model.arguments == {}  # the named model is the published one
    assert (config.data.classes, config.data.format) == (classes, "ssv2" if classes == 174 else "kinetics")
    assert config.clip.flip == (0.0 if classes == 174 else 0.5)
    assert config.evaluate.average == "softmax"


@pytest.mark.parametrize("size", ["S", pytest.param("L", marks=pytest.mark.slow)])
def test_public_pre_training_of_full_size_is_imported(tmp_path: Path, golden: Path, size: str) -> None:
    name = f"k400_MVITv2_{size}_16x4_MaskFeat_PT"
    outcome = imported(tmp_path, name, full_size(f"maskfeat_mvitv2_{size.lower()}"))
    config = load_config(PretrainConfig, str(outcome.config))
    recipe = read_recipe(outcome.weights)
    assert PretrainRecipe.of(config) == recipe
    assert (recipe.mask.kind, recipe.mask.ratio, recipe.mask.cell) == ("cube", 0.4, (2, 32, 32))
    assert (recipe.clip.frames, recipe.clip.stride, recipe.clip.crop) == (16, 4, 224)
    # The published model, clips, mask and target are the defaults of this package, except for its size.
    keys = yaml.safe_load(outcome.config.read_text())
    assert keys.get("model", {}) == ({} if size == "S" else {"name": "maskfeat_mvitv2_l"})
    assert not {"mask", "target"} & keys.keys()
    if size == "S":
        names = json.loads((golden / "protocol.json").read_text())["param_groups_pretrain_s"]
        assert load_model(outcome.weights).state_dict().keys() == names.keys()


def test_written_config_builds_the_imported_classifier(golden: Path, tmp_path: Path) -> None:
    files = recorded(golden, "mvitv2_maskfeat_finetuned", tmp_path, {"MODEL.HEAD_ACT": "none"})
    outcome = import_slowfast(*files, tmp_path / "out")
    config = load_config(FinetuneConfig, str(outcome.config), ["data.train=x.csv", "run.folder=x"])
    model, report = finetune.build_classifier(config, config.data.classes)
    assert report is not None
    assert (report.new, report.unused, report.resized) == ((), (), ())
    expected = torch.load(golden / "mvitv2_maskfeat_finetuned" / "expected.pt", weights_only=True)
    with torch.no_grad():
        logits = model.eval()(expected["clip"])
    torch.testing.assert_close(logits, expected["logits"], atol=1e-4, rtol=0)  # as they were recorded
    assert config.evaluate.average == "logits"
    assert config.evaluate.views == 10
    assert any("numbers of views (1, 3, 4, 5, 7, 10)" in note for note in outcome.notes)
    assert read_classify_recipe(outcome.weights).average == "logits"


def test_written_pre_training_config_builds_model_and_target(golden: Path, tmp_path: Path) -> None:
    changes = {"MASK.PRETRAIN_DEPTH": [3], "AUG.MASK_TUBE": True, "AUG.MASK_WINDOW_SIZE": [2, 4, 4]}
    outcome = import_slowfast(*recorded(golden, "maskfeat_mvitv2_video", tmp_path, changes), tmp_path / "out")
    config = load_config(PretrainConfig, str(outcome.config))
    assert (config.mask.kind, config.mask.cell) == ("tube", [2, 16, 16])
    recipe = PretrainRecipe.of(config)
    target = build_target(config.target.name, config.target.arguments, clip=recipe.clip)
    model = build_student(config.model.name, config.model.arguments, recipe=recipe, target=target)
    model.load_state_dict(load_model(outcome.weights).state_dict())
    assert "pred_head.projections.0.weight" in model.state_dict()


def test_verb_prints_the_use_of_all_weights_and_keys(
    golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"class number {number}" for number in range(7)))
    changes = {"DATA.REVERSE_INPUT_CHANNEL": True}
    config, checkpoint = recorded(golden, "mvitv2_kinetics", tmp_path, changes)
    out = tmp_path / "out"
    arguments = [
        "import-slowfast",
        "--config",
        config,
        "--checkpoint",
        checkpoint,
        out,
        "--class-names",
        names,
    ]
    assert cli.main([str(argument) for argument in arguments]) == 0
    text = capsys.readouterr().out
    assert text.startswith("classification\nloaded     107  cls_token, ")
    assert "\nkeys without an equal here:\n  " in text
    assert "\n  NUM_GPUS: torchrun starts the processes\n" in text
    assert "the weights of the stem are flipped from BGR to RGB" in text
    assert text.endswith(f"weights  {out}/weights.safetensors\nconfig   {out}/config.yaml\n")
    assert read_classify_recipe(out / "weights.safetensors").class_names[6] == "class number 6"
    report = json.loads((out / "import.json").read_text())
    assert len(report["weights"]["loaded"]) == 107
    assert report["unequal"]["OUTPUT_DIR"] == "set run.folder"
    assert cli.main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert "out/weights.safetensors exists already; give another folder" in error


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"TEST.DATASET": "charades"},
            "TEST.DATASET 'charades' is not supported, only kinetics, ssv2, imagenet",
        ),
        ({"DATA.MULTI_LABEL": True}, "DATA.MULTI_LABEL True is not supported, only False"),
        ({"DATA.ENSEMBLE_METHOD": "max"}, "DATA.ENSEMBLE_METHOD 'max' is not supported, only 'sum'"),
        ({"DATA.USE_OFFSET_SAMPLING": False}, "DATA.USE_OFFSET_SAMPLING False is not supported"),
        ({"TEST.NUM_SPATIAL_CROPS": 2}, "TEST.NUM_SPATIAL_CROPS 2 is not supported"),
        ({"TEST.DATASET": "ssv2"}, "TEST.NUM_SPATIAL_CROPS 1 is not supported, only 3"),
    ],
)
def test_testing_that_cannot_be_reproduced_is_refused(
    golden: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    files = recorded(golden, "mvitv2_kinetics", tmp_path, changes)
    with pytest.raises(UserError, match=words):
        import_slowfast(*files, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"AUG.MASK_RATIO": 0.0}, "AUG.MASK_RATIO 0: must be above 0"),
        (
            {"AUG.MASK_WINDOW_SIZE": [2, 7, 7]},
            r"AUG.MASK_WINDOW_SIZE \[2, 7, 7\] does not divide a clip of 4",
        ),
    ],
)
def test_masks_that_cannot_be_drawn_are_refused(
    golden: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    files = recorded(golden, "maskfeat_mvitv2_video", tmp_path, changes)
    with pytest.raises(UserError, match=words):
        import_slowfast(*files, tmp_path / "out")


def test_class_names_of_another_number_are_refused(golden: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("one\ntwo\n")
    files = recorded(golden, "mvitv2_kinetics", tmp_path, {})
    with pytest.raises(UserError, match=r"names.txt: 2 class names for 7 classes"):
        import_slowfast(*files, tmp_path / "out", class_names=names)
    files = recorded(golden, "maskfeat_mvitv2_video", tmp_path, {})
    with pytest.raises(
        UserError, match=r"names.txt: class names are for classifiers only, but .* describes another model"
    ):
        import_slowfast(*files, tmp_path / "out", class_names=names)
