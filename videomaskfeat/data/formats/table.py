"""Rows `path label`, `path count label` or `path`, parsed all at once with numpy."""

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

# Separators by name, in the order of detection.
SEPARATORS = {"tab": "\t", "comma": ",", "colons": "::", "semicolon": ";", "pipe": "|", "space": " "}
_LONGEST_LABEL = 9  # digits, so that labels fit an int32
_INTEGER = re.compile(r"-?\d{1,9}")
# A file name followed by another field: name.ext, separator, field.
_FIELD_AFTER_FILE = re.compile(r'\.\w{2,4}"?\s*(?:[ ,;|\t]|::)\s*([^ ,;|\t/]+)$')
# A file name followed by an unknown separator and an integer.
_UNKNOWN_SEPARATOR = re.compile(
    r'\.(?:mp4|mkv|webm|avi|mov|m4v|mpg|mpeg|ts|jpg|png)"?([^\w\s./-]+)-?\d+$', re.I
)
# A path followed by a label: the row has several labels with different separators.
_PATH_AND_LABEL = re.compile(r'\.\w{2,4}"?\s*[ ,;|\t]\s*-?\d+$')
# Column names: at least two words without a file suffix.
_HEADER = re.compile(r'^"?[A-Za-z_]+"?(?:\s*(?:[ ,;|\t]|::)\s*"?[A-Za-z_]+"?)+$')
_TRAILING_SEPARATORS = re.compile(r"(?:\s*([,;|]|::))+\s*$")


class Table(ListFormat):
    """A file with one row per video.

    All rows must have the form of the first one. The label follows the last separator, so a path may contain
    spaces. A path may be in double quotes; it must be if it contains the separator of the columns, or ends
    with a space and an integer.
    """

    def detect(self, source: ListSource) -> bool:
        return True

    def read(self, source: ListSource) -> Records:
        if source.first_row.startswith("original_vido_id"):  # PySlowFast's spelling
            raise UserError(
                f"{source.path}: lists of frames (`original_vido_id video_id frame_id path labels`) are not "
                "supported; give the JSON list, and set the prefix to the folder that contains "
                "the frame folders"
            )
        check_name("separator", source.separator, ("auto", *SEPARATORS))
        rows = _parse_rows(source.data, source.path)
        if not len(rows):
            raise UserError(f"{source.path} is empty; a list has a row `path label` or `path` for each video")
        separator, columns = _detect_columns(rows, source.labels, source.separator)
        if separator:
            starts, ends, labels = _split(rows, separator, columns)
        else:
            _check_unlabeled(rows, source.labels)
            starts, ends, _ = strip_quotes(rows.buffer, rows.starts, rows.ends)
            labels = None
        rows.fail(ends <= starts, "'{row}' has no path; a row starts with the path of a video")
        quoted = rows.buffer[starts] == ord('"')
        rows.fail(quoted, "the path of '{row}' starts with a double quote that is not closed; close it")
        separators = [f", separated by {name}" for name, text in SEPARATORS.items() if text == separator]
        form = _form(separator, columns)
        logger.info("%s: %d rows of `%s`%s", rows.name, len(rows), form, "".join(separators))
        return Records(rows.buffer, starts, ends, labels, source=source.path, root=source.root)


def _parse_rows(data: bytes, name: str) -> TextRows:
    """The rows; trailing separators are removed if the first row has some."""
    rows = TextRows(data, name)
    trailing = _TRAILING_SEPARATORS.search(rows.text(0)) if len(rows) else None
    if trailing:
        open_rows = np.arange(len(rows))
        while len(open_rows := open_rows[rows.ends[open_rows] > rows.starts[open_rows]]):
            open_rows = open_rows[rows.buffer[rows.ends[open_rows] - 1] == ord(trailing[1][0])]
            rows.starts[open_rows], rows.ends[open_rows] = strip_blanks(
                rows.buffer, rows.starts[open_rows], rows.ends[open_rows] - 1
            )
    return rows


def _detect_columns(rows: TextRows, labels: str, separator: str) -> tuple[str, int]:
    """The separator in the first row (empty: a row is a path), and the number of integers after the path.

    The integers are the label, or the number of frames, which is not used, and the label.
    """
    first = rows.text(0)
    row, where = show_text(first), f"{rows.name}:{rows.lines[0]}"
    candidates = list(SEPARATORS.values()) if separator == "auto" else [SEPARATORS[separator]]
    detected = next(
        (one for one in candidates if one in first and _is_integer(first.rpartition(one)[2])), None
    )
    if labels == "no":
        return "", 0
    if detected is not None:
        path, integers = first, list[int]()
        while detected in path and len(integers) < 4 and _is_integer(path.rpartition(detected)[2]):
            path, _, last = path.rpartition(detected)
            path, integers = path.rstrip(), [int(last), *integers]
        if not path.strip():
            return detected, 1
        if len(integers) > 2 or _PATH_AND_LABEL.search(path):
            raise UserError(f"{where}: {_describe_integers(row, integers, detected)}")
        return detected, len(integers)
    extra, unknown = _FIELD_AFTER_FILE.search(first), _UNKNOWN_SEPARATOR.search(first)
    if unknown and extra is None:
        raise UserError(
            f"{where}: the label of '{row}' follows {unknown[1]!r}, which is not a known separator; "
            f"use one of {', '.join(SEPARATORS)}, or set labels=no if it is part of the path"
        )
    if labels == "auto" and extra is None:
        return "", 0
    quoted = first.strip()[:1] == first.strip()[-1:] == '"'  # one field, whatever it contains
    if extra is None and (quoted or not any(one in first for one in candidates)):
        raise UserError(
            f"{where}: '{row}' has 1 field, but `path label` has 2 (labels=yes, separator={separator}); "
            "add the label to every row"
        )
    label = extra[1] if extra else first.rpartition(next(one for one in candidates if one in first))[2]
    long = f" of at most {_LONGEST_LABEL} digits" if label.strip().lstrip("-").isdecimal() else ""
    raise UserError(
        f"{where}: the label '{show_text(label)}' is not an integer{long}; a row is `path label` with labels "
        "0, 1, 2, ... and no header line"
    )


