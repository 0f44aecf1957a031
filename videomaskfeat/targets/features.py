"""Frozen networks whose features are predicted: encoders of this framework, and vision models of others."""

from __future__ import annotations

import importlib
import inspect
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videomaskfeat.errors import UserError, check_name
from videomaskfeat.io import is_file, is_folder, list_folder, local_path
from videomaskfeat.models.encoder_base import Encoder, Triple
from videomaskfeat.models.weights import load_model, read_metadata
from videomaskfeat.models.zoo import MODELS, encoder_of
from videomaskfeat.targets import HUGGING_FACE, names_weights_file
from videomaskfeat.targets.target import Target
from videomaskfeat.texts import read_json

_FACTS = "preprocessor_config.json"
_FRAME_REMEDY = (
    "set target.arguments.frame_stride to the frames of the model's cubes, take a teacher of other patches, "
    "or change clip.crop"
)


class Teacher(nn.Module, ABC):
    """Whole clips -> features on a grid.

    Attributes:
        output_stride: frames, rows and columns of the clip behind one feature.
        width: of a feature, D.
        mean, std: normalization of its clips, one number or one per channel; None: unknown.
        files: files that it was read from.
        grid_remedy: how to change its grid, as the middle of a message.
    """

    output_stride: Triple
    width: int
    mean: float | Sequence[float] | None = None
    std: float | Sequence[float] | None = None
    files: tuple[str, ...] = ()
    grid_remedy: str

    @abstractmethod
    def forward(self, clips: Tensor) -> Tensor:
        """Clips float [B, C, T, H, W] in its own normalization -> features [B, t, h, w, D]."""


class EncoderTeacher(Teacher):
    """An encoder of this framework, of clips or, frame by frame, of images.

    Args:
        encoder: without its head.
        depth: the features leave this block, 1..; None: the last, behind the final norm.
        frame_stride: frames from one that an encoder of images reads to the next.

    Raises:
        UserError: no such depth.
    """

    def __init__(self, encoder: Encoder, *, depth: int | None, frame_stride: int) -> None:
        super().__init__()
        blocks = len(encoder.blocks)
        if depth is not None and not 1 <= depth <= blocks:
            raise UserError(f"teacher depth {depth}: the teacher has blocks 1..{blocks}")
        self.encoder, self.depth = encoder, depth
        strides = encoder.strides()
        time, rows, columns = strides[blocks if depth is None else depth]
        self.frame_wise = encoder.native_grid.t == 1 and encoder.patch_embed.stride[0] == 1
        self.frame_stride = frame_stride
        self.output_stride = (frame_stride if self.frame_wise else time, rows, columns)
        self.width = encoder.block_widths[(blocks if depth is None else depth) - 1]
        self.grid_remedy = _FRAME_REMEDY if self.frame_wise else _remedy(strides)

    def forward(self, clips: Tensor) -> Tensor:
        """See :meth:`Teacher.forward`."""
        if not self.frame_wise:
            return self.encoder.features(clips, depth=self.depth, pooled=False)
        frames = clips[:, :, :: self.frame_stride].transpose(1, 2)  # [B, t, C, H, W]
        features = self.encoder.features(frames.flatten(0, 1)[:, :, None], depth=self.depth, pooled=False)
        return features[:, 0].unflatten(0, frames.shape[:2])  # [B*t, 1, h, w, D] -> [B, t, h, w, D]


