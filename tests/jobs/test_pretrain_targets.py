"""Pre-training on each target, end to end on a tiny sample, and the words of what cannot be."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import simplejson
import torch
from safetensors.torch import load_file, save_file

from tests.autograd import saved_for_backward
from videomaskfeat.cli import main
from videomaskfeat.config import load_config
from videomaskfeat.data.batches import PretrainBatch
from videomaskfeat.errors import UserError
from videomaskfeat.methods.build import build_method
from videomaskfeat.models import create_model
from videomaskfeat.models.loading import load_model
from videomaskfeat.models.saving import save_model
from videomaskfeat.models.tokenizers import create_tokenizer
from videomaskfeat.models.zoo import encoder_of
from videomaskfeat.recipe import METADATA_KEY, ClipRecipe, PretrainRecipe, normalize
from videomaskfeat.schemas.pretrain import PretrainConfig
from videomaskfeat.targets import build_target
from videomaskfeat.targets.features import FeatureTarget

from .conftest import TINY
from .test_pretrain import Pretrain, assert_refused, rows

NANO: dict[str, Any] = {"clip_size": (4, 32, 32), "depth": 4, "width": 8, "widen_at": (1, 3)}


@pytest.fixture(scope="session")
def _teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    torch.manual_seed(7)
    recipe = PretrainRecipe(ClipRecipe(frames=4, stride=2, crop=32, mean=0.4, std=0.2))
    save_model(create_model("maskfeat_mvitv2_nano", **NANO), path, metadata={METADATA_KEY: recipe.to_json()})
    return path


@pytest.fixture
def teacher(_teacher: Path, tmp_path: Path) -> Path:
    """An untrained encoder with its recipe, of the test's own."""
    return Path(shutil.copy(_teacher, tmp_path / "teacher.safetensors"))


def test_teachers_own_normalization_is_read_from_its_file(teacher: Path) -> None:
    clip = ClipRecipe(frames=4, stride=2, crop=32, mean=0.5, std=0.25)
    target = build_target("features", {"teacher": str(teacher)}, clip=clip)
    assert isinstance(target, FeatureTarget)
    assert target.get_buffer("scale").item() == pytest.approx(0.25 / 0.2)
    assert target.get_buffer("shift").item() == pytest.approx((0.5 - 0.4) / 0.2)
    other = build_target("features", {"teacher": str(teacher), "teacher_mean": 0.5}, clip=clip)
    assert other.get_buffer("shift").item() == 0


def test_target_is_made_of_the_whole_clip_whatever_the_mask(teacher: Path) -> None:
    """Against the cosine written out; float32, 1e-5."""
    arguments = f"target.arguments={{teacher: {teacher}, normalize: none, loss: cosine}}"
    method = build_method(load_config(PretrainConfig, None, [*TINY, "target=features", arguments]))
    torch.manual_seed(0)
    clips = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8)
    masks = torch.rand(2, 2, 2, 2, 2) < 0.5
    whole = (clips.permute(0, 4, 1, 2, 3) / 255 - 0.4) / 0.2  # as the teacher's file says
    features = encoder_of(load_model(teacher)).features(whole, pooled=False)
    model = method.student.eval()
    for mask in masks:
        batch = PretrainBatch(clips, mask, torch.arange(2))
        loss = method.loss(model, batch).loss
        predictions = model(normalize(clips, mean=0.45, std=0.225), mask)
        cosine = torch.nn.functional.cosine_similarity(predictions[mask], features[mask], dim=-1)
        assert loss.item() == pytest.approx((1 - cosine).mean().item(), rel=1e-5)
        torch.testing.assert_close(method.make_target(batch), features, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["hog", "features", "dvae"])
