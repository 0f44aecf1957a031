"""The feature target: features of a frozen teacher, an encoder of this framework or another vision model."""

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
from videomaskfeat.models import published_vit
from videomaskfeat.models.encoder_base import Encoder, Triple
from videomaskfeat.models.layers import per_channel
from videomaskfeat.models.loading import load_model
from videomaskfeat.models.zoo import MODELS, encoder_of
from videomaskfeat.plugins import is_plugin
from videomaskfeat.targets import HUGGING_FACE, names_weights_file
from videomaskfeat.targets.target import Target
from videomaskfeat.tensor_files import read_metadata
from videomaskfeat.texts import read_json

_PREPROCESSOR = "preprocessor_config.json"
_FRAME_REMEDY = (
    "set target.arguments.frame_stride to the frames per cube of the model, use a teacher with another patch "
    "size, or change clip.crop"
)


class Teacher(nn.Module, ABC):
    """Base of frozen networks: from clips to features on a grid.

    Attributes:
        output_stride: frames, rows and columns of the clip per feature.
        widths: feature width per depth; their sum is D.
        mean, std: normalization of its clips, one number or one per channel; None if unknown.
        files: files that it was read from.
        grid_remedy: how to change its grid, for error messages.
    """

    output_stride: Triple
    widths: tuple[int, ...]
    mean: float | Sequence[float] | None = None
    std: float | Sequence[float] | None = None
    files: tuple[str, ...] = ()
    grid_remedy: str

    @abstractmethod
    def forward(self, clips: Tensor) -> Tensor:
        """Clips float [B, C, T, H, W] in the teacher's normalization -> features [B, t, h, w, D]."""


class EncoderTeacher(Teacher):
    """An encoder of this framework, of clips, or of images applied per frame.

    ``depths`` and ``frame_stride``: see :func:`load_teacher`.
    """

    def __init__(self, encoder: Encoder, *, depths: tuple[int, ...], frame_stride: int) -> None:
        super().__init__()
        blocks = len(encoder.blocks)
        for depth in depths:
            if not 1 <= depth <= blocks:
                raise UserError(f"teacher depth {depth}: the teacher has blocks 1..{blocks}")
        self.encoder, self.depths = encoder, depths
        strides = encoder.strides()
        read = depths or (blocks,)
        if len({strides[depth] for depth in read}) > 1:
            raise UserError(
                f"teacher depths {list(depths)}: their features are on different grids; "
                f"{_depth_remedy(strides)}"
            )
        time, rows, columns = strides[read[0]]
        self.per_frame = encoder.native_grid.t == 1 and encoder.patch_embed.stride[0] == 1
        self.frame_stride = frame_stride
        self.output_stride = (frame_stride if self.per_frame else time, rows, columns)
        self.widths = tuple(encoder.block_widths[depth - 1] for depth in read)
        self.grid_remedy = _FRAME_REMEDY if self.per_frame else _depth_remedy(strides)

    def forward(self, clips: Tensor) -> Tensor:
        if not self.per_frame:
            return self._features(clips)
        frames = clips[:, :, :: self.frame_stride].transpose(1, 2)  # [B, t, C, H, W]
        features = self._features(frames.flatten(0, 1)[:, :, None])
        return features[:, 0].unflatten(0, frames.shape[:2])  # [B*t, 1, h, w, D] -> [B, t, h, w, D]

    def _features(self, clips: Tensor) -> Tensor:
        if not self.depths:
            return self.encoder.features(clips, pooled=False)
        return torch.cat(self.encoder.features_at(clips, self.depths), dim=-1)


