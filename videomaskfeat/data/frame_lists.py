"""PySlowFast's lists of extracted frames: `original_vido_id video_id frame_id path labels`, a frame per row.

The misspelling is theirs. AVA's lists have six million rows; as the names of a video's frames nearly always
have consecutive numbers, they are stored as a pattern per video, in about 100 bytes.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter

from videomaskfeat.errors import UserError
from videomaskfeat.texts import open_rows, show_text

COLUMNS = "original_vido_id video_id frame_id path labels"
_HEADERS = (["original_vido_id"], ["original_video_id"])
_LONGEST_NUMBER = 12  # digits
_NUMBERED = re.compile(r"(.*?)(\d+)([^\d/]*)", re.DOTALL)


@dataclass(frozen=True)
class FrameFiles(Sequence[str]):
    """The paths of a video's frames, in order.

    Attributes:
        root: folder of relative paths.
        head, tail: text before and after the number in each path, if the numbers are consecutive.
        first: number of the first path.
        width: minimum number of digits.
        frames: number of frames.
        names: the paths themselves if their numbers are not consecutive, otherwise empty.
    """

    root: str
    head: str
    tail: str
    first: int
    width: int
    frames: int
    names: tuple[str, ...] = ()

    @classmethod
    def from_paths(cls, paths: Sequence[str], root: str) -> FrameFiles:
        """Store paths as a pattern if they have one."""
        match = _NUMBERED.fullmatch(paths[0]) if len(paths[0]) <= 4096 else None
        if match and len(match[2]) <= _LONGEST_NUMBER:
            head, number, tail = match.groups()
            files = cls(root, head, tail, int(number), len(number), len(paths))
            if files._names(0, len(paths)) == list(paths):
                return files
        return cls(root, "", "", 0, 0, len(paths), tuple(paths))

    def __len__(self) -> int:
        return self.frames

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        """The path of frame ``index``, an integer from 0 (not a slice)."""
        if not 0 <= index < self.frames:
            raise IndexError(f"frame {index} of {self.frames}")
        name = self.names[index] if self.names else self._names(index, index + 1)[0]
        return name if "://" in name else os.path.join(self.root, name)

    def _names(self, start: int, stop: int) -> list[str]:
        numbers = range(self.first + start, self.first + stop)
        return [f"{self.head}{number:0{self.width}d}{self.tail}" for number in numbers]


def load_frame_lists(
    lists: Sequence[str | os.PathLike[str]], *, prefix: str | os.PathLike[str]
) -> dict[str, FrameFiles]:
    """Load the frames of all videos, by the video name in the first column.

    Each list has a header line and one row per frame, with columns separated by spaces. The rows of a video
    are adjacent, in the order of their frame_id, which has consecutive numbers. ``prefix`` is the folder of
    relative paths.

    Raises:
        UserError: a list is missing or empty; or, with file and line: its header or a row is wrong, frame
            numbers are not consecutive, or a video occurs twice.
    """
    root = os.fspath(prefix)
    frames: dict[str, FrameFiles] = {}
    for path in lists:
        source = os.fspath(path)
        for video, rows in itertools.groupby(_read_rows(source), key=itemgetter(0)):
            paths = _check_numbers(source, list(rows), repeated=video in frames)
            frames[video] = FrameFiles.from_paths(paths, root)
    return frames


_Row = tuple[str, int, str, str]  # video, line, frame number, path


def _check_numbers(source: str, rows: list[_Row], *, repeated: bool) -> list[str]:
    """The paths of a video's rows; UserError unless their frame numbers are consecutive."""
    video, first_line, first, _ = rows[0]
    start = int(first) if _is_count(first) else 0
    for expected, (_, line, number, _) in enumerate(rows, start):
        if not _is_count(number):
            raise UserError(
                f"{source}:{line}: the frame_id {show_text(number)!r} is not a whole number; "
                f"a row is `{COLUMNS}`"
            )
        if int(number) != expected:
            raise UserError(
                f"{source}:{line}: frame {number} of {video} follows frame {expected - 1}; "
                "the frame numbers of a video must be consecutive"
            )
    if repeated:
        raise UserError(
            f"{source}:{first_line}: {video} has earlier rows; all rows of a video must be adjacent, in one "
            "list"
        )
    return [row[3] for row in rows]


def _read_rows(source: str) -> Iterator[_Row]:
    with open_rows(source, what="a list of frames") as file:
        header = file.readline()
        if header.split()[:1] not in _HEADERS:
            raise UserError(
                f"{source}:1: the header {show_text(header.strip())!r} is not `{COLUMNS}`; is this a list of "
                "frames?"
            )
        empty = True
        for line, text in enumerate(file, 2):
            fields = text.split()
            if not fields:
                continue
            if len(fields) != 5:
                fields = _split(text, f"{source}:{line}")
            empty = False
            yield fields[0], line, fields[2], fields[3].strip('"')
        if empty:
            raise UserError(f"{source} has a header but no rows")


def _is_count(text: str) -> bool:
    return text.isdecimal() and len(text) <= _LONGEST_NUMBER


def _split(text: str, place: str) -> list[str]:
    """The fields of a row with spaces in its path: the text between three columns and the last one."""
    fields = text.split(maxsplit=3)
    if len(fields) < 4 or len(fields[3].split()) < 2:
        raise UserError(f"{place}: {len(text.split())} columns; a row is `{COLUMNS}`, separated by spaces")
    path, labels = fields[3].rsplit(maxsplit=1)
    return [*fields[:3], path, labels]
