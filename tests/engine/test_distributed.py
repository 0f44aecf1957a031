"""Ranks of one run: what they compute together, how they end, and how signals stop them."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.engine.processes import end_of_survivor, exit_code, exit_codes_of_ranks
from tests.engine.toy import ToyLoader, TroubledLoader, assert_same_run, final_state, metrics, train_toy
from videomaskfeat.engine import distributed, rank_watch
from videomaskfeat.engine.distributed import StopRequested, StopSignals, stop_if_requested
from videomaskfeat.engine.steps import TrainingStopped
from videomaskfeat.errors import RunFailed, UserError


def train_evenly(folder: Path) -> None:
    """Each rank gets half of every micro-batch."""
    train_toy(folder, dropout=0.0)


def use_every_function(folder: Path) -> None:
    rank = distributed.rank()
    assert distributed.world_size() == 2
    assert distributed.is_main() == (rank == 0)
    assert distributed.gather_objects(f"rank {rank}") == ["rank 0", "rank 1"]
    assert distributed.run_on_main(lambda: f"from {rank}") == "from 0"
    with pytest.raises(UserError, match="a mistake"):
        distributed.run_on_main(lambda: raise_user_error("a mistake"))
    with pytest.raises((ZeroDivisionError, RuntimeError), match="division by zero"):
        distributed.run_on_main(lambda: 1 / 0)
    distributed.gather_objects(None)


def raise_user_error(message: str) -> None:
    raise UserError(message)


def meet_trouble_on_rank_1(folder: Path) -> None:
    """A non-finite loss, a failed input and SIGTERM on one rank reach both, and none waits for ever."""
    loader = ToyLoader(accumulate=2)
    own = next(loader.epoch(0)).index.tolist() if distributed.rank() == 1 else []
    (samples,) = (indices for indices in distributed.gather_objects(own) if indices)
    loader.poisoned = samples[0]  # of rank 1, in the first micro-batch
    words = rf"step 1 .* the loss is nan; samples {re.escape(str(sorted(samples)))}; stopped"
    with pytest.raises(TrainingStopped, match=words):
        train_toy(folder / "nan", loader=loader)

    seen: list[str] = []
    train_toy(folder / "failures", loader=ToyLoader(accumulate=2, failing=(5,)), on_failures=seen.extend)
    assert seen
    assert set(seen) == {"bad 5"}
    assert len(set(map(tuple, distributed.gather_objects(seen)))) == 1

    def terminate(number: int) -> None:
        if distributed.rank() == 1 and number == 12:
            os.kill(os.getpid(), signal.SIGTERM)

    result = train_toy(folder / "stopped", dropout=0.0, before_forward=terminate)
    assert (result.status, result.progress.step) == ("interrupted", 7)


def wait_in_vain_on_rank_1(folder: Path) -> None:
    """Its loader fails, or a signal reaches its wait, while rank 0 has all its batches: both end alike."""
    for trouble in (signal.SIGTERM, RunFailed("workers end")):
        loader = ToyLoader(accumulate=2)
        if distributed.rank() == 1:
            loader = TroubledLoader(accumulate=2, at=15, trouble=trouble)
        if isinstance(trouble, RunFailed):
            with pytest.raises(
                RunFailed, match=r"workers end" if distributed.rank() else r"rank 1: workers end"
            ):
                train_toy(folder / "failed", loader=loader)
        else:
            result = train_toy(folder / "stopped", loader=loader)
            assert (result.status, result.progress.step) == ("interrupted", 7)
    for name in ("failed", "stopped"):
        assert (folder / name / "checkpoints" / "step_00000007.pt").is_file()
        assert train_toy(folder / name).status == "finished"


def fail_to_save(folder: Path) -> None:
    """Only rank 0 writes; what it meets there ends both."""
    (folder / "blocked").mkdir(exist_ok=True)
    (folder / "blocked" / "checkpoints").write_text("a file where a folder is needed")
    with pytest.raises((OSError, RuntimeError)):
        train_toy(folder / "blocked")


def leave_early(folder: Path) -> None:
    """Rank 1 dies without a word; rank 0 gets an error, not an endless wait."""
    if distributed.rank() == 1:
        os._exit(3)
    distributed.gather_objects(None)


def train_until(folder: Path, rank: int, what: Callable[[], None]) -> None:
    """Train, and do something on one rank in the forward of its third micro-batch, in the second step."""

    def meet(number: int) -> None:
        if distributed.rank() == rank and number == 3:
            time.sleep(0.5)  # the other rank has beaten at this step
            what()

    train_toy(folder, before_forward=meet)


def kill_rank_0(folder: Path) -> None:
    train_until(folder, 0, lambda: os.kill(os.getpid(), signal.SIGKILL))


def kill_rank_1(folder: Path) -> None:
    train_until(folder, 1, lambda: os.kill(os.getpid(), signal.SIGKILL))


def stop_rank_0(folder: Path) -> None:
    train_until(folder, 0, lambda: os.kill(os.getpid(), signal.SIGSTOP))


def stop_rank_1(folder: Path) -> None:
    train_until(folder, 1, lambda: os.kill(os.getpid(), signal.SIGSTOP))


def fail_on_rank_1(folder: Path) -> None:
    train_until(folder, 1, lambda: raise_user_error("no space\nleft"))


def stay_busy_on_rank_1(folder: Path) -> None:
    if distributed.rank() == 1:
        time.sleep(60)
    distributed.gather_objects(None)


def fall_silent_after_a_while(folder: Path) -> None:
    """Both watches of a run of two ranks in one process; rank 1 beats for 3 s, longer than the limit of 2 s.

    No collective call raises an error here, as with NCCL.
    """
    rank_watch.BEAT_SECONDS, rank_watch._GRACE_SECONDS = 0.05, 1.0
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    own, other = (rank_watch.RankWatch(rank=rank, world_size=2, limit_seconds=1.0) for rank in range(2))
    own.start()
    other.start()
    time.sleep(3.0)
    (folder / "alive").touch()
    other.stop()
    time.sleep(30.0)  # then exit code 0


KEEPER = r"rank 1, step 2: rank 0, which connects the ranks, does not answer: it was killed, stopped"
SILENT = r"rank 0, step 2: rank 1 does not answer \(last seen at step 2\): it was killed, stopped or cut"


@pytest.mark.parametrize(
    ("survivor", "function", "words"),
    [
        (1, kill_rank_0, KEEPER),
        (0, kill_rank_1, SILENT),
        (1, stop_rank_0, KEEPER),
        (0, stop_rank_1, SILENT),
        (
            0,
            fail_on_rank_1,
            "rank 0, step 2: rank 1 ended: no space left; this rank ends too; start the same",
        ),
        (0, stay_busy_on_rank_1, "rank 0, step 1: rank 1 is busy at step 1; this rank ends too"),
    ],
)
def test_lost_rank_is_named_and_ends_the_others(
    tmp_path: Path, survivor: int, function: Callable[[Path], None], words: str
) -> None:
    code, error = end_of_survivor(survivor, function, tmp_path, timeout_seconds=3)
    assert re.match(words, error), error
    assert code == 1


def test_silent_rank_ends_a_process_whose_calls_raise_nothing(tmp_path: Path) -> None:
    assert exit_code(fall_silent_after_a_while, tmp_path) == 1
    assert (tmp_path / "alive").exists(), "it ended while the other rank answered"


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """The same global batch; only the order of sums differs: float32, 1e-6."""
    assert exit_codes_of_ranks(2, train_evenly, tmp_path / "two") == [0, 0]
    train_toy(tmp_path / "one", dropout=0.0)
    one, two = (final_state(tmp_path / name) for name in ("one", "two"))
    torch.testing.assert_close(two["model"], one["model"], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(two["ema"], one["ema"], atol=1e-6, rtol=1e-5)
    assert len(two["random"]["ranks"]) == 2
    assert not torch.equal(two["random"]["ranks"][0]["cpu"], two["random"]["ranks"][1]["cpu"])
    for line, expected in zip(metrics(tmp_path / "two"), metrics(tmp_path / "one"), strict=True):
        assert line == pytest.approx(expected, rel=1e-5)


def test_helpers_agree_on_two_ranks(tmp_path: Path) -> None:
    assert exit_codes_of_ranks(2, use_every_function, tmp_path) == [0, 0]


def test_trouble_on_one_rank_stops_all_and_resumes_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert exit_codes_of_ranks(2, meet_trouble_on_rank_1, tmp_path) == [0, 0]
    result = train_toy(tmp_path / "stopped", dropout=0.0)  # here there is one rank
    assert result.status == "finished"
    assert "resumed on 1 ranks, saved on 2" in caplog.text
    train_toy(tmp_path / "one", dropout=0.0)
    one, two = (final_state(tmp_path / name) for name in ("one", "stopped"))
    torch.testing.assert_close(two["model"], one["model"], atol=1e-6, rtol=1e-5)


def test_wait_of_one_rank_that_ends_leaves_all_at_the_same_whole_step(tmp_path: Path) -> None:
    assert exit_codes_of_ranks(2, wait_in_vain_on_rank_1, tmp_path) == [0, 0]
    assert exit_codes_of_ranks(2, train_toy, tmp_path / "whole") == [0, 0]
    assert_same_run(tmp_path / "failed", tmp_path / "whole")
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


class UnequalLoader(ToyLoader):
    """As if the list of rank 1 had fewer rows."""

    @property
    def batches_per_epoch(self) -> int:
        return super().batches_per_epoch - 2 * distributed.rank()


def train_unequally(folder: Path) -> None:
    words = (
        r"rank 1 has 5 steps per epoch \(15 in total\), and rank 0 has 6 \(18\): the list files, the config"
    )
    with pytest.raises(UserError, match=words):
        train_toy(folder, loader=UnequalLoader(accumulate=2))


def test_ranks_with_different_numbers_of_steps_are_refused(tmp_path: Path) -> None:
    assert exit_codes_of_ranks(2, train_unequally, tmp_path) == [0, 0]


def test_failed_save_ends_all_ranks(tmp_path: Path) -> None:
    assert exit_codes_of_ranks(2, fail_to_save, tmp_path) == [0, 0]


def test_dead_rank_ends_the_others(tmp_path: Path) -> None:
    codes = exit_codes_of_ranks(2, leave_early, tmp_path)
    assert codes[1] == 3
    assert codes[0] != 0


def test_single_process_needs_no_group() -> None:
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.gather_objects("x") == ["x"]
    assert distributed.run_on_main(lambda: 5) == 5
    with distributed.process_group(torch.device("cpu")):
        assert distributed.world_size() == 1
    model = torch.nn.Linear(1, 1)
    assert distributed.parallel(model, torch.device("cpu")) is model
    assert distributed.unwrap(model) is model


def test_chosen_gpu_is_the_current_one_of_a_single_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton kernels, events and page-locked memory use the current device."""
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    with distributed.process_group(torch.device("cuda", 1)):
        assert current == [torch.device("cuda", 1)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_gpu_asked_for_where_there_is_none() -> None:
    with pytest.raises(UserError, match=r"device='cuda': .* no usable NVIDIA GPU here; set device=cpu"):
        distributed.choose_device("cuda")
    assert distributed.choose_device("auto").type == "cpu"


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "tpu"])
def test_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"device='{name}': must be auto, cpu, cuda or cuda:N"):
        distributed.choose_device(name)


@pytest.mark.cuda
def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "99")
    with pytest.raises(
        UserError, match=r"there is no GPU 99, this machine has .* lower torchrun's --nproc-per-node"
    ):
        distributed.choose_device("cuda")


def test_own_process_reports_its_exit(tmp_path: Path) -> None:
    """The means of these tests: an error in a child is not lost."""
    assert exit_code(raise_user_error, "x") == 1


def test_signal_is_answered_with_what_will_be_done(caplog: pytest.LogCaptureFixture) -> None:
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGINT)
    assert signals.requested
    assert caplog.messages == [
        "SIGINT: finishing the step and saving a checkpoint; a second signal stops at once"
    ]


def test_second_signal_ends_at_once_unless_it_is_the_same_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal and a launcher both pass a signal on; a person who presses again waits longer."""
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores SIGINT
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert signals.requested
        monkeypatch.setattr("videomaskfeat.engine.distributed.SAME_SIGNAL_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    signal.signal(signal.SIGINT, earlier)


def test_long_work_inside_a_training_asks_for_the_signal() -> None:
    stop_if_requested()  # outside a training
    with StopSignals():
        stop_if_requested()
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(StopRequested):
            stop_if_requested()
    stop_if_requested()
