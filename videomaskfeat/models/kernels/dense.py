"""Linear layers and attention as fast as the processor's matrix products allow.

Two things are slow in torch on x86 CPUs. Its float32 products go to MKL, which holds back on processors that
are not Intel's: oneDNN, which torch carries as well, is twice as fast there, equal elsewhere. And its fused
attention reaches a third of the speed of plain products in bfloat16, so that the unfused one wins, memory
apart. Here attention goes by blocks of queries whose scores stay in the cache, with oneDNN's products, and
its backward computes the scores again: the speed of the unfused one with the memory of the fused one.

On other devices both are torch's own, and so they are in an exported graph, which must run where this
package is not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.compiler import is_exporting

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_FEW_SCORES = 2**21  # of a whole batch: 8 MiB in float32
_SCORES_AT_ONCE = 2**20  # 2 to 4 MiB: within reach of the caches of two cores


class Linear(nn.Linear):
    """`torch.nn.Linear` with oneDNN's products in float32 on the CPU; first derivatives only there."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D']."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What :class:`Linear` does, x [..., D] and weight [D', D] -> [..., D']."""
    if not _ONEDNN or x.device.type != "cpu" or x.dtype != torch.float32:
        return F.linear(x, weight, bias)
    if torch.is_autocast_enabled("cpu") or weight.dtype != torch.float32 or is_exporting():
        return F.linear(x, weight, bias)
    return _linear(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], weight.shape[0])


class GeluLinear(nn.Linear):
    """GELU, then a linear layer.

    On the CPU the activated values are computed again in the backward pass instead of being stored: they and
    what they are computed from are the largest tensors of a perceptron. So is the low-precision copy of the
    weights under autocast, which else would be held until then. First derivatives only there.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[..., D], before the activation -> [..., D']."""
        if x.device.type != "cpu" or is_exporting():
            return super().forward(F.gelu(x))
        kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        bias = None if self.bias is None else self.bias.to(kind)
        with torch.autocast("cpu", enabled=False):
            rows = _gelu_linear(x.to(kind).reshape(-1, x.shape[-1]), self.weight, bias)
        return rows.view(*x.shape[:-1], self.out_features)


