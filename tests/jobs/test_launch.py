"""``launch``: jobs of submitit's local executor, SLURM's commands played by scripts, and refusals."""

from __future__ import annotations

import importlib.util
import os
import pickle
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from videomaskfeat.errors import RunFailed
from videomaskfeat.jobs import launch as jobs_launch
from videomaskfeat.jobs.launch import NodeTask, launch
from videomaskfeat.tensor_files import read_safetensors

from .conftest import TINY, Verb

needs_submitit = pytest.mark.skipif(
    importlib.util.find_spec("submitit") is None, reason="submitit is not installed (extra launch)"
)
END_SECONDS = 700.0  # for a small training on a busy machine

SBATCH = """#!{python}
import os, subprocess, sys
script = sys.argv[-1]
if os.environ.get("REFUSAL"):
    sys.exit(os.environ["REFUSAL"])
text = open(script).read()
open(os.environ["RECORD"], "w").write(text)
environment = {{**os.environ, "SLURM_JOB_ID": "4242", "SLURM_JOB_NODELIST": "localhost,localhost",
    "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "2"}}
log = open(os.environ["RECORD"] + ".log", "w")
subprocess.Popen(["bash", script], env=environment, stdout=log, stderr=log, start_new_session=True)
print("Submitted batch job 4242")
"""
SRUN = """#!{python}
import os, subprocess, sys
words, files = sys.argv[1:], {{}}
while words[0].startswith("--"):
    if words[0] in ("--output", "--error"):
        files[words[0]] = words.pop(1).replace("%j", "4242")
    words.pop(0)
tasks = []
for task in range(2):
    names = [files[name].replace("%t", str(task)) for name in ("--output", "--error")]
    os.makedirs(os.path.dirname(names[0]), exist_ok=True)
    out, err = (open(name, "a") for name in names)
    environment = {{**os.environ, "SLURM_PROCID": str(task), "SLURM_NODEID": str(task), "SLURM_LOCALID": "0"}}
    tasks.append(subprocess.Popen(words, env=environment, stdout=out, stderr=err))
sys.exit(max(task.wait() for task in tasks))
"""
SINFO = """#!/bin/sh
printf 'gpu\\ngpu\\ncpu\\n'
"""
Start = Callable[[list[str]], tuple[int, Path]]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two nodes on this machine: scripts with the names of SLURM's commands; returns the submitted script."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (
        ("sbatch", SBATCH),
        ("srun", SRUN),
        ("sinfo", "#!/bin/sh\nprintf 'gpu\\ngpu\\ncpu\\n'\n"),
    ):
        (folder / name).write_text(text.format(python=sys.executable) if "{python}" in text else text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("RECORD", str(tmp_path / "submitted.sh"))
    monkeypatch.chdir(tmp_path)  # a refused job leaves its script in the folder of logs
    return tmp_path / "submitted.sh"


@pytest.fixture
def train(sample: Path, tmp_path: Path) -> Callable[[str], list[str]]:
    """The command of a training of 8 steps into a folder."""

    def words(folder: str) -> list[str]:
        data = [f"data.train={sample / 'train.csv'}", f"run.folder={tmp_path / folder}"]
        return ["pretrain", *TINY, *data, "run.device=cpu"]

    return words


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start a local job of two ranks; returns its process and log. It is ended after the test."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    started: list[int] = []

    def start(command: list[str], **options: int) -> tuple[int, Path]:
        job = launch(
            command,
            cluster="local",
            gpus_per_node=0,
            processes_per_node=2,
            logs=str(tmp_path / "logs"),
            hours=1,
            **options,  # type: ignore[arg-type]
        )
        started.append(int(job.job))
        assert job.stop == f"kill {job.job}"
        return int(job.job), Path(job.errors[0])

    yield start
    for number in started:
        try:
            os.kill(number, signal.SIGTERM)
        except ProcessLookupError:
            continue


def _wait(until: Callable[[], bool], log: Path) -> None:
    limit = time.monotonic() + END_SECONDS
    while not until():
        assert time.monotonic() < limit, log.read_text()[-4000:] if log.exists() else "no log"
        time.sleep(0.1)


def _ended(number: int) -> bool:
    """Whether a job of this process has ended."""
    try:
        return os.waitpid(number, os.WNOHANG)[0] == number
    except ChildProcessError:
        return True


def _children(number: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{number}/task/{number}/children").read_text().split()]


def _check_weights(one: Path, other: Path) -> None:
    """One process and two ranks train the same weights; the ranks add in another order."""
    left, right = (read_safetensors(str(path / "weights.safetensors")) for path in (one, other))
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-4, atol=1e-5)


@pytest.mark.timeout(1500)
@needs_submitit
def test_preempted_job_is_requeued_and_resumes(
    train: Callable[[str], list[str]], local: Start, tmp_path: Path, verb: Verb
) -> None:
    number, log = local([*train("preempted"), "optim.epochs=12"])
    metrics = tmp_path / "preempted/metrics.jsonl"
    _wait(lambda: metrics.exists() and "step" in metrics.read_text(), log)
    for task in _children(number):  # SLURM signals the task of each node
        os.kill(task, signal.SIGUSR2)
    _wait(lambda: _ended(number), log)
    text = log.read_text()
    assert "its ranks save their work" in text
    assert re.search(r"resumed from .*: step \d+ of 48", text), text[-4000:]
    code, _, err = verb(*train("whole"), "optim.epochs=12")
    assert code == 0, err
    _check_weights(tmp_path / "whole", tmp_path / "preempted")


@pytest.mark.timeout(1500)
@needs_submitit
def test_stopped_job_saves_and_is_not_requeued(
    train: Callable[[str], list[str]],
    local: Start,
    tmp_path: Path,
) -> None:
    number, log = local([*train("run"), "optim.epochs=500"])
    metrics = tmp_path / "run/metrics.jsonl"
    _wait(lambda: metrics.exists() and "step" in metrics.read_text(), log)
    os.kill(number, signal.SIGTERM)
    _wait(lambda: "stopped by SIGTERM" in log.read_text(), log)
    assert list((tmp_path / "run/checkpoints").iterdir())
    _wait(lambda: _ended(number), log)
    assert "Requeued" not in log.read_text()


@pytest.mark.timeout(1500)
@needs_submitit
def test_two_nodes_of_slurm_train_as_one_process(
    train: Callable[[str], list[str]],
    slurm: Path,
    tmp_path: Path,
    verb: Verb,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    options = ["--nodes", "2", "--gpus-per-node", "0", "--partition", "cpu", "--logs", f"{tmp_path / 'logs'}"]
    options += ["--hours", "1.5", "--cpus-per-node", "4", "--memory-gb", "16", "--slurm", "account=vision"]
    code, out, err = verb("launch", *options, "--", *train("two"))
    assert code == 0, err
    assert "job       4242: 2 nodes x 1 processes, partition cpu" in out
    assert re.findall(r"^log       (\S+)$", out, re.M) == [
        str(tmp_path / f"logs/4242/4242_{task}_log.err") for task in (0, 1)
    ]
    assert out.endswith("stop      scancel 4242\n")
    flags = set(re.findall(r"^#SBATCH --(\S+)$", slurm.read_text(), re.M))
    assert {
        "partition=cpu", "nodes=2", "ntasks-per-node=1", "time=90", "cpus-per-task=4", "mem=16GB",
        "account=vision", "signal=USR2@120", "job-name=videomaskfeat",
    } <= flags  # fmt: skip
    assert not any(flag.startswith("gpus") for flag in flags)
    folder = tmp_path / "logs/4242"
    results = [folder / f"4242_{task}_result.pkl" for task in (0, 1)]  # written when a task has ended
    _wait(lambda: all(path.exists() for path in results), folder / "4242_0_log.err")
    assert [pickle.loads(path.read_bytes()) for path in results] == [("success", None)] * 2
    text = (tmp_path / "two/log.txt").read_text()
    assert "2 processes x 1 micro-batch of 2" in text
    code, _, err = verb(*train("one"))
    assert code == 0, err
    _check_weights(tmp_path / "one", tmp_path / "two")


def test_arguments_of_torchrun_name_the_first_node() -> None:
    task = NodeTask(("pretrain", "run.folder=a b"), nodes=2, processes=8, save_seconds=60, restarts=3)
    words = task.arguments("node7", "123_4")
    assert words[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert words[3:9] == [
        "--nnodes=2", "--nproc-per-node=8", "--rdzv-backend=c10d", "--rdzv-endpoint=node7:21234",
        "--rdzv-id=123_4", "--max-restarts=3",
    ]  # fmt: skip
    assert words[9:] == ["-m", "videomaskfeat", "pretrain", "run.folder=a b"]
    one = NodeTask(("pretrain",), nodes=1, processes=8, save_seconds=60, restarts=3)
    assert "--rdzv-endpoint=localhost:0" in one.arguments("node7", "123")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN])
def test_signal_before_the_start_ends_the_ranks(
    handler: signal.Handlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both if torchrun ends at SIGTERM and if it does not."""
    start = NodeTask._start

    def signal_and_start(task: NodeTask, environment: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        start(task, environment)

    environment = SimpleNamespace(hostnames=["localhost"], job_id="1")
    submitit = SimpleNamespace(JobEnvironment=lambda: environment)
    monkeypatch.setattr(jobs_launch, "_import_submitit", lambda: submitit)
    monkeypatch.setattr(jobs_launch, "_REQUEUE_SECONDS", 0.0)
    monkeypatch.setattr(jobs_launch, "_END_SECONDS", 1.0)
    monkeypatch.setattr(jobs_launch, "_prepare_launcher", lambda: signal.signal(signal.SIGTERM, handler))
    monkeypatch.setattr(NodeTask, "arguments", lambda *_: ["sleep", "600"])
    monkeypatch.setattr(NodeTask, "_start", signal_and_start)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    earlier = signal.getsignal(signal.SIGTERM)
    seconds = 1 if handler == signal.SIG_IGN else 1000
    task = NodeTask(("pretrain",), nodes=1, processes=1, save_seconds=seconds, restarts=0)
    try:
        with pytest.raises(RunFailed, match="stopped by SIGTERM; finished work is kept"):
            task()
    finally:
        signal.signal(signal.SIGTERM, earlier)


SCONTROL = """#!/bin/sh
echo "$@" >> {record}
[ "$1" = show ] && echo "JobId=7 JobState={state} StartTime=2026-01-02T08:00:00 PreemptTime={preempted}"
exit {code}
"""


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("state", "preempted", "node", "code", "commands", "waits"),
    [
        ("RUNNING", "2026-01-02T09:00:00", 0, 0, ["show", "requeue"], False),  # in its grace time
        ("RUNNING", "2026-01-02T09:00:00", 1, 0, ["show"], True),  # the first node requeues the job
        ("RUNNING", "2026-01-01T09:00:00", 0, 0, ["show"], True),  # preempted before its last start
        ("RUNNING", "None", 0, 0, ["show"], True),
        ("COMPLETING", "2026-01-02T09:00:00", 0, 0, ["show"], False),
        ("RUNNING", "2026-01-02T09:00:00", 0, 1, ["show"], True),  # SLURM does not answer
    ],
)
def test_preempted_job_is_requeued_in_its_grace_time(
    state: str,
    preempted: str,
    node: int,
    code: int,
    commands: list[str],
    waits: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record = tmp_path / "commands"
    script = tmp_path / "scontrol"
    script.write_text(SCONTROL.format(record=record, state=state, preempted=preempted, code=code))
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    environment = SimpleNamespace(hostnames=["localhost"], job_id="7", node=node)
    submitit = SimpleNamespace(JobEnvironment=lambda: environment)
    monkeypatch.setattr(jobs_launch, "_import_submitit", lambda: submitit)
    monkeypatch.setattr(jobs_launch, "_REQUEUE_SECONDS", 0.125)
    monkeypatch.setattr(NodeTask, "arguments", lambda *_: ["true"])
    monkeypatch.setattr(NodeTask, "_start", lambda task, _: task._note_termination(signal.SIGTERM, None))
    monkeypatch.setattr(NodeTask, "_wait", lambda _: None)
    slept: list[float] = []
    monkeypatch.setattr(jobs_launch.time, "sleep", slept.append)
    earlier = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(RunFailed, match="stopped by SIGTERM; finished work is kept"):
            NodeTask(("pretrain",), nodes=2, processes=1, save_seconds=1, restarts=0)()
    finally:
        signal.signal(signal.SIGTERM, earlier)
    assert [line.split()[0] for line in record.read_text().splitlines()] == commands
    assert (0.125 in slept) == waits


def _refused(verb: Verb, words: str, *arguments: str) -> None:
    code, _, err = verb("launch", *arguments)
    assert code == 2
    assert re.fullmatch(rf"videomaskfeat launch: {words}\n", err), err


@needs_submitit
def test_impossible_launches_are_refused_in_one_line(
    train: Callable[[str], list[str]], slurm: Path, verb: Verb, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["--", *train("run")]
    wrong = r"partition 'cpus' does not exist; did you mean 'cpu'\?; SLURM has cpu, gpu"
    _refused(verb, wrong, "--partition", "cpus", *command)
    _refused(verb, "nodes=2 with cluster=local: .*", "--cluster", "local", "--nodes", "2", *command)
    _refused(verb, "the verb after -- 'pack' is unknown; choose from pretrain, .*", "--", "pack", "x")
    _refused(verb, "argument 'optim.epoch=3': unknown key 'optim.epoch'; .*", *command, "optim.epoch=3")
    _refused(verb, "COMMAND is missing: .*")
    _refused(verb, r".*nodes.*0.*", "--nodes", "0", *command)
    monkeypatch.setenv("REFUSAL", "sbatch: error: Invalid account or account/partition combination specified")
    _refused(verb, "SLURM refuses the job: sbatch: error: Invalid account or .*", *command)
    monkeypatch.setenv("PATH", str(slurm.parent / "nothing"))
    _refused(
        verb, r"there is no SLURM on this machine \(sbatch is not in PATH\); start launch on .*", *command
    )


def test_missing_submitit_is_named(verb: Verb, train: Callable[[str], list[str]]) -> None:
    if importlib.util.find_spec("submitit") is not None:
        pytest.skip("submitit is installed")
    _refused(
        verb, r"launch needs the package submitit: pip install 'videomaskfeat\[launch\]'", "--", *train("run")
    )
