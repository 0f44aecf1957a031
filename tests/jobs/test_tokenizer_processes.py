"""A tokenizer on two ranks: the codebook moves by the latents of all frames."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.engine.toy import metrics
from tests.jobs.ranks import run_verb
from tests.jobs.test_tokenizer import ARGUMENTS, TINY


@pytest.mark.slow
def test_two_ranks_move_the_codes_as_one_does(sample: Path, tmp_path: Path) -> None:
    """Sums in another order: figures and weights equal to 1e-3, with steps too small for a token to change
    by rounding. Both go on from one step of one rank, since at the first step the codes are drawn from the
    latents of each rank; after it none is revived."""
    arguments = ARGUMENTS["vq"].replace("}", ", revive_below: 0}")
    overrides = [
        *TINY,
        "model.name=vq",
        f"model.arguments={arguments}",
        "optim.learning_rate=1e-5",
        "run.checkpoint_epochs=1",
        f"data.train={sample / 'train.csv'}",
    ]
    one, two = tmp_path / "one", tmp_path / "two"
    run_verb(1, "train-tokenizer", *overrides, f"run.folder={one}")
    (two / "checkpoints").mkdir(parents=True)
    shutil.copy(one / "checkpoints" / "step_00000004.pt", two / "checkpoints")
    run_verb(2, "train-tokenizer", *overrides, f"run.folder={two}")
    assert len(metrics(one)) == 12
    for first, second in zip(metrics(one)[4:], metrics(two), strict=True):
        for rows in (first, second):
            del rows["grad_norm"]
        assert first == pytest.approx(second, rel=1e-3)
    weights = [load_file(run / "weights.safetensors") for run in (one, two)]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-3, atol=1e-4, msg=name)
