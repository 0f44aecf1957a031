"""Several targets in one run, their losses weighted and summed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from videomaskfeat.errors import UserError, check_name
from videomaskfeat.targets.target import LossTally, SumTally, Target

_PART_KEYS = ("name", "weight", "arguments")


class CombinedTarget(Target):
    """A weighted sum of targets: the predicted values are split among them, in their order.

    Args:
        parts: what to call a part -> its ``name`` in ``TARGETS`` (what it is called, where that is left out),
            ``weight`` (1) and ``arguments`` (none).
        build: (name, arguments) -> target.

    Raises:
        UserError: no parts, a part that cannot be, a weight that is not above 0, or parts on several grids.
    """

    def __init__(
        self,
        *,
        parts: Mapping[str, Mapping[str, Any] | None],
        build: Callable[[str, Mapping[str, Any]], Target],
    ) -> None:
        if not isinstance(parts, Mapping) or not parts:
            raise UserError(
                f"combined parts {parts!r} must be a mapping of targets, such as "
                "{hog: {weight: 1.0}, pixels: {weight: 0.5, arguments: {normalised: false}}}"
            )
        targets: dict[str, Target] = {}
        weights: dict[str, float] = {}
        for called, given in parts.items():
            name, weight, arguments = _read(called, given)
            try:
                targets[called] = build(name, arguments)
            except UserError as error:
                raise UserError(f"part {called!r} of the combined target: {error}") from error
            weights[called] = weight
        strides = {called: tuple(target.output_stride) for called, target in targets.items()}
        if len(set(strides.values())) > 1:
            shown = ", ".join(f"{called} {stride}" for called, stride in strides.items())
            raise UserError(
                f"the parts of the combined target have several output strides ({shown}), and one head "
                f"predicts them all; {next(reversed(targets.values())).grid_remedy}"
            )
        first = next(iter(targets.values()))
        super().__init__(
            output_stride=first.output_stride,
            values_per_token=sum(target.values_per_token for target in targets.values()),
            files=tuple(path for target in targets.values() for path in target.files),
            grid_remedy=first.grid_remedy,
        )
        self.targets, self.weights = nn.ModuleList(targets.values()), weights
        names = [f"{target.loss_name} ({called})" for called, target in targets.items()]
        self.loss_name = f"weighted sum of {' and '.join(names)}"

    @property
    def _parts(self) -> dict[str, Target]:
        return {
            called: cast(Target, target) for called, target in zip(self.weights, self.targets, strict=True)
        }

    def forward(self, clips: Tensor) -> tuple[Any, ...]:
        """Clips float [B, C, T, H, W], normalised -> what each part makes of them."""
        return tuple(target(clips) for target in self._parts.values())

    def split(self, predictions: Tensor) -> tuple[Tensor, ...]:
        """Predictions [B, t, h, w, K] -> those of each part, K' values each."""
        return predictions.split([target.values_per_token for target in self._parts.values()], dim=-1)

    def loss(self, predictions: Tensor, target: tuple[Any, ...], mask: Tensor) -> Tensor:
        """The weighted sum of the parts' losses."""
        return self.loss_parts(predictions, target, mask)[0]

    def loss_parts(
        self, predictions: Tensor, target: tuple[Any, ...], mask: Tensor
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The weighted sum, and the loss of each part by itself as ``loss_PART``, without its weight."""
        losses = {
            called: part.loss(own, truth, mask)
            for (called, part), own, truth in zip(
                self._parts.items(), self.split(predictions), target, strict=True
            )
        }
        total = torch.stack([self.weights[called] * loss for called, loss in losses.items()]).sum()
        return total, {f"loss_{called}": loss.detach() for called, loss in losses.items()}

    def tally(self) -> LossTally:
        """The weighted sum of the parts' accounts."""
        tallies = [target.tally() for target in self._parts.values()]
        return SumTally(tallies, list(self.weights.values()), self.split)


def _read(called: str, given: Mapping[str, Any] | None) -> tuple[str, float, Mapping[str, Any]]:
    """Name, weight and arguments of a part.

    Raises:
        UserError: no mapping, an unknown key, or a weight that is not above 0.
    """
    if given is not None and not isinstance(given, Mapping):
        raise UserError(
            f"part {called!r} of the combined target is {given!r}; it must be a mapping: {{weight: 1}}"
        )
    given = given or {}
    for key in given:
        check_name(f"part {called!r} of the combined target: key", key, _PART_KEYS)
    weight = given.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise UserError(
            f"part {called!r} of the combined target has the weight {weight!r}; it must be above 0"
        )
    return str(given.get("name", called)), float(weight), given.get("arguments") or {}
