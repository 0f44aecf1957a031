"""Folders of videos: what is found, what is left out, and links."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from videomaskfeat.data.folders import VIDEO_SUFFIXES, find_videos, walk_folders
from videomaskfeat.data.formats import load_records
from videomaskfeat.errors import UserError


def _touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_every_kind_of_video_is_found(tmp_path: Path) -> None:
    kinds = (".gif", ".mts", ".m2ts", ".vob", ".asf", ".f4v", ".divx", ".y4m", ".mxf", ".mp4", ".GIF", ".Mts")
    assert VIDEO_SUFFIXES.issuperset(kind.lower() for kind in kinds)
    _touch(tmp_path, *(f"{number:02d}{kind}" for number, kind in enumerate(kinds)))
    assert [os.path.splitext(path)[1] for path in find_videos(str(tmp_path)).videos] == list(kinds)


def test_skipped_files_are_counted_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _touch(tmp_path, "a.mp4", "b/notes.txt", "b/x.TXT", "c.zip", "README", ".hidden", ".git/x.mp4")
    with caplog.at_level(logging.INFO):
        assert len(load_records(tmp_path)) == 1
    assert caplog.messages == [f"{tmp_path}: 4 files skipped: 2 .txt, 1 .zip, 1 without an extension"]


def test_videos_beside_pictures_are_not_lost(tmp_path: Path) -> None:
    _touch(tmp_path, "a/1.mp4", "a/cover.jpg", "a/b/2.mp4")
    assert find_videos(str(tmp_path)).videos == ["a/1.mp4", "a/b/2.mp4"]
    with pytest.raises(UserError, match=r"contains videos .* and pictures"):
        load_records(tmp_path)
    assert len(load_records(tmp_path, format="folder")) == 2


def _with_loops(root: Path) -> None:
    _touch(root, *(f"{folder}/{number}.mp4" for folder in "ab" for number in range(5)))
    (root / "a" / "again").symlink_to(root, target_is_directory=True)
    (root / "b" / "up").symlink_to("..", target_is_directory=True)
    (root / "a" / "b").symlink_to("../b", target_is_directory=True)
    (root / "b" / "a").symlink_to("../a", target_is_directory=True)
    (root / "0_above").symlink_to(root.parent, target_is_directory=True)
    (root / "self").symlink_to("self")


def test_loops_of_links_give_each_video_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _with_loops(tmp_path / "videos")
    with caplog.at_level(logging.INFO):
        records = load_records(tmp_path / "videos")
    paths = [os.path.relpath(record.path, tmp_path / "videos") for record in records]
    assert paths == [f"{folder}/{number}.mp4" for folder in "ab" for number in range(5)]
    words = (
        "5 links not followed: they lead to parent folders or to folders that are already read (0_above, ...)"
    )
    assert words in caplog.text


def test_class_folders_of_pictures_are_walked_once(tmp_path: Path) -> None:
    _touch(tmp_path, "cat/1.jpg", "dog/2.jpg")
    (tmp_path / "dog" / "up").symlink_to("..", target_is_directory=True)
    records = load_records(tmp_path, format="images", labels="yes")
    assert [(os.path.relpath(one.path, tmp_path), one.label) for one in records] == [
        ("cat/1.jpg", 0),
        ("dog/2.jpg", 1),
    ]


def test_linked_folders_and_files_are_read_once_by_the_first_path(tmp_path: Path) -> None:
    _touch(tmp_path, "elsewhere/x/1.mp4", "root/own/2.mp4")
    for name in ("z", "m"):
        (tmp_path / "root" / name).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "root" / "a.mp4").symlink_to("own/2.mp4")  # the file is found, not the link
    (tmp_path / "root" / "gone.mp4").symlink_to("nowhere.mp4")  # an error when it is read
    assert find_videos(str(tmp_path / "root")).videos == ["gone.mp4", "m/x/1.mp4", "own/2.mp4"]
    (tmp_path / "link").symlink_to("root", target_is_directory=True)
    assert find_videos(str(tmp_path / "link")).videos == ["gone.mp4", "m/x/1.mp4", "own/2.mp4"]
    assert next(walk_folders(str(tmp_path / "root"))).path == ""
