"""``evaluate``: score a classifier, or frozen features, on a list by the protocol of its data set."""

from __future__ import annotations

import dataclasses
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from videomaskfeat.data.records import Records
from videomaskfeat.engine import distributed
from videomaskfeat.errors import UserError
from videomaskfeat.inference.lists import ListChoice, check_records, resolve_class_names
from videomaskfeat.inference.multiview import (
    Machine,
    Progress,
    VideoScores,
    build_views,
    evaluate_model,
    video_features,
)
from videomaskfeat.inference.results import describe_failures, describe_views, describe_weights, hash_records
from videomaskfeat.inference.scores import Evaluated, ScoredList, make_output_folders, write_evaluation
from videomaskfeat.inference.threads import choose_inference_threads
from videomaskfeat.io import file_sha256, is_file, is_folder
from videomaskfeat.metrics.features import check_knn, knn_scores
from videomaskfeat.models.weights import load_model
from videomaskfeat.recipe import ClassifyRecipe, read_classify_recipe, read_testing_recipe, recipe_texts


@dataclass(frozen=True)
class ViewOptions:
    """How videos are cut; None: as the weights were tested.

    Attributes:
        views: temporal views per video, evenly spaced.
        crops: crops per view: 1 (center) or 3.
        sampling: clip (frames at a stride) or segments (one frame of each of equal parts).
        short_side: pixels to which the short side is resized.
        average: what is averaged over the views: softmax or logits.
    """

    views: int | None = None
    crops: int | None = None
    sampling: str | None = None
    short_side: int | None = None
    average: str | None = None

    def recipe(self, known: ClassifyRecipe) -> ClassifyRecipe:
        """The recipe of the weights with these choices; segments are one view by default."""
        sampling = known.sampling if self.sampling is None else self.sampling
        views = 1 if self.views is None and sampling == "segments" else self.views
        recipe = known.with_views(views=views, crops=self.crops)
        short_side = recipe.short_side if self.short_side is None else self.short_side
        average = recipe.average if self.average is None else self.average
        return dataclasses.replace(recipe, sampling=sampling, short_side=short_side, average=average)


@dataclass(frozen=True)
class Neighbors:
    """Classification by the nearest training videos instead of a head.

    Attributes:
        list_path: labelled list of the training videos; read as the other list is.
        k: how many vote.
        temperature: of their weights.
    """

    list_path: str
    k: int = 20
    temperature: float = 0.07


AS_TESTED, AS_IT_LOOKS, THIS_MACHINE = ViewOptions(), ListChoice(), Machine()


def evaluate(
    weights: str | os.PathLike[str],
    list_path: str,
    out: str | os.PathLike[str],
    *,
    views: ViewOptions = AS_TESTED,
    lists: ListChoice = AS_IT_LOOKS,
    neighbors: Neighbors | None = None,
    machine: Machine = THIS_MACHINE,
    submission: str = "",
    progress: Progress | None = None,
) -> Evaluated:
    """Score the videos of a list by all their views, and write the result into a folder.

    Args:
        weights: safetensors file of a fine-tuning run or of ``import-slowfast``; with ``neighbors`` also of
            a pre-training run.
        list_path: list or folder of videos, with labels or without.
        out: folder to write, see :func:`~videomaskfeat.inference.scores.write_evaluation`.
        views: how videos are cut.
        lists: how the lists are read.
        neighbors: classify by the nearest videos of a training list; None: by the network's own head.
        machine: on what it runs.
        submission: file for a Something-Something-v2 test submission; empty: none.
        progress: called with the number of videos that are done, and of all.

    Raises:
        UserError: the weights, a list or a choice is wrong, or no video could be read.
        RunFailed: the network's output is not finite.
    """
    with distributed.process_group(machine.torch_device):
        work = _Evaluation(os.fspath(weights), list_path, views, lists, neighbors, machine)
        distributed.run_on_main(lambda: make_output_folders(out, submission))
        network = None if neighbors is None else work.model.features
        choose_inference_threads(work.model, work.recipe.clip, machine, network=network)
        start = time.monotonic()
        scored, train = work.scored(progress)
        seconds = round(time.monotonic() - start, 1)
        result, text = distributed.run_on_main(
            lambda: write_evaluation(
                Path(out), scored, {**work.describe(train), "seconds": seconds}, submission=submission
            )
        )
        failures = scored.failures + (() if train is None else train.failures)
        return Evaluated(Path(out), result, scored, failures, text if distributed.is_main() else "")


