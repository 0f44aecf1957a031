"""The configs of methods with a teacher: those of the sample make two steps, those of Kinetics build."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.engine.toy import metrics
from videomaskfeat.cli import main
from videomaskfeat.config import load_config
from videomaskfeat.methods.build import build_method
from videomaskfeat.schemas.pretrain import PretrainConfig

CONFIGS = Path(__file__).parents[2] / "configs" / "pretrain"
NAMES = ("ibot", "byol", "latent")


@pytest.mark.parametrize("name", NAMES)
def test_sample_config_makes_two_steps(name: str, sample: Path, tmp_path: Path) -> None:
    overrides = [
        f"data.train={sample / 'train.csv'}",
        f"data.validation={sample / 'val.csv'}",
        f"run.folder={tmp_path / 'run'}",
        "data.workers=0",
        "optim.warmup_epochs=0",
        "optim.batch_size=8",
        # Of 16 videos, two clips each or one.
        f"optim.epochs={1 if name == 'latent' else 0.5}",
    ]
    if name == "ibot":
        overrides.append("method.arguments.temperature_warmup_epochs=0")
    assert main(["pretrain", "--config", str(CONFIGS / f"sample_{name}.yaml"), *overrides]) == 0
    rows = metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2]
    assert all(0.01 < row["feature_std"] <= 1 for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_kinetics_config_builds_what_it_says(name: str) -> None:
    config = load_config(PretrainConfig, str(CONFIGS / f"k400_{name}_mvitv2_s.yaml"))
    with torch.device("meta"):
        method = build_method(config)
    assert method.recipe.method == name
    assert method.encoder.out_width == 768  # type: ignore[attr-defined]
    assert len(method.encoder.blocks) == 16  # type: ignore[arg-type]
