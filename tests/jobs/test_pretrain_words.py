"""What a pre-training run says at its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from videomaskfeat.jobs.pretrain import closing_words


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


def test_probes_say_how_many_they_asked_and_a_loss_without_a_constant_says_so() -> None:
    summary = {
        "heldout_clips": 4,
        "heldout_constant": None,
        "heldout_untrained": None,
        "heldout_trained": 0.5,
        "probe_videos": 120,
        "probe_classes": 12,
        **{f"{probe}_top1{when}": 10.0 for probe in ("knn", "linear") for when in ("", "_untrained")},
        "not_drawn": "target 'dvae' cannot be drawn",
        "checkpoint": "c",
        "weights": "w",
    }
    text = closing_words(summary, Path("report.html"))
    for words in (
        "best constant prediction  not known of this loss",
        "top-1 on 120 videos of 12 classes (before training)",
        "no pictures: target 'dvae' cannot be drawn",
    ):
        assert words in text


@pytest.mark.parametrize("constant", [0.0, 1e-18])
def test_constant_targets_have_no_percentage(constant: float) -> None:
    """HOG of pictures of one color is 0 everywhere."""
    summary = {
        "heldout_clips": 1,
        "heldout_constant": constant,
        "heldout_untrained": 0.1,
        "heldout_trained": 0.0,
        "checkpoint": "c",
        "weights": "w",
    }
    text = closing_words(summary, Path("report.html"))
    assert "(the targets are constant: nothing can do better)" in text
    assert "%" not in text
