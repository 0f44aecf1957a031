"""``launch``: submit a command to SLURM (or run it as a job of this machine) on any number of nodes.

submitit writes the batch script, starts one task per node, and requeues a job that is preempted or reaches
its time limit. Each task starts torch's elastic launcher (torchrun), which starts the ranks of its node.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from io import StringIO
from types import FrameType
from typing import Any

from videomaskfeat.errors import RunFailed, UserError, counted, nearest

logger = logging.getLogger(__name__)
_POLL_SECONDS = 0.2
_ANSWER_SECONDS = 20.0  # for an answer of SLURM
_REQUEUE_SECONDS = 30.0  # SLURM's KillWait: after SIGTERM, the signal to requeue may follow within this time
_RUNNING, _PREEMPTED = "running", "preempted"
_END_SECONDS = 10.0  # for torchrun to end after its ranks
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG in <sys/prctl.h>
_FIRST_PORT, _PORTS = 20_000, 20_000  # for the rendezvous, chosen by the number of the job


@dataclass(frozen=True)
class LaunchedJob:
    """A submitted job.

    Attributes:
        job: its number.
        description: nodes and processes.
        command: the command that runs.
        output: standard output of each node's task.
        errors: standard error of each node's task, with the log of the run.
        stop: command that stops it.
    """

    job: str
    description: str
    command: str
    output: list[str]
    errors: list[str]
    stop: str

    def text(self) -> str:
        """Number, files and how to stop it."""
        return "\n".join(
            [
                f"job       {self.job}: {self.description}",
                f"command   {self.command}",
                *(f"output    {path}" for path in self.output),
                *(f"log       {path}" for path in self.errors),
                f"stop      {self.stop}",
            ]
        )


def launch(
    command: Sequence[str],
    *,
    cluster: str = "slurm",
    nodes: int = 1,
    gpus_per_node: int = 1,
    processes_per_node: int | None = None,
    cpus_per_node: int | None = None,
    memory_gb: float | None = None,
    partition: str = "",
    hours: float = 24.0,
    name: str = "videomaskfeat",
    logs: str = "launch",
    save_seconds: int = 120,
    requeues: int = 100,
    restarts: int = 3,
    slurm: Mapping[str, Any] | None = None,
) -> LaunchedJob:
    """Submit ``videomaskfeat COMMAND`` as ranks on several nodes; returns as soon as it is submitted.

    Args:
        command: verb and arguments, already checked.
        cluster: "slurm", or "local" for this machine, in the background.
        nodes: number of nodes.
        gpus_per_node: GPUs of each node; 0: a run on CPUs.
        processes_per_node: ranks per node; None: one per GPU, or one without GPUs.
        cpus_per_node, memory_gb: cores and memory [GB] of each node; None: the cluster's default.
        partition: partition of SLURM; empty: the default one.
        hours: time limit of one start; then the job is requeued.
        name: name of the job.
        logs: folder for scripts and logs, which all nodes can read and write.
        save_seconds: time to save before a job is stopped for its time limit.
        requeues: maximum number of starts after a time limit.
        restarts: number of times that the ranks are started again after one of them has failed.
        slurm: other options of sbatch, such as ``{"account": "vision", "qos": "high"}``.

    Raises:
        UserError: there is no SLURM, it has no such partition or refuses the job, or submitit is missing.
    """
    submitit = _import_submitit()
    processes = processes_per_node or max(gpus_per_node, 1)
    if cluster == "slurm":
        _check_slurm(partition)
    elif nodes > 1:
        raise UserError(f"nodes={nodes} with cluster=local: this machine is one node; set nodes=1")
    task = NodeTask(tuple(command), nodes, processes, save_seconds, restarts)
    parameters: dict[str, Any] = {
        "name": name,
        "nodes": nodes,
        "tasks_per_node": 1,
        "timeout_min": max(round(hours * 60), 1),
        "gpus_per_node": gpus_per_node or None,
        "cpus_per_task": cpus_per_node,
        "mem_gb": memory_gb,
    }
    if cluster == "slurm":
        parameters |= {
            "slurm_signal_delay_s": save_seconds,
            "slurm_partition": partition or None,
            "slurm_additional_parameters": dict(slurm or {}) or None,
        }
    parameters = {key: value for key, value in parameters.items() if value is not None}
    limits = {f"{cluster}_max_num_timeout": requeues}
    job = _submit(submitit, task, parameters, folder=os.path.join(logs, "%j"), cluster=cluster, **limits)
    paths = [job.paths] if nodes == 1 else [job.task(number).paths for number in range(nodes)]
    where = f", partition {partition}" if partition else ""
    return LaunchedJob(
        job=job.job_id,
        description=f"{counted(nodes, 'node')} x {processes} processes{where}",
        command=shlex.join(["videomaskfeat", *command]),
        output=[str(one.stdout) for one in paths],
        errors=[str(one.stderr) for one in paths],
        stop=f"{'scancel' if cluster == 'slurm' else 'kill'} {job.job_id}",
    )


def _submit(submitit: Any, task: NodeTask, parameters: Mapping[str, Any], **options: Any) -> Any:
    """The submitted job.

    Raises:
        UserError: SLURM refuses it.
    """
    printed = StringIO()  # submitit prints the message of sbatch, and raises an error without it
    try:
        with redirect_stderr(printed):
            executor = submitit.AutoExecutor(**options)
            executor.update_parameters(**parameters)
            return executor.submit(task)
    except (submitit.core.utils.FailedSubmissionError, submitit.core.utils.FailedJobError) as error:
        cause = _last_line(printed.getvalue() or str(error))
        raise UserError(f"SLURM refuses the job: {cause}; see `videomaskfeat launch --help`") from error


@dataclass
class NodeTask:
    """What runs on each node: torchrun, with the rendezvous on the first node.

    submitit calls `checkpoint` before a job is preempted or reaches its time limit; the job then starts again
    with the task that it returns. The training itself resumes from its run folder.

    Attributes:
        command: verb and arguments.
        nodes: number of nodes.
        processes: ranks per node.
        save_seconds: time for the ranks to save.
        restarts: restarts of the ranks after a failure.
    """

    command: tuple[str, ...]
    nodes: int
    processes: int
    save_seconds: int
    restarts: int
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)
    _exit_code: int | None = field(default=None, init=False, repr=False)
    _terminated: bool = field(default=False, init=False, repr=False)

    def __call__(self) -> None:
        """Run the ranks of this node to their end.

        Raises:
            RunFailed: they have failed, or were stopped.
        """
        environment = _import_submitit().JobEnvironment()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._note_termination)
        self._start(environment)
        self._wait()
        if self._terminated:
            # SLURM sends SIGTERM to the ranks, too. A job that the preemption or an administrator requeues,
            # and one that is canceled, is no longer running; in the grace time of a preemption it still is.
            job = str(environment.job_id)
            state = _job_state(job)
            if state == _PREEMPTED and environment.node == 0:
                _requeue(job)
            elif state in (_PREEMPTED, _RUNNING):
                time.sleep(_REQUEUE_SECONDS)  # a signal to requeue may follow, or the first node requeues
            raise RunFailed("stopped by SIGTERM; finished work is kept, and the same command continues")
        if self._exit_code:
            raise RunFailed(f"torchrun ended with exit code {self._exit_code}; its messages are in the log")

    def checkpoint(self) -> Any:
        """Let the ranks save and end; the task of the next start."""
        if self._process is not None and self._exit_code is None:
            logger.warning("the job is stopped and requeued; its ranks save their work")
            self._process.terminate()
            until = time.monotonic() + self.save_seconds
            while self._exit_code is None and time.monotonic() < until:
                time.sleep(_POLL_SECONDS)
        return _import_submitit().helpers.DelayedSubmission(self._fresh())

    def arguments(self, first_host: str, job: str) -> list[str]:
        """The command line of torchrun on a node.

        Args:
            first_host: name of the first node.
            job: number of the job, the same on all nodes; it decides the port.
        """
        endpoint = "localhost:0"  # a free port
        if self.nodes > 1:
            digits = re.sub(r"\D", "", job) or "0"
            endpoint = f"{first_host}:{_FIRST_PORT + int(digits) % _PORTS}"
        return [
            sys.executable,
            "-m",
            "torch.distributed.run",
            f"--nnodes={self.nodes}",
            f"--nproc-per-node={self.processes}",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={endpoint}",
            f"--rdzv-id={job}",
            f"--max-restarts={self.restarts}",
            "-m",
            "videomaskfeat",
            *self.command,
        ]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_process": None, "_exit_code": None, "_terminated": False}

    def _fresh(self) -> NodeTask:
        return NodeTask(self.command, self.nodes, self.processes, self.save_seconds, self.restarts)

    def _start(self, environment: Any) -> None:
        command = self.arguments(environment.hostnames[0], str(environment.job_id))
        logger.info("%s", shlex.join(command))
        variables = {**os.environ, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(self.save_seconds)}
        process = subprocess.Popen(command, env=variables, preexec_fn=_prepare_launcher)
        self._process = process

        def wait() -> None:
            # In a thread, since the main thread runs `checkpoint` as a signal handler, which must not wait
            # for a lock that the interrupted code holds.
            self._exit_code = process.wait()

        threading.Thread(target=wait, daemon=True).start()

    def _wait(self) -> None:
        """Wait for the end of torchrun. After SIGTERM, it and its ranks have `save_seconds` to end.

        SLURM sends SIGTERM to all processes of a job; as a local job, this task alone gets it.
        """
        killed_at: float | None = None
        while self._exit_code is None:
            if self._terminated and self._process is not None:
                if killed_at is None:
                    killed_at = time.monotonic() + self.save_seconds + _END_SECONDS
                    if os.environ.get("SUBMITIT_EXECUTOR") == "local":
                        self._process.terminate()
                elif time.monotonic() > killed_at:
                    self._process.kill()
            time.sleep(_POLL_SECONDS)

    def _note_termination(self, number: int, frame: FrameType | None) -> None:
        # No more than this: the signal may come before torchrun starts, or while it starts.
        self._terminated = True


def _job_state(job: str) -> str:
    """Whether a job is running, running in the grace time of a preemption, or ends (empty).

    A job of this machine counts as running, and so does one without a state.
    """
    if os.environ.get("SUBMITIT_EXECUTOR") == "local":
        return _RUNNING
    facts = dict(re.findall(r"(\w+)=(\S+)", _ask_slurm("scontrol", "show", "job", "--oneliner", job)))
    if facts.get("JobState", "RUNNING") != "RUNNING":
        return ""
    preempted = facts.get("PreemptTime", "")  # as 2026-12-31T23:59:59, or None
    # The time of a preemption before the last start is no longer valid.
    return _PREEMPTED if preempted[:1].isdigit() and preempted >= facts.get("StartTime", "") else _RUNNING


def _requeue(job: str) -> None:
    """Requeue a preempted job. SLURM would do so at the end of its grace time only if the job still ran."""
    _ask_slurm("scontrol", "requeue", job)
    logger.warning("the job is preempted and requeued")


def _ask_slurm(*command: str) -> str:
    """Output of a command of SLURM; empty, with a warning, if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_SECONDS)
        if not done.returncode:
            return done.stdout
        cause = _last_line(done.stderr)
    except (OSError, subprocess.TimeoutExpired) as error:
        cause = str(error)
    logger.warning("SLURM does not answer (%s): %s", shlex.join(command), cause)
    return ""


