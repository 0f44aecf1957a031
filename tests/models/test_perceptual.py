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


def test_distance_is_the_mean_over_depths_of_normalized_features() -> None:
    """Distance of features by hand; float32, tolerance 1e-6. Equal pictures have distance 0."""
    distance = PerceptualDistance(encoder(), depths=[1, 2], size=32, mean=0.4, std=0.2)
    first, second = torch.rand(2, 2, 3, 32, 32)
    expected = []
    for depth in (1, 2):
        features = []
        for picture in (first, second):
            clip = ((picture - 0.4) / 0.2)[:, :, None].repeat(1, 1, 2, 1, 1)
            tokens = encoder().eval().features(clip, depth=depth, pooled=False)
            centered = tokens - tokens.mean(-1, keepdim=True)
            features.append(centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt())
        expected.append((features[0] - features[1]).square().mean())
    assert distance(first, second).item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)
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


def test_model_without_features_is_refused() -> None:
    with pytest.raises(UserError, match="a Linear has no features per depth"):
        PerceptualDistance(nn.Linear(2, 2), depths=[1])
