"""AVA files: columns and label types that `tests/metrics/test_ava_files.py` does not cover."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from videomaskfeat.ava import (
    VideoNames,
    read_action_kinds,
    read_detections,
    read_groundtruth,
    read_label_map,
    read_times,
)
from videomaskfeat.errors import UserError

BOX = "0.1,0.2,0.5,0.75"


def write(folder: Path, text: str, name: str = "boxes.csv") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_rows_have_lines_and_shared_video_numbers(tmp_path: Path) -> None:
    names = VideoNames()
    truth = read_groundtruth(write(tmp_path, f"b,0902,{BOX},12,0\n\na,902.5,{BOX},,1\n"), names)
    assert truth.lines.tolist() == [1, 3]
    assert truth.actions.tolist() == [12, -1]
    assert truth.times.tolist() == [902_000, 902_500]
    assert truth.boxes.tolist() == [[0.1, 0.2, 0.5, 0.75]] * 2
    videos, times = read_times([write(tmp_path, "c,0903\na,902.5\n")], names)
    assert [names.texts()[video] for video in [*truth.videos, *videos]] == ["b", "a", "c", "a"]
    assert len(names) == 3
    # By name, then by time: a 902.5, b 902, c 903.
    keys = names.key_frames(np.concatenate([truth.videos, videos]), np.concatenate([truth.times, times]))
    assert np.unique(keys, return_inverse=True)[1].tolist() == [1, 0, 2, 0]
    assert names.moments(keys) == [("b", 902.0), ("a", 902.5), ("c", 903.0), ("a", 902.5)]


@pytest.mark.parametrize(
    ("lasts", "actions", "scores", "scored"),
    [
        (["12,0.5", ",0.25"], [12, -1], [0.5, 0.25], True),
        (["12", "3"], [12, 3], [1.0, 1.0], False),
        (["12", ""], [12, -1], [1.0, 1.0], False),
        (["0.5", "1"], [-1, -1], [0.5, 1.0], True),
    ],
)
def test_detections_have_action_and_score_or_one_of_them(
    tmp_path: Path, lasts: list[str], actions: list[int], scores: list[float], scored: bool
) -> None:
    path = write(tmp_path, "".join(f"a,902,{BOX},{last}\n" for last in lasts))
    rows = read_detections(path, VideoNames())
    assert rows.actions.tolist() == actions
    assert rows.scores.tolist() == scores
    assert rows.scored == scored


def test_first_rows_determine_the_meaning_of_the_last_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("videomaskfeat.csv_columns._BLOCK", 40)
    boxes = write(tmp_path, f"a,902,{BOX},0.5\n" + f"a,902,{BOX},1\n" * 9)
    assert read_detections(boxes, VideoNames()).actions.tolist() == [-1] * 10
    mixed = write(tmp_path, f"a,902,{BOX},1\n" * 9 + f"a,902,{BOX},0.5\n")
    with pytest.raises(UserError, match=r"boxes\.csv:10: the action '0\.5' of .* is unknown"):
        read_detections(mixed, VideoNames())
    with pytest.raises(UserError, match=r"boxes\.csv:2: the score of 'a,902,.*' is empty"):
        read_detections(write(tmp_path, f"a,902,{BOX},0.5\na,902,{BOX},\n"), VideoNames())


def test_kinds_of_actions_are_read_from_the_label_map(tmp_path: Path) -> None:
    pose = 'label {\n  name: "sit"\n  label_id: 11\n  label_type: PERSON_MOVEMENT\n}\n'
    path = write(tmp_path, pose + 'item { name: "sing" id: 2 }\n', "labels.pbtxt")
    assert read_label_map(path) == {11: "sit", 2: "sing"}
    assert read_action_kinds(path) == {11: "PERSON_MOVEMENT"}
