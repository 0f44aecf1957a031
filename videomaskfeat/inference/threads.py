"""The number of CPU threads for inference."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from videomaskfeat.engine import distributed
from videomaskfeat.engine.threads import choose_threads
from videomaskfeat.inference.multiview import Machine, evaluation_mode
from videomaskfeat.machine import keep_freed_memory
from videomaskfeat.models.kernels.measure import Shapes, choose_kernels
from videomaskfeat.recipe import ClipRecipe

logger = logging.getLogger(__name__)


def choose_inference_threads(
    model: nn.Module,
    clip: ClipRecipe,
    machine: Machine,
    *,
    network: Callable[[Tensor], object] | None = None,
) -> None:
    """Set torch's number of CPU threads, and the kernels, to the fastest for a clip; on a GPU do nothing.

    Args:
        model: runs in evaluation mode; its modes are restored.
        clip: defines the size of the clip.
        machine: device, precision and number of loader workers.
        network: function of a clip float [1, C, T, H, W] that is timed; None: the model.
    """
    if machine.torch_device.type != "cpu":
        return
    keep_freed_memory()
    pixels = torch.zeros(1, 3, *clip.size)

    def work() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=machine.bf16):
            (network or model)(pixels)

    with evaluation_mode(model):
        choice = choose_threads(work, workers=machine.workers)
    if choice.seconds and distributed.is_main():
        logger.info("threads   %s", choice)
    kernels = choose_kernels(bf16=machine.bf16, shapes=Shapes.of(model))
    if kernels.milliseconds and distributed.is_main():
        logger.info("kernels   %s", kernels)
