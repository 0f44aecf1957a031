"""Verbs that apply a trained network to anybody's videos."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from videomaskfeat.cli.verb import DONE, SOME_FAILED, add_verb, one_line
from videomaskfeat.texts import printable


def add_predict(verbs: Any) -> None:
    """``predict``: the most probable classes of videos."""
    parser = add_verb(
        verbs,
        "predict",
        run_predict,
        summary="say which classes videos show, as text, as JSON, or drawn into the videos",
        examples="""\
  videomaskfeat predict runs/s_k400/best.safetensors my_video.mp4
  videomaskfeat predict best.safetensors my_videos/ --top 3 --json labels.json --out labelled
  videomaskfeat predict best.safetensors *.mp4 --views 1 --json - | jq""",
    )
    parser.add_argument("checkpoint", help="weights (safetensors) of a fine-tuning run or of import-slowfast")
    parser.add_argument(
        "videos", nargs="+", metavar="VIDEO", help="a video or picture, or a folder: all below it"
    )
    parser.add_argument("--top", type=int, default=5, help="classes a video (default: %(default)s)")
    _add_views(parser, None)
    parser.add_argument("--json", metavar="FILE", help="also write JSON; - prints it instead of the text")
    parser.add_argument(
        "--out", metavar="FOLDER", help="write an annotated mp4 of each video (without sound)"
    )
    _add_machine(parser, workers=0)


def run_predict(options: argparse.Namespace) -> int:
    """Run ``predict``."""
    from videomaskfeat.tasks.classification.predict import Predictions, as_json, as_text, predict

    def say(found: Predictions) -> None:
        print(printable(as_text(found, options.top)), flush=True)

    as_json_only = options.json == "-"
    result = predict(
        options.checkpoint,
        options.videos,
        top=options.top,
        views=options.views,
        crops=options.crops,
        out=options.out,
        json_path=None if as_json_only else options.json,
        device=options.device,
        precision=options.precision,
        reader=options.reader,
        workers=options.workers,
        on_prediction=None if as_json_only else say,
    )
    if as_json_only:
        print(as_json(result, options.top))
    else:
        for film in result.films:
            print(printable(str(film)))
    for failure in result.failures:
        print(f"videomaskfeat predict: {one_line(failure)}", file=sys.stderr)
    return SOME_FAILED if result.failures else DONE


def add_detect(verbs: Any) -> None:
    """``detect``: who does what in videos."""
    parser = add_verb(
        verbs,
        "detect",
        run_detect,
        summary="say what each person in videos does, as JSON and drawn into the videos",
        examples="""\
  videomaskfeat detect runs/ava/best.safetensors my_video.mp4 --boxes my_boxes.csv --out found
  videomaskfeat detect best.safetensors *.mp4 --detector my_boxes:find_persons --every 0.5
  videomaskfeat detect best.safetensors my_video.mp4 --detector-option model=hustvl/yolos-tiny \\
      --detector videomaskfeat.interop.huggingface:PersonDetector""",
    )
    parser.add_argument("checkpoint", help="weights (safetensors) of a run of detect-train")
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="a file")
    persons = parser.add_argument_group("where the persons are (one of the two)")
    persons.add_argument(
        "--boxes", metavar="FILE", help="rows video,second,x1,y1,x2,y2,,score; the video is a file's name"
    )
    persons.add_argument(
        "--detector", metavar="MODULE:NAME", help="Python: uint8 [n,H,W,3] -> n x [k,5], pixels and score"
    )
    persons.add_argument(
        "--detector-option", metavar="KEY=VALUE", action="append", default=[], help="what makes the detector"
    )
    for name, meaning in (
        ("--box-score", "least score of a box (default: as the detector of actions was tested)"),
        ("--every", "seconds from one key frame to the next (default: 1)"),
        ("--start-second", "of the video's first picture in FILE (default: 0 or 900, found out)"),
    ):
        persons.add_argument(name, metavar="N", type=float, help=meaning)
    told = parser.add_argument_group("what is told")
    numbers: tuple[tuple[str, type, str], ...] = (
        ("--threshold", float, "least score of an action (default: 0.4)"),
        ("--top", int, "actions drawn a person, at most (default: 3)"),
        ("--smooth-seconds", float, "over which scores of a track are averaged; 0: not (default: 0.7)"),
        ("--min-iou", float, "least overlap of two boxes of a track (default: 0.3)"),
        ("--max-gap-seconds", float, "that a track may miss (default: two key frames' steps)"),
    )
    for option, kind, words in numbers:
        told.add_argument(option, metavar="N", type=kind, help=words)
    told.add_argument("--out", metavar="FOLDER", default=".", help="to write NAME_actions.* (default: here)")
    told.add_argument(
        "--no-film", dest="film", action="store_const", const=False, help="write no mp4 (it has no sound)"
    )
    told.add_argument("--csv", action="store_const", const=True, help="write rows for score-ava too")
    parser.add_argument(
        "--config", metavar="FILE", help="YAML with the same in sections: persons, told, machine"
    )
    parser.add_argument("--keys", action=_DetectKeys, nargs=0, help="print every key of the YAML, and exit")
    parser.add_argument("--device", help="auto | cpu | cuda | cuda:N (default: auto)")
    parser.add_argument("--precision", help="auto (bf16 on a GPU) | fp32 | bf16 (default: auto)")


class _DetectKeys(argparse.Action):
    """Prints the keys of ``detect`` without asking for weights and videos."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from videomaskfeat.cli.training import print_keys
        from videomaskfeat.config import DetectVideoConfig

        parser.exit(print_keys(DetectVideoConfig))


