"""``check-data``: scan the videos of a list and write what was found, and a list without the bad rows."""

from __future__ import annotations

import json
import logging
import os

from videomaskfeat.data.check import CheckReport, Progress, check_list
from videomaskfeat.data.records import Records, load_records
from videomaskfeat.data.records_kinetics import is_kinetics_header
from videomaskfeat.data.records_table import first_row
from videomaskfeat.io import is_folder, make_parent, whole_file
from videomaskfeat.texts import parse_json, read_rows

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
    """Scan a list or folder; see :func:`~videomaskfeat.data.records.load_records` and
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
        _write_clean_list(path, clean_path, records, report, format)
        _warn_of_relative_paths(path, clean_path, prefix)
    return report


def _write_clean_list(path: str, clean_path: str, records: Records, report: CheckReport, format: str) -> None:
    if is_folder(path):
        start = os.path.dirname(os.path.abspath(clean_path))
        # In quotes, since a path such as "clips/day 2" would otherwise end with a label.
        rows = [
            f'"{os.path.relpath(os.path.abspath(record.path), start)}"'
            + ("" if record.label is None else f" {record.label}")
            for record in records
        ]
        broken = sum("\n" in row or "\r" in row for row in rows)
        if broken:
            logger.warning(
                "%s: left out %d file name%s with a line break, which a list cannot hold; rename the file%s",
                clean_path,
                broken,
                *["s" if broken > 1 else ""] * 2,
            )
        report.write_clean_list(clean_path, rows)
        return
    data = read_rows(path)
    if format == "ssv2" or (format == "auto" and path.endswith(".json")):
        entries = parse_json(data, path)
        with whole_file(clean_path) as file:
            file.write(json.dumps([entries[row] for row in report.clean_rows()], indent=1) + "\n")
        return
    lines = [line.decode("utf-8", "surrogateescape") for line in data.split(b"\n") if line.strip()]
    header = None
    if is_kinetics_header(first_row(data), path):
        header, *rest = lines
        lines = [line for line in rest if line.strip(' \t\r,;|"')]
    report.write_clean_list(clean_path, lines, header=header)


def _warn_of_relative_paths(path: str, clean_path: str, prefix: str) -> None:
    """Rows are kept as they stood, so in another folder they still count from the old list's."""
    old, new = (os.path.dirname(os.path.abspath(name)) for name in (path, clean_path))
    if not prefix and not is_folder(path) and old != new:
        logger.warning("%s: relative paths in it count from %s; give that as prefix", clean_path, old)
