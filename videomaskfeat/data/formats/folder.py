"""Folders of video files, and of extracted frames."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from videomaskfeat.data.folders import log_skipped
from videomaskfeat.data.formats.class_folders import class_records
from videomaskfeat.data.formats.format import FolderFormat, ListSource
from videomaskfeat.data.records import Records
from videomaskfeat.errors import UserError, counted
from videomaskfeat.io import is_folder, list_folder

logger = logging.getLogger(__name__)


class Folder(FolderFormat):
    """All video files below a folder, sorted by path; with ``labels=yes`` in class folders."""

    def detect(self, source: ListSource) -> bool:
        videos, frames = source.contents.videos, source.contents.frames
        if videos and frames:
            raise UserError(
                f"{source.path} contains videos ({videos[0]}, ...) and pictures ({frames[0]}/, ...); set "
                f"format=folder or format={'images' if source.stills else 'frames'}"
            )
        return bool(videos)

    def read(self, source: ListSource) -> Records:
        return _records(source, source.contents.videos, "videos")


class Frames(FolderFormat):
    """All folders of pictures below a folder, sorted by path; each has the extracted frames of a video.

    With ``labels=yes`` they are in class folders.
    """

    def detect(self, source: ListSource) -> bool:
        return bool(source.contents.frames) and not source.stills

    def read(self, source: ListSource) -> Records:
        records = _records(source, source.contents.frames, "folders of pictures")
        if source.format == "auto":
            logger.info(
                "%s: %d folders of pictures, read as the frames of videos; set format=images if they are "
                "classes of pictures",
                source.path,
                len(records),
            )
        return records


def _records(source: ListSource, paths: Sequence[str], kind: str) -> Records:
    if not paths:
        raise UserError(
            f"{source.path} contains no {kind} ({counted(len(source.contents.skipped), 'other file')}); "
            "check the path and the format"
        )
    log_skipped(source.path, source.contents.skipped)
    if source.labels == "yes":
        names = list_folder(source.path)
        folders = [
            name for name in names if not name.startswith(".") and is_folder(os.path.join(source.path, name))
        ]
        remedy = "" if kind == "videos" else "; for classes of pictures set format=images"
        return class_records(source, paths, sorted(folders), kind, remedy=remedy)
    return Records.from_paths(paths, None, source=source.path, root=source.path)
