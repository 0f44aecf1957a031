"""``run.threads``: measured for a new run, kept on resume, without effect on the learned weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.jobs.conftest import TINY
from videomaskfeat.cli import main
from videomaskfeat.config import load_config
from videomaskfeat.engine import threads
from videomaskfeat.engine.lock import FolderLock
from videomaskfeat.jobs.compare import method_cost
from videomaskfeat.schemas.pretrain import PretrainConfig

Pretrain = Callable[..., tuple[int, str]]


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A machine of two cores on which one thread is faster; the numbers that are tried."""
    before, tried = torch.get_num_threads(), []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "available_cores", lambda: 2)
    monkeypatch.setattr(threads, "free_cores", lambda cores, workers: cores)

    def time_of(work: Callable[[], object]) -> float:
        work()
        tried.append(torch.get_num_threads())
        return {2: 0.4, 1: 0.2}[torch.get_num_threads()]

    monkeypatch.setattr(threads, "_time_once", lambda work: 0.0)
    monkeypatch.setattr(threads, "_time", time_of)
    yield tried
    torch.set_num_threads(before)


def stored(folder: Path) -> int:
    return load_config(PretrainConfig, str(folder / "config.yaml")).run.threads


def weights(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "step_00000008.pt", weights_only=True)["model"]


def test_new_run_measures_prints_and_stores(pretrain: Pretrain, tmp_path: Path, two_cores: list[int]) -> None:
    code, text = pretrain("data.workers=1")
    assert code == 0, text
    assert two_cores == [2, 1]
    assert "threads   1 (measured per step: 2 threads 400 ms, 1 thread 200 ms)" in text
    assert "device    cpu, fp32, 1 thread\n" in text
    assert stored(tmp_path / "run") == 1
    assert text.count("rows of") == 1, "the trial must not log what the training logs"


def test_second_process_is_refused_before_anything_is_measured(
    pretrain: Pretrain, tmp_path: Path, two_cores: list[int]
) -> None:
    with FolderLock(tmp_path / "run", remedy=""):
        code, text = pretrain()
    assert code == 2
    assert "in use by process" in text
    assert not two_cores


def test_trial_does_not_change_the_weights(pretrain: Pretrain, tmp_path: Path, two_cores: list[int]) -> None:
    assert pretrain()[0] == 0
    shutil.move(tmp_path / "run", tmp_path / "measured")
    assert pretrain("run.threads=1")[0] == 0
    assert two_cores == [2, 1]  # by the first run alone
    one, other = weights(tmp_path / "measured"), weights(tmp_path / "run")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_resumed_run_keeps_its_number(
    pretrain: Pretrain, tmp_path: Path, two_cores: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pretrain("run.threads=2")[0] == 0
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    code, text = pretrain()
    assert code == 0, text
    assert (torch.get_num_threads(), stored(tmp_path / "run")) == (2, 2)
    assert not two_cores
    monkeypatch.setattr("videomaskfeat.engine.threads.available_cores", lambda: 1)
    assert "resumed with the run's 2 threads on 1 core;" in pretrain()[1]


def test_resumed_run_can_be_given_another_number(
    pretrain: Pretrain, tmp_path: Path, two_cores: list[int]
) -> None:
    assert pretrain("run.threads=2")[0] == 0
    assert pretrain("run.threads=1")[0] == 0
    assert (torch.get_num_threads(), stored(tmp_path / "run")) == (1, 1)


def test_run_folder_from_before_the_key_is_measured(
    pretrain: Pretrain, tmp_path: Path, two_cores: list[int]
) -> None:
    assert pretrain("run.threads=2")[0] == 0
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("  threads: 2\n", ""))
    assert pretrain()[0] == 0
    assert (two_cores, stored(tmp_path / "run")) == ([2, 1], 1)


def test_negative_number_is_refused(pretrain: Pretrain, tmp_path: Path) -> None:
    code, text = pretrain("run.threads=-1")
    assert code == 2
    assert "run.threads -1 must be at least 0" in text
    assert not (tmp_path / "run").exists()


def test_doctor_says_what_it_would_choose(two_cores: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "CPU threads" in line)
    assert "1 (measured per step: 2 threads 400 ms, 1 thread 200 ms); " in line


def test_inference_verbs_measure(
    material: Path, run: Any, two_cores: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    code, _, text = run("evaluate", material / "best.safetensors", material / "val.csv")
    assert code == 3, text  # one of its videos is not one
    assert two_cores == [2, 1]
    assert "threads   1 (measured per step" in text


def test_export_measures(
    material: Path, tmp_path: Path, two_cores: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "encoder.safetensors"
    assert main(["export", str(material / "best.safetensors"), str(target), "--part", "encoder"]) == 0
    assert two_cores == [2, 1]
    assert "threads   1 (measured per step" in capfd.readouterr().err


def test_cost_of_a_method_is_measured_with_the_fastest_number(
    sample: Path, tmp_path: Path, two_cores: list[int]
) -> None:
    config = load_config(
        PretrainConfig, None, [*TINY, f"data.train={sample / 'train.csv'}", f"run.folder={tmp_path / 'run'}"]
    )
    method_cost(config, steps=1)
    assert (two_cores, torch.get_num_threads()) == ([2, 1], 1)
