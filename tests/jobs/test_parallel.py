"""One, two and four ranks at the same global batch: equal results, with whole and with sharded weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.engine.processes import exit_codes_of_ranks
from tests.engine.toy import metrics
from tests.jobs.test_finetune import TINY as TINY_FINETUNE
from tests.methods.tiny import ARGUMENTS, COMMON, MODELS
from videomaskfeat.config import load_config
from videomaskfeat.engine import distributed
from videomaskfeat.engine.run import Run, run_training
from videomaskfeat.jobs.finetune import FinetuneRun
from videomaskfeat.jobs.pretrain import PretrainRun
from videomaskfeat.schemas.finetune import FinetuneConfig
from videomaskfeat.schemas.pretrain import PretrainConfig

# Two steps, an average of the weights, and no random draw that depends on the rank.
SAME = [
    "optim.batch_size=8",
    "optim.base_batch_size=8",
    "optim.learning_rate=1e-3",
    "optim.warmup_epochs=0",
    "optim.gradient_clip=0.05",
    "run.threads=1",
    "data.workers=0",
]
AVERAGED = "optim.ema_decay=0.5"
PRETRAIN = [*COMMON, *SAME, AVERAGED, "clip.flip=0"]
METHODS = {
    name: [
        *PRETRAIN,
        *MODELS["vit"],
        f"method.name={name}",
        f"method.arguments={arguments.replace('epochs: 1', 'epochs: 0')}",
    ]
    for name, arguments in ARGUMENTS.items()
}
# Each rank has the same number of hidden cells, so the mean over ranks is the mean over cells.
MASKED = [*PRETRAIN, *MODELS["mvit"], "mask.kind=cube_exact", "optim.epochs=1"]
NO_CHANCE = ["mix.probability=0", "model.drop_path=0", "model.dropout=0"]
# The batch normalization behind this bias cancels it. Its gradient is rounding alone, which AdamW scales up.
CANCELED = {"byol": ("norm.bias",)}
KINDS: dict[str, tuple[type, type[Run], list[str]]] = {
    "masked": (PretrainConfig, PretrainRun, MASKED),
    "ibot": (PretrainConfig, PretrainRun, [*METHODS["ibot"], "optim.epochs=0.5"]),
    "byol": (PretrainConfig, PretrainRun, [*METHODS["byol"], "optim.epochs=0.5"]),
    "latent": (PretrainConfig, PretrainRun, [*METHODS["latent"], "optim.epochs=1"]),
    "finetune": (
        FinetuneConfig,
        FinetuneRun,
        [*TINY_FINETUNE, *SAME, AVERAGED, *NO_CHANCE, "optim.epochs=0.5"],
    ),
}


def train(kind: str, sample: Path, folder: Path, *overrides: str) -> None:
    """Train on the ranks of this process group, without a report."""
    schema, run, words = KINDS[kind]
    data = [f"data.train={sample / 'train.csv'}", f"run.folder={folder / kind}"]
    if kind in ("masked", "finetune"):
        data.append(f"data.validation={sample / 'val.csv'}")
    if schema is PretrainConfig:
        data.append("run.pictures=0")
    config = load_config(schema, None, [*words, *data, *overrides])
    outcome = run_training(run, config, environment=lambda path: "", report=lambda path: path / "report.html")
    assert outcome.finished


def train_all(kinds: list[str], sample: Path, out: Path, parallels: list[str], *overrides: str) -> None:
    for kind in kinds:
        for parallel in parallels:
            folder = out / f"{parallel}_{distributed.world_size()}"
            train(kind, sample, folder, f"run.parallel={parallel}", *overrides)


def assert_same_results(folder: Path, reference: Path, unequal: Sequence[str] = ()) -> None:
    """Sums in another order: every logged number and every weight equal to 1e-3 of its size.

    ``unequal`` names metrics of a rank's own part of the batch.
    """
    rows, expected = (
        [{key: value for key, value in row.items() if key not in unequal} for row in metrics(one)]
        for one in (folder, reference)
    )
    assert len(rows) == len(expected) == 2
    for row, same in zip(rows, expected, strict=True):
        assert row == pytest.approx(same, rel=1e-3, abs=1e-6)
    weights, same_weights = (load_file(one / "weights.safetensors") for one in (folder, reference))
    assert weights.keys() == same_weights.keys()
    for name in weights.keys() - CANCELED.get(folder.name, ()):
        value, other = weights[name], same_weights[name]
        assert value.dtype == other.dtype == torch.float32
        assert float((value - other).norm()) <= 1e-3 * float(other.norm()) + 1e-6, name


@pytest.fixture(scope="module")
def videos(_sample: Path) -> Path:
    """The sample data set; tests change nothing in it."""
    return _sample


@pytest.fixture(scope="module")
def one_rank(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folders of one process."""
    folder = tmp_path_factory.mktemp("one")
    for kind in KINDS:
        train(kind, videos, folder)
    return folder


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_ranks_learn_what_one_process_does(videos: Path, tmp_path: Path, one_rank: Path, ranks: int) -> None:
    # Whole weights on two ranks are compared by the slow tests of each job.
    parallels = ["fsdp"] if ranks == 2 else ["ddp", "fsdp"]
    codes = exit_codes_of_ranks(ranks, train_all, list(KINDS), videos, tmp_path, parallels, seconds=600)
    assert codes == [0] * ranks
    for parallel in parallels:
        for kind in KINDS:
            assert_same_results(tmp_path / f"{parallel}_{ranks}" / kind, one_rank / kind)
