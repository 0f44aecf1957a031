"""Weights of other projects: equal outputs, recipes, recognition, and refusals."""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.interop.layouts import (
    UNSUPPORTED,
    expected_of,
    mvit_of_mmaction2,
    renamed,
    state_of,
    videomae_classifier,
    videomae_of_mmaction2,
    videomae_pretrained,
    vjepa_encoder,
    vjepa_probe,
    weights_of,
)
from videomaskfeat import cli
from videomaskfeat.errors import UserError
from videomaskfeat.interop.formats import ratio_of
from videomaskfeat.interop.other_projects import FORMATS
from videomaskfeat.jobs.import_weights import import_weights
from videomaskfeat.models import create_model
from videomaskfeat.models.loading import convert_weights, load_model, load_pretrained, load_weights
from videomaskfeat.recipe import PretrainRecipe
from videomaskfeat.stored_recipe import ClassifyRecipe

# Other orders of summation in float32 give 2e-6. The last norm of VideoMAE in transformers adds 1e-5 to the
# variance, which VideoMAE's own code and all other norms do not: 8e-6.
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
NAMES = ("sit", "stand", "walk")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
RECORDED = {
    "videomae_pretrained": "videomae-transformers",
    "videomae_classifier": "videomae-transformers",
    "vjepa2_classifier": "vjepa2-transformers",
    "vjepa2_encoder": "vjepa2-transformers",
    "vit_classifier": "vit-transformers",
    "vit_encoder": "vit-transformers",
    "timm_vit_token": "vit-timm",
    "timm_vit_mean": "vit-timm",
    "timm_mvitv2": "mvitv2-timm",
    "torchvision_mvit": "mvitv2-torchvision",
}


@pytest.fixture
def recorded(golden: Path) -> Path:
    return golden / "other_projects"


@torch.no_grad()
def output_of(model: nn.Module, clip: Tensor, mask: Tensor | None) -> Tensor:
    """Logits or tokens; of an MAE the predictions at hidden positions [B, hidden, K]."""
    if mask is None:
        result: Tensor = model(clip)
        return result
    grid = mask.view(len(mask), 2, 4, 4)
    return model(clip, grid)[grid].view(len(mask), -1, 96)


@pytest.mark.parametrize("name", RECORDED)
def test_outputs_equal_the_recorded_ones(name: str, recorded: Path) -> None:
    folder = recorded / name
    clip, expected, mask = expected_of(folder)
    model = load_model(weights_of(folder))
    assert not model.training
    torch.testing.assert_close(output_of(model, clip, mask), expected, **CLOSE)


@pytest.mark.parametrize("name", RECORDED)
def test_format_is_recognized_by_names_and_shapes(name: str, recorded: Path, tmp_path: Path) -> None:
    path = weights_of(recorded / name)
    converted = convert_weights(str(path))
    assert converted.title == FORMATS[RECORDED[name]].title
    again = convert_weights(str(path), format=RECORDED[name])
    assert again.arguments == converted.arguments
    # Wrapped and saved by torch, without a config beside: only the numbers of heads are unknown.
    wrapped = {f"module.{key}": value for key, value in state_of(recorded / name).items()}
    torch.save({"model": wrapped, "epoch": 3}, tmp_path / "x.pth")
    alone = convert_weights(str(tmp_path / "x.pth"), heads=converted.arguments["heads"], decoder_heads=2)
    assert alone.title == converted.title
    assert alone.state.keys() == converted.state.keys()


def test_recipe_has_what_the_files_contain(recorded: Path) -> None:
    recipes = {name: convert_weights(str(weights_of(recorded / name))) for name in RECORDED}
    video = recipes["videomae_classifier"].recipe
    assert isinstance(video, ClassifyRecipe)
    assert (video.clip.frames, video.clip.crop, video.clip.target_fps) == (4, 16, None)
    assert (video.clip.mean, video.clip.std) == IMAGENET
    assert (video.class_names, video.crops, video.views) == (NAMES, 3, 5)
    assert recipes["videomae_classifier"].assumed == ("clip.stride 4", "evaluate.views 5")
    masked = recipes["videomae_pretrained"].recipe
    assert isinstance(masked, PretrainRecipe)
    assert (masked.mask.kind, masked.mask.ratio, masked.mask.cell) == ("random_tube", 0.9, (2, 4, 4))
    assert masked.target == "pixels"
    assert masked.target_arguments == {"frames": "all", "per_channel": True, "output_stride": [2, 4, 4]}
    for name in ("vit_classifier", "timm_mvitv2", "timm_vit_token"):
        recipe = recipes[name].recipe
        assert (recipe.clip.frames, recipe.clip.mean, recipe.class_names) == (1, (0.5, 0.5, 0.5), NAMES)
        assert not recipes[name].assumed
    jepa = recipes["vjepa2_classifier"]
    assert (jepa.recipe.clip.frames, jepa.recipe.clip.target_fps, jepa.recipe.class_names) == (4, 4.0, NAMES)
    assert jepa.arguments["head_depth"] == 1
    torchvision = recipes["torchvision_mvit"].recipe.clip
    assert (torchvision.frames, torchvision.stride, torchvision.mean, torchvision.std) == (
        4,
        4.0,
        0.45,
        0.225,
    )


