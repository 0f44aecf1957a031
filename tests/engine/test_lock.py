"""Two processes never write into one folder, and the lock of a dead one keeps nobody out."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import simplejson

from tests.engine.processes import exit_code
from videomaskfeat.engine import lock as locks
from videomaskfeat.engine.lock import STALE_SECONDS, FolderLock, Holder
from videomaskfeat.errors import UserError

REMEDY = "choose another run.folder"


def lock(folder: Path) -> FolderLock:
    return FolderLock(folder, remedy=REMEDY)


def leave_lock(folder: Path, **changes: object) -> Path:
    """The lock file of this process, with some facts changed."""
    holder = dataclasses.replace(Holder.of_this_process(), **changes)  # type: ignore[arg-type]
    folder.mkdir(exist_ok=True)
    path = folder / "lock.json"
    path.write_text(simplejson.dumps(dataclasses.asdict(holder)))
    return path


def take_and_die(folder: Path) -> None:
    lock(folder).acquire()
    os._exit(7)


def fail_to_take(folder: Path) -> None:
    with pytest.raises(UserError, match=f"in use by process {os.getppid()} on|in use by process"):
        lock(folder).acquire()


def test_holder_is_named_with_the_remedy(tmp_path: Path) -> None:
    with lock(tmp_path / "run"):
        since = simplejson.loads((tmp_path / "run" / "lock.json").read_text())["since"]
        with pytest.raises(UserError) as caught:
            lock(tmp_path / "run").acquire()
        assert exit_code(fail_to_take, tmp_path / "run") == 0
    assert str(caught.value) == (
        f"{tmp_path}/run: in use by process {os.getpid()} on {socket.gethostname()} since {since}; wait for"
        f" its end, stop it, or {REMEDY}"
    )
    lock(tmp_path / "run").acquire()


def test_folder_that_stayed_empty_is_removed(tmp_path: Path) -> None:
    """A mistake in the config leaves nothing behind."""
    with lock(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()
    with lock(tmp_path):
        pass
    assert tmp_path.exists(), "it was there before"
    with lock(tmp_path / "run"):
        (tmp_path / "run" / "config.yaml").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]


def test_lock_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    assert exit_code(take_and_die, tmp_path) == 7
    assert (tmp_path / "lock.json").exists()
    with lock(tmp_path):
        assert simplejson.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_number_of_another_process_is_told_by_its_start(tmp_path: Path) -> None:
    """A process number comes again; a killed process that nobody has waited for is dead too."""
    leave_lock(tmp_path, process_start="1")
    with lock(tmp_path):
        pass
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    start = locks._process_start(process.pid)
    assert start is not None
    leave_lock(tmp_path, pid=process.pid, process_start=start)
    try:
        with pytest.raises(UserError, match=f"process {process.pid} on"):
            lock(tmp_path).acquire()
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and not reaped
        lock(tmp_path).acquire()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("machine", ["another start", "another container"])
def test_lock_of_another_machine_counts_while_it_is_renewed(tmp_path: Path, machine: str) -> None:
    path = leave_lock(tmp_path, host="node-7", machine=machine, pid=2**22 + 1)
    words = r"process 4194305 on node-7 .*\(a lock from another machine ends 180 s after .* [01] s ago\)"
    with pytest.raises(UserError, match=words):
        lock(tmp_path).acquire()
    old = path.stat().st_mtime - STALE_SECONDS - 5
    os.utime(path, (old, old))
    with lock(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}'])
def test_lock_cut_by_a_kill_is_taken_over(tmp_path: Path, content: str) -> None:
    (tmp_path / "lock.json").write_text(content)
    with lock(tmp_path):
        pass


def test_lock_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.01)
    with lock(tmp_path):
        path = tmp_path / "lock.json"
        os.utime(path, (0, 0))
        for _ in range(1000):
            if path.stat().st_mtime:
                break
            subprocess.run(["sleep", "0.01"], check=True)
        assert path.stat().st_mtime > 0


def test_lock_of_another_holder_is_not_removed(tmp_path: Path) -> None:
    """Another machine may take over the folder of a process that was stopped for minutes."""
    own = lock(tmp_path)
    own.acquire()
    path = leave_lock(tmp_path, host="node-7", machine="another", pid=12)
    content = path.read_text()
    own.release()
    assert path.read_text() == content


def test_two_processes_that_ask_at_once_take_turns(tmp_path: Path) -> None:
    """A lock file that another process has open, and will write into, is waited for."""
    (tmp_path / "lock.json").touch()
    caught: list[UserError] = []

    def take() -> None:
        try:
            lock(tmp_path).acquire()
        except UserError as error:
            caught.append(error)

    thread = threading.Thread(target=take, daemon=True)
    with (tmp_path / "lock.json").open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        thread.start()
        thread.join(0.5)
        assert thread.is_alive(), "it did not wait"
        leave_lock(tmp_path)
    thread.join(60)
    (error,) = caught
    assert f"in use by process {os.getpid()} on" in str(error)


def lose(folder: Path) -> None:
    locks.BEAT_SECONDS = 0.01
    lock(folder).acquire()
    leave_lock(folder, host="node-7", pid=12)
    subprocess.run(["sleep", "60"], check=True)


def test_process_that_lost_its_folder_ends(tmp_path: Path) -> None:
    assert exit_code(lose, tmp_path) == 1
