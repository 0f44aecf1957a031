"""Kinetics' own CSV files with the header `label,youtube_id,time_start,time_end,split`."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence

from videomaskfeat.data.formats.format import ListSource, missing_videos
from videomaskfeat.data.formats.table import Table
from videomaskfeat.data.records import Records
from videomaskfeat.errors import UserError, nearest
from videomaskfeat.io import exists
from videomaskfeat.texts import read_text, show_text

_PROBED_ROWS = 20  # number of rows with files to look for, since some are always missing
_SUFFIXES = (".mp4", ".mkv", ".webm")
_SEPARATORS = (",", ";", "\t", "|")
_LARGEST_TIME = 10**6  # seconds (11 days)


class Kinetics(Table):
    """Kinetics' own CSV, or rows `path label` as in PySlowFast."""

    def detect(self, source: ListSource) -> bool:
        return _separator(source.first_row) is not None

    def read(self, source: ListSource) -> Records:
        if not self.detect(source):
            return super().read(source)
        files, names = _files_and_classes(source)
        paths = _find_paths(files, names, source)
        if not names:
            return Records.from_paths(paths, None, source=source.path, root=source.root)
        numbers = _class_numbers(names, source.classes, source.known_classes)
        unknown = next((row for row, name in enumerate(names) if name not in numbers), None)
        if unknown is not None:
            name = names[unknown]
            classes = "" if source.known_classes else source.classes
            raise UserError(
                f"{source.path}: class {show_text(name)!r} ({show_text(files[unknown])}) is not in "
                f"{classes or f'the {len(numbers)} known classes'}{nearest(name, numbers)}; correct the "
                "list or the class names"
            )
        labels = [numbers[name] for name in names]
        return Records.from_paths(
            paths, labels, source=source.path, root=source.root, class_names=tuple(numbers)
        )

    def lines(self, source: ListSource) -> tuple[list[str], list[str]]:
        header, lines = super().lines(source)
        if not self.detect(source):
            return header, lines
        return lines[:1], [line for line in lines[1:] if line.strip(' \t\r,;|"')]


def _separator(row: str) -> str | None:
    """The column separator of a header with ``youtube_id``; None for other rows."""
    words = row.lower().replace(" ", "").replace('"', "")
    return next((one for one in _SEPARATORS if one in words and "youtube_id" in words.split(one)), None)


def _fields(source: ListSource) -> Iterator[tuple[str, list[str]]]:
    """``file:line`` and fields of each row that is not blank, including the header."""
    text = source.data.decode("utf-8", "surrogateescape")
    skipped = text[: len(text) - len(text.lstrip())].count("\n")
    separator = _separator(source.first_row) or ","
    rows = csv.reader(io.StringIO(text.lstrip()), skipinitialspace=True, delimiter=separator)
    try:
        for row in rows:
            if any(field.strip() for field in row):
                yield f"{source.path}:{skipped + rows.line_num}", row
    except csv.Error as error:
        where = f"{source.path}:{skipped + rows.line_num}"
        raise UserError(f"{where}: {error}; is a double quote not closed?") from error


def _files_and_classes(source: ListSource) -> tuple[list[str], list[str]]:
    """File names without suffix, ``id_000010_000020``, and class names (empty without labels)."""
    rows = _fields(source)
    where, first = next(rows)
    header = [name.strip().lower() for name in first]
    required = ("youtube_id", "time_start", "time_end", *(["label"] if source.labels == "yes" else []))
    missing = [name for name in required if name not in header]
    if missing:
        reason = " (labels=yes)" if missing == ["label"] else ""
        raise UserError(f"{where}: the header has no column {', '.join(missing)}{reason}")
    columns = [header.index(name) for name in required[:3]]
    label = header.index("label") if "label" in header and source.labels != "no" else None
    files, names = [], []
    for where, row in rows:
        if len(row) != len(header):
            raise UserError(f"{where}: {len(row)} fields, but the header has {len(header)}")
        files.append(_file_name([row[column] for column in columns], where))
        names += [] if label is None else [row[label]]
    if not files:
        raise UserError(f"{source.path} has a header but no rows")
    return files, names


def _file_name(fields: list[str], where: str) -> str:
    video, start, end = fields
    if not video.strip():
        raise UserError(f"{where}: the youtube_id is empty")
    try:
        seconds = [float(start), float(end)]
        if not all(0 <= second < _LARGEST_TIME for second in seconds):
            raise ValueError
    except ValueError as error:
        raise UserError(
            f"{where}: the times {show_text(start)!r} and {show_text(end)!r} are not both numbers (seconds) "
            f"from 0 to {_LARGEST_TIME}"
        ) from error
    return "_".join([video, *(f"{int(second):06d}" for second in seconds)])


def _find_paths(files: list[str], names: list[str], source: ListSource) -> list[str]:
    """Add class folder and suffix, as in the first file that exists."""
    names = names or [""] * len(files)
    folders = (lambda name: "", lambda name: name, lambda name: name.replace(" ", "_"))
    for file, name in list(zip(files, names, strict=True))[:_PROBED_ROWS]:
        for folder in folders:
            for suffix in _SUFFIXES:
                if exists(os.path.join(source.root, folder(name), file + suffix)):
                    return [os.path.join(folder(n), f + suffix) for f, n in zip(files, names, strict=True)]
    examples = f"{files[0]}.mp4, with or without class folders"
    raise missing_videos(source, len(files[:_PROBED_ROWS]), examples)


def _class_numbers(names: list[str], classes: str | None, known_classes: Sequence[str]) -> dict[str, int]:
    known = known_classes
    if not known and classes is not None:
        lines = read_text(classes, what="a file of class names").split("\n")
        known = [line.strip() for line in lines if line.strip()]
    elif not known:
        known = sorted(set(names))
    return {name: number for number, name in enumerate(known)}
