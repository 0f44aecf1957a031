"""Held-out figures are of the batches of all ranks, and each rank computes its share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.processes import exit_codes_of_ranks
from tests.jobs.conftest import TINY
from tests.jobs.test_tokenizer import ARGUMENTS as TOKENIZERS
from tests.jobs.test_tokenizer import TINY as TINY_TOKENIZER
from tests.methods.tiny import ARGUMENTS
from videomaskfeat.config import load_config
from videomaskfeat.engine import distributed
from videomaskfeat.engine.distributed import StopRequested, StopSignals
from videomaskfeat.engine.run import Run
from videomaskfeat.jobs.pretrain import PretrainRun
from videomaskfeat.jobs.tokenizer import TokenizerRun
from videomaskfeat.schemas.pretrain import PretrainConfig
from videomaskfeat.schemas.tokenizer import TokenizerConfig

CPU = torch.device("cpu")
METHODS = {name: [f"method.name={name}", f"method.arguments={ARGUMENTS[name]}"] for name in ("byol", "ibot")}
TOKENIZER = [*TINY_TOKENIZER, "model.name=vq", f"model.arguments={TOKENIZERS['vq']}"]
KINDS: dict[str, tuple[type, type[Run], list[str]]] = {
    "hog": (PretrainConfig, PretrainRun, TINY),
    **{name: (PretrainConfig, PretrainRun, [*TINY, *keys]) for name, keys in METHODS.items()},
    "vq": (TokenizerConfig, TokenizerRun, TOKENIZER),
}


def build(kind: str, sample: Path) -> Any:
    """A run with 37 held-out videos: a prime, so that each batch holds one."""
    schema, run, overrides = KINDS[kind]
    listed = 3 * (sample / "train.csv").read_text().splitlines()
    (sample / "held_out.csv").write_text("\n".join(listed[:37]) + "\n")
    data = [f"data.train={sample / 'train.csv'}", f"data.validation={sample / 'held_out.csv'}"]
    return run(load_config(schema, None, [*overrides, *data, f"run.folder={sample / 'run'}"]), CPU)


def figures(run: Any) -> Any:
    with run.heldout:
        return run.measure() if isinstance(run, TokenizerRun) else run.heldout_loss()


def measure(kind: str, sample: Path, out: Path) -> None:
    """Write the number of batches of this rank, and the held-out figures."""
    with distributed.process_group(CPU):
        run, batches = build(kind, sample), []
        take = run.heldout_batches
        run.heldout_batches = lambda samples: (batches.append(batch) or batch for batch in take(samples))
        figures_of_rank = figures(run)
        (out / f"{distributed.rank()}.json").write_text(json.dumps([len(batches), vars(figures_of_rank)]))


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_share_the_batches_and_find_what_one_does(kind: str, sample: Path, tmp_path: Path) -> None:
    """Sums in another order: 1e-6."""
    expected = vars(figures(build(kind, sample)))
    assert exit_codes_of_ranks(2, measure, kind, sample, tmp_path) == [0, 0]
    for rank, share in enumerate((10, 9) if kind in METHODS else (19, 18)):  # two clips per video, or one
        batches, figures_of_rank = json.loads((tmp_path / f"{rank}.json").read_text())
        assert batches == share
        assert figures_of_rank == pytest.approx(expected, rel=1e-6)


def stop_one(sample: Path, out: Path) -> None:
    """Rank 1 gets a signal."""
    with distributed.process_group(CPU), StopSignals() as stop:
        run = build("hog", sample)
        stop.requested = distributed.rank() == 1
        with pytest.raises(StopRequested):
            figures(run)


def test_signal_to_one_rank_stops_the_evaluation_on_all(sample: Path, tmp_path: Path) -> None:
    assert exit_codes_of_ranks(2, stop_one, sample, tmp_path) == [0, 0]
