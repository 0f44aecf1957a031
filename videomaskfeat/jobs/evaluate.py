"""What an evaluation leaves in its folder: scores, tables, the result with its protocol, and the report."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejson
import torch

from videomaskfeat import __version__
from videomaskfeat.data.batches import Failure
from videomaskfeat.data.records import Records
from videomaskfeat.data.video import VideoReadError, open_video
from videomaskfeat.data.views import EvaluationViews
from videomaskfeat.engine import distributed
from videomaskfeat.engine.distributed import uses_bf16
from videomaskfeat.errors import UserError
from videomaskfeat.inference.multiview import (
    ListChoice,
    MachineChoice,
    Neighbours,
    Progress,
    VideoScores,
    ViewChoice,
    check_list,
    check_some_exist,
    check_words,
    class_names_of,
    evaluate_model,
    list_name,
    video_features,
)
from videomaskfeat.inference.scores import (
    ScoredList,
    average_scores,
    file_sha256,
    load_scores,
    protocol_of,
    records_sha256,
    save_scores,
    scores_path,
    views_of,
)
from videomaskfeat.inference.threads import choose_inference_threads
from videomaskfeat.io import is_file, is_folder, make_folder, make_parent, whole_file
from videomaskfeat.metrics.accuracy import (
    Accuracy,
    accuracy,
    class_accuracies,
    confusion_matrix,
    label_ranks,
    predictions,
)
from videomaskfeat.metrics.features import check_neighbours, knn_scores
from videomaskfeat.models.weights import load_model
from videomaskfeat.recipe import ClassifyRecipe, read_classify_recipe, read_testing_recipe, recipe_texts
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


# ``evaluate``: score a classifier, or frozen features, on a list by the protocol of its data set.
__all__ = [
    "Evaluated",
    "ListChoice",
    "MachineChoice",
    "Neighbours",
    "VideoScores",
    "ViewChoice",
    "average_files",
    "evaluate",
    "evaluate_model",
]
AS_TESTED, AS_IT_LOOKS, THIS_MACHINE = ViewChoice(), ListChoice(), MachineChoice()


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation found.

    Attributes:
        folder: where it is written.
        accuracy: None for a list without labels.
        scored: the scores of all videos.
        failures: videos that could not be read, those of a training list included.
        text: what the user reads; empty on all ranks but the first.
    """

    folder: Path
    accuracy: Accuracy | None
    scored: ScoredList
    failures: tuple[Failure, ...]
    text: str


def evaluate(
    weights: str | os.PathLike[str],
    list_path: str,
    out: str | os.PathLike[str],
    *,
    views: ViewChoice = AS_TESTED,
    lists: ListChoice = AS_IT_LOOKS,
    neighbours: Neighbours | None = None,
    machine: MachineChoice = THIS_MACHINE,
    submission: str = "",
    progress: Progress | None = None,
) -> Evaluated:
    """Score the videos of a list by all their views, and write what was found into a folder.

    Args:
        weights: safetensors file of a fine-tuning run or of ``import-slowfast``; with ``neighbours`` that of
            a pre-training run, too.
        list_path: list or folder of videos, with labels or without.
        out: folder to write: scores.npz, scores.csv, result.json, report.html, and, where there are labels,
            confusion.csv and per_class.csv.
        views: how videos are cut.
        lists: how the lists are read.
        neighbours: classify by the nearest videos of a training list; None: by the network's own head.
        machine: on what it runs.
        submission: file for a Something-Something-v2 test submission; empty writes none.
        progress: told how many videos are done, of how many.

    Raises:
        UserError: the weights, a list or a choice is wrong, or no video could be read.
        RunFailed: the network's output is not finite.
    """
    device = distributed.choose_device(machine.device)
    with distributed.process_group(device):
        work = _Evaluation(os.fspath(weights), list_path, views, lists, neighbours, machine, device, progress)
        distributed.run_on_main(lambda: _make_places(out, submission))  # rather than after all the work
        work.choose_threads()
        start = time.monotonic()
        scored, train = work.scored()
        about = work.describe(train) | {"seconds": round(time.monotonic() - start, 1)}
        result = distributed.run_on_main(lambda: _write(Path(out), scored, about, submission))
        text = closing_words(scored, result, Path(out), about, submission) if distributed.is_main() else ""
        failures = scored.failures + (() if train is None else train.failures)
        return Evaluated(Path(out), result, scored, failures, text)


