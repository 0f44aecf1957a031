"""A network over all views of a list's videos: one row of numbers a video, on any number of ranks.

Each video is opened once, on one rank, and its views are averaged in float64. The clips go through the
network a few at a time, whichever videos they are of, so memory does not grow with the views. What else is in
such a part, and hence batch size and number of ranks, changes a row only by the rounding of the network's own
sums: some 1e-6 of the largest logit in float32, 1e-2 in bf16.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from videomaskfeat.data.batches import Failure
from videomaskfeat.data.formats import class_names_beside, load_records
from videomaskfeat.data.records import Records
from videomaskfeat.data.views import EvaluationViews, ViewLoader, ViewsBatch
from videomaskfeat.engine import distributed
from videomaskfeat.engine.distributed import stop_if_requested
from videomaskfeat.errors import RunFailed, UserError, check_name
from videomaskfeat.inference.scores import read_class_names
from videomaskfeat.io import exists
from videomaskfeat.recipe import ClassifyRecipe, Levels, normalise

_CLIPS_HELD = 32  # 77 MB of 16 frames of 224x224
AVERAGES = ("softmax", "logits")
Progress = Callable[[int, int], None]
"""(videos done, videos in all)"""


@dataclass(frozen=True)
class VideoScores:
    """What a network says of the videos that could be read, in the list's order.

    Attributes:
        scores: float32 [n, L]: probabilities or logits, as they were averaged; of `video_features` the
            features, [n, D].
        labels: int64 [n], -1 for a record without one.
        rows: int64 [n], the record of each, ascending.
        failures: records that could not be read, by row; nothing stands in for them.
        listed: records of the list: n + len(failures).
    """

    scores: np.ndarray
    labels: np.ndarray
    rows: np.ndarray
    failures: tuple[Failure, ...]
    listed: int


def videos_a_batch(*, views: int, crops: int) -> int:
    """Videos that a worker hands over together where nobody says how many: some 32 clips, one at least."""
    return max(_CLIPS_HELD // max(views * crops, 1), 1)


def evaluate_model(
    model: nn.Module,
    views: EvaluationViews,
    *,
    device: torch.device,
    bf16: bool = False,
    mean: Levels,
    std: Levels,
    average: str = "softmax",
    videos_per_batch: int = 1,
    workers: int = 0,
    clips_at_once: int = 8,
    progress: Progress | None = None,
) -> VideoScores:
    """The scores of a classifier; all ranks call it, and all get the whole result.

    Args:
        model: clips float [B, C, T, H, W] -> logits [B, L], on the device. It runs in evaluation mode and is
            left in the mode, part by part, in which it came.
        views: the list and its protocol.
        device: where the model is.
        bf16: run it under bf16 autocast.
        mean: subtracted from pixels in 0..1.
        std: divides them after that.
        average: over a video's views: ``softmax`` (of probabilities, as published) or ``logits``.
        videos_per_batch: videos that a worker hands over together.
        workers: processes of this rank that read videos; 0 reads here.
        clips_at_once: clips that go through the network together.
        progress: told on rank 0, after each of its batches.

    Raises:
        UserError: a number or name that cannot be, a reader that is not installed, or no readable video.
        RunFailed: a score is not finite.
    """
    check_name("average", average, AVERAGES)

    def mean_of(logits: Tensor) -> Tensor:
        return (logits.softmax(dim=-1) if average == "softmax" else logits).mean(dim=1)

    pass_through = ClipPass(
        distributed.unwrap(model), device, bf16=bf16, mean=mean, std=std, at_once=clips_at_once
    )
    with evaluating(model):
        return _over_list(pass_through, mean_of, views, videos_per_batch, workers, progress)


def video_features(
    model: nn.Module,
    views: EvaluationViews,
    *,
    device: torch.device,
    bf16: bool = False,
    mean: Levels,
    std: Levels,
    videos_per_batch: int = 1,
    workers: int = 0,
    clips_at_once: int = 8,
    progress: Progress | None = None,
) -> VideoScores:
    """The encoder's tokens averaged over a clip and over a video's views, of length 1, float32 [n, D].

    Args:
        model: has ``features(clips float [B, C, T, H, W]) -> [B, D]``.
        views: the list and its protocol.
        device: as in `evaluate_model`, and so are the others.
        bf16: run it under bf16 autocast.
        mean: subtracted from pixels in 0..1.
        std: divides them after that.
        videos_per_batch: videos that a worker hands over together.
        workers: processes of this rank that read videos; 0 reads here.
        clips_at_once: clips that go through the network together.
        progress: told on rank 0, after each of its batches.

    Raises:
        UserError: the model has no features; or as `evaluate_model`.
        RunFailed: a feature is not finite.
    """
    plain = distributed.unwrap(model)
    features: Any = getattr(plain, "features", None)
    if not callable(features):
        raise UserError(f"a {type(plain).__name__} has no features to compare videos by")
    pass_through = ClipPass(features, device, bf16=bf16, mean=mean, std=std, at_once=clips_at_once)
    with evaluating(model):
        return _over_list(pass_through, _mean_direction, views, videos_per_batch, workers, progress)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients; every part of the model goes back to the mode in which it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


class ClipPass:
    """Clips uint8 [B, T, H, W, C] -> what a network makes of them, float64 [B, ...] on the CPU.

    Args:
        network: clips float [B, C, T, H, W], normalised -> [B, ...].
        device: where the network is.
        bf16: run it under bf16 autocast.
        mean: subtracted from pixels in 0..1.
        std: divides them after that.
        at_once: clips that go through the network together.

    Raises:
        UserError: ``at_once`` is below 1.
    """

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        device: torch.device,
        *,
        bf16: bool,
        mean: Levels,
        std: Levels,
        at_once: int,
    ) -> None:
        if at_once < 1:
            raise UserError(f"clips_at_once={at_once}: must be at least 1")
        self.device = device
        self._network, self._at_once = network, at_once
        self._bf16, self._mean, self._std = bf16, mean, std

    def __call__(self, clips: Tensor) -> Tensor:
        """Clips uint8 [B, T, H, W, C], B >= 1 -> float64 [B, ...]."""
        outputs = []
        for part in clips.split(self._at_once):
            pixels = normalise(part.to(self.device, non_blocking=True), mean=self._mean, std=self._std)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
                outputs.append(self._network(pixels).float())
        return torch.cat(outputs).cpu().double()


def _over_list(
    network: ClipPass,
    mean_of: Callable[[Tensor], Tensor],
    views: EvaluationViews,
    videos_per_batch: int,
    workers: int,
    progress: Progress | None,
) -> VideoScores:
    """The rows of this rank's videos, then those of all ranks."""
    loader = ViewLoader(
        views,
        videos_per_batch=videos_per_batch,
        workers=workers,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        pin_memory=network.device.type == "cuda",
    )
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    failures: list[Failure] = []
    mistake: UserError | RunFailed | None = None
    try:
        with closing(iter(loader)) as batches:
            for number, batch in enumerate(batches, start=1):
                stop_if_requested()
                failures += batch.failures
                if len(batch.index):
                    parts.append(_of_batch(network, mean_of, batch))
                if progress is not None and distributed.is_main():
                    done = number * videos_per_batch * distributed.world_size()
                    progress(min(done, len(views)), len(views))
    except (UserError, RunFailed) as error:  # told to every rank, so that none waits for this one
        mistake = error
    mistakes = [error for error in distributed.gather_objects(mistake) if error is not None]
    if mistakes:
        raise mistakes[0]
    gathered = distributed.gather_objects((parts, failures))
    return _join(
        [part for parts, _ in gathered for part in parts],
        [failure for _, failures in gathered for failure in failures],
        views,
    )


