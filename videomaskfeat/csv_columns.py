"""Text files with one row per line, parsed a hundred thousand rows at a time with numpy."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

import numpy as np

from videomaskfeat.errors import UserError
from videomaskfeat.io import open_file
from videomaskfeat.texts import plain_rows, show_text

_BLOCK = 1 << 23  # bytes: some 100,000 rows of boxes
_BLANKS = np.isin(np.arange(256), [9, 11, 12, 13, 32])  # by byte: what is stripped from both ends of a field
_QUOTE, _COMMA, _NEWLINE = ord('"'), ord(","), ord("\n")
_LONGEST_ROW = 1 << 26  # bytes without the end of a line
_LONGEST_NUMBER = 64  # characters; a longer field is no number
_LONGEST_WORD = 255
_NO_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1f]")  # no line of words and numbers has these
_BEGINNING = 1 << 12  # bytes in which a file shows whether it is text
_HEADING = re.compile(r"[A-Za-z_ ]+")


class TextRows:
    """The rows of a text that are not blank, as spans of its bytes.

    Attributes:
        name: of the file, for messages.
        buffer: uint8, the text.
        lines: int64 [n], as an editor counts them.
        starts, ends: int64 [n], the span of each row, without blanks around it.
    """

    def __init__(self, data: bytes, name: str, *, first_line: int = 1) -> None:
        self.name, self.buffer = name, np.frombuffer(data, np.uint8)
        stops = np.flatnonzero(self.buffer == _NEWLINE)
        starts = np.concatenate([[0], stops + 1]).astype(np.int64)
        ends = np.concatenate([stops, [len(self.buffer)]]).astype(np.int64)
        starts, ends = strip_blanks(self.buffer, starts, ends)
        kept = np.flatnonzero(ends > starts)
        self.lines, self.starts, self.ends = kept + first_line, starts[kept], ends[kept]
        self.next_line = first_line + len(stops)

    def __len__(self) -> int:
        return len(self.lines)

    def text(self, row: int) -> str:
        """The whole text of a row."""
        return _text(self.buffer[self.starts[row] : self.ends[row]])

    def fail(self, bad: np.ndarray, message: str, **values: str) -> None:
        """Raise a UserError for the first of the bad rows, bool [n], if there is one.

        ``{row}`` in the message stands for its text, other names for ``values``.
        """
        if bad.any():
            row = int(bad.argmax())
            text = message.format(row=show_text(self.text(row)), **values)
            raise UserError(f"{self.name}:{self.lines[row]}: {text}")


def strip_blanks(buffer: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Spans (int64 of any one shape) without blanks at both ends."""
    shape = starts.shape
    starts, ends = starts.flatten(), ends.flatten()  # copies
    for edge, step, offset in ((ends, -1, -1), (starts, 1, 0)):
        where = np.flatnonzero(ends > starts)
        while len(where := where[_BLANKS[buffer[edge[where] + offset]]]):
            edge[where] += step
            where = where[ends[where] > starts[where]]
    return starts.reshape(shape), ends.reshape(shape)


