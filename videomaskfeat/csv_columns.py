"""Text files with one row per line, parsed a hundred thousand rows at a time with numpy."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

import numpy as np

from videomaskfeat.errors import UserError
from videomaskfeat.io import open_file
from videomaskfeat.texts import plain_rows, show_text

_BLOCK = 1 << 23  # bytes: about 100,000 rows of boxes
_BLANKS = np.isin(np.arange(256), [9, 11, 12, 13, 32])  # indexed by byte
_QUOTE, _COMMA, _NEWLINE = ord('"'), ord(","), ord("\n")
_LONGEST_ROW = 1 << 26  # bytes
_LONGEST_NUMBER = 64  # characters
_LONGEST_WORD = 255  # bytes
_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1f]")
_CHECKED_BYTES = 1 << 12  # at the start of a file, in which binary content is looked for
_HEADING = re.compile(r"[A-Za-z_ ]+")


class TextRows:
    """The rows of a text that are not blank, as spans of its bytes.

    Attributes:
        name: file name, for messages.
        buffer: the text, uint8.
        lines: int64 [n], line numbers from 1.
        starts, ends: int64 [n], span of each row without surrounding blanks.
        next_line: line number after the text.
    """

    def __init__(self, data: bytes, name: str, *, first_line: int = 1) -> None:
        self.name, self.buffer = name, np.frombuffer(data, np.uint8)
        stops = np.flatnonzero(self.buffer == _NEWLINE)
        starts = np.concatenate([[0], stops + 1]).astype(np.int64)
        ends = np.concatenate([stops, [len(self.buffer)]]).astype(np.int64)
        starts, ends = strip_blanks(self.buffer, starts, ends)
        filled = np.flatnonzero(ends > starts)
        self.lines, self.starts, self.ends = filled + first_line, starts[filled], ends[filled]
        self.next_line = first_line + len(stops)

    def __len__(self) -> int:
        return len(self.lines)

    def text(self, row: int) -> str:
        """The text of a row."""
        return _decode(self.buffer[self.starts[row] : self.ends[row]])

    def fail(self, bad: np.ndarray, message: str, **values: str) -> None:
        """Raise UserError for the first bad row, if there is one.

        Args:
            bad: bool [n].
            message: format string; ``{row}`` is the text of the row, other fields come from ``values``.
        """
        if bad.any():
            row = int(bad.argmax())
            text = message.format(row=show_text(self.text(row)), **values)
            raise UserError(f"{self.name}:{self.lines[row]}: {text}")


def strip_blanks(buffer: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Remove blanks from both ends of spans, int64 of any shape."""
    shape = starts.shape
    starts, ends = starts.flatten(), ends.flatten()  # copies
    for edge, step, offset in ((ends, -1, -1), (starts, 1, 0)):
        spans = np.flatnonzero(ends > starts)
        while len(spans := spans[_BLANKS[buffer[edge[spans] + offset]]]):
            edge[spans] += step
            spans = spans[ends[spans] > starts[spans]]
    return starts.reshape(shape), ends.reshape(shape)


