"""Probabilities and features of videos, compared with the network on clips cut by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

import videomaskfeat
from tests.data.make_videos import make_unreadable, write_video
from tests.jobs.weights_files import NAMES, RECIPE, write_classifier, write_pretrained
from videomaskfeat import UserError, VideoReadError, load_classifier, load_encoder
from videomaskfeat.errors import RunFailed
from videomaskfeat.inference.classifiers import Prediction, Predictions, VideoClassifier
from videomaskfeat.models.loading import load_model

# Of 20 frames at 30 a second, a clip of 4 at stride 2 spans 8: frames 0, 7/3, 14/3, 7 from its start, cut to
# whole ones. Two clips start at 0 and 12, a single one at 6.
VIEWS = [[0, 2, 4, 7], [12, 14, 16, 19]]
MIDDLE = [6, 8, 10, 13]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights, and a video of 48x32 pixels; its center crop has columns 8 to 39, not resized."""
    path = tmp_path_factory.mktemp("library")
    write_classifier(path / "classifier.safetensors")
    write_pretrained(path / "pretrained.safetensors")
    write_video(path / "video.mp4", frames=20, width=48, height=32)
    return path


@pytest.fixture(scope="module")
def frames(folder: Path) -> np.ndarray:
    with videomaskfeat.open_video(folder / "video.mp4", "pyav") as video:
        return video.read(range(20))


@pytest.fixture(scope="module")
def classifier(folder: Path) -> VideoClassifier:
    return load_classifier(folder / "classifier.safetensors", device="cpu")


def by_hand(frames: np.ndarray, indices: list[int], left: int = 8) -> Tensor:
    """A normalized clip [1, C, T, H, W]."""
    clip = frames[indices][:, :, left : left + 32].astype(np.float64) / 255
    return torch.from_numpy((clip - 0.45) / 0.225).float().permute(3, 0, 1, 2)[None]


@torch.no_grad()
def test_probabilities_are_the_mean_softmax_of_the_views(
    folder: Path, frames: np.ndarray, classifier: VideoClassifier
) -> None:
    network = load_model(folder / "classifier.safetensors")
    expected = torch.stack([network(by_hand(frames, view))[0].softmax(0) for view in VIEWS]).mean(0)
    result = classifier.predict(folder / "video.mp4")
    # float32 through three blocks, once with two clips together and once with one
    torch.testing.assert_close(result.probabilities, expected, atol=1e-5, rtol=0)
    assert result.probabilities.dtype == torch.float32
    assert float(result.probabilities.sum()) == pytest.approx(1, abs=1e-6)
    assert result.path == str(folder / "video.mp4")
    assert result.class_names == NAMES
    one = classifier.predict(folder / "video.mp4", views=1)
    expected = network(by_hand(frames, MIDDLE))[0].softmax(0)
    torch.testing.assert_close(one.probabilities, expected, atol=1e-5, rtol=0)
    assert (one.probabilities - result.probabilities).abs().max() > 1e-3  # otherwise the test has no effect


@torch.no_grad()
def test_three_crops_are_left_center_and_right(
    folder: Path, frames: np.ndarray, classifier: VideoClassifier
) -> None:
    network = load_model(folder / "classifier.safetensors")
    crops = [network(by_hand(frames, MIDDLE, left))[0].softmax(0) for left in (0, 8, 16)]
    result = classifier.predict(folder / "video.mp4", views=1, crops=3)
    torch.testing.assert_close(result.probabilities, torch.stack(crops).mean(0), atol=1e-5, rtol=0)


def test_decoded_frames_equal_the_file(folder: Path, frames: np.ndarray, classifier: VideoClassifier) -> None:
    path = str(folder / "video.mp4")
    from_file = classifier.predict(path)
    for video in (frames, torch.from_numpy(frames)):
        result = classifier.predict(video, fps=30.0)
        assert torch.equal(result.probabilities, from_file.probabilities)
        assert result.path == "frames in memory"
        assert torch.equal(classifier.features(video, fps=30.0), classifier.features(path))
    slower = classifier.predict(frames, fps=15.0)  # a clip then spans 4 frames
    assert not torch.equal(slower.probabilities, from_file.probabilities)


@torch.no_grad()
@pytest.mark.parametrize("depth", [None, 1, 3])
@pytest.mark.parametrize("weights", ["classifier.safetensors", "pretrained.safetensors"])
def test_features_are_the_encoders_at_any_depth(
    folder: Path, frames: np.ndarray, weights: str, depth: int | None
) -> None:
    network = load_model(folder / weights)
    encoder = load_encoder(folder / weights, device="cpu")
    grid = encoder.features(folder / "video.mp4", depth=depth, pooled=False)
    expected = network.features(by_hand(frames, MIDDLE), depth=depth, pooled=False)[0]
    # 4 frames in cubes of 2, 32 pixels in cubes of 8; the second block pools the queries
    assert grid.shape == {1: (2, 4, 4, 32)}.get(depth or 3, (2, 2, 2, 32))
    torch.testing.assert_close(grid, expected, atol=1e-5, rtol=1e-5)
    pooled = encoder.features(folder / "video.mp4", depth=depth)
    expected = network.features(by_hand(frames, MIDDLE), depth=depth, pooled=True)[0]
    torch.testing.assert_close(pooled, expected, atol=1e-5, rtol=1e-5)


