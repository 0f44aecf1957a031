"""The perceptual distance: its definition, frozen encoder, and gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from videomaskfeat.errors import UserError
from videomaskfeat.models import create_model
from videomaskfeat.models.mvit import MViT
from videomaskfeat.models.perceptual import PerceptualDistance


def encoder() -> MViT:
    torch.manual_seed(0)
    model = create_model(
        "mvitv2_encoder", depth=2, width=8, widen_at=(1,), q_pool_at=(1,), clip_size=(4, 32, 32)
    )
    assert isinstance(model, MViT)
    return model


@pytest.mark.parametrize("weights", [None, [1.0, 1.0], [0.5, 2.0]])
def test_distance_is_the_weighted_sum_over_depths(weights: list[float] | None) -> None:
    """Distance of features by hand; float32, relative 1e-5. Equal pictures have distance 0."""
    distance = PerceptualDistance(encoder(), depths=[1, 2], weights=weights, size=32, mean=0.4, std=0.2)
    first, second = torch.rand(2, 2, 3, 32, 32)
    expected = 0.0
    for depth, weight in zip((1, 2), weights or (1.0, 1.0), strict=True):
        features = []
        for picture in (first, second):
            clip = ((picture - 0.4) / 0.2)[:, :, None].repeat(1, 1, 2, 1, 1)
            tokens = encoder().eval().features(clip, depth=depth, pooled=False)
            centered = tokens - tokens.mean(-1, keepdim=True)
            features.append(centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt())
        expected += weight * (features[0] - features[1]).square().mean().item()
    assert distance(first, second).item() == pytest.approx(expected, rel=1e-5)
    assert distance(first, first) == 0


def test_gradient_reaches_the_reconstruction_and_not_the_encoder() -> None:
    distance = PerceptualDistance(encoder(), depths=[2], size=32)
    distance.train()
    assert not distance.encoder.training
    pictures = torch.rand(1, 3, 16, 16, requires_grad=True)  # resized to 32
    reconstruction = torch.rand(1, 3, 16, 16, requires_grad=True)
    distance(pictures, reconstruction).backward()
    assert pictures.grad is None
    assert reconstruction.grad is not None
    assert reconstruction.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in distance.parameters())


@pytest.mark.parametrize("depths", [[], [0], [1, 3]])
def test_depths_that_the_encoder_lacks_are_named(depths: list[int]) -> None:
    with pytest.raises(UserError, match=r"perceptual depths .*blocks 1\.\.2"):
        PerceptualDistance(encoder(), depths=depths)


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0]])
def test_weights_that_do_not_fit_the_depths_are_refused(weights: list[float]) -> None:
    with pytest.raises(UserError, match=r"perceptual weights .* must be one number of at least 0 per depth"):
        PerceptualDistance(encoder(), depths=[1, 2], weights=weights)


def test_model_without_features_is_refused() -> None:
    with pytest.raises(UserError, match="a Linear has no features per depth"):
        PerceptualDistance(nn.Linear(2, 2), depths=[1])
