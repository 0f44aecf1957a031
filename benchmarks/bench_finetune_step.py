"""A fine-tuning step of MViTv2-S, 16 frames of 224x224, against the plain one, as in ``bench_step``."""

from __future__ import annotations

from benchmarks.bench_step import run_task
from benchmarks.harness import Row


def run(*, device: str, dry: bool = False) -> list[Row]:
    """Measure fine-tuning steps, their phases and their memory in both precisions."""
    return run_task("finetune", device=device, dry=dry)
