"""The rate of a pre-training step of MViTv2-S relative to that of the machine's own matrix products.

Both are measured in turns, in CPU seconds of all threads, which other programs disturb least. The products
are those of the network's widest layers, by each library of torch; the highest rate counts. The rate of the
step is its floating-point operations (three times those of the forward pass, `floors.py`) per second.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.bench_step import OURS, Side
from benchmarks.floors import count
from benchmarks.harness import SIZES, Row
from videomaskfeat.machine import keep_freed_memory
from videomaskfeat.models.kernels.dense import product

SHAPES = ((25_088, 96, 384), (6_272, 192, 768), (1_568, 384, 1_536), (1_568, 768, 3_072))
"""Tokens per clip, width and inner width of the perceptrons of the four stages."""
STEPS = 5


def run(*, device: str) -> list[Row]:
    """Measure both precisions on the CPU."""
    keep_freed_memory()
    size = SIZES["cpu"]
    operations = count("maskfeat_mvitv2_s", 0.4).operations * size.batch
    rows = []
    for precision in size.precisions:
        dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        side = Side("pretrain", OURS, precision, "cpu", size)
        candidates = [one for shape in SHAPES for one in _products(shape, size.batch, dtype)]
        steps, best = [], [0.0] * len(candidates)
        for number in range(1 + STEPS):
            elapsed = _cpu_seconds(side)
            steps += [elapsed] if number else []
            for index, (work, multiply) in enumerate(candidates):
                best[index] = max(best[index], work / _cpu_seconds(multiply))
        rate = operations / min(steps)
        row = Row(
            f"rate of a step and of matrix products, {precision}",
            rate / 1e9,
            max(best) / 1e9,
            "GFLOP per CPU second",
            better="higher",
            target=">= 75 % of the products",
            note=f"batch {size.batch}; least of {STEPS} steps: {min(steps):.2f} CPU s",
        )
        rows.append(row)
    return rows


def _products(
    shape: tuple[int, int, int], batch: int, dtype: torch.dtype
) -> list[tuple[float, Callable[[], Tensor]]]:
    """Operations and functions of a product of a layer, one per library."""
    tokens, width, inner = shape
    x, weight = torch.randn(batch * tokens, width).to(dtype), torch.randn(inner, width).to(dtype)
    work = 2.0 * batch * tokens * width * inner
    return [(work, lambda: product(x, weight)), (work, lambda: F.linear(x, weight))]


def _cpu_seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start
