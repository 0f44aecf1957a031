"""``check-data``: scan the videos of a list, and write the findings and a list without the bad rows."""

from __future__ import annotations

import logging
import os

from videomaskfeat.data.check import CheckReport, Progress, check_list
from videomaskfeat.data.formats import write_clean_list
from videomaskfeat.inference.lists import DETECTED_FORMAT, ListChoice
from videomaskfeat.io import check_outputs, is_folder, make_parent, whole_file

logger = logging.getLogger(__name__)


def check_data(
    path: str,
    *,
    lists: ListChoice = DETECTED_FORMAT,
    reader: str = "auto",
    workers: int = 1,
    ray: str = "",
    min_frames: int = 1,
    decode: bool = True,
    json_path: str | None = None,
    clean_path: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> CheckReport:
    """Scan a list or folder; see :func:`~videomaskfeat.data.check.check_list` for the other arguments.

    Args:
        path, lists: list or folder, and how it is read.
        json_path: JSON file for the findings; None: none.
        clean_path: file for the rows that are fit for training, as they are in the list; for a folder, quoted
            paths relative to the file, one per line, with the labels of class folders. None: none.
        overwrite: replace these two files if they exist.

    Raises:
        UserError: the list is wrong, or a file exists or cannot be written.
    """
    records = lists.load(path)
    outputs = [target for target in (json_path, clean_path) if target]
    check_outputs(outputs, overwrite=overwrite)
    for target in outputs:  # reports a mistake before the work
        make_parent(target)
    report = check_list(
        [(record.path, record.label) for record in records],
        reader=reader,
        workers=workers,
        ray=ray,
        min_frames=min_frames,
        decode=decode,
        progress=progress,
    )
    if json_path:
        with whole_file(json_path, errors="backslashreplace") as file:
            file.write(report.to_json() + "\n")
    if clean_path:
        write_clean_list(path, clean_path, records, report.clean_rows(), format=lists.format)
        _warn_of_relative_paths(path, clean_path, lists.prefix)
    return report


def _warn_of_relative_paths(path: str, clean_path: str, prefix: str) -> None:
    """Rows do not change, so in another folder their relative paths still start from the old list."""
    old, new = (os.path.dirname(os.path.abspath(name)) for name in (path, clean_path))
    if not prefix and not is_folder(path) and old != new:
        logger.warning("%s: its paths are relative to %s; set prefix to that folder", clean_path, old)
