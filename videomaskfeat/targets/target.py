"""A loss over many held-out batches, and that of the constant that would have done best on them."""

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
from videomaskfeat.losses import (
    masked_cosine,
    masked_cross_entropy,
    masked_l1,
    masked_mse,
    masked_smooth_l1,
)

_NO_VARIANCE = 1e-9  # a best constant's loss up to which the targets count as constant


def margin(trained: float | None, constant: float | None) -> tuple[float, str] | None:
    """How far a loss is from the best constant's: percent, and "below" or "above".

    None if there is no such share: one of them is unknown or not finite, or the constant predicts the targets
    exactly, as those of pictures of one color.

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
    """The mean of a loss over the hidden positions of all batches together.

    Args:
        loss: (predictions, target, mask) -> the mean over the hidden positions of a batch.
    """

    sums: tuple[str, ...] = ("hidden", "_sum")
    """Attributes that add up over batches and over ranks: numbers, tensors, or None for nothing yet."""
    tallies: Sequence[LossTally] = ()
    """Tallies inside this one."""

    def __init__(self, loss: Callable[[Tensor, Any, Tensor], Tensor]) -> None:
        self._loss = loss
        self._sum = 0.0
        self.hidden = 0.0
        """Hidden positions so far."""

    def add(self, predictions: Tensor, target: Any, mask: Tensor) -> None:
        """Take in a batch: predictions [B, t, h, w, K], its target, mask bool [B, t', h', w']."""
        grid = TokenGrid(*predictions.shape[1:4])
        hidden = float(mask.sum()) * grid.size / mask[0].numel()
        self._sum += float(self._loss(predictions, target, mask)) * hidden
        self.hidden += hidden

    @property
    def model(self) -> float:
        """The mean loss of the predictions."""
        return self._sum / max(self.hidden, 1)

    @property
    def constant(self) -> float | None:
        """The mean loss of the one prediction that does best everywhere, in hindsight; None: not known."""
        return None


class SquaredErrorTally(LossTally):
    """Mean squared error, in float64; the best constant is the targets' mean, its loss their variance."""

    sums = ("hidden", "_squared", "_sums", "_squares")

    def __init__(self) -> None:
        self.hidden = 0.0
        self._squared = 0.0
        self._sums: Tensor | None = None
        self._squares: Tensor | None = None

    def add(self, predictions: Tensor, target: Any, mask: Tensor) -> None:
        """See :meth:`LossTally.add`."""
        hidden = resize_mask(mask, TokenGrid(*predictions.shape[1:4]))
        values = target.double()[hidden]  # [hidden, K]; eager, so the boolean index costs little
        self._squared += float((predictions.double()[hidden] - values).square().sum())
        self._sums = values.sum(0) if self._sums is None else self._sums + values.sum(0)
        squares = values.square().sum(0)
        self._squares = squares if self._squares is None else self._squares + squares
        self.hidden += values.shape[0]

    @property
    def model(self) -> float:
        """See :attr:`LossTally.model`."""
        return 0.0 if self._sums is None else self._squared / (self.hidden * self._sums.numel())

    @property
    def constant(self) -> float | None:
        """See :attr:`LossTally.constant`."""
        if self._sums is None or self._squares is None:
            return None
        variance = self._squares / self.hidden - (self._sums / self.hidden).square()  # [K]
        return max(float(variance.mean()), 0.0)  # rounding may bring it below


class CosineTally(LossTally):
    """One minus the cosine; the best constant points along the mean of the targets' directions.

    Of unit vectors u the mean of ``1 - c.u`` is least for c along their mean, where it is 1 - |mean of u|.
    """

    sums = (*LossTally.sums, "_directions")

    def __init__(self, loss: Callable[[Tensor, Any, Tensor], Tensor]) -> None:
        super().__init__(loss)
        self._directions: Tensor | None = None

    def add(self, predictions: Tensor, target: Any, mask: Tensor) -> None:
        """See :meth:`LossTally.add`."""
        super().add(predictions, target, mask)
        hidden = resize_mask(mask, TokenGrid(*predictions.shape[1:4]))
        directions = F.normalize(target.double()[hidden], dim=-1).sum(0)  # [K]
        self._directions = directions if self._directions is None else self._directions + directions

    @property
    def constant(self) -> float | None:
        """See :attr:`LossTally.constant`."""
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
        """See :meth:`LossTally.add`."""
        super().add(predictions, target, mask)
        hidden = resize_mask(mask, TokenGrid(*predictions.shape[1:4]))
        self._counts += torch.bincount(target[hidden], minlength=len(self._counts)).cpu()

    @property
    def constant(self) -> float | None:
        """See :attr:`LossTally.constant`."""
        if not self._counts.any():
            return None
        return float(torch.special.entr(self._counts / self._counts.sum()).sum())


class SumTally(LossTally):
    """A weighted sum of losses, each on its own slice of the predicted values.

    The parts share no value of the prediction, so the best constant is best in each part by itself.

    Args:
        tallies: one tally per target.
        weights: weight of each target.
        split: predictions -> the predictions of each target.
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
        """See :meth:`LossTally.add`."""
        for tally, own, truth in zip(self.tallies, self._split(predictions), target, strict=True):
            tally.add(own, truth, mask)

    @property
    def model(self) -> float:
        """See :attr:`LossTally.model`."""
        return sum(weight * tally.model for tally, weight in zip(self.tallies, self._weights, strict=True))

    @property
    def constant(self) -> float | None:
        """See :attr:`LossTally.constant`."""
        total = 0.0
        for tally, weight in zip(self.tallies, self._weights, strict=True):
            if tally.constant is None:
                return None
            total += weight * tally.constant
        return total


# What every target is: what to predict, and how far a prediction is from it.
Triple = tuple[int, int, int]


@dataclass(frozen=True)
class MaskedLoss:
    """A loss over the masked positions: (predictions [B, t, h, w, K], target, mask) -> 0-d, float32.

    Attributes:
        function: computes it.
        name: beside its figures.
        tally: (loss) -> an empty tally over held-out batches.
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
    """What is predicted at the masked positions, with its loss.

    A frozen network inside (a teacher, a tokenizer) is part of the target: it gets no gradient, is not saved
    with a run, and is read from its own file again when the run is resumed. A target is always in evaluation
    mode.

    An argument of ``__init__`` named ``clip_mean`` or ``clip_std`` gets the run's own normalization.

    Args:
        output_stride: frames, rows and columns of the clip behind one position of the target.
        values_per_token: numbers that a model predicts per position, K: values, or logits of a vocabulary.
        loss: a name in :data:`LOSSES`.
        files: files that the target was read from; a resumed run must find the same bytes in them.
        grid_remedy: how to change the target's grid, as the middle of a message.
        loss_arguments: further arguments of the loss.
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
        """Whole clips float [B, C, T, H, W], normalized as the run's -> what is to be predicted.

        The caller switches gradients and autocast off. Mostly a tensor, whose first axes are [B, t, h, w]:
        float32 [B, t, h, w, K], or int64 [B, t, h, w].
        """

    def loss(self, predictions: Tensor, target: Any, mask: Tensor) -> Tensor:
        """How far predictions are from the target at the masked positions, 0-d, float32.

        Args:
            predictions: float [B, t, h, w, K].
            target: of :meth:`forward`.
            mask: bool [B, t', h', w'], True = hidden, on a grid that divides (t, h, w).
        """
        return self._loss.function(predictions, target, mask, **self._loss_arguments)

    def loss_parts(
        self, predictions: Tensor, target: Any, mask: Tensor
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss, and what else of it is logged, by name: the parts of a combined target."""
        return self.loss(predictions, target, mask), {}

    def tally(self) -> LossTally:
        """An empty tally of this loss over held-out batches."""
        return self._loss.tally(self.loss)

    def train(self, mode: bool = True) -> Target:
        """Stay in evaluation mode: dropout in a teacher would make another target of every call."""
        return super().train(False)

    def extra_repr(self) -> str:
        return f"output_stride={tuple(self.output_stride)}, values_per_token={self.values_per_token}"
