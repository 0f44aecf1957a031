"""``plan``: duration and memory of a training on this machine, from a few measured steps."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import torch

from videomaskfeat.data.memory import MemoryNeed
from videomaskfeat.durations import duration_text
from videomaskfeat.engine import distributed
from videomaskfeat.engine.log import peak_memory_mb
from videomaskfeat.engine.memory import explained_out_of_memory
from videomaskfeat.engine.run import Run, check_config
from videomaskfeat.engine.threads import LONGEST_ON_CPU, nano_command, step_once
from videomaskfeat.errors import UserError, counted
from videomaskfeat.inference.multiview import distinct_paths
from videomaskfeat.machine import available_cores, available_memory

_STEPS = 6  # measured at most, after the first one
_MEASURE_SECONDS = 10.0  # no further step is measured after this time
_LONG_STEP = 2.0  # seconds; a longer step of few clips is scaled to the batch size
_WAITING = 0.2  # share of a step; longer waits for data are reported
_MEMORY_SHARE = 0.9  # of the free memory


@dataclass(frozen=True)
class TrainingPlan:
    """The measured plan of a training.

    Attributes:
        lines: model, clips, data, batch and schedule.
        config: the config.
        device: the device.
        measured_clips: clips per measured step.
        clips: clips per step of the training, in this process.
        micro_clips: clips per micro-batch.
        measured_seconds: median duration of a measured step with its data.
        waiting: share of this time spent waiting for data, 0..1; 0 with ``data.cache=memory``.
        steps: steps of the whole training.
        fixed_mb, clip_mb: memory before the first step, and per clip of a micro-batch [MB, 10^6 bytes].
        free_mb: memory that is free on the device; None if unknown.
        usual_steps: steps that small models usually need for a useful result; 0: unknown.
        cache: memory of the decoded videos; None without ``data.cache=memory``.
    """

    lines: list[str]
    config: Any
    device: torch.device
    measured_clips: int
    clips: int
    micro_clips: int
    measured_seconds: float
    waiting: float
    steps: int
    fixed_mb: float
    clip_mb: float
    free_mb: float | None
    usual_steps: int = 0
    cache: MemoryNeed | None = None

    @property
    def step_seconds(self) -> float:
        """Seconds per step of the training."""
        return self.measured_seconds * self.clips / self.measured_clips

    @property
    def computing_seconds(self) -> float:
        """Seconds per step of the training without the wait for data."""
        return self.step_seconds * (1 - self.waiting)

    @property
    def seconds(self) -> float:
        """Seconds of the whole training, without evaluations and checkpoints."""
        return self.step_seconds * self.steps

    @property
    def memory_mb(self) -> float:
        """Memory of a step of the training."""
        return self.fixed_mb + self.clip_mb * self.micro_clips

    def advice(self) -> list[str]:
        """What to change; empty if nothing stands out."""
        config, lines = self.config, []
        if self.cache is not None and not self.cache.fits:
            lines.append(self.cache.problem)
        if self.free_mb is not None and self.memory_mb > _MEMORY_SHARE * self.free_mb:
            room = max(_MEMORY_SHARE * self.free_mb - self.fixed_mb, 0.0)
            fit = max(int(room / self.clip_mb), 1) if self.clip_mb else self.micro_clips
            accumulate = config.optim.accumulate * math.ceil(self.micro_clips / fit)
            lines.append(
                f"the memory is too small: set optim.accumulate={accumulate} (the same batch in smaller "
                "micro-batches) or run.activation_checkpointing=true"
            )
        if self.steps < self.usual_steps and not config.model.weights:
            epochs = math.ceil(config.optim.epochs * self.usual_steps / self.steps)
            lines.append(
                f"{counted(self.steps, 'step')} may be too few: small models needed about {self.usual_steps} "
                f"for a loss clearly below the best constant prediction; optim.epochs={epochs}"
            )
        if self.waiting > _WAITING:
            lines.append(
                f"{100 * self.waiting:.0f} % of a step waits for data: raise data.workers (now "
                f"{config.data.workers}, {counted(available_cores(), 'core')}), shrink the videos to a short "
                "side of 256 pixels, or set data.cache=memory for a small list"
            )
        if self.device.type == "cuda":
            if not config.run.compile:
                lines.append("run.compile=true may be faster")
            others = torch.cuda.device_count() - distributed.world_size()
            if others > 0:
                lines.append(
                    f"{counted(others, 'more GPU')}: torchrun --nproc-per-node={torch.cuda.device_count()}"
                )
        elif self.seconds > LONGEST_ON_CPU:
            lines.append(
                nano_command(config)
                or "without a GPU, use a smaller model, smaller clips, or fewer epochs (optim.epochs)"
            )
        return lines

    def text(self) -> str:
        """The plan as text."""
        scaled = ""
        if self.measured_clips != self.clips:
            scaled = f", scaled from {duration_text(self.measured_seconds)} per {self.measured_clips}"
        free = "" if self.free_mb is None else f", {self.free_mb / 1e3:.1f} GB free"
        lines = [
            *self.lines,
            f"measured  {duration_text(self.step_seconds)} per step of {self.clips}{scaled}; "
            + (
                "decoding, once before the first step, is not included"
                if _in_memory(self.config)
                else f"{100 * self.waiting:.0f} % waiting for data"
            ),
            f"time      {duration_text(self.seconds)} for {counted(self.steps, 'step')}, without evaluations",
            f"memory    about {self.memory_mb / 1e3:.1f} GB{free}",
        ]
        if self.cache is not None:
            lines.append(f"cache     {self.cache}")
        return "\n".join([*lines, *(f"advice    {line}" for line in self.advice())])


def plan_training(config: Any, build: Callable[[Any, torch.device], Run]) -> TrainingPlan:
    """Measure a few steps of a training; nothing is written, and no weights are kept.

    On a CPU, steps of few clips are measured and scaled to the batch size if they take long.

    Args:
        config: config of the training.
        build: the job's class of `Run`.

    Raises:
        UserError: the config, the lists, the videos or the weights are wrong.
    """
    check_config(config)
    device = distributed.choose_device(config.run.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # as the training does: kernels and their events use the current device
    with explained_out_of_memory(config, device):
        return _plan_on(device, config, build)


def _plan_on(device: torch.device, config: Any, build: Callable[[Any, torch.device], Run]) -> TrainingPlan:
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    full = config.optim.batch_size // config.optim.accumulate
    sizes = [full]
    while device.type == "cpu" and sizes[0] % 4 == 0 and sizes[0] > 8:
        sizes.insert(0, sizes[0] // 4)
    training = build(config, device)
    with closing(training.loader):
        lines = [*training.plan(), *training.plan_of_training()]
        steps = training.total_steps
        cache = None
        if _in_memory(config):
            cache = MemoryNeed.estimate(distinct_paths(training.video_lists()), config.data.reader)
    for size in sizes:
        optim = replace(config.optim, batch_size=size, accumulate=1)
        training = build(replace(config, optim=optim), device)
        with closing(training.loader):
            before = peak_memory_mb(device)
            times, waits = _measure(training)
        if _in_memory(config):  # a step of the training waits for no decoder
            times, waits = [one - wait for one, wait in zip(times, waits, strict=True)], [0.0]
        if statistics.median(times) > _LONG_STEP:
            break
    return TrainingPlan(
        lines=lines,
        config=config,
        device=device,
        measured_clips=size,
        clips=config.optim.batch_size,
        micro_clips=full,
        measured_seconds=statistics.median(times),
        waiting=sum(waits) / sum(times),
        steps=steps,
        fixed_mb=before,
        clip_mb=max(peak_memory_mb(device) - before, 0.0) / size,
        free_mb=_free_mb(device),
        usual_steps=training.usual_steps,
        cache=cache,
    )


def _in_memory(config: Any) -> bool:
    """Whether the training decodes its videos into memory first; detection cannot."""
    return getattr(config.data, "cache", "none") == "memory"


def _measure(training: Run) -> tuple[list[float], list[float]]:
    """Seconds of each step, and of these the wait for data; without the first step if there are others."""
    times, waits = list[float](), list[float]()
    training.model.train()
    with closing(training.loader.epoch(0)) as batches:
        started = time.perf_counter()
        for batch in batches:
            waits.append(time.perf_counter() - started)
            step_once(training, [batch.to(training.device)])
            if training.device.type == "cuda":
                torch.cuda.synchronize(training.device)
            times.append(time.perf_counter() - started)
            if len(times) > _STEPS or sum(times) > _MEASURE_SECONDS:
                break
            started = time.perf_counter()
    if not times:
        raise UserError("the list has fewer videos than a batch; lower optim.batch_size")
    first = 1 if len(times) > 1 else 0
    return times[first:], waits[first:]


def _free_mb(device: torch.device) -> float | None:
    if device.type == "cuda":
        return (torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)) / 1e6
    free = available_memory()
    return None if free is None else free / 1e6
