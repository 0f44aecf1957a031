"""Places to write: made with all the folders above them, or refused in words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from videomaskfeat.errors import UserError
from videomaskfeat.io import make_folder, make_parent


def test_folders_above_are_made(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")  # one that exists is fine
    make_parent(tmp_path / "c" / "d" / "file.csv")
    assert (tmp_path / "a" / "b").is_dir()
    assert [path.name for path in (tmp_path / "c").rglob("*")] == ["d"]


def test_file_name_alone_is_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_parent("file.csv")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["file", "file/x", "file/x/y"])
def test_file_in_the_way_is_named(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("kept")
    path = tmp_path / below
    with pytest.raises(UserError) as caught:
        make_folder(path)
    assert str(caught.value) == (
        f"{path}: cannot be a folder, since {tmp_path / 'file'} is a file; choose another path"
    )
    with pytest.raises(UserError, match="file is a file; choose another path"):
        make_parent(path / "s.csv")
    assert (tmp_path / "file").read_text() == "kept"


def test_folder_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder, and a file is to be written; choose another path"):
        make_parent(tmp_path)


def test_no_permission_is_said_whoever_runs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's answers are played, since an administrator may write anywhere."""

    def refuse(name: str, mode: int = 0o777) -> None:
        raise PermissionError(13, "Permission denied", name)

    words = "no permission to write there; choose another path, or change its permissions"
    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", refuse)
        with pytest.raises(UserError, match=words):
            make_folder(tmp_path / "new")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match=words):
        make_folder(tmp_path)
