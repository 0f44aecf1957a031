"""The verbs of action detectors: detect-evaluate, score-ava, detect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from videomaskfeat.config_keys import key
from videomaskfeat.schemas.detect import AREAS, AvaVideos
from videomaskfeat.schemas.detect_video import DetectVideoConfig
from videomaskfeat.schemas.sections import (
    SHARE,
    BatchOptions,
    OutputOptions,
)
from videomaskfeat.terminal import DONE, progress, report_failures
from videomaskfeat.texts import printable
from videomaskfeat.verbs.options import (
    KeyFrameOptions,
    as_arguments,
    print_scores,
    select_fields,
)
from videomaskfeat.verbs.verb import Verb


@dataclass
class DetectEvaluateOptions(KeyFrameOptions, AvaVideos, BatchOptions, OutputOptions):
    """files"""

    weights: str = key("", "weights of a detect-train run", positional=True)
    boxes: list[str] = key(
        [], "detected boxes: rows video,second,x1,y1,x2,y2,,score; empty: ground truth boxes"
    )
    exclusions: str = key("", "rows video,second that are not scored")
    out: str = key("evaluation", "folder to write")
    area: str | None = key(None, "area of the frame", choices=AREAS, null="from the weights")
    short_side: int | None = key(
        None, "short side of a frame", unit="pixels", least=1, null="from the weights"
    )
    scales: list[int] = key([], "short sides to average over, instead of one", unit="pixels", least=1)
    flip: bool = key(False, "average over the clip and its mirror image")
    score_threshold: float | None = key(
        None, "minimum score of a detected box", **SHARE, null="from the weights"
    )
    workers: int = key(2, "number of loader processes per rank; 0: the main process loads", least=0)


def detect_evaluate(options: DetectEvaluateOptions) -> int:
    """Score an action detector on key frames by AVA's official rules.

      videomaskfeat detect-evaluate runs/s_ava/best.safetensors --videos ava/videos \\
          --groundtruth ava/annotations/ava_val_v2.2.csv \\
          --boxes ava/annotations/ava_val_predicted_boxes.csv \\
          --labels ava/annotations/ava_action_list_v2.2_for_activitynet_2019.pbtxt \\
          --exclusions ava/annotations/ava_val_excluded_timestamps_v2.2.csv --out runs/s_ava/whole
      videomaskfeat detect-evaluate ... --area center --short-side 224
      videomaskfeat detect-evaluate ... --scales 224 256 312 --flip
      torchrun --nproc-per-node=8 -m videomaskfeat detect-evaluate ...
    """
    from videomaskfeat.inference.ava_scores import ScoredFiles, ScoringRules
    from videomaskfeat.inference.key_frames import VideoLocations, format_failures
    from videomaskfeat.inference.multiview import Machine
    from videomaskfeat.jobs.detect_evaluate import FrameOptions, detect_evaluate

    with progress("scoring key frames") as update:
        box_scores, text = detect_evaluate(
            options.weights,
            ScoredFiles(options.groundtruth, options.labels, options.exclusions, tuple(options.boxes)),
            select_fields(VideoLocations, options),
            options.out,
            frames=select_fields(FrameOptions, options),
            machine=select_fields(Machine, options),
            rules=ScoringRules(options.iou, options.rows_per_frame),
            overwrite=options.overwrite,
            progress=update,
        )
    return print_scores("detect-evaluate", text, format_failures(box_scores.failures))


@dataclass
class ScoreAvaOptions(KeyFrameOptions, OutputOptions):
    """files"""

    detections: str = key("", "rows video,second,x1,y1,x2,y2,action,score", required="detections.csv")
    exclusions: str | None = key(None, "rows video,second that are not scored")
    out: str | None = key(None, "folder for result.json, per_class.csv and report.html")


def score_ava(options: ScoreAvaOptions) -> int:
    """Score a detections file by AVA's official rules: frame mAP and average precision per action.

      videomaskfeat score-ava --groundtruth ava/annotations/ava_val_v2.2.csv --detections detections.csv \\
          --labels ava/annotations/ava_action_list_v2.2_for_activitynet_2019.pbtxt \\
          --exclusions ava/annotations/ava_val_excluded_timestamps_v2.2.csv --out runs/ava/score
    """
    from videomaskfeat.jobs.score_ava import score_ava

    _, text = score_ava(**as_arguments(options, iou="iou_threshold"))
    print(printable(text))
    return DONE


def detect(config: DetectVideoConfig) -> int:
    """Detect the actions of each person in videos; write JSON and annotated videos.

      videomaskfeat detect runs/ava/best.safetensors my_video.mp4 --boxes my_boxes.csv --out found
      videomaskfeat detect best.safetensors *.mp4 --detector my_boxes:find_persons --every 0.5
      videomaskfeat detect best.safetensors my_video.mp4 --detector-option model=hustvl/yolos-tiny \\
          --detector videomaskfeat.interop.huggingface:PersonDetector
    """
    from videomaskfeat.jobs.detect_video import detect_videos

    def print_summary(summary: str, files: Sequence[Path]) -> None:
        print(printable("\n".join([summary, *map(str, files)])), flush=True)

    with progress("detecting") as update:
        result = detect_videos(config, progress=update, on_video=print_summary)
    return report_failures("detect", result.failures)


VERBS = {
    "detect-evaluate": Verb(detect_evaluate, ranks=True),
    "score-ava": Verb(score_ava),
    "detect": Verb(detect),
}
