"""Scores of the videos in a list: score files, their average over several models, and evaluation results."""

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
from videomaskfeat.io import (
    check_outputs,
    is_file,
    is_folder,
    make_folder,
    make_parent,
    open_file,
    whole_file,
)
from videomaskfeat.metrics.accuracy import (
    Accuracy,
    MultiLabelScore,
    accuracy,
    chance_precision,
    class_accuracies,
    confusion_matrix,
    label_ranks,
    multi_label_score,
    predictions,
)
from videomaskfeat.metrics.bootstrap import multi_label_interval
from videomaskfeat.texts import show_text
from videomaskfeat.viz.evaluation import (
    ClassPrecision,
    ClassRow,
    ShownVideo,
    accuracy_lines,
    mean_ap_text,
    render_evaluation,
)

KINDS = {
    "softmax": "probabilities",
    "sigmoid": "independent probabilities",
    "logits": "logits",
    "knn": "shares of neighbors",
}
"""What is averaged over the views -> what the scores are."""
_MAX_BYTES = 1 << 31
# Arrays of a file besides the scores: number of values, and kinds of integers or text.
_LENGTHS = {
    "labels": ("n", "iu"),
    "rows": ("n", "iu"),
    "paths": ("n", "U"),
    "failed_rows": ("f", "iu"),
    "failed_paths": ("f", "U"),
    "failed_causes": ("f", "U"),
}
RESULT_FILES = ("result.json", "report.html", "scores.npz", "scores.csv", "confusion.csv", "per_class.csv")
"""Files in the folder of an evaluation."""
_ARRAYS = ("scores", "listed", "kind", "class_names", *_LENGTHS)
_COLUMNS = (
    *("row", "path", "label", "prediction", "rank_of_label", "score_of_label", "score_of_prediction"),
    *("label_name", "prediction_name", "unreadable"),
)
_SHOWN_VIDEOS = 12  # best and worst videos with an image in the report
_IMAGE_HEIGHT = 120  # pixels


@dataclass(frozen=True)
class ScoredList:
    """Scores of the videos in a list.

    Attributes:
        scores: float32 [n, L].
        labels: int64 [n]; all -1 for a list without labels.
        rows: int64 [n], row of each video in the list from 0, ascending.
        paths: paths of the n videos.
        failures: unreadable videos, by row.
        listed: number of records in the list, n + len(failures).
        kind: a key of :data:`KINDS`.
        class_names: class names, indexed by label; may be empty.
        targets: bool [n, L], the classes of each video of a multi-label list; otherwise None.
    """

    scores: np.ndarray
    labels: np.ndarray
    rows: np.ndarray
    paths: tuple[str, ...]
    failures: tuple[Failure, ...]
    listed: int
    kind: str
    class_names: tuple[str, ...] = ()
    targets: np.ndarray | None = None

    @property
    def has_labels(self) -> bool:
        """Whether the list has labels."""
        return bool((self.labels >= 0).all())

    @property
    def classes(self) -> int:
        """L."""
        return int(self.scores.shape[1])

    def probabilities(self) -> np.ndarray:
        """Float64 [n, L], sum 1 (unless ``sigmoid``): the scores, or the softmax of averaged logits."""
        scores = self.scores.astype(np.float64)
        if self.kind != "logits":
            return scores
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def class_text(self, label: int) -> str:
        """The name of a class, or its label if names are unknown."""
        return self.class_names[label] if self.class_names else f"class {label}"


def save_scores(path: str | os.PathLike[str], scored: ScoredList, **more: np.ndarray) -> None:
    """Write an npz file with the attributes of a :class:`ScoredList` by name, and further arrays."""
    failures = scored.failures
    if scored.targets is not None:
        more["targets"] = scored.targets
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
    """Read a file of :func:`save_scores`, or the ``scores.npz`` in the folder of an evaluation.

    Raises:
        UserError: the file is missing or has another format.
    """
    name = scores_path(path)
    with open_file(name, "rb") as file:  # outside of the try: a missing file is another error
        try:
            with np.load(file, allow_pickle=False) as archive:
                if sum(member.file_size for member in archive.zip.infolist()) > _MAX_BYTES:
                    raise ValueError(f"unpacked it has more than {_MAX_BYTES} bytes")
                arrays = {key: archive[key] for key in _ARRAYS}
                targets = archive.get("targets")
            return _build_scored_list(arrays, targets)
        except Exception as error:  # zlib, zipfile and numpy raise many types for a damaged file
            reason = show_text(error) or type(error).__name__
            raise UserError(
                f"{name} is not a file of scores ({reason}); give the scores.npz that "
                "`videomaskfeat evaluate` wrote"
            ) from error


