"""Initial weights of published methods: statistics, zeros, and the choice of the method."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from videomaskfeat.config import load_config
from videomaskfeat.errors import UserError
from videomaskfeat.methods.build import build_method, initial_arguments
from videomaskfeat.models import create_model
from videomaskfeat.models.maskfeat import MaskedEncoder
from videomaskfeat.schemas.pretrain import PretrainConfig

WIDE: dict[str, Any] = {"depth": 3, "width": 192, "heads": 3, "absolute_positions": "joint"}
CUT = 0.02 * math.sqrt(1 - 2 * math.exp(-0.5) / math.sqrt(2 * math.pi) / math.erf(1 / math.sqrt(2)))
"""Standard deviation of a normal distribution of 0.02 that is cut at one standard deviation: 0.0108."""


def weights(initialization: str, name: str = "maskfeat_vit_nano", **changes: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = create_model(name, **{**WIDE, **changes}, initialization=initialization)
    return {key: value.detach() for key, value in model.named_parameters()}


def xavier(weight: Tensor) -> float:
    """Standard deviation of a uniform distribution in +-sqrt(6 / (fan-in + fan-out))."""
    rows = weight.flatten(1)
    return math.sqrt(6 / sum(rows.shape)) / math.sqrt(3)


def is_linear(name: str, weight: Tensor) -> bool:
    return name.endswith(".weight") and weight.ndim == 2


def residual(name: str) -> bool:
    return name.endswith(("attn.proj.weight", "mlp.fc2.weight"))


# The standard deviation of n values has a relative error of about 1 / sqrt(2 n): below 1 % for the smallest
# matrix here, 192 x 192.
@pytest.mark.parametrize("name", ["maskfeat_vit_nano", "mae_vit_nano"])
def test_mae_draws_xavier_uniform_weights(name: str) -> None:
    state = weights("mae", name)
    for key, weight in state.items():
        if is_linear(key, weight) or key == "patch_embed.proj.weight":
            assert weight.std().item() == pytest.approx(xavier(weight), rel=0.03), key
            assert weight.abs().max() <= xavier(weight) * math.sqrt(3), key
        elif key.endswith("bias") and key != "patch_embed.proj.bias":
            assert not weight.any(), key
    assert state["patch_embed.proj.bias"].any()  # torch's default
    assert state["mask_token"].std().item() == pytest.approx(0.02, rel=0.3)


@pytest.mark.parametrize(
    ("initialization", "std", "rescaled"),
    [("beit", CUT, True), ("simmim", CUT, True), ("ibot", 0.02, False), ("jepa", 0.02, True)],
)
def test_other_methods_draw_normal_weights(initialization: str, std: float, rescaled: bool) -> None:
    state = weights(initialization)
    for key, weight in state.items():
        if is_linear(key, weight) and key.startswith("blocks."):
            block = int(key.split(".")[1]) + 1
            factor = math.sqrt(2 * block) if rescaled and residual(key) else 1.0
            assert weight.std().item() == pytest.approx(std / factor, rel=0.02), key
        elif key.endswith("bias") and not key.startswith(("patch_embed", "pred_head.projections")):
            assert not weight.any(), key
    assert state["pos_embed"].std().item() == pytest.approx(std, rel=0.05)
    if initialization in ("beit", "simmim"):
        assert max(weight.abs().max() for key, weight in state.items() if "attn.qkv.w" in key) <= 0.02


def test_stems_heads_and_mask_tokens_follow_each_method() -> None:
    """Torch's default of a layer with fan-in n is uniform in +-1/sqrt(n)."""
    actual = {name: weights(name) for name in ("beit", "simmim", "ibot", "jepa")}
    stems = {name: state["patch_embed.proj.weight"].std().item() for name, state in actual.items()}
    default = 1 / math.sqrt(3 * 2 * 8 * 8) / math.sqrt(3)
    expected = {"beit": CUT, "simmim": CUT, "ibot": default, "jepa": 0.02}
    assert stems == pytest.approx(expected, rel=0.03)
    biases = {name: bool(state["patch_embed.proj.bias"].any()) for name, state in actual.items()}
    assert biases == {"beit": False, "simmim": False, "ibot": True, "jepa": False}
    tokens = {name: state["mask_token"].std().item() for name, state in actual.items()}
    assert tokens == pytest.approx({"beit": CUT, "simmim": CUT, "ibot": 0, "jepa": 0}, rel=0.3, abs=1e-9)
    heads = {name: state["pred_head.projections.0.weight"].std().item() for name, state in actual.items()}
    default = 1 / math.sqrt(192) / math.sqrt(3)
    assert heads == pytest.approx({"beit": CUT, "simmim": default, "ibot": 0.02, "jepa": 0.02}, rel=0.03)


