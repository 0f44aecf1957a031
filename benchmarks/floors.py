"""Counts of a pre-training step, and the time that they need at least on a GPU; nothing is measured.

    python -m benchmarks.floors

Floating-point operations: twice the multiply-adds of the forward pass (`models/cost.py`), three times for
forward and backward pass. Bytes: everything that must be moved between the GPU's memory and its processors if
each operator reads its inputs once and writes its outputs once, with perfect fusion within the operators that
have a kernel of their own: what the forward pass saves for the backward pass is written once and read once,
its gradients are written once and read once, and weights, gradients and moments pass once through the
optimizer. The step cannot be faster than the larger one of the two times.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from videomaskfeat.engine.memory import measure_step_memory
from videomaskfeat.models import create_model
from videomaskfeat.models.cost import multiply_adds

TERAFLOPS, TERABYTES = 790.0, 4.3  # per second: bf16 matrix products, and memory, seen on an H200
CASES = {
    "MViTv2-S, HOG": ("maskfeat_mvitv2_s", 0.4),
    "MViTv2-L, HOG": ("maskfeat_mvitv2_l", 0.4),
    "ViT-L, MAE, 90 % hidden": ("mae_vit_l", 0.9),
}
# Bytes per weight of a step in bf16: read in float32 and written in bf16 before the forward pass (4 + 2),
# read in bf16 by both passes (2 + 2), gradient written (4), and by AdamW weight, gradient and two moments
# read and three written (16 + 12).
BYTES_PER_WEIGHT = 4 + 2 + 2 + 2 + 4 + 16 + 12


@dataclass(frozen=True)
class Floor:
    """Counts of a step per clip, and of the weights per step.

    Attributes:
        weights: number of weights.
        operations: floating-point operations per clip, forward and backward.
        bytes: bytes per clip.
    """

    weights: int
    operations: float
    bytes: float

    def seconds(self, clips: int) -> tuple[float, float]:
        """Least time of a step for its operations, and for its bytes."""
        moved = clips * self.bytes + BYTES_PER_WEIGHT * self.weights
        return clips * self.operations / (1e12 * TERAFLOPS), moved / (1e12 * TERABYTES)

    def clips_per_second(self, clips: int) -> float:
        """Most clips per second with this batch size."""
        return clips / max(self.seconds(clips))


def count(name: str, hidden: float, *, clip: tuple[int, int, int] = (16, 224, 224)) -> Floor:
    """Count a step of a named model in bf16 on clips of a size, with a share of hidden positions."""
    model = create_model(name, clip_size=clip).train()
    mask = torch.zeros(1, *model.output_grid((1, 3, *clip)).shape, dtype=torch.bool)
    mask.flatten()[: round(hidden * mask.numel())] = True
    inputs = [torch.zeros(1, 3, *clip), mask]
    memory = measure_step_memory(model, list(model.blocks), inputs, bf16=True, averaged=False)
    saved = sum(memory.blocks) + memory.rest
    # Written and read once each: what is saved, and the gradients of the same tensors.
    return Floor(
        weights=sum(parameter.numel() for parameter in model.parameters()),
        operations=6 * multiply_adds(model, tuple(inputs)),
        bytes=4 * saved,
    )


def main() -> None:
    """Print the table of docs/performance.md."""
    print("| | weights | TFLOP per clip | GB per clip | batch | TFLOP floor | byte floor | clips/s at most |")
    print("|---|---|---|---|---|---|---|---|")
    for title, (name, hidden) in CASES.items():
        floor = count(name, hidden)
        for clips in (16, 64):
            operations, moved = floor.seconds(clips)
            print(
                f"| {title} | {floor.weights / 1e6:.0f} M | {floor.operations / 1e12:.3f} "
                f"| {floor.bytes / 1e9:.2f} | {clips} | {1e3 * operations:.1f} ms | {1e3 * moved:.1f} ms "
                f"| {floor.clips_per_second(clips):.0f} |"
            )


if __name__ == "__main__":
    main()
