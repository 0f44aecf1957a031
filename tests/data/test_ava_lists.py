"""AVA's annotations: boxes, their labels, and the errors for wrong files."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.reference.ava_boxes import plain_training_boxes
from videomaskfeat.data.ava_lists import KeyFrames, detected_key_frames, training_key_frames
from videomaskfeat.errors import UserError

BOX, SHIFTED, OTHER = "0.100,0.200,0.500,0.800", "0.100,0.200,0.510,0.800", "0.600,0.100,0.900,0.900"
TRUTH = f"vidA,0902,{BOX},12,0\nvidA,0902,{BOX},3,0\nvidA,0902,{OTHER},,1\nvidB,0903,{OTHER},1,2\n"


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """write(text, name="truth.csv") writes a file and returns its path."""

    def write_file(text: str, name: str = "truth.csv") -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write_file


def contents(key_frames: KeyFrames) -> dict[tuple[str, float], list[tuple[list[float], list[int], float]]]:
    """By video and second: corners to three decimals, actions and score of each box."""
    return {
        (frame.video, frame.seconds): [
            (np.round(box, 3).tolist(), (np.flatnonzero(labels) + 1).tolist(), round(float(score), 3))
            for box, labels, score in zip(frame.boxes.astype(float), frame.labels, frame.scores, strict=True)
        ]
        for frame in key_frames
    }


def corners(text: str) -> list[float]:
    return [float(corner) for corner in text.split(",")]


def test_rows_of_a_box_become_one_box_with_several_labels(write: Write) -> None:
    key_frames = training_key_frames([write(TRUTH)], classes=80)
    assert contents(key_frames) == {
        ("vidA", 902.0): [(corners(BOX), [3, 12], 1.0), (corners(OTHER), [], 1.0)],
        ("vidB", 903.0): [(corners(OTHER), [1], 1.0)],
    }
    assert key_frames[0].labels.shape == (2, 80)
    assert key_frames[0].labels.dtype == bool
    assert key_frames[0].boxes.dtype == np.float32
    assert (key_frames[-1].video, len(key_frames[-1].boxes)) == ("vidB", 1)
    assert key_frames.labels.sum() == 3
    assert "2 with 3 boxes of" in repr(key_frames)
    with pytest.raises(IndexError):
        key_frames[2]


def test_spelling_and_order_of_rows_change_nothing(write: Write) -> None:
    """Boxes are compared as numbers, and a set may have several files."""
    whole = contents(training_key_frames([write(TRUTH)], classes=80))
    rows = TRUTH.replace("0902", "902").replace("0.100", "0.1").splitlines(keepends=True)
    rows[1] = rows[1].replace("0.500", "0.50")
    files = [write("".join(rows[i::2][::-1]), f"part{i}.csv") for i in (1, 0)]
    assert contents(training_key_frames(files, classes=80)) == whole


def test_detected_boxes_take_labels_by_overlap_and_negatives_stay(write: Write) -> None:
    # SHIFTED overlaps BOX by 40/41 = 0.976.
    far = "0.000,0.000,0.100,0.100"
    detected = write(
        f"vidA,902,{SHIFTED},,0.95\nvidA,902,{far},,0.9\nvidA,902,{OTHER},,0.97\nvidA,902,{far},,0.1\n"
        f"vidA,903,{SHIFTED},,0.99\nvidB,903,{SHIFTED},,0.899\n",
        "found.csv",
    )
    truth = write(TRUTH)
    key_frames = training_key_frames([truth], [detected], classes=80)
    assert contents(key_frames) == {
        ("vidA", 902.0): [
            (corners(far), [], 0.9),
            (corners(BOX), [3, 12], 1.0),
            (corners(SHIFTED), [3, 12], 0.95),
            (corners(OTHER), [], 1.0),
        ],
        ("vidA", 903.0): [(corners(SHIFTED), [], 0.99)],
        ("vidB", 903.0): [(corners(OTHER), [1], 1.0)],
    }
    strict = training_key_frames([truth], [detected], classes=80, iou_threshold=0.98)
    assert contents(strict)["vidA", 902.0][2] == (corners(SHIFTED), [], 0.95)
    loose = training_key_frames([truth], [detected], classes=80, score_threshold=0.8)
    assert contents(loose)["vidB", 903.0] == [(corners(SHIFTED), [], 0.899), (corners(OTHER), [1], 1.0)]


def test_boxes_of_videos_without_ground_truth_are_counted_or_refused(
    write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    truth = write(TRUTH)
    detected = write(f"vidC,902,{BOX},,0.95\nvidC,903,{BOX},,0.95\n", "found.csv")
    with pytest.raises(
        UserError, match=r"found\.csv: no box belongs to a video of the ground truth \(the first is of vidC\)"
    ):
        training_key_frames([truth], [detected], classes=80)
    detected.write_text(detected.read_text() + f"vidA,902,{SHIFTED},,0.95\n")
    key_frames = training_key_frames([truth], [detected], classes=80)
    assert (
        "2 boxes belong to 1 videos without ground truth (vidC, ...): training uses them as "
        "persons without an action"
    ) in caplog.text
    assert contents(key_frames)["vidC", 902.0] == [(corners(BOX), [], 0.95)]
    caplog.clear()
    detected.write_text(f"vidC,902,{BOX},7,0.95\n")  # with an action of its own
    assert contents(training_key_frames([truth], [detected], classes=80))["vidC", 902.0][0][1] == [7]
    assert "1 boxes belong to 1 videos without ground truth (vidC, ...)\n" in caplog.text


def test_detected_boxes_of_a_labeled_list_keep_its_labels(write: Write) -> None:
    """The published lists already have actions by overlap; negatives have none."""
    detected = write(
        f"vidA,902,{SHIFTED},79,0.95\nvidA,902,{SHIFTED},80,0.95\nvidA,902,{BOX},7,0.91\n"
        f"vidB,903,{BOX},,0.97\n",
        "found.csv",
    )
    expected = {
        ("vidA", 902.0): [
            (corners(BOX), [3, 7, 12], 1.0),
            (corners(SHIFTED), [79, 80], 0.95),
            (corners(OTHER), [], 1.0),
        ],
        ("vidB", 903.0): [(corners(BOX), [], 0.97), (corners(OTHER), [1], 1.0)],
    }
    assert contents(training_key_frames([write(TRUTH)], [detected], classes=80)) == expected
    alone = contents(training_key_frames([], [detected], classes=80))
    assert alone["vidA", 902.0][0] == (corners(BOX), [7], 0.91)


@pytest.mark.parametrize("labeled", [False, True])
def test_random_files_match_the_reference(write: Write, labeled: bool) -> None:
    """Crowded key frames on a coarse grid of corners have many equal boxes and overlaps."""
    rng = np.random.default_rng(int(labeled))

    def rows(count: int, last: bool) -> str:
        lines = []
        for _ in range(count):
            low, size = rng.integers(0, 4, 2), rng.integers(1, 5, 2)
            box = ",".join(f"{value / 8:.3f}" for value in (*low, *(low + size)))
            action = rng.integers(1, 6) if last or (labeled and rng.random() < 0.8) else ""
            end = rng.integers(9) if last else f"{rng.random():.3f}"
            lines.append(f"v{rng.integers(4)},{900 + rng.integers(6)},{box},{action},{end}\n")
        return "".join(lines)

    truth = [write(rows(150, True)), write(rows(50, True), "more.csv")]
    detected = [write(rows(300, False), "found.csv"), write(rows(9, False), "few.csv")]
    excluded = [write("v0,0902\nv3,905\nv9,905\n", "excluded.csv")]
    thresholds = {"score_threshold": 0.4, "iou_threshold": 0.5}
    ours = training_key_frames(truth, detected, classes=5, exclusions=excluded, **thresholds)
    plain = plain_training_boxes(truth, detected, excluded, **thresholds)
    assert [(frame.video, frame.seconds) for frame in ours] == sorted(plain)
    assert contents(ours) == {
        moment: [
            (list(box), sorted(actions), round(score, 3)) for box, (actions, score) in sorted(boxes.items())
        ]
        for moment, boxes in plain.items()
    }


def test_boxes_for_testing_reach_the_score_threshold(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    """Key frames without a box are left out and reported."""
    high = f"vidA,902,{BOX},,0.9\nvidA,902,{OTHER},,0.8\n"
    low = f"vidA,902,{SHIFTED},,0.79\nvidB,903,{BOX},,0.5\nvidB,904,{BOX},,0.5\n"
    detected = write(high + low, "found.csv")
    with caplog.at_level(logging.INFO, "videomaskfeat.data.ava_lists"):
        key_frames = detected_key_frames([detected], classes=80)
    assert contents(key_frames) == {("vidA", 902.0): [(corners(BOX), [], 0.9), (corners(OTHER), [], 0.8)]}
    assert key_frames.boxless == (("vidB", 903.0), ("vidB", 904.0))
    assert "found.csv: 2 boxes, 0 of them with an action, in 1 key frames of 1 videos" in caplog.text
    assert (
        "2 of 3 key frames have no box with a score of 0.8 or more, and are left out (vidB at 903 s, ...)"
        in caplog.text
    )
    assert len(detected_key_frames([detected], classes=80, score_threshold=0).boxes) == 5
    truth = training_key_frames([write(TRUTH)], classes=80)
    assert truth.absent_from(key_frames) == [("vidB", 903.0)]
    assert key_frames.absent_from(truth) == []


def test_boxes_without_a_column_of_actions(write: Write) -> None:
    detected = write(f"vidA,902,{BOX},0.9\nvidA,902,{OTHER},1\n", "found.csv")
    assert contents(detected_key_frames([detected], classes=80)) == {
        ("vidA", 902.0): [(corners(BOX), [], 0.9), (corners(OTHER), [], 1.0)]
    }


@pytest.mark.parametrize("text", ["", f"vidA,902,{BOX},,0.1\n"])
def test_no_boxes_for_testing_are_allowed(write: Write, text: str) -> None:
    key_frames = detected_key_frames([write(text, "found.csv")], classes=80)
    assert (len(key_frames), key_frames.labels.shape, key_frames.videos) == (0, (0, 80), ())


def test_excluded_times_are_left_out(write: Write) -> None:
    truth, excluded = write(TRUTH), write("vidB,903\nvidC,902\n", "excluded.csv")
    key_frames = training_key_frames([truth], classes=80, exclusions=[excluded])
    assert list(contents(key_frames)) == [("vidA", 902.0)]
    assert key_frames.boxless == ()
    assert len(detected_key_frames([], classes=80, exclusions=[excluded])) == 0


def test_select_keeps_some_key_frames(write: Write) -> None:
    rows = "".join(
        f"v,{second},{BOX},{second - 900},0\nv,{second},{OTHER},1,0\n" for second in range(902, 912)
    )
    whole = training_key_frames([write(rows)], classes=80)
    part = whole.select(whole.seconds % 4 == 0)
    assert contents(part) == {key: value for key, value in contents(whole).items() if key[1] in (904, 908)}
    assert [len(whole), len(part), len(part.boxes)] == [10, 2, 4]


def test_many_boxes_use_little_memory(write: Write) -> None:
    """About 32 bytes per box, and 8 per key frame for its line; also when pickled for a worker."""
    rng = np.random.default_rng(0)
    left = rng.random(20_000) * 0.4
    rows = "".join(
        f"v{i % 50},{902 + i // 200},{x:.6f},0.1,0.9,0.9,{i % 80 + 1},0\n" for i, x in enumerate(left)
    )
    key_frames = training_key_frames([write(rows)], classes=80)
    pickled = pickle.dumps(key_frames)
    assert len(key_frames.boxes) > 19_900
    assert len(pickled) < 38 * 20_000
    assert contents(pickle.loads(pickled).select(np.arange(len(key_frames)) < 9)) == contents(
        key_frames.select(np.arange(len(key_frames)) < 9)
    )


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (f"vidA,902,{BOX},13,0", r":2: the action '13' of 'vidA,.*' is unknown; ids are .* from 1 to 12"),
        (f"vidA,902,{BOX}", r":2: 'vidA,.*' has 6 columns, and the first row has 8"),
    ],
)
def test_wrong_row_is_refused_by_file_and_line(write: Write, row: str, words: str) -> None:
    good = f"vidA,902,{BOX},12,0\n"
    truth, detected = write(good + row), write(good + row, "found.csv")
    with pytest.raises(UserError, match=rf"truth\.csv{words}"):
        training_key_frames([truth], classes=12)
    for load in (partial(training_key_frames, []), detected_key_frames):
        with pytest.raises(UserError, match=rf"found\.csv{words}"):
            load([detected], classes=12)


def test_wrong_files_and_thresholds(write: Write, tmp_path: Path) -> None:
    truth, empty = write(TRUTH), write("", "empty.csv")
    no_actions = write(f"vidC,902,{BOX},,0.99\n", "no_actions.csv")
    excluded = write("vidA,902\nvidB,903\n", "excluded.csv")
    load = partial(training_key_frames, classes=80)
    with pytest.raises(UserError, match=r"truth\.csv:4: the score 2 is not in 0\.\.1; is this a file of"):
        load([truth], [truth])
    with pytest.raises(UserError, match=r"empty\.csv has no rows; ground truth has a row `video,second,x1,"):
        load([empty])
    with pytest.raises(UserError, match="has no rows with a box"):
        load([write("k1,12.5\nk2,3\n", "boxless.csv")])
    with pytest.raises(UserError, match=r"no box is left; .*, and lower the score threshold \(0\.9\)"):
        load([truth], [empty], exclusions=[excluded])
    with pytest.raises(UserError, match=r"no_actions\.csv: no box has an action; give the ground truth with"):
        load([], [no_actions])
    with pytest.raises(UserError, match=r"nowhere\.csv: no such file"):
        load([tmp_path / "nowhere.csv"])
    with pytest.raises(UserError, match=r"iou_threshold=90 is not in 0\.\.1"):
        load([truth], iou_threshold=90)
    with pytest.raises(UserError, match=r"score_threshold=nan is not in 0\.\.1"):
        detected_key_frames([no_actions], classes=80, score_threshold=float("nan"))


def test_key_frames_without_persons_are_left_out_of_training(
    write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    """AVA-Kinetics has seven columns, and two in rows without a box."""
    text = f"k1,12.5\nk2,84.317878,{BOX},12\nk2,90,,,,,\nk3,7,,,,,9\n"
    key_frames = training_key_frames([write(text)], classes=80)
    assert contents(key_frames) == {("k2", 84.318): [(corners(BOX), [12], 1.0)]}
    assert key_frames.boxless == (("k1", 12.5), ("k2", 90.0), ("k3", 7.0))
    assert key_frames.location(0).endswith("truth.csv:2")
    assert "3 of 4 key frames have no box, and are left out (k1 at 12.5 s" in caplog.text