def test_encoder_of_a_teacher_has_the_mask_token_of_its_method() -> None:
    encoder = create_model("vit_encoder", **WIDE, clip_size=(8, 64, 64), initialization="ibot")
    assert not MaskedEncoder(encoder, summary="token").mask_token.any()  # type: ignore[arg-type]


def test_default_is_unchanged() -> None:
    """Sum of the absolute weights of the first version; a changed order of draws would change it.

    Other versions of torch draw other numbers of the same distribution, whose sums differ by a thousandth.
    """
    torch.manual_seed(0)
    model = create_model("maskfeat_vit_nano_image")
    total = sum(parameter.detach().abs().sum(dtype=torch.float64).item() for parameter in model.parameters())
    tolerance = 2e-9 if torch.__version__.startswith("2.13.") else 5e-3
    assert total == pytest.approx(54819.067875, rel=tolerance)


def test_mvit_has_only_the_default() -> None:
    with pytest.raises(UserError, match="initialization 'mae' is unknown; choose from slowfast"):
        create_model("maskfeat_mvitv2_nano", initialization="mae")
    with pytest.raises(UserError, match=r"initialization 'mea' is unknown; did you mean 'mae'"):
        create_model("vit_nano", initialization="mea")


MAE_2D = {
    "initialization": "mae",
    "absolute_positions": "sincos_2d",
    "decoder_positions": "sincos_2d",
}


@pytest.mark.parametrize(
    ("file", "overrides", "expected"),
    [
        ("sample_images_mae", [], MAE_2D),
        ("sample_mae", [], {**MAE_2D, "absolute_positions": "sincos", "decoder_positions": "sincos"}),
        ("sample_images_mae", ["model.initialization=slowfast"], {}),
        (
            "sample_images_mae",
            ["model.arguments={width: 30}"],
            {"initialization": "mae", "decoder_positions": "sincos_2d"},
        ),
        ("sample_images_beit", [], {"initialization": "beit"}),
        ("sample_images_simmim", [], {"initialization": "simmim"}),
        ("sample_images_ibot", [], {"initialization": "ibot", "interpolation": "bicubic"}),
        (
            "sample_images_ibot",
            ["method.name=latent", "method.arguments={}"],
            {"initialization": "jepa", "absolute_positions": "sincos_2d"},
        ),
        ("sample_images", [], {}),
        ("sample_ibot", [], {}),
    ],
)
def test_method_of_the_config_chooses_the_initial_weights(
    file: str, overrides: list[str], expected: dict[str, Any]
) -> None:
    config = load_config(PretrainConfig, f"configs/pretrain/{file}.yaml", overrides)
    assert initial_arguments(config) == expected


def test_arguments_of_the_config_win() -> None:
    arguments = "model.arguments={absolute_positions: joint, initialization: beit}"
    config = load_config(PretrainConfig, "configs/pretrain/sample_images_mae.yaml", [arguments])
    model: Any = build_method(config).student
    assert model.initialization == "beit"
    assert model.pos_embed is not None
    assert model.decoder_positions == "sincos_2d"
    assert model.created_as[1]["decoder_positions"] == "sincos_2d"  # in the weights file
