"""datasets/kinetics/make_list.py: lists from class folders and from Kinetics' own CSV."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from videomaskfeat.data.formats import load_records

SCRIPT = Path(__file__).parents[2] / "datasets/kinetics/make_list.py"


def _run(*words: str | Path) -> int:
    main = runpy.run_path(str(SCRIPT), run_name="make_list")["main"]
    return int(main([str(word) for word in words]))


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    for name in (
        "riding_a_bike/a_000001_000011.mp4",
        "riding_a_bike/b_000002_000012.mp4",
        "abseiling/c_000000_000010.mp4",
    ):
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "train"


def test_class_folders_and_own_csv_give_the_same_numbers(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes, first, second = tmp_path / "classes.txt", tmp_path / "first.csv", tmp_path / "second.csv"
    assert _run(videos, "--out", first, "--classes", classes) == 0
    assert "3 videos of 2 classes" in capsys.readouterr().out
    assert classes.read_text() == "abseiling\nriding a bike\n"
    assert [record.label for record in load_records(first)] == [0, 1, 1]
    assert all(Path(record.path).exists() for record in load_records(first))

    own = tmp_path / "own.csv"
    rows = [
        "label,youtube_id,time_start,time_end,split",
        "riding a bike,a,1,11,train",
        "abseiling,gone,1,11,train",
    ]
    own.write_text("\n".join(rows))
    assert _run(own, "--videos", videos, "--out", second, "--classes", classes) == 0
    assert "1 of 2 videos" in capsys.readouterr().out
    assert [(record.path, record.label) for record in load_records(second)] == [
        (str(tmp_path / "train/riding_a_bike/a_000001_000011.mp4"), 1)
    ]


def test_unknown_class_or_loose_video_is_refused_in_one_line(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = tmp_path / "classes.txt"
    classes.write_text("abseiling\n")
    assert _run(videos, "--out", tmp_path / "list.csv", "--classes", classes) == 2
    error = capsys.readouterr().err
    assert "the class 'riding a bike' is missing" in error
    assert error.count("\n") == 1
    (videos / "loose.mp4").touch()
    assert _run(videos, "--out", tmp_path / "list.csv") == 2
    assert "loose.mp4 is not in a class folder" in capsys.readouterr().err
