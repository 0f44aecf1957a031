"""A training step of MViTv2-S, 16 frames of 224x224: target, forward, loss, backward.

``bench_step`` measures pre-training; ``bench_finetune_step`` measures fine-tuning in the same way.

Both sides have the same weights, and their predictions are compared before the timing. Each side runs in its
own process: ours without torch.compile (on the CPU it reuses the memory of freed tensors), the baseline as
plain torch. A third process, the baseline with reused memory, shows the effect of that alone. The steps of
the sides run in turn.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.baseline import PlainClassifier, PlainMaskFeat, plain_hog_target, plain_loss
from benchmarks.harness import (
    SIZES,
    Row,
    SideProcess,
    Size,
    extra_memory,
    full_float32,
    serve,
    size_name,
    synchronize,
)
from videomaskfeat.losses.labels import soft_cross_entropy
from videomaskfeat.losses.masked import masked_mse
from videomaskfeat.machine import keep_freed_memory
from videomaskfeat.models import create_model
from videomaskfeat.targets.hog import HogTarget

OURS, BASELINE, BASELINE_REUSING = SIDES = ("ours", "baseline", "baseline-keeping-memory")
PRECISIONS = SIZES["cpu"].precisions
PHASES = ("target", "forward", "backward")


class Pretraining:
    """Model, target and loss of a pre-training step.

    Args:
        size: size of the step.
        ours: whether they are from this package or plain.
    """

    def __init__(self, size: Size, *, ours: bool) -> None:
        self.model: nn.Module = create_model("maskfeat_mvitv2_s", **_arguments(size, q_pool_at=(1, 3)))
        self.make_target: Callable[[Tensor], Tensor] = HogTarget()
        self._loss: Callable[[Tensor, Tensor, Tensor], Tensor] = masked_mse
        if not ours:
            plain = PlainMaskFeat(depth=size.depth, grid=_grid(size))
            plain.load_ours(self.model.state_dict())
            self.model, self.make_target, self._loss = plain, plain_hog_target, plain_loss
        shape = size.batch, size.clip[0] // 2, size.clip[1] // 32, size.clip[2] // 32
        self._mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.4

    def predict(self, clips: Tensor) -> Tensor:
        """Predictions [B, t, h, w, K]."""
        return self.model(clips, self._mask.to(clips.device))

    def loss(self, predictions: Tensor, target: Tensor) -> Tensor:
        """The mean over hidden positions."""
        return self._loss(predictions, target, self._mask.to(target.device))


class FineTuning:
    """Model, target and loss of a fine-tuning step, without drop path, so that both sides are equal.

    Args:
        size: size of the step.
        ours: whether they are from this package or plain.
    """

    def __init__(self, size: Size, *, ours: bool) -> None:
        arguments = _arguments(size, q_pool_at=(1, 3, 14))
        self.model: nn.Module = create_model("maskfeat_mvitv2_s_classifier", classes=400, **arguments)
        self.loss: Callable[[Tensor, Tensor], Tensor] = soft_cross_entropy
        if not ours:
            plain = PlainClassifier(depth=size.depth, grid=_grid(size))
            plain.load_ours(self.model.state_dict())
            self.model, self.loss = plain, F.cross_entropy
        self._labels = torch.rand(size.batch, 400, generator=torch.Generator().manual_seed(1)).softmax(-1)

    def predict(self, clips: Tensor) -> Tensor:
        """Logits [B, L]."""
        return self.model(clips)

    def make_target(self, clips: Tensor) -> Tensor:
        """The soft labels, float [B, L]."""
        return self._labels.to(clips.device)


def _arguments(size: Size, *, q_pool_at: tuple[int, ...]) -> dict[str, Any]:
    """Arguments of our MViTv2-S for the size."""
    blocks_at = {"widen_at": (1, 3, 14), "q_pool_at": q_pool_at}
    cut = {name: tuple(block for block in blocks if block < size.depth) for name, blocks in blocks_at.items()}
    return {"depth": size.depth, "clip_size": size.clip, **cut}


def _grid(size: Size) -> tuple[int, int, int]:
    """Token grid after the stem."""
    return size.clip[0] // 2, size.clip[1] // 4, size.clip[2] // 4


TASKS: dict[str, type[Pretraining | FineTuning]] = {"pretrain": Pretraining, "finetune": FineTuning}


class Side:
    """One implementation of a task with its data; calling it runs one step."""

    def __init__(self, task: str, name: str, precision: str, device: str, size: Size) -> None:
        torch.manual_seed(0)
        self.work = TASKS[task](size, ours=name == OURS)
        self.work.model.to(device)
        self.device, self.precision = device, precision
        data = torch.Generator().manual_seed(0)  # the same for all sides
        self.clips = torch.randn(size.batch, 3, *size.clip, generator=data).to(device)

    def predict(self) -> Tensor:
        """Predictions for the clips."""
        kind = torch.device(self.device).type
        with torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.work.predict(self.clips)

    def __call__(self) -> dict[str, float]:
        """Run one step, and return the seconds of each phase."""
        marks = [self._now()]
        target = self.work.make_target(self.clips)
        marks.append(self._now())
        loss = self.work.loss(self.predict().float(), target)
        marks.append(self._now())
        loss.backward()
        marks.append(self._now())
        self.work.model.zero_grad(set_to_none=True)
        return {phase: marks[index + 1] - marks[index] for index, phase in enumerate(PHASES)}

    def _now(self) -> float:
        synchronize(self.device)
        return time.perf_counter()


def run(*, device: str, dry: bool = False) -> list[Row]:
    """Measure pre-training steps, their phases and their memory in both precisions."""
    return run_task("pretrain", device=device, dry=dry)


def run_task(task: str, *, device: str, dry: bool) -> list[Row]:
    """Measure the steps of a task of TASKS."""
    rows = []
    size = SIZES[size_name(device, dry)]
    names = SIDES if device == "cpu" else (OURS, BASELINE)
    for precision in size.precisions:
        sides = {
            name: SideProcess("benchmarks.bench_step", task, name, precision, device, size_name(device, dry))
            for name in names
        }
        try:
            memory = {name: side.request("memory") for name, side in sides.items()}
            _check_equal(sides, precision)
            seconds = _in_turns(sides, rounds=size.rounds)
        finally:
            for side in sides.values():
                side.close()
        rows += _rows(seconds, precision, device, size)
        name, target = f"peak memory of a step, {precision}", "<= 0.75 of the baseline"
        rows.append(Row(name, memory[OURS], memory[BASELINE], "MiB", target=target, note=_note(size)))
    return rows


def _note(size: Size) -> str:
    return f"batch {size.batch}"


def _in_turns(sides: dict[str, SideProcess], *, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Seconds of the phases of each round, after a warm-up round."""
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for _ in range(1 + rounds):
        for name, side in sides.items():
            seconds[name].append(side.request("step"))
    return {name: values[1:] for name, values in seconds.items()}


