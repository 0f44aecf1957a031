"""Lists of all formats: equal rows for all spellings, and errors with file and line."""

from __future__ import annotations

import ast
import csv
import json
import logging
import os
import pickle
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest

from tests.extending import add_module, python_blocks
from videomaskfeat.data import formats
from videomaskfeat.data.formats import check_lists, load_records, write_clean_list
from videomaskfeat.data.records import Record, Records, check_frames
from videomaskfeat.errors import UserError
from videomaskfeat.schemas.sections import LIST_FORMATS


def _write(folder: Path, text: str | bytes, name: str = "train.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def _rows(records: Records) -> list[tuple[str, int | None]]:
    return [(os.path.relpath(record.path, records.root), record.label) for record in records]


TWO = [("a.mp4", 3), ("b/c.mp4", 0)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.mp4 3\nb/c.mp4 0\n", TWO),
        ("a.mp4,3\nb/c.mp4,0", TWO),
        ("a.mp4, 3\nb/c.mp4, 0", TWO),
        ("a.mp4\t3\nb/c.mp4\t0\n", TWO),
        ("\ufeffa.mp4 3\r\n\r\n  b/c.mp4   0  \r\n\n", TWO),
        ("my video.mp4 3\nb c/d.mp4 0\n", [("my video.mp4", 3), ("b c/d.mp4", 0)]),
        ("my, video.mp4 3\nb,c.mp4 0\n", [("my, video.mp4", 3), ("b,c.mp4", 0)]),
        ('"my, video.mp4",3\nb.mp4,0\n', [("my, video.mp4", 3), ("b.mp4", 0)]),
        ('"frames 12" 3\n"frames 13" 0\n', [("frames 12", 3), ("frames 13", 0)]),
        ("a 120 3\nb/c 7 0\n", [("a", 3), ("b/c", 0)]),
        ("a.mp4 0 -1\nb.mp4 0 5\n", [("a.mp4", None), ("b.mp4", 5)]),
        ("a,120,3\nb c,7,0\n", [("a", 3), ("b c", 0)]),
        ("a.mp4\nmy video.mp4\n", [("a.mp4", None), ("my video.mp4", None)]),
        ('"a.mp4"\nvideo1\n', [("a.mp4", None), ("video1", None)]),
        ("\u00fcber.mp4 3\n", [("\u00fcber.mp4", 3)]),
        ("a.mp4 123456789\n", [("a.mp4", 123456789)]),
        ("a.mp4 007\n", [("a.mp4", 7)]),
    ],
)
def test_list_has_paths_and_labels(tmp_path: Path, text: str, expected: list[tuple[str, int | None]]) -> None:
    assert _rows(load_records(_write(tmp_path, text))) == expected


