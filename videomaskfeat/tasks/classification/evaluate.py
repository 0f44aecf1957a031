"""``evaluate``: score a classifier, or frozen features, on a list by the protocol of its data set."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from videomaskfeat.data.batches import Failure
from videomaskfeat.data.records import Records
from videomaskfeat.data.views import EvaluationViews
from videomaskfeat.engine import distributed
from videomaskfeat.errors import UserError
from videomaskfeat.io import is_file, is_folder, make_folder, make_parent
from videomaskfeat.metrics.accuracy import Accuracy
from videomaskfeat.metrics.knn import check_neighbours, knn_scores
from videomaskfeat.models.weights import load_model
from videomaskfeat.tasks.classification.evaluate_output import (
    listed_failures,
    write_evaluation,
    write_submission,
)
from videomaskfeat.tasks.classification.evaluate_parts import (
    ListChoice,
    MachineChoice,
    Neighbours,
    ViewChoice,
    check_list,
    check_some_exist,
    check_words,
    class_names_of,
    list_name,
)
from videomaskfeat.tasks.classification.multiview import Progress, VideoScores, evaluate_model, video_features
from videomaskfeat.tasks.classification.score_file import ScoredList, average_scores, load_scores, scores_path
from videomaskfeat.tasks.protocol import file_sha256, protocol_of, records_sha256, views_of
from videomaskfeat.tasks.recipe import (
    ClassifyRecipe,
    read_classify_recipe,
    read_testing_recipe,
    recipe_texts,
)
from videomaskfeat.tasks.run_folder import uses_bf16
from videomaskfeat.tasks.threads import choose_inference_threads

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
                    check_words(records, lists, classes=self.classes, source=self.source)
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
