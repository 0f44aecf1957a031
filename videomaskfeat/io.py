"""Every path is opened here, through one iopath PathManager."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from iopath.common.file_io import PathManager

from videomaskfeat.errors import RunFailed, UserError

_manager = PathManager()
_TEMPORARY = ".tmp"
_BAD_PATHS = (errno.ENOTDIR, errno.EACCES, errno.ENAMETOOLONG, errno.ELOOP)


def open_file(path: str | os.PathLike[str], mode: str = "r", **kwargs: Any) -> IO[Any]:
    """Open ``path`` (text as UTF-8) through the path manager.

    What cannot be written as UTF-8 (such as a file name of other bytes) is written as an escape such as
    ``\\udce9``, unless ``errors`` selects another way.

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
        raise UserError(f"{text!r}: is not a valid path ({error}); check it") from error


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


@contextmanager
def whole_file(path: str | os.PathLike[str], mode: str = "w", **kwargs: Any) -> Iterator[IO[Any]]:
    """Open a file to write it whole: readers of ``path`` see the old content or all of the new.

    The content goes to a temporary file in the same folder, is flushed to the disk, and takes the name when
    the context ends without an error. A process that is killed leaves the old file, and a temporary one
    (``.NAME.*.tmp``, see :func:`remove_temporary_files`) that no reader looks at.

    Args:
        path: of the file; a device or a pipe, such as /dev/stdout, is written directly.
        mode: "w" (text as UTF-8) or "wb".
        **kwargs: as for ``open``.

    Raises:
        RunFailed: the system refuses to write, as on a full disk; the old file is untouched.
        UserError: the folder does not exist, or the path is a folder.
    """
    with whole_path(path) as temporary, open_file(temporary, mode, **kwargs) as file:
        yield file


@contextmanager
def whole_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path, for a writer that takes a path, whose file takes the name of ``path`` at the end.

    Raises:
        RunFailed: as :func:`whole_file`.
        UserError: as :func:`whole_file`.
    """
    target = Path(os.path.realpath(path))  # behind a symbolic link, which stays one
    if target.is_dir():
        raise UserError(f"{os.fspath(path)}: is a folder, and a file is to be written; choose another path")
    if target.exists() and not target.is_file():
        yield target
        return
    owner = f"{os.getpid()}-{threading.get_ident()}"
    temporary = target.with_name(f".{target.name[:50]}.{owner}{_TEMPORARY}")
    renamed = False
    try:
        temporary.touch()  # with the permissions of the umask, unless there is an old file that has others
        mode = (target if target.exists() else temporary).stat().st_mode
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(mode)
        os.replace(temporary, target)
        renamed = True
        flush_folder(target.parent)
    except OSError as error:
        if error.filename is not None and str(error.filename) != str(
            temporary
        ):  # of another file, which the caller reads
            raise
        if not target.parent.is_dir():
            raise UserError(
                f"{os.fspath(path)}: the folder {target.parent} does not exist; create it, or choose another"
                " path"
            ) from error
        raise write_failed(path, error) from error
    finally:
        if not renamed:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def file_sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        UserError: no such file.
    """
    digest = hashlib.sha256()
    with open_file(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def free_name(name: str, taken: Set[str]) -> str:
    """A name that no earlier video of this call took: videos of two folders may share theirs."""
    numbered = (f"{name}_{number}" for number in range(2, len(taken) + 3))
    return next(free for free in (name, *numbered) if free not in taken)


def append_text(path: str | os.PathLike[str], text: str) -> None:
    """Append to a text file, which is created if it is missing.

    Raises:
        RunFailed: the system refuses to write.
        UserError: as :func:`open_file`.
    """
    try:
        with open_file(path, "a") as file:
            file.write(text)
    except OSError as error:
        raise write_failed(path, error) from error


def write_failed(path: str | os.PathLike[str], error: OSError) -> RunFailed:
    """The error of a run that can write no more, with the remedy."""
    return RunFailed(
        f"{os.fspath(path)}: could not be written: {error.strerror or error}; check the free space and the"
        " folder, and start the same command again"
    )


def remove_temporary_files(folder: str | os.PathLike[str]) -> None:
    """Remove what killed writers left in a folder; no other process may write there meanwhile."""
    for leftover in Path(folder).glob(f".*{_TEMPORARY}"):
        leftover.unlink(missing_ok=True)


def flush_folder(folder: str | os.PathLike[str]) -> None:
    """Flush a folder to the disk, which makes a rename in it permanent."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def local_path(path: str | os.PathLike[str]) -> str:
    """The path of a local file that holds what ``path`` names (``path`` itself if it is local)."""
    return _manager.get_local_path(os.fspath(path))


def ffmpeg_url(path: str | os.PathLike[str]) -> str:
    """A local path as a URL for FFmpeg, which takes what precedes a colon in a bare path for a protocol."""
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
    """Whether a path is a regular file, symbolic links followed.

    Not a folder, pipe, socket or device: reading one of the last three may block forever, or never end.
    """
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
