"""``method: masked``: predict a target in the hidden places (MaskFeat and its family)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from videomaskfeat.data.batches import PretrainBatch
from videomaskfeat.engine.contracts import StepResult
from videomaskfeat.io import file_sha256
from videomaskfeat.jobs.pretrain_building import build_model, draw_mask, mask_grid
from videomaskfeat.methods.method import HeldOutLoss, Method, build_target, heldout_loss
from videomaskfeat.recipe import normalize
from videomaskfeat.schemas import PretrainConfig


class MaskedPrediction(Method):
    """Normalise on the device, make the target of the whole clip, predict, compare where it was hidden.

    With ``run.compile`` network and loss are compiled. The target stays outside: on a CPU the compiled HOG is
    several times slower than the eager one (docs/performance.md).
    """

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__(config)
        self.target = build_target(
            config.target.name, config.target.arguments, mean=self.recipe.clip.mean, std=self.recipe.clip.std
        )
        self.student = build_model(config, self.target)
        self._mask = torch.from_numpy(draw_mask(config))[None]
        self.loss_name = f"{self.target.loss_name} at hidden positions"
        compare: Callable[..., tuple[Tensor, Mapping[str, Tensor]]] = self.compare
        self._compare = torch.compile(compare) if config.run.compile else compare

    @property
    def example(self) -> tuple[Tensor, ...]:
        """A clip and a mask."""
        return (*super().example, self._mask)

    @property
    def aim(self) -> str:
        """Target and mask."""
        mask = self.config.mask
        return (
            f"{self.config.target.name} at the positions that a {mask.kind} mask of "
            f"{mask_grid(self.config.clip, mask)} cells hides, ratio {mask.ratio:g}"
        )

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """The hashes of the files that the target was read from."""
        return {f"the content of {path}": file_sha256(path) for path in self.target.files}

    def to(self, device: torch.device) -> None:
        """Move the target."""
        self.target.to(device)

    def loss(self, network: nn.Module, batch: PretrainBatch) -> StepResult:
        """The target's loss over the hidden positions of a batch."""
        pixels = self._pixels(batch)
        return StepResult(*self._compare(network, pixels, self._target_of(pixels), batch.mask))

    def make_target(self, batch: PretrainBatch) -> Any:
        """The target of a batch."""
        return self._target_of(self._pixels(batch))

    def compare(
        self, network: nn.Module, pixels: Tensor, target: Any, mask: Tensor
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Pixels [B, C, T, H, W], their target, mask bool [B, t', h', w'] -> loss [] and its parts."""
        return self.target.loss_parts(network(pixels, mask), target, mask)

    def heldout(self, batches: Iterable[PretrainBatch], *, autocast: torch.autocast) -> HeldOutLoss:
        """The target's loss over the hidden positions of all batches together."""
        pairs = ((self._pixels(batch), batch.mask) for batch in batches)
        return heldout_loss(self.student, self.target, pairs, autocast=autocast)

    def _target_of(self, pixels: Tensor) -> Any:
        with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):
            return self.target(pixels)

    def _pixels(self, batch: PretrainBatch) -> Tensor:
        """The clips of a batch, normalised, float [B, C, T, H, W]."""
        return normalize(batch.clips, mean=self.recipe.clip.mean, std=self.recipe.clip.std)
