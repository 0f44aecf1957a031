"""Rows of `path label`, `path count label` or `path`, a million parsed at once with numpy."""

from __future__ import annotations

import logging
import re

import numpy as np

from videomaskfeat.csv_columns import TextRows, strip_blanks, strip_quotes
from videomaskfeat.data.formats.format import ListFormat, ListSource
from videomaskfeat.data.records import Records
from videomaskfeat.errors import UserError, check_name
from videomaskfeat.texts import show_text

logger = logging.getLogger(__name__)

# By name, in the order in which they are tried.
SEPARATORS = {"tab": "\t", "comma": ",", "colons": "::", "semicolon": ";", "pipe": "|", "space": " "}
_LONGEST_LABEL = 9  # digits that surely fit an int32
_INTEGER = re.compile(r"-?\d{1,9}")
# What a row looks like whose file name ends before the row does: name.ext, separator, one more field.
_FIELD_AFTER_FILE = re.compile(r'\.\w{2,4}"?\s*(?:[ ,;|\t]|::)\s*([^ ,;|\t/]+)$')
# The same with a separator that is not known.
_STRANGE_SEPARATOR = re.compile(
    r'\.(?:mp4|mkv|webm|avi|mov|m4v|mpg|mpeg|ts|jpg|png)"?([^\w\s./-]+)-?\d+$', re.I
)
# A path that a label follows: several labels of one video, with another separator between them.
_LABELS_BEFORE = re.compile(r'\.\w{2,4}"?\s*[ ,;|\t]\s*-?\d+$')
# What the names of columns look like: two words or more, none of them a file.
_HEADER = re.compile(r'^"?[A-Za-z_]+"?(?:\s*(?:[ ,;|\t]|::)\s*"?[A-Za-z_]+"?)+$')
_SEPARATORS_AT_END = re.compile(r"(?:\s*([,;|]|::))+\s*$")


class Table(ListFormat):
    """A file with a row per video.

    The first row decides on the form and every other one must agree. A path may hold spaces (the label is
    what follows the last separator), and any path may be put in double quotes, which it must where it holds
    the comma or tab that separates the columns, or ends with a space and an integer of its own.
    """

    def detect(self, source: ListSource) -> bool:
        return True

    def read(self, source: ListSource) -> Records:
        if source.first_row.startswith("original_vido_id"):  # PySlowFast's spelling
            raise UserError(
                f"{source.path}: a list of frames (`original_vido_id video_id frame_id path labels`) is not "
                "read; give the JSON list, and the folder of the frame folders as prefix"
            )
        check_name("separator", source.separator, ("auto", *SEPARATORS))
        rows = _rows(source.data, source.path)
        if not len(rows):
            raise UserError(
                f"{source.path}: is empty; a list has a row `path label` or `path` for each video"
            )
        separator, columns = _first_row(rows, source.labels, source.separator)
        if separator:
            starts, ends, labels = _split(rows, separator, columns)
        else:
            _check_unlabelled(rows, source.labels)
            starts, ends, _ = strip_quotes(rows.buffer, rows.starts, rows.ends)
            labels = None
        rows.fail(ends <= starts, "'{row}' has no path")
        opened = rows.buffer[starts] == ord('"')
        rows.fail(opened, "the path of '{row}' begins with a double quote that is not closed")
        words = [f", separated by {key}" for key, text in SEPARATORS.items() if text == separator]
        logger.info("%s: %d rows of `%s`%s", rows.name, len(rows), _form(separator, columns), "".join(words))
        return Records(rows.buffer, starts, ends, labels, source=source.path, root=source.root)


def _rows(data: bytes, name: str) -> TextRows:
    """The rows; separators after the last field of the first row, and of any other then, are no part."""
    rows = TextRows(data, name)
    last = _SEPARATORS_AT_END.search(rows.text(0)) if len(rows) else None
    if last:
        where = np.arange(len(rows))
        while len(where := where[rows.ends[where] > rows.starts[where]]):
            where = where[rows.buffer[rows.ends[where] - 1] == ord(last[1][0])]
            rows.starts[where], rows.ends[where] = strip_blanks(
                rows.buffer, rows.starts[where], rows.ends[where] - 1
            )
    return rows


def _first_row(rows: TextRows, labels: str, separator: str) -> tuple[str, int]:
    """What the first row says about all: the separator, empty if a row is the path, and integers after it.

    The integers are the label, or a count of frames, which is not used, and the label.
    """
    first = rows.text(0)
    row, where = show_text(first), f"{rows.name}:{rows.lines[0]}"
    candidates = list(SEPARATORS.values()) if separator == "auto" else [SEPARATORS[separator]]
    found = next((one for one in candidates if one in first and _is_integer(first.rpartition(one)[2])), None)
    if labels == "no":
        return "", 0
    if found is not None:
        path, integers = first, list[int]()
        while found in path and len(integers) < 4 and _is_integer(path.rpartition(found)[2]):
            path, _, last = path.rpartition(found)
            path, integers = path.rstrip(), [int(last), *integers]
        if not path.strip():
            return found, 1
        if len(integers) > 2 or _LABELS_BEFORE.search(path):
            raise UserError(f"{where}: {_words_on_integers(row, integers, found)}")
        return found, len(integers)
    extra, strange = _FIELD_AFTER_FILE.search(first), _STRANGE_SEPARATOR.search(first)
    if strange and extra is None:
        raise UserError(
            f"{where}: the label of '{row}' follows {strange[1]!r}, which is not a known separator; "
            f"use one of {', '.join(SEPARATORS)}, or set labels=no if it is a part of the path"
        )
    if labels == "auto" and extra is None:
        return "", 0
    if extra is None and not any(one in first for one in candidates):
        raise UserError(
            f"{where}: '{row}' has 1 field, and `path label` has 2 (labels=yes, separator={separator}); "
            "add the label to every row"
        )
    label = extra[1] if extra else first.rpartition(next(one for one in candidates if one in first))[2]
    long = f" of at most {_LONGEST_LABEL} digits" if label.strip().lstrip("-").isdecimal() else ""
    raise UserError(
        f"{where}: the label '{show_text(label)}' is not an integer{long}; a row is `path label` with labels "
        "0, 1, 2, ... and no header line"
    )


