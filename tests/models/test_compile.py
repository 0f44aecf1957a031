"""A training step compiles into one graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._dynamo.utils
from torch import Tensor, nn

from videomaskfeat.engine.optim import adamw
from videomaskfeat.grid import TokenGrid
from videomaskfeat.losses.masked import masked_mse
from videomaskfeat.models import create_model, mvit, positions, vit
from videomaskfeat.targets.hog import HogTarget
from videomaskfeat.targets.pixels import PixelTarget


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
    actual = torch.autograd.grad(compiled, list(model.parameters()))
    torch.testing.assert_close(compiled, loss, atol=1e-6, rtol=1e-5)
    for ours, plain in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize(
    ("build", "arguments"),
    [
        (mvit._relative_index, (4, 2)),
        (mvit._key_codes, (TokenGrid(2, 3, 4), "thw", 1)),
        (mvit._key_codes, (TokenGrid(2, 3, 4), "", 1)),
        (positions._sincos, ("sincos", 48, TokenGrid(2, 3, 4), 1)),
        (positions._sincos, ("sincos_1d", 48, TokenGrid(2, 3, 4), 1)),
        (vit._rotary_table, (TokenGrid(2, 3, 4), 48, 1, True)),
    ],
)
def test_tables_are_built_on_the_device(build: Any, arguments: tuple[Any, ...]) -> None:
    """A compiled GPU step builds the tables in each call, without using the CPU."""
    actual = build(*arguments, device=torch.device("meta"))
    expected = build(*arguments, device=torch.device("cpu"))
    assert actual.is_meta
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["maskfeat_mvitv2_nano", "mae_vit_nano"])
def test_compiled_bf16_step_on_cuda_equals_the_eager_one(name: str) -> None:
    """Compiled and eager losses are equal to bfloat16 precision, and decrease equally over ten steps."""
    target = HogTarget() if name.startswith("maskfeat") else PixelTarget()
    clips = torch.randn(4, 3, 8, 64, 64, generator=torch.Generator().manual_seed(0)).cuda()
    grid = (4, 2, 2) if name.startswith("maskfeat") else (4, 4, 4)
    mask = torch.zeros(4, *grid, dtype=torch.bool)
    mask.flatten(1)[:, ::2] = True  # the same number per sample, as MAE requires
    mask = mask.cuda()
    losses = {}
    for compiled in (False, True):
        torch.manual_seed(0)
        arguments: dict[str, Any] = {"depth": 2}  # compiling takes most of the time
        if name.startswith("mae"):
            arguments |= {"cube_stride": (2, 16, 16), "decoder_depth": 1}
        model = create_model(name, values_per_token=target.values_per_token, **arguments).cuda()
        optimizer = adamw([{"params": list(model.parameters())}])

        def compare(clips: Tensor, truth: Tensor, mask: Tensor, model: nn.Module = model) -> Tensor:
            return target.loss(model(clips, mask), truth, mask)

        step = torch.compile(compare) if compiled else compare
        truth = target(clips)
        losses[compiled] = []
        for _ in range(10):
            with torch.autocast("cuda", torch.bfloat16):
                loss = step(clips, truth, mask)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[compiled].append(loss.item())
    assert losses[True][0] == pytest.approx(losses[False][0], rel=2e-2)
    assert losses[True][-1] == pytest.approx(losses[False][-1], rel=5e-2)
    assert losses[True][-1] < losses[True][0]
