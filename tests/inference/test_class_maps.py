"""Grad-CAM against finite differences, its colors, and the files of `visualize --attention`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import videomaskfeat
from tests.data.clip_data import write_videos
from tests.jobs.weights_files import NAMES, write_classifier, write_pretrained
from videomaskfeat.cli import main
from videomaskfeat.errors import UserError
from videomaskfeat.inference.class_maps import class_maps
from videomaskfeat.models.heads import HEADS
from videomaskfeat.viz.heat import heat_frames

TINY: dict[str, Any] = {
    "depth": 2,
    "width": 16,
    "heads": 2,
    "clip_size": (2, 16, 16),
    "cube_stride": (2, 8, 8),
}


def slow_class_map(model: nn.Module, clip: Tensor, label: int, *, step: float = 1e-3) -> np.ndarray:
    """Gradients by central differences of every value that enters the last block; float [N]."""
    entering: list[Tensor] = []
    change: list[Tensor] = []

    def edit(block: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not change:
            entering.append(arguments[0].detach().clone())
            return None
        return (entering[0] + change[-1], *arguments[1:])

    handle = model.blocks[-1].register_forward_pre_hook(edit)  # type: ignore[union-attr,operator]
    with torch.no_grad():
        model(clip)
        tokens = entering[0]
        gradient = torch.zeros_like(tokens)
        for place in np.ndindex(*tokens.shape):
            values = []
            for sign in (1, -1):
                offset = torch.zeros_like(tokens)
                offset[place] = sign * step
                change.append(offset)
                values.append(float(model(clip)[0, label]))
            gradient[place] = (values[0] - values[1]) / (2 * step)
    handle.remove()
    first = model.prefix  # the class token is left out
    weights = gradient[0, first:].mean(dim=0)  # [D]
    return (tokens[0, first:] @ weights).clamp(min=0).numpy()


@pytest.mark.parametrize("head", HEADS)
def test_map_is_that_of_finite_differences(head: str) -> None:
    torch.manual_seed(0)
    model: Any = videomaskfeat.create_model("vit_nano", num_classes=3, head=head, **TINY).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    clip = torch.randn(1, 3, 2, 16, 16)
    expected = slow_class_map(model, clip, 1).reshape(1, 2, 2)
    actual = class_maps(model, clip, torch.tensor([1]))[0].numpy()
    assert expected.max() > 0.01
    # Central differences of float32 logits: 1e-7 of the logits over a step of 1e-3, summed over 16 channels.
    np.testing.assert_allclose(actual, expected, atol=5e-3 * max(1.0, float(expected.max())))
    # Each clip of a batch has its own map, and the model keeps no gradient.
    pair = class_maps(model, torch.cat([clip, clip.flip(3)]), torch.tensor([1, 1]))
    torch.testing.assert_close(pair[0].numpy(), actual, atol=1e-5, rtol=1e-4)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_map_of_a_hiera_is_in_the_order_of_the_grid() -> None:
    """Its last block gets tokens ordered by units: here 1x2x2 units of 1x2x2 tokens."""
    torch.manual_seed(0)
    arguments = {"stages": (1, 1), "q_pool": 1, "width": 8, "unit_attention": (True, False)}
    arguments |= {"mask_unit": (1, 2, 2), "clip_size": (2, 16, 16)}
    model: Any = videomaskfeat.create_model("hiera_pico", num_classes=3, **arguments).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    clip = torch.randn(1, 3, 2, 16, 16)
    grouped = slow_class_map(model, clip, 1)
    assert grouped.max() > 0.01
    expected = grouped.reshape(2, 2, 2, 2).transpose(0, 2, 1, 3).reshape(1, 4, 4)
    assert not np.allclose(expected, grouped.reshape(1, 4, 4), rtol=0.1)
    actual = class_maps(model, clip, torch.tensor([1]))[0].numpy()
    np.testing.assert_allclose(actual, expected, atol=5e-3 * max(1.0, float(expected.max())))


def test_heat_is_gray_at_0_and_half_color_at_1() -> None:
    frames = np.full((2, 8, 8, 3), (30, 60, 90), np.uint8)
    assert (heat_frames(frames, np.zeros((1, 2, 2), np.float32)) == 60).all()
    hottest = heat_frames(frames, np.ones((1, 2, 2), np.float32))
    # The last color of OpenCV's inferno is (252, 255, 164): half of it and half of the gray 60.
    assert np.abs(hottest.astype(int) - [156, 157.5, 112]).max() <= 0.5
    one = np.zeros((1, 2, 2), np.float32)
    one[0, 0, 1] = 1
    heat = heat_frames(frames, one).astype(int).sum(axis=3)
    assert heat[:, 0, 7].min() > heat[:, 7, 0].max()


def test_films_of_a_classifier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_videos(tmp_path, 1)
    weights = write_classifier(tmp_path / "model.safetensors")
    out = tmp_path / "out"
    assert main(["visualize", str(weights), str(tmp_path / "000.mp4"), "--attention", "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["000_class.mp4", "000_class.png"]
    again = ["visualize", str(weights), str(tmp_path / "000.mp4"), "--attention", "--out", str(out)]
    assert main(again) == 2
    assert "000_class.png exists (and 1 more)" in capsys.readouterr().err
    with videomaskfeat.open_video(out / "000_class.mp4") as film:
        assert (film.frames, film.info.height, film.info.width) == (4, 160, 320)
    classifier = videomaskfeat.load_classifier(weights, device="cpu")
    evidence = classifier.class_map(tmp_path / "000.mp4", label=2)
    assert evidence.prediction.name == NAMES[2]
    assert evidence.frames.shape == (4, 32, 32, 3)
    assert float(evidence.values.max()) in (0.0, 1.0)
    likely = classifier.class_map(tmp_path / "000.mp4").prediction
    assert likely == classifier.predict(tmp_path / "000.mp4", views=1).top(1)[0]
    with pytest.raises(UserError, match="label 7: the classes of these weights are 0 to 6"):
        classifier.class_map(tmp_path / "000.mp4", label=7)
    capsys.readouterr()
    pretrained = write_pretrained(tmp_path / "pretrained.safetensors")
    command = ["visualize", str(pretrained), str(tmp_path / "000.mp4")]
    assert main([*command, "--attention", "--map", "gradcam"]) == 2
    assert "not weights of a classifier" in capsys.readouterr().err
    assert main([*command, "--label", "1"]) == 2
    assert "label is an option of --attention; add --attention" in capsys.readouterr().err
