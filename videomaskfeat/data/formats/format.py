"""What a format of lists does, and what it is given: see ``FORMATS``."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from videomaskfeat.data.folders import FoundVideos, find_videos, log_skipped
from videomaskfeat.data.records import Records
from videomaskfeat.errors import UserError, counted
from videomaskfeat.io import is_folder
from videomaskfeat.texts import read_rows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ListSource:
    """A list file or a folder, and how it is to be read; see ``load_records``."""

    path: str
    format: str = "auto"
    labels: str = "auto"
    prefix: str = ""
    separator: str = "auto"
    classes: str | None = None
    known_classes: Sequence[str] = ()
    stills: bool = False

    @cached_property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return is_folder(self.path)

    @cached_property
    def root(self) -> str:
        """Folder that the relative paths of a list file start from."""
        return self.prefix or os.path.dirname(self.path)

    @cached_property
    def data(self) -> bytes:
        """The list file, in UTF-8 and with ``\\n`` as the only line end."""
        return read_rows(self.path, remedy="give a list file or a folder of videos")

    @property
    def first_row(self) -> str:
        """The first row of the list file that is not blank, or an empty string."""
        lines = self.data[: 1 << 16].splitlines()
        return next((line.decode("utf-8", "replace").strip() for line in lines if line.strip()), "")

    @cached_property
    def found(self) -> FoundVideos:
        """What lies below the folder."""
        return find_videos(self.path)


class ListFormat(ABC):
    """One format of lists; what stands here suits files with a row per line.

    Attributes:
        of_folders: whether a list is a folder, and not a file.
    """

    of_folders = False

    @abstractmethod
    def detect(self, source: ListSource) -> bool:
        """Whether a list is of this format, judged by its path and how it begins."""

    @abstractmethod
    def read(self, source: ListSource) -> Records:
        """The rows of a list.

        Raises:
            UserError: the list is wrong; names file and line.
        """

    def clean(self, source: ListSource, records: Records, rows: Sequence[int], target: str) -> str:
        """The text of a list at ``target`` that holds only the given rows (from 0), as they stood.

        Raises:
            UserError: the rows cannot be told apart.
        """
        header, lines = self.lines(source)
        if len(lines) != len(records):
            raise UserError(f"{source.path}: {len(lines)} lines for {len(records)} videos; give one a video")
        return "".join(f"{line}\n" for line in (*header, *(lines[row] for row in rows)))

    def lines(self, source: ListSource) -> tuple[list[str], list[str]]:
        """The lines of the header and of the rows; bytes that are not UTF-8 are lone surrogates."""
        text = source.data.decode("utf-8", "surrogateescape")
        return [], [line for line in text.split("\n") if line.strip()]

    def class_file(self, path: str) -> str:
        """The file of class names that lies beside a list, or an empty string."""
        return ""


class FolderFormat(ListFormat):
    """What formats of folders share."""

    of_folders = True

    def clean(self, source: ListSource, records: Records, rows: Sequence[int], target: str) -> str:
        """Rows `path label`, with paths from the folder of ``target``."""
        start = os.path.dirname(os.path.abspath(target))
        # In quotes, since a path such as "clips/day 2" would otherwise end with a label.
        lines = [
            f'"{os.path.relpath(os.path.abspath(record.path), start)}"'
            + ("" if record.label is None else f" {record.label}")
            for record in records
        ]
        broken = {row for row, line in enumerate(lines) if "\n" in line or "\r" in line}
        if broken:
            plural = "s" if len(broken) > 1 else ""
            logger.warning(
                "%s: left out %d file name%s with a line break, which a list cannot hold; rename the file%s",
                target,
                len(broken),
                plural,
                plural,
            )
        return "".join(f"{lines[row]}\n" for row in rows if row not in broken)


def unlabelled_records(source: ListSource, found: Sequence[str], wanted: str) -> Records:
    """Records of what was found below a folder.

    Raises:
        UserError: nothing was found, or labels are asked for.
    """
    if source.labels == "yes":
        raise UserError(
            f"{source.path}: a folder has no labels (labels=yes); write a list with "
            "datasets/kinetics/make_list.py, which takes class folders, or, of class folders of pictures, "
            "take format=images"
        )
    if not found:
        raise UserError(
            f"{source.path}: holds no {wanted} ({counted(len(source.found.skipped), 'other file')}); check "
            "the path and the format"
        )
    log_skipped(source.path, source.found.skipped)
    return Records.from_paths(found, None, source=source.path, root=source.path)
