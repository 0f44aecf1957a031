"""``detect-evaluate``: score an action detector on key frames by AVA's official rules."""

from __future__ import annotations

import dataclasses
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videomaskfeat.ava import read_label_map
from videomaskfeat.engine import distributed
from videomaskfeat.errors import UserError
from videomaskfeat.inference.ava_scores import (
    ScoredFiles,
    ScoringRules,
    check_result_folder,
    write_key_frame_score,
)
from videomaskfeat.inference.detectors import BoxScores, VideoDetector, load_detector, score_key_frames
from videomaskfeat.inference.key_frames import VideoLocations, describe_key_frames, read_key_frames
from videomaskfeat.inference.multiview import Machine, Progress
from videomaskfeat.inference.results import describe_detection, describe_weights
from videomaskfeat.io import make_folder
from videomaskfeat.stored_recipe import DetectRecipe


@dataclass(frozen=True)
class FrameOptions:
    """How key frames are cut; None: as in the recipe of the weights.

    Attributes:
        area: "whole" or "center".
        short_side: pixels to which the short side of a frame is resized.
        scales: short sides over which scores are averaged, instead of one.
        flip: average over each clip and its mirror image.
        score_threshold: minimum score of a detected box.
    """

    area: str | None = None
    short_side: int | None = None
    scales: tuple[int, ...] = ()
    flip: bool = False
    score_threshold: float | None = None

    def apply(self, recipe: DetectRecipe) -> DetectRecipe:
        """The recipe with these options.

        Raises:
            UserError: the area is unknown, or the score is outside 0..1.
        """
        options = {key: getattr(self, key) for key in ("area", "short_side", "score_threshold")}
        changes = {key: value for key, value in options.items() if value is not None}
        return dataclasses.replace(recipe, **changes)


AS_TESTED, THIS_MACHINE, OFFICIAL = FrameOptions(), Machine(), ScoringRules()


def detect_evaluate(
    weights: str | os.PathLike[str],
    files: ScoredFiles,
    locations: VideoLocations,
    out: str | os.PathLike[str],
    *,
    frames: FrameOptions = AS_TESTED,
    machine: Machine = THIS_MACHINE,
    rules: ScoringRules = OFFICIAL,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[BoxScores, str]:
    """Score the boxes of key frames, and write the result into a folder.

    Args:
        weights: safetensors file of a ``detect-train`` run.
        files: ground truth, label map, exclusions and boxes.
        locations: where the videos are.
        out: folder to write: detections.csv (the official format), result.json, per_class.csv, report.html
            and failures.jsonl.
        frames: how key frames are cut.
        machine: device and loading options.
        rules: how detections are scored.
        overwrite: replace the files of an earlier result.
        progress: called with the number of scored key frames, and the total.

    Returns:
        The scores of all boxes, and the result as text, which is empty on all ranks except the first.

    Raises:
        UserError: the weights, a file or an option is wrong, or no key frame could be read.
        RunFailed: the output of the network is not finite.
    """
    with distributed.process_group(machine.torch_device):
        detector = load_detector(
            weights,
            device=str(machine.torch_device),
            precision=machine.precision,
            workers=machine.workers,
            clips_at_once=machine.clips_at_once,
        )
        recipe = frames.apply(detector.recipe)
        detector = VideoDetector(detector.model, recipe, detector.machine)
        _check_actions(read_label_map(files.label_map), files.label_map, recipe, os.fspath(weights))
        key_frames = read_key_frames(
            files.groundtruth,
            files.boxes,
            files.exclusions,
            classes=recipe.classes,
            score_threshold=recipe.score_threshold,
        )
        sources = locations.find_videos(key_frames.truth, key_frames.tested)
        distributed.run_on_main(
            lambda: check_result_folder(out, "detections.csv", "failures.jsonl", overwrite=overwrite)
        )
        distributed.run_on_main(lambda: make_folder(out))  # reports a mistake before the work
        detector.choose_threads()
        start = time.monotonic()
        box_scores = score_key_frames(
            detector, key_frames.tested, sources, scales=frames.scales, flip=frames.flip, progress=progress
        )
        seconds = round(time.monotonic() - start, 1)

        def write() -> str:
            about = {
                "title": f"{Path(weights).stem} on {os.path.basename(files.groundtruth)}",
                **_describe(weights, detector, frames, machine, detected=bool(files.boxes)),
                "starts": sorted({source.start_seconds for source in sources}),
                "seconds": seconds,
            }
            scored = write_key_frame_score(Path(out), files, key_frames, box_scores, about, rules=rules)
            return "\n".join([*describe_key_frames(key_frames, box_scores, recipe), scored.text(Path(out))])

        text = distributed.run_on_main(write)
        return box_scores, text if distributed.is_main() else ""


def _describe(
    weights: str | os.PathLike[str],
    detector: VideoDetector,
    frames: FrameOptions,
    machine: Machine,
    *,
    detected: bool,
) -> dict[str, Any]:
    """Facts about model and clips for result.json."""
    seen = describe_detection(
        detector.recipe,
        detected=detected,
        scales=frames.scales,
        flip=frames.flip,
        precision=machine.precision_used,
    )
    model = detector.model.created_as[0]  # type: ignore[index]
    return {"model": model, **describe_weights(weights), "seen": seen}


def _check_actions(actions: dict[int, str], label_map: str, recipe: DetectRecipe, weights: str) -> None:
    """Check that the actions of a label map are those of the weights."""
    unknown = [number for number in actions if number > recipe.classes]
    if unknown:
        raise UserError(
            f"{label_map}: action {unknown[0]} ({actions[unknown[0]]}) is out of range; {weights} has "
            f"{recipe.classes} actions; give the label map that it was trained with"
        )
    for number, name in actions.items():
        own = recipe.actions.get(number, name)
        if own.lower() != name.lower():
            raise UserError(
                f"{label_map}: action {number} is {name!r}, but {own!r} in {weights}; give the label map "
                "that it was trained with"
            )