@pytest.mark.parametrize(
    ("text", "arguments", "words"),
    [
        ("", {}, r"train\.csv is empty"),
        ("\n  \n", {}, r"train\.csv is empty"),
        ("a.mp4 3\n\nb.mp4\n", {}, r"train\.csv:3: 'b\.mp4' has too few fields: 2 are needed"),
        ("a.mp4 3\nb.mp4 x\n", {}, r"train\.csv:2: the label of 'b\.mp4 x' is not an integer"),
        ("a.mp4 3\nb.mp4 3.0\n", {}, r"train\.csv:2: the label of"),
        ("a.mp4 3\nb.mp4 -\n", {}, r"train\.csv:2: the label of"),
        ("a.mp4 3\nb.mp4 1234567890\n", {}, r"train\.csv:2: the label of"),
        ("a.mp4 walking\n", {}, r"train\.csv:1: the label 'walking' is not an integer; .* no header"),
        ("path,label\na.mp4,3\n", {"labels": "yes"}, r"train\.csv:1: the label 'label' is not an integer"),
        ("a.mp4,3\nb,c.mp4,4\n", {}, r"train\.csv:2: 'b,c\.mp4,4' has too many fields.*double quotes"),
        (
            "a.mp4\t3\nb.mp4\t4\t5\n",
            {},
            r"train\.csv:2: .* too many fields: the first row has 2, `path<tab>label`",
        ),
        ("a.mp4 3\nb.mp4 4 5\n", {}, r"train\.csv:2: 'b\.mp4 4 5' has too many fields"),
        ("a 9 3\nb 4\n", {}, r"train\.csv:2: 'b 4' has too few fields: 3 are needed .*`path count label`"),
        ("a.mp4\nb.mp4 3\n", {}, r"train\.csv:2: 'b\.mp4 3' ends with the label 3, but row 1 has no label"),
        ("a.mp4 3\n", {"labels": "no"}, r"train\.csv:1: .*labels=no"),
        ("a.mp4\n", {"labels": "yes"}, r"train\.csv:1: 'a\.mp4' has 1 field.*add the label to every row$"),
        ('"my a.mp4"\n', {"labels": "yes"}, r"train\.csv:1: '\"my a\.mp4\"' has 1 field.*add the label"),
        (
            "path,label\na.mp4,1\n",
            {},
            r"train\.csv:2: .*label 1, but row 1 has no label.*; row 1, 'path,label', looks like a header",
        ),
        (",3\n", {}, r"train\.csv:1: ',3' has no path"),
        ("a.mp4 3\n", {"separator": "comma", "labels": "yes"}, r"train\.csv:1: the label '3' is not|1 field"),
        ("a.mp4 3\n", {"separator": "spaces"}, r"separator 'spaces' is unknown; did you mean 'space'"),
        ("a.mp4 3\n", {"labels": "true"}, r"labels 'true' is unknown; choose from auto, yes, no"),
        ("a.mp4 3\n", {"format": "kinetic"}, r"format 'kinetic' is unknown; did you mean 'kinetics'"),
        ("a.mp4 3\n", {"format": "folder"}, r"format=folder needs a folder"),
        ("original_vido_id video_id frame_id path labels\n", {}, r"train\.csv: lists of frames"),
    ],
)
def test_bad_list_is_refused_by_file_and_line(
    tmp_path: Path, text: str, arguments: dict[str, str], words: str
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        load_records(_write(tmp_path, text), **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "start", [b"\0\0\0\x20ftypisom", b"\x1aE\xdf\xa3\x9fB\x86\x81", b"RIFF\0\0\0\0AVI LIST"]
)
def test_video_is_not_a_list(tmp_path: Path, start: bytes) -> None:
    path = _write(tmp_path, start + b"\n\0\0 3\n", "clip.mp4")
    with pytest.raises(UserError, match=r"clip\.mp4 is a video, not a list; give a list file or a folder"):
        load_records(path)


def test_missing_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.csv: no such file"):
        load_records(tmp_path / "nowhere.csv")


def test_lists_of_a_training_exist_and_differ(tmp_path: Path) -> None:
    train, other = _write(tmp_path, "a.mp4 0\n"), _write(tmp_path, "b.mp4 0\n", "other.csv")
    copy = _write(tmp_path, "a.mp4 0\n", "copy.csv")
    assert check_lists(str(train), "") == check_lists(str(train), str(other)) == ""
    for same in (train, copy):
        assert check_lists(str(train), str(same)).startswith(
            "data.validation has the same rows as data.train"
        )
    with pytest.raises(
        UserError, match=r"data\.validation is .*othr\.csv: no such file .*did you mean 'other\.csv'"
    ):
        check_lists(str(train), str(tmp_path / "othr.csv"))
    with pytest.raises(UserError, match=r"data\.train is gone/x\.csv: no such file .*set data\.train=LIST"):
        check_lists("gone/x.csv", "")


def test_many_rows_equal_a_plain_parse(tmp_path: Path) -> None:
    """5,000 random rows against Python's own csv module."""
    rng = np.random.default_rng(0)
    names = ["dir {}/v_{}.mp4", '"a, b {}"/{}.webm', "x{}/{}", "{} {}.mkv"]
    rows = [(names[i % 4].format(*rng.integers(10**6, size=2)), int(rng.integers(1000))) for i in range(5000)]
    rows = [(path.replace('"', ""), label) for path, label in rows]
    with open(tmp_path / "train.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    assert _rows(load_records(tmp_path / "train.csv")) == rows


def test_prefix_goes_before_relative_paths_only(tmp_path: Path) -> None:
    path = _write(tmp_path, "a.mp4 3\n/b.mp4 4\ns3://bucket/c.mp4 5\n")
    paths = [record.path for record in load_records(path, prefix="/data/k400")]
    assert paths == ["/data/k400/a.mp4", "/b.mp4", "s3://bucket/c.mp4"]
    assert load_records(path)[0] == Record(str(tmp_path / "a.mp4"), 3)


def test_records_hold_rows_as_arrays_that_pickle_to_workers_without_their_bytes(tmp_path: Path) -> None:
    text = "".join(f"some/folder/video_{index:06d}.mp4 {index % 400}\n" for index in range(20_000))
    records = load_records(_write(tmp_path, text))
    # How a worker process gets it: handles of shared memory.
    assert len(ForkingPickler.dumps(records)) < 5_000
    assert records[12_345] == Record(str(tmp_path / "some/folder/video_012345.mp4"), 345)
    assert records[-1].label == 19_999 % 400
    assert records.labels is not None
    assert records.labels[:3].tolist() == [0, 1, 2]
    with pytest.raises(IndexError):
        records[20_000]
    # An ordinary pickle is whole.
    assert _rows(pickle.loads(pickle.dumps(records)))[:2] == _rows(records)[:2]


HEADER = "label,youtube_id,time_start,time_end,split\n"


@pytest.mark.parametrize("folder", ["", "riding a bike", "riding_a_bike"])
def test_kinetics_own_csv_names_files_and_numbers_classes(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / "abc-_def_000010_000020.mp4").touch()
    text = (
        HEADER
        + '"riding a bike",xyz,3,13,train\nriding a bike,abc-_def,10,20,train\nabseiling,q,0,10,train\n'
    )
    rows = _rows(load_records(_write(tmp_path, text)))
    assert rows[1] == (os.path.join(folder, "abc-_def_000010_000020.mp4"), 1)
    assert [label for _, label in rows] == [1, 1, 0]
    other = "abseiling" if folder else ""
    assert rows[2] == (os.path.join(other, "q_000000_000010.mp4"), 0)


def test_kinetics_test_csv_has_no_labels_and_takes_classes_by_number(tmp_path: Path) -> None:
    (tmp_path / "v_000001_000011.mp4").touch()
    path = _write(tmp_path, "youtube_id,time_start,time_end,split\nv,1,11,test\n")
    assert _rows(load_records(path)) == [("v_000001_000011.mp4", None)]
    labeled = _write(tmp_path, HEADER + "run,v,1,11,train\n", "other.csv")
    classes = _write(tmp_path, "walk\nrun\n", "classes.txt")
    assert load_records(labeled, classes=classes)[0].label == 1
    names = ("stand", "walk", "run")
    assert load_records(labeled, known_classes=names)[0].label == 2
    assert load_records(labeled, classes=classes, known_classes=names)[0].label == 2  # the names first
    with pytest.raises(UserError, match=r"class 'run' .* is not in the 2 known classes; did you"):
        load_records(labeled, known_classes=("runs", "walk"))
    assert load_records(labeled, labels="no")[0].label is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HEADER + "run,v,1,11\n", r"train\.csv:2: 4 fields, but the header has 5"),
        (HEADER + "run,v,1,end,train\n", r"train\.csv:2: the times '1' and 'end'"),
        (HEADER + "runn,v,1,11,train\n", r"class 'runn' .*did you mean 'run'"),
        (HEADER + "run,w,1,11,train\n", r"none of the first 1 videos is in the folder .*set the prefix"),
        (HEADER, r"has a header but no rows"),
        ("label,youtube_id\nrun,v\n", r"train\.csv:1: the header has no column time_start, time_end"),
    ],
)
def test_kinetics_own_csv_with_a_mistake_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "v_000001_000011.mp4").touch()
    classes = _write(tmp_path, "walk\nrun\n", "classes.txt")
    with pytest.raises(UserError, match=words):
        load_records(_write(tmp_path, text), classes=classes)


