"""The whole step compiles into one graph."""

from __future__ import annotations

import torch
import torch._dynamo.utils
from torch import Tensor

from videomaskfeat.losses import masked_mse
from videomaskfeat.models import create_model
from videomaskfeat.targets.hog import HogTarget


def test_step_compiles_without_graph_breaks() -> None:
    torch.manual_seed(0)
    arguments = {"depth": 2, "width": 16, "widen_at": (1,), "q_pool_at": (1,), "clip_size": (4, 32, 32)}
    model = create_model("maskfeat_mvitv2_nano", **arguments, blank_hidden=True)
    target = HogTarget(output_stride=model.output_stride)

    def step(clips: Tensor, mask: Tensor) -> Tensor:
        return masked_mse(model(clips, mask), target(clips), mask)

    clips, mask = torch.randn(2, 3, 4, 32, 32), torch.rand(2, 2, 2, 2) < 0.4
    loss = step(clips, mask)
    expected = torch.autograd.grad(loss, list(model.parameters()))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    # A graph break raises with fullgraph=True; aot_eager traces the backward pass too.
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(clips, mask)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    found = torch.autograd.grad(compiled, list(model.parameters()))
    torch.testing.assert_close(compiled, loss, atol=1e-6, rtol=1e-5)
    for ours, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-3)