def _prepare_launcher() -> None:
    """In torchrun before it starts: ignore the signal of submitit, which SLURM sends to all processes of a
    job; end when the task ends, even if it is killed."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGTERM)


def _import_submitit() -> Any:
    try:
        return importlib.import_module("submitit")
    except ModuleNotFoundError as error:
        raise UserError("launch needs the package submitit: pip install 'videomaskfeat[launch]'") from error


def _check_slurm(partition: str) -> None:
    """Raise UserError if there is no SLURM, or it has no such partition."""
    missing = [name for name in ("sbatch", "srun") if shutil.which(name) is None]
    if missing:
        raise UserError(
            f"there is no SLURM on this machine ({missing[0]} is not in PATH); start launch on a login node "
            "of the cluster, or use --cluster local or torchrun"
        )
    if not partition or shutil.which("sinfo") is None:
        return
    command = ["sinfo", "--noheader", "--format=%R"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"SLURM does not answer within {_ANSWER_SECONDS:g} seconds ({shlex.join(command)}); try again "
            "later"
        ) from error
    if done.returncode:
        raise UserError(f"SLURM does not answer ({shlex.join(command)}): {_last_line(done.stderr)}")
    known = sorted(set(done.stdout.split()))
    if partition not in known:
        close = nearest(partition, known)
        raise UserError(
            f"partition {partition!r} does not exist{close or ''}; SLURM has {', '.join(known) or 'none'}"
        )


def _last_line(text: str) -> str:
    """The last line of a message of SLURM, which states the cause."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
