"""Videos with bars below their frames, or with boxes and panels of persons."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from videomaskfeat.data.video import open_video
from videomaskfeat.errors import RunFailed
from videomaskfeat.viz.labeled import (
    Bar,
    DrawnPerson,
    color_of,
    draw_labeled,
    draw_persons,
    drawn_size,
    place_panels,
    write_labeled,
    write_persons,
)
from videomaskfeat.viz.sheet import measure_text

BARS = [Bar("first", 0.75), Bar("second", 0.25), Bar("third", 0.0)]
COLOR = (111, 211, 255)


def noise(frames: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 100, (frames, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("size", "drawn"),
    [
        ((240, 426), (240, 426)),
        ((241, 427), (241, 427)),
        ((1080, 1920), (720, 1280)),
        ((1920, 1080), (720, 405)),
        ((500, 2560), (250, 1280)),
        ((96, 64), (480, 320)),  # five times as large, so that names are readable
        ((400, 100), (720, 180)),  # would be 1280 high at 320 wide
        ((2000, 1), (720, 2)),
    ],
)
def test_size_of_drawn_frames(size: tuple[int, int], drawn: tuple[int, int]) -> None:
    assert drawn_size(*size) == drawn


@pytest.mark.parametrize(("height", "width"), [(241, 427), (720, 181), (40, 320)])
def test_frames_above_the_bars_are_unchanged(height: int, width: int) -> None:
    frames = noise(3, height, width)
    sheets = list(draw_labeled(frames, BARS))
    for sheet, frame in zip(sheets, frames, strict=True):
        left = (sheet.shape[1] - width) // 2
        np.testing.assert_array_equal(sheet[:height, left : left + width], frame)
        assert sheet.shape[0] % 2 == 0
        assert sheet.shape[1] % 2 == 0
        assert sheet.shape[1] >= 320
        np.testing.assert_array_equal(sheet[height:], sheets[0][height:])


def test_bars_are_as_long_as_their_shares() -> None:
    (sheet,) = draw_labeled(noise(1, 100, 420), BARS)
    lines = (sheet == COLOR).all(axis=-1).sum(axis=1)  # colored pixels per row
    lengths = [int(length) for length in lines if length]
    assert lengths == [300] * 8 + [100] * 8  # of 400 pixels, 8 rows high; the third bar has none


def test_frames_of_other_sizes_are_resized_to_the_first() -> None:
    sheets = list(draw_labeled([*noise(1, 100, 320), *noise(1, 50, 200)], BARS))
    assert sheets[0].shape == sheets[1].shape


def frames_and_rate(path: Path) -> tuple[int, float]:
    with open_video(path) as video, av.open(str(path)) as container:
        return video.frames, float(container.streams.video[0].average_rate)


@pytest.mark.parametrize(
    ("fps", "written"), [(25.0, 25.0), (0.0, 30.0), (float("nan"), 30.0), (1e-4, 0.1), (9e4, 240.0)]
)
def test_a_frame_becomes_a_film_at_any_frame_rate(tmp_path: Path, fps: float, written: float) -> None:
    write_labeled(tmp_path / "film.mp4", noise(1, 35, 33), BARS, fps=fps)
    assert frames_and_rate(tmp_path / "film.mp4") == (1, pytest.approx(written))


def test_failed_frames_leave_no_file(tmp_path: Path) -> None:
    def frames() -> Iterator[np.ndarray]:
        yield from noise(4, 32, 32)
        raise OSError("the disk is gone")

    with pytest.raises(RunFailed, match=r"film\.mp4: could not be written: the disk is gone"):
        write_labeled(tmp_path / "film.mp4", frames(), BARS, fps=30)
    assert list(tmp_path.iterdir()) == []


ACTIONS = (Bar("talk to (e.g., self, a person, a group)", 0.5), Bar("stand", 1.0), Bar("sit", 0.0))


def gray(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


def drawn(persons: list[DrawnPerson], height: int = 360, width: int = 640) -> np.ndarray:
    (sheet,) = draw_persons([(gray(height, width), persons)])
    return sheet


def span(mask: np.ndarray) -> tuple[int, int, int, int]:
    """x1, y1, x2, y2 around the true pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def test_a_frame_without_persons_is_unchanged() -> None:
    frame = np.random.default_rng(0).integers(0, 255, (361, 641, 3), dtype=np.uint8)
    (sheet,) = draw_persons([(frame, [])])
    assert sheet.shape == (362, 642, 3)  # even, as H.264 needs
    np.testing.assert_array_equal(sheet[:361, :641], frame)


@pytest.mark.parametrize(
    ("size", "sheet"),
    [
        ((64, 96), (320, 480)),
        ((1080, 1920), (720, 1280)),
        ((1280, 720), (720, 480)),
        ((241, 427), (272, 480)),
        ((400, 100), (720, 480)),
        ((2, 2000), (2, 1280)),
    ],
)
def test_box_is_around_the_person_at_any_size(size: tuple[int, int], sheet: tuple[int, int]) -> None:
    """The colored line is on the edges of the box, up to a pixel and half the line width."""
    person = DrawnPerson(3, (0.25, 0.5, 0.75, 1.0), "person 4")
    picture = drawn([person], *size)
    assert picture.shape == (*sheet, 3)
    if size[0] < 10:
        return  # smaller than its panel; it only has to be drawn
    height = min(sheet[0], round(size[0] * sheet[0] / size[0]))
    width = min(480 if size[1] < 480 else 1280, round(size[1] * height / size[0]))
    left = (sheet[1] - width) // 2
    x1, y1, x2, y2 = span((np.abs(picture.astype(int) - color_of(3)) < 12).all(axis=-1))
    assert x1 == pytest.approx(left + 0.25 * width, abs=4)
    assert x2 == pytest.approx(left + 0.75 * width, abs=4)
    assert y2 == pytest.approx(height, abs=2)
    assert y1 <= 0.5 * height + 4  # the panel's strip above has the same color
    assert y1 >= 0.5 * height - 40


