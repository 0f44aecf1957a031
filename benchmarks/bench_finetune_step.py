"""A fine-tuning step of MViTv2-S, 16 frames of 224x224, against the plain one, as ``bench_step``."""

from __future__ import annotations

from benchmarks.bench_step import run_task
from benchmarks.harness import Row


def run(*, device: str, dry: bool = False) -> list[Row]:
    """Steps of fine-tuning and their parts in both precisions, and memory."""
    return run_task("finetune", device=device, dry=dry)
