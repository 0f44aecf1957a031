"""All files are opened here, through one iopath PathManager."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from iopath.common.file_io import PathManager

from videomaskfeat.errors import RunFailed, UserError

_manager = PathManager()
_TEMPORARY = ".tmp"
_BAD_PATHS = (errno.ENOTDIR, errno.EACCES, errno.ENAMETOOLONG, errno.ELOOP)
_SPECIAL_FILES = {
    stat.S_IFIFO: "named pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}
_FOLDER_IN_PLACE_OF_FILE = "is a folder, and the output is a file; choose another path"


def open_file(path: str | os.PathLike[str], mode: str = "r", **kwargs: Any) -> IO[Any]:
    """Open ``path`` (text as UTF-8) through the path manager.

    Characters that cannot be written as UTF-8 (such as bytes of a file name) are written as escapes such as
    ``\\udce9``, unless ``errors`` is given.

    Raises:
        UserError: a file to read does not exist, is a folder, or is not a regular file (a named pipe blocks,
            a device has no end); or the path is not valid.
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
        raise UserError(f"{text} is a folder; give a file") from error
    except OSError as error:
        if "r" not in mode or error.errno not in _BAD_PATHS:
            raise
        shown = text if len(text) <= 200 else f"{text[:200]}..."
        raise UserError(f"{shown}: cannot be read ({error.strerror}); check the path") from error
    except UserError:
        raise
    except ValueError as error:  # a NUL character, or a surrogate that represents no byte
        raise UserError(f"{text!r} is not a valid path ({error}); check it") from error


def _check_regular(path: str) -> None:
    """Raise UserError if a local path is neither a regular file nor a folder."""
    if "://" in path:
        return
    kind = stat.S_IFMT(os.stat(path).st_mode)
    if kind not in (stat.S_IFREG, stat.S_IFDIR):
        name = _SPECIAL_FILES.get(kind, "special file")
        raise UserError(
            f"{path} is a {name}, but a regular file is needed; copy its content into a regular file"
        )


@contextmanager
def whole_file(path: str | os.PathLike[str], mode: str = "w", **kwargs: Any) -> Iterator[IO[Any]]:
    """Open a file to write it whole: readers of ``path`` see the old content or all of the new content.

    The content is written to a temporary file in the same folder, flushed to the disk, and renamed when the
    context ends without an error. A process that is killed leaves the old file and a temporary file
    (``.NAME.*.tmp``, see :func:`remove_temporary_files`), which readers ignore.

    Args:
        path: path of the file; a device or a pipe, such as /dev/stdout, is written directly.
        mode: "w" (text as UTF-8) or "wb".
        **kwargs: as for ``open``.

    Raises:
        RunFailed: writing fails, as on a full disk; the old file is unchanged.
        UserError: the folder does not exist, or the path is a folder.
    """
    with whole_path(path) as temporary, open_file(temporary, mode, **kwargs) as file:
        yield file


