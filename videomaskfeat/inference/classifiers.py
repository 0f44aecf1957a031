"""The package as a library: weights in, then videos to probabilities and to features."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from videomaskfeat.data.records import Records
from videomaskfeat.data.video import MemoryReader, open_video
from videomaskfeat.engine.distributed import choose_device, uses_bf16
from videomaskfeat.errors import RunFailed, UserError
from videomaskfeat.inference.multiview import ClipPass, evaluating
from videomaskfeat.inference.scores import views_of
from videomaskfeat.models.encoder_base import Encoder
from videomaskfeat.models.weights import load_model
from videomaskfeat.recipe import ClassifyRecipe, read_classify_recipe, read_testing_recipe

Video = str | os.PathLike[str] | np.ndarray | Tensor
"""A path (a file, or a folder with a picture a frame), or all frames decoded, uint8 [T, H, W, 3], RGB; for a
network whose clips are one frame also a picture, uint8 [H, W, 3]."""


@dataclass(frozen=True)
class Prediction:
    """A class and how probable it is.

    Attributes:
        label: its number.
        name: its name, or None where the weights know none.
        probability: 0..1.
    """

    label: int
    name: str | None
    probability: float

    @property
    def text(self) -> str:
        """The name, or the number where there is none."""
        return f"class {self.label}" if self.name is None else self.name


@dataclass(frozen=True)
class Predictions:
    """What a classifier says of one video.

    Attributes:
        path: of the video; "frames in memory" for decoded frames.
        probabilities: float32 [L] on the CPU, sum 1: the softmax averaged over the views, or of the averaged
            logits where the classifier is tested so.
        class_names: a name a class, or none.
    """

    path: str
    probabilities: Tensor
    class_names: tuple[str, ...] = ()

    def top(self, count: int = 5) -> list[Prediction]:
        """The most probable classes, best first; of equals the lower number. All, where there are fewer.

        Raises:
            UserError: ``count`` is below 1.
        """
        if count < 1:
            raise UserError(f"top {count}: ask for at least 1 class")
        order = self.probabilities.argsort(descending=True, stable=True)[:count].tolist()
        return [
            Prediction(
                label,
                self.class_names[label] if self.class_names else None,
                float(self.probabilities[label]),
            )
            for label in order
        ]


class VideoEncoder:
    """An encoder that takes videos; made by :func:`load_encoder`.

    Attributes:
        model: the network, in evaluation mode.
        recipe: how it sees videos.
    """

    def __init__(
        self,
        model: Encoder,
        recipe: ClassifyRecipe,
        *,
        device: str | torch.device = "cpu",
        bf16: bool = False,
        reader: str = "auto",
        clips_at_once: int = 8,
    ) -> None:
        """Keep the parts.

        Args:
            model: on the device.
            recipe: how it sees videos.
            device: where the model is.
            bf16: run it under bf16 autocast.
            reader: of video files: auto, decord or pyav.
            clips_at_once: clips that go through the network together.
        """
        self.model = model.eval()
        self.recipe = recipe
        self.device = torch.device(device)
        self.bf16 = bf16
        self.reader = reader
        self.clips_at_once = clips_at_once

    def features(
        self,
        video: Video,
        *,
        fps: float | None = None,
        depth: int | None = None,
        pooled: bool = True,
        views: int = 1,
        crops: int = 1,
    ) -> Tensor:
        """What the encoder makes of a video.

        Args:
            video: see :data:`Video`.
            fps: frames a second; of decoded frames only, which need it.
            depth: after how many blocks, from 1; None: after the last, with the final norm.
            pooled: averaged over the token grid, and over the views.
            views: clips spread evenly over the video; a single one is its middle.
            crops: squares cut of each clip along its longer side, 1 (the centre) or 3.

        Returns:
            float32 on the CPU: [D], or on the grid of the one view [t, h, w, D].

        Raises:
            UserError: an argument is wrong, such as several views on the grid.
            VideoReadError: the video cannot be read.
            ShortVideoError: it is too short, and the recipe forbids that.
        """
        recipe = self.recipe.with_views(views=views, crops=crops)
        self.check_output(recipe, depth=depth, pooled=pooled)
        clips, _ = self._clips(video, fps, recipe)
        return self.clip_features(clips, depth=depth, pooled=pooled)[0]

    def clip_features(
        self, clips: Tensor, *, depth: int | None = None, pooled: bool = True, views: int | None = None
    ) -> Tensor:
        """Features of clips that are cut already.

        Args:
            clips: uint8 [n*V*S, T, H, W, C], the views of a video together.
            depth: as in :meth:`features`.
            pooled: averaged over the token grid.
            views: clips a video, V*S, over which to average; None: all are of one video.

        Returns:
            float32 [n, D], or [n, t, h, w, D], on the CPU.
        """
        network = functools.partial(self.model.features, depth=depth, pooled=pooled)
        outputs = self._run(network, clips)
        return outputs.unflatten(0, (-1, views or len(clips))).mean(dim=1).float()

    def check_output(self, recipe: ClassifyRecipe, *, depth: int | None, pooled: bool) -> None:
        """Whether there are such features; see :meth:`features`.

        Raises:
            UserError: the encoder is not so deep, or they are of several views on the grid.
        """
        blocks = len(self.model.blocks)
        if depth is not None and not 1 <= depth <= blocks:
            raise UserError(f"depth={depth}: the encoder has blocks 1..{blocks}")
        if not pooled and recipe.views * recipe.crops > 1:
            raise UserError(
                f"views={recipe.views}, crops={recipe.crops} on the grid: the grids of several views show "
                "other times and places and have no mean; take one view and one crop, or pooled features"
            )

    def _clips(self, video: Video, fps: float | None, recipe: ClassifyRecipe) -> tuple[Tensor, str]:
        """The views of a video, uint8 [V*S, T, H, W, C], and what to call it."""
        if isinstance(video, str | os.PathLike):
            if fps is not None:
                raise UserError(f"fps={fps} for {os.fspath(video)}: a file knows its own; fps is for frames")
            source = open_video(video, self.reader)
            name = os.fspath(video)
        else:
            frames = np.asarray(video)
            if frames.ndim == 3:
                frames, fps = self._still(frames), fps or 1.0  # of no consequence: there is one frame
            if fps is None:
                raise UserError("decoded frames do not tell how fast they are: give their fps=")
            source = MemoryReader(frames, fps=fps)
            name = source.path
        with source:
            cutter = views_of(Records.from_paths([name], None, source=name), recipe, reader=self.reader)
            return torch.from_numpy(cutter.clips(source)), name

    def _still(self, picture: np.ndarray) -> np.ndarray:
        """A picture [H, W, 3] as a video of one frame."""
        frames = self.recipe.clip.frames
        if frames > 1:
            shape = "x".join(map(str, picture.shape))
            raise UserError(
                f"an array {shape} is one picture, and this network takes clips of {frames} frames; give all "
                "frames of a video, [T, H, W, 3]"
            )
        return picture[None]

    def _run(self, network: Callable[[Tensor], Tensor], clips: Tensor) -> Tensor:
        """Clips uint8 [B, T, H, W, C] -> float64 [B, ...] on the CPU."""
        run = ClipPass(
            network,
            self.device,
            bf16=self.bf16,
            mean=self.recipe.clip.mean,
            std=self.recipe.clip.std,
            at_once=self.clips_at_once,
        )
        with evaluating(self.model):
            outputs = run(clips)
        if not outputs.isfinite().all():
            raise RunFailed(
                "the model's output is not finite; its weights are damaged, or its training went wrong"
            )
        return outputs


class VideoClassifier(VideoEncoder):
    """A classifier that takes videos, and an encoder besides; made by :func:`load_classifier`."""

    def predict(
        self,
        video: Video,
        *,
        fps: float | None = None,
        views: int | None = None,
        crops: int | None = None,
    ) -> Predictions:
        """How probable each class is.

        Args:
            video: see :data:`Video`.
            fps: frames a second; of decoded frames only, which need it.
            views: clips spread evenly over the video; None: as the classifier was tested.
            crops: squares cut of each clip along its longer side, 1 (the centre) or 3; None likewise.

        Raises:
            UserError: an argument is wrong.
            VideoReadError: the video cannot be read.
            ShortVideoError: it is too short, and the recipe forbids that.
        """
        clips, name = self._clips(video, fps, self.recipe.with_views(views=views, crops=crops))
        return self.predict_clips(clips, name)

    def predict_clips(self, clips: Tensor, path: str) -> Predictions:
        """As :meth:`predict`, of the clips uint8 [V*S, T, H, W, C] of one video."""
        logits = self._run(self.model, clips)  # [V*S, L]
        if self.recipe.average == "logits":
            logits = logits.mean(dim=0, keepdim=True)
        probabilities = logits.softmax(dim=-1).mean(dim=0).float()
        return Predictions(path, probabilities, self.recipe.class_names)


def load_classifier(
    weights: str | os.PathLike[str],
    *,
    device: str = "auto",
    precision: str = "auto",
    reader: str = "auto",
    clips_at_once: int = 8,
) -> VideoClassifier:
    """A classifier with its recipe and class names.

    Args:
        weights: the safetensors file of a fine-tuning run, or of ``videomaskfeat import-slowfast``.
        device: auto (a GPU where there is one), cpu, cuda or cuda:N.
        precision: auto (bf16 on a GPU, fp32 on a CPU), fp32 or bf16.
        reader: of video files: auto, decord or pyav.
        clips_at_once: clips that go through the network together.

    Raises:
        UserError: the weights are no classifier's, or an argument is wrong.
    """
    recipe = read_classify_recipe(weights)
    classifier = _load(VideoClassifier, weights, recipe, device, precision, reader, clips_at_once)
    classes = classifier.model.classes
    if recipe.class_names and len(recipe.class_names) != classes:
        raise UserError(
            f"{os.fspath(weights)}: knows {len(recipe.class_names)} class names for {classes} classes; write "
            "it again with a name for each class, or with none"
        )
    return classifier


def load_encoder(
    weights: str | os.PathLike[str],
    *,
    device: str = "auto",
    precision: str = "auto",
    reader: str = "auto",
    clips_at_once: int = 8,
) -> VideoEncoder:
    """An encoder with its recipe: of a pre-training run, or what is below a classifier's head.

    Args:
        weights: the safetensors file of a pre-training or fine-tuning run, or of ``import-slowfast``.
        device: as in :func:`load_classifier`, and so are the others.
        precision: auto, fp32 or bf16.
        reader: auto, decord or pyav.
        clips_at_once: clips that go through the network together.

    Raises:
        UserError: the file holds no recipe, or an argument is wrong.
    """
    recipe = read_testing_recipe(weights)
    return _load(VideoEncoder, weights, recipe, device, precision, reader, clips_at_once)


def _load(
    kind: Any,
    weights: str | os.PathLike[str],
    recipe: ClassifyRecipe,
    device: str,
    precision: str,
    reader: str,
    clips_at_once: int,
) -> Any:
    place = choose_device(device)
    bf16 = uses_bf16(precision, place)
    model = cast(Encoder, load_model(weights, device=place))
    return kind(model, recipe, device=place, bf16=bf16, reader=reader, clips_at_once=clips_at_once)
