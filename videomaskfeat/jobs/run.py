"""One process per folder: the lock that a run holds on the folder it writes into."""

from __future__ import annotations

import dataclasses
import fcntl
import gc
import itertools
import json
import logging
import os
import platform
import socket
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, TypeVar

import simplejson
import torch
from torch import Tensor, nn

from videomaskfeat.config import config_text, flat, free_keys, load_config
from videomaskfeat.data.batches import Failure
from videomaskfeat.data.loader import ClipLoader, FailureCounter
from videomaskfeat.engine import distributed
from videomaskfeat.engine.checkpoint import CheckpointFolder, check_fingerprint
from videomaskfeat.engine.contracts import LoopOptions, StepFunction
from videomaskfeat.engine.optim import WarmupCosine, adamw, parameter_groups, sgd
from videomaskfeat.engine.teacher import ExponentialMovingAverage
from videomaskfeat.engine.threads import choose_threads
from videomaskfeat.errors import RunFailed, UserError, check_name, counted
from videomaskfeat.inference.multiview import evaluating
from videomaskfeat.io import (
    append_text,
    is_file,
    make_folder,
    remove_temporary_files,
    whole_file,
    write_failed,
)
from videomaskfeat.jobs.doctor import diagnose
from videomaskfeat.machine import available_cores, keep_freed_memory
from videomaskfeat.recipe import ClipRecipe
from videomaskfeat.schemas import ClipConfig, FinetuneOptimConfig, LabelledClipConfig, OptimConfig, RunConfig
from videomaskfeat.texts import parse_json
from videomaskfeat.values import from_parts

logger = logging.getLogger(__name__)

LOCK_NAME = "lock.json"
BEAT_SECONDS = 15.0
"""How often a holder renews the time of its lock file."""
STALE_SECONDS = 180.0
"""Age from which a lock counts as left behind if its process cannot be looked up from here."""


@dataclasses.dataclass(frozen=True)
class Holder:
    """The process that holds a folder.

    Attributes:
        host: name of the machine.
        machine: identifies the machine, its start and the container, since names of hosts come again.
        pid: process number.
        process_start: when the process started, as the system counts it; another process of that number has
            another one.
        since: when it took the lock, ISO 8601.
        token: of this lock alone.
    """

    host: str
    machine: str
    pid: int
    process_start: str
    since: str
    token: str

    @staticmethod
    def of_this_process() -> Holder:
        """A new lock of this process."""
        now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        return Holder(
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            process_start=_process_start(os.getpid()) or "",
            since=now,
            token=uuid.uuid4().hex,
        )

    def is_alive(self, age_seconds: float) -> bool:
        """Whether the holder still runs: looked up on its own machine, elsewhere judged by the lock's age."""
        if (self.host, self.machine) == (socket.gethostname(), _machine()):
            return _process_start(self.pid) == self.process_start
        return age_seconds < STALE_SECONDS