class _Evaluation:
    """The parts of one evaluation, checked against each other before the first video is read."""

    def __init__(
        self,
        weights: str,
        list_path: str,
        views: ViewOptions,
        lists: ListChoice,
        neighbors: Neighbors | None,
        machine: Machine,
    ) -> None:
        self.weights, self.list_path = weights, list_path
        self.neighbors, self.machine = neighbors, machine
        if neighbors is not None:
            check_knn(k=neighbors.k, temperature=neighbors.temperature)
        known = _classifier_recipe(weights) if neighbors is None else read_testing_recipe(weights)
        self.recipe = views.recipe(known)
        _ = machine.bf16  # refuses a wrong precision before the weights are read
        model: Any = load_model(weights, device=machine.torch_device)
        self.model = model
        own = int(model.classes) if neighbors is None else None
        names = resolve_class_names(known.class_names, list_path, lists, classes=own, source=weights)
        stills = self.recipe.clip.frames == 1
        self.train: Records | None = None
        if neighbors is not None:
            # Class folders number themselves: these may be of another data set than the weights.
            known_there = () if is_folder(neighbors.list_path) else names
            self.train = lists.load(
                neighbors.list_path, labels="yes", known_classes=known_there, stills=stills
            )
            names = self.train.class_names or names
        self.records = lists.load(list_path, known_classes=names, stills=stills)
        self.classes, self.names = self._classes(own, names)
        source = weights if neighbors is None else neighbors.list_path
        for records in (self.records, self.train):
            if records is not None:
                build_views(records, self.recipe)  # refuses what does not fit
                check_records(records, classes=self.classes, source=source, named=bool(names))

    def scored(self, progress: Progress | None) -> tuple[ScoredList, VideoScores | None]:
        """The scores of the list, and with neighbors the features of the training list."""
        if self.neighbors is None:
            found = evaluate_model(self.model, self.records, self.recipe, self.machine, progress=progress)
            return self._scored(found, found.scores, self.recipe.average), None
        assert self.train is not None
        train, found = (
            video_features(self.model, records, self.recipe, self.machine, progress=progress)
            for records in (self.train, self.records)
        )
        return self._scored(found, self._votes(self.neighbors, train, found), "knn"), train

    def describe(self, train: VideoScores | None) -> dict[str, Any]:
        """What the result depends on; rank 0 alone calls it."""
        neighbors = self.neighbors
        about: dict[str, Any] = {
            "title": f"{Path(self.weights).stem} on {os.path.basename(os.path.normpath(self.list_path))}",
            "weights": self.weights,
            "model": self.model.created_as[0],
            "head": "knn" if neighbors else getattr(self.model, "head_kind", "none"),
            "list": self.list_path,
            **describe_weights(self.weights),
            "list_sha256": hash_records(self.records),
        }
        if is_file(self.list_path):
            about["list_file_sha256"] = file_sha256(self.list_path)
        if self.train is not None:
            about["train_list_sha256"] = hash_records(self.train)
        about["protocol"] = {
            **describe_views(self.recipe),
            "average": "features" if neighbors else self.recipe.average,
            "precision": self.machine.precision_used,
            "reader": self.machine.reader,
        }
        if neighbors is not None and train is not None:
            about["protocol"] |= {"k": neighbors.k, "temperature": neighbors.temperature}
            about["train_list"] = neighbors.list_path
            about["train_videos"], about["train_listed"] = len(train.rows), train.listed
            about["train_failures"] = describe_failures(train.failures)
        return about

    def _classes(self, own: int | None, names: tuple[str, ...]) -> tuple[int, tuple[str, ...]]:
        """The number of classes and their names; with neighbors, the training list decides."""
        if own is not None:
            return own, names
        assert self.train is not None
        labels = self.train.labels
        assert labels is not None  # asked for
        count = int(labels.max()) + 1
        # The names may be of the classes of the weights, and the neighbors of another data set.
        return (len(names), names) if len(names) >= count else (count, ())

    def _votes(self, neighbors: Neighbors, train: VideoScores, found: VideoScores) -> np.ndarray:
        """Shares float32 [n, L] of the nearest training videos; each rank computes a part of the videos."""
        rank, ranks = distributed.rank(), distributed.world_size()
        part = knn_scores(
            train.scores,
            train.labels,
            found.scores[rank::ranks],
            classes=self.classes,
            k=neighbors.k,
            temperature=neighbors.temperature,
        )
        scores = np.empty((len(found.rows), self.classes), np.float32)
        for number, rows in enumerate(distributed.gather_objects(part)):
            scores[number::ranks] = rows
        return scores

    def _scored(self, found: VideoScores, scores: np.ndarray, kind: str) -> ScoredList:
        paths = tuple(self.records[int(row)].path for row in found.rows)
        return ScoredList(
            scores, found.labels, found.rows, paths, found.failures, found.listed, kind, self.names
        )


def _classifier_recipe(weights: str) -> ClassifyRecipe:
    """The recipe of a classifier; other weights of ours are pointed to the nearest neighbors."""
    try:
        return read_classify_recipe(weights)
    except UserError as error:
        if recipe_texts(weights):
            raise UserError(
                f"{error}; or score the features of these weights with --knn TRAIN_LIST"
            ) from error
        raise
