"""What every target is: what to predict, and how far a prediction is from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from videomaskfeat.targets.tally import LossTally

Triple = tuple[int, int, int]


class Target(nn.Module, ABC):
    """What is predicted in the hidden places, with its loss.

    A frozen network inside (a teacher, a tokenizer) is part of the target: it gets no gradient, is not saved
    with a run, and is read from its own file again when the run is resumed.

    An argument of ``__init__`` named ``clip_mean`` or ``clip_std`` is given the run's own normalisation, for
    targets that need another one.

    Attributes:
        output_stride: frames, rows and columns of the clip behind one position of the target.
        values_per_token: values that a model predicts a position, K: numbers, or logits of a vocabulary.
        loss_name: what the loss is called where its figures are shown.
        grid_remedy: how to bring the target to another grid, as the middle of a message.
        files: files that the target was read from; a run that goes on must find the same bytes in them.
    """

    output_stride: Triple
    values_per_token: int
    loss_name: str = "loss"
    grid_remedy: str = "set the target's output_stride"
    files: tuple[str, ...] = ()

    @abstractmethod
    def forward(self, clips: Tensor) -> Any:
        """Whole clips float [B, C, T, H, W], normalised as the run's -> what is to be predicted.

        The caller switches gradients and autocast off. Mostly a tensor, whose first axes are [B, t, h, w]:
        float32 [B, t, h, w, K], or int64 [B, t, h, w].
        """

    @abstractmethod
    def loss(self, predictions: Tensor, target: Any, mask: Tensor) -> Tensor:
        """How far predictions are from the target in the hidden places, a scalar, float32.

        Args:
            predictions: float [B, t, h, w, K].
            target: what :meth:`forward` gave.
            mask: bool [B, t', h', w'], True = hidden, on a grid that divides (t, h, w).
        """

    def loss_parts(
        self, predictions: Tensor, target: Any, mask: Tensor
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss, and what else of it is to be logged, by name: a target of several parts says theirs."""
        return self.loss(predictions, target, mask), {}

    def tally(self) -> LossTally:
        """An empty account of this loss over held-out batches."""
        return LossTally(self.loss)
