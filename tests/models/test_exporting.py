"""Exported models consist of torch's own operators and have equal outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from videomaskfeat.models.maskfeat import MaskFeat
from videomaskfeat.models.mvit import MViT, PooledAttention
from videomaskfeat.models.zoo import with_head

SMALL: dict[str, Any] = {
    "clip_size": (4, 32, 32),
    "depth": 3,
    "width": 16,
    "widen_at": (1,),
    "q_pool_at": (1,),
    "kv_stride": (1, 4, 4),
    "drop_path": 0.2,
}


def traced(model: nn.Module, *inputs: Tensor) -> torch.export.ExportedProgram:
    """The model's graph for any batch size; all operators are torch's and have no side effects."""
    batch = {0: torch.export.Dim("B")}
    program = torch.export.export(model, inputs, dynamic_shapes=tuple(batch for _ in inputs))
    graphs = [module.graph for module in program.graph_module.modules() if hasattr(module, "graph")]
    targets = [node.target for graph in graphs for node in graph.nodes if node.op == "call_function"]
    operators = [target for target in targets if isinstance(target, torch._ops.OpOverload)]
    assert len(operators) > 50
    assert {operator.namespace for operator in operators} == {"aten"}
    assert not [operator for operator in operators if operator._schema.is_mutable]
    return program


@pytest.mark.parametrize(
    "arguments",
    [
        {"widen_in": "mlp"},
        {"widen_in": "attention", "class_token": False, "relative_time": False},
        {"qkv_bias": False, "relative_space": False, "absolute_positions": "joint"},
        {"residual_pooling": False, "heads": 2},
        # A large key stride, for which the eager convolution has its own code; resized tables and positions.
        {"kv_stride": (1, 8, 8), "clip_size": (8, 64, 64), "absolute_positions": "separable"},
    ],
)
def test_encoder_is_exported_as_torch_operators(arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = MViT(**{**SMALL, **arguments}).eval()
    program = traced(model, torch.randn(2, 3, 4, 32, 32))
    for batch in (1, 3):
        clips = torch.randn(batch, 3, 4, 32, 32)
        # float32 sums in another order, of values of a few units.
        torch.testing.assert_close(program.module()(clips), model(clips), atol=2e-5, rtol=1e-5)


def test_predictor_is_exported_with_its_mask() -> None:
    torch.manual_seed(0)
    model = with_head(MaskFeat, MViT)(**SMALL, blank_hidden=True).eval()
    program = traced(model, torch.randn(2, 3, 4, 32, 32), torch.rand(2, 2, 2, 2) < 0.4)
    clips, mask = torch.randn(3, 3, 4, 32, 32), torch.rand(3, 2, 2, 2) < 0.4
    assert mask.any()
    torch.testing.assert_close(program.module()(clips, mask), model(clips, mask), atol=2e-5, rtol=1e-5)


def test_eager_attention_keeps_its_own_operators() -> None:
    """After an export, eager models still use the fast operators."""
    from videomaskfeat.grid import TokenGrid

    grid = TokenGrid(2, 32, 32)
    layer = PooledAttention(16, 16, 1, grid=grid, kv_stride=(1, 4, 4)).eval()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        layer(torch.randn(2, 1 + grid.size, 16), grid)
    own = {event.key for event in profile.key_averages() if event.key.startswith("videomaskfeat::")}
    assert {"videomaskfeat::depthwise_conv3d", "videomaskfeat::linear"} <= own
