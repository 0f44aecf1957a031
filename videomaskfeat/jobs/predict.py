"""``predict``: the most probable classes of videos, as text, as JSON and drawn into the videos."""

from __future__ import annotations

import itertools
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
from videomaskfeat.data.windows import iter_at_rate, open_by_time
from videomaskfeat.errors import UserError
from videomaskfeat.inference.classifiers import Predictions, VideoClassifier, load_classifier
from videomaskfeat.inference.multiview import Machine, build_views
from videomaskfeat.inference.results import describe_views, describe_weights, write_table
from videomaskfeat.inference.threads import choose_inference_threads
from videomaskfeat.inference.windows import Windows, check_windows, iter_window_clips
from videomaskfeat.io import check_outputs, is_folder, make_folder, make_parent, output_paths, whole_file
from videomaskfeat.mp4 import write_mp4
from videomaskfeat.stored_recipe import ClassifyRecipe
from videomaskfeat.viz.labeled import Bar, draw_labeled, film_rate, write_labeled, write_labeled_picture

_LIST_SUFFIXES = (".csv", ".tsv", ".txt", ".json")
_BARS = 3  # number of classes drawn into a video
_READ_BYTES = 64 << 20  # size of the decoded frames that are read together for a film
THIS_MACHINE = Machine()


@dataclass(frozen=True)
class WindowPredictions:
    """Predictions for the windows of a video.

    Attributes:
        path: the video.
        times: float64 [n, 2], start and end of each window [seconds after the first frame].
        windows: predictions for each window.
    """

    path: str
    times: np.ndarray
    windows: list[Predictions]


@dataclass(frozen=True)
class Predicted:
    """The result of ``predict``.

    Attributes:
        protocol: weights and views, as plain data.
        predictions: predictions for each video that could be read, in the given order; with windows empty.
        windows: with windows, their predictions for each video that could be read.
        failures: one error, with path and cause, for each unreadable video, and for each video that could not
            be annotated.
        films: the annotated videos and images.
    """

    protocol: Mapping[str, Any]
    predictions: list[Predictions] = field(default_factory=list)
    windows: list[WindowPredictions] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    films: list[Path] = field(default_factory=list)


def predict(
    weights: str | os.PathLike[str],
    videos: Sequence[str],
    *,
    top: int = 5,
    views: int | None = None,
    crops: int | None = None,
    window: float | None = None,
    every: float | None = None,
    out: str | os.PathLike[str] | None = None,
    json_path: str | os.PathLike[str] | None = None,
    csv_path: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    machine: Machine = THIS_MACHINE,
    on_prediction: Callable[[Predictions | WindowPredictions], None] | None = None,
) -> Predicted:
    """Classify videos.

    Args:
        weights: weights file (safetensors) of a classifier.
        videos: paths, at least one; of images if clips have one frame. A folder means all videos (or images)
            below it; a folder with one image per frame is one video.
        top: classes per video in the JSON file.
        views: temporal views per video; None: as in the recipe.
        crops: crops per view, 1 or 3; None: as in the recipe.
        window: length of a window [seconds], to classify each window of a video by one clip in its middle;
            None: the whole video.
        every: distance of the starts of two windows [seconds]; None: ``window``.
        out: folder for an annotated ``NAME_labels.mp4`` of each video, or ``NAME_labels.png`` of an image;
            None: none.
        json_path: file for :func:`format_json`; None: none.
        csv_path: file for :func:`csv_rows`; None: none.
        overwrite: replace earlier annotated videos and the JSON file.
        machine: device and loading options.
        on_prediction: called with the predictions for each video, or for its windows.

    Raises:
        UserError: the weights or an argument are wrong, a folder has no videos, an output exists, or no video
            could be read.
        RunFailed: the output of the model is not finite.
    """
    if top < 1:
        raise UserError(f"top {top}: must be at least 1 class")
    classifier = load_classifier(
        weights, device=machine.device, precision=machine.precision, reader=machine.reader
    )
    windows = check_windows(window, every, views=views)
    recipe = classifier.recipe.with_views(views=1 if windows else views, crops=crops)
    _check_videos(videos)
    paths = expand_folders(videos, stills=recipe.clip.frames == 1 and windows is None)
    records = Records.from_paths(paths, None, source="the videos")
    loader = ViewLoader(
        build_views(records, recipe, reader=machine.reader), per_batch=1, workers=machine.workers
    )
    choose_inference_threads(classifier.model, recipe.clip, machine)
    films = [] if out is None else _film_paths(out, paths)
    files = [path for path in (json_path, csv_path) if path]
    check_outputs([*films, *files], overwrite=overwrite)
    if out:  # created before the work, so that a mistake is reported early
        make_folder(out)
    for path in files:
        make_parent(path)
    protocol = {
        **describe_weights(weights),
        **describe_views(recipe),
        "average": recipe.average,
        "precision": classifier.machine.precision_used,
        **({} if windows is None else {"window_seconds": windows.window, "every_seconds": windows.every}),
    }
    result = Predicted(protocol)
    if windows is not None:
        _predict_windows(classifier, recipe, paths, windows, result, films, on_prediction)
    else:
        _predict_videos(classifier, loader, paths, result, films, on_prediction)
    return _finish(result, paths, top, json_path, csv_path)


