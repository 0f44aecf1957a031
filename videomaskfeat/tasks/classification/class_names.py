"""The names of a data set's classes."""

from __future__ import annotations

import os

from videomaskfeat.data.records_ssv2 import is_name, label_number
from videomaskfeat.errors import UserError
from videomaskfeat.io import exists, is_file
from videomaskfeat.texts import parse_json, read_text, show_text


def read_class_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """A name a class, by label.

    Args:
        path: a text file with a name a line in the order of the labels, or a JSON file: a list of names, or
            an object of name -> label, as Something-Something-v2's.

    Raises:
        UserError: no such file, not of these forms, or labels that are not 0, 1, 2, ...
    """
    name = os.fspath(path)
    if not exists(name):
        raise UserError(f"{name}: no such file of class names; check data.class_names")
    text = read_text(name, what="a file of class names")
    if not name.endswith(".json"):
        names = tuple(line.strip() for line in text.split("\n") if line.strip())
    else:
        names = _from_json(text, name)
    if not names:
        raise UserError(f"{name}: holds no class name; write one a line, in the order of the labels")
    strange = next((one for one in names if not is_name(one)), None)
    if strange is not None:
        raise UserError(f"{name}: the class name {show_text(repr(strange))} is not text; correct it")
    return names


def class_names_beside(list_path: str) -> str:
    """The labels file that lies beside a Something-Something-v2 list; empty where there is none."""
    stem = list_path.rsplit("-", 1)[0]  # something-something-v2-train.json -> something-something-v2
    labels = f"{stem}-labels.json"
    return labels if list_path.endswith(".json") and is_file(labels) else ""


def _from_json(text: str, name: str) -> tuple[str, ...]:
    table = parse_json(text, name, remedy="it holds a list of names, or an object of name -> label")
    if isinstance(table, list) and all(isinstance(one, str) for one in table):
        return tuple(table)
    if not isinstance(table, dict):
        raise UserError(f"{name}: is neither a JSON list of names nor an object of name -> label")
    by_label = {label_number(label, name, words): words for words, label in table.items()}
    if sorted(by_label) != list(range(len(table))):
        raise UserError(f"{name}: its labels are not 0 to {len(table) - 1}, each once; correct the file")
    return tuple(by_label[label] for label in range(len(by_label)))