class FolderLock:
    """Holds a folder for this process while the context is open.

    ``lock.json`` in the folder names the holder, which renews the file's time every 15 seconds. The lock of
    a process that has ended is taken over: at once if the process can be looked up (same machine since its
    last start, same container), else 3 minutes after its last renewal.

    Args:
        folder: created if it is missing, and then removed at the end if nothing was written into it.
        remedy: how to choose another folder, as the end of a message.
    """

    def __init__(self, folder: str | os.PathLike[str], *, remedy: str) -> None:
        self.path = Path(folder) / LOCK_NAME
        self._remedy = remedy
        self._own: Holder | None = None
        self._created = False
        self._released = threading.Event()

    def __enter__(self) -> FolderLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the folder.

        Raises:
            UserError: another process holds it.
            RunFailed: the system refuses to write there.
        """
        self._created = not self.path.parent.exists()
        make_folder(self.path.parent)
        try:
            self._acquire()
        except OSError as error:
            raise write_failed(self.path, error) from error
        threading.Thread(target=self._keep, name="folder lock", daemon=True).start()

    def _acquire(self) -> None:
        with self._opened() as file:
            holder = _read(file)
            age = _age_seconds(file, self.path.parent)
            if holder is not None and holder.is_alive(age):
                raise UserError(self._refusal(holder, age))
            if holder is not None:
                logger.info(
                    "%s: taken over from process %d on %s, which has ended",
                    self.path.parent,
                    holder.pid,
                    holder.host,
                )
            self._own = Holder.of_this_process()
            file.seek(0)
            file.truncate()
            file.write(json.dumps(dataclasses.asdict(self._own), indent=2) + "\n")

    def release(self) -> None:
        """Give the folder back; without a lock, do nothing."""
        own, self._own = self._own, None
        self._released.set()
        if own is None or not self.path.parent.is_dir():
            return
        with suppress(OSError), self._opened() as file:
            if _read(file) == own:
                os.unlink(self.path)
        if self._created:
            with suppress(OSError):  # it holds files
                self.path.parent.rmdir()

    def _refusal(self, holder: Holder, age: float) -> str:
        elsewhere = holder.machine != _machine()
        return (
            f"{self.path.parent}: in use by process {holder.pid} on {holder.host} since {holder.since}; wait"
            f" for its end, stop it, or {self._remedy}"
            + (
                f" (a lock from another machine ends {STALE_SECONDS:.0f} s after its last renewal, which was"
                f" {max(age, 0):.0f} s ago)"
                if elsewhere
                else ""
            )
        )

    def _keep(self) -> None:
        """Renew the time of the lock file until the lock is released."""
        own = self._own
        while not self._released.wait(BEAT_SECONDS):
            try:
                with open(self.path, encoding="utf-8") as file:
                    holder = _read(file)
                if holder == own:
                    os.utime(self.path)
            except OSError:  # the folder is gone or out of reach for a while
                continue
            if holder is not None and holder != own and not self._released.is_set():
                # This process was stopped for minutes, and another machine took the folder over.
                logger.error(
                    "%s: process %d on %s took this folder over while this process did not run; ended",
                    self.path.parent,
                    holder.pid,
                    holder.host,
                )
                os._exit(1)

    @contextmanager
    def _opened(self) -> Iterator[IO[str]]:
        """The lock file, for this process alone as long as it is open."""
        while True:
            with open(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "r+", encoding="utf-8") as file:
                with suppress(OSError):  # a file system without flock
                    fcntl.flock(file, fcntl.LOCK_EX)
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(file.fileno()), os.stat(self.path)):
                        yield file
                        return

            # Its holder removed it between the two calls.


@contextmanager
def lock_for_all_ranks(folder: str | os.PathLike[str], *, remedy: str) -> Iterator[None]:
    """Hold a folder for this run alone while the context is open; all ranks call it, and rank 0 locks.

    Raises:
        UserError: another process holds it.
    """
    lock = FolderLock(folder, remedy=remedy)
    distributed.run_on_main(lock.acquire)
    try:
        yield
    finally:
        lock.release()  # does nothing on ranks that hold no lock


def _read(file: IO[str]) -> Holder | None:
    """The holder in a lock file; None if it is empty or was cut by a kill."""
    file.seek(0)
    try:
        return from_parts(Holder, parse_json(file.read(), LOCK_NAME))
    except ValueError:  # UserError, or bytes that are not UTF-8
        return None


def _age_seconds(file: IO[str], folder: Path) -> float:
    """Seconds since the lock was last renewed, by the clock of the folder's file system."""
    with tempfile.TemporaryFile(dir=folder) as now:
        return os.fstat(now.fileno()).st_mtime - os.fstat(file.fileno()).st_mtime


def _machine() -> str:
    """The present start of this machine and this process's container, as far as the system names them."""
    parts = [platform.system()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _process_start(pid: int) -> str | None:
    """When a process of this machine started; None if no process has that number, or it has ended."""
    if Path("/proc/self/stat").exists():
        try:
            # The second field is the program's name in brackets, and may hold spaces.
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        state, *_ = rest = fields.rpartition(")")[2].split()
        return None if state in "ZX" else rest[19]
    done = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True)
    return done.stdout.strip() or None


