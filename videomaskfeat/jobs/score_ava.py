"""``score-ava``: score a file of detections by AVA's official rules."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from videomaskfeat.inference.ava_scores import ScoringRules, score_detections, write_detection_result
from videomaskfeat.inference.results import hash_files
from videomaskfeat.io import make_folder
from videomaskfeat.metrics.ava_map import AvaResult, read_ava


@dataclass(frozen=True)
class DetectionScore:
    """The score of a file.

    Attributes:
        result: the score, in shares of 1.
        folder: where its report is; None if none was asked for.
        text: for people.
    """

    result: AvaResult
    folder: Path | None
    text: str


def score_ava(
    groundtruth: str,
    detections: str,
    labels: str,
    exclusions: str | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    iou_threshold: float = 0.5,
    rows_per_frame: int | None = None,
) -> DetectionScore:
    """Score a file of detections; for the files see :func:`~videomaskfeat.metrics.ava_map.read_ava`.

    Args:
        groundtruth: CSV file of what there is to find.
        detections: CSV file of what was found.
        labels: label map; only its actions count.
        exclusions: CSV file of times that do not count.
        out: folder to write result.json, per_class.csv and report.html into.
        iou_threshold: minimum overlap of a hit.
        rows_per_frame: judge only so many rows per key frame, the best; the official script takes 50.

    Raises:
        UserError: a file is missing, a row is wrong (with file and line), or an option is out of range.
    """
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
    return DetectionScore(scored.result, folder, scored.text(folder))