class FrameTeacher(Teacher):
    """A vision transformer of another project, applied per frame.

    Two interfaces are supported: Hugging Face's (``config.patch_size``, ``config.hidden_size``, and
    ``last_hidden_state`` [n, P+N, D]) and timm's (``patch_embed.patch_size``, ``embed_dim``, and
    ``forward_features`` -> [n, P+N, D]). The last N tokens are the grid's, row by row.

    ``depths`` and ``frame_stride``: see :func:`load_teacher`; ``name``: for error messages.

    Raises:
        UserError: neither interface, or a depth that is not available.
    """

    def __init__(self, model: nn.Module, *, depths: tuple[int, ...], frame_stride: int, name: str) -> None:
        super().__init__()
        self.model, self.depths, self.frame_stride, self.name = model, depths, frame_stride, name
        config = getattr(model, "config", None)
        self.hugging_face = hasattr(config, "patch_size") and hasattr(config, "hidden_size")
        timm = hasattr(model, "forward_features") and hasattr(
            getattr(model, "patch_embed", None), "patch_size"
        )
        if not self.hugging_face and not timm:
            raise UserError(
                f"teacher {name}: a {type(model).__name__} has neither Hugging Face's interface of a vision "
                "transformer (config.patch_size, config.hidden_size) nor timm's (patch_embed.patch_size, "
                "forward_features); use another model"
            )
        if depths and not self.hugging_face:
            raise UserError(f"teacher {name}: only Hugging Face models support depth; remove it")
        layers = getattr(config, "num_hidden_layers", None)
        for depth in depths:
            if layers is not None and not 1 <= depth <= layers:
                raise UserError(f"teacher depth {depth}: {name} has blocks 1..{layers}")
        source: Any = config if self.hugging_face else cast(Any, model).patch_embed
        rows, columns = _pair(source.patch_size)
        self.output_stride = (frame_stride, rows, columns)
        width = int(source.hidden_size if self.hugging_face else cast(Any, model).embed_dim)
        self.widths = (width,) * max(len(depths), 1)
        facts = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
        if isinstance(facts, dict):
            self.mean, self.std = facts.get("mean"), facts.get("std")
        self.grid_remedy = _FRAME_REMEDY

    def forward(self, clips: Tensor) -> Tensor:
        frames = clips[:, :, :: self.frame_stride].transpose(1, 2)  # [B, t, C, H, W]
        tokens = self._tokens(frames.flatten(0, 1))  # [B*t, P+N, D]
        h, w = (size // step for size, step in zip(clips.shape[3:], self.output_stride[1:], strict=True))
        if tokens.ndim != 3 or tokens.shape[1] < h * w:
            raise UserError(
                f"teacher {self.name} returned shape {tuple(tokens.shape)} for frames of {h}x{w} patches; at "
                f"least {h * w} tokens per frame are needed"
            )
        return tokens[:, -h * w :].unflatten(1, (h, w)).unflatten(0, frames.shape[:2])

    def _tokens(self, frames: Tensor) -> Tensor:
        model = cast(Any, self.model)
        if not self.hugging_face:
            return cast(Tensor, model.forward_features(frames))
        parameters = inspect.signature(model.forward).parameters
        options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in parameters else {}
        if not self.depths:
            return cast(Tensor, model(pixel_values=frames, **options).last_hidden_state)
        states = model(pixel_values=frames, output_hidden_states=True, **options).hidden_states
        for depth in self.depths:
            if not 1 <= depth < len(states):
                raise UserError(f"teacher depth {depth}: {self.name} has blocks 1..{len(states) - 1}")
        return torch.cat([states[depth] for depth in self.depths], dim=-1)


def load_teacher(name: str, *, depth: int | Sequence[int] | None = None, frame_stride: int = 2) -> Teacher:
    """Load a frozen teacher in evaluation mode, on the CPU.

    Args:
        name: a weights file of this framework (safetensors, any encoder); a checkpoint of DINO, DINOv2 or
            iBOT (see :func:`~videomaskfeat.models.published_vit.load_published_vit`); ``hf:FOLDER``, a folder
            written by Hugging Face's ``save_pretrained``; or ``package.module:callable``, a function that
            returns a model for :class:`FrameTeacher`.
        depth: block whose features are used, from 1, or several, whose features are concatenated; None for
            the last, after the final norm.
        frame_stride: step between the frames that an image model sees.

    Raises:
        UserError: a missing or wrong file, a package that is not installed, or no such depth.
    """
    if frame_stride < 1:
        raise UserError(f"teacher frame_stride {frame_stride} must be 1 or more")
    depths = () if depth is None else (depth,) if isinstance(depth, int) else tuple(depth)
    if depth is not None and not depths:
        raise UserError("teacher depth [] must be a block, a list of blocks, or null")
    if name.startswith(HUGGING_FACE):
        teacher = _from_folder(name[len(HUGGING_FACE) :], depths=depths, frame_stride=frame_stride)
    elif not names_weights_file(name):
        model = _from_callable(name)
        teacher = FrameTeacher(model, depths=depths, frame_stride=frame_stride, name=name)
    else:
        teacher = _from_weights(name, depths=depths, frame_stride=frame_stride)
    return teacher.requires_grad_(False).eval()


def _from_weights(path: str, *, depths: tuple[int, ...], frame_stride: int) -> Teacher:
    if is_file(path) and not path.endswith(".safetensors"):
        teacher = EncoderTeacher(
            published_vit.load_published_vit(path), depths=depths, frame_stride=frame_stride
        )
        teacher.mean, teacher.std, teacher.files = published_vit.MEAN, published_vit.STD, (path,)
        return teacher
    model = read_metadata(path).get("model")
    if model is not None and model not in MODELS and not is_plugin(model):
        raise UserError(
            f"teacher {path} contains the model {model!r}, which has no features of clips; use the "
            "weights.safetensors of a pre-training or fine-tuning run, or of an encoder"
        )
    encoder = encoder_of(load_model(path))
    teacher = EncoderTeacher(encoder, depths=depths, frame_stride=frame_stride)
    teacher.files = (path,)
    return teacher


def _from_folder(folder: str, *, depths: tuple[int, ...], frame_stride: int) -> Teacher:
    if not is_folder(folder) or not is_file(os.path.join(folder, "config.json")):
        raise UserError(
            f"teacher {HUGGING_FACE}{folder}: there is no folder with a "
            "config.json; use one that save_pretrained wrote (nothing is downloaded)"
        )
    try:
        from transformers import AutoModel
    except ImportError as error:
        raise UserError(
            f"teacher {HUGGING_FACE}{folder}: the package transformers is not installed; "
            "pip install 'videomaskfeat[teachers]'"
        ) from error
    try:
        model = AutoModel.from_pretrained(local_path(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"teacher {HUGGING_FACE}{folder}: cannot be loaded: {str(error).splitlines()[0]}"
        ) from error
    teacher = FrameTeacher(model, depths=depths, frame_stride=frame_stride, name=HUGGING_FACE + folder)
    names = [name for name in list_folder(folder) if name.endswith((".safetensors", ".bin", ".json"))]
    teacher.files = tuple(os.path.join(folder, name) for name in names)
    if _PREPROCESSOR in names:
        path = os.path.join(folder, _PREPROCESSOR)
        preprocessor = read_json(path, what="a preprocessor's JSON")
        try:
            teacher.mean, teacher.std = preprocessor.get("image_mean"), preprocessor.get("image_std")
            for value in (teacher.mean, teacher.std):
                assert value is None or per_channel(value).numel() in (1, 3)
        except (AttributeError, TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise UserError(
                f"{path}: image_mean and image_std must each be one number or three numbers; correct them"
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
        raise UserError(f"teacher {name} returned a {type(model).__name__}; it must return a torch module")
    return model


def _depth_remedy(strides: Sequence[Triple]) -> str:
    """How to change the grid of a teacher with these strides after each block."""
    ends = {stride: index for index, stride in enumerate(strides) if index}  # stride -> its last block
    texts = [f"{'x'.join(map(str, stride))} up to block {end}" for stride, end in ends.items()]
    if len(texts) == 1:
        stride = "x".join(map(str, strides[-1]))
        return f"use another teacher (its features have a stride of {stride} frames, rows and columns)"
    return (
        f"set target.arguments.depth (the teacher's features have strides of {', '.join(texts)}, in frames, "
        "rows and columns)"
    )


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


_LOSSES = ("smooth_l1", "cosine", "mse")
_NORMALIZATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "layer": lambda features: F.layer_norm(features, features.shape[-1:]),
    "l2": lambda features: F.normalize(features, dim=-1),
    "none": lambda features: features,
}


class FeatureTarget(Target):
    """A frozen teacher's features of the unmasked clip (MaskFeat, section 3.2, "deep features"; SaGe).

    Args:
        teacher: see :func:`load_teacher`.
        depth: block of the teacher whose features are used, from 1; None for the last, after the final norm.
            A list of blocks of the same grid concatenates their features, each normalized by itself; the loss
            is the mean over all values, as in V-JEPA 2.1 (arXiv 2603.14482, deep self-supervision).
        frame_stride: step between the frames that an image teacher sees: the frames per cube of the model.
        normalize: "layer" (each feature to mean 0 and variance 1), "l2" (to length 1) or "none".
        loss: "smooth_l1", "cosine" or "mse".
        beta: threshold of the smooth L1 loss between quadratic and linear.
        bf16: run the teacher under bf16 autocast, for large ones on a GPU.
        teacher_mean, teacher_std: normalization of the teacher's clips, one number or one per channel. None
            for that of its file, or the run's if the file has none.
        clip_mean, clip_std: normalization of the run's clips.

    Raises:
        UserError: an unknown name, or an invalid teacher.
    """

    def __init__(
        self,
        *,
        teacher: str,
        depth: int | Sequence[int] | None = None,
        frame_stride: int = 2,
        normalize: str = "layer",
        loss: str = "smooth_l1",
        beta: float = 1.0,
        bf16: bool = False,
        teacher_mean: float | Sequence[float] | None = None,
        teacher_std: float | Sequence[float] | None = None,
        clip_mean: float | Sequence[float] = 0.45,
        clip_std: float | Sequence[float] = 0.225,
    ) -> None:
        check_name("feature normalization", normalize, _NORMALIZATIONS)
        check_name("feature loss", loss, _LOSSES)
        if not beta > 0:
            raise UserError(f"feature beta {beta} must be above 0")
        network = load_teacher(teacher, depth=depth, frame_stride=frame_stride)
        if loss == "cosine" and len(network.widths) > 1:
            raise UserError(
                "feature loss 'cosine' compares features of one depth; use 'smooth_l1' or 'mse', or one depth"
            )
        super().__init__(
            output_stride=network.output_stride,
            values_per_token=sum(network.widths),
            loss=loss,
            files=network.files,
            grid_remedy=network.grid_remedy,
            **({"beta": beta} if loss == "smooth_l1" else {}),
        )
        self.teacher, self.bf16 = network, bf16
        self._normalize = _NORMALIZATIONS[normalize]
        mean = per_channel(_first(teacher_mean, self.teacher.mean, clip_mean), 3)
        std = per_channel(_first(teacher_std, self.teacher.std, clip_std), 3)
        # (x * clip_std + clip_mean - mean) / std, as one factor and one shift, [1 or C, 1, 1, 1].
        self.register_buffer("scale", per_channel(clip_std, 3) / std, persistent=False)
        self.register_buffer("shift", (per_channel(clip_mean, 3) - mean) / std, persistent=False)

    @torch.no_grad()
    def forward(self, clips: Tensor) -> Tensor:
        """Clips float [B, C, T, H, W], normalized -> features float32 [B, t, h, w, K]."""
        scale, shift = self.get_buffer("scale"), self.get_buffer("shift")
        with torch.autocast(clips.device.type, torch.bfloat16, enabled=self.bf16):
            features = self.teacher(clips.float() * scale + shift)
        depths = features.float().split(self.teacher.widths, dim=-1)
        return torch.cat([self._normalize(part) for part in depths], dim=-1)


def _first(*values: float | Sequence[float] | None) -> float | Sequence[float]:
    """The first value that is not None."""
    return next(value for value in values if value is not None)