# The run folder of a training: whose it is, what it leaves behind for people, and which videos failed.


def hold_run_folder(path: str) -> AbstractContextManager[None]:
    """Hold a run folder for this process while the context is open; all ranks must call it.

    It is taken before anything is built or measured, so that a second process is refused at once.

    Raises:
        UserError: another process holds it.
    """
    return lock_for_all_ranks(path, remedy="choose another run.folder")


class RunFolder:
    """One folder, one config: a run that goes on must share every setting that changes what is learnt.

    Args:
        path: of the folder.
        config: the config of the task.
    """

    def __init__(self, path: str, config: Any) -> None:
        self.path = Path(path)
        self._config = config

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The settings that a resumed run must share with what it resumes."""
        return self._without_free_keys(self._config)

    def open(self) -> None:
        """Write config and environment; only rank 0 calls it.

        Raises:
            UserError: the folder holds a run of another config or of another task.
        """
        config = self.path / "config.yaml"
        # Earlier versions left it empty if they were killed while they wrote it; checkpoints know theirs too.
        written = is_file(config) and config.stat().st_size > 0
        if written and CheckpointFolder(self.path / "checkpoints").steps():
            self.check()
        make_folder(self.path)
        for folder in (self.path, self.path / "pictures", self.path / "score"):
            remove_temporary_files(folder)
        self.write("config.yaml", config_text(self._config))
        self.write("environment.json", diagnose(self.path).to_json())
        Path(self.path, "summary.json").unlink(missing_ok=True)  # of an earlier end; the run goes on

    def check(self) -> None:
        """Compare the config that lies in the folder with this one.

        Raises:
            UserError: it is that of another run or of another task.
        """
        config_path = self.path / "config.yaml"
        try:
            earlier = load_config(type(self._config), str(config_path))
        except UserError as error:
            raise UserError(
                f"{self.path}: holds a run of another task or version ({error}); choose another run.folder"
            ) from error
        check_fingerprint(self._without_free_keys(earlier), self.fingerprint, config_path)

    def write(self, name: str, text: str) -> None:
        """Write a text file of the folder."""
        if not self.path.is_dir():
            raise RunFailed(f"{self.path}: the run folder was removed while the run went on")
        with whole_file(self.path / name) as file:
            file.write(text)

    def write_json(self, name: str, value: Any) -> None:
        """Write plain data as JSON."""
        self.write(name, simplejson.dumps(value, indent=2, ignore_nan=True))

    def say(self, text: str) -> None:
        """Tell the user, and keep it in the run's log, which is open only while the loop runs."""
        logger.info(text)
        append_text(self.path / "log.txt", text + "\n")

    def write_failures(self, name: str, failures: Iterable[Failure]) -> None:
        """Write path and cause of each as a line of JSON."""
        rows = ({"path": failure.path, "cause": failure.cause} for failure in failures)
        self.write(name, "".join(simplejson.dumps(row) + "\n" for row in rows))

    def count_failures(self, counter: FailureCounter) -> Callable[[Sequence[Any]], None]:
        """Count failures, and leave them in failures.jsonl even where the counter ends the run."""

        def take(failures: Sequence[Any]) -> None:
            try:
                counter.add(failures)
            finally:
                if distributed.is_main():  # whole every time, so that steps replayed by a resume add nothing
                    self.write_failures("failures.jsonl", counter.failures.values())

        return take

    def _without_free_keys(self, config: Any) -> dict[str, Any]:
        free = free_keys(type(config))
        return {key: value for key, value in flat(config).items() if key not in free}


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether the network runs under bf16 autocast: asked for, or on a GPU unless refused.

    Raises:
        UserError: no such precision.
    """
    check_name("precision", precision, ("auto", "fp32", "bf16"))
    return precision == "bf16" or (precision == "auto" and device.type == "cuda")


# The number of CPU threads of a verb: measured, kept when a run is resumed, or set by the user.
ConfigT = TypeVar("ConfigT", bound=Any)


class Training(Protocol):
    """A training that is built and has not begun, as far as a trial uses it."""

    @property
    def loader(self) -> ClipLoader[Any]: ...
    @property
    def step(self) -> StepFunction[Any]: ...
    @property
    def optimizer(self) -> torch.optim.Optimizer: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def bf16(self) -> bool: ...


def with_threads(config: ConfigT, device: torch.device, build: Callable[[], Training]) -> ConfigT:
    """Set torch's number of threads and return the config with ``run.threads`` resolved; all ranks call it.

    A resumed run keeps its number: another one sums in another order, and the run would no longer equal the
    uninterrupted one bit for bit. A new run takes the number with which its own steps are fastest now; they
    are measured on a separate training, which is discarded. On a GPU nothing is changed.

    Args:
        config: of a training.
        device: of the training.
        build: builds the training.

    Raises:
        UserError: the number is negative, or what ``build`` raises.
    """
    if config.run.threads < 0:
        raise UserError(f"run.threads={config.run.threads}: must be 1 or more, or 0 to have it measured")
    if device.type != "cpu":
        return config
    keep_freed_memory()
    threads = config.run.threads or distributed.run_on_main(lambda: _stored(config))
    if threads:
        torch.set_num_threads(threads)
        cores = available_cores()
        if threads > cores and distributed.is_main():
            logger.warning(
                "resumed with the run's %d threads on %s; run.threads=%d is faster, but rounds differently",
                threads,
                counted(cores, "core"),
                cores,
            )
    else:
        threads = _measured(config, build)
    return replace(config, run=replace(config.run, threads=threads))


def choose_inference_threads(
    model: nn.Module,
    clip: ClipRecipe,
    *,
    device: torch.device,
    bf16: bool,
    workers: int = 0,
    network: Callable[[Tensor], object] | None = None,
) -> None:
    """Let torch compute with the number of threads that is fastest for one clip now; do nothing on a GPU.

    Args:
        model: put into evaluation mode meanwhile.
        clip: the size of its clips.
        device: of the model.
        bf16: run it under bf16 autocast.
        workers: loader processes of this rank.
        network: what is run, float [1, C, T, H, W] -> anything; None: the model.
    """
    if device.type != "cpu":
        return
    keep_freed_memory()
    pixels = torch.zeros(1, 3, clip.frames, clip.crop, clip.crop)
    run = network or model

    def work() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            run(pixels)

    with evaluating(model):
        choice = choose_threads(work, workers=workers)
    if choice.seconds and distributed.is_main():
        logger.info("threads   %s", choice)


def _stored(config: Any) -> int:
    """The number that the run folder's run began with; 0 if there is no run to resume."""
    folder = Path(config.run.folder)
    if not (CheckpointFolder(folder / "checkpoints").steps() and is_file(folder / "config.yaml")):
        return 0
    try:
        return int(load_config(type(config), str(folder / "config.yaml")).run.threads)
    except UserError:
        return 0  # RunFolder.open reports what is wrong with it


