"""Rotated and mirrored videos come as ffmpeg shows them: all eight orientations, containers and readers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.data.make_videos import VP9, write_video
from videomaskfeat.data.readers_seeking import open_timed
from videomaskfeat.data.video import available_readers, open_video, probe

HAS_DECORD = not available_readers()["decord"].startswith("missing")
needs_decord = pytest.mark.skipif(not HAS_DECORD, reason="decord has no wheel for this machine")
READERS = ["pyav", "auto", pytest.param("decord", marks=needs_decord)]
FRAMES = 4

# By the display matrix (a, b, c, d) of ISO/IEC 14496-12: (x, y) is shown at (ax + cy, bx + dy), y downwards.
# Degrees clockwise, mirrored before that, and the same by numpy, whose turns are counter-clockwise.
ORIENTATIONS: dict[tuple[int, int, int, int], tuple[int, bool, Callable[[np.ndarray], np.ndarray]]] = {
    (1, 0, 0, 1): (0, False, lambda stored: stored),
    (0, 1, -1, 0): (90, False, lambda stored: np.rot90(stored, -1)),
    (-1, 0, 0, -1): (180, False, lambda stored: stored[::-1, ::-1]),
    (0, -1, 1, 0): (270, False, lambda stored: np.rot90(stored)),
    (-1, 0, 0, 1): (0, True, lambda stored: stored[:, ::-1]),
    (1, 0, 0, -1): (180, True, lambda stored: stored[::-1]),
    (0, 1, 1, 0): (270, True, lambda stored: stored.transpose(1, 0, 2)),
    (0, -1, -1, 0): (90, True, lambda stored: stored[::-1, ::-1].transpose(1, 0, 2)),
}
KINDS = {"mp4": {}, "mov": {}, "mkv": {}, "webm": VP9}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[object, str], Path]:
    folder = tmp_path_factory.mktemp("turned")
    return {
        (matrix, kind): write_video(
            folder / f"{place}.{kind}", frames=FRAMES, width=100, height=66, matrix=matrix, **options
        )
        for kind, options in KINDS.items()
        for place, matrix in enumerate(ORIENTATIONS)
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reader", READERS)
def test_every_orientation_is_shown_as_the_matrix_says(
    files: dict[tuple[object, str], Path], kind: str, reader: str
) -> None:
    with open_video(files[(1, 0, 0, 1), kind], reader) as upright:
        stored = upright.read(range(FRAMES))
    for matrix, (degrees, mirrored, turn) in ORIENTATIONS.items():
        path = files[matrix, kind]
        expected = np.stack([turn(picture) for picture in stored])
        with open_video(path, reader) as opened:
            np.testing.assert_array_equal(opened.read(range(FRAMES)), expected, err_msg=f"{matrix} in {kind}")
        info = probe(path, reader)
        assert (info.rotation_degrees, info.mirrored) == (degrees, mirrored)
        assert (info.height, info.width) == expected.shape[1:3]


@pytest.mark.parametrize("kind", KINDS)
def test_reading_by_time_shows_the_same(files: dict[tuple[object, str], Path], kind: str) -> None:
    for matrix in ((0, 1, -1, 0), (-1, 0, 0, 1), (0, 1, 1, 0)):
        path = files[matrix, kind]
        with open_video(path) as by_number, open_timed(path) as by_time:
            np.testing.assert_array_equal(by_time.read_at([0.0]), by_number.read([0]))


def test_odd_angle_is_turned_within_the_same_size(tmp_path: Path) -> None:
    """As ffmpeg does: the corners are cut off, and what is beside the picture is black."""
    path = write_video(tmp_path / "30.mkv", frames=2, rotation=-30)
    info = probe(path)
    assert (info.rotation_degrees, info.width, info.height) == (30, 96, 64)
    with open_video(path) as opened, open_video(write_video(tmp_path / "0.mkv", frames=2)) as upright:
        turned, stored = opened.read([0])[0].astype(int), upright.read([0])[0].astype(int)
    assert turned[0, 0].max() < 20  # a corner that no stored pixel reaches
    assert np.abs(turned[32, 48] - stored[32, 48]).max() < 50  # the center stays, between dark and bright
