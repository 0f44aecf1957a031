"""``predict``: the most probable classes of videos, as text, as JSON and drawn into the videos."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from videomaskfeat.data.formats import expand_folders
from videomaskfeat.data.loader import ViewLoader
from videomaskfeat.data.reader import is_picture
from videomaskfeat.data.records import Records
from videomaskfeat.data.video import VideoReader, VideoReadError, open_video
from videomaskfeat.errors import UserError
from videomaskfeat.inference.classifiers import Predictions, load_classifier
from videomaskfeat.inference.multiview import Machine, build_views
from videomaskfeat.inference.results import describe_views, describe_weights
from videomaskfeat.inference.threads import choose_inference_threads
from videomaskfeat.io import free_name, is_folder, make_folder, make_parent, whole_file
from videomaskfeat.viz.labeled import Bar, write_labeled, write_labeled_picture

_LIST_SUFFIXES = (".csv", ".tsv", ".txt", ".json")
_BARS = 3  # number of classes drawn into a video
_READ_BYTES = 64 << 20  # size of the decoded frames that are read together for a film
THIS_MACHINE = Machine()


@dataclass(frozen=True)
class Predicted:
    """The result of ``predict``.

    Attributes:
        protocol: weights and views, as plain data.
        predictions: predictions for each video that could be read, in the given order.
        failures: one error, with path and cause, for each unreadable video, and for each video that could not
            be annotated.
        films: the annotated videos and images.
    """

    protocol: Mapping[str, Any]
    predictions: list[Predictions] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    films: list[Path] = field(default_factory=list)


def predict(
    weights: str | os.PathLike[str],
    videos: Sequence[str],
    *,
    top: int = 5,
    views: int | None = None,
    crops: int | None = None,
    out: str | os.PathLike[str] | None = None,
    json_path: str | os.PathLike[str] | None = None,
    machine: Machine = THIS_MACHINE,
    on_prediction: Callable[[Predictions], None] | None = None,
) -> Predicted:
    """Classify videos.

    Args:
        weights: weights file (safetensors) of a classifier.
        videos: paths, at least one; of images if clips have one frame. A folder means all videos (or images)
            below it; a folder with one image per frame is one video.
        top: classes per video in the JSON file.
        views: temporal views per video; None: as in the recipe.
        crops: crops per view, 1 or 3; None: as in the recipe.
        out: folder for an annotated ``NAME_labels.mp4`` of each video, or ``NAME_labels.png`` of an image;
            None: none.
        json_path: file for :func:`format_json`; None: none.
        machine: device and loading options.
        on_prediction: called with the predictions for each video.

    Raises:
        UserError: the weights or an argument are wrong, a folder has no videos, or no video could be read.
        RunFailed: the output of the model is not finite.
    """
    if top < 1:
        raise UserError(f"top {top}: must be at least 1 class")
    classifier = load_classifier(
        weights, device=machine.device, precision=machine.precision, reader=machine.reader
    )
    recipe = classifier.recipe.with_views(views=views, crops=crops)
    _check_videos(videos)
    paths = expand_folders(videos, stills=recipe.clip.frames == 1)
    records = Records.from_paths(paths, None, source="the videos")
    loader = ViewLoader(
        build_views(records, recipe, reader=machine.reader), per_batch=1, workers=machine.workers
    )
    choose_inference_threads(classifier.model, recipe.clip, machine)
    if out:  # created before the work, so that a mistake is reported early
        make_folder(out)
    if json_path:
        make_parent(json_path)
    protocol = {
        **describe_weights(weights),
        **describe_views(recipe),
        "average": recipe.average,
        "precision": classifier.machine.precision_used,
    }
    result = Predicted(protocol)
    with closing(iter(loader)) as batches:
        for batch in batches:
            result.failures.extend(VideoReadError(failure.path, failure.cause) for failure in batch.failures)
            for index in batch.index.tolist():  # empty for an unreadable video
                predictions = classifier.predict_clips(batch.clips, records[index].path)
                result.predictions.append(predictions)
                if on_prediction is not None:
                    on_prediction(predictions)
                if out is not None:
                    _add_film(result, predictions, Path(out), machine.reader)
    if not result.predictions:
        raise UserError(f"none of the {len(records)} videos could be read; the first: {result.failures[0]}")
    if json_path:
        with whole_file(json_path) as file:
            file.write(format_json(result, top) + "\n")
    return result


def format_text(predictions: Predictions, top: int = 5) -> str:
    """The path, and a line for each of the most probable classes."""
    lines = [f"{100 * entry.probability:7.2f} %  {entry.text}" for entry in predictions.top(top)]
    return "\n".join([predictions.path, *lines])


def format_json(result: Predicted, top: int = 5) -> str:
    """A list with one object per video: path, predictions (label, name or null, probability), protocol."""
    videos = [
        {
            "kind": "predictions",
            "path": predictions.path,
            "predictions": [asdict(entry) for entry in predictions.top(top)],
            "protocol": result.protocol,
        }
        for predictions in result.predictions
    ]
    return json.dumps(videos, indent=2)


def _check_videos(videos: Iterable[str]) -> None:
    for video in videos:
        if video.lower().endswith(_LIST_SUFFIXES) and not is_folder(video):
            raise UserError(
                f"{video} is a list; give videos, or score the list with `videomaskfeat evaluate "
                "WEIGHTS LIST`"
            )


def _add_film(result: Predicted, predictions: Predictions, out: Path, reader: str) -> None:
    name = free_name(f"{Path(predictions.path).stem}_labels", {film.stem for film in result.films})
    image = is_picture(predictions.path)
    film = out / f"{name}{'.png' if image else '.mp4'}"
    bars = [Bar(entry.text, entry.probability) for entry in predictions.top(_BARS)]
    try:
        with open_video(predictions.path, reader, threads=0) as video:
            if image:
                write_labeled_picture(film, video.read([0])[0], bars)
            else:
                write_labeled(film, _read_frames(video), bars, fps=video.fps)
    except VideoReadError as error:  # frames outside the views are damaged
        result.failures.append(VideoReadError(error.path, f"no annotated video: {error.cause}"))
        return
    result.films.append(film)


def _read_frames(video: VideoReader) -> Iterator[np.ndarray]:
    """All frames, uint8 [H, W, 3]; the size of the first one sets how many are read together."""
    start, count = 0, 1
    while start < video.frames:
        frames = video.read(range(start, min(start + count, video.frames)))
        yield from frames
        start += len(frames)
        count = max(_READ_BYTES // frames[0].nbytes, 1)
