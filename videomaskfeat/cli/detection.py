"""Verbs about boxes of persons and what they do."""

from __future__ import annotations

import argparse
from typing import Any

from videomaskfeat.cli.verb import DONE, add_verb, printable


def add_score_ava(verbs: Any) -> None:
    """``score-ava``: the official frame mAP of a file of detections."""
    parser = add_verb(
        verbs,
        "score-ava",
        run_score_ava,
        summary="score a file of detections by AVA's official rules: frame mAP, each action, and why",
        examples="""\
  videomaskfeat score-ava --groundtruth ava/annotations/ava_val_v2.2.csv --detections detections.csv \\
      --labels ava/annotations/ava_action_list_v2.2_for_activitynet_2019.pbtxt \\
      --exclusions ava/annotations/ava_val_excluded_timestamps_v2.2.csv --out runs/ava/score""",
    )
    files = parser.add_argument_group("files")
    files.add_argument(
        "--groundtruth", metavar="FILE", required=True, help="rows video,second,x1,y1,x2,y2,action,person"
    )
    files.add_argument(
        "--detections", metavar="FILE", required=True, help="rows video,second,x1,y1,x2,y2,action,score"
    )
    files.add_argument(
        "--labels", metavar="FILE", required=True, help="label map (pbtxt): the actions that count"
    )
    files.add_argument("--exclusions", metavar="FILE", help="rows video,second that do not count")
    files.add_argument(
        "--out", metavar="FOLDER", help="write result.json, per_class.csv and report.html (default: nothing)"
    )
    rules = parser.add_argument_group("rules")
    rules.add_argument("--iou", type=float, default=0.5, help="least overlap of a hit (default: %(default)s)")
    rules.add_argument(
        "--rows-per-frame",
        metavar="N",
        type=int,
        help="judge the N best rows of a key frame alone, as the official script does with 50 (default: all)",
    )


def run_score_ava(options: argparse.Namespace) -> int:
    """Run ``score-ava``."""
    from videomaskfeat.tasks.score_ava import score_ava

    scored = score_ava(
        options.groundtruth,
        options.detections,
        options.labels,
        options.exclusions,
        options.out,
        iou_threshold=options.iou,
        rows_per_frame=options.rows_per_frame,
    )
    print(printable(scored.text))
    return DONE
