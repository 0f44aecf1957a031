"""HOG of the frames of a pre-training step (224x224), against scattering into a histogram per pixel."""

from __future__ import annotations

import torch

from benchmarks.baseline import plain_hog
from benchmarks.harness import SIZES, Row, alternate, size_name
from videomaskfeat.targets.hog import hog_features


def run(*, device: str, dry: bool = False) -> list[Row]:
    """Check that both results are equal, then time them."""
    size = SIZES[size_name(device, dry)]
    count, height, width = 8 * size.batch, *size.clip[1:]
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (count, 3, height, width), generator=generator).float().to(device)
    frames = (frames / 255 - 0.45) / 0.225
    torch.testing.assert_close(hog_features(frames), plain_hog(frames), atol=1e-4, rtol=0)
    seconds = alternate(
        {"ours": lambda: hog_features(frames), "baseline": lambda: plain_hog(frames)},
        rounds=3 * size.rounds,
        warmup=3,
        device=device,
    )
    return [
        Row(
            f"HOG, {count} frames of {height}x{width}",
            1e3 * seconds["ours"],
            1e3 * seconds["baseline"],
            "ms",
            target=">= 5x faster, < 3 % of a step",
        )
    ]
