"""Verbs about videos and lists."""

from __future__ import annotations

import argparse
import os
from typing import Any

from videomaskfeat.cli.verb import DONE, SOME_FAILED, add_verb
from videomaskfeat.console import progress
from videomaskfeat.texts import printable


def add_sample_data(verbs: Any) -> None:
    """``sample-data``: the built-in data set."""
    parser = add_verb(
        verbs,
        "sample-data",
        run_sample_data,
        summary="write the built-in sample data set: videos of motions, pictures of shapes, and their lists",
        examples="""\
  videomaskfeat sample-data demo/sample
  videomaskfeat sample-data small --videos 40 --size 64 --frames 16 --seed 7""",
    )
    parser.add_argument("directory", metavar="DIR")
    parser.add_argument("--videos", type=int, default=400, help="number of videos (default: %(default)s)")
    parser.add_argument("--size", type=int, default=96, help="side, pixels (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=32, help="frames a video (default: %(default)s)")
    parser.add_argument("--fps", type=float, default=30.0, help="frames a second (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="equal seeds, equal files (default: %(default)s)")
    parser.add_argument(
        "--ava-videos", type=int, default=12, help="longer videos with boxes (default: %(default)s)"
    )
    parser.add_argument(
        "--images", type=int, default=600, help="pictures whose class is a shape (default: %(default)s)"
    )


def run_sample_data(options: argparse.Namespace) -> int:
    """Run ``sample-data``."""
    from videomaskfeat.data.sample import write_sample_data

    with progress("writing videos") as update:
        write_sample_data(
            options.directory,
            videos=options.videos,
            size=options.size,
            frames=options.frames,
            fps=options.fps,
            seed=options.seed,
            ava_videos=options.ava_videos,
            images=options.images,
            progress=update,
        )
    print(printable(os.path.join(options.directory, "README.txt")))
    return DONE


def add_check_data(verbs: Any) -> None:
    """``check-data``: find what is wrong with a list before a run does."""
    parser = add_verb(
        verbs,
        "check-data",
        run_check_data,
        summary="scan every video of a list: unreadable, too short, odd, duplicate and missing ones",
        examples="""\
  videomaskfeat check-data k400/train.csv --prefix k400/videos --clean k400/train_clean.csv
  videomaskfeat check-data my_videos/ --min-frames 32 --json report.json""",
    )
    parser.add_argument("list", metavar="LIST", help="list file or folder")
    parser.add_argument("--format", default="auto", help="auto | kinetics | ssv2 | folder | frames | images")
    parser.add_argument("--labels", default="auto", help="auto | yes | no")
    parser.add_argument(
        "--separator", default="auto", help="auto | space | comma | tab | colons | semicolon | pipe"
    )
    parser.add_argument("--prefix", default="", help="folder put before every relative path")
    parser.add_argument("--reader", default="auto", help="auto | decord | pyav")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)"
    )
    parser.add_argument("--min-frames", type=int, default=1, help="shorter ones are reported (default: 1)")
    parser.add_argument("--quick", action="store_true", help="open and probe only; decode no frames")
    parser.add_argument("--json", metavar="FILE", help="also write the findings as JSON")
    parser.add_argument("--clean", metavar="FILE", help="write the list without the bad rows")


def run_check_data(options: argparse.Namespace) -> int:
    """Run ``check-data``."""
    from videomaskfeat.tasks.check_data import check_data

    with progress("checking videos") as update:
        report = check_data(
            options.list,
            format=options.format,
            labels=options.labels,
            separator=options.separator,
            prefix=options.prefix,
            reader=options.reader,
            workers=options.workers or 1,  # never in this process, which a file could end
            min_frames=options.min_frames,
            decode=not options.quick,
            json_path=options.json,
            clean_path=options.clean,
            progress=update,
        )
    print(printable(report.text()))
    return SOME_FAILED if report.bad else DONE
