"""Recipes in weights files: round trips, and errors for damaged files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from videomaskfeat.cli import CommandLine
from videomaskfeat.config_keys import SPELLINGS
from videomaskfeat.errors import UserError
from videomaskfeat.inference.clip_settings import describe_inherited
from videomaskfeat.inference.detectors import load_detector
from videomaskfeat.metrics.accuracy import action_scores
from videomaskfeat.models import create_model
from videomaskfeat.models.saving import save_model
from videomaskfeat.recipe import METADATA_KEY, ClipRecipe, MaskRecipe, PretrainRecipe, normalize
from videomaskfeat.stored_recipe import (
    CLASSIFY_KEY,
    DETECT_KEY,
    ENCODER_KEY,
    ClassifyRecipe,
    DetectRecipe,
    read_classify_recipe,
    read_clip_recipe,
    read_detect_recipe,
    read_recipe,
    read_testing_recipe,
    recipe_texts,
)


def write(path: Path, metadata: dict[str, str]) -> Path:
    save_file({"weight": torch.zeros(1)}, path, metadata=metadata)
    return path


def test_recipe_round_trip(tmp_path: Path) -> None:
    recipe = PretrainRecipe(
        clip=ClipRecipe(
            frames=8, stride=1.5, crop=64, target_fps=None, short_video="loop", mean=0.4, std=0.2
        ),
        mask=MaskRecipe(kind="tube", ratio=0.7, cell=(8, 16, 16)),
        target="hog",
        target_arguments={"bins": 6, "cell": 16},
    )
    assert read_recipe(write(tmp_path / "a.safetensors", {METADATA_KEY: recipe.to_json()})) == recipe


def test_missing_values_of_older_files_have_defaults() -> None:
    text = '{"clip": {"frames": 16, "stride": 4, "crop": 224}, "target": {"name": "hog"}}'
    assert PretrainRecipe.from_json(text) == PretrainRecipe(ClipRecipe(frames=16, stride=4, crop=224))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not a valid pre-training recipe"),
        ("[]", "not a valid pre-training recipe"),
        ('{"target": {"name": "hog"}}', "clip is missing"),
        ('{"clip": {"frames": 1, "stride": 1, "crop": 1, "color": 2}, "target": {"name": "hog"}}', "color"),
    ],
)
def test_damaged_recipe_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = write(tmp_path / "a.safetensors", {METADATA_KEY: text})
    with pytest.raises(UserError, match=f"a.safetensors: metadata key 'pretrain': .*{words}"):
        read_recipe(path)


def test_file_without_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="weights without a recipe, not weights of a pre-training run"):
        read_recipe(write(tmp_path / "a.safetensors", {"model": "x"}))
    (tmp_path / "b.safetensors").write_bytes(b"PK" + bytes(100))
    with pytest.raises(UserError, match="not a safetensors file"):
        read_recipe(tmp_path / "b.safetensors")
    with pytest.raises(UserError, match="no such file"):
        read_recipe(tmp_path / "c.safetensors")


def test_classify_recipe_round_trip(tmp_path: Path) -> None:
    recipe = ClassifyRecipe(
        clip=ClipRecipe(frames=16, stride=4, crop=224),
        sampling="segments",
        views=1,
        crops=3,
        short_side=224,
        class_names=("Pushing [something] left", "Zähne putzen"),
    )
    path = write(tmp_path / "a.safetensors", {CLASSIFY_KEY: recipe.to_json()})
    assert read_classify_recipe(path) == recipe
    assert read_clip_recipe(path) == recipe.clip


def test_pretraining_weights_are_not_a_classifier(tmp_path: Path) -> None:
    recipe = PretrainRecipe(ClipRecipe(frames=16, stride=4, crop=224))
    path = write(tmp_path / "a.safetensors", {METADATA_KEY: recipe.to_json()})
    assert read_clip_recipe(path) == recipe.clip
    with pytest.raises(UserError, match="weights of a pre-training run, not weights of a classifier"):
        read_classify_recipe(path)


@pytest.mark.parametrize("name", ["model.pyth", "step_10.pt", "model.pth", "last.ckpt"])
def test_error_for_torch_checkpoint_names_the_import(tmp_path: Path, name: str) -> None:
    for read in (read_recipe, read_classify_recipe, read_testing_recipe):
        with pytest.raises(UserError, match=rf"{name} is a PyTorch checkpoint, .*import-slowfast --config"):
            read(tmp_path / name)


def test_run_folder_is_not_a_weights_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a folder; give the weights file in it"):
        read_classify_recipe(tmp_path)


def test_testing_recipe_is_the_classifiers_or_one_view_of_the_pretrained(tmp_path: Path) -> None:
    clip = ClipRecipe(frames=8, stride=2, crop=64)
    classify = ClassifyRecipe(clip, views=4, crops=3, short_side=64)
    path = write(tmp_path / "a.safetensors", {CLASSIFY_KEY: classify.to_json()})
    assert read_testing_recipe(path) == classify
    path = write(tmp_path / "b.safetensors", {METADATA_KEY: PretrainRecipe(clip).to_json()})
    assert read_testing_recipe(path) == ClassifyRecipe(clip, views=1, crops=1, short_side=64)
    with pytest.raises(UserError, match=r"c.safetensors contains weights without a recipe"):
        read_testing_recipe(write(tmp_path / "c.safetensors", {"model": "x"}))


def test_encoders_recipe_is_for_testing_alone(tmp_path: Path) -> None:
    recipe = ClassifyRecipe(ClipRecipe(frames=8, stride=2, crop=64), views=4)
    path = write(tmp_path / "a.safetensors", {ENCODER_KEY: recipe.to_json(), "model": "x"})
    assert read_testing_recipe(path) == recipe
    assert read_clip_recipe(path) == recipe.clip
    with pytest.raises(UserError, match="weights of an encoder without a head, not weights of a classifier"):
        read_classify_recipe(path)
    assert recipe_texts(path) == {ENCODER_KEY: recipe.to_json()}
    assert recipe_texts(write(tmp_path / "b.safetensors", {"model": "x"})) == {}


def test_three_crops_take_the_short_side_of_the_crop() -> None:
    recipe = ClassifyRecipe(ClipRecipe(frames=8, stride=2, crop=224), views=5, crops=1, short_side=256)
    assert recipe.with_views() == recipe

    def sizes(views: int | None, crops: int | None, own: ClassifyRecipe = recipe) -> tuple[int, int, int]:
        changed = own.with_views(views=views, crops=crops)
        return changed.views, changed.crops, changed.short_side

    assert sizes(10, 1) == (10, 1, 256)
    assert sizes(None, 3) == (5, 3, 224)
    wide = ClassifyRecipe(recipe.clip, views=2, crops=3, short_side=250)
    assert sizes(4, 3, wide) == (4, 3, 250)
    assert sizes(None, 1, wide) == (2, 1, 250)


def test_mean_and_std_may_be_per_channel(tmp_path: Path) -> None:
    recipe = ClassifyRecipe(ClipRecipe(16, 4, 224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)))
    assert read_classify_recipe(write(tmp_path / "a.safetensors", {CLASSIFY_KEY: recipe.to_json()})) == recipe
    clips = torch.randint(256, (2, 3, 4, 5, 3), dtype=torch.uint8)
    pixels = normalize(clips, mean=recipe.clip.mean, std=recipe.clip.std)
    for channel, (mean, std) in enumerate(((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))):
        torch.testing.assert_close(pixels[:, channel], (clips[..., channel] / 255 - mean) / std)
    assert torch.equal(normalize(clips, mean=[0.4] * 3, std=[0.2] * 3), normalize(clips, mean=0.4, std=0.2))


@pytest.mark.parametrize(
    ("statistics", "words"),
    [
        ({"mean": "0.45"}, "mean '0.45' is neither a number for all channels nor a list with"),
        ({"std": [0.2, None, 0.2]}, r"std \[0.2, None, 0.2\] is neither"),
        ({"mean": ()}, r"mean \(\) is neither"),
        ({"std": 0}, "std 0 must be above 0"),
        ({"std": (0.2, 0.2, -0.2)}, r"std .* must be above 0"),
        ({"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.2)}, r"mean .* must have the same number"),
    ],
)
def test_statistics_that_are_not_numbers_are_refused(statistics: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        ClipRecipe(16, 4, 224, **statistics)


@pytest.mark.cuda
def test_pixels_are_normalized_on_the_gpu_as_on_the_cpu() -> None:
    clips = torch.randint(0, 256, (2, 4, 8, 8, 3), dtype=torch.uint8)
    actual = normalize(clips.pin_memory().to("cuda", non_blocking=True), mean=0.45, std=0.225)
    assert actual.is_cuda
    torch.testing.assert_close(actual.cpu(), normalize(clips, mean=0.45, std=0.225), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"clip": {"frames": 0.5}}, "clip.frames 0.5 must be an integer"),
        ({"clip": {"frames": -1}}, "clip.frames -1 must be an integer from 1 to 10000"),
        ({"clip": {"frames": 10_000, "crop": 8192}}, "a clip of 10000 frames of 8192x8192 has"),
        ({"clip": {"stride": "4"}}, "clip.stride '4' must be a finite number"),
        ({"clip": {"mean": [0.4, None]}}, r"clip.mean \[0.4, None\] must be"),
        ({"clip": {"std": 0}}, "clip.std 0 must be a finite number from"),
        ({"clip": {"short_video": "clam"}}, "clip.short_video 'clam' is unknown; did you mean 'clamp'"),
        ({"clip": [1]}, r"clip \[1\] must be a mapping of names to values"),
        ({"views": 10**30}, r"the integer 1000.* has more than 64 bits"),
        ({"crops": True}, "crops True must be an integer"),
        ({"average": ["softmax"]}, r"average \['softmax'\] must be a string"),
        ({"class_names": "abc"}, "class_names 'abc' must be a list of values, each a string"),
        ({"class_names": [["a"]]}, r"class_names \['a'\] must be a string"),
    ],
)
def test_values_of_a_recipe_are_checked_like_a_config(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    fields = json.loads(ClassifyRecipe(ClipRecipe(8, 4, 64)).to_json())
    for key, value in change.items():
        fields[key] = {**fields[key], **value} if isinstance(value, dict) else value
    path = write(tmp_path / "a.safetensors", {CLASSIFY_KEY: json.dumps(fields)})
    with pytest.raises(UserError, match=rf"a\.safetensors: metadata key 'classify': .*{words}"):
        read_classify_recipe(path)


@pytest.mark.parametrize(
    "text", ["NaN", '{"clip": ' + "[" * 100_000, '{"clip": {"frames": 1e400}}', "9" * 6000]
)
def test_invalid_json_causes_no_traceback(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "a.safetensors", {METADATA_KEY: text})
    for read in (read_recipe, read_testing_recipe, read_clip_recipe):
        with pytest.raises(UserError, match=r"a\.safetensors: metadata key 'pretrain': ") as caught:
            read(path)
        assert "\n" not in str(caught.value)


DETECT_CLIP = ClipRecipe(frames=4, stride=2, crop=32)
DETECT_RECIPE = DetectRecipe(
    DETECT_CLIP, {1: "bend", 3: "réad"}, 4, poses=(1, 2), short_side=40, area="center", score_threshold=0.7
)
TINY: dict[str, Any] = {"depth": 2, "width": 8, "clip_size": (4, 32, 32)}


def write_model(
    path: Path, recipe: str, *, name: str = "maskfeat_mvitv2_nano_detector", **arguments: Any
) -> Path:
    torch.manual_seed(0)
    save_model(create_model(name, **TINY, **arguments), path, metadata={DETECT_KEY: recipe})
    return path


def test_detect_recipe_round_trip(tmp_path: Path) -> None:
    path = write_model(tmp_path / "best.safetensors", DETECT_RECIPE.to_json(), classes=4)
    assert read_detect_recipe(path) == DETECT_RECIPE
    assert read_testing_recipe(path).clip == DETECT_CLIP
    assert [DETECT_RECIPE.name_of(column) for column in range(4)] == ["bend", "action 2", "réad", "action 4"]


def test_loaded_detector_scores_boxes(tmp_path: Path) -> None:
    detector = load_detector(write_model(tmp_path / "best.safetensors", DETECT_RECIPE.to_json(), classes=4))
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


def test_weights_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pretrained.safetensors"
    texts = {METADATA_KEY: PretrainRecipe(DETECT_CLIP).to_json()}
    save_model(create_model("maskfeat_mvitv2_nano", **TINY), path, metadata=texts)
    with pytest.raises(UserError, match=r"weights of a pre-training run, not weights of a detector"):
        load_detector(path)
    save_model(create_model("maskfeat_mvitv2_nano", **TINY), path)
    with pytest.raises(UserError, match="weights without a recipe, not weights of a detector"):
        load_detector(path)
    with pytest.raises(UserError, match=r"none\.safetensors: no such file"):
        load_detector(tmp_path / "none.safetensors")


def test_detector_is_not_a_classifier(tmp_path: Path) -> None:
    path = write_model(tmp_path / "best.safetensors", DETECT_RECIPE.to_json(), classes=4)
    with pytest.raises(UserError, match="weights of a detector of actions, not weights of a classifier"):
        read_classify_recipe(path)


def test_recipe_and_model_of_two_files_are_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path / "best.safetensors", DETECT_RECIPE.to_json(), classes=5)
    with pytest.raises(
        UserError, match=r"a detector of 4 actions, but the model is a .*Detector with 5 classes;"
    ):
        load_detector(path)
    write_model(path, DETECT_RECIPE.to_json(), name="maskfeat_mvitv2_nano_classifier", classes=4)
    with pytest.raises(
        UserError, match=r"a detector of 4 actions, but the model is a .*Classifier with 4 classes;"
    ):
        load_detector(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not a valid detector's recipe"),
        (
            '{"clip": {"frames": 4, "stride": 2, "crop": 32}}',
            "not a valid detector's recipe: actions is missing",
        ),
        (
            DETECT_RECIPE.to_json().replace("short_side", "short_sides"),
            "not a valid detector's recipe: .*short_sides",
        ),
    ],
)
def test_damaged_detect_recipe_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = write_model(tmp_path / "best.safetensors", text, classes=4)
    with pytest.raises(UserError, match=rf"best\.safetensors: metadata key 'detect': {words}"):
        read_detect_recipe(path)


def test_british_spelling_in_older_weights_files_is_read() -> None:
    british = {present: former for former, present in SPELLINGS.items()}
    text = DETECT_RECIPE.to_json().replace("center", british["center"])
    assert DetectRecipe.from_json(text) == DETECT_RECIPE
    arguments = {"targets": {"pixels": {"arguments": {"normalized": False}}}}
    recipe = PretrainRecipe(DETECT_CLIP, target="combined", target_arguments=arguments)
    assert PretrainRecipe.from_json(recipe.to_json().replace("normalized", british["normalized"])) == recipe


def test_invalid_detect_recipe_is_refused() -> None:
    with pytest.raises(UserError, match="area 'centr' is unknown; did you mean 'center'"):
        DetectRecipe(DETECT_CLIP, {1: "bend"}, 1, area="centr")
    with pytest.raises(UserError, match="action 5 is out of range: action ids are 1"):
        DetectRecipe(DETECT_CLIP, {5: "bend"}, 4)
    with pytest.raises(UserError, match="action 9 is out of range"):
        DetectRecipe(DETECT_CLIP, {1: "bend"}, 4, poses=(9,))


def finetune_config(*arguments: str, verb: str = "finetune") -> Any:
    return CommandLine(verb).read(list(arguments))


def test_fine_tuning_takes_clips_from_its_weights(tmp_path: Path) -> None:
    clip = ClipRecipe(8, 2, 112, target_fps=None, mean=(0.5, 0.4, 0.3), std=0.25)
    path = write(tmp_path / "a.safetensors", {METADATA_KEY: PretrainRecipe(clip).to_json()})
    weights = f"model.weights={path}"
    config = finetune_config(weights)
    values = [config.clip.frames, config.clip.stride, config.clip.target_fps, config.clip.crop]
    assert values == [8, 2, None, 112]
    assert (config.clip.mean, config.clip.std) == ([0.5, 0.4, 0.3], 0.25)
    # The defaults, 256 to 320 and 256 pixels, belong to a crop of 224.
    assert (config.clip.short_side, config.evaluate.short_side) == ([128, 160], 128)
    assert describe_inherited(str(path), ClipRecipe.of(config.clip)) == [
        f"weights   frames, stride, crop and normalization of clips are those of {path}"
    ]
    config = finetune_config(weights, "clip.frames=4", "clip.crop=64", "evaluate.short_side=64")
    assert (config.clip.frames, config.clip.stride, config.clip.crop) == (4, 2, 64)
    assert (config.clip.short_side, config.evaluate.short_side) == ([256, 320], 64)
    (line,) = describe_inherited(str(path), ClipRecipe.of(config.clip))
    assert line.endswith(f"those of {path}: clip.frames 4 instead of 8, clip.crop 64 instead of 112")
    (tmp_path / "c.yaml").write_text(f"clip:\n  stride: 3\nmodel:\n  weights: {path}\n")
    config = finetune_config("--config", str(tmp_path / "c.yaml"))
    assert (config.clip.frames, config.clip.stride) == (8, 3)
    assert finetune_config("model.weights=missing.safetensors").clip.frames == 16
    detect = finetune_config(weights, verb="detect-train")
    assert (detect.clip.frames, detect.clip.short_side, detect.evaluate.short_side) == (8, [128, 160], 112)


def test_short_side_is_that_of_the_views_of_a_classifier(tmp_path: Path) -> None:
    recipe = ClassifyRecipe(ClipRecipe(8, 2, 64), short_side=72).to_json()
    path = write(tmp_path / "a.safetensors", {CLASSIFY_KEY: recipe})
    assert finetune_config(f"model.weights={path}").evaluate.short_side == 72
    assert finetune_config(f"model.weights={path}", verb="detect-train").evaluate.short_side == 64
    recipe = DetectRecipe(ClipRecipe(8, 2, 64), {1: "stand"}, 1, short_side=80).to_json()
    path = write(tmp_path / "b.safetensors", {DETECT_KEY: recipe})
    assert finetune_config(f"model.weights={path}", verb="detect-train").evaluate.short_side == 80


def test_videos_take_no_times_from_weights_of_pictures(tmp_path: Path) -> None:
    recipe = PretrainRecipe(ClipRecipe(1, 1, 112, mean=0.5)).to_json()
    path = write(tmp_path / "a.safetensors", {METADATA_KEY: recipe})
    clip = finetune_config(f"model.weights={path}").clip
    assert (clip.frames, clip.stride, clip.crop, clip.mean) == (16, 4, 112, 0.5)


def test_resumed_run_keeps_the_clips_of_its_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {METADATA_KEY: PretrainRecipe(ClipRecipe(8, 2, 64)).to_json()})
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/config.yaml").write_text("clip:\n  frames: 4\n")
    arguments = [f"model.weights={path}", f"run.folder={tmp_path / 'run'}"]
    assert finetune_config(*arguments).clip.frames == 8
    (tmp_path / "run/checkpoints/step_1.pt").write_text("")
    clip = finetune_config(*arguments).clip
    assert (clip.frames, clip.crop) == (4, 224)  # the crop by the default of that time
