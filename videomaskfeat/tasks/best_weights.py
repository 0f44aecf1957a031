"""The weights that did best in validation, kept in a file while a training goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from videomaskfeat.engine import distributed
from videomaskfeat.models.weights import save_weights


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
