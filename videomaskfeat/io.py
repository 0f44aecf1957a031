"""Every path is opened here, through one iopath PathManager."""

from __future__ import annotations

import os
import stat
from typing import IO, Any

from iopath.common.file_io import PathManager

from videomaskfeat.errors import UserError

_manager = PathManager()


def open_file(path: str | os.PathLike[str], mode: str = "r", **kwargs: Any) -> IO[Any]:
    """Open ``path`` (text as UTF-8) through the path manager.

    Raises:
        UserError: the file is to be read and does not exist, or is a folder.
    """
    text = os.fspath(path)
    if "b" not in mode:
        kwargs.setdefault("encoding", "utf-8")
    try:
        return _manager.open(text, mode, **kwargs)
    except FileNotFoundError as error:
        raise UserError(f"{text}: no such file; check the path, or the folder it is relative to") from error
    except IsADirectoryError as error:
        raise UserError(f"{text}: is a folder, and a file is needed here") from error


def local_path(path: str | os.PathLike[str]) -> str:
    """The path of a local file that holds what ``path`` names (itself where it is local)."""
    return _manager.get_local_path(os.fspath(path))


def ffmpeg_url(path: str | os.PathLike[str]) -> str:
    """How FFmpeg must be given a local path: in a bare one it takes what precedes a colon for a protocol."""
    return f"file:{os.fspath(path)}"


def missing_cause(path: str | os.PathLike[str]) -> str:
    """Why a path that does not exist does not, in words."""
    scheme, mark, _ = os.fspath(path).partition("://")
    if mark and scheme.replace("+", "").replace("-", "").replace(".", "").isalnum():
        return f"no handler for {scheme}://, only local files are read; copy it to a local folder"
    return "no such file"


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether a file or folder is there."""
    return bool(_manager.exists(os.fspath(path)))


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file (not a folder) is there."""
    return bool(_manager.isfile(os.fspath(path)))


def is_regular_file(path: str | os.PathLike[str]) -> bool:
    """Whether a local path is a regular file, symbolic links followed.

    Not a folder, pipe, socket or device: reading one of the last three may block forever, or never end.
    """
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):  # ValueError: a null character in the name
        return False


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is there."""
    return bool(_manager.isdir(os.fspath(path)))


def list_folder(path: str | os.PathLike[str]) -> list[str]:
    """The names in a folder, sorted, so that no result depends on the file system's order."""
    return sorted(_manager.ls(os.fspath(path)))


def make_folder(path: str | os.PathLike[str]) -> None:
    """Create a folder to write into, and those above it; one that exists is fine.

    Raises:
        UserError: a part of the path is a file, or nothing may be written there.
    """
    text = os.fspath(path)
    try:
        _manager.mkdirs(text)
    except NotADirectoryError as error:
        raise _no_folder(text) from error
    except PermissionError as error:
        raise _not_writable(text) from error
    if is_file(text):  # the path manager takes whatever exists for a folder
        raise _no_folder(text)
    if os.path.isdir(text) and not os.access(text, os.W_OK | os.X_OK):
        raise _not_writable(text)


def make_parent(path: str | os.PathLike[str]) -> None:
    """Create the folder of a file that is to be written; called before the work, not after it.

    Raises:
        UserError: as :func:`make_folder`, or the path itself is a folder.
    """
    text = os.fspath(path)
    if is_folder(text):
        raise UserError(f"{text}: is a folder, and a file is to be written; choose another path")
    make_folder(os.path.dirname(text) or os.curdir)


def _no_folder(path: str) -> UserError:
    part = path
    while os.path.dirname(part) not in ("", part) and not is_file(part):
        part = os.path.dirname(part)
    return UserError(f"{path}: cannot be a folder, since {part} is a file; choose another path")


def _not_writable(path: str) -> UserError:
    return UserError(f"{path}: no permission to write there; choose another path, or change its permissions")
