"""``evaluate``: score a classifier, or frozen features, on a list by the protocol of its data set."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from videomaskfeat.data.cluster import call_on_cluster
from videomaskfeat.data.records import Records
from videomaskfeat.engine import distributed
from videomaskfeat.errors import UserError
from videomaskfeat.inference.classifiers import load_network
from videomaskfeat.inference.lists import (
    DETECTED_FORMAT,
    ListChoice,
    check_records,
    check_single_label,
    resolve_class_names,
)
from videomaskfeat.inference.multiview import (
    ListScorer,
    Machine,
    Progress,
    ShareScores,
    VideoScores,
    build_views,
    classifier_scorer,
    evaluation_mode,
    feature_scorer,
    join_shares,
    refuse_ranks_on_ray,
)
from videomaskfeat.inference.results import describe_failures, describe_views, describe_weights, hash_records
from videomaskfeat.inference.scores import Evaluated, ScoredList, make_output_folders, write_evaluation
from videomaskfeat.inference.threads import choose_inference_threads
from videomaskfeat.io import file_sha256, is_file, is_folder
from videomaskfeat.metrics.features import check_knn, knn_scores
from videomaskfeat.stored_recipe import (
    ClassifyRecipe,
    read_classify_recipe,
    read_testing_recipe,
    recipe_texts,
)


@dataclass(frozen=True)
class ViewOptions:
    """How videos are cut; None: as in the recipe of the weights.

    Attributes:
        views: temporal views per video, evenly spaced.
        crops: crops per view: 1 (center) or 3.
        sampling: clip (frames at a stride) or segments (one frame of each of equal segments).
        short_side: pixels to which the short side is resized.
        average: what is averaged over the views: softmax or logits.
    """

    views: int | None = None
    crops: int | None = None
    sampling: str | None = None
    short_side: int | None = None
    average: str | None = None

    def apply(self, recipe: ClassifyRecipe) -> ClassifyRecipe:
        """The recipe with these options; segments have one view by default."""
        sampling = recipe.sampling if self.sampling is None else self.sampling
        views = 1 if self.views is None and sampling == "segments" else self.views
        recipe = recipe.with_views(views=views, crops=self.crops)
        short_side = recipe.short_side if self.short_side is None else self.short_side
        average = recipe.average if self.average is None else self.average
        if recipe.is_multi_label and average != recipe.average:
            raise UserError(
                f"average={average}: the weights are of a multi-label classifier, whose probabilities are "
                "averaged; leave the option out"
            )
        return dataclasses.replace(recipe, sampling=sampling, short_side=short_side, average=average)


@dataclass(frozen=True)
class Neighbors:
    """Classification by the nearest training videos instead of a head.

    Attributes:
        list_path: labeled list of the training videos; read with the options of the other list.
        k: number of neighbors that vote.
        temperature: temperature of the weights of their votes.
    """

    list_path: str
    k: int = 20
    temperature: float = 0.07


_BATCHES_PER_TASK = 4  # on a Ray cluster
AS_TESTED, THIS_MACHINE = ViewOptions(), Machine()


def evaluate(
    weights: str | os.PathLike[str],
    list_path: str,
    out: str | os.PathLike[str],
    *,
    views: ViewOptions = AS_TESTED,
    lists: ListChoice = DETECTED_FORMAT,
    neighbors: Neighbors | None = None,
    machine: Machine = THIS_MACHINE,
    ray: str = "",
    submission: str = "",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Evaluated:
    """Score the videos of a list by all their views, and write the result into a folder.

    Args:
        weights: safetensors file of a fine-tuning run or of ``import-slowfast``; with ``neighbors`` of any
            run.
        list_path: list or folder of videos, with or without labels.
        out: folder to write, see :func:`~videomaskfeat.inference.scores.write_evaluation`.
        views: how videos are cut.
        lists: how lists are read.
        neighbors: classify by the nearest videos of a training list; None: by the head of the network.
        machine: device and loading options.
        ray: address of a Ray cluster whose nodes score the videos; empty: this process, or the ranks.
        submission: file for a Something-Something-v2 test submission; empty: none.
        overwrite: replace the files of an earlier evaluation.
        progress: called with the number of scored videos, and the total.

    Raises:
        UserError: the weights, a list or an option is wrong, the folder has an evaluation, or no video could
            be read.
        RunFailed: the output of the network is not finite.
    """
    with distributed.process_group(machine.torch_device):
        refuse_ranks_on_ray(ray)
        evaluation = _Evaluation(os.fspath(weights), list_path, views, lists, neighbors, machine)
        distributed.run_on_main(lambda: make_output_folders(out, submission, overwrite=overwrite))
        model = evaluation.model
        network = None if neighbors is None else model.features
        choose_inference_threads(model, evaluation.recipe.clip, machine, network=network)
        start = time.monotonic()
        scored, train = evaluation.score(progress, ray)
        seconds = round(time.monotonic() - start, 1)
        result, text = distributed.run_on_main(
            lambda: write_evaluation(
                Path(out), scored, {**evaluation.describe(train), "seconds": seconds}, submission=submission
            )
        )
        failures = scored.failures + (() if train is None else train.failures)
        return Evaluated(result, scored, failures, text if distributed.is_main() else "")


class _Evaluation:
    """Model, recipe and lists of an evaluation, checked against each other before a video is read."""

    def __init__(
        self,
        weights: str,
        list_path: str,
        views: ViewOptions,
        lists: ListChoice,
        neighbors: Neighbors | None,
        machine: Machine,
    ) -> None:
        # A node of a Ray cluster may have another device, but must use the same precision.
        of_nodes = dataclasses.replace(machine, precision=machine.precision_used)
        self.arguments = (weights, list_path, views, lists, neighbors, of_nodes)
        self.weights, self.list_path = weights, list_path
        self.neighbors, self.machine = neighbors, machine
        if neighbors is not None:
            check_knn(k=neighbors.k, temperature=neighbors.temperature)
        recipe = _read_classifier_recipe(weights) if neighbors is None else read_testing_recipe(weights)
        self.recipe = views.apply(recipe)
        model: Any = load_network(weights, machine)
        self.model = model
        classes = int(model.classes) if neighbors is None else None
        names = resolve_class_names(recipe.class_names, list_path, lists, classes=classes, source=weights)
        stills = self.recipe.clip.frames == 1
        self.train: Records | None = None
        if neighbors is not None:
            # Class folders define their own labels, and may be of another data set than the weights.
            known = () if is_folder(neighbors.list_path) else names
            self.train = lists.load(neighbors.list_path, labels="yes", known_classes=known, stills=stills)
            check_single_label(self.train)
            names = self.train.class_names or names
        self.records = lists.load(list_path, known_classes=names, stills=stills)
        if self.train is not None:  # the training list defines the classes
            assert self.train.labels is not None  # labels="yes"
            classes = int(self.train.labels.max()) + 1
            # The names may be of the classes of the weights, and the training list of another data set.
            classes, names = (len(names), names) if len(names) >= classes else (classes, ())
        assert classes is not None
        self.classes, self.names = classes, names
        source = weights if neighbors is None else neighbors.list_path
        for records in (self.records, self.train):
            if records is not None:
                build_views(records, self.recipe)  # raises if the recipe is wrong
                _check_kind(records, self.recipe, weights, self.neighbors)
                check_records(records, classes=classes, source=source, named=bool(names))

    def score(self, progress: Progress | None, ray: str) -> tuple[ScoredList, VideoScores | None]:
        """The scores of the list, and with neighbors the features of the training list."""
        if self.neighbors is None:
            tested = self._score_list("list", progress, ray)
            return self._build_scored_list(tested, tested.scores, self.recipe.average), None
        train, tested = (self._score_list(name, progress, ray) for name in ("training list", "list"))
        return self._build_scored_list(tested, self._vote(self.neighbors, train, tested), "knn"), train

    def scorer(self, name: str) -> ListScorer:
        """The scorer of the list or of the training list; the model must be in evaluation mode."""
        records = self.records if name == "list" else self.train
        assert records is not None
        build = classifier_scorer if self.neighbors is None else feature_scorer
        return build(self.model, records, self.recipe, self.machine)

    def _score_list(self, name: str, progress: Progress | None, ray: str) -> VideoScores:
        scorer = self.scorer(name)
        with evaluation_mode(self.model):
            if not ray:
                return scorer.score_on_all_ranks(progress)
        # The shares do not depend on the cluster, so the result does not either.
        count = math.ceil(len(scorer.records) / (_BATCHES_PER_TASK * scorer.videos_per_batch))
        calls = [(self.arguments, name, number, count) for number in range(count)]
        shares: list[ShareScores] = []
        with closing(call_on_cluster(_score_share, calls, ray=ray, device=self.machine.device)) as results:
            for result in results:
                shares.append(result)
                if progress is not None:
                    progress(len(scorer.records) * len(shares) // count, len(scorer.records))
        return join_shares(shares, scorer.records)

    def describe(self, train: VideoScores | None) -> dict[str, Any]:
        """The inputs of the result; only rank 0 calls it."""
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

    def _vote(self, neighbors: Neighbors, train: VideoScores, tested: VideoScores) -> np.ndarray:
        """Shares float32 [n, L] of the nearest training videos; the ranks divide the videos."""
        rank, ranks = distributed.rank(), distributed.world_size()
        own = knn_scores(
            train.scores,
            train.labels,
            tested.scores[rank::ranks],
            classes=self.classes,
            k=neighbors.k,
            temperature=neighbors.temperature,
        )
        scores = np.empty((len(tested.rows), self.classes), np.float32)
        for number, rows in enumerate(distributed.gather_objects(own)):
            scores[number::ranks] = rows
        return scores

    def _build_scored_list(self, tested: VideoScores, scores: np.ndarray, kind: str) -> ScoredList:
        paths = tuple(self.records[int(row)].path for row in tested.rows)
        targets = None
        if self.records.is_multi_label:
            targets = self.records.multi_hot(tested.rows, self.classes)
        return ScoredList(
            scores,
            tested.labels,
            tested.rows,
            paths,
            tested.failures,
            tested.listed,
            kind,
            self.names,
            targets=targets,
        )


def _score_share(arguments: tuple[Any, ...], name: str, number: int, shares: int) -> ShareScores:
    """Score a share of a list. Runs on a node of a Ray cluster, which keeps the model for its next share."""
    evaluation = _built_evaluation(*arguments)
    with evaluation_mode(evaluation.model):
        return evaluation.scorer(name).score_share(number, shares)


@functools.lru_cache(maxsize=1)
def _built_evaluation(*arguments: Any) -> _Evaluation:
    return _Evaluation(*arguments)


def _check_kind(records: Records, recipe: ClassifyRecipe, weights: str, neighbors: Neighbors | None) -> None:
    """Raise UserError if a list has one label per video and the classifier any number, or vice versa."""
    if neighbors is not None:
        check_single_label(records)
    elif records.is_multi_label != recipe.is_multi_label and (
        records.is_multi_label or records.labels is not None
    ):
        kinds = ("one label per video", "any number of labels per video")
        raise UserError(
            f"{records.source} has {kinds[records.is_multi_label]}, but {weights} is a classifier for "
            f"{kinds[recipe.is_multi_label]}; give the list of its data set, or set labels=no to only score"
        )


def _read_classifier_recipe(weights: str) -> ClassifyRecipe:
    try:
        return read_classify_recipe(weights)
    except UserError as error:
        if recipe_texts(weights):
            raise UserError(
                f"{error}; or score the features of these weights with --knn TRAIN_LIST"
            ) from error
        raise
