"""``bench-data``: the stages of every kind of data, and the number of workers."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from videomaskfeat.data.stages import STAGES
from videomaskfeat.jobs.bench_data import DataBenchmark
from videomaskfeat.jobs.pack import pack

from .action_set import make_action_set
from .conftest import TINY, Verb
from .test_finetune import TINY as TINY_FINETUNE
from .test_images import pretraining, shapes

__all__ = ["shapes"]  # a fixture
RATE = re.compile(r"^(\w+) +(\d+\.\d{3}) +(\S+)", re.MULTILINE)


def _result(**changes: Any) -> DataBenchmark:
    seconds = {**dict.fromkeys(STAGES, 0.0), "open": 0.005, "decode": 0.020, "collate": 0.001, "copy": 0.5}
    result = DataBenchmark(
        source="train.csv",
        device="cuda:0",
        seconds=seconds,
        clips=64,
        failures=[],
        decode_seconds=None,
        step_clips=32,
        step_seconds=0.2,
        workers=2,
        cores=16,
    )
    return dataclasses.replace(result, **changes)


def test_workers_make_as_many_clips_as_the_step_uses() -> None:
    """26 ms per clip of a worker, without the copy, and 6.25 ms per clip of the step: 4.16 workers."""
    assert _result().needed_workers == 5
    assert _result(step_seconds=0.84).needed_workers == 1  # 0.99 workers
    assert _result(step_seconds=100.0).needed_workers == 1
    text = _result().text()
    assert "decode          20.000           50    77 %  decode the remaining frames" in text
    assert "worker          26.000        38.46   100 %" in text
    assert "step      200 ms per step of 32 on cuda:0 without the wait for data: 160 clips per s" in text
    assert "workers   at least 5 (data.workers is 2, 16 cores)" in text
    assert "on a CPU" not in text
    assert "on a CPU, steps and workers share the cores" in _result(device="cpu").text()


def _check(code: int, out: str, err: str, figures: Path, *, idle: tuple[str, ...]) -> dict[str, Any]:
    assert code == 0, err
    result: dict[str, Any] = json.loads(figures.read_text())
    printed = {name: float(milliseconds) for name, milliseconds, _ in RATE.findall(out)}
    assert [*printed] == [*STAGES, "copy", "worker"]
    for stage, seconds in result["seconds_per_clip"].items():
        assert printed[stage] == pytest.approx(1e3 * seconds, abs=6e-4), stage
        if stage != "decode":  # the first frame, measured again, may take as long as all frames
            assert (seconds == 0) == (stage in idle), stage
    assert result["seconds_per_clip"]["seek"] + result["seconds_per_clip"]["decode"] > 0
    rate = result["step_clips_per_second"] / result["worker_clips_per_second"]
    assert result["needed_workers"] == max(-(-rate // 1), 1)
    return result


@pytest.mark.parametrize("kind", ["videos", "shards", "memory"])
def test_videos_shards_and_memory_are_measured(kind: str, sample: Path, tmp_path: Path, verb: Verb) -> None:
    listed = sample / "train.csv"
    if kind == "shards":
        pack(str(listed), str(tmp_path / "shards"))
        listed = tmp_path / "shards/index.json"
    words = [f"data.train={listed}", f"data.cache={'memory' if kind == 'memory' else 'none'}"]
    words += ["--clips", "6", "--out", f"{tmp_path / 'figures.json'}", f"run.folder={tmp_path / 'run'}"]
    ended = verb("bench-data", *TINY, *words)
    idle = ("augment", "seek") if kind == "memory" else ("augment",)
    result = _check(*ended, tmp_path / "figures.json", idle=idle)
    assert (result["decode_seconds_per_video"] is not None) == (kind == "memory")
    assert ("per video to decode it into memory" in ended[1]) == (kind == "memory")
    assert result["step_clips"] == 4
    assert result["clips"] >= 6
    assert not (tmp_path / "run").exists()


def test_images_labels_and_key_frames_are_measured(
    sample: Path, shapes: Path, tmp_path: Path, verb: Verb
) -> None:
    out, run = tmp_path / "figures.json", f"run.folder={tmp_path / 'run'}"
    options = ["--clips", "4", "--out", f"{out}", "--overwrite", run]
    images = verb("bench-data", *pretraining(shapes, tmp_path / "run", "mvit")[1:], *options)
    _check(*images, out, idle=("seek", "augment"))
    yaml = tmp_path / "finetune.yaml"
    yaml.write_text("evaluate: {views: 2}\n")
    data = [f"data.train={sample / 'train.csv'}", "augment.erasing=1"]
    labeled = verb("bench-data", "--config", yaml, *TINY_FINETUNE, *data, *options)
    _check(*labeled, out, idle=())
    (tmp_path / "actions").mkdir()
    actions = make_action_set(tmp_path / "actions")
    yaml.write_text("data: {label_map: x}\n")
    detected = verb("bench-data", "--config", yaml, *actions.overrides(tmp_path / "run"), *options)
    result = _check(*detected, out, idle=("augment",))
    assert result["list"].split(", ")[0] == actions.train  # with its file of boxes


def test_unreadable_videos_are_listed(sample: Path, tmp_path: Path, verb: Verb) -> None:
    listed = tmp_path / "list.csv"
    listed.write_text((sample / "train.csv").read_text())
    paths = [line.split()[0] for line in listed.read_text().splitlines()]
    for path in paths:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes((sample / path).read_bytes())
    for path in paths[:3]:
        (tmp_path / path).write_bytes(b"")
    words = [*TINY, f"data.train={listed}", "data.failure_share=1", f"run.folder={tmp_path / 'run'}"]
    code, out, _ = verb("bench-data", *words, "--clips", "1000")
    assert code == 3
    assert out.count("empty file (0 bytes)") == 3
    for path in paths:
        (tmp_path / path).write_bytes(b"")
    code, _, err = verb("bench-data", *words)
    assert code == 2
    assert re.search(r"list\.csv: no video can be read; the first: .*: empty file \(0 bytes\)", err)


def test_figures_of_an_earlier_command_are_kept(sample: Path, tmp_path: Path, verb: Verb) -> None:
    (tmp_path / "figures.json").write_text("earlier")
    words = [*TINY, f"data.train={sample / 'train.csv'}", "--out", f"{tmp_path / 'figures.json'}"]
    code, _, err = verb("bench-data", *words)
    assert code == 2
    assert "figures.json exists: it is the output of an earlier command" in err
    assert (tmp_path / "figures.json").read_text() == "earlier"
