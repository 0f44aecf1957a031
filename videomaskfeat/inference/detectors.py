"""Action detectors from weights files, and their scores for the boxes of key frames."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from videomaskfeat.data.ava import BoxedClips, KeyFrameBatch, KeyFrameViews
from videomaskfeat.data.ava_lists import KeyFrames
from videomaskfeat.data.ava_sources import VideoSource
from videomaskfeat.data.batches import Failure
from videomaskfeat.data.loader import ViewLoader
from videomaskfeat.engine import distributed
from videomaskfeat.engine.distributed import stop_if_requested
from videomaskfeat.errors import RunFailed, UserError
from videomaskfeat.inference.classifiers import load_network
from videomaskfeat.inference.multiview import (
    Machine,
    Progress,
    evaluation_mode,
    run_on_every_rank,
)
from videomaskfeat.inference.threads import choose_inference_threads
from videomaskfeat.metrics.accuracy import action_scores
from videomaskfeat.metrics.ava_map import AvaResult, Detections, GroundTruth, average_precision
from videomaskfeat.models.detector import Detector
from videomaskfeat.stored_recipe import DetectRecipe, read_detect_recipe


class VideoDetector:
    """An action detector; built by :func:`load_detector`.

    Attributes:
        model: (clips float [B, C, T, H, W], boxes [R, 5]) -> logits [R, L], on the device of the machine.
        recipe: how key frames are cut.
        machine: device, precision and batch size.
    """

    def __init__(self, model: nn.Module, recipe: DetectRecipe, machine: Machine | None = None) -> None:
        self.model = model
        self.recipe = recipe
        self.machine = machine or Machine("cpu")

    @torch.no_grad()
    def scores(self, clips: Tensor, boxes: Tensor) -> Tensor:
        """The score of each action for each box.

        Args:
            clips: uint8 [B, T, H, W, C]; H and W are multiples of :attr:`multiple`.
            boxes: float [R, 5]: index in the batch, then x1, y1, x2, y2 in pixels of the clip.

        Returns:
            float32 [R, L] on the CPU, in 0..1; column i belongs to the action with id i + 1.
        """
        return action_scores(self._logits(clips, boxes).float(), self.recipe.pose_mask).cpu()

    def mean_scores(self, views: Sequence[BoxedClips]) -> Tensor:
        """The scores float64 [R, L] on the CPU, averaged over views of the same boxes."""
        return torch.stack([self._score_view(view) for view in views]).mean(dim=0)

    @property
    def multiple(self) -> int:
        """Height and width of whole frames are multiples of this number of pixels."""
        return max(self.model.patch_embed.stride[1:])  # type: ignore[index]

    def choose_threads(self) -> None:
        """Set torch's number of CPU threads to the fastest one for this detector."""
        _, height, width = self.recipe.clip.size
        whole = torch.tensor([[0.0, 0.0, 0.0, width, height]])
        choose_inference_threads(
            self.model, self.recipe.clip, self.machine, network=lambda clips: self.model(clips, whole)
        )

    def _score_view(self, view: BoxedClips) -> Tensor:
        places, batch_size = view.boxes[:, 0], self.machine.clips_at_once
        scores = torch.zeros(len(places), 0, dtype=torch.float64)
        for first in range(0, len(view.clips), batch_size):
            rows = ((places >= first) & (places < first + batch_size)).nonzero()[:, 0]
            boxes = view.boxes[rows]  # a copy
            boxes[:, 0] -= first
            logits = self._logits(view.clips[first : first + batch_size], boxes)
            batch = action_scores(logits.double(), self.recipe.pose_mask).cpu()
            if first == 0:
                scores = batch.new_zeros(len(places), batch.shape[1])
            scores[rows.cpu()] = batch
        return scores

    def _logits(self, clips: Tensor, boxes: Tensor) -> Tensor:
        device = self.machine.torch_device
        pixels = self.recipe.clip.normalize(clips.to(device, non_blocking=True))
        with torch.autocast(device.type, torch.bfloat16, enabled=self.machine.bf16):
            logits: Tensor = self.model(pixels, boxes.to(device))
        return logits


