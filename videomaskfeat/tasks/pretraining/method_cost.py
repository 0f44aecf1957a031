"""What a training step of a method costs, and how much of it is making its target."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from videomaskfeat.config import PretrainConfig
from videomaskfeat.engine import distributed
from videomaskfeat.engine.threads import choose_threads
from videomaskfeat.memory import keep_freed_memory
from videomaskfeat.tasks.methods import build_method
from videomaskfeat.tasks.methods.method import Method
from videomaskfeat.tasks.run_folder import uses_bf16
from videomaskfeat.viz.comparison import TargetCost

TIMED_STEPS = 5
"""Steps of which the median counts; two come before them."""


def method_cost(config: PretrainConfig, *, steps: int = TIMED_STEPS) -> TargetCost:
    """Time steps on one batch of the config's training list, in this process, without data and optimiser.

    Args:
        config: of a pre-training; its run folder is not touched.
        steps: of which the median counts; two more come before them.

    Raises:
        UserError: a setting of the config is wrong.
    """
    method, batch, device = method_on_batch(config)
    bf16 = uses_bf16(config.run.precision, device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss, _ = method.loss(method.student, batch)
        loss.backward()
        method.student.zero_grad(set_to_none=True)

    def target() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            method.make_target(batch)

    if device.type == "cpu":
        choose_threads(step)
    return TargetCost(
        step_ms=_median_ms(step, device, steps),
        clips=config.optim.batch_size // config.optim.accumulate,
        target_ms=_median_ms(target, device, steps),
        parameters=sum(part.numel() for part in method.student.parameters() if part.requires_grad),
    )


def method_on_batch(config: PretrainConfig) -> tuple[Method, Any, torch.device]:
    """The config's method with fresh weights, and one batch of its training list, on the config's device.

    Raises:
        UserError: a setting of the config is wrong.
    """
    device = distributed.choose_device(config.run.device)
    if device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(config.run.seed)
    config = replace(config, data=replace(config.data, workers=0))
    method = build_method(config)
    method.student.to(device)
    method.to(device)
    with method.training_loader(rank=0, world_size=1) as loader:
        batch = next(iter(loader.epoch(0))).to(device)
    return method, batch, device


def _median_ms(work: Callable[[], None], device: torch.device, steps: int) -> float:
    """Milliseconds of a call, the median of several after two that do not count."""
    times = []
    for _ in range(2 + steps):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(1e3 * (time.perf_counter() - start))
    return sorted(times[2:])[steps // 2]
