"""What a clip of the sample videos with factors contains: `python -m benchmarks.factor_ceilings --out FILE`.

Reads each factor from clips of 4 frames of 32x32 pixels in three ways: ridge regression and k-NN on pixels,
and a small supervised network of 3-d convolutions per factor, which bounds what features of such clips can
contain.
Test clips show digits that training clips do not.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.harness import machine, now, write_json
from videomaskfeat.data.sample_factors import FACTORS, draw_labels, factor_scene
from videomaskfeat.metrics.features import knn_scores

FRAMES, STRIDE, SIDE = 4, 6, 32
STARTS = (6, 0, 12)  # first frames of the training clips of a video; test clips have the first one
RIDGE = 300.0


def draw_clips(numbers: range, starts: tuple[int, ...], *, held_out: bool) -> tuple[Tensor, Tensor]:
    """Clips float [n, 3, T, H, W] in -1..1 and labels int64 [n, factors], the starts of a video together."""
    clips, labels = [], []
    for number in numbers:
        scene = factor_scene(number, held_out=held_out, frames=32, size=SIDE, fps=30.0, seed=0)
        for start in starts:
            clips.append([scene.render(start + STRIDE * step) for step in range(FRAMES)])
            labels.append(list(draw_labels(number, seed=0).values()))
    return torch.tensor(np.array(clips)).permute(0, 4, 1, 2, 3) / 127.5 - 1, torch.tensor(labels)


def convolutions(classes: int) -> nn.Sequential:
    """Three 3-d convolutions and one linear layer."""
    layers: list[nn.Module] = []
    for before, after in ((3, 32), (32, 64), (64, 96)):
        layers += [nn.Conv3d(before, after, (2, 3, 3), padding=(0, 1, 1)), nn.BatchNorm3d(after), nn.ReLU()]
        layers.append(nn.AdaptiveAvgPool3d((1, 4, 4)) if after == 96 else nn.MaxPool3d((1, 2, 2)))
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(96 * 16, classes))


def train(clips: Tensor, labels: Tensor, classes: int, *, steps: int) -> nn.Sequential:
    """The network after steps with batches of 64 clips, for labels [n] of one factor."""
    torch.manual_seed(0)
    network = convolutions(classes)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        chosen = torch.randint(len(clips), (64,))
        optimizer.zero_grad()
        F.cross_entropy(network(clips[chosen]), labels[chosen]).backward()
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def read_factors(
    networks: list[nn.Sequential], training: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]
) -> Any:
    """Top-1 accuracy in percent of each way, by factor."""
    center, labels = training[0][:: len(STARTS)], training[1][:: len(STARTS)]
    pixels, test_pixels = (F.avg_pool3d(part, (1, 2, 2)).flatten(1) for part in (center, test[0]))
    test_pixels, pixels = test_pixels - pixels.mean(dim=0), pixels - pixels.mean(dim=0)
    gram = pixels @ pixels.t() + RIDGE * torch.eye(len(pixels))
    results = {}
    for index, (name, names) in enumerate(FACTORS.items()):
        one_hot = F.one_hot(labels[:, index], len(names)) - 1 / len(names)
        votes = knn_scores(pixels.numpy(), labels[:, index].numpy(), test_pixels.numpy(), classes=len(names))
        predictions = {
            "ridge": test_pixels @ (pixels.t() @ torch.linalg.solve(gram, one_hot)),
            "knn": torch.from_numpy(votes),
            "convolutions": torch.cat([networks[index](part) for part in test[0].split(200)]),
        }
        truth = test[1][:, index]
        results[name] = {"chance": 100 / len(names)} | {
            way: 100 * (scores.argmax(dim=1) == truth).double().mean().item()
            for way, scores in predictions.items()
        }
    return results


def main() -> int:
    """Measure, print the table, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--videos", type=int, default=1500, help="number of videos, a fifth for the test")
    parser.add_argument("--steps", type=int, default=600, help="steps of each network (default: 600)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the results")
    options = parser.parse_args()
    first = options.videos - options.videos // 5
    training = draw_clips(range(first), STARTS, held_out=False)
    test = draw_clips(range(first, options.videos), STARTS[:1], held_out=True)
    started = time.process_time()
    networks = [
        train(training[0], training[1][:, index], len(names), steps=options.steps)
        for index, names in enumerate(FACTORS.values())
    ]
    seconds = time.process_time() - started
    results = read_factors(networks, training, test)
    facts = {"measured": now(), "machine": machine("cpu"), "videos": options.videos, "steps": options.steps}
    write_json(options.out, {**facts, "cpu_seconds": round(seconds, 1), "results": results})
    table = Table("factor", "chance", "ridge", "k-NN", "convolutions")
    for name, row in results.items():
        table.add_row(name, *(f"{value:.1f}" for value in row.values()))
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
