"""A network over all views of the videos in a list, on any number of ranks.

Each video is opened once, on one rank, and its views are averaged in float64. Clips go through the network a
few at a time, whichever videos they are of, so memory does not grow with the number of views. Batch size and
number of ranks change a result only by rounding: some 1e-6 of the largest logit in float32, 1e-2 in bf16.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from videomaskfeat.data.batches import Failure
from videomaskfeat.data.loader import ViewLoader
from videomaskfeat.data.records import Records
from videomaskfeat.data.views import EvaluationViews
from videomaskfeat.engine import distributed
from videomaskfeat.engine.distributed import stop_if_requested, uses_bf16
from videomaskfeat.errors import RunFailed, UserError, check_name
from videomaskfeat.recipe import ClassifyRecipe, ClipRecipe

T = TypeVar("T")
AVERAGES = ("softmax", "logits")
Progress = Callable[[int, int], None]
"""(number done, number in all)"""
_CLIPS_HELD = 32  # 77 MB of 16 frames of 224x224


@dataclass(frozen=True)
class Machine:
    """On what a network runs.

    Attributes:
        device: auto (a GPU if there is one), cpu, cuda or cuda:N.
        precision: auto (bf16 on a GPU, fp32 on a CPU), fp32 or bf16.
        reader: reader of video files: auto, decord or pyav.
        workers: processes per rank that read videos; 0 reads in the rank's own.
        videos_per_batch: videos that a worker reads at a time; None: some 32 clips.
        clips_at_once: clips that go through the network together.

    Raises:
        UserError: a number is out of range.
    """

    device: str = "auto"
    precision: str = "auto"
    reader: str = "auto"
    workers: int = 0
    videos_per_batch: int | None = None
    clips_at_once: int = 8

    def __post_init__(self) -> None:
        for key, least in (("workers", 0), ("videos_per_batch", 1), ("clips_at_once", 1)):
            value = getattr(self, key)
            if value is not None and value < least:
                raise UserError(f"{key}={value}: must be at least {least}")

    @functools.cached_property
    def place(self) -> torch.device:
        """The device; raises UserError if there is no such one."""
        return distributed.choose_device(self.device)

    @functools.cached_property
    def bf16(self) -> bool:
        """Whether networks run under bf16 autocast."""
        return uses_bf16(self.precision, self.place)

    @property
    def precision_used(self) -> str:
        """bf16 or fp32."""
        return "bf16" if self.bf16 else "fp32"


@dataclass(frozen=True)
class VideoScores:
    """What a network gives for the videos that could be read, in the list's order.

    Attributes:
        scores: float32 [n, L]: probabilities or logits, as they were averaged; from `video_features` the
            features, [n, D].
        labels: int64 [n], -1 for a record without one.
        rows: int64 [n], the record of each, ascending.
        failures: records that could not be read, by row; nothing replaces them.
        listed: records of the list: n + len(failures).
    """

    scores: np.ndarray
    labels: np.ndarray
    rows: np.ndarray
    failures: tuple[Failure, ...]
    listed: int


def evaluate_model(
    model: nn.Module,
    records: Records,
    recipe: ClassifyRecipe,
    machine: Machine,
    *,
    progress: Progress | None = None,
) -> VideoScores:
    """The scores of a classifier, averaged over a video's views; all ranks call it and get the whole result.

    Args:
        model: clips float [B, C, T, H, W] -> logits [B, L], on the device. It runs in evaluation mode; each
            of its modules is left in the mode in which it came.
        records: the list.
        recipe: how videos are cut, and what is averaged.
        machine: on what the model runs.
        progress: called on rank 0 after each of its batches.

    Raises:
        UserError: a value is out of range, a reader is not installed, or no video could be read.
        RunFailed: a score is not finite.
    """
    average = recipe.average
    check_name("average", average, AVERAGES)

    def mean_of(logits: Tensor) -> Tensor:
        return (logits.softmax(dim=-1) if average == "softmax" else logits).mean(dim=1)

    network = ClipPass(distributed.unwrap(model), recipe.clip, machine)
    with evaluation_mode(model):
        return _over_list(network, mean_of, records, recipe, progress)


def video_features(
    model: nn.Module,
    records: Records,
    recipe: ClassifyRecipe,
    machine: Machine,
    *,
    progress: Progress | None = None,
) -> VideoScores:
    """The encoder's tokens averaged over clips and views and scaled to length 1, float32 [n, D].

    Args:
        model: has ``features(clips float [B, C, T, H, W]) -> [B, D]``.
        records: as in `evaluate_model`, and so are the others.
        recipe: how videos are cut.
        machine: on what the model runs.
        progress: called on rank 0 after each of its batches.

    Raises:
        UserError: the model has no features; or as `evaluate_model`.
        RunFailed: a feature is not finite.
    """
    plain = distributed.unwrap(model)
    features: Any = getattr(plain, "features", None)
    if not callable(features):
        raise UserError(f"a {type(plain).__name__} has no features to compare videos by")

    def mean_of(features: Tensor) -> Tensor:
        return nn.functional.normalize(features.mean(dim=1), dim=-1)

    with evaluation_mode(model):
        return _over_list(ClipPass(features, recipe.clip, machine), mean_of, records, recipe, progress)


def build_views(records: Records, recipe: ClassifyRecipe, *, reader: str = "auto") -> EvaluationViews:
    """The views of a list's videos at test time.

    Raises:
        UserError: views, crops or another value of the recipe that is out of range.
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


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients; afterwards every module is in the mode in which it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


