"""Class folders of pictures, as ImageNet has them: the folder right below the root is a picture's class."""

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
    """Every picture below a folder, at any depth, sorted by path.

    Pictures have labels if every one lies in a class folder (``labels=auto``), or none does. Known classes
    number the folders; else these are numbered in sorted order.
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
                f"{os.path.join(root, loose)}: lies in no class folder; the folder right below {root} is a "
                "picture's class: move it into one, or give a list with rows `path label`"
            )
        owners = [path.split(os.sep, 1)[0] for path in pictures]
        if source.labels == "yes" and not known:
            _check_classes(root, folders, set(owners))
        numbers = _class_numbers(root, sorted(set(owners)), known)
        labels = [numbers[owner] for owner in owners]
        names = tuple(known) or tuple(sorted(numbers))
        return Records.from_paths(pictures, labels, source=root, root=root, class_names=names)


def _find_pictures(root: str) -> tuple[list[str], list[str]]:
    """The pictures below a folder, sorted, and the folders right below it; paths relative to it."""
    pictures, others, folders = list[str](), list[str](), list[str]()
    for folder in walk_folders(root):
        folders = folders if folder.path else list(folder.folders)
        for name in folder.files:
            (pictures if is_picture(name) else others).append(os.path.join(folder.path, name))
    if not pictures:
        raise UserError(
            f"{root}: holds no pictures ({', '.join(sorted(PICTURE_SUFFIXES))}) among its {len(others)} "
            "files; check the path"
        )
    if others:
        logger.info(
            "%s: %d files that are no pictures were passed over (%s, ...)", root, len(others), others[0]
        )
    return sorted(pictures), folders


def _check_classes(root: str, folders: Sequence[str], filled: set[str]) -> None:
    """Whether the folders that a training numbers its classes by can be classes."""
    if _SPLITS.issuperset(folders):
        raise UserError(
            f"{root}: its folders are {', '.join(folders)}, which are splits and no classes; "
            f"give one of them, such as {os.path.join(root, folders[0])}"
        )
    empty = [name for name in folders if name not in filled]
    if empty:
        raise UserError(
            f"{os.path.join(root, empty[0])}: a class folder without a picture ({len(empty)} of "
            f"{len(folders)} are empty), and the sorted folders number the classes; fill it or remove it"
        )
    if len(folders) == 1:
        raise UserError(
            f"{root}: holds one class folder, {folders[0]}, and a classifier needs two at least; "
            "give the folder above the class folders"
        )


def _class_numbers(root: str, folders: Sequence[str], known: Sequence[str]) -> Mapping[str, int]:
    """Folder -> number of its class: by name, by the first word of a name, else in sorted order."""
    if not known:
        return {name: number for number, name in enumerate(folders)}
    by_name = {name: number for number, name in enumerate(known)}
    # As in ImageNet's own list of classes: "n01440764 tench, Tinca tinca".
    by_first_word = {name.split(maxsplit=1)[0]: number for number, name in enumerate(known) if name.strip()}
    for table in (by_name, by_first_word):
        if len(table) == len(known) and table.keys() >= set(folders):
            return table
    strange = [name for name in folders if name not in by_name]
    if len(folders) == len(known) == len(strange):
        pairs = f"{folders[0]} is {known[0]!r}, ..., {folders[-1]} is {known[-1]!r}"
        logger.info("%s: its class folders have other names; taken in their order: %s", root, pairs)
        return {name: number for number, name in enumerate(folders)}
    raise UserError(
        f"{root}: the class folder {strange[0]!r} is not among the {len(known)} classes that are known"
        f"{nearest(strange[0], by_name)}; rename it, remove it, or give the names of these folders' classes"
    )
