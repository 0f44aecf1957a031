"""Writing of list files."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence

from videomaskfeat.data.formats.multilabel import HEADER
from videomaskfeat.data.records import Record
from videomaskfeat.errors import counted
from videomaskfeat.io import whole_file

logger = logging.getLogger(__name__)


def write_list(path: str, rows: Sequence[Record]) -> None:
    """Write rows `path label`, or a header and rows `path labels`; paths are relative to the list.

    Raises:
        UserError, RunFailed: as for ``whole_file``.
    """
    folder = os.path.dirname(os.path.abspath(path))
    skipped = 0
    with whole_file(path, errors="surrogateescape") as file:  # file names may contain any bytes
        if any(row.labels is not None for row in rows):
            file.write(f"{HEADER}\n")
        for row in rows:
            name = row.path if "://" in row.path else os.path.relpath(os.path.abspath(row.path), folder)
            if "\n" in name or "\r" in name:
                skipped += 1
                continue
            name = name if re.fullmatch(r"[\w./+=@-]+", name) else f'"{name}"'
            label = "" if row.label is None else f" {row.label}"
            if row.labels is not None:
                label = f" {','.join(map(str, row.labels)) or -1}"
            file.write(f"{name}{label}\n")
    if skipped:
        logger.warning("%s: %s with a line break left out; rename them", path, counted(skipped, "file name"))
