"""Pre-training end to end on a tiny sample, and the words of what is refused."""

from __future__ import annotations

import errno
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejson
import torch
from safetensors.torch import load_file

from tests.data.clip_data import DeadlyClips
from videomaskfeat import methods
from videomaskfeat.config import load_config
from videomaskfeat.data.batches import PretrainBatch
from videomaskfeat.data.records import Records
from videomaskfeat.jobs.pretrain import PretrainRun, final_lines
from videomaskfeat.methods.build import build_method
from videomaskfeat.models.loading import load_model
from videomaskfeat.recipe import normalize
from videomaskfeat.schemas.pretrain import PretrainConfig

from .conftest import TINY, Verb

Pretrain = Callable[..., tuple[int, str]]


def last_line(text: str) -> str:
    """The line that the command line leaves for people."""
    return text.strip().splitlines()[-1]


def assert_refused(result: tuple[int, str], *words: str, code: int = 2, verb: str = "") -> None:
    """Exit code, one line with all these words, and no traceback."""
    got, text = result
    assert got == code, text
    assert "Traceback" not in text
    line = last_line(text)
    assert line.startswith(f"videomaskfeat {verb}")
    for word in words:
        assert word in line, f"{word!r} is not in {line!r}"


def rows(folder: Path) -> list[dict[str, float]]:
    return rows_of(folder / "metrics.jsonl")


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [simplejson.loads(line) for line in path.read_text().splitlines()]


def test_run_leaves_everything_that_the_design_names(
    pretrain: Pretrain, sample: Path, tmp_path: Path
) -> None:
    code, text = pretrain(f"data.validation={sample / 'val.csv'}", "run.pictures=1")
    assert code == 0, text
    run = tmp_path / "run"
    for name in ("config.yaml", "environment.json", "log.txt", "summary.json", "report.html", "tensorboard"):
        assert (run / name).exists(), name
    boards = b"".join(path.read_bytes() for path in (run / "tensorboard").iterdir())
    (picture,) = (run / "pictures").glob("*.png")
    assert picture.read_bytes() in boards
    assert [row["step"] for row in rows(run)] == list(range(1, 9))
    summary = simplejson.loads((run / "summary.json").read_text())
    assert summary["heldout_clips"] == 2
    assert summary["heldout_trained"] < summary["heldout_untrained"]
    for word in (
        "best constant prediction",
        "untrained model",
        "trained model",
        "report.html",
        "multiply-adds",
    ):
        assert word in text
    # The weights alone are enough to predict again.
    model = load_model(run / "weights.safetensors")
    assert model(torch.zeros(1, 3, 4, 32, 32), torch.zeros(1, 2, 2, 2, dtype=torch.bool)).shape == (
        1,
        2,
        2,
        2,
        108,
    )


def test_second_call_finds_nothing_left_to_do(pretrain: Pretrain, tmp_path: Path) -> None:
    assert pretrain()[0] == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    code, text = pretrain()
    assert code == 0, text
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize("other", ["data.workers=2", "optim.accumulate=2"])
def test_losses_do_not_depend_on_workers_or_micro_batches(
    pretrain: Pretrain, tmp_path: Path, other: str
) -> None:
    """float32 sums in another order differ by 1e-6; masks of equal counts make micro-batches weigh alike."""
    first = [
        f"run.folder={tmp_path / 'a'}",
        "mask.kind=cube_exact",
        "optim.epochs=1",
        "optim.warmup_epochs=0",
    ]
    assert pretrain(*first)[0] == 0
    assert pretrain(*first, other, f"run.folder={tmp_path / 'b'}")[0] == 0
    one = [row["loss"] for row in rows(tmp_path / "a")]
    two = [row["loss"] for row in rows(tmp_path / "b")]
    assert one == pytest.approx(two, rel=1e-4)


def test_step_loss_is_the_mean_over_hidden_cells() -> None:
    """Against a loop over the hidden positions; float32, 1e-5."""
    config = load_config(PretrainConfig, None, TINY)
    method = build_method(config)
    target, model = method.target, method.student.eval()
    generator = torch.Generator().manual_seed(0)
    clips = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8, generator=generator)
    mask = torch.rand(2, 2, 2, 2, generator=generator) < 0.5
    batch = PretrainBatch(clips, mask, torch.arange(2))
    loss = method.loss(model, batch).loss
    pixels = normalize(clips, mean=0.45, std=0.225)
    assert pixels[1, 2, 3, 4, 5].item() == pytest.approx((clips[1, 3, 4, 5, 2].item() / 255 - 0.45) / 0.225)
    predictions, truth = model(pixels, mask), target(pixels)
    errors = [
        (predictions[b, t, h, w] - truth[b, t, h, w]).square().mean()
        for b, t, h, w in mask.nonzero().tolist()  # the mask's grid is the output's here
    ]
    assert loss.item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-5)


