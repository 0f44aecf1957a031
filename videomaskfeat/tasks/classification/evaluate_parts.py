"""The parts of an evaluation: what the user chose, and the list made to fit the network's classes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from videomaskfeat.data.records import Records, load_records
from videomaskfeat.errors import UserError
from videomaskfeat.io import exists
from videomaskfeat.tasks.classification.class_names import class_names_beside, read_class_names
from videomaskfeat.tasks.classification.multiview import videos_a_batch
from videomaskfeat.tasks.recipe import ClassifyRecipe


@dataclass(frozen=True)
class ViewChoice:
    """How videos are cut; None takes what the weights were tested with.

    Attributes:
        views: clips a video, spread over its time.
        crops: crops a clip: 1 (the centre) or 3.
        sampling: clip (frames at a stride) or segments (a frame of each of equal parts).
        short_side: pixels to which the short side is resized.
        average: what is averaged over the views: softmax or logits.
    """

    views: int | None = None
    crops: int | None = None
    sampling: str | None = None
    short_side: int | None = None
    average: str | None = None

    def recipe(self, known: ClassifyRecipe) -> ClassifyRecipe:
        """The recipe with what was chosen; segments are one view unless asked for otherwise."""
        sampling = known.sampling if self.sampling is None else self.sampling
        views = 1 if self.views is None and sampling == "segments" else self.views
        recipe = known.with_views(views=views, crops=self.crops)
        short_side = recipe.short_side if self.short_side is None else self.short_side
        average = recipe.average if self.average is None else self.average
        return dataclasses.replace(recipe, sampling=sampling, short_side=short_side, average=average)


@dataclass(frozen=True)
class ListChoice:
    """How a list is read; see :func:`~videomaskfeat.data.records.load_records`.

    Attributes:
        format: auto, kinetics, ssv2, folder, frames or images.
        labels: auto, yes or no.
        separator: as for ``load_records``.
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
            known_classes: names in their order, for a list of classes in words.
            stills: clips are of one frame.

        Raises:
            UserError: it is missing or wrong in a row.
        """
        templates = self.format == "ssv2" or path.endswith(".json")  # its classes are in the labels JSON
        return load_records(
            path,
            format=self.format,
            labels=self.labels if labels is None else labels,
            separator=self.separator,
            prefix=self.prefix,
            classes=(self.class_names or None) if templates else None,
            known_classes=known_classes,
            stills=stills,
        )


@dataclass(frozen=True)
class MachineChoice:
    """On what it runs.

    Attributes:
        device: auto, cpu, cuda or cuda:N.
        precision: auto (bf16 on a GPU, fp32 on a CPU), fp32 or bf16.
        reader: auto, decord or pyav.
        workers: processes of each rank that read videos; 0 reads in the rank's own.
        videos_per_batch: videos that a worker hands over together; None: as many as some 32 clips are.
        clips_at_once: clips that go through the network together.
    """

    device: str = "auto"
    precision: str = "auto"
    reader: str = "auto"
    workers: int = 0
    videos_per_batch: int | None = None
    clips_at_once: int = 8

    def videos(self, recipe: ClassifyRecipe) -> int:
        """Videos a batch."""
        if self.videos_per_batch is not None:
            return self.videos_per_batch
        return videos_a_batch(views=recipe.views, crops=recipe.crops)


@dataclass(frozen=True)
class Neighbours:
    """Classification by the nearest training videos instead of a head.

    Attributes:
        list_path: labelled list of the training videos; read as the other list is.
        k: how many vote.
        temperature: of their weights.
    """

    list_path: str
    k: int = 20
    temperature: float = 0.07


def class_names_of(
    known: Sequence[str], list_path: str, choice: ListChoice, *, classes: int | None, source: str
) -> tuple[str, ...]:
    """The names of the classes: those of the weights, checked against those that belong to the list.

    Args:
        known: of the weights, or none.
        list_path: the list, beside which Something-Something-v2's labels lie.
        choice: may name a file.
        classes: of the network, L; None where the list decides.
        source: of the weights, for messages.

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
    if known:
        for label, (own, other) in enumerate(zip(known, names, strict=False)):
            if _plain(own) != _plain(other):
                raise UserError(
                    f"{path}: calls class {label} {other!r}, and {source} calls it {own!r}: these are not "
                    "the classes that it was trained for, or they stand in another order"
                )
    return names


def check_list(records: Records, *, classes: int, source: str) -> None:
    """Every label of a list is a class of the network.

    Raises:
        UserError: one is not.
    """
    labels = records.labels
    if labels is None or not (labels >= classes).any():
        return
    outside = labels >= classes
    row = int(outside.argmax())
    raise UserError(
        f"{records.source}: row {row + 1} ({records[row].path}) has the label {labels[row]}, and {source} "
        f"has {classes} classes (0..{classes - 1}; {outside.sum()} of {len(records)} rows are outside); give "
        "the list of the data set that it was trained for, or other weights"
    )


def check_some_exist(records: Records) -> None:
    """Refuse a list none of whose files is there, as with a wrong prefix, before each of them is tried.

    Raises:
        UserError: so it is.
    """
    paths = (records[row].path for row in range(len(records)))
    if any("://" in path or exists(path) for path in paths):  # ends at the first, of most lists
        return
    raise UserError(
        f"{records.source}: none of its {len(records)} videos could be read; the first: {records[0].path} "
        "(no such file); check the folder that the paths start from (--prefix)"
    )


def check_words(records: Records, choice: ListChoice, *, classes: int, source: str) -> None:
    """Classes in words have the numbers of the training, of a list whose classes nobody named.

    The words of Kinetics' own CSV, and class folders, are then numbered in alphabetical order. That is the
    order of the training only where all of its classes are in this list, too.

    Raises:
        UserError: the list has other classes than the network.
    """
    labels, path = records.labels, records.source
    if labels is None or choice.format == "ssv2":
        return
    found = len(np.unique(labels))
    if records.class_names and found != classes:
        raise UserError(
            f"{path}: names {found} classes in words, and {source} has {classes}, so nobody can tell which "
            "is which; give a file of class names, a name a line in the order of the training"
        )


def _plain(name: str) -> str:
    """A name as Something-Something-v2's labels and templates both have it."""
    return name.replace("[", "").replace("]", "").strip().lower()


def list_name(path: str) -> str:
    """What to call a list in a heading."""
    return os.path.basename(os.path.normpath(path))
