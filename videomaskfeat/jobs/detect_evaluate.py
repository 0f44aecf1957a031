"""A detector on held-out key frames, and what its score leaves on disk: detections, result, table, report."""

from __future__ import annotations

import dataclasses
import os
import time
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
from videomaskfeat.data.ava_lists import KeyFrames
from videomaskfeat.data.batches import Failure
from videomaskfeat.engine import distributed
from videomaskfeat.engine.distributed import uses_bf16
from videomaskfeat.errors import UserError, counted
from videomaskfeat.inference.detection_results import (
    ScoredDetections,
    closing_words,
    score_detections,
    write_detection_result,
)
from videomaskfeat.inference.detectors import (
    BoxPass,
    BoxScores,
    DetectRecipe,
    Progress,
    detections_of,
    load_detector,
    score_key_frames,
)
from videomaskfeat.inference.key_frames import VideoPlaces, key_frame_loader, read_tested
from videomaskfeat.inference.scores import file_sha256
from videomaskfeat.io import make_folder, whole_file
from videomaskfeat.metrics.ava_map import AvaResult, read_ava, write_detections
from videomaskfeat.models.detector import Detector

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


# ``detect-evaluate``: score a detector of actions on key frames by AVA's official rules.


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
            files.exclusions,
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


# Score a file of detections by AVA's official rules.


@dataclass(frozen=True)
class ScoredFile:
    """The score of a file.

    Attributes:
        result: the score, in shares of 1.
        folder: where its report lies; None where none was asked for.
        text: what the user reads.
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
) -> ScoredFile:
    """Score a file of detections; for the files see :func:`~videomaskfeat.metrics.ava_map.read_ava`.

    Args:
        groundtruth: CSV file of what there is to find.
        detections: CSV file of what was found.
        labels: label map; only its actions count.
        exclusions: CSV file of times that do not count.
        out: folder to write result.json, per_class.csv and report.html into.
        iou_threshold: the least overlap of a hit.
        rows_per_frame: judge only so many rows a key frame, the best; the official script takes 50.

    Raises:
        UserError: a file that is not there; a row that is wrong, with file and line; an option out of range.
    """
    data = read_ava(groundtruth, detections, labels, exclusions)
    scored = score_detections(data, iou_threshold=iou_threshold, rows_per_frame=rows_per_frame)
    folder = None if out is None else Path(out)
    if folder is not None:
        make_folder(folder)
        paths = {
            "groundtruth": groundtruth,
            "detections": detections,
            "labels": labels,
            "exclusions": exclusions,
        }
        files = {
            name: {"path": path, "sha256": file_sha256(path)}
            for name, path in paths.items()
            if path is not None
        }
        title = f"{os.path.basename(detections)} on {os.path.basename(groundtruth)}"
        write_detection_result(folder, scored, {"title": title, "files": files})
    return ScoredFile(scored.result, folder, closing_words(scored, folder))
