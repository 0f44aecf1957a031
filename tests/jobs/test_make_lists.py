"""``make-lists``: the lists that it writes, and that other verbs read them."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from videomaskfeat.cli import CommandLine, main
from videomaskfeat.data.formats import load_records
from videomaskfeat.errors import UserError
from videomaskfeat.jobs.make_lists import make_lists


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two classes of 10 clips of 5 source videos each; the files are empty."""
    for name in ("hand_stand", "walk"):
        (tmp_path / "my videos" / name).mkdir(parents=True)
        for source in range(5):
            for clip in (1, 2):
                (tmp_path / "my videos" / name / f"day {source}_clip{clip}.mp4").touch()
    return tmp_path / "my videos"


def test_class_folders_become_three_lists(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda program: None)  # a machine without a GPU
    out = tmp_path / "my lists"
    lists = make_lists(str(folders), str(out), validation=0.2, test=0.2, check=False)
    records = {part: load_records(out / f"{part}.csv") for part in ("train", "val", "test")}
    assert (out / "classes.txt").read_text() == "hand stand\nwalk\n"
    assert {part: len(rows) for part, rows in records.items()} == {"train": 12, "val": 4, "test": 4}
    sources = {part: {r.path.rsplit("_", 1)[0] for r in rows} for part, rows in records.items()}
    assert not sources["train"] & sources["val"] | sources["train"] & sources["test"]
    for rows in records.values():
        for record in rows:
            assert Path(record.path).exists()
            assert record.label == int("walk" in record.path)
    first, second = (shlex.split(line) for line in lists.text().splitlines()[-2:])
    assert first[:3] == ["next", "videomaskfeat", "pretrain"]
    configs = [CommandLine(words[1]).read(words[2:]) for words in (first[1:], second)]
    for config in configs:
        assert (config.data.train, config.data.validation) == (f"{out}/train.csv", f"{out}/val.csv")
    pretraining, tuning = configs
    assert tuning.data.class_names == f"{out}/classes.txt"
    assert tuning.model.weights == f"{pretraining.run.folder}/weights.safetensors"
    assert pretraining.model.name == "maskfeat_mvitv2_nano"


def test_lists_are_not_replaced_in_silence(folders: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "lists")
    make_lists(str(folders), out, check=False)
    with pytest.raises(UserError, match="add --overwrite to replace"):
        make_lists(str(folders), out, check=False)
    make_lists(str(folders), out, check=False, test=0, overwrite=True)
    assert not (tmp_path / "lists/test.csv").exists()
    with pytest.raises(UserError, match="sum below 1"):
        make_lists(str(folders), out, validation=0.6, test=0.5)


def test_class_names_decide_the_labels(folders: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("walk\nrun\nhand stand\n")
    out = tmp_path / "lists"
    lists = make_lists(str(folders), str(out), check=False, class_names=str(names))
    assert {r.label for r in load_records(out / "train.csv")} == {0, 2}
    assert lists.class_names == ("walk", "run", "hand stand")
    names.write_text("walk\n")
    with pytest.raises(UserError, match="the class 'hand stand' is missing"):
        make_lists(str(folders), str(out), check=False, class_names=str(names), overwrite=True)


def test_check_leaves_out_unreadable_videos_and_copies(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = sorted((sample / "videos").glob("*.mp4"))[:6]
    for number, video in enumerate(videos):
        folder = tmp_path / "my" / ("left" if number % 2 else "right")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(video, folder)
    shutil.copy(videos[0], tmp_path / "my/left/copy.mp4")
    (tmp_path / "my/left/broken.mp4").write_bytes(b"no video")
    words = ["make-lists", tmp_path / "my", tmp_path / "lists", "--validation", "0.34", "--test", "0"]
    assert main([*map(str, words), "--workers", "1"]) == 0
    out = capsys.readouterr().out
    assert "left out  2 videos" in out
    assert "broken.mp4" in out
    train, val = (load_records(tmp_path / "lists" / f"{part}.csv") for part in ("train", "val"))
    assert (len(train), len(val)) == (4, 2)
    assert not (tmp_path / "lists/test.csv").exists()
    assert main(["check-data", str(tmp_path / "lists/train.csv"), "--workers", "1"]) == 0


def test_multi_label_table_becomes_a_multi_label_list(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"v{number}.mp4").touch()
    rows = ["v0,run;jump", "v1,", "v2,run", "v3,jump", "v4,run", "v5,jump"]
    (tmp_path / "labels.csv").write_text("\n".join(["name,labels", *rows]))
    out = tmp_path / "lists"
    make_lists(str(tmp_path / "labels.csv"), str(out), validation=0, test=0, check=False)
    records = load_records(out / "train.csv")
    assert records.is_multi_label
    assert [record.labels for record in records] == [(0, 1), (), (1,), (0,), (1,), (0,)]
    assert [record.label for record in records] == [None] * 6
    assert records.classes == 2


def test_parts_of_the_data_set_are_kept_and_validation_is_drawn_from_training(tmp_path: Path) -> None:
    names = [f"v_{name}_g{group:02d}_c01" for name in ("A", "B") for group in range(1, 9)]
    for name in names:
        path = tmp_path / "UCF-101" / name.split("_")[1] / f"{name}.avi"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    test = [name for name in names if "_g01_" in name]
    (tmp_path / "testlist01.txt").write_text("".join(f"{n.split('_')[1]}/{n}.avi\n" for n in test))
    train = [name for name in names if name not in test]
    (tmp_path / "trainlist01.txt").write_text("".join(f"{n.split('_')[1]}/{n}.avi 1\n" for n in train))
    for validation, counts in ((0.15, (12, 2, 2)), (0, (14, 0, 2))):
        out = tmp_path / f"lists{validation}"
        lists = make_lists(str(tmp_path), str(out), validation=validation, check=False)
        assert tuple(len(lists.subsets.get(part, ())) for part in ("train", "val", "test")) == counts
        assert {Path(r.path).stem for r in load_records(out / "test.csv")} == set(test)
