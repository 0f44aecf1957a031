"""HOG of 16 frames of 224x224 (the targets of two clips), against scattering into a histogram a pixel."""

from __future__ import annotations

import torch

from benchmarks.baseline import plain_hog
from benchmarks.harness import Row, alternate
from videomaskfeat.targets.hog import hog_features


def run(*, device: str) -> list[Row]:
    """Check that both agree, then time them."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (16, 3, 224, 224), generator=generator).float().to(device)
    frames = (frames / 255 - 0.45) / 0.225
    torch.testing.assert_close(hog_features(frames), plain_hog(frames), atol=1e-4, rtol=0)
    seconds = alternate(
        {"ours": lambda: hog_features(frames), "baseline": lambda: plain_hog(frames)},
        rounds=15,
        warmup=3,
        device=device,
    )
    return [
        Row(
            "HOG, 16 frames of 224x224",
            1e3 * seconds["ours"],
            1e3 * seconds["baseline"],
            "ms",
            target=">= 5x faster, < 3 % of a step",
        )
    ]
