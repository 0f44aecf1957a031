"""Failures of epochs that are as short as the lag: which samples are replaced does not depend on the lag."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from tests.data.clip_data import deadly_clips, write_videos
from tests.engine.toy import CPU, metrics
from videomaskfeat.data.batches import Failure, PretrainBatch
from videomaskfeat.data.loader import ClipLoader, FailureCounter
from videomaskfeat.engine.contracts import LoopOptions, StepResult
from videomaskfeat.engine.loop import Training, train
from videomaskfeat.engine.optim import adamw, parameter_groups

VIDEOS, EPOCHS = 4, 5


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_videos(tmp_path_factory.mktemp("videos"), VIDEOS)


def train_with_failures(
    videos: Path, folder: Path, *, lag: int, steps: int, workers: int = 1, stop_at: int = 0
) -> list[tuple[int, Failure]]:
    """Train with ``steps`` steps per epoch; a record in the last step of the first epoch crashes its readers.

    ``stop_at``: number of the step in which a signal comes; 0: none.

    Returns:
        The failures in their order, each with the number of its step.
    """
    model = nn.Linear(3, 1)
    counter = FailureCounter(VIDEOS, share=0.5)
    dataset = deadly_clips(videos, {})
    dataset.deeds = {int(dataset.order(0)[-1]): "abort"}
    loader = ClipLoader(dataset, batch_size=VIDEOS // steps, workers=workers)
    loader.skipped_records = counter.skipped_records
    failures: list[tuple[int, Failure]] = []
    run: Training[Any]

    def step(batch: PretrainBatch) -> StepResult:
        number = run.state.progress.step + 1
        failures.extend((number, failure) for failure in batch.failures)
        if number == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return StepResult(model(batch.clips.float().mean((1, 2, 3)) / 255).square().mean(), {})

    run = Training(
        model=model,
        step=step,
        loader=loader,
        optimizer=adamw(parameter_groups(model.named_parameters(), base_lr=0.02, weight_decay=0.05)),
        learning_rate=lambda epoch: 0.02,
        folder=folder,
        device=CPU,
        options=LoopOptions(epochs=EPOCHS, loggers=(), check_lag=lag),
        on_failures=counter.add,
        extra={"failures": counter},
    )
    nn.init.constant_(model.weight, 0.5)
    nn.init.zeros_(model.bias)
    with loader:
        status = train(run).status
    assert status == ("interrupted" if stop_at else "finished")
    return failures


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("steps", [1, 2])
def test_samples_are_skipped_as_without_lag(videos: Path, tmp_path: Path, steps: int, workers: int) -> None:
    """The record crashes workers in epochs 0 and 1; from epoch 2 on it is not read.

    Not true if the numbers of an epoch's last step, with its failures, are read a step later: then the
    samples of the epoch after the next one have been chosen.
    """
    outcomes = [
        train_with_failures(videos, tmp_path / str(lag), lag=lag, steps=steps, workers=workers)
        for lag in (0, 1)
    ]
    assert outcomes[1] == outcomes[0]
    assert metrics(tmp_path / "1") == metrics(tmp_path / "0")
    crashed = {(number - 1) // steps for number, failure in outcomes[1] if failure.lost_in_epoch is not None}
    skipped = {(number - 1) // steps for number, failure in outcomes[1] if failure.lost_in_epoch is None}
    assert crashed == {0, 1}
    assert skipped == {2, 3, 4}


@pytest.mark.parametrize(("steps", "stop_at"), [(1, 1), (1, 2), (2, 2), (2, 3)])
def test_resumed_run_skips_what_the_uninterrupted_one_does(
    videos: Path, tmp_path: Path, steps: int, stop_at: int
) -> None:
    whole = train_with_failures(videos, tmp_path / "whole", lag=1, steps=steps)
    first = train_with_failures(videos, tmp_path / "run", lag=1, steps=steps, stop_at=stop_at)
    second = train_with_failures(videos, tmp_path / "run", lag=1, steps=steps)
    assert [*first, *second] == whole
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
