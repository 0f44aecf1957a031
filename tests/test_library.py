"""The code of docs/library.md, on a small copy of the sample data."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.test_lora import stand_in
from tests.test_docs import ROOT, blocks
from videomaskfeat.cli import main
from videomaskfeat.data.sample import write_sample_data


def test_code_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sample_data(tmp_path / "sample", videos=20, frames=12, size=48, seed=3, ava_videos=0, images=0)
    monkeypatch.chdir(tmp_path)
    if importlib.util.find_spec("peft") is None:  # the extra lora is not installed
        monkeypatch.setitem(sys.modules, "peft", stand_in())
    names: dict[str, Any] = {}
    codes = blocks(ROOT / "docs" / "library.md", "python")
    assert len(codes) == 8
    for code in codes:
        exec(compile(code, "library.md", "exec"), names)
        if "top-1" in code:  # the loop, with its data sets, is short
            assert len([line for line in code.splitlines() if line.strip()]) <= 22
    assert "epoch 1: loss " in capsys.readouterr().out
    assert names["batch"]["mask"].shape == (4, 4, 4, 4)  # the last 4 of 20 videos
    assert names["train"][0].keys() == {"clip", "label", "index"}
    assert names["maps"].shape == (1, 4, 8, 8)
    assert names["features"].shape == (128,)
    assert main(["predict", "mine.safetensors", "sample/videos/000001.mp4", "--json", "-"]) == 0
    (prediction,) = json.loads(capsys.readouterr().out)
    assert len(prediction["predictions"]) == 5
    started = names["videomaskfeat"].create_model(
        "maskfeat_mvitv2_nano_classifier", num_classes=12, weights="pretrained.safetensors"
    )
    assert torch.equal(started.blocks[0].norm1.weight, names["model"].blocks[0].norm1.weight)
