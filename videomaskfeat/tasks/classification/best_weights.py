"""The weights that did best in validation, kept in a file while a training goes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from videomaskfeat.engine import distributed
from videomaskfeat.engine.ema import ExponentialMovingAverage
from videomaskfeat.errors import UserError
from videomaskfeat.models.weights import save_weights

WEIGHT_SETS = ("auto", "trained", "averaged", "both")


def check_weight_sets(wanted: str, *, averaged: bool) -> None:
    """Refuse a choice of weights that cannot be.

    Args:
        wanted: one of ``WEIGHT_SETS``.
        averaged: whether an average is kept.

    Raises:
        UserError: an unknown choice, or an average that is not kept.
    """
    if wanted not in WEIGHT_SETS:
        raise UserError(f"evaluate.weights {wanted!r} is not one of {', '.join(WEIGHT_SETS)}")
    if not averaged and wanted in ("averaged", "both"):
        raise UserError(f"evaluate.weights is {wanted}, and no average is kept; set optim.ema_decay")


def weight_sets(
    wanted: str, model: nn.Module, average: ExponentialMovingAverage | None
) -> Iterator[tuple[str, AbstractContextManager[Any]]]:
    """Prefix of the metrics' names, and the context in which the model holds these weights."""
    if average is not None and wanted in ("auto", "averaged", "both"):
        yield ("averaged_" if wanted == "both" else ""), average.averaged(model)
    if average is None or wanted in ("trained", "both"):
        yield "", nullcontext()


class BestWeights:
    """Keeps in a file the weights of the highest held-out score so far; the first of equals stays.

    Args:
        path: of the safetensors file.
        metadata: texts that go into it.
    """

    def __init__(self, path: Path, metadata: Mapping[str, str]) -> None:
        self.path = path
        self.score = -1.0
        self._metadata = metadata

    def offer(self, score: float, model: nn.Module) -> None:
        """Write the model's present weights if they are better; all ranks must call it."""
        if score <= self.score:
            return
        self.score = score
        distributed.run_on_main(lambda: save_weights(self.path, model, metadata=self._metadata))

    def state_dict(self) -> dict[str, Any]:
        """The highest score so far."""
        return {"score": self.score}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self.score = state["score"]
