"""``detect``: who does what in anybody's videos, as JSON, as AVA's rows and drawn into the video."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from videomaskfeat import __version__
from videomaskfeat.ava import AVA_ACTIONS
from videomaskfeat.data.reader import VideoReadError
from videomaskfeat.engine.distributed import choose_device
from videomaskfeat.errors import UserError
from videomaskfeat.io import make_folder
from videomaskfeat.tasks.detection.actions_film import write_film
from videomaskfeat.tasks.detection.actions_output import closing_words, write_json, write_rows
from videomaskfeat.tasks.detection.box_detectors import load_box_detector
from videomaskfeat.tasks.detection.box_files import check_boxes
from videomaskfeat.tasks.detection.detectors import LoadedDetector, load_detector
from videomaskfeat.tasks.detection.video_actions import Progress, VideoActions, check_told, find_actions
from videomaskfeat.tasks.protocol import file_sha256
from videomaskfeat.tasks.run_folder import uses_bf16
from videomaskfeat.tasks.visualize import free_name

_SUFFIX = "_actions"  # of every file that is written


@dataclass(frozen=True)
class Detected:
    """What ``detect`` did.

    Attributes:
        found: of each video that could be read, in the order asked for.
        failures: one error, with path and cause, for each that could not, or whose film could not be made.
        files: all that was written.
    """

    found: list[VideoActions] = field(default_factory=list)
    failures: list[VideoReadError] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


def detect_videos(
    checkpoint: str | os.PathLike[str],
    videos: Sequence[str],
    out: str | os.PathLike[str] = ".",
    *,
    boxes: str | os.PathLike[str] | None = None,
    detector: str | None = None,
    detector_options: Mapping[str, Any] | None = None,
    box_score: float | None = None,
    every: float = 1.0,
    start_second: float | None = None,
    threshold: float = 0.4,
    top: int = 3,
    smooth_seconds: float = 0.7,
    min_iou: float = 0.3,
    max_gap_seconds: float | None = None,
    film: bool = True,
    csv: bool = False,
    device: str = "auto",
    precision: str = "auto",
    clips_at_once: int = 8,
    progress: Progress | None = None,
    on_video: Callable[[str, Sequence[Path]], None] | None = None,
) -> Detected:
    """Find persons' actions in videos, and write them down.

    Args:
        checkpoint: weights (safetensors) of a detector of actions.
        videos: files, at least one.
        out: folder for ``NAME_actions.json``, ``NAME_actions.mp4`` and ``NAME_actions.csv`` of each.
        boxes: see :func:`~videomaskfeat.tasks.detection.video_actions.find_actions`, and so are the others up
            to ``clips_at_once`` that do not stand here.
        detector: ``package.module:name``, see :mod:`~videomaskfeat.tasks.detection.box_detectors`.
        detector_options: its keyword arguments.
        box_score: least score of a box.
        every: seconds between key frames.
        start_second: the time of the first picture in the file of boxes.
        threshold: the least score of an action that is told of, 0..1.
        top: actions a person that are drawn, at most.
        smooth_seconds: standard deviation of the average over a track.
        min_iou: least overlap of two boxes of a track.
        max_gap_seconds: that a track may miss.
        film: write the mp4.
        csv: write the CSV file.
        device: auto, cpu, cuda or cuda:N.
        precision: auto (bf16 on a GPU, fp32 on a CPU), fp32 or bf16.
        clips_at_once: clips that go through the network together.
        progress: told of the key frames of each video.
        on_video: told of each video in words, with its files.

    Raises:
        UserError: the checkpoint or an argument is wrong, the file of boxes lacks a video, or no video could
            be read.
        RunFailed: a score is not finite, or the detector raised an error.
    """
    options = dict(detector_options or {})
    _check(videos, detector, options, threshold=threshold, top=top)
    check_told(smooth_seconds=smooth_seconds, min_iou=min_iou, max_gap_seconds=max_gap_seconds)
    place = choose_device(device)
    loaded = load_detector(checkpoint, device=place, bf16=uses_bf16(precision, place))
    finder = None if detector is None else load_box_detector(detector, options)
    if boxes is not None:
        check_boxes(boxes, videos, classes=max(AVA_ACTIONS, loaded.recipe.classes))
    make_folder(out)
    loaded.choose_threads()
    about = {
        **_files_of(checkpoint, boxes, detector, options),
        "box_score": loaded.recipe.score_threshold if box_score is None else box_score,
        "every": every,
        "threshold": threshold,
        "smooth_seconds": smooth_seconds,
        "min_iou": min_iou,
        **_sight_of(loaded),
        "version": __version__,
    }
    result, names = Detected(), set[str]()
    for video in videos:
        try:
            found = find_actions(
                loaded,
                video,
                boxes=boxes,
                box_detector=finder,
                box_score=box_score,
                every=every,
                start_second=start_second,
                smooth_seconds=smooth_seconds,
                min_iou=min_iou,
                max_gap_seconds=max_gap_seconds,
                clips_at_once=clips_at_once,
                progress=progress,
            )
        except VideoReadError as error:
            result.failures.append(error)
            continue
        result.found.append(found)
        name = free_name(Path(video).stem + _SUFFIX, names)
        names.add(name)
        gap = 2 * found.every if max_gap_seconds is None else max_gap_seconds
        protocol = {**about, "max_gap_seconds": gap}
        files = _write(
            found, Path(out) / name, result, protocol, threshold=threshold, top=top, film=film, csv=csv
        )
        result.files.extend(files)
        if on_video is not None:
            on_video("\n".join([closing_words(found, threshold=threshold), *found.notes]), files)
    if not result.found:
        raise UserError(f"none of the {len(videos)} videos could be read; the first: {result.failures[0]}")
    return result


def _write(
    found: VideoActions,
    base: Path,
    result: Detected,
    about: Mapping[str, Any],
    *,
    threshold: float,
    top: int,
    film: bool,
    csv: bool,
) -> list[Path]:
    """The files of one video; a film that breaks off is a failure of the result."""
    files = [base.with_name(f"{base.name}.json")]
    write_json(files[0], found, threshold=threshold, protocol=about)
    if csv:
        files.append(base.with_name(f"{base.name}.csv"))
        write_rows(files[-1], found)
    if film:
        target = base.with_name(f"{base.name}.mp4")
        try:
            write_film(target, found, threshold=threshold, top=top)
        except VideoReadError as error:  # damaged beyond what the clips needed
            result.failures.append(VideoReadError(error.path, f"no annotated video: {error.cause}"))
        else:
            files.append(target)
    return files


def _check(
    videos: Sequence[str], detector: str | None, options: Mapping[str, Any], *, threshold: float, top: int
) -> None:
    """Refuse what cannot be before anything is read."""
    if not videos:
        raise UserError("no video: give at least one file")
    if not 0 <= threshold <= 1:
        raise UserError(f"threshold {threshold:g} is not between 0 and 1; it is an action's least score")
    if top < 1:
        raise UserError(f"top {top}: ask for at least 1 action")
    if options and detector is None:
        raise UserError(
            f"options {', '.join(options)}: without a detector of persons nothing takes them; name it"
        )


def _files_of(
    checkpoint: str | os.PathLike[str],
    boxes: str | os.PathLike[str] | None,
    detector: str | None,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Whose weights are used, and who says where the persons are."""
    found_by: dict[str, Any] = {"detector": detector, "options": dict(options)}
    if boxes is not None:
        found_by = {"file": os.fspath(boxes), "sha256": file_sha256(boxes)}
    return {
        "weights": os.fspath(checkpoint),
        "weights_sha256": file_sha256(checkpoint),
        "boxes": found_by,
    }


def _sight_of(detector: LoadedDetector) -> dict[str, Any]:
    """How the detector is shown the videos."""
    clip = detector.recipe.clip
    return {
        "frames": clip.frames,
        "stride": clip.stride,
        "target_fps": clip.target_fps,
        "short_side": detector.recipe.short_side,
        "area": "whole",
        "mean": clip.mean,
        "std": clip.std,
        "precision": "bf16" if detector.bf16 else "fp32",
    }
