"""What is said when a run is asked to stop."""

from __future__ import annotations

import signal

import pytest

from videomaskfeat.engine.signals import StopSignals


def test_signal_is_answered_with_what_will_be_done(caplog: pytest.LogCaptureFixture) -> None:
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGINT)
    assert signals.requested
    assert caplog.messages == [
        "SIGINT: the step will be finished and a checkpoint saved; a second one stops at once"
    ]
