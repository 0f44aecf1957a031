"""Something-Something-v2's JSON lists."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from videomaskfeat.data.formats.format import ListFormat, ListSource, missing_videos
from videomaskfeat.data.records import Records
from videomaskfeat.errors import UserError, nearest
from videomaskfeat.io import exists, is_file
from videomaskfeat.texts import parse_json, read_json, show_text

# The data set is published as .webm; converted files and folders of extracted frames ("") are common.
_SUFFIXES = (".webm", ".mp4", "", ".avi", ".mkv")
_PROBED_ROWS = 20  # number of rows with files to look for, since some may be missing
_LARGEST_LABEL = 10**6


class Ssv2(ListFormat):
    """Objects with ``id`` and, if labeled, ``template``; the labels JSON has the label of each template."""

    def detect(self, source: ListSource) -> bool:
        return source.path.endswith(".json")

    def read(self, source: ListSource) -> Records:
        items = _items(source)
        ids = [str(item["id"]) for item in items]
        suffix = _find_suffix(ids, source)
        labels = None
        if source.labels == "yes" or (source.labels == "auto" and "template" in items[0]):
            classes = source.classes or self._labels_file(source.path)
            if source.classes is None and not exists(classes):
                raise UserError(
                    f"{source.path}: the list has labels, but the label file {classes} is missing; set "
                    f"classes= to the labels JSON, "
                    "or labels=no"
                )
            numbers = _templates(classes)
            labels = [
                _label(item, f"{source.path}: object {number} (id {show_text(item['id'])})", numbers, classes)
                for number, item in enumerate(items, start=1)
            ]
        elif source.labels == "auto":
            _check_unlabeled(items, source.path)
        names = [name + suffix for name in ids]
        return Records.from_paths(names, labels, source=source.path, root=source.root)

    def clean(self, source: ListSource, records: Records, rows: Sequence[int], target: str) -> str:
        items = _items(source)
        return json.dumps([items[row] for row in rows], indent=1) + "\n"

    def class_file(self, path: str) -> str:
        labels = self._labels_file(path)
        return labels if path.endswith(".json") and is_file(labels) else ""

    @staticmethod
    def _labels_file(path: str) -> str:
        """something-something-v2-train.json -> something-something-v2-labels.json."""
        folder, name = os.path.split(path)
        return os.path.join(folder, f"{name.rsplit('-', 1)[0]}-labels.json")


def _items(source: ListSource) -> list[dict[str, Any]]:
    items = parse_json(source.data, source.path, remedy="use format=kinetics for a list of rows")
    if not isinstance(items, list) or not items:
        raise UserError(
            f"{source.path} is not a list, or is empty; Something-Something's JSON is a list of objects "
            "with `id`"
        )
    for number, item in enumerate(items, start=1):
        if not isinstance(item, dict) or "id" not in item:
            raise UserError(f"{source.path}: object {number} has no `id`; every object needs one")
        if not is_name(str(item["id"])) or not isinstance(item["id"], str | int):
            raise UserError(
                f"{source.path}: object {number} has the `id` {show_text(repr(item['id']))}; an id is a "
                "number or a file name without its suffix"
            )
    return items


def _find_suffix(ids: list[str], source: ListSource) -> str:
    for name in ids[:_PROBED_ROWS]:
        for suffix in _SUFFIXES:
            if exists(os.path.join(source.root, name + suffix)):
                return suffix
    examples = ", ".join(f"{ids[0]}{suffix}" for suffix in _SUFFIXES[:3])
    raise missing_videos(source, len(ids[:_PROBED_ROWS]), examples)


def _templates(path: str) -> dict[str, int]:
    """The labels in a labels JSON by template without brackets."""
    table = read_json(
        path,
        what="a labels JSON",
        remedy="it contains an object that maps each template (class name) to its number",
    )
    if not isinstance(table, dict):
        raise UserError(
            f"{path}: must be a JSON object that maps each template (class name) to its number, "
            f"but is a {type(table).__name__}"
        )
    return {_plain(template): parse_label(value, path, template) for template, value in table.items()}


def _label(item: dict[str, Any], where: str, numbers: dict[str, int], classes: str) -> int:
    if "template" not in item:
        raise UserError(f"{where} has no `template`, but others do; add it, or set labels=no")
    if not isinstance(item["template"], str):
        raise UserError(f"{where} has the template {show_text(repr(item['template']))}, which is not text")
    template = _plain(item["template"])
    if template not in numbers:
        raise UserError(
            f"{where} has the template {template!r}, which is not among the {len(numbers)} classes of "
            f"{classes}{nearest(template, numbers)}; set classes= to the labels JSON of this list"
        )
    return numbers[template]


def _check_unlabeled(items: list[dict[str, Any]], source: str) -> None:
    for number, item in enumerate(items, start=1):
        if "template" in item:
            raise UserError(
                f"{source}: object {number} (id {show_text(item['id'])}) has a `template`, but the first "
                f"one does not; add it to all, or set labels=no"
            )


def _plain(template: str) -> str:
    return template.replace("[", "").replace("]", "")


def parse_label(value: Any, source: str, name: str) -> int:
    """Parse the label of a class in a JSON file, a number or text.

    Raises:
        UserError: it is not an integer from 0 to a million.
    """
    text = str(value)
    if isinstance(value, bool | float) or not (text.isascii() and text.isdecimal() and len(text) < 8):
        raise UserError(
            f"{source}: the label {show_text(repr(value), 40)} of {show_text(name)!r} is not a whole number "
            f"from 0 to {_LARGEST_LABEL}"
        )
    return int(text)


def is_name(text: str) -> bool:
    """Whether a text can be a name: it is not empty and has no NUL characters or lone surrogates."""
    return bool(text.strip()) and "\0" not in text and not any("\ud800" <= one <= "\udfff" for one in text)
