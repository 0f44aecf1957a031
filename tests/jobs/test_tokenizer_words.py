"""What a tokenizer's training says at its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from videomaskfeat.jobs.tokenizer import closing_words


@pytest.mark.parametrize(
    ("used", "tokens", "few"), [(63, 1000, True), (64, 1000, False), (24, 100, True), (25, 100, False)]
)
def test_few_codes_in_use_are_remarked_on(used: int, tokens: int, few: bool) -> None:
    summary = {
        "heldout_frames": 4,
        "heldout_tokens": tokens,
        "heldout_constant": 1.0,
        "heldout_untrained": 3.0,
        "heldout_trained": 0.5,
        "heldout_perplexity": 20.0,
        "heldout_used_codes": used,
        "vocabulary": 256,
        "checkpoint": "c",
        "weights": "w",
    }
    text = closing_words(summary, Path("report.html"))
    assert f"codes used there       {used} of 256, perplexity 20.0" in text
    assert ("few codes in use" in text) == few