def _rows(seconds: dict[str, list[dict[str, float]]], precision: str, device: str, size: Size) -> list[Row]:
    def median(name: str, phases: tuple[str, ...]) -> float:
        return 1e3 * statistics.median(sum(each[phase] for phase in phases) for each in seconds[name])

    def row(title: str, baseline: str, phases: tuple[str, ...], target: str = "") -> Row:
        figures = median(OURS, phases), median(baseline, phases)
        return Row(f"{title}, {precision}", *figures, "ms", target=target, note=_note(size))

    rows = [row("step", BASELINE, PHASES, ">= 2x faster")]
    rows += [row(f"  {phase}", BASELINE, (phase,)) for phase in PHASES]
    if device == "cpu":
        rows.append(row("step, the baseline with reused memory", BASELINE_REUSING, PHASES))
    return rows


def _check_equal(sides: dict[str, SideProcess], precision: str) -> None:
    """Check that the predictions are equal: to 1e-4 in float32, to the noise of bfloat16 otherwise."""
    tolerance = 1e-4 if precision == "fp32" else 5e-2
    with tempfile.TemporaryDirectory() as folder:
        ours, *others = (
            torch.load(side.request(f"predict {Path(folder, name)}"), weights_only=True)
            for name, side in sides.items()
        )
    for other in others:
        torch.testing.assert_close(ours, other, atol=tolerance, rtol=0)


def _serve(task: str, name: str, precision: str, device: str, size: Size) -> None:
    """Answer "memory" (of the first step, MiB), "predict PATH" and "step" (seconds)."""
    if device == "cpu" and name != BASELINE:
        keep_freed_memory()
    side = Side(task, name, precision, device, size)

    def answer(line: str) -> Any:
        request, _, path = line.partition(" ")
        if request == "memory":
            return extra_memory(side, device)
        if request == "predict":
            with torch.no_grad(), full_float32():
                torch.save(side.predict().float().cpu(), path)
            return path
        return side()

    serve(answer)


def _main() -> None:
    parser = argparse.ArgumentParser(description="One side of the benchmark, which answers requests.")
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("precision", choices=PRECISIONS)
    parser.add_argument("device")
    parser.add_argument("size", choices=SIZES)
    options = parser.parse_args()
    _serve(options.task, options.side, options.precision, options.device, SIZES[options.size])


if __name__ == "__main__":
    _main()
