"""Scores of a list's videos: files of them, their mean over several networks, and the result they make."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from videomaskfeat.data.batches import Failure
from videomaskfeat.data.video import VideoReadError, open_video
from videomaskfeat.errors import UserError
from videomaskfeat.inference.results import describe_failures, write_page, write_result, write_table
from videomaskfeat.io import is_file, is_folder, make_folder, make_parent, open_file, whole_file
from videomaskfeat.metrics.accuracy import (
    Accuracy,
    accuracy,
    class_accuracies,
    confusion_matrix,
    label_ranks,
    predictions,
)
from videomaskfeat.texts import show_text
from videomaskfeat.viz.evaluation import ClassRow, ShownVideo, render_evaluation

KINDS = {"softmax": "probabilities", "logits": "logits", "knn": "shares of neighbours"}
"""What was averaged over the views -> what the scores are."""
_MOST_BYTES = 1 << 31
# Arrays of a file besides the scores: number of values, integers or text.
_LENGTHS = {
    "labels": ("n", "iu"),
    "rows": ("n", "iu"),
    "paths": ("n", "U"),
    "failed_rows": ("f", "iu"),
    "failed_paths": ("f", "U"),
    "failed_causes": ("f", "U"),
}
_ARRAYS = ("scores", "listed", "kind", "class_names", *_LENGTHS)
_SHOWN = 12  # videos with pictures at either end of the report
_PICTURE_HEIGHT = 120  # pixels


@dataclass(frozen=True)
class ScoredList:
    """Scores of a list's videos.

    Attributes:
        scores: float32 [n, L].
        labels: int64 [n]; all -1 for a list without labels.
        rows: int64 [n], the row of each in the list from 0, ascending.
        paths: of the n videos.
        failures: records that could not be read, by row.
        listed: records of the list, n + len(failures).
        kind: a key of :data:`KINDS`.
        class_names: class names, indexed by label; may be empty.
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
        """Whether the list has labels."""
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
        """The name of a class, or its number if names are unknown."""
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


@dataclass(frozen=True)
class Evaluated:
    """The result of an evaluation.

    Attributes:
        folder: where it is written.
        accuracy: None for a list without labels.
        scored: the scores of all videos.
        failures: videos that could not be read, those of a training list included.
        text: for people; empty on all ranks but the first.
    """

    folder: Path
    accuracy: Accuracy | None
    scored: ScoredList
    failures: tuple[Failure, ...]
    text: str


def make_output_folders(out: str | os.PathLike[str], submission: str) -> None:
    """Make the folders of an evaluation, before all the work rather than after it."""
    make_folder(out)
    if submission:
        make_parent(submission)


def write_evaluation(
    folder: Path, scored: ScoredList, about: Mapping[str, Any], *, submission: str = ""
) -> tuple[Accuracy | None, str]:
    """Write every file of an evaluation; only rank 0 calls it.

    These are scores.npz, scores.csv, result.json, report.html and, for a list with labels, confusion.csv and
    per_class.csv.

    Args:
        folder: exists.
        scored: the scores.
        about: what they depend on, as plain data; has a ``title`` and a ``protocol``.
        submission: file for a Something-Something-v2 test submission; empty: none.

    Returns:
        The accuracy (None for a list without labels), and the result in a few lines for people.
    """
    result = accuracy(scored.scores, scored.labels) if scored.labelled else None
    more: dict[str, np.ndarray] = {}
    rows: list[ClassRow] = []
    if result is not None:
        confusion = more["confusion"] = confusion_matrix(scored.scores, scored.labels)
        rows = class_rows(scored, confusion)
        write_table(folder / "confusion.csv", _confusion_lines(confusion))
        write_table(folder / "per_class.csv", _class_lines(rows))
    save_scores(folder / "scores.npz", scored, **more)
    write_table(folder / "scores.csv", _video_lines(scored))
    shares = {key: getattr(result, key) for key in ("top1", "top5", "mean_class")} if result else {}
    summary = write_result(
        folder,
        "classification",
        {
            **shares,  # in percent
            "videos": len(scored.rows),
            "listed": scored.listed,
            "unreadable": len(scored.failures),
            "classes": scored.classes,
            **about,
            "failures": describe_failures(scored.failures),
        },
    )
    worst, best = _ends(scored) if result is not None else ([], [])
    html = render_evaluation(
        summary,
        classes=rows,
        confusion=more.get("confusion"),
        predicted=np.bincount(predictions(scored.scores), minlength=scored.classes),
        class_names=[scored.class_text(label) for label in range(scored.classes)],
        worst=worst,
        best=best,
    )
    write_page(folder / "report.html", html)
    if submission:
        write_submission(submission, scored)
    return result, _text(scored, result, folder, about["protocol"], submission)


def write_submission(path: str | os.PathLike[str], scored: ScoredList) -> None:
    """Write a Something-Something-v2 test submission: one line ``id;p1;p2;p3;p4;p5`` per video, best first.

    As the data set's authors write it (``get_submission`` in their baseline,
    github.com/TwentyBN/smth-smth-v2-baseline-with-models). Of equal scores the lower class comes first.

    Raises:
        UserError: fewer than 5 classes.
    """
    if scored.classes < 5:
        raise UserError(f"a submission names the 5 best classes, and there are {scored.classes}")
    best = np.argsort(-scored.scores, axis=1, kind="stable")[:, :5]
    with whole_file(path, errors="surrogateescape") as file:
        for video, classes in zip(scored.paths, best.tolist(), strict=True):
            file.write(";".join([Path(video).stem, *map(str, classes)]) + "\n")


