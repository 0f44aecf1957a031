"""Every path is opened here, through one iopath PathManager."""

from __future__ import annotations

import os
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


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether a file or folder is there."""
    return bool(_manager.exists(os.fspath(path)))


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file (not a folder) is there."""
    return bool(_manager.isfile(os.fspath(path)))


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is there."""
    return bool(_manager.isdir(os.fspath(path)))


def list_folder(path: str | os.PathLike[str]) -> list[str]:
    """The names in a folder, sorted, so that no result depends on the file system's order."""
    return sorted(_manager.ls(os.fspath(path)))


def make_folder(path: str | os.PathLike[str]) -> None:
    """Create a folder and those above it; one that exists is fine."""
    _manager.mkdirs(os.fspath(path))
