"""Output folders are created or refused with an error; files are written whole."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.engine.processes import exit_code
from videomaskfeat.errors import RunFailed, UserError
from videomaskfeat.io import make_folder, make_parent, remove_temporary_files, whole_file, whole_path


def test_parent_folders_are_created(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")  # one that exists is fine
    make_parent(tmp_path / "c" / "d" / "file.csv")
    assert (tmp_path / "a" / "b").is_dir()
    assert [path.name for path in (tmp_path / "c").rglob("*")] == ["d"]


def test_bare_file_name_is_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    with pytest.raises(UserError, match="is a folder, and the output is a file; choose another path"):
        make_parent(tmp_path)


def test_missing_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system calls are simulated, since root may write anywhere."""

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


def die_while_writing(path: Path) -> None:
    """SIGKILL arrives when half of the new content is on the disk."""
    with whole_file(path) as file:
        file.write("half of the new content")
        file.flush()
        os.fsync(file.fileno())
        os.kill(os.getpid(), 9)


def test_file_is_whole_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("old")
    assert exit_code(die_while_writing, path) == -9
    assert path.read_text() == "old"
    (leftover,) = set(os.listdir(tmp_path)) - {"config.yaml"}
    assert leftover.startswith(".config.yaml.")
    assert leftover.endswith(".tmp")
    remove_temporary_files(tmp_path)
    assert os.listdir(tmp_path) == ["config.yaml"]


def test_file_is_whole_after_an_error_and_on_a_full_disk(
    tmp_path: Path, full_disk: Callable[[int], AbstractContextManager[None]]
) -> None:
    path = tmp_path / "summary.json"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), whole_file(path) as file:
        file.write(str(1 / 0))
    words = f"{path}: could not be written: File too large; check the free space and the folder, and start"
    with full_disk(1000), pytest.raises(RunFailed, match=words), whole_file(path, "wb") as file:
        file.write(bytes(2000))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["summary.json"]


def test_file_is_renamed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    with whole_file(path) as file:
        file.write("first")
        assert not path.exists()
    assert path.read_text() == "first"
    with whole_path(path) as temporary:
        temporary.write_bytes(b"second")
        assert path.read_text() == "first"
    assert path.read_text() == "second"
    assert os.listdir(tmp_path) == ["summary.json"]


def test_content_is_on_the_disk_before_the_file_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power failure the file has the old content or all of the new content."""
    calls: list[str] = []
    flush, rename = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        flush(descriptor)

    def replace(source: Path, target: Path) -> None:
        calls.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    with whole_file(tmp_path / "config.yaml") as file:
        file.write("new")
    assert calls == ["file", "rename", "folder"]


def test_permissions_and_links_are_kept(tmp_path: Path) -> None:
    new, old, link = tmp_path / "new", tmp_path / "old", tmp_path / "link"
    old.write_text("")
    old.chmod(0o640)
    link.symlink_to(old)
    for path in (new, link):
        with whole_path(path) as temporary:
            temporary.unlink()
            temporary.touch(0o600)  # as safetensors makes its files
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(new.stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE(old.stat().st_mode) == 0o640
    assert link.is_symlink()


def test_device_is_written_directly(tmp_path: Path) -> None:
    with whole_file("/dev/null") as file:
        file.write("gone")
    assert not Path("/dev/null").is_file()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with whole_file(pipe) as file:
        file.write("through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    words = f"{tmp_path}/none/a.csv: the folder {tmp_path}/none does not exist; create it"
    with pytest.raises(UserError, match=words), whole_file(tmp_path / "none" / "a.csv"):
        pass
