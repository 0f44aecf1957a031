"""Detectors of actions from a weights file: from clips and boxes to a score for each box and action."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor

from videomaskfeat.errors import UserError
from videomaskfeat.metrics.action_scores import action_scores
from videomaskfeat.models.detector import Detector
from videomaskfeat.models.weights import load_model
from videomaskfeat.tasks.detection.detect_recipe import DetectRecipe, read_detect_recipe
from videomaskfeat.tasks.recipe import normalise
from videomaskfeat.tasks.threads import choose_inference_threads


@dataclass(frozen=True)
class LoadedDetector:
    """A detector and how it sees key frames.

    Attributes:
        model: clips and boxes -> logits, in evaluation mode on its device.
        recipe: see :class:`~videomaskfeat.tasks.detection.detect_recipe.DetectRecipe`.
        device: where the model is.
        bf16: run it under bf16 autocast.
    """

    model: Detector
    recipe: DetectRecipe
    device: torch.device
    bf16: bool = False

    @torch.no_grad()
    def scores(self, clips: Tensor, boxes: Tensor) -> Tensor:
        """How sure it is of each action of each box.

        Args:
            clips: uint8 [B, T, H, W, C], H and W multiples of the cube (4 pixels; nano: 8).
            boxes: float [R, 5]: place in the batch, then x1, y1, x2, y2 in pixels of the clip.

        Returns:
            float32 [R, L] on the CPU, in 0..1; column i is of the action with the id i + 1.
        """
        pixels = normalise(clips.to(self.device), mean=self.recipe.clip.mean, std=self.recipe.clip.std)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.model(pixels, boxes.to(self.device))
        return action_scores(logits.float(), self.recipe.pose_mask).cpu()

    def choose_threads(self, *, workers: int = 0) -> None:
        """Compute with the number of CPU threads that is fastest for this detector, for the whole process.

        Args:
            workers: loader processes of this rank.
        """
        whole = torch.tensor([[0.0, 0.0, 0.0, self.recipe.clip.crop, self.recipe.clip.crop]])
        choose_inference_threads(
            self.model,
            self.recipe.clip,
            device=self.device,
            bf16=self.bf16,
            workers=workers,
            network=lambda clips: self.model(clips, whole),
        )


def load_detector(
    weights: str | os.PathLike[str], *, device: str | torch.device = "cpu", bf16: bool = False
) -> LoadedDetector:
    """The detector that ``detect-train`` wrote.

    Args:
        weights: its safetensors file.
        device: where the model goes.
        bf16: run it under bf16 autocast.

    Raises:
        UserError: no such file, weights of another kind, or a damaged file.
    """
    recipe = read_detect_recipe(weights)
    model = load_model(weights, device=device)
    if not isinstance(model, Detector) or model.classes != recipe.classes:
        raise UserError(
            f"{os.fspath(weights)}: its recipe is that of a detector of {recipe.classes} actions, and its "
            f"model a {type(model).__name__} of {getattr(model, 'classes', 'no')}; the file was put together "
            "from two: take the one that detect-train wrote"
        )
    return LoadedDetector(model, recipe, torch.device(device), bf16)