def _ssv2(folder: Path, items: object, name: str = "something-something-v2-train.json") -> Path:
    _write(
        folder,
        json.dumps({"Moving something up": "1", "Turning something": "0"}),
        "something-something-v2-labels.json",
    )
    return _write(folder, json.dumps(items), name)


@pytest.mark.parametrize("suffix", [".webm", ".mp4", ""])
def test_ssv2_json_takes_brackets_off_templates_and_finds_the_suffix(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"78687{suffix}").mkdir() if not suffix else (tmp_path / f"78687{suffix}").touch()
    items = [
        {"id": "1", "label": "turning cup", "template": "Turning [something]"},
        {"id": "78687", "label": "moving cup up", "template": "Moving [something] up"},
    ]
    assert _rows(load_records(_ssv2(tmp_path, items))) == [(f"1{suffix}", 0), (f"78687{suffix}", 1)]
    assert load_records(_ssv2(tmp_path, items), labels="no")[0].label is None


def test_ssv2_test_json_has_no_labels(tmp_path: Path) -> None:
    (tmp_path / "1.webm").touch()
    assert _rows(load_records(_ssv2(tmp_path, [{"id": 1}]))) == [("1.webm", None)]


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([], "is not a list, or is empty"),
        ({"id": 1}, "is not a list, or is empty"),
        ([{"id": "1"}, {"template": "x"}], "object 2 has no `id`"),
        (
            [{"id": "1", "template": "Moving [something] up"}, {"id": "2"}],
            r"object 2 \(id 2\) has no `template`",
        ),
        ([{"id": "1"}, {"id": "2", "template": "x"}], r"object 2 \(id 2\) has a `template`"),
        (
            [{"id": "1", "template": "Moving [something] upp"}],
            "object 1 .*did you mean 'Moving something up'",
        ),
        ([{"id": "9"}], "none of the first 1 videos is in the folder .*set the prefix"),
    ],
)
def test_ssv2_json_with_a_mistake_is_refused(tmp_path: Path, items: object, words: str) -> None:
    (tmp_path / "1.webm").touch()
    with pytest.raises(UserError, match=words):
        load_records(_ssv2(tmp_path, items))


