"""A folder of video files, at any depth."""

from __future__ import annotations

from videomaskfeat.data.formats.format import FolderFormat, ListSource, unlabelled_records
from videomaskfeat.data.records import Records
from videomaskfeat.errors import UserError


class Folder(FolderFormat):
    """Every video below a folder, sorted by path."""

    def detect(self, source: ListSource) -> bool:
        videos, frames = source.found.videos, source.found.frames
        if videos and frames:
            raise UserError(
                f"{source.path}: holds videos ({videos[0]}, ...) and pictures ({frames[0]}/, ...); "
                f"say which to take: format=folder or format={'images' if source.stills else 'frames'}"
            )
        return bool(videos)

    def read(self, source: ListSource) -> Records:
        return unlabelled_records(source, source.found.videos, "videos")
