"""Batch normalization over processes, with and without gradients, against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.engine.processes import exit_codes_of_ranks
from videomaskfeat.engine import distributed
from videomaskfeat.errors import UserError
from videomaskfeat.models.batch_norm import BatchNorm, FeatureNorm


def test_batch_norm_equals_torchs() -> None:
    ours, theirs, features = BatchNorm(4), nn.BatchNorm1d(4), torch.randn(8, 4) * 3 + 1
    torch.testing.assert_close(ours(features), theirs(features))
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.eval()(features), theirs.eval()(features))


def test_batch_norm_of_a_single_clip_is_refused() -> None:
    with pytest.raises(UserError, match="batch normalization needs at least 2 clips per micro-batch, not 1"):
        BatchNorm(4)(torch.randn(1, 4))
    assert BatchNorm(4).eval()(torch.randn(1, 4)).shape == (1, 4)


def weighted(features: Tensor, norm: nn.Module) -> Tensor:
    """A loss per row; each row's gradient depends on all rows."""
    return (norm(features) * torch.arange(4.0)).square()


def normalize_rows(features: Tensor, output: Tensor, gradient: Tensor, running: Tensor) -> None:
    """Rank 0 has three rows, rank 1 one; each compares its result with that of a single process."""
    with distributed.process_group(torch.device("cpu")):
        rows = slice(0, 3) if distributed.rank() == 0 else slice(3, 4)
        norm, own = BatchNorm(4), features[rows].clone().requires_grad_()
        loss = weighted(own, norm)
        loss.sum().backward()
    torch.testing.assert_close(loss, output[rows], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(own.grad, gradient[rows], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(norm.running_var, running, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_batch_norm_over_processes_equals_one_process() -> None:
    features, norm = torch.randn(4, 4) * 2 + 1, nn.BatchNorm1d(4)
    whole = features.clone().requires_grad_()
    loss = weighted(whole, norm)
    loss.sum().backward()
    arguments = (features, loss.detach(), whole.grad, norm.running_var)
    assert exit_codes_of_ranks(2, normalize_rows, *arguments) == [0, 0]


def test_feature_norm_equals_torchs_batch_norm() -> None:
    ours, torchs = FeatureNorm(5), nn.BatchNorm1d(5, affine=False, eps=1e-6)
    for _ in range(3):
        features = 100 + torch.randn(4, 5)
        torch.testing.assert_close(ours(features), torchs(features), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.mean, torchs.running_mean)
    torch.testing.assert_close(ours.variance, torchs.running_var, atol=1e-4, rtol=1e-5)
    ours.eval()
    torchs.eval()
    torch.testing.assert_close(ours(features), torchs(features), atol=1e-4, rtol=1e-4)


def test_feature_norm_of_a_single_clip_is_refused() -> None:
    norm = FeatureNorm(5)
    with pytest.raises(UserError, match="needs at least 2 clips per micro-batch, not 1"):
        norm(torch.randn(1, 5))
    assert norm.eval()(torch.randn(1, 5)).abs().sum() > 0


def normalize_feature_rows(features: Tensor, expected: Tensor, mean: Tensor) -> None:
    """Ranks get 3 and 1 of four rows."""
    with distributed.process_group(torch.device("cpu")):
        rows = slice(0, 3) if distributed.rank() == 0 else slice(3, 4)
        norm = FeatureNorm(5)
        torch.testing.assert_close(norm(features[rows]), expected[rows], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(norm.mean, mean, atol=1e-6, rtol=0)


def test_feature_norm_over_processes_equals_one_process() -> None:
    torch.manual_seed(0)
    features, whole = torch.randn(4, 5), FeatureNorm(5)
    arguments = (features, whole(features), whole.mean)
    assert exit_codes_of_ranks(2, normalize_feature_rows, *arguments) == [0, 0]
