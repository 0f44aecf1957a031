"""The parts of training a detector: lists, losses, weights to start from, the words of what is refused."""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.jobs.action_set import CLASSES, ENCODER, ActionSet, make_action_set, write_detector
from videomaskfeat.config import load_config
from videomaskfeat.data.batches import ActionBatch
from videomaskfeat.errors import UserError
from videomaskfeat.inference.key_frames import VideoPlaces, read_tested
from videomaskfeat.jobs.detect import (
    DetectRun,
    build_detector,
    build_loss,
    class_weights,
    read_lists,
    recipe_of,
    training_loader,
    video_places,
)
from videomaskfeat.losses import binary_cross_entropy, pose_cross_entropy
from videomaskfeat.models import create_model
from videomaskfeat.models.weights import read_state, save_weights
from videomaskfeat.recipe import ClipRecipe
from videomaskfeat.schemas import DetectConfig

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def actions(tmp_path_factory: pytest.TempPathFactory) -> ActionSet:
    return make_action_set(tmp_path_factory.mktemp("actions"))


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
    recipe = recipe_of(config_of("evaluate.area=centre"), lists)
    assert (recipe.area, recipe.short_side, recipe.score_threshold) == ("centre", 32, 0.8)


def test_training_batches_have_the_boxes_of_their_clips(config_of: Any) -> None:
    config = config_of("colour.brightness=0.2")
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
    poses = torch.tensor([True, True, False, False])
    expected = pose_cross_entropy(logits, labels, poses)
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


def test_step_is_the_loss_of_normalised_clips() -> None:
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
    save_weights(path, create_model("maskfeat_mvitv2_nano", **ENCODER))
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
    save_weights(path, create_model("maskfeat_mvitv2_nano_classifier", **ENCODER, classes=CLASSES))
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
        (["loss.name=poses", "loss.poses=[1,9]"], "loss.poses holds 9, and there are the actions 1 to 4"),
        (["loss.balance=2"], "loss.balance 2 must be between 0 and 1"),
        (["loss.focusing=-1"], "loss.focusing -1 must be at least 0"),
        (
            ["data.classes=3"],
            r"the action 4 \(talk to\), and data\.classes is 3; leave data\.classes out",
        ),
        (
            ["model.name=maskfeat_mvitv2_nano"],
            "'maskfeat_mvitv2_nano' is no detector of actions; take",
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
        (["data.videos="], r"give one of two places: .* \(--videos, or the key data\.videos\)"),
        (["data.frame_lists=[x.csv]"], "give one of two places"),
        (["data.frames_fps=0"], "data.frames_fps 0 must be above 0"),
        (["data.videos=nowhere"], "nowhere"),
        (["boxes.visible=2"], "boxes.visible 2 must be between 0 and 1"),
        (["evaluate.area=center"], "area 'center' is unknown; did you mean 'centre'"),
        (["clip.short_side=[16,20]"], "neither below the crop 32"),
    ],
)
def test_impossible_settings_are_named(config_of: Any, overrides: list[str], words: str) -> None:
    def build() -> None:
        config = config_of(*overrides)
        lists = read_lists(config)
        recipe_of(config, lists)
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
    places = video_places(config_of("data.videos=", "data.frame_lists=[none.csv]", "data.frames=f"))
    assert places == VideoPlaces(frame_lists=("none.csv",), frames="f")
    with pytest.raises(UserError, match=r"none\.csv: no such"):
        places.find(read_lists(config_of()).train)


def test_boxes_where_nobody_is_are_tested_on(tmp_path: Path) -> None:
    """Also in a video of which the ground truth has no box: what is found there is a false positive."""
    (tmp_path / "truth.csv").write_text("a,1,0.1,0.1,0.5,0.5,12\nb,2\nc,3\n")
    rows = [f"{video},{second},0.1,0.1,0.5,0.5,,0.99\n" for video, second in ("a1", "b2", "d4")]
    (tmp_path / "boxes.csv").write_text("".join(rows))
    truth, tested, other = read_tested(
        str(tmp_path / "truth.csv"), [str(tmp_path / "boxes.csv")], "", classes=80, score_threshold=0.5
    )
    assert truth.videos == tested.videos == ("a", "b")
    assert tested.moments() == [("a", 1.0), ("b", 2.0)]
    assert other.videos == ("d",)
