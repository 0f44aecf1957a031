"""The diagnosis of this machine."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from videomaskfeat import environment
from videomaskfeat.data.readers_pyav import PyAvReader
from videomaskfeat.environment import diagnose


def test_healthy_machine_decodes_with_pyav(tmp_path: Path) -> None:
    diagnosis = diagnose(tmp_path / "not" / "there" / "yet")
    assert diagnosis.healthy
    assert diagnosis.facts["video readers"]["pyav"].endswith(", decodes")
    assert diagnosis.facts["versions"]["torch"][0].isdigit()
    assert diagnosis.facts["machine"]["free space"].endswith(f"GiB at {tmp_path}")
    assert "video readers" in diagnosis.text()
    assert json.loads(diagnosis.to_json())["healthy"] is True


def test_missing_decord_is_only_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "decord", None)
    diagnosis = diagnose()
    assert diagnosis.healthy
    assert any("decord is missing, so PyAV reads all videos" in line for line in diagnosis.advice)


def test_reader_that_decodes_wrong_frames_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        PyAvReader, "_read", lambda self, indices: np.zeros((len(indices), 96, 96, 3), np.uint8)
    )
    diagnosis = diagnose()
    assert not diagnosis.healthy
    assert (
        "fails: the decoded frames differ from the written ones" in diagnosis.facts["video readers"]["pyav"]
    )
    assert "PyAV is required but does not decode here" in diagnosis.text()


def test_missing_compiler_and_package_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(environment, "PACKAGES", ("no-such-package",))
    diagnosis = diagnose()
    assert diagnosis.broken == [
        "no-such-package is not installed and videomaskfeat needs it: pip install no-such-package"
    ]
    assert any("no torch.compile on the CPU: install g++" in line for line in diagnosis.advice)


def test_missing_extra_is_advice_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "onnxruntime" in diagnose().facts["extras"]["export"]
    monkeypatch.setattr(environment, "EXTRAS", {"fly": (("torch", "no-such-package"), "flying")})
    diagnosis = diagnose()
    assert diagnosis.healthy
    assert diagnosis.facts["extras"]["fly"] == "missing: no-such-package"
    assert "for flying: pip install 'videomaskfeat[fly]'" in diagnosis.advice
