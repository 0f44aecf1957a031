"""``run.memory_gb``, and a step that runs out of memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from videomaskfeat.jobs.pretrain import PretrainRun

Pretrain = Callable[..., tuple[int, str]]


def weights(folder: Path) -> dict[str, Any]:
    (path,) = sorted((folder / "checkpoints").glob("step_*.pt"))[-1:]
    content: dict[str, Any] = torch.load(path, weights_only=True)["model"]
    return content


def test_budget_recomputes_blocks_and_changes_no_weight(
    pretrain: Pretrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from videomaskfeat.engine.memory import StepMemory

    assert pretrain()[0] == 0
    (tmp_path / "run").rename(tmp_path / "plain")
    totals: list[int] = []
    original = StepMemory.blocks_to_recompute

    def between(self: StepMemory, samples: int, budget: float) -> list[int] | None:
        """As if the budget were just enough for one recomputed block."""
        first = original(self, samples, self.total(samples) - 1)
        totals.append(samples)
        return first

    monkeypatch.setattr(StepMemory, "blocks_to_recompute", between)
    code, text = pretrain("run.memory_gb=70")
    assert code == 0, text
    assert "GB of run.memory_gb=70; recomputed blocks: [" in text
    assert totals
    one, other = weights(tmp_path / "plain"), weights(tmp_path / "run")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_budget_that_is_too_small_is_refused_before_anything_is_written(
    pretrain: Pretrain, tmp_path: Path
) -> None:
    code, text = pretrain("run.memory_gb=0.0001")
    assert code == 2
    assert "run.memory_gb=0.0001: a step with " in text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you"),
    ],
)
def test_step_out_of_memory_ends_with_the_remedies_in_one_line(
    pretrain: Pretrain, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    def fail(self: PretrainRun, batch: Any) -> None:
        raise error

    monkeypatch.setattr(PretrainRun, "step", fail)
    code, text = pretrain("run.threads=1", "optim.batch_size=4", "optim.accumulate=2")
    assert code == 1
    last = text.strip().splitlines()[-1]
    assert last.startswith(
        "videomaskfeat pretrain: out of memory on cpu: a step of optim.batch_size=4 on 1 process computes 2 "
        "samples at once; use "
    )
    assert "optim.accumulate=4 (the same batch in smaller micro-batches)" in last
    assert "run.activation_checkpointing=true or a smaller optim.batch_size" in last
    assert "Traceback" not in text


def test_other_errors_of_a_step_stay_as_they_are(pretrain: Pretrain, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: PretrainRun, batch: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(PretrainRun, "step", fail)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        pretrain("run.threads=1")
