"""The way back to PySlowFast: names and values as recorded, and a YAML that describes the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from videomaskfeat.errors import UserError
from videomaskfeat.interop import load_slowfast
from videomaskfeat.interop.slowfast_export import slowfast_options, slowfast_state
from videomaskfeat.models import create_model

CASES = ("maskfeat_mvitv2_video", "mvitv2_maskfeat_finetuned", "mvitv2_kinetics")


@pytest.mark.parametrize("case", CASES)
def test_recorded_checkpoint_comes_back_as_it_was(golden: Path, case: str) -> None:
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
def test_written_yaml_and_checkpoint_make_the_same_model(
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


def test_encoder_alone_goes_back_without_head() -> None:
    encoder = create_model("mvitv2_encoder", depth=2, widen_at=(1,), q_pool_at=(1,))
    names = set(slowfast_state(encoder))
    assert names == set(encoder.state_dict())
    assert "NUM_CLASSES" not in slowfast_options(encoder)["MODEL"]


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("maskfeat_mvitv2_nano_classifier", {"head": "linear"}, "head 'linear': PySlowFast has no such head"),
        ("maskfeat_mvitv2_nano", {"blank_hidden": True}, "blank_hidden true: PySlowFast does not"),
        ("mvitv2_nano", {"clip_size": (8, 64, 128)}, r"clip_size \(8, 64, 128\): .* square clips alone"),
    ],
)
def test_what_pyslowfast_does_not_have_is_refused(name: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        slowfast_options(create_model(name, **changes))


def test_other_modules_are_refused() -> None:
    with pytest.raises(UserError, match="a Linear is none of the models"):
        slowfast_state(torch.nn.Linear(1, 1))
