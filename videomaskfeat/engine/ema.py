"""An exponential moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from videomaskfeat.errors import UserError


class ExponentialMovingAverage:
    """Keeps ``average = decay * average + (1 - decay) * weights`` beside a model.

    Parameters are averaged; buffers are copied, since averaging counters or tables means nothing. The first
    average is the model's own weights at construction.

    Args:
        model: the plain module (not wrapped by DDP).
        decay: share kept at each update, in [0, 1); 0.9999 averages over about 10,000 steps.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise UserError(f"ema decay={decay}: must be at least 0 and less than 1; 0.999 is a usual value")
        self.decay = decay
        self._average = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self._parameters = [name for name, _ in model.named_parameters()]
        self._blend = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after an optimiser step."""
        weights = model.state_dict()
        self._blend(
            [self._average[name] for name in self._parameters],
            [weights[name] for name in self._parameters],
            None,
        )
        for name in weights.keys() - set(self._parameters):
            self._average[name].copy_(weights[name])

    @contextmanager
    def averaged(self, model: nn.Module) -> Iterator[nn.Module]:
        """Within the context the model holds the averaged weights; afterwards its own again."""
        own = {name: value.detach().clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self._average)
        try:
            yield model
        finally:
            model.load_state_dict(own)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights under the model's own names: what the model's ``load_state_dict`` takes."""
        return dict(self._average)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a saved average (names and shapes as the model's)."""
        for name, value in self._average.items():
            value.copy_(state[name])