def test_making_the_target_keeps_nothing_for_a_backward(name: str, teacher: Path, tmp_path: Path) -> None:
    """Not a tensor is saved, where the student's forward on the same clips saves many."""
    torch.manual_seed(0)
    tokenizer = tmp_path / "tokenizer.safetensors"
    save_model(create_tokenizer("dvae", vocabulary=8, width=8, stride=16), tokenizer)
    arguments = {
        "hog": "{}",
        "features": f"{{teacher: {teacher}}}",
        "dvae": f"{{weights: {tokenizer}, vocabulary: 8}}",
    }
    overrides = [*TINY, f"target={name}", f"target.arguments={arguments[name]}"]
    method = build_method(load_config(PretrainConfig, None, overrides))
    clips = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8)
    batch = PretrainBatch(clips, torch.rand(2, 2, 2, 2) < 0.5, torch.arange(2))
    assert saved_for_backward(lambda: method.make_target(batch)) == 0
    assert saved_for_backward(lambda: method.loss(method.student, batch)) > 10


def test_features_are_learned_resumed_bit_for_bit_and_never_saved(
    pretrain: Pretrain, sample: Path, tmp_path: Path, teacher: Path
) -> None:
    overrides = [
        "target=features",
        f"target.arguments.teacher={teacher}",
        f"data.validation={sample / 'val.csv'}",
        "run.checkpoint_minutes=0",
        "run.keep_checkpoints=20",
    ]
    whole = tmp_path / "whole"
    code, text = pretrain(*overrides, f"run.folder={whole}")
    assert code == 0, text
    assert "no pictures: target 'features' cannot be drawn; only hog and pixels can" in text
    assert "(smooth L1 error at hidden positions)" in text
    assert "best constant prediction  unknown for this loss" in text
    summary = simplejson.loads((whole / "summary.json").read_text())
    assert summary["heldout_constant"] is None
    assert summary["heldout_trained"] < summary["heldout_untrained"]
    assert "The best constant prediction of this loss is unknown" in (whole / "report.html").read_text()
    saved = load_file(whole / "weights.safetensors")
    assert saved.keys() == load_model(whole / "weights.safetensors").state_dict().keys()
    assert not any("teacher" in name for name in saved)

    resumed = tmp_path / "resumed"
    shutil.copytree(whole, resumed)
    for checkpoint in (resumed / "checkpoints").iterdir():
        if int(checkpoint.stem.split("_")[1]) > 3:
            checkpoint.unlink()
    assert pretrain(*overrides, f"run.folder={resumed}")[0] == 0
    again = load_file(resumed / "weights.safetensors")
    assert all(torch.equal(saved[name], again[name]) for name in saved)
    assert [row["loss"] for row in rows(resumed)] == [row["loss"] for row in rows(whole)]

    torch.manual_seed(8)
    save_model(create_model("maskfeat_mvitv2_nano", **NANO), teacher)
    assert_other = pretrain(*overrides, f"run.folder={resumed}")
    assert assert_other[0] == 2
    assert f"the content of {teacher} is" in assert_other[1]


def test_several_targets_share_one_head_and_log_their_losses(
    pretrain: Pretrain, sample: Path, tmp_path: Path, teacher: Path
) -> None:
    features = f"{{weight: 0.5, arguments: {{teacher: {teacher}, loss: cosine}}}}"
    targets = f"{{hog: {{weight: 2.0}}, features: {features}}}"
    code, text = pretrain(
        "target=combined", f"target.arguments.parts={targets}", f"data.validation={sample / 'val.csv'}"
    )
    assert code == 0, text
    for row in rows(tmp_path / "run"):
        assert row["loss"] == pytest.approx(2 * row["loss_hog"] + 0.5 * row["loss_features"], rel=1e-5)
    assert "weighted sum of mean squared error (hog) and one minus the cosine (features)" in text
    assert "best constant prediction" in text
    model = load_model(tmp_path / "run" / "weights.safetensors")
    assert model.values_per_token == 108 + 32


@pytest.mark.parametrize("arguments", ["{}", "{normalized: false, loss: l1}"], ids=["normalized", "simmim"])
def test_pixels_are_learned_and_drawn(pretrain: Pretrain, tmp_path: Path, arguments: str) -> None:
    overrides = ["target=pixels", f"target.arguments={arguments}", "mask.kind=random", "optim.epochs=1"]
    code, text = pretrain(*overrides, "optim.warmup_epochs=0", "run.pictures=1")
    assert code == 0, text
    (picture,) = (tmp_path / "run" / "pictures").glob("*.png")
    assert picture.stat().st_size > 1000


