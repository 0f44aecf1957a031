"""Memory of a training step: an estimate, the blocks to recompute for a budget, and the message when full."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from videomaskfeat.engine import distributed
from videomaskfeat.errors import RunFailed, UserError, counted

_CPU_IS_FULL = "DefaultCPUAllocator: can't allocate memory"  # torch raises a plain RuntimeError
_RECOMPUTED = 2.5  # memory in the backward pass of a recomputed block, as a multiple of what it saves


@dataclass(frozen=True)
class StepMemory:
    """Bytes that a training step needs, measured in the forward pass of one and of two samples.

    Attributes:
        fixed: weights, gradients, the optimizer's moments, and what is saved once per step.
        blocks: per block, saved for the backward pass per sample.
        inputs: per block, of its input per sample, which alone is saved if the block is recomputed.
        rest: saved outside the blocks, per sample.
    """

    fixed: int
    blocks: tuple[int, ...]
    inputs: tuple[int, ...]
    rest: int

    def total(self, samples: int, recomputed: Collection[int] = ()) -> int:
        """Estimated peak of a step of ``samples`` at once, with some blocks recomputed.

        While a block is differentiated, the gradients of its activations take about as much as these. A
        recomputed block also needs its activations again, and what its forward pass needs besides.
        """
        saved = sum(
            self.inputs[index] if index in recomputed else size for index, size in enumerate(self.blocks)
        )
        working = max(
            (size * (_RECOMPUTED if index in recomputed else 1) for index, size in enumerate(self.blocks)),
            default=0,
        )
        return self.fixed + round(samples * (saved + self.rest + working))

    def blocks_to_recompute(self, samples: int, budget: float) -> list[int] | None:
        """The fewest blocks, largest first, with which a step fits into ``budget`` bytes; None: none do."""
        gains = [size - inputs for size, inputs in zip(self.blocks, self.inputs, strict=True)]
        order = sorted(range(len(gains)), key=lambda index: -gains[index])
        for count in range(len(order) + 1):
            if self.total(samples, order[:count]) <= budget:
                return sorted(order[:count])
        return None


def measure_step_memory(
    model: nn.Module, blocks: Sequence[nn.Module], inputs: Sequence[Tensor], *, bf16: bool, averaged: bool
) -> StepMemory:
    """Measure what the forward pass of a model saves for the backward pass; the model is not changed.

    Args:
        model: the model on its device, without recomputed blocks.
        blocks: its blocks.
        inputs: arguments of the model for one sample, on its device.
        bf16: run under autocast in bfloat16.
        averaged: whether the run has a moving average of the weights.
    """
    one, two = (
        _saved(model, blocks, [torch.cat([x] * samples) for x in inputs], bf16=bf16) for samples in (1, 2)
    )
    # Copies of the weights in bfloat16 are saved once, whatever the number of samples.
    per_sample = [max(later - sooner, 0) for sooner, later in zip(one, two, strict=True)]
    once = sum(max(2 * sooner - later, 0) for sooner, later in zip(one, two, strict=True))
    count = len(blocks)
    weights = [parameter.numel() * parameter.element_size() for parameter in model.parameters()]
    trained = [
        size for size, parameter in zip(weights, model.parameters(), strict=True) if parameter.requires_grad
    ]
    fixed = sum(weights) * (2 if averaged else 1) + 3 * sum(trained) + once
    return StepMemory(
        fixed, tuple(per_sample[:count]), tuple(per_sample[count : 2 * count]), per_sample[2 * count]
    )


def _saved(
    model: nn.Module, blocks: Sequence[nn.Module], inputs: Sequence[Tensor], *, bf16: bool
) -> list[int]:
    """Bytes saved in each block, bytes of each block's input, and bytes saved elsewhere."""
    count, outside = len(blocks), 2 * len(blocks)
    sizes = [0] * (outside + 1)
    place = [outside]
    seen = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    seen |= {x.untyped_storage().data_ptr() for x in inputs}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            sizes[place[0]] += storage.nbytes()
        return tensor

    def enter(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            place[0] = index
            sizes[count + index] = arguments[0].numel() * arguments[0].element_size()

        return hook

    def leave(module: nn.Module, arguments: tuple[Any, ...], result: Any) -> None:
        place[0] = outside

    handles = [block.register_forward_pre_hook(enter(index)) for index, block in enumerate(blocks)]
    handles += [block.register_forward_hook(leave) for block in blocks]
    device = inputs[0].device
    try:
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            torch.enable_grad(),
            torch.autocast(device.type, torch.bfloat16, enabled=bf16),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            # Not the compiled form of the model: it would be compiled for one and two samples, and its saved
            # tensors belong to no block. While the result lives, no storage is used twice.
            result = model._call_impl(*inputs)
        del result
    finally:
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
    return sizes


def fit_memory(memory: StepMemory, samples: int, *, budget_gb: float, accumulate: int) -> list[int]:
    """Indices of the blocks to recompute so that a step fits into the budget.

    Args:
        memory: of the step.
        samples: samples per micro-batch.
        budget_gb: ``run.memory_gb`` [10^9 bytes].
        accumulate: micro-batches per step, for the message.

    Raises:
        UserError: a step does not fit even if all blocks are recomputed.
    """
    recomputed = memory.blocks_to_recompute(samples, 1e9 * budget_gb)
    if recomputed is None:
        least = memory.total(samples, range(len(memory.blocks)))
        room = 1e9 * budget_gb - memory.fixed
        each = (least - memory.fixed) / samples
        fit = int(room // each)
        remedy = (
            f"set optim.accumulate={accumulate * -(-samples // fit)} (the same batch in smaller "
            "micro-batches)"
            if fit >= 1
            else "use a smaller model or smaller clips"
        )
        raise UserError(
            f"run.memory_gb={budget_gb:g}: a step with {counted(samples, 'sample')} at once needs about "
            f"{least / 1e9:.2g} GB even if the activations of all blocks are recomputed; {remedy}, or lower "
            "optim.batch_size"
        )
    return recomputed


def plan_memory(
    config: Any, model: nn.Module, blocks: Sequence[nn.Module], example: Sequence[Tensor], *, bf16: bool
) -> tuple[str, list[int]]:
    """The memory of a training step as text, empty if it was not estimated, and the blocks to recompute.

    Args:
        config: config of the training.
        model, blocks, example, bf16: see :func:`measure_step_memory`.

    Raises:
        UserError: see :func:`fit_memory`.
    """
    run, optim, device = config.run, config.optim, example[0].device
    if run.activation_checkpointing or not (device.type == "cuda" or run.memory_gb):
        return "", []
    samples = optim.batch_size // distributed.world_size() // optim.accumulate
    memory = measure_step_memory(model, blocks, example, bf16=bf16, averaged=optim.ema_decay is not None)
    recomputed: list[int] = []
    if run.memory_gb is not None:
        recomputed = fit_memory(memory, samples, budget_gb=run.memory_gb, accumulate=optim.accumulate)
        note = f" of run.memory_gb={run.memory_gb:g}; recomputed blocks: {recomputed or 'none'}"
    else:
        free = torch.cuda.mem_get_info(device)[0]
        note = f" of {free / 1e9:.1f} GB free"
        if memory.total(samples) > free:
            note += "; it does not fit: set run.memory_gb or run.activation_checkpointing=true, or raise "
            note += "optim.accumulate"
    return f"about {memory.total(samples, recomputed) / 1e9:.2g} GB{note}", recomputed


@contextmanager
def explained_out_of_memory(config: Any, device: torch.device) -> Iterator[None]:
    """A context that ends with one line, with the remedies, if a step needs more memory than the device has.

    Raises:
        RunFailed: instead of torch's error.
    """
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or _CPU_IS_FULL in str(error)):
            raise
        optim, memory = config.optim, ""
        ranks = distributed.world_size()
        if device.type == "cuda":
            memory = f", which has {torch.cuda.get_device_properties(device).total_memory / 1e9:.0f} GB"
        remedies = ["run.activation_checkpointing=true"] * (not config.run.activation_checkpointing)
        remedies.append("a smaller optim.batch_size")
        raise RunFailed(
            f"out of memory on {device}{memory}: a step of optim.batch_size={optim.batch_size} on "
            f"{ranks} process{'es' * (ranks > 1)} computes "
            f"{optim.batch_size // ranks // optim.accumulate} samples at once; use "
            f"optim.accumulate={2 * optim.accumulate} (the same batch in smaller micro-batches), "
            f"{' or '.join(remedies)}; checkpoints are kept"
        ) from error
