"""Ranks that are killed: torchrun starts the run again, and it continues from its newest checkpoint."""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.engine.processes import session, wait_until
from tests.engine.toy import metrics
from tests.jobs.conftest import TINY

STEPS = 12


def torchrun(*options: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *options, "-m", "videomaskfeat", "pretrain"]


def process_of_rank(launcher: int, rank: int) -> int:
    """The child of torchrun with this number of a rank in its environment."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            parent = int(path.read_text(errors="replace").rpartition(")")[2].split()[1])
            variables = (path.parent / "environ").read_bytes().split(b"\0")
            if parent == launcher and f"RANK={rank}".encode() in variables:
                return int(path.parent.name)
    raise AssertionError(f"there is no rank {rank}")


@pytest.mark.slow
@pytest.mark.parametrize(("parallel", "killed"), [("fsdp", 1), ("ddp", 0)])
def test_killed_rank_is_restarted_and_loses_little(
    sample: Path, tmp_path: Path, parallel: str, killed: int
) -> None:
    """A checkpoint after each step: the run repeats at most the step that was running and the one before.

    The killed rank 0 leaves its lock, and a temporary file or folder.
    """
    run = tmp_path / "run"
    options = ["optim.epochs=3", "run.checkpoint_minutes=0", f"run.parallel={parallel}", f"run.folder={run}"]
    words = [*TINY, *options, f"data.train={sample / 'train.csv'}"]
    with session([*torchrun("--standalone", "--nproc-per-node=2", "--max-restarts=1"), *words]) as process:

        def has_steps() -> bool:
            assert process.poll() is None, process.communicate()
            return (run / "metrics.jsonl").exists() and len(metrics(run)) >= 4

        wait_until(has_steps, seconds=300)
        os.kill(process_of_rank(process.pid, killed), signal.SIGKILL)
        before = len(metrics(run))
        out, err = process.communicate(timeout=400)
    assert process.returncode == 0, out + err
    assert [row["step"] for row in metrics(run)] == list(range(1, STEPS + 1))
    resumed = next(line for line in err.splitlines() if "resumed from" in line)
    step = int(resumed.partition(": step ")[2].split()[0])
    assert before - 3 <= step, resumed
    assert (run / "weights.safetensors").is_file()
    assert not list((run / "checkpoints").glob(".*"))
    assert not (run / "lock.json").exists()


@pytest.mark.slow
def test_machine_that_never_joins_ends_the_other(sample: Path, tmp_path: Path) -> None:
    """Without torchrun's own rendezvous: one of two ranks is started."""
    variables = {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }
    words = [*TINY, f"data.train={sample / 'train.csv'}", f"run.folder={tmp_path / 'run'}"]
    line = [sys.executable, "-m", "videomaskfeat", "pretrain", *words, "run.join_timeout_minutes=0.05"]
    with session(line, env={**os.environ, **variables}) as process:
        _, err = process.communicate(timeout=200)
    assert process.returncode == 2
    assert err.count("\n") == 1
    assert "rank 0 of 2: not all ranks joined at 127.0.0.1:0 within 3 s" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch_size", "words"),
    [
        (
            3,
            "batch_size=3 must be a positive multiple of ranks x accumulate x samples_per_video = 2; use 2",
        ),
        (64, "contains 16 videos, fewer than the 64 of one step (batch_size=64); set optim.batch_size=16 or"),
    ],
)
def test_batch_that_two_ranks_cannot_share_ends_both(
    batch_size: int, words: str, sample: Path, tmp_path: Path
) -> None:
    """Exit code 2; one of them names the rule and the remedy, in one line."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
    words_of_run = [*TINY, f"data.train={sample / 'train.csv'}", f"run.folder={tmp_path / 'run'}"]
    line = [
        sys.executable,
        "-m",
        "videomaskfeat",
        "pretrain",
        *words_of_run,
        f"optim.batch_size={batch_size}",
    ]
    processes = []
    with ExitStack() as stack:
        for rank in "01":
            environment = {**os.environ, **variables, "RANK": rank, "LOCAL_RANK": rank}
            processes.append(stack.enter_context(session([*line, "run.device=cpu"], env=environment)))
        texts = [process.communicate(timeout=200)[1] for process in processes]
        assert [process.returncode for process in processes] == [2, 2], texts
    for text in texts:
        assert "Traceback" not in text
    named = [text for text in texts if words in text.strip().splitlines()[-1]]
    assert named, texts
    assert not (tmp_path / "run/checkpoints").exists()