def _measured(config: Any, build: Callable[[], Training]) -> int:
    workers = config.data.workers
    if config.run.compile:  # it builds code for one number of threads, so trying several would take minutes
        return choose_threads(None, workers=workers).threads
    with closing(_Trial(build, config.optim.accumulate)) as trial:
        choice = choose_threads(trial, workers=workers)
    if choice.seconds and distributed.is_main():
        logger.info("threads   %s", choice)
    return choice.threads


class _Trial:
    """Steps of a training, one per call, always on the batches of its first step: reading takes no part.

    Args:
        build: builds the training; called with the first step.
        accumulate: micro-batches per step.
    """

    def __init__(self, build: Callable[[], Training], accumulate: int) -> None:
        self._build, self._accumulate = build, accumulate
        self._training: Training | None = None
        self._batches: list[Any] = []

    def __call__(self) -> None:
        if self._training is None:
            logging.disable(logging.WARNING)  # the training itself logs it again
            try:
                self._training = self._build()
            finally:
                logging.disable(logging.NOTSET)
            batches = itertools.islice(self._training.loader.epoch(0), self._accumulate)
            self._batches = [batch.to(self._training.device) for batch in batches]
        training = self._training
        for batch in self._batches:
            with torch.autocast(training.device.type, torch.bfloat16, enabled=training.bf16):
                loss, _ = training.step(batch)
            loss.backward()
        training.optimizer.step()
        training.optimizer.zero_grad(set_to_none=True)

    def close(self) -> None:
        """End the loader's workers and free the training."""
        if self._training is not None:
            self._training.loader.close()
            self._training = None
            self._batches.clear()
            gc.collect()


