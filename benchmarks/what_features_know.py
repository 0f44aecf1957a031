"""Information in an encoder's features: motion, color, and identity of the video.

    python benchmarks/what_features_know.py runs/compare/*/seed_1/pretrained --out knows.json

For each pre-training run, it measures the frozen encoder and the same network with random weights on the
labeled lists of the run's ``probe`` (Kinetics CSVs), with two clips per video at two times and averaged
tokens.

- class: top-1 accuracy of an exact linear fit on the first list, tested on the second, in percent.
- color: share of the variance (R2) of a clip's mean red, green and blue explained by a linear fit.
- video: share of clips with the nearest clip (cosine) of the other time from the same video, in percent.
- change: share of the variance of all tokens over time at one position of one clip, in percent.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from benchmarks.harness import machine  # noqa: E402  (the repository is not installed)
from videomaskfeat.config import load_config  # noqa: E402
from videomaskfeat.data.formats import load_records  # noqa: E402
from videomaskfeat.data.loader import ViewLoader  # noqa: E402
from videomaskfeat.inference.multiview import ClipPass, Machine, build_views, evaluation_mode  # noqa: E402
from videomaskfeat.metrics.accuracy import accuracy  # noqa: E402
from videomaskfeat.metrics.features import linear_probe_scores  # noqa: E402
from videomaskfeat.models import create_model  # noqa: E402
from videomaskfeat.models.encoder_base import Encoder  # noqa: E402
from videomaskfeat.models.loading import load_model  # noqa: E402
from videomaskfeat.models.zoo import encoder_of  # noqa: E402
from videomaskfeat.recipe import ClipRecipe  # noqa: E402
from videomaskfeat.schemas.pretrain import PretrainConfig  # noqa: E402
from videomaskfeat.stored_recipe import ClassifyRecipe, read_recipe  # noqa: E402

TIMES = 2
RIDGE = 1e-3  # of the linear fit to colors, for features of standard deviation 1


@dataclass(frozen=True)
class Clips:
    """Features [n, TIMES, D], mean colors [n, TIMES, 3] and labels [n] of clips, and the variance of all
    tokens, in time [D] and in total [D].
    """

    features: np.ndarray
    colors: np.ndarray
    labels: np.ndarray
    in_time: np.ndarray
    in_total: np.ndarray


def main() -> None:
    """Measure every run, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run folders of pretrain with probe.train set")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    table = Table("run", "encoder", "class, %", "color, R2", "video, %", "change, %")
    results = {}
    for run in options.runs:
        trained = encoder_of(load_model(run / "weights.safetensors"))
        torch.manual_seed(0)
        name, arguments = cast(Any, trained).created_as
        fresh = encoder_of(create_model(name, **arguments))
        for title, encoder in (("pre-trained", trained), ("fresh", fresh)):
            scores = measure(encoder, run)
            results[f"{run}, {title}"] = scores
            table.add_row(str(run), title, *(f"{value:.3g}" for value in scores.values()))
    Console().print(table)
    if options.out is not None:
        content = {"machine": machine("cpu"), "runs": results}
        options.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def measure(encoder: Encoder, run: Path) -> dict[str, float]:
    """The scores of an encoder on the lists of a run."""
    config = load_config(PretrainConfig, str(run / "config.yaml"), ())
    recipe = read_recipe(run / "weights.safetensors").clip
    known, tested = (clips_of(encoder, path, recipe) for path in (config.probe.train, config.probe.test))
    averaged, labels = known.features.mean(axis=1), known.labels
    classes = 1 + max(labels.max(), tested.labels.max())
    scores = linear_probe_scores(averaged, labels, tested.features.mean(axis=1), classes=classes)
    return {
        "class_top1": accuracy(scores, tested.labels).top1,
        "color_r2": explained(known, tested),
        "same_video": 100 * same_video(tested.features),
        "change": float(100 * tested.in_time.sum() / tested.in_total.sum()),
    }


def clips_of(encoder: Encoder, path: str, clip: ClipRecipe) -> Clips:
    """Features, colors and labels of a list."""
    recipe = ClassifyRecipe(clip=clip, views=TIMES, crops=1, short_side=clip.short_side)
    views = build_views(load_records(path, labels="yes"), recipe)
    on_grid = functools.partial(encoder.features, pooled=False)  # [B, t, h, w, D]
    network = ClipPass(on_grid, clip, Machine("cpu"))
    features, colors, labels, in_time = [], [], [], []
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    with evaluation_mode(encoder):
        for batch in ViewLoader(views, per_batch=4, workers=0):
            tokens = network(batch.clips)
            features.append(tokens.mean(dim=(1, 2, 3)))
            colors.append(batch.clips.float().mean(dim=(1, 2, 3)))
            labels.append(batch.labels)
            in_time.append(tokens.var(dim=1, correction=0).mean(dim=(1, 2)))
            rows = tokens.flatten(0, 3)
            count, total, squares = count + len(rows), total + rows.sum(0), squares + rows.square().sum(0)
    mean = total / count
    return Clips(
        torch.cat(features).unflatten(0, (-1, TIMES)).numpy(),
        torch.cat(colors).unflatten(0, (-1, TIMES)).numpy(),
        torch.cat(labels).numpy(),
        torch.cat(in_time).mean(dim=0).numpy(),
        (squares / count - mean**2).numpy(),
    )


def explained(known: Clips, tested: Clips) -> float:
    """R2 of the mean color, from a ridge regression on the features."""
    mean, deviation = known.features.mean(axis=(0, 1)), known.features.std(axis=(0, 1)) + 1e-12
    x, y = (((part.features - mean) / deviation).reshape(-1, len(mean)) for part in (known, tested))
    colors, expected = (part.colors.reshape(-1, 3) for part in (known, tested))
    level = colors.mean(axis=0)
    weights = np.linalg.solve(x.T @ x + RIDGE * len(x) * np.eye(x.shape[1]), x.T @ (colors - level))
    errors = ((y @ weights + level - expected) ** 2).sum()
    return float(1 - errors / ((expected - expected.mean(axis=0)) ** 2).sum())


def same_video(features: np.ndarray) -> float:
    """Share of clips with the nearest clip of the other time from the same video; features [n, TIMES, D]."""
    centered = features - features.mean(axis=(0, 1))
    unit = centered / np.linalg.norm(centered, axis=-1, keepdims=True)
    nearest = (unit[:, 0] @ unit[:, 1].T).argmax(axis=1)
    return float((nearest == np.arange(len(nearest))).mean())


if __name__ == "__main__":
    main()
