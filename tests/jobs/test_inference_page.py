"""docs/how_to/predict.md: its commands and Python run, and its tables are complete."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.make_videos import write_video
from tests.jobs.weights_files import write_classifier, write_pretrained
from videomaskfeat.cli import main

PAGE = (Path(__file__).parent.parent.parent / "docs/how_to/predict.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the page uses, in the current folder."""
    monkeypatch.chdir(tmp_path)
    write_classifier(tmp_path / "classifier.safetensors")
    write_pretrained(tmp_path / "weights.safetensors")
    (tmp_path / "videos").mkdir()
    for name in ("video.mp4", "videos/one.mp4", "videos/two.mp4"):
        write_video(tmp_path / name, frames=20)
    (tmp_path / "list.csv").write_text("videos/one.mp4 1\nvideos/two.mp4 0\n")
    return tmp_path


def test_commands_and_python_run_as_written(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    assert len(commands) == 12
    for command in commands:
        program, *arguments = shlex.split(command)
        # One process less for each command: workers are tested elsewhere.
        if arguments[0] != "visualize" and "--workers" not in arguments:
            arguments += ["--workers", "0"]
        assert program == "videomaskfeat"
        assert main(arguments) == 0, (command, capsys.readouterr().err)
    assert sorted(path.name for path in (place / "labeled").iterdir()) == [
        "one_labels.mp4",
        "two_labels.mp4",
    ]
    assert (place / "labels.json").exists()
    codes = blocks("python")
    assert len(codes) == 4
    results = []
    for code in codes:
        names: dict = {}
        exec(code, names)
        results.append(names)
    labels, features, memory, read = results
    assert labels["predictions"].probabilities.shape == (7,)
    assert features["features"].shape == features["several"].shape == (32,)
    assert features["grid"].ndim == 4
    assert torch.equal(memory["features"], memory["encoder"].features("video.mp4"))
    assert read["array"].shape == (2, 32)
    np.testing.assert_array_equal(read["array"], np.load("features/features.npy"))
    assert read["labels"].tolist() == [1, 0]
    assert [Path(path).name for path in read["paths"]] == ["one.mp4", "two.mp4"]


def test_examples_are_three_lines() -> None:
    """The import, and two lines to probabilities or features."""
    for code in blocks("python")[:2]:
        lines = [line for line in code.split("\n\n")[1].splitlines() if line]
        assert len(lines) == 2, lines  # and the import


def test_every_option_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("predict", "extract-features"):
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        options = set(re.findall(r"(?<![\w-])--[a-z-]+", capsys.readouterr().out)) - {"--help"}
        own = {"--nproc-per-node", "--keys", "--option"}  # the last of the usage line
        missing = options - set(re.findall(r"--[a-z-]+", PAGE)) - own
        # what all lists share is explained where lists are
        assert missing <= {"--format", "--labels", "--separator", "--prefix", "--clips-at-once"}, verb
