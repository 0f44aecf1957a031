"""Class folders of pictures: what is found, how classes are numbered, and what is refused."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest

from videomaskfeat.data.formats import load_records
from videomaskfeat.data.records import Records, check_frames
from videomaskfeat.errors import UserError


def _touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def _rows(records: Records) -> list[tuple[str, int | None]]:
    return [(os.path.relpath(record.path, records.root), record.label) for record in records]


CAT_AND_DOG = ("dog/2.jpg", "dog/old/1.PNG", "cat/b.JPEG", "cat/a.webp")
LABELLED = [("cat/a.webp", 0), ("cat/b.JPEG", 0), ("dog/2.jpg", 1), ("dog/old/1.PNG", 1)]


@pytest.mark.parametrize(("format", "stills"), [("images", False), ("auto", True)])
def test_classes_are_the_sorted_folders_below_the_root(tmp_path: Path, format: str, stills: bool) -> None:
    records = load_records(_touch(tmp_path, *CAT_AND_DOG), format=format, labels="yes", stills=stills)
    assert _rows(records) == LABELLED
    assert records.class_names == ("cat", "dog")


def test_other_files_are_passed_over_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _touch(tmp_path, *CAT_AND_DOG, "cat/notes.txt", "list.csv", "dog/.hidden.png", ".git/x.png", "cat/v.mp4")
    with caplog.at_level(logging.INFO):
        assert _rows(load_records(tmp_path, format="images", labels="yes")) == LABELLED
    assert "3 files that are no pictures were passed over (list.csv, ...)" in caplog.text


def test_pictures_that_lie_loose_have_no_labels(tmp_path: Path) -> None:
    _touch(tmp_path, "a.jpg", "more/b.jpg")
    assert _rows(load_records(tmp_path, format="images")) == [("a.jpg", None), ("more/b.jpg", None)]
    assert load_records(tmp_path, format="images").class_names == ()
    with pytest.raises(UserError, match=r"a\.jpg: lies in no class folder; .* or give a list"):
        load_records(tmp_path, format="images", labels="yes")


def test_labels_are_left_out_where_nobody_wants_them(tmp_path: Path) -> None:
    records = load_records(_touch(tmp_path, *CAT_AND_DOG), format="images", labels="no")
    assert records.labels is None
    assert len(records) == 4


def test_without_stills_a_folder_of_pictures_is_a_video(tmp_path: Path) -> None:
    _touch(tmp_path, *CAT_AND_DOG)
    assert _rows(load_records(tmp_path)) == [("cat", None), ("dog", None)]
    with pytest.raises(UserError, match=r"a folder has no labels .* of pictures, take format=images"):
        load_records(tmp_path, labels="yes")
    _touch(tmp_path, "v.mp4")
    with pytest.raises(UserError, match=r"holds videos .* and pictures .*format=folder or format=images"):
        load_records(tmp_path, stills=True)


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


def test_folders_in_order_are_told_to_the_user(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        load_records(_touch(tmp_path, *CAT_AND_DOG), format="images", known_classes=("Katze", "Hund"))
    assert "taken in their order: cat is 'Katze', ..., dog is 'Hund'" in caplog.text


@pytest.mark.parametrize(
    ("names", "known", "words"),
    [
        (("notes.txt",), (), r"holds no pictures \(\.bmp, .*\) among its 1 files; check the path"),
        (("cat/a.jpg",), (), "holds one class folder, cat, and a classifier needs two at least; give the"),
        (("cat/a.jpg", "dog/x.txt"), (), r"dog: a class folder without a picture \(1 of 2 are empty\)"),
        (
            ("train/cat/a.jpg", "val/cat/a.jpg"),
            (),
            r"its folders are .*(train, val|val, train), which are splits .* such as .*(train|val)",
        ),
        (
            ("cat/a.jpg", "dogs/x.jpg"),
            ("cat", "dog", "bird"),
            "the class folder 'dogs' is not among the 3 classes that are known; did you mean 'dog'",
        ),
        (("cat/a.jpg", "elk/x.jpg"), ("Katze",), "the class folder 'cat' is not among the 1 classes"),
    ],
)
def test_folders_that_are_no_classes_are_refused(
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


def test_images_need_a_folder_and_a_picture_is_no_list(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("a.jpg 0\n")
    with pytest.raises(UserError, match="format=images needs a folder"):
        load_records(tmp_path / "list.csv", format="images")
    for start in (b"\xff\xd8\xff\xe0....", b"\x89PNG\r\n\x1a\n....", b"RIFF....WEBP"):
        (tmp_path / "p.png").write_bytes(start)
        with pytest.raises(UserError, match=r"p\.png: is a picture, not a list; give a list"):
            load_records(tmp_path / "p.png")


def test_ends_with_equals_a_plain_test_of_every_path() -> None:
    rng = np.random.default_rng(0)
    ends = (".jpg", ".JPG", "jpg", ".JpEg", ".jpegs", ".png", ".mp4", "", "/", ".jp", "g")
    paths = ["a" * int(rng.integers(0, 4)) + str(rng.choice(ends)) or "b" for _ in range(3000)]
    paths[:4] = ["g", ".jpg", "x.JPEG", "jpg"]
    suffixes = (".jpg", ".jpeg", ".png")
    found = Records.from_paths(paths, None, source="").ends_with(suffixes)
    assert found.tolist() == [path.lower().endswith(suffixes) for path in paths]
    assert 900 < found.sum() < 1500


def test_pictures_make_clips_of_one_frame_only() -> None:
    records = Records.from_paths(["a.mp4", "b.png", "frames/c"], None, source="train.csv")
    check_frames(records, 1)
    with pytest.raises(
        UserError,
        match=r"train\.csv: row 2 \(b\.png\) is a picture, .*have 16 \(1 of 3 .*clip\.frames=1",
    ):
        check_frames(records, 16)
    check_frames(Records.from_paths(["a.mp4", "frames/c"], None, source=""), 16)
