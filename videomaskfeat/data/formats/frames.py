"""A folder of folders of pictures, each the extracted frames of a video."""

from __future__ import annotations

import logging

from videomaskfeat.data.formats.format import FolderFormat, ListSource, unlabelled_records
from videomaskfeat.data.records import Records

logger = logging.getLogger(__name__)


class Frames(FolderFormat):
    """Every folder of pictures below a folder, sorted by path."""

    def detect(self, source: ListSource) -> bool:
        return bool(source.found.frames) and not source.stills

    def read(self, source: ListSource) -> Records:
        records = unlabelled_records(source, source.found.frames, "folders of pictures")
        if source.format == "auto":
            logger.info(
                "%s: %d folders of pictures, each taken for the frames of a video; format=images takes them "
                "for classes of pictures",
                source.path,
                len(records),
            )
        return records
