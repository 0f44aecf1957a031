"""``score-ava`` end to end: its output, its files and its errors."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.metrics.test_ava_map import golden_files
from tests.viz.pages import Page
from videomaskfeat import cli
from videomaskfeat.errors import UserError
from videomaskfeat.jobs.score_ava import score_ava
from videomaskfeat.metrics.ava_map import evaluate_files

PERSON = "vid00-cbZ-X_,902,0.1,0.1,0.5,0.5"


def arguments(files: list[str], *more: str) -> list[str]:
    names = ("--groundtruth", "--detections", "--labels", "--exclusions")
    return ["score-ava", *(word for pair in zip(names, files, strict=True) for word in pair), *more]


def test_verb_writes_the_official_score_with_its_protocol(
    golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = golden_files(golden)
    assert cli.main(arguments(files, "--out", str(tmp_path / "a" / "score"))) == 0
    lines = capsys.readouterr().out.splitlines()
    matched = re.fullmatch(
        r"mAP 57\.15 % \(chance (\S+) %, 95 % interval (\S+) to (\S+) %\) at IoU 0\.5: "
        "the mean of 8 of 8 actions, 91 rows to find, 594 detections",
        lines[0],
    )
    assert matched is not None, lines[0]
    chance, low, high = map(float, matched.groups())
    assert chance < low < 57.15 < high
    assert [line.split()[-1] for line in lines[2:10]] == ["4", "7", "32", "33", "46", "60", "68", "80"]
    assert lines[10] == (
        "33 of the 124 rows of the ground truth are ignored: 9 at excluded times, 24 of actions that the "
        "label map does not list."
    )
    assert lines[-1] == str(tmp_path / "a" / "score" / "report.html")
    folder = tmp_path / "a" / "score"
    assert sorted(path.name for path in folder.iterdir()) == ["per_class.csv", "report.html", "result.json"]
    official = json.loads((golden / "ava" / "ava_expected.json").read_text())["metrics"]
    result = json.loads((folder / "result.json").read_text())
    assert result["mean_ap"] == pytest.approx(official["PascalBoxes_Precision/mAP@0.5IOU"], abs=1e-6)
    assert [f"{100 * end:.1f}" for end in result["mean_ap_interval"]] == [f"{low:.1f}", f"{high:.1f}"]
    assert result["protocol"] == {
        "score": "AVA frame mAP",
        "iou_threshold": 0.5,
        "interpolation": "all points",
        "rows_per_frame": None,
    }
    hashes = [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in files]
    assert [entry["sha256"] for entry in result["files"].values()] == hashes
    assert list(result["files"]) == ["groundtruth", "detections", "labels", "exclusions"]
    assert result["groundtruth"] == {
        "rows": 124,
        "used": 91,
        "excluded": 9,
        "no_action": 0,
        "not_listed": 24,
    }
    for row in result["actions"]:
        name = f"PascalBoxes_PerformanceByCategory/AP@0.5IOU/action {row['id']}"
        assert row["ap"] == pytest.approx(official[name], abs=1e-6)
        assert row["name"] == f"action {row['id']}"
    assert sum(part["truths"] for part in result["by_persons"]) == 91
    assert sum(part["truths"] for part in result["by_size"]) == 91
    assert sum(part["detections"] for part in result["by_size"]) == 594
    with (folder / "per_class.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["ap"]) for row in rows] == pytest.approx(
        [row["ap"] for row in result["actions"]], abs=1e-6
    )
    text = Page((folder / "report.html").read_text()).text
    assert "mAP 57.15 %" in text
    assert hashes[1] in text


def test_no_file_is_written_by_default(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(Path(path).resolve()) for path in golden_files(golden)]
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments(files)) == 0
    assert "report.html" not in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_options_are_the_metrics_own(golden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = golden_files(golden)
    assert cli.main(arguments(files, "--iou", "0.75", "--rows-per-frame", "10")) == 0
    expected = evaluate_files(*files, iou_threshold=0.75, rows_per_frame=10)
    out = capsys.readouterr().out
    assert out.startswith(f"mAP {100 * expected.mean_ap:.2f} % (chance ")
    assert "%) at IoU 0.75: " in out.splitlines()[0]
    match = re.search(r"(\d+) detections\n", out)
    left = re.search(r"(\d+) detections are not among the 10 best rows of their key frames\.", out)
    assert match is not None
    assert left is not None
    assert int(match[1]) + int(left[1]) == 594
    frames = Counter(
        line.split(",")[0] + line.split(",")[1] for line in Path(files[1]).read_text().splitlines()
    )
    for line in Path(files[3]).read_text().split():
        del frames[line.replace(",0", "")]
    assert int(match[1]) == sum(min(count, 10) for count in frames.values())


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("", "There are no detections, so every action with ground truth scores 0."),
        (
            f"{PERSON},4,0.5\n" + "".join(f"v{n},902,0,0,1,1,7,.5\n" for n in range(7)),
            "7 detections are of 7 videos without ground truth (v0, v1, v2, v3, v4 and 2 more) and count as "
            "false positives; compare the videos of the two files.",
        ),
        (
            f"{PERSON},4,0.5\nvid00-cbZ-X_,1700,0.1,0.1,0.5,0.5,4,0.5\n",
            "1 detection is in 1 key frame without ground truth, of videos that have some elsewhere, and "
            "count as false positives; compare the times of the two files.",
        ),
        (f"{PERSON},4\n", "The detections have no scores, so all are ranked equally."),
        (
            f"{PERSON},4,0.5\n{PERSON},,0.5\n{PERSON},5,0.5\n",
            "2 of the 3 rows of the detections are ignored: 1 without an action, 1 of actions that the label "
            "map does not list.",
        ),
    ],
)
def test_odd_detections_are_scored_and_noted(golden: Path, tmp_path: Path, rows: str, words: str) -> None:
    files = golden_files(golden)
    (tmp_path / "found.csv").write_text(rows)
    scored, text = score_ava(files[0], str(tmp_path / "found.csv"), files[2], files[3], tmp_path / "out")
    assert words in text.splitlines()
    assert scored.result.mean_ap < 0.01
    assert words in Page((tmp_path / "out" / "report.html").read_text()).text
    with pytest.raises(UserError, match=r"out/result.json exists \(and 2 more\)"):
        score_ava(files[0], str(tmp_path / "found.csv"), files[2], files[3], tmp_path / "out")


def test_mistake_is_one_line_and_leaves_nothing(
    golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = golden_files(golden)
    files[1] = str(tmp_path / "found.csv")
    Path(files[1]).write_text("vid00-cbZ-X_,902,0.1,0.1,640,0.5,4,0.5\n")
    assert cli.main(arguments(files, "--out", str(tmp_path / "out"))) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(
        f"videomaskfeat score-ava: {files[1]}:1: the box of 'vid00-cbZ-X_,902,0.1,0.1,640,"
    )
    assert not (tmp_path / "out").exists()