def _build_scored_list(arrays: Mapping[str, np.ndarray], targets: np.ndarray | None) -> ScoredList:
    """Raises ValueError if types, shapes or values of the arrays are wrong."""
    scores, labels, rows, failed = (arrays[key] for key in ("scores", "labels", "rows", "failed_rows"))
    if scores.dtype.kind != "f" or scores.ndim != 2 or not scores.size or not np.isfinite(scores).all():
        raise ValueError("`scores` is not an array [n, L] of finite numbers")
    for key, (count, kinds) in _LENGTHS.items():
        values, length = arrays[key], len(scores) if count == "n" else len(np.atleast_1d(failed))
        if values.shape != (length,) or (values.dtype.kind not in kinds and length):
            raise ValueError(f"`{key}` is not one value per row")
    listed, kind, names = int(arrays["listed"]), str(arrays["kind"]), arrays["class_names"].tolist()
    all_rows = np.concatenate([rows, failed])
    if listed != len(all_rows) or not np.array_equal(np.sort(all_rows), np.arange(listed)):
        raise ValueError("its rows are not those of one list, each once")
    if (np.diff(rows) <= 0).any() or labels.min() < -1 or labels.max() >= scores.shape[1]:
        raise ValueError("its rows are not ascending, or a label is outside the classes")
    named = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if kind not in KINDS or not named or len(names) not in (0, scores.shape[1]):
        raise ValueError("`kind` or `class_names` does not fit the scores")
    if targets is not None and (targets.dtype.kind != "b" or targets.shape != scores.shape):
        raise ValueError("`targets` is not one bool per score")
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
        targets=targets,
    )


def scores_path(path: str | os.PathLike[str]) -> str:
    """The file of scores, or the one in the folder of an evaluation; raises UserError if it is missing."""
    name = os.fspath(path)
    if is_folder(name):
        name = os.path.join(name, "scores.npz")
    if not is_file(name):
        raise UserError(f"{name}: no such file; give the folder that `videomaskfeat evaluate` wrote")
    return name


def average_scores(members: Sequence[ScoredList], names: Sequence[str]) -> ScoredList:
    """Average the scores of several models for one list, in float64.

    A video that is unreadable for one of them is a failure of the average.

    Args:
        members: two or more.
        names: name of each, for messages.

    Raises:
        UserError: fewer than two, or their videos, classes or kinds of scores differ.
    """
    if len(members) < 2:
        raise UserError(f"{len(members)} file of scores; an average needs at least two")
    first = members[0]
    for other, name in zip(members[1:], names[1:], strict=True):
        _compare_classes(first, other, names[0], name)
        _compare_videos(first, other, names[0], name)
    rows = first.rows
    failures = {failure.index: failure for member in reversed(members) for failure in member.failures}
    for member in members[1:]:
        rows = np.intersect1d(rows, member.rows)
    if not len(rows):
        raise UserError(f"{', '.join(names)}: no video is readable in all of them")
    places = [np.searchsorted(member.rows, rows) for member in members]
    scores = [member.scores[own].astype(np.float64) for member, own in zip(members, places, strict=True)]
    return ScoredList(
        scores=np.mean(scores, axis=0).astype(np.float32),
        labels=first.labels[places[0]],
        rows=rows,
        paths=tuple(first.paths[place] for place in places[0]),
        failures=tuple(failures[row] for row in sorted(failures)),
        listed=first.listed,
        kind=first.kind,
        class_names=next((member.class_names for member in members if member.class_names), ()),
        targets=None if first.targets is None else first.targets[places[0]],
    )


