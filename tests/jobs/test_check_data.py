"""``check-data``: its findings, and the clean lists in their own formats."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejson

from videomaskfeat.cli import main
from videomaskfeat.data.formats import load_records
from videomaskfeat.errors import UserError
from videomaskfeat.inference.lists import ListChoice
from videomaskfeat.jobs.check_data import check_data


@pytest.fixture
def damaged(sample: Path) -> Path:
    """The sample's training list with an empty file (row 1), a missing one (2) and a copy of row 5 (4)."""
    rows = [line.split()[0] for line in (sample / "train.csv").read_text().splitlines()]
    (sample / rows[0]).write_bytes(b"")
    (sample / rows[1]).unlink()
    shutil.copy(sample / rows[3], sample / rows[4])
    return sample


def test_list_is_cleaned_in_its_own_format(damaged: Path) -> None:
    rows = (damaged / "train.csv").read_text().splitlines()
    report = check_data(str(damaged / "train.csv"), workers=0, clean_path=str(damaged / "clean.csv"))
    assert report.counts == {"missing": 1, "unreadable": 1, "short": 0, "duplicate": 1, "odd": 0}
    assert (damaged / "clean.csv").read_text().splitlines() == [rows[2], rows[3], *rows[5:]]


def test_json_list_is_cleaned_as_json(damaged: Path) -> None:
    source = damaged / "something-something-v2-train.json"
    clean = damaged / "clean.json"
    check_data(
        str(source), lists=ListChoice(prefix=str(damaged / "videos")), workers=0, clean_path=str(clean)
    )
    before, after = simplejson.loads(source.read_text()), simplejson.loads(clean.read_text())
    assert after == [before[2], before[3], *before[5:]]


def test_kinetics_list_may_end_in_json(damaged: Path) -> None:
    source, clean = damaged / "train.json", damaged / "clean.json"
    shutil.copy(damaged / "train.csv", source)
    check_data(str(source), lists=ListChoice("kinetics"), workers=0, clean_path=str(clean))
    assert len(load_records(clean, format="kinetics")) == 13


def test_clean_list_of_a_folder_opens_from_its_own_place(tmp_path: Path, sample: Path) -> None:
    videos, clean = tmp_path / "my clips 3", tmp_path / "lists" / "clean.csv"
    clean.parent.mkdir()
    videos.mkdir()
    for number in (0, 1):
        shutil.copy(sample / f"videos/{number:06d}.mp4", videos / f"day {number}.mp4")
    check_data(str(videos), workers=0, clean_path=str(clean))
    records = load_records(clean)
    assert [Path(record.path).resolve() for record in records] == [
        videos / f"day {number}.mp4" for number in (0, 1)
    ]
    assert records.labels is None


def test_clean_list_elsewhere_names_the_prefix_it_needs(
    damaged: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check_data(str(damaged / "train.csv"), workers=0, decode=False, clean_path=str(tmp_path / "clean.csv"))
    assert f"its paths are relative to {damaged}; set prefix to that folder" in caplog.text


def test_negative_workers_are_refused(damaged: Path) -> None:
    with pytest.raises(UserError, match="workers=-1: must be at least 0"):
        check_data(str(damaged / "train.csv"), workers=-1)


def test_folder_of_frame_folders_is_scanned(tmp_path: Path) -> None:
    for number, value in enumerate((0, 200, 200)):
        folder = tmp_path / "frames" / f"v{number}"
        folder.mkdir(parents=True)
        for frame in range(3):
            cv2.imwrite(str(folder / f"{frame}.png"), np.full((8, 8, 3), value + frame, np.uint8))
    report = check_data(str(tmp_path / "frames"), workers=0, min_frames=3)
    assert report.counts == {"missing": 0, "unreadable": 0, "short": 0, "duplicate": 1, "odd": 0}
    assert report.summary()["frames"]["max"] == 3


def test_command_prints_writes_and_exits_3(damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, clean, report = (str(damaged / name) for name in ("train.csv", "clean.csv", "found.json"))
    assert main(["check-data", train, "--workers", "1", "--clean", clean, "--json", report]) == 3
    text = capsys.readouterr().out
    assert "empty file" in text
    assert "no such file" in text
    assert simplejson.loads(Path(report).read_text())["counts"]["missing"] == 1
    assert main(["check-data", train, "--workers", "1", "--json", report]) == 2
    assert f"{report} exists: it is the output of an earlier command" in capsys.readouterr().err
    assert main(["check-data", clean, "--workers", "0"]) == 0
    assert len(load_records(clean)) == 13


def test_output_folders_are_created_or_refused_before_the_videos_are_read(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing, clean = str(sample / "train.csv"), tmp_path / "new" / "deep" / "c.csv"
    check_data(listing, workers=0, decode=False, clean_path=str(clean))
    assert clean.is_file()
    monkeypatch.setattr(
        "videomaskfeat.jobs.check_data.check_list", lambda *_, **__: pytest.fail("videos were read")
    )
    words = r"cannot be a folder, since .*c\.csv is a file"
    with pytest.raises(UserError, match=words):
        check_data(listing, workers=0, clean_path=str(clean / "c.csv"))
    with pytest.raises(UserError, match=words):
        check_data(listing, workers=0, json_path=str(clean / "c.json"))


def test_names_of_any_bytes_survive_the_clean_list(tmp_path: Path, sample: Path) -> None:
    """File names of any bytes are the same in the clean list, and do not break the report."""
    video = next(sample.glob("**/*.mp4"))
    names = [b"\xe9 caf.mp4", "größe ;,|.mp4".encode(), b"a\x1b[31m.mp4", b"b\x85.mp4"]
    folder = os.fsencode(tmp_path / "videos")
    os.mkdir(folder)
    for number, name in enumerate(names):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(video.read_bytes() + b"\0" * (number + 1))
    os.symlink(os.fsencode(video), os.path.join(folder, b"line\nbreak.mp4"))
    clean = tmp_path / "clean.csv"
    report = check_data(os.fsdecode(folder), clean_path=str(clean), decode=False, workers=0)
    assert report.rows == 5
    again = [os.path.basename(os.fsencode(one.path)) for one in load_records(clean)]
    assert sorted(again) == sorted(names)
    command = [sys.executable, "-m", "videomaskfeat", "check-data", str(clean), "--workers", "0", "--quick"]
    run = subprocess.run(command, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True)
    assert (run.returncode, b"Traceback" in run.stderr) == (0, False), run.stderr


def test_list_in_utf16_is_cleaned_into_utf8(tmp_path: Path, sample: Path) -> None:
    video = next(sample.glob("**/*.mp4"))
    (tmp_path / "ä.mp4").write_bytes(video.read_bytes())
    (tmp_path / "list.csv").write_bytes("ä.mp4;1\r\nmissing.mp4;2\r\n".encode("utf-16"))
    check_data(str(tmp_path / "list.csv"), clean_path=str(tmp_path / "clean.csv"), decode=False, workers=0)
    assert (tmp_path / "clean.csv").read_bytes() == "ä.mp4;1\n".encode()
