"""A pre-training step of our MAE against Hugging Face's VideoMAEForPreTraining: ViT-B, 16 frames of 224x224.

Both sides have the same architecture, weights, clips and masks (90 % hidden), and the same loss, which is
compared before the timing. Each side runs in its own process; a third one is theirs with our setting that
keeps freed memory (on the CPU). The steps of the sides run in turn. Needs the package transformers, which is
no dependency of this project: `pip install transformers`, or a folder of its wheels in PYTHONPATH.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.harness import (
    SIZES,
    Row,
    SideProcess,
    Size,
    extra_memory,
    full_float32,
    serve,
    size_name,
    synchronize,
)
from videomaskfeat.grid import TokenGrid
from videomaskfeat.machine import keep_freed_memory
from videomaskfeat.masking import random
from videomaskfeat.models.loading import load_model
from videomaskfeat.targets.pixels import PixelTarget

RATIO = 0.9
STD = (0.229, 0.224, 0.225)  # of the normalization that the baseline undoes
OURS, THEIRS, THEIRS_KEEPING = SIDES = ("ours", "huggingface", "huggingface-keeping-memory")
PRECISIONS = SIZES["cpu"].precisions
TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2}  # of the loss, relative


class Ours(nn.Module):
    """Our MAE with the weights of the baseline, and its target."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.model = load_model(folder)
        self.target = PixelTarget(frames="all", per_channel=True, clip_std=STD)

    def forward(self, clips: Tensor, mask: Tensor, hidden_cells: int) -> Tensor:
        """Clips float [B, C, T, H, W], mask bool [B, t, h, w] -> loss []."""
        with torch.no_grad(), torch.autocast(clips.device.type, enabled=False):
            target = self.target(clips)
        loss: Tensor = self.target.loss(self.model(clips, mask, hidden_cells), target, mask)
        return loss


class Theirs(nn.Module):
    """The baseline."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        from transformers import VideoMAEForPreTraining

        self.model = VideoMAEForPreTraining.from_pretrained(folder)

    def forward(self, clips: Tensor, mask: Tensor, hidden_cells: int) -> Tensor:
        """See :class:`Ours`."""
        loss: Tensor = self.model(clips.transpose(1, 2), bool_masked_pos=mask.flatten(1)).loss
        return loss


class Side:
    """One implementation with its data; calling it runs one step and returns its wall and CPU seconds."""

    def __init__(self, name: str, precision: str, device: str, size: Size, folder: Path) -> None:
        self.network = (Ours(folder) if name == OURS else Theirs(folder)).to(device).train()
        self.device, self.precision = device, precision
        data = torch.Generator().manual_seed(0)  # the same for all sides
        self.clips = torch.randn(size.batch, 3, *size.clip, generator=data).to(device)
        grid = TokenGrid(size.clip[0] // 2, size.clip[1] // 16, size.clip[2] // 16)
        rng = np.random.default_rng(0)
        masks = np.stack([random(grid, RATIO, rng) for _ in range(size.batch)])
        self.mask, self.hidden_cells = torch.from_numpy(masks).to(device), int(masks[0].sum())

    def loss(self) -> Tensor:
        """The loss of the batch."""
        kind = torch.device(self.device).type
        with torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bf16"):
            loss: Tensor = self.network(self.clips, self.mask, self.hidden_cells)
        return loss

    def __call__(self) -> tuple[float, float]:
        """Target, forward, loss, backward."""
        synchronize(self.device)
        start = time.perf_counter(), time.process_time()
        self.loss().backward()
        self.network.zero_grad(set_to_none=True)
        synchronize(self.device)
        return time.perf_counter() - start[0], time.process_time() - start[1]


def save_baseline(folder: Path, size: Size) -> None:
    """Write config and random weights of the baseline."""
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    torch.manual_seed(0)
    small: dict[str, Any] = {}
    if size.depth < 12:  # of the whole ViT-B
        small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        small |= {"intermediate_size": 256, "decoder_hidden_size": 32, "decoder_intermediate_size": 128}
        small |= {"decoder_num_attention_heads": 2, "decoder_num_hidden_layers": 1}
    config = VideoMAEConfig(
        num_frames=size.clip[0], image_size=size.clip[1], norm_pix_loss=True, use_mean_pooling=False, **small
    )
    VideoMAEForPreTraining(config).save_pretrained(folder)


def run(*, device: str, dry: bool = False) -> list[Row]:
    """Measure steps and their memory in both precisions.

    Raises:
        RuntimeError: transformers is not installed.
    """
    if importlib.util.find_spec("transformers") is None:
        raise RuntimeError("the package transformers is not installed; pip install transformers")
    rows = []
    size = SIZES[size_name(device, dry)]
    names = SIDES if device == "cpu" else (OURS, THEIRS)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_baseline(folder, size)
        for precision in size.precisions:
            rows += _measure(names, precision, device, size_name(device, dry), folder)
    return rows


def _measure(names: tuple[str, ...], precision: str, device: str, size_key: str, folder: Path) -> list[Row]:
    size = SIZES[size_key]
    sides = {
        name: SideProcess("benchmarks.bench_videomae", name, precision, device, size_key, str(folder))
        for name in names
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    try:
        memory = {name: side.request("memory") for name, side in sides.items()}
        losses = {name: side.request("loss") for name, side in sides.items()}
        for name, loss in losses.items():
            if abs(loss - losses[THEIRS]) > TOLERANCE[precision] * losses[THEIRS]:
                raise RuntimeError(f"the losses differ: {name} {loss}, {THEIRS} {losses[THEIRS]}")
        for number in range(1 + size.rounds):
            for name, side in sides.items():
                elapsed = side.request("step")
                seconds[name] += [elapsed] if number else []  # the first round warms up
    finally:
        for side in sides.values():
            side.close()
    wall, busy = (
        {name: 1e3 * statistics.median(one[kind] for one in values) for name, values in seconds.items()}
        for kind in range(2)
    )
    note = f"batch {size.batch}, {RATIO:.0%} hidden"
    pair = wall[OURS], wall[THEIRS]
    rows = [Row(f"step against VideoMAE, {precision}", *pair, "ms", target=">= 1.5x faster", note=note)]
    if THEIRS_KEEPING in wall:
        for other, title in ((THEIRS, "VideoMAE"), (THEIRS_KEEPING, "VideoMAE with reused memory")):
            pair = busy[OURS], busy[other]
            rows.append(Row(f"CPU time of a step against {title}, {precision}", *pair, "ms", note=note))
    pair = memory[OURS], memory[THEIRS]
    return [*rows, Row(f"peak memory against VideoMAE, {precision}", *pair, "MiB", note=note)]


def _serve(name: str, precision: str, device: str, size: Size, folder: Path) -> None:
    """Answer "memory" (of the first step, MiB), "loss" and "step" (seconds)."""
    if device == "cpu" and name != THEIRS:
        keep_freed_memory()
    side: Any = Side(name, precision, device, size, folder)

    def answer(request: str) -> Any:
        if request == "memory":
            return extra_memory(side, device)
        if request == "loss":
            with torch.no_grad(), full_float32():
                return float(side.loss())
        return side()

    serve(answer)


def _main() -> None:
    parser = argparse.ArgumentParser(description="One side of the benchmark, which answers requests.")
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("precision", choices=PRECISIONS)
    parser.add_argument("device")
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    _serve(options.side, options.precision, options.device, SIZES[options.size], options.folder)


if __name__ == "__main__":
    _main()