def load_detector(
    weights: str | os.PathLike[str],
    *,
    device: str = "auto",
    precision: str = "auto",
    workers: int = 0,
    clips_at_once: int = 8,
) -> VideoDetector:
    """Load an action detector with its recipe.

    Args:
        weights: safetensors file of a ``detect-train`` run.
        device: auto (a GPU if there is one), cpu, cuda or cuda:N.
        precision: auto (bf16 on a GPU, fp32 on a CPU), fp32 or bf16.
        workers: loader processes per rank.
        clips_at_once: clips per forward pass.

    Raises:
        UserError: the file is missing, damaged or of another kind, or an argument is wrong.
    """
    machine = Machine(device, precision, workers=workers, clips_at_once=clips_at_once)
    recipe = read_detect_recipe(weights)
    model = load_network(weights, machine)
    if not isinstance(model, Detector) or model.classes != recipe.classes:
        raise UserError(
            f"{os.fspath(weights)}: the recipe describes a detector of {recipe.classes} actions, but the "
            f"model "
            f"is a {type(model).__name__} with {getattr(model, 'classes', 'no')} classes; give the file that "
            "detect-train wrote"
        )
    return VideoDetector(model.eval(), recipe, machine)


@dataclass(frozen=True)
class BoxScores:
    """The scores of a detector for the boxes of key frames.

    Attributes:
        scores: float32 [R, L], 0 to 1; zero for boxes without scores.
        scored: bool [R], whether a box has scores: its key frame could be read.
        failures: unreadable key frames, by row; no other key frames replace them.
        listed: number of all key frames.
    """

    scores: np.ndarray
    scored: np.ndarray
    failures: tuple[Failure, ...]
    listed: int

    @property
    def read(self) -> int:
        """Number of key frames that were read."""
        return self.listed - len(self.failures)


def score_key_frames(
    detector: VideoDetector,
    key_frames: KeyFrames,
    sources: Sequence[VideoSource],
    *,
    scales: Sequence[int] = (),
    flip: bool = False,
    progress: Progress | None = None,
) -> BoxScores:
    """Score all boxes of key frames; all ranks call it and get the whole result.

    Args:
        detector: the detector; its recipe defines how frames are cut.
        key_frames: key frames with the boxes to score.
        sources: their videos.
        scales: short sides over which scores are averaged; empty: that of the recipe alone.
        flip: average over each clip and its mirror image.
        progress: called on rank 0 after each of its batches.

    Raises:
        UserError: a number is out of range, or no key frame could be read.
        RunFailed: a score is not finite.
    """
    recipe, machine = detector.recipe, detector.machine
    views = KeyFrameViews(
        key_frames,
        sources,
        frames=recipe.clip.frames,
        stride=recipe.clip.stride,
        target_fps=recipe.clip.target_fps,
        area=recipe.area,  # type: ignore[arg-type]
        short_sides=tuple(scales) or (recipe.short_side,),
        multiple=detector.multiple,
        flip=flip,
    )
    loader = ViewLoader(
        views,
        per_batch=machine.clips_at_once,
        workers=machine.workers,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        pin_memory=machine.torch_device.type == "cuda",
    )
    with closing(iter(loader)) as batches:
        return score_batches(detector, batches, key_frames, progress=progress)


@dataclass(frozen=True)
class ScoredBatch:
    """Scores of one batch: key frames int64 [B], rows of boxes int64 [R], scores float32 [R, L]."""

    index: np.ndarray
    rows: np.ndarray
    scores: np.ndarray
    failures: tuple[Failure, ...]


