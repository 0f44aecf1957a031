"""Lists of videos and pictures in several formats."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Iterable, Sequence
from functools import partial

from videomaskfeat import import_object, import_submodule
from videomaskfeat.data.formats.format import ListFormat, ListSource
from videomaskfeat.data.records import Records
from videomaskfeat.errors import UserError, check_name, counted, nearest
from videomaskfeat.io import exists, is_file, is_folder, list_folder, whole_file
from videomaskfeat.plugins import import_class, is_plugin

__getattr__ = partial(import_submodule, __name__)

FORMATS: dict[str, str] = {
    "shards": "videomaskfeat.data.formats.shards:Shards",
    "ssv2": "videomaskfeat.data.formats.ssv2:Ssv2",
    "multilabel": "videomaskfeat.data.formats.multilabel:MultiLabel",
    "kinetics": "videomaskfeat.data.formats.kinetics:Kinetics",
    "table": "videomaskfeat.data.formats.table:Table",
    "folder": "videomaskfeat.data.formats.folder:Folder",
    "frames": "videomaskfeat.data.formats.folder:Frames",
    "images": "videomaskfeat.data.formats.images:Images",
}
"""Formats by name, as "module:class"; ``format=auto`` uses the first one that detects a list."""


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
    """Read a list of videos or pictures, or find them in a folder.

    Args:
        path: list file or folder.
        format: ``kinetics`` (rows `path label`, or Kinetics' own CSV), ``table`` (rows `path label` only),
            ``ssv2`` (Something-Something-v2's JSON), ``multilabel`` (a header `path labels`, then rows such
            as `a.mp4 3,17`), ``shards`` (index of `pack`, also at a URL), ``folder`` (videos at any depth),
            ``frames`` (folders of pictures, each a video), ``images`` (class folders of pictures), a plug-in
            ``package.module:Class``, or ``auto``: from the path and the first row.
        labels: ``auto`` (as in the first row; all rows must agree), ``yes`` or ``no``. The labels of the
            videos in a folder are its class folders; with ``auto`` they have none.
        prefix: folder of relative paths and of Something-Something's ids (default: the folder of the list).
        separator: column separator of `path label`: auto, space, comma, tab, colons (``::``), semicolon or
            pipe.
        classes: file of class names: Something-Something's labels JSON (default: the one next to the list),
            or one name per line for Kinetics' own CSV (default: the sorted names in the list).
        known_classes: class names indexed by label, such as those of a trained model, for Kinetics' own CSV
            (instead of ``classes``) and for class folders.
        stills: whether clips have one frame: then ``auto`` reads the pictures in a folder as ``images``, and
            otherwise as ``frames``.

    Raises:
        UserError: the list is missing or empty, or a row is wrong.
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


def check_lists(train: str, validation: str) -> str:
    """Check that the lists of a training exist.

    Returns:
        A warning if both are the same list; otherwise an empty string.

    Raises:
        UserError: a list is missing; the message names its key and a similar file.
    """
    for name, path in (("data.train", train), ("data.validation", validation)):
        if path and "://" not in path and not os.path.lexists(path) and not exists(path):
            folder = os.path.dirname(path)
            others = list_folder(folder or ".") if is_folder(folder or ".") else []
            close = nearest(os.path.basename(path), others)
            raise UserError(
                f"{name} is {path}: no such file or folder{close or '; check the path'}; set {name}=LIST"
            )
    folders = {os.path.dirname(os.path.abspath(path)) for path in (train, validation)}
    same = is_file(train) and is_file(validation) and filecmp.cmp(train, validation, shallow=False)
    if train == validation or (same and len(folders) == 1):
        return f"data.validation has the same rows as data.train ({train}): its scores show no generalization"
    return ""


def _find_format(source: ListSource) -> ListFormat:
    if is_plugin(source.format):
        plugin = import_class("format", source.format, ListFormat)()
        formats = {source.format: plugin}
    else:
        check_name("format", source.format, ("auto", *FORMATS))
        formats = build_formats()
    check_name("labels", source.labels, ("auto", "yes", "no"))
    suitable = {name: one for name, one in formats.items() if one.of_folders == source.is_folder}
    if source.format in suitable:
        return suitable[source.format]
    if source.format != "auto":
        folders = ", ".join(name for name, one in build_formats().items() if one.of_folders)
        rule = (
            f"needs a list file, and this is a folder; use {folders}"
            if source.is_folder
            else "needs a folder, and this is a file or missing"
        )
        raise UserError(f"{source.path}: format={source.format} {rule}")
    detected = next((one for one in suitable.values() if one.detect(source)), None)
    if detected is None:
        others = (
            counted(len(source.contents.skipped), "other file") if source.is_folder else "an unknown format"
        )
        raise UserError(
            f"{source.path} contains no videos or pictures ({others}); check the path and the format"
        )
    return detected


_LIST_SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".jsonl")


def expand_folders(paths: Iterable[str], *, stills: bool) -> list[str]:
    """Replace each folder by the videos below it; for ``stills`` see :func:`load_records`.

    Raises:
        UserError: a folder has no videos, or a path is a list file.
    """
    expanded: list[str] = []
    for path in paths:
        if is_folder(path):
            # A folder with the pictures of one video lists itself as ".".
            records = load_records(path, labels="no", stills=stills)
            expanded += [record.path.removesuffix(f"{os.sep}.") for record in records]
        elif path.lower().endswith(_LIST_SUFFIXES) and is_file(path):
            raise UserError(
                f"{path} is a list file, not a video; give the videos themselves or a folder of videos "
                "(`evaluate`, `extract-features` and the trainings read lists)"
            )
        else:
            expanded.append(path)
    return expanded


def write_clean_list(path: str, target: str, records: Records, rows: Sequence[int], *, format: str) -> None:
    """Write a list with some rows (numbers from 0) of the list at ``path`` to ``target``.

    Rows are copied unchanged. For a folder they are `path label`, relative to the new list.

    Raises:
        UserError: the lines do not match the records, or the file cannot be written.
    """
    source = ListSource(path, format=format)
    text = _find_format(source).clean(source, records, rows, target)
    with whole_file(target, errors="surrogateescape") as file:  # names may have any bytes
        file.write(text)


def class_names_beside(path: str, format: str = "auto") -> str:
    """The file of class names next to a list, as in Something-Something-v2; empty if it is missing."""
    formats = (
        build_formats() if not is_plugin(format) else {format: import_class("format", format, ListFormat)()}
    )
    return next((file for one in formats.values() if (file := one.class_file(path))), "")