def average_files(
    members: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], *, submission: str = ""
) -> Evaluated:
    """Average the scores of several evaluations of one list (an ensemble), and write the same files.

    Args:
        members: folders of evaluations, or their scores.npz; two or more.
        out: folder to write.
        submission: as in :func:`evaluate`.

    Raises:
        UserError: a file is missing or given twice, or they are of other videos, classes or kinds of scores.
    """
    files = [scores_path(member) for member in members]
    real = [os.path.realpath(file) for file in files]
    for number, file in enumerate(files):
        if real[number] in real[:number]:
            raise UserError(f"{file}: is given twice, and an average takes each file once; leave one out")
    scored = average_scores([load_scores(file) for file in files], files)
    about = {
        "title": f"Average of {len(files)} evaluations",
        "members": {str(number): file for number, file in enumerate(files, start=1)},
        "members_sha256": {str(number): file_sha256(file) for number, file in enumerate(files, start=1)},
        "protocol": {"averaged": files, "scores": scored.kind},
    }
    _make_places(out, submission)
    result = _write(Path(out), scored, about, submission)
    text = closing_words(scored, result, Path(out), about, submission)
    return Evaluated(Path(out), result, scored, scored.failures, text)


def closing_words(
    scored: ScoredList,
    result: Accuracy | None,
    folder: Path,
    about: Mapping[str, Any],
    submission: str = "",
) -> str:
    """What the user reads at the end."""
    protocol = about["protocol"]
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


def _make_places(out: str | os.PathLike[str], submission: str) -> None:
    make_folder(out)
    if submission:
        make_parent(submission)


def _write(folder: Path, scored: ScoredList, about: Mapping[str, Any], submission: str) -> Accuracy | None:
    result = write_evaluation(folder, scored, about)
    if submission:
        write_submission(submission, scored)
    return result


def _classifier_recipe(weights: str) -> ClassifyRecipe:
    """How a classifier was tested; weights without one are pointed to the nearest neighbours."""
    try:
        return read_classify_recipe(weights)
    except UserError as error:
        if recipe_texts(weights):  # some network of ours all the same
            raise UserError(
                f"{error}; or score the features of these weights with --knn TRAIN_LIST"
            ) from error
        raise


