"""Reading losses and metrics a step later only changes when a bad loss is found."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.processes import exit_codes_of_ranks
from tests.engine.toy import (
    SAMPLES,
    STEPS_PER_EPOCH,
    ToyLoader,
    TroubledLoader,
    assert_same_run,
    final_state,
    metrics,
    toy_model,
    train_toy,
)
from videomaskfeat.engine import distributed
from videomaskfeat.engine.steps import Steps, TrainingStopped
from videomaskfeat.errors import RunFailed, UserError

BAD_SAMPLE = 3


class OnceBadLoader(ToyLoader):
    """One sample is NaN in one epoch.

    Args:
        epoch: the epoch, from 0.
    """

    def __init__(self, *, epoch: int) -> None:
        super().__init__(accumulate=2)
        self._bad_epoch = epoch

    def epoch(self, epoch: int, *arguments: Any) -> Any:
        self.poisoned = BAD_SAMPLE if epoch == self._bad_epoch else None
        return super().epoch(epoch, *arguments)

    @property
    def bad_step(self) -> int:
        """Number of the step with the sample, from 1."""
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(self._bad_epoch)).tolist()
        return self._bad_epoch * STEPS_PER_EPOCH + order.index(BAD_SAMPLE) // 8 + 1


def test_lag_changes_no_weight_and_no_line_of_the_log(tmp_path: Path) -> None:
    """With failures, evaluations, averages and numbers of ``after_step``, as tensors and as floats."""
    failures: dict[int, list[Any]] = {0: [], 1: []}
    figures: dict[int, list[Any]] = {0: [], 1: []}
    for lag in (0, 1):

        def after_step(share: float, states: Sequence[Any]) -> Mapping[str, float | torch.Tensor]:
            return {"first": float(states[0]), "share": torch.tensor(share)}

        def watch(values: Mapping[str, float], share: float, seen: list[Any] = figures[lag]) -> None:
            seen.append((dict(values), share))

        train_toy(
            tmp_path / str(lag),
            loader=ToyLoader(accumulate=2, failing=(1, 2)),
            evaluate=lambda: {"draw": float(torch.rand(()))},
            evaluate_every=5,
            on_failures=failures[lag].extend,
            after_step=after_step,
            watch=watch,
            check_lag=lag,
        )
    assert_same_run(tmp_path / "1", tmp_path / "0")
    assert failures[0] == failures[1] != []
    assert figures[0] == figures[1]
    assert [share for _, share in figures[1]] == [step / 18 for step in range(1, 19)]
    assert [values["share"] for values, _ in figures[1]] == pytest.approx([s / 18 for s in range(1, 19)])
    steps = [line["step"] for line in metrics(tmp_path / "1")]
    assert steps == list(range(1, 19))
    assert list(metrics(tmp_path / "1")[0])[5:8] == ["absolute_error", "first", "share"]


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_bad_loss_is_named_a_step_later_and_is_in_no_checkpoint(tmp_path: Path, epoch: int) -> None:
    """The run then continues from the newest checkpoint as if there had been no bad step."""
    loader, forwards = OnceBadLoader(epoch=epoch), []
    step = loader.bad_step
    words = rf"^step {step} \(epoch .*\): the loss is nan; samples \[.*\b{BAD_SAMPLE}\b.*\]; found"
    with pytest.raises(TrainingStopped, match=words):
        train_toy(
            tmp_path / "run", loader=loader, check_lag=1, before_forward=forwards.append, milestone_every=2
        )
    until_checkpoint = step % 2 == 0 or step == 18
    assert len(forwards) == 2 * (step if until_checkpoint else step + 1)
    assert [line["step"] for line in metrics(tmp_path / "run")] == list(range(1, step))
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        state = torch.load(path, weights_only=True)
        assert state["progress"]["step"] < step
        assert all(value.isfinite().all() for value in state["model"].values())
    train_toy(tmp_path / "run", check_lag=1, milestone_every=2)
    train_toy(tmp_path / "whole", milestone_every=2)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("due", ["milestone", "evaluation", "minutes", "end", "signal"])
def test_bad_step_is_found_before_anything_is_saved_or_evaluated(tmp_path: Path, due: str) -> None:
    loader = OnceBadLoader(epoch=0)
    step, evaluated = loader.bad_step, []

    def stop(number: int) -> None:
        if due == "signal" and number == 2 * step - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    options: dict[str, Any] = {
        "milestone": {"milestone_every": step},
        "evaluation": {"evaluate": lambda: evaluated.append(1) or {}, "evaluate_every": step},
        "minutes": {"save_minutes": 0},
        "end": {"epochs": step / STEPS_PER_EPOCH},
        "signal": {"before_forward": stop},
    }[due]
    with pytest.raises(TrainingStopped, match=f"^step {step} "):
        train_toy(tmp_path, loader=loader, check_lag=1, **{"milestone_every": 0, **options})
    saved = [path.name for path in (tmp_path / "checkpoints").glob("step_*")]
    assert all(name < f"step_{step:08d}" for name in saved)
    assert evaluated == []


def test_error_that_a_bad_step_causes_is_explained_by_it(tmp_path: Path) -> None:
    """The next step works with weights that are NaN, and code may refuse them."""
    loader = OnceBadLoader(epoch=0)
    model = toy_model()

    def refuse(number: int) -> None:
        if not all(value.isfinite().all() for value in model.state_dict().values()):
            raise ValueError("weights are not finite")

    with pytest.raises(TrainingStopped, match=f"^step {loader.bad_step} "):
        train_toy(tmp_path, loader=loader, check_lag=1, model=model, before_forward=refuse, milestone_every=0)


def test_run_is_interrupted_and_resumed_with_lag(tmp_path: Path) -> None:
    """Causes: a signal during a step, a signal while the run waits for data, and an error of the loader."""
    train_toy(tmp_path / "whole")

    def terminate(number: int) -> None:
        if number == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    result = train_toy(tmp_path / "run", before_forward=terminate, check_lag=1)
    # The signal comes in step 3 and is seen when step 4 has been launched.
    assert (result.status, result.progress.step) == ("interrupted", 4)
    waiting = TroubledLoader(accumulate=2, at=5, trouble=signal.SIGTERM)
    result = train_toy(tmp_path / "run", loader=waiting, check_lag=1)
    assert (result.status, result.progress.step, result.metrics["step"]) == ("interrupted", 6, 6)
    failing = TroubledLoader(accumulate=2, at=5, trouble=RunFailed("no more videos"))
    with pytest.raises(RunFailed, match="no more videos"):
        train_toy(tmp_path / "run", loader=failing, check_lag=1)
    state = final_state(tmp_path / "run", step=8)["progress"]
    # The position of the loader is that of the batches in the weights, not of those read ahead.
    assert (state["step"], state["epoch"], state["epoch_step"], state["samples"]) == (8, 1, 2, 64)
    train_toy(tmp_path / "run", check_lag=1)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_failures_that_end_the_run_are_all_in_the_checkpoint(tmp_path: Path) -> None:
    """Steps launched behind the failing one are counted, too."""
    every = tuple(range(50))

    def refuse(failures: Sequence[Any]) -> None:
        raise UserError(f"too many: {len(failures)}")

    with pytest.raises(UserError, match="too many: 16"):
        train_toy(tmp_path, loader=ToyLoader(accumulate=2, failing=every), on_failures=refuse, check_lag=1)
    assert final_state(tmp_path, step=2)["progress"]["failures"] == 16


@pytest.mark.parametrize("trouble", [signal.SIGTERM, RunFailed("no more videos")])
def test_failures_of_the_last_step_are_reported_before_it_is_saved(tmp_path: Path, trouble: Any) -> None:
    """The run ends while it waits for step 4, when the numbers of step 3 are not read yet."""
    reported: list[Any] = []

    def report(failures: Sequence[Any]) -> None:
        assert not list((tmp_path / "checkpoints").glob("step_*"))  # a checkpoint contains what was reported
        reported.extend(failures)

    loader = TroubledLoader(accumulate=2, at=6, trouble=trouble)
    loader.failing = tuple(range(SAMPLES))
    with (
        pytest.raises(RunFailed, match="no more videos") if isinstance(trouble, RunFailed) else nullcontext()
    ):
        train_toy(tmp_path, loader=loader, on_failures=report, milestone_every=0, check_lag=1)
    assert len(reported) == 24
    assert final_state(tmp_path, step=3)["progress"]["failures"] == 24


def stop_on_two_ranks(folder: Path) -> None:
    """A sample of rank 1 is NaN: both ranks name it, and no rank waits for ever."""
    loader = OnceBadLoader(epoch=0)
    step = loader.bad_step
    words = rf"^step {step} .* the loss is nan; samples \[.*\b{BAD_SAMPLE}\b.*\]; found after the"
    with pytest.raises(TrainingStopped, match=words) as info:
        train_toy(folder / "bad", loader=loader, check_lag=1, milestone_every=0)
    assert len(set(distributed.gather_objects(str(info.value)))) == 1
    one = train_toy(folder / "lag", dropout=0.0, check_lag=1).metrics["loss"]
    two = train_toy(folder / "none", dropout=0.0).metrics["loss"]
    assert one == two


def test_bad_loss_stops_two_ranks(tmp_path: Path) -> None:
    assert exit_codes_of_ranks(2, stop_on_two_ranks, tmp_path) == [0, 0]


def test_lag_of_two_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape("check_lag=2: must be 0 or 1")):
        train_toy(tmp_path, check_lag=2)


@pytest.mark.cuda
def test_launching_a_step_on_a_gpu_never_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch raises if the host waits for the GPU anywhere between batch and optimizer step."""
    gpu = torch.device("cuda", 0)
    launch = Steps._launch

    def launch_without_waits(*arguments: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return launch(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Steps, "_launch", launch_without_waits)
    train_toy(tmp_path / "gpu", device=gpu, dropout=0.0, check_lag=1)
    monkeypatch.undo()
    train_toy(tmp_path / "cpu", dropout=0.0)
    losses = [[line["loss"] for line in metrics(tmp_path / name)] for name in ("gpu", "cpu")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)  # sums in another order, over 18 steps


@pytest.mark.cuda
def test_bad_loss_on_a_gpu_is_in_no_checkpoint(tmp_path: Path) -> None:
    gpu, loader = torch.device("cuda", 0), OnceBadLoader(epoch=1)
    with pytest.raises(TrainingStopped, match=f"^step {loader.bad_step} .* found after the optimizer step"):
        train_toy(tmp_path, device=gpu, loader=loader, check_lag=1)
    assert train_toy(tmp_path, device=gpu, check_lag=1).progress.step == 18
    assert all(value.isfinite().all() for value in final_state(tmp_path)["model"].values())
