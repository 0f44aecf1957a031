"""The verbs of classifiers and encoders: evaluate, average-scores, predict, extract-features."""

from __future__ import annotations

from dataclasses import dataclass, replace

from videomaskfeat.config_keys import key
from videomaskfeat.schemas.finetune import CROPS, SAMPLINGS
from videomaskfeat.schemas.sections import (
    BatchOptions,
    OutputOptions,
)
from videomaskfeat.terminal import progress, report_failures
from videomaskfeat.texts import printable
from videomaskfeat.verbs.options import (
    ListOptions,
    RayOptions,
    ReadingOptions,
    ViewsOptions,
    as_arguments,
    print_scores,
    select_fields,
)
from videomaskfeat.verbs.verb import Verb


@dataclass
class EvaluateOptions(ListOptions, ReadingOptions, BatchOptions, ViewsOptions, OutputOptions, RayOptions):
    """files"""

    weights: str = key("", "weights of a fine-tuning run or of an import", positional=True)
    list: str = key("", "list file or folder, with or without labels", positional=True)
    out: str = key("evaluation", "folder to write")
    submission: str = key("", "file for a Something-Something-v2 submission")
    class_names: str = key("", "file of class names: one per line, or SSv2's labels JSON")
    sampling: str | None = key(None, "frame sampling", choices=SAMPLINGS, null="from the weights")
    short_side: int | None = key(
        None, "short side of a frame", unit="pixels", least=1, null="from the weights"
    )
    average: str | None = key(
        None, "average over views", choices=("softmax", "logits"), null="from the weights"
    )
    knn: str = key("", "training list for k-NN classification by features of any weights")
    k: int = key(20, "number of nearest neighbors", least=1)
    temperature: float = key(0.07, "temperature of the neighbors' votes", above=0)
    videos_per_batch: int | None = key(
        None, "videos per worker and batch", least=1, null="as many as have about 32 clips"
    )


def evaluate(options: EvaluateOptions) -> int:
    """Score a classifier with any head, or frozen features by k-NN, on a list of videos.

      videomaskfeat evaluate runs/s_k400/best.safetensors k400/val.csv --prefix k400/videos --views 10
      videomaskfeat evaluate best.safetensors val.csv views=5 crops=3 out=runs/s_k400/5x3
      videomaskfeat evaluate best.safetensors ssv2/something-something-v2-test.json --prefix ssv2/videos \\
          --views 1 --crops 3 --submission submission.csv
      videomaskfeat evaluate runs/s/weights.safetensors val.csv --knn train.csv
      torchrun --nproc-per-node=8 -m videomaskfeat evaluate best.safetensors k400/val.csv
    """
    from videomaskfeat.inference.lists import ListChoice
    from videomaskfeat.inference.multiview import Machine
    from videomaskfeat.jobs.evaluate import Neighbors, ViewOptions, evaluate

    with progress("scoring videos") as update:
        result = evaluate(
            options.weights,
            options.list,
            options.out,
            views=select_fields(ViewOptions, options),
            lists=select_fields(ListChoice, options),
            neighbors=Neighbors(options.knn, options.k, options.temperature) if options.knn else None,
            machine=select_fields(Machine, options),
            ray=options.ray,
            submission=options.submission,
            overwrite=options.overwrite,
            progress=update,
        )
    return print_scores("evaluate", result.text, (f"{one.path}: {one.cause}" for one in result.failures))


@dataclass
class AverageScoresOptions(OutputOptions):
    """files"""

    scores: list[str] = key([], "folders of evaluations, or their scores.npz", positional=True)
    out: str = key("ensemble", "folder to write")
    submission: str = key("", "file for a Something-Something-v2 submission")


def average_scores(options: AverageScoresOptions) -> int:
    """Average the scores of two or more evaluations of one list, and report the ensemble's accuracy.

    videomaskfeat average-scores runs/a/evaluation runs/b/evaluation --out ensemble
    """
    from videomaskfeat.jobs.average_scores import average_files

    result = average_files(
        options.scores, options.out, submission=options.submission, overwrite=options.overwrite
    )
    return print_scores(
        "average-scores", result.text, (f"{one.path}: {one.cause}" for one in result.failures)
    )


