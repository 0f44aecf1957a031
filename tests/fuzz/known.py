"""Files on which a reader once aborted, or used gigabytes or minutes; every reader reads each of them."""

from __future__ import annotations

import importlib
from pathlib import Path

from tests.fuzz.media import read_video
from tests.fuzz.victim import Case

CORPUS = sorted((Path(__file__).parent / "corpus").iterdir())
READERS = ("auto", "decord", "pyav")
NUMBER = len(CORPUS) * len(READERS)
"""Number of cases."""
UNREADABLE = ("no_codec.mp4",)


def prepare(material: Path) -> None:
    """Import the readers, so that the memory of their modules is not counted."""
    for name in ("decord", "av", "videomaskfeat.data.video"):
        importlib.import_module(name)


def make_case(seed: int, material: Path, folder: Path) -> Case:
    """The file and reader of a number."""
    from videomaskfeat.data.video import VideoReadError

    path, reader = CORPUS[seed // len(READERS)], READERS[seed % len(READERS)]

    def run() -> None:
        read_video(str(path), reader)
        assert path.name not in UNREADABLE, f"{path.name} was read"

    return Case(f"{path.name} {reader}", run, allowed=(VideoReadError,))
