"""Folders of video files, and of extracted frames."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from videomaskfeat.data.folders import log_skipped
from videomaskfeat.data.formats.format import FolderFormat, ListSource
from videomaskfeat.data.records import Records
from videomaskfeat.errors import UserError, counted

logger = logging.getLogger(__name__)


class Folder(FolderFormat):
    """All video files below a folder, sorted by path."""

    def detect(self, source: ListSource) -> bool:
        videos, frames = source.contents.videos, source.contents.frames
        if videos and frames:
            raise UserError(
                f"{source.path} contains videos ({videos[0]}, ...) and pictures ({frames[0]}/, ...); set "
                f"format=folder or format={'images' if source.stills else 'frames'}"
            )
        return bool(videos)

    def read(self, source: ListSource) -> Records:
        return _unlabeled_records(source, source.contents.videos, "videos")


class Frames(FolderFormat):
    """All folders of pictures below a folder, sorted by path; each has the extracted frames of a video."""

    def detect(self, source: ListSource) -> bool:
        return bool(source.contents.frames) and not source.stills

    def read(self, source: ListSource) -> Records:
        records = _unlabeled_records(source, source.contents.frames, "folders of pictures")
        if source.format == "auto":
            logger.info(
                "%s: %d folders of pictures, read as the frames of videos; set format=images if they are "
                "classes of pictures",
                source.path,
                len(records),
            )
        return records


def _unlabeled_records(source: ListSource, paths: Sequence[str], kind: str) -> Records:
    if source.labels == "yes":
        raise UserError(
            f"{source.path}: a folder has no labels, which are needed here; write lists of its class "
            "folders with `videomaskfeat make-lists`, or set format=images for class folders of pictures"
        )
    if not paths:
        raise UserError(
            f"{source.path} contains no {kind} ({counted(len(source.contents.skipped), 'other file')}); "
            "check the path and the format"
        )
    log_skipped(source.path, source.contents.skipped)
    return Records.from_paths(paths, None, source=source.path, root=source.path)
