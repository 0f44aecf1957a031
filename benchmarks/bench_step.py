"""A pre-training step of MViTv2-S, 16 frames of 224x224, batch 2: target, forward, loss, backward.

Both sides hold the same weights, and their predictions are compared before anything is timed. Each runs in a
process of its own, as the package runs (on the CPU it keeps the memory of freed tensors) and as plain torch
does; a third process, the baseline with memory kept, shows what that alone brings. The steps go in turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.baseline import PlainMaskFeat, plain_hog_target, plain_loss
from benchmarks.harness import Row, extra_memory, synchronise
from videomaskfeat.engine.memory import keep_freed_memory
from videomaskfeat.losses import masked_mse
from videomaskfeat.models import create_model
from videomaskfeat.targets.hog import HogTarget

BATCH = 2
OURS, BASELINE, BASELINE_KEEPING = SIDES = ("ours", "baseline", "baseline-keeping-memory")
PRECISIONS = ("fp32", "bf16")
PARTS = ("target", "forward", "backward")


class Side:
    """One implementation on given data; calling it runs one step."""

    def __init__(self, name: str, precision: str, device: str) -> None:
        torch.manual_seed(0)
        model: nn.Module = create_model("maskfeat_mvitv2_s")
        self.target: Callable[[Tensor], Tensor] = HogTarget()
        self.loss: Callable[[Tensor, Tensor, Tensor], Tensor] = masked_mse
        if name != OURS:
            plain = PlainMaskFeat()
            plain.load_ours(model.state_dict())
            model = plain
            self.target, self.loss = plain_hog_target, plain_loss
        self.model = model.to(device)
        self.device, self.precision = device, precision
        data = torch.Generator().manual_seed(0)  # the same for all sides
        self.clips = torch.randn(BATCH, 3, 16, 224, 224, generator=data).to(device)
        self.mask = (torch.rand(BATCH, 8, 7, 7, generator=data) < 0.4).to(device)

    def predict(self) -> Tensor:
        """Predictions [B, t, h, w, K]."""
        kind = torch.device(self.device).type
        with torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.model(self.clips, self.mask)

    def __call__(self) -> dict[str, float]:
        """One step; returns the seconds of each part."""
        marks = [self._now()]
        target = self.target(self.clips)
        marks.append(self._now())
        loss = self.loss(self.predict(), target, self.mask)
        marks.append(self._now())
        loss.backward()
        marks.append(self._now())
        self.model.zero_grad(set_to_none=True)
        return {part: marks[index + 1] - marks[index] for index, part in enumerate(PARTS)}

    def _now(self) -> float:
        synchronise(self.device)
        return time.perf_counter()


class SideProcess:
    """A side in a process of its own, asked over its standard streams (see :func:`_serve`)."""

    def __init__(self, name: str, precision: str, device: str) -> None:
        command = [sys.executable, "-m", "benchmarks.bench_step", name, precision, device]
        root = Path(__file__).resolve().parents[1]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, cwd=root, stdin=pipe, stdout=pipe, text=True)

    def ask(self, request: str) -> Any:
        """Send one line and wait for the answer."""
        streams = self._process
        assert streams.stdin is not None
        assert streams.stdout is not None
        streams.stdin.write(request + "\n")
        streams.stdin.flush()
        return json.loads(streams.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def run(*, device: str) -> list[Row]:
    """Steps and their parts in both precisions, and memory."""
    rows = []
    for precision in PRECISIONS:
        sides = {name: SideProcess(name, precision, device) for name in SIDES}
        memory = {name: side.ask("memory") for name, side in sides.items()}
        _check_equal(sides, precision)
        seconds = _in_turns(sides, rounds=5 if device == "cpu" else 30)
        for side in sides.values():
            side.close()
        rows += _rows(seconds, precision, device)
        name, target = f"peak memory of a step, {precision}", "<= 0.75 of the baseline"
        rows.append(Row(name, memory[OURS], memory[BASELINE], "MiB", target=target, note=f"batch {BATCH}"))
    return rows


def _in_turns(sides: dict[str, SideProcess], *, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Seconds of the parts of each round, after one that does not count."""
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for _ in range(1 + rounds):
        for name, side in sides.items():
            seconds[name].append(side.ask("step"))
    return {name: values[1:] for name, values in seconds.items()}


def _rows(seconds: dict[str, list[dict[str, float]]], precision: str, device: str) -> list[Row]:
    def median(name: str, parts: tuple[str, ...]) -> float:
        return 1e3 * statistics.median(sum(each[part] for part in parts) for each in seconds[name])

    def row(title: str, baseline: str, parts: tuple[str, ...], target: str = "") -> Row:
        figures = median(OURS, parts), median(baseline, parts)
        return Row(f"{title}, {precision}", *figures, "ms", target=target, note=f"batch {BATCH}")

    rows = [row("step", BASELINE, PARTS, ">= 2x faster")]
    rows += [row(f"  {part}", BASELINE, (part,)) for part in PARTS]
    if device == "cpu":
        rows.append(row("step, the baseline keeping freed memory too", BASELINE_KEEPING, PARTS))
    return rows


def _check_equal(sides: dict[str, SideProcess], precision: str) -> None:
    """The sides predict the same: to 1e-4 in float32, to bfloat16's own noise otherwise."""
    tolerance = 1e-4 if precision == "fp32" else 5e-2
    with tempfile.TemporaryDirectory() as folder:
        ours, *others = (
            torch.load(side.ask(f"predict {Path(folder, name)}"), weights_only=True)
            for name, side in sides.items()
        )
    for other in others:
        torch.testing.assert_close(ours, other, atol=tolerance, rtol=0)


def _serve(name: str, precision: str, device: str) -> None:
    """Answer requests, one a line: "memory" (of the first step, MiB), "predict PATH" and "step" (seconds)."""
    if device == "cpu" and name != BASELINE:
        keep_freed_memory()
    side = Side(name, precision, device)
    for line in sys.stdin:
        request, _, path = line.strip().partition(" ")
        if request == "memory":
            answer: Any = extra_memory(side, device)
        elif request == "predict":
            with torch.no_grad():
                torch.save(side.predict().float().cpu(), path)
            answer = path
        else:
            answer = side()
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _main() -> None:
    parser = argparse.ArgumentParser(description="One side of the benchmark; it waits for requests.")
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("precision", choices=PRECISIONS)
    parser.add_argument("device")
    options = parser.parse_args()
    _serve(options.side, options.precision, options.device)


if __name__ == "__main__":
    _main()
