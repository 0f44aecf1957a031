"""Fine-tuning on two ranks equals fine-tuning on one, validation and final score included."""

from __future__ import annotations

from pathlib import Path

import pytest
import simplejson

from .ranks import run_verb
from .test_finetune import TINY

# Each rank draws its own drop path and mixing.
SAME = ["model.drop_path=0.0", "mix.mixup=0", "mix.cutmix=0", "data.balanced=true", "optim.ema_decay=0.9"]


def finetune(count: int, sample: Path, run: Path) -> None:
    """A tiny run on so many ranks; 3 held-out videos, so that one rank has one more than the other."""
    rows = (sample / "val.csv").read_text() + (sample / "test.csv").read_text().splitlines()[0] + "\n"
    (sample / "three.csv").write_text(rows)
    data = [f"data.train={sample / 'train.csv'}", f"data.validation={sample / 'three.csv'}"]
    overrides = [*TINY, *SAME, *data, f"run.folder={run}"]
    run_verb(count, "finetune", *overrides)


@pytest.mark.slow
def test_two_ranks_learn_and_score_what_one_does(sample: Path, tmp_path: Path) -> None:
    """Sums of gradients in another order: losses equal to 1e-4; accuracies of 3 videos exactly."""
    finetune(1, sample, tmp_path / "one")
    finetune(2, sample, tmp_path / "two")
    one, two = (
        [simplejson.loads(line) for line in (tmp_path / name / "metrics.jsonl").open()]
        for name in ("one", "two")
    )
    assert len(one) == 8
    assert [row["loss"] for row in one] == pytest.approx([row["loss"] for row in two], rel=1e-4)
    for key in ("evaluation/top1", "evaluation/top5"):
        assert [row.get(key) for row in one] == [row.get(key) for row in two]
    first, second = (simplejson.loads((tmp_path / n / "summary.json").read_text()) for n in ("one", "two"))
    assert {key: first[key] for key in ("top1", "top5", "videos")} == {
        key: second[key] for key in ("top1", "top5", "videos")
    }
    assert first["videos"] == 3