def class_rows(scored: ScoredList, confusion: np.ndarray) -> list[ClassRow]:
    """One row per class, in their order."""
    own = class_accuracies(confusion)
    hits = label_ranks(scored.scores, scored.labels) < 5
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    rows = []
    for label in range(scored.classes):
        videos = int(confusion[label].sum())
        taken = int(wrong[label].argmax())
        times = int(wrong[label, taken])
        rows.append(
            ClassRow(
                label=label,
                name=scored.class_text(label),
                videos=videos,
                top1=float(own[label]),
                top5=100 * float(hits[scored.labels == label].mean()) if videos else float("nan"),
                confused_with=scored.class_text(taken) if times else "",
                times=times,
            )
        )
    return rows


def _video_lines(scored: ScoredList) -> Iterable[Sequence[object]]:
    """All rows of the list in their order; unreadable ones have a cause and no scores."""
    yield (
        "row", "path", "label", "prediction", "rank_of_label", "score_of_label", "score_of_prediction",
        "label_name", "prediction_name", "unreadable",
    )  # fmt: skip
    said = predictions(scored.scores)
    ranks = label_ranks(scored.scores, scored.labels) + 1 if scored.labelled else None
    places = {int(row): place for place, row in enumerate(scored.rows)}
    failures = {failure.index: failure for failure in scored.failures}
    for row in sorted([*places, *failures]):
        if row in failures:
            yield row + 1, failures[row].path, "", "", "", "", "", "", "", failures[row].cause
            continue
        place = places[row]
        label, prediction = int(scored.labels[place]), int(said[place])
        own = (label, ranks[place], f"{scored.scores[place, label]:.6g}") if ranks is not None else ("",) * 3
        names = scored.class_names
        yield (
            row + 1, scored.paths[place], own[0], prediction, own[1], own[2],
            f"{scored.scores[place, prediction]:.6g}",
            names[label] if names and ranks is not None else "",
            names[prediction] if names else "",
            "",
        )  # fmt: skip


def _confusion_lines(confusion: np.ndarray) -> Iterable[Sequence[object]]:
    """A row per class of the videos, a column per predicted class."""
    yield ("label", *range(len(confusion)))
    for label, counts in enumerate(confusion.tolist()):
        yield (label, *counts)


def _class_lines(rows: Sequence[ClassRow]) -> Iterable[Sequence[object]]:
    yield "label", "name", "videos", "top1", "top5", "most_often_taken_for", "times"
    for row in rows:
        shares = (f"{row.top1:.2f}", f"{row.top5:.2f}") if row.videos else ("", "")
        yield row.label, row.name, row.videos, *shares, row.confused_with, row.times or ""


def _ends(scored: ScoredList) -> tuple[list[ShownVideo], list[ShownVideo]]:
    """The most surely wrong videos, and the most surely right ones.

    By the margin: the probability of the video's class minus the highest of the others.
    """
    probabilities = scored.probabilities()
    own = np.take_along_axis(probabilities, scored.labels[:, None], axis=1)[:, 0]
    others = probabilities.copy()
    np.put_along_axis(others, scored.labels[:, None], -1.0, axis=1)
    order = np.argsort(own - others.max(axis=1), kind="stable")
    said = predictions(scored.scores)
    right = said == scored.labels

    def shown(place: int) -> ShownVideo:
        return ShownVideo(
            path=scored.paths[place],
            label=scored.class_text(int(scored.labels[place])),
            label_share=float(own[place]),
            prediction=scored.class_text(int(said[place])),
            prediction_share=float(probabilities[place, said[place]]),
            picture=encode_middle_frame(scored.paths[place]),
        )

    worst = [place for place in order.tolist() if not right[place]][:_SHOWN]
    best = [place for place in order[::-1].tolist() if right[place]][:_SHOWN]
    return list(map(shown, worst)), list(map(shown, best))


def encode_middle_frame(path: str) -> bytes | None:
    """The frame in the middle of a video, as a small JPEG file; None if the video cannot be read any more."""
    try:
        with open_video(path, "pyav") as video:
            frame = video.read([video.frames // 2])[0]
    except (VideoReadError, OSError):  # scores may be older than the videos
        return None
    width = max(round(frame.shape[1] * _PICTURE_HEIGHT / frame.shape[0]), 1)
    small = cv2.resize(frame, (width, _PICTURE_HEIGHT), interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])
    assert done
    return data.tobytes()


def _text(
    scored: ScoredList, result: Accuracy | None, folder: Path, protocol: Mapping[str, Any], submission: str
) -> str:
    """For people, at the end."""
    how = f" ({protocol['views']} x {protocol['crops']} views)" if "views" in protocol else ""
    lines = [f"{len(scored.rows)} of {scored.listed} videos scored{how}"]
    if result is not None:
        lines += [
            f"top-1       {result.top1:.2f} %",
            f"top-5       {result.top5:.2f} %",
            f"mean class  {result.mean_class:.2f} %",
        ]
    if submission:
        lacking = len(scored.failures)
        short = f" (lacks {lacking} of {scored.listed} rows: unreadable videos)" if lacking else ""
        lines.append(f"submission  {submission}{short}")
    return "\n".join([*lines, f"report      {folder / 'report.html'}"])