def test_pooled_features_are_averaged_over_the_views(folder: Path, frames: np.ndarray) -> None:
    encoder = load_encoder(folder / "pretrained.safetensors", device="cpu", clips_at_once=1)
    with torch.no_grad():
        each = [encoder.model.features(by_hand(frames, view), depth=2)[0] for view in VIEWS]
    several = encoder.features(folder / "video.mp4", depth=2, views=2)
    torch.testing.assert_close(several, torch.stack(each).mean(0), atol=1e-5, rtol=1e-5)


def test_features_can_be_learned_on(folder: Path) -> None:
    features = load_encoder(folder / "pretrained.safetensors").features(folder / "video.mp4")
    probe = torch.nn.Linear(len(features), 2)
    probe(features.cpu()).sum().backward()
    assert probe.weight.grad is not None
    torch.testing.assert_close(probe.weight.grad[0], features)


def test_folder_of_pictures_is_a_video(folder: Path, frames: np.ndarray, classifier: VideoClassifier) -> None:
    (folder / "pictures").mkdir()
    for number, frame in enumerate(frames):
        cv2.imwrite(str(folder / f"pictures/{number}.png"), frame[..., ::-1])
    result = classifier.predict(folder / "pictures")
    assert torch.equal(result.probabilities, classifier.predict(folder / "video.mp4").probabilities)


def test_top_is_in_descending_order_and_equal_classes_in_order_of_labels() -> None:
    predictions = Predictions("a.mp4", torch.tensor([0.1, 0.25, 0.4, 0.25]), ("w", "x", "y", "z"))
    assert [(entry.label, entry.name) for entry in predictions.top(3)] == [(2, "y"), (1, "x"), (3, "z")]
    assert predictions.top(1) == [Prediction(2, "y", pytest.approx(0.4))]
    assert len(predictions.top(9)) == 4
    equal = Predictions("a.mp4", torch.full((400,), 1 / 400))  # torch's plain sort mixes 400 equal values
    assert [entry.label for entry in equal.top(400)] == list(range(400))
    with pytest.raises(UserError, match="top 0: must be at least 1 class"):
        predictions.top(0)


def test_class_without_name_has_its_label_as_text() -> None:
    (entry,) = Predictions("a.mp4", torch.tensor([0.2, 0.8])).top(1)
    assert (entry.label, entry.name, entry.text) == (1, None, "class 1")
    assert Prediction(3, "jump", 0.5).text == "jump"


def test_unreadable_video_is_a_read_error(tmp_path: Path, classifier: VideoClassifier) -> None:
    for cause, path in make_unreadable(tmp_path).items():
        with pytest.raises(VideoReadError, match=cause):
            classifier.predict(path)


def test_wrong_arguments_are_named(folder: Path, frames: np.ndarray, classifier: VideoClassifier) -> None:
    path = folder / "video.mp4"
    wrong = [
        (lambda: classifier.predict(path, fps=30.0), r"fps=30.0 cannot be set for the file .*video.mp4"),
        (lambda: classifier.predict(frames), "the frame rate of decoded frames is missing"),
        (lambda: classifier.predict(frames / 255, fps=30.0), r"frames of float64 20x32x48x3: must be uint8"),
        (lambda: classifier.predict(path, views=0), "views=0, crops=1: there must be at least 1 view"),
        (lambda: classifier.predict(path, crops=2), "views=2, crops=2: .*1 crop"),
        (lambda: classifier.features(path, depth=5), r"depth=5: the encoder has blocks 1\.\.4"),
        (lambda: classifier.features(path, depth=0), r"depth=0: the encoder has blocks 1\.\.4"),
        (lambda: classifier.features(path, views=2, pooled=False), "views=2, crops=1 on the grid"),
    ]
    for predict, words in wrong:
        with pytest.raises(UserError, match=words):
            predict()


def test_loading_errors_name_the_cause(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="weights of a pre-training run, not weights of a classifier"):
        load_classifier(folder / "pretrained.safetensors")
    with pytest.raises(UserError, match=r"model\.pyth is a PyTorch checkpoint, .*import-slowfast"):
        load_encoder(folder / "model.pyth")
    with pytest.raises(UserError, match="precision 'fp16' is unknown; did you mean 'bf16'"):
        load_encoder(folder / "pretrained.safetensors", precision="fp16")
    few = write_classifier(tmp_path / "few.safetensors", replace(RECIPE, class_names=("a", "b")))
    with pytest.raises(UserError, match=r"few\.safetensors: 2 class names for 7 classes"):
        load_classifier(few)


def test_output_that_is_not_finite_is_an_error(folder: Path) -> None:
    classifier = load_classifier(folder / "classifier.safetensors", device="cpu")
    with torch.no_grad():
        classifier.model.head.projection.bias[2] = float("nan")
    with pytest.raises(RunFailed, match="the model's output is not finite"):
        classifier.predict(folder / "video.mp4")


def test_bf16_is_close_to_fp32_and_not_equal(folder: Path, classifier: VideoClassifier) -> None:
    half = load_classifier(folder / "classifier.safetensors", device="cpu", precision="bf16")
    difference = half.predict(folder / "video.mp4").probabilities
    difference = (difference - classifier.predict(folder / "video.mp4").probabilities).abs()
    assert 0 < difference.max() < 0.1  # 8 bits of mantissa, logits of several units
