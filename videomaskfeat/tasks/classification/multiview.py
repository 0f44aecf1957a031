"""A network over all views of a list's videos: one row of numbers a video, on any number of ranks.

Each video is opened once, on one rank, and its views are averaged in float64. The clips go through the
network a few at a time, whichever videos they are of, so memory does not grow with the views. What else is in
such a part, and hence batch size and number of ranks, changes a row only by the rounding of the network's own
sums: some 1e-6 of the largest logit in float32, 1e-2 in bf16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from videomaskfeat.data.batches import Failure
from videomaskfeat.data.views import EvaluationViews, ViewLoader, ViewsBatch
from videomaskfeat.engine import distributed
from videomaskfeat.engine.signals import stop_if_requested
from videomaskfeat.errors import RunFailed, UserError, nearest
from videomaskfeat.tasks.recipe import Levels, normalise

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
    if average not in AVERAGES:
        raise UserError(
            f"average={average!r} is not one of {', '.join(AVERAGES)}{nearest(average, AVERAGES)}"
        )

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
