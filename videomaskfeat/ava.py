"""AVA's files as arrays: boxes in key frames, with actions or scores; lists of times; label maps.

The formats are those of https://research.google.com/ava/download.html and of the lists of boxes that come
with PySlowFast: comma-separated rows, mostly without a line of headings.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from videomaskfeat.csv_columns import CsvRows, read_csv
from videomaskfeat.errors import UserError
from videomaskfeat.texts import read_text, show_text

AVA_ACTIONS = 80  # ids count from 1 to this
NO_ACTION = -1  # of a row that is a person without an action
TRUTH_FORM = "video,second,x1,y1,x2,y2,action,person"
FOUND_FORM = "video,second,x1,y1,x2,y2,action,score"
_CORNERS = ("x1", "y1", "x2", "y2")
_BOX, _NO_BOX = (2, 3, 4, 5), 2  # columns of a box, and how many a row has that ends before it
_LONGEST_ID = 9  # digits
_LABEL_MAP_BYTES = 1 << 22
_LONGEST = 10**9  # milliseconds that no video reaches (11 days): a key frame is video * _LONGEST + time
_ROUNDING = 1e-6  # how far boxes computed in float32 may leave the frame
# `name: value`, or a brace, of a protocol buffer's text; values may be quoted.
_TOKEN = re.compile(r"""\b(\w+)\s*:\s*("(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|[^\s{}"']+)|([{}])|\#[^\n]*""")


class VideoNames:
    """Numbers of videos, 0 and up as they are met: one object for all files that are compared."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def numbers(self, words: np.ndarray) -> np.ndarray:
        """int64 [n] of names S [n]; new ones get the next numbers."""
        heads = np.ones(len(words), bool)  # of runs: rows of one video mostly follow each other
        heads[1:] = words[1:] != words[:-1]
        unique, inverse = np.unique(words[heads], return_inverse=True)
        own = [self._numbers.setdefault(name, len(self._numbers)) for name in unique.tolist()]
        return np.array(own, np.int64)[inverse][np.cumsum(heads) - 1] if own else np.empty(0, np.int64)

    def texts(self) -> list[str]:
        """The names by number."""
        return [name.decode("utf-8", "surrogateescape") for name in self._numbers]

    def key_frames(self, videos: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Videos and milliseconds in one number each, int64 [n], that sorts by name and then by time.

        No order of rows or of files changes the order of the numbers; further names change the numbers.
        """
        ranks = np.empty(len(self), np.int64)
        ranks[[self._numbers[name] for name in sorted(self._numbers)]] = np.arange(len(self))
        return ranks[videos] * _LONGEST + times

    def moments(self, key_frames: np.ndarray) -> list[tuple[str, float]]:
        """Video and second of numbers that ``key_frames`` gave, since when no name came."""
        names = [name.decode("utf-8", "surrogateescape") for name in sorted(self._numbers)]
        videos, times = np.divmod(key_frames, _LONGEST)
        return [
            (names[video], time / 1000) for video, time in zip(videos.tolist(), times.tolist(), strict=True)
        ]


@dataclass(frozen=True)
class AvaRows:
    """The rows of a file: a box in a key frame, with an action or none.

    Attributes:
        source: the file, for messages.
        videos: int64 [n], numbers in a `VideoNames`.
        times: int64 [n], milliseconds.
        boxes: float64 [n, 4], x1, y1, x2, y2 in shares of the frame.
        actions: int64 [n], -1 for none.
        scores: float64 [n], 1 in a file without scores.
        scored: whether it has them.
        lines: int64 [n], where each row stands in the file.
        empty_videos, empty_times, empty_lines: int64 [k], key frames that rows without a box name, as
            AVA-Kinetics has them: nobody is there.
    """

    source: str
    videos: np.ndarray
    times: np.ndarray
    boxes: np.ndarray
    actions: np.ndarray
    scores: np.ndarray
    scored: bool
    lines: np.ndarray
    empty_videos: np.ndarray
    empty_times: np.ndarray
    empty_lines: np.ndarray


def read_groundtruth(
    path: str | os.PathLike[str], names: VideoNames, *, largest: int = AVA_ACTIONS
) -> AvaRows:
    """Rows `video,second,x1,y1,x2,y2,action,person`, or without the last column, which is not kept.

    Seconds may be written 902, 0902 or 902.0. An empty action is a person without one. A row without a box,
    `video,second` alone or with empty corners, is a key frame in which nobody is. Actions count from 1 to
    ``largest``.

    Raises:
        UserError: no such file; or, with file and line, other columns, an impossible time, a box without area
        or
            outside the frame, or an unknown action.
    """
    parts: list[AvaRows] = []
    for block, empty in _blocks(path, TRUTH_FORM, names):
        place, actions = _placed(block, names), _actions(block, largest)
        parts.append(AvaRows(block.name, *place, actions, np.ones(len(block)), False, block.lines, *empty))
    return _joined(os.fspath(path), parts, scored=False)


def read_detections(
    path: str | os.PathLike[str], names: VideoNames, *, largest: int = AVA_ACTIONS
) -> AvaRows:
    """Rows `video,second,x1,y1,x2,y2,action,score`, or with one of the last two columns, or no rows.

    In a file of seven columns the last one is the action if its numbers are whole, as the official script has
    it, else the score (the first rows of the file decide). A row without a box is a key frame without
    persons.

    Raises:
        UserError: as `read_groundtruth`, or a score is missing or no number.
    """
    parts: list[AvaRows] = []
    boxes_only = False
    first = True
    for block, empty in _blocks(path, FOUND_FORM, names):
        if first and len(block) and block.columns == 7:
            boxes_only = bool((block.numbers(6, blank=1.0) % 1 != 0).any())
        place, scored = _placed(block, names), boxes_only or block.columns == 8
        actions = np.full(len(block), NO_ACTION) if boxes_only else _actions(block, largest)
        scores = block.numbers(block.columns - 1, blank=np.nan) if scored else np.ones(len(block))
        block.fail(np.isnan(scores), "the score of '{row}' is empty; give a number, or leave the row out")
        first = first and not len(block)
        parts.append(AvaRows(block.name, *place, actions, scores, scored, block.lines, *empty))
    return _joined(os.fspath(path), parts, scored=True)


def read_times(path: str | os.PathLike[str], names: VideoNames) -> tuple[np.ndarray, np.ndarray]:
    """Videos and milliseconds of a file of `video,second`, int64 [n] each; it may be empty.

    Raises:
        UserError: no such file; or, with file and line, other columns or an impossible time.
    """
    parts = [
        (names.numbers(block.words(0)), _times(block))
        for block in read_csv(path, form="video,second", columns=(2,), numbers=(1,))
    ]
    empty = np.empty(0, np.int64)
    videos, times = zip((empty, empty), *parts, strict=True)
    return np.concatenate(videos), np.concatenate(times)


def read_label_map(path: str | os.PathLike[str]) -> dict[int, str]:
    """The actions of a label map, number to name, in the order of the file.

    The file is a protocol buffer's text: ``item { name: "stand" id: 12 }`` (or ``label_id: 12``) for each
    action.

    Raises:
        UserError: no such file, no action in it, or an id that is missing, repeated or no whole number above
        0.
    """
    return {number: fields.get("name", f"action {number}") for number, fields in _items(path).items()}


def read_action_kinds(path: str | os.PathLike[str]) -> dict[int, str]:
    """The ``label_type`` of those actions of a label map that have one, by number; see `read_label_map`.

    AVA's own label map of all 80 has PERSON_MOVEMENT (poses, of which a person has exactly one),
    OBJECT_MANIPULATION and PERSON_INTERACTION; the one of the 60 that are scored has none.
    """
    items = _items(path)
    return {number: fields["label_type"] for number, fields in items.items() if "label_type" in fields}


def _blocks(
    path: str | os.PathLike[str], form: str, names: VideoNames
) -> Iterator[tuple[CsvRows, tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """Rows with a box, and videos, milliseconds and lines of those without one."""
    for block in read_csv(path, form=form, columns=(7, 8), numbers=(1, *_BOX), short=_NO_BOX):
        no_box = block.is_empty(_BOX)
        empty = block.select(no_box)
        yield block.select(~no_box), (names.numbers(empty.words(0)), _times(empty), empty.lines)


def _placed(block: CsvRows, names: VideoNames) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Videos, times and boxes."""
    return names.numbers(block.words(0)), _times(block), _boxes(block)


def _joined(source: str, parts: list[AvaRows], *, scored: bool) -> AvaRows:
    """All rows of a file; ``scored`` is what one without rows is taken for."""
    empty = np.empty(0, np.int64)
    none = AvaRows(source, empty, empty, np.empty((0, 4)), empty, np.empty(0), scored, *(empty,) * 4)
    arrays = {
        name: np.concatenate([getattr(part, name) for part in parts or [none]])
        for name in AvaRows.__dataclass_fields__
        if name not in ("source", "scored")
    }
    if len(arrays["lines"]):
        scored = all(part.scored for part in parts if len(part.lines))
    return AvaRows(source, scored=scored, **arrays)


def _times(rows: CsvRows) -> np.ndarray:
    """Milliseconds, so that 902, 0902 and 902.0 are one time."""
    times = np.rint(rows.numbers(1) * 1000)
    rows.fail_field(
        (times < 0) | (times >= _LONGEST),
        "the second '{value}' of '{row}' is no time of a video; seconds count from its start, 0 and up",
        1,
    )
    return times.astype(np.int64)


def _boxes(rows: CsvRows) -> np.ndarray:
    """float64 [n, 4], checked."""
    boxes = np.column_stack([rows.numbers(column) for column in _BOX])
    outside: np.ndarray = (boxes < -_ROUNDING) | (boxes > 1 + _ROUNDING)
    rows.fail(
        np.asarray(outside.any(axis=1)),
        "the box of '{row}' leaves the frame; x1, y1, x2, y2 are shares of its width and height, 0 to 1: "
        "divide pixels by these, and cut boxes off at the border",
    )
    for small, large in ((0, 2), (1, 3)):
        low, high = _CORNERS[small], _CORNERS[large]
        rows.fail(
            boxes[:, large] <= boxes[:, small],
            f"{high} of '{{row}}' is not above {low}; a box is x1,y1,x2,y2 (left, top, right, bottom): "
            "mend the row, or leave it out",
        )
    return boxes


def _actions(rows: CsvRows, largest: int) -> np.ndarray:
    """int64 [n]."""
    actions = rows.numbers(6, blank=np.nan)
    whose = "AVA's" if largest == AVA_ACTIONS else "those of the label map"
    rows.fail_field(
        ~np.isnan(actions) & ((actions != np.rint(actions)) | (actions < 1) | (actions > largest)),
        f"the action '{{value}}' of '{{row}}' is unknown; ids are whole numbers from 1 to {largest}, "
        f"{whose}, and an empty field is a person without an action",
        6,
    )
    return np.where(np.isnan(actions), NO_ACTION, actions).astype(np.int64)


def _items(path: str | os.PathLike[str]) -> dict[int, dict[str, str]]:
    """The fields of each action of a label map, by number."""
    name = os.fspath(path)
    text = read_text(
        path,
        what='a label map, which holds `item { name: "stand" id: 12 }` for each action',
        limit=_LABEL_MAP_BYTES,
    )
    items: dict[int, dict[str, str]] = {}
    open_at, fields = 0, dict[str, str]()
    line, counted_to = 1, 0
    for token in _TOKEN.finditer(text):
        line += text.count("\n", counted_to, token.start())
        counted_to = token.start()
        if token[3] == "{":
            open_at, fields = line, {}
        elif token[3] == "}":
            number = _label_id(fields, f"{name}:{open_at}")
            if number in items:
                raise UserError(f"{name}:{open_at}: the id {number} stands twice; give each action its own")
            items[number] = fields
        elif token[1]:
            fields[token[1]] = _unquoted(token[2])
    if not items:
        raise UserError(
            f'{name}: lists no action; a label map holds `item {{ name: "stand" id: 12 }}` for each'
        )
    return items


def _unquoted(text: str) -> str:
    """A value of a label map without its quotes."""
    return re.sub(r"\\(.)", r"\1", text[1:-1]) if text[0] in "\"'" else text


def _label_id(fields: dict[str, str], where: str) -> int:
    """The id of an item of a label map."""
    text = fields.get("id", fields.get("label_id"))
    own = f"the action {show_text(fields['name'])!r}" if "name" in fields else "an action"
    if text is None:
        raise UserError(
            f"{where}: {own} has no id; write `id: 12` (or `label_id: 12`), the number in the CSV files"
        )
    if not (text.isascii() and text.isdecimal() and len(text) <= _LONGEST_ID) or int(text) < 1:
        raise UserError(f"{where}: the id '{show_text(text, 40)}' of {own} is not a whole number from 1 up")
    return int(text)
