"""Class folders of pictures, as in ImageNet: the folder directly below the root is the class."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence

from videomaskfeat.data.folders import walk_folders
from videomaskfeat.data.formats.format import FolderFormat, ListSource
from videomaskfeat.data.frames import PICTURE_SUFFIXES, is_picture
from videomaskfeat.data.records import Records
from videomaskfeat.errors import UserError, nearest

logger = logging.getLogger(__name__)

_SPLITS = frozenset(("train", "training", "val", "valid", "validation", "test"))


class Images(FolderFormat):
    """All pictures below a folder, sorted by path.

    With ``labels=auto`` pictures have labels if all are in class folders. Folders get the labels of the known
    classes, or are numbered in sorted order.
    """

    def detect(self, source: ListSource) -> bool:
        return source.stills

    def read(self, source: ListSource) -> Records:
        root, known = source.path, source.known_classes
        pictures, folders = _find_pictures(root)
        loose = next((path for path in pictures if os.sep not in path), None)
        if source.labels == "no" or (source.labels == "auto" and (loose or _SPLITS.issuperset(folders))):
            return Records.from_paths(pictures, None, source=root, root=root)
        if loose:
            raise UserError(
                f"{os.path.join(root, loose)} is not in a class folder; pictures must lie in "
                f"{os.path.join(root, 'CLASS')}{os.sep}: move it into such a folder, or give a list "
                "with rows `path label`"
            )
        classes = [path.split(os.sep, 1)[0] for path in pictures]
        if source.labels == "yes" and not known:
            _check_classes(root, folders, set(classes))
        numbers = _class_numbers(root, sorted(set(classes)), known)
        labels = [numbers[name] for name in classes]
        names = tuple(known) or tuple(sorted(numbers))
        return Records.from_paths(pictures, labels, source=root, root=root, class_names=names)


def _find_pictures(root: str) -> tuple[list[str], list[str]]:
    """The sorted pictures below a folder, and the folders directly below it, as relative paths."""
    pictures, others, folders = list[str](), list[str](), list[str]()
    for folder in walk_folders(root):
        folders = folders if folder.path else list(folder.folders)
        for name in folder.files:
            (pictures if is_picture(name) else others).append(os.path.join(folder.path, name))
    if not pictures:
        raise UserError(
            f"{root} contains no pictures ({', '.join(sorted(PICTURE_SUFFIXES))}) among its {len(others)} "
            "files; check the path"
        )
    if others:
        logger.info("%s: %d files that are not pictures were ignored (%s, ...)", root, len(others), others[0])
    return sorted(pictures), folders


def _check_classes(root: str, folders: Sequence[str], filled: set[str]) -> None:
    """Check the folders that define the labels of a training run."""
    if _SPLITS.issuperset(folders):
        raise UserError(
            f"{root}: its folders {', '.join(folders)} are splits, not classes; give one of them, such as "
            f"{os.path.join(root, folders[0])}"
        )
    empty = [name for name in folders if name not in filled]
    if empty:
        raise UserError(
            f"{os.path.join(root, empty[0])}: class folder without pictures ({len(empty)} of {len(folders)} "
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
