"""The whole loader (decode, crop, resize, flip, mask, collate, transfer) against decoding alone.

The baseline is decord's ``get_batch`` of the same frames on one thread in a plain loop, one opening per
sample. The videos are like those of Kinetics: 300 frames of H.264, 340x256 and 1280x720, with sparse and
dense key frames.
"""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import decord
import numpy as np

from benchmarks.harness import Row
from videomaskfeat.block_masks import cube
from videomaskfeat.data.clips import PretrainClips, epoch_order, sample_generator
from videomaskfeat.data.formats import load_records
from videomaskfeat.data.loader import ClipLoader
from videomaskfeat.data.sample_scenes import MOTIONS, make_scene
from videomaskfeat.data.sampling import clip_indices_random
from videomaskfeat.data.transforms import RandomResizedCrop
from videomaskfeat.grid import TokenGrid
from videomaskfeat.mp4 import write_mp4

FRAMES, FPS = 300, 30.0
SIZES = {(256, 340): 48, (720, 1280): 12}  # (height, width) -> number of timed samples
KEYFRAME_INTERVALS = (250, 12)
BATCH, ROUNDS, WARM_BATCHES = 2, 3, 3
SAMPLER = functools.partial(clip_indices_random, frames=16, stride=4)


def run(*, device: str) -> list[Row]:
    """Time each kind of file; the device has no effect."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for (height, width), samples in SIZES.items():
            pictures = pictures_with_grain(height, width)
            for interval in KEYFRAME_INTERVALS:
                path = Path(folder) / f"{width}x{height}_{interval}.mp4"
                write_mp4(path, pictures, fps=FPS, crf=23, keyframe_interval=interval)
                auto, pyav = (_data_set(path, samples, reader) for reader in ("auto", "pyav"))
                rows += _compare(auto, pyav, f"{width}x{height}, key frame every {interval}")
    return rows


def _data_set(video: Path, samples: int, reader: str) -> PretrainClips:
    path = video.with_suffix(".csv")
    path.write_text(f"{video} 0\n" * (samples + WARM_BATCHES * BATCH), encoding="utf-8")
    return PretrainClips(
        load_records(path),
        sampler=SAMPLER,
        transform=RandomResizedCrop(224),
        mask=functools.partial(cube, TokenGrid(8, 7, 7), 0.4),
        reader=reader,
    )


def pictures_with_grain(height: int, width: int) -> list[np.ndarray]:
    """A scene with noise, which compresses like camera video: 0.4 Mbit/s at 340x256, 3 at 1280x720."""
    rng = np.random.default_rng(0)
    side = max(height, width)
    motions = list(rng.choice(list(MOTIONS), size=4))
    scene = make_scene(motions, rng, frames=FRAMES, size=340, fps=FPS)
    grain = rng.normal(0, 3.0, size=(side + 64, side + 64, 3)).astype(np.float32)
    pictures = []
    for picture in scene.frames():
        top, left = rng.integers(0, 64, size=2)
        large = cv2.resize(picture, (side, side), interpolation=cv2.INTER_CUBIC)[:height, :width]
        noisy = large + grain[top : top + height, left : left + width]
        pictures.append(np.clip(noisy, 0, 255).astype(np.uint8))
    return pictures


def _compare(dataset: PretrainClips, with_pyav: PretrainClips, title: str) -> list[Row]:
    ways: dict[str, Callable[[], float]] = {
        "decode": functools.partial(_decode_rate, dataset),
        "one": functools.partial(_loader_rate, dataset, 1),
        "two": functools.partial(_loader_rate, dataset, 2),
        "pyav": functools.partial(_loader_rate, with_pyav, 1),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):  # in turn, so that a busy moment of the machine affects all ways
        for name, way in ways.items():
            rates[name].append(way())
    decode, one, two, pyav = (statistics.median(rates[name]) for name in ways)
    unit, target = "samples/s", "at least 0.9 of decoding"
    return [
        Row(f"loader, 1 worker / decoding alone, {title}", one, decode, unit, "higher", target),
        Row(f"the same, data.reader=pyav, {title}", pyav, decode, unit, "higher", target),
        Row(f"loader, 2 workers / 1 worker, {title}", two, one, unit, "higher", "2 cores: close to 2"),
    ]


def _decode_rate(dataset: PretrainClips) -> float:
    order = epoch_order(dataset.seed, 0, len(dataset))[WARM_BATCHES * BATCH :]
    start = time.perf_counter()
    for index in order:
        reader = decord.VideoReader(dataset.records[index].path, num_threads=1)
        indices = SAMPLER(len(reader), reader.get_avg_fps(), rng=sample_generator(dataset.seed, 0, index))
        reader.get_batch(indices).asnumpy()
    return len(order) / (time.perf_counter() - start)


def _loader_rate(dataset: PretrainClips, workers: int) -> float:
    """Samples per second, with the same number of ready batches at the start and the end."""
    loader = ClipLoader(dataset, batch_size=BATCH, workers=workers)
    batches = loader.epoch(0)
    for _ in range(WARM_BATCHES):
        next(batches)
    start = time.perf_counter()
    samples = sum(len(batch.index) for batch in batches)
    seconds = time.perf_counter() - start
    loader.close()
    return samples / seconds
