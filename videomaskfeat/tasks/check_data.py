"""``check-data``: scan the videos of a list and write what was found, and a list without the bad rows."""

from __future__ import annotations

import simplejson

from videomaskfeat.data.check import Progress, check_list
from videomaskfeat.data.check_report import CheckReport
from videomaskfeat.data.records import Records, load_records
from videomaskfeat.data.records_kinetics import is_kinetics_header
from videomaskfeat.io import is_folder, open_file


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
        clean_path: where to write the rows that are fit for training, in the list's own format; of a folder,
            their paths, one a line.

    Raises:
        UserError: the list is wrong.
    """
    records = load_records(path, format=format, labels=labels, prefix=prefix, separator=separator)
    report = check_list(
        [(record.path, record.label) for record in records],
        reader=reader,
        workers=workers,
        min_frames=min_frames,
        decode=decode,
        progress=progress,
    )
    if json_path:
        with open_file(json_path, "w") as file:
            file.write(report.to_json() + "\n")
    if clean_path:
        _write_clean_list(path, clean_path, records, report)
    return report


def _write_clean_list(path: str, clean_path: str, records: Records, report: CheckReport) -> None:
    if is_folder(path):
        report.write_clean_list(clean_path, [record.path for record in records])
        return
    with open_file(path) as file:
        text = file.read()
    if path.endswith(".json"):
        entries = simplejson.loads(text)
        with open_file(clean_path, "w") as file:
            file.write(simplejson.dumps([entries[row] for row in report.clean_rows()], indent=1) + "\n")
        return
    lines = [line for line in text.splitlines() if line.strip()]
    header = lines.pop(0) if is_kinetics_header(lines[0], path) else None
    report.write_clean_list(clean_path, lines, header=header)