class ClipPass:
    """Clips uint8 [B, T, H, W, C] -> outputs of a network, float64 [B, ...] on the CPU.

    Args:
        network: normalized clips float [B, C, T, H, W] -> [B, ...].
        clip: how clips are normalized.
        machine: on what the network runs.
    """

    def __init__(self, network: Callable[[Tensor], Tensor], clip: ClipRecipe, machine: Machine) -> None:
        self.machine = machine
        self._network, self._clip = network, clip

    def __call__(self, clips: Tensor) -> Tensor:
        """Clips uint8 [B, T, H, W, C], B >= 1 -> float64 [B, ...]."""
        outputs, device = [], self.machine.place
        for part in clips.split(self.machine.clips_at_once):
            pixels = self._clip.normalize(part.to(device, non_blocking=True))
            with torch.autocast(device.type, torch.bfloat16, enabled=self.machine.bf16):
                outputs.append(self._network(pixels).float())
        return torch.cat(outputs).cpu().double()


def run_on_every_rank(work: Callable[[], T]) -> list[T]:
    """Call ``work`` on every rank and return the (picklable) results of all, in order of rank.

    A UserError or RunFailed of one rank is raised on all of them, so that no rank waits for it.
    """
    result: list[T] = []
    mistake: UserError | RunFailed | None = None
    try:
        result.append(work())
    except (UserError, RunFailed) as error:
        mistake = error
    mistakes = [error for error in distributed.gather_objects(mistake) if error is not None]
    if mistakes:
        raise mistakes[0]
    return [own[0] for own in distributed.gather_objects(result)]


@dataclass(frozen=True)
class _Part:
    """The rows of one rank: scores float32 [n, K], labels and rows int64 [n] of each batch."""

    batches: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = dataclasses.field(default_factory=list)
    failures: list[Failure] = dataclasses.field(default_factory=list)


def _over_list(
    network: ClipPass,
    mean_of: Callable[[Tensor], Tensor],
    records: Records,
    recipe: ClassifyRecipe,
    progress: Progress | None,
) -> VideoScores:
    """The rows of all ranks; ``mean_of`` averages float64 [n, V*S, K] over the views."""
    machine = network.machine
    videos_per_batch = machine.videos_per_batch
    if videos_per_batch is None:
        videos_per_batch = max(_CLIPS_HELD // max(recipe.views * recipe.crops, 1), 1)
    loader = ViewLoader(
        build_views(records, recipe, reader=machine.reader),
        per_batch=videos_per_batch,
        workers=machine.workers,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        pin_memory=machine.place.type == "cuda",
    )

    def work() -> _Part:
        part = _Part()
        with closing(iter(loader)) as batches:
            for number, batch in enumerate(batches, start=1):
                stop_if_requested()
                part.failures.extend(batch.failures)
                if len(batch.index):
                    outputs = network(batch.clips)  # [n*V*S, K]
                    scores = mean_of(outputs.view(len(batch.index), -1, outputs.shape[1]))  # [n, K]
                    _check_finite(scores, batch.index)
                    part.batches.append((scores.float().numpy(), batch.labels.numpy(), batch.index.numpy()))
                if progress is not None and distributed.is_main():
                    done = number * videos_per_batch * distributed.world_size()
                    progress(min(done, len(records)), len(records))
        return part

    return _join(run_on_every_rank(work), records)


def _check_finite(scores: Tensor, index: Tensor) -> None:
    finite = scores.isfinite().all(dim=1)
    if not finite.all():
        raise RunFailed(
            f"the model's output is not finite for the video in row {index[~finite].tolist()[0] + 1} of the "
            "list; its weights are damaged, or its training went wrong"
        )


def _join(parts: list[_Part], records: Records) -> VideoScores:
    """All rows in the list's order."""
    batches = [batch for part in parts for batch in part.batches]
    failures = sorted((failure for part in parts for failure in part.failures), key=lambda one: one.index)
    if not batches:
        raise UserError(
            f"{records.source}: none of its {len(records)} videos could be read; the first: "
            f"{failures[0].path} ({failures[0].cause}); check the folder that the paths start from (prefix)"
        )
    scores, labels, rows = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    order = np.argsort(rows)
    seen = sorted([*rows.tolist(), *(failure.index for failure in failures)])
    assert seen == list(range(len(records))), "every record is scored or has failed, exactly once"
    return VideoScores(scores[order], labels[order], rows[order], tuple(failures), len(records))
