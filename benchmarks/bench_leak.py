"""Growth of a loader worker's memory with the number of videos that it has read.

There is no baseline: the second value of a row is the worker's memory after its first 500 videos.
"""

from __future__ import annotations

import functools
import multiprocessing
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.harness import Row, private_megabytes
from videomaskfeat.block_masks import cube
from videomaskfeat.data.clips import PretrainClips
from videomaskfeat.data.formats import load_records
from videomaskfeat.data.loader import ClipLoader
from videomaskfeat.data.sample import write_sample_data
from videomaskfeat.data.sampling import clip_indices_random
from videomaskfeat.data.transforms import RandomResizedCrop
from videomaskfeat.grid import TokenGrid

READERS = ("decord", "pyav")


def run(*, device: str, videos: int = 3_000) -> list[Row]:
    """Read some thousand videos with one worker; the device has no effect."""
    with tempfile.TemporaryDirectory() as folder:
        write_sample_data(folder, videos=240, ava_videos=0)
        return [_row(Path(folder) / "train.csv", reader, videos) for reader in READERS]


def _row(path: Path, reader: str, videos: int) -> Row:
    counts, megabytes = worker_memory(path, reader, videos)
    settled = counts >= 500  # the libraries' caches are full
    slope = float(np.polyfit(counts[settled], megabytes[settled], 1)[0])
    return Row(
        f"worker memory after {videos:,} videos, {reader}",
        float(megabytes[-1]),
        float(megabytes[settled][0]),
        "MB",
        "lower",
        "does not grow",
        f"{10_000 * slope:+.1f} MB per 10,000 videos",
    )


def worker_memory(path: Path, reader: str, videos: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of read videos [n], and the worker's private memory after each [n], in MB."""
    dataset = PretrainClips(
        load_records(path),
        sampler=functools.partial(clip_indices_random, frames=8, stride=4),
        transform=RandomResizedCrop(64),
        mask=functools.partial(cube, TokenGrid(4, 4, 4), 0.4),
        reader=reader,
    )
    loader = ClipLoader(dataset, batch_size=8, workers=1)
    before = {process.pid for process in multiprocessing.active_children()}
    counts, megabytes = [], []
    done = epoch = 0
    while done < videos:
        for batch in loader.epoch(epoch):
            done += len(batch.index)
            if done % 96 < 8:
                (worker,) = {process.pid for process in multiprocessing.active_children()} - before
                counts.append(done)
                megabytes.append(private_megabytes(worker))
        epoch += 1
    loader.close()
    return np.array(counts), np.array(megabytes)
