"""Pre-training as processes: killed and resumed, stopped by a signal, and on two ranks."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import simplejson
from safetensors.torch import load_file

from videomaskfeat.cli import main

from .conftest import TINY
from .ranks import command, run_verb

# A checkpoint after every step, drop path so that random states matter, and a moving average of the weights.
OVERRIDES = ["optim.epochs=3", "run.checkpoint_minutes=0", "optim.ema_decay=0.9", "run.pictures=0"]


def arguments(sample: Path, folder: Path) -> list[str]:
    """Of a tiny run."""
    model = "model.arguments={depth: 4, width: 8, widen_at: [1, 3], drop_path: 0.3}"
    data = [f"data.train={sample / 'train.csv'}", f"run.folder={folder}"]
    return ["pretrain", *TINY, *OVERRIDES, model, *data]


def steps(run: Path) -> int:
    """Whole lines of the run's metrics so far."""
    path = run / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def start_and_signal(sample: Path, run: Path, number: signal.Signals, after: int) -> int:
    """Start a run, signal it once it has made some steps, and return its exit code."""
    line = command(1, arguments(sample, run))
    process = subprocess.Popen(line, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while steps(run) < after and process.poll() is None:
        assert time.monotonic() < deadline, "the run makes no steps"
        time.sleep(0.01)
    os.killpg(process.pid, number)
    return process.wait(timeout=60)


@pytest.fixture(scope="module")
def whole(_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(arguments(_sample, folder)) == 0
    return folder


def assert_equal_runs(one: Path, two: Path) -> None:
    """The same weights bit for bit, and the same losses line by line."""
    first, second = load_file(one / "weights.safetensors"), load_file(two / "weights.safetensors")
    assert all(first[name].equal(second[name]) for name in first)
    losses = [
        [(row["step"], row["loss"]) for row in map(simplejson.loads, (run / "metrics.jsonl").open())]
        for run in (one, two)
    ]
    assert losses[0] == losses[1]


def test_killed_run_resumes_to_the_same_weights(sample: Path, tmp_path: Path, whole: Path) -> None:
    run = tmp_path / "killed"
    assert start_and_signal(sample, run, signal.SIGKILL, after=2) == -signal.SIGKILL
    assert start_and_signal(sample, run, signal.SIGKILL, after=7) == -signal.SIGKILL  # in the second epoch
    assert 0 < steps(run) < 12
    assert main(arguments(sample, run)) == 0
    assert_equal_runs(run, whole)


def test_terminated_run_saves_exits_with_0_and_resumes(sample: Path, tmp_path: Path, whole: Path) -> None:
    run = tmp_path / "terminated"
    assert start_and_signal(sample, run, signal.SIGTERM, after=3) == 0
    assert 3 <= steps(run) < 12
    assert not (run / "weights.safetensors").exists()
    assert main(arguments(sample, run)) == 0
    assert_equal_runs(run, whole)


@pytest.mark.slow
def test_two_ranks_learn_what_one_does(sample: Path, tmp_path: Path) -> None:
    """Sums of gradients in another order: losses equal to 1e-4. Exact counts make both ranks weigh alike."""
    same = ["mask.kind=cube_exact", "model.arguments.drop_path=0.0"]  # each rank draws its own drop path
    run_verb(1, *arguments(sample, tmp_path / "one"), *same)
    run_verb(2, *arguments(sample, tmp_path / "two"), *same)
    one, two = (
        [simplejson.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").open()]
        for name in ("one", "two")
    )
    assert len(one) == 12
    assert one == pytest.approx(two, rel=1e-4)
