"""Methods with a teacher on two ranks: centers, batch normalization and monitors are those of all clips."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.toy import metrics
from tests.jobs.conftest import TINY
from tests.jobs.ranks import run_verb
from tests.methods.tiny import ARGUMENTS


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps"), [("ibot", 8), ("byol", 8), ("latent", 4)])
def test_two_ranks_learn_what_one_does(name: str, steps: int, sample: Path, tmp_path: Path) -> None:
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
    for folder, count in (("one", 1), ("two", 2)):
        run_verb(count, "pretrain", *overrides, f"run.folder={tmp_path / folder}")
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert len(one) == len(two) == steps
    for first, second in zip(one, two, strict=True):
        for rows in (first, second):
            del rows["grad_norm"]
        assert first == pytest.approx(second, rel=1e-3)
