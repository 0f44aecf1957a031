"""Kinetics' own CSV files, whose header is `label,youtube_id,time_start,time_end,split`."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from itertools import islice
from typing import Any

from videomaskfeat.errors import UserError, nearest
from videomaskfeat.io import exists
from videomaskfeat.texts import read_text, show_text

_LOOK_AT = 20  # rows whose files are looked for, since some are always missing
_SUFFIXES = (".mp4", ".mkv", ".webm")
_SEPARATORS = (",", ";", "\t", "|")
_LATEST = 10**6  # seconds: eleven days


def is_kinetics_header(row: str, source: str) -> bool:
    """Whether the first row of a list is the header of Kinetics' own CSV files.

    Raises:
        UserError: it is the header of a list of frames, which is not read.
    """
    if row.startswith("original_vido_id"):  # PySlowFast's spelling
        raise UserError(
            f"{source}: a list of frames (`original_vido_id video_id frame_id path labels`) is not read; "
            "give the JSON list, and the folder of the frame folders as prefix"
        )
    return _separator(row) is not None


def _separator(row: str) -> str | None:
    """What separates the columns of a header that names ``youtube_id``; None for other rows."""
    words = row.lower().replace(" ", "").replace('"', "")
    return next((one for one in _SEPARATORS if one in words and "youtube_id" in words.split(one)), None)


def kinetics_names(
    data: bytes,
    source: str,
    root: str,
    *,
    labels: str,
    classes: str | None,
    known_classes: Sequence[str] = (),
) -> tuple[list[str], list[int] | None, tuple[str, ...]]:
    """File names, ``id_000010_000020.mp4`` in class folders or not, class numbers, and the classes' names.

    Args:
        data: the file.
        source: its path, for messages.
        root: folder of the videos, in which the first rows tell whether there are class folders.
        labels: auto (labelled if there is a column ``label``), yes or no.
        classes: file of class names in the order of their numbers, one a line.
        known_classes: the names themselves, where no file is given; default: those of the list, sorted.

    Raises:
        UserError: a row (file and line named) without all fields or with a time that is no number, or an
            unknown class.
    """
    text = data.decode("utf-8", "surrogateescape").lstrip()
    skipped = data.count(b"\n", 0, len(data) - len(data.lstrip()))
    separator = _separator(text.partition("\n")[0]) or ","
    reader = csv.reader(io.StringIO(text), skipinitialspace=True, delimiter=separator)
    try:
        return _names(
            reader, source, root, skipped, labels=labels, classes=classes, known_classes=known_classes
        )
    except csv.Error as error:
        raise UserError(
            f"{source}:{skipped + reader.line_num}: {error}; is a double quote not closed?"
        ) from error


def _names(
    reader: Any,
    source: str,
    root: str,
    skipped: int,
    *,
    labels: str,
    classes: str | None,
    known_classes: Sequence[str],
) -> tuple[list[str], list[int] | None, tuple[str, ...]]:
    """See :func:`kinetics_names`; ``reader`` is of the rows, after ``skipped`` blank lines."""
    header = [name.strip().lower() for name in next(reader)]
    missing = [name for name in ("youtube_id", "time_start", "time_end") if name not in header]
    if missing:
        raise UserError(
            f"{source}:{skipped + reader.line_num}: the header has no column {', '.join(missing)}"
        )
    columns = [header.index(name) for name in ("youtube_id", "time_start", "time_end")]
    label_column = header.index("label") if "label" in header and labels != "no" else None
    if labels == "yes" and label_column is None:
        raise UserError(f"{source}:{skipped + reader.line_num}: the header has no column label (labels=yes)")
    files, names = [], []
    for row in reader:
        if not any(field.strip() for field in row):
            continue
        files.append(_file_name(row, len(header), columns, f"{source}:{skipped + reader.line_num}"))
        names.append(row[label_column] if label_column is not None else "")
    if not files:
        raise UserError(f"{source}: has a header and no rows")
    paths = _with_folders(files, names, source, root)
    if label_column is None:
        return paths, None, ()
    numbers = _class_numbers(names, classes, known_classes)
    unknown = next((row for row, name in enumerate(names) if name not in numbers), None)
    if unknown is not None:
        name = names[unknown]
        raise UserError(
            f"{source}: class {show_text(name)!r} ({show_text(files[unknown])}) is not in "
            f"{classes or f'the {len(numbers)} classes that are known'}{nearest(name, numbers)}"
        )
    return paths, [numbers[name] for name in names], tuple(numbers)


def _file_name(row: list[str], fields: int, columns: list[int], where: str) -> str:
    if len(row) != fields:
        raise UserError(f"{where}: {len(row)} fields, and the header has {fields}")
    video, start, end = (row[column] for column in columns)
    if not video.strip():
        raise UserError(f"{where}: the youtube_id is empty")
    try:
        seconds = [float(start), float(end)]
        if not all(0 <= second < _LATEST for second in seconds):
            raise ValueError
    except ValueError as error:
        raise UserError(
            f"{where}: the times {show_text(start)!r} and {show_text(end)!r} are not both numbers (seconds) "
            f"from 0 to {_LATEST}"
        ) from error
    return "_".join([video, *(f"{int(second):06d}" for second in seconds)])


def _with_folders(files: list[str], names: list[str], source: str, root: str) -> list[str]:
    """Add the class folder and the suffix that the first files to be found have."""
    folders = {
        "": lambda name: "",
        "class folders": lambda name: name,
        "class folders with underscores": lambda name: name.replace(" ", "_"),
    }
    for file, name in islice(zip(files, names, strict=True), _LOOK_AT):
        for folder in folders.values():
            for suffix in _SUFFIXES:
                if exists(os.path.join(root, folder(name), file + suffix)):
                    return [os.path.join(folder(n), f + suffix) for f, n in zip(files, names, strict=True)]
    raise UserError(
        f"{source}: none of the first {len(files[:_LOOK_AT])} videos is in the folder {root or '.'}, with or "
        f"without class folders ({files[0]}.mp4 ...); set the prefix to the folder of the videos"
    )


def _class_numbers(names: list[str], classes: str | None, known_classes: Sequence[str]) -> dict[str, int]:
    if classes is None and known_classes:
        return {name: number for number, name in enumerate(known_classes)}
    if classes is None:
        return {name: number for number, name in enumerate(sorted(set(names)))}
    lines = read_text(classes, what="a file of class names").split("\n")
    known = [line.strip() for line in lines if line.strip()]
    return {name: number for number, name in enumerate(known)}
