"""Search of folders for videos and for folders of pictures."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from videomaskfeat.data.reader import PICTURE_SUFFIXES
from videomaskfeat.errors import UserError, counted
from videomaskfeat.io import local_path

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset((
    ".264", ".265", ".3g2", ".3gp", ".amv", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gif",
    ".h264", ".h265", ".hevc", ".ivf", ".m1v", ".m2t", ".m2ts", ".m2v", ".m4v", ".mkv", ".mov", ".mp4",
    ".mpe", ".mpeg", ".mpg", ".mpv", ".mts", ".mxf", ".nut", ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".tp",
    ".trp", ".ts", ".vob", ".webm", ".wmv", ".wtv", ".xvid", ".y4m",
))  # fmt: skip


@dataclass(frozen=True)
class FoundVideos:
    """Video files, folders of pictures and other files below a folder: sorted paths relative to it.

    Hidden files and folders (a leading dot) are skipped.
    """

    videos: list[str]
    frames: list[str]
    skipped: list[str]


@dataclass(frozen=True)
class Folder:
    """A folder below a root: its relative path, and the sorted names in it, without hidden ones."""

    path: str
    files: list[str]
    folders: list[str]


def find_videos(root: str) -> FoundVideos:
    """Find videos and folders of pictures below a folder, at any depth.

    The folders below a folder with pictures and without videos are not searched. Links to a file that is
    found without them, or by an earlier link, are skipped.

    Raises:
        UserError: a folder cannot be listed.
    """
    videos, frames, skipped = list[str](), list[str](), list[str]()
    for folder in walk_folders(root):
        own, pictures = list[str](), False
        for name in folder.files:
            suffix = os.path.splitext(name)[1].lower()
            if suffix in PICTURE_SUFFIXES:
                pictures = True
            else:
                (own if suffix in VIDEO_SUFFIXES else skipped).append(os.path.join(folder.path, name))
        videos += own
        if pictures:
            frames.append(folder.path or ".")
            if not own:
                folder.folders.clear()
    videos, repeated = _remove_repeats(root, sorted(videos))
    if repeated:
        links = counted(len(repeated), "link")
        logger.info(
            "%s: %s skipped: they lead to videos that are already listed (%s, ...)", root, links, repeated[0]
        )
    return FoundVideos(videos, sorted(frames), sorted(skipped))


def log_skipped(root: str, paths: Sequence[str]) -> None:
    """Log in one line how many files are skipped, by extension."""
    if not paths:
        return
    kinds = Counter(os.path.splitext(path)[1].lower() or "without an extension" for path in paths)
    ordered = sorted(kinds.items(), key=lambda pair: (-pair[1], pair[0]))
    shown = ", ".join(f"{count} {kind}" for kind, count in ordered)
    logger.info("%s: %s skipped: %s", root, counted(len(paths), "file"), shown)


def walk_folders(root: str) -> Iterator[Folder]:
    """The folders below a folder, starting with itself, each real folder once whatever links lead to it.

    Links are followed after the real folders, in the order of their paths, so that no result depends on the
    file system's order. Links to a folder that was visited, or to a parent of the root, are not followed; one
    line of the log reports them. Names removed from a folder's ``folders`` are not visited.

    Raises:
        UserError: a folder cannot be listed.
    """
    local = local_path(root)
    real = os.path.realpath(local)
    visited = set[tuple[int, int]]()
    while real != os.path.dirname(real):
        real = os.path.dirname(real)
        visited.add(_identity(real))
    dropped: list[str] = []
    pending, links = [""], list[str]()
    while pending or links:
        path = pending.pop() if pending else heappop(links)
        identity = _identity(os.path.join(local, path))
        if identity in visited:
            dropped.append(path)
            continue
        visited.add(identity)
        folder, linked = _list_folder(local, path)
        yield folder
        for name in folder.folders:
            own = os.path.join(path, name)
            if name in linked:
                heappush(links, own)
            else:
                pending.append(own)
    if dropped:
        logger.info(
            "%s: %s not followed: they lead to parent folders or to folders that are already read (%s, ...)",
            root,
            counted(len(dropped), "link"),
            min(dropped),
        )


def _list_folder(root: str, path: str) -> tuple[Folder, set[str]]:
    """A folder, and the names of its folders that are links."""
    folder, linked = Folder(path, [], []), set[str]()
    try:
        with os.scandir(os.path.join(root, path)) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.startswith("."):
                    continue
                if not _is_folder(entry):
                    folder.files.append(entry.name)
                    continue
                folder.folders.append(entry.name)
                if entry.is_symlink():
                    linked.add(entry.name)
    except OSError as error:
        where = os.path.join(root, path)
        raise UserError(f"{where}: cannot be listed ({error.strerror}); check its permissions") from error
    return folder, linked


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _identity(path: str) -> tuple[int, int]:
    """Device and inode of a folder."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    return status.st_dev, status.st_ino


def _remove_repeats(root: str, videos: list[str]) -> tuple[list[str], list[str]]:
    """Sorted paths without links to the files of other paths; and those links."""
    local = {path: os.path.join(local_path(root), path) for path in videos}
    links = [path for path in videos if os.path.islink(local[path])]
    repeated = list[str]()
    if links:
        targets = {os.path.realpath(local[path]) for path in set(videos).difference(links)}
        for path in links:
            target = os.path.realpath(local[path])
            if target in targets:
                repeated.append(path)
            targets.add(target)
    return sorted(set(videos).difference(repeated)), repeated
