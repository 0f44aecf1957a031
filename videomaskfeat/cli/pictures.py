"""Verbs that show: pictures of videos, the page of a run."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from videomaskfeat.cli.verb import DONE, SOME_FAILED, add_verb, one_line
from videomaskfeat.texts import printable, printable_name


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
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="a video, or a folder of videos")
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
        print(printable_name(str(path)))
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
        examples="""\
  videomaskfeat report runs/s
  videomaskfeat report runs/s --out s.html
  videomaskfeat report runs/pretrained --beside runs/scratch      both runs' curves in one chart""",
    )
    parser.add_argument("folder", metavar="RUN", help="run folder")
    parser.add_argument("--out", help="HTML file (default: RUN/report.html)")
    parser.add_argument(
        "--beside", nargs="+", default=[], metavar="RUN", help="other runs to show side by side with this one"
    )


def run_report(options: argparse.Namespace) -> int:
    """Run ``report``."""
    from videomaskfeat.tasks.report import report

    print(printable(str(report(options.folder, options.out, beside=options.beside))))
    return DONE
