"""What a result depends on, in words and hashes: how videos were cut, of which list, by which weights."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from videomaskfeat.data.batches import Failure
from videomaskfeat.data.formats.ssv2 import is_name, label_number
from videomaskfeat.data.records import Records
from videomaskfeat.data.views import EvaluationViews
from videomaskfeat.errors import UserError
from videomaskfeat.io import exists, is_file, is_folder, open_file, whole_file
from videomaskfeat.recipe import ClassifyRecipe
from videomaskfeat.texts import parse_json, read_text, show_text

_BLOCK = 1 << 20  # bytes


def protocol_of(recipe: ClassifyRecipe) -> dict[str, Any]:
    """How a recipe's videos are cut in testing, as plain data."""
    clip = recipe.clip
    # With segments neither stride nor rate plays a part, and a short video repeats frames.
    pace = {"stride": clip.stride, "target_fps": clip.target_fps, "short_video": clip.short_video}
    return {
        "views": recipe.views,
        "crops": recipe.crops,
        "sampling": recipe.sampling,
        "frames": clip.frames,
        **(pace if recipe.sampling == "clip" else {}),
        "crop": clip.crop,
        "short_side": recipe.short_side,
        "mean": clip.mean,
        "std": clip.std,
    }


def views_of(records: Records, recipe: ClassifyRecipe, *, reader: str = "auto") -> EvaluationViews:
    """The views of a list's videos as a recipe has them cut in testing.

    Raises:
        UserError: views, crops or a clip setting that cannot be.
    """
    clip = recipe.clip
    sampling: Any = recipe.sampling  # both are checked by the views
    short: Any = clip.short_video
    return EvaluationViews(
        records,
        frames=clip.frames,
        stride=clip.stride,
        target_fps=clip.target_fps,
        short=short,
        sampling=sampling,
        views=recipe.views,
        crops=recipe.crops,
        crop=clip.crop,
        short_side=recipe.short_side,
        reader=reader,
    )


def file_sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        UserError: no such file.
    """
    digest = hashlib.sha256()
    with open_file(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def records_sha256(records: Records) -> str:
    """The SHA-256 of a list's rows, path and label, in their order: of a folder as of any format of list."""
    digest = hashlib.sha256()
    for record in records:
        label = "" if record.label is None else str(record.label)
        digest.update(os.fsencode(record.path) + b"\0" + label.encode() + b"\0")
    return digest.hexdigest()


# The names of a data set's classes.


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


# Scores on disk: what a network said of each video of a list; and the mean of several such files.
KINDS = {"softmax": "probabilities", "logits": "logits", "knn": "shares of neighbours"}
"""What scores are, by what was averaged over the views."""
_MOST_BYTES = 1 << 31
# Arrays of a file besides the scores: how many values, integers or text.
_LENGTHS = {
    "labels": ("n", "iu"),
    "rows": ("n", "iu"),
    "paths": ("n", "U"),
    "failed_rows": ("f", "iu"),
    "failed_paths": ("f", "U"),
    "failed_causes": ("f", "U"),
}
_ARRAYS = ("scores", "listed", "kind", "class_names", *_LENGTHS)


@dataclass(frozen=True)
class ScoredList:
    """Scores of a list's videos.

    Attributes:
        scores: float32 [n, L].
        labels: int64 [n]; -1 throughout for a list without labels.
        rows: int64 [n], the row of each in the list from 0, ascending.
        paths: of the n videos.
        failures: records that could not be read, by row.
        listed: records of the list, n + len(failures).
        kind: a key of :data:`KINDS`.
        class_names: a name a class, or none.
    """

    scores: np.ndarray
    labels: np.ndarray
    rows: np.ndarray
    paths: tuple[str, ...]
    failures: tuple[Failure, ...]
    listed: int
    kind: str
    class_names: tuple[str, ...] = ()

    @property
    def labelled(self) -> bool:
        """Whether the list says what its videos show."""
        return bool((self.labels >= 0).all())

    @property
    def classes(self) -> int:
        """L."""
        return int(self.scores.shape[1])

    def probabilities(self) -> np.ndarray:
        """Float64 [n, L], sum 1: the scores, or the softmax of averaged logits."""
        scores = self.scores.astype(np.float64)
        if self.kind != "logits":
            return scores
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def class_text(self, label: int) -> str:
        """The name of a class, or its number where none is known."""
        return self.class_names[label] if self.class_names else f"class {label}"


