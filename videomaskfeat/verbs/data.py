"""The verbs for videos and lists: sample-data, make-lists, prepare-videos, pack, check-data."""

from __future__ import annotations

import os
from dataclasses import dataclass

from videomaskfeat.config_keys import key
from videomaskfeat.schemas.sections import (
    PRESETS,
    READERS,
    SHARE,
    OutputOptions,
)
from videomaskfeat.terminal import DONE, SOME_FAILED, progress, report_failures
from videomaskfeat.texts import printable
from videomaskfeat.verbs.options import (
    ListOptions,
    RayOptions,
    as_arguments,
)
from videomaskfeat.verbs.verb import Verb


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
    from videomaskfeat.inference.lists import ListChoice
    from videomaskfeat.jobs.prepare_videos import prepare_videos

    with progress("preparing videos") as update:
        arguments = as_arguments(options, {"encoding": Encoding, "lists": ListChoice}, list="path")
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
    from videomaskfeat.inference.lists import ListChoice
    from videomaskfeat.jobs.pack import pack

    with progress("writing shards") as update:
        packed = pack(**as_arguments(options, {"lists": ListChoice}, list="path"), progress=update)
    print(printable(packed.text()))
    return report_failures("pack", (f"{path}: {cause}" for path, cause in packed.failures.items()))


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
    from videomaskfeat.inference.lists import ListChoice
    from videomaskfeat.jobs.check_data import check_data

    arguments = as_arguments(
        options, {"lists": ListChoice}, list="path", json="json_path", clean="clean_path"
    )
    arguments["workers"] = options.workers or 1  # not in this process: a damaged video can crash it
    with progress("checking videos") as update:
        report = check_data(decode=not arguments.pop("quick"), **arguments, progress=update)
    print(printable(report.text()))
    return SOME_FAILED if report.bad else DONE


VERBS = {
    "sample-data": Verb(sample_data),
    "make-lists": Verb(make_lists),
    "prepare-videos": Verb(prepare_videos),
    "pack": Verb(pack),
    "check-data": Verb(check_data),
}
