"""``method: masked``: predict a target at the hidden positions (MaskFeat and its family)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from videomaskfeat.data.batches import PretrainBatch
from videomaskfeat.engine.contracts import StepResult
from videomaskfeat.errors import UserError
from videomaskfeat.grid import TokenGrid
from videomaskfeat.io import file_sha256
from videomaskfeat.masking import EXACT
from videomaskfeat.methods.method import Method, check_mask_grid
from videomaskfeat.models import arguments_of, create_model_from
from videomaskfeat.models.zoo import MODELS
from videomaskfeat.recipe import PretrainRecipe
from videomaskfeat.targets.target import LossTally, Target


class MaskedPrediction(Method):
    """Normalize on the device, make the target of the whole clip, predict, compare at the hidden positions.

    Network and loss are compiled together. The target is not: on a CPU the compiled HOG is several times
    slower than the eager one (docs/performance.md).

    Args:
        recipe: see :class:`~videomaskfeat.methods.method.Method`.
        student: (clips, mask) -> predictions [B, t, h, w, K], on the target's grid.
        target: what is predicted, with its loss.
        compiled: see :class:`~videomaskfeat.methods.method.Method`.

    Raises:
        UserError: a mask that cannot be drawn.
    """

    def __init__(
        self, *, recipe: PretrainRecipe, student: nn.Module, target: Target, compiled: bool = False
    ) -> None:
        super().__init__(recipe=recipe, student=student, encoder=student, compiled=compiled)
        self.target = target
        self._example_mask = torch.from_numpy(recipe.draw_mask(np.random.default_rng(0)))
        self.loss_name = f"{target.loss_name} at hidden positions"
        self._compare = self.compile(self.compare)

    def example_mask(self) -> Tensor:
        """A mask of the recipe's ratio: some networks compute the visible positions alone."""
        return self._example_mask

    @property
    def description(self) -> str:
        """Target and mask."""
        return f"{self.recipe.target} {self.masked_positions}, ratio {self.recipe.mask.ratio:g}"

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """The hashes of the files that the target was read from."""
        return {f"the content of {path}": file_sha256(path) for path in self.target.files}

    def to(self, device: torch.device) -> None:
        """Move the target."""
        self.target.to(device)

    def loss(self, network: nn.Module, batch: PretrainBatch) -> StepResult:
        """The target's loss over the hidden positions of a batch."""
        pixels = self.pixels(batch.clips)
        return StepResult(*self._compare(network, pixels, self._target_of(pixels), batch.mask))

    def make_target(self, batch: PretrainBatch) -> Any:
        """The target of a batch."""
        return self._target_of(self.pixels(batch.clips))

    def compare(
        self, network: nn.Module, pixels: Tensor, target: Any, mask: Tensor
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Pixels [B, C, T, H, W], their target, mask bool [B, t', h', w'] -> loss [] and its parts."""
        return self.target.loss_parts(network(pixels, mask), target, mask)

    def tally(self) -> LossTally:
        """The target's own: over the hidden positions of all batches together."""
        return self.target.tally()

    def heldout_batch(self, network: nn.Module, batch: PretrainBatch) -> tuple[Tensor, Any, Tensor]:
        """Predictions, target and mask."""
        pixels = self.pixels(batch.clips)
        return network(pixels, batch.mask), self._target_of(pixels), batch.mask

    def _target_of(self, pixels: Tensor) -> Any:
        with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):
            return self.target(pixels)


def build_student(
    name: str,
    arguments: Mapping[str, Any],
    *,
    recipe: PretrainRecipe,
    target: Target,
    checkpoint_blocks: bool = False,
) -> nn.Module:
    """The named model, made for the recipe's clips and checked against mask and target.

    Args:
        name: a model that predicts at masked positions.
        arguments: differences from the named model.
        recipe: clip and mask.
        target: what it predicts.
        checkpoint_blocks: recompute activations in the backward pass.

    Raises:
        UserError: an unknown name or argument, a model that predicts nothing, a clip that the cubes do not
            tile, a mask grid that does not divide the output grid, or a target on another grid.
    """
    if name in MODELS and "values_per_token" not in arguments_of(name):
        known = [other for other in MODELS if "values_per_token" in arguments_of(other)]
        raise UserError(
            f"model.name {name!r} predicts no target, so it cannot learn {recipe.target!r}; "
            f"take one of {', '.join(known)}"
        )
    size = recipe.clip.size
    own = {
        "clip_size": size,
        "values_per_token": target.values_per_token,
        "checkpoint_blocks": checkpoint_blocks,
    }
    model = create_model_from(name, {**own, **arguments})
    output = model.output_grid((1, 3, *size))  # type: ignore[operator]
    try:
        grid = TokenGrid.from_clip(frames=size[0], height=size[1], width=size[2], stride=target.output_stride)
    except UserError as error:
        raise UserError(f"target.name {recipe.target!r}: {error}; or {target.grid_remedy}") from error
    if grid != output:
        argument = getattr(model, "grid_argument", "")
        pools = f", or the model's {argument}" if argument else ""
        raise UserError(
            f"target.name {recipe.target!r} gives values on a grid of {grid}, and {name} predicts on "
            f"{output}; {target.grid_remedy}{pools}"
        )
    check_mask_grid(recipe, output, model=name)
    if getattr(model, "equal_masks", False) and recipe.mask.kind not in EXACT:
        raise UserError(
            f"mask.kind {recipe.mask.kind!r} does not hide equally many positions of every clip, and {name} "
            f"computes the visible ones alone, equally many of each; take one of {', '.join(EXACT)}"
        )
    return model