def save_scores(path: str | os.PathLike[str], scored: ScoredList, **more: np.ndarray) -> None:
    """Write an npz file: the attributes of :class:`ScoredList` by name, and further arrays."""
    failures = scored.failures
    with whole_file(path, "wb") as file:
        np.savez_compressed(
            file,
            scores=scored.scores,
            labels=scored.labels,
            rows=scored.rows,
            paths=np.array(scored.paths, np.str_),
            failed_rows=np.array([failure.index for failure in failures], np.int64),
            failed_paths=np.array([failure.path for failure in failures], np.str_),
            failed_causes=np.array([failure.cause for failure in failures], np.str_),
            listed=np.array(scored.listed),
            kind=np.array(scored.kind),
            class_names=np.array(scored.class_names, np.str_),
            **more,  # type: ignore[arg-type]
        )


def load_scores(path: str | os.PathLike[str]) -> ScoredList:
    """Read what :func:`save_scores` wrote.

    Args:
        path: the file, or the folder of an evaluation, which holds one as ``scores.npz``.

    Raises:
        UserError: no such file, or not such a file.
    """
    name = scores_path(path)
    with open_file(name, "rb") as file:  # a file that is not there is another error
        try:
            with np.load(file, allow_pickle=False) as archive:
                if sum(part.file_size for part in archive.zip.infolist()) > _MOST_BYTES:
                    raise ValueError(f"unpacked it has more than {_MOST_BYTES} bytes")
                arrays = {key: archive[key] for key in _ARRAYS}
            return _checked(arrays)
        except Exception as error:  # zlib, zipfile and numpy raise many kinds for a damaged file
            reason = show_text(error) or type(error).__name__
            raise UserError(
                f"{name}: is not a file of scores ({reason}); give the scores.npz that "
                "`videomaskfeat evaluate` wrote"
            ) from error


def _checked(arrays: Mapping[str, np.ndarray]) -> ScoredList:
    """Arrays by name as a list of scores.

    Raises:
        ValueError: their types, shapes or values do not fit.
    """
    scores, labels, rows, failed = (arrays[key] for key in ("scores", "labels", "rows", "failed_rows"))
    if scores.dtype.kind != "f" or scores.ndim != 2 or not scores.size or not np.isfinite(scores).all():
        raise ValueError("`scores` is not an array [n, L] of finite numbers")
    for key, (of, kinds) in _LENGTHS.items():
        values, length = arrays[key], len(scores) if of == "n" else len(np.atleast_1d(failed))
        if values.shape != (length,) or (values.dtype.kind not in kinds and length):
            raise ValueError(f"`{key}` is not one value per row")
    listed, kind, names = int(arrays["listed"]), str(arrays["kind"]), arrays["class_names"].tolist()
    places = np.concatenate([rows, failed])
    if listed != len(places) or not np.array_equal(np.sort(places), np.arange(listed)):
        raise ValueError("its rows are not those of one list, each once")
    if (np.diff(rows) <= 0).any() or labels.min() < -1 or labels.max() >= scores.shape[1]:
        raise ValueError("its rows are not ascending, or a label is outside the classes")
    named = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if kind not in KINDS or not named or len(names) not in (0, scores.shape[1]):
        raise ValueError("`kind` or `class_names` does not fit the scores")
    columns = [arrays[key].tolist() for key in ("failed_rows", "failed_paths", "failed_causes")]
    return ScoredList(
        scores=scores.astype(np.float32),
        labels=labels.astype(np.int64),
        rows=rows.astype(np.int64),
        paths=tuple(arrays["paths"].tolist()),
        failures=tuple(map(Failure, *columns)),
        listed=listed,
        kind=kind,
        class_names=tuple(names),
    )


