"""``report``: the HTML page of a run, alone or side by side with others."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from videomaskfeat.errors import UserError
from videomaskfeat.viz.report import write_report

MAX_BESIDE = 3
"""Maximum number of runs side by side with another one."""


def report(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    beside: Sequence[str | os.PathLike[str]] = (),
) -> Path:
    """Write the report of a run, see :func:`~videomaskfeat.viz.report.write_report`.

    Raises:
        UserError: the folder or its metrics are missing, or there are too many runs.
    """
    if len(beside) > MAX_BESIDE:
        raise UserError(f"{len(beside)} runs to compare with; the maximum is {MAX_BESIDE}: leave some out")
    return write_report(folder, out, beside=beside)
