"""What a pre-training run says at its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from videomaskfeat.tasks.pretraining.pretrain import closing_words


@pytest.mark.parametrize(
    ("trained", "words"), [(0.75, "25.0 % below the constant"), (2.242, "124.2 % above the constant")]
)
def test_trained_model_is_placed_beside_the_constant(trained: float, words: str) -> None:
    summary = {
        "heldout_clips": 4,
        "heldout_constant": 1.0,
        "heldout_untrained": 3.0,
        "heldout_trained": trained,
        "checkpoint": "c",
        "weights": "w",
    }
    assert f"({words})" in closing_words(summary, Path("report.html"))
