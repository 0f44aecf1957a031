"""A list file of a million videos: time to load it, and its memory in each loader worker.

The baseline is Python's csv module with a list of (path, label) tuples, pickled to the worker.
"""

from __future__ import annotations

import csv
import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.harness import Row, private_megabytes
from videomaskfeat.data.formats import load_records

ROWS = 1_000_000


def run(*, device: str, rows: int = ROWS) -> list[Row]:
    """Load the list in both ways; the device has no effect."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.csv"
        _write_list(path, rows)
        # The best of three in turn: a busy moment of the machine only adds time.
        times = [(_seconds(load_records, path), _seconds(_plain_list, path)) for _ in range(3)]
        ours, baseline = (min(column) for column in zip(*times, strict=True))
        records, plain = load_records(path), _plain_list(path)
    index = rows * 2 // 3
    assert (records[index].path, records[index].label) == (
        str(path.parent / plain[index][0]),
        plain[index][1],
    )
    empty = _worker_megabytes([records[0]])
    title = f"list of {rows:,} rows"
    return [
        Row(f"{title}: load", ours, baseline, "s", "lower", "under 3 s"),
        Row(
            f"{title}: memory per worker",
            _worker_megabytes(records) - empty,
            _worker_megabytes(plain) - empty,
            "MB",
            "lower",
            "no copy",
            "private memory of a worker that has read 20,000 random rows, minus that without the list",
        ),
    ]


def _seconds(load: Callable[[Path], Any], path: Path) -> float:
    start = time.perf_counter()
    load(path)
    return time.perf_counter() - start


def _write_list(path: Path, rows: int) -> None:
    rng = random.Random(0)
    with open(path, "w", encoding="utf-8") as file:
        for number in range(rows):
            label = rng.randrange(400)
            file.write(f"train/some class {label}/{rng.getrandbits(64):016x}_{number:07d}.mp4 {label}\n")


def _plain_list(path: Path) -> list[tuple[str, int]]:
    with open(path, encoding="utf-8", newline="") as file:
        return [(" ".join(row[:-1]), int(row[-1])) for row in csv.reader(file, delimiter=" ")]


def _worker_megabytes(records: Any) -> float:
    """Private memory of a worker process that has read random records."""
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe(duplex=False)
    worker = context.Process(target=_read_rows, args=(records, theirs))
    worker.start()
    megabytes: float = ours.recv()
    worker.join()
    return megabytes


def _read_rows(records: Any, answer: Connection) -> None:
    rng = random.Random(1)
    for _ in range(20_000):
        records[rng.randrange(len(records))]
    answer.send(private_megabytes())
