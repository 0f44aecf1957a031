"""What a detector's weights file knows besides the model: how it sees key frames, which actions it names."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from videomaskfeat.data.ava import AREAS
from videomaskfeat.data.ava_lists import KeyFrames
from videomaskfeat.data.batches import BoxedClips, Failure, KeyFrameBatch
from videomaskfeat.engine import distributed
from videomaskfeat.engine.distributed import stop_if_requested
from videomaskfeat.errors import RunFailed, UserError, check_name
from videomaskfeat.inference.multiview import evaluating
from videomaskfeat.inference.threads import choose_inference_threads
from videomaskfeat.metrics.accuracy import action_scores
from videomaskfeat.metrics.ava_map import AvaResult, Detections, GroundTruth, average_precision
from videomaskfeat.models.detector import Detector
from videomaskfeat.models.weights import load_model
from videomaskfeat.recipe import DETECT_KEY, LIMITS, ClipRecipe, Levels, normalise, recipe_texts
from videomaskfeat.texts import parse_json
from videomaskfeat.values import from_parts


@dataclass(frozen=True)
class DetectRecipe:
    """How a detector sees key frames, and what it says of each box.

    Attributes:
        clip: see :class:`~videomaskfeat.recipe.ClipRecipe`; the key frame is in its middle.
        actions: id to name of the actions with a name. The logit in column i is of the action with the id
            i + 1.
        classes: number of actions, L; ids count from 1 to this.
        poses: ids of which a person has exactly one: their scores are a softmax, those of the others
            sigmoids. Empty: all are sigmoids.
        short_side: pixels that a frame's short side is resized to in testing.
        area: "whole" (the frame in its aspect) or "centre" (a square crop, boxes cut to it).
        score_threshold: the least score of a detected box that is tested on.
    """

    clip: ClipRecipe
    actions: Mapping[int, str]
    classes: int
    poses: tuple[int, ...] = ()
    short_side: int = 224
    area: str = "whole"
    score_threshold: float = 0.8

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            UserError: an area or an id that is unknown, or a score that is none.
        """
        check_name("area", self.area, AREAS)
        if not 0 <= self.score_threshold <= 1:
            raise UserError(
                f"score_threshold={self.score_threshold:g} is not in 0..1; it is a detected box's least score"
            )
        wrong = [number for number in (*self.actions, *self.poses) if not 1 <= number <= self.classes]
        if wrong:
            raise UserError(
                f"the action {wrong[0]} is none of the {self.classes} that the model knows: ids count from 1 "
                f"to {self.classes}"
            )

    @property
    def pose_mask(self) -> Tensor:
        """bool [L], which columns exclude each other."""
        mask = torch.zeros(self.classes, dtype=torch.bool)
        mask[[number - 1 for number in self.poses]] = True
        return mask

    def name_of(self, column: int) -> str:
        """What the action of a column is called."""
        return self.actions.get(column + 1, f"action {column + 1}")

    def to_json(self) -> str:
        """The recipe as the text that belongs under ``DETECT_KEY``."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> DetectRecipe:
        """The recipe in the words of :meth:`to_json`.

        Raises:
            ValueError: no JSON, a part that is missing, or a key that no part has.
        """
        try:
            return from_parts(cls, parse_json(text, "metadata"), limits=LIMITS)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"no detector's recipe: {error}") from error


def read_detect_recipe(path: str | os.PathLike[str]) -> DetectRecipe:
    """The recipe in the metadata of a detector's safetensors file.

    Raises:
        UserError: the file is missing, is no safetensors file, or is no detector's.
    """
    texts, name = recipe_texts(path), os.fspath(path)
    if DETECT_KEY not in texts:
        what = f"weights of another kind ({', '.join(texts)})" if texts else "weights without a recipe"
        raise UserError(
            f"{name}: {what}, and a detector's are needed (metadata key {DETECT_KEY!r}); give the "
            "best.safetensors of a run of detect-train"
        )
    try:
        return DetectRecipe.from_json(texts[DETECT_KEY])
    except ValueError as error:
        raise UserError(f"{name}: its metadata key {DETECT_KEY!r} holds {error}") from error


# Detectors of actions from a weights file: from clips and boxes to a score for each box and action.


@dataclass(frozen=True)
class LoadedDetector:
    """A detector and how it sees key frames.

    Attributes:
        model: clips and boxes -> logits, in evaluation mode on its device.
        recipe: see :class:`~videomaskfeat.inference.detectors.DetectRecipe`.
        device: where the model is.
        bf16: run it under bf16 autocast.
    """

    model: Detector
    recipe: DetectRecipe
    device: torch.device
    bf16: bool = False

    @torch.no_grad()
    def scores(self, clips: Tensor, boxes: Tensor) -> Tensor:
        """How sure it is of each action of each box.

        Args:
            clips: uint8 [B, T, H, W, C], H and W multiples of the cube (4 pixels; nano: 8).
            boxes: float [R, 5]: place in the batch, then x1, y1, x2, y2 in pixels of the clip.

        Returns:
            float32 [R, L] on the CPU, in 0..1; column i is of the action with the id i + 1.
        """
        pixels = normalise(clips.to(self.device), mean=self.recipe.clip.mean, std=self.recipe.clip.std)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.model(pixels, boxes.to(self.device))
        return action_scores(logits.float(), self.recipe.pose_mask).cpu()

    def choose_threads(self, *, workers: int = 0) -> None:
        """Compute with the number of CPU threads that is fastest for this detector, for the whole process.

        Args:
            workers: loader processes of this rank.
        """
        whole = torch.tensor([[0.0, 0.0, 0.0, self.recipe.clip.crop, self.recipe.clip.crop]])
        choose_inference_threads(
            self.model,
            self.recipe.clip,
            device=self.device,
            bf16=self.bf16,
            workers=workers,
            network=lambda clips: self.model(clips, whole),
        )


def load_detector(
    weights: str | os.PathLike[str], *, device: str | torch.device = "cpu", bf16: bool = False
) -> LoadedDetector:
    """The detector that ``detect-train`` wrote.

    Args:
        weights: its safetensors file.
        device: where the model goes.
        bf16: run it under bf16 autocast.

    Raises:
        UserError: no such file, weights of another kind, or a damaged file.
    """
    recipe = read_detect_recipe(weights)
    model = load_model(weights, device=device)
    if not isinstance(model, Detector) or model.classes != recipe.classes:
        raise UserError(
            f"{os.fspath(weights)}: its recipe is that of a detector of {recipe.classes} actions, and its "
            f"model a {type(model).__name__} of {getattr(model, 'classes', 'no')}; the file was put together "
            "from two: take the one that detect-train wrote"
        )
    return LoadedDetector(model, recipe, torch.device(device), bf16)


# A detector over the boxes of all key frames: one row of scores a box, on any number of ranks.
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
