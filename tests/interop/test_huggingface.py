"""Hugging Face detection models as plug-ins: inputs, outputs, and errors."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from videomaskfeat.errors import UserError
from videomaskfeat.inference.person_boxes import find_boxes, load_box_detector
from videomaskfeat.interop.huggingface import PersonDetector, _class_scores, _resized_size


@pytest.fixture(scope="module")
def yolos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random YOLOS of three classes and its preprocessor."""
    transformers = pytest.importorskip("transformers")
    config = transformers.YolosConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=[32, 48],
        patch_size=16,
        num_detection_tokens=6,
        id2label={0: "cat", 1: "Person", 2: "dog"},
        label2id={"cat": 0, "Person": 1, "dog": 2},
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("yolos")
    model = transformers.YolosForObjectDetection(config)
    for parameter in model.parameters():  # some are initially 0, which would make all objects equal
        parameter.data += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    preprocessing = {
        "size": {"shortest_edge": 32, "longest_edge": 48},
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.25, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return folder


def test_boxes_equal_the_models(yolos: Path) -> None:
    """The model itself on a picture of its own size, which is not resized."""
    detect = PersonDetector(model=str(yolos), threshold=0.0, device="cpu")
    pictures = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3), dtype=np.uint8)
    detected = detect(pictures)
    pixels = (pictures / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.25, 0.5]
    with torch.no_grad():
        output = detect.model(pixel_values=torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32))
    for own, logits, boxes in zip(detected, output.logits, output.pred_boxes, strict=True):
        expected = []
        for row, (x, y, w, h) in zip(logits.tolist(), boxes.tolist(), strict=True):
            weights = np.exp(np.array(row))
            expected.append([(x - w / 2) * 48, (y - h / 2) * 32, (x + w / 2) * 48, (y + h / 2) * 32])
            expected[-1].append(weights[1] / weights.sum())
        np.testing.assert_allclose(own, expected, atol=1e-4)
    assert len(detected[0]) == 6
    scores = np.sort(detected[0][:, 4])
    few = PersonDetector(model=str(yolos), threshold=float(scores[3]), device="cpu")(pictures[:1])
    assert len(few[0]) == 3
    assert np.ptp(detected[0], axis=0).min() > 1e-3  # six different objects


def test_detector_is_a_plug_in(yolos: Path) -> None:
    name = "videomaskfeat.interop.huggingface:PersonDetector"
    detect = load_box_detector(name, {"model": str(yolos), "threshold": 0.0, "device": "cpu"})
    pictures = np.zeros((1, 64, 100, 3), np.uint8)
    ((boxes, scores),) = find_boxes(detect, pictures, name=name, score_threshold=0.0)
    assert len(boxes) == len(scores) > 0
    assert boxes.min() >= 0
    assert boxes.max() <= 1


def test_unknown_class_and_model_are_refused(yolos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no class 'persons'; did you mean 'person'.*cat, person, dog"):
        PersonDetector(model=str(yolos), label="persons")
    with pytest.raises(UserError, match=r"model '.*nothing' cannot be loaded \(.*hustvl/yolos-tiny"):
        PersonDetector(model=str(tmp_path / "nothing"))


def test_error_without_transformers_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    words = r"needs the package transformers; pip install 'videomaskfeat\[detector\]'"
    with pytest.raises(UserError, match=words):
        PersonDetector(model="hustvl/yolos-tiny")


@pytest.mark.parametrize(
    ("preprocessing", "size"),
    [
        ({"shortest_edge": 800, "longest_edge": 1333}, (750, 1333)),  # 1080 x 1920: limited by the long side
        ({"shortest_edge": 512}, (512, 910)),
        ({"height": 640, "width": 640}, (640, 640)),
    ],
)
def test_pictures_are_resized_to_the_models_size(
    preprocessing: dict[str, Any], size: tuple[int, int]
) -> None:
    assert _resized_size(1080, 1920, preprocessing) == size


def test_softmax_and_sigmoid_logits_become_scores() -> None:
    logits = torch.tensor([[0.0, 1.0, -1.0]])
    torch.testing.assert_close(_class_scores(logits, 3), torch.sigmoid(logits))
    weights = torch.tensor([[1.0, np.e, 1 / np.e]], dtype=torch.float32)
    torch.testing.assert_close(_class_scores(logits, 2), (weights / weights.sum())[:, :2])
