"""Something-Something-v2's JSON lists."""

from __future__ import annotations

import os
from typing import Any

from videomaskfeat.errors import UserError, nearest
from videomaskfeat.io import exists
from videomaskfeat.texts import parse_json, read_json, show_text

# The data set comes as VP9 in webm; many convert it, or extract frames into a folder a video ("").
_SUFFIXES = (".webm", ".mp4", "", ".avi", ".mkv")
_LOOK_AT = 20  # rows whose files are looked for, since some may be missing
_NO_JSON = "take format=kinetics for a list of rows"
_MOST_CLASSES = 10**6


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
    items = parse_json(data, source, remedy=_NO_JSON)
    if not isinstance(items, list) or not items:
        raise UserError(
            f"{source}: is empty or no list; Something-Something's JSON is a list of objects with `id`"
        )
    for number, item in enumerate(items, start=1):
        if not isinstance(item, dict) or "id" not in item:
            raise UserError(f"{source}: object {number} has no `id`; every one needs it")
        if not is_name(str(item["id"])) or not isinstance(item["id"], str | int):
            raise UserError(
                f"{source}: object {number} has the `id` {show_text(repr(item['id']))}; an id is a number or "
                "a file name without its suffix"
            )
    ids = [str(item["id"]) for item in items]
    suffix = _suffix(ids, root, source)
    names = [name + suffix for name in ids]
    if labels == "no" or (labels == "auto" and "template" not in items[0]):
        _check_unlabelled(items, source, labels)
        return names, None
    file, numbers = _class_numbers(source, classes)
    places = [
        f"{source}: object {number} (id {show_text(item['id'])})"
        for number, item in enumerate(items, start=1)
    ]
    return names, [_label(item, place, numbers, file) for item, place in zip(items, places, strict=True)]


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
    table = read_json(path, what="a labels JSON", remedy="it holds an object of template -> number")
    if not isinstance(table, dict):
        raise UserError(f"{path}: is not an object of template -> number, but a {type(table).__name__}")
    return {_plain(template): label_number(value, path, template) for template, value in table.items()}


def label_number(value: Any, source: str, name: str) -> int:
    """The label of a class, which JSON files write as a number or as text.

    Raises:
        UserError: it is neither, or not from 0 to a million.
    """
    text = str(value)
    if isinstance(value, bool | float) or not (text.isascii() and text.isdecimal() and len(text) < 8):
        raise UserError(
            f"{source}: the label {show_text(repr(value), 40)} of {show_text(name)!r} is not a whole number "
            f"from 0 to {_MOST_CLASSES}"
        )
    return int(text)


def is_name(text: str) -> bool:
    """Whether text can be a name: not empty, without NUL characters and lone surrogates."""
    return bool(text.strip()) and "\0" not in text and not any("\ud800" <= one <= "\udfff" for one in text)


def _plain(template: str) -> str:
    return template.replace("[", "").replace("]", "")


def _label(item: dict[str, Any], place: str, numbers: dict[str, int], classes: str) -> int:
    if "template" not in item:
        raise UserError(f"{place} has no `template`, and others have; see labels=no")
    if not isinstance(item["template"], str):
        raise UserError(f"{place} has the template {show_text(repr(item['template']))}, which is not text")
    template = _plain(item["template"])
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
                f"{source}: object {number} (id {show_text(item['id'])}) has a `template`, and the first has "
                "none"
            )