def test_vision_transformer_learns_simmim_with_masks_of_several_of_its_positions(
    sample: Path, tmp_path: Path
) -> None:
    """Positions of 8 pixels, masks of 16."""
    overrides = [setting for setting in TINY if not setting.startswith("model.")]
    overrides += [
        "model.name=maskfeat_vit_nano",
        "target=pixels",
        "target.arguments={normalized: false, loss: l1, output_stride: [2, 8, 8]}",
        "mask.kind=random",
        "mask.ratio=0.6",
        f"data.train={sample / 'train.csv'}",
        f"data.validation={sample / 'val.csv'}",
        f"run.folder={tmp_path / 'run'}",
    ]
    assert main(["pretrain", *overrides]) == 0
    summary = simplejson.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["heldout_trained"] < summary["heldout_untrained"]
    assert summary["heldout_measure"] == "mean absolute error at hidden positions"


@pytest.mark.parametrize("name", ["pixels", "simmim", "features", "hog_features"])
def test_sample_config_starts(name: str, sample: Path, tmp_path: Path) -> None:
    """Two steps of each."""
    overrides = [
        f"data.train={sample / 'train.csv'}",
        f"data.validation={sample / 'val.csv'}",
        "data.workers=0",
        "optim.epochs=1",
        "optim.warmup_epochs=0",
        "run.pictures=0",
        f"run.folder={tmp_path / 'run'}",
    ]
    if "features" in name:
        path = tmp_path / "nano.safetensors"
        save_model(create_model("maskfeat_mvitv2_nano"), path)
        inside = "parts.features.arguments." if name == "hog_features" else ""
        overrides.append(f"target.arguments.{inside}teacher={path}")
    assert main(["pretrain", "--config", f"configs/pretrain/sample_{name}.yaml", *overrides]) == 0
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["target=pixel"],
            ["target.name 'pixel' is unknown; did you mean 'pixels'? Choose from hog, pixels,"],
        ),
        (
            ["target=features"],
            ["of 'features': argument 'teacher' is missing; set target.arguments.teacher"],
        ),
        (
            ["target=pixels", "target.arguments={normalize: false}"],
            ["target.arguments of 'pixels': argument 'normalize' is unknown; did you mean 'normalized'?"],
        ),
        (
            ["target=pixels", "target.arguments={output_stride: [2, 8, 8]}"],
            [
                "'pixels' has values on a grid of 2x4x4",
                "predicts on 2x2x2; set the target's output_stride, or the model's q_pool_at",
            ],
        ),
        (
            ["target=pixels", "target.arguments={output_stride: [2, 12, 12]}"],
            ["target.name 'pixels': clip height 32 is not a positive multiple", "12; use 24 or 36"],
        ),
        (
            ["target=features", "target.arguments={teacher: TEACHER, depth: 1}"],
            ["'features' has values on a grid of 2x4x4", "predicts on 2x2x2; set target.arguments.depth"],
        ),
        (
            ["target=features", "target.arguments={teacher: gone.safetensors}"],
            [
                "target.arguments.teacher gone.safetensors: no such file",
                "train the teacher first",
            ],
        ),
        (
            ["target=features", "target.arguments={teacher: LIST}"],
            ["train.csv is not a checkpoint: neither a zip archive"],
        ),
        (
            ["model.name=mvitv2_nano"],
            ["model.name 'mvitv2_nano' predicts no target, so it cannot learn 'hog'"],
        ),
        (
            ["mask.ratio=0.01"],
            ["mask.ratio 0.01 with mask.cell [2, 16, 16]", "leaves no hidden cells", "2x2x2"],
        ),
        (["mask.ratio=0.99"], ["mask.ratio 0.99 with mask.cell [2, 16, 16]", "leaves no visible cells"]),
        (["mask.ratio=1.5"], ["mask.ratio 1.5 must be above 0 and below 1"]),
        (["method=maskd"], ["method.name 'maskd' is unknown; did you mean 'masked'?"]),
        (
            ["method.arguments={momentum: 1}"],
            ["method.arguments of 'masked': argument 'momentum' is unknown; none is accepted"],
        ),
    ],
)
def test_what_cannot_be_is_named_before_training(
    pretrain: Pretrain, sample: Path, teacher: Path, overrides: list[str], words: list[str]
) -> None:
    paths = {"TEACHER": str(teacher), "LIST": str(sample / "train.csv")}
    for name, path in paths.items():
        overrides = [override.replace(name, path) for override in overrides]
    result = pretrain(*overrides)
    assert_refused(result, *words)
    assert "multiply-adds" not in result[1], "the plan was printed"


