"""Learning rates against those recorded from the reference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from videomaskfeat.engine.optim import WarmupCosine
from videomaskfeat.errors import UserError

PRETRAIN_S = WarmupCosine(base_lr=1e-4, start_lr=1e-6, end_lr=1e-6, warmup_epochs=10, epochs=300)
FINETUNE_S = WarmupCosine(base_lr=6e-4, start_lr=1e-6, end_lr=1e-6, warmup_epochs=20, epochs=100)


@pytest.mark.parametrize(("name", "schedule"), [("pretrain_s", PRETRAIN_S), ("finetune_s", FINETUNE_S)])
def test_rates_match_the_reference(golden: Path, name: str, schedule: WarmupCosine) -> None:
    """Both sides compute in float64: equal but for the last digits."""
    points = json.loads((golden / "protocol.json").read_text())[f"lr_{name}"]
    assert len(points) >= 6
    for epoch, rate in points:
        assert schedule(epoch) == pytest.approx(rate, rel=1e-12), epoch


def test_ends_at_end_rate_and_stays_there() -> None:
    schedule = WarmupCosine(base_lr=1.0, start_lr=0.0, end_lr=0.25, warmup_epochs=0, epochs=4)
    assert schedule(0.0) == 1.0
    assert schedule(2.0) == pytest.approx(0.625)
    assert schedule(4.0) == schedule(9.0) == 0.25


def test_all_rates_scale_with_the_batch() -> None:
    scaled = PRETRAIN_S.scaled(256, 32)
    assert scaled.base_lr == pytest.approx(8e-4)
    for epoch in (0.0, 3.3, 10.0, 200.0, 300.0):
        assert scaled(epoch) == pytest.approx(8 * PRETRAIN_S(epoch))


@pytest.mark.parametrize("warmup", [-1.0, 5.0, 7.0, float("nan")])
def test_impossible_warmup_is_refused(warmup: float) -> None:
    with pytest.raises(UserError, match=r"warmup_epochs=.* with epochs=5: the warm-up must be 0 or longer"):
        WarmupCosine(base_lr=1.0, start_lr=0.0, end_lr=0.0, warmup_epochs=warmup, epochs=5)


def test_negative_rate_is_refused() -> None:
    with pytest.raises(UserError, match=r"end_lr=-1e-06: a learning rate must not be negative"):
        WarmupCosine(base_lr=1.0, start_lr=0.0, end_lr=-1e-6, warmup_epochs=0, epochs=5)
