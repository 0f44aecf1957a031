"""How well methods learn: `python -m benchmarks.learning --out benchmarks/results/learning.json`.

Trains a ViT of 4 blocks on 5,000 jittered handwritten digits of 40x40 pixels (25 tokens) and fits a linear
probe and k-NN to its frozen features before and after. The digits are the 1,797 of the UCI optical digits
that the package contains, enlarged from 8x8 pixels, turned, scaled and moved; test digits are others than
training digits. Runs of one seed see the same batches; those with the same mask policy, the same masks.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.harness import ROOT, machine, now, write_json
from videomaskfeat.config import load_config
from videomaskfeat.data.loader import ClipLoader
from videomaskfeat.data.memory import StoredVideo, VideoMemory
from videomaskfeat.data.records import Records
from videomaskfeat.data.sample_factors import load_digits
from videomaskfeat.data.transforms import RandomResizedCrop
from videomaskfeat.engine.contracts import LoopOptions
from videomaskfeat.engine.loop import Training, train
from videomaskfeat.engine.sections import build_optimizer, build_schedule
from videomaskfeat.methods import method_class
from videomaskfeat.methods.build import build_method
from videomaskfeat.methods.method import Method
from videomaskfeat.metrics.accuracy import accuracy
from videomaskfeat.metrics.features import knn_scores, linear_probe_scores
from videomaskfeat.schemas.pretrain import PretrainConfig

SIDE = 40
LARGEST_TURN = 12
"""Degrees."""
SMALLEST = 30
"""Pixels; the largest digits fill the frame."""
BATCH = 64
"""Clips per step."""
TEST_DIGITS = 497
"""Number of digits that no training clip shows."""


@dataclass(frozen=True)
class Run:
    """A config in configs/pretrain, overrides, and the number of optimizer steps."""

    config: str
    overrides: tuple[str, ...] = ()
    steps: int = 800


_SINCOS = "model.arguments={depth: 4, absolute_positions: sincos_2d}"
RUNS = {
    "hog": Run("sample_images"),
    "mae": Run("sample_images_mae"),
    "mae, slowfast": Run("sample_images_mae", ("model.initialization=slowfast",)),
    "ibot": Run(
        "sample_images_ibot",
        (
            _SINCOS,
            "method.arguments.momentum=0.95",
            "method.arguments.teacher_temperature=[0.04, 0.04]",
            "method.arguments.temperature_warmup_epochs=0",
            "optim.learning_rate=5e-4",
        ),
        1200,
    ),
    "byol": Run(
        "sample_images_ibot",
        (
            "method={name: byol, arguments: {projection: 64, hidden_width: 256, momentum: 0.97}}",
            "method.arguments.crop_area=[0.25, 1]",
            "optim.learning_rate=5e-4",
            "optim.weight_decay=1e-4",
        ),
        1200,
    ),
    "latent": Run(
        "sample_images_mae",
        (
            "model.name=maskfeat_vit_nano_image",
            "method={name: latent, arguments: {predictor_width: 64, predictor_depth: 2, predictor_heads: 4}}",
            "optim.learning_rate=1e-3",
        ),
    ),
}
"""Runs by name."""
SHARED = (
    f"clip.crop={SIDE}",
    "clip.flip=0",
    "model.arguments={depth: 4}",
    f"optim.batch_size={BATCH}",
    f"optim.base_batch_size={BATCH}",
    "data.workers=0",
)


@dataclass(frozen=True)
class Digits:
    """Clips uint8 [n, 1, 40, 40, 3] and labels [n]."""

    clips: Tensor
    labels: np.ndarray


def jittered_digits(pictures: np.ndarray, labels: np.ndarray, count: int, *, seed: int) -> Digits:
    """Draw ``count`` digits, each turned, scaled and moved at random, but whole.

    Args:
        pictures, labels: uint8 [n, 8, 8] in 0..16; [n].
        count: number of clips; the digits are repeated in order.
        seed: seed of the draws.
    """
    rng = np.random.default_rng(seed)
    index = np.arange(count) % len(pictures)
    angle = np.deg2rad(rng.uniform(-LARGEST_TURN, LARGEST_TURN, count))
    size = rng.uniform(SMALLEST, SIDE, count) / SIDE
    shift = rng.uniform(-1, 1, (count, 2)) * (1 - size)[:, None]
    cos, sin = np.cos(angle) / size, np.sin(angle) / size
    # A matrix maps output coordinates in -1..1 to those of the picture.
    matrix = np.stack([np.stack([cos, -sin], 1), np.stack([sin, cos], 1)], 1)  # [n, 2, 2]
    offset = -(matrix @ shift[:, :, None])  # [n, 2, 1]
    theta = torch.from_numpy(np.concatenate([matrix, offset], axis=2)).float()
    grid = F.affine_grid(theta, [count, 1, SIDE, SIDE], align_corners=False)
    source = torch.from_numpy(pictures[index]).float()[:, None] / 16
    enlarged = F.interpolate(source, scale_factor=5, mode="bicubic").clamp(0, 1)
    gray = F.grid_sample(enlarged, grid, align_corners=False)  # [n, 1, 40, 40]
    clips = (gray * 255).round().to(torch.uint8).permute(0, 2, 3, 1)[:, None]  # [n, 1, 40, 40, 1]
    return Digits(clips.expand(-1, -1, -1, -1, 3).contiguous(), labels[index].astype(np.int64))


def draw_digits(train_count: int, test_count: int) -> tuple[Digits, Digits]:
    """Training and test clips, of different digits."""
    pictures, labels = load_digits()
    order = np.random.default_rng(0).permutation(len(pictures))
    test, training = np.split(order, [TEST_DIGITS])
    return (
        jittered_digits(pictures[training], labels[training], train_count, seed=1),
        jittered_digits(pictures[test], labels[test], test_count, seed=2),
    )


@contextmanager
def digit_loader(method: Method, clips: Tensor, *, seed: int) -> Iterator[ClipLoader[Any]]:
    """The method's own batches of clips in memory; only methods of pairs crop them."""
    with tempfile.TemporaryFile() as file:
        file.write(clips.numpy().data)
        file.flush()
        size = clips[0].numel()
        videos = {str(n): StoredVideo(n * size, tuple(clips.shape[1:]), 1.0) for n in range(len(clips))}
        crop = RandomResizedCrop(SIDE, flip=0)  # pairs have their published area
        if method.clips_per_video == 1:
            crop = RandomResizedCrop(SIDE, area=(1, 1), aspect=(1, 1), flip=0)  # the whole picture
        records = Records.from_paths(list(videos), None, source="digits")
        dataset = method.dataset(records, crop=crop, seed=seed)
        dataset.memory = VideoMemory(file, videos)
        yield ClipLoader(dataset, batch_size=BATCH)


