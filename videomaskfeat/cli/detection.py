"""Verbs about boxes of persons and what they do."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import Any

from videomaskfeat.cli.training import add_config_arguments, exit_code, print_keys
from videomaskfeat.cli.verb import DONE, SOME_FAILED, add_verb, one_line
from videomaskfeat.texts import printable

logger = logging.getLogger(__name__)


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
    _add_rules(parser)


def run_score_ava(options: argparse.Namespace) -> int:
    """Run ``score-ava``."""
    from videomaskfeat.tasks.detection.score_ava import score_ava

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


def add_detect_train(verbs: Any) -> None:
    """``detect-train``: train a detector of actions."""
    parser = add_verb(
        verbs,
        "detect-train",
        run_detect_train,
        summary="train a detector of actions: what each person in a box does, from pre-trained weights",
        examples="""\
  videomaskfeat detect-train --config configs/detect/sample.yaml model.weights=demo/run/weights.safetensors
  videomaskfeat detect-train --config configs/detect/ava_v22_maskfeat_mvitv2_s.yaml \\
      data.videos=ava/videos model.weights=runs/s_k400/best.safetensors run.folder=runs/s_ava
  torchrun --nproc-per-node=8 -m videomaskfeat detect-train --config ... run.folder=runs/s_ava
  videomaskfeat detect-train --keys        every key, its default and its meaning""",
    )
    add_config_arguments(parser)


def run_detect_train(options: argparse.Namespace) -> int:
    """Run ``detect-train``."""
    from videomaskfeat.config import load_config
    from videomaskfeat.config.detect import DetectConfig

    if options.keys:
        return print_keys(DetectConfig)
    config = load_config(DetectConfig, options.config, options.overrides, say=logger.info)
    from videomaskfeat.tasks.detection.detect import detect_train

    return exit_code(detect_train(config))


def add_detect_evaluate(verbs: Any) -> None:
    """``detect-evaluate``: the frame mAP of a detector of actions."""
    parser = add_verb(
        verbs,
        "detect-evaluate",
        run_detect_evaluate,
        summary="score a detector of actions on key frames by AVA's official rules",
        examples="""\
  videomaskfeat detect-evaluate runs/s_ava/best.safetensors --videos ava/videos \\
      --groundtruth ava/annotations/ava_val_v2.2.csv \\
      --boxes ava/annotations/ava_val_predicted_boxes.csv \\
      --labels ava/annotations/ava_action_list_v2.2_for_activitynet_2019.pbtxt \\
      --exclusions ava/annotations/ava_val_excluded_timestamps_v2.2.csv --out runs/s_ava/whole
  videomaskfeat detect-evaluate ... --area centre --short-side 224
  videomaskfeat detect-evaluate ... --scales 224 256 312 --flip
  torchrun --nproc-per-node=8 -m videomaskfeat detect-evaluate ...""",
    )
    parser.add_argument("weights", help="weights (safetensors) of a run of detect-train")
    files = parser.add_argument_group("files")
    files.add_argument(
        "--groundtruth", metavar="FILE", required=True, help="rows video,second,x1,y1,x2,y2,action,person"
    )
    files.add_argument("--labels", metavar="FILE", required=True, help="label map (pbtxt): what is scored")
    files.add_argument(
        "--boxes",
        metavar="FILE",
        nargs="+",
        default=[],
        help="a detector's boxes of persons, rows video,second,x1,y1,x2,y2,,score (default: those of the "
        "ground truth)",
    )
    files.add_argument("--exclusions", metavar="FILE", default="", help="rows video,second: not scored")
    _add_places(parser)
    parser.add_argument(
        "--out", metavar="FOLDER", default="evaluation", help="folder to write (default: %(default)s)"
    )
    frames = parser.add_argument_group("frames", "default: as the weights were tested")
    frames.add_argument("--area", help="whole (the frame in its aspect) | centre (a square, boxes cut to it)")
    frames.add_argument("--short-side", type=int, help="pixels that a frame's short side is resized to")
    frames.add_argument(
        "--scales", type=int, nargs="+", default=[], help="average the scores of these short sides instead"
    )
    frames.add_argument("--flip", action="store_true", help="average over each clip and its mirror image")
    frames.add_argument("--score-threshold", type=float, help="least score of a detected box")
    _add_rules(parser)
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:N (default: %(default)s)")
    machine.add_argument("--precision", default="auto", help="auto (bf16 on a GPU) | fp32 | bf16")
    machine.add_argument(
        "--workers", type=int, default=2, help="processes that read videos, a rank (default: %(default)s)"
    )
    machine.add_argument(
        "--clips-at-once", type=int, default=8, help="through the network (default: %(default)s)"
    )


def run_detect_evaluate(options: argparse.Namespace) -> int:
    """Run ``detect-evaluate``."""
    from videomaskfeat.console import progress
    from videomaskfeat.tasks.detection.detect_data import VideoPlaces
    from videomaskfeat.tasks.detection.detect_evaluate import DetectMachine, FrameChoice, detect_evaluate
    from videomaskfeat.tasks.detection.detect_scoring import ScoredFiles, lines_on

    with progress("scoring key frames") as update:
        result = detect_evaluate(
            options.weights,
            ScoredFiles(options.groundtruth, options.labels, options.exclusions, tuple(options.boxes)),
            VideoPlaces(
                videos=options.videos,
                frame_lists=tuple(options.frame_lists),
                frames=options.frames,
                frames_fps=options.frames_fps,
                start_second=options.start_second,
            ),
            options.out,
            frames=FrameChoice(
                area=options.area,
                short_side=options.short_side,
                scales=tuple(options.scales),
                flip=options.flip,
                score_threshold=options.score_threshold,
            ),
            machine=DetectMachine(
                device=options.device,
                precision=options.precision,
                workers=options.workers,
                clips_at_once=options.clips_at_once,
            ),
            iou_threshold=options.iou,
            rows_per_frame=options.rows_per_frame,
            progress=update,
        )
    if not result.text:  # not the first rank: torchrun would end all of them at a code that is not 0
        return DONE
    print(printable(result.text))
    for line in lines_on(result.failures):
        print(one_line(f"videomaskfeat detect-evaluate: {line}"), file=sys.stderr)
    return SOME_FAILED if result.failures else DONE


def _add_places(parser: argparse.ArgumentParser) -> None:
    places = parser.add_argument_group("videos")
    places.add_argument(
        "--videos", metavar="FOLDER", default="", help="of a file a video, or of a folder of frames each"
    )
    places.add_argument(
        "--frame-lists", metavar="FILE", nargs="+", default=[], help="instead: lists of extracted frames"
    )
    places.add_argument("--frames", metavar="FOLDER", default="", help="before the paths of these lists")
    places.add_argument(
        "--frames-fps", type=float, default=30.0, help="of extracted frames (default: %(default)s)"
    )
    places.add_argument(
        "--start-second", type=float, help="of each video's first frame (AVA: 0 or 900; default: found out)"
    )


def _add_rules(parser: argparse.ArgumentParser) -> None:
    """What a score depends on."""
    rules = parser.add_argument_group("rules")
    rules.add_argument("--iou", type=float, default=0.5, help="least overlap of a hit (default: %(default)s)")
    rules.add_argument(
        "--rows-per-frame",
        metavar="N",
        type=int,
        help="judge the N best rows of a key frame alone, as the official script does with 50 (default: all)",
    )