@dataclass
class PredictOptions(ReadingOptions, ViewsOptions, OutputOptions):
    """files"""

    weights: str = key(
        "", "weights of a fine-tuning run or of an import", positional=True, former="checkpoint"
    )
    videos: list[str] = key([], "videos or pictures, or folders with them", positional=True)
    top: int = key(5, "classes per video", least=1)
    window: float | None = key(
        None, "length of a window, each with its classes", unit="seconds", above=0, null="the whole video"
    )
    every: float | None = key(
        None, "distance of the starts of two windows", unit="seconds", above=0, null="window"
    )
    json: str | None = key(None, "JSON file; - prints JSON instead of text")
    csv: str | None = key(None, "CSV file of path, start_seconds, end_seconds, label, name, probability")
    out: str | None = key(None, "folder for annotated videos (mp4 without sound)")
    workers: int = key(0, "number of loader processes; 0: the main process loads", least=0)


def predict(options: PredictOptions) -> int:
    """Classify videos; print text or JSON, or draw the classes into the videos.

    videomaskfeat predict runs/s_k400/best.safetensors my_video.mp4
    videomaskfeat predict best.safetensors my_videos/ --top 3 --json labels.json --out labeled
    videomaskfeat predict best.safetensors *.mp4 --views 1 --json - | jq
    videomaskfeat predict best.safetensors long.mp4 --window 2 --every 1 --csv times.csv --out labeled
    """
    from videomaskfeat.inference.multiview import Machine
    from videomaskfeat.jobs.predict import Predictions, WindowPredictions, format_json, format_text, predict

    def print_text(predictions: Predictions | WindowPredictions) -> None:
        print(printable(format_text(predictions, options.top)), flush=True)

    groups = {"machine": Machine}
    if options.json == "-":
        arguments = as_arguments(replace(options, json=None), groups, json="json_path", csv="csv_path")
        result = predict(**arguments, on_prediction=None)
        print(format_json(result, options.top))
    else:
        result = predict(
            **as_arguments(options, groups, json="json_path", csv="csv_path"), on_prediction=print_text
        )
        for film in result.films:
            print(printable(str(film)))
    return report_failures("predict", result.failures)


@dataclass
class FeaturesOptions(ListOptions, ReadingOptions, BatchOptions, RayOptions):
    """files"""

    weights: str = key("", "weights of any run, or of an import", positional=True)
    list: str = key("", "list file or folder of videos", positional=True)
    out: str = key("", "folder to write", positional=True)
    depth: int | None = key(
        None, "block whose output is returned, counted from 1", least=1, null="the output"
    )
    grid: bool = key(False, "one feature per token instead of their mean")
    views: int = key(1, "temporal views per video, evenly spaced", least=1)
    crops: int = key(1, "crops per view", choices=CROPS)
    dtype: str = key("float32", "type on disk", choices=("float32", "float16"))
    shard: int = key(128, "videos between two saves", least=1)
    window: float | None = key(
        None,
        "length of a window; features of each window, one file per video",
        unit="seconds",
        above=0,
        null="the whole video",
    )
    every: float | None = key(
        None, "distance of the starts of two windows", unit="seconds", above=0, null="window"
    )
    form: str = key(
        "npz",
        "files of windows",
        choices={"npz": "feats and times", "npy": "NAME.npy and NAME_times.npy"},
    )


def extract_features(options: FeaturesOptions) -> int:
    """Write features of the videos of a list; the same command continues after a stop.

      videomaskfeat extract-features runs/s/weights.safetensors k400/val.csv features/k400_val
      videomaskfeat extract-features weights.safetensors my_videos/ features/mine --depth 12 --views 4
      videomaskfeat extract-features weights.safetensors list.csv features/grid --grid --dtype float16
      videomaskfeat extract-features weights.safetensors long_videos/ features/windows --window 2 --every 1
      torchrun --nproc-per-node=8 -m videomaskfeat extract-features weights.safetensors list.csv features/all
    then, in Python:
      array, paths, labels = videomaskfeat.read_features("features/k400_val")
    """
    from videomaskfeat.inference.lists import ListChoice
    from videomaskfeat.inference.multiview import Machine
    from videomaskfeat.jobs.features import extract_features

    groups = {"lists": ListChoice, "machine": Machine}
    arguments = as_arguments(options, groups, list="list_path", shard="videos_per_shard")
    with progress("extracting features") as update:
        result = extract_features(**arguments, progress=update)
    name = "features.npy" if options.window is None else f"*.{options.form}"
    print(printable(f"{result.folder / name}  {options.dtype} {list(result.shape)}"))
    return report_failures("extract-features", result.failures)


VERBS = {
    "evaluate": Verb(evaluate, ranks=True),
    "average-scores": Verb(average_scores),
    "predict": Verb(predict),
    "extract-features": Verb(extract_features, ranks=True),
}
