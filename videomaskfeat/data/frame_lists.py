"""PySlowFast's lists of extracted frames: `original_vido_id video_id frame_id path labels`, a row a frame.

The misspelling is theirs. AVA's lists have some six million rows; as the names of one video's frames nearly
always count on, they are kept as a pattern a video, which takes some 100 bytes.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from videomaskfeat.errors import UserError
from videomaskfeat.texts import open_rows, show_text

FORM = "original_vido_id video_id frame_id path labels"
_HEADERS = (["original_vido_id"], ["original_video_id"])
_LONGEST_NUMBER = 12  # digits
_NUMBERED = re.compile(r"(.*?)(\d+)([^\d/]*)", re.DOTALL)


@dataclass(frozen=True)
class FrameFiles(Sequence[str]):
    """The paths of a video's frames, in order.

    Attributes:
        root: folder before relative paths.
        head, tail: what stands before and after the number in each path, if the paths count on.
        first: number of the first one.
        width: digits of a number, at least.
        frames: how many there are.
        names: the paths themselves where they do not count on, else none.
    """

    root: str
    head: str
    tail: str
    first: int
    width: int
    frames: int
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, paths: Sequence[str], root: str) -> FrameFiles:
        """Keep paths as a pattern where they have one."""
        match = _NUMBERED.fullmatch(paths[0]) if len(paths[0]) <= 4096 else None
        if match and len(match[2]) <= _LONGEST_NUMBER:
            head, number, tail = match.groups()
            files = cls(root, head, tail, int(number), len(number), len(paths))
            if files._names() == list(paths):
                return files
        return cls(root, "", "", 0, 0, len(paths), tuple(paths))

    def __len__(self) -> int:
        return self.frames

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        """The path of frame ``index``, an integer from 0; no slices."""
        if not 0 <= index < self.frames:
            raise IndexError(f"frame {index} of {self.frames}")
        name = self.names[index] if self.names else self._names(index, index + 1)[0]
        return name if "://" in name else os.path.join(self.root, name)

    def _names(self, start: int = 0, stop: int | None = None) -> list[str]:
        numbers = range(self.first + start, self.first + (self.frames if stop is None else stop))
        return [f"{self.head}{number:0{self.width}d}{self.tail}" for number in numbers]


def load_frame_lists(
    lists: Sequence[str | os.PathLike[str]], *, prefix: str | os.PathLike[str]
) -> dict[str, FrameFiles]:
    """The frames of every video, by the name in the first column of the lists.

    Each list has a header line and a row per frame, columns separated by spaces; each video's rows stand in
    the order of their frame_id, which counts on by one. The prefix is the folder before relative paths.

    Raises:
        UserError: a list is missing or empty; or, with file and line, its header or a row is wrong, frames do
            not count on, or a video is in two lists.
    """
    root = os.fspath(prefix)
    frames: dict[str, FrameFiles] = {}
    for path in lists:
        for video, rows in _videos(os.fspath(path)):
            if video in frames:
                raise UserError(
                    f"{os.fspath(path)}:{rows.lines[0]}: {video} had frames before; all rows of a video "
                    "belong together, in one list"
                )
            frames[video] = FrameFiles.of(rows.paths, root)
    return frames


@dataclass
class _Rows:
    """Rows of one video that follow each other."""

    lines: list[int]
    numbers: list[str]
    paths: list[str]

    def check(self, source: str, video: str) -> None:
        """Their numbers count on."""
        first = int(self.numbers[0]) if _is_count(self.numbers[0]) else 0
        for line, number, expected in zip(self.lines, self.numbers, itertools.count(first), strict=False):
            if not _is_count(number):
                raise UserError(
                    f"{source}:{line}: the frame_id {show_text(number)!r} is not a whole number; a row is "
                    f"`{FORM}`"
                )
            if int(number) != expected:
                raise UserError(
                    f"{source}:{line}: frame {number} of {video} follows on frame {expected - 1}; "
                    "the rows of a video count its frames without a gap"
                )


def _videos(source: str) -> Iterator[tuple[str, _Rows]]:
    """The videos of a list, each with its rows."""
    with open_rows(source, what="a list of frames") as file:
        header = file.readline()
        if header.split()[:1] not in _HEADERS:
            raise UserError(
                f"{source}:1: the header {show_text(header.strip())!r} is not `{FORM}`; is this a list of "
                "frames?"
            )
        current, rows = "", _Rows([], [], [])
        for line, text in enumerate(file, 2):
            fields = text.split()
            if not fields:
                continue
            if len(fields) != 5:
                fields = _split(text, f"{source}:{line}")
            if fields[0] != current:
                if current:
                    rows.check(source, current)
                    yield current, rows
                current, rows = fields[0], _Rows([], [], [])
            rows.lines.append(line)
            rows.numbers.append(fields[2])
            rows.paths.append(fields[3].strip('"'))
        if not current:
            raise UserError(f"{source}: has a header and no rows")
        rows.check(source, current)
        yield current, rows


def _is_count(text: str) -> bool:
    return text.isdecimal() and len(text) <= _LONGEST_NUMBER


def _split(text: str, where: str) -> list[str]:
    """The fields of a row whose path holds spaces: what is left between three columns and the last."""
    fields = text.split(maxsplit=3)
    if len(fields) < 4 or len(fields[3].split()) < 2:
        raise UserError(f"{where}: {len(text.split())} columns; a row is `{FORM}`, parted by spaces")
    path, labels = fields[3].rsplit(maxsplit=1)
    return [*fields[:3], path, labels]
