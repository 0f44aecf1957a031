"""The moving average against its closed form."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from videomaskfeat.engine.teacher import ExponentialMovingAverage
from videomaskfeat.errors import UserError


def test_average_of_a_line_closed_form() -> None:
    """From a_0 = 0 and a_k = d a_(k-1) + (1 - d) k follows a_n = n - d (1 - d^n) / (1 - d); float32: 1e-5."""
    model, decay, steps = nn.Linear(2, 1), 0.9, 40
    with torch.no_grad():
        model.weight.zero_()
    ema = ExponentialMovingAverage(model, decay=decay)
    for step in range(1, steps + 1):
        with torch.no_grad():
            model.weight.fill_(step)
        ema.update(model)
    expected = steps - decay * (1 - decay**steps) / (1 - decay)
    torch.testing.assert_close(ema.state_dict()["weight"], torch.full((1, 2), expected), rtol=1e-5, atol=0)


def test_buffers_are_copied() -> None:
    model = nn.BatchNorm1d(2)
    ema = ExponentialMovingAverage(model, decay=0.5)
    model.running_mean.fill_(8.0)
    model.num_batches_tracked.fill_(3)
    ema.update(model)
    assert ema.state_dict()["running_mean"].tolist() == [8.0, 8.0]
    assert ema.state_dict()["num_batches_tracked"].item() == 3


def test_averaged_weights_only_within_the_context() -> None:
    model = nn.Linear(1, 1)
    start = model.weight.item()
    ema = ExponentialMovingAverage(model, decay=0.5)
    with torch.no_grad():
        model.weight.add_(1.0)
    ema.update(model)
    with ema.averaged(model) as averaged:
        assert averaged.weight.item() == pytest.approx(start + 0.5)
    assert model.weight.item() == pytest.approx(start + 1.0)


def test_state_goes_on_where_it_was() -> None:
    model = nn.Linear(3, 3)
    one, two = (ExponentialMovingAverage(model, decay=0.9) for _ in range(2))
    with torch.no_grad():
        model.weight.mul_(2.0)
    one.update(model)
    two.load_state_dict(one.state_dict())
    for ema in (one, two):
        ema.update(model)
    assert torch.equal(one.state_dict()["weight"], two.state_dict()["weight"])


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_impossible_decay_is_refused(decay: float) -> None:
    with pytest.raises(UserError, match="must be at least 0 and less than 1"):
        ExponentialMovingAverage(nn.Linear(1, 1), decay=decay)


@pytest.mark.cuda
def test_average_on_a_gpu_stays_there_and_equals_the_cpus() -> None:
    torch.manual_seed(0)
    averages = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        model = nn.Linear(5, 4).to(device)
        ema = ExponentialMovingAverage(model, decay=0.9)
        for step in range(5):
            with torch.no_grad():
                model.weight.add_(step)
            ema.update(model)
        assert ema.state_dict()["weight"].device.type == device
        averages.append(ema.state_dict()["weight"].cpu())
    torch.testing.assert_close(*averages)
