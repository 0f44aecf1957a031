"""AVA's CSV files and label maps as arrays.

Formats: https://research.google.com/ava/download.html, and the box lists that come with PySlowFast. Rows are
comma-separated, usually without a header.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields

import numpy as np

from videomaskfeat.csv_columns import CsvRows, read_csv
from videomaskfeat.errors import UserError
from videomaskfeat.texts import read_text, show_text

AVA_ACTIONS = 80  # largest action id; ids count from 1
NO_ACTION = -1  # action of a person without an action
TRUTH_FORM = "video,second,x1,y1,x2,y2,action,person"
FOUND_FORM = "video,second,x1,y1,x2,y2,action,score"
_CORNERS = ("x1", "y1", "x2", "y2")
_BOX_COLUMNS, _COLUMNS_WITHOUT_BOX = (2, 3, 4, 5), 2
_LONGEST_ID = 9  # digits
_LABEL_MAP_BYTES = 1 << 22
_LARGEST_TIME = 10**9  # milliseconds (11 days); a key frame is the number video * _LARGEST_TIME + time
_ROUNDING = 1e-6  # how far boxes computed in float32 may exceed the frame
# A field `name: value` or a brace of a protocol buffer in text format; values may be quoted.
_TOKEN = re.compile(r"""\b(\w+)\s*:\s*("(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|[^\s{}"']+)|([{}])|\#[^\n]*""")
_NONE = np.empty(0, np.int64)


class VideoNames:
    """Numbers video names from 0 in order of appearance; use one object for all files that are compared."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def numbers(self, words: np.ndarray) -> np.ndarray:
        """int64 [n] of names S [n]; new names get the next numbers."""
        starts = np.ones(len(words), bool)  # rows of one video usually follow each other
        starts[1:] = words[1:] != words[:-1]
        unique, inverse = np.unique(words[starts], return_inverse=True)
        numbers = [self._numbers.setdefault(name, len(self._numbers)) for name in unique.tolist()]
        return np.array(numbers, np.int64)[inverse][np.cumsum(starts) - 1] if numbers else _NONE

    def texts(self) -> list[str]:
        """The names, indexed by number."""
        return [name.decode("utf-8", "surrogateescape") for name in self._numbers]

    def key_frames(self, videos: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Encode videos and milliseconds as int64 [n], sorted by name and then by time.

        The numbers do not depend on the order of rows or files, but change when names are added.
        """
        ranks = np.empty(len(self), np.int64)
        ranks[[self._numbers[name] for name in sorted(self._numbers)]] = np.arange(len(self))
        return ranks[videos] * _LARGEST_TIME + times

    @staticmethod
    def videos_of(key_frames: np.ndarray) -> np.ndarray:
        """The rank of the video of each key frame, int64 [n]."""
        return key_frames // _LARGEST_TIME

    def moments(self, key_frames: np.ndarray) -> list[tuple[str, float]]:
        """Video and second of results of ``key_frames``; no name may have been added since."""
        names = [name.decode("utf-8", "surrogateescape") for name in sorted(self._numbers)]
        videos, times = np.divmod(key_frames, _LARGEST_TIME)
        return [
            (names[video], time / 1000) for video, time in zip(videos.tolist(), times.tolist(), strict=True)
        ]


@dataclass(frozen=True)
class AvaRows:
    """The rows of a file.

    Attributes:
        source: file name, for messages.
        scored: whether the file has scores.
        videos: int64 [n], numbers in a `VideoNames`.
        times: int64 [n], milliseconds.
        boxes: float64 [n, 4], x1, y1, x2, y2 as fractions of the frame.
        actions: int64 [n], action ids; -1: no action.
        scores: float64 [n]; 1 in a file without scores.
        lines: int64 [n], line numbers.
        empty_videos, empty_times, empty_lines: int64 [k], the rows without a box: key frames without persons
            in AVA-Kinetics.
    """

    source: str
    scored: bool
    videos: np.ndarray
    times: np.ndarray
    boxes: np.ndarray
    actions: np.ndarray
    scores: np.ndarray
    lines: np.ndarray
    empty_videos: np.ndarray
    empty_times: np.ndarray
    empty_lines: np.ndarray


def read_groundtruth(
    path: str | os.PathLike[str], names: VideoNames, *, largest: int = AVA_ACTIONS
) -> AvaRows:
    """Read rows `video,second,x1,y1,x2,y2,action,person`; the last column is optional and not used.

    Seconds may be written 902, 0902 or 902.0. An empty action is a person without an action. A row without a
    box (`video,second`, or empty corners) is a key frame without persons.

    Args:
        path: the CSV file.
        names: numbers the videos.
        largest: largest action id.

    Raises:
        UserError: the file is missing; or a row has wrong columns, an impossible time, a box without area or
            outside the frame, or an unknown action.
    """
    blocks = []
    for boxed, empty in _read_blocks(path, TRUTH_FORM):
        block = _block_arrays(boxed, empty, names)
        blocks.append(block | {"actions": _actions(boxed, largest), "scores": np.ones(len(boxed))})
    return _join(path, blocks, scored=False)


def read_detections(
    path: str | os.PathLike[str], names: VideoNames, *, largest: int = AVA_ACTIONS
) -> AvaRows:
    """Read rows `video,second,x1,y1,x2,y2,action,score`; one of the last two columns may be missing.

    In a file of seven columns the last one is the action if the first rows have whole numbers there, as in
    the official script, and otherwise the score. The file may be empty. A row without a box is a key frame
    without persons. See `read_groundtruth` for the arguments.

    Raises:
        UserError: as `read_groundtruth`, or a score is missing or is not a number.
    """
    blocks: list[dict[str, np.ndarray]] = []
    has_actions: bool | None = None  # None: no row with a box yet
    has_scores = True
    for boxed, empty in _read_blocks(path, FOUND_FORM):
        if has_actions is None and len(boxed):
            has_actions = boxed.columns == 8 or not (boxed.numbers(6, blank=1.0) % 1).any()
            has_scores = boxed.columns == 8 or not has_actions
        block = _block_arrays(boxed, empty, names)
        actions = _actions(boxed, largest) if has_actions else np.full(len(boxed), NO_ACTION)
        scores = np.ones(len(boxed))
        if has_scores and len(boxed):
            scores = boxed.numbers(boxed.columns - 1, blank=np.nan)
        boxed.fail(np.isnan(scores), "the score of '{row}' is empty; give a number, or leave the row out")
        blocks.append(block | {"actions": actions, "scores": scores})
    return _join(path, blocks, scored=has_scores)


def read_times(paths: Iterable[str | os.PathLike[str]], names: VideoNames) -> tuple[np.ndarray, np.ndarray]:
    """Read files of `video,second`, which may be empty: videos and milliseconds, int64 [n] each.

    Raises:
        UserError: a file is missing, or a row has wrong columns or an impossible time.
    """
    blocks = [
        (names.numbers(block.words(0)), _times(block))
        for path in paths
        for block in read_csv(path, form="video,second", column_counts=(2,), number_columns=(1,))
    ]
    videos, times = zip((_NONE, _NONE), *blocks, strict=True)
    return np.concatenate(videos), np.concatenate(times)


def read_label_map(path: str | os.PathLike[str]) -> dict[int, str]:
    """Read a label map: action names by id, in the order of the file.

    The file is a protocol buffer in text format, with ``item { name: "stand" id: 12 }`` (or ``label_id: 12``)
    per action.

    Raises:
        UserError: the file is missing or has no action; or an id is missing, repeated or not a positive
            integer.
    """
    return {number: item.get("name", f"action {number}") for number, item in _items(path).items()}


def read_action_kinds(path: str | os.PathLike[str]) -> dict[int, str]:
    """Read the ``label_type`` by action id, for actions that have one; see `read_label_map`.

    AVA's label map of all 80 actions has PERSON_MOVEMENT (poses; a person has exactly one),
    OBJECT_MANIPULATION and PERSON_INTERACTION; the one of the 60 evaluated actions has none.
    """
    items = _items(path)
    return {number: item["label_type"] for number, item in items.items() if "label_type" in item}


def _read_blocks(path: str | os.PathLike[str], form: str) -> Iterator[tuple[CsvRows, CsvRows]]:
    """Yield rows with a box and rows without one."""
    blocks = read_csv(
        path,
        form=form,
        column_counts=(7, 8),
        number_columns=(1, *_BOX_COLUMNS),
        short_row_columns=_COLUMNS_WITHOUT_BOX,
    )
    for block in blocks:
        without_box = block.is_empty(_BOX_COLUMNS)
        yield block.select(~without_box), block.select(without_box)


def _block_arrays(boxed: CsvRows, empty: CsvRows, names: VideoNames) -> dict[str, np.ndarray]:
    """The attributes of `AvaRows` without actions and scores."""
    return {
        "empty_videos": names.numbers(empty.words(0)),
        "empty_times": _times(empty),
        "empty_lines": empty.lines,
        "videos": names.numbers(boxed.words(0)),
        "times": _times(boxed),
        "boxes": _boxes(boxed),
        "lines": boxed.lines,
    }


def _join(path: str | os.PathLike[str], blocks: list[dict[str, np.ndarray]], *, scored: bool) -> AvaRows:
    no_rows = {"boxes": np.empty((0, 4)), "scores": np.empty(0)}
    names = [field.name for field in fields(AvaRows)[2:]]
    arrays = [
        np.concatenate([no_rows.get(name, _NONE), *(block[name] for block in blocks)]) for name in names
    ]
    return AvaRows(os.fspath(path), scored, *arrays)


def _times(rows: CsvRows) -> np.ndarray:
    """Milliseconds, int64 [n], so that 902, 0902 and 902.0 are equal."""
    times = np.rint(rows.numbers(1) * 1000)
    rows.fail_field(
        (times < 0) | (times >= _LARGEST_TIME),
        "the second '{value}' of '{row}' is not a time in a video; seconds count from its start, from 0",
        1,
    )
    return times.astype(np.int64)


def _boxes(rows: CsvRows) -> np.ndarray:
    boxes = np.column_stack([rows.numbers(column) for column in _BOX_COLUMNS])
    outside: np.ndarray = (boxes < -_ROUNDING) | (boxes > 1 + _ROUNDING)
    rows.fail(
        np.asarray(outside.any(axis=1)),
        "the box of '{row}' exceeds the frame; x1, y1, x2, y2 are fractions of its width and height, 0 to 1: "
        "divide pixels by these, and clip boxes to the frame",
    )
    for low, high in ((0, 2), (1, 3)):
        rows.fail(
            boxes[:, high] <= boxes[:, low],
            f"{_CORNERS[high]} of '{{row}}' is not above {_CORNERS[low]}; a box is x1,y1,x2,y2 (left, top, "
            "right, bottom): correct the row, or leave it out",
        )
    return boxes


def _actions(rows: CsvRows, largest: int) -> np.ndarray:
    actions = rows.numbers(6, blank=np.nan)
    source = "AVA's" if largest == AVA_ACTIONS else "those of the label map"
    rows.fail_field(
        ~np.isnan(actions) & ((actions != np.rint(actions)) | (actions < 1) | (actions > largest)),
        f"the action '{{value}}' of '{{row}}' is unknown; ids are whole numbers from 1 to {largest}, "
        f"{source}, and an empty field is a person without an action",
        6,
    )
    return np.where(np.isnan(actions), NO_ACTION, actions).astype(np.int64)


def _items(path: str | os.PathLike[str]) -> dict[int, dict[str, str]]:
    """The fields of each action of a label map, by id."""
    name = os.fspath(path)
    what = 'a label map with `item { name: "stand" id: 12 }` for each action'
    text = read_text(path, what=what, limit=_LABEL_MAP_BYTES)
    items: dict[int, dict[str, str]] = {}
    item_line, item = 0, dict[str, str]()
    line, counted_to = 1, 0
    for token in _TOKEN.finditer(text):
        line += text.count("\n", counted_to, token.start())
        counted_to = token.start()
        if token[3] == "{":
            item_line, item = line, {}
        elif token[3] == "}":
            number = _label_id(item, f"{name}:{item_line}")
            if number in items:
                raise UserError(
                    f"{name}:{item_line}: action id {number} appears twice; each action needs its own id"
                )
            items[number] = item
        elif token[1]:
            value = token[2]
            quoted = value[0] in "\"'"
            item[token[1]] = re.sub(r"\\(.)", r"\1", value[1:-1]) if quoted else value
    if not items:
        raise UserError(f"{name} has no action; give {what}")
    return items


def _label_id(item: dict[str, str], where: str) -> int:
    text = item.get("id", item.get("label_id"))
    action = f"the action {show_text(item['name'])!r}" if "name" in item else "an action"
    if text is None:
        raise UserError(
            f"{where}: {action} has no id; write `id: 12` (or `label_id: 12`), the number in the CSV files"
        )
    if not (text.isascii() and text.isdecimal() and len(text) <= _LONGEST_ID) or int(text) < 1:
        raise UserError(f"{where}: the id '{show_text(text, 40)}' of {action} is not a positive integer")
    return int(text)
