"""Sharded weights (FSDP2) on two ranks: detection, LARS, adapters and compiled steps learn as one process."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from tests.engine.processes import exit_codes_of_ranks
from tests.jobs.test_finetune import ENCODER
from tests.jobs.test_finetune import TINY as TINY_FINETUNE
from tests.jobs.test_parallel import MASKED, NO_CHANCE, SAME, assert_same_results
from videomaskfeat.config import load_config
from videomaskfeat.engine.run import Run, run_training
from videomaskfeat.jobs.detect import DetectRun
from videomaskfeat.jobs.finetune import FinetuneRun
from videomaskfeat.jobs.pretrain import PretrainRun
from videomaskfeat.models import create_model
from videomaskfeat.models.saving import save_model
from videomaskfeat.recipe import METADATA_KEY, ClipRecipe, PretrainRecipe
from videomaskfeat.schemas.detect import DetectConfig
from videomaskfeat.schemas.finetune import FinetuneConfig
from videomaskfeat.schemas.pretrain import PretrainConfig

from .action_set import make_action_set


def _needs(package: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed")


SCHEMAS: dict[str, tuple[type, type[Run]]] = {
    "lars": (PretrainConfig, PretrainRun),
    "compile": (PretrainConfig, PretrainRun),
    "lora": (FinetuneConfig, FinetuneRun),
    "detect": (DetectConfig, DetectRun),
}


def _words(kind: str, folder: Path, sample: Path) -> list[str]:
    """Two steps without a random draw that depends on the rank."""
    train = [f"data.train={sample / 'train.csv'}", f"data.validation={sample / 'val.csv'}"]
    if kind == "lars":
        return [*MASKED, *train, "run.pictures=0", "optim.optimizer=lars"]
    if kind == "compile":
        return [*MASKED, *train, "run.pictures=0", "run.compile=true"]
    if kind == "lora":
        weights = [f"model.weights={folder / 'weights.safetensors'}", "model.lora={rank: 4}"]
        return [*TINY_FINETUNE, *SAME, *NO_CHANCE, *train, *weights, "optim.epochs=0.5"]
    actions = make_action_set(folder) if not (folder / "videos").exists() else None
    assert actions is not None
    return [*actions.overrides(folder), *SAME, "optim.batch_size=4", "optim.epochs=0.67", *NO_CHANCE[1:]]


def train(kind: str, words: list[str], folder: Path, parallel: str) -> None:
    """Train on the ranks of this process group, without a report."""
    schema, run = SCHEMAS[kind]
    config = load_config(schema, None, [*words, f"run.folder={folder / kind}", f"run.parallel={parallel}"])
    outcome = run_training(run, config, environment=lambda path: "", report=lambda path: path / "report.html")
    assert outcome.finished


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "kind",
    [
        "detect",
        "compile",
        pytest.param("lars", marks=_needs("pytorch_optimizer")),
        pytest.param("lora", marks=_needs("peft")),
    ],
)
def test_sharded_ranks_learn_what_one_process_does(kind: str, sample: Path, tmp_path: Path) -> None:
    if kind == "lora":
        torch.manual_seed(7)
        recipe = PretrainRecipe(ClipRecipe(frames=4, stride=2, crop=32)).to_json()
        model = create_model("maskfeat_mvitv2_nano", **ENCODER)
        save_model(model, tmp_path / "weights.safetensors", metadata={METADATA_KEY: recipe})
    words = _words(kind, tmp_path, sample)
    train(kind, words, tmp_path / "one", "ddp")
    for parallel in ("ddp", "fsdp"):
        codes = exit_codes_of_ranks(2, train, kind, words, tmp_path / parallel, parallel, seconds=400)
        assert codes == [0, 0], parallel
        assert_same_results(tmp_path / parallel / kind, tmp_path / "one" / kind, unequal=("boxes",))
