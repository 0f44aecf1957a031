"""Provenance: the command as it can be repeated, the date, and the versions of what ran."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from videomaskfeat import provenance
from videomaskfeat.provenance import command_line, describe_provenance


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["/usr/bin/videomaskfeat", "pretrain", "data.train=my list.csv"],
            "videomaskfeat pretrain 'data.train=my list.csv'",
        ),
        (["/x/videomaskfeat/__main__.py", "evaluate"], "videomaskfeat evaluate"),
        ([], "''"),
    ],
)
def test_command_line_can_be_repeated(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], text: str
) -> None:
    monkeypatch.setattr(sys, "argv", arguments)
    assert command_line() == text


def test_facts_are_texts_with_the_commit_only_in_a_clone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "videomaskfeat"
    package.mkdir()
    monkeypatch.setattr(provenance, "__file__", str(package / "provenance.py"))
    monkeypatch.setattr(provenance, "_git_commit", provenance._git_commit.__wrapped__)
    facts = describe_provenance()
    assert list(facts) == ["command", "date", "videomaskfeat", "python", "torch"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", facts["date"])
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message=x"], check=True)
    assert re.fullmatch(r"[0-9a-f]{12}", describe_provenance()["commit"])
