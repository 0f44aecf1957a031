"""Ten videos with their list and weights, and the verbs that score them, for tests of evaluation."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from tests.data.clip_data import write_videos
from tests.jobs.weights_files import write_classifier, write_pretrained

LABELS = [0, 1, 2, 3, 6, 0, 1, 3, 3, 2]
BROKEN = 4

Run = Callable[..., tuple[int, str, str]]
"""``run(verb, *arguments) -> (exit code, stdout, stderr)``; it writes into the folder ``out``."""


def make_scored(folder: Path) -> Path:
    """Ten videos, one of them unreadable, their list, and weights of a classifier and of pre-training."""
    write_videos(folder, len(LABELS))
    (folder / f"{BROKEN:03d}.mp4").write_bytes(b"this is text")
    write_list(folder / "val.csv", LABELS)
    write_classifier(folder / "best.safetensors")
    write_pretrained(folder / "pretrained.safetensors")
    return folder


def write_list(path: Path, labels: list[int]) -> Path:
    path.write_text("".join(f"{row:03d}.mp4 {label}\n" for row, label in enumerate(labels)))
    return path


def write_words(path: Path, classes: list[str]) -> Path:
    """Kinetics' own CSV, with the videos beside it."""
    lines = ["label,youtube_id,time_start,time_end,split"]
    for row, name in enumerate(classes):
        video = path.parent / f"abc{row}_000010_000020.mp4"
        shutil.copy(path.parent / f"{row:03d}.mp4", video)
        lines.append(f"{name},abc{row},10,20,val")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