@contextmanager
def whole_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """:func:`whole_file` for a writer that needs a path: a temporary path, renamed to ``path`` at the end."""
    target = Path(os.path.realpath(path))  # of a symbolic link, which stays a link
    if target.is_dir():
        raise UserError(f"{os.fspath(path)}: {_FOLDER_IN_PLACE_OF_FILE}")
    if target.exists() and not target.is_file():
        yield target
        return
    owner = f"{os.getpid()}-{threading.get_ident()}"
    temporary = target.with_name(f".{target.name[:50]}.{owner}{_TEMPORARY}")
    renamed = False
    try:
        temporary.touch()  # with the permissions of the umask, or below those of the old file
        mode = (target if target.exists() else temporary).stat().st_mode
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(mode)
        os.replace(temporary, target)
        renamed = True
        flush_folder(target.parent)
    except OSError as error:
        if error.filename is not None and str(error.filename) != str(temporary):
            raise  # of another file, which the caller reads
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
    """The SHA-256 of a file's bytes, in hexadecimal; UserError if there is no such file."""
    digest = hashlib.sha256()
    with open_file(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def free_name(name: str, taken: Set[str]) -> str:
    """The name, with a number appended if it is taken: videos of two folders may have the same name."""
    numbered = (f"{name}_{number}" for number in range(2, len(taken) + 3))
    return next(free for free in (name, *numbered) if free not in taken)


def output_paths(out: str | os.PathLike[str], inputs: Iterable[str], ending: str = "") -> list[Path]:
    """``out/NAME`` with the ending for each input file, without its extension; equal names are numbered."""
    names: list[str] = []
    for path in inputs:
        names.append(free_name(f"{Path(path).stem}{ending}", set(names)))
    return [Path(out, name) for name in names]


def check_outputs(paths: Iterable[str | os.PathLike[str]], *, overwrite: bool) -> None:
    """Refuse to replace files of an earlier result; call it before the work.

    This is the rule of all commands that write results, see docs/reference/run_folder.md. Devices and pipes
    are no results.

    Raises:
        UserError: a file exists, and ``overwrite`` is not set.
    """
    existing = [] if overwrite else [os.fspath(path) for path in paths if is_file(path)]
    if existing:
        more = f" (and {len(existing) - 1} more)" if len(existing) > 1 else ""
        raise UserError(
            f"{existing[0]} exists{more}: it is the output of an earlier command; choose another output, or "
            "add --overwrite to replace it"
        )


def append_text(path: str | os.PathLike[str], text: str) -> None:
    """Append to a text file, which is created if it is missing; RunFailed if writing fails."""
    try:
        with open_file(path, "a") as file:
            file.write(text)
    except OSError as error:
        raise write_failed(path, error) from error


def write_failed(path: str | os.PathLike[str], error: OSError) -> RunFailed:
    """The error of a run that cannot write, with the remedy."""
    return RunFailed(
        f"{os.fspath(path)}: could not be written: {error.strerror or error}; check the free space and the"
        " folder, and start the same command again"
    )


def remove_temporary_files(folder: str | os.PathLike[str]) -> None:
    """Remove the files that killed writers left in a folder; no other process may write there meanwhile."""
    for leftover in Path(folder).glob(f".*{_TEMPORARY}"):
        leftover.unlink(missing_ok=True)


def flush_folder(folder: str | os.PathLike[str]) -> None:
    """Flush a folder to the disk, which makes a rename in it permanent."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def user_cache_folder() -> Path:
    """The user's folder for files that can be made again: in XDG_CACHE_HOME, or ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return Path(base if os.path.isabs(base) else os.path.expanduser("~/.cache"), "videomaskfeat")


def local_path(path: str | os.PathLike[str]) -> str:
    """The path of a local copy of ``path`` (``path`` itself if it is local)."""
    return _manager.get_local_path(os.fspath(path))


def ffmpeg_url(path: str | os.PathLike[str]) -> str:
    """A local path as a URL for FFmpeg, which reads ``a:`` at the start of a bare path as a protocol."""
    return f"file:{os.fspath(path)}"


def missing_cause(path: str | os.PathLike[str]) -> str:
    """The reason, in words, for which a path does not exist."""
    scheme, mark, _ = os.fspath(path).partition("://")
    if mark and scheme.replace("+", "").replace("-", "").replace(".", "").isalnum():
        return f"no handler for {scheme}://, only local files are read; copy it to a local folder"
    return "no such file"


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether a file or folder exists."""
    return bool(_manager.exists(os.fspath(path)))


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether a path, after symbolic links, is a regular file.

    It is not a pipe, socket or device, where reading may block forever or never end.
    """
    return bool(_manager.isfile(os.fspath(path)))


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a folder exists."""
    return bool(_manager.isdir(os.fspath(path)))


def list_folder(path: str | os.PathLike[str]) -> list[str]:
    """The sorted names in a folder, independent of the file system's order."""
    return sorted(_manager.ls(os.fspath(path)))


def make_folder(path: str | os.PathLike[str]) -> None:
    """Create a folder to write into, and those above it, unless it exists.

    Raises:
        UserError: a component of the path is a file, or there is no permission to write.
    """
    text = os.fspath(path)
    try:
        _manager.mkdirs(text)
    except NotADirectoryError as error:
        raise _no_folder(text) from error
    except PermissionError as error:
        raise _not_writable(text) from error
    if is_file(text):  # the path manager accepts a file as an existing folder
        raise _no_folder(text)
    if os.path.isdir(text) and not os.access(text, os.W_OK | os.X_OK):
        raise _not_writable(text)


def make_parent(path: str | os.PathLike[str]) -> None:
    """Create the folder of an output file; call it before the work.

    Raises:
        UserError: as :func:`make_folder`, or the path itself is a folder.
    """
    text = os.fspath(path)
    if is_folder(text):
        raise UserError(f"{text}: {_FOLDER_IN_PLACE_OF_FILE}")
    make_folder(os.path.dirname(text) or os.curdir)


def _no_folder(path: str) -> UserError:
    part = path
    while os.path.dirname(part) not in ("", part) and not is_file(part):
        part = os.path.dirname(part)
    return UserError(f"{path}: cannot be a folder, since {part} is a file; choose another path")


def _not_writable(path: str) -> UserError:
    return UserError(f"{path}: no permission to write there; choose another path, or change its permissions")
