"""The picture of a tokenizer: panels where they belong, a colour a token."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from videomaskfeat.viz.pictures import draw_reconstructions, token_colours, write_reconstructions
from videomaskfeat.viz.report import token_verdict


def test_equal_tokens_have_equal_colours_and_others_others() -> None:
    colours = token_colours(np.arange(256))
    assert colours.shape == (256, 3)
    assert len(np.unique(colours, axis=0)) > 250
    np.testing.assert_array_equal(token_colours(np.array([[7, 9]])), colours[[7, 9]][None])


def test_panels_hold_their_pixels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames, decoded = rng.integers(0, 256, (2, 3, 160, 160, 3), dtype=np.uint8)
    tokens = np.arange(12).reshape(3, 2, 2)
    picture = draw_reconstructions(frames=frames, reconstructions=decoded, tokens=tokens)
    for number in range(3):
        left = 170 + number * 168
        np.testing.assert_array_equal(picture[16:176, left : left + 160], frames[number])
        np.testing.assert_array_equal(picture[352:512, left : left + 160], decoded[number])
        np.testing.assert_array_equal(picture[184, left], token_colours(tokens[number, 0, 0]))
        np.testing.assert_array_equal(picture[343, left + 159], token_colours(tokens[number, 1, 1]))
    path = tmp_path / "pictures" / "x.png"
    write_reconstructions(path, frames=frames, reconstructions=decoded, tokens=tokens)
    written = cv2.imread(str(path))
    assert written is not None
    np.testing.assert_array_equal(written[..., ::-1], picture)


def test_verdict_says_what_was_measured_and_what_was_not() -> None:
    summary = {
        "heldout_trained": 0.25,
        "heldout_constant": 0.5,
        "heldout_untrained": 0.75,
        "heldout_frames": 7,
        "vocabulary": 64,
        "heldout_used_codes": 16,
        "heldout_perplexity": 12.34,
    }
    html = token_verdict(summary)
    for words in ("0.2500", "0.5000", "0.7500", "16 of 64", "12.3", "of 7 frames that it never saw"):
        assert words in html
    assert "width:25.0%" in html  # codes in use
    assert "not recorded" in token_verdict({"steps": 3})