def scores_path(path: str | os.PathLike[str]) -> str:
    """The file of scores, or the one in the folder of an evaluation.

    Raises:
        UserError: there is none.
    """
    name = os.fspath(path)
    if is_folder(name):
        name = os.path.join(name, "scores.npz")
    if not is_file(name):
        raise UserError(f"{name}: no such file; give the folder that `videomaskfeat evaluate` wrote")
    return name


def average_scores(members: Sequence[ScoredList], names: Sequence[str]) -> ScoredList:
    """The mean of the scores of several networks for the same list, in float64.

    A video that one of them could not read has no mean: it is a failure of the average, too.

    Args:
        members: two or more.
        names: what to call each, for messages.

    Raises:
        UserError: fewer than two, or they score other videos, other classes or other kinds of numbers.
    """
    if len(members) < 2:
        raise UserError(f"{len(members)} file of scores; an average needs at least two")
    first = members[0]
    for other, name in zip(members[1:], names[1:], strict=True):
        _check_classes(first, other, names[0], name)
        _check_videos(first, other, names[0], name)
    rows = first.rows
    failures = {failure.index: failure for member in reversed(members) for failure in member.failures}
    for member in members[1:]:
        rows = np.intersect1d(rows, member.rows)
    if not len(rows):
        raise UserError(f"{', '.join(names)}: have no video in common that all of them could read")
    picked = [np.searchsorted(member.rows, rows) for member in members]
    scores = [
        member.scores[places].astype(np.float64) for member, places in zip(members, picked, strict=True)
    ]
    return ScoredList(
        scores=np.mean(scores, axis=0).astype(np.float32),
        labels=first.labels[picked[0]],
        rows=rows,
        paths=tuple(first.paths[place] for place in picked[0]),
        failures=tuple(failures[row] for row in sorted(failures)),
        listed=first.listed,
        kind=first.kind,
        class_names=next((member.class_names for member in members if member.class_names), ()),
    )


def _check_classes(first: ScoredList, other: ScoredList, a: str, b: str) -> None:
    if first.classes != other.classes:
        raise UserError(
            f"{a} scores {first.classes} classes and {b} {other.classes}; only networks for the same classes "
            "can be averaged"
        )
    if first.kind != other.kind:
        raise UserError(
            f"{a} holds {KINDS[first.kind]} and {b} {KINDS[other.kind]}, whose mean means nothing; evaluate "
            "both with the same --average"
        )
    if first.class_names and other.class_names and first.class_names != other.class_names:
        pairs = zip(first.class_names, other.class_names, strict=True)
        label, (one, two) = next((n, pair) for n, pair in enumerate(pairs) if pair[0] != pair[1])
        raise UserError(f"{a} calls class {label} {one!r} and {b} {two!r}: these are other classes")


def _check_videos(first: ScoredList, other: ScoredList, a: str, b: str) -> None:
    """The same rows: file names and labels, since the folder before them may differ."""
    if first.listed != other.listed:
        raise UserError(
            f"{a} is of a list of {first.listed} videos and {b} of {other.listed}; only scores of the same "
            "list can be averaged"
        )
    mine, theirs = _videos(first), _videos(other)
    for row in sorted(mine.keys() & theirs.keys()):
        if mine[row] != theirs[row]:
            (one, label), (two, second) = mine[row], theirs[row]
            raise UserError(
                f"{a} and {b} are of different lists: row {row + 1} is {one} (label {label}) in one and "
                f"{two} (label {second}) in the other"
            )


def _videos(scored: ScoredList) -> dict[int, tuple[str, int]]:
    """Row -> file name and label."""
    names = map(os.path.basename, scored.paths)
    return dict(zip(scored.rows.tolist(), zip(names, scored.labels.tolist(), strict=True), strict=True))
