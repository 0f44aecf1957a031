"""``report``: the HTML page of a run, alone or side by side with others."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from videomaskfeat.errors import UserError
from videomaskfeat.io import check_outputs
from videomaskfeat.viz.report import write_report

MAX_BESIDE = 3
"""Maximum number of runs side by side with another one."""


def report(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    beside: Sequence[str | os.PathLike[str]] = (),
    overwrite: bool = False,
) -> Path:
    """Write the report of a run, see :func:`~videomaskfeat.viz.report.write_report`.

    Args:
        folder: run folder.
        out: HTML file; None: ``report.html`` in the run folder, which is updated, or with ``beside``
            ``comparison.html`` there.
        beside: other run folders.
        overwrite: replace the file if it exists.

    Raises:
        UserError: the folder or its metrics are missing, there are too many runs, or the file exists.
    """
    if beside and out is None:
        out = Path(folder) / "comparison.html"
    if len(beside) > MAX_BESIDE:
        raise UserError(f"{len(beside)} runs to compare with; the maximum is {MAX_BESIDE}: leave some out")
    if out is not None:
        check_outputs([out], overwrite=overwrite)
    return write_report(folder, out, beside=beside)
