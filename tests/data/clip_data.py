"""Helpers for tests of clips and loaders, at module level, so that worker processes can import them."""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from videomaskfeat.data.batches import Failure
from videomaskfeat.data.clips import PretrainClips, PretrainSample
from videomaskfeat.data.formats import load_records
from videomaskfeat.data.records import Records
from videomaskfeat.data.sampling import clip_indices_random
from videomaskfeat.data.transforms import RandomResizedCrop
from videomaskfeat.grid import TokenGrid
from videomaskfeat.masking import random
from videomaskfeat.mp4 import write_mp4

SAMPLER = functools.partial(clip_indices_random, frames=2, stride=2)
MASK = functools.partial(random, TokenGrid(1, 4, 4), 0.5)


def write_videos(folder: Path, number: int, *, frames: int = 8, size: int = 32) -> Path:
    """Write videos of noise, ``000.mp4`` ..., and ``train.csv`` with their list; returns its path."""
    rng = np.random.default_rng(7)
    for index in range(number):
        pictures = rng.integers(0, 256, size=(frames, size, size, 3), dtype=np.uint8)
        write_mp4(folder / f"{index:03d}.mp4", pictures)
    path = folder / "train.csv"
    path.write_text("".join(f"{index:03d}.mp4 {index % 5}\n" for index in range(number)))
    return path


def make_clips(records: Records | Path, **arguments: object) -> PretrainClips:
    """A data set of 2-frame clips of 16x16 pixels with masks on 1x4x4 cells."""
    rows = records if isinstance(records, Records) else load_records(records)
    keywords = {"sampler": SAMPLER, "transform": RandomResizedCrop(16), "mask": MASK, "seed": 11, **arguments}
    return PretrainClips(rows, **keywords)  # type: ignore[arg-type]


def raise_bug(num_frames: int, fps: float, *, rng: np.random.Generator) -> np.ndarray:
    """A frame sampler with a bug."""
    raise RuntimeError("a bug in the sampler")


def equal(left: Any, right: Any) -> bool:
    """Whether two batches have the same tensors and failures."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    if dataclasses.is_dataclass(left) and not isinstance(left, Failure):
        return all(
            equal(getattr(left, one.name), getattr(right, one.name)) for one in dataclasses.fields(left)
        )
    return bool(left == right)


class DeadlyClips(PretrainClips):
    """Clips, some of whose records harm the process that reads them, as bad files do in a decoder.

    deeds: effect of reading a record: abort, kill, stop, hang or leak.
    """

    deeds: dict[int, str]

    def _load(self, index: int, rng: np.random.Generator) -> PretrainSample:
        deed = self.deeds.get(index)
        if deed == "hang":
            time.sleep(3600)
        elif deed == "leak":
            _leaked.append(np.ones(2**21))  # 16 MiB
        elif deed is not None:
            os.kill(
                os.getpid(), {"abort": signal.SIGABRT, "kill": signal.SIGKILL, "stop": signal.SIGSTOP}[deed]
            )
        return super()._load(index, rng)


_leaked: list[np.ndarray] = []


def deadly_clips(records: Path, deeds: dict[int, str], **arguments: object) -> DeadlyClips:
    """As `make_clips`."""
    dataset = make_clips(records, **arguments)
    dataset.__class__ = DeadlyClips
    dataset.deeds = deeds  # type: ignore[attr-defined]
    assert isinstance(dataset, DeadlyClips)
    return dataset
