"""Base classes of list formats, see ``FORMATS``."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from videomaskfeat.data.records import Records
from videomaskfeat.errors import UserError
from videomaskfeat.io import is_folder
from videomaskfeat.texts import plain_rows, read_rows

if TYPE_CHECKING:
    from videomaskfeat.data.folders import FoundVideos

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ListSource:
    """A list file or a folder with the arguments of ``load_records``."""

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
        """Whether the path is a folder."""
        return is_folder(self.path)

    @cached_property
    def root(self) -> str:
        """Folder of the relative paths in a list file."""
        return self.prefix or os.path.dirname(self.path)

    @cached_property
    def data(self) -> bytes:
        """Content of the list file in UTF-8, with ``\\n`` as line end."""
        if "://" in self.path:
            from videomaskfeat.data.remote import read_file

            return plain_rows(read_file(self.path), self.path)
        return read_rows(self.path, remedy="give a list file or a folder of videos")

    @property
    def first_row(self) -> str:
        """The first row of the list file that is not blank; empty if all are."""
        lines = self.data[: 1 << 16].splitlines()
        return next((line.decode("utf-8", "replace").strip() for line in lines if line.strip()), "")

    @cached_property
    def contents(self) -> FoundVideos:
        """Videos and pictures below the folder."""
        from videomaskfeat.data.folders import find_videos

        return find_videos(self.path)


class ListFormat(ABC):
    """A list format; the default methods are for files with one row per line.

    Attributes:
        of_folders: whether a list of this format is a folder.
    """

    of_folders = False

    @abstractmethod
    def detect(self, source: ListSource) -> bool:
        """Whether a list has this format, according to its path and its start."""

    @abstractmethod
    def read(self, source: ListSource) -> Records:
        """Read a list; raises UserError with file and line if it is wrong."""

    def clean(self, source: ListSource, records: Records, rows: Sequence[int], target: str) -> str:
        """The text of a list at ``target`` with only the given rows (from 0), unchanged.

        Raises:
            UserError: the lines do not match the records.
        """
        header, lines = self.lines(source)
        if len(lines) != len(records):
            raise UserError(
                f"{source.path} has {len(lines)} lines for {len(records)} videos; write one line per video"
            )
        return "".join(f"{line}\n" for line in (*header, *(lines[row] for row in rows)))

    def lines(self, source: ListSource) -> tuple[list[str], list[str]]:
        """The lines of the header and of the rows; bytes that are not UTF-8 become lone surrogates."""
        text = source.data.decode("utf-8", "surrogateescape")
        return [], [line for line in text.split("\n") if line.strip()]

    def class_file(self, path: str) -> str:
        """The file of class names next to a list; empty if there is no such file."""
        return ""


class FolderFormat(ListFormat):
    """Base of formats of folders."""

    of_folders = True

    def clean(self, source: ListSource, records: Records, rows: Sequence[int], target: str) -> str:
        """Rows `path label`, relative to the folder of ``target``."""
        start = os.path.dirname(os.path.abspath(target))
        # Quoted, since "clips/day 2" would otherwise have the label 2.
        lines = [
            f'"{os.path.relpath(os.path.abspath(record.path), start)}"'
            + ("" if record.label is None else f" {record.label}")
            for record in records
        ]
        with_break = {row for row, line in enumerate(lines) if "\n" in line or "\r" in line}
        if with_break:
            plural = "s" if len(with_break) > 1 else ""
            logger.warning(
                "%s: %d file name%s with a line break left out, since lists cannot contain line breaks; "
                "rename the file%s",
                target,
                len(with_break),
                plural,
                plural,
            )
        return "".join(f"{lines[row]}\n" for row in rows if row not in with_break)


def missing_videos(source: ListSource, count: int, examples: str) -> UserError:
    """The error if none of the first ``count`` videos of a list exists."""
    return UserError(
        f"{source.path}: none of the first {count} videos is in the folder {source.root or '.'} "
        f"({examples} ...); set the prefix to the folder of the videos"
    )
