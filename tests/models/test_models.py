"""What all named models have in common: files, recomputed blocks, gradients, types, and refused arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from videomaskfeat.errors import UserError
from videomaskfeat.models import create_model
from videomaskfeat.models.heads import HEADS
from videomaskfeat.models.loading import load_model
from videomaskfeat.models.maskfeat import MaskedModel
from videomaskfeat.models.saving import save_model
from videomaskfeat.models.zoo import MODELS, encoder_of

MVIT: dict[str, Any] = {
    "depth": 4,
    "width": 8,
    "widen_at": (1, 3),
    "q_pool_at": (1, 3),
    "clip_size": (4, 32, 32),
    "kv_stride": (1, 4, 4),
    # The published cubes of 4x4 pixels, not the nano's own.
    "cube_kernel": (3, 7, 7),
    "cube_stride": (2, 4, 4),
    "cube_padding": (1, 3, 3),
}
VIT: dict[str, Any] = {
    "depth": 2,
    "width": 16,
    "heads": 2,
    "clip_size": (4, 32, 32),
    "cube_stride": (2, 8, 8),
    "linear_std": 0.1,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "maskfeat": ("maskfeat_mvitv2_nano", {**MVIT, "values_per_token": 27, "blank_hidden": True}),
    "maskfeat vit": ("maskfeat_vit_nano", {**VIT, "layer_scale": 0.5}),
    "mae": ("mae_vit_nano", {**VIT, "values_per_token": 5}),
    "maskfeat pico": ("maskfeat_mvitv2_pico", {}),
    "mae pico": ("mae_vit_pico", {}),
    "detector": ("maskfeat_mvitv2_nano_detector", {**MVIT, "classes": 5, "temporal": "late_max"}),
    "detector vit": ("vit_nano_detector", {**VIT, "classes": 4, "scene": True}),
    "detector late mean": ("maskfeat_mvitv2_nano_detector", {**MVIT, "temporal": "late_mean"}),
    "detector early mean": ("maskfeat_mvitv2_nano_detector", {**MVIT, "classes": 5}),
    "supervised": ("mvitv2_nano", {**MVIT, "classes": 5, "head": "linear", "class_token": False}),
    **{head: ("maskfeat_mvitv2_nano_classifier", {**MVIT, "classes": 5, "head": head}) for head in HEADS},
    **{f"{head} vit": ("vit_nano", {**VIT, "classes": 5, "head": head}) for head in HEADS},
}
ALL = pytest.mark.parametrize("case", CASES)


def build(case: str, *, std: float = 0.0, **changes: Any) -> nn.Module:
    """A small model; with ``std``, of weights so large that every part of them shows."""
    torch.manual_seed(0)
    name, arguments = CASES[case]
    model = create_model(name, **{**arguments, **changes})
    for parameter in model.parameters() if std else ():
        nn.init.normal_(parameter, std=std)
    return model


def inputs_of(case: str, batch: int = 2) -> tuple[Tensor, ...]:
    clips = torch.randn(batch, 3, 4, 32, 32)
    if case.startswith(("mae", "maskfeat")):
        mask = torch.rand(batch, 8).argsort(1) < 4  # equally many of each sample
        return clips, mask.view(batch, 2, 2, 2)
    if case.startswith("detector"):
        return clips, torch.tensor([[0, 3.0, 4.0, 20.0, 30.0], [1, -5.0, 10.0, 12.0, 40.0]])
    return (clips,)


@ALL
def test_saved_model_comes_back_without_a_config(case: str, tmp_path: Path) -> None:
    model, inputs = build(case).eval(), inputs_of(case)
    save_model(model, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors")
    assert torch.equal(loaded(*inputs), model(*inputs))
    assert loaded.created_as == model.created_as
    assert not loaded.training
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]  # no temporary file stays


@pytest.mark.parametrize("name", [name for name in MODELS if "_pico" in name and "hiera" not in name])
def test_pico_models_take_32_pixels_in_cubes_of_the_hog_cell(name: str) -> None:
    model = create_model(name).eval()
    frames = 1 if name.endswith("_image") else 4
    clips = torch.randn(2, 3, frames, 32, 32)
    assert model.features(clips, pooled=False).shape[1:4] == (max(frames // 2, 1), 4, 4)
    masked = isinstance(model, MaskedModel)
    boxes = torch.tensor([[0, 3.0, 4.0, 20.0, 30.0]])
    inputs = [torch.rand(2, 1, 4, 4).argsort(3) < 2] if masked else [boxes] if "detector" in name else []
    assert model(clips, *inputs).isfinite().all()
    assert sum(parameter.numel() for parameter in model.parameters()) < 900_000


@ALL
def test_checkpointing_blocks_changes_nothing(case: str) -> None:
    inputs, results = inputs_of(case), []
    for checkpoint_blocks in (False, True):
        model = build(case, checkpoint_blocks=checkpoint_blocks, drop_path=0.3)
        torch.manual_seed(1)
        output = model(*inputs)
        output.square().mean().backward()
        results.append([output, *(p.grad for p in model.parameters() if p.grad is not None)])
    for plain, recomputed in zip(*results, strict=True):
        assert torch.equal(plain, recomputed)


@ALL
def test_training_reaches_every_parameter_that_learns(case: str) -> None:
    model = build(case, std=0.3, **({"dropout": 0.0} if case.startswith("detector") else {})).train()
    model(*inputs_of(case)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        # A bias of the keys moves all scores of a query alike. In the last block the class token is all that
        # its head sees, and its query is neither pooled nor in any place.
        placed = name.startswith(("blocks.3.attn.rel", "blocks.3.attn.pool_q"))
        without = name.endswith("norm_k.bias") or (case == "token" and placed)
        assert parameter.grad is None or (parameter.grad != 0).any() or without, name


@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("detector")])
def test_permuting_the_batch_permutes_the_output(case: str) -> None:
    model, inputs, order = build(case, std=0.3).eval(), inputs_of(case, batch=3), [2, 0, 1]
    permuted = model(*(tensor[order] for tensor in inputs))
    # Kernels may group samples differently: equal to rounding.
    torch.testing.assert_close(permuted, model(*inputs)[order], atol=1e-4, rtol=1e-4)


@ALL
def test_drop_path_drops_in_training_only(case: str) -> None:
    model, inputs = build(case, drop_path=0.5), inputs_of(case, batch=8)
    frozen = not model.get_parameter("patch_embed.proj.weight").requires_grad
    assert torch.equal(model(*inputs), model(*inputs)) == frozen
    model.eval()
    assert torch.equal(model(*inputs), model(*inputs))


@ALL
def test_encoder_taken_out_gives_the_features_of_the_whole_model(case: str) -> None:
    model = build(case, drop_path=0.3).eval()
    nn.init.normal_(model.patch_embed.proj.bias)
    encoder = encoder_of(model)
    clips = torch.randn(2, 3, 4, 32, 32)
    for options in ({"pooled": True}, {"pooled": False}, {"depth": 1}):
        assert torch.equal(encoder.features(clips, **options), model.features(clips, **options))
    assert not encoder.training
    kind, arguments = encoder.created_as
    assert kind == ("vit_encoder" if "vit_" in CASES[case][0] else "mvitv2_encoder")
    assert create_model(kind, **arguments).state_dict().keys() == encoder.state_dict().keys()
    assert not [key for key in encoder.state_dict() if "head" in key or key == "mask_token"]
    before = encoder.patch_embed.proj.weight.clone()
    nn.init.zeros_(model.patch_embed.proj.weight)
    assert torch.equal(encoder.patch_embed.proj.weight, before)


def test_encoder_of_a_model_of_unknown_arguments_is_refused() -> None:
    with pytest.raises(UserError, match="cannot extract the encoder of a Linear"):
        encoder_of(nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("name", "arguments", "tolerance"),
    [
        # Some fifty layers in a row round to eight bits (2e-3 relative); 1.4e-2 measured over seeds.
        ("maskfeat_mvitv2_nano", {}, 2e-2),
        ("mae_vit_nano", {}, 2e-2),
        ("maskfeat_mvitv2_nano_detector", {"classes": 6}, 5e-2),
        *(("maskfeat_mvitv2_nano_classifier", {"head": head, "classes": 6}, 5e-2) for head in HEADS),
    ],
)
def test_bfloat16_autocast_stays_close(name: str, arguments: dict[str, Any], tolerance: float) -> None:
    torch.manual_seed(0)
    model, inputs = create_model(name, **arguments).eval(), [torch.randn(2, 3, 8, 64, 64)]
    if "detector" in name:
        inputs.append(torch.tensor([[0, 3.0, 4.0, 20.0, 30.0], [0, 30.5, 2.5, 31.0, 3.0]]))
    elif "classifier" not in name:
        inputs.append((torch.rand(2, 32).argsort(1) < 14).view(2, 2, 4, 4))
    exact = model(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(*inputs)
    assert (rounded.float() - exact).norm() < tolerance * exact.norm()


def test_seed_of_the_caller_decides_the_weights_and_heads_change_none_of_the_encoder() -> None:
    def state(seed: int, head: str = "mean") -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return create_model("maskfeat_mvitv2_nano_classifier", head=head).state_dict()

    first = state(0)
    assert all(torch.equal(value, first[name]) for name, value in state(0).items())
    assert not torch.equal(first["cls_token"], state(1)["cls_token"])
    for head in HEADS:
        other = state(0, head)
        assert all(torch.equal(other[name], value) for name, value in first.items() if "head." not in name)


@pytest.mark.parametrize("name", ["maskfeat_mvitv2_nano_classifier", "maskfeat_mvitv2_nano_detector"])
def test_initial_values_of_heads_follow_the_published_recipe(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, classes=400, head_scale=0.001)
    weight, bias = (model.get_parameter(f"head.projection.{kind}") for kind in ("weight", "bias"))
    assert weight.std().item() == pytest.approx(0.02 * 0.001, rel=0.02)  # 51,200 draws
    assert (bias == torch.tensor(0.02) * 0.001).all()


@pytest.mark.parametrize(
    ("name", "arguments", "count"),
    [
        ("maskfeat_mvitv2_s", {}, 36.253),  # millions, as published
        ("maskfeat_mvitv2_l", {}, 217.248),
        ("mvitv2_s", {}, 34.538),
        ("mvitv2_b", {}, 51.230),
        ("maskfeat_mvitv2_s_classifier", {}, 36.475),
        ("maskfeat_mvitv2_l_classifier", {}, 217.578),
        # timm's vit_*_patch16_224 and vit_huge_patch14_224, 1000 classes.
        ("vit_s_image", {"classes": 1000}, 22_050_664),
        ("vit_b_image", {"classes": 1000}, 86_567_656),
        ("vit_l_image", {"classes": 1000}, 304_326_632),
        ("vit_h_image", {"classes": 1000, "cube_stride": (1, 14, 14)}, 632_045_800),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, arguments: dict[str, Any], count: float) -> None:
    with torch.device("meta"):
        model = create_model(name, **arguments)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert count in (total, round(total / 1e6, 3))


@pytest.mark.parametrize(
    ("case", "arguments", "words"),
    [
        ("mean", {"widen_in": "mpl"}, "widen_in 'mpl' is unknown; did you mean 'mlp'"),
        (
            "mean",
            {"absolute_positions": "sincos"},
            "absolute_positions 'sincos' is unknown; choose from none",
        ),
        ("mean", {"widen_at": (9,)}, r"widen_at \(9,\): a model of depth 4 has no block 9"),
        ("mean", {"q_pool_at": (4,)}, r"q_pool_at \(4,\): a model of depth 4 has no block 4"),
        ("mean", {"heads": 3}, "heads 3: all must be positive, and heads must divide width"),
        (
            "mean",
            {"clip_size": (4, 30, 32)},
            "clip height 30 is not a positive multiple of the cube stride 4",
        ),
        ("mean", {"cube_kernel": (3, 12, 12)}, r"cube_kernel \(3, 12, 12\).*one token per cube"),
        ("mean", {"head": "men"}, "head 'men' is unknown; did you mean 'mean'"),
        ("mean", {"classes": 0}, "classes 0 must be positive"),
        ("mean", {"dropout": 1.0}, r"dropout 1.0 must be in \[0, 1\)"),
        ("mean", {"final_norm": False}, "final_norm and mean_first cannot be set on a classifier"),
        ("mean", {"mean_first": True}, "final_norm and mean_first cannot be set on a classifier"),
        ("token", {"class_token": False}, "head 'token' needs class_token true"),
        ("mean", {"drop_paths": 0.1}, "argument 'drop_paths' is unknown; did you mean 'drop_path'"),
        ("mean vit", {"absolute_positions": "sincoss"}, r"'sincoss' is unknown; did you mean 'sincos'"),
        ("mean vit", {"heads": 3}, "width 16, heads 3: all must be positive, and heads must divide width"),
        ("mean vit", {"absolute_positions": "sincos", "width": 24}, "width 24 must be a multiple of 16"),
        ("mean vit", {"clip_size": (4, 20, 16)}, "clip height 20 is not a positive multiple of the cube"),
        ("mean vit", {"depth": 0}, "depth 0, width 16"),
        ("maskfeat", {"values_per_token": 0}, "values_per_token 0 must be positive"),
        ("maskfeat", {"final_norm": True}, "final_norm cannot be set"),
        ("mae", {"decoder_heads": 3}, "decoder_width 64, decoder_heads 3: both must be positive"),
        ("mae", {"decoder_depth": -1}, "decoder_depth -1 must not be negative"),
        ("mae", {"values_per_token": 0}, "values_per_token 0 must be positive"),
        ("mae", {"decoder_positions": "separable"}, "'separable' is unknown; choose from joint, sincos"),
        (
            "mae",
            {"decoder_positions": "sincos", "decoder_width": 24},
            "decoder_width 24 must be a multiple of 16",
        ),
        ("mae", {"final_norm": False}, "final_norm cannot be set on an MAE model"),
        ("detector", {"temporal": "late_men"}, "temporal 'late_men' is unknown; did you mean 'late_mean'"),
        ("detector", {"classes": 0}, "classes 0 must be positive"),
        ("detector", {"bins": 0}, "bins 0 must be positive"),
        ("detector", {"dropout": 1.0}, r"dropout 1.0 must be in \[0, 1\)"),
        ("detector", {"mean_first": True}, "final_norm and mean_first cannot be set on a detector"),
        (
            "detector",
            {"q_pool_stride": (1, 1, 2)},
            "one cell of the output grid covers 4 rows and 16 columns of pixels",
        ),
    ],
)
def test_invalid_arguments_are_refused(case: str, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        build(case, **arguments)


def test_unknown_models_are_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="model 'mvitv_s' is unknown; did you mean 'mvitv2_s'"):
        create_model("mvitv_s")
    with pytest.raises(
        UserError, match=r"model 'mae_mvitv2_s': .*pooling needs the whole grid; .*dense form"
    ):
        create_model("mae_mvitv2_s")
