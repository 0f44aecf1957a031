"""Class folders of pictures, as in ImageNet."""

from __future__ import annotations

import logging
import os

from videomaskfeat.data.folders import walk_folders
from videomaskfeat.data.formats.class_folders import SPLITS, class_records, loose_path
from videomaskfeat.data.formats.format import FolderFormat, ListSource
from videomaskfeat.data.reader import PICTURE_SUFFIXES, is_picture
from videomaskfeat.data.records import Records
from videomaskfeat.errors import UserError

logger = logging.getLogger(__name__)


class Images(FolderFormat):
    """All pictures below a folder, sorted by path.

    With ``labels=auto`` pictures have labels if all are in class folders.
    """

    def detect(self, source: ListSource) -> bool:
        return source.stills

    def read(self, source: ListSource) -> Records:
        root = source.path
        pictures, folders = _find_pictures(root)
        if source.labels == "no" or (
            source.labels == "auto" and (loose_path(pictures) or SPLITS.issuperset(folders))
        ):
            return Records.from_paths(pictures, None, source=root, root=root)
        return class_records(source, pictures, folders, "pictures")


def _find_pictures(root: str) -> tuple[list[str], list[str]]:
    """The sorted pictures below a folder, and the folders directly below it, as relative paths."""
    pictures, others, folders = list[str](), list[str](), list[str]()
    for folder in walk_folders(root):
        folders = folders if folder.path else list(folder.folders)
        for name in folder.files:
            (pictures if is_picture(name) else others).append(os.path.join(folder.path, name))
    if not pictures:
        raise UserError(
            f"{root} contains no pictures ({', '.join(sorted(PICTURE_SUFFIXES))}) among its {len(others)} "
            "files; check the path"
        )
    if others:
        logger.info("%s: %d files that are not pictures were ignored (%s, ...)", root, len(others), others[0])
    return sorted(pictures), folders