def _predict_videos(
    classifier: VideoClassifier,
    loader: ViewLoader,
    paths: Sequence[str],
    result: Predicted,
    films: Sequence[Path],
    on_prediction: Callable[[Predictions | WindowPredictions], None] | None,
) -> None:
    with closing(iter(loader)) as batches:
        for batch in batches:
            result.failures.extend(VideoReadError(failure.path, failure.cause) for failure in batch.failures)
            for index in batch.index.tolist():  # empty for an unreadable video
                predictions = classifier.predict_clips(batch.clips, paths[index])
                result.predictions.append(predictions)
                if on_prediction is not None:
                    on_prediction(predictions)
                if films:
                    _add_film(result, predictions, films[index], classifier.machine.reader)


def _predict_windows(
    classifier: VideoClassifier,
    recipe: ClassifyRecipe,
    paths: Sequence[str],
    windows: Windows,
    result: Predicted,
    films: Sequence[Path],
    on_prediction: Callable[[Predictions | WindowPredictions], None] | None,
) -> None:
    reader = classifier.machine.reader
    for number, path in enumerate(paths):
        times, predictions = list[np.ndarray](), list[Predictions]()
        try:
            for own, clips in iter_window_clips(path, recipe, windows, reader=reader):
                times.append(own)
                predictions += [
                    Predictions(path, probabilities, recipe.class_names)
                    for probabilities in classifier.clip_probabilities(clips, views=recipe.crops)
                ]
        except VideoReadError as error:
            result.failures.append(error)
            continue
        result.windows.append(WindowPredictions(path, np.concatenate(times), predictions))
        if on_prediction is not None:
            on_prediction(result.windows[-1])
        if films:
            _add_window_film(result, result.windows[-1], films[number], reader)


def _finish(
    result: Predicted,
    paths: Sequence[str],
    top: int,
    json_path: str | os.PathLike[str] | None,
    csv_path: str | os.PathLike[str] | None,
) -> Predicted:
    """Write the JSON and CSV files; raises UserError if no video could be read."""
    if not result.predictions and not result.windows:
        raise UserError(f"none of the {len(paths)} videos could be read; the first: {result.failures[0]}")
    if json_path:
        with whole_file(json_path) as file:
            file.write(format_json(result, top) + "\n")
    if csv_path:
        write_table(csv_path, csv_rows(result, top))
    return result


