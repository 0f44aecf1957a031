"""The verbs of the command line: the options, the help and the function of each.

The functions import their jobs when they run, so that ``--help`` does not load torch.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from videomaskfeat import import_object
from videomaskfeat.config import shipped_configs
from videomaskfeat.config_keys import key, section
from videomaskfeat.errors import UserError
from videomaskfeat.interop.slowfast_keys import SUPPORTED
from videomaskfeat.io import make_parent, open_file, whole_file
from videomaskfeat.processes import started_by_verbs
from videomaskfeat.schemas.compare import CompareConfig
from videomaskfeat.schemas.detect import AREAS, AvaVideos, DetectConfig
from videomaskfeat.schemas.detect_video import DetectVideoConfig
from videomaskfeat.schemas.finetune import CROPS, SAMPLINGS, FinetuneConfig
from videomaskfeat.schemas.pretrain import LABELS, MASK_KINDS, PretrainConfig
from videomaskfeat.schemas.sections import (
    CLIP_MAPS,
    LIST_FORMATS,
    PRESETS,
    READERS,
    SEPARATORS,
    SHARE,
    BatchOptions,
    MachineOptions,
    OutputOptions,
)
from videomaskfeat.schemas.tokenizer import TokenizerConfig
from videomaskfeat.terminal import DONE, FAILED, INTERRUPTED, SOME_FAILED, progress, report_failures
from videomaskfeat.texts import printable, printable_name

T = TypeVar("T")


def _select_fields(cls: type[T], options: Any) -> T:
    """An instance of a dataclass from the options of the same names."""
    values = {item.name: getattr(options, item.name) for item in fields(cls) if hasattr(options, item.name)}  # type: ignore[arg-type]
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _as_arguments(
    options: Any, groups: Mapping[str, type[Any]] | None = None, **new_names: str
) -> dict[str, Any]:
    """The options as keyword arguments of a job.

    Args:
        options: the options of a verb.
        groups: argument -> dataclass that replaces the options of the same names.
        new_names: option -> argument, where the names differ.
    """
    groups = groups or {}
    grouped = {item.name for cls in groups.values() for item in fields(cls)}
    arguments = {
        new_names.get(name, name): value for name, value in vars(options).items() if name not in grouped
    }
    return arguments | {name: _select_fields(cls, options) for name, cls in groups.items()}


# Options that several verbs share.


@dataclass
class ListOptions:
    """list"""

    prefix: str = key("", "folder put before every relative path")
    format: str = key("auto", "format of the list", choices=LIST_FORMATS, plugin="a ListFormat")
    labels: str = key("auto", "whether rows end with a label", choices=LABELS)
    separator: str = key("auto", "column separator", choices=SEPARATORS)


@dataclass
class ReadingOptions(MachineOptions):
    """reading"""

    reader: str = key("auto", "video reader", choices=READERS, plugin="a VideoReader")
    workers: int = key(2, "number of loader processes per rank; 0: the main process loads", least=0)


@dataclass
class RayOptions:
    """cluster"""

    ray: str = key(
        "",
        "address of a Ray cluster that does the work: host:6379, ray://host:10001, auto, or local (Ray on "
        "this machine); empty: no cluster",
    )


@dataclass
class ViewsOptions:
    """views"""

    views: int | None = key(None, "temporal views per video, evenly spaced", least=1, null="from the weights")
    crops: int | None = key(None, "crops per view", choices=CROPS, null="from the weights")


@dataclass
class KeyFrameOptions:
    """key frames"""

    groundtruth: str = key("", "rows video,second,x1,y1,x2,y2,action,person", required="ava_val_v2.2.csv")
    labels: str = key("", "label map (pbtxt) of the scored actions", required="actions.pbtxt")
    iou: float = key(0.5, "minimum IoU of a hit", **SHARE)
    rows_per_frame: int | None = key(
        None, "maximum number of rows per key frame, best first (official script: 50)", least=1, null="all"
    )


# Trainings, with a config each.


def inherit_clip(config: Any, own: Collection[str]) -> Mapping[str, Any]:
    """The clip settings of the initial weights of a fine-tuning or a detector."""
    if not isinstance(config, FinetuneConfig | DetectConfig) or not config.model.weights:
        return {}
    from videomaskfeat.inference.clip_settings import inherited_settings

    return inherited_settings(config, own)


def choose_size(config: Any, size: str) -> tuple[str, str]:
    """The name of the config's model in another size, and a line about it.

    Raises:
        UserError: the family of the model has no such size.
    """
    from videomaskfeat.models.zoo import arguments_of, model_of_size

    name = model_of_size(config.model.name, size)
    arguments = arguments_of(name)
    frames, height, width = arguments["clip_size"]
    decoder = ""
    if "decoder_width" in arguments:
        decoder = f", decoder of width {arguments['decoder_width']} and depth {arguments['decoder_depth']}"
    line = (
        f"size {size}: model.name is {name} (encoder of width {arguments['width']} and depth "
        f"{arguments['depth']}{decoder}), made for clips of {frames}x{height}x{width}"
    )
    if (config.clip.frames, config.clip.crop) not in ((frames, height), (frames, [height, width])):
        crop = height if height == width else [height, width]
        line += f"; clip.frames={frames} clip.crop={crop} sets that size, the config has other clips"
    return name, line


def _exit_code(outcome: Any) -> int:
    """The exit code of a training that ended without an error.

    A training that a signal stopped has saved its last step and ends with 0. As a step of a longer command
    it ends with 130.
    """
    if not outcome.finished and started_by_verbs():
        return INTERRUPTED
    return SOME_FAILED if outcome.failures else DONE


def pretrain(config: PretrainConfig) -> int:
    """Pre-train an encoder on videos by masked prediction; an existing run folder is resumed.

      videomaskfeat pretrain --config configs/pretrain/sample.yaml
      videomaskfeat pretrain --config configs/pretrain/k400_maskfeat_mvitv2_s.yaml \\
          data.train=k400/train.csv data.prefix=k400/videos run.folder=runs/s
      videomaskfeat pretrain --config configs/pretrain/k400_maskfeat_mvitv2_s.yaml --size l ...
      torchrun --nproc-per-node=8 -m videomaskfeat pretrain --config ... run.folder=runs/s
      videomaskfeat pretrain --keys        every key, its default and its meaning
    """
    from videomaskfeat.jobs.pretrain import pretrain

    return _exit_code(pretrain(config))


def finetune(config: FinetuneConfig) -> int:
    """Train a classifier from pre-trained weights, ours or PySlowFast's, or from scratch.

      videomaskfeat finetune --config configs/finetune/sample.yaml model.weights=demo/run/weights.safetensors
      videomaskfeat finetune --config configs/finetune/k400_maskfeat_mvitv2_s.yaml \\
          data.train=k400/train.csv data.validation=k400/val.csv model.weights=runs/s/weights.safetensors \\
          run.folder=runs/s_k400
      videomaskfeat finetune --config ... model.head=linear        a linear probe: the encoder stays frozen
      torchrun --nproc-per-node=8 -m videomaskfeat finetune --config ... run.folder=runs/s_k400
      videomaskfeat finetune --keys        every key, its default and its meaning
    """
    from videomaskfeat.jobs.finetune import finetune

    return _exit_code(finetune(config))


def detect_train(config: DetectConfig) -> int:
    """Train an action detector (actions of persons in given boxes), starting from pre-trained weights.

      videomaskfeat detect-train --config configs/detect/sample.yaml \\
          model.weights=demo/run/weights.safetensors
      videomaskfeat detect-train --config configs/detect/ava_v22_maskfeat_mvitv2_s.yaml \\
          data.videos=ava/videos model.weights=runs/s_k400/best.safetensors run.folder=runs/s_ava
      torchrun --nproc-per-node=8 -m videomaskfeat detect-train --config ... run.folder=runs/s_ava
      videomaskfeat detect-train --keys        every key, its default and its meaning
    """
    from videomaskfeat.jobs.detect import detect_train

    return _exit_code(detect_train(config))


def train_tokenizer(config: TokenizerConfig) -> int:
    """Train a tokenizer of video frames; `pretrain` can then predict its tokens (BEiT, PeCo).

      videomaskfeat train-tokenizer --config configs/tokenizer/sample_dvae.yaml
      videomaskfeat train-tokenizer --config configs/tokenizer/sample_vq.yaml \\
          perceptual.weights=demo/run/weights.safetensors perceptual.depths=[2,4]
      videomaskfeat pretrain --config configs/pretrain/sample_dvae.yaml      predicts its tokens
      videomaskfeat train-tokenizer --keys        every key, its default and its meaning
    """
    from videomaskfeat.jobs.tokenizer import train_tokenizer

    return _exit_code(train_tokenizer(config))


def compare(config: CompareConfig) -> int:
    """Pre-train with several targets under one budget, probe and fine-tune each, and write one page.

    videomaskfeat compare --config configs/compare/factors.yaml
    videomaskfeat compare --config configs/compare/factors.yaml --targets hog,pixels,ibot --seeds 3
    videomaskfeat compare --config ... compare.folder=runs/targets     the same command continues after a stop
    videomaskfeat compare --keys        every key, its default and its meaning
    """
    from videomaskfeat.jobs.compare import compare

    names = [name.strip() for names in config.compare.only for name in names.split(",") if name.strip()]
    page = compare(config, targets=names)
    with open_file(page.with_name("table.md")) as table:
        print(printable(table.read().rstrip()))
    print(printable(f"report  {page}"))
    return DONE


def plan(config: PretrainConfig | FinetuneConfig | DetectConfig | TokenizerConfig) -> int:
    """Measure a few steps of a training on this machine: duration, memory, and what to change.

    videomaskfeat plan --config configs/pretrain/k400_maskfeat_mvitv2_s.yaml data.train=train.csv
    videomaskfeat plan --config configs/finetune/k400_maskfeat_mvitv2_s.yaml run.device=cpu ...
    """
    from videomaskfeat.jobs.plan import plan_training

    print(printable(plan_training(config, _run_class(config)).text()))
    return DONE


def _run_class(config: Any) -> Any:
    """The class of `Run` that trains with a config."""
    runs: dict[type, str] = {
        PretrainConfig: "pretrain:PretrainRun",
        FinetuneConfig: "finetune:FinetuneRun",
        DetectConfig: "detect:DetectRun",
        TokenizerConfig: "tokenizer:TokenizerRun",
    }
    name = next(name for kind, name in runs.items() if isinstance(config, kind))
    return import_object(f"videomaskfeat.jobs.{name}")


@dataclass
class BenchSettings:
    """Benchmark of the data."""

    clips: int = key(64, "number of clips to measure", least=1, flag="clips")
    seconds: float = key(
        20.0, "time after which no further batch is measured", unit="seconds", above=0, flag="seconds"
    )
    out: str | None = key(None, "JSON file for the figures", flag="out")
    overwrite: bool = key(False, "replace this file if it exists", flag="overwrite")


@dataclass
class BenchPretrainConfig(PretrainConfig):
    """Pre-training whose data is measured."""

    bench: BenchSettings = section(BenchSettings)


@dataclass
class BenchFinetuneConfig(FinetuneConfig):
    """Fine-tuning whose data is measured."""

    bench: BenchSettings = section(BenchSettings)


@dataclass
class BenchDetectConfig(DetectConfig):
    """Training of a detector whose data is measured."""

    bench: BenchSettings = section(BenchSettings)


@dataclass
class BenchTokenizerConfig(TokenizerConfig):
    """Training of a tokenizer whose data is measured."""

    bench: BenchSettings = section(BenchSettings)


def bench_data(
    config: BenchPretrainConfig | BenchFinetuneConfig | BenchDetectConfig | BenchTokenizerConfig,
) -> int:
    """Measure the loading of a training by stage, and how many loader workers its steps need.

    videomaskfeat bench-data --config configs/pretrain/k400_maskfeat_mvitv2_s.yaml data.train=train.csv
    videomaskfeat bench-data --config ... --clips 256 --out data.json data.train=s3://bucket/shards/index.json
    """
    from videomaskfeat.jobs.bench_data import bench_data
    from videomaskfeat.jobs.plan import plan_training

    def measure_step() -> tuple[int, float]:
        plan = plan_training(config, _run_class(config))
        return plan.clips, plan.computing_seconds

    bench = config.bench
    result = bench_data(
        config,
        _run_class(config),
        measure_step,
        clips=bench.clips,
        seconds=bench.seconds,
        json_path=bench.out,
        overwrite=bench.overwrite,
    )
    print(printable(result.text()))
    return SOME_FAILED if result.failures else DONE


LAUNCHED = (
    *("pretrain", "finetune", "detect-train", "train-tokenizer"),
    *("evaluate", "detect-evaluate", "extract-features"),
)
"""Verbs that run on several ranks."""


@dataclass
class LaunchOptions:
    """options"""

    command: list[str] = key([], "verb and its arguments, after --", positional=True)
    nodes: int = key(1, "number of nodes", least=1)
    gpus_per_node: int = key(1, "GPUs per node; 0: a run on CPUs", least=0)
    processes_per_node: int | None = key(None, "ranks per node", least=1, null="one per GPU")
    cpus_per_node: int | None = key(None, "cores per node", least=1, null="the default of the cluster")
    memory_gb: float | None = key(
        None, "memory per node", unit="GB", above=0, null="the default of the cluster"
    )
    partition: str = key("", "partition; empty: the default one")
    hours: float = key(24.0, "time limit, after which the job is requeued", unit="hours", above=0)
    name: str = key("videomaskfeat", "name of the job")
    logs: str = key("launch", "folder of scripts and logs, shared by all nodes")
    save_seconds: int = key(120, "time to save before the job is stopped", unit="seconds", least=1)
    requeues: int = key(100, "maximum number of starts after a time limit", least=0)
    restarts: int = key(3, "restarts of the ranks after a failure", least=0)
    slurm: dict[str, Any] = key({}, "other options of sbatch, such as account=vision")
    cluster: str = key(
        "slurm", "where the job runs", choices={"slurm": "", "local": "this machine, in the background"}
    )


def launch(options: LaunchOptions) -> int:
    """Submit a command to SLURM on several nodes; it is requeued when it is preempted or out of time.

      videomaskfeat launch --nodes 4 --gpus-per-node 8 --partition gpu -- pretrain \\
          --config configs/pretrain/k400_maskfeat_mvitv2_s.yaml data.train=train.csv run.folder=runs/s
      videomaskfeat launch --nodes 2 --gpus-per-node 8 --slurm qos=high -- evaluate best.safetensors val.csv
      videomaskfeat launch --cluster local --gpus-per-node 0 --processes-per-node 2 -- pretrain --config ...
    """
    from videomaskfeat.jobs.launch import launch

    print(printable(launch(**vars(options)).text()))
    return DONE


def _pretrain_arguments() -> dict[str, list[str]]:
    from videomaskfeat.methods import METHODS, method_class
    from videomaskfeat.methods.build import SUPPLIED
    from videomaskfeat.targets import TARGETS, target_class

    targets = {name: target_class(name) for name in TARGETS}
    methods = {name: method_class(name) for name in METHODS}
    return _arguments("target.arguments", targets, supplied=("build", "clip_mean", "clip_std")) | _arguments(
        "method.arguments", methods, supplied=SUPPLIED
    )


def _tokenizer_arguments() -> dict[str, list[str]]:
    from videomaskfeat.models.tokenizers import TOKENIZERS

    return _arguments("model.arguments", TOKENIZERS)


ARGUMENTS: dict[str, Callable[[], Mapping[str, Sequence[str]]]] = {
    "pretrain": _pretrain_arguments,
    "train-tokenizer": _tokenizer_arguments,
}
"""Verb -> title and names of arguments, which ``--keys`` prints below the keys."""


def _arguments(
    where: str, builders: Mapping[str, Callable[..., object]], *, supplied: Sequence[str] = ()
) -> dict[str, list[str]]:
    """Title and arguments of each builder, without the ``supplied`` ones."""
    return {
        f"{where} of {name}": [
            argument.name if argument.default is argument.empty else f"{argument.name}={argument.default}"
            for argument in _parameters(build).values()
            if argument.name not in supplied
        ]
        for name, build in builders.items()
    }


def _parameters(build: Callable[..., object]) -> dict[str, inspect.Parameter]:
    """The parameters of a function or class; ``**shared`` stands for those of the base class."""
    parameters = dict(inspect.signature(build).parameters)
    rest = [name for name, one in parameters.items() if one.kind is one.VAR_KEYWORD]
    if not rest or not isinstance(build, type) or build.__base__ is None:
        return parameters
    parameters.pop(rest[0])
    return _parameters(build.__base__) | parameters


# Classifiers: scores, predictions, features.


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
            views=_select_fields(ViewOptions, options),
            lists=_select_fields(ListChoice, options),
            neighbors=Neighbors(options.knn, options.k, options.temperature) if options.knn else None,
            machine=_select_fields(Machine, options),
            ray=options.ray,
            submission=options.submission,
            overwrite=options.overwrite,
            progress=update,
        )
    return _print_scores("evaluate", result.text, (f"{one.path}: {one.cause}" for one in result.failures))


def _print_scores(verb: str, text: str, failures: Iterable[str]) -> int:
    if not text:  # not the first rank; torchrun would end all ranks if it returned SOME_FAILED
        return DONE
    print(printable(text))
    return report_failures(verb, failures)


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
    return _print_scores(
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
        arguments = _as_arguments(replace(options, json=None), groups, json="json_path", csv="csv_path")
        result = predict(**arguments, on_prediction=None)
        print(format_json(result, options.top))
    else:
        result = predict(
            **_as_arguments(options, groups, json="json_path", csv="csv_path"), on_prediction=print_text
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
    arguments = _as_arguments(options, groups, list="list_path", shard="videos_per_shard")
    with progress("extracting features") as update:
        result = extract_features(**arguments, progress=update)
    name = "features.npy" if options.window is None else f"*.{options.form}"
    print(printable(f"{result.folder / name}  {options.dtype} {list(result.shape)}"))
    return report_failures("extract-features", result.failures)


# Detectors of actions.


@dataclass
class ScoreAvaOptions(KeyFrameOptions, OutputOptions):
    """files"""

    detections: str = key("", "rows video,second,x1,y1,x2,y2,action,score", required="detections.csv")
    exclusions: str | None = key(None, "rows video,second that are not scored")
    out: str | None = key(None, "folder for result.json, per_class.csv and report.html")


def score_ava(options: ScoreAvaOptions) -> int:
    """Score a detections file by AVA's official rules: frame mAP and average precision per action.

      videomaskfeat score-ava --groundtruth ava/annotations/ava_val_v2.2.csv --detections detections.csv \\
          --labels ava/annotations/ava_action_list_v2.2_for_activitynet_2019.pbtxt \\
          --exclusions ava/annotations/ava_val_excluded_timestamps_v2.2.csv --out runs/ava/score
    """
    from videomaskfeat.jobs.score_ava import score_ava

    _, text = score_ava(**_as_arguments(options, iou="iou_threshold"))
    print(printable(text))
    return DONE


@dataclass
class DetectEvaluateOptions(KeyFrameOptions, AvaVideos, BatchOptions, OutputOptions):
    """files"""

    weights: str = key("", "weights of a detect-train run", positional=True)
    boxes: list[str] = key(
        [], "detected boxes: rows video,second,x1,y1,x2,y2,,score; empty: ground truth boxes"
    )
    exclusions: str = key("", "rows video,second that are not scored")
    out: str = key("evaluation", "folder to write")
    area: str | None = key(None, "area of the frame", choices=AREAS, null="from the weights")
    short_side: int | None = key(
        None, "short side of a frame", unit="pixels", least=1, null="from the weights"
    )
    scales: list[int] = key([], "short sides to average over, instead of one", unit="pixels", least=1)
    flip: bool = key(False, "average over the clip and its mirror image")
    score_threshold: float | None = key(
        None, "minimum score of a detected box", **SHARE, null="from the weights"
    )
    workers: int = key(2, "number of loader processes per rank; 0: the main process loads", least=0)


def detect_evaluate(options: DetectEvaluateOptions) -> int:
    """Score an action detector on key frames by AVA's official rules.

      videomaskfeat detect-evaluate runs/s_ava/best.safetensors --videos ava/videos \\
          --groundtruth ava/annotations/ava_val_v2.2.csv \\
          --boxes ava/annotations/ava_val_predicted_boxes.csv \\
          --labels ava/annotations/ava_action_list_v2.2_for_activitynet_2019.pbtxt \\
          --exclusions ava/annotations/ava_val_excluded_timestamps_v2.2.csv --out runs/s_ava/whole
      videomaskfeat detect-evaluate ... --area center --short-side 224
      videomaskfeat detect-evaluate ... --scales 224 256 312 --flip
      torchrun --nproc-per-node=8 -m videomaskfeat detect-evaluate ...
    """
    from videomaskfeat.inference.ava_scores import ScoredFiles, ScoringRules
    from videomaskfeat.inference.key_frames import VideoLocations, format_failures
    from videomaskfeat.inference.multiview import Machine
    from videomaskfeat.jobs.detect_evaluate import FrameOptions, detect_evaluate

    with progress("scoring key frames") as update:
        box_scores, text = detect_evaluate(
            options.weights,
            ScoredFiles(options.groundtruth, options.labels, options.exclusions, tuple(options.boxes)),
            _select_fields(VideoLocations, options),
            options.out,
            frames=_select_fields(FrameOptions, options),
            machine=_select_fields(Machine, options),
            rules=ScoringRules(options.iou, options.rows_per_frame),
            overwrite=options.overwrite,
            progress=update,
        )
    return _print_scores("detect-evaluate", text, format_failures(box_scores.failures))


def detect(config: DetectVideoConfig) -> int:
    """Detect the actions of each person in videos; write JSON and annotated videos.

      videomaskfeat detect runs/ava/best.safetensors my_video.mp4 --boxes my_boxes.csv --out found
      videomaskfeat detect best.safetensors *.mp4 --detector my_boxes:find_persons --every 0.5
      videomaskfeat detect best.safetensors my_video.mp4 --detector-option model=hustvl/yolos-tiny \\
          --detector videomaskfeat.interop.huggingface:PersonDetector
    """
    from videomaskfeat.jobs.detect_video import detect_videos

    def print_summary(summary: str, files: Sequence[Path]) -> None:
        print(printable("\n".join([summary, *map(str, files)])), flush=True)

    with progress("detecting") as update:
        result = detect_videos(config, progress=update, on_video=print_summary)
    return report_failures("detect", result.failures)


# Pictures and pages.


@dataclass
class VisualizeOptions(OutputOptions):
    """files"""

    weights: str = key(
        "",
        "weights of a pre-training run; with --attention, of any run",
        positional=True,
        former="checkpoint",
    )
    videos: list[str] = key([], "videos, or folders of videos", positional=True)
    out: str = key("pictures", "folder to write")
    mask: str | None = key(
        None, "kind of mask", choices=MASK_KINDS, plugin="a mask function", null="from the weights"
    )
    ratio: float | None = key(None, "fraction of hidden tokens", null="from the weights")
    seed: int = key(0, "seed of the mask", least=0)
    columns: int = key(8, "time steps per picture", least=1)
    device: str = key("auto", "device: auto | cpu | cuda")
    reader: str = key("auto", "video reader", choices=READERS, plugin="a VideoReader")
    attention: bool = key(False, "a map of the clip instead of mask, target and prediction")
    map: str = key("auto", "map of --attention", choices=CLIP_MAPS)
    label: int | None = key(None, "class of gradcam", least=0, null="the most probable one")
    block: int | None = key(None, "block of attention and rollout, from 1", least=1, null="the last")


def visualize(options: VisualizeOptions) -> int:
    """Draw frames, mask, target and prediction of each video, as a picture and an mp4.

    videomaskfeat visualize runs/s/weights.safetensors my_video.mp4 --out pictures
    videomaskfeat visualize runs/s/weights.safetensors *.mp4 --mask tube --ratio 0.6 --seed 3
    videomaskfeat visualize runs/s_k400/best.safetensors my_video.mp4 --attention --label 17
    videomaskfeat visualize runs/s/weights.safetensors my_video.mp4 --attention --map attention --block 12
    """
    from videomaskfeat.jobs.visualize import visualize

    result = visualize(**vars(options))
    for path in result.written:
        print(printable_name(str(path)))
    return report_failures("visualize", result.failures)


@dataclass
class ReportOptions(OutputOptions):
    """files"""

    folder: str = key("", "run folder", positional=True)
    out: str | None = key(
        None, "HTML file", null="report.html in the run folder, with --beside comparison.html"
    )
    beside: list[str] = key([], "run folders to compare with this one")


def report(options: ReportOptions) -> int:
    """Write one self-contained HTML page about a run, finished or not.

    videomaskfeat report runs/s
    videomaskfeat report runs/s --out s.html
    videomaskfeat report runs/pretrained --beside runs/scratch      the curves of both runs in one chart
    """
    from videomaskfeat.jobs.report import report

    print(printable(str(report(**vars(options)))))
    return DONE


# Models of other programs.


@dataclass
class ImportOptions:
    """files"""

    config: str = key("", "config (YAML) of PySlowFast", required="MVITv2_S_16x4.yaml")
    checkpoint: str | None = key(None, "its checkpoint", null="the config alone is imported")
    out: str = key("", "folder for weights.safetensors, config.yaml, import.json", positional=True)
    class_names: str | None = key(None, "file of class names: one per line, or SSv2's labels JSON")
    weights_key: str = key(
        "", "key of the weights in the checkpoint; empty: the first of model_state, state_dict, model, module"
    )


def import_slowfast(options: ImportOptions) -> int:
    """Convert a PySlowFast YAML, and its checkpoint if given, into a config and a weights file.

      videomaskfeat import-slowfast --config MVITv2_S_16x4.yaml zoo/training      the training alone
      videomaskfeat import-slowfast --config MVITv2_S_16x4.yaml --checkpoint MViTv2_S_16x4_k400.pyth zoo/s
      videomaskfeat import-slowfast --config k400_MVITv2_S_16x4_FT.yaml --checkpoint s.pyth zoo/s_ft \\
          --class-names kinetics400_names.txt
      videomaskfeat predict zoo/s_ft/weights.safetensors my_video.mp4
    """
    from videomaskfeat.jobs.import_weights import import_slowfast

    arguments = vars(options).copy()
    files = arguments.pop("config"), arguments.pop("checkpoint")
    print(printable(import_slowfast(*files, **arguments).text()))
    return DONE


import_slowfast.__doc__ = f"{inspect.cleandoc(import_slowfast.__doc__ or '')}\n\n" + "\n".join(
    ["models, and whether they are imported and exported:"]
    + [
        f"  {name:48} {'yes' if read else 'no':3}  {'yes' if write else 'no'}"
        for name, read, write in SUPPORTED
    ]
)


@dataclass
class ImportWeightsOptions:
    """files"""

    weights: str = key("", "weights file, or a folder of transformers or timm", positional=True)
    out: str = key("", "folder for weights.safetensors, config.yaml, import.json", positional=True)
    format: str = key(
        "auto",
        "format of the weights: auto, or a name of docs/how_to/other_weights.md, such as vjepa2",
        flag="from",
    )
    probe: str | None = key(None, "attentive probe of a V-JEPA encoder", null="no head")
    class_names: str | None = key(None, "file of class names: one per line, or SSv2's labels JSON")
    weights_key: str = key("", "key of the weights in the checkpoint; empty: the usual one")
    heads: int | None = key(None, "number of attention heads", least=1, null="as in published models")
    decoder_heads: int | None = key(
        None, "number of attention heads of a decoder", least=1, null="as in published models"
    )
    frames: int | None = key(None, "frames per clip", least=1, null="from the weights")
    stride: int | None = key(None, "frame stride", least=1, null="as in published models")
    crop: int | None = key(
        None, "height and width of a clip", unit="pixels", least=1, null="from the weights"
    )


def import_weights(options: ImportWeightsOptions) -> int:
    """Convert weights of another project (VideoMAE, V-JEPA, timm, ...) into a weights file and a config.

    videomaskfeat import-weights videomae_b_k400.pth zoo/videomae_b
    videomaskfeat import-weights vjepa2-vitl-fpc64-256/ zoo/vjepa2_l
    videomaskfeat import-weights checkpoint.pth zoo/b --from videomae --class-names kinetics400_names.txt
    """
    from videomaskfeat.jobs.import_weights import import_weights

    arguments = vars(options).copy()
    files = arguments.pop("weights"), arguments.pop("out")
    print(printable(import_weights(*files, **arguments).text()))
    return DONE


@dataclass
class ExportOptions:
    """files"""

    weights: str = key("", "weights of any run, or of an import", positional=True)
    out: str = key("", "file to write", positional=True)
    format: str = key(
        "auto",
        "format",
        choices={
            "auto": "by the file extension",
            "safetensors": "",
            "slowfast": ".pyth and .yaml",
            "torch": ".pt2",
            "onnx": "",
        },
    )
    part: str = key("model", "part", choices={"model": "", "encoder": "without its head"})
    input: str | None = key(
        None,
        "input of the graph",
        choices={
            "uint8": "decoded frames, [B,T,H,W,C]; the graph normalizes them",
            "float": "normalized clips, [B,C,T,H,W]",
        },
        null="uint8",
    )
    batch: int | None = key(None, "batch size of the graph; dynamic: any", least=1, null="dynamic")
    opset: int | None = key(None, "ONNX opset, 18 to 23", null="20")
    tolerance: float = key(1e-4, "maximum difference, relative to the largest output", above=0, below=1)
    overwrite: bool = key(False, "replace OUT if it exists")


def export(options: ExportOptions) -> int:
    """Write a model as ONNX, torch.export program, PySlowFast checkpoint or safetensors, and check the file.

    videomaskfeat export runs/s_k400/best.safetensors s_k400.onnx
    videomaskfeat export runs/s_k400/best.safetensors s_k400.pt2 --batch 8 --input float
    videomaskfeat export runs/s_k400/best.safetensors s_k400.pyth        PySlowFast's names, and a YAML
    videomaskfeat export runs/s/weights.safetensors encoder.onnx --part encoder --opset 18
    videomaskfeat export runs/s_k400/best.safetensors encoder.safetensors --part encoder
    """
    from videomaskfeat.jobs.export import export

    print(printable(export(**vars(options)).text()))
    return DONE


# Data, and this machine.


@dataclass
class SampleDataOptions:
    """options"""

    directory: str = key("", "folder to write", positional=True)
    videos: int = key(400, "number of videos")
    size: int = key(96, "height and width", unit="pixels")
    frames: int = key(32, "frames per video")
    fps: float = key(30.0, "frame rate")
    seed: int = key(0, "seed of all files")
    ava_videos: int = key(12, "number of longer videos with boxes")
    images: int = key(600, "number of pictures, one shape per class")
    factors: int = key(0, "number of videos of moving digits with several labels (factors); 0: none")


def sample_data(options: SampleDataOptions) -> int:
    """Write the built-in sample data set: videos of motions, pictures of shapes, and their lists.

    videomaskfeat sample-data demo/sample
    videomaskfeat sample-data small --videos 40 --size 64 --frames 16 --seed 7
    videomaskfeat sample-data small --size 64 --factors 2400     digits with a label list per factor
    """
    from videomaskfeat.data.sample import write_sample_data

    with progress("writing videos") as update:
        write_sample_data(**vars(options), progress=update)
    print(printable(os.path.join(options.directory, "README.txt")))
    return DONE


@dataclass
class CheckDataOptions(ListOptions, OutputOptions, RayOptions):
    """files"""

    list: str = key("", "list file or folder", positional=True)
    reader: str = key("auto", "video reader", choices=READERS, plugin="a VideoReader")
    workers: int = key(os.cpu_count() or 1, "number of processes", least=0)
    min_frames: int = key(1, "minimum number of frames per video", least=1)
    quick: bool = key(False, "open and probe the videos without decoding frames")
    json: str | None = key(None, "JSON file for the findings")
    clean: str | None = key(None, "file for the list without missing, unreadable, short and duplicate rows")


def check_data(options: CheckDataOptions) -> int:
    """Scan a list for unreadable, short, unusual, duplicate and missing videos.

    videomaskfeat check-data k400/train.csv --prefix k400/videos --clean k400/train_clean.csv
    videomaskfeat check-data my_videos/ --min-frames 32 --json report.json
    """
    from videomaskfeat.jobs.check_data import check_data

    arguments = _as_arguments(options, list="path", json="json_path", clean="clean_path")
    arguments["workers"] = options.workers or 1  # not in this process: a damaged video can crash it
    with progress("checking videos") as update:
        report = check_data(decode=not arguments.pop("quick"), **arguments, progress=update)
    print(printable(report.text()))
    return SOME_FAILED if report.bad else DONE


@dataclass
class PrepareVideosOptions(ListOptions, RayOptions):
    """files"""

    list: str = key("", "list file or folder", positional=True)
    out: str = key("", "folder for videos/ and the new list", required="prepared")
    short_side: int | None = key(
        256, "maximum short side of a frame", unit="pixels", least=16, null="as in the source"
    )
    fps: float | None = key(None, "frame rate", unit="frames per second", above=0, null="as in the source")
    keyframe_interval: int = key(12, "maximum number of frames between key frames", least=1)
    crf: int = key(20, "quality of x264, 0 (lossless) to 51", least=0, greatest=51)
    preset: str = key("veryfast", "speed preset of x264", choices=PRESETS)
    workers: int = key(os.cpu_count() or 1, "number of processes", least=1)
    read_seconds: float = key(
        120.0, "time without progress on one video after which it is left out", unit="seconds", above=0
    )


def prepare_videos(options: PrepareVideosOptions) -> int:
    """Re-encode videos for fast reading: small frames, short groups of pictures, a constant rate, no sound.

    videomaskfeat prepare-videos k400/train.csv --prefix k400/videos --out k400_256
    videomaskfeat prepare-videos my_videos/ --out small --short-side 128 --fps 15
    """
    from videomaskfeat.data.prepare import Encoding
    from videomaskfeat.jobs.prepare_videos import prepare_videos

    with progress("preparing videos") as update:
        arguments = _as_arguments(options, {"encoding": Encoding}, list="path")
        prepared = prepare_videos(**arguments, progress=update)
    print(printable(prepared.text()))
    return report_failures(
        "prepare-videos", (f"{path}: {cause}" for path, cause in prepared.failures.items())
    )


@dataclass
class PackOptions(ListOptions, RayOptions):
    """files"""

    list: str = key("", "list file or folder", positional=True)
    out: str = key("", "folder for the shards and index.json", required="shards")
    shard_mb: float = key(256.0, "maximum size of a shard", unit="MB", above=0)
    overwrite: bool = key(False, "replace the shards of a folder with an index")


def pack(options: PackOptions) -> int:
    """Write the videos of a list into tar shards (WebDataset) with an index, for disks and object stores.

    videomaskfeat pack k400_256/train.csv --out k400_shards
    videomaskfeat pretrain --config ... data.train=k400_shards/index.json
    videomaskfeat pretrain --config ... data.train=s3://bucket/k400_shards/index.json
    """
    from videomaskfeat.jobs.pack import pack

    with progress("writing shards") as update:
        packed = pack(**_as_arguments(options, list="path"), progress=update)
    print(printable(packed.text()))
    return report_failures("pack", (f"{path}: {cause}" for path, cause in packed.failures.items()))


@dataclass
class MakeListsOptions:
    """files"""

    source: str = key(
        "", "folder of class folders or of a data set, or CSV file of names and labels", positional=True
    )
    out: str = key("", "folder for train.csv, val.csv, test.csv, classes.txt", positional=True)
    videos: str = key("", "folder of the videos; empty: SOURCE, or the folder of the CSV file")
    validation: float = key(0.15, "share of val.csv; unused if the data set has this part", **SHARE)
    test: float = key(0.15, "share of test.csv; unused if the data set has this part", **SHARE)
    fold: int = key(1, "number of the published split of UCF101 and HMDB51", least=1, greatest=3)
    group: str = key(
        "auto",
        "clips of one video, which stay in one list: auto (by known names), none, or a regular expression "
        "whose first group is the video",
    )
    seed: int = key(0, "seed of the random split", least=0)
    class_names: str = key("", "file of class names in the order of the labels; empty: sorted names")
    check: bool = key(True, "check that every video can be decoded and is not a copy")
    workers: int = key(os.cpu_count() or 1, "number of processes that check", least=1)
    overwrite: bool = key(False, "replace lists in OUT")


def make_lists(options: MakeListsOptions) -> int:
    """Write lists for training, validation and test, and class names, from a folder of labeled videos.

    videomaskfeat make-lists my_videos lists          one folder of videos per class
    videomaskfeat make-lists labels.csv lists --videos my_videos --validation 0.2 --test 0
    videomaskfeat make-lists UCF-101 lists --fold 1        also Kinetics, HMDB51, Diving48, SSv2, Charades
    videomaskfeat make-lists my_videos lists --group '(.+)_take'     all takes of a video in one list
    """
    from videomaskfeat.jobs.make_lists import make_lists

    with progress("checking videos") as update:
        lists = make_lists(**vars(options), progress=update)
    print(printable(lists.text()))
    return DONE


@dataclass
class ConfigsOptions:
    """options"""

    match: str = key("", "text in the names to list or copy, such as pretrain/ or ssv2")
    copy: str | None = key(None, "folder to copy them into; existing files are kept")


def configs(options: ConfigsOptions) -> int:
    """List the configs that come with the package, or copy them.

      videomaskfeat configs
      videomaskfeat configs --match pretrain/sample --copy my_configs
    `--config` accepts their names:
      videomaskfeat pretrain --config pretrain/sample --keys
    """
    shipped = {name: path for name, path in shipped_configs().items() if options.match in name}
    if not shipped:
        raise UserError(f"no config has {options.match!r} in its name; `videomaskfeat configs` lists them")
    for name, path in shipped.items():
        text = path.read_text(encoding="utf-8")
        if options.copy is None:
            print(printable(f"{name:<36} {text.partition(chr(10))[0].removeprefix('# ')}"))
            continue
        target = Path(options.copy, f"{name}.yaml")
        if target.exists():
            print(printable(f"{target} exists, kept"))
            continue
        make_parent(target)
        with whole_file(target) as file:
            file.write(text)
        print(printable(str(target)))
    return DONE


@dataclass
class ModelsOptions:
    """options"""

    pattern: str = key("*", "pattern of names, such as '*nano*'; without it, all models", positional=True)
    json: bool = key(False, "print JSON")


def models(options: ModelsOptions) -> int:
    """List the named models: parameters, multiply-adds of one clip, size of the clip, and purpose.

    videomaskfeat models
    videomaskfeat models '*nano*'
    videomaskfeat models 'vit_b*' --json
    """
    from videomaskfeat.models.sizes import facts_json, facts_text, list_facts

    facts = list_facts(options.pattern)
    print(facts_json(facts) if options.json else facts_text(facts))
    return DONE


@dataclass
class DoctorOptions:
    """options"""

    folder: str = key(".", "folder to report the free space of")
    json: bool = key(False, "print JSON")


def doctor(options: DoctorOptions) -> int:
    """Report what works on this machine, and what each feature lacks.

    videomaskfeat doctor
    videomaskfeat doctor --folder /data --json
    """
    from videomaskfeat.environment import diagnose

    diagnosis = diagnose(options.folder, measure=True)
    print(diagnosis.to_json() if options.json else diagnosis.text())
    return DONE if diagnosis.healthy else FAILED


VERBS: dict[str, Callable[[Any], int]] = {
    "pretrain": pretrain,
    "finetune": finetune,
    "train-tokenizer": train_tokenizer,
    "plan": plan,
    "bench-data": bench_data,
    "launch": launch,
    "compare": compare,
    "evaluate": evaluate,
    "average-scores": average_scores,
    "detect-train": detect_train,
    "detect-evaluate": detect_evaluate,
    "score-ava": score_ava,
    "predict": predict,
    "detect": detect,
    "extract-features": extract_features,
    "import-slowfast": import_slowfast,
    "import-weights": import_weights,
    "export": export,
    "visualize": visualize,
    "report": report,
    "sample-data": sample_data,
    "make-lists": make_lists,
    "prepare-videos": prepare_videos,
    "pack": pack,
    "check-data": check_data,
    "configs": configs,
    "models": models,
    "doctor": doctor,
}
"""Name -> function of the config or the options, with the help as its docstring; it returns the exit code."""
TRAININGS = ("pretrain", "finetune", "detect-train", "train-tokenizer", "compare")
"""Verbs that each have configs of their own."""
SIZED = ("pretrain", "finetune", "detect-train", "plan", "bench-data")
"""Verbs with ``--size``."""