def strip_quotes(
    buffer: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Spans without the double quotes around them, and which of them had some."""
    quoted = ends - starts >= 2
    quoted[quoted] = (buffer[starts[quoted]] == _QUOTE) & (buffer[ends[quoted] - 1] == _QUOTE)
    return starts + quoted, ends - quoted, quoted


class CsvRows(TextRows):
    """Rows of a file with commas between their fields.

    Attributes:
        form: of a row, ``video,second``: the columns' names.
        columns: how many each row has.
    """

    def __init__(
        self, rows: TextRows, form: str, starts: np.ndarray, ends: np.ndarray, kept: np.ndarray | slice
    ) -> None:
        """Some rows of a text: ``kept`` selects from its lines and from the fields' spans [n, columns]."""
        self.name, self.buffer, self.form, self.lines = rows.name, rows.buffer, form, rows.lines[kept]
        self.field_starts, self.field_ends = starts[kept], ends[kept]
        self.starts, self.ends = self.field_starts[:, 0], self.field_ends[:, -1]
        self.columns = starts.shape[1]

    def numbers(self, column: int, *, blank: float | None = None) -> np.ndarray:
        """The numbers of a column, float64 [n], each as Python's ``float`` reads it.

        Args:
            column: counts from 0.
            blank: what an empty field stands for; None: it is a mistake.

        Raises:
            UserError: a field that is no number, or not a finite one, with file and line.
        """
        starts, ends = self.field_starts[:, column], self.field_ends[:, column]
        what = f"the {self.form.split(',')[column]}"
        empty = ends <= starts
        if blank is None:
            self.fail(empty, f"{what} of '{{row}}' is empty; a row is `{self.form}`")
        values = np.full(len(self), np.nan if blank is None else blank)
        rows = np.flatnonzero(~empty)
        long = ends - starts > _LONGEST_NUMBER
        self.fail_field(long, f"{what} '{{value}}' has more than {_LONGEST_NUMBER} characters", column)
        try:
            values[rows] = self._padded(starts[rows], ends[rows]).astype(np.float64)
        except ValueError:
            bad = np.array([not _is_number(self._field(row, column)) for row in range(len(self))]) & ~empty
            rule = f"is not a number; a row is `{self.form}`"
            self.fail_field(bad, f"{what} '{{value}}' of '{{row}}' {rule}", column)
            raise  # numpy reads what Python reads, so this is not reached
        rule = "is not finite; give a number, or leave the row out"
        self.fail_field(~np.isfinite(values) & ~empty, f"{what} '{{value}}' of '{{row}}' {rule}", column)
        return values

    def words(self, column: int) -> np.ndarray:
        """The texts of a column as bytes, S [n].

        Raises:
            UserError: an empty field, or one of more than 255 bytes, with file and line.
        """
        starts, ends = self.field_starts[:, column], self.field_ends[:, column]
        what = f"the {self.form.split(',')[column]}"
        self.fail(ends <= starts, f"{what} of '{{row}}' is empty; a row is `{self.form}`")
        self.fail(ends - starts > _LONGEST_WORD, f"{what} of '{{row}}' has more than {_LONGEST_WORD} bytes")
        return self._padded(starts, ends)

    def is_empty(self, columns: Sequence[int]) -> np.ndarray:
        """Which rows have nothing in any of some columns, bool [n]."""
        return np.asarray((self.field_ends[:, columns] <= self.field_starts[:, columns]).all(axis=1))

    def select(self, kept: np.ndarray) -> CsvRows:
        """Those rows where ``kept``, bool [n], is true."""
        return CsvRows(self, self.form, self.field_starts, self.field_ends, kept)

    def fail_field(self, bad: np.ndarray, message: str, column: int) -> None:
        """As ``fail``; ``{value}`` stands for the text of a column."""
        if bad.any():
            self.fail(bad, message, value=show_text(self._field(int(bad.argmax()), column)))

    def _field(self, row: int, column: int) -> str:
        return _text(self.buffer[self.field_starts[row, column] : self.field_ends[row, column]])

    def _padded(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Spans as an array of bytes strings, S [n]."""
        if not len(starts):
            return np.empty(0, "S1")
        places = np.arange(int((ends - starts).max()))
        letters = self.buffer.take(starts[:, None] + places, mode="clip")  # [n, longest]
        letters[places >= (ends - starts)[:, None]] = 0
        return letters.view(f"S{len(places)}")[:, 0]


def read_csv(
    path: str | os.PathLike[str],
    *,
    form: str,
    columns: Sequence[int],
    numbers: Sequence[int],
    short: int = 0,
) -> Iterator[CsvRows]:
    """The rows of a file, in blocks.

    Blank lines are skipped, and so is a first line with words where ``numbers`` belong. Fields may stand in
    double quotes, and between blanks.

    Args:
        path: of the file.
        form: of its longest rows: the columns' names, with commas between them.
        columns: how many a row may have; the first one decides, and all others must agree.
        numbers: columns that hold numbers, by which a line of headings is recognized.
        short: columns of rows that end early, whose other fields are empty then; 0: there are no such rows.

    Raises:
        UserError: no such file, or no text; or, with file and line, a row with too few or too many columns.
    """
    name, found, first_line, heads = os.fspath(path), 0, 1, True
    for data in _whole_lines(path, f"a CSV file with rows `{form}`"):
        if first_line == 1 and _NO_TEXT.search(data, 0, _BEGINNING):
            raise UserError(f"{name}: is not a text file (UTF-8); give a CSV file with rows `{form}`")
        rows = TextRows(data, name, first_line=first_line)
        first_line = rows.next_line
        if not len(rows):
            continue
        commas = np.flatnonzero(rows.buffer == _COMMA)
        counts = np.searchsorted(commas, rows.ends) - np.searchsorted(commas, rows.starts) + 1
        whole = counts[counts != short]
        found = found or (int(whole[0]) if len(whole) else 0)
        _check_columns(rows, form, columns, found, counts, short)
        starts, ends = _fields(rows, commas, counts, found or columns[0])
        skip = heads and _is_heading(rows.buffer, starts[0], ends[0], numbers)
        heads = False
        yield CsvRows(rows, form, starts, ends, slice(int(skip), None))


def _fields(
    rows: TextRows, commas: np.ndarray, counts: np.ndarray, columns: int
) -> tuple[np.ndarray, np.ndarray]:
    """The bare fields of rows, int64 [n, columns] each; those behind a row's end are empty."""
    if (counts == columns).all():
        inner = commas.reshape(len(counts), columns - 1)
    else:
        inner = np.repeat(rows.ends[:, None], columns - 1, axis=1)
        places = np.repeat(np.arange(len(counts)), counts - 1)
        before = np.cumsum(counts - 1) - (counts - 1)  # commas of earlier rows
        inner[places, np.arange(len(commas)) - np.repeat(before, counts - 1)] = commas
    ends = np.column_stack([inner, rows.ends])
    starts = np.minimum(np.column_stack([rows.starts, inner + 1]), ends)
    if _BLANKS[rows.buffer].any():
        starts, ends = strip_blanks(rows.buffer, starts, ends)
    if (rows.buffer == _QUOTE).any():
        starts, ends, _ = strip_quotes(rows.buffer, starts, ends)
        starts, ends = strip_blanks(rows.buffer, starts, ends)
    return starts, ends


def _whole_lines(path: str | os.PathLike[str], what: str) -> Iterator[bytes]:
    """A file in pieces that end where a line does; the first one shows its kind and its encoding."""
    name = os.fspath(path)
    with open_file(path, "rb") as file:
        start: bytes = file.read(4)
        if start[:2] in (b"\xff\xfe", b"\xfe\xff") or start == b"\x00\x00\xfe\xff":  # UTF-16, UTF-32
            yield plain_rows(start + file.read(), name, what=what)
            return
        rest, first = start, True
        while piece := file.read(_BLOCK):
            whole, newline, after = piece.rpartition(b"\n")
            if newline:
                yield _plain(rest + whole + newline, name, what, first=first)
                rest, first = after, False
            else:
                rest += piece
            if len(rest) > _LONGEST_ROW and b"\r" not in rest:
                raise UserError(f"{name}: a row has more than {_LONGEST_ROW} bytes; give {what}")
        if rest:
            yield _plain(rest, name, what, first=first)


def _plain(data: bytes, name: str, what: str, *, first: bool) -> bytes:
    if first:
        return plain_rows(data, name, what=what)
    if b"\0" in data:
        raise UserError(f"{name}: holds NUL bytes; give {what}")
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in data else data


def _check_columns(
    rows: TextRows, form: str, columns: Sequence[int], found: int, counts: np.ndarray, short: int
) -> None:
    """Every row must have as many columns as the first one, ``found`` (0: all are short), or ``short``."""
    expected = found or short
    known = expected in columns or expected == short
    bad = (counts != expected) & (counts != short) if known else np.ones(len(counts), bool)
    if bad.any():
        count = int(counts[bad.argmax()])
        many = f"{count} column" + ("s" if count > 1 else "")
        rule = f"the first row has {expected}" if known else f"{' or '.join(map(str, columns))} are needed"
        rows.fail(bad, f"'{{row}}' has {many}, and {rule}: `{form}`, with commas between them")


def _is_heading(buffer: np.ndarray, starts: np.ndarray, ends: np.ndarray, numbers: Sequence[int]) -> bool:
    """Whether a row names columns: words where numbers belong, in all of those places."""
    fields = [_text(buffer[starts[column] : ends[column]]) for column in numbers if column < len(starts)]
    words = [field for field in fields if not _is_number(field)]
    return len(words) == len(fields) and _HEADING.fullmatch(fields[0]) is not None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.isascii()  # Python knows the digits of all scripts, numpy does not


def _text(letters: np.ndarray) -> str:
    return letters.tobytes().decode("utf-8", "replace")
