"""The pooled attention of the first, a strided and a late block of MViTv2-S at 16x224."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.baseline import PlainAttention
from benchmarks.harness import SIZES, Row, alternate, full_float32, size_name
from videomaskfeat.grid import TokenGrid
from videomaskfeat.models.mvit import PooledAttention

Triple = tuple[int, int, int]
# block: width, heads, grid, stride of the queries, stride of keys and values
BLOCKS: dict[str, tuple[int, int, Triple, Triple, Triple]] = {
    "0": (96, 1, (8, 56, 56), (1, 1, 1), (1, 8, 8)),
    "3": (384, 4, (8, 28, 28), (1, 2, 2), (1, 2, 2)),
    "4 to 13": (384, 4, (8, 14, 14), (1, 1, 1), (1, 2, 2)),
}


def run(*, device: str, dry: bool = False) -> list[Row]:
    """Time forward and backward of both sides with the same weights, in both precisions."""
    rows = []
    size = SIZES[size_name(device, dry)]
    for block, (width, heads, grid, q_stride, kv_stride) in BLOCKS.items():
        if dry:
            grid = (2, 16, 16)
        torch.manual_seed(0)
        ours = PooledAttention(
            width, width, heads, grid=TokenGrid(*grid), q_stride=q_stride, kv_stride=kv_stride
        ).to(device)
        plain = PlainAttention(width, heads, grid, q_stride, kv_stride).to(device)
        plain.load_state_dict(ours.state_dict())
        tokens = torch.randn(size.batch, 1 + TokenGrid(*grid).size, width, device=device)
        with torch.no_grad(), full_float32():
            expected = plain(tokens, grid)[0]
            torch.testing.assert_close(ours(tokens, TokenGrid(*grid))[0], expected, atol=1e-4, rtol=0)
        for precision in size.precisions:
            functions = {
                "ours": _step(ours, tokens, TokenGrid(*grid), precision),
                "baseline": _step(plain, tokens, grid, precision),
            }
            seconds = alternate(functions, rounds=size.rounds, warmup=2, device=device)
            figures = (1e3 * seconds["ours"], 1e3 * seconds["baseline"], "ms")
            note = f"forward and backward, batch {size.batch}"
            rows.append(Row(f"attention of block {block}, {precision}", *figures, note=note))
    return rows


def _step(module: nn.Module, tokens: Tensor, grid: object, precision: str) -> Callable[[], None]:
    def step() -> None:
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=precision == "bf16"):
            result, _ = module(tokens.requires_grad_(), grid)
        result.float().sum().backward()
        module.zero_grad(set_to_none=True)

    return step