def _compare_classes(first: ScoredList, other: ScoredList, a: str, b: str) -> None:
    if first.classes != other.classes:
        raise UserError(
            f"{a} scores {first.classes} classes, but {b} {other.classes}; only scores for the same classes "
            "can be averaged"
        )
    if first.kind != other.kind:
        raise UserError(
            f"{a} contains {KINDS[first.kind]}, but {b} {KINDS[other.kind]}, which cannot be averaged; "
            "evaluate both with the same --average"
        )
    if first.class_names and other.class_names and first.class_names != other.class_names:
        pairs = zip(first.class_names, other.class_names, strict=True)
        label, (one, two) = next((n, pair) for n, pair in enumerate(pairs) if pair[0] != pair[1])
        raise UserError(
            f"class {label} is {one!r} in {a}, but {two!r} in {b}; only scores for the same classes can be "
            "averaged"
        )


def _compare_videos(first: ScoredList, other: ScoredList, a: str, b: str) -> None:
    """File names and labels must be equal; folders may differ."""
    if first.listed != other.listed:
        raise UserError(
            f"{a} scores a list of {first.listed} videos, but {b} a list of {other.listed}; only scores of "
            f"the same "
            "list can be averaged"
        )
    videos, others = _videos_by_row(first), _videos_by_row(other)
    for row in sorted(videos.keys() & others.keys()):
        if videos[row] != others[row]:
            (one, label), (two, second) = videos[row], others[row]
            raise UserError(
                f"{a} and {b} score different lists: row {row + 1} is {one} (label {label}) in one and "
                f"{two} (label {second}) in the other; only scores of the same list can be averaged"
            )


def _videos_by_row(scored: ScoredList) -> dict[int, tuple[str, int]]:
    videos = zip(map(os.path.basename, scored.paths), scored.labels.tolist(), strict=True)
    return dict(zip(scored.rows.tolist(), videos, strict=True))


@dataclass(frozen=True)
class Evaluated:
    """The result of an evaluation.

    Attributes:
        accuracy: None for a list without labels; of a multi-label list a MultiLabelScore.
        scored: the scores of all videos.
        failures: unreadable videos, including those of a training list.
        text: the result as text; empty on all ranks except the first.
    """

    accuracy: Accuracy | MultiLabelScore | None
    scored: ScoredList
    failures: tuple[Failure, ...]
    text: str


def make_output_folders(out: str | os.PathLike[str], submission: str, *, overwrite: bool = False) -> None:
    """Create the folders of an evaluation, so that a mistake is reported before the work.

    Raises:
        UserError: the folder has an evaluation or the submission exists, and ``overwrite`` is not set.
    """
    files = [os.path.join(out, name) for name in RESULT_FILES]
    check_outputs([*files, *([submission] if submission else [])], overwrite=overwrite)
    make_folder(out)
    if submission:
        make_parent(submission)


def write_evaluation(
    folder: Path, scored: ScoredList, about: Mapping[str, Any], *, submission: str = ""
) -> tuple[Accuracy | MultiLabelScore | None, str]:
    """Write the files of an evaluation into an existing folder; only rank 0 calls it.

    These are scores.npz, scores.csv, result.json, report.html and, for a list with labels, confusion.csv and
    per_class.csv (multi-label: only per_class.csv, with the average precisions).

    Args:
        folder: the folder.
        scored: the scores.
        about: ``title``, ``protocol`` and further inputs of the result, as plain data.
        submission: file for a Something-Something-v2 test submission; empty: none.

    Returns:
        The accuracy (None for a list without labels), and the result as text.
    """
    result = accuracy(scored.scores, scored.labels) if scored.has_labels else None
    confusion: np.ndarray | None = None
    rows: list[ClassRow] = []
    if result is not None:
        confusion, rows = _write_confusion(folder, scored)
    save_scores(folder / "scores.npz", scored, **({} if confusion is None else {"confusion": confusion}))
    write_table(folder / "scores.csv", [_COLUMNS, *_video_lines(scored)])
    percent: dict[str, Any] = (
        {key: getattr(result, key) for key in ("top1", "top5", "mean_class")} if result else {}
    )
    multi_label: MultiLabelScore | None = None
    interval: tuple[float, float] | None = None
    precisions: list[ClassPrecision] = []
    if scored.targets is not None:
        multi_label = multi_label_score(scored.scores, scored.targets)
        interval = multi_label_interval(scored.scores, scored.targets)
        percent = {"map": multi_label.mean_ap, "map_chance": multi_label.chance, "map_interval": interval}
        precisions = _write_precisions(folder, scored, multi_label)
    summary = write_result(
        folder,
        "classification",
        {
            **percent,
            "videos": len(scored.rows),
            "listed": scored.listed,
            "unreadable": len(scored.failures),
            "classes": scored.classes,
            **about,
            "failures": describe_failures(scored.failures),
        },
    )
    worst, best = _select_videos(scored) if result is not None else ([], [])
    html = render_evaluation(
        summary,
        classes=rows,
        precisions=precisions,
        confusion=confusion,
        predicted=np.bincount(predictions(scored.scores), minlength=scored.classes),
        class_names=[scored.class_text(label) for label in range(scored.classes)],
        worst=worst,
        best=best,
    )
    write_page(folder / "report.html", html)
    if submission:
        write_submission(submission, scored)
    text = _format_result(scored, result or multi_label, folder, about["protocol"], submission, interval)
    return result or multi_label, text


