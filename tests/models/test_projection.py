"""Heads of self-distillation, and batch normalization over processes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from videomaskfeat.errors import UserError
from videomaskfeat.models.projection import Projector, PrototypeHead

SMALL = {"prototypes": 10, "hidden_width": 8, "bottleneck": 4}


def test_prototype_head_returns_cosines() -> None:
    """The cosine by definition; float32, tolerance 1e-6."""
    head = PrototypeHead(6, **SMALL)
    features = torch.randn(2, 3, 6)
    cosines = head(features)
    hidden = head.perceptron(features)
    expected = F.cosine_similarity(hidden[..., None, :], head.directions, dim=-1)
    torch.testing.assert_close(cosines, expected, atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        head.directions.mul_(torch.rand(10, 1) * 5 + 0.1)  # their length has no effect
    torch.testing.assert_close(head(features), cosines, atol=1e-6, rtol=1e-5)


def test_prototype_head_has_the_layers_of_the_paper() -> None:
    shapes = [tuple(p.shape) for p in PrototypeHead(384).parameters() if p.ndim == 2]
    assert shapes == [(8192, 256), (2048, 384), (2048, 2048), (256, 2048)]
    assert len([m for m in PrototypeHead(4, **SMALL).perceptron if isinstance(m, nn.GELU)]) == 2


def test_prototypes_are_initialized_like_a_linear_layer() -> None:
    """Uniform within 1/sqrt(bottleneck): rows of length sqrt(1/3) for any width; 4096 rows, 1 %."""
    torch.manual_seed(0)
    rows = PrototypeHead(4, prototypes=4096, hidden_width=4, bottleneck=64).directions
    assert rows.abs().max() <= 1 / 8
    assert rows.norm(dim=1).mean().item() == pytest.approx(3**-0.5, rel=0.01)


def test_frozen_prototypes_get_a_gradient_of_zero() -> None:
    head, features = PrototypeHead(6, **SMALL), torch.randn(3, 6)
    head(features).square().sum().backward()
    expected = {name: p.grad.clone() for name, p in head.named_parameters() if p.grad is not None}
    head.zero_grad()
    frozen = head(features, learn_prototypes=False)
    torch.testing.assert_close(frozen, head(features), atol=0, rtol=0)
    frozen.square().sum().backward()
    assert head.directions.grad is not None
    assert (head.directions.grad == 0).all()
    for name, parameter in head.perceptron.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[f"perceptron.{name}"])


def test_prototype_head_is_exact_under_autocast() -> None:
    """The cosines are float32, with values that bfloat16 cannot represent."""
    head = PrototypeHead(6, prototypes=500, hidden_width=8, bottleneck=4)
    with torch.autocast("cpu", torch.bfloat16):
        cosines = head(torch.randn(4, 6))
    assert cosines.dtype == torch.float32
    assert not torch.equal(cosines, cosines.bfloat16().float())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"prototypes": 1}, "prototypes 1 must be at least 2"), ({"layers": 0}, "layers 0 must be positive")],
)
def test_invalid_heads_are_refused(arguments: dict[str, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        PrototypeHead(6, **{**SMALL, **arguments})


def test_projector_is_linear_norm_relu_linear() -> None:
    projector, features = Projector(5, hidden_width=7, out_width=3), torch.randn(6, 5)
    hidden = F.batch_norm(projector.fc1(features), None, None, training=True)
    torch.testing.assert_close(projector(features), projector.fc2(F.relu(hidden)), atol=1e-6, rtol=1e-5)
    with pytest.raises(UserError, match="hidden_width 0 must be positive"):
        Projector(5, hidden_width=0)
