"""``average-scores``: average the scores of several evaluations."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from videomaskfeat.errors import UserError
from videomaskfeat.inference.scores import (
    Evaluated,
    average_scores,
    load_scores,
    make_output_folders,
    scores_path,
    write_evaluation,
)
from videomaskfeat.io import file_sha256


def average_files(
    members: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    submission: str = "",
    overwrite: bool = False,
) -> Evaluated:
    """Average the scores of several evaluations of one list, and write the files of an evaluation.

    Args:
        members: folders of evaluations, or their scores.npz; two or more.
        out: folder to write.
        submission: file for a Something-Something-v2 test submission; empty: none.
        overwrite: replace the files of an earlier evaluation.

    Raises:
        UserError: a file is missing or given twice, their videos, classes or kinds of scores differ, or the
            folder has an evaluation.
    """
    files = [scores_path(member) for member in members]
    real = [os.path.realpath(file) for file in files]
    for number, file in enumerate(files):
        if real[number] in real[:number]:
            raise UserError(f"{file} is given twice; give each file once")
    scored = average_scores([load_scores(file) for file in files], files)
    about = {
        "title": f"Average of {len(files)} evaluations",
        "members": {str(number): file for number, file in enumerate(files, start=1)},
        "members_sha256": {str(number): file_sha256(file) for number, file in enumerate(files, start=1)},
        "protocol": {"averaged": files, "scores": scored.kind},
    }
    make_output_folders(out, submission, overwrite=overwrite)
    result, text = write_evaluation(Path(out), scored, about, submission=submission)
    return Evaluated(result, scored, scored.failures, text)
