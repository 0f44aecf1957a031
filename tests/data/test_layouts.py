"""Annotations of data sets as downloaded: the parts, classes and files that they name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from videomaskfeat.data.layouts import DataSet, read_data_set, source_video
from videomaskfeat.errors import UserError


def _touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def _rows(data: DataSet, root: Path) -> dict[str, tuple[tuple[str, ...], str]]:
    return {str(Path(v.path).relative_to(root)): (v.classes, v.split) for v in data.videos}


def test_class_folders_may_be_in_folders_of_parts(tmp_path: Path) -> None:
    _touch(tmp_path, "train/riding_a_bike/a.mp4", "val/swimming/deep/b.mp4", "Testing/swimming/c.mp4")
    data = read_data_set(str(tmp_path))
    assert _rows(data, tmp_path) == {
        "train/riding_a_bike/a.mp4": (("riding a bike",), "train"),
        "val/swimming/deep/b.mp4": (("swimming",), "val"),
        "Testing/swimming/c.mp4": (("swimming",), "test"),
    }
    _touch(tmp_path, "train/loose.mp4")
    with pytest.raises(UserError, match=r"loose\.mp4 is not in a class folder"):
        read_data_set(str(tmp_path))


def test_kinetics_csv_files_name_parts_and_missing_videos_are_counted(tmp_path: Path) -> None:
    _touch(tmp_path, "train/riding_a_bike/aaaaaaaaaaa_000001_000011.mp4", "val/bbbbbbbbbbb_000002_000012.mp4")
    header = "label,youtube_id,time_start,time_end,split\n"
    (tmp_path / "train.csv").write_text(
        f"{header}riding a bike,aaaaaaaaaaa,1,11,train\nabseiling,gone,1,11,train\n"
    )
    (tmp_path / "kinetics_val.csv").write_text(
        "label,youtube_id,time_start,time_end\nabseiling,bbbbbbbbbbb,2,12\n"
    )
    (tmp_path / "test.csv").write_text("youtube_id,time_start,time_end,split\nccc,2,12,test\n")
    data = read_data_set(str(tmp_path))
    assert (data.kind, data.missing) == ("Kinetics", 1)
    assert sorted(_rows(data, tmp_path).values()) == [(("abseiling",), "val"), (("riding a bike",), "train")]


def test_ucf101_has_three_published_splits(tmp_path: Path) -> None:
    _touch(tmp_path, "UCF-101/Archery/v_Archery_g01_c01.avi", "UCF-101/Archery/v_Archery_g08_c02.avi")
    lists = tmp_path / "ucfTrainTestlist"
    _touch(tmp_path, "ucfTrainTestlist/classInd.txt")
    (lists / "trainlist01.txt").write_text("Archery/v_Archery_g08_c02.avi 1\n")
    (lists / "testlist01.txt").write_text("Archery/v_Archery_g01_c01.avi\n")
    assert _rows(read_data_set(str(tmp_path)), tmp_path) == {
        "UCF-101/Archery/v_Archery_g08_c02.avi": (("Archery",), "train"),
        "UCF-101/Archery/v_Archery_g01_c01.avi": (("Archery",), "test"),
    }
    with pytest.raises(UserError, match=r"trainlist02\.txt is missing; set fold"):
        read_data_set(str(tmp_path), fold=2)


def test_hmdb51_marks_unused_videos_with_zero(tmp_path: Path) -> None:
    _touch(tmp_path, "brush_hair/a.avi", "brush_hair/b.avi", "brush_hair/c.avi")
    (tmp_path / "brush_hair_test_split1.txt").write_text("a.avi 1 \nb.avi 2 \nc.avi 0 \n")
    assert _rows(read_data_set(str(tmp_path)), tmp_path) == {
        "brush_hair/a.avi": (("brush hair",), "train"),
        "brush_hair/b.avi": (("brush hair",), "test"),
    }


def test_diving48_labels_have_names_of_the_vocabulary(tmp_path: Path) -> None:
    _touch(tmp_path, "rgb/aaaaaaaaaaa_00001.mp4", "rgb/aaaaaaaaaaa_00002.mp4")
    (tmp_path / "Diving48_vocab.json").write_text(json.dumps([["Back", "15som"], ["Forward", "Dive"]]))
    for part, clip, label in (("train", 1, 1), ("test", 2, 0)):
        row = {"vid_name": f"aaaaaaaaaaa_{clip:05d}", "label": label, "start_frame": 0, "end_frame": 9}
        (tmp_path / f"Diving48_V2_{part}.json").write_text(json.dumps([row]))
    data = read_data_set(str(tmp_path))
    assert data.class_names == ("Back 15som", "Forward Dive")
    assert _rows(data, tmp_path) == {
        "rgb/aaaaaaaaaaa_00001.mp4": (("Forward Dive",), "train"),
        "rgb/aaaaaaaaaaa_00002.mp4": (("Back 15som",), "test"),
    }


def test_ssv2_labels_are_those_of_the_labels_json(tmp_path: Path) -> None:
    _touch(tmp_path, "20bn/1.webm", "20bn/2.webm")
    names = {"Tearing something": "1", "Holding something": "0"}
    (tmp_path / "labels.json").write_text(json.dumps(names))
    (tmp_path / "train.json").write_text(json.dumps([{"id": "1", "template": "Tearing [something]"}]))
    (tmp_path / "validation.json").write_text(json.dumps([{"id": "2", "template": "Holding [something]"}]))
    data = read_data_set(str(tmp_path))
    assert data.class_names == ("Holding something", "Tearing something")
    assert _rows(data, tmp_path) == {
        "20bn/1.webm": (("Tearing something",), "train"),
        "20bn/2.webm": (("Holding something",), "val"),
    }


def test_charades_videos_have_any_number_of_classes(tmp_path: Path) -> None:
    _touch(tmp_path, "Charades_v1_480/AAAA1.mp4", "Charades_v1_480/BBBB2.mp4")
    (tmp_path / "Charades_v1_classes.txt").write_text("c000 Holding clothes\nc001 Washing clothes\n")
    header = "id,subject,script,actions,length\n"
    (tmp_path / "Charades_v1_train.csv").write_text(
        f'{header}AAAA1,S1,"A person, here",c001 0.0 2.5;c000 1.0 2.0;c001 5.0 6.0,30.0\n'
    )
    (tmp_path / "Charades_v1_test.csv").write_text(f"{header}BBBB2,S2,x,,30.0\n")
    data = read_data_set(str(tmp_path))
    assert data.multi_label
    assert data.class_names == ("Holding clothes", "Washing clothes")
    assert _rows(data, tmp_path) == {
        "Charades_v1_480/AAAA1.mp4": (("Washing clothes", "Holding clothes"), "train"),
        "Charades_v1_480/BBBB2.mp4": ((), "test"),
    }


def test_table_of_names_and_labels(tmp_path: Path) -> None:
    _touch(tmp_path, "videos/my clip.mp4", "videos/other.mp4")
    table = tmp_path / "labels.csv"
    table.write_text("my clip,jump\nother.mp4,run\n")
    assert _rows(read_data_set(str(table)), tmp_path) == {
        "videos/my clip.mp4": (("jump",), ""),
        "videos/other.mp4": (("run",), ""),
    }
    table.write_text("video;labels;split\nvideos/my clip.mp4;jump|run;train\nother;;val\n")
    data = read_data_set(str(table), videos=str(tmp_path))
    assert data.multi_label
    assert _rows(data, tmp_path) == {
        "videos/my clip.mp4": (("jump", "run"), "train"),
        "videos/other.mp4": ((), "val"),
    }
    table.write_text("clip.mp4\n")
    with pytest.raises(UserError, match=r"labels\.csv:1: 'clip.mp4' has no label"):
        read_data_set(str(table))
    table.write_text("gone.mp4,jump\n")
    with pytest.raises(UserError, match="none of the 1 annotated videos is in this folder"):
        read_data_set(str(table))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("a/v_Archery_g01_c02.avi", "v_Archery_g01"),
        ("a/0347ZoDXyP0_000095_000105.mp4", "0347ZoDXyP0"),
        ("a/April_09_brush_hair_u_nm_np1_ba_goo_2.avi", "April_09_brush_hair"),
        ("a/-mwTJj7jtMM_00012.mp4", "-mwTJj7jtMM"),
        ("a/party-clip3.mov", "party"),
        ("a/IMG_1234.mp4", "a/IMG_1234.mp4"),
    ],
)
def test_clips_of_one_video_have_the_same_source(name: str, source: str) -> None:
    assert source_video(name) == source
    assert source_video(name, "none") == name


def test_source_pattern_needs_a_group() -> None:
    assert source_video("a/tom_take2.mp4", "(.+)_take") == "tom"
    for wrong in ("(", "tom"):
        with pytest.raises(UserError, match="regular expression with a group"):
            source_video("a/tom_take2.mp4", wrong)
