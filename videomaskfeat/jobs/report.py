"""``report``: the HTML page of a run, alone or beside others."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from videomaskfeat.errors import UserError
from videomaskfeat.viz.report import write_report

MOST_BESIDE = 3
"""Runs drawn beside another one."""


def report(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    beside: Sequence[str | os.PathLike[str]] = (),
) -> Path:
    """Write the report of a run, see :func:`~videomaskfeat.viz.report.write_report`.

    Raises:
        UserError: there is no such folder, or it holds no metrics; or more runs than fit side by side.
    """
    if len(beside) > MOST_BESIDE:
        raise UserError(f"{len(beside)} runs beside another one: {MOST_BESIDE} fit at most; leave some out")
    return write_report(folder, out, beside=beside)
