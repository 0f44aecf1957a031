"""What an evaluation leaves in its folder: scores, tables, the result with its protocol, and the report."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejson

from videomaskfeat import __version__
from videomaskfeat.data.batches import Failure
from videomaskfeat.data.video import VideoReadError, open_video
from videomaskfeat.errors import UserError
from videomaskfeat.io import whole_file
from videomaskfeat.metrics.accuracy import (
    Accuracy,
    accuracy,
    class_accuracies,
    confusion_matrix,
    label_ranks,
    predictions,
)
from videomaskfeat.tasks.classification.score_file import ScoredList, save_scores
from videomaskfeat.viz.evaluation import ClassRow, EvaluationFacts, ShownVideo, render_evaluation

_SHOWN = 12  # videos with pictures at either end of the report
_PICTURE_HEIGHT = 120  # pixels
# Parts of the result that have a place of their own in the report.
_ELSEWHERE = ("failures", "train_failures", "protocol", "title")


def write_evaluation(folder: Path, scored: ScoredList, about: Mapping[str, Any]) -> Accuracy | None:
    """Write every file of an evaluation; only rank 0 calls it.

    Args:
        folder: exists.
        scored: the scores.
        about: what they depend on, as plain data: ``title``, ``protocol`` and whatever else identifies it.

    Returns:
        The accuracy; None for a list without labels.
    """
    result = accuracy(scored.scores, scored.labels) if scored.labelled else None
    more = {}
    rows: list[ClassRow] = []
    if result is not None:
        confusion = confusion_matrix(scored.scores, scored.labels)
        more["confusion"] = confusion
        rows = class_rows(scored, confusion)
        _write_csv(folder / "confusion.csv", _confusion_lines(confusion))
        _write_csv(folder / "per_class.csv", _class_lines(rows))
    save_scores(folder / "scores.npz", scored, **more)
    _write_csv(folder / "scores.csv", _video_lines(scored))
    summary = summary_of(scored, result, about)
    with whole_file(folder / "result.json") as file:
        file.write(simplejson.dumps(summary, indent=2, ignore_nan=True) + "\n")
    html = render_evaluation(
        _facts(scored, result, rows, more.get("confusion"), summary), version=__version__
    )
    with whole_file(folder / "report.html", errors="replace") as file:  # a path may not be UTF-8
        file.write(html)
    return result


def summary_of(scored: ScoredList, result: Accuracy | None, about: Mapping[str, Any]) -> dict[str, Any]:
    """The content of result.json: accuracies in percent, of how many of how many videos, and the protocol."""
    scores = (
        {} if result is None else {"top1": result.top1, "top5": result.top5, "mean_class": result.mean_class}
    )
    return {
        **scores,
        "videos": len(scored.rows),
        "listed": scored.listed,
        "unreadable": len(scored.failures),
        "classes": scored.classes,
        **about,
        "failures": listed_failures(scored.failures),
        "version": __version__,
    }


def listed_failures(failures: Iterable[Failure]) -> list[dict[str, Any]]:
    """Failures as plain data; rows count from 1, as editors count lines."""
    return [{"row": failure.index + 1, "path": failure.path, "cause": failure.cause} for failure in failures]


def class_rows(scored: ScoredList, confusion: np.ndarray) -> list[ClassRow]:
    """A row a class, in their order."""
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
                taken_for=scored.class_text(taken) if times else "",
                times=times,
            )
        )
    return rows


def write_submission(path: str | os.PathLike[str], scored: ScoredList) -> None:
    """Write a Something-Something-v2 test submission: a line ``id;p1;p2;p3;p4;p5`` a video, best class first.

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


def _write_csv(path: Path, lines: Iterable[Sequence[object]]) -> None:
    with whole_file(path, newline="", errors="surrogateescape") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)


def _video_lines(scored: ScoredList) -> Iterable[Sequence[object]]:
    """Every row of the list in its order; what could not be read has a cause and no scores."""
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
    """A row a class of the videos, a column a class that was said."""
    yield ("label", *range(len(confusion)))
    for label, counts in enumerate(confusion.tolist()):
        yield (label, *counts)


def _class_lines(rows: Sequence[ClassRow]) -> Iterable[Sequence[object]]:
    yield "label", "name", "videos", "top1", "top5", "most_often_taken_for", "times"
    for row in rows:
        shares = (f"{row.top1:.2f}", f"{row.top5:.2f}") if row.videos else ("", "")
        yield row.label, row.name, row.videos, *shares, row.taken_for, row.times or ""


def _facts(
    scored: ScoredList,
    result: Accuracy | None,
    rows: Sequence[ClassRow],
    confusion: np.ndarray | None,
    summary: Mapping[str, Any],
) -> EvaluationFacts:
    """What the report shows."""
    worst, best = _ends(scored) if result is not None else ([], [])
    return EvaluationFacts(
        title=str(summary["title"]),
        videos=len(scored.rows),
        listed=scored.listed,
        top1=None if result is None else result.top1,
        top5=None if result is None else result.top5,
        mean_class=None if result is None else result.mean_class,
        protocol=summary["protocol"],
        summary={
            key: value for key, value in summary.items() if key not in ("failures", "protocol", "title")
        },
        classes=rows,
        confusion=confusion,
        said=np.bincount(predictions(scored.scores), minlength=scored.classes),
        class_texts=[scored.class_text(label) for label in range(scored.classes)],
        worst=worst,
        best=best,
        failures=[
            *((failure.path, failure.cause) for failure in scored.failures),
            *(
                (entry["path"], f"{entry['cause']} (training list)")
                for entry in summary.get("train_failures", ())
            ),
        ],
    )


def _ends(scored: ScoredList) -> tuple[list[ShownVideo], list[ShownVideo]]:
    """The videos that were most surely wrong, and most surely right.

    By the margin: the probability of the video's class, less the highest among the others.
    """
    probabilities = scored.probabilities()
    own = np.take_along_axis(probabilities, scored.labels[:, None], axis=1)[:, 0]
    others = probabilities.copy()
    np.put_along_axis(others, scored.labels[:, None], -1.0, axis=1)
    margin = own - others.max(axis=1)
    order = np.argsort(margin, kind="stable")
    right = predictions(scored.scores) == scored.labels
    worst = [place for place in order.tolist() if not right[place]][:_SHOWN]
    best = [place for place in order[::-1].tolist() if right[place]][:_SHOWN]

    def shown(place: int) -> ShownVideo:
        label, said = int(scored.labels[place]), int(predictions(scored.scores[place : place + 1])[0])
        return ShownVideo(
            path=scored.paths[place],
            label=scored.class_text(label),
            label_share=float(own[place]),
            prediction=scored.class_text(said),
            prediction_share=float(probabilities[place, said]),
            picture=middle_picture(scored.paths[place]),
        )

    return list(map(shown, worst)), list(map(shown, best))


def middle_picture(path: str) -> bytes | None:
    """The frame in the middle of a video, as a small JPEG file; None where the video is no longer there."""
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
