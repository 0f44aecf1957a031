"""What the commands say: sizes, configs of other verbs, run folders of other jobs, names, and chance."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from videomaskfeat.cli import CommandLine, main
from videomaskfeat.errors import UserError
from videomaskfeat.models.zoo import MODELS, model_of_size
from videomaskfeat.viz.evaluation import accuracy_text, confidence_interval

from .conftest import Verb


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("maskfeat_mvitv2_s", "nano", "maskfeat_mvitv2_nano"),
        ("maskfeat_mvitv2_s_classifier", "l", "maskfeat_mvitv2_l_classifier"),
        ("mae_vit_b_image", "l", "mae_vit_l_image"),
        ("maskfeat_mvitv2_l_detector", "s", "maskfeat_mvitv2_s_detector"),
        ("mvitv2_s", "b", "mvitv2_b"),
    ],
)
def test_size_is_within_the_family(name: str, size: str, expected: str) -> None:
    assert model_of_size(name, size) == expected
    assert expected in MODELS


def test_unknown_size_lists_those_of_the_family() -> None:
    with pytest.raises(
        UserError, match=r"size 'xl' is unknown; the sizes of maskfeat_mvitv2_SIZE are pico, nano, s, l"
    ):
        model_of_size("maskfeat_mvitv2_s", "xl")
    with pytest.raises(UserError, match=r"model\.name 'vit_encoder' has no sizes"):
        model_of_size("vit_encoder", "s")


def test_size_option_chooses_the_model_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    config = CommandLine("pretrain").read(
        ["--config", "configs/pretrain/k400_mae_vit_b.yaml", "--size", "nano"]
    )
    assert config.model.name == "mae_vit_nano"
    assert (
        "size nano: model.name is mae_vit_nano (encoder of width 96 and depth 6, decoder of width 64 and "
        "depth 2), made for clips of 8x64x64; clip.frames=8 clip.crop=64 sets that size" in caplog.text
    )
    caplog.clear()
    config = CommandLine("finetune").read(["--size", "l"])
    assert config.model.name == "maskfeat_mvitv2_l_classifier"
    assert caplog.text.strip().endswith("made for clips of 16x224x224")
    with pytest.raises(UserError, match="size 'h' is unknown"):
        CommandLine("plan").read(["--config", "configs/finetune/k400_mvitv2_s.yaml", "--size", "h"])


def test_config_of_another_verb_is_named(tmp_path: Path) -> None:
    """Every key of small_gpu.yaml for pre-training is also one of fine-tuning."""
    with pytest.raises(
        UserError, match=r"pretrain/small_gpu is a config of pretrain.*use `videomaskfeat pretrain`"
    ):
        CommandLine("finetune").read(["--config", "pretrain/small_gpu"])
    (tmp_path / "mine.yaml").write_text("mask:\n  ratio: 0.5\n")
    with pytest.raises(UserError, match=r"mine.yaml is a config of pretrain: use"):
        CommandLine("finetune").read(["--config", str(tmp_path / "mine.yaml")])
    assert CommandLine("plan").read(["--config", "pretrain/small_gpu"]).clip.samples_per_video == 4


def test_run_folder_of_another_job_is_named(sample: Path, tmp_path: Path, verb: Verb) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/config.yaml").write_text("mask:\n  ratio: 0.5\n")
    (tmp_path / "run/checkpoints/step_00000001.pt").write_text("")
    code, _, err = verb(
        "finetune",
        f"data.train={sample / 'train.csv'}",
        "model.name=maskfeat_mvitv2_pico_classifier",
        "clip.frames=4",
        "clip.crop=32",
        "data.workers=0",
        "run.threads=1",
        "run.device=cpu",
        f"run.folder={tmp_path / 'run'}",
    )
    assert code == 2
    assert f"{tmp_path / 'run'} contains a run of pretrain; choose another run.folder" in err.splitlines()[-1]


def test_list_of_one_damaged_video_is_called_that(tmp_path: Path, verb: Verb) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    (tmp_path / "list.csv").write_text(f"{tmp_path / 'a.mp4'} 0\n")
    code, _, err = verb(
        "pretrain",
        f"data.train={tmp_path / 'list.csv'}",
        "model.name=maskfeat_mvitv2_pico",
        "target.arguments={output_stride: [2, 8, 8]}",
        "clip.frames=4",
        "clip.crop=32",
        "mask.cell=[2,16,16]",
        "optim.batch_size=1",
        "data.workers=0",
        "run.threads=1",
        "run.device=cpu",
        f"run.folder={tmp_path / 'run'}",
    )
    assert code == 2
    assert "its only video could not be read" in err.splitlines()[-1]


def test_help_has_one_group_of_options(capsys: pytest.CaptureFixture[str]) -> None:
    for verb, usage in (
        ("models", "usage: videomaskfeat models [PATTERN] ["),
        ("configs", "usage: videomaskfeat configs ["),
        ("predict", "usage: videomaskfeat predict WEIGHTS VIDEOS ["),
    ):
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        text = capsys.readouterr().out
        assert text.startswith(usage)
        assert text.count("\noptions:\n") == 1


def test_unmatched_pattern_suggests_similar_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "maskfeat_mvit2_s"]) == 2
    assert "no model matches 'maskfeat_mvit2_s'; did you mean 'maskfeat_mvitv2_s'?" in capsys.readouterr().err
    assert main(["models", "*nano_xyz*"]) == 2
    err = capsys.readouterr().err
    assert "nano" in err
    assert len(err) < 250


def test_accuracy_has_chance_and_interval() -> None:
    """Wilson's interval of 4 of 8, by its closed form: (1 +- z / sqrt(n + z^2)) / 2."""
    half = 1.96 / (8 + 1.96**2) ** 0.5 / 2
    assert confidence_interval(0.5, 8) == pytest.approx((0.5 - half, 0.5 + half))
    assert accuracy_text(50.0, 8, 4) == "50.00 % (chance 25.0 %, 95 % interval 22 to 78 %)"
    assert accuracy_text(90.0, 0, 20, guesses=5) == "90.00 % (chance 25.0 %)"
    assert accuracy_text(100.0, 3, 4, guesses=5).startswith("100.00 % (chance 100.0 %, ")
