"""Labels from class folders: the folder directly below the root is the class, as in ImageNet."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence

from videomaskfeat.data.formats.format import ListSource
from videomaskfeat.data.records import Records
from videomaskfeat.errors import UserError, nearest

logger = logging.getLogger(__name__)

SPLITS = frozenset(("train", "training", "val", "valid", "validation", "test"))
"""Names of folders that are splits, not classes."""


def class_records(
    source: ListSource, paths: Sequence[str], folders: Sequence[str], noun: str, *, remedy: str = ""
) -> Records:
    """Records with the class folder of each path as its label.

    Folders get the labels of ``source.known_classes``, or are numbered in sorted order.

    Args:
        source: the root, with ``labels`` "yes" if labels are required.
        paths: relative paths below the root.
        folders: names of the folders directly below the root.
        noun: name of the records in messages, such as "videos".
        remedy: end of the message about a path in no class folder.

    Raises:
        UserError: a path is in no class folder, or the folders are not those of a training set or of the
            known classes.
    """
    root, known = source.path, source.known_classes
    loose = loose_path(paths)
    if loose:
        raise UserError(
            f"{os.path.join(root, loose)} is not in a class folder; {noun} must lie in "
            f"{os.path.join(root, 'CLASS')}{os.sep}: move it into such a folder, or give a list "
            f"with rows `path label`{remedy}"
        )
    classes = [path.split(os.sep, 1)[0] for path in paths]
    if source.labels == "yes" and not known:
        _check_classes(root, folders, set(classes), noun)
    numbers = _class_numbers(root, sorted(set(classes)), known)
    labels = [numbers[name] for name in classes]
    names = tuple(known) or tuple(sorted(numbers))
    return Records.from_paths(paths, labels, source=root, root=root, class_names=names)


def loose_path(paths: Sequence[str]) -> str | None:
    """The first path that is directly below the root; None if all are in folders."""
    return next((path for path in paths if os.sep not in path), None)


def _check_classes(root: str, folders: Sequence[str], filled: set[str], noun: str) -> None:
    """Check the folders that define the labels of a training run."""
    if SPLITS.issuperset(folders):
        raise UserError(
            f"{root}: its folders {', '.join(folders)} are splits, not classes; give one of them, such as "
            f"{os.path.join(root, folders[0])}"
        )
    empty = [name for name in folders if name not in filled]
    if empty:
        raise UserError(
            f"{os.path.join(root, empty[0])}: class folder without {noun} ({len(empty)} of {len(folders)} "
            "are empty); labels are the positions of the sorted folders, so fill it or remove it"
        )
    if len(folders) == 1:
        raise UserError(
            f"{root} contains one class folder, {folders[0]}, and a classifier needs at least two; give the "
            "folder above the class folders"
        )


def _class_numbers(root: str, folders: Sequence[str], known: Sequence[str]) -> Mapping[str, int]:
    """Labels by folder: by name, by the first word of a name, or in sorted order."""
    if not known:
        return {name: number for number, name in enumerate(folders)}
    by_name = {name: number for number, name in enumerate(known)}
    # As in ImageNet's list of classes: "n01440764 tench, Tinca tinca".
    by_first_word = {name.split(maxsplit=1)[0]: number for number, name in enumerate(known) if name.strip()}
    for table in (by_name, by_first_word):
        if len(table) == len(known) and table.keys() >= set(folders):
            return table
    unknown = [name for name in folders if name not in by_name]
    if len(folders) == len(known) == len(unknown):
        pairs = f"{folders[0]} is {known[0]!r}, ..., {folders[-1]} is {known[-1]!r}"
        logger.info("%s: class folders without known names are used in sorted order: %s", root, pairs)
        return {name: number for number, name in enumerate(folders)}
    raise UserError(
        f"{root}: the class folder {unknown[0]!r} is not among the {len(known)} known classes"
        f"{nearest(unknown[0], by_name)}; rename it, remove it, or give the class names of these folders"
    )
