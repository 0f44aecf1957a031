"""The keys of finding actions in anybody's videos."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from videomaskfeat.config.key import key


@dataclass
class PersonsConfig:
    """Where the persons are: a file of boxes, or a detector that finds them."""

    boxes: str | None = key(None, "file of rows video,second,x1,y1,x2,y2,,score")
    detector: str | None = key(None, "package.module:name of a Python callable, pictures -> boxes")
    detector_options: dict[str, Any] = key({}, "keyword arguments of the class or function that makes it")
    box_score: float | None = key(None, "least score of a box, 0..1; null: as the detector was tested")
    every: float = key(1.0, "seconds from one key frame to the next; of a file of boxes, at least")
    start_second: float | None = key(None, "of the first picture in the file of boxes; null: found out")


@dataclass
class ToldConfig:
    """What is told of their actions."""

    threshold: float = key(0.4, "least score of an action, 0..1")
    top: int = key(3, "actions a person that are drawn, at most")
    smooth_seconds: float = key(0.7, "standard deviation of the average over a track; 0: none")
    min_iou: float = key(0.3, "least overlap of two boxes of a track, above 0, at most 1")
    max_gap_seconds: float | None = key(None, "that a track may miss; null: twice the key frames' step")
    film: bool = key(True, "write the annotated mp4")
    csv: bool = key(False, "write rows for score-ava")


@dataclass
class MachineConfig:
    """What it runs on."""

    device: str = key("auto", "auto | cpu | cuda | cuda:N")
    precision: str = key("auto", "auto (bf16 on a GPU) | fp32 | bf16")
    clips_at_once: int = key(8, "clips that go through the network together")


@dataclass
class DetectVideoConfig:
    """Who does what in videos."""

    persons: PersonsConfig = field(default_factory=PersonsConfig)
    told: ToldConfig = field(default_factory=ToldConfig)
    machine: MachineConfig = field(default_factory=MachineConfig)
