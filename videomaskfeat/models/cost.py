"""Multiply-adds and parameters of a model."""

from __future__ import annotations

import math
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import get_shape
from torch import nn

from videomaskfeat.models.kernels.choice import Kernels, using_kernels


def describe_parameters(model: nn.Module, how: str) -> str:
    """Number of parameters; if some are frozen, also that of the trained ones, and ``how`` it came about."""
    counts = [(one.numel(), one.requires_grad) for one in model.parameters()]
    total, learned = sum(count for count, _ in counts), sum(count for count, trained in counts if trained)
    share = f"{learned / 1e6:.2f} M" if learned >= 10_000 else f"{learned / 1e3:.2f} K"
    frozen = "" if learned == total else f" ({share} learned, {how})"
    return f"{total / 1e6:.2f} M parameters{frozen}"


def multiply_adds(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> float:
    """Multiply-adds of one forward pass, attention included (fvcore calls them flops).

    As in published counts, the keys and values of all tokens count, also those that MViTv2 does not compute.
    """
    was_training = model.training
    partial: list[Any] = [module for module in model.modules() if getattr(module, "reads_a_part", False)]
    device = next(model.parameters()).device
    inputs = tuple(value.to(device) for value in inputs)
    model.eval()
    try:
        for module in partial:
            module.reads_a_part = False
        count = FlopCountAnalysis(model, inputs)
        count.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        count.set_op_handle("aten::scaled_dot_product_attention", _attention_multiply_adds)
        count.set_op_handle("videomaskfeat::attention", _token_attention_multiply_adds)
        count.set_op_handle("prim::PythonOp._WidenQueries", _relative_multiply_adds)
        count.set_op_handle("prim::PythonOp._BlockedRelative", _relative_attention_multiply_adds)
        count.set_op_handle("videomaskfeat::linear", _linear_multiply_adds)
        count.set_op_handle("videomaskfeat::gelu_linear", _linear_multiply_adds)
        count.set_op_handle("videomaskfeat::normed_linear", _normed_linear_multiply_adds)
        count.set_op_handle("videomaskfeat::depthwise_conv3d", _pooling_multiply_adds)
        with using_kernels(Kernels()):  # the handles above are of these
            return float(count.total())
    finally:
        model.train(was_training)
        for module in partial:
            module.reads_a_part = True


def _attention_multiply_adds(inputs: list[object], outputs: list[object]) -> float:
    """q [..., n, d], k [..., m, d], v [..., m, e]: n*m*d for the scores, n*m*e for the weighted mean."""
    q, k, v = (get_shape(value) for value in inputs[:3])
    return float(math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1]))


def _token_attention_multiply_adds(inputs: list[object], outputs: list[object]) -> float:
    """q [B, n, M, d'], k [B, m, M, d'], v [B, m, M, d]; d' - d columns only add the relative bias."""
    q, k, v = (get_shape(value) for value in inputs[:3])
    return float(math.prod(q[:-1]) * k[1] * 2 * v[-1])


def _relative_multiply_adds(inputs: list[object], outputs: list[object]) -> float:
    """Queries [B, t, h, w, M, d] times the relative vectors [length, keys, d] of each axis."""
    queries, *offsets = (get_shape(value) for value in inputs[1:])
    return float(math.prod(queries) * sum(offset[1] for offset in offsets if offset))


def _relative_attention_multiply_adds(inputs: list[object], outputs: list[object]) -> float:
    """Queries of the class token and the grid, keys, values, codes, and the vectors of each axis."""
    first, queries, k, v, _, *offsets = inputs
    bias = _relative_multiply_adds([first, queries, *offsets], outputs)
    rows = math.prod(get_shape(first)[:3]) + math.prod(get_shape(queries)[:5])  # over samples, tokens, heads
    return bias + float(rows * get_shape(k)[1] * 2 * get_shape(v)[3])


def _linear_multiply_adds(inputs: list[object], outputs: list[object]) -> float:
    """x [n, D], weight [D', D]."""
    return float(math.prod(get_shape(inputs[0])) * get_shape(inputs[1])[0])


def _normed_linear_multiply_adds(inputs: list[object], outputs: list[object]) -> float:
    """x [n, D], norm, weight [D', D]; fvcore counts five per value for a layer norm."""
    x, weight = get_shape(inputs[0]), get_shape(inputs[4])
    return float(math.prod(x) * (weight[0] + 5))


def _pooling_multiply_adds(inputs: list[object], outputs: list[object]) -> float:
    """One multiply-add per output value and kernel element; weight [C, 1, kt, kh, kw]."""
    return float(math.prod(get_shape(outputs[0])) * math.prod(get_shape(inputs[1])[2:]))