class FrameTeacher(Teacher):
    """A vision transformer of another project, frame by frame.

    Two manners are understood: Hugging Face's (``config.patch_size`` and ``config.hidden_size``; the result
    has ``last_hidden_state`` [n, P+N, D]) and timm's (``patch_embed.patch_size``, ``embed_dim`` and
    ``forward_features`` -> [n, P+N, D]). The N last tokens are the grid's, row by row.

    Args:
        model: takes frames float [n, C, H, W].
        depth: the features leave this block, 1..; None: the last, behind the final norm.
        frame_stride: frames from one that is read to the next.
        name: for messages.

    Raises:
        UserError: a model of neither manner, or a depth that its manner cannot give.
    """

    def __init__(self, model: nn.Module, *, depth: int | None, frame_stride: int, name: str) -> None:
        super().__init__()
        self.model, self.depth, self.frame_stride, self.name = model, depth, frame_stride, name
        config = getattr(model, "config", None)
        self.hugging_face = hasattr(config, "patch_size") and hasattr(config, "hidden_size")
        timm = hasattr(model, "forward_features") and hasattr(
            getattr(model, "patch_embed", None), "patch_size"
        )
        if not self.hugging_face and not timm:
            raise UserError(
                f"teacher {name}: a {type(model).__name__} is no vision transformer in the manner of Hugging "
                "Face (config.patch_size, config.hidden_size) or of timm (patch_embed.patch_size, "
                "forward_features)"
            )
        if depth is not None and not self.hugging_face:
            raise UserError(
                f"teacher {name}: depth can be chosen of Hugging Face's models only; leave it out"
            )
        layers = getattr(config, "num_hidden_layers", None)
        if depth is not None and layers is not None and not 1 <= depth <= layers:
            raise UserError(f"teacher depth {depth}: {name} has blocks 1..{layers}")
        source: Any = config if self.hugging_face else cast(Any, model).patch_embed
        rows, columns = _pair(source.patch_size)
        self.output_stride = (frame_stride, rows, columns)
        self.width = int(source.hidden_size if self.hugging_face else cast(Any, model).embed_dim)
        facts = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
        if isinstance(facts, dict):
            self.mean, self.std = facts.get("mean"), facts.get("std")
        self.grid_remedy = _FRAME_REMEDY

    def forward(self, clips: Tensor) -> Tensor:
        """See :meth:`Teacher.forward`."""
        frames = clips[:, :, :: self.frame_stride].transpose(1, 2)  # [B, t, C, H, W]
        tokens = self._tokens(frames.flatten(0, 1))  # [B*t, P+N, D]
        h, w = (size // step for size, step in zip(clips.shape[3:], self.output_stride[1:], strict=True))
        if tokens.ndim != 3 or tokens.shape[1] < h * w:
            raise UserError(
                f"teacher {self.name}: gave {tuple(tokens.shape)} for frames of {h}x{w} patches, and at "
                f"least {h * w} tokens a frame are needed"
            )
        return tokens[:, -h * w :].unflatten(1, (h, w)).unflatten(0, frames.shape[:2])

    def _tokens(self, frames: Tensor) -> Tensor:
        model = cast(Any, self.model)
        if not self.hugging_face:
            return cast(Tensor, model.forward_features(frames))
        takes = inspect.signature(model.forward).parameters
        options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in takes else {}
        if self.depth is None:
            return cast(Tensor, model(pixel_values=frames, **options).last_hidden_state)
        states = model(pixel_values=frames, output_hidden_states=True, **options).hidden_states
        if not 1 <= self.depth < len(states):
            raise UserError(f"teacher depth {self.depth}: {self.name} has blocks 1..{len(states) - 1}")
        return cast(Tensor, states[self.depth])


def load_teacher(name: str, *, depth: int | None = None, frame_stride: int = 2) -> Teacher:
    """A frozen teacher in evaluation mode, on the CPU.

    Args:
        name: a weights file of this framework (safetensors, any kind of encoder); ``hf:FOLDER``, a folder
            that Hugging Face's ``save_pretrained`` wrote; or ``package.module:callable``, which is called and
            returns a model as :class:`FrameTeacher` takes it.
        depth: the features leave this block, 1..; None: the last, behind the final norm.
        frame_stride: frames from one that a teacher of images reads to the next.

    Raises:
        UserError: no such file, one of another kind, a package that is not installed, or a depth that is not.
    """
    if frame_stride < 1:
        raise UserError(f"teacher frame_stride {frame_stride} must be 1 or more")
    if name.startswith(HUGGING_FACE):
        teacher = _from_folder(name[len(HUGGING_FACE) :], depth=depth, frame_stride=frame_stride)
    elif not names_weights_file(name):
        model = _from_callable(name)
        teacher = FrameTeacher(model, depth=depth, frame_stride=frame_stride, name=name)
    else:
        teacher = _from_weights(name, depth=depth, frame_stride=frame_stride)
    return teacher.requires_grad_(False).eval()


def _from_weights(path: str, *, depth: int | None, frame_stride: int) -> Teacher:
    if is_file(path) and not path.endswith(".safetensors"):
        raise UserError(
            f"teacher {path}: is no safetensors file; give the weights.safetensors of a run (import-slowfast "
            f"makes one of PySlowFast's), {HUGGING_FACE}FOLDER, or package.module:callable"
        )
    held = read_metadata(path).get("model")
    if held is not None and held not in MODELS:
        raise UserError(
            f"teacher {path}: holds a {held!r}, which has no features of clips; give the weights.safetensors "
            "of a pre-training, a fine-tuning or an encoder"
        )
    encoder = encoder_of(load_model(path))
    teacher = EncoderTeacher(encoder, depth=depth, frame_stride=frame_stride)
    teacher.files = (path,)
    return teacher


def _from_folder(folder: str, *, depth: int | None, frame_stride: int) -> Teacher:
    if not is_folder(folder) or not is_file(os.path.join(folder, "config.json")):
        raise UserError(
            f"teacher {HUGGING_FACE}{folder}: no folder with a config.json; give one that "
            "save_pretrained wrote (nothing is downloaded)"
        )
    try:
        from transformers import AutoModel
    except ImportError as error:
        raise UserError(
            f"teacher {HUGGING_FACE}{folder}: needs the package transformers, which is not installed; "
            "pip install 'videomaskfeat[teachers]'"
        ) from error
    try:
        model = AutoModel.from_pretrained(local_path(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"teacher {HUGGING_FACE}{folder}: cannot be loaded: {str(error).splitlines()[0]}"
        ) from error
    teacher = FrameTeacher(model, depth=depth, frame_stride=frame_stride, name=HUGGING_FACE + folder)
    names = [name for name in list_folder(folder) if name.endswith((".safetensors", ".bin", ".json"))]
    teacher.files = tuple(os.path.join(folder, name) for name in names)
    if _FACTS in names:
        path = os.path.join(folder, _FACTS)
        facts = read_json(path, what="a preprocessor's JSON")
        try:
            teacher.mean, teacher.std = facts.get("image_mean"), facts.get("image_std")
            for value in (teacher.mean, teacher.std):
                assert value is None or levels(value).numel() in (1, 3)
        except (AttributeError, TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise UserError(
                f"{path}: image_mean and image_std are not a number or three numbers each; correct them"
            ) from error
    return teacher


def _from_callable(name: str) -> nn.Module:
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(
            f"teacher {name}: {module_name} cannot be imported ({error}); install its package, or put its "
            "folder on PYTHONPATH"
        ) from error
    build = getattr(module, attribute, None)
    if not callable(build):
        raise UserError(f"teacher {name}: {module_name} has no callable {attribute!r}")
    model = build()
    if not isinstance(model, nn.Module):
        raise UserError(f"teacher {name}: gave a {type(model).__name__}, and a torch module is needed")
    return model


def _remedy(strides: Sequence[Triple]) -> str:
    """How to bring a teacher to a model's grid, given the strides of its encoder."""
    ends = {stride: index for index, stride in enumerate(strides) if index}  # stride -> its last block
    texts = [f"{'x'.join(map(str, stride))} up to block {end}" for stride, end in ends.items()]
    if len(texts) == 1:
        apart = "x".join(map(str, strides[-1]))
        return f"take another teacher (the features of this one are {apart} frames, rows and columns apart)"
    return (
        f"set target.arguments.depth (the teacher's features are {', '.join(texts)} frames, rows and columns "
        "apart)"
    )


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def levels(value: float | Sequence[float]) -> Tensor:
    """A number, or one a channel, in the shape that meets clips [B, C, T, H, W]."""
    return torch.as_tensor(value, dtype=torch.float32).reshape(-1, 1, 1, 1)


# The feature target: what a frozen teacher makes of the whole clip.
_LOSSES = ("smooth_l1", "cosine", "mse")
_NORMALISE: dict[str, Callable[[Tensor], Tensor]] = {
    "layer": lambda features: F.layer_norm(features, features.shape[-1:]),
    "l2": lambda features: F.normalize(features, dim=-1),
    "none": lambda features: features,
}


class FeatureTarget(Target):
    """A frozen teacher's features of the whole clip (MaskFeat, section 3.2, "deep features"; SaGe).

    The teacher sees the clip unmasked, in its own normalization: that of its file, or the run's if the file
    names none. A teacher of images sees every ``frame_stride``-th frame by itself.

    Args:
        teacher: see :func:`~videomaskfeat.targets.features.load_teacher`.
        depth: the features leave this block of the teacher, 1..; None: the last, behind its final norm.
        frame_stride: frames from one that a teacher of images reads to the next: those of the model's cubes.
        normalise: "layer" (each feature to mean 0 and variance 1, without parameters), "l2" (to length 1) or
            "none".
        loss: "smooth_l1", "cosine" or "mse".
        beta: of the smooth L1 loss, where the parabola becomes a line.
        bf16: run the teacher under bf16 autocast, whatever the student runs in: for large ones on a GPU.
        teacher_mean, teacher_std: normalization of the teacher's clips, one number or one per channel; None:
            that of its file, or else the run's.
        clip_mean, clip_std: normalization of the run's clips.

    Raises:
        UserError: an unknown word, or a teacher that cannot be.
    """

    def __init__(
        self,
        *,
        teacher: str,
        depth: int | None = None,
        frame_stride: int = 2,
        normalise: str = "layer",
        loss: str = "smooth_l1",
        beta: float = 1.0,
        bf16: bool = False,
        teacher_mean: float | Sequence[float] | None = None,
        teacher_std: float | Sequence[float] | None = None,
        clip_mean: float | Sequence[float] = 0.45,
        clip_std: float | Sequence[float] = 0.225,
    ) -> None:
        for word, value, known in (("normalise", normalise, _NORMALISE), ("loss", loss, _LOSSES)):
            check_name(f"feature {word}", value, known)
        if not beta > 0:
            raise UserError(f"feature beta {beta} must be above 0")
        network = load_teacher(teacher, depth=depth, frame_stride=frame_stride)
        super().__init__(
            output_stride=network.output_stride,
            values_per_token=network.width,
            loss=loss,
            files=network.files,
            grid_remedy=network.grid_remedy,
            **({"beta": beta} if loss == "smooth_l1" else {}),
        )
        self.teacher, self.bf16 = network, bf16
        self._normalise = _NORMALISE[normalise]
        mean = _first(teacher_mean, self.teacher.mean, clip_mean)
        std = _first(teacher_std, self.teacher.std, clip_std)
        # (x * clip_std + clip_mean - mean) / std, as one factor and one shift, [1 or C, 1, 1, 1].
        self.register_buffer("scale", levels(clip_std) / levels(std), persistent=False)
        self.register_buffer("shift", (levels(clip_mean) - levels(mean)) / levels(std), persistent=False)

    @torch.no_grad()
    def forward(self, clips: Tensor) -> Tensor:
        """Clips float [B, C, T, H, W], normalized -> features float32 [B, t, h, w, K]."""
        scale, shift = self.get_buffer("scale"), self.get_buffer("shift")
        with torch.autocast(clips.device.type, torch.bfloat16, enabled=self.bf16):
            features = self.teacher(clips.float() * scale + shift)
        return self._normalise(features.float())


def _first(*values: float | Sequence[float] | None) -> float | Sequence[float]:
    """The first that is given; the last always is."""
    return next(value for value in values if value is not None)
