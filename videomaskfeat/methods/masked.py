"""``method: masked``: predict a target at the hidden positions (MaskFeat and its family)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from videomaskfeat.data.batches import PretrainBatch
from videomaskfeat.engine.contracts import StepResult
from videomaskfeat.io import file_sha256
from videomaskfeat.methods.method import Method
from videomaskfeat.recipe import PretrainRecipe
from videomaskfeat.targets.target import LossTally, Target


class MaskedPrediction(Method):
    """Predicts the target of the whole clip at the hidden positions.

    Network and loss are compiled together. The target is not compiled: on a CPU the compiled HOG is several
    times slower (docs/performance.md).

    Args:
        recipe, compiled: see :class:`~videomaskfeat.methods.method.Method`.
        student: (clips, mask) -> predictions [B, t, h, w, K], on the target's grid. With ``equal_masks`` it
            also receives the number of hidden cells; see :class:`~videomaskfeat.models.maskfeat.MaskedModel`.
        target: the target with its loss.

    Raises:
        UserError: the mask cannot be drawn.
    """

    def __init__(
        self, *, recipe: PretrainRecipe, student: nn.Module, target: Target, compiled: str = ""
    ) -> None:
        super().__init__(recipe=recipe, student=student, encoder=student, compiled=compiled)
        self.target = target
        self._equal_masks = getattr(student, "equal_masks", False)
        self._example_mask = torch.from_numpy(recipe.draw_mask(np.random.default_rng(0)))
        self.loss_name = f"{target.loss_name} at hidden positions"
        self._compare = self.compile(self.compare)

    def example_mask(self) -> Tensor:
        """A mask of the recipe's ratio, since some networks compute only visible positions."""
        return self._example_mask

    @property
    def description(self) -> str:
        return f"{self.recipe.target} {self.masked_positions}, {self.recipe.mask.share}"

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        return {f"the content of {path}": file_sha256(path) for path in self.target.files}

    def to(self, device: torch.device) -> None:
        self.target.to(device)

    def loss(self, network: nn.Module, batch: PretrainBatch) -> StepResult:
        """The target's loss over the hidden positions of a batch."""
        pixels = self.pixels(batch.clips)
        # A number that the batch knows spares the host a wait for the device, and the compiler a graph break.
        known = (batch.hidden_cells,) if self._equal_masks and batch.hidden_cells is not None else ()
        return StepResult(*self._compare(network, pixels, self._target_of(pixels), batch.mask, *known))

    def make_target(self, batch: PretrainBatch) -> Any:
        return self._target_of(self.pixels(batch.clips))

    def compare(
        self, network: nn.Module, pixels: Tensor, target: Any, mask: Tensor, *hidden_cells: int
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Pixels [B, C, T, H, W], their target, mask bool [B, t', h', w'] -> loss [] and its components."""
        return self.target.loss_parts(network(pixels, mask, *hidden_cells), target, mask)

    def tally(self) -> LossTally:
        return self.target.tally()

    def heldout_batch(self, network: nn.Module, batch: PretrainBatch) -> tuple[Tensor, Any, Tensor]:
        """Predictions, target and mask."""
        pixels = self.pixels(batch.clips)
        return network(pixels, batch.mask), self._target_of(pixels), batch.mask

    def _target_of(self, pixels: Tensor) -> Any:
        with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):
            return self.target(pixels)