def test_missing_keys_are_named(pretrain: Pretrain) -> None:
    assert_refused(pretrain("data.train=''"), "data.train is not set", "data.train=train.csv")
    assert_refused(pretrain("run.folder=''"), "run.folder is not set")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("clip.crop=30", ["30", "multiple", "4"]),
        ("clip.frames=3", ["frames 3", "multiple"]),
        ("mask.cell=[2,24,24]", ["mask.cell [2, 24, 24] does not tile a clip of 4 frames and 32x32 pixels"]),
        ("mask.cell=[2,8,8]", ["mask.cell [2, 8, 8]", "2x4x4 cells", "does not divide", "2x2x2"]),
        ("mask.kind=cubes", ["mask.kind 'cubes' is unknown; did you mean 'cube'?"]),
        ("mask.ratio=1", ["ratio"]),
        ("model.name=maskfeat_mvit2_s", ["did you mean 'maskfeat_mvitv2_s'?"]),
        ("model.arguments={dept: 3}", ["'dept'", "did you mean 'depth'?"]),
        ("target.name=hogs", ["target.name 'hogs' is unknown; did you mean 'hog'?"]),
        ("target.arguments={cells: 8}", ["target.arguments", "cells"]),
        ("clip.short_video=clmp", ["clip.short_video 'clmp'", "did you mean 'clamp'?"]),
        ("optim.batch_size=6 ", ["optim.batch_size"]),
        ("optim.batch_size=40", ["16 videos, fewer than the 40"]),
        ("optim.epochs=1", ["warmup_epochs=1 with epochs=1"]),
        ("run.precision=fp16", ["precision", "fp16"]),
        ("optim.base_batch_size=0", ["optim.base_batch_size 0 must be at least 1"]),
        ("optim.betas=[2,2]", ["optim.betas [2.0, 2.0] must be at least 0 and below 1"]),
        ("target.arguments={cell: 0}", ["HOG cell 0 must be 1 or more"]),
        ("model.arguments={depth: x}", ["depth 'x' must be an integer"]),
        ("optim.accumulate=0", ["accumulate"]),
        ("run.device=tpu", ["device='tpu'"]),
        ("data.reader=opencv", ["opencv", "decord"]),
        ("optim.epoch=3", ["unknown key 'optim.epoch'; did you mean 'optim.epochs'?"]),
        ("optim.epochs=many", ["optim.epochs", "'many'"]),
    ],
)
def test_impossible_settings_are_named(pretrain: Pretrain, override: str, words: list[str]) -> None:
    if override.startswith("optim.batch_size=6"):
        assert_refused(pretrain("optim.batch_size=6", "optim.accumulate=4"), "batch_size=6", "multiple")
        return
    assert_refused(pretrain(override), *words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_gpu_where_there_is_none_is_refused(pretrain: Pretrain) -> None:
    assert_refused(pretrain("run.device=cuda"), "device='cuda'", "no usable NVIDIA GPU", "device=cpu")


def test_bad_lists_are_named_by_file_and_line(pretrain: Pretrain, sample: Path) -> None:
    train = sample / "train.csv"
    good = train.read_text()
    assert_refused(pretrain(f"data.train={sample / 'gone.csv'}"), "data.train is", "gone.csv: no such file")
    near = pretrain(f"data.validation={sample / 'trains.csv'}")
    assert_refused(
        near, "data.validation is", "trains.csv: no such file or folder; did you mean 'train.csv'?"
    )
    train.write_text("")
    assert_refused(pretrain(), "train.csv", "empty")
    train.write_text(good + "videos/000001.mp4 one\n")
    assert_refused(pretrain(), "train.csv:17", "one", "not an integer")
    train.write_text(good + "videos/000001.mp4\n")
    assert_refused(pretrain(), "train.csv:17")


def test_unreadable_videos_are_replaced_counted_and_listed(
    pretrain: Pretrain, sample: Path, tmp_path: Path
) -> None:
    videos = sorted((sample / "videos").iterdir())
    listed = (sample / "train.csv").read_text()
    bad = [video for video in videos if f"videos/{video.name}" in listed][:3]
    bad[0].write_bytes(b"")
    bad[1].write_bytes(bad[1].read_bytes()[:300])
    bad[2].write_text("not a video at all")
    code, text = pretrain("data.failure_share=0.25")
    assert code == 3, text  # finished, but some inputs failed
    failures = (tmp_path / "run" / "failures.jsonl").read_text()
    for video in bad:
        assert video.name in failures
        assert video.name in text
    assert rows(tmp_path / "run")[-1]["failures"] > 0


def test_video_that_crashes_the_decoder_is_replaced_and_a_resumed_run_is_the_same(
    pretrain: Pretrain, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(records: Records, **arguments: Any) -> DeadlyClips:
        dataset = DeadlyClips(records, **arguments)
        dataset.deeds = {5: "abort"}
        return dataset

    monkeypatch.setattr(methods.method, "PretrainClips", make)
    choices = ("optim.epochs=3", "run.checkpoint_minutes=0", "run.keep_checkpoints=12", "data.workers=1")
    code, text = pretrain(*choices)
    assert code == 3, text
    run = tmp_path / "run"
    (failure,) = rows_of(run / "failures.jsonl")
    bad = (sample / "train.csv").read_text().splitlines()[5].split()[0]
    assert failure["path"].endswith(bad)
    assert failure["cause"] == "the decoder crashed (SIGABRT)"
    assert "Traceback" not in text
    assert (
        text.count("is lost (the decoder crashed (SIGABRT)) while reading") == 4
    )  # in epochs 0 and 1, not 2
    weights, losses = load_file(run / "weights.safetensors"), [row["loss"] for row in rows(run)]
    for checkpoint in (run / "checkpoints").iterdir():
        if checkpoint.name > "step_00000005.pt":
            checkpoint.unlink()
    code, text = pretrain(*choices, "data.workers=2", "data.read_seconds=60")
    assert code == 3, text
    assert "step 5 of 12" in text
    assert [row["loss"] for row in rows(run)] == losses
    again = load_file(run / "weights.safetensors")
    assert all(torch.equal(again[name], weight) for name, weight in weights.items())


def test_run_of_an_earlier_version_is_resumed_as_if_it_had_not_stopped(
    pretrain: Pretrain, sample: Path, tmp_path: Path
) -> None:
    """Its config and its checkpoints lack what has been added since."""
    run = tmp_path / "run"
    listed = (sample / "train.csv").read_text().split()
    (sample / listed[0]).write_bytes(b"")
    choices = ("run.checkpoint_minutes=0", "run.keep_checkpoints=12", "run.threads=1")
    assert pretrain(*choices)[0] == 3
    weights = load_file(run / "weights.safetensors")
    for checkpoint in (run / "checkpoints").iterdir():
        if checkpoint.name > "step_00000005.pt":
            checkpoint.unlink()
    config = (run / "config.yaml").read_text()
    old = re.sub(r"^  (threads|rank_timeout_minutes|read_seconds): .*\n", "", config, flags=re.M)
    assert config.count("\n") - old.count("\n") == 3
    (run / "config.yaml").write_text(old)
    newest = run / "checkpoints" / "step_00000005.pt"
    content = torch.load(newest, weights_only=True)
    del content["progress"]["unevaluated"]
    (failure,) = content["failures"]["failures"]
    del failure["lost_in_epoch"]
    torch.save(content, newest)
    code, text = pretrain(*choices)
    assert code == 3, text
    assert "step 5 of 8" in text
    assert not list((run / "checkpoints").glob("*.damaged"))
    again = load_file(run / "weights.safetensors")
    assert all(torch.equal(again[name], weight) for name, weight in weights.items())


def test_too_many_unreadable_videos_stop_the_run(pretrain: Pretrain, sample: Path) -> None:
    for video in (sample / "videos").iterdir():
        video.write_bytes(b"")
    assert_refused(pretrain(), "could not be read", ".mp4", "check-data")


def test_share_of_unreadable_videos_stops_the_run_with_their_list(pretrain: Pretrain, sample: Path) -> None:
    listed = [line.split()[0] for line in (sample / "train.csv").read_text().splitlines()]
    for name in listed[:4]:
        (sample / name).write_bytes(b"")
    assert_refused(
        pretrain("data.failure_share=0.1"), "of 16 videos could not be read", "data.failure_share=0.1"
    )


def test_run_folder_of_another_config_is_refused_and_kept(pretrain: Pretrain, tmp_path: Path) -> None:
    assert pretrain()[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert_refused(pretrain("optim.learning_rate=0.5"), "optim.learning_rate", "0.5", "another run folder")
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_no_space_left_ends_with_code_1_and_keeps_the_checkpoint(
    pretrain: Pretrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ["run.checkpoint_epochs=1"]
    assert pretrain(*overrides, "optim.epochs=1.5")[0] == 0
    checkpoints = sorted((tmp_path / "run" / "checkpoints").glob("step_*.pt"))
    content = checkpoints[-1].read_bytes()

    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("torch.save", full)
    other = f"run.folder={tmp_path / 'other'}"
    assert_refused(pretrain(other), "No space left", code=1)
    assert checkpoints[-1].read_bytes() == content


def test_folder_that_cannot_be_made_is_refused(pretrain: Pretrain, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "run"
    assert_refused(pretrain(f"run.folder={below}"), "cannot be a folder", "file is a file")


def test_damaged_foreign_and_unsafe_checkpoints_are_refused(pretrain: Pretrain, tmp_path: Path) -> None:
    assert pretrain()[0] == 0
    checkpoints = sorted((tmp_path / "run" / "checkpoints").glob("step_*.pt"))
    newest, whole = checkpoints[-1], checkpoints[-1].read_bytes()
    for other in checkpoints[:-1]:
        other.unlink()

    newest.write_bytes(whole[: len(whole) // 2])
    assert_refused(pretrain(), newest.name, "truncated")

    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (open, (str(tmp_path / "executed"), "w"))

    newest.write_bytes(pickle.dumps(Attack()))
    assert_refused(pretrain(), newest.name, "pickled code", "never executed")
    assert not (tmp_path / "executed").exists()

    saved = torch.load(pickle_free(whole, tmp_path), weights_only=True)
    saved["model"] = {name: value for name, value in saved["model"].items() if "mask_token" not in name}
    torch.save(saved, newest)
    assert_refused(pretrain(), newest.name, "another model", "mask_token is missing")


def pickle_free(content: bytes, folder: Path) -> Path:
    """A checkpoint's bytes as a file again."""
    path = folder / "whole.pt"
    path.write_bytes(content)
    return path


def test_file_above_the_run_folder_is_named(pretrain: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, err = pretrain(f"run.folder={tmp_path}/file/run")
    assert code == 2
    assert f"file/run: cannot be a folder, since {tmp_path}/file is a file; choose another path" in err


@pytest.mark.parametrize(
    ("trained", "words"), [(0.75, "25.0 % below the constant"), (2.242, "124.2 % above the constant")]
)
def test_trained_model_is_placed_beside_the_constant(trained: float, words: str) -> None:
    summary = {
        "heldout_clips": 4,
        "heldout_constant": 1.0,
        "heldout_untrained": 3.0,
        "heldout_trained": trained,
    }
    lines = final_lines({**summary, "steps": 200})
    assert f"({words})" in lines[3]
    advice = "advice      worse than a constant: train longer: small models usually need 900 to 1800 steps"
    assert lines[4:] == [] if trained < 1 else lines[4].startswith(advice)
    if trained > 1:
        assert (
            "after 4000 steps try half of optim.learning_rate" in final_lines({**summary, "steps": 4000})[4]
        )


def test_config_for_small_sets_has_enough_steps_and_reports_the_constant(
    sample: Path, tmp_path: Path, verb: Verb
) -> None:
    """28 of 40 videos are the training list of `make-lists`; here the run is cut to two steps."""
    config = load_config(PretrainConfig, "configs/pretrain/small_cpu.yaml")
    assert config.optim.epochs * (28 // config.optim.batch_size) >= PretrainRun.usual_steps
    # Random crops of half the frame and more let the encoder memorize 28 videos.
    assert config.clip.crop_area[0] < 0.5
    few = (sample / "train.csv").read_text().splitlines(keepends=True)[:8]
    (sample / "few.csv").write_text("".join(few))
    data = [f"data.train={sample / 'few.csv'}", f"data.validation={sample / 'val.csv'}", "run.pictures=0"]
    short = [
        "optim.epochs=2",
        "optim.warmup_epochs=0",
        "run.evaluate_epochs=1",
        f"run.folder={tmp_path / 'run'}",
    ]
    code, _, text = verb("pretrain", "--config", "configs/pretrain/small_cpu.yaml", *data, *short)
    assert code == 0, text
    assert re.search(r"  best constant prediction  0\.\d+\n", text)
    assert "small models usually need 900 to 1800 steps, and this run had 2 (run.extend=true" in text
    metrics = rows(tmp_path / "run")
    assert all(row["evaluation/heldout_constant"] > 0 for row in metrics)


@pytest.mark.parametrize(("latest", "memorizes"), [(0.9, True), (0.96, False)])
def test_memorized_videos_are_distinguished_from_too_few_steps(latest: float, memorizes: bool) -> None:
    """The training loss of the last tenth of the steps is far below the constant, or is not."""
    summary = {
        "heldout_clips": 4,
        "heldout_constant": 1.0,
        "heldout_untrained": 3.0,
        "heldout_trained": 1.1,
        "steps": 200,
    }
    loss = np.full(200, 0.5)
    loss[-20:] = latest
    heldout = np.full(200, np.nan)
    heldout[[49, 99, 149]] = 1.2, 0.99, 1.05
    metrics = {"step": np.arange(1, 201), "loss": loss, "evaluation/heldout_loss": heldout}
    advice = final_lines(summary, metrics)[4]
    assert ("the training loss 0.90000 is not, so the encoder memorizes its videos" in advice) == memorizes
    assert ("(lowest held-out loss: 0.99000 at step 100)" in advice) == memorizes
    assert ("this run had 200" in advice) != memorizes


def test_probes_say_how_many_they_asked_and_a_loss_without_a_constant_says_so() -> None:
    summary = {
        "heldout_clips": 4,
        "heldout_constant": None,
        "heldout_untrained": None,
        "heldout_trained": 0.5,
        "probe_videos": 120,
        "probe_classes": 12,
        **{f"{probe}_top1{when}": 10.0 for probe in ("knn", "linear") for when in ("", "_untrained")},
        "not_drawn": "target 'dvae' cannot be drawn",
    }
    text = "\n".join(final_lines(summary))
    for words in (
        "best constant prediction  unknown for this loss",
        "top-1 on 120 videos of 12 classes (before training)",
        "k-NN          10.00 % (chance 8.3 %, 95 % interval 6 to 17 %)   (10.0 %)",
        "no pictures: target 'dvae' cannot be drawn",
    ):
        assert words in text


@pytest.mark.parametrize("constant", [0.0, 1e-18])
def test_constant_targets_have_no_percentage(constant: float) -> None:
    """HOG of pictures of one color is 0 everywhere."""
    summary = {
        "heldout_clips": 1,
        "heldout_constant": constant,
        "heldout_untrained": 0.1,
        "heldout_trained": 0.0,
    }
    text = "\n".join(final_lines(summary))
    assert "(the targets are constant: no prediction can be better)" in text
    assert "%" not in text


def test_cuda_graphs_on_a_cpu_are_refused(pretrain: Pretrain) -> None:
    graphs = ["run.compile=true", "run.compile_mode=reduce-overhead"]
    assert_refused(pretrain("run.device=cpu", *graphs), "records CUDA graphs", "run.device is cpu")
    refused = pretrain("run.device=cpu", *graphs, "method.name=byol", "model.name=maskfeat_mvitv2_nano")
    assert_refused(refused, "method.name=byol has been used without CUDA graphs only")


@pytest.mark.cuda
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_run_on_a_gpu_is_compiled_and_leaves_what_a_run_on_the_cpu_does(
    pretrain: Pretrain, sample: Path, tmp_path: Path, mode: str
) -> None:
    more = ["run.compile=true", f"run.compile_mode={mode}", "run.pictures=1"]
    more += ["optim.ema_decay=0.5", "run.evaluate_epochs=1", "data.workers=1"]
    code, text = pretrain("run.device=cuda", f"data.validation={sample / 'val.csv'}", *more)
    assert code == 0, text
    run = tmp_path / "run"
    assert [row["step"] for row in rows(run)] == list(range(1, 9))
    assert rows(run)[-1]["evaluation/heldout_loss"] < rows(run)[0]["loss"]
    summary = simplejson.loads((run / "summary.json").read_text())
    assert summary["heldout_trained"] < summary["heldout_untrained"]
    model = load_model(run / "weights.safetensors")  # on the CPU
    assert next(model.parameters()).device.type == "cpu"
