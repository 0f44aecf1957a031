"""The number of CPU threads with which a trained model computes."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from videomaskfeat.engine import distributed
from videomaskfeat.engine.threads import choose_threads
from videomaskfeat.inference.multiview import Machine, evaluation_mode
from videomaskfeat.machine import keep_freed_memory
from videomaskfeat.recipe import ClipRecipe

logger = logging.getLogger(__name__)


def choose_inference_threads(
    model: nn.Module,
    clip: ClipRecipe,
    machine: Machine,
    *,
    network: Callable[[Tensor], object] | None = None,
) -> None:
    """Set torch's number of CPU threads to the fastest one for a single clip; on a GPU do nothing.

    Args:
        model: put into evaluation mode meanwhile.
        clip: the size of its clips.
        machine: on what the model runs, and the number of its loader processes.
        network: what is run, float [1, C, T, H, W] -> anything; None: the model.
    """
    if machine.place.type != "cpu":
        return
    keep_freed_memory()
    pixels = torch.zeros(1, 3, clip.frames, clip.crop, clip.crop)
    run = network or model

    def work() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=machine.bf16):
            run(pixels)

    with evaluation_mode(model):
        choice = choose_threads(work, workers=machine.workers)
    if choice.seconds and distributed.is_main():
        logger.info("threads   %s", choice)
