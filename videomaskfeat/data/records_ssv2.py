"""Something-Something-v2's JSON lists."""

from __future__ import annotations

import json
import os
from typing import Any

from videomaskfeat.errors import UserError, nearest
from videomaskfeat.io import exists, open_file

# The data set comes as VP9 in webm; many convert it, or extract frames into a folder a video ("").
_SUFFIXES = (".webm", ".mp4", "", ".avi", ".mkv")
_LOOK_AT = 20  # rows whose files are looked for, since some may be missing


def ssv2_names(
    data: bytes, source: str, root: str, *, labels: str, classes: str | None
) -> tuple[list[str], list[int] | None]:
    """File names and class numbers of a list of objects with ``id`` and, where labelled, ``template``.

    Args:
        data: the file.
        source: its path; the labels JSON is looked for beside it.
        root: folder of the videos, in which the first ids tell the suffix.
        labels: auto (labelled if the first object has a template), yes or no.
        classes: the labels JSON, template -> number as a string; default: the one beside the list.

    Raises:
        UserError: not such a list, or an object (counted from 1) without id or with an unknown template.
    """
    items = _load(data, source)
    if not isinstance(items, list) or not items:
        raise UserError(
            f"{source}: is empty or no list; Something-Something's JSON is a list of objects with `id`"
        )
    for number, item in enumerate(items, start=1):
        if not isinstance(item, dict) or "id" not in item:
            raise UserError(f"{source}: object {number} has no `id`; every one needs it")
    ids = [str(item["id"]) for item in items]
    suffix = _suffix(ids, root, source)
    names = [name + suffix for name in ids]
    if labels == "no" or (labels == "auto" and "template" not in items[0]):
        _check_unlabelled(items, source, labels)
        return names, None
    file, numbers = _class_numbers(source, classes)
    places = [f"{source}: object {number} (id {item['id']})" for number, item in enumerate(items, start=1)]
    return names, [_label(item, place, numbers, file) for item, place in zip(items, places, strict=True)]


def _load(data: bytes, source: str) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        line = getattr(error, "lineno", 1)
        raise UserError(
            f"{source}:{line}: is not JSON ({error}); take format=kinetics for a list of rows"
        ) from error


def _suffix(ids: list[str], root: str, source: str) -> str:
    for name in ids[:_LOOK_AT]:
        for suffix in _SUFFIXES:
            if exists(os.path.join(root, name + suffix)):
                return suffix
    tried = ", ".join(f"{ids[0]}{suffix}" for suffix in _SUFFIXES[:3])
    raise UserError(
        f"{source}: none of the first {len(ids[:_LOOK_AT])} videos is in the folder {root or '.'} ({tried} "
        "...); set the prefix to the folder of the videos"
    )


def _class_numbers(source: str, classes: str | None) -> tuple[str, dict[str, int]]:
    """The labels JSON, and its template without brackets -> number."""
    if classes is None:
        folder, name = os.path.split(source)
        stem = name.rsplit("-", 1)[0]  # something-something-v2-train.json -> something-something-v2
        classes = os.path.join(folder, f"{stem}-labels.json")
        if not exists(classes):
            raise UserError(
                f"{source}: is labelled, and {classes} is missing; name it with classes=, or say labels=no"
            )
    return classes, ssv2_templates(classes)


def ssv2_templates(path: str) -> dict[str, int]:
    """The classes of a labels JSON: template without brackets -> number.

    Raises:
        UserError: the file is missing or no such object.
    """
    with open_file(path, "rb") as file:
        table = _load(file.read(), path)
    try:
        return {_plain(template): int(number) for template, number in table.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path}: is not an object of template -> number ({error})") from error


def _plain(template: str) -> str:
    return template.replace("[", "").replace("]", "")


def _label(item: dict[str, Any], place: str, numbers: dict[str, int], classes: str) -> int:
    if "template" not in item:
        raise UserError(f"{place} has no `template`, and others have; see labels=no")
    template = _plain(str(item["template"]))
    if template not in numbers:
        raise UserError(
            f"{place} has the template {template!r}, which is not among the {len(numbers)} classes of "
            f"{classes}{nearest(template, numbers)}; name the labels JSON of this list with classes="
        )
    return numbers[template]


def _check_unlabelled(items: list[dict[str, Any]], source: str, labels: str) -> None:
    if labels == "no":  # the user drops them
        return
    for number, item in enumerate(items, start=1):
        if "template" in item:
            raise UserError(
                f"{source}: object {number} (id {item['id']}) has a `template`, and the first has none"
            )
