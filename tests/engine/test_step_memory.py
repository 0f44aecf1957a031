"""The estimate of a step's memory against the measured peak, and the blocks that are recomputed."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from videomaskfeat.engine import distributed
from videomaskfeat.engine.compiling import compile_network
from videomaskfeat.engine.memory import StepMemory, fit_memory, measure_step_memory
from videomaskfeat.errors import UserError
from videomaskfeat.models import create_model

MEMORY = StepMemory(fixed=1000, blocks=(100, 400, 200), inputs=(10, 20, 30), rest=5)

PEAK = """
import ctypes, sys
import torch
from benchmarks.harness import extra_memory
from videomaskfeat.engine.memory import measure_step_memory
from videomaskfeat.models import create_model

torch.set_num_threads(1)
name, bf16, recompute = sys.argv[1], sys.argv[2] == "bf16", sys.argv[3] == "all"
arguments = {"clip_size": (8, 64, 64), "depth": 4}
if "mvit" in name:
    arguments |= {"widen_at": (1, 3), "q_pool_at": (1, 3)}
model = create_model(name, **arguments).train()
clip = torch.randn(1, 3, 8, 64, 64)
mask = torch.zeros(1, *model.output_grid(clip.shape).shape, dtype=torch.bool)
mask.flatten(1)[:, ::2] = True
memory = measure_step_memory(model, list(model.blocks), [clip, mask], bf16=bf16, averaged=False)
recomputed = range(len(model.blocks)) if recompute else ()
model.recomputed_blocks = frozenset(recomputed)
optimizer = torch.optim.AdamW(model.parameters())
clips, masks = clip.expand(16, -1, -1, -1, -1).contiguous(), mask.expand(16, -1, -1, -1)

def step():
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        predictions = model(clips, masks)
    predictions.float().square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()

step()  # makes the optimizer's moments
ctypes.CDLL(None).malloc_trim(0)
open("/proc/self/clear_refs", "w").write("5")  # resets the peak
weights = sum(4 * parameter.numel() for parameter in model.parameters())
print(memory.total(16, recomputed) / 2**20, extra_memory(step, "cpu") + 3 * weights / 2**20)
"""


@pytest.mark.parametrize(
    ("name", "precision", "recomputed"),
    [
        ("maskfeat_mvitv2_s", "fp32", "none"),
        ("maskfeat_mvitv2_s", "fp32", "all"),
        ("maskfeat_mvitv2_s", "bf16", "none"),
        ("maskfeat_vit_b", "fp32", "all"),
    ],
)
def test_estimate_is_near_the_measured_peak(name: str, precision: str, recomputed: str) -> None:
    """Within 30 %: the peak depends on the order in which torch frees memory, and on the allocator.

    With recomputed blocks, about 220 MiB of MViTv2-S are tensors; the rest is free memory between them. The
    peak is 380 to 400 MiB with torch 2.13, and 450 to 520 MiB with torch 2.11, so 40 % are allowed.
    """
    done = subprocess.run(
        [sys.executable, "-c", PEAK, name, precision, recomputed], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    estimate, measured = map(float, done.stdout.split())
    assert estimate == pytest.approx(measured, rel=0.4 if recomputed == "all" else 0.3)


def test_total_is_the_sum() -> None:
    assert MEMORY.total(10) == 1000 + 10 * (700 + 5 + 400)
    assert MEMORY.total(10, [1]) == 1000 + 10 * (100 + 20 + 200 + 5 + 1000)


def test_fewest_blocks_with_the_largest_gain_are_recomputed() -> None:
    memory = StepMemory(fixed=0, blocks=(100, 110, 90, 50), inputs=(10, 90, 10, 40), rest=0)
    # Gains 90, 20, 80 and 10; without: 350 + 110. The first alone needs 260 + 2.5 * 100, which is more.
    assert memory.blocks_to_recompute(1, 460) == []
    assert memory.blocks_to_recompute(1, 459) == [0, 2]  # 180 + 2.5 * 100
    assert memory.blocks_to_recompute(1, 429) == [0, 1, 2, 3]  # 150 + 2.5 * 110
    assert memory.blocks_to_recompute(1, 424) is None


def test_budget_that_never_suffices_is_refused_with_a_batch_that_fits() -> None:
    memory = StepMemory(fixed=10**9, blocks=(10**9,), inputs=(0,), rest=0)  # GB: 1, and 2 or 2.5 per sample
    assert fit_memory(memory, 2, budget_gb=5.1, accumulate=1) == []
    with pytest.raises(UserError, match=r"run.memory_gb=6: a step with 4 samples at once needs about 11 GB"):
        fit_memory(memory, 4, budget_gb=6, accumulate=1)
    with pytest.raises(UserError, match=r"set optim.accumulate=8 \(the same batch"):  # 2 of 4 samples fit
        fit_memory(memory, 4, budget_gb=6, accumulate=4)
    with pytest.raises(UserError, match="use a smaller model or smaller clips"):
        fit_memory(memory, 4, budget_gb=2, accumulate=1)


def test_measurement_leaves_the_model_as_it_was() -> None:
    model = create_model("maskfeat_mvitv2_pico").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    inputs = [torch.randn(1, 3, 4, 32, 32), torch.ones(1, 2, 4, 4, dtype=torch.bool)]
    random = torch.get_rng_state()
    memory = measure_step_memory(model, list(model.blocks), inputs, bf16=False, averaged=True)
    assert torch.equal(torch.get_rng_state(), random)
    assert not torch.equal(random, state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in model.blocks)
    weights = sum(4 * parameter.numel() for parameter in model.parameters())
    assert memory.fixed == pytest.approx(5 * weights, rel=0.05)
    assert all(size > inputs > 0 for size, inputs in zip(memory.blocks, memory.inputs, strict=True))


def test_compiled_network_of_several_processes_is_measured_block_by_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is compiled before it is measured, and compiled code calls no hooks of the blocks."""
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    arguments: dict[str, Any] = {"depth": 2, "width": 16, "widen_at": (1,), "q_pool_at": (1,)}
    inputs = [torch.randn(1, 3, 4, 32, 32), torch.ones(1, 2, 2, 2, dtype=torch.bool)]
    measured = []
    for compiled in (False, True):
        model = create_model("maskfeat_mvitv2_nano", clip_size=(4, 32, 32), **arguments)
        compile_network(SimpleNamespace(compile=compiled), model, [], backend="aot_eager")
        blocks: Any = model.blocks
        measured.append(measure_step_memory(model, list(blocks), inputs, bf16=False, averaged=False))
    assert measured[1] == measured[0]
    assert min(measured[1].blocks) > 0