def probe(method: Method, training: Digits, test: Digits) -> dict[str, float]:
    """Top-1 accuracy of a linear probe and of k-NN in percent."""
    encoder: Any = method.weights()["weights.safetensors"]
    mode = encoder.training
    encoder.eval()
    with torch.no_grad():
        features = [
            torch.cat([encoder.features(method.pixels(part)) for part in digits.clips.split(500)]).numpy()
            for digits in (training, test)
        ]
    encoder.train(mode)
    arguments = (features[0], training.labels, features[1])
    return {
        "linear": accuracy(linear_probe_scores(*arguments, classes=10), test.labels).top1,
        "knn": accuracy(knn_scores(*arguments, classes=10), test.labels).top1,
    }


def config_of(name: str, *, steps: int, seed: int, clips: int) -> PretrainConfig:
    """The config of a run, whose schedules end after ``steps`` steps on a list of ``clips`` clips."""
    run = RUNS[name]
    file = str(ROOT / "configs" / "pretrain" / f"{run.config}.yaml")
    config = load_config(PretrainConfig, file, [*SHARED, *run.overrides, f"run.seed={seed}"])
    videos = BATCH // method_class(config.method.name).clips_per_video
    config.optim.epochs = steps / (clips // videos)
    config.optim.warmup_epochs = config.optim.epochs / 10
    return config


def learn(name: str, *, seed: int, data: tuple[Digits, Digits], steps: int | None = None) -> dict[str, Any]:
    """Train one run; returns accuracies before and after, and the losses."""
    training, test = data
    steps = steps or RUNS[name].steps
    config = config_of(name, steps=steps, seed=seed, clips=len(training.clips))
    torch.manual_seed(seed)
    method = build_method(config)
    method.set_length(steps)
    before = probe(method, training, test)
    schedule = build_schedule(config.optim)
    losses: list[float] = []

    def step(batch: Any) -> Any:
        result = method.loss(method.student, batch)
        losses.append(float(result.loss.detach()))
        return result

    started = time.perf_counter()
    with digit_loader(method, training.clips, seed=seed) as loader, tempfile.TemporaryDirectory() as folder:
        train(
            Training(
                model=method.student,
                step=step,
                loader=loader,
                optimizer=build_optimizer(config.optim, method.student, base_lr=schedule.base_lr),
                learning_rate=schedule,
                folder=folder,
                device=torch.device("cpu"),
                before_step=method.before_step,
                after_step=method.after_step,
                options=LoopOptions(
                    epochs=config.optim.epochs,
                    clip_norm=config.optim.gradient_clip,
                    unit="clips",
                    loggers=(),
                ),
            )
        )
    seconds = time.perf_counter() - started
    after = probe(method, training, test)
    every = max(len(losses) // 20, 1)
    curve = {start: statistics.mean(losses[start : start + every]) for start in range(0, len(losses), every)}
    return {
        "run": name,
        "seed": seed,
        "steps": steps,
        "before": before,
        "after": after,
        "seconds": round(seconds, 1),
        "loss_curve": {start: round(value, 5) for start, value in curve.items()},
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print the accuracies in percent."""
    table = Table("run", "seed", "steps", "linear before", "after", "k-NN before", "after", "seconds")
    for row in rows:
        figures = (row[when][kind] for kind in ("linear", "knn") for when in ("before", "after"))
        shown = (f"{figure:.1f}" for figure in figures)
        table.add_row(row["run"], str(row["seed"]), str(row["steps"]), *shown, f"{row['seconds']:.0f}")
    Console().print(table)


def main() -> int:
    """Train all runs, print the table, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*", help=f"any of {', '.join(map(repr, RUNS))} (default: all)")
    parser.add_argument("--steps", type=int, help="optimizer steps (default: 800; ibot and byol: 1200)")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds per run (default: 3)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the results")
    parser.add_argument("--dry", action="store_true", help="2 steps with one seed on 128 digits")
    options = parser.parse_args()
    unknown = [name for name in options.runs if name not in RUNS]
    if unknown:
        parser.error(f"run {unknown[0]!r} is unknown; there are {', '.join(map(repr, RUNS))}")
    steps, seeds = (2, 1) if options.dry else (options.steps, options.seeds)
    data = draw_digits(128, 64) if options.dry else draw_digits(5000, 2000)
    content: dict[str, Any] = {"measured": now(), "machine": machine("cpu"), "dry": options.dry, "rows": []}
    for seed, name in itertools.product(range(seeds), options.runs or RUNS):
        content["rows"].append(learn(name, steps=steps, seed=seed, data=data))
        write_json(options.out, content)
    print_table(content["rows"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