def _describe_integers(row: str, integers: list[int], separator: str) -> str:
    """The error for a row with too many integers after the path."""
    rule = "rows must be `path label`, or `path count label` for extracted frames"
    if separator in (" ", "\t", ",") and len(integers) == 3 and 0 <= integers[0] < integers[1]:
        return (
            f"'{row}' looks like `path start end label`, a list of segments; {rule}: cut the segments into "
            "separate files, or remove the two columns to use whole videos"
        )
    return f"'{row}' looks like a video with several labels; {rule}: keep one label per row"


def _is_integer(text: str) -> bool:
    return _INTEGER.fullmatch(text.strip()) is not None


def _check_unlabeled(rows: TextRows, labels: str) -> None:
    """Refuse rows with a label in a list without labels."""
    last = rows.buffer[rows.ends - 1] - np.uint8(ord("0"))  # wraps around below "0"
    rule = "labels=no" if labels == "no" else f"row {rows.lines[0]} has no label, so no row may have one"
    for row in np.flatnonzero(last <= 9).tolist():
        match = _FIELD_AFTER_FILE.search(rows.text(row))
        if match is not None and _is_integer(match[1]):
            remedy = "add a label to every row, or remove all labels (labels=auto accepts both)"
            if labels == "auto" and _HEADER.search(rows.text(0)):
                remedy = f"row {rows.lines[0]}, '{rows.text(0)}', looks like a header: remove it"
            raise UserError(
                f"{rows.name}:{rows.lines[row]}: '{show_text(rows.text(row))}' ends with the label "
                f"{match[1]}, but {rule}; {remedy}"
            )


def _split(rows: TextRows, separator: str, columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split the label, and the number of frames if there is one, off each row: path spans and labels."""
    positions, form = _find_separators(rows.buffer, separator), _form(separator, columns)
    starts, ends = rows.starts, rows.ends
    integers: list[np.ndarray] = []
    for _ in range(columns):
        last = np.searchsorted(positions, ends) - 1  # the last separator before the end
        at = np.full(len(ends), -1)
        if len(positions):
            at = np.where(last >= 0, positions[np.maximum(last, 0)], -1)
        rows.fail(
            at < starts,
            f"'{{row}}' has too few fields: {columns + 1} are needed as in the first row, `{form}`",
        )
        values, valid = _parse_integers(rows.buffer, *strip_blanks(rows.buffer, at + len(separator), ends))
        what = "label" if not integers else "count before the label"
        rule = f"an integer of at most {_LONGEST_LABEL} digits"
        rows.fail(~valid, f"the {what} of '{{row}}' is not {rule}; a row is `{form}`")
        if not integers:
            rows.fail(values < -1, "the label of '{row}' is negative; labels count from 0 (-1: no label)")
        else:
            rows.fail(  # 0 in all rows means that the count is unknown
                (values < 0) | ((values == 0) & values.any()),
                f"the count of frames of '{{row}}' is below 1; a row is `{form}` with one label",
            )
        integers.append(values)
        starts, ends = strip_blanks(rows.buffer, starts, at)
    starts, ends, quoted = strip_quotes(rows.buffer, starts, ends)
    # A path contains no separator, or, since paths may contain spaces, no ` integer`.
    after = np.searchsorted(positions, ends)
    too_many = (after > np.searchsorted(positions, starts)) & ~quoted
    if separator == " ":
        spaced = np.flatnonzero(too_many)
        too_many[spaced] = _parse_integers(rows.buffer, positions[after[spaced] - 1] + 1, ends[spaced])[1]
    rows.fail(
        too_many,
        f"'{{row}}' has too many fields: the first row has {columns + 1}, `{form}`; put a path that contains "
        "the separator in double quotes",
    )
    return starts, ends, integers[0]


def _find_separators(buffer: np.ndarray, separator: str) -> np.ndarray:
    """The position of each separator, int64."""
    codes = separator.encode()
    matches = buffer == codes[0]
    for offset, code in enumerate(codes[1:], 1):
        matches[:-offset] &= buffer[offset:] == code
        matches[-offset:] = False
    return np.flatnonzero(matches)


def _parse_integers(
    buffer: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The integers in spans, int32, and which spans are integers, bool."""
    lengths = ends - starts
    valid = lengths > 0
    negative = np.zeros(len(starts), bool)
    negative[valid] = buffer[starts[valid]] == ord("-")
    digits = lengths - negative
    valid &= (digits > 0) & (digits <= _LONGEST_LABEL)
    values = np.zeros(len(starts), np.int64)
    for power in range(int(digits[valid].max(initial=0))):
        spans = np.flatnonzero(valid & (digits > power))
        digit = buffer[ends[spans] - 1 - power].astype(np.int64) - ord("0")
        values[spans] += digit * 10**power
        valid[spans] = (digit >= 0) & (digit <= 9)
    return np.where(negative, -values, values).astype(np.int32), valid


def _form(separator: str, columns: int) -> str:
    names = (["path"], ["path", "label"], ["path", "count", "label"])[columns]
    return (separator or " ").replace("\t", "<tab>").join(names)
