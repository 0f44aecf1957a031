"""How well methods learn: `python -m benchmarks.learning --out benchmarks/results/learning.json`.

Trains a ViT of 4 blocks on 5,000 jittered handwritten digits of 40x40 pixels (25 tokens) and fits a linear
probe and k-NN to its frozen features before and after. The digits are the 1,797 of the UCI optical digits
that the package contains, enlarged from 8x8 pixels, turned, scaled and moved; test digits are others than
training digits. Runs of one seed see the same batches and masks.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
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
from videomaskfeat.data.batches import PretrainBatch
from videomaskfeat.data.sample_factors import load_digits
from videomaskfeat.engine.contracts import LoopOptions
from videomaskfeat.engine.loop import train
from videomaskfeat.engine.run import build_optimizer, build_schedule
from videomaskfeat.methods.build import build_method
from videomaskfeat.methods.method import Method
from videomaskfeat.metrics.accuracy import accuracy
from videomaskfeat.metrics.features import knn_scores, linear_probe_scores
from videomaskfeat.recipe import PretrainRecipe
from videomaskfeat.schemas import PretrainConfig

SIDE = 40
BATCH = 64
TEST_DIGITS = 497
"""Number of digits that no training clip shows."""

RUNS: dict[str, tuple[str, list[str]]] = {
    "mae, published": ("sample_images_mae", []),
    "mae, slowfast": ("sample_images_mae", ["model.initialization=slowfast"]),
}
"""Config in configs/pretrain and overrides, by name of the run."""
MODEL = [f"clip.crop={SIDE}", "model.arguments={depth: 4}", f"optim.batch_size={BATCH}"]


@dataclass(frozen=True)
class Digits:
    """Clips uint8 [n, 1, 40, 40, 3] and labels [n]."""

    clips: Tensor
    labels: np.ndarray


def jittered_digits(pictures: np.ndarray, labels: np.ndarray, count: int, *, seed: int) -> Digits:
    """Draw ``count`` digits, each turned by up to 10 degrees, scaled to 32..40 pixels and moved.

    Args:
        pictures, labels: uint8 [n, 8, 8] in 0..16; [n].
        count: number of clips; the digits are repeated in order.
        seed: seed of the draws.
    """
    rng = np.random.default_rng(seed)
    index = np.arange(count) % len(pictures)
    angle = np.deg2rad(rng.uniform(-10, 10, count))
    size = rng.uniform(32, 40, count) / SIDE
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


class DigitLoader:
    """Batches of the clips in a new order per epoch, with new masks."""

    def __init__(self, clips: Tensor, recipe: PretrainRecipe, *, seed: int) -> None:
        self._clips, self._recipe, self._seed = clips, recipe, seed

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches per epoch."""
        return len(self._clips) // BATCH

    def epoch(self, epoch: int, first_batch: int = 0, stop: Any = None) -> Iterator[PretrainBatch]:
        """The batches of an epoch."""
        rng = np.random.default_rng((self._seed, epoch))
        order = rng.permutation(len(self._clips))
        for number in range(self.batches_per_epoch):
            index = torch.from_numpy(order[number * BATCH : (number + 1) * BATCH])
            masks = np.stack([self._recipe.draw_mask(rng) for _ in index])
            if number >= first_batch:
                yield PretrainBatch(self._clips[index], torch.from_numpy(masks), index)


def probe(method: Method, training: Digits, test: Digits) -> dict[str, float]:
    """Top-1 accuracy of a linear probe and of k-NN in percent."""
    encoder: Any = method.weights()["weights.safetensors"]
    encoder.eval()
    with torch.no_grad():
        features = [
            torch.cat([encoder.features(method.pixels(part)) for part in digits.clips.split(500)]).numpy()
            for digits in (training, test)
        ]
    encoder.train()
    arguments = (features[0], training.labels, features[1])
    return {
        "linear": accuracy(linear_probe_scores(*arguments, classes=10), test.labels).top1,
        "knn": accuracy(knn_scores(*arguments, classes=10), test.labels).top1,
    }


def learn(name: str, *, steps: int, seed: int, data: tuple[Digits, Digits]) -> dict[str, Any]:
    """Train one run; returns accuracies before and after, and the losses."""
    training, test = data
    file, overrides = RUNS[name]
    epochs = steps / (len(training.clips) // BATCH)
    config = load_config(
        PretrainConfig,
        str(ROOT / "configs" / "pretrain" / f"{file}.yaml"),
        [
            *MODEL,
            *overrides,
            f"optim.base_batch_size={BATCH}",
            f"optim.epochs={epochs}",
            f"optim.warmup_epochs={epochs / 10}",
            f"run.seed={seed}",
        ],
    )
    torch.manual_seed(seed)
    method = build_method(config)
    before = probe(method, training, test)
    schedule = build_schedule(config.optim)
    losses: list[float] = []

    def step(batch: PretrainBatch) -> Any:
        result = method.loss(method.student, batch)
        losses.append(float(result.loss.detach()))
        return result

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        train(
            model=method.student,
            step=step,
            loader=DigitLoader(training.clips, method.recipe, seed=seed),
            optimizer=build_optimizer(config.optim, method.student, base_lr=schedule.base_lr),
            learning_rate=schedule,
            folder=folder,
            device=torch.device("cpu"),
            before_step=method.before_step,
            after_step=method.after_step,
            options=LoopOptions(
                epochs=epochs, clip_norm=config.optim.gradient_clip, unit="clips", loggers=()
            ),
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
    parser.add_argument("--steps", type=int, default=800, help="optimizer steps (default: 800)")
    parser.add_argument("--seeds", type=int, default=2, help="number of seeds per run (default: 2)")
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
