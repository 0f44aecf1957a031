"""Lists of videos and pictures, one file per format."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import partial

from videomaskfeat import import_object, import_submodule
from videomaskfeat.data.formats.format import ListFormat, ListSource
from videomaskfeat.data.records import Records
from videomaskfeat.errors import UserError, check_name, counted
from videomaskfeat.io import is_folder, whole_file

__getattr__ = partial(import_submodule, __name__)

FORMATS: dict[str, str] = {
    "ssv2": "videomaskfeat.data.formats.ssv2:Ssv2",
    "kinetics": "videomaskfeat.data.formats.kinetics:Kinetics",
    "table": "videomaskfeat.data.formats.table:Table",
    "folder": "videomaskfeat.data.formats.folder:Folder",
    "frames": "videomaskfeat.data.formats.frames:Frames",
    "images": "videomaskfeat.data.formats.images:Images",
}
"""Formats by the name in ``format=``, as "module:class"; ``auto`` takes the first one that detects a list."""


def build_formats() -> dict[str, ListFormat]:
    """The formats in :data:`FORMATS`, by name."""
    return {name: import_object(entry)() for name, entry in FORMATS.items()}


def load_records(
    path: str | os.PathLike[str],
    *,
    format: str = "auto",
    labels: str = "auto",
    prefix: str | os.PathLike[str] = "",
    separator: str = "auto",
    classes: str | os.PathLike[str] | None = None,
    known_classes: Sequence[str] = (),
    stills: bool = False,
) -> Records:
    """Read a list of videos or pictures, or look through a folder for them.

    Args:
        path: a list file or a folder.
        format: ``kinetics`` (a row `path label`, or Kinetics' own CSV with its header), ``table`` (rows `path
            label` only), ``ssv2`` (Something-Something-v2's JSON), ``folder`` (of videos, at any depth),
            ``frames`` (a folder of folders of pictures, each a video), ``images`` (a folder of class folders
            of pictures, each by itself), or ``auto``: by what the path is and how its first row looks.
        labels: ``auto`` (as the first row, and every row must agree), ``yes`` or ``no``.
        prefix: folder before relative paths (and before Something-Something's ids); default: the list's own.
        separator: of the columns of `path label`: auto, space, comma, tab, colons (``::``), semicolon or
            pipe.
        classes: file of class names for lists that name classes in words: Something-Something's labels JSON
            (default: the one beside the list), or one name per line for Kinetics' own CSV (default: the
            list's own names, sorted).
        known_classes: the names themselves in the order of their numbers, for Kinetics' own CSV, where they
            precede ``classes``, and for class folders; a network that was trained on them knows them.
        stills: clips have one frame, so with ``auto`` the pictures in a folder are ``images``; otherwise they
            are ``frames``.

    Raises:
        UserError: the list is missing, empty or wrong in a row, which is named by file and line.
    """
    source = ListSource(
        os.fspath(path),
        format=format,
        labels=labels,
        prefix=os.fspath(prefix),
        separator=separator,
        classes=None if classes is None else os.fspath(classes),
        known_classes=known_classes,
        stills=stills,
    )
    return _find_format(source).read(source)


def _find_format(source: ListSource) -> ListFormat:
    """The format of a list, as named or detected."""
    check_name("format", source.format, ("auto", *FORMATS))
    check_name("labels", source.labels, ("auto", "yes", "no"))
    formats = build_formats()
    suitable = {name: one for name, one in formats.items() if one.of_folders == source.is_folder}
    if source.format in suitable:
        return suitable[source.format]
    if source.format != "auto":
        folders = ", ".join(name for name, one in formats.items() if one.of_folders)
        needed = (
            f"needs a list file, and this is a folder; take {folders}"
            if source.is_folder
            else "needs a folder, and this is a file or missing"
        )
        raise UserError(f"{source.path}: format={source.format} {needed}")
    detected = next((one for one in suitable.values() if one.detect(source)), None)
    if detected is None:
        others = counted(len(source.found.skipped), "other file") if source.is_folder else "an unknown format"
        raise UserError(
            f"{source.path}: holds no videos or pictures ({others}); check the path and the format"
        )
    return detected


def expand_folders(paths: Iterable[str], *, stills: bool) -> list[str]:
    """The paths, each folder replaced by the videos below it; for ``stills`` see :func:`load_records`."""
    expanded: list[str] = []
    for path in paths:
        if is_folder(path):
            # A folder that holds the pictures of one video lists itself, as ".".
            records = load_records(path, labels="no", stills=stills)
            expanded += [record.path.removesuffix(f"{os.sep}.") for record in records]
        else:
            expanded.append(path)
    return expanded


def write_clean_list(path: str, target: str, records: Records, rows: Sequence[int], *, format: str) -> None:
    """Write a list at ``target`` with some rows (numbers from 0) of the list at ``path``.

    They stand as they stood there; of a folder they are `path label`, with paths from the new list's own
    place.

    Raises:
        UserError: the rows cannot be told apart, or the file cannot be written.
    """
    source = ListSource(path, format=format)
    text = _find_format(source).clean(source, records, rows, target)
    with whole_file(target, errors="surrogateescape") as file:  # names may have any bytes
        file.write(text)


def class_names_beside(path: str) -> str:
    """The file of class names that lies beside a list, as Something-Something-v2 has it; empty if none."""
    return next((file for one in build_formats().values() if (file := one.class_file(path))), "")
