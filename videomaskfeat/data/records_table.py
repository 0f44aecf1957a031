"""List files with a row a video, `path label` and its relatives, parsed a million rows at once with numpy."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass

import numpy as np

from videomaskfeat.errors import UserError, check_name
from videomaskfeat.texts import show_text

logger = logging.getLogger(__name__)

SEPARATORS = {  # in the order in which they are tried
    "tab": "\t",
    "comma": ",",
    "colons": "::",
    "semicolon": ";",
    "pipe": "|",
    "space": " ",
}
LABELS = ("auto", "yes", "no")
_BLANKS = np.isin(
    np.arange(256), [9, 10, 11, 12, 13, 32]
)  # by byte: what is stripped from both ends of a field
_QUOTE = ord('"')
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


@dataclass(frozen=True)
class Rows:
    """The rows of a list as views into its bytes.

    buffer: uint8, the file.
    starts, ends: int64 [n], where each path lies in it.
    labels: int32 [n], -1 for none; None for a list without labels.
    """

    buffer: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    labels: np.ndarray | None


@dataclass(frozen=True)
class _Layout:
    """What the first row says about all of them."""

    separator: str | None  # None: the whole row is the path
    numbers: int  # integers after the path: 0, 1 (label) or 2 (a count that is not used, and the label)


class _Table:
    """A list file in memory: its bytes, and where its rows that are not blank begin and end.

    A separator after the last field of the first row, and of any other then, is no part of the row.
    """

    def __init__(self, data: bytes, name: str) -> None:
        self.name = name
        self.buffer = np.frombuffer(data, np.uint8)
        stops = np.flatnonzero(self.buffer == 10)
        starts = np.concatenate([[0], stops + 1]).astype(np.int64)
        ends = np.concatenate([stops, [len(self.buffer)]]).astype(np.int64)
        starts, ends = self.strip(starts, ends)
        kept = ends > starts
        self.lines = np.flatnonzero(kept) + 1  # as an editor counts them
        self.starts, self.ends = starts[kept], ends[kept]
        last = _SEPARATORS_AT_END.search(self.text(0)) if len(self.starts) else None
        if last:
            self._drop_at_end(ord(last.group(1)[0]))

    def _drop_at_end(self, letter: int) -> None:
        """End rows before the separators that follow their last field."""
        where = np.arange(len(self.ends))
        while len(where := where[self.ends[where] > self.starts[where]]):
            where = where[self.buffer[self.ends[where] - 1] == letter]
            self.ends[where] -= 1
            self.starts[where], self.ends[where] = self.strip(self.starts[where], self.ends[where])

    def strip(self, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Spans without blanks at both ends."""
        starts, ends = starts.copy(), ends.copy()
        for edge, step, offset in ((ends, -1, -1), (starts, 1, 0)):
            where = np.flatnonzero(ends > starts)
            while len(where := where[_BLANKS[self.buffer[edge[where] + offset]]]):
                edge[where] += step
                where = where[ends[where] > starts[where]]
        return starts, ends

    def unquote(self, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Spans without the double quotes around them, and which of them had some."""
        quoted = ends - starts >= 2
        where = np.flatnonzero(quoted)
        first, last = self.buffer[starts[where]], self.buffer[ends[where] - 1]
        quoted[where] = (first == _QUOTE) & (last == _QUOTE)
        return starts + quoted, ends - quoted, quoted

    def integers(self, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The numbers that spans hold, int32, and which of the spans are integers at all."""
        lengths = ends - starts
        valid = lengths > 0
        negative = np.zeros(len(starts), bool)
        negative[valid] = self.buffer[starts[valid]] == ord("-")
        digits = lengths - negative
        valid &= (digits > 0) & (digits <= _LONGEST_LABEL)
        values = np.zeros(len(starts), np.int64)
        for place in range(int(digits[valid].max(initial=0))):
            where = np.flatnonzero(valid & (digits > place))
            digit = self.buffer[ends[where] - 1 - place].astype(np.int64) - ord("0")
            values[where] += digit * 10**place
            valid[where] = (digit >= 0) & (digit <= 9)
        return np.where(negative, -values, values).astype(np.int32), valid

    def text(self, row: int) -> str:
        """A row as the user sees it, shortened."""
        text = self.buffer[self.starts[row] : self.ends[row]].tobytes().decode("utf-8", "replace")
        return text if len(text) <= 80 else f"{text[:40]}...{text[-37:]}"

    def fail(self, bad: np.ndarray, message: str) -> None:
        """Raise a UserError for the first of the bad rows, if there is one; ``{row}`` stands for its text."""
        if bad.any():
            row = int(bad.argmax())
            raise UserError(f"{self.name}:{self.lines[row]}: " + message.format(row=self.text(row)))


def first_row(data: bytes) -> str:
    """The first row of a list that is not blank, or an empty string."""
    for line in data.removeprefix(b"\xef\xbb\xbf")[: 1 << 16].splitlines():
        if line.strip():
            return line.decode("utf-8", "replace").strip()
    return ""


def parse_table(data: bytes, name: str, *, labels: str = "auto", separator: str = "auto") -> Rows:
    """Rows of `path label`, `path count label` or `path`.

    The first row decides on the form and every other one must agree. A path may hold spaces (the label is
    what follows the last separator), and any path may be put in double quotes, which it must where it holds
    the comma or tab that separates the columns, or ends with a space and an integer of its own.

    Args:
        data: the file, as :func:`~videomaskfeat.texts.read_rows` reads it.
        name: of the file, for messages.
        labels: auto (the first row decides), yes or no.
        separator: auto, or a name in ``SEPARATORS``.

    Raises:
        UserError: no rows; or, with file and line, a row that has too few or too many fields, a label that is
            not an integer, or a label where other rows have none.
    """
    check_name("labels", labels, LABELS)
    check_name("separator", separator, ("auto", *SEPARATORS))
    table = _Table(data, name)
    if not len(table.starts):
        raise UserError(f"{name}: is empty; a list has a row `path label` or `path` for each video")
    layout = _layout(table, labels, separator)
    if layout.separator is None:
        starts, ends, _ = table.unquote(table.starts, table.ends)
        _check_unlabelled(table, labels)
        rows = Rows(table.buffer, starts, ends, None)
    else:
        rows = _split(table, layout)
    table.fail(rows.ends <= rows.starts, "'{row}' has no path")
    opened = table.buffer[rows.starts] == _QUOTE
    table.fail(opened, "the path of '{row}' begins with a double quote that is not closed")
    parted = [f", separated by {key}" for key, text in SEPARATORS.items() if text == layout.separator]
    logger.info("%s: %d rows of `%s`%s", name, len(rows.starts), _form(layout), "".join(parted))
    return rows


def _layout(table: _Table, labels: str, separator: str) -> _Layout:
    """Decide on the columns from the first row."""
    row, where = table.text(0), f"{table.name}:{table.lines[0]}"
    first = table.buffer[table.starts[0] : table.ends[0]].tobytes().decode("utf-8", "replace")
    candidates = list(SEPARATORS.values()) if separator == "auto" else [SEPARATORS[separator]]
    found = next((c for c in candidates if c in first and _is_integer(first.rpartition(c)[2])), None)
    if labels == "no":
        return _Layout(None, 0)
    if found is not None:
        path, integers = first, list[int]()
        while found in path and len(integers) < 4 and _is_integer(path.rpartition(found)[2]):
            path, _, last = path.rpartition(found)
            path, integers = path.rstrip(), [int(last), *integers]
        if not path.strip():
            return _Layout(found, 1)
        if len(integers) > 2 or _LABELS_BEFORE.search(path):
            raise UserError(f"{where}: {_words_on_integers(row, integers, found)}")
        return _Layout(found, len(integers))
    extra = _FIELD_AFTER_FILE.search(first)
    strange = _STRANGE_SEPARATOR.search(first)
    if strange and extra is None:
        raise UserError(
            f"{where}: the label of '{row}' follows {strange.group(1)!r}, which is not a known separator; "
            f"use one of {', '.join(SEPARATORS)}, or set labels=no if it is a part of the path"
        )
    if labels == "auto" and extra is None:
        return _Layout(None, 0)
    if extra is None and not any(c in first for c in candidates):
        raise UserError(
            f"{where}: '{row}' has 1 field, and `path label` has 2 (labels=yes, separator={separator}); "
            "add the label to every row"
        )
    label = extra.group(1) if extra else first.rpartition(next(c for c in candidates if c in first))[2]
    raise UserError(
        f"{where}: the label '{show_text(label)}' is not an integer{_too_long(label)}; a row is `path label` "
        "with labels 0, 1, 2, ... and no header line"
    )


def _too_long(label: str) -> str:
    return f" of at most {_LONGEST_LABEL} digits" if label.strip().lstrip("-").isdecimal() else ""


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


def _check_unlabelled(table: _Table, labels: str) -> None:
    """No row of a list without labels may end with one."""
    last = table.buffer[table.ends - 1] - np.uint8(ord("0"))  # wraps round below "0"
    rule = "labels=no" if labels == "no" else f"row {table.lines[0]} has no label, so none may have one"
    for row in np.flatnonzero(last <= 9):
        match = _FIELD_AFTER_FILE.search(table.text(int(row)))
        if match is not None and _is_integer(match.group(1)):
            remedy = "give every row a label or none (labels=auto takes both)"
            if labels == "auto" and _HEADER.search(table.text(0)):
                remedy = f"row {table.lines[0]}, '{table.text(0)}', looks like a header: remove it"
            raise UserError(
                f"{table.name}:{table.lines[row]}: '{table.text(int(row))}' ends with the label "
                f"{match.group(1)}, but {rule}; {remedy}"
            )


def _split(table: _Table, layout: _Layout) -> Rows:
    """Cut the label, and the count where there is one, off the end of every row."""
    assert layout.separator is not None
    fields, width = layout.numbers + 1, len(layout.separator)
    places = _places(table.buffer, layout.separator)
    few = f"'{{row}}' has too few fields: {fields} are needed as in the first row, `{_form(layout)}`"
    starts, ends = table.starts, table.ends
    integers: list[np.ndarray] = []
    for _ in range(layout.numbers):
        at = np.searchsorted(places, ends) - 1  # the last separator before the end
        at = np.where(at >= 0, places[np.maximum(at, 0)], -1) if len(places) else np.full(len(ends), -1)
        table.fail(at < starts, few)
        number_starts, number_ends = table.strip(at + width, ends)
        values, valid = table.integers(number_starts, number_ends)
        what = "label" if not integers else "count before the label"
        rule = f"an integer of at most {_LONGEST_LABEL} digits"
        table.fail(~valid, f"the {what} of '{{row}}' is not {rule}; a row is `{_form(layout)}`")
        if not integers:
            table.fail(values < -1, "the label of '{row}' is negative; labels count from 0 (-1: no label)")
        else:
            table.fail(  # 0 in every row stands for an unknown count
                (values < 0) | ((values == 0) & values.any()),
                f"the count of frames of '{{row}}' is below 1; a row is `{_form(layout)}`, and a video has "
                "one label only",
            )
        integers.append(values)
        starts, ends = table.strip(starts, at)
    starts, ends, quoted = table.unquote(starts, ends)
    _check_too_many(table, layout, places, starts, ends, quoted)
    return Rows(table.buffer, starts, ends, integers[0])


def _places(buffer: np.ndarray, separator: str) -> np.ndarray:
    """Where each separator begins, int64."""
    letters = separator.encode()
    found = buffer == letters[0]
    for offset, letter in enumerate(letters[1:], 1):
        found[:-offset] &= buffer[offset:] == letter
        found[-offset:] = False
    return np.flatnonzero(found)


def _check_too_many(
    table: _Table,
    layout: _Layout,
    places: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    quoted: np.ndarray,
) -> None:
    """Refuse paths that hold more columns: any separator, or, since paths may hold spaces, ` integer`."""
    after = np.searchsorted(places, ends)
    holds = (after > np.searchsorted(places, starts)) & ~quoted
    if layout.separator == " ":
        where = np.flatnonzero(holds)
        last = places[after[where] - 1]
        holds[where] = table.integers(last + 1, ends[where])[1]
    table.fail(
        holds,
        f"'{{row}}' has too many fields: the first row has {layout.numbers + 1}, `{_form(layout)}`; "
        "put a path that holds the separator in double quotes",
    )


def _form(layout: _Layout) -> str:
    columns = {0: ["path"], 1: ["path", "label"], 2: ["path", "count", "label"]}[layout.numbers]
    return (layout.separator or " ").replace("\t", "<tab>").join(columns)
