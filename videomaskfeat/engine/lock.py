"""The lock of a folder that only one process may write into."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import logging
import os
import platform
import socket
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import IO

from videomaskfeat.engine import distributed
from videomaskfeat.errors import UserError
from videomaskfeat.io import make_folder, write_failed
from videomaskfeat.texts import parse_json
from videomaskfeat.values import build_dataclass

logger = logging.getLogger(__name__)

LOCK_NAME = "lock.json"
BEAT_SECONDS = 15.0
"""Interval at which the holder renews the time of its lock file."""
STALE_SECONDS = 180.0
"""Age at which a lock counts as abandoned if its process cannot be looked up on this machine."""


@dataclasses.dataclass(frozen=True)
class Holder:
    """The process that has locked a folder.

    Attributes:
        host: host name.
        machine: boot and container of the machine, since host names are reused.
        pid: process number.
        process_start: start of the process in the system's units, since process numbers are reused.
        since: time of the lock, ISO 8601.
        token: unique for each lock.
        job: the run id of torchrun, the same on all machines and after restarts; empty without one.
    """

    host: str
    machine: str
    pid: int
    process_start: str
    since: str
    token: str
    job: str = ""

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
            job=os.environ.get("TORCHELASTIC_RUN_ID", "none").removeprefix("none"),
        )

    def is_alive(self, age_seconds: float) -> bool:
        """Whether the process still runs; on another machine, whether the lock was renewed recently.

        A restart by torchrun may move rank 0 to another machine. All ranks of the job are together before one
        locks a folder, so the holder is not among them, and has ended or will stop itself.
        """
        if (self.host, self.machine) == (socket.gethostname(), _machine()):
            return _process_start(self.pid) == self.process_start
        if self.job and self.job == Holder.of_this_process().job:
            return False
        return age_seconds < STALE_SECONDS


class FolderLock:
    """Locks a folder for this process while the context is open.

    ``lock.json`` in the folder names the holder, which renews the time of the file every 15 seconds. A lock
    is taken over from a process that has ended: at once on the same machine and in the same container,
    otherwise 3 minutes after its last renewal.

    Args:
        folder: created if it is missing, and removed at the end if it is still empty.
        remedy: end of the error message, such as "choose another run.folder".
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
        """Lock the folder.

        Raises:
            UserError: another process has locked it.
            RunFailed: the operating system refuses to write there.
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
        """Unlock the folder; without a lock, do nothing."""
        own, self._own = self._own, None
        self._released.set()
        if own is None or not self.path.parent.is_dir():
            return
        with suppress(OSError), self._opened() as file:
            if _read(file) == own:
                os.unlink(self.path)
        if self._created:
            with suppress(OSError):  # it contains files
                self.path.parent.rmdir()

    def _refusal(self, holder: Holder, age: float) -> str:
        message = (
            f"{self.path.parent}: in use by process {holder.pid} on {holder.host} since {holder.since}; wait"
            f" for its end, stop it, or {self._remedy}"
        )
        if holder.machine == _machine():
            return message
        return (
            f"{message} (a lock from another machine ends {STALE_SECONDS:.0f} s after its last renewal, which"
            f" was {max(age, 0):.0f} s ago)"
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
            except OSError:  # the folder was removed, or is unreachable for a while
                continue
            if holder is not None and holder != own and not self._released.is_set():
                # Another machine took the folder over while this process was suspended.
                logger.error(
                    "%s: process %d on %s took this folder over while this process was suspended; this "
                    "process stops",
                    self.path.parent,
                    holder.pid,
                    holder.host,
                )
                os._exit(1)

    @contextmanager
    def _opened(self) -> Iterator[IO[str]]:
        """The lock file, locked against other processes while it is open."""
        while True:
            with open(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "r+", encoding="utf-8") as file:
                with suppress(OSError):  # a file system without flock
                    fcntl.flock(file, fcntl.LOCK_EX)
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(file.fileno()), os.stat(self.path)):
                        yield file
                        return
            # The holder removed the file between the two calls: try again.


@contextmanager
def lock_for_all_ranks(folder: str | os.PathLike[str], *, remedy: str) -> Iterator[None]:
    """Lock a folder for all ranks of a run while the context is open; all ranks must call it.

    Raises:
        UserError: another process has locked it.
    """
    lock = FolderLock(folder, remedy=remedy)
    distributed.run_on_main(lock.acquire)
    try:
        yield
    finally:
        lock.release()  # rank 0 alone has the lock


def _read(file: IO[str]) -> Holder | None:
    """The holder in a lock file; None if it is empty or was cut by a kill."""
    file.seek(0)
    try:
        return build_dataclass(Holder, parse_json(file.read(), LOCK_NAME))
    except ValueError:  # UserError, or bytes that are not UTF-8
        return None


def _age_seconds(file: IO[str], folder: Path) -> float:
    """Seconds since the lock was last renewed, by the clock of the folder's file system."""
    with tempfile.TemporaryFile(dir=folder) as now:
        return os.fstat(now.fileno()).st_mtime - os.fstat(file.fileno()).st_mtime


def _machine() -> str:
    """Identifies the boot of this machine and the container of this process, if the system has names."""
    names = [platform.system()]
    with suppress(OSError):
        names.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        names.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(names)


def _process_start(pid: int) -> str | None:
    """Start of a process of this machine; None if there is no such process, or it has ended."""
    if Path("/proc/self/stat").exists():
        try:
            # The second field is the program's name in brackets, which may contain spaces.
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        state, *_ = rest = fields.rpartition(")")[2].split()
        return None if state in "ZX" else rest[19]
    done = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True)
    return done.stdout.strip() or None