def _of_batch(
    network: ClipPass, mean_of: Callable[[Tensor], Tensor], batch: ViewsBatch
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores float32 [n, K], labels and rows int64 [n] of a batch."""
    outputs = network(batch.clips)  # [n*V*S, K]
    scores = mean_of(outputs.view(len(batch.index), -1, outputs.shape[1]))  # [n, K]
    if not scores.isfinite().all():
        rows = batch.index[~scores.isfinite().all(dim=1)].tolist()
        raise RunFailed(
            f"the model's output is not finite for the video in row {rows[0] + 1} of the list; its weights "
            "are damaged, or its training went wrong"
        )
    return scores.float().numpy(), batch.labels.numpy(), batch.index.numpy()


def _join(
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]], failures: list[Failure], views: EvaluationViews
) -> VideoScores:
    """All parts in the list's order."""
    failures = sorted(failures, key=lambda failure: failure.index)
    if not parts:
        raise UserError(
            f"{views.records.source}: none of its {len(views)} videos could be read; the first: "
            f"{failures[0].path} ({failures[0].cause}); check the folder that the paths start from (prefix)"
        )
    scores, labels, rows = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    order = np.argsort(rows)
    seen = sorted([*rows.tolist(), *(failure.index for failure in failures)])
    assert seen == list(range(len(views))), "every record is scored or has failed, exactly once"
    return VideoScores(scores[order], labels[order], rows[order], tuple(failures), len(views))


def _mean_direction(features: Tensor) -> Tensor:
    """Float64 [n, V*S, D] -> [n, D], the mean over the views at length 1."""
    return nn.functional.normalize(features.mean(dim=1), dim=-1)


# The parts of an evaluation: what the user chose, and the list made to fit the network's classes.


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
    """How a list is read; see :func:`~videomaskfeat.data.formats.load_records`.

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


def check_words(records: Records, *, classes: int, source: str) -> None:
    """Classes in words have the numbers of the training, of a list whose classes nobody named.

    The words of Kinetics' own CSV, and class folders, are then numbered in alphabetical order. That is the
    order of the training only where all of its classes are in this list, too.

    Raises:
        UserError: the list has other classes than the network.
    """
    labels, path = records.labels, records.source
    if labels is None:
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