def test_ssv2_without_labels_file_or_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "1.webm").touch()
    path = _write(tmp_path, json.dumps([{"id": "1", "template": "x"}]), "my-train.json")
    with pytest.raises(UserError, match=r"my-labels\.json is missing; .*classes=.*labels=no"):
        load_records(path)
    with pytest.raises(UserError, match=r"bad\.json:2: not valid JSON"):
        load_records(_write(tmp_path, "[\n{]", "bad.json"))


def test_folder_gives_every_video_below_it_in_order(tmp_path: Path) -> None:
    for name in ("b/2.mp4", "b/1.webm", "a.MP4", "notes.txt", ".hidden/x.mp4", "c/d/3.mkv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    records = load_records(tmp_path)
    assert _rows(records) == [("a.MP4", None), ("b/1.webm", None), ("b/2.mp4", None), ("c/d/3.mkv", None)]


def test_folder_of_frame_folders_gives_each_folder(tmp_path: Path) -> None:
    for name in ("x/y2/1.jpg", "x/y2/2.jpg", "x/y1/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    records = load_records(tmp_path)
    assert _rows(records) == [("x/y1", None), ("x/y2", None)]
    (tmp_path / "v.mp4").touch()
    with pytest.raises(UserError, match=r"contains videos .*v\.mp4.* and pictures .*x/y1"):
        load_records(tmp_path)
    assert _rows(load_records(tmp_path, format="frames")) == [("x/y1", None), ("x/y2", None)]
    assert _rows(load_records(tmp_path, format="folder")) == [("v.mp4", None)]


def test_folder_without_videos_or_with_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="contains no videos or pictures"):
        load_records(tmp_path)
    (tmp_path / "v.mp4").touch()
    with pytest.raises(UserError, match=r"v\.mp4 is not in a class folder; videos must lie in"):
        load_records(tmp_path, labels="yes")
    with pytest.raises(UserError, match="format=ssv2 needs a list file"):
        load_records(tmp_path, format="ssv2")


@pytest.mark.parametrize(
    "text",
    [
        "a.mp4::3\nb/c.mp4::0\n",
        "a.mp4;3\nb/c.mp4; 0\n",
        "a.mp4|3\nb/c.mp4|0\n",
        "a.mp4,3,\nb/c.mp4,0,\n",
        "a.mp4 3,\nb/c.mp4 0 ,,\n",
        "a.mp4;3;\nb/c.mp4;0\n",
        "a.mp4 3\rb/c.mp4 0\r",
        "a.mp4 3\r\nb/c.mp4 0\r",
        "a.mp4 3\nb/c.mp4 0\n".encode("utf-16"),
        "a.mp4,3\r\nb/c.mp4,0\r\n".encode("utf-32"),
    ],
)
def test_other_separators_encodings_and_line_ends(tmp_path: Path, text: str | bytes) -> None:
    assert _rows(load_records(_write(tmp_path, text))) == TWO


def test_paths_may_contain_separators(tmp_path: Path) -> None:
    path = _write(tmp_path, "a;1|2::3.mp4 3\n")
    assert _rows(load_records(path)) == [("a;1|2::3.mp4", 3)]
    assert _rows(load_records(_write(tmp_path, "a.mp4,\nb.mp4,\n"))) == [("a.mp4", None), ("b.mp4", None)]
    assert _rows(load_records(_write(tmp_path, "a.mp4:3\n"), labels="no")) == [("a.mp4:3", None)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "a.mp4:3\n",
            r"csv:1: the label of 'a.mp4:3' follows ':', .*use one of tab, comma, colons",
        ),
        ("a.mp4 10 20 3\n", "csv:1: 'a.mp4 10 20 3' looks like `path start end label`, a list of segments"),
        ("a.mp4 7 4 3\n", "csv:1: 'a.mp4 7 4 3' looks like a video with several labels"),
        ("a.mp4 1,4\n", "looks like a video with several labels; .*: keep one label per row"),
        ("a.mp4 1,4,7\n", "looks like a video with several labels"),
        ("a.mp4 0 3\nb.mp4 5 1\n", "csv:1: the count of frames of 'a.mp4 0 3' is below 1"),
        ("a.mp4 3\nb.mp4 -5\n", "csv:2: the label of 'b.mp4 -5' is negative"),
        ("a.mp4 3000000000\n", "csv:1: the label '3000000000' is not an integer of at most 9 digits"),
        ("a.mp4 " + "9" * 6000 + "\n", "csv:1: the label '9+...9+' is not an integer of at most 9 digits"),
        ("a.mp4 1e3\n", "csv:1: the label '1e3' is not an integer; a row is"),
        (",3\n", "csv:1: ',3' has no path"),
        (",,,\n,,\n", "has no path"),
        ('"a.mp4 3\n', "csv:1: the path of '\"a.mp4 3' starts with a double quote that is not closed"),
        (b"\x1f\x8b\x08", "is a gzip file, not a list; unpack it first"),
        ("a.mp4 3\n".encode("utf-16be"), "is probably UTF-16BE without a byte order mark"),
        ("a.mp4 3\nb\0.mp4 3\n", "csv:2: NUL byte"),
    ],
)
def test_lists_of_other_forms_are_refused(tmp_path: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_records(_write(tmp_path, text))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('"' + "x" * 200_000, ":3: field larger than field limit"),
        ("walk,b,inf,20", ":3: the times 'inf' and '20' are not both numbers"),
        ("walk,b,1e400,20", ":3: the times"),
        ("walk,b," + "9" * 6000 + ",20", ":3: the times"),
        ("walk,,10,20", ":3: the youtube_id is empty"),
    ],
)
def test_wrong_rows_of_kinetics_csv_are_refused(tmp_path: Path, row: str, words: str) -> None:
    (tmp_path / "a_000010_000020.mp4").touch()
    text = f"label,youtube_id,time_start,time_end\nwalk,a,10,20\n{row}\n"
    with pytest.raises(UserError, match=words):
        load_records(_write(tmp_path, text))


