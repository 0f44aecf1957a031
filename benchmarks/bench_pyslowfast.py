"""A MaskFeat pre-training step of MViTv2-S against PySlowFast's own model: 16 frames of 224x224.

`SLOWFAST=/path python benchmarks/run.py pyslowfast` takes a checkout of facebookresearch/SlowFast, which this
project does not need. Packages that only its data loading and detection import are replaced by
empty ones. Both sides have the same weights, clips, masks and loss, which is compared before the timing;
each runs in its own process, and the steps run in turn.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.abc
import importlib.machinery
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import torch
from torch import Tensor, nn

from benchmarks.harness import SIZES, Row, SideProcess, Size, extra_memory, serve
from videomaskfeat.machine import keep_freed_memory

CONFIG = "configs/masked_ssl/k400_MVITv2_S_16x4_MaskFeat_PT.yaml"
EMPTY = (
    *("torchvision", "detectron2", "slowfast.datasets"),
    *("pytorchvideo.losses", "pytorchvideo.models", "pytorchvideo.layers.distributed"),
)
OURS, THEIRS = SIDES = ("ours", "pyslowfast")
ROUNDS = 3
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}  # of the loss, relative


class EmptyPackages(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the packages of EMPTY as objects that accept everything."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        empty = any(name == one or name.startswith(f"{one}.") for one in EMPTY)
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if empty else None

    def create_module(self, spec: Any) -> Any:
        """An object that has every attribute."""
        return MagicMock(__path__=[], __name__=spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is left to do."""


def build_theirs(checkout: Path) -> tuple[nn.Module, Any]:
    """Their model with random weights, and their loss."""
    sys.path.insert(0, str(checkout))
    sys.meta_path.insert(0, EmptyPackages())
    names = ("config.defaults", "models", "models.build", "models.losses")
    defaults, _, build, losses = (importlib.import_module(f"slowfast.{name}") for name in names)
    config = defaults.get_cfg()
    config.merge_from_file(str(checkout / CONFIG))
    config.NUM_GPUS = 0
    torch.manual_seed(0)
    # Under autocast its HOG fails on the CPU, since two types meet in a scatter. It is in float32 here.
    hog = importlib.import_module("slowfast.models.operators").HOGLayerC
    hog.forward = torch.autocast("cpu", enabled=False)(hog.forward)
    return build.MODEL_REGISTRY.get(config.MODEL.MODEL_NAME)(config), losses.MultipleMSELoss()


class Side:
    """One implementation with its data; calling it runs one step and returns its wall and CPU seconds."""

    def __init__(self, name: str, precision: str, size: Size, checkout: Path, weights: Path) -> None:
        self.precision = precision
        data = torch.Generator().manual_seed(0)  # the same for both sides
        self.clips = torch.randn(size.batch, 3, *size.clip, generator=data)
        self.mask = torch.rand(size.batch, 8, 7, 7, generator=data) < 0.4
        self.model: nn.Module
        self.target: Any = None
        if name == THEIRS:
            self.model, self.criterion = build_theirs(checkout)
            torch.save({"model_state": self.model.state_dict()}, weights)
        else:
            from videomaskfeat.interop import load_slowfast

            imported = load_slowfast(checkout / CONFIG, weights)
            self.model, self.target = imported.model, imported.target
        self.is_ours = name == OURS
        self.model.train()

    def loss(self) -> Tensor:
        """The loss of the batch: target, forward, comparison."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            if not self.is_ours:
                mask = self.mask.float()
                predictions, labels = self.model([self.clips, None, mask])
            else:
                with torch.no_grad(), torch.autocast("cpu", enabled=False):
                    target = self.target(self.clips)
                predictions = self.model(self.clips, self.mask)
        if self.is_ours:
            loss: Tensor = self.target.loss(predictions, target, self.mask)
            return loss
        result: Tensor = self.criterion(predictions, labels)[0]
        return result

    def __call__(self) -> tuple[float, float]:
        """Target, forward, loss, backward."""
        start = time.perf_counter(), time.process_time()
        self.loss().backward()
        self.model.zero_grad(set_to_none=True)
        return time.perf_counter() - start[0], time.process_time() - start[1]


def run(*, device: str) -> list[Row]:
    """Measure steps and their memory in both precisions, on the CPU.

    Raises:
        RuntimeError: SLOWFAST does not name a checkout of PySlowFast.
    """
    checkout = Path(os.environ.get("SLOWFAST", ""))
    if not (checkout / CONFIG).is_file() or not os.environ.get("SLOWFAST"):
        raise RuntimeError("set SLOWFAST to the path of a checkout of facebookresearch/SlowFast")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for precision in SIZES["cpu"].precisions:
            rows += _measure(precision, str(checkout.resolve()), str(Path(folder, "weights.pyth")))
    return rows


def _measure(precision: str, checkout: str, weights: str) -> list[Row]:
    sides: dict[str, SideProcess] = {}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in SIDES}
    try:
        for name in (THEIRS, OURS):  # ours reads the weights that theirs writes
            arguments = (name, precision, checkout, weights)
            sides[name] = SideProcess("benchmarks.bench_pyslowfast", *arguments)
            sides[name].request("ready")
        losses = {name: side.request("loss") for name, side in sides.items()}
        if abs(losses[OURS] - losses[THEIRS]) > TOLERANCE[precision] * losses[THEIRS]:
            raise RuntimeError(f"the losses differ: {losses}")
        memory = {name: side.request("memory") for name, side in sides.items()}
        for _ in range(ROUNDS):
            for name, side in sides.items():
                seconds[name].append(side.request("step"))
    finally:
        for side in sides.values():
            side.close()
    wall, busy = (
        [1e3 * statistics.median(times[kind] for times in seconds[name]) for name in SIDES]
        for kind in range(2)
    )
    note = f"batch {SIZES['cpu'].batch}"
    return [
        Row(
            f"step against PySlowFast, {precision}", wall[0], wall[1], "ms", target=">= 2x faster", note=note
        ),
        Row(f"CPU time of a step against PySlowFast, {precision}", busy[0], busy[1], "ms", note=note),
        Row(
            f"peak memory against PySlowFast, {precision}",
            memory[OURS],
            memory[THEIRS],
            "MiB",
            target="<= 0.5 of PySlowFast's",
            note=f"of a step, beyond the weights; {note}",
        ),
    ]


def _main() -> None:
    parser = argparse.ArgumentParser(description="One side of the benchmark, which answers requests.")
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("precision", choices=SIZES["cpu"].precisions)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("weights", type=Path)
    options = parser.parse_args()
    if options.side == OURS:
        keep_freed_memory()
    output, sys.stdout = sys.stdout, sys.stderr  # their import prints
    side = Side(options.side, options.precision, SIZES["cpu"], options.checkout, options.weights)
    sys.stdout = output

    def answer(request: str) -> Any:
        if request == "loss":
            with torch.no_grad():
                return float(side.loss())
        if request == "memory":
            return extra_memory(side, "cpu")
        return side() if request == "step" else None

    serve(answer)


if __name__ == "__main__":
    _main()
