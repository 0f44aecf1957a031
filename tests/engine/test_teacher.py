"""Averages, teachers, ramps, centers and the stop of collapsed runs against closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from tests.engine.processes import exit_codes_of_ranks
from tests.reference import self_distillation as reference
from videomaskfeat.engine import distributed
from videomaskfeat.engine.average import ExponentialMovingAverage, Teacher
from videomaskfeat.engine.optim import CosineRamp, LinearRamp
from videomaskfeat.engine.teacher import (
    CollapseStop,
    Monitor,
    RunningCenter,
    fit_momentum,
    mean_of_rows,
    start_share,
    sum_of_rows,
)
from videomaskfeat.errors import RunFailed, UserError


def test_cosine_ramp_is_byols() -> None:
    """1 - (1 - m) (cos(pi p) + 1) / 2, which is m at the start, half way at a half, 1 at the end."""
    ramp = CosineRamp(0.996, 1.0)
    for progress in (0.0, 0.25, 0.5, 0.9, 1.0):
        expected = 1 - (1 - 0.996) * (math.cos(math.pi * progress) + 1) / 2
        assert ramp(progress) == pytest.approx(expected, abs=1e-12)
    assert (ramp(0.0), ramp(0.5), ramp(1.0)) == pytest.approx((0.996, 0.998, 1.0), abs=1e-12)


def test_linear_ramp_stays_at_its_end() -> None:
    ramp = LinearRamp(0.04, 0.07, 0.25)
    values = [ramp(progress) for progress in (0.0, 0.125, 0.25, 0.7, 1.0)]
    assert values == pytest.approx([0.04, 0.055, 0.07, 0.07, 0.07], abs=1e-12)
    assert LinearRamp(0.04, 0.07, 0.0)(0.0) == 0.07
    with pytest.raises(UserError, match=r"the warm-up, 1.5 of the training, must be between 0 and 1"):
        LinearRamp(0.0, 1.0, 1.5)


def test_teacher_of_a_line_closed_form() -> None:
    """From w_0 = 0 and w_n = m w_(n-1) + (1 - m) n follows w_n = n - m (1 - m^n) / (1 - m); float32: 1e-5."""
    student, momentum, steps = nn.Linear(2, 1), 0.9, 40
    with torch.no_grad():
        student.weight.zero_()
    teacher = Teacher(student, momentum=lambda progress: momentum)
    for step in range(1, steps + 1):
        with torch.no_grad():
            student.weight.fill_(step)
        teacher.follow(student, step / steps)
    expected = steps - momentum * (1 - momentum**steps) / (1 - momentum)
    torch.testing.assert_close(teacher.module.weight, torch.full((1, 2), expected), rtol=1e-5, atol=0)


def test_teacher_follows_its_schedule_and_stands_still_at_one() -> None:
    student = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        student.weight.fill_(0.0)
    teacher = Teacher(student, momentum=LinearRamp(0.0, 1.0))
    with torch.no_grad():
        student.weight.fill_(8.0)
    teacher.follow(student, 0.25)  # 0.75 of 8
    assert teacher.module.weight.item() == pytest.approx(6.0)
    with torch.no_grad():
        student.weight.fill_(-100.0)
    teacher.follow(student, 1.0)
    assert teacher.module.weight.item() == pytest.approx(6.0)


@pytest.mark.parametrize("steps", [1, 60, 1440])
def test_start_share_is_the_weight_of_the_initial_network(steps: int) -> None:
    """m^n for a constant momentum; otherwise what a teacher of 1 keeps of it beside a student of 0: 1e-9."""
    assert start_share(lambda progress: 0.99, steps) == pytest.approx(0.99**steps, rel=1e-9)
    student = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        student.weight.fill_(1.0)
    teacher = Teacher(student, momentum=CosineRamp(0.99, 1.0))
    with torch.no_grad():
        student.weight.fill_(0.0)
    for step in range(steps):
        teacher.follow(student, step / steps)
    assert start_share(teacher.momentum, steps) == pytest.approx(teacher.module.weight.item(), rel=1e-9)


@pytest.mark.parametrize("ramp", [CosineRamp, LinearRamp])
@pytest.mark.parametrize("steps", [1, 10, 300, 5000])
def test_fitted_momentum_is_the_highest_that_leaves_little_of_the_start(ramp: Any, steps: int) -> None:
    """In steps of 0.001; of many steps, (1 - m) n / 2 = ln 10^4, both for half a cosine and a line."""

    def left(momentum: float) -> float:
        return start_share(ramp(momentum, 1.0), steps)

    fitted = fit_momentum(lambda start: ramp(start, 1.0), 0.999, steps)
    assert left(fitted) <= 1e-4 < left(fitted + 0.002)
    if steps >= 300:
        assert 1 - fitted == pytest.approx(2 * math.log(1e4) / steps, abs=0.002)


def test_fitted_momentum_of_a_long_run_is_the_published_one() -> None:
    assert fit_momentum(lambda start: CosineRamp(start, 1.0), 0.996, 100_000) == 0.996


def test_teacher_learns_nothing_and_copies_buffers() -> None:
    student = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    teacher = Teacher(student, momentum=CosineRamp(0.5, 1.0))
    assert not teacher.module.training
    assert not any(parameter.requires_grad for parameter in teacher.module.parameters())
    assert all(parameter.requires_grad for parameter in student.parameters())
    inputs = torch.randn(4, 3, requires_grad=True)
    student(inputs).sum().backward()
    assert all(parameter.grad is None for parameter in teacher.module.parameters())
    teacher.follow(student, 0.5)
    assert torch.equal(teacher.module[1].running_mean, student[1].running_mean)
    assert student[1].running_mean.abs().sum() > 0


@pytest.mark.parametrize("momentum", [-0.1, 1.1])
def test_impossible_momentum_is_refused(momentum: float) -> None:
    with pytest.raises(
        UserError, match=r"the teacher's momentum .* must be between 0 and 1; it usually goes"
    ):
        Teacher(nn.Linear(1, 1), momentum=CosineRamp(0.5, momentum))


def test_center_is_the_moving_average_of_the_steps_means() -> None:
    """Against a loop over rows; steps of several micro-batches of unequal size; float32: 1e-6."""
    generator = torch.Generator().manual_seed(0)
    steps = [[torch.randn(n, 5, generator=generator) for n in sizes] for sizes in ((2, 3), (4,), (1, 1, 2))]
    center = RunningCenter(5, momentum=0.9)
    for batches in steps:
        center.update(mean_of_rows([sum_of_rows(part) for part in batches]))
    expected = reference.centered([torch.cat(batches).tolist() for batches in steps], 0.9)
    torch.testing.assert_close(center.value, torch.tensor(expected), atol=1e-6, rtol=1e-6)
    again = RunningCenter(5)
    again.load_state_dict(center.state_dict())
    assert torch.equal(again.value, center.value)


def test_center_of_a_constant_closed_form() -> None:
    """c_n = (1 - m^n) x."""
    center = RunningCenter(1, momentum=0.9)
    for _ in range(7):
        center.update(mean_of_rows([sum_of_rows(torch.full((3, 1), 2.0, dtype=torch.bfloat16))]))
    assert center.value.item() == pytest.approx(2 * (1 - 0.9**7), rel=1e-5)


def update_on_a_rank(rows: torch.Tensor, expected: torch.Tensor) -> None:
    """Rank 0 sees the first row, rank 1 the others; the center is that of all."""
    with distributed.process_group(torch.device("cpu")):
        center = RunningCenter(rows.shape[1])
        center.update(mean_of_rows([sum_of_rows(rows[:1] if distributed.rank() == 0 else rows[1:])]))
    torch.testing.assert_close(center.value, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.slow
def test_center_is_the_same_on_all_ranks() -> None:
    rows = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    assert exit_codes_of_ranks(2, update_on_a_rank, rows, 0.1 * rows.mean(dim=0)) == [0, 0]


def test_mean_weighs_rows_alike() -> None:
    batches = (torch.tensor([[1.0, 0.0]]), torch.tensor([[4.0, 3.0], [4.0, 3.0]]))
    assert mean_of_rows([sum_of_rows(part) for part in batches]).tolist() == [3.0, 2.0]


def collapse_stop(**arguments: float) -> CollapseStop:
    monitor = Monitor("feature_std", 0.1, "all clips look alike")
    return CollapseStop(
        (monitor,), grace=arguments.pop("grace", 0.0), remedy="do something else", **arguments
    )


def test_collapse_ends_the_run_with_monitor_value_limit_and_remedy() -> None:
    stop = collapse_stop(smoothing=0.5)
    stop.watch({"feature_std": 0.2}, 0.1)
    stop.watch({"feature_std": 0.04}, 0.2)  # the average is 0.12
    with pytest.raises(
        RunFailed,
        match=r"step 3: the features have collapsed: feature_std is 0.08, below its limit of 0.1 \(all clips "
        r"look alike\); do something else",
    ):
        stop.watch({"feature_std": 0.04}, 0.3)


def test_the_start_of_a_run_is_not_judged() -> None:
    stop = collapse_stop(grace=0.5)
    stop.watch({"feature_std": 0.0}, 0.49)
    stop.watch({"feature_std": 0.2}, 0.5)  # and what came before does not enter the average
    with pytest.raises(RunFailed, match="step 3"):
        stop.watch({"feature_std": -2.0}, 0.6)


def test_a_limit_of_zero_never_stops() -> None:
    stop = CollapseStop((Monitor("feature_std", 0.0, ""),), grace=0.0, remedy="")
    stop.watch({"feature_std": 0.0}, 1.0)
    stop.watch({"feature_std": -1e-6}, 1.0)  # a difference of entropies, rounded


def test_collapse_stop_goes_on_where_it_was() -> None:
    one, two = collapse_stop(smoothing=0.5), collapse_stop(smoothing=0.5)
    one.watch({"feature_std": 0.3}, 0.1)
    two.load_state_dict(one.state_dict())
    two.watch({"feature_std": 0.0}, 0.2)  # 0.15
    with pytest.raises(RunFailed, match=r"step 3: .* is 0.075"):
        two.watch({"feature_std": 0.0}, 0.3)


def test_impossible_limits_are_refused() -> None:
    with pytest.raises(UserError, match="the limit -1 of feature_std must not be negative"):
        Monitor("feature_std", -1, "")
    with pytest.raises(UserError, match="grace=2 must be a fraction of the training, between 0 and 1"):
        collapse_stop(grace=2.0)


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