def score_batches(
    detector: VideoDetector,
    batches: Iterable[KeyFrameBatch],
    key_frames: KeyFrames,
    *,
    progress: Progress | None = None,
) -> BoxScores:
    """As :func:`score_key_frames`, for the batches of this rank."""

    def work() -> list[ScoredBatch]:
        scored, done = [], 0
        with evaluation_mode(detector.model):
            for batch in batches:
                stop_if_requested()
                scored.append(_score_batch(detector, batch))
                done += len(batch.index) + len(batch.failures)
                if progress is not None and distributed.is_main():
                    progress(min(done * distributed.world_size(), len(key_frames)), len(key_frames))
        return scored

    return join_batches([batch for scored in run_on_every_rank(work) for batch in scored], key_frames)


def _score_batch(detector: VideoDetector, batch: KeyFrameBatch) -> ScoredBatch:
    rows, index = batch.rows.numpy(), batch.index.numpy()
    if not len(index):
        return ScoredBatch(index, rows, np.zeros((0, 0), np.float32), batch.failures)
    scores = detector.mean_scores(batch.views)
    finite = scores.isfinite().all(dim=1).numpy()
    if not finite.all():
        raise RunFailed(
            f"the model's output is not finite for box {rows[~finite][0]} of the key frames; its weights are "
            "damaged, or its training diverged"
        )
    return ScoredBatch(index, rows, scores.float().numpy(), batch.failures)


def join_batches(batches: Sequence[ScoredBatch], key_frames: KeyFrames) -> BoxScores:
    """Join the scores of all batches in the order of the key frames.

    Raises:
        UserError: no key frame could be read.
    """
    failures = sorted((failure for batch in batches for failure in batch.failures), key=lambda one: one.index)
    seen = sorted([*(i for batch in batches for i in batch.index.tolist()), *(f.index for f in failures)])
    assert seen == list(range(len(key_frames))), "every key frame is scored or has failed, exactly once"
    scores = np.zeros((len(key_frames.boxes), key_frames.classes), np.float32)
    counts = np.zeros(len(scores), np.int64)
    for batch in batches:
        if len(batch.rows):
            scores[batch.rows] = batch.scores
            np.add.at(counts, batch.rows, 1)
    assert (counts <= 1).all(), "no box is scored twice"
    if len(key_frames) and len(failures) == len(key_frames):
        raise UserError(
            f"{key_frames.source}: none of the {len(key_frames)} key frames could be read; the first: "
            f"{failures[0].path} ({failures[0].cause}); check the folder of the videos"
        )
    return BoxScores(scores, counts > 0, tuple(failures), len(key_frames))


def build_detections(tested: KeyFrames, box_scores: BoxScores, actions: Iterable[int]) -> Detections:
    """One row per scored box and action; ``frames`` are rows of ``tested``."""
    ids = list(actions)
    frames = np.repeat(np.arange(len(tested)), np.diff(tested.starts))
    columns = [number - 1 for number in ids]
    scored = box_scores.scored
    return Detections.of_box_scores(
        frames[scored], tested.boxes[scored], box_scores.scores[scored][:, columns], ids
    )


def score_in_memory(
    truth: KeyFrames, tested: KeyFrames, box_scores: BoxScores, actions: Iterable[int]
) -> AvaResult:
    """The frame mAP without files, for validation during training.

    Boxes are compared in the float32 of `KeyFrames`, so overlaps within 1e-7 of the threshold may differ from
    those of the files.

    Raises:
        UserError: there is no ground truth of these actions.
    """
    ids = list(actions)
    detections = build_detections(tested, box_scores, ids)
    numbers = {moment: number for number, moment in enumerate(tested.moments())}
    frames = np.array([numbers.setdefault(moment, len(numbers)) for moment in truth.moments()], np.int64)
    boxes, columns = np.nonzero(truth.labels)
    frames_of_boxes = np.repeat(frames, np.diff(truth.starts))
    groundtruth = GroundTruth(frames_of_boxes[boxes], truth.boxes[boxes], columns + 1)
    return average_precision(groundtruth, detections, actions=ids)
