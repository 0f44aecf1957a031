"""A detector on held-out key frames, and what its score leaves on disk: detections, result, table, report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import simplejson
import torch

from videomaskfeat.ava import read_label_map
from videomaskfeat.data.ava import VideoSource
from videomaskfeat.data.batches import Failure
from videomaskfeat.data.records_ava import KeyFrames
from videomaskfeat.errors import counted
from videomaskfeat.io import make_folder, whole_file
from videomaskfeat.metrics.ava_files import read_ava, write_detections
from videomaskfeat.models.detector import Detector
from videomaskfeat.tasks.detection.detect_data import key_frame_loader
from videomaskfeat.tasks.detection.detect_recipe import DetectRecipe
from videomaskfeat.tasks.detection.detection_output import (
    ScoredDetections,
    score_detections,
    write_detection_result,
)
from videomaskfeat.tasks.detection.key_frame_scores import (
    BoxPass,
    BoxScores,
    Progress,
    detections_of,
    score_key_frames,
)
from videomaskfeat.tasks.protocol import file_sha256

_NAMED = 100  # unreadable key frames that a result lists; failures.jsonl has all


@dataclass(frozen=True)
class PassChoice:
    """How key frames are tested, besides what the recipe says.

    Attributes:
        scales: short sides whose scores are averaged; none: the recipe's alone.
        flip: average over each clip and its mirror image, too.
        bf16: run the network under bf16 autocast.
        workers: processes of each rank that read videos; 0 reads in the rank's own.
        clips_at_once: clips that go through the network together.
    """

    scales: tuple[int, ...] = ()
    flip: bool = False
    bf16: bool = False
    workers: int = 0
    clips_at_once: int = 8


@dataclass(frozen=True)
class ScoredFiles:
    """The files that a score is made of.

    Attributes:
        groundtruth: what there is to find.
        label_map: the actions that count.
        exclusions: times that do not count; empty: none.
        boxes: of the persons that were tested on; none: those of the ground truth.
    """

    groundtruth: str
    label_map: str
    exclusions: str = ""
    boxes: tuple[str, ...] = ()


def detect_in_key_frames(
    model: Detector,
    key_frames: KeyFrames,
    sources: Sequence[VideoSource],
    recipe: DetectRecipe,
    testing: PassChoice,
    *,
    device: torch.device,
    progress: Progress | None = None,
) -> BoxScores:
    """The scores of all boxes; all ranks call it, and all get the whole result.

    Raises:
        UserError: a number that cannot be, or no key frame could be read.
        RunFailed: a score is not finite.
    """
    network = BoxPass(
        model,
        device,
        poses=recipe.pose_mask if recipe.poses else None,
        bf16=testing.bf16,
        mean=recipe.clip.mean,
        std=recipe.clip.std,
        at_once=testing.clips_at_once,
    )
    loader = key_frame_loader(
        key_frames,
        sources,
        model,
        recipe,
        scales=testing.scales,
        flip=testing.flip,
        workers=testing.workers,
        key_frames_per_batch=testing.clips_at_once,
        pin_memory=device.type == "cuda",
    )
    with closing(iter(loader)) as batches:
        return score_key_frames(network, model, batches, key_frames, progress=progress)


def write_score(
    folder: Path,
    files: ScoredFiles,
    key_frames: KeyFrames,
    found: BoxScores,
    about: Mapping[str, Any],
    *,
    iou_threshold: float = 0.5,
    rows_per_frame: int | None = None,
) -> ScoredDetections:
    """Write detections.csv, score that file by the official rules, and write what was found; rank 0 alone.

    Ground truth in key frames that could not be read counts as not found.

    Args:
        folder: made where it is not there.
        files: what the score is made of.
        key_frames: whose boxes were tested on.
        found: their scores.
        about: what identifies the result besides.
        iou_threshold: the least overlap of a hit.
        rows_per_frame: judge only so many rows a key frame, the best.
    """
    make_folder(folder)
    path = folder / "detections.csv"
    actions = read_label_map(files.label_map)
    write_detections(path, key_frames.moments(), detections_of(key_frames, found, actions))
    data = read_ava(files.groundtruth, path, files.label_map, files.exclusions or None)
    scored = score_detections(data, iou_threshold=iou_threshold, rows_per_frame=rows_per_frame)
    write_detection_result(folder, scored, {**about, **_about_key_frames(key_frames, found)})
    with whole_file(folder / "failures.jsonl") as file:
        file.writelines(
            simplejson.dumps({"path": failure.path, "cause": failure.cause}) + "\n"
            for failure in found.failures
        )
    return scored


def protocol_of(recipe: DetectRecipe, testing: PassChoice, files: ScoredFiles) -> dict[str, Any]:
    """What a score depends on besides the weights, as plain data."""
    clip = recipe.clip
    return {
        "boxes": "detected" if files.boxes else "ground truth",
        **({"score_threshold": recipe.score_threshold} if files.boxes else {}),
        "area": recipe.area,
        "short_sides": list(testing.scales) or [recipe.short_side],
        "flip": testing.flip,
        "frames": clip.frames,
        "stride": clip.stride,
        "target_fps": clip.target_fps,
        "mean": clip.mean,
        "std": clip.std,
        "scores": "softmax of the poses, sigmoid of the rest" if recipe.poses else "sigmoid",
        "precision": "bf16" if testing.bf16 else "fp32",
    }


def hashes_of(files: ScoredFiles) -> dict[str, Any]:
    """Path and SHA-256 of each file that a score is made of."""
    named = {"groundtruth": files.groundtruth, "labels": files.label_map, "exclusions": files.exclusions}
    named |= {f"boxes {number}": path for number, path in enumerate(files.boxes, start=1)}
    return {name: {"path": path, "sha256": file_sha256(path)} for name, path in named.items() if path}


def words_on_key_frames(found: BoxScores, recipe: DetectRecipe, boxes: str, *, undetected: int) -> str:
    """How many key frames and boxes the score is of, and what of the frames was seen.

    Args:
        found: the scores.
        recipe: how key frames were seen.
        boxes: "detected" or "ground-truth".
        undetected: key frames of the ground truth in which no box was tested.
    """
    seen = "whole frames" if recipe.area == "whole" else "centre crops"
    lines = [
        f"{boxes} boxes on {seen}: {int(found.scored.sum())} in {found.read} of {found.listed} key frames"
    ]
    if undetected:
        lines.append(
            f"{counted(undetected, 'key frame')} of the ground truth {'has' if undetected == 1 else 'have'} "
            "no detected box: what there is to find in them counts as not found"
        )
    if found.failures:
        lines.append(
            f"{counted(len(found.failures), 'key frame')} could not be read: what there is to find in them "
            "counts as not found"
        )
    return "\n".join(lines)


def lines_on(failures: Iterable[Failure]) -> list[str]:
    """A line for each video and cause of key frames that could not be read, with their number."""
    counts = Counter((failure.path, failure.cause) for failure in failures)
    return [f"{path}: {cause} ({counted(count, 'key frame')})" for (path, cause), count in counts.items()]


def _about_key_frames(key_frames: KeyFrames, found: BoxScores) -> dict[str, Any]:
    return {
        "tested": {
            "key_frames": found.read,
            "listed": found.listed,
            "boxes": int(found.scored.sum()),
            "without_boxes": len(key_frames.boxless),
            "unreadable": [
                {"path": failure.path, "cause": failure.cause} for failure in found.failures[:_NAMED]
            ],
        }
    }
