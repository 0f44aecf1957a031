"""Pre-train on clips in memory: `python -m benchmarks.pretrain_in_memory MODEL --out results.json`.

It runs the engine's loop with a published config, compiled and in bfloat16 on a GPU. The loader only returns
prepared batches (in pinned memory for a GPU). So the times are those of the step: target, copy to the device,
network and optimizer. The loss must fall, since the clips are a few smooth moving patterns.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks.harness import ROOT, machine, now, other_load, write_json
from videomaskfeat.config import load_config
from videomaskfeat.data.batches import PretrainBatch, count_hidden
from videomaskfeat.engine import distributed
from videomaskfeat.engine.contracts import LoopOptions
from videomaskfeat.engine.distributed import uses_bf16
from videomaskfeat.engine.loop import Training, train
from videomaskfeat.engine.sections import build_optimizer, build_schedule
from videomaskfeat.errors import RunFailed, UserError
from videomaskfeat.machine import keep_freed_memory
from videomaskfeat.methods.build import build_method
from videomaskfeat.recipe import PretrainRecipe
from videomaskfeat.schemas.pretrain import PretrainConfig

TIMED = 100
"""Number of final steps for the median."""
GRAPH_STEPS = 40  # with CUDA graphs
COMPARED = 10
"""Number of first and last steps for the comparison of mean losses."""


@dataclass(frozen=True)
class Case:
    """A model and its training.

    Attributes:
        config: name of a file in configs/pretrain.
        dry_config: the same for a dry run, with a small model.
        batch_size: clips per step on one GPU.
        learning_rate: peak learning rate for this batch size.
    """

    config: str
    dry_config: str
    batch_size: int
    learning_rate: float = 5e-4


CASES = {
    "mvitv2_s": Case("k400_maskfeat_mvitv2_s", "sample", 32),
    "mae_vit_b": Case("k400_mae_vit_b", "sample_mae", 64),
}


class MemoryLoader:
    """Returns prepared batches, in another order in each pass.

    Args:
        batches: batches on the CPU, in pinned memory for a GPU.
        seed: seed of the order.
        passes: passes per epoch, since the engine waits for the device at the end of an epoch.
    """

    def __init__(self, batches: list[PretrainBatch], *, seed: int = 0, passes: int = 1) -> None:
        self._batches, self._seed, self._passes = batches, seed, passes

    @property
    def batches_per_epoch(self) -> int:
        """Batches per epoch."""
        return len(self._batches) * self._passes

    def epoch(
        self, epoch: int, first_batch: int = 0, stop: Callable[[], bool] | None = None
    ) -> Iterator[PretrainBatch]:
        """The batches of an epoch; ``stop`` has no effect, since there is no waiting."""
        rng = np.random.default_rng((self._seed, epoch))
        order = np.concatenate([rng.permutation(len(self._batches)) for _ in range(self._passes)])
        for number in order[first_batch:]:
            yield self._batches[number]


def moving_patterns(count: int, frames: int, side: int, rng: np.random.Generator) -> np.ndarray:
    """Clips of smooth random patterns that move steadily, uint8 [B, T, H, W, C]."""
    clips = np.empty((count, frames, side, side, 3), np.uint8)
    for clip in clips:
        noise = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        pattern = cv2.resize(noise, (2 * side, 2 * side), interpolation=cv2.INTER_CUBIC)
        x, y = rng.uniform(0, side, 2)
        speed = rng.uniform(-side / frames / 2, side / frames / 2, 2)
        for number in range(frames):
            left, top = np.clip([x + number * speed[0], y + number * speed[1]], 0, side).astype(int)
            clip[number] = pattern[top : top + side, left : left + side]
    return clips


def make_loader(config: PretrainConfig, *, batches: int, pin: bool, passes: int = 1) -> MemoryLoader:
    """Batches of moving patterns with masks of the config."""
    rng = np.random.default_rng(0)
    recipe = PretrainRecipe.of(config)
    size = config.optim.batch_size
    prepared = []
    for number in range(batches):
        clips = moving_patterns(size, config.clip.frames, config.clip.crop, rng)
        masks = np.stack([recipe.draw_mask(rng) for _ in range(size)])
        index = torch.arange(number * size, (number + 1) * size)
        batch = PretrainBatch(
            torch.from_numpy(clips), torch.from_numpy(masks), index, hidden_cells=count_hidden(masks)
        )
        prepared.append(batch.pin_memory() if pin else batch)
    return MemoryLoader(prepared, passes=passes)


def build_config(
    case: Case, *, device: str, steps: int, batches: int, dry: bool, compile_mode: str = "default"
) -> PretrainConfig:
    """The published config with a schedule of ``steps`` steps."""
    batch_size = 2 if dry else case.batch_size
    return load_config(
        PretrainConfig,
        str(ROOT / "configs" / "pretrain" / f"{case.dry_config if dry else case.config}.yaml"),
        [
            f"optim.batch_size={batch_size}",
            f"optim.base_batch_size={batch_size}",
            f"optim.learning_rate={case.learning_rate}",
            f"optim.epochs={steps / batches}",
            f"optim.warmup_epochs={steps / batches / 10}",
            f"run.device={device}",
            f"run.compile={str(not dry).lower()}",
            f"run.compile_mode={compile_mode}",
        ],
    )


def pretrain(
    name: str, *, device: str, steps: int, dry: bool, compile_mode: str = "default"
) -> dict[str, Any]:
    """Train, and return times and losses.

    Args:
        name: one of CASES.
        device: cpu or cuda.
        steps: optimizer steps.
        dry: use a small model, which is not compiled.
        compile_mode: mode of torch.compile.

    Raises:
        RunFailed: the loss is not finite.
    """
    batches = 2 if dry else 4
    passes = max(steps // batches, 1)
    config = build_config(
        CASES[name], device=device, steps=steps, batches=batches * passes, dry=dry, compile_mode=compile_mode
    )
    place = distributed.choose_device(device)
    if place.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(config.run.seed)
    method = build_method(config)
    network = distributed.parallel(method.student, place)
    method.to(place)
    schedule = build_schedule(config.optim)
    optimizer = build_optimizer(config.optim, method.student, base_lr=schedule.base_lr)
    bf16 = uses_bf16(config.run.precision, place)
    loader = make_loader(config, batches=batches, passes=passes, pin=place.type == "cuda")
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        train(
            Training(
                model=network,
                step=lambda batch: method.loss(network, batch),
                loader=loader,
                optimizer=optimizer,
                learning_rate=schedule,
                folder=folder,
                device=place,
                options=LoopOptions(
                    epochs=config.optim.epochs,
                    clip_norm=config.optim.gradient_clip,
                    precision="bf16" if bf16 else "fp32",
                    check_lag=int(place.type == "cuda"),
                    unit="clips",
                    loggers=(),
                ),
            )
        )
        seconds = time.perf_counter() - started
        lines = (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    facts = {
        "config": CASES[name].dry_config if dry else CASES[name].config,
        "model": config.model.name,
        "target": config.target.name,
        "mask_ratio": config.mask.ratio,
        "precision": "bf16" if bf16 else "fp32",
        "compiled": config.run.compile,
        "compile_mode": config.run.compile_mode,
        "batch_size": config.optim.batch_size,
        "clip": [config.clip.frames, config.clip.crop, config.clip.crop],
        "parameters": sum(p.numel() for p in method.student.parameters() if p.requires_grad),
        "training_seconds": round(seconds, 2),
    }
    return facts | summarize([json.loads(line) for line in lines], config.optim.batch_size)


def pretrain_with_graphs(name: str, *, dry: bool) -> dict[str, Any]:
    """The same training with CUDA graphs, for fewer steps; the dry run has none.

    The memory of the training before is released first, so that the peak is that of this one.
    """
    gc.collect()
    if not dry:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    mode = "default" if dry else "reduce-overhead"
    result = pretrain(
        name, device="cpu" if dry else "cuda", steps=2 if dry else GRAPH_STEPS, dry=dry, compile_mode=mode
    )
    keys = ("compile_mode", "steps", "loss_first", "loss_last", "step_ms", "clips_per_second")
    return {key: result[key] for key in (*keys, "compile_seconds", "peak_memory_mb")}


def summarize(records: list[dict[str, Any]], batch_size: int) -> dict[str, Any]:
    """Summarize the records of the steps.

    Args:
        records: lines of metrics.jsonl.
        batch_size: clips per step.
    """
    losses = [record["loss"] for record in records]
    times = [record["step_ms"] for record in records]
    few = min(COMPARED, max(len(losses) // 2, 1))
    first, last = statistics.mean(losses[:few]), statistics.mean(losses[-few:])
    step = statistics.median(times[-TIMED:])
    every = max(len(records) // 20, 1)
    return {
        "steps": len(records),
        "loss_first": first,
        "loss_last": last,
        "loss_fell": last < first,
        "loss_curve": {record["step"]: record["loss"] for record in records[::every]},
        "step_ms": step,
        "step_ms_worst": max(times[-TIMED:]),
        "data_ms": statistics.median(record["data_ms"] for record in records[-TIMED:]),
        "clips_per_second": 1e3 * batch_size / step,
        "first_step_seconds": times[0] / 1e3,
        # Kernels are compiled in the first steps; their extra time counts as compilation.
        "compile_seconds": sum(max(value - step, 0.0) for value in times[:3]) / 1e3,
        "peak_memory_mb": max(record["memory_mb"] for record in records),
    }


def main() -> int:
    """Run one model, write the JSON, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=CASES)
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--steps", type=int, help="optimizer steps (default: 200, or 3 with --dry)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the results")
    parser.add_argument("--dry", action="store_true", help="nano model, tiny batch, not compiled")
    parser.add_argument("--graphs", action="store_true", help="also train with CUDA graphs")
    options = parser.parse_args()
    steps = options.steps or (3 if options.dry else 200)
    if steps < 1:
        parser.error(f"--steps {steps}: must be at least 1")
    content: dict[str, Any] = {"measured": now(), "dry": options.dry}
    try:
        other = other_load(options.device)
        content["machine"] = {**machine(options.device), **other}
        content |= pretrain(options.model, device=options.device, steps=steps, dry=options.dry)
        if not (content["loss_fell"] or options.dry):
            content["error"] = "the loss did not fall"
        if options.graphs:
            write_json(options.out, content)  # the script may run out of time
            content["cuda_graphs"] = pretrain_with_graphs(options.model, dry=options.dry)
    except (RunFailed, UserError, RuntimeError) as error:
        content["error"] = f"{type(error).__name__}: {error}"
    write_json(options.out, content)
    shown = {key: value for key, value in content.items() if key not in ("machine", "loss_curve")}
    sys.stdout.write(json.dumps(shown, indent=1) + "\n")
    return 1 if "error" in content else 0


if __name__ == "__main__":
    sys.exit(main())
