"""Vision transformers to PySlowFast's names and YAML keys, and back."""

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
def test_way_to_pyslowfast_and_back_changes_nothing(
    tmp_path: Path, name: str, arguments: dict[str, Any]
) -> None:
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


def test_images_kernels_have_two_axes_there() -> None:
    model = create_model("vit_b_image", **IMAGE)
    assert slowfast_state(model)["patch_embed.proj.weight"].shape == (32, 3, 16, 16)
    keys = slowfast_options(model)["MVIT"]
    assert (keys["PATCH_2D"], keys["PATCH_STRIDE"], keys["PATCH_PADDING"]) == (True, [16, 16], [0, 0])


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("vit_b", {**VIDEO, "absolute_positions": "sincos"}, "'sincos' and layer_scale do not go back"),
        ("vit_b", {**VIDEO, "layer_scale": 0.1}, "'sincos' and layer_scale do not go back"),
        ("vit_b", {**VIDEO, "head": "linear"}, "head 'linear': PySlowFast has no such head"),
        ("mae_vit_b", {**VIDEO, "decoder_heads": 4}, "decoder_heads 4, .* have heads of 64"),
        ("mae_vit_b", {**VIDEO, **DECODER, "decoder_positions": "sincos"}, "fixed positions True"),
        ("mae_vit_b_image", {**IMAGE, **DECODER}, "MAE for images: .* in another order"),
    ],
)
def test_model_that_pyslowfast_lacks_is_refused(name: str, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        slowfast_options(create_model(name, **arguments))
