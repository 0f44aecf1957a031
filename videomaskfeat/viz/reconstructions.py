"""Frames, the tokens that they became, and what a decoder makes of these."""

from __future__ import annotations

import os

import cv2
import numpy as np
from matplotlib.colors import hsv_to_rgb

from videomaskfeat.io import make_folder, whole_file
from videomaskfeat.viz.sheet import Label, Sheet

_GAP = 8  # pixels between panels
_LEFT, _TOP = 170, 16
_PANEL = 160  # least height of a panel in the picture


def token_colours(tokens: np.ndarray) -> np.ndarray:
    """A colour for each number, the same every time: int [...] -> uint8 [..., 3].

    The numbers of codes mean nothing, so neighbours get colours far apart: hues go round by the golden ratio.
    """
    numbers = tokens.astype(np.float64)
    hues = numbers * 0.61803398875 % 1.0
    brightness = 0.57 + 0.22 * np.cos(2 * np.pi * (numbers * 0.41421356237 % 1.0))
    rgb = hsv_to_rgb(np.stack([hues, np.full(hues.shape, 0.6), brightness], axis=-1))
    return np.rint(rgb * 255).astype(np.uint8)


def draw_reconstructions(
    *, frames: np.ndarray, reconstructions: np.ndarray, tokens: np.ndarray
) -> np.ndarray:
    """Draw a column a frame: the frame, its tokens in colours, the reconstruction.

    Args:
        frames: uint8 [n, H, W, 3], RGB.
        reconstructions: uint8 [n, H, W, 3].
        tokens: int [n, h, w].

    Returns:
        uint8 [H', W', 3].
    """
    count, height, width = frames.shape[:3]
    scale = max(1, -(-_PANEL // height))
    height, width = height * scale, width * scale
    used = len(np.unique(tokens))
    rows = (
        ("frames", f"{frames.shape[2]} x {frames.shape[1]} pixels", frames),
        ("tokens", f"{used} codes of {tokens.size} cells", token_colours(tokens)),
        ("reconstruction", "from the tokens alone", reconstructions),
    )
    labels = []
    for line, (name, note, _) in enumerate(rows):
        middle = _TOP + line * (height + _GAP) + height // 2
        labels.append(Label(16, middle - 4, name, bold=True))
        labels.append(Label(16, middle + 16, note, size=12, faint=True, width=_LEFT - 24))
    sheet = Sheet(_TOP + len(rows) * (height + _GAP) + _GAP, _LEFT + count * (width + _GAP), labels)
    for line, (_, _, panels) in enumerate(rows):
        for column, panel in enumerate(panels):
            shown = cv2.resize(panel, (width, height), interpolation=cv2.INTER_NEAREST)
            sheet.paste(shown, _TOP + line * (height + _GAP), _LEFT + column * (width + _GAP))
    return sheet.pixels


def write_reconstructions(
    path: str | os.PathLike[str], *, frames: np.ndarray, reconstructions: np.ndarray, tokens: np.ndarray
) -> None:
    """Write :func:`draw_reconstructions` as a PNG file; its folder is made."""
    make_folder(os.path.dirname(os.fspath(path)))
    picture = draw_reconstructions(frames=frames, reconstructions=reconstructions, tokens=tokens)
    done, png = cv2.imencode(".png", picture[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 5])
    assert done, "a uint8 picture can always be encoded"
    with whole_file(path, "wb") as file:
        file.write(png.tobytes())
