"""The scan of a list: every kind of problem is found, named, and missing from the clean list."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from tests.data.make_videos import uneven_times, write_video
from videomaskfeat.data import check
from videomaskfeat.data.check import CheckReport, Scan, _scan, check_list
from videomaskfeat.errors import UserError


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, int | None]]:
    folder = tmp_path_factory.mktemp("list of videos")
    write_video(folder / "good.mp4")
    write_video(folder / "long.mp4", frames=60)
    write_video(folder / "short.mp4", frames=5)
    write_video(folder / "turned.mp4", rotation=90)
    write_video(folder / "vfr.mp4", milliseconds=uneven_times())
    (folder / "zero.mp4").touch()
    shutil.copy(folder / "good.mp4", folder / "copy.mp4")
    names = ["good", "long", "short", "turned", "vfr", "zero", "copy", "nowhere", "good"]
    return [(str(folder / f"{name}.mp4"), label) for label, name in enumerate(names)]


@pytest.fixture(scope="module")
def report(rows: list[tuple[str, int | None]]) -> CheckReport:
    return check_list(rows, workers=0, min_frames=16)


def test_every_problem_is_found_and_named(report: CheckReport) -> None:
    problems = {(problem.row, problem.kind): problem.detail for problem in report.problems}
    assert set(problems) == {
        (2, "short"), (3, "odd"), (4, "odd"), (5, "unreadable"), (6, "duplicate"), (7, "missing"),
        (8, "duplicate"),
    }  # fmt: skip
    assert problems[2, "short"] == "5 frames, fewer than 16"
    assert problems[3, "odd"] == "rotated by 270 degrees"
    assert problems[4, "odd"].startswith("variable frame rate")
    assert problems[5, "unreadable"] == "empty file (0 bytes)"
    assert problems[6, "duplicate"].startswith("same content as row 1 (")
    assert problems[6, "duplicate"].endswith("but label 6 instead of 0")
    assert problems[7, "missing"] == "no such file"
    assert problems[8, "duplicate"] == "same path as row 1, but label 8 instead of 0"
    assert report.bad == 3


def test_worker_processes_find_the_same(report: CheckReport, rows: list[tuple[str, int | None]]) -> None:
    steps: list[tuple[int, int]] = []
    parallel = check_list(
        rows, workers=2, min_frames=16, decode=False, progress=lambda done, total: steps.append((done, total))
    )
    assert parallel.problems == report.problems
    assert steps == [(done, 8) for done in range(1, 9)]  # eight different paths


def test_clean_rows_include_odd_videos(report: CheckReport) -> None:
    assert report.clean_rows() == [0, 1, 3, 4]


def test_report_contains_sizes_lengths_and_causes(report: CheckReport) -> None:
    content = json.loads(report.to_json())
    assert content["summary"]["readable"] == 6
    assert content["summary"]["sizes"] == {"96x64": 5, "64x96": 1}
    assert content["summary"]["frames"] == {"min": 5, "median": 48, "max": 60}
    assert content["summary"]["read_milliseconds"]["min"] > 0
    assert content["counts"] == {"missing": 1, "unreadable": 1, "short": 1, "duplicate": 2, "odd": 2}
    assert content["problems"][0]["row"] == 3  # people count from 1
    text = report.text()
    assert "9 rows, 8 different files, 6 readable" in text
    assert "zero.mp4: empty file (0 bytes)" in text
    assert "duplicate  2 rows" in text


def test_file_that_crashes_its_process_is_reported_and_the_others_are_scanned(
    rows: list[tuple[str, int | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "_scan", _scan_with_a_crash)
    report = check_list(rows[:2], workers=1)
    (problem,) = report.problems
    assert (problem.row, problem.kind) == (1, "unreadable")
    assert problem.detail == "the decoder crashed (SIGABRT)"


def _scan_with_a_crash(path: str, reader: str, decode: bool) -> Scan:
    if path.endswith("long.mp4"):
        os.abort()
    return _scan(path, reader, decode)


def test_empty_list_is_named() -> None:
    with pytest.raises(UserError, match="the list contains no videos"):
        check_list([])
    with pytest.raises(UserError, match="did you mean 'pyav'"):
        check_list([(__file__, None)], reader="pyavv", workers=0)
