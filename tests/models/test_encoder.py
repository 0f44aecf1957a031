"""An encoder taken out of a model sees what the model's own encoder saw."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from videomaskfeat.errors import UserError
from videomaskfeat.models import create_model
from videomaskfeat.models.zoo import encoder_of

SMALL: dict[str, Any] = {"clip_size": (4, 32, 32), "depth": 2, "width": 16, "heads": 2}
CUBES: dict[str, Any] = {"cube_kernel": (2, 8, 8), "cube_padding": (0, 0, 0)}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("maskfeat_mvitv2_nano", {"blank_hidden": True}),
        ("maskfeat_mvitv2_nano_classifier", {"head": "mean", "classes": 3, "dropout": 0.5}),
        ("maskfeat_mvitv2_nano_classifier", {"head": "attentive", "absolute_positions": "joint"}),
        ("mvitv2_nano", {"head": "token", "drop_path": 0.3}),
        ("mvitv2_nano", {"head": "linear", "class_token": False, **CUBES}),
    ],
)
def test_features_are_those_of_the_whole_model(name: str, arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = create_model(name, **SMALL, **arguments).eval()
    nn.init.normal_(model.patch_embed.proj.bias)
    encoder = encoder_of(model)
    clips = torch.randn(2, 3, 4, 32, 32)
    for pooled in (True, False):
        assert torch.equal(encoder.features(clips, pooled=pooled), model.features(clips, pooled=pooled))
    assert not encoder.training
    kind, all_arguments = encoder.created_as
    assert kind == "mvitv2_encoder"
    assert create_model(kind, **all_arguments).state_dict().keys() == encoder.state_dict().keys()
    assert not [key for key in encoder.state_dict() if "head" in key or key == "mask_token"]


def test_later_changes_of_the_model_do_not_reach_it() -> None:
    model = create_model("mvitv2_nano", **SMALL, classes=2)
    encoder = encoder_of(model)
    before = encoder.patch_embed.proj.weight.clone()
    nn.init.zeros_(model.patch_embed.proj.weight)
    assert torch.equal(encoder.patch_embed.proj.weight, before)


def test_model_of_unknown_arguments_is_refused() -> None:
    with pytest.raises(UserError, match="a Linear that create_model did not make has no encoder"):
        encoder_of(nn.Linear(1, 1))
