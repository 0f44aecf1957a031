"""A training step of MAE on ViT-B, 16 frames of 224x224, 90 % hidden, against the dense form.

MAE's encoder processes the visible 10 % of the tokens. It is compared with two dense forms. "all tokens" is
the same model and decoder, with all tokens through the encoder. "mask tokens" is the form of MViTv2: mask
tokens at the hidden positions before the encoder, and a linear head after it. Each form runs in its own
process and reuses freed memory, as the package does. The steps run in turn, after a step of tiny clips: torch
then loads and compiles its code, which does not count as memory of a step.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.harness import SIZES, Row, SideProcess, Size, extra_memory, serve, size_name, synchronize
from videomaskfeat.grid import TokenGrid, resize_mask
from videomaskfeat.machine import keep_freed_memory
from videomaskfeat.masking import random
from videomaskfeat.models import create_model
from videomaskfeat.models.mae import MAE, visible_places
from videomaskfeat.targets.pixels import PixelTarget

RATIO = 0.9
OURS, ALL, TOKENS = SIDES = ("mae", "all-tokens", "mask-tokens")
PRECISIONS = SIZES["cpu"].precisions


class AllTokens(nn.Module):
    """The same model with all tokens through its encoder; the decoder gets the visible tokens, as in MAE."""

    def __init__(self, model: MAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, clips: Tensor, mask: Tensor) -> Tensor:
        """Predictions [B, t, h, w, K]."""
        model = self.model
        tokens, grid = model.patch_embed(clips)
        encoded = model.norm(model.through_blocks(tokens, grid)[0])  # [B, 1+N, D]
        visible = visible_places(resize_mask(mask, grid))
        chosen = encoded[:, 1:].gather(1, visible[..., None].expand(-1, -1, encoded.shape[2]))
        tokens = torch.cat([encoded[:, :1], chosen], dim=1)
        return model.decode(tokens, visible, grid).unflatten(1, grid.shape)


class Side:
    """One form with its data; calling it runs one step and returns its seconds."""

    def __init__(self, name: str, precision: str, device: str, size: Size) -> None:
        torch.manual_seed(0)
        self.target = PixelTarget()
        arguments: dict[str, Any] = {"values_per_token": self.target.values_per_token}
        if size.depth < 12:  # of the whole ViT-B
            arguments |= {"depth": 2, "width": 64, "heads": 2, "clip_size": size.clip}
        model = create_model("maskfeat_vit_b" if name == TOKENS else "mae_vit_b", **arguments)
        self.model = (AllTokens(model) if name == ALL else model).to(device)  # type: ignore[arg-type]
        self.device, self.precision = device, precision
        self.clips = torch.randn(size.batch, 3, *size.clip).to(device)
        rng = np.random.default_rng(0)
        grid = TokenGrid(size.clip[0] // 2, size.clip[1] // 16, size.clip[2] // 16)
        masks = [random(grid, RATIO, rng) for _ in range(size.batch)]
        self.mask = torch.from_numpy(np.stack(masks)).to(device)

    def warm_up(self) -> None:
        """Run a step of clips of four cubes, and return its memory to the system."""
        whole = self.clips, self.mask
        self.clips, self.mask = self.clips[:, :, :2, :32, :32], self.mask[:, :1, :2, :2].clone()
        self.mask[:] = True
        self.mask[:, :, 0, 0] = False
        self()
        self.clips, self.mask = whole
        if self.device == "cpu":
            ctypes.CDLL(None).malloc_trim(0)

    def __call__(self) -> float:
        """Target, forward, loss, backward."""
        synchronize(self.device)
        start = time.perf_counter()
        with torch.no_grad():
            target = self.target(self.clips)
        kind = torch.device(self.device).type
        with torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bf16"):
            predictions = self.model(self.clips, self.mask)
        self.target.loss(predictions, target, self.mask).backward()
        self.model.zero_grad(set_to_none=True)
        synchronize(self.device)
        return time.perf_counter() - start


def run(*, device: str, dry: bool = False) -> list[Row]:
    """Measure steps and their memory in both precisions."""
    rows = []
    size = SIZES[size_name(device, dry)]
    for precision in size.precisions:
        sides = {
            name: SideProcess("benchmarks.bench_mae_step", name, precision, device, size_name(device, dry))
            for name in SIDES
        }
        seconds: dict[str, list[float]] = {name: [] for name in SIDES}
        try:
            memory = {name: side.request("memory") for name, side in sides.items()}
            for _ in range(size.rounds):
                for name, side in sides.items():
                    seconds[name].append(side.request("step"))
        finally:
            for side in sides.values():
                side.close()
        median = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
        note = f"batch {size.batch}, {RATIO:.0%} hidden"
        for other, title in ((ALL, "all tokens"), (TOKENS, "mask tokens")):
            faster, less = (">= 3x faster", "<= 0.5 of the dense form") if other == ALL else ("", "")
            step, peak = f"step against {title}, {precision}", f"peak memory against {title}, {precision}"
            rows.append(Row(step, median[OURS], median[other], "ms", target=faster, note=note))
            rows.append(Row(peak, memory[OURS], memory[other], "MiB", target=less, note=note))
    return rows


def _serve(name: str, precision: str, device: str, size: Size) -> None:
    """Answer "memory" (of the first step, MiB) and "step" (seconds)."""
    side: Any = Side(name, precision, device, size)
    side.warm_up()
    if device == "cpu":
        keep_freed_memory()
    serve(lambda request: extra_memory(side, device) if request == "memory" else side())


def _main() -> None:
    parser = argparse.ArgumentParser(description="One side of the benchmark, which answers requests.")
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("precision", choices=PRECISIONS)
    parser.add_argument("device")
    parser.add_argument("size", choices=SIZES)
    options = parser.parse_args()
    _serve(options.side, options.precision, options.device, SIZES[options.size])


if __name__ == "__main__":
    _main()
