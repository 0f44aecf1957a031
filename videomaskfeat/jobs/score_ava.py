"""``score-ava``: score a file of detections by AVA's official rules."""

from __future__ import annotations

import os
from pathlib import Path

from videomaskfeat.inference.ava_scores import (
    ScoredDetections,
    ScoringRules,
    check_result_folder,
    score_detections,
    write_detection_result,
)
from videomaskfeat.inference.results import hash_files
from videomaskfeat.io import make_folder
from videomaskfeat.metrics.ava_map import read_ava


def score_ava(
    groundtruth: str,
    detections: str,
    labels: str,
    exclusions: str | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    iou_threshold: float = 0.5,
    rows_per_frame: int | None = None,
    overwrite: bool = False,
) -> tuple[ScoredDetections, str]:
    """Score a file of detections; for the files see :func:`~videomaskfeat.metrics.ava_map.read_ava`.

    Args:
        groundtruth: CSV file of the ground truth.
        detections: CSV file of detections.
        labels: label map; only its actions are scored.
        exclusions: CSV file of times that are not scored.
        out: folder for result.json, per_class.csv and report.html; None: none.
        iou_threshold: minimum IoU of a hit.
        rows_per_frame: score only this number of rows per key frame, the best ones; the official script: 50.
        overwrite: replace the files of an earlier result.

    Returns:
        The score, and the result as text.

    Raises:
        UserError: a file is missing, a row is wrong (with file and line), or an option is out of range.
    """
    if out is not None:
        check_result_folder(out, overwrite=overwrite)
    data = read_ava(groundtruth, detections, labels, exclusions)
    scored = score_detections(data, ScoringRules(iou_threshold, rows_per_frame))
    folder = None if out is None else Path(out)
    if folder is not None:
        make_folder(folder)
        files = {
            "groundtruth": groundtruth,
            "detections": detections,
            "labels": labels,
            "exclusions": exclusions,
        }
        title = f"{os.path.basename(detections)} on {os.path.basename(groundtruth)}"
        write_detection_result(folder, scored, {"title": title, "files": hash_files(files)})
    return scored, scored.text(folder)
