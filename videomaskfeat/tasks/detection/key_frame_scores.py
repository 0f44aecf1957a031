"""A detector over the boxes of all key frames: one row of scores a box, on any number of ranks.

Each key frame is read once, whatever the number of its boxes and views, and its views are averaged in
float64. What else is in a batch, and hence the number of ranks, changes a score only by the rounding of the
network's own sums: some 1e-6 in float32, 1e-2 in bf16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from videomaskfeat.data.batches import BoxedClips, Failure, KeyFrameBatch
from videomaskfeat.data.records_ava import KeyFrames
from videomaskfeat.engine import distributed
from videomaskfeat.engine.signals import stop_if_requested
from videomaskfeat.errors import RunFailed, UserError
from videomaskfeat.metrics.action_scores import action_scores
from videomaskfeat.metrics.ava_map import AvaResult, average_precision
from videomaskfeat.metrics.ava_matching import Detections, GroundTruth
from videomaskfeat.tasks.classification.multiview import evaluating
from videomaskfeat.tasks.recipe import Levels, normalise

Progress = Callable[[int, int], None]
"""(key frames done, key frames in all)"""


@dataclass(frozen=True)
class BoxScores:
    """What a detector says of the boxes of key frames.

    Attributes:
        scores: float32 [R, L], 0 to 1; of boxes that were not scored all zero.
        scored: bool [R], whether a box was: its key frame was read.
        failures: key frames that could not be read, by row; nothing stands in for them.
        listed: key frames in all.
    """

    scores: np.ndarray
    scored: np.ndarray
    failures: tuple[Failure, ...]
    listed: int

    @property
    def read(self) -> int:
        """Key frames that were read."""
        return self.listed - len(self.failures)


class BoxPass:
    """The views of key frames -> scores float64 [R, L] on the CPU, the mean over the views.

    Args:
        model: (clips float [B, C, T, H, W], boxes [R, 5]) -> logits [R, L].
        device: where the model is.
        poses: bool [L], actions that exclude each other; None: none do.
        bf16: run the model under bf16 autocast.
        mean: subtracted from pixels in 0..1.
        std: divides them after that.
        at_once: clips that go through the network together.

    Raises:
        UserError: ``at_once`` is below 1.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        *,
        poses: Tensor | None,
        bf16: bool,
        mean: Levels,
        std: Levels,
        at_once: int,
    ) -> None:
        if at_once < 1:
            raise UserError(f"clips_at_once={at_once}: must be at least 1")
        self.device = device
        self._model, self._poses, self._at_once = model, poses, at_once
        self._bf16, self._mean, self._std = bf16, mean, std

    def __call__(self, views: Sequence[BoxedClips]) -> Tensor:
        """One view or more of the same boxes -> float64 [R, L]."""
        return torch.stack([self._of_view(view) for view in views]).mean(dim=0)

    def _of_view(self, view: BoxedClips) -> Tensor:
        places = view.boxes[:, 0]
        scores: Tensor | None = None
        for first in range(0, len(view.clips), self._at_once):
            rows = ((places >= first) & (places < first + self._at_once)).nonzero()[:, 0]
            part = self._of_part(view.clips[first : first + self._at_once], view.boxes[rows], first)
            if scores is None:
                scores = part.new_zeros(len(places), part.shape[1])
            scores[rows.cpu()] = part
        assert scores is not None  # a view has a clip
        return scores

    def _of_part(self, clips: Tensor, boxes: Tensor, first: int) -> Tensor:
        """Clips from number ``first`` of a view on, and their boxes."""
        pixels = normalise(clips.to(self.device, non_blocking=True), mean=self._mean, std=self._std)
        boxes = boxes.to(self.device, copy=True)
        boxes[:, 0] -= first
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            logits = self._model(pixels, boxes)
        return action_scores(logits.double(), self._poses).cpu()


