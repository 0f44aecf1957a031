"""Training and evaluating a detector: a tiny run end to end, its parts, and what is refused."""

from __future__ import annotations

import csv
import functools
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import simplejson
import torch

from tests.data.make_videos import copy_to_avi
from tests.jobs.action_set import ACTIONS, CLASSES, ENCODER, ActionSet, make_action_set, write_detector
from tests.jobs.ranks import run_verb
from tests.viz.pages import Page
from videomaskfeat.config import load_config
from videomaskfeat.data.ava import ActionBatch
from videomaskfeat.errors import UserError
from videomaskfeat.inference.key_frames import VideoLocations, read_key_frames
from videomaskfeat.jobs.detect import (
    DetectRun,
    build_detector,
    build_loss,
    build_recipe,
    class_weights,
    read_lists,
    training_loader,
    video_locations,
)
from videomaskfeat.losses.labels import binary_cross_entropy, pose_cross_entropy
from videomaskfeat.metrics.ava_map import evaluate_files
from videomaskfeat.models import create_model
from videomaskfeat.models.saving import save_model
from videomaskfeat.models.weights import read_state
from videomaskfeat.recipe import ClipRecipe
from videomaskfeat.schemas.detect import DetectConfig
from videomaskfeat.stored_recipe import read_detect_recipe

from .conftest import Verb
from .test_pretrain import assert_refused, rows


@pytest.fixture(scope="module")
def actions(tmp_path_factory: pytest.TempPathFactory) -> ActionSet:
    return make_action_set(tmp_path_factory.mktemp("actions"))