def strip_quotes(
    buffer: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Remove double quotes around spans; returns starts, ends, and which spans had quotes, bool [n]."""
    quoted = ends - starts >= 2
    quoted[quoted] = (buffer[starts[quoted]] == _QUOTE) & (buffer[ends[quoted] - 1] == _QUOTE)
    return starts + quoted, ends - quoted, quoted


class CsvRows(TextRows):
    """Rows with comma-separated fields.

    Attributes:
        form: column names, separated by commas: ``video,second``.
        columns: number of columns.
    """

    def __init__(
        self, rows: TextRows, form: str, starts: np.ndarray, ends: np.ndarray, selection: np.ndarray | slice
    ) -> None:
        """Select rows of a text; ``starts`` and ``ends`` are the spans of its fields, [n, columns]."""
        self.name, self.buffer, self.form, self.lines = rows.name, rows.buffer, form, rows.lines[selection]
        self.field_starts, self.field_ends = starts[selection], ends[selection]
        self.starts, self.ends = self.field_starts[:, 0], self.field_ends[:, -1]
        self.columns = starts.shape[1]

    def numbers(self, column: int, *, blank: float | None = None) -> np.ndarray:
        """The numbers of a column, float64 [n], parsed as Python's ``float`` does.

        Args:
            column: index of the column.
            blank: value of an empty field; None: an empty field is an error.

        Raises:
            UserError: a field is not a finite number.
        """
        starts, ends = self.field_starts[:, column], self.field_ends[:, column]
        what = f"the {self.form.split(',')[column]}"
        empty = ends <= starts
        if blank is None:
            self.fail(empty, f"{what} of '{{row}}' is empty; a row is `{self.form}`")
        values = np.full(len(self), np.nan if blank is None else blank)
        rows = np.flatnonzero(~empty)
        too_long = ends - starts > _LONGEST_NUMBER
        self.fail_field(too_long, f"{what} '{{value}}' has more than {_LONGEST_NUMBER} characters", column)
        try:
            values[rows] = self._padded(starts[rows], ends[rows]).astype(np.float64)
        except ValueError:
            bad = np.array([not _is_number(self._field(row, column)) for row in range(len(self))]) & ~empty
            rule = f"is not a number; a row is `{self.form}`"
            self.fail_field(bad, f"{what} '{{value}}' of '{{row}}' {rule}", column)
            raise  # not reached: numpy and Python accept the same numbers
        rule = "is not finite; give a number, or leave the row out"
        self.fail_field(~np.isfinite(values) & ~empty, f"{what} '{{value}}' of '{{row}}' {rule}", column)
        return values

    def words(self, column: int) -> np.ndarray:
        """The fields of a column as bytes, S [n].

        Raises:
            UserError: a field is empty, or has more than 255 bytes.
        """
        starts, ends = self.field_starts[:, column], self.field_ends[:, column]
        what = f"the {self.form.split(',')[column]}"
        self.fail(ends <= starts, f"{what} of '{{row}}' is empty; a row is `{self.form}`")
        self.fail(ends - starts > _LONGEST_WORD, f"{what} of '{{row}}' has more than {_LONGEST_WORD} bytes")
        return self._padded(starts, ends)

    def is_empty(self, columns: Sequence[int]) -> np.ndarray:
        """Which rows are empty in all of these columns, bool [n]."""
        return np.asarray((self.field_ends[:, columns] <= self.field_starts[:, columns]).all(axis=1))

    def select(self, mask: np.ndarray) -> CsvRows:
        """The rows for which ``mask``, bool [n], is True."""
        return CsvRows(self, self.form, self.field_starts, self.field_ends, mask)

    def fail_field(self, bad: np.ndarray, message: str, column: int) -> None:
        """Like ``fail``; ``{value}`` in the message is the field of this column."""
        if bad.any():
            self.fail(bad, message, value=show_text(self._field(int(bad.argmax()), column)))

    def _field(self, row: int, column: int) -> str:
        return _decode(self.buffer[self.field_starts[row, column] : self.field_ends[row, column]])

    def _padded(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Copy spans into byte strings, S [n]."""
        if not len(starts):
            return np.empty(0, "S1")
        offsets = np.arange(int((ends - starts).max()))
        characters = self.buffer.take(starts[:, None] + offsets, mode="clip")  # [n, longest]
        characters[offsets >= (ends - starts)[:, None]] = 0
        return characters.view(f"S{len(offsets)}")[:, 0]


def read_csv(
    path: str | os.PathLike[str],
    *,
    form: str,
    column_counts: Sequence[int],
    number_columns: Sequence[int],
    short_row_columns: int = 0,
) -> Iterator[CsvRows]:
    """Yield the rows of a CSV file in blocks.

    Blank lines are skipped. A first line with words in all ``number_columns`` is a header and is skipped.
    Fields may be in double quotes and may have blanks around them.

    Args:
        path: the file.
        form: column names of the longest rows, separated by commas.
        column_counts: allowed numbers of columns; all rows must have as many as the first one.
        number_columns: indices of columns with numbers.
        short_row_columns: number of columns of rows that end early, whose other fields are then empty; 0:
            there are no such rows.

    Raises:
        UserError: the file is missing or is not text, or a row has a wrong number of columns.
    """
    name, columns, first_line, at_start = os.fspath(path), 0, 1, True
    for data in _read_blocks(path, f"a CSV file with rows `{form}`"):
        if first_line == 1 and _BINARY.search(data, 0, _CHECKED_BYTES):
            raise UserError(f"{name} is not a text file (UTF-8); give a CSV file with rows `{form}`")
        rows = TextRows(data, name, first_line=first_line)
        first_line = rows.next_line
        if not len(rows):
            continue
        commas = np.flatnonzero(rows.buffer == _COMMA)
        counts = np.searchsorted(commas, rows.ends) - np.searchsorted(commas, rows.starts) + 1
        full_counts = counts[counts != short_row_columns]
        columns = columns or (int(full_counts[0]) if len(full_counts) else 0)
        _check_columns(rows, form, column_counts, columns, counts, short_row_columns)
        starts, ends = _fields(rows, commas, counts, columns or column_counts[0])
        skipped = int(at_start and _is_heading(rows.buffer, starts[0], ends[0], number_columns))
        at_start = False
        yield CsvRows(rows, form, starts, ends, slice(skipped, None))


def _fields(
    rows: TextRows, commas: np.ndarray, counts: np.ndarray, columns: int
) -> tuple[np.ndarray, np.ndarray]:
    """Spans of the fields, int64 [n, columns], without blanks and quotes; missing fields are empty."""
    if (counts == columns).all():
        inner = commas.reshape(len(counts), columns - 1)
    else:
        inner = np.repeat(rows.ends[:, None], columns - 1, axis=1)
        row_of_comma = np.repeat(np.arange(len(counts)), counts - 1)
        before = np.cumsum(counts - 1) - (counts - 1)  # commas of earlier rows
        inner[row_of_comma, np.arange(len(commas)) - np.repeat(before, counts - 1)] = commas
    ends = np.column_stack([inner, rows.ends])
    starts = np.minimum(np.column_stack([rows.starts, inner + 1]), ends)
    if _BLANKS[rows.buffer].any():
        starts, ends = strip_blanks(rows.buffer, starts, ends)
    if (rows.buffer == _QUOTE).any():
        starts, ends, _ = strip_quotes(rows.buffer, starts, ends)
        starts, ends = strip_blanks(rows.buffer, starts, ends)
    return starts, ends


def _read_blocks(path: str | os.PathLike[str], what: str) -> Iterator[bytes]:
    """Yield a file in blocks of whole lines; its kind and encoding are checked in the first one."""
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
        raise UserError(f"{name} contains NUL bytes; give {what}")
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in data else data


def _check_columns(
    rows: TextRows, form: str, allowed: Sequence[int], columns: int, counts: np.ndarray, short: int
) -> None:
    """Every row must have ``columns`` columns (0: all rows so far are short), or ``short``."""
    expected = columns or short
    valid = expected in allowed or expected == short
    bad = (counts != expected) & (counts != short) if valid else np.ones(len(counts), bool)
    if bad.any():
        count = int(counts[bad.argmax()])
        many = f"{count} column" + ("s" if count > 1 else "")
        rule = f"the first row has {expected}" if valid else f"{' or '.join(map(str, allowed))} are needed"
        rows.fail(bad, f"'{{row}}' has {many}, and {rule}: `{form}`, separated by commas")


def _is_heading(buffer: np.ndarray, starts: np.ndarray, ends: np.ndarray, numbers: Sequence[int]) -> bool:
    """Whether a row has words in all columns of numbers."""
    fields = [_decode(buffer[starts[column] : ends[column]]) for column in numbers if column < len(starts)]
    words = [field for field in fields if not _is_number(field)]
    return len(words) == len(fields) and _HEADING.fullmatch(fields[0]) is not None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.isascii()  # Python accepts the digits of all scripts, numpy does not


def _decode(characters: np.ndarray) -> str:
    return characters.tobytes().decode("utf-8", "replace")
