"""The config of the detection of actions in videos."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from videomaskfeat.config_keys import key, section
from videomaskfeat.schemas.sections import SHARE, BatchOptions


@dataclass
class DetectFiles:
    """files"""

    weights: str = key("", "weights of a detect-train run", positional=True, former="checkpoint")
    videos: list[str] = key([], "video files", positional=True)
    out: str = key(".", "folder for NAME_actions.*")
    overwrite: bool = key(False, "replace the files of an earlier result")


@dataclass
class PersonsConfig:
    """persons (boxes or detector)"""

    boxes: str | None = key(None, "rows video,second,x1,y1,x2,y2,,score; video: a file name without suffix")
    detector: str | None = key(
        None, "module:name of a callable: frames uint8 [n,H,W,3] -> n boxes [k,5] in pixels, with score"
    )
    detector_options: dict[str, Any] = key({}, "arguments of the detector", flag="detector-option")
    box_score: float | None = key(None, "minimum score of a box", **SHARE, null="from the weights")
    every: float = key(
        1.0, "seconds between two key frames; with boxes, closer key frames are skipped", above=0
    )
    start_second: float | None = key(
        None, "time of the first frame of the video, as counted in the boxes file", null="from its rows"
    )


@dataclass
class ActionsConfig:
    """which actions are reported"""

    threshold: float = key(0.4, "minimum score of an action", **SHARE)
    top: int = key(3, "maximum number of actions drawn per person", least=1)
    smooth_seconds: float = key(0.7, "standard deviation of track smoothing; 0: off", unit="seconds", least=0)
    min_iou: float = key(0.3, "minimum IoU of two boxes of a track", above=0, greatest=1)
    max_gap_seconds: float | None = key(None, "maximum gap of a track", least=0, null="two key frames")
    film: bool = key(True, "annotated video (mp4 without sound)")
    csv: bool = key(False, "also write rows for score-ava")


@dataclass
class DetectVideoConfig:
    """Detection of actions in videos."""

    files: DetectFiles = section(DetectFiles)
    persons: PersonsConfig = section(PersonsConfig)
    actions: ActionsConfig = section(ActionsConfig, former="told")
    machine: BatchOptions = section(BatchOptions)
