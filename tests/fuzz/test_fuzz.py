"""Damaged inputs of every kind are read or rejected, and failures of a victim are found."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz.__main__ import main
from tests.fuzz.campaign import KINDS, ROOT, Bounds, fuzz
from tests.fuzz.victim import Case, Refused, verb
from videomaskfeat import cli
from videomaskfeat.errors import UserError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="victims are watched through Linux' /proc")

SECONDS = float(os.environ.get("VIDEOMASKFEAT_FUZZ_SECONDS", "60"))
"""Seconds for all kinds together."""
DIGEST = """
import hashlib, random
from tests.fuzz.mutations import mutate_bytes, mutate_document, mutate_rows
total = hashlib.sha256()
tree = {"a": {"b": [1, 2, {"c": None}], "name": "x"}, "d": "text"}
for seed in range(200):
    rng = random.Random(f"digest {seed}")
    total.update(mutate_document(tree, rng))
    total.update(mutate_rows(b"a b\\nc d\\n", rng, b" "))
    total.update(mutate_bytes(bytes(range(256)), rng))
print(total.hexdigest())
"""
CASES = {"media": 400, "lists": 300, "configs": 200, "checkpoints": 100, "weights": 300, "other_weights": 300}
"""Maximum number of cases per kind, so that a faster machine runs no cases that were never run before."""


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_input_is_read_or_refused(
    kind: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    outcome = fuzz(kind, seconds=SECONDS / len(KINDS), keep=tmp_path, cases=CASES[kind])
    record_property("summary", str(outcome))
    assert not outcome.findings, outcome.report()
    assert 0 < outcome.refused < outcome.cases or outcome.cases < 20


def test_files_that_once_failed_are_read_or_refused(tmp_path: Path) -> None:
    from tests.fuzz.known import NUMBER, READERS, UNREADABLE

    bounds = Bounds(seconds=8.0, growth_bytes=300 << 20)
    outcome = fuzz("known", seconds=200.0, keep=tmp_path, cases=NUMBER, bounds=bounds)
    assert not outcome.findings, outcome.report()
    assert outcome.cases == NUMBER
    assert outcome.refused >= len(UNREADABLE) * len(READERS)


@pytest.mark.parametrize("arguments", [["known", "15"], ["known", "-1"], ["known", "--first", "15"]])
def test_seed_beyond_the_known_files_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    seed = arguments[-1]
    assert capsys.readouterr().err == f"case {seed} of known is unknown: its cases are 0..14\n"


def test_failures_of_a_victim_are_found(tmp_path: Path) -> None:
    outcome = fuzz(
        "stubs",
        seconds=200.0,
        keep=tmp_path,
        cases=len(STUBS),
        bounds=Bounds(seconds=2.0, growth_bytes=100 << 20),
        module=__name__,
    )
    names = list(STUBS)
    assert {names[finding.seed]: finding.what.split()[0] for finding in outcome.findings} == {
        "raises": "traceback",
        "aborts": "crash",
        "leaves": "crash",
        "sleeps": "hang",
        "spins": "hang",
        "grows": "growth",
        "grows for a moment": "growth",
        "grows in a child": "growth",
        "prints a traceback": "traceback",
        "has no such exit code": "traceback",
    }
    assert (outcome.cases, outcome.refused) == (len(STUBS), 2)
    report = outcome.report()
    for words in (
        "ZeroDivisionError",
        "crash (SIGABRT) in aborts",
        "in _spin",
        f"python -m tests.fuzz stubs {names.index('sleeps')}",
    ):
        assert words in report
    assert (tmp_path / f"stubs-{names.index('aborts')}" / "input").read_text() == "aborts"
    assert not (tmp_path / "stubs").exists()


def test_equal_seeds_give_equal_bytes_whatever_the_hashes() -> None:
    digests = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        digests.add(subprocess.check_output([sys.executable, "-c", DIGEST], env=environment, cwd=ROOT))
    assert len(digests) == 1
    assert len(digests.pop().strip()) == 64


# The victim of the test above imports this module.


def prepare(material: Path) -> None:
    """Do nothing."""


def make_case(seed: int, material: Path, folder: Path) -> Case:
    """The stub of this number."""
    name = list(STUBS)[seed]
    Path("input").write_text(name)
    return Case(name, STUBS[name], allowed=(Refused,))


def _refuse() -> None:
    raise UserError("no")


def _spin() -> None:
    while True:
        pass


def _grow() -> None:
    blocks = []
    while len(blocks) < 100:
        blocks.append(b"x" * (10 << 20))
        time.sleep(0.02)


def _grow_in_a_child() -> None:
    code = "import time; kept = b'x' * (200 << 20); time.sleep(60)"
    subprocess.run([sys.executable, "-c", code])


def _exit_with(code: int) -> None:
    cli.main = lambda _: code  # in the victim alone
    verb("doctor").run()


STUBS: dict[str, Callable[[], object]] = {
    "passes": lambda: None,
    "refuses": _refuse,
    "has an exit code": lambda: _exit_with(3),
    "raises": lambda: 1 / 0,
    "aborts": os.abort,
    "leaves": lambda: os._exit(0),
    "sleeps": lambda: time.sleep(60),
    "spins": _spin,
    "grows": _grow,
    "grows for a moment": lambda: b"x" * (200 << 20),
    "grows in a child": _grow_in_a_child,
    "prints a traceback": lambda: print("Traceback (most recent call last):\n  x", file=sys.stderr),
    "has no such exit code": lambda: _exit_with(7),
}
