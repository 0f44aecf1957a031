"""Cropping and augmenting a sample in a worker and on the device (``data.augment_on``), without decoding.

The samples are those of pre-training (crop and flip) and of fine-tuning (RandAugment, crop and erasing): 16
frames of 340x256, cropped to 224x224. A worker's time contains the random draws and the copy into the batch.
The functions of the device run on the measured device: on one core of a CPU, where a worker is faster.
"""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks.bench_loader import SAMPLER, pictures_with_grain
from benchmarks.harness import Row, synchronize
from videomaskfeat.block_masks import cube
from videomaskfeat.data.augment import Augmentation, RandAugment, RandomErasing
from videomaskfeat.data.clips import PretrainClips, VideoClips, sample_generator
from videomaskfeat.data.formats import load_records
from videomaskfeat.data.labeled_clips import LabeledClips
from videomaskfeat.data.transforms import RandomResizedCrop
from videomaskfeat.grid import TokenGrid

HEIGHT, WIDTH = 256, 340
CLIPS, ROUNDS = 40, 5
CLIP_BYTES = 16 * 224 * 224 * 3
WAYS = ("workers", "device")


def run(*, device: str, dry: bool = False) -> list[Row]:
    """Time both kinds of samples."""
    clips, rounds = (2, 1) if dry else (CLIPS, ROUNDS)
    frames = np.stack(pictures_with_grain(HEIGHT, WIDTH)[: 16 * 4 : 4])
    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "list.csv"
            path.write_text(f"{folder}/video.mp4 0\n", encoding="utf-8")
            sides: dict[str, dict[str, VideoClips[Any, Any]]] = {
                "pre-training": {way: _pretraining(path, way) for way in WAYS},
                "fine-tuning": {way: _finetuning(path, way) for way in WAYS},
            }
            return [
                row
                for kind, ways in sides.items()
                for row in _measure(kind, ways, frames, clips=clips, rounds=rounds, device=device)
            ]
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])


def _pretraining(path: Path, way: str) -> PretrainClips:
    return PretrainClips(
        load_records(path),
        sampler=SAMPLER,
        transform=RandomResizedCrop(224),
        mask=functools.partial(cube, TokenGrid(8, 7, 7), 0.4),
        uncropped=way == "device",
    )


def _finetuning(path: Path, way: str) -> LabeledClips:
    return LabeledClips(
        load_records(path),
        sampler=SAMPLER,
        transform=RandomResizedCrop(224, area=(0.08, 1.0)),
        augment=Augmentation(
            randaugment=RandAugment.from_words("rand-m7-n4-mstd0.5-inc1", interpolation="bicubic"),
            erasing=RandomErasing(probability=0.25),
        ),
        uncropped=way == "device",
    )


def _measure(
    kind: str,
    ways: dict[str, VideoClips[Any, Any]],
    frames: np.ndarray,
    *,
    clips: int,
    rounds: int,
    device: str,
) -> list[Row]:
    """Medians over rounds of the mean per clip; the ways take turns."""
    seconds: dict[str, list[float]] = {"workers": [], "device": [], "functions": []}
    size = 0.0
    for number in range(1 + rounds):  # the first round is a warm-up
        for way, dataset in ways.items():
            spent, batches = _time(functools.partial(_load, dataset, frames, clips), "cpu")
            if number:
                seconds[way].append(spent / clips)
        size = statistics.mean(batch.clips.pixels.numel() for batch in batches)
        if torch.device(device).type == "cuda":
            batches = [batch.pin_memory() for batch in batches]
        move = functools.partial(
            lambda own: [batch.clips.to(device, non_blocking=True) for batch in own], batches
        )
        spent, _ = _time(move, device)
        if number:
            seconds["functions"].append(spent / clips)
    ms = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
    place = "on a core of this CPU" if device == "cpu" else "with the copy"
    return [
        Row(
            f"{kind}: worker, left to the device / cropped there", ms["device"], ms["workers"], "ms per clip"
        ),
        Row(
            f"{kind}: crop and augmentation, device / worker",
            ms["functions"],
            ms["workers"],
            "ms per clip",
            note=place,
        ),
        Row(
            f"{kind}: copied to the device, uncropped / cropped", size / 1e6, CLIP_BYTES / 1e6, "MB per clip"
        ),
    ]


def _load(dataset: VideoClips[Any, Any], frames: np.ndarray, clips: int) -> list[Any]:
    """Batches of one clip, made as a worker makes them, from decoded frames."""
    samples = (dataset._sample([frames], 0, sample_generator(0, 0, number)) for number in range(clips))
    return [dataset.collate([sample]) for sample in samples]


def _time(function: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Seconds of the processor on a CPU, so that other programs do not count, or of the clock on a GPU."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    synchronize(device)
    start = clock()
    result = function()
    synchronize(device)
    return clock() - start, result