def test_kinetics_csv_with_semicolons_and_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "a_000010_000020.mp4").touch()
    text = '\n"label";youtube_id;time_start;time_end\r\n\r\nwalk;a;10.0;20\r\n;;;\r\n'
    assert _rows(load_records(_write(tmp_path, text))) == [("a_000010_000020.mp4", 0)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('[{"id": [1]}]', r"object 1 has the `id` \[1\]; an id is a number or a file name"),
        ('[{"id": null}]', "object 1 has the `id` None"),
        ('[{"id": "\\ud800"}]', "object 1 has the `id`"),
        ('[{"id": "1", "template": 5}]', "has the template 5, which is not text"),
        ("[" * 100_000, "nested more than 64 levels deep; use format=kinetics"),
        ('[{"id": ' + "9" * 6000 + "}]", "has more than 64 bits"),
        ('[{"id": 1, "id": 2}]', "the key 'id' is repeated"),
    ],
)
def test_json_lists_of_wrong_types(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "1.webm").touch()
    (tmp_path / "x-labels.json").write_text('{"A": "0"}')
    with pytest.raises(UserError, match=words):
        load_records(_write(tmp_path, content, "x-train.json"))


@pytest.mark.parametrize("label", ['"x"', "1.5", "true", "-1", "[0]", '"' + "9" * 6000 + '"'])
def test_labels_json_of_wrong_types(tmp_path: Path, label: str) -> None:
    (tmp_path / "1.webm").touch()
    (tmp_path / "x-labels.json").write_text(f'{{"A": {label}}}')
    with pytest.raises(UserError, match=r"x-labels.json: the label .* of 'A' is not a whole number"):
        load_records(_write(tmp_path, '[{"id": 1, "template": "A"}]', "x-train.json"))


