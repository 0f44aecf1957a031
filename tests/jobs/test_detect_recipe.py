"""What a detector's weights file knows, read back; and the words where it is another kind of file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from videomaskfeat.errors import UserError
from videomaskfeat.inference.detectors import load_detector
from videomaskfeat.metrics.accuracy import action_scores
from videomaskfeat.models import create_model
from videomaskfeat.models.weights import save_weights
from videomaskfeat.recipe import (
    DETECT_KEY,
    METADATA_KEY,
    ClipRecipe,
    DetectRecipe,
    PretrainRecipe,
    normalize,
    read_classify_recipe,
    read_detect_recipe,
    read_testing_recipe,
)

CLIP = ClipRecipe(frames=4, stride=2, crop=32)
RECIPE = DetectRecipe(
    CLIP, {1: "bend", 3: "réad"}, 4, poses=(1, 2), short_side=40, area="centre", score_threshold=0.7
)
TINY: dict[str, Any] = {"depth": 2, "width": 8, "clip_size": (4, 32, 32)}


def write(path: Path, recipe: str, *, name: str = "maskfeat_mvitv2_nano_detector", **arguments: Any) -> Path:
    torch.manual_seed(0)
    save_weights(path, create_model(name, **TINY, **arguments), metadata={DETECT_KEY: recipe})
    return path


def test_recipe_comes_back_from_the_weights(tmp_path: Path) -> None:
    path = write(tmp_path / "best.safetensors", RECIPE.to_json(), classes=4)
    assert read_detect_recipe(path) == RECIPE
    assert read_testing_recipe(path).clip == CLIP
    assert [RECIPE.name_of(column) for column in range(4)] == ["bend", "action 2", "réad", "action 4"]


def test_loaded_detector_scores_boxes(tmp_path: Path) -> None:
    detector = load_detector(write(tmp_path / "best.safetensors", RECIPE.to_json(), classes=4))
    clips = torch.randint(0, 256, (2, 4, 32, 40, 3), dtype=torch.uint8)
    boxes = torch.tensor([[0, 1.0, 2.0, 30.0, 31.0], [1, 5.0, 0.0, 40.0, 20.0]])
    scores = detector.scores(clips, boxes)
    expected = action_scores(
        detector.model(normalize(clips, mean=0.45, std=0.225), boxes),
        torch.tensor([True, True, False, False]),
    )
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=1e-6)
    assert not scores.requires_grad
    torch.testing.assert_close(scores[:, :2].sum(1), torch.ones(2))
    assert detector.scores(clips, torch.zeros(0, 5)).shape == (0, 4)


def test_weights_of_another_kind_are_named(tmp_path: Path) -> None:
    path = tmp_path / "pretrained.safetensors"
    texts = {METADATA_KEY: PretrainRecipe(CLIP).to_json()}
    save_weights(path, create_model("maskfeat_mvitv2_nano", **TINY), metadata=texts)
    with pytest.raises(UserError, match=r"weights of another kind \(pretrain\), and a detector's are needed"):
        load_detector(path)
    save_weights(path, create_model("maskfeat_mvitv2_nano", **TINY))
    with pytest.raises(UserError, match="weights without a recipe, and a detector's are needed"):
        load_detector(path)
    with pytest.raises(UserError, match=r"none\.safetensors: no such weights file"):
        load_detector(tmp_path / "none.safetensors")


def test_a_classifier_is_asked_for_elsewhere(tmp_path: Path) -> None:
    path = write(tmp_path / "best.safetensors", RECIPE.to_json(), classes=4)
    with pytest.raises(UserError, match="weights of a detector of actions, and a classifier's are needed"):
        read_classify_recipe(path)


def test_recipe_and_model_of_two_files_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "best.safetensors", RECIPE.to_json(), classes=5)
    with pytest.raises(UserError, match=r"of a detector of 4 actions, and its model a .*Detector of 5;"):
        load_detector(path)
    write(path, RECIPE.to_json(), name="maskfeat_mvitv2_nano_classifier", classes=4)
    with pytest.raises(UserError, match=r"a detector of 4 actions, and its model a .*Classifier of 4;"):
        load_detector(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "no detector's recipe"),
        ('{"clip": {"frames": 4, "stride": 2, "crop": 32}}', "no detector's recipe: actions is missing"),
        (RECIPE.to_json().replace("short_side", "short_sides"), "no detector's recipe: .*short_sides"),
    ],
)
def test_a_damaged_recipe_is_named_with_its_file(tmp_path: Path, text: str, words: str) -> None:
    path = write(tmp_path / "best.safetensors", text, classes=4)
    with pytest.raises(UserError, match=rf"best\.safetensors: its metadata key 'detect' holds {words}"):
        read_detect_recipe(path)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match="area 'center' is unknown; did you mean 'centre'"):
        DetectRecipe(CLIP, {1: "bend"}, 1, area="center")
    with pytest.raises(
        UserError, match="the action 5 is none of the 4 that the model knows: ids count from 1"
    ):
        DetectRecipe(CLIP, {5: "bend"}, 4)
    with pytest.raises(UserError, match="the action 9 is none of the 4"):
        DetectRecipe(CLIP, {1: "bend"}, 4, poses=(9,))
