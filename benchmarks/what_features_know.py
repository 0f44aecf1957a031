"""What do an encoder's features know: how things move, what colour they have, which video they are of?

    python benchmarks/what_features_know.py runs/compare/*/seed_1/pretrained --out knows.json

For each pre-training run, its encoder and the same network with fresh weights, frozen, on the labelled lists
of the run's ``probe`` (Kinetics CSVs): two clips a video at two times, tokens averaged.

- class: top-1 of the exact linear fit on one list, asked on the other, in percent.
- colour: share of the variance (R2) of a clip's mean red, green and blue that a linear fit explains.
- video: how often, of all clips at the other time, the nearest one (cosine) is of the same video, in percent.
- change: share of the variance of all tokens that is change in time at one place of one clip, in percent.
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
from videomaskfeat.models.weights import load_model  # noqa: E402
from videomaskfeat.models.zoo import encoder_of  # noqa: E402
from videomaskfeat.recipe import ClassifyRecipe, ClipRecipe, read_recipe  # noqa: E402
from videomaskfeat.schemas import PretrainConfig  # noqa: E402

TIMES = 2
RIDGE = 1e-3  # of the linear fit to colours, on features of deviation 1


@dataclass(frozen=True)
class Clips:
    """Of a list's clips: features [n, TIMES, D], mean colours [n, TIMES, 3] and labels [n]; and the variance
    of all tokens, in time [D] and altogether [D].
    """

    features: np.ndarray
    colours: np.ndarray
    labels: np.ndarray
    in_time: np.ndarray
    altogether: np.ndarray


def main() -> None:
    """Ask every run, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run folders of pretrain with probe.train set")
    parser.add_argument("--out", type=Path, help="JSON file for machine and figures")
    options = parser.parse_args()
    table = Table("run", "encoder", "class, %", "colour, R2", "video, %", "change, %")
    results = {}
    for run in options.runs:
        trained = encoder_of(load_model(run / "weights.safetensors"))
        torch.manual_seed(0)
        name, arguments = cast(Any, trained).created_as
        fresh = encoder_of(create_model(name, **arguments))
        for title, encoder in (("pre-trained", trained), ("fresh", fresh)):
            knows = ask(encoder, run)
            results[f"{run}, {title}"] = knows
            table.add_row(str(run), title, *(f"{value:.3g}" for value in knows.values()))
    Console().print(table)
    if options.out is not None:
        content = {"machine": machine("cpu"), "runs": results}
        options.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def ask(encoder: Encoder, run: Path) -> dict[str, float]:
    """What an encoder knows, on the lists of a run."""
    config = load_config(PretrainConfig, str(run / "config.yaml"), ())
    recipe = read_recipe(run / "weights.safetensors").clip
    known, asked = (clips_of(encoder, path, recipe) for path in (config.probe.train, config.probe.test))
    averaged, labels = known.features.mean(axis=1), known.labels
    classes = 1 + max(labels.max(), asked.labels.max())
    scores = linear_probe_scores(averaged, labels, asked.features.mean(axis=1), classes=classes)
    return {
        "class_top1": accuracy(scores, asked.labels).top1,
        "colour_r2": explained(known, asked),
        "same_video": 100 * same_video(asked.features),
        "change": float(100 * asked.in_time.sum() / asked.altogether.sum()),
    }


def clips_of(encoder: Encoder, path: str, clip: ClipRecipe) -> Clips:
    """Features, colours and labels of a list."""
    recipe = ClassifyRecipe(clip=clip, views=TIMES, crops=1, short_side=clip.crop)
    views = build_views(load_records(path, labels="yes"), recipe)
    on_grid = functools.partial(encoder.features, pooled=False)  # [B, t, h, w, D]
    network = ClipPass(on_grid, clip, Machine("cpu"))
    features, colours, labels, in_time = [], [], [], []
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    with evaluation_mode(encoder):
        for batch in ViewLoader(views, per_batch=4, workers=0):
            tokens = network(batch.clips)
            features.append(tokens.mean(dim=(1, 2, 3)))
            colours.append(batch.clips.float().mean(dim=(1, 2, 3)))
            labels.append(batch.labels)
            in_time.append(tokens.var(dim=1, correction=0).mean(dim=(1, 2)))
            rows = tokens.flatten(0, 3)
            count, total, squares = count + len(rows), total + rows.sum(0), squares + rows.square().sum(0)
    mean = total / count
    return Clips(
        torch.cat(features).unflatten(0, (-1, TIMES)).numpy(),
        torch.cat(colours).unflatten(0, (-1, TIMES)).numpy(),
        torch.cat(labels).numpy(),
        torch.cat(in_time).mean(dim=0).numpy(),
        (squares / count - mean**2).numpy(),
    )


def explained(known: Clips, asked: Clips) -> float:
    """R2 of the mean colour, from a ridge regression on the features."""
    mean, deviation = known.features.mean(axis=(0, 1)), known.features.std(axis=(0, 1)) + 1e-12
    x, y = (((part.features - mean) / deviation).reshape(-1, len(mean)) for part in (known, asked))
    colours, wanted = (part.colours.reshape(-1, 3) for part in (known, asked))
    level = colours.mean(axis=0)
    weights = np.linalg.solve(x.T @ x + RIDGE * len(x) * np.eye(x.shape[1]), x.T @ (colours - level))
    errors = ((y @ weights + level - wanted) ** 2).sum()
    return float(1 - errors / ((wanted - wanted.mean(axis=0)) ** 2).sum())


def same_video(features: np.ndarray) -> float:
    """Share of clips whose nearest one at the other time is of their video; features [n, TIMES, D]."""
    centred = features - features.mean(axis=(0, 1))
    unit = centred / np.linalg.norm(centred, axis=-1, keepdims=True)
    nearest = (unit[:, 0] @ unit[:, 1].T).argmax(axis=1)
    return float((nearest == np.arange(len(nearest))).mean())


if __name__ == "__main__":
    main()
