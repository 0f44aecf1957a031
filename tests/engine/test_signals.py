"""What is said when a run is asked to stop."""

from __future__ import annotations

import signal

import pytest

from videomaskfeat.engine.distributed import StopRequested, StopSignals, stop_if_requested


def test_signal_is_answered_with_what_will_be_done(caplog: pytest.LogCaptureFixture) -> None:
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGINT)
    assert signals.requested
    assert caplog.messages == [
        "SIGINT: the step will be finished and a checkpoint saved; a second one stops at once"
    ]


def test_second_signal_ends_at_once_unless_it_is_the_same_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal and a launcher both pass a signal on; a person who presses again waits longer."""
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert signals.requested
        monkeypatch.setattr("videomaskfeat.engine.distributed.SAME_SIGNAL_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_long_work_inside_a_training_asks_for_the_signal() -> None:
    stop_if_requested()  # outside a training
    with StopSignals():
        stop_if_requested()
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(StopRequested):
            stop_if_requested()
    stop_if_requested()
