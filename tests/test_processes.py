"""Verbs in their own processes receive signals, and end with the process that started them."""

from __future__ import annotations

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.engine.processes import processes_of_session, session, wait_until
from videomaskfeat import processes
from videomaskfeat.errors import Stopped
from videomaskfeat.processes import Verbs, run_in_order

# Replaces Python in `python -m videomaskfeat ARGUMENTS`.
VERB = f"""#!{sys.executable}
import signal, sys, time
from pathlib import Path
from videomaskfeat.processes import end_with_parent
folder, name = Path(sys.argv[3]), sys.argv[4]
def save(number, frame):
    (folder / "saved").write_text(name)
    sys.exit(130)
signal.signal(signal.SIGTERM, save if name != "stuck" else signal.SIG_IGN)
end_with_parent()
(folder / name).touch()
if name in ("waits", "stuck"):
    time.sleep(60)
sys.exit(int(name) if name.isdecimal() else 0)
"""
PARENT = """
import sys
from videomaskfeat.processes import run_in_order
sys.executable = sys.argv[1]
sys.exit(run_in_order([[sys.argv[2], name] for name in ("first", "waits", "last")], again="make demo"))
"""


@pytest.fixture
def verb(tmp_path: Path) -> str:
    """The path of the program above."""
    path = tmp_path / "verb"
    path.write_text(VERB)
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def python(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the program above instead of Python."""
    monkeypatch.setattr(sys, "executable", verb)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_verb_ends_with_its_parent_and_nothing_follows(
    tmp_path: Path, verb: str, number: signal.Signals, code: int
) -> None:
    with session([sys.executable, "-c", PARENT, verb, str(tmp_path)]) as process:
        wait_until(lambda: (tmp_path / "waits").exists())
        process.send_signal(number)
        _, output = process.communicate(timeout=30)
        wait_until(lambda: not processes_of_session(process.pid), seconds=10)
    assert process.returncode == code
    assert (tmp_path / "saved").read_text() == "waits"
    assert not (tmp_path / "last").exists()
    if number != signal.SIGKILL:
        assert (
            output.strip()
            == f"`videomaskfeat {tmp_path}` was stopped (exit code {code}); `make demo` continues"
            + (" from there")
        )


@pytest.mark.parametrize(("code", "how"), [(1, "failed"), (130, "was stopped")])
@pytest.mark.usefixtures("python")
def test_verb_that_ends_early_is_the_last(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], code: int, how: str
) -> None:
    assert run_in_order([[str(tmp_path), name] for name in ("a", str(code), "b")], again="make demo") == code
    assert f"{how} (exit code {code}); `make demo` continues from there" in capfd.readouterr().err
    assert (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()


@pytest.mark.usefixtures("python")
def test_signal_reaches_verbs_of_all_threads_and_a_second_one_kills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "SAME_SIGNAL_SECONDS", 0.0)
    earlier = signal.getsignal(signal.SIGTERM)
    with Verbs() as verbs, ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(verbs.run, [str(tmp_path), name]) for name in ("waits", "stuck")]
        wait_until(lambda: (tmp_path / "waits").exists() and (tmp_path / "stuck").exists())
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped, match="stopped by SIGTERM; finished work is kept"):
            futures[0].result(timeout=30)
        assert not futures[1].done()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped):
            futures[1].result(timeout=30)
        with pytest.raises(Stopped):
            verbs.run([str(tmp_path), "late"])
    assert not (tmp_path / "late").exists()
    assert signal.getsignal(signal.SIGTERM) == earlier
