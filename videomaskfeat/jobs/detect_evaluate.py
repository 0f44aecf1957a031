"""``detect-evaluate``: score a detector of actions on key frames by AVA's official rules."""

from __future__ import annotations

import dataclasses
import os
import time
from dataclasses import dataclass
from pathlib import Path

from videomaskfeat.ava import read_label_map
from videomaskfeat.data.batches import Failure
from videomaskfeat.engine import distributed
from videomaskfeat.errors import UserError
from videomaskfeat.inference.ava_scores import ScoredFiles, ScoringRules, write_key_frame_score
from videomaskfeat.inference.detectors import BoxScores, VideoDetector, load_detector, score_key_frames
from videomaskfeat.inference.key_frames import VideoLocations, describe_key_frames, read_key_frames
from videomaskfeat.inference.multiview import Machine, Progress
from videomaskfeat.inference.results import describe_detection, describe_weights
from videomaskfeat.io import make_folder
from videomaskfeat.metrics.ava_map import AvaResult
from videomaskfeat.recipe import DetectRecipe


@dataclass(frozen=True)
class FrameOptions:
    """How key frames are cut; None: as the weights were tested.

    Attributes:
        area: "whole" or "centre".
        short_side: pixels to which a frame's short side is resized.
        scales: short sides whose scores are averaged, instead of one.
        flip: average over each clip and its mirror image, too.
        score_threshold: minimum score of a detected box.
    """

    area: str | None = None
    short_side: int | None = None
    scales: tuple[int, ...] = ()
    flip: bool = False
    score_threshold: float | None = None

    def recipe(self, known: DetectRecipe) -> DetectRecipe:
        """The recipe of the weights with these choices.

        Raises:
            UserError: an unknown area, or a score outside 0..1.
        """
        chosen = {key: getattr(self, key) for key in ("area", "short_side", "score_threshold")}
        return dataclasses.replace(
            known, **{key: value for key, value in chosen.items() if value is not None}
        )


@dataclass(frozen=True)
class EvaluatedDetector:
    """The result of an evaluation.

    Attributes:
        folder: where it is written.
        result: the score, in shares of 1.
        found: the scores of all boxes.
        text: for people; empty on all ranks but the first.
    """

    folder: Path
    result: AvaResult
    found: BoxScores
    text: str

    @property
    def failures(self) -> tuple[Failure, ...]:
        """Key frames that could not be read."""
        return self.found.failures


AS_TESTED, THIS_MACHINE = FrameOptions(), Machine()


def detect_evaluate(
    weights: str | os.PathLike[str],
    files: ScoredFiles,
    places: VideoLocations,
    out: str | os.PathLike[str],
    *,
    frames: FrameOptions = AS_TESTED,
    machine: Machine = THIS_MACHINE,
    iou_threshold: float = 0.5,
    rows_per_frame: int | None = None,
    progress: Progress | None = None,
) -> EvaluatedDetector:
    """Score the boxes of key frames, and write the result into a folder.

    Args:
        weights: safetensors file of a run of ``detect-train``.
        files: ground truth, label map, exclusions and boxes.
        places: where the videos are.
        out: folder to write: detections.csv (the official format), result.json, per_class.csv, report.html
            and failures.jsonl.
        frames: how key frames are cut.
        machine: on what the detector runs.
        iou_threshold: minimum overlap of a hit.
        rows_per_frame: judge only so many rows per key frame, the best; the official script takes 50.
        progress: called with the number of key frames that are done, and of all.

    Raises:
        UserError: the weights, a file or a choice is wrong, or no key frame could be read.
        RunFailed: the network's output is not finite.
    """
    with distributed.process_group(machine.torch_device):
        detector = load_detector(
            weights,
            device=str(machine.torch_device),
            precision=machine.precision,
            workers=machine.workers,
            clips_at_once=machine.clips_at_once,
        )
        recipe = frames.recipe(detector.recipe)
        detector = VideoDetector(detector.model, recipe, detector.machine)
        _check_actions(read_label_map(files.label_map), files.label_map, recipe, os.fspath(weights))
        truth, tested, other = read_key_frames(
            files.groundtruth,
            files.boxes,
            files.exclusions,
            classes=recipe.classes,
            score_threshold=recipe.score_threshold,
        )
        sources = places.find(truth, tested)
        distributed.run_on_main(lambda: make_folder(out))  # rather than after all the work
        detector.choose_threads()
        start = time.monotonic()
        found = score_key_frames(
            detector, tested, sources, scales=frames.scales, flip=frames.flip, progress=progress
        )
        seconds = round(time.monotonic() - start, 1)
        undetected, detected = len(truth.absent_from(tested)), bool(files.boxes)

        def write() -> tuple[AvaResult, str]:
            about = {
                "title": f"{Path(weights).stem} on {os.path.basename(files.groundtruth)}",
                "model": detector.model.created_as[0],  # type: ignore[index]
                **describe_weights(weights),
                "seen": describe_detection(
                    recipe,
                    detected=detected,
                    scales=frames.scales,
                    flip=frames.flip,
                    precision=machine.precision_used,
                ),
                "undetected_key_frames": undetected,
                "left_out": dataclasses.asdict(other),
                "starts": sorted({source.start_seconds for source in sources}),
                "seconds": seconds,
                "files": files.hashes(),
            }
            rules = ScoringRules(iou_threshold, rows_per_frame)
            scored = write_key_frame_score(Path(out), files, tested, found, about, rules)
            words = describe_key_frames(found, recipe, detected=detected, undetected=undetected)
            return scored.result, "\n".join(filter(None, [words, other.text(), scored.text(Path(out))]))

        result, text = distributed.run_on_main(write)
        return EvaluatedDetector(Path(out), result, found, text if distributed.is_main() else "")


def _check_actions(actions: dict[int, str], label_map: str, recipe: DetectRecipe, weights: str) -> None:
    """Refuse a label map with other actions than those of the weights."""
    unknown = [number for number in actions if number > recipe.classes]
    if unknown:
        raise UserError(
            f"{label_map}: lists the action {unknown[0]} ({actions[unknown[0]]}), and {weights} knows "
            f"{recipe.classes}; give the label map that it was trained with"
        )
    for number, name in actions.items():
        own = recipe.actions.get(number, name)
        if own.lower() != name.lower():
            raise UserError(
                f"{label_map}: calls the action {number} {name!r}, and {weights} was trained with {own!r} "
                "under that id; give the label map that it was trained with"
            )