class _Evaluation:
    """The parts of one evaluation, checked against each other before the first video is read."""

    def __init__(
        self,
        weights: str,
        list_path: str,
        views: ViewChoice,
        lists: ListChoice,
        neighbours: Neighbours | None,
        machine: MachineChoice,
        device: torch.device,
        progress: Progress | None,
    ) -> None:
        self.weights, self.list_path = weights, list_path
        self.neighbours = neighbours
        self.machine, self.device, self.progress = machine, device, progress
        if neighbours is not None:
            check_neighbours(k=neighbours.k, temperature=neighbours.temperature)
        known = _classifier_recipe(weights) if neighbours is None else read_testing_recipe(weights)
        self.recipe = views.recipe(known)
        self.bf16 = uses_bf16(machine.precision, device)
        model: Any = load_model(weights, device=device)
        self.model = model
        own = int(model.classes) if neighbours is None else None
        names = class_names_of(known.class_names, list_path, lists, classes=own, source=weights)
        stills = self.recipe.clip.frames == 1
        self.train: Records | None = None
        if neighbours is not None:
            # Class folders number themselves: these may be of another data set than the weights.
            known_there = () if is_folder(neighbours.list_path) else names
            self.train = lists.load(
                neighbours.list_path, labels="yes", known_classes=known_there, stills=stills
            )
            names = self.train.class_names or names
        self.records = lists.load(list_path, known_classes=names, stills=stills)
        self.classes, self.names = self._settle(own, names)
        for records in (self.records, self.train):
            if records is not None:
                self._views(records)  # refuses what does not fit
                check_list(records, classes=self.classes, source=self.source)
                if not names:
                    check_words(records, classes=self.classes, source=self.source)
                check_some_exist(records)

    @property
    def source(self) -> str:
        """What knows the classes."""
        return self.weights if self.neighbours is None else self.neighbours.list_path

    def choose_threads(self) -> None:
        """Compute with the number of CPU threads that is fastest for this network."""
        choose_inference_threads(
            self.model,
            self.recipe.clip,
            device=self.device,
            bf16=self.bf16,
            workers=self.machine.workers,
            network=None if self.neighbours is None else self.model.features,
        )

    def scored(self) -> tuple[ScoredList, VideoScores | None]:
        """The scores of the list, and the features of the training list where neighbours are asked."""
        if self.neighbours is None:
            found = evaluate_model(
                self.model, self._views(self.records), average=self.recipe.average, **self._options()
            )
            return self._with_paths(found, found.scores, self.recipe.average), None
        assert self.train is not None
        train = video_features(self.model, self._views(self.train), **self._options())
        found = video_features(self.model, self._views(self.records), **self._options())
        return self._with_paths(found, self._votes(self.neighbours, train, found), "knn"), train

    def describe(self, train: VideoScores | None) -> dict[str, Any]:
        """What identifies the result; the hashes are made on rank 0 alone."""
        name, _ = self.model.created_as
        about: dict[str, Any] = {
            "title": f"{Path(self.weights).stem} on {list_name(self.list_path)}",
            "weights": self.weights,
            "model": name,
            "head": "knn" if self.neighbours else getattr(self.model, "head_kind", "none"),
            "list": self.list_path,
            **distributed.run_on_main(self._hashes),
            "protocol": {
                **protocol_of(self.recipe),
                "average": "features" if self.neighbours else self.recipe.average,
                "precision": "bf16" if self.bf16 else "fp32",
                "reader": self.machine.reader,
            },
        }
        if self.neighbours is not None and train is not None:
            about["protocol"] |= {"k": self.neighbours.k, "temperature": self.neighbours.temperature}
            about["train_list"] = self.neighbours.list_path
            about["train_videos"], about["train_listed"] = len(train.rows), train.listed
            about["train_failures"] = listed_failures(train.failures)
        return about

    def _settle(self, own: int | None, names: tuple[str, ...]) -> tuple[int, tuple[str, ...]]:
        """The number of classes and their names; with neighbours, the training list decides."""
        if own is not None:
            return own, names
        assert self.train is not None
        labels = self.train.labels
        assert labels is not None  # asked for
        count = int(labels.max()) + 1
        # The names may be of what a classifier was trained for, and the neighbours of something else.
        return (len(names), names) if len(names) >= count else (count, ())

    def _views(self, records: Records) -> EvaluationViews:
        return views_of(records, self.recipe, reader=self.machine.reader)

    def _options(self) -> dict[str, Any]:
        """What both kinds of scoring are told."""
        return {
            "device": self.device,
            "bf16": self.bf16,
            "mean": self.recipe.clip.mean,
            "std": self.recipe.clip.std,
            "videos_per_batch": self.machine.videos(self.recipe),
            "workers": self.machine.workers,
            "clips_at_once": self.machine.clips_at_once,
            "progress": self.progress,
        }

    def _votes(self, neighbours: Neighbours, train: VideoScores, found: VideoScores) -> np.ndarray:
        """Shares float32 [n, L] of the nearest training videos; each rank asks for a part of the videos."""
        rank, ranks = distributed.rank(), distributed.world_size()
        part = knn_scores(
            train.scores,
            train.labels,
            found.scores[rank::ranks],
            classes=self.classes,
            k=neighbours.k,
            temperature=neighbours.temperature,
        )
        scores = np.empty((len(found.rows), self.classes), np.float32)
        for number, rows in enumerate(distributed.gather_objects(part)):
            scores[number::ranks] = rows
        return scores

    def _with_paths(self, found: VideoScores, scores: np.ndarray, kind: str) -> ScoredList:
        return ScoredList(
            scores=scores,
            labels=found.labels,
            rows=found.rows,
            paths=tuple(self.records[int(row)].path for row in found.rows),
            failures=found.failures,
            listed=found.listed,
            kind=kind,
            class_names=self.names,
        )

    def _hashes(self) -> dict[str, str]:
        hashes = {"weights_sha256": file_sha256(self.weights), "list_sha256": records_sha256(self.records)}
        if is_file(self.list_path):
            hashes["list_file_sha256"] = file_sha256(self.list_path)
        if self.train is not None:
            hashes["train_list_sha256"] = records_sha256(self.train)
        return hashes
