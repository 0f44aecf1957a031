"""Every path is opened here, through one iopath PathManager."""

from __future__ import annotations

import errno
import os
import stat
from typing import IO, Any

from iopath.common.file_io import PathManager

from videomaskfeat.errors import UserError

_manager = PathManager()
_BAD_PATHS = (errno.ENOTDIR, errno.EACCES, errno.ENAMETOOLONG, errno.ELOOP)


def open_file(path: str | os.PathLike[str], mode: str = "r", **kwargs: Any) -> IO[Any]:
    """Open ``path`` (text as UTF-8) through the path manager.

    What cannot be written as UTF-8 (a file name of other bytes, say) is written as an escape such as
    ``\\udce9``, unless ``errors`` asks for another way.

    Raises:
        UserError: the file is to be read and does not exist, is a folder, or is not a regular file (a named
            pipe would block, a device has no end); or the path cannot be one.
    """
    text = os.fspath(path)
    if "b" not in mode:
        kwargs.setdefault("encoding", "utf-8")
        if "r" not in mode:
            kwargs.setdefault("errors", "backslashreplace")
    try:
        if "r" in mode:
            _check_regular(text)
        return _manager.open(text, mode, **kwargs)
    except FileNotFoundError as error:
        raise UserError(f"{text}: no such file; check the path, or the folder it is relative to") from error
    except IsADirectoryError as error:
        raise UserError(f"{text}: is a folder, and a file is needed here") from error
    except OSError as error:
        if "r" not in mode or error.errno not in _BAD_PATHS:
            raise
        shown = text if len(text) <= 200 else f"{text[:200]}..."
        raise UserError(f"{shown}: cannot be read ({error.strerror}); check the path") from error
    except UserError:
        raise
    except ValueError as error:  # a NUL character, or a surrogate that stands for no byte
        raise UserError(f"{text!r}: is no path ({error}); check it") from error


def _check_regular(path: str) -> None:
    """A local file that is to be read must be a regular one."""
    if "://" in path:
        return
    mode = os.stat(path).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return
    kinds = (
        (stat.S_ISFIFO, "named pipe"),
        (stat.S_ISSOCK, "socket"),
        (stat.S_ISCHR, "device"),
        (stat.S_ISBLK, "device"),
    )
    kind = next((words for test, words in kinds if test(mode)), "special file")
    raise UserError(f"{path}: is a {kind}, and a regular file is needed; copy its content into one")


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
