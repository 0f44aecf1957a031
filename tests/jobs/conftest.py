"""A small sample data set, a config of a few seconds, and the command line as a function."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from tests.jobs.scored_videos import Run as ScoringVerb
from tests.jobs.scored_videos import make_scored
from videomaskfeat.cli import main
from videomaskfeat.data.sample import write_sample_data
from videomaskfeat.engine.run import Run
from videomaskfeat.jobs import detect as detect_job
from videomaskfeat.jobs import finetune as finetune_job
from videomaskfeat.jobs import pretrain as pretrain_job
from videomaskfeat.models.cost import multiply_adds

TINY = [
    "clip.frames=4",
    "clip.stride=2",
    "clip.crop=32",
    "clip.flip=0",
    "mask.cell=[2,16,16]",
    "model.name=maskfeat_mvitv2_nano",
    "model.arguments={depth: 4, width: 8, widen_at: [1, 3]}",
    "optim.epochs=2",
    "optim.warmup_epochs=1",
    "optim.batch_size=4",
    "optim.base_batch_size=4",
    "data.workers=0",
    "run.pictures=0",
]


@pytest.fixture(scope="session", autouse=True)
def _each_model_is_counted_once() -> Iterator[None]:
    """Counting multiply-adds takes as long as a tiny training, so later runs of a model reuse its count."""
    counts: dict[str, float] = {}

    def count_once(model: nn.Module, inputs: tuple[Tensor, ...]) -> float:
        sizes = [(tuple(one.shape), float(one.sum())) for one in inputs]
        key = f"{type(model)} {getattr(model, 'created_as', id(model))} {sizes}"
        if key not in counts:
            counts[key] = multiply_adds(model, inputs)
        return counts[key]

    with pytest.MonkeyPatch.context() as patch:
        for job in (pretrain_job, finetune_job, detect_job):
            patch.setattr(job, "multiply_adds", count_once)
        yield


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[Run], int], None]:
    """``stop_at(run_class, step)``: SIGTERM comes in that micro-batch, as if the cluster stopped the run."""

    def patch(run_class: type[Run], step: int) -> None:
        original, steps = run_class.step, itertools.count(1)

        def counting(self: Run, batch: Any) -> Any:
            if next(steps) == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(self, batch)

        monkeypatch.setattr(run_class, "step", counting)

    return patch


Verb = Callable[..., tuple[int, str, str]]


@pytest.fixture
def verb(capfd: pytest.CaptureFixture[str]) -> Verb:
    """``verb(name, *arguments) -> (exit code, stdout, stderr)`` of the command line."""

    def run_verb(name: str, *arguments: str | Path) -> tuple[int, str, str]:
        code = main([name, *map(str, arguments)])
        return code, *capfd.readouterr()

    return run_verb


@pytest.fixture(scope="session")
def _sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    write_sample_data(folder, videos=20, frames=12, size=48, seed=3, ava_videos=0)
    return folder


@pytest.fixture
def sample(_sample: Path, tmp_path: Path) -> Path:
    """A copy of the sample data set that a test may damage: 16 training videos, 2 held out."""
    return Path(shutil.copytree(_sample, tmp_path / "sample"))


@pytest.fixture
def pretrain(sample: Path, tmp_path: Path, verb: Verb) -> Callable[..., tuple[int, str]]:
    """``pretrain(*overrides) -> (exit code, stderr)`` of a tiny run in ``tmp_path / "run"``."""

    def run_pretraining(*overrides: str) -> tuple[int, str]:
        data = [f"data.train={sample / 'train.csv'}", f"run.folder={tmp_path / 'run'}"]
        code, _, err = verb("pretrain", *TINY, *data, *overrides)
        return code, err

    return run_pretraining


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos to score, their list, and weights; tests may add files, and change none."""
    return make_scored(tmp_path_factory.mktemp("made"))


@pytest.fixture
def run(tmp_path: Path, verb: Verb) -> ScoringVerb:
    """A verb that scores, writing into ``tmp_path / "out"``, where it replaces an earlier result."""

    def run_scoring(name: str, *arguments: str | Path) -> tuple[int, str, str]:
        more = ["--workers", "0"] if name == "evaluate" else []
        return verb(name, *arguments, "--out", tmp_path / "out", "--overwrite", *more)

    return run_scoring
