"""Widths, heads and strides of an encoder's blocks, from where they change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from videomaskfeat.errors import UserError
from videomaskfeat.models.cubes import Triple, as_triple

WidenIn = Literal["mlp", "attention"]


class BlockPlan(NamedTuple):
    """One block: widths before and after it, its heads, and the strides of its poolings."""

    in_width: int
    out_width: int
    heads: int
    q_stride: Triple
    kv_stride: Triple


def plan_blocks(
    depth: int,
    width: int,
    heads: int,
    widen_at: Sequence[int],
    widen_in: WidenIn,
    q_pool_at: Sequence[int],
    q_pool_stride: Triple,
    kv_stride: Triple,
) -> list[BlockPlan]:
    """Widths, heads and strides of every block; see :class:`~videomaskfeat.models.mvit.MViT`.

    Raises:
        UserError: a number that cannot be, or a block that is not there.
    """
    if depth < 1 or width < 1 or heads < 1 or width % heads:
        raise UserError(
            f"depth {depth}, width {width}, heads {heads}: all must be positive, heads a divisor of width"
        )
    # The perceptron of the last block may still widen, for a block that a shortened encoder does without.
    last = depth if widen_in == "mlp" else depth - 1
    for name, blocks, limit in (("widen_at", widen_at, last), ("q_pool_at", q_pool_at, depth - 1)):
        outside = [index for index in blocks if not 0 <= index <= limit]
        if outside:
            raise UserError(f"{name} {tuple(blocks)}: a model of depth {depth} has no block {outside[0]}")
    shift = 1 if widen_in == "mlp" else 0  # a change in the perceptron is made by the block before
    plans = []
    for index in range(depth):
        q_stride = q_pool_stride if index in q_pool_at else (1, 1, 1)
        # Keys keep their grid while the queries' shrinks, except within the block that pools.
        kv_stride = as_triple(max(step // q, 1) for step, q in zip(kv_stride, q_stride, strict=True))
        heads = heads * 2 if index in widen_at else heads
        out_width = width * 2 if index + shift in widen_at else width
        plans.append(BlockPlan(width, out_width, heads, q_stride, kv_stride))
        width = out_width
    return plans
