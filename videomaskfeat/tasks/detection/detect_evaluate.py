"""``detect-evaluate``: score a detector of actions on key frames by AVA's official rules."""

from __future__ import annotations

import dataclasses
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videomaskfeat.ava import read_label_map
from videomaskfeat.data.batches import Failure
from videomaskfeat.engine import distributed
from videomaskfeat.errors import UserError
from videomaskfeat.io import make_folder
from videomaskfeat.metrics.ava_map import AvaResult
from videomaskfeat.tasks.detection.detect_data import VideoPlaces
from videomaskfeat.tasks.detection.detect_parts import given, read_tested
from videomaskfeat.tasks.detection.detect_recipe import DetectRecipe
from videomaskfeat.tasks.detection.detect_scoring import (
    PassChoice,
    ScoredFiles,
    detect_in_key_frames,
    hashes_of,
    protocol_of,
    words_on_key_frames,
    write_score,
)
from videomaskfeat.tasks.detection.detection_output import closing_words
from videomaskfeat.tasks.detection.detectors import load_detector
from videomaskfeat.tasks.detection.key_frame_scores import BoxScores, Progress
from videomaskfeat.tasks.protocol import file_sha256
from videomaskfeat.tasks.run_folder import uses_bf16


@dataclass(frozen=True)
class FrameChoice:
    """How key frames are seen; what is None is as in the weights' own testing.

    Attributes:
        area: "whole" or "centre".
        short_side: pixels that a frame's short side is resized to.
        scales: short sides whose scores are averaged, instead of one.
        flip: average over each clip and its mirror image, too.
        score_threshold: the least score of a detected box.
    """

    area: str | None = None
    short_side: int | None = None
    scales: tuple[int, ...] = ()
    flip: bool = False
    score_threshold: float | None = None

    def recipe(self, known: DetectRecipe) -> DetectRecipe:
        """The recipe of the weights with what is chosen otherwise.

        Raises:
            UserError: an unknown area, or a score that is none.
        """
        threshold = self.score_threshold
        return dataclasses.replace(
            known,
            area=known.area if self.area is None else self.area,
            short_side=known.short_side if self.short_side is None else self.short_side,
            score_threshold=known.score_threshold if threshold is None else threshold,
        )


@dataclass(frozen=True)
class DetectMachine:
    """On what it runs.

    Attributes:
        device: auto, cpu, cuda or cuda:N.
        precision: auto (bf16 on a GPU, fp32 on a CPU), fp32 or bf16.
        workers: processes of each rank that read videos; 0 reads in the rank's own.
        clips_at_once: clips that go through the network together.
    """

    device: str = "auto"
    precision: str = "auto"
    workers: int = 0
    clips_at_once: int = 8


@dataclass(frozen=True)
class EvaluatedDetector:
    """What an evaluation found.

    Attributes:
        folder: where it is written.
        result: the score, in shares of 1.
        found: the scores of all boxes.
        text: what the user reads; empty on all ranks but the first.
    """

    folder: Path
    result: AvaResult
    found: BoxScores
    text: str

    @property
    def failures(self) -> tuple[Failure, ...]:
        """Key frames that could not be read."""
        return self.found.failures


AS_TESTED, THIS_MACHINE = FrameChoice(), DetectMachine()


def detect_evaluate(
    weights: str | os.PathLike[str],
    files: ScoredFiles,
    places: VideoPlaces,
    out: str | os.PathLike[str],
    *,
    frames: FrameChoice = AS_TESTED,
    machine: DetectMachine = THIS_MACHINE,
    iou_threshold: float = 0.5,
    rows_per_frame: int | None = None,
    progress: Progress | None = None,
) -> EvaluatedDetector:
    """Score the boxes of key frames, and write what was found into a folder.

    Args:
        weights: safetensors file of a run of ``detect-train``.
        files: ground truth, label map, exclusions and boxes.
        places: where the videos are.
        out: folder to write: detections.csv (the official format), result.json, per_class.csv, report.html
            and failures.jsonl.
        frames: how key frames are seen.
        machine: on what it runs.
        iou_threshold: the least overlap of a hit.
        rows_per_frame: judge only so many rows a key frame, the best; the official script takes 50.
        progress: told how many key frames are done, of how many.

    Raises:
        UserError: the weights, a file or a choice is wrong, or no key frame could be read.
        RunFailed: the network's output is not finite.
    """
    device = distributed.choose_device(machine.device)
    bf16 = uses_bf16(machine.precision, device)
    with distributed.process_group(device):
        detector = load_detector(weights, device=device, bf16=bf16)
        recipe = frames.recipe(detector.recipe)
        check_actions(read_label_map(files.label_map), files.label_map, recipe, os.fspath(weights))
        truth, tested, other = read_tested(
            files.groundtruth,
            files.boxes,
            given(files.exclusions),
            classes=recipe.classes,
            score_threshold=recipe.score_threshold,
        )
        sources, undetected = places.find(truth, tested), len(truth.absent_from(tested))
        distributed.run_on_main(lambda: make_folder(out))  # rather than after all the work
        choice = PassChoice(
            scales=frames.scales,
            flip=frames.flip,
            bf16=bf16,
            workers=machine.workers,
            clips_at_once=machine.clips_at_once,
        )
        detector.choose_threads(workers=machine.workers)
        start = time.monotonic()
        found = detect_in_key_frames(
            detector.model, tested, sources, recipe, choice, device=device, progress=progress
        )
        name, _ = detector.model.created_as  # type: ignore[misc]
        about: dict[str, Any] = {
            "title": f"{Path(weights).stem} on {os.path.basename(files.groundtruth)}",
            "model": name,
            "weights": os.fspath(weights),
            "seen": protocol_of(recipe, choice, files),
            "undetected_key_frames": undetected,
            "left_out": dataclasses.asdict(other),
            "starts": sorted({source.start_seconds for source in sources}),
            "seconds": round(time.monotonic() - start, 1),
        }

        def write() -> tuple[AvaResult, str]:
            hashes = {"weights_sha256": file_sha256(weights), "files": hashes_of(files)}
            scored = write_score(
                Path(out),
                files,
                tested,
                found,
                {**about, **hashes},
                iou_threshold=iou_threshold,
                rows_per_frame=rows_per_frame,
            )
            kind = "detected" if files.boxes else "ground-truth"
            words = words_on_key_frames(found, recipe, kind, undetected=undetected)
            parts = [words, other.words(), closing_words(scored, Path(out))]
            return scored.result, "\n".join(filter(None, parts))

        result, text = distributed.run_on_main(write)
        return EvaluatedDetector(Path(out), result, found, text if distributed.is_main() else "")


def check_actions(actions: dict[int, str], label_map: str, recipe: DetectRecipe, weights: str) -> None:
    """The actions of a label map are those of the weights.

    Raises:
        UserError: an id that the model does not know, or an action of another name.
    """
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
