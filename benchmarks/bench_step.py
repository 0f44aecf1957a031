"""A pre-training step of MViTv2-S, 16 frames of 224x224, batch 2: target, forward, loss, backward.

Both sides hold the same weights, and their predictions and losses are compared before anything is timed. Peak
memory is measured in a process of its own for each side.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.baseline import PlainMaskFeat, plain_hog_target, plain_loss
from benchmarks.harness import Row, alternate, extra_memory, synchronise
from videomaskfeat.losses import masked_mse
from videomaskfeat.models import create_model
from videomaskfeat.targets.hog import HogTarget

BATCH = 2
SIDES = ("ours", "baseline")
PRECISIONS = ("fp32", "bf16")


class Side:
    """One implementation on given data; calling it runs one step and notes how long each part took."""

    def __init__(self, name: str, precision: str, device: str) -> None:
        torch.manual_seed(0)
        model: nn.Module = create_model("maskfeat_mvitv2_s")
        self.target: Callable[[Tensor], Tensor] = HogTarget()
        self.loss: Callable[[Tensor, Tensor, Tensor], Tensor] = masked_mse
        if name == "baseline":
            plain = PlainMaskFeat()
            plain.load_ours(model.state_dict())
            model = plain
            self.target, self.loss = plain_hog_target, plain_loss
        self.model = model.to(device)
        self.device, self.precision = device, precision
        data = torch.Generator().manual_seed(0)  # the same for both sides
        self.clips = torch.randn(BATCH, 3, 16, 224, 224, generator=data).to(device)
        self.mask = (torch.rand(BATCH, 8, 7, 7, generator=data) < 0.4).to(device)
        self.parts: dict[str, list[float]] = {"target": [], "forward": [], "backward": []}

    def predict(self) -> Tensor:
        """Predictions [B, t, h, w, K]."""
        kind = torch.device(self.device).type
        with torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.model(self.clips, self.mask)

    def __call__(self) -> float:
        """One step; returns the loss."""
        marks = [self._now()]
        target = self.target(self.clips)
        marks.append(self._now())
        loss = self.loss(self.predict(), target, self.mask)
        marks.append(self._now())
        loss.backward()
        marks.append(self._now())
        self.model.zero_grad(set_to_none=True)
        for part, start, end in zip(self.parts, marks[:-1], marks[1:], strict=True):
            self.parts[part].append(end - start)
        return loss.item()

    def _now(self) -> float:
        synchronise(self.device)
        return time.perf_counter()


def run(*, device: str) -> list[Row]:
    """Steps and their parts in both precisions, then memory."""
    rows = []
    for precision in PRECISIONS:
        sides = {name: Side(name, precision, device) for name in SIDES}
        _check_equal(sides, precision)
        rounds = 5 if device == "cpu" else 30
        seconds = alternate(dict(sides), rounds=rounds, device=device)
        rows.append(_row(f"step, {precision}", seconds["ours"], seconds["baseline"], ">= 2x faster"))
        for part in ("target", "forward", "backward"):
            ours, baseline = (statistics.median(sides[name].parts[part][1:]) for name in SIDES)
            rows.append(_row(f"  {part}, {precision}", ours, baseline))
        del sides
        ours, baseline = (_memory_in_a_process_of_its_own(name, precision, device) for name in SIDES)
        name = f"peak memory of a step, {precision}"
        rows.append(Row(name, ours, baseline, "MiB", target="<= 0.75 of the baseline", note=f"batch {BATCH}"))
    return rows


def _row(name: str, ours: float, baseline: float, target: str = "") -> Row:
    return Row(name, 1e3 * ours, 1e3 * baseline, "ms", target=target, note=f"batch {BATCH}")


def _check_equal(sides: dict[str, Side], precision: str) -> None:
    """The two predict the same: to 1e-4 in float32, to bfloat16's own noise otherwise."""
    tolerance = 1e-4 if precision == "fp32" else 5e-2
    with torch.no_grad():
        ours, baseline = (side.predict().float() for side in sides.values())
    torch.testing.assert_close(ours, baseline, atol=tolerance, rtol=0)


def _memory_in_a_process_of_its_own(name: str, precision: str, device: str) -> float:
    command = [sys.executable, "-m", "benchmarks.bench_step", name, precision, device]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1])["mebibytes"])


def _main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory of one step, as JSON.")
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("precision", choices=PRECISIONS)
    parser.add_argument("device")
    options = parser.parse_args()
    side = Side(options.side, options.precision, options.device)
    sys.stdout.write(json.dumps({"mebibytes": extra_memory(side, options.device)}) + "\n")


if __name__ == "__main__":
    _main()
