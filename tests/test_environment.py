"""The diagnosis of this machine."""

from __future__ import annotations

import importlib.metadata
import json
import re
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

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


def test_each_extra_is_listed_with_its_purpose_and_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = diagnose().facts["extras"]
    assert list(facts) == list(environment.EXTRAS)
    assert facts["lora"].endswith("; for fine-tuning with low-rank adapters (model.lora)")
    monkeypatch.setattr(
        environment,
        "EXTRAS",
        {
            "fly": (("torch", "no-such-package"), "flying"),
            "swim": (("torch",), "swimming"),
            "run": (("no-such-package",), "running"),
        },
    )
    diagnosis = diagnose()
    assert diagnosis.healthy
    assert diagnosis.facts["extras"] == {
        "fly": "not installed: no-such-package; for flying",
        "swim": f"torch {importlib.metadata.version('torch')}; for swimming",
        "run": "not installed: no-such-package; for running",
    }
    (line,) = [line for line in diagnosis.advice if "extras" in line]
    assert line.startswith("extras that are not installed: fly, run; ")
    assert line.endswith("pip install 'videomaskfeat[fly]'")


def test_extras_and_their_packages_are_those_of_setup(monkeypatch: pytest.MonkeyPatch) -> None:
    setuptools = pytest.importorskip("setuptools", reason="setuptools is not installed")
    root, options = Path(__file__).parents[1], dict[str, Any]()
    monkeypatch.setattr(setuptools, "setup", lambda **keywords: options.update(keywords))
    monkeypatch.chdir(root)
    runpy.run_path(str(root / "setup.py"))
    names = {
        extra: tuple(re.split(r"[\[><=]", requirement)[0] for requirement in requirements)
        for extra, requirements in options["extras_require"].items()
        if extra != "dev"
    }
    assert {extra: packages for extra, (packages, _) in environment.EXTRAS.items()} == names
