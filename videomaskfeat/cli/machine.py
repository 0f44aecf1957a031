"""The verb about this machine."""

from __future__ import annotations

import argparse
from typing import Any

from videomaskfeat.cli.verb import DONE, FAILED, add_verb


def add_doctor(verbs: Any) -> None:
    """``doctor``: what works on this machine."""
    parser = add_verb(
        verbs,
        "doctor",
        run_doctor,
        summary="say what works on this machine, and what is missing for which feature",
        examples="  videomaskfeat doctor\n  videomaskfeat doctor --folder /data --json",
    )
    parser.add_argument("--folder", default=".", help="folder whose free space counts (default: this one)")
    parser.add_argument("--json", action="store_true", help="as JSON")


def run_doctor(options: argparse.Namespace) -> int:
    """Run ``doctor``."""
    from videomaskfeat.tasks.doctor import diagnose

    diagnosis = diagnose(options.folder, measure=True)
    print(diagnosis.to_json() if options.json else diagnosis.text())
    return DONE if diagnosis.healthy else FAILED
