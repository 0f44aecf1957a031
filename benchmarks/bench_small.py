"""Pre-training steps of the small models on a CPU: clips per second of the pico size against the nano size.

The steps include target, network and optimizer, on clips in memory. "Before" is the nano model with 8 clips
per step, as in configs/pretrain/sample*.yaml, and with the former code for small grids: HOG of one frame at a
time, and the weight gradient of pooling of one sample and time tap at a time. All cases run in turn in one
process. Wall time and CPU time of all threads are measured; the latter depends less on other programs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from benchmarks.harness import ROOT, Row
from benchmarks.pretrain_in_memory import make_loader
from videomaskfeat.config import load_config
from videomaskfeat.engine.sections import build_optimizer, build_schedule
from videomaskfeat.machine import keep_freed_memory
from videomaskfeat.methods.build import build_method
from videomaskfeat.models.kernels import pooling
from videomaskfeat.schemas.pretrain import PretrainConfig
from videomaskfeat.targets import hog

ROUNDS = 15
PICO = ["clip.frames=4", "clip.crop=32", "mask.cell=[2,8,8]"]
HOG = "target.arguments={output_stride: [2, 8, 8], cube_stride: [2, 8, 8]}"


class Case(NamedTuple):
    """A config of configs/pretrain with its changes, and whether the former code is used."""

    config: str
    batch_size: int
    changes: list[str]
    former: bool = False


VIT = ["model.name=maskfeat_vit_nano", HOG]
CASES = {
    "MViTv2, HOG": {
        "before": Case("sample", 8, [], former=True),
        "nano, 8 clips": Case("sample", 8, []),
        "nano, 32 clips": Case("sample", 32, []),
        "pico, 64 clips, former code": Case(
            "sample", 64, [*PICO, "model.name=maskfeat_mvitv2_pico", HOG], former=True
        ),
        "pico, 64 clips": Case("sample", 64, [*PICO, "model.name=maskfeat_mvitv2_pico", HOG]),
    },
    "ViT, HOG": {
        "before": Case("sample", 8, VIT, former=True),
        "nano, 8 clips": Case("sample", 8, VIT),
        "pico, 64 clips": Case("sample", 64, [*PICO, "model.name=maskfeat_vit_pico", HOG]),
    },
    "ViT, MAE": {
        "before": Case("sample_mae", 8, [], former=True),
        "pico, 64 clips": Case("sample_mae", 64, [*PICO, "model.name=mae_vit_pico"]),
    },
}


def run(*, device: str) -> list[Row]:
    """Measure clips per second of all cases, on the CPU only."""
    if device != "cpu":
        return []
    keep_freed_memory()
    rows = []
    for title, cases in CASES.items():
        wall, cpu = measure({name: make_step(case) for name, case in cases.items()}, rounds=ROUNDS)
        for name in list(cases)[1:]:
            for figures, unit in ((wall, "clips/s"), (cpu, "clips per CPU second")):
                ours, baseline = (
                    cases[side].batch_size / statistics.median(figures[side]) for side in (name, "before")
                )
                target = ">= 3x" if name == "pico, 64 clips" else ""
                note = "before: nano, 8 clips, former code"
                rows.append(Row(f"{title}, {name}", ours, baseline, unit, "higher", target, note))
    return rows


def make_step(case: Case) -> Callable[[], None]:
    """One training step of a config on clips in memory."""
    size = case.batch_size
    config = load_config(
        PretrainConfig,
        str(ROOT / "configs" / "pretrain" / f"{case.config}.yaml"),
        [*case.changes, f"optim.batch_size={size}"],
    )
    torch.manual_seed(0)
    method = build_method(config)
    method.to(torch.device("cpu"))
    optimizer = build_optimizer(config.optim, method.student, base_lr=build_schedule(config.optim).base_lr)
    (batch,) = make_loader(config, batches=1, pin=False).epoch(0)

    def step() -> None:
        method.loss(method.student, batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(method.student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def former_step() -> None:
        with former_code():
            step()

    return former_step if case.former else step


@contextmanager
def former_code() -> Iterator[None]:
    """HOG of one frame at a time, and pooling gradients of one sample and time tap at a time."""
    before = pooling._SMALL_GRID, hog._PIXELS_AT_ONCE
    pooling._SMALL_GRID, hog._PIXELS_AT_ONCE = 0, 1
    try:
        yield
    finally:
        pooling._SMALL_GRID, hog._PIXELS_AT_ONCE = before


def measure(
    steps: dict[str, Callable[[], None]], *, rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of wall time and of CPU time of each step, in turn, after one step that does not count."""
    wall: dict[str, list[float]] = {name: [] for name in steps}
    cpu: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(1 + rounds):
        for name, step in steps.items():
            started, started_cpu = time.perf_counter(), time.process_time()
            step()
            if number:
                cpu[name].append(time.process_time() - started_cpu)
                wall[name].append(time.perf_counter() - started)
    return wall, cpu