def result_of(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = simplejson.loads((folder / "result.json").read_text())
    return result


def refused(result: tuple[int, str, str], *words: str) -> None:
    assert_refused((result[0], result[2]), *words)


def test_a_trained_detector_is_scored_alike_wherever(verb: Verb, actions: ActionSet, tmp_path: Path) -> None:
    """By the training itself, by detect-evaluate and by the official rules on the file that it leaves."""
    run = tmp_path / "run"
    code, _, text = verb("detect-train", *actions.overrides(run), "optim.ema_decay=0.5")
    assert code == 0, text
    for name in ("config.yaml", "log.txt", "report.html", "best.safetensors", "weights.safetensors"):
        assert (run / name).exists(), name
    metrics = rows(run)
    assert [row["step"] for row in metrics] == [1, 2, 3, 4]
    assert [row["step"] for row in metrics if "evaluation/mean_ap" in row] == [2, 4]
    assert all(row["boxes"] >= 6 for row in metrics)
    summary = simplejson.loads((run / "summary.json").read_text())
    assert summary["validation_best_mean_ap"] == max(row.get("evaluation/mean_ap", 0) for row in metrics)
    assert summary["mean_ap"] == pytest.approx(summary["validation_best_mean_ap"], abs=1e-6)
    assert (summary["key_frames"], summary["listed"]) == (5, 5)
    assert 0 < summary["mean_ap_chance"] < summary["mean_ap"]
    advised = summary["mean_ap_interval"][0] <= summary["mean_ap_chance"]
    assert (
        "the interval includes chance: start from pre-trained" in (run / "log.txt").read_text()
    ) == advised
    page = Page((run / "report.html").read_text()).text
    assert f"{100 * summary['mean_ap']:.2f} % chance level {100 * summary['mean_ap_chance']:.2f} %:" in page
    assert "On 5 of 5 held-out key frames, whole frames" in page
    recipe = read_detect_recipe(run / "best.safetensors")
    assert (recipe.actions, recipe.clip.frames, recipe.area) == (ACTIONS, 4, "whole")

    out = tmp_path / "out"
    arguments = [run / "best.safetensors", *actions.evaluation(), "--boxes", actions.boxes, "--out", out]
    code, output, text = verb("detect-evaluate", *arguments)
    assert code == 0, text
    assert "detected boxes on whole frames: 15 in 5 of 5 key frames" in output
    result, own = result_of(out), result_of(run / "score")
    assert result["mean_ap"] == own["mean_ap"] == summary["mean_ap"]
    assert (out / "detections.csv").read_bytes() == (run / "score" / "detections.csv").read_bytes()
    official = evaluate_files(actions.truth, out / "detections.csv", actions.labels, actions.excluded)
    assert official.mean_ap == result["mean_ap"]
    assert result["seen"] == own["seen"]
    assert result["seen"] | {"area": "whole", "boxes": "detected", "score_threshold": 0.8} == result["seen"]
    assert result["weights_sha256"] == own["weights_sha256"]
    assert len(result["files"]["boxes 1"]["sha256"]) == 64
    assert (result["starts"], result["tested"]["boxes"]) == ([0.0], 15)


def test_detector_learns_from_avi_that_states_twice_its_rate(
    verb: Verb, actions: ActionSet, tmp_path: Path
) -> None:
    """The header states 16 frames per second of videos of 8; losses and scores are those of the mp4 files."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for path in Path(actions.videos).iterdir():
        copied = copy_to_avi(path, videos / f"{path.stem}.avi", slots=16)
        with av.open(str(copied)) as container:
            assert container.streams.video[0].average_rate == 16
    for name, folder in (("mp4", Path(actions.videos)), ("avi", videos)):
        run = actions.overrides(tmp_path / name)
        code, _, text = verb(
            "detect-train", *run, f"data.videos={folder}", "optim.epochs=1", "optim.warmup_epochs=0"
        )
        assert code == 0, text
    one, two = ([row["loss"] for row in rows(tmp_path / name)] for name in ("mp4", "avi"))
    assert one == two
    first, second = ((tmp_path / name / "score" / "detections.csv").read_bytes() for name in ("mp4", "avi"))
    assert first == second


@pytest.mark.parametrize("mean", [0.45, 0.5])
def test_weights_that_saw_other_pixels_are_told_of(
    verb: Verb, actions: ActionSet, tmp_path: Path, mean: float
) -> None:
    weights = write_detector(tmp_path / "d.safetensors")
    options = [f"model.weights={weights}", f"clip.mean={mean}", "data.validation=", "optim.warmup_epochs=0"]
    code, _, text = verb("detect-train", *actions.overrides(tmp_path / "run"), *options)
    assert code == 0, text
    assert f"weights from {weights}" in text
    assert ("these weights were trained with mean 0.45 and std 0.225, but clip.mean is 0.5" in text) == (
        mean == 0.5
    )


def test_choices_of_frames_and_boxes_are_named_in_the_result(
    verb: Verb, actions: ActionSet, tmp_path: Path
) -> None:
    weights = write_detector(tmp_path / "d.safetensors", poses=(1, 2))
    scores = {}
    for name, arguments in {
        "plain": [],
        "center": ["--area", "center"],
        "views": ["--scales", "32", "40", "--flip", "--clips-at-once", "3"],
        "detected": ["--boxes", actions.boxes, "--score-threshold", "0.93"],
    }.items():
        out = tmp_path / name
        code, output, text = verb("detect-evaluate", weights, *actions.evaluation(), *arguments, "--out", out)
        assert code == 0, text
        scores[name] = (result_of(out), (out / "detections.csv").read_text(), output)
    seen = {name: result["seen"] for name, (result, _, _) in scores.items()}
    assert seen["plain"]["boxes"] == "ground truth"
    assert "score_threshold" not in seen["plain"]
    assert seen["plain"]["scores"] == "softmax of the poses, sigmoid of the rest"
    assert (seen["center"]["area"], seen["views"]["flip"]) == ("center", True)
    assert seen["views"]["short_sides"] == [32, 40]
    assert (seen["detected"]["boxes"], seen["detected"]["score_threshold"]) == ("detected", 0.93)
    assert "ground-truth boxes on center crops: 10 in 5 of 5 key frames" in scores["center"][2]
    assert [scores[name][0]["tested"]["boxes"] for name in scores] == [10, 10, 10, 10]
    assert len({text for _, text, _ in scores.values()}) == 4
    pages = {name: (tmp_path / name / "report.html").read_text() for name in scores}
    for name, words in {
        "plain": "Boxes ground truth · Frames whole · Short side 32 · Flip no",
        "center": "Boxes ground truth · Frames center crop · Short side 32 · Flip no",
        "views": "Boxes ground truth · Frames whole · Short sides 32, 40 · Flip yes",
        "detected": "Boxes detected with a score of 0.93 or more · Frames whole · Short side 32 · Flip no",
    }.items():
        assert f"<p>{words}</p>" in pages[name]
    lines = list(csv.reader(scores["plain"][1].splitlines()))
    boxes: dict[tuple[str, ...], dict[int, float]] = {tuple(line[:6]): {} for line in lines}
    for line in lines:
        boxes[tuple(line[:6])][int(line[6])] = float(line[7])
    assert all(abs(one[1] + one[2] - 1) < 1e-6 for one in boxes.values())  # stand or sit


def test_an_unreadable_video_is_listed_and_counts_as_not_found(
    verb: Verb, actions: ActionSet, tmp_path: Path
) -> None:
    videos = Path(shutil.copytree(actions.videos, tmp_path / "videos"))
    (videos / "w.mp4").write_bytes(b"no video")
    weights, out = write_detector(tmp_path / "d.safetensors"), tmp_path / "out"
    arguments = [weights, *actions.evaluation(), "--videos", videos, "--out", out]
    code, output, text = verb("detect-evaluate", *arguments)
    assert code == 3, text
    assert "4 in 2 of 5 key frames" in output
    assert "3 key frames could not be read: their ground truth counts as not found" in output
    assert f"detect-evaluate: {videos / 'w.mp4'}: not a video file (3 key frames)" in text
    assert text.count("detect-evaluate: ") == 1
    tested = result_of(out)["tested"]
    assert (tested["key_frames"], tested["listed"], len(tested["unreadable"])) == (2, 5, 3)
    assert len((out / "failures.jsonl").read_text().splitlines()) == 3
    assert all(row["found"] <= 2 / 5 for row in result_of(out)["actions"] if row["groundtruth"])


def test_unreadable_training_key_frames_are_named_as_such(
    verb: Verb, actions: ActionSet, tmp_path: Path
) -> None:
    videos = Path(shutil.copytree(actions.videos, tmp_path / "videos"))
    (videos / "d.mp4").write_bytes(b"no video")
    code, _, text = verb("detect-train", *actions.overrides(tmp_path / "run"), f"data.videos={videos}")
    assert f"unreadable key frame, replaced: {videos / 'd.mp4'}: " in text
    words = (
        "of 12 key frames could not be read, but at most 1 may fail",
        "list these key frames in data.train_excl",
    )
    refused((code, "", text), *words)


def test_ground_truth_without_a_detected_box_is_counted_and_said(
    verb: Verb, actions: ActionSet, tmp_path: Path
) -> None:
    boxes, out = tmp_path / "boxes.csv", tmp_path / "out"
    rows = Path(actions.boxes).read_text().splitlines(keepends=True)
    boxes.write_text("".join(row for row in rows if not row.startswith(("w,0002", "w,0003"))))
    weights = write_detector(tmp_path / "d.safetensors")
    arguments = [weights, *actions.evaluation(), "--boxes", boxes, "--out", out]
    code, output, text = verb("detect-evaluate", *arguments)
    assert code == 0, text
    assert "2 key frames of the ground truth have no detected box: their ground truth counts" in output
    assert result_of(out)["undetected_key_frames"] == 2
    assert all(row["found"] <= 3 / 5 for row in result_of(out)["actions"] if row["groundtruth"])


def test_boxes_of_videos_without_ground_truth_are_counted_and_said(
    verb: Verb, actions: ActionSet, tmp_path: Path
) -> None:
    boxes, out = tmp_path / "boxes.csv", tmp_path / "out"
    boxes.write_text(Path(actions.boxes).read_text() + "a,0001,0.1,0.1,0.5,0.5,,0.9\n")
    weights = write_detector(tmp_path / "d.safetensors")
    arguments = [weights, *actions.evaluation(), "--boxes", boxes, "--out", out]
    code, output, text = verb("detect-evaluate", *arguments)
    assert code == 0, text
    words = "1 detected box is of 1 video without ground truth (a), and left out"
    assert words in output
    assert f"{boxes}: {words}" in text
    assert result_of(out)["left_out"] == {"boxes": 1, "videos": ["a"]}
    assert result_of(out)["detections"]["of_unknown_videos"] == 0
    boxes.write_text(boxes.read_text() + "nowhere,0001,0.1,0.1,0.5,0.5,,0.9\n")  # there or not: alike
    code, _, text = verb(
        "detect-train", *actions.overrides(tmp_path / "run"), f"data.validation_boxes=[{boxes}]"
    )
    assert code == 0, text
    words = "2 detected boxes are of 2 videos without ground truth (a, nowhere), and left out"
    assert text.count(words) == 2  # at once, and in the end
    score = tmp_path / "run" / "score"
    assert result_of(score)["left_out"] == {"boxes": 2, "videos": ["a", "nowhere"]}


def test_ground_truth_is_looked_for_beside_detected_boxes(
    verb: Verb, actions: ActionSet, tmp_path: Path
) -> None:
    """A video that is not there, or a time beyond the end, though no box is there: before the first step."""
    weights, truth = write_detector(tmp_path / "d.safetensors"), tmp_path / "truth.csv"
    for row, words in (
        ("zz,0001", ("1 of the 3 videos of", "truth.csv is missing, the first is 'zz'")),
        ("v,0099", ("truth.csv:19: 1 key frame of 1 video lies outside it", "the first at 99 s of")),
    ):
        truth.write_text(Path(actions.truth).read_text() + f"{row},0.1,0.1,0.5,0.5,1,0\n")
        arguments = [weights, *actions.evaluation(), "--groundtruth", truth, "--out", tmp_path / "out"]
        refused(verb("detect-evaluate", *arguments, "--boxes", actions.boxes), *words)
        refused(verb("detect-evaluate", *arguments), *words)
        refused(
            verb("detect-train", *actions.overrides(tmp_path / "run"), f"data.validation={truth}"), *words
        )
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_resumed_run_equals_the_uninterrupted_one(
    verb: Verb, actions: ActionSet, tmp_path: Path, stop_at: Any
) -> None:
    """Bit for bit on the CPU: stopped after 3 of 4 steps."""
    options = ["model.drop_path=0.5", "model.dropout=0.5", "loss.name=poses", "loss.poses=[1,2]"]
    assert verb("detect-train", *actions.overrides(tmp_path / "whole"), *options)[0] == 0
    stop_at(DetectRun, 3)
    parted = [*actions.overrides(tmp_path / "parted"), *options]
    assert "interrupted" in verb("detect-train", *parted)[2]
    assert verb("detect-train", *parted)[0] == 0
    for name in ("weights", "best"):
        one, two = (read_state(tmp_path / run / f"{name}.safetensors") for run in ("whole", "parted"))
        assert all(torch.equal(value, two[key]) for key, value in one.items())
    first, second = (
        [(row["loss"], row.get("evaluation/mean_ap")) for row in rows(tmp_path / run)]
        for run in ("whole", "parted")
    )
    assert first == second


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.train="], ("data.train is not set",)),
        (["data.label_map="], ("data.label_map is not set",)),
        (["run.folder="], ("run.folder is not set",)),
        (
            ["evaluate.weights=averaged"],
            ("evaluate.weights=averaged needs averaged weights", "set optim.ema_decay"),
        ),
        (["evaluate.every_seconds=0"], ("evaluate.every_seconds 0 must be at least 1",)),
        (["evaluate.every_seconds=7"], ("truth.csv", "at each 7-th second", "nothing to score")),
        (["data.validation=/dev/null"], ("/dev/null is a device, but a regular file is needed",)),
        (["data.train=/dev/null"], ("/dev/null is a device, but a regular file is needed",)),
        (["data.validation_boxes=[]", "boxes.score=95"], ("boxes.score 95 must be between 0 and 1",)),
        (["data.lable_map=x"], ("data.lable_map", "label_map")),
        (["optim.batch_size=50"], ("fewer than the 50 of one step",)),
    ],
)
def test_impossible_trainings_are_refused_in_one_line(
    verb: Verb, actions: ActionSet, tmp_path: Path, overrides: list[str], words: tuple[str, ...]
) -> None:
    refused(verb("detect-train", *actions.overrides(tmp_path / "run"), *overrides), *words)


def test_impossible_evaluations_are_refused_in_one_line(
    verb: Verb, actions: ActionSet, tmp_path: Path
) -> None:
    weights = write_detector(tmp_path / "d.safetensors")
    (tmp_path / "more.pbtxt").write_text('item { name: "stand" id: 1 } item { name: "swim" id: 9 }')
    (tmp_path / "other.pbtxt").write_text('item { name: "swim" id: 1 }')
    (tmp_path / "none.csv").write_text("")
    for changes, words in (
        (["--labels", tmp_path / "more.pbtxt"], ("action 9 (swim) is out of range", "d.safetensors has 4")),
        (["--labels", tmp_path / "other.pbtxt"], ("action 1 is 'swim', but 'stand' in",)),
        (["--groundtruth", tmp_path / "none.csv"], ("none.csv has no rows; ground truth has a row",)),
        (["--score-threshold", "95"], ("detect_evaluate.score_threshold 95 must be between 0 and 1",)),
        (["--boxes", tmp_path / "missing.csv"], ("missing.csv",)),
        (["--area", "square"], ("area 'square' is unknown; choose from whole, center",)),
        (["--scales", "32", "32"], ("short_sides=[32, 32]",)),
        (["--clips-at-once", "0"], ("detect_evaluate.clips_at_once 0 must be at least 1",)),
        (
            ["--frame-lists", "x.csv"],
            ("both a folder of videos and frame lists are set; set either the folder",),
        ),
        (["--out", weights], ("d.safetensors",)),
    ):
        arguments = [weights, *actions.evaluation(), "--out", tmp_path / "out", *changes]
        refused(verb("detect-evaluate", *arguments), *words)


@pytest.mark.slow
def test_processes_learn_and_score_what_one_does(actions: ActionSet, tmp_path: Path) -> None:
    """Sums in another order: losses and scores equal to 1e-4, the mAP of so few boxes exactly."""
    still = ["model.drop_path=0.0", "model.dropout=0.0"]
    for count in (1, 2):
        overrides = actions.overrides(tmp_path / f"run{count}")
        run_verb(count, "detect-train", *overrides, *still)
    one, two = ([row["loss"] for row in rows(tmp_path / f"run{count}")] for count in (1, 2))
    assert one == pytest.approx(two, rel=1e-4)
    weights = str(tmp_path / "run1" / "best.safetensors")
    arguments = [weights, *actions.evaluation(), "--boxes", actions.boxes, "--clips-at-once", "2"]
    for count in (1, 2, 3):
        run_verb(count, "detect-evaluate", *arguments, "--out", str(tmp_path / str(count)))
    files = [list(csv.reader((tmp_path / str(count) / "detections.csv").open())) for count in (1, 2, 3)]
    for file in files[1:]:
        assert [row[:7] for row in file] == [row[:7] for row in files[0]]
        assert [float(row[7]) for row in file] == pytest.approx([float(row[7]) for row in files[0]], abs=1e-5)
    assert len({result_of(tmp_path / str(count))["mean_ap"] for count in (1, 2, 3)}) == 1


@pytest.mark.cuda
def test_detector_is_trained_and_scored_on_a_gpu(verb: Verb, actions: ActionSet, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, _, text = verb(
        "detect-train",
        *actions.overrides(run),
        "run.device=cuda",
        "run.precision=bf16",
        "optim.ema_decay=0.5",
    )
    assert code == 0, text
    assert [row["step"] for row in rows(run)] == [1, 2, 3, 4]
    summary = simplejson.loads((run / "summary.json").read_text())
    assert (summary["key_frames"], summary["listed"]) == (5, 5)


CPU = torch.device("cpu")


@pytest.fixture
def config_of(actions: ActionSet, tmp_path: Path) -> Any:
    """``config_of(*overrides)`` of a tiny training."""

    def make(*overrides: str) -> DetectConfig:
        return load_config(DetectConfig, None, [*actions.overrides(tmp_path / "run"), *overrides])

    return make


def test_lists_hold_what_is_trained_and_tested_on(config_of: Any) -> None:
    lists = read_lists(config_of())
    assert lists.classes == CLASSES  # the largest id, though 3 is not listed
    assert len(lists.train) == 12
    # Two persons, the left one again as it was detected, the right one detected where it is, and a negative.
    assert len(lists.train.boxes) == 12 * 4
    assert lists.train.labels.sum(axis=0).tolist() == [24, 12, 0, 12]
    assert (~lists.train.labels.any(axis=1)).sum() == 12
    assert lists.tested is not None
    assert lists.truth is not None
    assert (len(lists.tested.boxes), len(lists.truth.boxes)) == (15, 10)  # a second is excluded
    recipe = build_recipe(config_of("evaluate.area=center"), lists)
    assert (recipe.area, recipe.short_side, recipe.score_threshold) == ("center", 32, 0.8)


def test_training_batches_have_the_boxes_of_their_clips(config_of: Any) -> None:
    config = config_of("color.brightness=0.2")
    loader = training_loader(config, read_lists(config).train)
    batch = next(loader.epoch(0))
    assert isinstance(batch, ActionBatch)
    assert batch.clips.shape == (6, 4, 32, 32, 3)
    assert set(batch.boxes[:, 0].tolist()) <= set(range(6))
    assert batch.labels.shape == (len(batch.boxes), CLASSES)


def test_loss_is_the_one_that_is_asked_for(config_of: Any) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(7, CLASSES), torch.rand(7, CLASSES) < 0.4

    def loss_of(*overrides: str) -> torch.Tensor:
        config = config_of(*overrides)
        return build_loss(config, read_lists(config), CPU)(logits, labels)

    assert torch.equal(loss_of(), binary_cross_entropy(logits, labels))
    assert torch.equal(loss_of("loss.focusing=2"), binary_cross_entropy(logits, labels, focusing=2.0))
    expected = pose_cross_entropy(logits, labels, torch.tensor([0, 1]))
    assert torch.equal(loss_of("loss.name=poses", "loss.poses=[1,2]"), expected)
    weights = class_weights(read_lists(config_of()).train.labels, power=0.5)
    expected = binary_cross_entropy(logits, labels, class_weights=weights)
    assert torch.equal(loss_of("loss.balance=0.5"), expected)


def test_class_weights_are_powers_of_counts_of_mean_one() -> None:
    labels = np.zeros((16, 3), bool)
    labels[:16, 0], labels[:4, 1] = True, True  # and the third never happens
    weights = class_weights(labels, power=0.5)
    torch.testing.assert_close(weights, torch.tensor([0.25, 0.5, 1.0]) / (1.75 / 3))
    assert class_weights(labels, power=0.0).tolist() == [1, 1, 1]


def test_step_is_the_loss_of_normalized_clips() -> None:
    class Model(torch.nn.Module):
        def forward(self, clips: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
            return clips.mean(dim=(1, 2, 3, 4))[boxes[:, 0].long(), None] * torch.ones(CLASSES)

    clips = torch.randint(0, 256, (2, 2, 8, 8, 3), dtype=torch.uint8)
    boxes = torch.tensor([[1.0, 0, 0, 8, 8], [0.0, 0, 0, 4, 4], [1.0, 2, 2, 8, 8]])
    labels = torch.rand(3, CLASSES) < 0.5
    recipe = SimpleNamespace(clip=ClipRecipe(frames=2, stride=1, crop=8, mean=0.5, std=0.25))
    run: Any = SimpleNamespace(network=Model(), loss=binary_cross_entropy, recipe=recipe)
    run.compare = functools.partial(DetectRun.detect, run)
    step = functools.partial(DetectRun.step, run)
    loss, numbers, _ = step(ActionBatch(clips, boxes, labels, torch.arange(2)))
    means = (clips.double() / 255 - 0.5).mean(dim=(1, 2, 3, 4)) / 0.25
    logits = means[[1, 0, 1], None].float() * torch.ones(CLASSES)
    torch.testing.assert_close(loss, binary_cross_entropy(logits, labels), atol=1e-6, rtol=1e-5)
    assert numbers["boxes"] == 3
    empty = ActionBatch(clips, boxes[:0], labels[:0], torch.arange(2))
    assert step(empty)[0] == 0  # as after a crop that lost all boxes


def test_pretrained_encoder_is_where_it_starts(config_of: Any, tmp_path: Path) -> None:
    path = tmp_path / "pretrained.safetensors"
    torch.manual_seed(5)
    save_model(create_model("maskfeat_mvitv2_nano", **ENCODER), path)
    model, report = build_detector(config_of(f"model.weights={path}"), CLASSES)
    assert report is not None
    assert set(report.new) == {"norm.weight", "norm.bias", "head.projection.weight", "head.projection.bias"}
    own, theirs = model.state_dict(), read_state(path)
    assert all(torch.equal(own[name], theirs[name]) for name in report.loaded)
    assert {"mask_token"} <= set(report.unused)


def test_classifier_gives_all_but_its_last_layer_even_of_as_many_classes(
    config_of: Any, tmp_path: Path
) -> None:
    path = tmp_path / "classifier.safetensors"
    torch.manual_seed(5)
    save_model(create_model("maskfeat_mvitv2_nano_classifier", **ENCODER, classes=CLASSES), path)
    model, report = build_detector(config_of(f"model.weights={path}"), CLASSES)
    assert report is not None
    assert set(report.new) == {"head.projection.weight", "head.projection.bias"}
    assert torch.equal(model.get_parameter("norm.weight"), read_state(path)["norm.weight"])
    assert not torch.equal(model.head.projection.weight, read_state(path)["head.projection.weight"])


def test_detector_gives_its_last_layer_where_the_actions_are_as_many(config_of: Any, tmp_path: Path) -> None:
    path = write_detector(tmp_path / "detector.safetensors")
    config = config_of(f"model.weights={path}")
    model, report = build_detector(config, CLASSES)
    assert report is not None
    assert not report.new
    assert torch.equal(model.head.projection.weight, read_state(path)["head.projection.weight"])
    _, report = build_detector(config, CLASSES + 1)
    assert report is not None
    assert set(report.reset) == {"head.projection.weight", "head.projection.bias"}


def test_poses_are_the_label_maps_or_avas(config_of: Any, actions: ActionSet, tmp_path: Path) -> None:
    kinds = tmp_path / "kinds.pbtxt"
    kinds.write_text(
        'item { name: "a" id: 1 label_type: PERSON_MOVEMENT }\n'
        'item { name: "b" id: 2 label_type: OBJECT_MANIPULATION }\n'
        'item { name: "c" id: 4 label_type: PERSON_MOVEMENT }\n'
    )
    lists = read_lists(config_of("loss.name=poses", f"data.label_map={kinds}"))
    assert lists.poses == (1, 4)
    lists = read_lists(config_of("loss.name=poses", "data.classes=80"))
    assert lists.poses == tuple(range(1, 15))
    assert lists.classes == 80


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["loss.name=sigmid"], "loss.name 'sigmid' is unknown; did you mean 'sigmoid'"),
        (["loss.name=poses"], r"needs the ids of two poses or more, and .*labels\.pbtxt has no label_type"),
        (["loss.name=poses", "loss.poses=[1,9]"], "loss.poses contains 9; ids of actions are 1 to 4"),
        (["loss.balance=2"], "loss.balance 2 must be between 0 and 1"),
        (["loss.focusing=-1"], "loss.focusing -1 must be at least 0"),
        (
            ["data.classes=3"],
            r"the action 4 \(talk to\), but data\.classes is 3; leave data\.classes out",
        ),
        (
            ["model.name=maskfeat_mvitv2_nano"],
            "'maskfeat_mvitv2_nano' is not a detector of actions; use",
        ),
        (
            ["model.name=maskfeat_mvit_nano_detector"],
            "is unknown; did you mean 'maskfeat_mvitv2_nano_detector'",
        ),
        (["model.arguments={temporal: late}"], "temporal 'late' is unknown; did you mean"),
        (["boxes.score=1.5"], "boxes.score 1.5 must be between 0 and 1"),
        (["boxes.train_score=3"], "boxes.train_score 3 must be between 0 and 1"),
        (["boxes.train_iou=-1"], "boxes.train_iou -1 must be between 0 and 1"),
        (["boxes.train_score=0.999", "data.train=none.csv"], r"none\.csv"),
        (["data.videos="], r"no videos are set; .* \(--videos, or the key data\.videos\)"),
        (["data.frame_lists=[x.csv]"], "both a folder of videos and frame lists are set"),
        (["data.frames_fps=0"], "data.frames_fps 0 must be above 0"),
        (["data.videos=nowhere"], "nowhere"),
        (["boxes.visible=2"], "boxes.visible 2 must be between 0 and 1"),
        (
            ["evaluate.area=centr"],
            "area 'centr' is unknown; did you mean 'center'",
        ),
        (["clip.short_side=[16,20]"], "neither below the crop 32"),
    ],
)
def test_impossible_settings_are_named(config_of: Any, overrides: list[str], words: str) -> None:
    def build() -> None:
        config = config_of(*overrides)
        lists = read_lists(config)
        build_recipe(config, lists)
        build_loss(config, lists, CPU)
        build_detector(config, lists.classes)
        training_loader(config, lists.train)

    with pytest.raises(UserError, match=words):
        build()


def test_label_map_without_ids_is_named(config_of: Any, tmp_path: Path) -> None:
    path = tmp_path / "bare.pbtxt"
    path.write_text('item { name: "stand" }\n')
    with pytest.raises(UserError, match=r"bare\.pbtxt:1: the action 'stand' has no id; write `id: 12`"):
        read_lists(config_of(f"data.label_map={path}"))


def test_an_action_beyond_the_classes_is_named_with_its_line(config_of: Any, tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("a,0001,0.1,0.1,0.5,0.5,1,0\na,0002,0.1,0.1,0.5,0.5,7,0\n")
    with pytest.raises(UserError, match=r"train\.csv:2: the action '7' .* is unknown; .* from 1 to 4"):
        read_lists(config_of(f"data.train={path}"))


def test_extracted_frames_are_found_by_lists(config_of: Any) -> None:
    places = video_locations(config_of("data.videos=", "data.frame_lists=[none.csv]", "data.frames=f"))
    assert places == VideoLocations(frame_lists=("none.csv",), frames="f")
    with pytest.raises(UserError, match=r"none\.csv: no such"):
        places.find_videos(read_lists(config_of()).train)


def test_boxes_where_nobody_is_are_tested_on(tmp_path: Path) -> None:
    """Also in a video without a ground truth box: a box there is a false positive."""
    (tmp_path / "truth.csv").write_text("a,1,0.1,0.1,0.5,0.5,12\nb,2\nc,3\n")
    rows = [f"{video},{second},0.1,0.1,0.5,0.5,,0.99\n" for video, second in ("a1", "b2", "d4")]
    (tmp_path / "boxes.csv").write_text("".join(rows))
    truth, tested, other = read_key_frames(
        str(tmp_path / "truth.csv"), [str(tmp_path / "boxes.csv")], "", classes=80, score_threshold=0.5
    )
    assert truth.videos == tested.videos == ("a", "b")
    assert tested.moments() == [("a", 1.0), ("b", 2.0)]
    assert other.videos == ("d",)
