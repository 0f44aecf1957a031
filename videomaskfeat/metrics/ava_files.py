"""AVA's files: ground truth, detections, label map and excluded times, read and written."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from videomaskfeat.csv_columns import CsvRows, read_csv
from videomaskfeat.errors import UserError
from videomaskfeat.io import open_file
from videomaskfeat.metrics.ava_matching import Detections, GroundTruth

AVA_ACTIONS = 80  # ids count from 1 to this, or to the label map's largest
NO_ACTION = -1  # of a row that is a person without an action
_TRUTH_FORM = "video,second,x1,y1,x2,y2,action,person"
_FOUND_FORM = "video,second,x1,y1,x2,y2,action,score"
_CORNERS = ("x1", "y1", "x2", "y2")
_LONGEST = 10**9  # milliseconds that no video reaches (11 days): a key frame is video * _LONGEST + time
_ROUNDING = 1e-6  # how far boxes computed in float32 may leave the frame
_WRITTEN_AT_ONCE = 100_000  # rows
# `name: value`, or a brace, of a protocol buffer's text; values may be quoted.
_TOKEN = re.compile(r"""(\w+)\s*:\s*("(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|[^\s{}"']+)|([{}])|\#[^\n]*""")


@dataclass(frozen=True)
class SideCounts:
    """How many rows of a file play a part, and why the others do not.

    Attributes:
        rows: in the file.
        used: that play a part.
        excluded: at excluded times.
        no_action: of persons without an action, at other times.
        not_listed: of actions that the label map does not list, at other times.
    """

    rows: int
    used: int
    excluded: int
    no_action: int
    not_listed: int


@dataclass(frozen=True)
class AvaData:
    """What is scored: rows of the label map's actions at times that are not excluded.

    Attributes:
        groundtruth: what there is to find.
        detections: what was found.
        actions: number to name of the label map's actions.
        person_frames: int64 [f], key frames of the ground truth that hold persons, ascending.
        persons: int64 [f], boxes that differ in each, those of actions that are not scored included.
        groundtruth_counts: of the ground truth's rows.
        detection_counts: of the detections' rows.
        unknown_videos: names of videos that the detections have and the ground truth has not.
        unknown_rows: their detections among those used: they are false positives all.
        scored: whether the detections came with scores; else each has the score 1.
    """

    groundtruth: GroundTruth
    detections: Detections
    actions: dict[int, str]
    person_frames: np.ndarray
    persons: np.ndarray
    groundtruth_counts: SideCounts
    detection_counts: SideCounts
    unknown_videos: list[str]
    unknown_rows: int
    scored: bool


def read_ava(
    groundtruth: str | os.PathLike[str],
    detections: str | os.PathLike[str],
    labelmap: str | os.PathLike[str],
    exclusions: str | os.PathLike[str] | None = None,
) -> AvaData:
    """Read all that a score is made of.

    Rows have the columns ``video,second,x1,y1,x2,y2,action,person`` (ground truth) or ``...,action,score``
    (detections), with a line of headings or without. The eighth column may be left out: without scores all
    are 1. Boxes are shares of the frame, 0 to 1. Seconds may be written 902, 0902 or 902.0. An empty action
    is a person without one.

    Args:
        groundtruth: CSV file.
        detections: CSV file; it may be empty.
        labelmap: the actions to score, see `read_label_map`.
        exclusions: CSV file of ``video,second`` that are not scored.

    Raises:
        UserError: a file that is not there, or a row that is wrong, with file and line; or nothing to find.
    """
    actions = read_label_map(labelmap)
    names = _Names()
    truth = _read_rows(groundtruth, _TRUTH_FORM, names, max(actions))
    known = names.count
    found = _read_rows(detections, _FOUND_FORM, names, max(actions))
    if len(found.actions) and (found.actions == NO_ACTION).all():
        raise UserError(
            f"{os.fspath(detections)}: no row has an action, so this is a list of person boxes; "
            f"detections have a row `{_FOUND_FORM}` for each box and action"
        )
    closed = _read_times(exclusions, names) if exclusions else (np.empty(0, np.int64),) * 2
    ranks = names.ranks()
    truth_frames, found_frames, closed_frames = (
        ranks[videos] * _LONGEST + times
        for videos, times in ((truth.videos, truth.times), (found.videos, found.times), closed)
    )
    truth_open, found_open = (~np.isin(frames, closed_frames) for frames in (truth_frames, found_frames))
    truth_kept, truth_counts = _kept(truth, truth_open, actions)
    found_kept, found_counts = _kept(found, found_open, actions)
    if not truth_counts.used:
        raise UserError(_nothing_to_find(os.fspath(groundtruth), os.fspath(labelmap), truth_counts))
    unknown = found.videos >= known
    person_frames, persons = _persons(truth_frames[truth_open], truth.boxes[truth_open])
    return AvaData(
        groundtruth=GroundTruth(truth_frames[truth_kept], truth.boxes[truth_kept], truth.actions[truth_kept]),
        detections=Detections(
            found_frames[found_kept],
            found.boxes[found_kept],
            found.actions[found_kept],
            found.scores[found_kept],
        ),
        actions=actions,
        person_frames=person_frames,
        persons=persons,
        groundtruth_counts=truth_counts,
        detection_counts=found_counts,
        unknown_videos=[names.text(video) for video in np.unique(found.videos[unknown]).tolist()],
        unknown_rows=int((unknown & found_kept).sum()),
        scored=found.scored,
    )


def read_label_map(path: str | os.PathLike[str]) -> dict[int, str]:
    """The actions of a label map, number to name, in the order of the file.

    The file is a protocol buffer's text: ``item { name: "stand" id: 12 }`` (or ``label_id: 12``) for each
    action, on any number of lines; other fields are passed over.

    Raises:
        UserError: no such file; no action in it; one without an id; an id that is no whole number above 0; or
            one that stands twice.
    """
    name = os.fspath(path)
    with open_file(path) as file:
        text = file.read()
    actions: dict[int, str] = {}
    open_at, fields = 0, dict[str, str]()
    for token in _TOKEN.finditer(text):
        line = text.count("\n", 0, token.start()) + 1
        if token[3] == "{":
            open_at, fields = line, {}
        elif token[3] == "}":
            number = _label_id(fields, f"{name}:{open_at}")
            if number in actions:
                raise UserError(f"{name}:{open_at}: the id {number} stands twice; give each action its own")
            actions[number] = fields.get("name", f"action {number}")
        elif token[1]:
            fields[token[1]] = _unquoted(token[2])
    if not actions:
        raise UserError(
            f'{name}: lists no action; a label map holds `item {{ name: "stand" id: 12 }}` for each'
        )
    return actions


def write_detections(
    path: str | os.PathLike[str], key_frames: Sequence[tuple[str, float]], detections: Detections
) -> None:
    """Write detections as the official script takes them: ``video,second,x1,y1,x2,y2,action,score``.

    Numbers have as many digits as they need to be read back as they are, in their own type.

    Args:
        path: of the file.
        key_frames: video and second of each key frame; ``detections.frames`` counts in it.
        detections: boxes in shares of the frame, 0 to 1.
    """
    places = [f"{video},{_second(second)}" for video, second in key_frames]
    with open_file(path, "w", errors="surrogateescape") as file:
        for first in range(0, len(detections.frames), _WRITTEN_AT_ONCE):
            rows = slice(first, first + _WRITTEN_AT_ONCE)
            columns = [
                [places[frame] for frame in detections.frames[rows].tolist()],
                *(column.astype(str).tolist() for column in detections.boxes[rows].T),
                map(str, detections.actions[rows].tolist()),
                detections.scores[rows].astype(str).tolist(),
            ]
            file.writelines(f"{','.join(row)}\n" for row in zip(*columns, strict=True))


class _Names:
    """Videos by number, in the order in which they were met."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}

    @property
    def count(self) -> int:
        return len(self._numbers)

    def numbers(self, words: np.ndarray) -> np.ndarray:
        """int64 [n] of names S [n]."""
        heads = np.ones(len(words), bool)  # of runs: rows of one video mostly follow each other
        heads[1:] = words[1:] != words[:-1]
        unique, inverse = np.unique(words[heads], return_inverse=True)
        own = [self._numbers.setdefault(name, len(self._numbers)) for name in unique.tolist()]
        return np.array(own, np.int64)[inverse][np.cumsum(heads) - 1] if own else np.empty(0, np.int64)

    def ranks(self) -> np.ndarray:
        """int64: by number, the place in the order of the names, which no order of rows changes."""
        ranks = np.empty(self.count, np.int64)
        ranks[[self._numbers[name] for name in sorted(self._numbers)]] = np.arange(self.count)
        return ranks

    def text(self, number: int) -> str:
        return list(self._numbers)[number].decode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class _Rows:
    """All rows of a file."""

    videos: np.ndarray  # int64 [n]
    times: np.ndarray  # int64 [n], milliseconds
    boxes: np.ndarray  # float64 [n, 4]
    actions: np.ndarray  # int64 [n]
    scores: np.ndarray  # float64 [n]
    scored: bool


def _read_rows(path: str | os.PathLike[str], form: str, names: _Names, largest: int) -> _Rows:
    """Read and check a file of boxes; the label map's ``largest`` id widens the known ones."""
    parts: list[tuple[np.ndarray, ...]] = []
    scored = form == _FOUND_FORM
    for rows in read_csv(path, form=form, columns=(7, 8), numbers=(1, 2, 3, 4, 5)):
        scored = scored and rows.columns == 8
        parts.append(
            (
                names.numbers(rows.words(0)),
                _times(rows),
                _boxes(rows),
                _actions(rows, max(largest, AVA_ACTIONS)),
                rows.numbers(7) if scored else np.ones(len(rows)),
            )
        )
    if not parts:
        empty = np.empty(0, np.int64)
        return _Rows(empty, empty, np.empty((0, 4)), empty, np.empty(0), True)
    videos, times, boxes, actions, scores = (np.concatenate(column) for column in zip(*parts, strict=True))
    return _Rows(videos, times, boxes, actions, scores, scored)


def _read_times(path: str | os.PathLike[str], names: _Names) -> tuple[np.ndarray, np.ndarray]:
    """Videos and milliseconds of a file of `video,second`, int64 [n] each."""
    parts = [
        (names.numbers(rows.words(0)), _times(rows))
        for rows in read_csv(path, form="video,second", columns=(2,), numbers=(1,))
    ]
    empty = np.empty(0, np.int64)
    videos, times = zip((empty, empty), *parts, strict=True)
    return np.concatenate(videos), np.concatenate(times)


def _times(rows: CsvRows) -> np.ndarray:
    """Milliseconds, so that 902, 0902 and 902.0 are one time."""
    times = np.rint(rows.numbers(1) * 1000)
    rows.fail(
        (times < 0) | (times >= _LONGEST),
        "the second '{value}' of '{row}' is no time of a video; seconds count from its start, 0 and up",
        column=1,
    )
    return times.astype(np.int64)


def _boxes(rows: CsvRows) -> np.ndarray:
    """float64 [n, 4], checked."""
    boxes = np.column_stack([rows.numbers(column) for column in (2, 3, 4, 5)])
    rows.fail(
        (boxes.min(axis=1) < -_ROUNDING) | (boxes.max(axis=1) > 1 + _ROUNDING),
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
    rows.fail(
        ~np.isnan(actions) & ((actions != np.rint(actions)) | (actions < 1) | (actions > largest)),
        f"the action '{{value}}' of '{{row}}' is unknown; ids are whole numbers from 1 to {largest}, those "
        "of the label map, and an empty field is a person without an action",
        column=6,
    )
    return np.where(np.isnan(actions), NO_ACTION, actions).astype(np.int64)


def _kept(rows: _Rows, open_times: np.ndarray, actions: dict[int, str]) -> tuple[np.ndarray, SideCounts]:
    """Which rows play a part, bool [n], and why the others do not: the first reason that fits."""
    kept = open_times & np.isin(rows.actions, list(actions))
    idle = open_times & (rows.actions == NO_ACTION)
    total, used, excluded = len(kept), int(kept.sum()), int((~open_times).sum())
    no_action = int(idle.sum())
    return kept, SideCounts(total, used, excluded, no_action, total - used - excluded - no_action)


def _persons(frames: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Key frames, ascending, and how many boxes that differ each holds, int64 [f] both."""
    order = np.lexsort((*boxes.T, frames))
    frames, boxes = frames[order], boxes[order]
    new = np.ones(len(frames), bool)
    new[1:] = (frames[1:] != frames[:-1]) | (boxes[1:] != boxes[:-1]).any(axis=1)
    return np.unique(frames[new], return_counts=True)


def _nothing_to_find(groundtruth: str, labelmap: str, counts: SideCounts) -> str:
    """What is wrong with a ground truth of which no row is left."""
    if not counts.rows:
        return f"{groundtruth}: has no rows; ground truth has a row `{_TRUTH_FORM}` for each box and action"
    return (
        f"{groundtruth}: none of its {counts.rows} rows can be scored: {counts.not_listed} are of actions "
        f"that {labelmap} does not list, {counts.no_action} have no action, {counts.excluded} are at "
        "excluded times; take the files of one version and split"
    )


def _unquoted(text: str) -> str:
    """A value of a label map without its quotes."""
    return re.sub(r"\\(.)", r"\1", text[1:-1]) if text[0] in "\"'" else text


def _label_id(fields: dict[str, str], where: str) -> int:
    """The id of an item of a label map."""
    text = fields.get("id", fields.get("label_id"))
    own = f"the action '{fields['name']}'" if "name" in fields else "an action"
    if text is None:
        raise UserError(
            f"{where}: {own} has no id; write `id: 12` (or `label_id: 12`), the number in the CSV files"
        )
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{where}: the id '{text}' of {own} is not a whole number from 1 up")
    return int(text)


def _second(second: float) -> str:
    """Whole seconds as four digits, as AVA writes them; others as they are, to a millisecond."""
    return f"{second:04.0f}" if second == round(second) else f"{second:.3f}".rstrip("0")
