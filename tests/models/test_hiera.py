"""Hiera: recorded outputs of its own code, mask units, and the masked autoencoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from videomaskfeat.engine.optim import layers_behind
from videomaskfeat.errors import UserError
from videomaskfeat.grid import TokenGrid
from videomaskfeat.losses.masked import masked_mse
from videomaskfeat.methods.build import build_method
from videomaskfeat.models import create_model
from videomaskfeat.models.hiera import group_units, pool_units, ungroup_units
from videomaskfeat.models.loading import (
    build_converted,
    convert_weights,
    load_initial,
    load_model,
    load_student,
)
from videomaskfeat.models.saving import save_model
from videomaskfeat.schemas.pretrain import PretrainConfig
from videomaskfeat.targets.hog import HogTarget
from videomaskfeat.targets.pixels import PixelTarget

KINDS = ("video", "image")
# Float32 with another order of summation; the largest difference seen is 4e-6.
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture
def recorded(golden: Path) -> Path:
    return golden / "hiera"


def expected_of(folder: Path, kind: str) -> dict[str, Any]:
    expected: dict[str, Any] = torch.load(folder / f"expected_{kind}.pt", weights_only=True)
    return expected


def mask_of(keep: Tensor, kind: str) -> Tensor:
    """The published mask (True: visible, per unit) as ours, [B, t, h, w], for images [B, h, w]."""
    return ~keep.view(-1, 2, 2, 2) if kind == "video" else ~keep.view(-1, 2, 2)


def imported(path: Path, **choices: Any) -> Any:
    converted = convert_weights(str(path), **choices)
    assert converted is not None
    model, report = build_converted(str(path), converted)
    assert not report.unused
    return model, converted


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_equal_recorded_ones(kind: str, recorded: Path) -> None:
    expected = expected_of(recorded, kind)
    model, converted = imported(recorded / f"hiera_{kind}.pth", heads=1)
    torch.testing.assert_close(model(expected["clip"]), expected["logits"], **CLOSE)
    clip = expected["clip"] if kind == "video" else expected["clip"][:, :, None]
    outputs = model.features_at(clip, [end + 1 for end in model.stage_ends[1:]])
    for output, stage in zip(outputs, expected["stages"], strict=True):
        torch.testing.assert_close(output if kind == "video" else output[:, 0], stage, **CLOSE)
    assert converted.name == f"hiera_b{'' if kind == 'video' else '_image'}"
    assert converted.arguments["stages"] == (1, 2, 1, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_pretraining_loss_and_gradients_equal_recorded_ones(kind: str, recorded: Path) -> None:
    expected = expected_of(recorded, kind)
    model, converted = imported(recorded / f"mae_hiera_{kind}.pth", heads=1, decoder_heads=2)
    mask = mask_of(expected["keep"], kind)
    clips = expected["clip"] if kind == "video" else expected["clip"][:, :, None]
    mask = mask if kind == "video" else mask[:, None]
    predictions = model(clips, mask)
    output_stride = (2, 16, 16) if kind == "video" else (1, 16, 16)
    assert converted.recipe.target_arguments.get("output_stride", [2, 16, 16]) == list(output_stride)
    target = PixelTarget(output_stride=output_stride)(clips)
    loss = masked_mse(predictions, target, mask)
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-5)
    hidden = mask.repeat_interleave(2, -1).repeat_interleave(2, -2)
    pixels = predictions[hidden][::4]
    if kind == "image":  # the published order of an image's pixels: color, row, column
        pixels = pixels.unflatten(1, (16, 16, 3)).permute(0, 3, 1, 2).flatten(1)
    torch.testing.assert_close(pixels, expected["pred"], **CLOSE)
    loss.backward()
    norms = expected["grad_norm"]
    names = {"encoder_norm": "decoder_fusion_norm", "multi_scale_fusion_heads": "decoder_fusion"}
    checked = 0
    for theirs, norm in norms.items():
        first, _, rest = theirs.partition(".")
        ours = f"{names[first]}.{rest}" if first in names else theirs
        if not ours.startswith(("decoder_blocks", "decoder_norm", "decoder_pred")):
            gradient = model.get_parameter(ours).grad
            assert gradient.norm().item() == pytest.approx(norm, rel=1e-4, abs=1e-7), theirs
            checked += 1
    assert checked > 60


def test_units_are_grouped_pooled_and_ungrouped() -> None:
    grid, unit = TokenGrid(2, 4, 6), (1, 2, 2)
    tokens = torch.arange(2 * grid.size * 3).float().view(2, grid.size, 3)
    grouped = group_units(tokens, grid, unit)
    volume = tokens.view(2, 2, 4, 6, 3)
    assert torch.equal(grouped[:, 4:8], volume[:, 0, :2, 2:4].reshape(2, 4, 3))
    assert torch.equal(ungroup_units(grouped, grid, unit), tokens)
    pooled = pool_units(grouped, unit, (1, 2, 2))
    slow = torch.nn.functional.max_pool3d(volume.permute(0, 4, 1, 2, 3), (1, 2, 2))
    assert torch.equal(pooled, slow.flatten(2).transpose(1, 2))


@torch.no_grad()
def test_first_stages_attend_within_units_only() -> None:
    torch.manual_seed(0)
    model = create_model("hiera_pico").eval()
    clips = torch.randn(1, 3, 4, 32, 32)
    changed = clips.clone()
    changed[:, :, :, 16:, 24:] += 1.0  # the last unit, far enough from the others for the stem's kernel
    before, after = (model.features(x, depth=2, pooled=False) for x in (clips, changed))
    differs = (before != after).any(dim=-1)[0]  # [t, h, w]
    assert differs[:, 2:, 2:].all()
    assert not differs[:, :2].any()
    assert not differs[:, :, :2].any()
    full = [model.features(x, pooled=False) for x in (clips, changed)]
    assert (full[0] != full[1]).any(dim=-1).all()  # the last stage attends to all


@torch.no_grad()
def test_hidden_pixels_change_no_prediction() -> None:
    torch.manual_seed(0)
    model = create_model("mae_hiera_pico").eval()
    clips = torch.randn(2, 3, 4, 32, 32)
    mask = torch.tensor([1, 0, 1, 1, 0, 1, 1, 0]).bool().view(1, 2, 2, 2).expand(2, -1, -1, -1)
    changed = clips.clone()
    for t, h, w in mask[0].nonzero().tolist():
        changed[:, :, 2 * t : 2 * t + 2, 16 * h : 16 * h + 16, 16 * w : 16 * w + 16] = 5.0
    predictions = model(clips, mask)
    assert predictions.shape == (2, 2, 4, 4, 192)
    assert torch.equal(predictions, model(changed, mask))
    with pytest.raises(UserError, match=r"the masks of a batch hide 3 to 5 of 8 cubes"):
        model(clips, torch.stack([mask[0], ~mask[0]]))


def test_layers_and_positions_follow_the_protocol(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model("hiera_pico", num_classes=3)
    behind = layers_behind(model)
    depth = len(model.blocks)
    assert (behind("patch_embed.proj.weight"), behind("pos_embed_spatial")) == (depth + 1, depth + 1)
    assert (behind("blocks.0.attn.qkv.weight"), behind("head.projection.weight")) == (depth, 0)
    assert model.is_table("pos_embed_temporal")
    assert model.output_grid((4, 32, 32)).shape == (2, 2, 2)
    save_model(model, tmp_path / "hiera.safetensors")
    clips = torch.randn(1, 3, 4, 32, 32)
    assert torch.equal(load_model(tmp_path / "hiera.safetensors")(clips), model.eval()(clips))
    larger = create_model("hiera_pico", num_classes=3, clip_size=(8, 48, 48))
    report = load_initial(larger, tmp_path / "hiera.safetensors")
    assert set(report.resized) == {"pos_embed_spatial", "pos_embed_temporal"}
    assert larger(torch.randn(1, 3, 8, 48, 48)).shape == (1, 3)


def test_fine_tuning_starts_from_a_pretrained_encoder(tmp_path: Path) -> None:
    pretrained = create_model("mae_hiera_pico")
    save_model(pretrained, tmp_path / "mae.safetensors")
    report = load_initial(create_model("hiera_pico", num_classes=3), tmp_path / "mae.safetensors")
    assert set(report.new) == {"norm.weight", "norm.bias", "head.projection.weight", "head.projection.bias"}
    assert all(name.startswith(("decoder_", "mask_token", "pred_head")) for name in report.unused)
    keys = PretrainConfig().model
    keys.weights = str(tmp_path / "mae.safetensors")
    student = create_model("mae_hiera_pico")
    assert len(load_student(student, student, keys).loaded) == len(student.state_dict())


def test_hog_is_a_target_of_the_visible_units() -> None:
    target = HogTarget(output_stride=(2, 8, 8))
    model = create_model("mae_hiera_pico", values_per_token=target.values_per_token)
    clips, mask = torch.randn(1, 3, 4, 32, 32), torch.zeros(1, 2, 2, 2, dtype=torch.bool)
    mask[:, 0] = True
    loss = masked_mse(model(clips, mask), target(clips), mask)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_config_builds_the_method_and_its_masks_hide_units() -> None:
    config = PretrainConfig()
    config.clip.frames, config.clip.crop = 4, 32
    config.mask.kind, config.mask.ratio, config.mask.cell = "random", 0.5, [2, 16, 16]
    config.model.name, config.target.arguments = "mae_hiera_pico", {"output_stride": [2, 8, 8]}
    student = build_method(config).student
    assert student.initialization == "mae"
    assert student.values_per_token == 27
    config.mask.cell = [2, 8, 8]
    with pytest.raises(
        UserError, match=r"which does not divide the 2x2x2 positions that mae_hiera_pico hides"
    ):
        build_method(config)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"class_token": True}, "a Hiera has no class token"),
        ({"clip_size": (4, 40, 32)}, r"must be multiples of \[2, 16, 16\]"),
        ({"q_pool": 3}, r"q_pool 3 must be 0..2"),
        ({"mask_unit": (1, 6, 6)}, r"a mask_unit of \[1, 6, 6\] tokens must be a multiple"),
        ({"unit_attention": (True,)}, r"each stage needs a block and a value of unit_attention"),
        ({"absolute_positions": "sincos"}, r"absolute_positions 'sincos' is unknown"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        create_model("hiera_pico", **arguments)


# Published code: sum of the sizes of the parameters.
SIZES = {
    "hiera_b": 51092560,
    "hiera_bplus": 69392240,
    "hiera_l": 213091600,
    "hiera_h": 671627664,
    "mae_hiera_b": 79367104,
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == SIZES[name]