class Perceptron(nn.Module):
    """Linear, GELU, linear.

    Args:
        in_width: width of the incoming tokens.
        hidden_width: width between the two layers.
        out_width: width of the outgoing tokens.
    """

    def __init__(self, in_width: int, hidden_width: int, out_width: int) -> None:
        super().__init__()
        self.fc1 = Linear(in_width, hidden_width)
        self.fc2 = GeluLinear(hidden_width, out_width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D']."""
        return self.fc2(self.fc1(x))


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T) v without the matrix of scores in memory; the scale is the caller's.

    Args:
        q: float [B, N, M, d], tokens before heads.
        k: float [B, N", M, d].
        v: float [B, N", M, d'], another width than that of q and k if need be.

    Returns:
        [B, N, M, d'], under autocast in its type. First derivatives only on the CPU.
    """
    kind = q.device.type
    if torch.is_autocast_enabled(kind):
        q, k, v = (x.to(torch.get_autocast_dtype(kind)) for x in (q, k, v))
    if kind == "cpu" and not is_exporting():
        with torch.autocast(kind, enabled=False):  # it would take the softmax to float32
            few = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[1] <= _FEW_SCORES
            return _attention_at_once(q, k, v) if few else _blocked_attention(q, k, v)
    # The fused kernels want one width for all three, a multiple of 8.
    width = -(-max(q.shape[3], v.shape[3]) // 8) * 8
    q, k, wide_v = (F.pad(x, (0, width - x.shape[3])).transpose(1, 2) for x in (q, k, v))
    result = F.scaled_dot_product_attention(q, k, wide_v, scale=1.0).transpose(1, 2)
    return result[..., : v.shape[3]]


def _attention_at_once(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """All scores in one batched product: quicker where they fit in the cache, as in the nano models."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [B, M, N, d]
    return ((q @ k.transpose(2, 3)).softmax(dim=-1) @ v).transpose(1, 2)


def _product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a [m, c], b [n, c] -> a b^T + bias [m, n]; torch itself takes bfloat16 to oneDNN."""
    if _ONEDNN and a.dtype == torch.float32:
        return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return F.linear(a, b, bias)


def _outer_sum(a: Tensor, b: Tensor) -> Tensor:
    """a [n, p], b [n, q] -> a^T b [p, q], perhaps as a transposed view.

    oneDNN copies its first factor to transpose it, so the narrower one goes first: twice as fast if tall.
    """
    if a.dtype != torch.float32 or a.shape[1] <= b.shape[1]:
        return _product(a.t(), b.t())
    return _product(b.t(), a.t()).t()


@torch.library.custom_op("videomaskfeat::linear", mutates_args=(), device_types="cpu")
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [n, D], weight [D', D]."""
    return _product(x, weight, bias)


@torch.library.custom_op("videomaskfeat::linear_backward", mutates_args=(), device_types="cpu")
def _linear_backward(
    grad: Tensor, x: Tensor, weight: Tensor, needs_input: bool, needs_weight: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight; an empty tensor stands for one that is not needed."""
    grad_x = _product(grad, weight.t()) if needs_input else x.new_empty(0)
    grad_weight = _outer_sum(grad, x).contiguous() if needs_weight else x.new_empty(0)
    return grad_x, grad_weight


@torch.library.custom_op("videomaskfeat::gelu_linear", mutates_args=(), device_types="cpu")
def _gelu_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [n, D] before the activation, weight [D', D] perhaps of a wider type than x and bias."""
    return _product(F.gelu(x), weight.to(x.dtype), bias)


@torch.library.custom_op("videomaskfeat::gelu_linear_backward", mutates_args=(), device_types="cpu")
def _gelu_linear_backward(
    grad: Tensor, x: Tensor, weight: Tensor, needs_input: bool, needs_weight: bool
) -> tuple[Tensor, Tensor]:
    """As `_linear_backward`."""
    grad_x, grad_weight = x.new_empty(0), weight.new_empty(0)
    if needs_input:
        grad_x = torch.ops.aten.gelu_backward(_product(grad, weight.to(x.dtype).t()), x)
    if needs_weight:
        grad_weight = _outer_sum(grad, F.gelu(x)).to(weight.dtype).contiguous()
    return grad_x, grad_weight


@_gelu_linear.register_fake
@_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@_gelu_linear_backward.register_fake
@_linear_backward.register_fake
def _(
    grad: Tensor, x: Tensor, weight: Tensor, needs_input: bool, needs_weight: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if needs_input else 0), weight.new_empty(weight.shape if needs_weight else 0)


def _save_linear(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _differentiate_by(backward: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Any]:
    """The gradient function of a linear operator whose own backward operator is given."""

    def differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad
        grad_x, grad_weight = backward(grad, x, weight, needs_input, needs_weight)
        return (
            grad_x if needs_input else None,
            grad_weight if needs_weight else None,
            grad.sum(0) if needs_bias else None,
        )

    return differentiate


_linear.register_autograd(_differentiate_by(_linear_backward), setup_context=_save_linear)
_gelu_linear.register_autograd(_differentiate_by(_gelu_linear_backward), setup_context=_save_linear)


@torch.library.custom_op("videomaskfeat::attention", mutates_args=(), device_types="cpu")
def _blocked_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    batch, queries, heads, _ = q.shape
    result = q.new_empty(batch, queries, heads, v.shape[3])
    step = max(_SCORES_AT_ONCE // k.shape[1], 1)
    for sample in range(batch):
        for head in range(heads):
            keys, values = k[sample, :, head].contiguous(), v[sample, :, head].t().contiguous()
            for start in range(0, queries, step):
                rows = slice(start, start + step)
                shares = _product(q[sample, rows, head], keys).softmax(dim=-1)  # [rows, N"]
                result[sample, rows, head] = _product(shares, values)
    return result


@torch.library.custom_op("videomaskfeat::attention_backward", mutates_args=(), device_types="cpu")
def _blocked_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    batch, queries, heads, _ = q.shape
    grad_q = torch.empty_like(q, memory_format=torch.contiguous_format)
    # Summed over blocks of queries in float32 whatever the type of the rest.
    grad_k, grad_v = (x.new_zeros(x.shape, dtype=torch.promote_types(x.dtype, torch.float32)) for x in (k, v))
    step = max(_SCORES_AT_ONCE // k.shape[1], 1)
    for sample in range(batch):
        for head in range(heads):
            keys, values = k[sample, :, head].contiguous(), v[sample, :, head].contiguous()
            for start in range(0, queries, step):
                block = (sample, slice(start, start + step), head)
                block_q, block_grad = q[block].contiguous(), grad[block].contiguous()
                shares = _product(block_q, keys).softmax(dim=-1)  # [rows, N"]
                grad_v[sample, :, head] += _outer_sum(shares, block_grad)
                grad_shares = _product(block_grad, values)
                grad_scores = torch._softmax_backward_data(grad_shares, shares, -1, shares.dtype)
                grad_q[block] = _product(grad_scores, keys.t())
                grad_k[sample, :, head] += _outer_sum(grad_scores, block_q)
    return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype)


@_blocked_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q.new_empty(*q.shape[:3], v.shape[3])


@_blocked_attention_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save_attention(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate_attention(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _blocked_attention_backward(grad, *ctx.saved_tensors)


_blocked_attention.register_autograd(_differentiate_attention, setup_context=_save_attention)
