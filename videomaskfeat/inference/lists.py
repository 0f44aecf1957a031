"""Lists to score and their class names, checked against the classes of a network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from videomaskfeat.data.formats import class_names_beside, load_records
from videomaskfeat.data.formats.ssv2 import is_name, parse_label
from videomaskfeat.data.records import Records
from videomaskfeat.errors import UserError
from videomaskfeat.io import exists
from videomaskfeat.texts import parse_json, read_text, show_text


@dataclass(frozen=True)
class ListChoice:
    """How lists are read; see :func:`~videomaskfeat.data.formats.load_records`.

    Attributes:
        format: format of the list.
        labels: auto, yes or no.
        separator: column separator.
        prefix: folder before relative paths.
        class_names: file of class names; empty: those of the weights, or those beside the list.
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
        """Read a list; ``labels`` overrides the attribute, all else is as in ``load_records``."""
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


DETECTED_FORMAT = ListChoice()


def resolve_class_names(
    known: Sequence[str], list_path: str, choice: ListChoice, *, classes: int | None, source: str
) -> tuple[str, ...]:
    """Class names, indexed by label: those of the list, checked against those of the weights; may be empty.

    Args:
        known: class names of the weights; may be empty.
        list_path: the list; labels of Something-Something-v2 are found beside it.
        choice: may name a file of class names.
        classes: number of classes of the network; None if the list decides.
        source: file of the weights, for messages.

    Raises:
        UserError: the number of classes or a name differs.
    """
    path = choice.class_names or class_names_beside(list_path, choice.format)
    names = read_class_names(path) if path else tuple(known)
    if not path or not names:
        return names
    if classes is not None and len(names) != classes:
        raise UserError(
            f"{path}: {len(names)} class names, but {source} has {classes} classes; give the names of the "
            "classes that it was trained on, or other weights"
        )

    def normalized(name: str) -> str:  # the same for labels and templates of Something-Something-v2
        return name.replace("[", "").replace("]", "").strip().lower()

    for label, (own, other) in enumerate(zip(known, names, strict=False)):
        if normalized(own) != normalized(other):
            raise UserError(
                f"{path}: class {label} is {other!r}, but {own!r} in {source}; give the names of the classes "
                "that it was trained on, in the same order"
            )
    return names


def check_single_label(*lists: Records) -> None:
    """Raise UserError if a list is multi-label, for k-NN and linear probes."""
    for records in lists:
        if records.is_multi_label:
            raise UserError(
                f"{records.source} has several labels per video, which k-NN and linear probes do not "
                "support; give a list with one label per video, or fine-tune with model.head=linear"
            )


def check_records(records: Records, *, classes: int, source: str, named: bool) -> None:
    """Check that a list fits a network, and that at least one of its files exists.

    Classes in words (Kinetics CSV, class folders) are numbered in alphabetical order. These are the labels of
    the training only if the list has all of its classes.

    Args:
        records: the list.
        classes: number of classes of the network.
        source: file that defines the classes, for messages.
        named: whether the words were numbered by known class names.

    Raises:
        UserError: a label is out of range, the list has other classes in words, or none of its files exists.
    """
    if records.classes > classes and records.is_multi_label:
        raise UserError(
            f"{records.source}: the largest label is {records.classes - 1}, but {source} has {classes} "
            f"classes (0..{classes - 1}); give the list of its data set, or other weights"
        )
    labels = records.labels
    if labels is not None and (outside := labels >= classes).any():
        row = int(outside.argmax())
        raise UserError(
            f"{records.source}: row {row + 1} ({records[row].path}): label {labels[row]} is out of range; "
            f"{source} has {classes} classes (0..{classes - 1}; {outside.sum()} of {len(records)} rows are "
            "outside); give the list of the data set that it was trained on, or other weights"
        )
    if not named and labels is not None and records.class_names:
        count = len(np.unique(labels))
        if count != classes:
            raise UserError(
                f"{records.source}: the labels are {count} class names, but {source} has {classes} classes, "
                f"so their numbers are unknown; give a file of class names, one per line in the order of the "
                f"training"
            )
    paths = (records[row].path for row in range(len(records)))
    if not any("://" in path or exists(path) for path in paths):  # usually stops at the first path
        raise UserError(
            f"{records.source}: none of its {len(records)} videos could be read; the first: "
            f"{records[0].path} (no such file); check the folder that the paths start from (--prefix)"
        )


def read_class_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Read class names, indexed by label.

    Args:
        path: a text file with one name per line in the order of the labels, or a JSON file: a list of names,
            or an object of name -> label, as in Something-Something-v2.

    Raises:
        UserError: the file is missing or has another format, or its labels are not 0, 1, 2, ...
    """
    name = os.fspath(path)
    if not exists(name):
        raise UserError(f"{name}: no such file of class names; check data.class_names")
    text = read_text(name, what="a file of class names")
    if not name.endswith(".json"):
        names = tuple(line.strip() for line in text.split("\n") if line.strip())
    else:
        names = _parse_names(text, name)
    if not names:
        raise UserError(f"{name} contains no class names; write one per line, in the order of the labels")
    invalid = next((one for one in names if not is_name(one)), None)
    if invalid is not None:
        raise UserError(f"{name}: the class name {show_text(repr(invalid))} is not text; correct it")
    return names


def _parse_names(text: str, name: str) -> tuple[str, ...]:
    table = parse_json(text, name, remedy="it contains a list of names, or an object of name -> label")
    if isinstance(table, list) and all(isinstance(one, str) for one in table):
        return tuple(table)
    if not isinstance(table, dict):
        raise UserError(f"{name}: must be a JSON list of names or an object of name -> label")
    by_label = {parse_label(label, name, words): words for words, label in table.items()}
    if sorted(by_label) != list(range(len(table))):
        raise UserError(f"{name}: its labels must be 0 to {len(table) - 1}, each once; correct the file")
    return tuple(by_label[label] for label in range(len(by_label)))
