"""The number of CPU threads with which a trained model computes."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from videomaskfeat.engine import distributed
from videomaskfeat.engine.threads import choose_threads
from videomaskfeat.inference.multiview import evaluating
from videomaskfeat.machine import keep_freed_memory
from videomaskfeat.recipe import ClipRecipe

logger = logging.getLogger(__name__)


def choose_inference_threads(
    model: nn.Module,
    clip: ClipRecipe,
    *,
    device: torch.device,
    bf16: bool,
    workers: int = 0,
    network: Callable[[Tensor], object] | None = None,
) -> None:
    """Let torch compute with the number of threads that is fastest for one clip now; do nothing on a GPU.

    Args:
        model: put into evaluation mode meanwhile.
        clip: the size of its clips.
        device: of the model.
        bf16: run it under bf16 autocast.
        workers: loader processes of this rank.
        network: what is run, float [1, C, T, H, W] -> anything; None: the model.
    """
    if device.type != "cpu":
        return
    keep_freed_memory()
    pixels = torch.zeros(1, 3, clip.frames, clip.crop, clip.crop)
    run = network or model

    def work() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            run(pixels)

    with evaluating(model):
        choice = choose_threads(work, workers=workers)
    if choice.seconds and distributed.is_main():
        logger.info("threads   %s", choice)
