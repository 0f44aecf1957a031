"""Looking through folders for videos and for folders of pictures."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from videomaskfeat.data.frames import PICTURE_SUFFIXES
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
    """What lies below a folder, sorted and relative to it: video files, folders of pictures, and other files.

    Hidden files and folders (a leading dot) are left out.
    """

    videos: list[str]
    frames: list[str]
    left_out: list[str]


@dataclass(frozen=True)
class Folder:
    """A folder that was looked into: its path from the root, and sorted names without hidden ones."""

    path: str
    files: list[str]
    folders: list[str]


def find_videos(root: str) -> FoundVideos:
    """Look for videos and folders of pictures below a folder, at any depth.

    A folder with pictures and without a video is taken whole: what lies below it is not looked at. Of links
    to a file that is found without them, or by an earlier link, none is taken.

    Raises:
        UserError: a folder cannot be listed.
    """
    videos, frames, left_out = list[str](), list[str](), list[str]()
    for folder in walk_folders(root):
        own, pictures = list[str](), False
        for name in folder.files:
            suffix = os.path.splitext(name)[1].lower()
            if suffix in PICTURE_SUFFIXES:
                pictures = True
            else:
                (own if suffix in VIDEO_SUFFIXES else left_out).append(os.path.join(folder.path, name))
        videos += own
        if pictures:
            frames.append(folder.path or ".")
            if not own:
                folder.folders.clear()
    videos, repeated = _without_repeats(root, sorted(videos))
    if repeated:
        words = counted(len(repeated), "link")
        logger.info("%s: %s left out, to videos found already (%s, ...)", root, words, repeated[0])
    return FoundVideos(videos, sorted(frames), sorted(left_out))


def log_left_out(root: str, paths: Sequence[str]) -> None:
    """Log in one line how many files were left out, by suffix."""
    if not paths:
        return
    kinds = Counter(os.path.splitext(path)[1].lower() or "without a suffix" for path in paths)
    ordered = sorted(kinds.items(), key=lambda pair: (-pair[1], pair[0]))
    shown = ", ".join(f"{count} {kind}" for kind, count in ordered)
    logger.info("%s: %s left out: %s", root, counted(len(paths), "file"), shown)


def walk_folders(root: str) -> Iterator[Folder]:
    """The folders below a folder, itself the first, each real folder once however many links lead to it.

    Links are followed after the real folders, in the order of their paths, so that no result depends on the
    file system's order. A link that leads to a folder that was looked into, or to one that holds the root, is
    not followed; one line of the log says so. Names removed from a folder's ``folders`` are not looked into.

    Raises:
        UserError: a folder cannot be listed.
    """
    local = local_path(root)
    real = os.path.realpath(local)
    seen = set[tuple[int, int]]()
    while real != os.path.dirname(real):
        real = os.path.dirname(real)
        seen.add(_identity(real))
    dropped: list[str] = []
    pending, links = [""], list[str]()
    while pending or links:
        path = pending.pop() if pending else heappop(links)
        identity = _identity(os.path.join(local, path))
        if identity in seen:
            dropped.append(path)
            continue
        seen.add(identity)
        folder, linked = _look_into(local, path)
        yield folder
        for name in folder.folders:
            own = os.path.join(path, name)
            if name in linked:
                heappush(links, own)
            else:
                pending.append(own)
    if dropped:
        logger.info(
            "%s: %s not followed, to folders that are read already or hold this one (%s, ...)",
            root,
            counted(len(dropped), "link"),
            min(dropped),
        )


def _look_into(root: str, path: str) -> tuple[Folder, set[str]]:
    """A folder, and which of its folders are links."""
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
    except OSError:  # a link that leads to itself
        return False


def _identity(path: str) -> tuple[int, int]:
    """Device and inode of a folder."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be looked into ({error.strerror})") from error
    return status.st_dev, status.st_ino


def _without_repeats(root: str, videos: list[str]) -> tuple[list[str], list[str]]:
    """Sorted paths, without links to files that another of the paths leads to; and those links."""
    local = local_path(root)
    links = [path for path in videos if os.path.islink(os.path.join(local, path))]
    if not links:
        return videos, []
    linked, repeated = set(links), set[str]()
    taken = {os.path.realpath(os.path.join(local, path)) for path in videos if path not in linked}
    for path in links:
        target = os.path.realpath(os.path.join(local, path))
        if target in taken:
            repeated.add(path)
        taken.add(target)
    return [path for path in videos if path not in repeated], sorted(repeated)
