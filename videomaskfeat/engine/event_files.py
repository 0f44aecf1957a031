"""The event files of TensorBoard, one of the loggers of a run."""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from videomaskfeat.engine.log import Record, StepLogger
from videomaskfeat.io import make_folder, open_file

_BOARDS = itertools.count()  # event files of this process


class TensorBoard(StepLogger):
    """A file of scalars in ``tensorboard/``; it hides the points after ``first_step`` of an interrupted run.

    It writes at once and in this thread. On a full disk the thread of torch's SummaryWriter prints a
    traceback, and the run gets the error some steps later.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        # Slow to import, and optional.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        super().__init__(folder, first_step)
        make_folder(folder / "tensorboard")
        name = (
            f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}.{next(_BOARDS)}"
        )
        self._file = RecordWriter(open_file(folder / "tensorboard" / name, "wb"))
        self._event, self._summary = Event, Summary
        self._add(file_version="brain.Event:2")
        if first_step:
            self._add(step=first_step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, record: Record, step: int) -> None:
        values = [
            self._summary.Value(tag=key, simple_value=value)
            for key, value in record.items()
            if key != "step" and isinstance(value, (int, float))
        ]
        self._add(step=step, summary=self._summary(value=values))

    def write_pictures(self, pictures: Sequence[Path], step: int) -> None:
        for path in pictures:
            content = path.read_bytes()
            width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))  # of a PNG
            image = self._summary.Image(
                height=height, width=width, colorspace=3, encoded_image_string=content
            )
            value = self._summary.Value(tag=f"pictures/{path.stem}", image=image)
            self._add(step=step, summary=self._summary(value=[value]))

    def close(self) -> None:
        self._file.close()

    def _add(self, **content: Any) -> None:
        self._file.write(self._event(wall_time=time.time(), **content).SerializeToString())
        self._file.flush()