def test_a_model_that_pools_nowhere_is_not_told_to_pool_elsewhere() -> None:
    overrides = [item for item in TINY if not item.startswith("model.")]
    overrides += ["target=pixels", "model.name=maskfeat_vit_nano"]
    config = load_config(PretrainConfig, None, overrides)
    with pytest.raises(UserError, match=r"predicts on 2x4x4; set the target's output_stride$"):
        build_method(config)


def test_teacher_that_is_no_encoder_is_named(pretrain: Pretrain, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.safetensors"
    save_file({"weight": torch.zeros(1)}, path, {"model": "dvae", "arguments": "{}"})
    refused = pretrain("target=features", f"target.arguments.teacher={path}")
    assert_refused(refused, "contains the model 'dvae', which has no features of clips")


def write_tokenizer(path: Path, kind: str, *, vocabulary: int = 12, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    tokenizer = create_tokenizer(kind, vocabulary=vocabulary, stride=8, width=16, blocks=1, code_width=4)
    for parameter in tokenizer.parameters():
        parameter.data.normal_(std=0.5)
    save_model(tokenizer, path)
    return path


@pytest.mark.parametrize(("target", "kind"), [("dvae", "dvae"), ("codebook", "vq")])
def test_pretraining_learns_tokens_and_leaves_the_tokenizer_alone(
    target: str, kind: str, pretrain: Pretrain, sample: Path, tmp_path: Path
) -> None:
    weights = write_tokenizer(tmp_path / "tokenizer.safetensors", kind)
    before = weights.read_bytes()
    overrides = [
        f"data.validation={sample / 'val.csv'}",
        f"target.name={target}",
        f"target.arguments={{weights: {weights}, vocabulary: 12}}",
        "optim.learning_rate=3e-3",
        "optim.gradient_clip=1",
    ]
    code, text = pretrain(*overrides)
    assert code == 0, text
    assert weights.read_bytes() == before
    saved = load_file(tmp_path / "run" / "weights.safetensors")
    assert not [name for name in saved if "tokenizer" in name or "codebook" in name or name == "codes"]
    summary = simplejson.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["heldout_trained"] < summary["heldout_untrained"]
    assert "cross-entropy in nats" in text

    write_tokenizer(weights, kind, seed=1)  # a resumed run must find the same tokens under the path
    code, text = pretrain(*overrides)
    assert code == 2
    assert "tokenizer.safetensors" in text.strip().splitlines()[-1]


def test_tokenizers_that_do_not_fit_are_refused_before_training(pretrain: Pretrain, tmp_path: Path) -> None:
    weights = write_tokenizer(tmp_path / "tokenizer.safetensors", "dvae")
    for arguments, words in (
        (
            f"{{weights: {weights}, vocabulary: 8192}}",
            "a vocabulary of 12, but target.arguments.vocabulary is 8192",
        ),
        (f"{{weights: {weights}, output_stride: [2, 4, 4]}}", "a token covers 8x8 pixels, more than"),
        (f"{{weights: {weights}, output_stride: [2, 8, 8]}}", "2x4x4"),  # against the 2x2x2 of the model
        (
            "{weights: gone.safetensors}",
            "target.arguments.weights gone.safetensors: no such file; train the tokenizer first "
            "(videomaskfeat train-tokenizer), or check the path",
        ),
        ("{}", "of 'dvae': argument 'weights' is missing"),
    ):
        code, text = pretrain("target.name=dvae", f"target.arguments={arguments}")
        assert code == 2, text
        assert words in text.strip().splitlines()[-1]
        assert not (tmp_path / "run").exists()
