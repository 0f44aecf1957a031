"""``plan``: the measured duration and memory of a training, and what it proposes to change."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from videomaskfeat.config import load_config
from videomaskfeat.data.memory import MemoryNeed
from videomaskfeat.engine import threads
from videomaskfeat.jobs import plan as plan_module
from videomaskfeat.jobs.plan import TrainingPlan, plan_training
from videomaskfeat.jobs.pretrain import PretrainRun
from videomaskfeat.schemas.finetune import FinetuneConfig
from videomaskfeat.schemas.pretrain import PretrainConfig

from .conftest import TINY as TINY_PRETRAINING
from .conftest import Verb
from .test_finetune import TINY


def _plan(**changes: object) -> TrainingPlan:
    config = load_config(PretrainConfig, None, ["data.train=my list.csv", "run.folder=runs/first"])
    plan = TrainingPlan(
        lines=[],
        config=config,
        device=torch.device("cpu"),
        measured_clips=2,
        clips=32,
        micro_clips=32,
        measured_seconds=3.0,
        waiting=0.01,
        steps=1000,
        fixed_mb=500,
        clip_mb=100,
        free_mb=10_000,
    )
    return dataclasses.replace(plan, **changes)  # type: ignore[arg-type]


def test_numbers_are_scaled_to_the_batch() -> None:
    plan = _plan()
    assert plan.step_seconds == 48
    assert plan.seconds == 48_000
    assert plan.memory_mb == 3_700
    assert not plan.advice()
    assert "48 s per step of 32, scaled from 3.0 s per 2; 1 % waiting" in plan.text()
    assert "13 h 20 min for 1000 steps" in plan.text()
    assert "about 3.7 GB, 10.0 GB free" in plan.text()


def test_advice_names_the_remedies() -> None:
    (memory,) = _plan(free_mb=2_000).advice()
    assert "optim.accumulate=3 " in memory  # (0.9 * 2000 - 500) / 100 = 13 clips fit: 32 / 13 = 2.5
    (waiting,) = _plan(waiting=0.5).advice()
    assert "50 % of a step waits for data: raise data.workers (now 2" in waiting
    (days,) = _plan(steps=10_000).advice()
    assert "videomaskfeat pretrain --config configs/pretrain/small_cpu.yaml 'data.train=my list.csv'" in days
    assert "run.folder=runs/first_nano" in days


def test_too_few_steps_are_named_with_the_epochs_that_suffice() -> None:
    (few,) = _plan(usual_steps=1800).advice()
    # 300 epochs of the defaults are 1000 steps here.
    assert few.startswith("1000 steps may be too few: small models needed about 1800 ")
    assert few.endswith("; optim.epochs=540")
    assert not _plan(usual_steps=1000).advice()


def test_plan_measures_a_training_and_writes_nothing(sample: Path, tmp_path: Path, verb: Verb) -> None:
    yaml = tmp_path / "finetune.yaml"
    yaml.write_text("evaluate: {views: 2}\n")
    data = [f"data.train={sample / 'train.csv'}", f"run.folder={tmp_path / 'run'}"]
    code, out, err = verb("plan", "--config", yaml, *TINY, *data)
    assert code == 0, err
    assert re.search(r"^measured  \S+ \S+ per step of 8; \d+ % waiting for data$", out, re.M), out
    assert re.search(r"^time      .+ for \d+ steps, without evaluations$", out, re.M), out
    assert re.search(r"^memory    about \d\.\d GB", out, re.M), out
    assert "model     maskfeat_mvitv2_nano_classifier" in out
    assert not (tmp_path / "run").exists()


def test_decoding_into_memory_is_no_part_of_a_step(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of 1, 3 and 2 s that wait 0.75, 2.5 and 1.75 s work 0.25, 0.5 and 0.25 s."""
    monkeypatch.setattr(plan_module, "_measure", lambda training: ([1.0, 3.0, 2.0], [0.75, 2.5, 1.75]))
    words = [*TINY_PRETRAINING, f"data.train={sample / 'train.csv'}", f"run.folder={tmp_path / 'run'}"]
    config = load_config(PretrainConfig, None, [*words, "data.cache=memory"])
    plan = plan_training(config, PretrainRun)
    out = plan.text()
    assert plan.cache is not None
    assert plan.cache.videos == len((sample / "train.csv").read_text().splitlines())
    assert f"\ncache     {plan.cache.videos} decoded videos in memory: about " in out
    assert (
        f"250 ms per step of {config.optim.batch_size}; decoding, once before the first step, is not included"
        in out
    )
    assert "waits for data" not in out


def test_videos_that_do_not_fit_into_memory_are_reported() -> None:
    plan = _plan(cache=MemoryNeed(53, 7 * 2**30, 5 * 2**30))
    assert plan.cache is not None
    assert plan.advice() == [plan.cache.problem]
    assert "\ncache     53 decoded videos in memory: about 7.0 GiB; 5.0 GiB may be used" in plan.text()
    assert not _plan(cache=MemoryNeed(53, 5 * 2**30, 5 * 2**30)).advice()


def test_large_batches_are_measured_on_few_clips(sample: Path, tmp_path: Path) -> None:
    words = [*TINY_PRETRAINING, f"data.train={sample / 'train.csv'}", f"run.folder={tmp_path / 'run'}"]
    config = load_config(PretrainConfig, None, [*words, "data.workers=0", "optim.epochs=3"])
    plan = plan_training(config, PretrainRun)
    assert "steps may be too few" in plan.text()
    assert plan.steps == 3 * (len((sample / "train.csv").read_text().splitlines()) // config.optim.batch_size)
    assert plan.measured_clips == plan.clips == config.optim.batch_size  # short steps are measured in full


def test_training_of_days_without_a_gpu_is_reported_first(
    sample: Path, tmp_path: Path, verb: Verb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "LONGEST_ON_CPU", 1e-3)
    monkeypatch.setattr(threads, "available_cores", lambda: 2)
    monkeypatch.setattr(threads, "_time", lambda work: 0.2)
    data = [f"data.train={sample / 'train.csv'}", f"run.folder={tmp_path / 'run'}"]
    before = torch.get_num_threads()
    try:
        code, _, err = verb("finetune", *TINY, *data)
    finally:
        torch.set_num_threads(before)
    assert code == 0, err
    assert err.index("this training takes about") < err.index("model     maskfeat")
    assert "use a smaller model" in err  # it is a nano model already
    config = load_config(FinetuneConfig, None, [*data, "data.classes=7"])
    assert "videomaskfeat finetune --config configs/finetune/small_cpu.yaml" in threads.nano_command(config)
    assert "data.classes=7" in threads.nano_command(config)