def score_key_frames(
    network: BoxPass,
    model: nn.Module,
    batches: Iterable[KeyFrameBatch],
    key_frames: KeyFrames,
    *,
    progress: Progress | None = None,
) -> BoxScores:
    """Score all boxes; all ranks call it, each with its own batches, and all get the whole result.

    Args:
        network: what makes scores of views.
        model: the one in it, which is put into evaluation mode meanwhile.
        batches: this rank's share of the key frames.
        key_frames: all of them.
        progress: told on rank 0, after each of its batches.

    Raises:
        UserError: no key frame could be read.
        RunFailed: a score is not finite.
    """
    parts: list[_Part] = []
    mistake: UserError | RunFailed | None = None
    done = 0
    try:
        with evaluating(model):
            for batch in batches:
                stop_if_requested()
                parts.append(_of_batch(network, batch))
                done += len(batch.index) + len(batch.failures)
                if progress is not None and distributed.is_main():
                    progress(min(done * distributed.world_size(), len(key_frames)), len(key_frames))
    except (UserError, RunFailed) as error:  # told to every rank, so that none waits for this one
        mistake = error
    mistakes = [error for error in distributed.gather_objects(mistake) if error is not None]
    if mistakes:
        raise mistakes[0]
    gathered = distributed.gather_objects(parts)
    return join_parts([part for parts in gathered for part in parts], key_frames)


@dataclass(frozen=True)
class _Part:
    """What one batch gave: key frames int64 [B], rows of boxes int64 [R], scores float32 [R, L]."""

    index: np.ndarray
    rows: np.ndarray
    scores: np.ndarray
    failures: tuple[Failure, ...]


def _of_batch(network: BoxPass, batch: KeyFrameBatch) -> _Part:
    rows, index = batch.rows.numpy(), batch.index.numpy()
    if not len(index):
        return _Part(index, rows, np.zeros((0, 0), np.float32), batch.failures)
    scores = network(batch.views)
    if not scores.isfinite().all():
        wrong = rows[~scores.isfinite().all(dim=1).numpy()]
        raise RunFailed(
            f"the model's output is not finite for box {wrong[0]} of the key frames; its weights are "
            "damaged, or its training went wrong"
        )
    return _Part(index, rows, scores.float().numpy(), batch.failures)


def join_parts(parts: Sequence[_Part], key_frames: KeyFrames) -> BoxScores:
    """All parts in the order of the key frames, each of which is scored or has failed, exactly once.

    Raises:
        UserError: none of them could be read.
    """
    failures = sorted(
        (failure for part in parts for failure in part.failures), key=lambda failure: failure.index
    )
    seen = sorted([*(i for part in parts for i in part.index.tolist()), *(f.index for f in failures)])
    assert seen == list(range(len(key_frames))), "every key frame is scored or has failed, exactly once"
    scores = np.zeros((len(key_frames.boxes), key_frames.classes), np.float32)
    times = np.zeros(len(scores), np.int64)
    for part in parts:
        if len(part.rows):
            scores[part.rows] = part.scores
            np.add.at(times, part.rows, 1)
    assert (times <= 1).all(), "no box is scored twice"
    if len(key_frames) and len(failures) == len(key_frames):
        raise UserError(
            f"{key_frames.source}: none of the {len(key_frames)} key frames could be read; the first: "
            f"{failures[0].path} ({failures[0].cause}); check the folder of the videos"
        )
    return BoxScores(scores, times > 0, tuple(failures), len(key_frames))


def detections_of(tested: KeyFrames, found: BoxScores, actions: Iterable[int]) -> Detections:
    """A row for each box that was scored and each of the given actions; ``frames`` are rows of ``tested``."""
    ids = list(actions)
    frames = np.repeat(np.arange(len(tested)), np.diff(tested.starts))
    columns = [number - 1 for number in ids]
    return Detections.of_box_scores(
        frames[found.scored], tested.boxes[found.scored], found.scores[found.scored][:, columns], ids
    )


def score_in_memory(
    truth: KeyFrames, tested: KeyFrames, found: BoxScores, actions: Iterable[int]
) -> AvaResult:
    """The frame mAP without files, to follow a training.

    Boxes are compared in the float32 of `KeyFrames`, so overlaps within 1e-7 of the threshold may fall
    otherwise than from the files.

    Raises:
        UserError: no ground truth of these actions.
    """
    ids = list(actions)
    detections = detections_of(tested, found, ids)
    numbers = {moment: number for number, moment in enumerate(tested.moments())}
    frames = np.array([numbers.setdefault(moment, len(numbers)) for moment in truth.moments()], np.int64)
    boxes, columns = np.nonzero(truth.labels)
    own = np.repeat(frames, np.diff(truth.starts))
    groundtruth = GroundTruth(own[boxes], truth.boxes[boxes], columns + 1)
    return average_precision(groundtruth, detections, actions=ids)