def test_every_format_is_a_choice_of_the_keys() -> None:
    assert set(LIST_FORMATS) == {"auto", *formats.FORMATS}


def test_added_format_is_detected_read_and_cleaned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of docs/extending.md."""
    code, line, *_ = python_blocks("Add a list format")
    add_module(code, "videomaskfeat.data.formats.jsonl", monkeypatch)
    added = ast.literal_eval(f"{{{line}}}")
    monkeypatch.setattr(formats, "FORMATS", {**added, **formats.FORMATS})
    rows = ['{"video": "a.mp4", "label": 3}\n', '{"video": "b.mp4"}\n', '{"video": "c d.mp4", "label": 0}\n']
    path = _write(tmp_path, "".join(rows), "train.jsonl")
    records = load_records(path)
    assert _rows(records) == [("a.mp4", 3), ("b.mp4", None), ("c d.mp4", 0)]
    write_clean_list(str(path), str(tmp_path / "clean.jsonl"), records, [0, 2], format="jsonl")
    assert (tmp_path / "clean.jsonl").read_text() == rows[0] + rows[2]
    with pytest.raises(UserError, match=r"bad\.jsonl:2: has no `video`"):
        load_records(_write(tmp_path, rows[0] + '{"label": 1}\n', "bad.jsonl"))


def _touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


CAT_AND_DOG = ("dog/2.jpg", "dog/old/1.PNG", "cat/b.JPEG", "cat/a.webp")
LABELED = [("cat/a.webp", 0), ("cat/b.JPEG", 0), ("dog/2.jpg", 1), ("dog/old/1.PNG", 1)]


@pytest.mark.parametrize(("format", "stills"), [("images", False), ("auto", True)])
def test_classes_are_the_sorted_folders_below_the_root(tmp_path: Path, format: str, stills: bool) -> None:
    records = load_records(_touch(tmp_path, *CAT_AND_DOG), format=format, labels="yes", stills=stills)
    assert _rows(records) == LABELED
    assert records.class_names == ("cat", "dog")


def test_other_files_are_ignored_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _touch(tmp_path, *CAT_AND_DOG, "cat/notes.txt", "list.csv", "dog/.hidden.png", ".git/x.png", "cat/v.mp4")
    with caplog.at_level(logging.INFO):
        assert _rows(load_records(tmp_path, format="images", labels="yes")) == LABELED
    assert "3 files that are not pictures were ignored (list.csv, ...)" in caplog.text


def test_pictures_outside_class_folders_have_no_labels(tmp_path: Path) -> None:
    _touch(tmp_path, "a.jpg", "more/b.jpg")
    assert _rows(load_records(tmp_path, format="images")) == [("a.jpg", None), ("more/b.jpg", None)]
    assert load_records(tmp_path, format="images").class_names == ()
    with pytest.raises(UserError, match=r"a\.jpg is not in a class folder; .* or give a list"):
        load_records(tmp_path, format="images", labels="yes")


def test_labels_are_omitted_with_labels_no(tmp_path: Path) -> None:
    records = load_records(_touch(tmp_path, *CAT_AND_DOG), format="images", labels="no")
    assert records.labels is None
    assert len(records) == 4


def test_without_stills_a_folder_of_pictures_is_a_video(tmp_path: Path) -> None:
    _touch(tmp_path, *CAT_AND_DOG)
    assert _rows(load_records(tmp_path)) == [("cat", None), ("dog", None)]
    with pytest.raises(UserError, match=r"cat is not in a class folder; folders .* set format=images"):
        load_records(tmp_path, labels="yes")
    _touch(tmp_path, "v.mp4")
    with pytest.raises(UserError, match=r"contains videos .* and pictures .*format=folder or format=images"):
        load_records(tmp_path, stills=True)


@pytest.mark.parametrize(
    ("names", "format"),
    [
        (("walk/b.mp4", "run/1/x.avi", "run/a.webm"), "folder"),
        (("walk/b/1.jpg", "run/1/x/1.jpg", "run/a/1.jpg"), "frames"),
    ],
)
def test_labels_of_videos_are_their_class_folders(
    tmp_path: Path, names: tuple[str, ...], format: str
) -> None:
    records = load_records(_touch(tmp_path, *names), labels="yes")
    paths = sorted(name if format == "folder" else os.path.dirname(name) for name in names)
    assert _rows(records) == list(zip(paths, [0, 0, 1], strict=True))
    assert records.class_names == ("run", "walk")
    known = load_records(tmp_path, labels="yes", format=format, known_classes=("walk", "run", "jump"))
    assert [record.label for record in known] == [1, 1, 0]
    assert load_records(tmp_path).labels is None
    (tmp_path / "swim").mkdir()
    with pytest.raises(UserError, match=r"swim: class folder without .* \(1 of 3 are empty\)"):
        load_records(tmp_path, labels="yes")


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (("bird", "dog", "cat"), [2, 2, 1, 1]),  # by name
        (("dog dogs, hounds", "cat cats", "bird birds"), [1, 1, 0, 0]),  # by the first word
        (("Hauskatze", "Haushund"), [0, 0, 1, 1]),  # in order
    ],
)
def test_known_classes_number_the_folders(
    tmp_path: Path, known: tuple[str, ...], expected: list[int]
) -> None:
    records = load_records(_touch(tmp_path, *CAT_AND_DOG), format="images", labels="yes", known_classes=known)
    assert [record.label for record in records] == expected
    assert records.class_names == known


def test_use_of_folders_in_sorted_order_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        load_records(_touch(tmp_path, *CAT_AND_DOG), format="images", known_classes=("Katze", "Hund"))
    assert "used in sorted order: cat is 'Katze', ..., dog is 'Hund'" in caplog.text


@pytest.mark.parametrize(
    ("names", "known", "words"),
    [
        (("notes.txt",), (), r"contains no pictures \(\.bmp, .*\) among its 1 files; check the path"),
        (("cat/a.jpg",), (), "contains one class folder, cat, and a classifier needs at least two; give the"),
        (("cat/a.jpg", "dog/x.txt"), (), r"dog: class folder without pictures \(1 of 2 are empty\)"),
        (
            ("train/cat/a.jpg", "val/cat/a.jpg"),
            (),
            r"its folders (train, val|val, train) are splits, not classes; .* such as .*(train|val)",
        ),
        (
            ("cat/a.jpg", "dogs/x.jpg"),
            ("cat", "dog", "bird"),
            "the class folder 'dogs' is not among the 3 known classes; did you mean 'dog'",
        ),
        (("cat/a.jpg", "elk/x.jpg"), ("Katze",), "the class folder 'cat' is not among the 1 known classes"),
    ],
)
def test_folders_that_are_not_classes_are_refused(
    tmp_path: Path, names: tuple[str, ...], known: tuple[str, ...], words: str
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        load_records(_touch(tmp_path, *names), format="images", labels="yes", known_classes=known)
    assert "\n" not in str(caught.value)


def test_one_known_class_is_enough_to_score(tmp_path: Path) -> None:
    records = load_records(
        _touch(tmp_path, "cat/a.jpg", "new/x.txt"), format="images", known_classes=("dog", "cat")
    )
    assert _rows(records) == [("cat/a.jpg", 1)]


def test_images_need_a_folder_and_a_picture_is_not_a_list(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("a.jpg 0\n")
    with pytest.raises(UserError, match="format=images needs a folder"):
        load_records(tmp_path / "list.csv", format="images")
    for start in (b"\xff\xd8\xff\xe0....", b"\x89PNG\r\n\x1a\n....", b"RIFF....WEBP"):
        (tmp_path / "p.png").write_bytes(start)
        with pytest.raises(UserError, match=r"p\.png is a picture, not a list; give a list"):
            load_records(tmp_path / "p.png")


def test_ends_with_matches_str_endswith() -> None:
    rng = np.random.default_rng(0)
    ends = (".jpg", ".JPG", "jpg", ".JpEg", ".jpegs", ".png", ".mp4", "", "/", ".jp", "g")
    paths = ["a" * int(rng.integers(0, 4)) + str(rng.choice(ends)) or "b" for _ in range(3000)]
    paths[:4] = ["g", ".jpg", "x.JPEG", "jpg"]
    suffixes = (".jpg", ".jpeg", ".png")
    matches = Records.from_paths(paths, None, source="").ends_with(suffixes)
    assert matches.tolist() == [path.lower().endswith(suffixes) for path in paths]
    assert 900 < matches.sum() < 1500


def test_pictures_only_support_clips_of_one_frame() -> None:
    records = Records.from_paths(["a.mp4", "b.png", "frames/c"], None, source="train.csv")
    check_frames(records, 1)
    with pytest.raises(
        UserError,
        match=r"train\.csv: row 2 \(b\.png\) is a picture .*have 16 frames \(1 of 3 .*clip\.frames=1",
    ):
        check_frames(records, 16)
    check_frames(Records.from_paths(["a.mp4", "frames/c"], None, source=""), 16)