def _words_on_integers(row: str, integers: list[int], separator: str) -> str:
    """What a row with more integers after its path looks like, and what to do."""
    known = "known are `path label` and, of extracted frames, `path count label`"
    if separator in (" ", "\t", ",") and len(integers) == 3 and 0 <= integers[0] < integers[1]:
        return (
            f"'{row}' looks like `path start end label`, a list of segments; {known}: cut the segments into "
            "files of their own, or remove the two columns to take whole videos"
        )
    return (
        f"'{row}' looks like a video with several labels, and a list has one label per row; {known}: keep "
        "one label"
    )


def _is_integer(text: str) -> bool:
    return _INTEGER.fullmatch(text.strip()) is not None


def _check_unlabelled(rows: TextRows, labels: str) -> None:
    """No row of a list without labels may end with one."""
    last = rows.buffer[rows.ends - 1] - np.uint8(ord("0"))  # wraps round below "0"
    rule = "labels=no" if labels == "no" else f"row {rows.lines[0]} has no label, so none may have one"
    for row in np.flatnonzero(last <= 9).tolist():
        match = _FIELD_AFTER_FILE.search(rows.text(row))
        if match is not None and _is_integer(match[1]):
            remedy = "give every row a label or none (labels=auto takes both)"
            if labels == "auto" and _HEADER.search(rows.text(0)):
                remedy = f"row {rows.lines[0]}, '{rows.text(0)}', looks like a header: remove it"
            raise UserError(
                f"{rows.name}:{rows.lines[row]}: '{show_text(rows.text(row))}' ends with the label "
                f"{match[1]}, but {rule}; {remedy}"
            )


def _split(rows: TextRows, separator: str, columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut the label, and the count where there is one, off the end of every row: path spans and labels."""
    places, form = _places(rows.buffer, separator), _form(separator, columns)
    starts, ends = rows.starts, rows.ends
    integers: list[np.ndarray] = []
    for _ in range(columns):
        at = np.searchsorted(places, ends) - 1  # the last separator before the end
        at = np.where(at >= 0, places[np.maximum(at, 0)], -1) if len(places) else np.full(len(ends), -1)
        rows.fail(
            at < starts,
            f"'{{row}}' has too few fields: {columns + 1} are needed as in the first row, `{form}`",
        )
        values, valid = _integers(rows.buffer, *strip_blanks(rows.buffer, at + len(separator), ends))
        what = "label" if not integers else "count before the label"
        rule = f"an integer of at most {_LONGEST_LABEL} digits"
        rows.fail(~valid, f"the {what} of '{{row}}' is not {rule}; a row is `{form}`")
        if not integers:
            rows.fail(values < -1, "the label of '{row}' is negative; labels count from 0 (-1: no label)")
        else:
            rows.fail(  # 0 in every row stands for an unknown count
                (values < 0) | ((values == 0) & values.any()),
                f"the count of frames of '{{row}}' is below 1; a row is `{form}`, and a video has one label "
                "only",
            )
        integers.append(values)
        starts, ends = strip_blanks(rows.buffer, starts, at)
    starts, ends, quoted = strip_quotes(rows.buffer, starts, ends)
    # A path holds no further column: no separator, or, since paths may hold spaces, no ` integer`.
    after = np.searchsorted(places, ends)
    holds = (after > np.searchsorted(places, starts)) & ~quoted
    if separator == " ":
        where = np.flatnonzero(holds)
        holds[where] = _integers(rows.buffer, places[after[where] - 1] + 1, ends[where])[1]
    rows.fail(
        holds,
        f"'{{row}}' has too many fields: the first row has {columns + 1}, `{form}`; put a path that holds "
        "the separator in double quotes",
    )
    return starts, ends, integers[0]


def _places(buffer: np.ndarray, separator: str) -> np.ndarray:
    """Where each separator begins, int64."""
    letters = separator.encode()
    found = buffer == letters[0]
    for offset, letter in enumerate(letters[1:], 1):
        found[:-offset] &= buffer[offset:] == letter
        found[-offset:] = False
    return np.flatnonzero(found)


def _integers(buffer: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers that spans hold, int32, and which of the spans are integers at all."""
    lengths = ends - starts
    valid = lengths > 0
    negative = np.zeros(len(starts), bool)
    negative[valid] = buffer[starts[valid]] == ord("-")
    digits = lengths - negative
    valid &= (digits > 0) & (digits <= _LONGEST_LABEL)
    values = np.zeros(len(starts), np.int64)
    for place in range(int(digits[valid].max(initial=0))):
        where = np.flatnonzero(valid & (digits > place))
        digit = buffer[ends[where] - 1 - place].astype(np.int64) - ord("0")
        values[where] += digit * 10**place
        valid[where] = (digit >= 0) & (digit <= 9)
    return np.where(negative, -values, values).astype(np.int32), valid


def _form(separator: str, columns: int) -> str:
    names = (["path"], ["path", "label"], ["path", "count", "label"])[columns]
    return (separator or " ").replace("\t", "<tab>").join(names)
