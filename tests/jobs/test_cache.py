"""``data.cache=memory``: the same training as from files, after a resume and on several ranks too."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path

import pytest

from tests.engine.processes import exit_codes_of_ranks
from videomaskfeat.cli import main
from videomaskfeat.data import memory
from videomaskfeat.jobs.pretrain import PretrainRun

from .conftest import TINY, Verb
from .test_finetune import TINY as TINY_FINETUNE
from .test_pretrain import Pretrain, assert_refused, rows
from .test_tokenizer import ARGUMENTS as TOKENIZERS
from .test_tokenizer import TINY as TINY_TOKENIZER

KINDS = {
    "pretrain": [*TINY, "probe.train={sample}/train.csv", "probe.test={sample}/val.csv"],
    "finetune": TINY_FINETUNE,
    "train-tokenizer": [*TINY_TOKENIZER, "model.name=vq", f"model.arguments={TOKENIZERS['vq']}"],
}


@pytest.fixture(autouse=True)
def own_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test has its own; nothing may be left in it. Its path is short, since sockets are made in it."""
    forkserver.ensure_running()  # otherwise its socket would be removed with the folder
    with tempfile.TemporaryDirectory(prefix="vmf") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield


def left_over() -> list[str]:
    return [path.name for path in Path(os.environ["TMPDIR"]).glob("videomaskfeat-*")]


def metrics(folder: Path) -> list[dict[str, float]]:
    """All metrics but times and memory."""
    changing = {"seconds", "step_seconds", "data_seconds", "data_share", "memory_mb"}
    names = {name for row in rows(folder) for name in row if "loss" in name or "top1" in name} - changing
    return [{name: row[name] for name in sorted(names & set(row))} for row in rows(folder)]


@pytest.mark.parametrize("kind", KINDS)
def test_training_from_memory_is_the_same(kind: str, sample: Path, tmp_path: Path, verb: Verb) -> None:
    keys = [key.replace("{sample}", str(sample)) for key in KINDS[kind]]
    for cache in ("none", "memory"):
        data = [f"data.train={sample}/train.csv", f"data.validation={sample}/val.csv", f"data.cache={cache}"]
        code, _, err = verb(kind, *keys, *data, f"run.folder={tmp_path / cache}")
        assert code == 0, err
    recorded = metrics(tmp_path / "memory")
    assert recorded == metrics(tmp_path / "none")
    assert all("loss" in row for row in recorded)
    log = (tmp_path / "memory/log.txt").read_text()
    assert "18 of 18 videos in memory: " in log  # both lists
    assert not left_over()


def test_resumed_run_from_memory_equals_one_from_files(
    pretrain: Pretrain, tmp_path: Path, stop_at: Callable[..., None]
) -> None:
    assert pretrain()[0] == 0
    expected = metrics(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "plain")
    stop_at(PretrainRun, 3)
    assert pretrain("data.cache=memory")[0] == 0
    assert "SIGTERM" in (tmp_path / "run/log.txt").read_text()
    assert pretrain("data.cache=memory")[0] == 0
    assert metrics(tmp_path / "run") == expected


def run_as_rank(temporary_folder: str, arguments: list[str]) -> None:
    os.environ["TMPDIR"], tempfile.tempdir = temporary_folder, None
    assert main(arguments) == 0


def test_ranks_share_one_memory(sample: Path, tmp_path: Path) -> None:
    for cache in ("none", "memory"):
        data = [f"data.train={sample}/train.csv", f"data.cache={cache}", "data.workers=1"]
        overrides = [*TINY, *data, "optim.warmup_epochs=0", f"run.folder={tmp_path / cache}"]
        codes = exit_codes_of_ranks(2, run_as_rank, os.environ["TMPDIR"], ["pretrain", *overrides])
        assert codes == [0, 0]
    assert metrics(tmp_path / "memory") == metrics(tmp_path / "none")
    log = (tmp_path / "memory/log.txt").read_text()
    assert log.count(" decoded videos in memory: about ") == log.count(" of 16 videos in memory: ") == 1
    assert not left_over()


def test_videos_that_do_not_fit_end_the_run_before_one_is_decoded(
    pretrain: Pretrain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 100_000)
    monkeypatch.setattr(memory, "_decode", None)
    assert_refused(
        pretrain("data.cache=memory", "data.workers=0"),
        "data.cache=memory: 16 decoded videos need about",
        "videomaskfeat prepare-videos",
    )
    assert not left_over()


def test_start_of_the_run_logs_the_expected_memory(pretrain: Pretrain, tmp_path: Path) -> None:
    """All videos have the same size, so the estimate is exact."""
    assert pretrain("data.cache=memory")[0] == 0
    log = (tmp_path / "run/log.txt").read_text()
    expected = re.search(r"cache     16 decoded videos in memory: about (\S+ MiB); \S+ GiB may be used", log)
    used = re.search(r"cache     16 of 16 videos in memory: (\S+ MiB)", log)
    assert expected
    assert used
    assert expected[1] == used[1]
    assert expected.start() < used.start()
