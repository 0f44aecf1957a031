"""A run killed at any moment and resumed equals the uninterrupted one bit for bit."""

from __future__ import annotations

import io
import os
import signal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from tests.engine.processes import exit_code
from tests.engine.toy import TroubledLoader, assert_same_run, final_state, metrics, train_toy
from videomaskfeat.engine import checkpoint, log
from videomaskfeat.engine.distributed import stop_if_requested
from videomaskfeat.errors import RunFailed, UserError


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted training: 18 steps of 2 micro-batches, checkpoints at 4, 8, 12, 16 and 18."""
    folder = tmp_path_factory.mktemp("reference")
    assert train_toy(folder).status == "finished"
    return folder


def die(*arguments: Any, **keywords: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_forward(folder: Path) -> None:
    """In the second micro-batch of step 11, in the middle of the second epoch."""
    train_toy(folder, before_forward=lambda number: die() if number == 21 else None)


def die_in_metrics_line(folder: Path) -> None:
    """Half of the line of step 7 is written."""
    dumps = log.simplejson.dumps

    def half(record: dict[str, Any], **keywords: Any) -> str:
        if record["step"] != 7:
            return str(dumps(record, **keywords))
        with open(folder / "metrics.jsonl", "a") as file:
            file.write(dumps(record)[:20])
        die()
        return ""

    with patch.object(log.simplejson, "dumps", half):
        train_toy(folder)


def die_in_write(folder: Path) -> None:
    """Half of the second checkpoint is on the disk, under its temporary name."""
    save = torch.save

    def half(content: dict[str, Any], file: Any) -> None:
        if content["progress"]["step"] == 4:
            save(content, file)
            return
        whole = io.BytesIO()
        save(content, whole)
        file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
        file.flush()
        die()

    with patch.object(checkpoint.torch, "save", half):
        train_toy(folder)


def die_before_rename(folder: Path) -> None:
    """The second checkpoint is whole, but still has its temporary name."""
    replace = os.replace

    def deadly(source: Path, target: Path) -> None:
        die() if str(target).endswith("08.pt") else replace(source, target)

    with patch.object(checkpoint.os, "replace", deadly):
        train_toy(folder)


def die_after_rename(folder: Path) -> None:
    """The second checkpoint has just got its name."""
    replace = os.replace

    def deadly(source: Path, target: Path) -> None:
        replace(source, target)
        if str(target).endswith("08.pt"):
            die()

    with patch.object(checkpoint.os, "replace", deadly):
        train_toy(folder)


@pytest.mark.parametrize(
    ("death", "resumed_from"),
    [
        (die_in_forward, 8),
        (die_in_metrics_line, 4),
        (die_in_write, 4),
        (die_before_rename, 4),
        (die_after_rename, 8),
    ],
)
def test_killed_run_resumed_equals_uninterrupted(
    death: Any, resumed_from: int, tmp_path: Path, reference: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert exit_code(death, tmp_path) == -signal.SIGKILL
    with caplog.at_level("INFO"):
        train_toy(tmp_path)
    assert f"step {resumed_from} of 18" in caplog.text
    assert_same_run(tmp_path, reference)
    assert not list(tmp_path.rglob("*.tmp"))


def test_kill_before_first_checkpoint_starts_anew(tmp_path: Path, reference: Path) -> None:
    assert exit_code(die_in_forward_early, tmp_path) == -signal.SIGKILL
    assert len(metrics(tmp_path)) == 2
    train_toy(tmp_path)
    assert_same_run(tmp_path, reference)


def die_in_forward_early(folder: Path) -> None:
    train_toy(folder, before_forward=lambda number: die() if number == 5 else None)


def test_sigterm_finishes_step_saves_and_returns(tmp_path: Path, reference: Path) -> None:
    def terminate(number: int) -> None:
        if number == 12:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    result = train_toy(tmp_path, before_forward=terminate)
    assert (result.status, result.progress.step) == ("interrupted", 7)
    assert result.checkpoint == tmp_path / "checkpoints" / "step_00000007.pt"
    assert result.checkpoint.is_file()
    assert signal.getsignal(signal.SIGTERM) is before
    assert train_toy(tmp_path).status == "finished"
    assert_same_run(tmp_path, reference)


def test_signal_in_the_wait_for_data_saves_the_last_whole_step(tmp_path: Path, reference: Path) -> None:
    """One micro-batch of step 8 is there, the other one never comes."""
    loader = TroubledLoader(accumulate=2, at=15, trouble=signal.SIGTERM)
    result = train_toy(tmp_path, loader=loader)
    assert (result.status, result.progress.step) == ("interrupted", 7)
    assert result.checkpoint == tmp_path / "checkpoints" / "step_00000007.pt"
    assert result.checkpoint.is_file()
    assert train_toy(tmp_path).status == "finished"
    assert_same_run(tmp_path, reference)


def test_signal_in_the_wait_for_the_first_batch_saves_the_beginning(tmp_path: Path, reference: Path) -> None:
    result = train_toy(tmp_path, loader=TroubledLoader(accumulate=2, at=0, trouble=signal.SIGTERM))
    assert (result.status, result.progress.step) == ("interrupted", 0)
    assert result.checkpoint.is_file()
    train_toy(tmp_path)
    assert_same_run(tmp_path, reference)


@pytest.mark.parametrize(
    "error", [RunFailed("workers end"), UserError("10 videos in a row"), OSError("disk")]
)
def test_error_of_the_loader_comes_after_the_last_whole_step_is_saved(
    tmp_path: Path, reference: Path, error: Exception
) -> None:
    with pytest.raises(type(error), match=str(error)):
        train_toy(tmp_path, loader=TroubledLoader(accumulate=2, at=15, trouble=error))
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step_00000004.pt", "step_00000007.pt"]
    train_toy(tmp_path)
    assert_same_run(tmp_path, reference)


def test_error_of_the_loader_at_the_beginning_leaves_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="workers end"):
        train_toy(tmp_path, loader=TroubledLoader(accumulate=2, at=1, trouble=RunFailed("workers end")))
    assert not list((tmp_path / "checkpoints").glob("*"))


def test_checkpoint_every_step_equals_few_checkpoints(tmp_path: Path, reference: Path) -> None:
    """Saving takes nothing from the random stream; with 0 minutes every step is saved, the last two kept."""
    train_toy(tmp_path, save_minutes=0, milestone_every=0)
    assert_same_run(tmp_path, reference)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step_00000017.pt", "step_00000018.pt"]


def test_finished_run_has_nothing_left_to_do(tmp_path: Path, reference: Path) -> None:
    train_toy(tmp_path)
    result = train_toy(tmp_path)
    assert (result.status, result.metrics, result.progress.step) == ("finished", {}, 18)
    assert_same_run(tmp_path, reference)


def test_other_accumulation_keeps_position(tmp_path: Path) -> None:
    """Without dropout the number of micro-batches changes only rounding (float32: 1e-6)."""
    train_toy(tmp_path / "one", dropout=0.0, accumulate=2)
    train_toy(tmp_path / "two", dropout=0.0, accumulate=2, epochs=1.5)
    train_toy(tmp_path / "two", dropout=0.0, accumulate=4)
    one, two = (final_state(tmp_path / name) for name in ("one", "two"))
    torch.testing.assert_close(one["model"], two["model"], atol=1e-6, rtol=1e-5)
    assert one["progress"] == two["progress"]


def test_extra_state_is_restored(tmp_path: Path) -> None:
    class Counter:
        seen = 0

        def state_dict(self) -> dict[str, Any]:
            return {"seen": self.seen}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.seen = state["seen"]

    counter = Counter()
    counter.seen = 5
    train_toy(tmp_path, epochs=1, extra={"counter": counter})
    fresh = Counter()
    train_toy(tmp_path, epochs=1, extra={"counter": fresh})
    assert fresh.seen == 5


@pytest.mark.cuda
def test_run_on_a_gpu_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """Weights, optimizer, average and the GPU's random state; sums on a GPU may differ in their last bits."""
    gpu = torch.device("cuda", 0)
    train_toy(tmp_path / "whole", device=gpu)
    train_toy(tmp_path / "resumed", device=gpu, epochs=1.5)
    train_toy(tmp_path / "resumed", device=gpu)
    whole, resumed = (final_state(tmp_path / name) for name in ("whole", "resumed"))
    assert whole["random"]["ranks"][0].keys() == {"cpu", "cuda"}
    for part in ("model", "ema"):
        for name, value in whole[part].items():
            torch.testing.assert_close(resumed[part][name], value, atol=1e-5, rtol=1e-4, msg=f"{part}.{name}")
    for number, state in whole["optimizer"]["state"].items():
        for name, value in state.items():
            torch.testing.assert_close(
                resumed["optimizer"]["state"][number][name], value, atol=1e-5, rtol=1e-3
            )
    one, two = ([line["loss"] for line in metrics(tmp_path / name)] for name in ("whole", "resumed"))
    assert two == pytest.approx(one, rel=1e-3)


