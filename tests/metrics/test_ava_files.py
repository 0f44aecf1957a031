"""Formats of AVA's files, and the errors for invalid ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.metrics.test_ava_map import golden_files
from videomaskfeat.ava import read_label_map
from videomaskfeat.errors import UserError
from videomaskfeat.metrics.ava_map import (
    Detections,
    SideCounts,
    average_precision,
    evaluate_files,
    read_ava,
    write_detections,
)

LABELS = 'item {\n  name: "stand"\n  id: 12\n}\nitem {\n  name: "talk to \\"a person\\""\n  id: 79\n}\n'
TRUTH = "vidA,0902,0.1,0.1,0.5,0.5,12,0\nvidA,0902,0.1,0.1,0.5,0.5,79,0\nvidB,0903,0.2,0.2,0.9,0.9,12,1\n"
DETECTIONS = "vidA,0902,0.1,0.1,0.5,0.5,12,0.9\nvidB,0903,0.2,0.2,0.9,0.8,12,0.8\n"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A small ground truth, detections, label map and exclusions; tests overwrite one of them."""
    written = {"truth.csv": TRUTH, "found.csv": DETECTIONS, "labels.pbtxt": LABELS, "excluded.csv": ""}
    for name, text in written.items():
        (tmp_path / name).write_text(text)
    return {name.split(".")[0]: tmp_path / name for name in written}


def score(files: dict[str, Path]) -> float:
    return evaluate_files(files["truth"], files["found"], files["labels"], files["excluded"]).mean_ap


def test_scores_of_a_small_set(files: dict[str, Path]) -> None:
    """Both standing persons are detected; the talking one is not."""
    result = evaluate_files(files["truth"], files["found"], files["labels"])
    assert result.ap == {12: 1.0, 79: 0.0}
    assert result.mean_ap == 0.5


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda text: text.replace("090", "90"),
        lambda text: text.replace("0902", "902.0").replace("0903", "903.000"),
        lambda text: text.replace("vidA", '"vidA"').replace("0.1,", '"0.1",'),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\n" + text.replace(",", " , ").replace("\n", "\t\n\n"),
        lambda text: text.rstrip("\n"),
        lambda text: "\ufeff" + text,
        lambda text: "video_id,timestamp,x1,y1,x2,y2,action_id,last\n" + text,
        lambda text: '"video_id","middle frame","x1","y1","x2","y2","action_id","last"\n' + text,
        lambda text: text.replace(",12,", ",12.0,"),
        lambda text: text.replace("0.2,0.2", "2e-1,.20"),
        lambda text: "".join(reversed(text.splitlines(keepends=True))),
    ],
)
@pytest.mark.parametrize("side", ["truth", "found"])
def test_spellings_of_a_file_are_equivalent(
    files: dict[str, Path], rewrite: Callable[[str], str], side: str
) -> None:
    plain = read_ava(*files.values())
    before = files[side].read_text()
    assert rewrite(before) != before
    files[side].write_bytes(rewrite(before).encode())
    other = read_ava(*files.values())
    assert other.groundtruth_counts == plain.groundtruth_counts
    assert other.detection_counts == plain.detection_counts
    assert score(files) == 0.5