def run_detect(options: argparse.Namespace) -> int:
    """Run ``detect``."""
    from pathlib import Path

    from videomaskfeat.config import DetectVideoConfig, load_config
    from videomaskfeat.console import progress

    overrides = [
        f"{section}.{name}={value}"
        for section, keys in vars(DetectVideoConfig()).items()
        for name in vars(keys)
        if (value := getattr(options, name, None)) is not None
    ]
    overrides += [f"persons.detector_options.{option}" for option in options.detector_option]
    settings = vars(load_config(DetectVideoConfig, options.config, overrides))
    from videomaskfeat.tasks.detection.detect_video import detect_videos

    def say(words: str, files: Sequence[Path]) -> None:
        print(printable("\n".join([words, *map(str, files)])), flush=True)

    with progress("detecting") as update:
        result = detect_videos(
            options.checkpoint,
            options.videos,
            options.out,
            **{name: value for section in settings.values() for name, value in vars(section).items()},
            progress=update,
            on_video=say,
        )
    for failure in result.failures:
        print(f"videomaskfeat detect: {one_line(failure)}", file=sys.stderr)
    return SOME_FAILED if result.failures else DONE


def add_extract_features(verbs: Any) -> None:
    """``extract-features``: the encoder's features of a list's videos."""
    parser = add_verb(
        verbs,
        "extract-features",
        run_extract_features,
        summary="write the features of a list's videos; after a stop the same command goes on",
        examples="""\
  videomaskfeat extract-features runs/s/weights.safetensors k400/val.csv features/k400_val
  videomaskfeat extract-features weights.safetensors my_videos/ features/mine --depth 12 --views 4
  videomaskfeat extract-features weights.safetensors list.csv features/grid --grid --dtype float16
  torchrun --nproc-per-node=8 -m videomaskfeat extract-features weights.safetensors list.csv features/all
then, in Python:
  array, paths, labels = videomaskfeat.read_features("features/k400_val")""",
    )
    parser.add_argument("weights", help="weights (safetensors) of any run of ours, or of import-slowfast")
    parser.add_argument("list", metavar="LIST", help="list file or folder of videos")
    parser.add_argument("out", metavar="OUT", help="folder to write")
    parser.add_argument("--depth", type=int, help="after how many blocks, from 1 (default: after the last)")
    parser.add_argument("--grid", action="store_true", help="a feature a token instead of their mean")
    _add_views(parser, 1)
    parser.add_argument("--dtype", default="float32", help="float32 | float16 on disk (default: %(default)s)")
    parser.add_argument("--format", default="auto", help="auto | kinetics | ssv2 | folder | frames | images")
    parser.add_argument("--labels", default="auto", help="auto | yes | no")
    parser.add_argument(
        "--separator", default="auto", help="auto | space | comma | tab | colons | semicolon | pipe"
    )
    parser.add_argument("--prefix", default="", help="folder put before every relative path")
    parser.add_argument(
        "--clips-at-once", type=int, default=8, help="through the network (default: %(default)s)"
    )
    parser.add_argument(
        "--shard", type=int, default=128, help="videos after which work is safe (default: %(default)s)"
    )
    _add_machine(parser, workers=2)


def run_extract_features(options: argparse.Namespace) -> int:
    """Run ``extract-features``."""
    from videomaskfeat.console import progress
    from videomaskfeat.tasks.classification.extract_features import extract_features

    with progress("extracting features") as update:
        result = extract_features(
            options.weights,
            options.list,
            options.out,
            depth=options.depth,
            grid=options.grid,
            views=options.views,
            crops=options.crops,
            dtype=options.dtype,
            format=options.format,
            labels=options.labels,
            prefix=options.prefix,
            separator=options.separator,
            device=options.device,
            precision=options.precision,
            reader=options.reader,
            workers=options.workers,
            clips_at_once=options.clips_at_once,
            videos_per_shard=options.shard,
            progress=update,
        )
    array = result.folder / "features.npy"
    print(printable(f"{array}  {options.dtype} {list(result.shape)}"))
    for failure in result.failures:
        print(f"videomaskfeat extract-features: {one_line(failure)}", file=sys.stderr)
    return SOME_FAILED if result.failures else DONE


def _add_views(parser: argparse.ArgumentParser, default: int | None) -> None:
    words = "as the classifier was tested" if default is None else default
    for name, what in (
        ("--views", "clips a video, spread over its time"),
        ("--crops", "crops a clip, 1 or 3"),
    ):
        parser.add_argument(name, type=int, default=default, help=f"{what} (default: {words})")


def _add_machine(parser: argparse.ArgumentParser, *, workers: int) -> None:
    parser.add_argument("--reader", default="auto", help="auto | decord | pyav (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:N (default: %(default)s)")
    parser.add_argument(
        "--precision", default="auto", help="auto (bf16 on a GPU) | fp32 | bf16 (default: %(default)s)"
    )
    parser.add_argument(
        "--workers", type=int, default=workers, help="processes that read videos (default: %(default)s)"
    )