# What every training builds from the keys of its config: schedule, optimiser, average, loop.
OPTIMIZERS = ("adamw", "sgd")


def build_schedule(optim: OptimConfig) -> WarmupCosine:
    """The learning rate over the epochs, for the config's batch.

    Raises:
        UserError: a rate, a length or the base batch that cannot be.
    """
    schedule = WarmupCosine(
        base_lr=optim.learning_rate,
        start_lr=optim.start_learning_rate,
        end_lr=optim.end_learning_rate,
        warmup_epochs=optim.warmup_epochs,
        epochs=optim.epochs,
    )
    return schedule.scaled(optim.batch_size, optim.base_batch_size)


def build_optimizer(
    optim: OptimConfig, model: nn.Module, *, base_lr: float, encoder: nn.Module | None = None
) -> torch.optim.Optimizer:
    """The optimiser over the model's parameter groups: AdamW, or what a fine-tuning names.

    Args:
        optim: of the config.
        model: all that learns.
        base_lr: peak learning rate.
        encoder: the part of the model whose blocks are its layers; None: the model itself.

    Raises:
        UserError: an unknown optimiser, or betas or momentum out of their range.
    """
    groups = parameter_groups(
        model.named_parameters(),
        base_lr=base_lr,
        weight_decay=optim.weight_decay,
        layer_decay=optim.layer_decay,
        depth=len((encoder or model).blocks),  # type: ignore[arg-type]
    )
    name = optim.optimizer if isinstance(optim, FinetuneOptimConfig) else "adamw"
    check_name("optim.optimizer", name, OPTIMIZERS)
    if isinstance(optim, FinetuneOptimConfig) and name == "sgd":
        return sgd(groups, momentum=optim.momentum)
    return adamw(groups, betas=(optim.betas[0], optim.betas[1]))


def build_average(optim: OptimConfig, model: nn.Module) -> ExponentialMovingAverage | None:
    """The moving average of the weights, where the config keeps one."""
    return None if optim.ema_decay is None else ExponentialMovingAverage(model, decay=optim.ema_decay)


def loop_options(
    optim: OptimConfig, run: RunConfig, loader: ClipLoader[Any], *, evaluate_epochs: float, bf16: bool
) -> LoopOptions:
    """How the loop runs; milestones and evaluations stand in epochs in a config, and in steps there."""
    steps_per_epoch = loader.batches_per_epoch // optim.accumulate
    return LoopOptions(
        epochs=optim.epochs,
        accumulate=optim.accumulate,
        clip_norm=optim.gradient_clip,
        precision="bf16" if bf16 else "fp32",
        seed=run.seed,
        save_minutes=run.checkpoint_minutes,
        keep_last=run.keep_checkpoints,
        milestone_every=round(run.checkpoint_epochs * steps_per_epoch),
        evaluate_every=round(evaluate_epochs * steps_per_epoch),
        unit="clips",
    )


def rank_timeout_seconds(run: RunConfig) -> float:
    """How long a rank waits for another one.

    Raises:
        UserError: not a positive time.
    """
    if not run.rank_timeout_minutes > 0:
        raise UserError(f"run.rank_timeout_minutes {run.rank_timeout_minutes:g} must be above 0, such as 30")
    return 60 * run.rank_timeout_minutes


def clip_recipe(clip: ClipConfig | LabelledClipConfig) -> ClipRecipe:
    """What the weights file will know of clips."""
    return ClipRecipe(
        frames=clip.frames,
        stride=clip.stride,
        crop=clip.crop,
        target_fps=clip.target_fps,
        short_video=clip.short_video,
        mean=clip.mean,
        std=clip.std,
    )