def test_block_size_does_not_change_the_result(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks end anywhere in a row; a row may be longer than a block."""
    whole = read_ava(*golden_files(golden))
    for block in (40, 1000):
        monkeypatch.setattr("videomaskfeat.csv_columns._BLOCK", block)
        tables = read_ava(*golden_files(golden))
        for side in ("groundtruth", "detections"):
            for name, values in vars(getattr(whole, side)).items():
                np.testing.assert_array_equal(values, getattr(getattr(tables, side), name))


def test_error_in_a_late_block_has_the_right_line(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("videomaskfeat.csv_columns._BLOCK", 100)
    rows = ["vidA,0902,0.1,0.1,0.5,0.5,12,0.5", ""] * 40
    files["found"].write_text("\n".join([*rows, "vidA,0902,0.1,0.1,0.5,0.5,12,high"]))
    with pytest.raises(UserError, match=r"found\.csv:81: the score 'high' of 'vidA,.*' is not a number"):
        score(files)


def test_numbers_equal_pythons_float(tmp_path: Path, files: dict[str, Path]) -> None:
    """Bit for bit, for numbers of any length."""
    rng = np.random.default_rng(0)
    scores = [*map(str, rng.random(50) * 10.0 ** rng.integers(-12, 3, 50)), "1e-320", "-0", "+3", "5."]
    files["found"].write_text("".join(f"vidA,902,0.1,0.1,0.5,0.5,12,{text}\n" for text in scores))
    detections = read_ava(*files.values()).detections
    assert detections.scores.tolist() == [float(text) for text in scores]


def test_excluded_times_are_removed_from_both_files(files: dict[str, Path]) -> None:
    files["excluded"].write_text("vidB,903\nvidC,0905\n")
    data = read_ava(*files.values())
    assert data.groundtruth_counts == SideCounts(rows=3, used=2, excluded=1, no_action=0, not_listed=0)
    assert data.detection_counts == SideCounts(rows=2, used=1, excluded=1, no_action=0, not_listed=0)
    assert data.persons.tolist() == [1]


def test_rows_without_a_listed_action_are_ignored(files: dict[str, Path]) -> None:
    """A person without action still counts as a person of the key frame."""
    person, other = "vidA,0902,0.5,0.5,0.9,0.9,,2\n", "vidA,0902,0.6,0.5,0.9,0.9,80,3\n"
    files["truth"].write_text(TRUTH + person + other)
    files["found"].write_text(
        DETECTIONS + "vidA,0902,0.5,0.5,0.9,0.9,,0.95\nvidA,0902,0.5,0.5,0.9,0.9,3,0.95\n"
    )
    data = read_ava(*files.values())
    assert data.groundtruth_counts == SideCounts(rows=5, used=3, excluded=0, no_action=1, not_listed=1)
    assert data.detection_counts == SideCounts(rows=4, used=2, excluded=0, no_action=1, not_listed=1)
    assert data.persons.tolist() == [3, 1]
    assert score(files) == 0.5


def test_detections_in_unknown_videos_are_reported_false_positives(files: dict[str, Path]) -> None:
    """The first of three detections is false: precisions 1/2 and 2/3, both interpolated to 2/3."""
    files["found"].write_text(
        DETECTIONS + "vidZ,0902,0.1,0.1,0.5,0.5,12,0.99\nvidZ,0902,0.1,0.1,0.5,0.5,3,0.1\n"
    )
    files["excluded"].write_text("vidQ,0902\n")
    data = read_ava(*files.values())
    assert (data.unknown_videos, data.unknown_rows) == (["vidZ"], 1)
    assert evaluate_files(*files.values()).ap == {12: pytest.approx(2 / 3, abs=1e-15), 79: 0.0}


def test_empty_detections_score_zero(files: dict[str, Path]) -> None:
    for text in ("", "\n", "video,second,x1,y1,x2,y2,action,score\n"):
        files["found"].write_text(text)
        result = evaluate_files(*files.values())
        assert (result.mean_ap, result.ap) == (0.0, {12: 0.0, 79: 0.0})


def test_ground_truth_as_detections_scores_one(files: dict[str, Path]) -> None:
    """Seven columns: all scores are 1."""
    rows = [line.rpartition(",")[0] for line in TRUTH.splitlines()]
    files["found"].write_text("\n".join(rows))
    assert score(files) == 1.0
    assert not read_ava(*files.values()).scored


def test_both_formats_of_a_label_map(tmp_path: Path) -> None:
    path = tmp_path / "labels.pbtxt"
    path.write_text(LABELS.replace("  id:", "  label_id:"))
    assert read_label_map(path) == {12: "stand", 79: 'talk to "a person"'}
    path.write_text(
        "# ours\nlabel { name: 'a}b' label_id: 3 label_type: PERSON } item{id:1,}".replace(",", " ")
    )
    assert read_label_map(path) == {3: "a}b", 1: "action 1"}


def test_written_detections_are_read_back_exactly(tmp_path: Path, files: dict[str, Path]) -> None:
    """float32 boxes and scores bit for bit, also very small ones."""
    rng = np.random.default_rng(0)
    key_frames = [("vidA", 902.0), ("vidA", 1000.0000000001), ("vidB", 903.0), ("vidB", 1012.125)]
    corners = np.concatenate([rng.random((40, 2)) * 0.4, 0.5 + rng.random((40, 2)) * 0.4], axis=1)
    scores = (rng.random((40, 2)) * 10.0 ** rng.integers(-9, 1, (40, 1))).astype(np.float32)
    rows = Detections.of_box_scores(
        rng.integers(4, size=40), corners.astype(np.float32), scores, actions=[12, 79]
    )
    write_detections(files["found"], key_frames, rows)
    lines = files["found"].read_text().splitlines()
    assert len(lines) == 80
    assert {line.split(",")[1] for line in lines} == {"0902", "1000", "0903", "1012.125"}
    read = read_ava(*files.values()).detections
    np.testing.assert_array_equal(read.boxes.astype(np.float32), rows.boxes)
    np.testing.assert_array_equal(read.scores.astype(np.float32), rows.scores)
    np.testing.assert_array_equal(read.actions, rows.actions)
    assert len(np.unique(read.frames)) == 4
    np.testing.assert_array_equal(
        np.unique(read.frames, return_inverse=True)[1], np.array([0, 1, 2, 3])[rows.frames]
    )


def test_written_detections_have_the_same_score(golden: Path, tmp_path: Path) -> None:
    """The score in memory equals the score of the written file."""
    files = golden_files(golden)
    data = read_ava(*files)
    frames, places = np.unique(data.detections.frames, return_inverse=True)
    names = [f"vid{number:02d}" for number in range(len(frames))]  # one key frame a video, in the same order
    rows = Detections(places, data.detections.boxes, data.detections.actions, data.detections.scores)
    write_detections(tmp_path / "found.csv", [(name, 902) for name in names], rows)
    truth = tmp_path / "truth.csv"
    known = np.searchsorted(frames, data.groundtruth.frames)
    with truth.open("w") as file:
        for frame, place, box, action in zip(
            data.groundtruth.frames, known, data.groundtruth.boxes, data.groundtruth.actions, strict=True
        ):
            here = place < len(frames) and frames[place] == frame
            video = names[place] if here else f"missed{frame}"
            file.write(f"{video},902,{','.join(map(repr, box.tolist()))},{action}\n")
    again = evaluate_files(truth, tmp_path / "found.csv", files[2])
    first = average_precision(data.groundtruth, data.detections, actions=list(data.actions))
    assert again == first


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            "vidA,902,0.1,0.1,1.2,0.5,12,0.5",
            r":3: the box of 'vidA,.*' exceeds the frame; .* 0 to 1: divide pixels",
        ),
        ("vidA,902,-0.1,0.1,0.2,0.5,12,0.5", r":3: the box of .* exceeds the frame"),
        (
            "vidA,902,0.5,0.1,0.5,0.5,12,0.5",
            r":3: x2 of 'vidA,.*' is not above x1; a box is x1,y1,x2,y2 .* correct",
        ),
        ("vidA,902,0.1,0.6,0.5,0.5,12,0.5", r":3: y2 of 'vidA,.*' is not above y1; a box is x1,y1,x2,y2"),
        (
            "vidA,902,0.1,0.1,0.5,0.5,0,0.5",
            r":3: the action '0' of 'vidA.*' is unknown; .* from 1 to 80, AVA's, and",
        ),
        (
            "vidA,902,0.1,0.1,0.5,0.5,81,0.5",
            r":3: the action '81' of 'vidA.*' is unknown; ids are whole numbers",
        ),
        ("vidA,902,0.1,0.1,0.5,0.5,-1,0.5", r":3: the action '-1' of 'vidA.*' is unknown"),
        ("vidA,902,0.1,0.1,0.5,0.5,1.5,0.5", r":3: the action '1.5' of 'vidA.*' is unknown"),
        (
            "vidA,902,0.1,0.1,0.5,0.5,talk,0.5",
            r":3: the action 'talk' of 'vidA.*' is not a number; a row is `video",
        ),
        (
            "vidA,902,0.1,0.1,0.5,0.5,12",
            r":3: 'vidA,.*' has 7 columns, and the first row has 8: `video,second,x1",
        ),
        ("vidA,902,0.1", r":3: 'vidA,902,0.1' has 3 columns, and the first row has 8"),
        ("vidA,902,0.1,0.1,0.5,0.5,12,0.5,1", r":3: 'vidA.*' has 9 columns, and the first row has 8"),
        (
            "vidA,902,a,0.1,0.5,0.5,12,0.5",
            r":3: the x1 'a' of 'vidA,.*' is not a number; a row is `video,second,x1",
        ),
        ("vidA,902,,0.1,0.5,0.5,12,0.5", r":3: the x1 of 'vidA,902,,.*' is empty; a row is `video,second,x1"),
        ("vidA,902,nan,0.1,0.5,0.5,12,0.5", r":3: the x1 'nan' of .* is not finite"),
        ("vidA,soon,0.1,0.1,0.5,0.5,12,0.5", r":3: the second 'soon' of 'vidA,.*' is not a number"),
        (
            "vidA,-3,0.1,0.1,0.5,0.5,12,0.5",
            r":3: the second '-3' of 'vidA,.*' is not a time in a video; seconds",
        ),
        (",902,0.1,0.1,0.5,0.5,12,0.5", r":3: the video of ',902,.*' is empty"),
        (
            "v" * 256 + ",902,0.1,0.1,0.5,0.5,12,0.5",
            r":3: the video of 'v{40}\.\.\..*' has more than 255 bytes",
        ),
    ],
)
@pytest.mark.parametrize("side", ["truth", "found"])
def test_invalid_row_is_refused(files: dict[str, Path], side: str, row: str, words: str) -> None:
    with files[side].open("a") as file:
        file.write(row + "\n")
    words = words if side == "found" else words.replace(":3:", ":4:")
    with pytest.raises(UserError, match=rf"{files[side].name}{words}"):
        score(files)


def test_header_in_a_later_row_is_refused(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """For example in concatenated files, also at the start of a block."""
    monkeypatch.setattr("videomaskfeat.csv_columns._BLOCK", len(DETECTIONS))
    files["found"].write_text(DETECTIONS + "video,second,x1,y1,x2,y2,action,score\n" + DETECTIONS)
    with pytest.raises(UserError, match=r"found\.csv:3: the (\w+) '\1' of 'video,.*' is not a number"):
        score(files)


def test_box_slightly_outside_the_frame_is_accepted(files: dict[str, Path]) -> None:
    files["found"].write_text("vidB,903,-0.0000001,0.2,1.0000001,0.9,12,0.5\n")
    assert read_ava(*files.values()).detection_counts.used == 1


@pytest.mark.parametrize("side", ["truth", "found", "excluded", "labels"])
@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b'\xd0\x04\0\0\0\0\0\0{"x":{"dtype":"F32"}}\n\x1f\x85\xebQ', "is a safetensors file, not "),
        (b"\x1f\x8b\x08\x08\xa7\xc1\xd4e\n,,,,,,,", "is a gzip file, not "),
        (
            "vidA,902,0.1,0.1,0.5,0.5,12,0.5\n".encode("utf-16le"),
            "is probably UTF-16LE without ",
        ),
        (b"vidA,902,0.1,0.1,0.5,0.5,12,0\0\n", "1: NUL byte, so this is not text (UTF-8); give "),
    ],
    ids=["weights", "gzip", "utf-16", "nul"],
)
def test_binary_file_is_refused(files: dict[str, Path], side: str, content: bytes, kind: str) -> None:
    """The error names the path, the kind of file and the expected format, without printing its bytes."""
    files[side].write_bytes(content)
    form = {"excluded": "a CSV file with rows `video,second`", "labels": "a label map with `item {"}
    with pytest.raises(UserError) as caught:
        score(files)
    message = str(caught.value).removeprefix(f"{files[side]}").removeprefix(":").strip()
    assert message.startswith(kind)
    assert "UTF-16" in kind or form.get(side, "a CSV file with rows `video,second,x1,") in message
    assert message.isprintable()


@pytest.mark.parametrize("side", ["truth", "found", "excluded", "labels"])
def test_other_encodings_and_line_ends_are_read(files: dict[str, Path], side: str) -> None:
    expected = read_ava(*files.values())
    text = files[side].read_text().rstrip("\n")
    for content in (text.encode("utf-16"), text.encode("utf-8-sig"), text.replace("\n", "\r").encode()):
        files[side].write_bytes(content)
        got = read_ava(*files.values())
        assert (got.groundtruth_counts, got.detection_counts, got.actions) == (
            expected.groundtruth_counts,
            expected.detection_counts,
            expected.actions,
        )


@pytest.mark.parametrize("name", ["truth", "found", "labels", "excluded"])
def test_missing_file_is_named(files: dict[str, Path], name: str) -> None:
    files[name].unlink()
    with pytest.raises(UserError, match=rf"{files[name].name}: no such file; check the path"):
        score(files)


@pytest.mark.parametrize(
    ("side", "text", "words"),
    [
        *(
            ("found", f"{DETECTIONS}vidA,902,0.1,0.1,0.5,0.5,12,{score}\n", rf":3: the score {words}")
            for score, words in (
                ("inf", "'inf' of .* is not finite; give a number, or leave the row out"),
                ("nan", "'nan' of .* is not finite"),
                ("1e999", "'1e999' of .* is not finite"),
                ("", "of 'vidA.*' is empty"),
                ("0.5.1", "'0.5.1' of .* is not a number"),
                ("\u0663", "'\u0663' of .* is not a number"),
                ("0" * 99, r"'0{40}\.\.\.0{37}' has more than 64 characters"),
            )
        ),
        # One invalid field does not make a row a header.
        ("found", "vidA,soon,0.1,0.1,0.5,0.5,12,0.5\n" + DETECTIONS, r":1: the second 'soon' of"),
        (
            "found",
            "vidA 902 0.1 0.1 0.5 0.5 12 0.5\n",
            r":1: 'vidA .*' has 1 column, and 7 or 8 are needed: `video,.*comma",
        ),
        (
            "found",
            'vidA,902,0.1,0.1,0.5,0.5,,0.9\nvidB,903,0.1,0.1,0.5,0.5,"",0.8\n',
            ": no row has an action, so this is a list of person boxes",
        ),
        ("truth", "\n", " has no rows; ground truth has a row `video,second,x1"),
        ("excluded", "vidB,903,1\n", ":1: 'vidB,903,1' has 3 columns, and 2 are needed: `video,second`, sep"),
        ("excluded", "vidA,0902\nvidB\n", ":2: 'vidB' has 1 column, and the first row has 2"),
        ("excluded", "vidB,9O3\n", ":1: the second '9O3' of 'vidB,9O3' is not a number; a row is `video,sec"),
        ("excluded", "video,second\nvidB,\n", ":2: the second of 'vidB,' is empty"),
        (
            "labels",
            LABELS.replace("  id: 79\n", ""),
            r":5: the action 'talk .*' has no id; write `id: 12` \(or `label_id: 12`\)",
        ),
        ("labels", 'item { name: "stand" }', ":1: the action 'stand' has no id"),
        (
            "labels",
            LABELS.replace("79", "0"),
            ":5: the id '0' of the action 'talk .*' is not a positive integer",
        ),
        ("labels", LABELS.replace("79", "7.9"), r":5: the id '7.9' of the action"),
        (
            "labels",
            LABELS.replace("79", "12"),
            ":5: action id 12 appears twice; each action needs its own id",
        ),
        (
            "labels",
            "stand\nwalk\n",
            r' has no action; give a label map with `item \{ name: "stand" id: 12 \}`',
        ),
        ("labels", "", " has no action"),
    ],
)
def test_invalid_content_is_refused(files: dict[str, Path], side: str, text: str, words: str) -> None:
    files[side].write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=rf"{re.escape(files[side].name)}{words}"):
        score(files)


def test_ground_truth_without_scored_rows_is_refused(files: dict[str, Path]) -> None:
    box = "0.1,0.1,0.5,0.5"
    files["truth"].write_text(f"vidA,902,{box},3,0\nvidA,902,{box},,0\nvidB,903,{box},12,0\n")
    files["excluded"].write_text("vidB,0903")
    words = (
        r"truth\.csv: none of its 3 rows can be scored: 1 have actions that .*labels\.pbtxt does not list, "
        "1 have no action, 1 are at excluded times; use files of one version"
    )
    with pytest.raises(UserError, match=words):
        score(files)


def test_detections_in_key_frames_without_persons_are_false_positives(files: dict[str, Path]) -> None:
    """Ground truth rows without a box name key frames without persons."""
    files["found"].write_text(
        DETECTIONS + "vidB,0905,0.2,0.2,0.9,0.8,12,0.99\nvidC,7,0.2,0.2,0.9,0.8,12,0.95\n"
    )
    before = read_ava(*files.values())
    assert (before.bare_rows, before.unknown_videos) == (1, ["vidC"])
    truth = TRUTH.replace(",0\n", "\n").replace(",1\n", "\n")  # seven columns
    files["truth"].write_text("vidC,7\n" + truth + "vidB,905\n")
    data = read_ava(*files.values())
    assert (data.bare_rows, data.unknown_videos, data.detection_counts.used) == (0, [], 4)
    assert data.groundtruth_counts.rows == 3
    # The two highest of four detections are false: precision 1/3 at recall 1/2, 2/4 at recall 1.
    assert evaluate_files(*list(files.values())[:3]).ap[12] == pytest.approx(0.5)
