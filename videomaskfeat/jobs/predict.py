"""``predict``: the most probable classes of videos, as text, as JSON and drawn into the video itself."""

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
from videomaskfeat.data.frames import is_picture
from videomaskfeat.data.loader import ViewLoader
from videomaskfeat.data.records import Records
from videomaskfeat.data.video import VideoReader, VideoReadError, open_video
from videomaskfeat.errors import UserError
from videomaskfeat.inference.classifiers import Predictions, load_classifier
from videomaskfeat.inference.multiview import Machine, build_views
from videomaskfeat.inference.results import describe_views, describe_weights
from videomaskfeat.inference.threads import choose_inference_threads
from videomaskfeat.io import free_name, is_folder, make_folder, make_parent, whole_file
from videomaskfeat.viz.labelled import Bar, write_labelled, write_labelled_picture

_LISTS = (".csv", ".tsv", ".txt", ".json")  # suffixes of list files, which no video has
_BARS = 3  # classes drawn into a video
_READ_BYTES = 64 << 20  # decoded frames held on the way into a film


@dataclass(frozen=True)
class Predicted:
    """The result of ``predict``.

    Attributes:
        protocol: weights, views and crops that the predictions depend on.
        predictions: of each video that could be read, in the given order.
        failures: one error, with path and cause, for each video that could not be read, or whose film could
            not be made.
        films: the annotated videos and pictures.
    """

    protocol: Mapping[str, Any]
    predictions: list[Predictions] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    films: list[Path] = field(default_factory=list)


def predict(
    checkpoint: str | os.PathLike[str],
    videos: Sequence[str],
    *,
    top: int = 5,
    views: int | None = None,
    crops: int | None = None,
    out: str | os.PathLike[str] | None = None,
    json_path: str | os.PathLike[str] | None = None,
    device: str = "auto",
    precision: str = "auto",
    reader: str = "auto",
    workers: int = 0,
    on_prediction: Callable[[Predictions], None] | None = None,
) -> Predicted:
    """Classify videos.

    Args:
        checkpoint: weights file (safetensors) of a classifier.
        videos: paths, at least one; of pictures if clips are one frame. A folder stands for all videos (or
            pictures) below it, a folder with one picture per frame for that video.
        top: classes per video in the JSON file.
        views: temporal views per video; None: as the classifier was tested.
        crops: crops per view, 1 or 3; None: as the classifier was tested.
        out: folder for an annotated mp4 of each video, ``NAME_labels.mp4``, or of a picture
            ``NAME_labels.png``; None: none.
        json_path: file for :func:`as_json`; None: none.
        device: auto, cpu, cuda or cuda:N.
        precision: auto (bf16 on a GPU, fp32 on a CPU), fp32 or bf16.
        reader: auto, decord or pyav.
        workers: processes that read videos; 0 reads in this one.
        on_prediction: called with the predictions of each video as they come.

    Raises:
        UserError: the checkpoint or an argument is wrong, a folder holds no video, or no video could be read.
        RunFailed: the model's output is not finite.
    """
    if top < 1:
        raise UserError(f"top {top}: must be at least 1 class")
    classifier = load_classifier(checkpoint, device=device, precision=precision, reader=reader)
    recipe = classifier.recipe.with_views(views=views, crops=crops)
    _refuse_lists(videos)
    paths = expand_folders(videos, stills=recipe.clip.frames == 1)
    records = Records.from_paths(paths, None, source="the videos")
    loader = ViewLoader(build_views(records, recipe, reader=reader), per_batch=1, workers=workers)
    choose_inference_threads(
        classifier.model, recipe.clip, Machine(device, precision, reader, workers=workers)
    )
    if out:  # made now rather than after all the work
        make_folder(out)
    if json_path:
        make_parent(json_path)
    protocol = {
        **describe_weights(checkpoint),
        **describe_views(recipe),
        "average": recipe.average,
        "precision": classifier.machine.precision_used,
    }
    result = Predicted(protocol)
    with closing(iter(loader)) as batches:
        for batch in batches:
            result.failures.extend(VideoReadError(one.path, one.cause) for one in batch.failures)
            for index in batch.index.tolist():  # one, or none if it could not be read
                predictions = classifier.predict_clips(batch.clips, records[index].path)
                result.predictions.append(predictions)
                if on_prediction is not None:
                    on_prediction(predictions)
                if out is not None:
                    _add_film(result, predictions, Path(out), reader)
    if not result.predictions:
        raise UserError(f"none of the {len(records)} videos could be read; the first: {result.failures[0]}")
    if json_path:
        with whole_file(json_path) as file:
            file.write(as_json(result, top) + "\n")
    return result


def as_text(predictions: Predictions, top: int = 5) -> str:
    """The path, and a line for each of the most probable classes."""
    lines = [f"{100 * entry.probability:7.2f} %  {entry.text}" for entry in predictions.top(top)]
    return "\n".join([predictions.path, *lines])


def as_json(result: Predicted, top: int = 5) -> str:
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


def _refuse_lists(videos: Iterable[str]) -> None:
    for video in videos:
        if video.lower().endswith(_LISTS) and not is_folder(video):
            raise UserError(
                f"{video}: is a list, and videos are needed here; score a list with `videomaskfeat evaluate "
                "WEIGHTS LIST`"
            )


def _add_film(result: Predicted, predictions: Predictions, out: Path, reader: str) -> None:
    name = free_name(f"{Path(predictions.path).stem}_labels", {film.stem for film in result.films})
    picture = is_picture(predictions.path)
    film = out / f"{name}{'.png' if picture else '.mp4'}"
    bars = [Bar(entry.text, entry.probability) for entry in predictions.top(_BARS)]
    try:
        with open_video(predictions.path, reader, threads=0) as video:
            if picture:
                write_labelled_picture(film, video.read([0])[0], bars)
            else:
                write_labelled(film, _frames(video), bars, fps=video.fps)
    except VideoReadError as error:  # damaged beyond the frames that the views needed
        result.failures.append(VideoReadError(error.path, f"no annotated video: {error.cause}"))
        return
    result.films.append(film)


def _frames(video: VideoReader) -> Iterator[np.ndarray]:
    """All frames, uint8 [H, W, 3] each, read a few at a time; the first tells how large they are."""
    start, count = 0, 1
    while start < video.frames:
        frames = video.read(range(start, min(start + count, video.frames)))
        yield from frames
        start += len(frames)
        count = max(_READ_BYTES // frames[0].nbytes, 1)
