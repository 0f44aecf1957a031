"""Several targets in one run, with a weighted sum of their losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from videomaskfeat.errors import UserError, check_name
from videomaskfeat.targets.target import LossTally, SumTally, Target

_PART_KEYS = ("name", "weight", "arguments")


class CombinedTarget(Target):
    """A weighted sum of targets; the predicted values are split among them, in their order.

    Args:
        parts: for each part its ``name`` in ``TARGETS`` (default: its key), ``weight`` (1) and ``arguments``.
        build: (name, arguments) -> target.

    Raises:
        UserError: no parts, an invalid part, a weight that is not above 0, or parts with different grids.
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
                "{hog: {weight: 1.0}, pixels: {weight: 0.5, arguments: {normalized: false}}}"
            )
        targets: dict[str, Target] = {}
        weights: dict[str, float] = {}
        for key, part in parts.items():
            name, weight, arguments = _read_part(key, part)
            try:
                targets[key] = build(name, arguments)
            except UserError as error:
                raise UserError(f"part {key!r} of the combined target: {error}") from error
            weights[key] = weight
        strides = {key: tuple(target.output_stride) for key, target in targets.items()}
        if len(set(strides.values())) > 1:
            shown = ", ".join(f"{key} {stride}" for key, stride in strides.items())
            raise UserError(
                f"the parts of the combined target have different output strides ({shown}), but one head "
                f"predicts all of them; {next(reversed(targets.values())).grid_remedy}"
            )
        first = next(iter(targets.values()))
        super().__init__(
            output_stride=first.output_stride,
            values_per_token=sum(target.values_per_token for target in targets.values()),
            files=tuple(path for target in targets.values() for path in target.files),
            grid_remedy=first.grid_remedy,
        )
        self.targets, self.weights = nn.ModuleList(targets.values()), weights
        names = [f"{target.loss_name} ({key})" for key, target in targets.items()]
        self.loss_name = f"weighted sum of {' and '.join(names)}"

    @property
    def _targets_by_key(self) -> dict[str, Target]:
        return dict(zip(self.weights, cast(Iterable[Target], self.targets), strict=True))

    def forward(self, clips: Tensor) -> tuple[Any, ...]:
        """Clips float [B, C, T, H, W], normalized -> the target of each part."""
        return tuple(target(clips) for target in self._targets_by_key.values())

    def split(self, predictions: Tensor) -> tuple[Tensor, ...]:
        """Predictions [B, t, h, w, K] -> the K' predicted values of each part."""
        return predictions.split(
            [target.values_per_token for target in self._targets_by_key.values()], dim=-1
        )

    def loss(self, predictions: Tensor, target: tuple[Any, ...], mask: Tensor) -> Tensor:
        """The weighted sum of the parts' losses."""
        return self.loss_parts(predictions, target, mask)[0]

    def loss_parts(
        self, predictions: Tensor, target: tuple[Any, ...], mask: Tensor
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The weighted sum, and the unweighted loss of each part as ``loss_PART``."""
        parts = zip(self._targets_by_key.items(), self.split(predictions), target, strict=True)
        losses = {
            key: part.loss(prediction, part_target, mask) for (key, part), prediction, part_target in parts
        }
        total = torch.stack([self.weights[key] * loss for key, loss in losses.items()]).sum()
        return total, {f"loss_{key}": loss.detach() for key, loss in losses.items()}

    def tally(self) -> LossTally:
        """A weighted sum of the parts' tallies."""
        tallies = [target.tally() for target in self._targets_by_key.values()]
        return SumTally(tallies, list(self.weights.values()), self.split)


def _read_part(key: str, part: Mapping[str, Any] | None) -> tuple[str, float, Mapping[str, Any]]:
    """Name, weight and arguments of a part; raises UserError if one is invalid."""
    if part is not None and not isinstance(part, Mapping):
        raise UserError(
            f"part {key!r} of the combined target is {part!r}; it must be a mapping: {{weight: 1}}"
        )
    part = part or {}
    for option in part:
        check_name(f"part {key!r} of the combined target: key", option, _PART_KEYS)
    weight = part.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise UserError(f"part {key!r} of the combined target has weight {weight!r}; it must be above 0")
    return str(part.get("name", key)), float(weight), part.get("arguments") or {}
