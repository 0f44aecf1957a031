"""A step that takes too long ends the process, with rank, step, samples and position in the code."""

from __future__ import annotations

import logging
import os
import re
import time
from pathlib import Path

import pytest

from tests.engine.processes import exit_code, exit_codes_of_ranks
from tests.engine.toy import CPU, ToyLoader, train_toy
from videomaskfeat.engine import distributed, step_watch
from videomaskfeat.errors import UserError

LIMIT = 2.0


def log_to(path: Path) -> None:
    logging.basicConfig(filename=path, format="%(message)s", force=True)
    os.dup2(os.open(path.with_suffix(".stderr"), os.O_CREAT | os.O_WRONLY), 2)


def fall_asleep(seconds: float = 60.0) -> None:
    time.sleep(seconds)


def hang_in_forward(folder: Path) -> None:
    """Of the second step."""
    log_to(folder / "log")
    train_toy(
        folder,
        accumulate=1,
        step_seconds=LIMIT,
        name_of=lambda index: f"video{index}.mp4",
        before_forward=lambda number: fall_asleep() if number == 1 else None,
    )


def test_hanging_step_names_rank_samples_and_code(tmp_path: Path) -> None:
    assert exit_code(hang_in_forward, tmp_path) == 1
    text = (tmp_path / "log").read_text()
    words = (
        r"rank 0, step 2: the step has taken more than 2 s \(run\.step_timeout_minutes\); its samples are "
    )
    assert re.search(
        words + r"(\d+ \(video\d+\.mp4\)(, )?){8}; the program is in fall_asleep \(test_step", text
    )
    assert " < _accumulate (steps.py:" in text
    assert " < launch (steps.py:" in text
    assert "this rank ends; start the same command again" in text
    assert "in fall_asleep" in (tmp_path / "log.stderr").read_text()


class SleepyLoader(ToyLoader):
    """Its second batch never comes."""

    def epoch(self, *arguments: object, **options: object):  # type: ignore[no-untyped-def, override]
        for number, batch in enumerate(super().epoch(*arguments, **options)):  # type: ignore[arg-type]
            if number == 1:
                fall_asleep()
            yield batch


def wait_for_samples(folder: Path) -> None:
    log_to(folder / "log")
    train_toy(folder, accumulate=1, step_seconds=LIMIT, loader=SleepyLoader(accumulate=1))


def test_step_that_waits_for_samples_says_so(tmp_path: Path) -> None:
    assert exit_code(wait_for_samples, tmp_path) == 1
    assert "rank 0, step 2: the step has taken more than 2 s" in (tmp_path / "log").read_text()
    assert "; it waits for its samples; the program is in fall_asleep" in (tmp_path / "log").read_text()


def hold_the_lock(folder: Path) -> None:
    """A call in C that never lets another Python thread run."""
    step_watch._LOCKED_SECONDS = 1.0
    log_to(folder / "log")
    train_toy(
        folder,
        accumulate=1,
        step_seconds=LIMIT,
        before_forward=lambda number: sum(range(10**12)) if number == 1 else None,
    )


def test_step_that_stops_all_threads_still_ends(tmp_path: Path) -> None:
    assert exit_code(hold_the_lock, tmp_path) == 1
    assert "the step has taken" not in (tmp_path / "log").read_text()
    assert "Timeout" in (tmp_path / "log.stderr").read_text()
    assert "hold_the_lock" in (tmp_path / "log.stderr").read_text()


def hang_on_rank_1(folder: Path) -> None:
    log_to(folder / f"log_{distributed.rank()}")

    def meet(number: int) -> None:
        if number == 1 and distributed.rank() == 1:
            fall_asleep()

    train_toy(folder, accumulate=1, step_seconds=LIMIT, before_forward=meet)


def test_every_rank_reports_its_own_position(tmp_path: Path) -> None:
    codes = exit_codes_of_ranks(2, hang_on_rank_1, tmp_path)
    assert all(codes)
    assert "rank 1, step 2: the step has taken" in (tmp_path / "log_1").read_text()
    assert "the program is in fall_asleep" in (tmp_path / "log_1").read_text()
    waiting = (tmp_path / "log_0").read_text()
    if waiting:  # unless rank 1 ended before it
        assert re.search(
            r"rank 0, step 2: .*; the program is in .* < _accumulate .*; rank 1 is at step 2; ", waiting
        )


def take_quick_steps_and_a_slow_evaluation(folder: Path) -> None:
    """Only steps are watched; the evaluation takes longer than the limit."""

    def evaluate() -> dict[str, float]:
        time.sleep(1.5 * LIMIT)
        return {}

    train_toy(folder, epochs=0.34, step_seconds=LIMIT, evaluate=evaluate)


def test_evaluations_are_not_watched(tmp_path: Path) -> None:
    assert exit_code(take_quick_steps_and_a_slow_evaluation, tmp_path) == 0


def test_limit_must_not_be_negative(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"step_seconds=-1: must not be negative"):
        train_toy(tmp_path, step_seconds=-1)


def join_alone(folder: Path) -> None:
    """Rank 0 of two, without torchrun and without rank 1."""
    (folder / "started").touch()
    os.environ |= {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    try:
        with distributed.process_group(CPU, join_seconds=1.0):
            pass
    except UserError as error:
        (folder / "error").write_text(str(error))
        raise SystemExit(2) from error


def test_rank_that_never_joins_is_a_mistake_with_a_bound(tmp_path: Path) -> None:
    assert exit_code(join_alone, tmp_path) == 2
    words = (
        r"rank 0 of 2: not all ranks joined at 127\.0\.0\.1:0 within 1 s.*; start all of them with the same"
    )
    assert re.match(words, (tmp_path / "error").read_text())


def test_missing_variables_of_torchrun_are_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with (
        pytest.raises(UserError, match="WORLD_SIZE is 2, but RANK is not set; start the ranks with torchrun"),
        distributed.process_group(CPU),
    ):
        pass
