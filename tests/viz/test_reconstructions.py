"""The picture of a tokenizer: panels where they belong, a color a token."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from videomaskfeat.viz.pictures import draw_reconstructions, token_colors, write_reconstructions


def test_equal_tokens_have_equal_colors_and_others_others() -> None:
    colors = token_colors(np.arange(256))
    assert colors.shape == (256, 3)
    assert len(np.unique(colors, axis=0)) > 250
    np.testing.assert_array_equal(token_colors(np.array([[7, 9]])), colors[[7, 9]][None])


def test_panels_hold_their_pixels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames, decoded = rng.integers(0, 256, (2, 3, 160, 160, 3), dtype=np.uint8)
    tokens = np.arange(12).reshape(3, 2, 2)
    picture = draw_reconstructions(frames=frames, reconstructions=decoded, tokens=tokens)
    for number in range(3):
        left = 170 + number * 168
        np.testing.assert_array_equal(picture[16:176, left : left + 160], frames[number])
        np.testing.assert_array_equal(picture[352:512, left : left + 160], decoded[number])
        np.testing.assert_array_equal(picture[184, left], token_colors(tokens[number, 0, 0]))
        np.testing.assert_array_equal(picture[343, left + 159], token_colors(tokens[number, 1, 1]))
    path = tmp_path / "pictures" / "x.png"
    write_reconstructions(path, frames=frames, reconstructions=decoded, tokens=tokens)
    written = cv2.imread(str(path))
    assert written is not None
    np.testing.assert_array_equal(written[..., ::-1], picture)
