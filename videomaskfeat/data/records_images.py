"""Class folders of pictures, as ImageNet has them: the folder right below the root is a picture's class."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from videomaskfeat.data.frames import PICTURE_SUFFIXES, is_picture
from videomaskfeat.data.records_folder import walk_folders
from videomaskfeat.errors import UserError, nearest

logger = logging.getLogger(__name__)

_SPLITS = frozenset(("train", "training", "val", "valid", "validation", "test"))


@dataclass(frozen=True)
class FoundImages:
    """What lies below a folder; hidden files and folders (a leading dot) are left out.

    paths: of the pictures, relative to the folder and sorted.
    folders: right below it, sorted; each is a class where the pictures have classes.
    passed_over: files that are no pictures.
    """

    paths: list[str]
    folders: list[str]
    passed_over: list[str]


def find_images(root: str) -> FoundImages:
    """Look for pictures below a folder, at any depth."""
    found = FoundImages([], [], [])
    for folder in walk_folders(root):
        if not folder.path:
            found.folders.extend(folder.folders)
        for name in folder.files:
            kind = found.paths if is_picture(name) else found.passed_over
            kind.append(os.path.join(folder.path, name))
    found.paths.sort()
    return found


def image_names(
    root: str, *, labels: str, known_classes: Sequence[str]
) -> tuple[list[str], list[int] | None, tuple[str, ...]]:
    """The pictures below a folder, and their classes.

    Args:
        root: the folder.
        labels: ``yes``; ``no``; or ``auto``: yes where every picture lies in a class folder.
        known_classes: names in the order of their numbers, which the folders are to have; none: the folders'
            own names, sorted.

    Returns:
        Paths relative to the root, sorted; a number each, or None without labels; a name a class, or none.

    Raises:
        UserError: no picture; or labels are asked for and a picture lies in no class folder, the folders are
            no classes, one of them is empty, or they are not those that are known.
    """
    found = find_images(root)
    if not found.paths:
        raise UserError(
            f"{root}: holds no pictures ({', '.join(sorted(PICTURE_SUFFIXES))}) among its "
            f"{len(found.passed_over)} files; check the path"
        )
    if found.passed_over:
        count, first = len(found.passed_over), found.passed_over[0]
        logger.info("%s: %d files that are no pictures were passed over (%s, ...)", root, count, first)
    loose = next((path for path in found.paths if os.sep not in path), None)
    if labels == "no" or (labels == "auto" and (loose or _SPLITS.issuperset(found.folders))):
        return found.paths, None, ()
    if loose:
        raise UserError(
            f"{os.path.join(root, loose)}: lies in no class folder; the folder right below {root} is a "
            "picture's class: move it into one, or give a list with rows `path label`"
        )
    owners = [path.split(os.sep, 1)[0] for path in found.paths]
    if labels == "yes" and not known_classes:
        _check_classes(root, found.folders, set(owners))
    numbers = _numbers(root, sorted(set(owners)), known_classes)
    names = tuple(known_classes) or tuple(sorted(numbers))
    return found.paths, [numbers[owner] for owner in owners], names


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


def _numbers(root: str, folders: Sequence[str], known: Sequence[str]) -> Mapping[str, int]:
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
