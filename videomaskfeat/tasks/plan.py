"""What a run is about to do, in the lines that it prints when it starts."""

from __future__ import annotations

import math

import torch
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import get_shape
from torch import nn

from videomaskfeat.config import PretrainConfig
from videomaskfeat.data.loader import ClipLoader
from videomaskfeat.engine import distributed
from videomaskfeat.grid import TokenGrid
from videomaskfeat.tasks.pretrain_parts import mask_grid


def describe_plan(
    config: PretrainConfig, model: nn.Module, loader: ClipLoader, *, device: torch.device, bf16: bool
) -> str:
    """Model, cost, tokens, data, batch and schedule of a pre-training run, a line each."""
    clip, optim = config.clip, config.optim
    size = (1, 3, clip.frames, clip.crop, clip.crop)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    ranks = distributed.world_size()
    micro = optim.batch_size // ranks // optim.accumulate
    steps = loader.batches_per_epoch // optim.accumulate
    scale = optim.batch_size / optim.base_batch_size
    tokens, output = model.token_grid(size), model.output_grid(size)  # type: ignore[operator]
    records = loader.dataset.records
    lines = [
        f"model     {config.model.name}: {parameters / 1e6:.2f} M parameters, "
        f"{multiply_adds(model, size, mask_grid(clip, config.mask)) / 1e9:.1f} G multiply-adds a clip",
        f"clip      {clip.frames} frames x stride {clip.stride}, {clip.crop}x{clip.crop} pixels: "
        f"{tokens} = {tokens.size} tokens, predictions on {output}",
        f"target    {config.target.name} at the positions that a {config.mask.kind} mask of "
        f"{mask_grid(clip, config.mask)} cells hides, ratio {config.mask.ratio:g}",
        f"data      {records.source}: {len(records)} videos",
        f"batch     {optim.batch_size} clips a step: {ranks} (processes) x {optim.accumulate} "
        f"(micro-batches) x {micro}",
        f"plan      {optim.epochs:g} epochs x {steps} steps, warm-up {optim.warmup_epochs:g}; "
        f"learning rate {optim.learning_rate * scale:.3g} = {optim.learning_rate:g} x {optim.batch_size} / "
        f"{optim.base_batch_size} clips",
        f"device    {device}, {'bf16 autocast' if bf16 else 'fp32'}, {torch.get_num_threads()} threads"
        f"{', compiled' if config.run.compile else ''}",
        f"run       {config.run.folder}",
    ]
    return "\n".join(lines)


def multiply_adds(model: nn.Module, clip_size: tuple[int, ...], mask: TokenGrid) -> float:
    """Multiply-adds of the forward pass of one clip (fvcore calls them flops), attention included."""
    was_training = model.training
    device = next(model.parameters()).device
    inputs = (
        torch.zeros(clip_size, device=device),
        torch.zeros((1, *mask.shape), dtype=torch.bool, device=device),
    )
    model.eval()
    try:
        count = FlopCountAnalysis(model, inputs)
        count.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        count.set_op_handle("aten::scaled_dot_product_attention", _attention_multiply_adds)
        count.set_op_handle("videomaskfeat::attention", _token_attention_multiply_adds)
        count.set_op_handle("prim::PythonOp._WidenQueries", _relative_multiply_adds)
        count.set_op_handle("videomaskfeat::linear", _linear_multiply_adds)
        count.set_op_handle("videomaskfeat::gelu_linear", _linear_multiply_adds)
        count.set_op_handle("videomaskfeat::depthwise_conv3d", _pooling_multiply_adds)
        return float(count.total())
    finally:
        model.train(was_training)


def _attention_multiply_adds(inputs: list[object], outputs: list[object]) -> float:
    """q [..., n, d], k [..., m, d], v [..., m, e]: n*m*d for the scores and n*m*e for the mean."""
    q, k, v = (get_shape(value) for value in inputs[:3])
    return float(math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1]))


def _token_attention_multiply_adds(inputs: list[object], outputs: list[object]) -> float:
    """The same with tokens before heads, q [B, n, M, d'], k [B, m, M, d'], v [B, m, M, d].

    What d' has beyond the head width d adds the relative bias to the scores, a matter of additions.
    """
    q, k, v = (get_shape(value) for value in inputs[:3])
    return float(math.prod(q[:-1]) * k[1] * 2 * v[-1])


def _relative_multiply_adds(inputs: list[object], outputs: list[object]) -> float:
    """Queries [B, t, h, w, M, d] against the relative vectors [t or h or w, keys, d] of each axis."""
    queries, *offsets = (get_shape(value) for value in inputs[1:])
    return float(math.prod(queries) * sum(offset[1] for offset in offsets if offset))


def _linear_multiply_adds(inputs: list[object], outputs: list[object]) -> float:
    """x [n, D], weight [D', D]."""
    return float(math.prod(get_shape(inputs[0])) * get_shape(inputs[1])[0])


def _pooling_multiply_adds(inputs: list[object], outputs: list[object]) -> float:
    """Every value of the output is a sum over the kernel of its channel, weight [C, 1, kt, kh, kw]."""
    return float(math.prod(get_shape(outputs[0])) * math.prod(get_shape(inputs[1])[2:]))
