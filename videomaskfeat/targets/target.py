"""The base of all targets, their losses, and the mean loss over held-out batches."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videomaskfeat.grid import TokenGrid, resize_mask
from videomaskfeat.losses.masked import (
    masked_cosine,
    masked_cross_entropy,
    masked_l1,
    masked_mse,
    masked_smooth_l1,
)
from videomaskfeat.models.encoder_base import Triple

_NO_VARIANCE = 1e-9  # targets count as constant if the best constant prediction's loss is at most this


def margin(trained: float | None, constant: float | None) -> tuple[float, str] | None:
    """Difference of a loss from the best constant prediction's: percent, and "below" or "above".

    None if a value is unknown or not finite, or if the constant predicts the targets exactly, for example
    those of pictures of one color.

    >>> margin(0.05, 0.1)
    (50.0, 'below')
    """
    if trained is None or constant is None or not math.isfinite(trained):
        return None
    if not _NO_VARIANCE < constant < math.inf:
        return None
    share = 100 * (1 - trained / constant)
    return abs(share), "below" if share >= 0 else "above"


class LossTally:
    """Mean of a loss over the hidden positions of several batches.

    Args:
        loss: (predictions, target, mask) -> the mean over the hidden positions of a batch.
    """

    sums: tuple[str, ...] = ("hidden", "_sum")
    """Attributes to sum over ranks: numbers, tensors, or None before the first batch."""
    tallies: Sequence[LossTally] = ()
    """Tallies that this one consists of."""

    def __init__(self, loss: Callable[[Tensor, Any, Tensor], Tensor]) -> None:
        self._loss = loss
        self._sum = 0.0
        self.hidden = 0.0
        """Number of hidden positions."""

    def add(self, predictions: Tensor, target: Any, mask: Tensor) -> None:
        """Add a batch: predictions [B, t, h, w, K], its target, mask bool [B, t', h', w']."""
        grid = TokenGrid(*predictions.shape[1:4])
        hidden = float(mask.sum()) * grid.size / mask[0].numel()
        self._sum += float(self._loss(predictions, target, mask)) * hidden
        self.hidden += hidden

    @property
    def model(self) -> float:
        """Mean loss of the predictions."""
        return self._sum / max(self.hidden, 1)

    @property
    def constant(self) -> float | None:
        """Mean loss of the best constant prediction; None if it is unknown."""
        return None


def _hidden(predictions: Tensor, mask: Tensor) -> Tensor:
    """The mask on the grid of the predictions, bool [B, t, h, w]."""
    return resize_mask(mask, TokenGrid(*predictions.shape[1:4]))


class SquaredErrorTally(LossTally):
    """Mean squared error, in float64; the best constant is the targets' mean, its loss their variance."""

    sums = ("hidden", "_squared", "_sums", "_squares")

    def __init__(self) -> None:
        self.hidden = 0.0
        self._squared = 0.0
        self._sums: Tensor | None = None
        self._squares: Tensor | None = None

    def add(self, predictions: Tensor, target: Any, mask: Tensor) -> None:
        hidden = _hidden(predictions, mask)
        values = target.double()[hidden]  # [hidden, K]; eager, so the boolean index costs little
        self._squared += float((predictions.double()[hidden] - values).square().sum())
        self._sums = values.sum(0) if self._sums is None else self._sums + values.sum(0)
        squares = values.square().sum(0)
        self._squares = squares if self._squares is None else self._squares + squares
        self.hidden += values.shape[0]

    @property
    def model(self) -> float:
        return 0.0 if self._sums is None else self._squared / (self.hidden * self._sums.numel())

    @property
    def constant(self) -> float | None:
        if self._sums is None or self._squares is None:
            return None
        variance = self._squares / self.hidden - (self._sums / self.hidden).square()  # [K]
        return max(float(variance.mean()), 0.0)  # rounding may make it negative


class CosineTally(LossTally):
    """One minus the cosine; the best constant points along the mean of the targets' directions.

    For unit vectors u, the mean of ``1 - c.u`` is smallest for c along their mean: 1 - |mean of u|.
    """

    sums = (*LossTally.sums, "_directions")

    def __init__(self, loss: Callable[[Tensor, Any, Tensor], Tensor]) -> None:
        super().__init__(loss)
        self._directions: Tensor | None = None

    def add(self, predictions: Tensor, target: Any, mask: Tensor) -> None:
        super().add(predictions, target, mask)
        directions = F.normalize(target.double()[_hidden(predictions, mask)], dim=-1).sum(0)  # [K]
        self._directions = directions if self._directions is None else self._directions + directions

    @property
    def constant(self) -> float | None:
        if self._directions is None:
            return None
        return max(1 - float(self._directions.norm()) / self.hidden, 0.0)


class CrossEntropyTally(LossTally):
    """Cross-entropy in nats; the best constant is the distribution of the tokens, its loss their entropy."""

    sums = (*LossTally.sums, "_counts")

    def __init__(self, loss: Callable[[Tensor, Any, Tensor], Tensor], *, vocabulary: int) -> None:
        super().__init__(loss)
        self._counts = torch.zeros(vocabulary, dtype=torch.float64)

    def add(self, predictions: Tensor, target: Any, mask: Tensor) -> None:
        super().add(predictions, target, mask)
        tokens = target[_hidden(predictions, mask)]
        self._counts += torch.bincount(tokens, minlength=len(self._counts)).cpu()

    @property
    def constant(self) -> float | None:
        if not self._counts.any():
            return None
        return float(torch.special.entr(self._counts / self._counts.sum()).sum())


class SumTally(LossTally):
    """A weighted sum of losses, each on its own slice of the predicted values.

    The slices are disjoint, so the best constant is the best one of each part. ``split`` cuts predictions.
    """

    sums = ()

    def __init__(
        self,
        tallies: Sequence[LossTally],
        weights: Sequence[float],
        split: Callable[[Tensor], Sequence[Tensor]],
    ) -> None:
        self.tallies = tallies
        self._weights = weights
        self._split = split

    def add(self, predictions: Tensor, target: Any, mask: Tensor) -> None:
        for tally, own, truth in zip(self.tallies, self._split(predictions), target, strict=True):
            tally.add(own, truth, mask)

    @property
    def model(self) -> float:
        return sum(weight * tally.model for tally, weight in zip(self.tallies, self._weights, strict=True))

    @property
    def constant(self) -> float | None:
        total = 0.0
        for tally, weight in zip(self.tallies, self._weights, strict=True):
            if tally.constant is None:
                return None
            total += weight * tally.constant
        return total


@dataclass(frozen=True)
class MaskedLoss:
    """A loss over hidden positions, its name for logs and reports, and a function (loss) -> an empty tally.

    ``function(predictions [B, t, h, w, K], target, mask)`` returns a 0-d float32 tensor.
    """

    function: Callable[..., Tensor]
    name: str
    tally: Callable[[Callable[..., Tensor]], LossTally] = LossTally


LOSSES = {
    "mse": MaskedLoss(masked_mse, "mean squared error", lambda _: SquaredErrorTally()),
    "l1": MaskedLoss(masked_l1, "mean absolute error"),
    "smooth_l1": MaskedLoss(masked_smooth_l1, "smooth L1 error"),
    "cosine": MaskedLoss(masked_cosine, "one minus the cosine", CosineTally),
    "cross_entropy": MaskedLoss(masked_cross_entropy, "cross-entropy in nats"),
}


class Target(nn.Module, ABC):
    """The values to predict at hidden positions, with their loss.

    A frozen network inside (a teacher or tokenizer) is part of the target: it gets no gradient, is not saved
    with a run, and is read from its own file again at a resume. A target is always in evaluation mode.

    Arguments of ``__init__`` named ``clip_mean`` and ``clip_std`` receive the run's normalization.

    Args:
        output_stride: frames, rows and columns of the clip per target position.
        values_per_token: predicted values per position, K: target values, or logits over a vocabulary.
        loss: a name in :data:`LOSSES`.
        files: files that the target was read from; they must be unchanged at a resume.
        grid_remedy: how to change the target's grid, for error messages.
        loss_arguments: more arguments of the loss.
    """

    def __init__(
        self,
        *,
        output_stride: Triple,
        values_per_token: int,
        loss: str = "mse",
        files: tuple[str, ...] = (),
        grid_remedy: str = "set the target's output_stride",
        **loss_arguments: Any,
    ) -> None:
        super().__init__()
        self.output_stride, self.values_per_token = output_stride, values_per_token
        self.files, self.grid_remedy = files, grid_remedy
        self.loss_name = LOSSES[loss].name
        self._loss, self._loss_arguments = LOSSES[loss], loss_arguments

    @abstractmethod
    def forward(self, clips: Tensor) -> Any:
        """Clips float [B, C, T, H, W], in the run's normalization -> the target.

        Usually a tensor float32 [B, t, h, w, K] or int64 [B, t, h, w]. The caller disables gradients and
        autocast.

        Raises:
            UserError: an axis of the clip is not a multiple of the output stride.
        """

    def loss(self, predictions: Tensor, target: Any, mask: Tensor) -> Tensor:
        """Loss of predictions float [B, t, h, w, K] at hidden positions, 0-d float32.

        ``target`` is from :meth:`forward`; ``mask`` is bool [B, t', h', w'], True = hidden, on a grid that
        divides (t, h, w).
        """
        return self._loss.function(predictions, target, mask, **self._loss_arguments)

    def loss_parts(
        self, predictions: Tensor, target: Any, mask: Tensor
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss, and more values to log, by name."""
        return self.loss(predictions, target, mask), {}

    def tally(self) -> LossTally:
        """An empty tally of this loss."""
        return self._loss.tally(self.loss)

    def train(self, mode: bool = True) -> Target:
        """Stay in evaluation mode: a teacher's dropout would change the target at every call."""
        return super().train(False)

    def extra_repr(self) -> str:
        return f"output_stride={tuple(self.output_stride)}, values_per_token={self.values_per_token}"
