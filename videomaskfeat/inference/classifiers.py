"""Classifiers and encoders from weights files: videos to probabilities and to features."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from videomaskfeat.data.records import Records
from videomaskfeat.data.video import MemoryReader, open_video
from videomaskfeat.errors import RunFailed, UserError
from videomaskfeat.inference.attention_maps import attention_maps
from videomaskfeat.inference.class_maps import class_maps
from videomaskfeat.inference.multiview import ClipPass, Machine, build_views, evaluation_mode
from videomaskfeat.models.encoder_base import Encoder
from videomaskfeat.models.heads import Classifier
from videomaskfeat.models.loading import load_model
from videomaskfeat.stored_recipe import ClassifyRecipe, read_classify_recipe, read_testing_recipe

Video = str | os.PathLike[str] | np.ndarray | Tensor
"""A path (a file, or a folder with one image per frame), or all decoded frames, uint8 [T, H, W, 3], RGB; or
an image, uint8 [H, W, 3], if the clips of the network have one frame."""


@dataclass(frozen=True)
class Prediction:
    """A class and its probability.

    Attributes:
        label: the class.
        name: class name, or None if unknown.
        probability: 0..1.
    """

    label: int
    name: str | None
    probability: float

    @property
    def text(self) -> str:
        """The name, or the label if the name is unknown."""
        return f"class {self.label}" if self.name is None else self.name


@dataclass(frozen=True)
class ClipMap:
    """Values of the positions of a clip.

    Attributes:
        frames: uint8 [T, H, W, 3], the clip.
        values: float32 [t, h, w], from 0 to 1 at the maximum.
        name: name of the map, such as "attention".
        note: for example the number of the block.
    """

    frames: Tensor
    values: Tensor
    name: str
    note: str


@dataclass(frozen=True)
class ClassMap(ClipMap):
    """The positions of a clip that raise the logit of a class, by Grad-CAM; all 0 without such positions.

    Attributes:
        prediction: the class, with the probability of this clip.
    """

    prediction: Prediction


@dataclass(frozen=True)
class Predictions:
    """The output of a classifier for one video.

    Attributes:
        path: path of the video; "frames in memory" for decoded frames.
        probabilities: float32 [L] on the CPU, sum 1: the averaged softmax of the views, or the softmax of
            their averaged logits, according to the recipe. Of a multi-label classifier each is in 0..1.
        class_names: class names, indexed by label; may be empty.
    """

    path: str
    probabilities: Tensor
    class_names: tuple[str, ...] = ()

    def top(self, count: int = 5) -> list[Prediction]:
        """The most probable classes, in descending order; equal ones in the order of their labels.

        Raises:
            UserError: ``count`` is below 1.
        """
        if count < 1:
            raise UserError(f"top {count}: must be at least 1 class")
        order = self.probabilities.argsort(descending=True, stable=True)[:count].tolist()
        names = self.class_names
        return [Prediction(n, names[n] if names else None, float(self.probabilities[n])) for n in order]


class VideoEncoder:
    """An encoder for videos; built by :func:`load_encoder`.

    Attributes:
        model: the network, in evaluation mode, on the device of the machine.
        recipe: how clips are cut.
        machine: device, precision and batch size.
    """

    def __init__(self, model: Encoder, recipe: ClassifyRecipe, machine: Machine | None = None) -> None:
        self.model = model.eval()
        self.recipe = recipe
        self.machine = machine or Machine("cpu")

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
        """Features of a video.

        Args:
            video: see :data:`Video`.
            fps: frame rate of decoded frames; None for a path.
            depth: number of blocks, from 1, after which features are taken; None: all, and the final norm.
            pooled: average over the token grid and the views.
            views: temporal views, evenly spaced; a single view is the middle of the video.
            crops: square crops per view along its longer side, 1 (center) or 3.

        Returns:
            float32 on the CPU: [D], or for the token grid of a single view [t, h, w, D].

        Raises:
            UserError: an argument is wrong, or several views without pooling.
            VideoReadError: the video cannot be read.
            ShortVideoError: it is too short, and the recipe does not allow that.
        """
        recipe = self.recipe.with_views(views=views, crops=crops)
        self.check_output(recipe, depth=depth, pooled=pooled)
        clips, _ = self._cut_views(video, fps, recipe)
        return self.clip_features(clips, depth=depth, pooled=pooled)[0]

    def attention_map(
        self, video: Video, *, fps: float | None = None, block: int | None = None, rollout: bool = False
    ) -> ClipMap:
        """The attention of a block to the positions of the middle clip.

        The values are those of :func:`~videomaskfeat.inference.attention_maps.attention_maps`, shifted and
        scaled so that the minimum is 0 and the maximum 1.

        Args:
            video: see :data:`Video`.
            fps: frame rate of decoded frames; None for a path.
            block, rollout: see :func:`~videomaskfeat.inference.attention_maps.attention_maps`.

        Raises:
            UserError: there is no such block; otherwise as in :meth:`features`.
        """
        clips, _ = self._cut_views(video, fps, self.recipe.with_views(views=1, crops=1))
        pixels = self.recipe.clip.normalize(clips.to(self.machine.torch_device))
        with evaluation_mode(self.model):
            values = attention_maps(self.model, pixels, block=block, rollout=rollout)[0].cpu()
        self._check_finite(values)
        values = values - values.min()
        count = len(self.model.blocks)
        note = f"{'blocks 1 to' if rollout else 'block'} {block or count} of {count}"
        name = "rollout" if rollout else "attention"
        return ClipMap(clips[0], values / values.max().clamp(min=1e-12), name, note)

    def clip_features(
        self, clips: Tensor, *, depth: int | None = None, pooled: bool = True, views: int | None = None
    ) -> Tensor:
        """Features of clips; ``depth`` and ``pooled`` as in :meth:`features`.

        Args:
            clips: uint8 [n*V*S, T, H, W, C], the views of a video next to each other.
            depth: number of blocks.
            pooled: average over the token grid.
            views: clips per video, V*S, to average over; None: all clips are of one video.

        Returns:
            float32 [n, D], or [n, t, h, w, D], on the CPU.
        """
        network = functools.partial(self.model.features, depth=depth, pooled=pooled)
        outputs = self._run(network, clips)
        return outputs.unflatten(0, (-1, views or len(clips))).mean(dim=1).float()

    def check_output(self, recipe: ClassifyRecipe, *, depth: int | None, pooled: bool) -> None:
        """Check the arguments of :meth:`features`.

        Raises:
            UserError: the encoder has fewer blocks, or several views without pooling.
        """
        blocks = len(self.model.blocks)
        if depth is not None and not 1 <= depth <= blocks:
            raise UserError(f"depth={depth}: the encoder has blocks 1..{blocks}")
        if not pooled and recipe.views * recipe.crops > 1:
            raise UserError(
                f"views={recipe.views}, crops={recipe.crops} on the grid: token grids of several views "
                "cannot be averaged, since they show other times and places; use one view and one crop, or "
                "pooled features"
            )

    def _cut_views(self, video: Video, fps: float | None, recipe: ClassifyRecipe) -> tuple[Tensor, str]:
        """The views of a video, uint8 [V*S, T, H, W, C], and its name."""
        reader = self.machine.reader
        if isinstance(video, str | os.PathLike):
            name = os.fspath(video)
            if fps is not None:
                raise UserError(
                    f"fps={fps} cannot be set for the file {name}, which has its own frame "
                    f"rate; fps is for decoded frames"
                )
            source = open_video(video, reader)
        else:
            frames = np.asarray(video)
            if frames.ndim == 3:
                if recipe.clip.frames > 1:
                    shape = "x".join(map(str, frames.shape))
                    raise UserError(
                        f"an array {shape} is one image, and the clips of this network have "
                        f"{recipe.clip.frames} frames; pass all frames of a video, [T, H, W, 3]"
                    )
                frames, fps = frames[None], fps or 1.0  # any rate: there is one frame
            if fps is None:
                raise UserError("the frame rate of decoded frames is missing: pass fps=")
            source = MemoryReader(frames, fps=fps)
            name = source.path
        with source:
            views = build_views(Records.from_paths([name], None, source=name), recipe, reader=reader)
            return torch.from_numpy(views.clips(source)), name

    def _run(self, network: Callable[[Tensor], Tensor], clips: Tensor) -> Tensor:
        """Clips uint8 [B, T, H, W, C] -> float64 [B, ...] on the CPU."""
        with evaluation_mode(self.model):
            outputs = ClipPass(network, self.recipe.clip, self.machine)(clips)
        self._check_finite(outputs)
        return outputs

    def _check_finite(self, outputs: Tensor) -> None:
        if not outputs.isfinite().all():
            raise RunFailed(
                "the model's output is not finite; its weights are damaged, or its training diverged"
            )


class VideoClassifier(VideoEncoder):
    """A classifier for videos, which is also an encoder; built by :func:`load_classifier`."""

    def predict(
        self,
        video: Video,
        *,
        fps: float | None = None,
        views: int | None = None,
        crops: int | None = None,
    ) -> Predictions:
        """The probability of each class; arguments and errors as in :meth:`features`.

        Args:
            video: see :data:`Video`.
            fps: frame rate of decoded frames; None for a path.
            views: temporal views; None: as in the recipe.
            crops: crops per view; None: as in the recipe.
        """
        clips, name = self._cut_views(video, fps, self.recipe.with_views(views=views, crops=crops))
        return self.predict_clips(clips, name)

    def class_map(self, video: Video, *, fps: float | None = None, label: int | None = None) -> ClassMap:
        """The positions of the middle clip that raise the logit of a class, by Grad-CAM.

        Args:
            video: see :data:`Video`.
            fps: frame rate of decoded frames; None for a path.
            label: the class; None: the most probable one of this clip.

        Raises:
            UserError: there is no such class; otherwise as in :meth:`features`.
        """
        clips, name = self._cut_views(video, fps, self.recipe.with_views(views=1, crops=1))
        predictions = self.predict_clips(clips, name)
        classes = len(predictions.probabilities)
        if label is None:
            label = predictions.top(1)[0].label
        if not 0 <= label < classes:
            raise UserError(f"label {label}: the classes of these weights are 0 to {classes - 1}")
        model = cast(Classifier, self.model)
        pixels = self.recipe.clip.normalize(clips.to(self.machine.torch_device))
        values = class_maps(model, pixels, torch.tensor([label], device=pixels.device))[0].cpu()
        chosen = next(one for one in predictions.top(classes) if one.label == label)
        note = f"{100 * chosen.probability:.1f} %"
        return ClassMap(clips[0], values / values.max().clamp(min=1e-12), "Grad-CAM", note, chosen)

    def predict_clips(self, clips: Tensor, path: str) -> Predictions:
        """As :meth:`predict`, for the clips uint8 [V*S, T, H, W, C] of one video."""
        return Predictions(path, self.clip_probabilities(clips, views=len(clips))[0], self.recipe.class_names)

    def clip_probabilities(self, clips: Tensor, *, views: int) -> Tensor:
        """Probabilities float32 [n, L] on the CPU, from clips uint8 [n*views, T, H, W, C]."""
        logits = self._run(self.model, clips).unflatten(0, (-1, views))  # [n, V*S, L]
        if self.recipe.average == "logits":
            logits = logits.mean(dim=1, keepdim=True)
        activation = torch.sigmoid if self.recipe.is_multi_label else functools.partial(torch.softmax, dim=-1)
        return activation(logits).mean(dim=1).float()


def load_classifier(
    weights: str | os.PathLike[str],
    *,
    device: str = "auto",
    precision: str = "auto",
    reader: str = "auto",
    clips_at_once: int = 8,
) -> VideoClassifier:
    """Load a classifier with its recipe and class names.

    Args:
        weights: safetensors file of a fine-tuning run, or of ``videomaskfeat import-slowfast``.
        device: auto (a GPU if there is one), cpu, cuda or cuda:N.
        precision: auto (bf16 on a GPU, fp32 on a CPU), fp32 or bf16.
        reader: video reader: video reader, see `open_video`.
        clips_at_once: clips per forward pass.

    Raises:
        UserError: the weights are not a classifier's, or an argument is wrong.
    """
    recipe = read_classify_recipe(weights)
    machine = Machine(device, precision, reader, clips_at_once=clips_at_once)
    classifier = VideoClassifier(load_network(weights, machine), recipe, machine)
    classes = classifier.model.classes
    if recipe.class_names and len(recipe.class_names) != classes:
        raise UserError(
            f"{os.fspath(weights)}: {len(recipe.class_names)} class names for {classes} classes; write it "
            f"again with one name per class, or without names"
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
    """Load the encoder of a pre-training run, or of a classifier without its head, with its recipe.

    The arguments are those of :func:`load_classifier`, for the weights of any run.

    Raises:
        UserError: the file has no recipe, or an argument is wrong.
    """
    recipe = read_testing_recipe(weights)
    machine = Machine(device, precision, reader, clips_at_once=clips_at_once)
    return VideoEncoder(load_network(weights, machine), recipe, machine)


def load_network(weights: str | os.PathLike[str], machine: Machine) -> Encoder:
    """Load a model onto the device of a machine, and check device and precision before."""
    _ = machine.bf16  # raises if device or precision are wrong
    return load_model(weights, device=machine.torch_device)
