"""AVA scoring of a file, against a direct loop, and of 2 million rows against a budget.

The baseline of the first row is Python's csv module and a loop over detections
(`tests/reference/ava_map.py`); both scores are compared first. The other rows are compared with budgets.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from benchmarks.harness import Row, alternate, extra_memory
from tests.reference.ava_map import frame_map
from videomaskfeat.metrics.ava_map import Detections, evaluate_files, write_detections

ACTIONS = 80
ROWS = 2_000_000
PART = 80_000  # rows of the comparison with the loop
VIDEOS, SECONDS = 64, range(902, 1799)  # as in AVA's validation set
BUDGET_SECONDS, BUDGET_MEBIBYTES = 60.0, 3072.0


def run(*, device: str, rows: int = ROWS, part: int = PART) -> list[Row]:
    """Score in both ways, then a file of the size of AVA's validation set; the device has no effect."""
    with tempfile.TemporaryDirectory() as folder:
        small = _write_set(Path(folder) / "small", part)
        ours, (baseline, _) = evaluate_files(*small), frame_map(*small)
        assert abs(ours.mean_ap - baseline) < 1e-9
        times = alternate(
            {"ours": lambda: evaluate_files(*small), "baseline": lambda: frame_map(*small)}, rounds=3
        )
        whole = _write_set(Path(folder) / "whole", rows, shuffled=True)
        seconds, mebibytes = _measured_alone(whole)
    title = f"AVA score of {rows:,} rows, in any order"
    return [
        Row(f"AVA score of {part:,} rows", times["ours"], times["baseline"], "s"),
        Row(title, seconds, BUDGET_SECONDS, "s", "lower", "under 60 s", "budget, not a baseline"),
        Row(
            f"{title}: memory",
            mebibytes,
            BUDGET_MEBIBYTES,
            "MiB",
            "lower",
            "under 3 GB",
            "budget; peak of the call",
        ),
    ]


def _write_set(folder: Path, rows: int, *, shuffled: bool = False) -> tuple[str, str, str]:
    """Write ground truth, detections of all actions per box, and a label map of 75 % of the actions."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    boxes = rows // ACTIONS
    key_frames = [(f"video_{number:02d}", float(second)) for number in range(VIDEOS) for second in SECONDS]
    frames = np.sort(rng.integers(len(key_frames), size=boxes))
    corners = rng.random((boxes, 2)) * 0.6
    persons = np.concatenate([corners, corners + 0.1 + rng.random((boxes, 2)) * 0.3], axis=1).round(3)
    truth = folder / "truth.csv"
    with truth.open("w") as file:
        for frame, box in zip(
            frames.tolist(), np.clip(persons + rng.normal(0, 0.01, persons.shape), 0, 1), strict=True
        ):
            video, second = key_frames[frame]
            for action in rng.choice(ACTIONS, 2, replace=False) + 1:
                file.write(f"{video},{second:04.0f},{','.join(f'{x:.3f}' for x in box)},{action},0\n")
    detections = Detections.of_box_scores(
        frames,
        persons.astype(np.float32),
        (rng.random((boxes, ACTIONS)) ** 3).astype(np.float32),
        range(1, ACTIONS + 1),
    )
    if shuffled:
        order = rng.permutation(len(detections.frames))
        detections = Detections(*(values[order] for values in vars(detections).values()))
    detections_file = folder / "detections.csv"
    write_detections(detections_file, key_frames, detections)
    labels = folder / "labels.pbtxt"
    listed = (number for number in range(1, ACTIONS + 1) if number % 4)
    labels.write_text("".join(f'item {{\n  name: "{number}"\n  id: {number}\n}}\n' for number in listed))
    return str(truth), str(detections_file), str(labels)


def _measured_alone(files: tuple[str, str, str]) -> tuple[float, float]:
    """Seconds and peak memory in a separate process."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    worker = context.Process(target=_score, args=(files, theirs))
    worker.start()
    seconds, mebibytes = ours.recv()
    worker.join()
    return seconds, mebibytes


def _score(files: tuple[str, str, str], answer: Connection) -> None:
    start = time.perf_counter()
    mebibytes = extra_memory(lambda: evaluate_files(*files), "cpu")
    answer.send((time.perf_counter() - start, mebibytes))
