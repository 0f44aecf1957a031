"""Methods with a teacher on two ranks: centres, batch normalisation and monitors are those of all clips."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.toy import metrics
from tests.tasks.conftest import TINY
from tests.tasks.methods.parts import ARGUMENTS


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ibot", "byol"])
def test_two_ranks_learn_what_one_does(name: str, sample: Path, tmp_path: Path) -> None:
    """Sums in another order: every logged number but the gradient's norm equal to 1e-3."""
    overrides = [
        *TINY,
        f"method={name}",
        f"method.arguments={ARGUMENTS[name]}",
        "optim.batch_size=8",
        "optim.learning_rate=1e-5",  # rounding grows with every step
        "run.pictures=0",
        f"data.train={sample / 'train.csv'}",
    ]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29523"]
    for folder, start in (("one", []), ("two", launcher)):
        command = [sys.executable, *start, "-m", "videomaskfeat", "pretrain", *overrides]
        subprocess.run([*command, f"run.folder={tmp_path / folder}"], check=True, capture_output=True)
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert len(one) == len(two) == 8
    for first, second in zip(one, two, strict=True):
        for rows in (first, second):
            del rows["grad_norm"]
        assert first == pytest.approx(second, rel=1e-3)