def _write_confusion(folder: Path, scored: ScoredList) -> tuple[np.ndarray, list[ClassRow]]:
    """Write confusion.csv and per_class.csv; returns their content."""
    confusion = confusion_matrix(scored.scores, scored.labels)
    rows = _class_rows(scored, confusion)
    labeled = [[label, *counts] for label, counts in enumerate(confusion.tolist())]
    write_table(folder / "confusion.csv", [("label", *range(len(confusion))), *labeled])
    write_table(folder / "per_class.csv", _class_lines(rows))
    return confusion, rows


def _write_precisions(folder: Path, scored: ScoredList, score: MultiLabelScore) -> list[ClassPrecision]:
    """Write per_class.csv of a multi-label list; returns its content."""
    precisions = [
        ClassPrecision(
            label,
            scored.class_text(label),
            int(count),
            float(ap),
            100 * chance_precision(int(count), score.videos) if count else float("nan"),
        )
        for label, (count, ap) in enumerate(zip(score.counts, score.ap, strict=True))
    ]
    lines = [(row.label, row.name, row.videos, f"{row.ap:.2f}" if row.videos else "") for row in precisions]
    write_table(folder / "per_class.csv", [("label", "name", "videos", "ap"), *lines])
    return precisions


def write_submission(path: str | os.PathLike[str], scored: ScoredList) -> None:
    """Write a Something-Something-v2 test submission: one line ``id;p1;p2;p3;p4;p5`` per video, best first.

    This is the format of ``get_submission`` in github.com/TwentyBN/smth-smth-v2-baseline-with-models. Equal
    scores are in the order of their classes.

    Raises:
        UserError: fewer than 5 classes.
    """
    if scored.classes < 5:
        raise UserError(f"a submission needs the 5 best classes, but there are only {scored.classes} classes")
    best = np.argsort(-scored.scores, axis=1, kind="stable")[:, :5]
    with whole_file(path, errors="surrogateescape") as file:
        for video, classes in zip(scored.paths, best.tolist(), strict=True):
            file.write(";".join([Path(video).stem, *map(str, classes)]) + "\n")


def _class_rows(scored: ScoredList, confusion: np.ndarray) -> list[ClassRow]:
    top1 = class_accuracies(confusion)
    hits = label_ranks(scored.scores, scored.labels) < 5
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    rows = []
    for label in range(scored.classes):
        videos = int(confusion[label].sum())
        prediction = int(wrong[label].argmax())
        times = int(wrong[label, prediction])
        rows.append(
            ClassRow(
                label=label,
                name=scored.class_text(label),
                videos=videos,
                top1=float(top1[label]),
                top5=100 * float(hits[scored.labels == label].mean()) if videos else float("nan"),
                confused_with=scored.class_text(prediction) if times else "",
                times=times,
            )
        )
    return rows


def _class_lines(rows: Sequence[ClassRow]) -> Iterable[Sequence[object]]:
    yield "label", "name", "videos", "top1", "top5", "most_often_taken_for", "times"
    for row in rows:
        percent = (f"{row.top1:.2f}", f"{row.top5:.2f}") if row.videos else ("", "")
        yield row.label, row.name, row.videos, *percent, row.confused_with, row.times or ""


