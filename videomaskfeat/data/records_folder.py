"""Looking through folders for videos and for folders of pictures."""

from __future__ import annotations

import os

from videomaskfeat.data.images import PICTURE_SUFFIXES
from videomaskfeat.io import is_folder, list_folder

VIDEO_SUFFIXES = frozenset(
    (".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv")
)


def find_videos(root: str) -> tuple[list[str], list[str]]:
    """Paths below ``root``, relative to it and sorted: (video files, folders that hold pictures).

    Hidden files and folders (a leading dot) are left out. A folder with pictures is taken whole: what lies
    below it is not looked at.
    """
    videos: list[str] = []
    frames: list[str] = []
    pending = [""]
    while pending:
        folder = pending.pop()
        names = [name for name in list_folder(os.path.join(root, folder)) if not name.startswith(".")]
        suffixes = [os.path.splitext(name)[1].lower() for name in names]
        if PICTURE_SUFFIXES.intersection(suffixes):
            frames.append(folder or ".")
            continue
        for name, suffix in zip(names, suffixes, strict=True):
            path = os.path.join(folder, name)
            if suffix in VIDEO_SUFFIXES:
                videos.append(path)
            elif is_folder(os.path.join(root, path)):
                pending.append(path)
    return sorted(videos), sorted(frames)
