"""``model.weights`` of a pre-training: whole models, encoders, PySlowFast checkpoints, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.methods.tiny import ARGUMENTS, COMMON, MODELS
from videomaskfeat.config import load_config
from videomaskfeat.errors import UserError
from videomaskfeat.interop import load_slowfast
from videomaskfeat.jobs.pretrain import PretrainRun
from videomaskfeat.methods.teaching import TeacherMethod
from videomaskfeat.models import create_model
from videomaskfeat.models.saving import save_model
from videomaskfeat.recipe import METADATA_KEY, ClipRecipe, PretrainRecipe
from videomaskfeat.schemas.pretrain import PretrainConfig

from .test_pretrain import Pretrain, assert_refused

GOLDEN = Path(__file__).parents[1] / "golden"
ENCODER = {"depth": 3, "width": 8, "widen_at": (1,), "clip_size": (4, 32, 32)}
RECIPE = {METADATA_KEY: PretrainRecipe(ClipRecipe(frames=4, stride=2, crop=32)).to_json()}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Weights of a MaskFeat model that predicts HOG."""
    torch.manual_seed(7)
    path = tmp_path / "saved.safetensors"
    save_model(create_model("maskfeat_mvitv2_nano", **ENCODER), path, metadata=RECIPE)
    return path


def build_run(sample: Path, *overrides: str) -> PretrainRun:
    """A run that has loaded its initial weights."""
    data = [f"data.train={sample / 'train.csv'}", "data.workers=0", "run.folder=unused"]
    model = [] if any(one.startswith("model.name=") for one in overrides) else MODELS["mvit"]
    overrides = (*COMMON, *model, "optim.warmup_epochs=0", *data, *overrides)
    config = load_config(PretrainConfig, None, list(overrides))
    return PretrainRun(config, torch.device("cpu"))


def test_whole_model_is_loaded(sample: Path, saved: Path) -> None:
    run = build_run(sample, f"model.weights={saved}", "optim.ema_decay=0.9")
    state = load_file(saved)
    assert run.ema is not None
    for model in (run.model, run.ema.module):
        assert state.keys() == model.state_dict().keys()
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert len(run.load_report.loaded) == len(state)


def test_head_of_another_target_keeps_its_initial_values(sample: Path, saved: Path) -> None:
    """Pixels have 768 values per position, HOG 108."""
    pixels = ["target=pixels"]
    torch.manual_seed(0)
    scratch = build_run(sample, *pixels).model.state_dict()
    run = build_run(sample, *pixels, f"model.weights={saved}")
    state = load_file(saved)
    projection = {"pred_head.projections.0.weight", "pred_head.projections.0.bias"}
    assert set(run.load_report.new) <= projection
    assert "pred_head.projections.0.weight" in run.load_report.reset
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, (scratch if name in run.load_report.new else state)[name]), name


@pytest.mark.parametrize("name", ARGUMENTS)
def test_student_and_teacher_start_from_the_encoder(name: str, sample: Path, saved: Path) -> None:
    method = [f"method={name}", f"method.arguments={ARGUMENTS[name]}", "mask.kind=random"]
    run = build_run(sample, *method, f"model.weights={saved}")
    assert isinstance(run.method, TeacherMethod)
    state = load_file(saved)
    for encoder in (run.method.encoder, run.method.teacher_encoder):
        shared = [key for key in encoder.state_dict() if key in state]
        assert len(shared) > 30
        assert all(torch.equal(encoder.state_dict()[key], state[key]) for key in shared)
    student, teacher = run.method.followed.state_dict(), run.method.teacher.state_dict()
    assert all(torch.equal(student[key], teacher[key]) for key in teacher)


def test_checkpoint_of_the_same_method_is_loaded_whole(
    pretrain: Pretrain, sample: Path, tmp_path: Path
) -> None:
    """Heads included; the new run has another folder and another length."""
    method = ["method=byol", f"method.arguments={ARGUMENTS['byol']}", *MODELS["mvit"]]
    code, text = pretrain(*method, "optim.epochs=1", "optim.warmup_epochs=0", "optim.batch_size=8")
    assert code == 0, text
    path = max((tmp_path / "run" / "checkpoints").iterdir())
    expected = torch.load(path)["model"]
    run = build_run(sample, *method, f"model.weights={path}")
    assert all(torch.equal(value, expected[name]) for name, value in run.model.state_dict().items())
    assert isinstance(run.method, TeacherMethod)
    teacher = run.method.teacher.state_dict()
    assert all(torch.equal(value, expected[f"online.{name}"]) for name, value in teacher.items())
    assert run.load_report.key == "model"


