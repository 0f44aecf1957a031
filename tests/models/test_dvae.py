"""The discrete VAE: the relaxation in closed form, gradients, shapes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from videomaskfeat.errors import UserError
from videomaskfeat.models.tokenizers import DiscreteVAE, gumbel_noise, gumbel_softmax

TINY: dict[str, Any] = {"vocabulary": 12, "stride": 4, "width": 16, "blocks": 1, "code_width": 6}


def test_relaxed_draw_in_closed_form() -> None:
    """Three numbers: exp((logit + noise) / temperature), normalised; float32, 1e-6."""
    logits = torch.tensor([[1.0, 0.0, -1.0]])
    noise = torch.tensor([[0.5, 1.0, 0.25]])
    for temperature in (2.0, 1.0, 0.1):
        weights = [math.exp(value / temperature) for value in (1.5, 1.0, -0.75)]
        expected = [weight / sum(weights) for weight in weights]
        draw = gumbel_softmax(logits, noise, temperature=temperature)
        assert draw[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_cold_draw_is_one_number() -> None:
    draw = gumbel_softmax(torch.tensor([[0.3, 0.2, 0.1]]), torch.zeros(1, 3), temperature=1e-3)
    assert draw[0].tolist() == pytest.approx([1, 0, 0], abs=1e-6)


def test_straight_through_has_the_hard_value_and_the_soft_gradient() -> None:
    """d softmax_i / d logit_j = p_i (1[i=j] - p_j) / temperature; float32, 1e-6."""
    noise = torch.tensor([[0.1, -0.2, 0.4]])
    logits = torch.tensor([[0.2, 1.5, -0.3]], requires_grad=True)
    temperature = 0.7
    draw = gumbel_softmax(logits, noise, temperature=temperature, straight_through=True)
    assert draw[0].tolist() == pytest.approx([0, 1, 0], abs=1e-6)
    weights = torch.tensor([[2.0, -1.0, 0.5]])
    (draw * weights).sum().backward()
    p = torch.softmax((logits.detach() + noise) / temperature, dim=1)
    expected = p * (weights - (weights * p).sum()) / temperature
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, expected, atol=1e-6, rtol=0)


def test_largest_of_noisy_logits_is_a_draw_from_the_softmax() -> None:
    """Frequencies over 40,000 draws; three standard deviations are 0.0075 at most."""
    torch.manual_seed(0)
    logits = torch.tensor([0.5, -0.5, 0.0, 1.0])
    draws = (logits + gumbel_noise(torch.empty(40_000, 4))).argmax(1)
    frequencies = torch.bincount(draws, minlength=4) / 40_000
    torch.testing.assert_close(frequencies, torch.softmax(logits, 0), atol=0.0075, rtol=0)


def test_shapes_and_range_of_tokens() -> None:
    torch.manual_seed(0)
    model = DiscreteVAE(**TINY)
    pictures = torch.rand(2, 3, 16, 24)
    coding = model(pictures, temperature=1.0)
    assert coding.logits.shape == (2, 12, 4, 6)
    assert coding.reconstruction.shape == (2, 3, 16, 24)
    tokens = model.tokens(pictures)
    assert tokens.shape == (2, 4, 6)
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens, coding.logits.argmax(1))
    assert model.decode(tokens).shape == (2, 3, 16, 24)


def test_every_parameter_learns() -> None:
    torch.manual_seed(0)
    model = DiscreteVAE(**TINY)
    model(torch.rand(4, 3, 16, 16), temperature=1.0).reconstruction.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"stride": 12}, "stride=12: must be a power of two"),
        ({"stride": 1}, "stride=1: must be a power of two, 2 or more"),
        ({"vocabulary": 1}, "vocabulary=1: must be 2 or more"),
        ({"blocks": 0}, "blocks=0: must be 1 or more"),
        ({"std": 0.0}, r"std=0\.0: must be above 0"),
        ({"mean": [0.4, 0.5]}, "mean of 2 numbers: must be one, or one for each of 3"),
    ],
)
def test_impossible_arguments_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        DiscreteVAE(**{**TINY, **arguments})


def test_frame_that_the_stride_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match="frames of 18x16 pixels are no multiple of the tokenizer's stride 4"):
        DiscreteVAE(**TINY).tokens(torch.rand(1, 3, 18, 16))