def test_bars_of_a_person_are_as_long_as_their_shares() -> None:
    """The colored part of each bar: half, all and nothing of the width."""
    frame = np.zeros((720, 1280, 3), np.uint8)
    (sheet,) = draw_persons([(frame, [DrawnPerson(0, (0.1, 0.5, 0.3, 0.9), "person 1", ACTIONS)])])
    panel = sheet[100:355]  # above the box and its line, which starts at 358
    # On black, an opacity of 82 % dims colors to 82 %.
    colored = (np.abs(panel.astype(int) - 0.82 * np.array(color_of(0))) < 2).all(axis=-1)
    lengths = colored[:, 128 + 8 :].sum(axis=1)  # right of the strip
    full = lengths.max()
    assert full > 300
    assert [int(length) for length in lengths if length] == [pytest.approx(full / 2, abs=1)] * 3 + [full] * 3


def test_panels_stay_inside_and_off_each_other() -> None:
    """With a person in each corner, panels are inside the picture and cover no other panel."""
    boxes = np.array([[0, 0, 60, 100], [580, 0, 640, 100], [0, 260, 60, 360], [580, 260, 640, 360]])
    sizes = np.array([[60, 200]] * 4)
    corners, places = place_panels(boxes, sizes, 360, 640, [-1] * 4)
    assert len(places) == 4
    panels = np.column_stack([corners[:, ::-1], corners[:, ::-1] + sizes[:, ::-1]])
    assert panels.min() >= 0
    assert (panels[:, 2] <= 640).all()
    assert (panels[:, 3] <= 360).all()
    for number, panel in enumerate(panels):
        for other in panels[:number]:
            shared = np.minimum(panel[2:], other[2:]) - np.maximum(panel[:2], other[:2])
            assert (shared <= 0).any()


def test_panels_of_neighbors_do_not_overlap() -> None:
    """Above is best for both, but their boxes are narrower than the panels: the second one moves."""
    boxes = np.array([[200, 150, 260, 350], [270, 150, 330, 350]])
    corners, places = place_panels(boxes, np.array([[60, 150]] * 2), 500, 640, [-1, -1])
    assert places[0] == 0
    assert places[1] != 0
    top, left = np.abs(corners[1] - corners[0])
    assert top >= 60 or left >= 150


def test_panels_keep_their_place_while_it_is_good() -> None:
    """A rising box keeps its panel above until there is no space."""
    size, before = np.array([[60, 100]]), [-1]
    chosen = []
    for top in (200, 100, 60, 50, 0):
        box = np.array([[300, top, 400, top + 200]])
        _, before = place_panels(box, size, 500, 640, before)
        chosen.append(before[0])
    assert chosen == [0, 0, 0, 0, 1]
    assert place_panels(np.array([[300, 50, 400, 250]]), size, 500, 640, [-1])[1] == [1]


def test_panels_do_not_cover_their_own_box_if_there_is_space() -> None:
    """Next to a tall person, the only space is at the lower right: another person is at the upper right."""
    boxes = np.array([[0, 0, 200, 360], [210, 0, 640, 150]])
    corners, _ = place_panels(boxes, np.array([[100, 180], [100, 180]]), 360, 640, [-1, -1])
    assert corners[0].tolist() == [260, 203]
    # The person has risen until the panel above covers half of them: the panel moves.
    assert place_panels(np.array([[300, 30, 400, 230]]), np.array([[60, 100]]), 500, 640, [0])[1] == [1]


def test_long_names_are_cut_but_percentages_are_not() -> None:
    name = "a name that goes on and on " * 4
    picture = drawn([DrawnPerson(0, (0.1, 0.5, 0.4, 0.9), "person 1", (Bar(name, 0.5),))], 320, 480)
    strip = (np.abs(picture.astype(int) - color_of(0)) < 45).all(axis=-1)[:150, :60]
    assert span(strip)[0] == 48  # the panel starts at the box
    bright = (picture[60:150, 48 : 48 + 288].min(axis=-1) > 190).any(axis=0)  # 288: 60 % of the width
    assert bright[-30:].any()  # the end of the percentages
    assert not (picture[60:150, 48 + 288 :].min(axis=-1) > 190).any()
    assert measure_text(name, size=12) > 288 > measure_text("person 1", size=12, bold=True) > 0
    assert measure_text("mm", size=24) == pytest.approx(2 * measure_text("mm", size=12), abs=2)


def test_many_persons_and_degenerate_boxes_are_drawn() -> None:
    persons = [DrawnPerson(n, (0.4, 0.4, 0.4, 0.4), f"person {n}", ACTIONS) for n in range(12)]
    persons += [DrawnPerson(99, (-0.5, -1, 1.5, 2), "person 100", ACTIONS)]
    for size in ((360, 640), (40, 30), (2, 2), (720, 10)):
        assert drawn(persons, *size).max() > 128


def test_film_has_every_frame_at_its_frame_rate(tmp_path: Path) -> None:
    frames = [(gray(65, 97), [DrawnPerson(0, (0.1, 0.1, 0.5, 0.9), "person 1", ACTIONS)])] * 5
    write_persons(tmp_path / "film.mp4", frames, fps=12.5)
    assert frames_and_rate(tmp_path / "film.mp4") == (5, pytest.approx(12.5))