def test_checkpoint_of_pyslowfast_is_loaded(sample: Path) -> None:
    """The same predictions as the imported model, which equals PySlowFast (tests/interop); bit for bit."""
    folder = GOLDEN / "maskfeat_mvitv2_video"
    model = load_slowfast(folder / "config.yaml", folder / "checkpoint.pyth").model.eval()
    name, arguments = model.created_as
    size = ["clip.crop=64", "mask.cell=[2,32,32]", f"model.name={name}"]
    size.append(f"model.arguments={json.dumps(arguments)}")
    run = build_run(sample, *size, f"model.weights={folder / 'checkpoint.pyth'}")
    assert run.load_report.new == ()
    assert run.load_report.unused == ("hogs.0.weight_x", "hogs.0.weight_y")
    generator = torch.Generator().manual_seed(0)
    clips = torch.rand(2, 3, 4, 64, 64, generator=generator)
    mask = torch.rand(2, 2, 2, 2, generator=generator) < 0.4
    with torch.no_grad():
        assert torch.equal(run.model.eval()(clips, mask), model(clips, mask))


def test_summary_and_log_report_the_initial_weights(
    pretrain: Pretrain, sample: Path, saved: Path, tmp_path: Path
) -> None:
    held_out = f"data.validation={sample / 'val.csv'}"
    code, text = pretrain(
        *MODELS["mvit"], f"model.weights={saved}", "optim.epochs=1", "optim.warmup_epochs=0", held_out
    )
    assert code == 0, text
    assert f"weights from {saved}\nloaded " in text
    assert "initial weights" in text
    assert "untrained model" not in text
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    count = len(load_file(saved))
    assert summary["initial_weights"] == {
        "file": str(saved), "loaded": count, "resized": 0, "inflated": 0, "new": 0, "unused": 0,
    }  # fmt: skip
    assert (tmp_path / "run" / "weights_loaded.json").exists()


def test_foreign_weights_are_refused(pretrain: Pretrain, saved: Path, tmp_path: Path) -> None:
    torch.save({"model_state": {"a": torch.ones(2)}}, tmp_path / "foreign.pyth")
    everything = "model.allow_missing=['*']"
    foreign = (*MODELS["mvit"], f"model.weights={tmp_path / 'foreign.pyth'}")
    assert_refused(pretrain(*foreign), "foreign.pyth lacks", "weights that the model has")
    assert_refused(pretrain(*foreign, everything, "model.allow_unused=['*']"), "nothing would be loaded")
    assert_refused(pretrain(f"model.weights={saved}"), "saved.safetensors", "3 blocks", "4 blocks")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_learned_positions_are_refused_by_a_model_with_fixed_ones(sample: Path, tmp_path: Path) -> None:
    """Published MAE has fixed positions, PySlowFast's learned ones."""
    sizes: dict[str, Any] = {"depth": 2, "decoder_depth": 1, "clip_size": (4, 32, 32)}
    path = tmp_path / "mae.safetensors"
    model = create_model("mae_vit_nano", values_per_token=192, absolute_positions="joint", **sizes)
    save_model(model, path, metadata=RECIPE)
    mae = ["model.name=mae_vit_nano", "model.arguments={depth: 2, decoder_depth: 1}", "mask.cell=[2,8,8]"]
    mae += ["target=pixels", "target.arguments.output_stride=[2,8,8]", f"model.weights={path}"]
    with pytest.raises(UserError, match=r"learned positions \(pos_embed\).*model.initialization=slowfast"):
        build_run(sample, *mae)
    positions = "model.arguments={depth: 2, decoder_depth: 1, absolute_positions: joint}"
    state = load_file(path)
    for more in ([positions], ["model.initialization=slowfast", positions]):
        run = build_run(sample, *mae, *more)
        assert torch.equal(run.model.get_parameter("pos_embed"), state["pos_embed"])
        assert not [name for name in run.load_report.new if not name.startswith("decoder_pos_embed")]
