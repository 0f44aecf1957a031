"""metrics.jsonl, log.txt, TensorBoard and the console."""

from __future__ import annotations

import io
import logging
import sys
import time
from pathlib import Path

import pytest
import simplejson
import torch

from videomaskfeat.engine.log import BestSoFar, RunLog, describe, drop_later_lines, peak_memory_mb

RECORD = {
    **{"epoch": 0.25, "loss": 0.5, "lr": 1e-4, "grad_norm": 0.123, "data_ms": 4.2, "step_ms": 210.7},
    **{"samples_per_second": 38.06, "memory_mb": 812.4, "failures": 2, "extra": 7.0},
}


def open_log(
    folder: Path, *, first_step: int = 0, terminal: bool = False, tensorboard: bool = False
) -> RunLog:
    loggers = ["tensorboard"] if tensorboard else []
    return RunLog(
        folder, first_step=first_step, total_steps=8, unit="clips", loggers=loggers, terminal=terminal
    )


def test_line_names_every_number() -> None:
    expected = (
        "epoch 0.25  loss 0.5000  lr 1.00e-04  grad 0.123  waiting for data 4.2 ms  step 211 ms  38.1 clips/s"
    )
    assert describe(RECORD, unit="clips") == expected + "  memory 812 MB  failures 2"


def test_metrics_are_valid_json_without_nan(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.write({"step": 1, **RECORD, "extra": float("nan")})
        first = (tmp_path / "metrics.jsonl").read_text()  # there before the log is closed
    line = simplejson.loads(first)
    assert line == {"step": 1, **RECORD, "extra": None}


def test_plain_console_gets_lines_with_time_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"), open_log(tmp_path) as log:
        for step in range(1, 9):
            log.write({"step": step, **RECORD})
        logging.getLogger("videomaskfeat.data").warning("a bad video")
    progress = [record.message for record in caplog.records if "step" in record.message]
    assert len(progress) == 2  # the first and the last; those between came too soon after
    assert progress[0].startswith(" 12.5%  step 1/8  epoch 0.25  loss 0.5000")
    assert progress[0].endswith("time left unknown")
    assert progress[1].endswith("time left 0 s")
    text = (tmp_path / "log.txt").read_text()
    assert "100.0%  step 8/8" in text
    assert "WARNING videomaskfeat.data: a bad video" in text


def test_evaluations_are_logged_with_the_best_so_far(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def results(step: int, top1: float) -> dict[str, float]:
        return {"step": step, **RECORD, "evaluation/top1": top1, "evaluation/top5": 80.0}

    with caplog.at_level("INFO"), open_log(tmp_path) as log:
        for step, top1 in ((1, 20.0), (2, 31.25), (3, 25.0)):
            log.write(results(step, top1))
            log.write({"step": step + 0.5, **RECORD})  # without an evaluation
    with caplog.at_level("INFO"), open_log(tmp_path, first_step=3) as log:  # a resumed run
        log.write(results(4, 30.0))
    lines = [record.message for record in caplog.records if record.message.startswith("held out")]
    assert len(lines) == 4
    assert lines[0] == "held out  step 1/8  top1 20  top5 80  best top1 20 (step 1)  time left unknown"
    assert "step 3/8  top1 25  top5 80  best top1 31.25 (step 2)  time left" in lines[2]
    assert "step 4/8  top1 30  top5 80  best top1 31.25 (step 2)  time left" in lines[3]
    assert lines[2] in (tmp_path / "log.txt").read_text()


def test_lowest_loss_is_the_best(tmp_path: Path) -> None:
    best = BestSoFar(tmp_path / "metrics.jsonl")
    best.update({"step": 1, "evaluation/heldout_loss": 0.5})
    assert best.update({"step": 2, "evaluation/heldout_loss": 0.6}).endswith("best heldout_loss 0.5 (step 1)")
    assert best.update({"step": 3, "loss": 0.1}) == ""


def test_time_left_counts_what_comes_between_the_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After a first step of a minute, steps of 10 s with 5 s of evaluation and saving after each."""
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    with caplog.at_level("INFO"), open_log(tmp_path, first_step=4) as log:
        for step, seconds in ((5, 60.0), (6, 10.0), (7, 10.0), (8, 10.0)):
            clock[0] += seconds
            log.write({"step": step, **RECORD, "step_ms": 1e3 * seconds})
            clock[0] += 5.0
    lines = [record.message for record in caplog.records if "time left" in record.message]
    # Two steps of 10 s + 5 / 2 s; one of 10 s + 10 / 3 s; none.
    assert [line.rsplit("time left ", 1)[1] for line in lines] == ["unknown", "25 s", "13 s", "0 s"]


def test_log_leaves_the_loggers_as_they_were(tmp_path: Path) -> None:
    package = logging.getLogger("videomaskfeat")
    before = (package.level, list(package.handlers))
    with open_log(tmp_path):
        assert package.level == logging.INFO
    assert (package.level, package.handlers) == before


def test_terminal_shows_a_bar_and_messages_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    screen.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "stderr", screen)
    handler = logging.StreamHandler(screen)
    logging.getLogger().addHandler(handler)
    try:
        with open_log(tmp_path, terminal=True) as log:
            log.write({"step": 2, **RECORD})
            logging.getLogger("videomaskfeat.data").warning("a bad video")
            assert handler.stream is sys.stderr is not screen
    finally:
        logging.getLogger().removeHandler(handler)
    assert handler.stream is sys.stderr is screen
    shown = screen.getvalue()
    assert "38.1 clips/s" in shown
    assert "25%" in shown
    assert "2/8" in shown
    assert "a bad video" in shown
    assert " 25.0%  step 2/8" in (tmp_path / "log.txt").read_text()


def test_lines_behind_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "lo')
    drop_later_lines(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    with open_log(tmp_path, first_step=1) as log:
        log.write({"step": 2, "epoch": 0.5})
    assert path.read_text() == '{"step": 1}\n{"step": 2, "epoch": 0.5}\n'
    drop_later_lines(tmp_path / "missing.jsonl", 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.txt", "metrics.jsonl"]


def test_tensorboard_gets_every_number(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first in (0, 2):  # interrupted after 3 steps, resumed from 2
        with open_log(tmp_path, first_step=first, tensorboard=True) as log:
            for step in range(first + 1, first + 4):
                log.write({"step": step, **RECORD, "loss": 10.0 * first + step})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        *((1, 1.0), (2, 2.0), (3, 23.0), (4, 24.0), (5, 25.0))
    ]
    assert set(events.Tags()["scalars"]) == set(RECORD)


def test_memory_is_in_megabytes() -> None:
    """A process that has imported torch holds between 50 MB and 50 GB."""
    assert 50 < peak_memory_mb(torch.device("cpu")) < 50_000
