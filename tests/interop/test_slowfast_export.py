"""Export to PySlowFast: recorded names and values, and YAMLs of the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from videomaskfeat.errors import UserError
from videomaskfeat.interop import load_slowfast
from videomaskfeat.interop.slowfast_export import slowfast_options, slowfast_state
from videomaskfeat.models import arguments_of, create_model

CASES = ("maskfeat_mvitv2_video", "mvitv2_maskfeat_finetuned", "mvitv2_kinetics")


@pytest.mark.parametrize("case", CASES)
def test_recorded_checkpoint_is_exported_unchanged(golden: Path, case: str) -> None:
    checkpoint = golden / case / "checkpoint.pyth"
    recorded = torch.load(checkpoint, weights_only=True)["model_state"]
    state = slowfast_state(load_slowfast(golden / case / "config.yaml", checkpoint).model)
    assert state.keys() == recorded.keys()
    for name, value in recorded.items():
        assert torch.equal(state[name], value), name


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("maskfeat_mvitv2_nano", {"values_per_token": 108}),
        ("maskfeat_mvitv2_nano_classifier", {"classes": 5, "dropout": 0.3, "head_scale": 0.01}),
        ("maskfeat_mvitv2_nano_classifier", {"classes": 5, "class_token": False, "drop_path": 0.2}),
        ("mvitv2_nano", {"classes": 5, "absolute_positions": "separable", "relative_time": False}),
        ("mvitv2_nano", {"classes": 5, "absolute_positions": "joint", "qkv_bias": False, "heads": 2}),
        ("mvitv2_nano", {"classes": 5, "q_pool_at": (1, 3), "widen_at": (1, 3), "residual_pooling": False}),
    ],
)
def test_exported_yaml_and_checkpoint_load_as_the_same_model(
    tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    model = create_model(name, **changes).eval()
    path = tmp_path / "model.yaml"
    path.write_text(yaml.safe_dump(slowfast_options(model)))
    torch.save({"model_state": slowfast_state(model), "epoch": 0, "cfg": ""}, tmp_path / "model.pyth")
    back = load_slowfast(path, tmp_path / "model.pyth")
    inputs: tuple[torch.Tensor, ...] = (torch.randn(2, 3, 8, 64, 64),)
    if back.target is not None:
        inputs += (torch.rand(2, 4, 2, 2) < 0.5,)
    assert torch.equal(back.model(*inputs), model(*inputs))
    assert slowfast_options(back.model) == slowfast_options(model)
    assert not back.report.ignored_keys


def test_encoder_without_head_is_exported() -> None:
    encoder = create_model("mvitv2_encoder", depth=2, widen_at=(1,), q_pool_at=(1,))
    names = set(slowfast_state(encoder))
    assert names == set(encoder.state_dict())
    assert "NUM_CLASSES" not in slowfast_options(encoder)["MODEL"]


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("maskfeat_mvitv2_nano_classifier", {"head": "linear"}, "cannot export head 'linear' to PySlowFast"),
        ("maskfeat_mvitv2_nano", {"blank_hidden": True}, "cannot export blank_hidden true to PySlowFast"),
        ("mvitv2_nano", {"clip_size": (8, 64, 128)}, r"clip_size \(8, 64, 128\): .* square clips only"),
    ],
)
def test_unsupported_options_are_refused(name: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        slowfast_options(create_model(name, **changes))


def test_other_modules_are_refused() -> None:
    with pytest.raises(UserError, match="cannot export a Linear to PySlowFast"):
        slowfast_state(torch.nn.Linear(1, 1))


SMALL: dict[str, Any] = {"depth": 2, "width": 32, "heads": 2}
VIDEO = {**SMALL, "clip_size": (4, 32, 32), "cube_stride": (2, 16, 16)}
IMAGE = {**SMALL, "clip_size": (1, 32, 32), "cube_stride": (1, 16, 16)}
DECODER: dict[str, Any] = {"decoder_width": 64, "decoder_heads": 1, "values_per_token": 768}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_b", {**VIDEO, "classes": 5, "head": "token"}),
        ("vit_b_image", {**IMAGE, "classes": 5}),
        ("maskfeat_vit_b", {**VIDEO, "values_per_token": 108, "class_token": False}),
        ("maskfeat_vit_b_image", {**IMAGE, "values_per_token": 108}),
        ("mae_vit_b", {**VIDEO, **DECODER}),
        ("mae_vit_b", {**VIDEO, **DECODER, "values_per_token": 1536, "absolute_positions": "joint"}),
    ],
)
def test_export_and_import_change_nothing(tmp_path: Path, name: str, arguments: dict[str, Any]) -> None:
    model = create_model(name, **arguments)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(slowfast_options(model)))
    torch.save({"model_state": slowfast_state(model)}, tmp_path / "checkpoint.pyth")
    imported = load_slowfast(tmp_path / "config.yaml", tmp_path / "checkpoint.pyth").model
    state = model.state_dict()
    assert imported.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in imported.state_dict().items())
    back_name, back = imported.created_as
    same = {**arguments_of(back_name, back), "linear_std": None}
    assert same == {**arguments_of(*model.created_as), "linear_std": None}


def test_stem_of_image_models_has_two_axes() -> None:
    model = create_model("vit_b_image", **IMAGE)
    assert slowfast_state(model)["patch_embed.proj.weight"].shape == (32, 3, 16, 16)
    keys = slowfast_options(model)["MVIT"]
    assert (keys["PATCH_2D"], keys["PATCH_STRIDE"], keys["PATCH_PADDING"]) == (True, [16, 16], [0, 0])


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        (
            "vit_b",
            {**VIDEO, "absolute_positions": "sincos"},
            "cannot export absolute_positions 'sincos', layer_scale",
        ),
        ("vit_b", {**VIDEO, "layer_scale": 0.1}, "cannot export absolute_positions 'sincos', layer_scale"),
        ("vit_b", {**VIDEO, "rotary": True}, "relative_bias or rotary to PySlowFast"),
        ("vit_b", {**VIDEO, "head": "linear"}, "cannot export head 'linear' to PySlowFast"),
        ("mae_vit_b", {**VIDEO, "decoder_heads": 4}, "decoder_heads 4, .* have heads of width 64"),
        ("mae_vit_b", {**VIDEO, **DECODER, "decoder_positions": "sincos"}, "fixed positions True"),
        ("mae_vit_b_image", {**IMAGE, **DECODER}, "cannot export an image MAE .* pixel order differs"),
    ],
)
def test_unsupported_models_are_refused(name: str, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        slowfast_options(create_model(name, **arguments))
