"""A pre-training step on an idle machine, and on a machine with another program of two threads.

Ours works like a verb: waiting threads yield, and the number of threads is measured before the first step.
The baseline is plain torch: all cores, and OpenMP's default wait policy. Both train the same model in their
own processes, which alternate; every second round starts with the baseline. The value is the median over
rounds of the mean step time of a process, since a busy machine delays single steps.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from benchmarks.harness import Row
from videomaskfeat.engine.threads import choose_threads
from videomaskfeat.losses.masked import masked_mse
from videomaskfeat.machine import keep_freed_memory
from videomaskfeat.models import create_model
from videomaskfeat.openmp import SPIN_COUNT, WAIT_POLICY, yielding_threads
from videomaskfeat.targets.hog import HogTarget

SIZES = {"nano": (8, (8, 64, 64)), "MViTv2-S": (2, (16, 224, 224))}  # clips per step, frames and pixels
SECONDS = {"nano": 6.0, "MViTv2-S": 36.0}  # duration of the steps, per process
LOADS = ("alone", "busy", "busy later")
ROUNDS = {"nano": 7, "MViTv2-S": 1}  # MViTv2-S takes 6 s or more per step


def run(*, device: str) -> list[Row]:
    """Measure milliseconds per step for two sizes and three loads, on the CPU only."""
    if device != "cpu":
        return []
    rows = []
    for size in SIZES:
        measured: dict[tuple[str, str], list[tuple[float, int]]] = {}
        for round_ in range(ROUNDS[size]):
            for load in LOADS:
                for side in ("ours", "plain") if round_ % 2 == 0 else ("plain", "ours"):
                    measured.setdefault((side, load), []).append(_measure(size, side, load))
        figures = {key: statistics.median(step for step, _ in values) for key, values in measured.items()}
        for load in LOADS:
            threads = "/".join(str(number) for _, number in measured["ours", load])
            beside = figures["ours", load] / figures["ours", "alone"]
            rows.append(
                Row(
                    f"step, {size}, {load}",
                    figures["ours", load],
                    figures["plain", load],
                    "ms",
                    target="no slower than plain" if load == "alone" else "at most 3x alone",
                    note=f"{threads} threads" + ("" if load == "alone" else f", {beside:.1f}x alone"),
                )
            )
    return rows


def _measure(size: str, side: str, load: str) -> tuple[float, int]:
    """Mean milliseconds per step in another process, and its number of threads."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in (WAIT_POLICY, SPIN_COUNT, "OMP_NUM_THREADS")
    }
    # The wait policy must be set before this module imports torch.
    policy = "from videomaskfeat.openmp import set_wait_policy; set_wait_policy()\n" if side == "ours" else ""
    code = f"{policy}from benchmarks.bench_busy import train; train({size!r}, {side!r}, {load!r})"
    command = [sys.executable, "-c", code]
    with _other_program() if load == "busy" else nullcontext():
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    milliseconds, threads = done.stdout.split()[-2:]
    return float(milliseconds), int(threads)


@contextmanager
def _other_program() -> Iterator[None]:
    """Run two threads of matrix products in another process with OpenMP's defaults."""
    code = (
        "import torch; torch.set_num_threads(2); a = torch.randn(700, 700); print('on', flush=True)\n"
        "while True: a = (a @ a).clamp(-1, 1)"
    )
    environment = {name: value for name, value in os.environ.items() if name not in (WAIT_POLICY, SPIN_COUNT)}
    other = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE)
    assert other.stdout is not None
    other.stdout.readline()
    try:
        yield
    finally:
        other.kill()
        other.wait()


def train(size: str, side: str, load: str) -> None:
    """Run steps for some seconds; print the mean milliseconds per step and the number of threads."""
    keep_freed_memory()
    batch, clip = SIZES[size]
    torch.manual_seed(0)
    model = create_model("maskfeat_mvitv2_nano" if size == "nano" else "maskfeat_mvitv2_s")
    target = HogTarget()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    clips = torch.randn(batch, 3, *clip)
    mask = torch.rand(batch, clip[0] // 2, clip[1] // 32, clip[2] // 32) < 0.4

    def step() -> None:
        masked_mse(model(clips, mask), target(clips), mask).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    with yielding_threads() if side == "ours" else nullcontext():
        if side == "ours":
            choose_threads(step)
        else:
            step()
        with _other_program() if load == "busy later" else nullcontext():
            started, steps = time.perf_counter(), 0
            while time.perf_counter() < started + SECONDS[size]:
                step()
                steps += 1
            print(1e3 * (time.perf_counter() - started) / steps, torch.get_num_threads())
