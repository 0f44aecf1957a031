"""The command line: ``videomaskfeat VERB ...``. Each verb reads its arguments and calls one function.

Exit codes: 0 done; 2 the user's mistake (one line on stderr); 3 finished, but some inputs failed (they are
listed); 1 anything else.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from videomaskfeat import __version__
from videomaskfeat.console import progress
from videomaskfeat.errors import RunFailed, UserError

DONE, FAILED, MISTAKE, SOME_FAILED, INTERRUPTED = 0, 1, 2, 3, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    options = build_parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except UserError as error:
        print(f"videomaskfeat {options.verb}: {one_line(error)}", file=sys.stderr)
        return MISTAKE
    except RunFailed as error:
        print(f"videomaskfeat {options.verb}: {one_line(error)}", file=sys.stderr)
        return FAILED
    except BrokenPipeError:  # the reader of our output, `head` say, has gone
        sys.stderr.close()
        return DONE
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"videomaskfeat {options.verb}: {one_line(error)}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print(f"videomaskfeat {options.verb}: interrupted", file=sys.stderr)
        return INTERRUPTED


def one_line(error: Exception) -> str:
    """The message on one line, however the user's paths and values are spelt."""
    return " ".join(str(error).split())


def build_parser() -> argparse.ArgumentParser:
    """The parser of every verb."""
    parser = argparse.ArgumentParser(
        prog="videomaskfeat",
        description="Masked video pre-training: hide spacetime cubes, predict what they held.",
        epilog="`videomaskfeat VERB --help` explains a verb, with examples.",
    )
    parser.add_argument("--version", action="version", version=f"videomaskfeat {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    add_pretrain(verbs)
    add_visualize(verbs)
    add_report(verbs)
    add_sample_data(verbs)
    add_check_data(verbs)
    add_doctor(verbs)
    return parser


def add_verb(
    verbs: Any, name: str, run: Callable[[argparse.Namespace], int], *, summary: str, examples: str
) -> argparse.ArgumentParser:
    """Add a verb with its one-line summary, its examples and the function that runs it."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=summary,
        description=summary,
        epilog="examples:\n" + examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_pretrain(verbs: Any) -> None:
    """``pretrain``: train an encoder to predict what was hidden."""
    parser = add_verb(
        verbs,
        "pretrain",
        run_pretrain,
        summary="pre-train an encoder on videos by masked prediction; a run folder that exists is resumed",
        examples="""\
  videomaskfeat pretrain --config configs/pretrain/sample.yaml
  videomaskfeat pretrain --config configs/pretrain/k400_maskfeat_mvitv2_s.yaml \\
      data.train=k400/train.csv data.prefix=k400/videos run.folder=runs/s
  torchrun --nproc-per-node=8 -m videomaskfeat pretrain --config ... run.folder=runs/s
  videomaskfeat pretrain --keys        every key, its default and its meaning""",
    )
    parser.add_argument("--config", metavar="YAML", help="config file; only what differs from the defaults")
    parser.add_argument("--keys", action="store_true", help="list every config key and stop")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="on top of the config")


def run_pretrain(options: argparse.Namespace) -> int:
    """Run ``pretrain``."""
    from videomaskfeat.config import PretrainConfig, key_table, load_config

    if options.keys:
        rows = key_table(PretrainConfig)
        width = max(len(name) for name, _, _ in rows)
        default_width = max(len(default) for _, default, _ in rows)
        for name, default, meaning in rows:
            print(f"{name:<{width}}  {default:<{default_width}}  {meaning}")
        return DONE
    config = load_config(PretrainConfig, options.config, options.overrides)
    from videomaskfeat.tasks.pretrain import pretrain

    outcome = pretrain(config)
    return SOME_FAILED if outcome.failures else DONE


def add_visualize(verbs: Any) -> None:
    """``visualize``: pictures and videos of mask, target and prediction."""
    parser = add_verb(
        verbs,
        "visualize",
        run_visualize,
        summary="draw frames, mask, target and prediction of given videos, as a picture and an mp4 each",
        examples="""\
  videomaskfeat visualize runs/s/weights.safetensors my_video.mp4 --out pictures
  videomaskfeat visualize runs/s/weights.safetensors *.mp4 --mask tube --ratio 0.6 --seed 3""",
    )
    parser.add_argument("checkpoint", help="weights.safetensors of a pre-training run")
    parser.add_argument("videos", nargs="+", metavar="VIDEO")
    parser.add_argument("--out", default="pictures", help="folder to write into (default: %(default)s)")
    parser.add_argument("--mask", help="kind of mask (default: the run's own)")
    parser.add_argument("--ratio", type=float, help="share hidden (default: the run's own)")
    parser.add_argument("--seed", type=int, default=0, help="of the mask (default: %(default)s)")
    parser.add_argument("--columns", type=int, default=8, help="time steps a picture (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda (default: %(default)s)")
    parser.add_argument("--reader", default="auto", help="auto | decord | pyav (default: %(default)s)")


def run_visualize(options: argparse.Namespace) -> int:
    """Run ``visualize``."""
    from videomaskfeat.tasks.visualize import visualize

    result = visualize(
        options.checkpoint,
        options.videos,
        options.out,
        mask=options.mask,
        ratio=options.ratio,
        seed=options.seed,
        columns=options.columns,
        device=options.device,
        reader=options.reader,
    )
    for path in result.written:
        print(path)
    for failure in result.failures:
        print(f"videomaskfeat visualize: {one_line(failure)}", file=sys.stderr)
    return SOME_FAILED if result.failures else DONE


def add_report(verbs: Any) -> None:
    """``report``: the HTML page of a run."""
    parser = add_verb(
        verbs,
        "report",
        run_report,
        summary="write one self-contained HTML page about a run, finished or not",
        examples="  videomaskfeat report runs/s\n  videomaskfeat report runs/s --out s.html",
    )
    parser.add_argument("folder", metavar="RUN", help="run folder")
    parser.add_argument("--out", help="HTML file (default: RUN/report.html)")


def run_report(options: argparse.Namespace) -> int:
    """Run ``report``."""
    from videomaskfeat.tasks.report import report

    print(report(options.folder, options.out))
    return DONE


def add_sample_data(verbs: Any) -> None:
    """``sample-data``: the built-in data set."""
    parser = add_verb(
        verbs,
        "sample-data",
        run_sample_data,
        summary="write the built-in sample data set: mp4 files whose classes are motions, and their lists",
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
            progress=update,
        )
    print(os.path.join(options.directory, "README.txt"))
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
    parser.add_argument("--format", default="auto", help="auto | kinetics | ssv2 | folder | frames")
    parser.add_argument("--labels", default="auto", help="auto | yes | no")
    parser.add_argument("--separator", default="auto", help="auto | space | comma | tab")
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
            workers=options.workers,
            min_frames=options.min_frames,
            decode=not options.quick,
            json_path=options.json,
            clean_path=options.clean,
            progress=update,
        )
    print(report.text())
    return SOME_FAILED if report.bad else DONE


def add_doctor(verbs: Any) -> None:
    """``doctor``: what works on this machine."""
    parser = add_verb(
        verbs,
        "doctor",
        run_doctor,
        summary="say what works on this machine, and what is missing for which feature",
        examples="  videomaskfeat doctor\n  videomaskfeat doctor --folder /data --json",
    )
    parser.add_argument("--folder", default=".", help="folder whose free space counts (default: this one)")
    parser.add_argument("--json", action="store_true", help="as JSON")


def run_doctor(options: argparse.Namespace) -> int:
    """Run ``doctor``."""
    from videomaskfeat.tasks.doctor import diagnose

    diagnosis = diagnose(options.folder)
    print(diagnosis.to_json() if options.json else diagnosis.text())
    return DONE if diagnosis.healthy else FAILED
