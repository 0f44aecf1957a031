"""``check-data``: scan the videos of a list and write what was found, and a list without the bad rows."""

from __future__ import annotations

import logging
import os

from videomaskfeat.data.check import CheckReport, Progress, check_list
from videomaskfeat.data.formats import load_records, write_clean_list
from videomaskfeat.io import is_folder, make_parent, whole_file

logger = logging.getLogger(__name__)


def check_data(
    path: str,
    *,
    format: str = "auto",
    labels: str = "auto",
    separator: str = "auto",
    prefix: str = "",
    reader: str = "auto",
    workers: int = 1,
    min_frames: int = 1,
    decode: bool = True,
    json_path: str | None = None,
    clean_path: str | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Scan a list or folder; see :func:`~videomaskfeat.data.formats.load_records` and
    :func:`~videomaskfeat.data.check.check_list` for the arguments.

    Args:
        json_path: where to write the findings as JSON.
        clean_path: where to write the rows that are fit for training, as they stand in the list; of a folder,
            their paths from the new list's own place, one a line and quoted, with labels of class folders.

    Raises:
        UserError: the list is wrong, or a file cannot be written where it is asked for.
    """
    records = load_records(path, format=format, labels=labels, prefix=prefix, separator=separator)
    for target in (json_path, clean_path):
        if target:  # found out now, rather than after all the work
            make_parent(target)
    report = check_list(
        [(record.path, record.label) for record in records],
        reader=reader,
        workers=workers,
        min_frames=min_frames,
        decode=decode,
        progress=progress,
    )
    if json_path:
        with whole_file(json_path) as file:
            file.write(report.to_json() + "\n")
    if clean_path:
        write_clean_list(path, clean_path, records, report.clean_rows(), format=format)
        _warn_of_relative_paths(path, clean_path, prefix)
    return report


def _warn_of_relative_paths(path: str, clean_path: str, prefix: str) -> None:
    """Rows are kept as they stood, so in another folder they still count from the old list's."""
    old, new = (os.path.dirname(os.path.abspath(name)) for name in (path, clean_path))
    if not prefix and not is_folder(path) and old != new:
        logger.warning("%s: relative paths in it count from %s; give that as prefix", clean_path, old)
