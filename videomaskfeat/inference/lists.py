"""Lists to score and the names of their classes, checked against the classes of a network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from videomaskfeat.data.formats import class_names_beside, load_records
from videomaskfeat.data.formats.ssv2 import is_name, label_number
from videomaskfeat.data.records import Records
from videomaskfeat.errors import UserError
from videomaskfeat.io import exists
from videomaskfeat.texts import parse_json, read_text, show_text


@dataclass(frozen=True)
class ListChoice:
    """How a list is read; see :func:`~videomaskfeat.data.formats.load_records`.

    Attributes:
        format: auto, kinetics, ssv2, folder, frames or images.
        labels: auto, yes or no.
        separator: column separator.
        prefix: folder before relative paths.
        class_names: file of class names; empty: the weights' own, or those beside the list.
    """

    format: str = "auto"
    labels: str = "auto"
    separator: str = "auto"
    prefix: str = ""
    class_names: str = ""

    def load(
        self,
        path: str,
        *,
        labels: str | None = None,
        known_classes: Sequence[str] = (),
        stills: bool = False,
    ) -> Records:
        """Read a list.

        Args:
            path: the list.
            labels: instead of the choice's own.
            known_classes: class names, indexed by label, for a list of classes in words.
            stills: clips are of one frame.

        Raises:
            UserError: the list is missing, or a row is wrong.
        """
        return load_records(
            path,
            format=self.format,
            labels=self.labels if labels is None else labels,
            separator=self.separator,
            prefix=self.prefix,
            classes=self.class_names or None,
            known_classes=known_classes,
            stills=stills,
        )


def resolve_class_names(
    known: Sequence[str], list_path: str, choice: ListChoice, *, classes: int | None, source: str
) -> tuple[str, ...]:
    """Class names, indexed by label: those of the weights, checked against those that belong to the list.

    Args:
        known: class names of the weights; may be empty.
        list_path: the list; labels of Something-Something-v2 are found beside it.
        choice: may name a file.
        classes: number of classes of the network; None if the list decides.
        source: file of the weights, for messages.

    Raises:
        UserError: another number of classes, or other names in the same places.
    """
    path = choice.class_names or class_names_beside(list_path)
    names = read_class_names(path) if path else tuple(known)
    if not path or not names:
        return names
    if classes is not None and len(names) != classes:
        raise UserError(
            f"{path}: holds {len(names)} class names, and {source} has {classes} classes; give the names of "
            "the classes that it was trained for, or other weights"
        )

    def plain(name: str) -> str:  # as Something-Something-v2's labels and templates both have it
        return name.replace("[", "").replace("]", "").strip().lower()

    for label, (own, other) in enumerate(zip(known, names, strict=False)):
        if plain(own) != plain(other):
            raise UserError(
                f"{path}: calls class {label} {other!r}, and {source} calls it {own!r}: these are not "
                "the classes that it was trained for, or they stand in another order"
            )
    return names


def check_list(records: Records, *, classes: int, source: str, named: bool) -> None:
    """Refuse a list that does not fit a network, or of which no file is there, before videos are read.

    The words of Kinetics' own CSV, and class folders, are numbered in alphabetical order. That is the order
    of the training only if all of its classes are in this list, too.

    Args:
        records: the list.
        classes: number of classes of the network.
        source: what knows the classes, for messages.
        named: whether class names are known, by which words were numbered.

    Raises:
        UserError: a label is not a class of the network, the list has other classes in words, or none of its
            files exists.
    """
    labels = records.labels
    if labels is not None and (outside := labels >= classes).any():
        row = int(outside.argmax())
        raise UserError(
            f"{records.source}: row {row + 1} ({records[row].path}) has the label {labels[row]}, and "
            f"{source} has {classes} classes (0..{classes - 1}; {outside.sum()} of {len(records)} rows are "
            "outside); give the list of the data set that it was trained for, or other weights"
        )
    if not named and labels is not None and records.class_names:
        found = len(np.unique(labels))
        if found != classes:
            raise UserError(
                f"{records.source}: names {found} classes in words, and {source} has {classes}, so nobody "
                "can tell which is which; give a file of class names, a name a line in the order of the "
                "training"
            )
    paths = (records[row].path for row in range(len(records)))
    if not any("://" in path or exists(path) for path in paths):  # ends at the first, for most lists
        raise UserError(
            f"{records.source}: none of its {len(records)} videos could be read; the first: "
            f"{records[0].path} (no such file); check the folder that the paths start from (--prefix)"
        )


def read_class_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Class names, indexed by label.

    Args:
        path: a text file with one name per line in the order of the labels, or a JSON file: a list of names,
            or an object of name -> label, as Something-Something-v2's.

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
        names = _names_from_json(text, name)
    if not names:
        raise UserError(f"{name}: holds no class name; write one a line, in the order of the labels")
    strange = next((one for one in names if not is_name(one)), None)
    if strange is not None:
        raise UserError(f"{name}: the class name {show_text(repr(strange))} is not text; correct it")
    return names


def _names_from_json(text: str, name: str) -> tuple[str, ...]:
    table = parse_json(text, name, remedy="it holds a list of names, or an object of name -> label")
    if isinstance(table, list) and all(isinstance(one, str) for one in table):
        return tuple(table)
    if not isinstance(table, dict):
        raise UserError(f"{name}: is neither a JSON list of names nor an object of name -> label")
    by_label = {label_number(label, name, words): words for words, label in table.items()}
    if sorted(by_label) != list(range(len(table))):
        raise UserError(f"{name}: its labels are not 0 to {len(table) - 1}, each once; correct the file")
    return tuple(by_label[label] for label in range(len(by_label)))
