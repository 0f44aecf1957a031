"""Heads of self-distillation, and batch normalisation over processes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.engine.processes import exit_codes_of_ranks
from videomaskfeat.engine import distributed
from videomaskfeat.errors import UserError
from videomaskfeat.models.layers import BatchNorm
from videomaskfeat.models.projection import Projector, PrototypeHead

SMALL = {"prototypes": 10, "hidden_width": 8, "bottleneck": 4}


def test_prototype_head_gives_cosines_whatever_the_lengths() -> None:
    """Against the cosine by definition; float32, 1e-6."""
    head = PrototypeHead(6, **SMALL)
    features = torch.randn(2, 3, 6)
    cosines = head(features)
    hidden = head.perceptron(features)
    expected = F.cosine_similarity(hidden[..., None, :], head.directions, dim=-1)
    torch.testing.assert_close(cosines, expected, atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        head.directions.mul_(torch.rand(10, 1) * 5 + 0.1)  # the gain of a prototype is always 1
    torch.testing.assert_close(head(features), cosines, atol=1e-6, rtol=1e-5)


def test_prototype_head_has_the_layers_of_the_paper() -> None:
    shapes = [tuple(p.shape) for p in PrototypeHead(384).parameters() if p.ndim == 2]
    assert shapes == [(8192, 256), (2048, 384), (2048, 2048), (256, 2048)]
    assert len([m for m in PrototypeHead(4, **SMALL).perceptron if isinstance(m, nn.GELU)]) == 2


def test_prototypes_start_as_a_linear_layers_rows_so_that_steps_turn_them() -> None:
    """Uniform within 1/sqrt(bottleneck): rows of length sqrt(1/3), however wide; 4096 rows, 1 %."""
    torch.manual_seed(0)
    rows = PrototypeHead(4, prototypes=4096, hidden_width=4, bottleneck=64).directions
    assert rows.abs().max() <= 1 / 8
    assert rows.norm(dim=1).mean().item() == pytest.approx(3**-0.5, rel=0.01)


def test_prototypes_that_are_not_learnt_get_a_gradient_of_zero_and_the_rest_its_own() -> None:
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
    """The cosines are float32: they have far more values than bfloat16 knows between -1 and 1."""
    head = PrototypeHead(6, prototypes=500, hidden_width=8, bottleneck=4)
    with torch.autocast("cpu", torch.bfloat16):
        cosines = head(torch.randn(4, 6))
    assert cosines.dtype == torch.float32
    assert not torch.equal(cosines, cosines.bfloat16().float())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"prototypes": 1}, "prototypes 1: must be at least 2"), ({"layers": 0}, "layers 0 must be positive")],
)
def test_impossible_heads_are_refused(arguments: dict[str, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        PrototypeHead(6, **{**SMALL, **arguments})


def test_projector_is_linear_norm_relu_linear() -> None:
    projector, features = Projector(5, hidden_width=7, out_width=3), torch.randn(6, 5)
    hidden = F.batch_norm(projector.fc1(features), None, None, training=True)
    torch.testing.assert_close(projector(features), projector.fc2(F.relu(hidden)), atol=1e-6, rtol=1e-5)
    with pytest.raises(UserError, match="hidden_width 0 must be positive"):
        Projector(5, hidden_width=0)


def test_batch_norm_is_torchs_own_in_training_and_evaluation() -> None:
    ours, theirs, features = BatchNorm(4), nn.BatchNorm1d(4), torch.randn(8, 4) * 3 + 1
    torch.testing.assert_close(ours(features), theirs(features))
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.eval()(features), theirs.eval()(features))


def test_batch_norm_of_a_single_clip_is_refused() -> None:
    with pytest.raises(UserError, match="batch normalization of a single clip leaves nothing of it; use at"):
        BatchNorm(4)(torch.randn(1, 4))
    assert BatchNorm(4).eval()(torch.randn(1, 4)).shape == (1, 4)


def weighted(features: Tensor, norm: nn.Module) -> Tensor:
    """A loss a row, of which each row's gradient depends on all rows."""
    return (norm(features) * torch.arange(4.0)).square()


def normalise_a_share(features: Tensor, output: Tensor, gradient: Tensor, running: Tensor) -> None:
    """Rank 0 has three rows and rank 1 one; each compares its part with what one process computes of all."""
    with distributed.process_group(torch.device("cpu")):
        rows = slice(0, 3) if distributed.rank() == 0 else slice(3, 4)
        norm, own = BatchNorm(4), features[rows].clone().requires_grad_()
        loss = weighted(own, norm)
        loss.sum().backward()
    torch.testing.assert_close(loss, output[rows], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(own.grad, gradient[rows], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(norm.running_var, running, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_batch_norm_over_processes_equals_one_process_gradients_included() -> None:
    features, norm = torch.randn(4, 4) * 2 + 1, nn.BatchNorm1d(4)
    whole = features.clone().requires_grad_()
    loss = weighted(whole, norm)
    loss.sum().backward()
    arguments = (features, loss.detach(), whole.grad, norm.running_var)
    assert exit_codes_of_ranks(2, normalise_a_share, *arguments) == [0, 0]