def test_other_units_of_unnormalized_pixels_are_named(recorded: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(recorded / "videomae_pretrained", tmp_path / "copy")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"norm_pix_loss": true', '"norm_pix_loss": false'))
    converted = convert_weights(str(weights_of(folder)))
    assert isinstance(converted.recipe, PretrainRecipe)
    assert converted.recipe.target_arguments["normalized"] is False
    assert any("the weights predict pixels in 0..1" in value for value in converted.assumed)


@pytest.mark.parametrize("key", ["model", "module"])
def test_videomae_checkpoint_with_its_command_line(key: str, recorded: Path, tmp_path: Path) -> None:
    args = argparse.Namespace(
        num_frames=4, sampling_rate=2, input_size=16, test_num_segment=7, test_num_crop=1, short_side_size=20,
        data_set="Kinetics-400",
    )  # fmt: skip
    torch.save({key: videomae_classifier(recorded), "args": args, "epoch": 1}, tmp_path / "x.pth")
    converted = convert_weights(str(tmp_path / "x.pth"), heads=2)
    assert converted.title == FORMATS["videomae"].title
    recipe = converted.recipe
    assert (recipe.clip.stride, recipe.clip.crop, recipe.views, recipe.crops) == (2, 16, 7, 1)
    assert recipe.short_side == 20
    assert converted.assumed == (
        "clip.mean [0.485, 0.456, 0.406]", "clip.std [0.229, 0.224, 0.225]"
    )  # fmt: skip
    clip, expected, _ = expected_of(recorded / "videomae_classifier")
    model = create_model(converted.name, **converted.arguments).eval()
    report = load_weights(model, tmp_path / "x.pth")
    torch.testing.assert_close(output_of(model, clip, None), expected, **CLOSE)
    assert report.format == converted.title
    assert report.normalization == IMAGENET
    assert "converted from VideoMAE" in str(report)


def test_videomae_on_ssv2_samples_segments(recorded: Path, tmp_path: Path) -> None:
    args = argparse.Namespace(num_frames=4, data_set="SSV2", test_num_segment=2, test_num_crop=3)
    torch.save({"module": videomae_classifier(recorded), "args": args}, tmp_path / "x.pth")
    recipe = convert_weights(str(tmp_path / "x.pth"), heads=2).recipe
    assert (recipe.sampling, recipe.views, recipe.crops) == ("segments", 1, 3)


def test_videomae_pretraining_checkpoint_of_its_own_code(recorded: Path, tmp_path: Path) -> None:
    folder = recorded / "videomae_pretrained"
    state = videomae_pretrained(recorded)
    assert {
        "encoder.blocks.1.attn.q_bias",
        "decoder.blocks.0.attn.v_bias",
        "encoder.norm.bias",
    } <= state.keys()
    args = argparse.Namespace(num_frames=4, input_size=16, mask_ratio=0.75, mask_type="tube")
    torch.save({"model": state, "args": args}, tmp_path / "x.pth")
    converted = convert_weights(str(tmp_path / "x.pth"), heads=2, decoder_heads=2)
    assert converted.title == FORMATS["videomae-pretrained"].title
    assert converted.recipe.mask.ratio == 0.75
    clip, expected, mask = expected_of(folder)
    model = create_model(converted.name, **converted.arguments).eval()
    load_weights(model, tmp_path / "x.pth")
    torch.testing.assert_close(output_of(model, clip, mask), expected, **CLOSE)


def test_videomae_of_mmaction2_has_its_fixed_positions_in_the_file(recorded: Path, tmp_path: Path) -> None:
    state = videomae_of_mmaction2(recorded)
    rates = 10000 ** (-2 * (torch.arange(32, dtype=torch.float64) // 2) / 32)
    angles = torch.arange(32, dtype=torch.float64)[:, None] * rates
    fixed = torch.where(torch.arange(32) % 2 == 0, angles.sin(), angles.cos()).float()[None]
    for table, positions in ((fixed, "sincos_1d"), (torch.randn(1, 32, 32), "joint")):
        state["backbone.pos_embed"] = table
        meta = {"dataset_meta": {"classes": list(NAMES)}}
        torch.save({"state_dict": state, "meta": meta}, tmp_path / "x.pth")
        converted = convert_weights(str(tmp_path / "x.pth"), heads=2, frames=4, crop=16)
        assert converted.title == FORMATS["videomae-mmaction2"].title
        assert converted.arguments["absolute_positions"] == positions
        assert converted.recipe.class_names == NAMES
        model = create_model(converted.name, **converted.arguments).eval()
        load_weights(model, tmp_path / "x.pth")
        clip, expected, _ = expected_of(recorded / "videomae_classifier")
        close = torch.allclose(output_of(model, clip, None), expected, **CLOSE)
        assert close == (positions == "sincos_1d")


def test_mvitv2_of_mmaction2_equals_torchvisions(recorded: Path, tmp_path: Path) -> None:
    folder = recorded / "torchvision_mvit"
    state = mvit_of_mmaction2(recorded)
    torch.save({"state_dict": state, "meta": {"epoch": 1}}, tmp_path / "x.pth")
    assert convert_weights(str(tmp_path / "x.pth")).recipe.clip.target_fps is None
    clip, expected, _ = expected_of(folder)
    torch.testing.assert_close(output_of(load_model(tmp_path / "x.pth"), clip, None), expected, **CLOSE)
    torch.save(renamed(state, (r"^backbone\.norm1", "backbone.norm3")), tmp_path / "x.pth")
    torch.testing.assert_close(output_of(load_model(tmp_path / "x.pth"), clip, None), expected, **CLOSE)


def test_vjepa2_checkpoint_of_its_own_code(recorded: Path, tmp_path: Path) -> None:
    state = vjepa_encoder(recorded)
    clip, expected, _ = expected_of(recorded / "vjepa2_encoder")
    tokens = {f"module.backbone.mask_tokens.{index}": torch.zeros(1, 1, 8) for index in range(10)}
    other = {name: torch.zeros_like(value) for name, value in state.items()}
    checkpoint = {"encoder": other, "predictor": tokens, "target_encoder": state, "epoch": 2}
    torch.save(checkpoint, tmp_path / "x.pt")
    model = create_model("vit_encoder", **convert_weights(str(tmp_path / "x.pt"), heads=2).arguments).eval()
    assert load_weights(model, tmp_path / "x.pt").format == FORMATS["vjepa2"].title
    torch.testing.assert_close(output_of(model, clip, None), expected, **CLOSE)
    # A table of positions, which V-JEPA 2 does not use, is not V-JEPA 1's.
    state["module.backbone.pos_embed"] = torch.randn(1, 32, 32)
    torch.save(checkpoint, tmp_path / "x.pt")
    load_weights(model, tmp_path / "x.pt")
    torch.testing.assert_close(output_of(model, clip, None), expected, **CLOSE)


def test_attentive_probe_is_added_to_its_encoder(recorded: Path, tmp_path: Path) -> None:
    encoder, head = vjepa_probe(recorded)
    torch.save({"target_encoder": encoder, "epoch": 2}, tmp_path / "encoder.pt")
    torch.save({"classifiers": [head], "opt": [{"state": {}}], "epoch": 20}, tmp_path / "probe.pt")
    arguments = [
        "import-weights",
        tmp_path / "encoder.pt",
        tmp_path / "out",
        "--from",
        "vjepa2",
        "--heads",
        2,
    ]
    assert cli.main([str(one) for one in (*arguments, "--probe", tmp_path / "probe.pt")]) == 0
    clip, expected, _ = expected_of(recorded / "vjepa2_classifier")
    model = load_model(tmp_path / "out/weights.safetensors")
    torch.testing.assert_close(output_of(model, clip, None), expected, **CLOSE)
    with pytest.raises(UserError, match=r"recognized as V-JEPA attentive probe, a head .* --probe FILE"):
        load_model(tmp_path / "probe.pt")
    torch.save({"classifiers": [head, head]}, tmp_path / "two.pt")
    with pytest.raises(UserError, match=r"several sets of weights, under classifiers.0, classifiers.1"):
        load_model(tmp_path / "two.pt")
    with pytest.raises(UserError, match=r"encoder.pt: not an attentive probe of V-JEPA 2 encoder"):
        import_weights(tmp_path / "encoder.pt", tmp_path / "x", heads=2, probe=tmp_path / "encoder.pt")


def plain_encoder(state: Mapping[str, Tensor], clip: Tensor, heads: int) -> Tensor:
    """V-JEPA 1's encoder, one head at a time: blocks with a norm before each half, then a norm."""

    def norm(x: Tensor, name: str) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return x * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    stem = state["patch_embed.proj.weight"]
    x = F.conv3d(clip, stem, state["patch_embed.proj.bias"], stride=stem.shape[2:])
    x = x.flatten(2).transpose(1, 2) + state["pos_embed"]
    for index in range(2):
        block = f"blocks.{index}"
        q, k, v = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").chunk(3, dim=-1)
        seen = []
        for a, b, c in zip(*(y.chunk(heads, dim=-1) for y in (q, k, v)), strict=True):
            scores = a @ b.transpose(1, 2) / math.sqrt(a.shape[-1])
            seen.append(scores.softmax(-1) @ c)
        x = x + linear(torch.cat(seen, dim=-1), f"{block}.attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
    return norm(x, "norm")


def test_vjepa_checkpoint_of_its_own_code(recorded: Path, tmp_path: Path) -> None:
    state = {name: value.float() for name, value in vjepa_encoder(recorded).items()}
    state["module.backbone.pos_embed"] = torch.randn(1, 32, 32)
    torch.save({"encoder": state, "predictor": {"mask_tokens.0": torch.zeros(1)}}, tmp_path / "x.pt")
    converted = convert_weights(str(tmp_path / "x.pt"), heads=2, frames=4)
    assert converted.title == FORMATS["vjepa"].title
    assert converted.arguments["clip_size"] == (4, 16, 16)
    clip, _, _ = expected_of(recorded / "vjepa2_encoder")
    model = create_model("vit_encoder", **converted.arguments).eval()
    load_weights(model, tmp_path / "x.pt")
    bare = {name.removeprefix("module.backbone."): value for name, value in state.items()}
    torch.testing.assert_close(output_of(model, clip, None), plain_encoder(bare, clip, 2), **CLOSE)


# Into a model of a config.


def test_fixed_positions_become_learned_ones_of_another_clip(recorded: Path) -> None:
    arguments = {**convert_weights(str(recorded / "videomae_classifier")).arguments, "classes": 5}
    changes = {"absolute_positions": "joint", "clip_size": (8, 16, 16)}
    model = create_model("vit_b", **{**arguments, **changes})
    before = model.head.projection.weight.clone()
    keys = argparse.Namespace(
        weights=str(recorded / "videomae_classifier"), weights_key="", allow_missing=[], allow_unused=[],
        inflate="repeated",
    )  # fmt: skip
    report = load_pretrained(model, keys)
    assert report.reset == ("head.projection.weight", "head.projection.bias")
    assert torch.equal(model.head.projection.weight, before)
    table = create_model("vit_b", **arguments)._absolute_positions(model.native_grid)
    middle = model.pos_embed.unflatten(1, (4, 16)).mean(dim=(1, 2))
    fixed = create_model("vit_b", **arguments)
    native = fixed._absolute_positions(fixed.native_grid).unflatten(1, (2, 16))
    # Linear interpolation to twice the frames, with ends repeated, keeps the mean.
    torch.testing.assert_close(middle, native.mean(dim=(1, 2)))
    assert table.shape == model.pos_embed.shape


def test_mismatches_with_the_model_are_refused(recorded: Path) -> None:
    path = recorded / "videomae_classifier"
    arguments = convert_weights(str(path)).arguments
    for changes, message in (
        (
            {"heads": 4},
            r"VideoMAE of transformers with 2 heads, but the model has 4; set model\.arguments\.heads=2",
        ),
        (
            {"absolute_positions": "separable"},
            r"sincos_1d.*set model\.arguments\.absolute_positions=sincos_1d",
        ),
        ({"absolute_positions": "sincos"}, r"sincos_1d.*set model\.arguments\.absolute_positions=sincos_1d"),
        (
            {"class_token": True},
            r"lacks 1 weights.*cls_token.*VideoMAE of transformers: model vit_b with depth 1",
        ),
    ):
        with pytest.raises(UserError, match=message):
            load_weights(create_model("vit_b", **{**arguments, **changes}), path)


# Recognition.


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_weights_are_named_as_what_they_are(name: str, tmp_path: Path) -> None:
    shapes, title = UNSUPPORTED[name]
    torch.save({key: torch.zeros(shape) for key, shape in shapes.items()}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=rf"x\.pth: recognized as {title}.*, which is not supported: "):
        load_model(tmp_path / "x.pth")


def test_unsupported_variants_are_named(recorded: Path, tmp_path: Path) -> None:
    state = state_of(recorded / "timm_mvitv2")
    torch.save({**state, "cls_token": torch.zeros(1, 1, 16)}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="MViTv2 for images of timm with a class token is not supported"):
        load_model(tmp_path / "a.pth")
    state = state_of(recorded / "timm_vit_token")
    state["pos_embed"] = torch.zeros(1, 21, 64)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(UserError, match="must have learned positions on a square grid; register tokens"):
        load_model(tmp_path / "a.pth")
    state = {key: value for key, value in videomae_classifier(recorded).items() if "fc_norm" not in key}
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(UserError, match="without fc_norm, which classifies from its first token"):
        load_model(tmp_path / "a.pth")
    torch.save(renamed(videomae_classifier(recorded), (r"fc1\.weight", "fc9.weight")), tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"VideoMAE v1 or v2, fine-tuned, but 'blocks\.0\.mlp\S+ is missing"):
        load_model(tmp_path / "a.pth")
    torch.save({"x": torch.zeros(1)}, tmp_path / "a.pth")
    assert convert_weights(str(tmp_path / "a.pth")) is None
    with pytest.raises(UserError, match="from 'videomea' is unknown; did you mean 'videomae'"):
        convert_weights(str(tmp_path / "a.pth"), format="videomea")


def test_heads_that_the_file_does_not_contain_are_required(recorded: Path, tmp_path: Path) -> None:
    torch.save(videomae_classifier(recorded), tmp_path / "x.pth")
    with pytest.raises(
        UserError,
        match="number of attention heads of width 32; use `videomaskfeat import-weights` with --heads N",
    ):
        load_model(tmp_path / "x.pth")


def test_an_unused_or_broken_config_beside_the_file(recorded: Path, tmp_path: Path) -> None:
    shutil.copytree(recorded / "vit_classifier", tmp_path / "x")
    config = json.loads((tmp_path / "x/config.json").read_text())
    config["num_attention_heads"] = 4
    (tmp_path / "x/config.json").write_text(json.dumps(config))
    assert convert_weights(str(tmp_path / "x")).arguments["heads"] == 4
    (tmp_path / "x/config.json").write_text('{"hidden_act": "quick_gelu"}')
    with pytest.raises(UserError, match=r"hidden_act 'quick_gelu' in config\.json is not supported"):
        convert_weights(str(tmp_path / "x"))
    (tmp_path / "x/config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json"):
        convert_weights(str(tmp_path / "x"))
    (tmp_path / "x/config.json").write_text('{"num_attention_heads": "many"}')
    with pytest.raises(UserError, match="read as ViT for images of transformers, but"):
        convert_weights(str(tmp_path / "x"))


def test_weights_in_several_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(
        UserError, match="its weights are divided into several files; save the model again in"
    ):
        load_model(tmp_path)


def test_mlp_ratio_gives_the_hidden_width() -> None:
    published = [(1408, 6144), (1664, 8192), (1280, 5120), (192, 768)]  # int(width * 48 / 11), ...
    odd = [(width, hidden) for width in range(24, 400, 7) for hidden in range(width, 5 * width, 31)]
    assert all(int(width * ratio_of(width, hidden)) == hidden for width, hidden in published + odd)


def test_our_own_names_are_not_converted(tmp_path: Path) -> None:
    """An image model of PySlowFast has the stem of a picture too."""
    model = create_model("maskfeat_vit_pico_image")
    state = {
        name: value.squeeze(2) if value.ndim == 5 else value for name, value in model.state_dict().items()
    }
    torch.save({"model_state": state}, tmp_path / "x.pyth")
    save_file({"a": torch.zeros(1)}, str(tmp_path / "x.safetensors"))
    assert convert_weights(str(tmp_path / "x.pyth")) is None
    assert not load_weights(model, tmp_path / "x.pyth").format
    with pytest.raises(UserError, match=r"x\.pyth: neither weights of this package nor a known format"):
        load_model(tmp_path / "x.pyth")
    with pytest.raises(UserError, match="contains no model name"):
        load_model(tmp_path / "x.safetensors")
