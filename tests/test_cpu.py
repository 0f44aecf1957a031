"""Usable cores, and the waiting of threads on a busy machine."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from videomaskfeat import machine, openmp

VARIABLES = (openmp.WAIT_POLICY, openmp.SPIN_COUNT)


def run_python(code: str, environment: dict[str, str]) -> str:
    """Run code in another process, and return its output."""
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def wait_policy_of_a_verb(**variables: str) -> str:
    """The two variables in the process of a verb."""
    code = (
        "import os, sys\n"
        "from videomaskfeat import cli\n"
        "assert 'torch' not in sys.modules, 'too late for OpenMP'\n"
        "cli.CommandLine.read = lambda line, arguments: None\n"
        "cli.main(['pretrain'])\n"
        f"print([os.environ.get(name) for name in {VARIABLES!r}])"
    )
    return run_python(code, {k: v for k, v in os.environ.items() if k not in VARIABLES} | variables)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "['PASSIVE', '300000']"),
        ({openmp.WAIT_POLICY: "ACTIVE"}, "['ACTIVE', None]"),
        ({openmp.SPIN_COUNT: "7"}, "[None, '7']"),
    ],
)
def test_verb_sets_passive_waiting_unless_the_user_has_set_it(
    variables: dict[str, str], expected: str
) -> None:
    assert wait_policy_of_a_verb(**variables) == expected


def test_wait_policy_does_not_change_after_torch_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    openmp.set_wait_policy()
    assert not any(name in os.environ for name in VARIABLES)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000"}, 2),  # one and a half cores
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu.max": "what"}, 8),
        ({}, 8),
    ],
)
def test_available_cores_respects_the_quota(
    files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine.available_cores(tmp_path) == expected


@pytest.mark.parametrize(
    ("load", "workers", "expected"), [(0.2, 0, 8), (3.4, 0, 5), (3.6, 2, 2), (30.0, 0, 1), (0.0, 9, 1)]
)
def test_free_cores_subtracts_load_and_workers(
    load: float, workers: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    assert machine.free_cores(8, workers=workers) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [("3", 3), ("4,2", 4), ("", None), ("0", None), ("many", None), ("-1", None)]
)
def test_threads_from_environment(value: str, expected: int | None) -> None:
    assert machine.threads_from_environment({"OMP_NUM_THREADS": value}) == expected
    assert machine.threads_from_environment({}) is None


def test_load_turns_busy_at_once_and_calm_after_three_idle_samples() -> None:
    load = openmp.Load()
    assert not load.update(delay=0.05, idle=0.0)
    assert load.update(delay=0.3, idle=0.0)
    assert load.update(delay=0.0, idle=0.0)  # still busy: sleeping threads get a core at once
    assert load.update(delay=0.0, idle=0.5)
    assert load.update(delay=0.0, idle=0.05)  # the count starts again
    assert [load.update(delay=0.0, idle=0.5) for _ in range(3)] == [True, True, False]
    assert not load.update(delay=0.05, idle=0.5)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_idle_threads_exceed_the_cores_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """In another process: teams of two threads are added until there are more threads than cores."""
    code = (
        "import os, threading, torch\n"
        "from videomaskfeat import openmp\n"
        "openmp.available_cores = lambda: 5\n"
        "torch.set_num_threads(2)\n"
        "torch.zeros(1 << 20).add_(1)\n"
        "def count():\n"
        "    return len(os.listdir('/proc/self/task'))\n"
        "before = count()\n"
        "idle = openmp.IdleThreads(torch)\n"
        "added = count() - before\n"
        "idle.release()\n"
        "print(added, threading.active_count(), torch.get_num_threads())\n"
    )
    output = run_python(code, {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"})
    # Two threads compute, and 4 teams add one each: 6 > 5. A team is two threads of the system.
    assert output == "8 1 2"


def test_yielding_threads_watches_only_with_its_own_wait_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with openmp.yielding_threads():
        alone = threading.active_count()
    monkeypatch.setenv(openmp.WAIT_POLICY, "PASSIVE")
    monkeypatch.setenv(openmp.SPIN_COUNT, openmp._SPINS)
    with openmp.yielding_threads():
        watched = threading.active_count()
    assert watched == alone + sys.platform.startswith("linux")
    assert threading.active_count() == alone


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_watch_adds_idle_threads_while_the_machine_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """With artificial samples: calm, busy, then idle until the end."""
    samples = iter(
        [openmp._Sample(0, 0, 0), openmp._Sample(1, 0, 0), openmp._Sample(2, 0.5, 0)]
        + [openmp._Sample(3 + n, 0.5, 1e3 * n) for n in range(20)]
    )
    monkeypatch.setattr(openmp._Sample, "take", lambda thread: next(samples))
    monkeypatch.setattr(openmp, "_SAMPLE_SECONDS", 0.0)
    ended, events = threading.Event(), []

    class Recorded(openmp.IdleThreads):
        def __init__(self, loaded: object) -> None:
            assert loaded is torch
            events.append("added")

        def release(self) -> None:
            events.append("released")
            ended.set()

    monkeypatch.setattr(openmp, "IdleThreads", Recorded)
    openmp._watch(ended, 0)
    assert events == ["added", "released"]


def test_whole_module_waits_for_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Computing during an import of torch (seconds on a busy machine) was a segmentation fault."""
    (tmp_path / "half_imported.py").write_text(
        "import time\nearly = 1\nwhile not go: time.sleep(0.01)\nlate = 2\n".replace(
            "go", "__import__('sys').go"
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "go", False, raising=False)
    importing = threading.Thread(target=__import__, args=("half_imported",))
    importing.start()
    while not hasattr(sys.modules.get("half_imported"), "early"):
        pass
    threading.Timer(0.2, setattr, (sys, "go", True)).start()
    assert openmp.whole_module("half_imported").late == 2
    importing.join()