@pytest.mark.cuda
def test_checkpoint_of_a_gpu_is_resumed_on_the_cpu(tmp_path: Path) -> None:
    train_toy(tmp_path, device=torch.device("cuda", 0), epochs=1.5)
    assert train_toy(tmp_path).progress.step == 18


@pytest.mark.parametrize("at", [2, 6])
def test_run_stopped_during_an_evaluation_evaluates_when_it_goes_on(tmp_path: Path, at: int) -> None:
    """The signal does not wait for the end of the evaluation; ``at`` counts evaluations, 6 is the last."""
    calls = 0

    def evaluate(stop: bool = True) -> dict[str, float]:
        nonlocal calls
        calls += 1
        value = float(torch.rand(()))
        if stop and calls == at:
            os.kill(os.getpid(), signal.SIGTERM)
        stop_if_requested()
        return {"draw": value}

    train_toy(tmp_path / "whole", evaluate=lambda: evaluate(stop=False), evaluate_every=3)
    calls = 0
    stopped = train_toy(tmp_path / "stopped", evaluate=evaluate, evaluate_every=3)
    assert (stopped.status, stopped.progress.step, calls) == ("interrupted", 3 * at, at)
    assert len(metrics(tmp_path / "stopped")) == 3 * at - 1
    assert train_toy(tmp_path / "stopped", evaluate=evaluate, evaluate_every=3).status == "finished"
    assert calls == 7
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")
    rows = [metrics(tmp_path / name) for name in ("stopped", "whole")]
    assert [row["step"] for row in rows[0] if "evaluation/draw" in row] == [3, 6, 9, 12, 15, 18]
    assert [row.get("evaluation/draw") for row in rows[0]] == [row.get("evaluation/draw") for row in rows[1]]
