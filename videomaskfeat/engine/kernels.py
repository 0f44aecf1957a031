"""The kernels of a run, which a resumed run keeps."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from videomaskfeat.engine import distributed
from videomaskfeat.engine.run_folder import stored_run_section


def choose_run_kernels(config: Any, model: nn.Module, *, bf16: bool, device: torch.device) -> Any:
    """Set the kernels for a training; all ranks must call it and get the same ones.

    A resumed run keeps its kernels, since others round differently. Runs from before the key have the default
    ones.

    Args:
        config: config of the training.
        model: the model, for its shapes.
        bf16: whether it runs in bfloat16.
        device: device of the training.

    Returns:
        The :class:`~videomaskfeat.models.kernels.measure.KernelChoice`.

    Raises:
        UserError: ``run.kernels`` has an unknown operation or kernel.
    """
    from videomaskfeat.models.kernels.choice import AUTO, DEFAULT, Kernels
    from videomaskfeat.models.kernels.measure import Shapes, apply_kernels, choose_kernels

    def choose() -> Any:
        text, earlier = config.run.kernels, stored_run_section(config)
        if earlier is not None and text != DEFAULT:
            stored = str(Kernels()) if earlier.kernels == AUTO else earlier.kernels
            text = stored if text == AUTO else f"{stored}, {text}"
        return choose_kernels(text, bf16=bf16, shapes=Shapes.of(model), device=device.type)

    choice = distributed.run_on_main(choose)
    apply_kernels(choice.kernels)
    return choice