def format_text(predictions: Predictions | WindowPredictions, top: int = 5) -> str:
    """The path, and a line for each of the most probable classes, or for each window with its best class."""
    if isinstance(predictions, WindowPredictions):
        rows = zip(predictions.times.tolist(), (one.top(1)[0] for one in predictions.windows), strict=True)
        lines = [
            f"{start:9.2f} - {end:8.2f} s  {100 * entry.probability:7.2f} %  {entry.text}"
            for (start, end), entry in rows
        ]
        return "\n".join([predictions.path, *lines])
    lines = [f"{100 * entry.probability:7.2f} %  {entry.text}" for entry in predictions.top(top)]
    return "\n".join([predictions.path, *lines])


def format_json(result: Predicted, top: int = 5) -> str:
    """A list with one object per video: path, predictions (label, name or null, probability), protocol.

    With windows an object has ``windows`` instead: start and end [seconds], and predictions.
    """
    videos = [
        {
            "kind": "predictions",
            "path": predictions.path,
            "predictions": [asdict(entry) for entry in predictions.top(top)],
            "protocol": result.protocol,
        }
        for predictions in result.predictions
    ]
    videos += [
        {
            "kind": "windows",
            "path": video.path,
            "windows": [
                {
                    "start_seconds": round(start, 6),
                    "end_seconds": round(end, 6),
                    "predictions": [asdict(entry) for entry in predictions.top(top)],
                }
                for (start, end), predictions in zip(video.times.tolist(), video.windows, strict=True)
            ],
            "protocol": result.protocol,
        }
        for video in result.windows
    ]
    return json.dumps(videos, indent=2)


def csv_rows(result: Predicted, top: int = 5) -> Iterator[Sequence[object]]:
    """A header, and a row for each of the best classes of each video or window.

    The columns are path, start_seconds, end_seconds (empty without windows), label, name, probability.
    """
    yield "path", "start_seconds", "end_seconds", "label", "name", "probability"
    for video in result.predictions:
        for entry in video.top(top):
            yield video.path, "", "", entry.label, entry.name or "", f"{entry.probability:.6g}"
    for windows in result.windows:
        for (start, end), predictions in zip(windows.times.tolist(), windows.windows, strict=True):
            times = (f"{start:.6g}", f"{end:.6g}")
            for entry in predictions.top(top):
                yield windows.path, *times, entry.label, entry.name or "", f"{entry.probability:.6g}"


def _check_videos(videos: Iterable[str]) -> None:
    for video in videos:
        if video.lower().endswith(_LIST_SUFFIXES) and not is_folder(video):
            raise UserError(
                f"{video} is a list; give videos, or score the list with `videomaskfeat evaluate "
                "WEIGHTS LIST`"
            )


def _film_paths(out: str | os.PathLike[str], videos: Sequence[str]) -> list[Path]:
    """The annotated video or image of each video."""
    ends = (".png" if is_picture(video) else ".mp4" for video in videos)
    paths = output_paths(out, videos, "_labels")
    return [path.with_name(path.name + end) for path, end in zip(paths, ends, strict=True)]


def _add_film(result: Predicted, predictions: Predictions, film: Path, reader: str) -> None:
    image = is_picture(predictions.path)
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


def _add_window_film(result: Predicted, video: WindowPredictions, film: Path, reader: str) -> None:
    """Each frame shows the classes of the window whose middle is nearest."""
    middles = video.times.mean(axis=1)
    bars = [[Bar(entry.text, entry.probability) for entry in one.top(_BARS)] for one in video.windows]
    try:
        with open_by_time(video.path, reader) as source:
            fps = film_rate(source.fps)
            frames = iter_at_rate(source, fps, max(round(source.duration_seconds * fps), 1))

            def nearest(frame: tuple[int, np.ndarray]) -> int:
                return int(np.abs(middles - frame[0] / fps).argmin())

            drawn = (
                picture
                for window, group in itertools.groupby(frames, nearest)
                for picture in draw_labeled((frame for _, frame in group), bars[window])
            )
            write_mp4(film, drawn, fps=fps, crf=23)
    except VideoReadError as error:
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
