"""Classifiers: the definition of each head, frozen encoders, names, sizes and features."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.test_models import MVIT as SMALL
from videomaskfeat.errors import UserError
from videomaskfeat.grid import TokenGrid
from videomaskfeat.models import create_model
from videomaskfeat.models.heads import PROBES, AttentiveHead, Classifier
from videomaskfeat.models.mvit import MViT


def small(name: str = "maskfeat_mvitv2_nano_classifier", **changes: Any) -> Classifier:
    """A classifier with large weights, so that all of them affect the output."""
    torch.manual_seed(0)
    model = create_model(name, **{**SMALL, "classes": 5, **changes})
    assert isinstance(model, Classifier)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def tokens_of(model: Classifier, clips: Tensor) -> Tensor:
    """The last block's tokens, class token first, from a plain encoder of the same weights."""
    widen_in = "mlp" if model.state_dict()["blocks.0.mlp.fc2.weight"].shape[0] > 8 else "attention"
    encoder = MViT(**{**SMALL, "widen_in": widen_in}, final_norm=False).eval()
    missing, _ = encoder.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    return encoder(clips)


def layer_norm(x: Tensor, norm: nn.Module) -> Tensor:
    weight, bias = norm.get_parameter("weight"), norm.get_parameter("bias")
    centered = x - x.mean(-1, keepdim=True)
    return centered / (centered.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight + bias


@torch.no_grad()
@pytest.mark.parametrize("name", ["maskfeat_mvitv2_nano_classifier", "mvitv2_nano"])
@pytest.mark.parametrize("head", ["mean", "token"])
def test_logits_follow_the_definition_of_the_head(name: str, head: str) -> None:
    model, clips = small(name, head=head, dropout=0.5).eval(), torch.randn(2, 3, 4, 32, 32)
    tokens = tokens_of(model, clips)
    features = layer_norm(tokens[:, 1:].mean(1) if head == "mean" else tokens[:, 0], model.norm)
    expected = features @ model.head.projection.weight.T + model.head.projection.bias
    # Another order of summation in float32.
    torch.testing.assert_close(model(clips), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_norm_mean_head_normalizes_tokens_before_their_mean() -> None:
    model, clips = small(head="norm_mean").eval(), torch.randn(2, 3, 4, 32, 32)
    features = layer_norm(tokens_of(model, clips)[:, 1:], model.norm).mean(1)
    expected = features @ model.head.projection.weight.T + model.head.projection.bias
    torch.testing.assert_close(model(clips), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_attentive_head_with_blocks_attends_to_their_output() -> None:
    torch.manual_seed(0)
    head, tokens = AttentiveHead(12, 5, heads=3, dropout=0.0, scale=1.0, depth=2), torch.randn(2, 7, 12)
    plain = AttentiveHead(12, 5, heads=3, dropout=0.0, scale=1.0)
    plain.load_state_dict(head.state_dict(), strict=False)
    seen = tokens
    for block in head.blocks:
        seen, _ = block(seen, TokenGrid(7, 1, 1))
    torch.testing.assert_close(head(tokens), plain(seen))
    with pytest.raises(UserError, match="head_depth 2 with head 'mean': it must be 0 or more, and 0 unless"):
        small(head="mean", head_depth=2)


@torch.no_grad()
def test_linear_probe_follows_its_definition() -> None:
    model, clips = small(head="linear"), torch.randn(6, 3, 4, 32, 32)
    reference = nn.BatchNorm1d(32, affine=False, eps=1e-6)
    features = layer_norm(tokens_of(model, clips)[:, 1:].mean(1), model.norm)
    for training in (True, False):
        model.train(training)
        reference.train(training)
        expected = model.head.projection(reference(features))
        # Features that differ little from clip to clip are divided by small deviations.
        torch.testing.assert_close(model(clips), expected, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_attentive_head_follows_its_definition() -> None:
    torch.manual_seed(0)
    head, tokens = AttentiveHead(12, 5, heads=3, dropout=0.0, scale=1.0), torch.randn(2, 7, 12)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.5)
    attend = nn.MultiheadAttention(12, 3, batch_first=True)
    attend.in_proj_weight.copy_(torch.cat([head.q.weight, head.kv.weight]))
    attend.in_proj_bias.copy_(torch.cat([head.q.bias, head.kv.bias]))
    attend.out_proj.load_state_dict(head.proj.state_dict())
    normed = layer_norm(tokens, head.norm_tokens)
    query = head.query.expand(2, 1, 12)
    query = query + attend(query, normed, normed)[0]
    inner = F.gelu(F.linear(layer_norm(query, head.norm_mlp), head.mlp.fc1.weight, head.mlp.fc1.bias))
    query = query + F.linear(inner, head.mlp.fc2.weight, head.mlp.fc2.bias)
    torch.testing.assert_close(head(tokens), head.projection(query[:, 0]), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_attentive_probe_sees_the_normalized_grid_tokens() -> None:
    model, clips = small(head="attentive"), torch.randn(2, 3, 4, 32, 32)
    expected = model.head(layer_norm(tokens_of(model, clips)[:, 1:], model.norm))
    torch.testing.assert_close(model(clips), expected, atol=1e-5, rtol=1e-5)
    assert model.head.heads == 4  # those of the last block: 1, doubled twice


@pytest.mark.parametrize("head", PROBES)
def test_probe_learns_on_a_frozen_encoder(head: str) -> None:
    model, clips = small(head=head, drop_path=0.9), torch.randn(3, 3, 4, 32, 32, requires_grad=True)
    model.eval()
    model.train()
    assert model.frozen
    assert model.head.training
    assert not any(module.training for part in (model.blocks, model.norm) for module in part.modules())
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(clips).square().sum().backward()
    optimizer.step()
    assert clips.grad is None
    for name, value in model.named_parameters():
        learns = name.startswith("head.") and name != "head.kv.bias"  # the true gradient of one half is 0
        assert value.requires_grad == name.startswith("head.")
        assert (value.grad is not None) == name.startswith("head.")
        assert torch.equal(value, before[name]) != learns or name == "head.kv.bias", name


def test_dropout_drops_in_training_only() -> None:
    model, clips = small(dropout=0.5), torch.randn(1, 3, 4, 32, 32)
    assert not torch.equal(model(clips), model(clips))
    model.eval()
    assert torch.equal(model(clips), model(clips))


def test_features_at_every_depth_equal_a_loop() -> None:
    model, clips = small().eval(), torch.randn(2, 3, 4, 32, 48)
    with torch.no_grad():
        tokens, grid = model.patch_embed(clips)
        tokens = torch.cat([model.get_parameter("cls_token").expand(2, 1, 8), tokens], dim=1)
        for depth, block in enumerate(model.blocks, start=1):
            tokens, grid = block(tokens, grid)
            on_grid = tokens[:, 1:].reshape(2, grid.t, grid.h, grid.w, -1)
            assert torch.equal(model.features(clips, depth=depth, pooled=False), on_grid)
            pooled = model.features(clips, depth=depth)
            torch.testing.assert_close(pooled, on_grid.mean((1, 2, 3)), atol=1e-6, rtol=1e-5)
        assert torch.equal(model.features(clips, pooled=False), model.norm(on_grid))


@torch.no_grad()
@pytest.mark.parametrize(("head", "norm_first"), [("mean", False), ("linear", False), ("token", True)])
def test_pooled_features_are_normalized_as_in_the_head(head: str, norm_first: bool) -> None:
    model, clips = small(head=head).eval(), torch.randn(2, 3, 4, 32, 32)
    tokens = tokens_of(model, clips)[:, 1:]
    expected = (
        layer_norm(tokens, model.norm).mean(1) if norm_first else layer_norm(tokens.mean(1), model.norm)
    )
    torch.testing.assert_close(model.features(clips), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_features_of_a_pre_trained_model_have_no_final_norm() -> None:
    model = create_model("maskfeat_mvitv2_nano", **SMALL).eval()
    clips = torch.randn(1, 3, 4, 32, 32)
    assert torch.equal(model.features(clips), model.features(clips, depth=4))
    assert model.features(clips, pooled=False).shape == (1, 2, 2, 2, 32)


@pytest.mark.parametrize("depth", [0, 5, -1])
def test_features_at_an_unknown_depth_are_refused(depth: int) -> None:
    with pytest.raises(UserError, match=rf"depth {depth}: the encoder has blocks 1\.\.4"):
        small().features(torch.randn(1, 3, 4, 32, 32), depth=depth)


LINEAR = {"head.projection.weight", "head.projection.bias"}


@pytest.mark.parametrize(
    ("head", "own"),
    [
        ("mean", set()),
        ("token", set()),
        ("linear", {"head.normalise.mean", "head.normalise.variance"}),
        (
            "attentive",
            {"head.query"}
            | {f"head.{part}.{kind}" for part in ("q", "kv", "proj") for kind in ("weight", "bias")}
            | {f"head.{part}.{kind}" for part in ("norm_tokens", "norm_mlp") for kind in ("weight", "bias")}
            | {f"head.mlp.fc{layer}.{kind}" for layer in (1, 2) for kind in ("weight", "bias")},
        ),
    ],
)
def test_parameters_have_pyslowfast_names(head: str, own: set[str]) -> None:
    names = {name for name in small(head=head).state_dict() if not name.startswith("blocks.")}
    stem = {"cls_token", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    assert names == {*stem, "norm.weight", "norm.bias", *LINEAR, *own}


@pytest.mark.parametrize("head", ["mean", "linear", "attentive"])
def test_encoder_without_class_token_is_classified(head: str) -> None:
    model = small(head=head, class_token=False)
    assert model(torch.randn(2, 3, 4, 32, 32)).shape == (2, 5)


def test_any_clip_size_is_classified() -> None:
    assert small()(torch.randn(2, 3, 6, 64, 48)).shape == (2, 5)
