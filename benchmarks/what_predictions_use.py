"""Sources of a prediction: the visible tokens at its own time, or the other times of the clip.

    python benchmarks/what_predictions_use.py runs/compare/*/seed_1/pretrained --out uses.json

For each run of masked prediction, it measures the loss on the held-out list, at the hidden positions of
one time after another. The network sees

- the clip, as in training;
- the other times in another order: the same appearance without the motion;
- only its own time: all other times show another video;
- only the other times: its own time shows another video;
- none: all times show another video, for the loss without information about the clip.

The target is always that of the clip.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from benchmarks.harness import machine  # noqa: E402  (the repository is not installed)
from videomaskfeat.config import load_config  # noqa: E402
from videomaskfeat.methods.build import build_method, heldout_loader  # noqa: E402
from videomaskfeat.methods.masked import MaskedPrediction  # noqa: E402
from videomaskfeat.models.weights import load_into, read_state  # noqa: E402
from videomaskfeat.recipe import normalize  # noqa: E402
from videomaskfeat.schemas import PretrainConfig  # noqa: E402

CLIPS = 120
SEEN = ("clip", "shuffled", "own time", "other times", "none")


def main() -> None:
    """Measure every run, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run folders of pretrain with data.validation set")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    table = Table("run", *(f"sees {seen}" for seen in SEEN))
    results = {}
    for run in options.runs:
        losses = losses_of(run)
        results[str(run)] = losses
        table.add_row(str(run), *(f"{loss:.4f}" for loss in losses.values()))
    Console().print(table)
    if options.out is not None:
        content = {"machine": machine("cpu"), "clips": CLIPS, "runs": results}
        options.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def losses_of(run: Path) -> dict[str, float]:
    """The loss over all hidden positions of the held-out clips, for each input."""
    config = load_config(PretrainConfig, str(run / "config.yaml"), ("data.workers=0",))
    method = build_method(config)
    assert isinstance(method, MaskedPrediction), f"{run}: not a run of the method masked"
    load_into(method.student, read_state(run / "weights.safetensors"))
    method.student.eval()
    loader = heldout_loader(config, method)
    assert loader is not None, f"{run}: data.validation is not set"
    sums, hidden_places, left = dict.fromkeys(SEEN, 0.0), 0, CLIPS
    for batch in loader.epoch(0):
        if left < 2:
            break
        clips = normalize(batch.clips, mean=config.clip.mean, std=config.clip.std)[:left]
        mask = batch.mask[:left]
        left -= len(clips)
        if len(clips) < 2:
            break  # there is no other video
        target = method.target(clips)
        for time in range(mask.shape[1]):
            predicted = torch.zeros_like(mask)
            predicted[:, time] = mask[:, time]
            places = int(predicted.sum())
            if not places:
                continue
            hidden_places += places
            for seen in SEEN:
                predictions = method.student(shown(clips, seen, time, mask.shape[1]), mask)
                sums[seen] += places * float(method.target.loss(predictions, target, predicted))
    loader.close()
    return {seen: total / hidden_places for seen, total in sums.items()}


def shown(clips: Tensor, seen: str, time: int, times: int) -> Tensor:
    """Clips [B, C, T, H, W] for the network; the hidden times show the next video of the batch."""
    frames = clips.shape[2] // times
    own = torch.zeros(clips.shape[2], dtype=torch.bool)
    own[time * frames : (time + 1) * frames] = True
    if seen == "shuffled":  # each other time shows the next one, cube by cube
        places = own.logical_not().nonzero().flatten()
        mixed = clips.clone()
        mixed[:, :, places] = clips[:, :, places.roll(-frames)]
        return mixed
    everything = torch.ones_like(own)
    own_frames = {"clip": everything, "own time": own, "other times": ~own, "none": ~everything}[seen]
    return torch.where(own_frames[:, None, None], clips, clips.roll(1, dims=0))


if __name__ == "__main__":
    main()
