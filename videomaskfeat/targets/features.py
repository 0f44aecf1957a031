"""The feature target: what a frozen teacher makes of the whole clip."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from videomaskfeat.errors import UserError, nearest
from videomaskfeat.losses import masked_cosine, masked_mse, masked_smooth_l1
from videomaskfeat.targets.tally import CosineTally, LossTally, SquaredErrorTally
from videomaskfeat.targets.target import Target
from videomaskfeat.targets.teachers import levels, load_teacher

_NAMES = {
    "smooth_l1": "smooth L1 error",
    "cosine": "one minus the cosine",
    "mse": "mean squared error",
}
_NORMALISE: dict[str, Callable[[Tensor], Tensor]] = {
    "layer": lambda features: F.layer_norm(features, features.shape[-1:]),
    "l2": lambda features: F.normalize(features, dim=-1),
    "none": lambda features: features,
}


class FeatureTarget(Target):
    """A frozen teacher's features of the whole clip (MaskFeat, section 3.2, "deep features"; SaGe).

    The teacher sees the clip unmasked, in its own normalisation: that of its file, or the run's where the
    file names none. A teacher of images sees every ``frame_stride``-th frame by itself.

    Args:
        teacher: see :func:`~videomaskfeat.targets.teachers.load_teacher`.
        depth: the features leave this block of the teacher, 1..; None: the last, behind its final norm.
        frame_stride: frames from one that a teacher of images reads to the next: those of the model's cubes.
        normalise: "layer" (each feature to mean 0 and variance 1, without parameters), "l2" (to length 1) or
            "none".
        loss: "smooth_l1", "cosine" or "mse".
        beta: of the smooth L1 loss, where the parabola becomes a line.
        bf16: run the teacher under bf16 autocast, whatever the student runs in: for large ones on a GPU.
        teacher_mean: what the teacher's clips are normalised with, of every channel or one a channel; None:
            what its file says, or else ``clip_mean``.
        teacher_std: likewise.
        clip_mean: what the run's clips are normalised with.
        clip_std: likewise.

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
        super().__init__()
        for word, value, known in (("normalise", normalise, _NORMALISE), ("loss", loss, _NAMES)):
            if value not in known:
                raise UserError(
                    f"feature {word} {value!r} is not one of {', '.join(known)}{nearest(value, known)}"
                )
        if not beta > 0:
            raise UserError(f"feature beta {beta} must be above 0")
        self.teacher = load_teacher(teacher, depth=depth, frame_stride=frame_stride)
        self.output_stride = self.teacher.output_stride
        self.values_per_token = self.teacher.width
        self.files = self.teacher.files
        self.grid_remedy = self.teacher.grid_remedy
        self.bf16 = bf16
        self.loss_name = _NAMES[loss]
        self._normalise = _NORMALISE[normalise]
        losses: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
            "smooth_l1": functools.partial(masked_smooth_l1, beta=beta),
            "cosine": masked_cosine,
            "mse": masked_mse,
        }
        self._loss = losses[loss]
        mean = _first(teacher_mean, self.teacher.mean, clip_mean)
        std = _first(teacher_std, self.teacher.std, clip_std)
        # (x * clip_std + clip_mean - mean) / std, as one factor and one shift, [1 or C, 1, 1, 1].
        self.register_buffer("scale", levels(clip_std) / levels(std), persistent=False)
        self.register_buffer("shift", (levels(clip_mean) - levels(mean)) / levels(std), persistent=False)

    @torch.no_grad()
    def forward(self, clips: Tensor) -> Tensor:
        """Clips float [B, C, T, H, W], normalised -> features float32 [B, t, h, w, K]."""
        scale, shift = self.get_buffer("scale"), self.get_buffer("shift")
        with torch.autocast(clips.device.type, torch.bfloat16, enabled=self.bf16):
            features = self.teacher(clips.float() * scale + shift)
        return self._normalise(features.float())

    def train(self, mode: bool = True) -> FeatureTarget:
        """The teacher stays in evaluation mode: its dropout would make another target of every call."""
        super().train(mode)
        self.teacher.eval()
        return self

    def loss(self, predictions: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """The chosen loss over the hidden positions."""
        return self._loss(predictions, target, mask)

    def tally(self) -> LossTally:
        """Its account over held-out batches; of smooth L1 the best constant is not known."""
        if self._loss is masked_mse:
            return SquaredErrorTally()
        return CosineTally(self._loss) if self._loss is masked_cosine else LossTally(self._loss)


def _first(*values: float | Sequence[float] | None) -> float | Sequence[float]:
    """The first that is given; the last always is."""
    return next(value for value in values if value is not None)
