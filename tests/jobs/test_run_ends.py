"""However a training ends, its process ends with it, and so do the workers of its loader."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.engine.processes import processes_of_session, session, wait_until
from tests.jobs.conftest import TINY
from tests.jobs.ranks import command
from tests.jobs.test_pretrain_processes import arguments, steps

FULL_DISK = """
import errno, os, sys
from videomaskfeat.__main__ import run

def refuse(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

if __name__ == "__main__":  # worker processes import this file
    import torch
    torch.save = refuse
    sys.exit(run())
"""

NOT_CLOSED = """
import sys
from videomaskfeat.data.worker_pool import WorkerPool

if __name__ == "__main__":
    pool = WorkerPool(abs, iter(range(8)), path_of=str, workers=2)
    assert pool.take() == 0
    sys.exit(7)
"""


def end_of(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Exit code and what stderr says after the plan; the workers are gone with the process."""
    _, output = process.communicate(timeout=120)
    wait_until(lambda: not processes_of_session(process.pid), seconds=10)
    lines = output.splitlines()
    assert not any(line.startswith("Traceback") for line in lines), output
    return process.returncode, lines


def test_workers_of_a_pool_that_nobody_closed_end_with_the_interpreter(tmp_path: Path) -> None:
    """Multiprocessing sends them SIGTERM then, which they ignore, and waits for them."""
    script = tmp_path / "open.py"
    script.write_text(NOT_CLOSED)
    with session([sys.executable, str(script)]) as process:
        assert end_of(process) == (7, [])


def test_full_disk_ends_the_run_and_its_workers(sample: Path, tmp_path: Path) -> None:
    """At the first checkpoint, while a worker makes the next batches."""
    script = tmp_path / "full.py"
    script.write_text(FULL_DISK)
    line = [sys.executable, str(script), *arguments(sample, tmp_path / "run"), "data.workers=1"]
    with session(line) as process:
        code, lines = end_of(process)
    assert code == 1
    assert lines[-1].startswith(f"videomaskfeat pretrain: {tmp_path}/run/checkpoints/step_00000001.pt: the")
    assert "No space left on device; earlier checkpoints are whole" in lines[-1]


def test_removed_run_folder_ends_the_run_and_its_workers(sample: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = ["data.workers=1", "optim.epochs=500", "run.checkpoint_minutes=10"]
    with session(command(1, [*arguments(sample, run), *more])) as process:
        wait_until(lambda: steps(run) >= 2)
        while run.exists():  # the run may write a file, or remove one, in the meantime
            shutil.rmtree(run, ignore_errors=True)
        code, lines = end_of(process)
    assert code == 1
    assert lines[-1].startswith(
        f"videomaskfeat pretrain: {run}: the run folder, or its metrics.jsonl, was removed during the run"
    )
    assert not run.exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_runs_of_a_comparison_end_with_it(
    sample: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """They save what they have; the same command goes on, and is refused as long as another one runs."""
    section = {"folder": str(tmp_path / "out"), "probes": 0, "finetune": "", "targets": {"hog": {}}}
    tiny = [*TINY, "optim.epochs=500", f"data.train={sample / 'train.csv'}"]
    shared = OmegaConf.to_container(OmegaConf.from_dotlist(tiny))
    OmegaConf.save(
        {"compare": {**section, "pretrain": str(tmp_path / "base.yaml")}}, tmp_path / "compare.yaml"
    )
    OmegaConf.save(shared, tmp_path / "base.yaml")
    run = tmp_path / "out" / "hog" / "seed_1" / "pretrained"
    line = ["compare", "--config", str(tmp_path / "compare.yaml")]
    with session(command(1, line)) as process:
        wait_until(lambda: steps(run) >= 2)
        process.send_signal(number)
        ended, lines = end_of(process)
    assert ended == code
    assert len(list((run / "checkpoints").iterdir())) == 1
    assert not (run / "lock.json").exists()
    if number == signal.SIGTERM:
        assert lines[-1:] == [
            "videomaskfeat compare: stopped by SIGTERM; finished work is kept, and the same command continues"
        ]
