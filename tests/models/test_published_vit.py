"""Checkpoints of DINO, DINOv2 and iBOT: their names, sizes and features."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.reference.dino import dino_features
from videomaskfeat.errors import UserError
from videomaskfeat.grid import TokenGrid
from videomaskfeat.models.positions import joint_positions
from videomaskfeat.models.published_vit import MEAN, STD, load_published_vit
from videomaskfeat.targets.features import FeatureTarget, load_teacher


def dino_state(*, depth: int = 3, width: int = 128, side: int = 4, scaled: bool = False) -> dict[str, Tensor]:
    """Random weights with patches of 8x8, and a hidden width of 2 D."""
    torch.manual_seed(0)
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + side**2, width),
        "patch_embed.proj.weight": (width, 3, 8, 8),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for number in range(depth):
        for name, shape in {
            "norm1": (width,),
            "norm2": (width,),
            "attn.qkv": (3 * width, width),
            "attn.proj": (width, width),
            "mlp.fc1": (2 * width, width),
            "mlp.fc2": (width, 2 * width),
        }.items():
            shapes |= {f"blocks.{number}.{name}.weight": shape, f"blocks.{number}.{name}.bias": shape[:1]}
        if scaled:
            shapes |= {f"blocks.{number}.ls{one}.gamma": (width,) for one in (1, 2)}
    return {name: 0.1 * torch.randn(shape) for name, shape in shapes.items()}


def save(path: Path, content: Mapping[str, object]) -> str:
    torch.save(dict(content), path)
    return str(path)


@pytest.mark.parametrize("scaled", [False, True], ids=["dino", "dinov2"])
def test_features_equal_an_independent_version(tmp_path: Path, scaled: bool) -> None:
    """Float32, 1e-5, for features of size 1."""
    state = dino_state(scaled=scaled)
    encoder = load_published_vit(save(tmp_path / "dino.pth", {**state, "head.mlp.weight": torch.ones(2)}))
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        actual = encoder.features(pictures, pooled=False)[:, 0].flatten(1, 2)  # [B, N, D]
        inner = encoder.features_at(pictures, [3, 1])
    for number, picture in enumerate(pictures):
        outputs, last = dino_features(state, picture)
        torch.testing.assert_close(actual[number], last[1:], atol=1e-5, rtol=1e-5)
        for tokens, depth in zip(inner, (3, 1), strict=True):
            torch.testing.assert_close(
                tokens[number, 0].flatten(0, 1), outputs[depth - 1][1:], atol=1e-5, rtol=1e-5
            )


def test_checkpoint_of_a_whole_run_gives_the_teachers_backbone(tmp_path: Path) -> None:
    state = dino_state(depth=1)
    whole = {
        "student": {f"module.backbone.{name}": value + 1 for name, value in state.items()},
        "teacher": {f"backbone.{name}": value for name, value in state.items()},
        "epoch": 3,
    }
    whole["teacher"]["head.last_layer.weight_v"] = torch.ones(2, 2)  # type: ignore[index]
    encoder = load_published_vit(save(tmp_path / "full.pth", whole))
    assert torch.equal(encoder.state_dict()["pos_embed"], state["pos_embed"])
    other = load_published_vit(tmp_path / "full.pth", key="student")
    assert torch.equal(other.state_dict()["pos_embed"], state["pos_embed"] + 1)


def test_positions_are_interpolated_for_other_pictures(tmp_path: Path) -> None:
    state = dino_state()
    encoder = load_published_vit(save(tmp_path / "dino.pth", state))
    picture = torch.randn(3, 48, 32)
    native, grid = TokenGrid(1, 4, 4), TokenGrid(1, 6, 4)
    places = joint_positions(state["pos_embed"][:, 1:], native, grid, interpolation="bicubic")
    larger = {**state, "pos_embed": torch.cat([state["pos_embed"][:, :1], places], dim=1)}
    with torch.no_grad():
        actual = encoder.features(picture[None], pooled=False)[0, 0].flatten(0, 1)
    torch.testing.assert_close(actual, dino_features(larger, picture)[1][1:], atol=1e-5, rtol=1e-5)


def test_teacher_sees_frames_with_imagenets_normalization(tmp_path: Path) -> None:
    """Each depth is normalized by itself; the run's clips have mean 0.45 and std 0.225; 1e-4 of size 1."""
    state = dino_state()
    path = save(tmp_path / "dino.pth", state)
    target = FeatureTarget(teacher=path, depth=[1, 3], frame_stride=2)
    assert (target.output_stride, target.values_per_token, target.files) == ((2, 8, 8), 256, (path,))
    assert (load_teacher(path).mean, load_teacher(path).std) == (MEAN, STD)
    clips = torch.randn(1, 3, 4, 32, 32)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    output = target(clips)
    for time in (0, 1):
        outputs, _ = dino_features(state, (clips[0, :, 2 * time] * 0.225 + 0.45 - mean) / std)
        features = []
        for depth in (1, 3):
            tokens = outputs[depth - 1][1:]
            centered = tokens - tokens.mean(-1, keepdim=True)
            features.append(centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt())
        expected = torch.cat(features, dim=-1)
        torch.testing.assert_close(output[0, time].flatten(0, 1), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cls_token": None}, r"has no vision transformer with DINO's names"),
        ({"pos_embed": torch.zeros(1, 16, 128)}, r"pos_embed of a square picture"),
        ({"register_tokens": torch.zeros(1, 4, 128)}, r"register_tokens"),
        ({"blocks.1.attn.qkv.bias": None}, r"lacks 1 weights .*blocks\.1\.attn\.qkv\.bias"),
    ],
)
def test_other_architectures_are_refused(
    tmp_path: Path, changes: dict[str, Tensor | None], words: str
) -> None:
    state = {name: value for name, value in {**dino_state(), **changes}.items() if value is not None}
    with pytest.raises(UserError, match=words):
        load_published_vit(save(tmp_path / "dino.pth", state))