def _video_lines(scored: ScoredList) -> Iterable[Sequence[object]]:
    """One line per row of the list; unreadable videos have a cause and no scores."""
    names, best = scored.class_names, predictions(scored.scores)
    ranks = label_ranks(scored.scores, scored.labels) + 1 if scored.has_labels else None
    places = {int(row): place for place, row in enumerate(scored.rows)}
    failures = {failure.index: failure for failure in scored.failures}
    for row in sorted([*places, *failures]):
        line: dict[str, object] = {"row": row + 1}
        if row in failures:
            line |= {"path": failures[row].path, "unreadable": failures[row].cause}
        else:
            place = places[row]
            scores, label, prediction = scored.scores[place], int(scored.labels[place]), int(best[place])
            line |= {"path": scored.paths[place], "prediction": prediction}
            line["score_of_prediction"] = f"{scores[prediction]:.6g}"
            if ranks is not None:
                line |= {
                    "label": label,
                    "rank_of_label": ranks[place],
                    "score_of_label": f"{scores[label]:.6g}",
                }
            if names:
                line["prediction_name"] = names[prediction]
                line["label_name"] = names[label] if ranks is not None else ""
        yield [line.get(column, "") for column in _COLUMNS]


def _select_videos(scored: ScoredList) -> tuple[list[ShownVideo], list[ShownVideo]]:
    """The wrong videos with the smallest margin, and the right ones with the largest.

    The margin is the probability of the label minus the highest one of the other classes.
    """
    probabilities = scored.probabilities()
    own = np.take_along_axis(probabilities, scored.labels[:, None], axis=1)[:, 0]
    others = probabilities.copy()
    np.put_along_axis(others, scored.labels[:, None], -1.0, axis=1)
    order = np.argsort(own - others.max(axis=1), kind="stable")
    best = predictions(scored.scores)
    right = best == scored.labels

    def show(place: int) -> ShownVideo:
        return ShownVideo(
            path=scored.paths[place],
            label=scored.class_text(int(scored.labels[place])),
            label_share=float(own[place]),
            prediction=scored.class_text(int(best[place])),
            prediction_share=float(probabilities[place, best[place]]),
            picture=encode_middle_frame(scored.paths[place]),
        )

    wrong_places = [place for place in order.tolist() if not right[place]]
    right_places = [place for place in order[::-1].tolist() if right[place]]
    return list(map(show, wrong_places[:_SHOWN_VIDEOS])), list(map(show, right_places[:_SHOWN_VIDEOS]))


def encode_middle_frame(path: str) -> bytes | None:
    """The middle frame of a video as a small JPEG file; None if the video cannot be read."""
    try:
        with open_video(path, "pyav") as video:
            frame = video.read([video.frames // 2])[0]
    except (VideoReadError, OSError):  # the video may be gone since it was scored
        return None
    width = max(round(frame.shape[1] * _IMAGE_HEIGHT / frame.shape[0]), 1)
    small = cv2.resize(frame, (width, _IMAGE_HEIGHT), interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])
    assert done
    return data.tobytes()


def _format_result(
    scored: ScoredList,
    result: Accuracy | MultiLabelScore | None,
    folder: Path,
    protocol: Mapping[str, Any],
    submission: str,
    interval: tuple[float, float] | None,
) -> str:
    views = f" ({protocol['views']} x {protocol['crops']} views)" if "views" in protocol else ""
    lines = [f"{len(scored.rows)} of {scored.listed} videos scored{views}"]
    if isinstance(result, MultiLabelScore):
        lines.append(f"mAP         {mean_ap_text(result.mean_ap, result.chance, interval)}")
    elif result is not None:
        own = (result.top1, result.top5, result.mean_class)
        lines += accuracy_lines(*own, videos=result.videos, classes=scored.classes)
    if submission:
        missing = len(scored.failures)
        note = f" (without {missing} of {scored.listed} rows: unreadable videos)" if missing else ""
        lines.append(f"submission  {submission}{note}")
    return "\n".join([*lines, f"report      {folder / 'report.html'}"])
