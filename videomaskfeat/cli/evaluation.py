"""Verbs that score: a network on a list, and the mean of several networks."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from videomaskfeat.cli.verb import DONE, SOME_FAILED, add_verb, one_line
from videomaskfeat.texts import printable


def add_evaluate(verbs: Any) -> None:
    """``evaluate``: top-1, top-5 and all that explains them."""
    parser = add_verb(
        verbs,
        "evaluate",
        run_evaluate,
        summary="score a classifier of any head, or frozen features by k-NN, on a list of videos",
        examples="""\
  videomaskfeat evaluate runs/s_k400/best.safetensors k400/val.csv --prefix k400/videos --views 10
  videomaskfeat evaluate best.safetensors val.csv --views 5 --crops 3 --out runs/s_k400/5x3
  videomaskfeat evaluate best.safetensors ssv2/something-something-v2-test.json --prefix ssv2/videos \\
      --views 1 --crops 3 --submission submission.csv
  videomaskfeat evaluate runs/s/weights.safetensors val.csv --knn train.csv
  torchrun --nproc-per-node=8 -m videomaskfeat evaluate best.safetensors k400/val.csv""",
    )
    parser.add_argument("weights", help="weights (safetensors) of a fine-tuning run or of import-slowfast")
    parser.add_argument("list", metavar="LIST", help="list file or folder, with labels or without")
    _add_out(parser, default="evaluation")
    views = parser.add_argument_group("views", "default: as the weights were tested")
    views.add_argument("--views", type=int, help="clips a video, spread over its time")
    views.add_argument("--crops", type=int, help="crops a clip: 1 (centre) or 3 (along the longer side)")
    views.add_argument("--sampling", help="clip (frames at a stride) | segments (of equal parts; one view)")
    views.add_argument("--short-side", type=int, help="pixels that a frame's short side is resized to")
    views.add_argument("--average", help="softmax | logits: what is averaged over the views")
    lists = parser.add_argument_group("list")
    lists.add_argument("--prefix", default="", help="folder put before every relative path")
    lists.add_argument("--format", default="auto", help="auto | kinetics | ssv2 | folder | frames | images")
    lists.add_argument("--labels", default="auto", help="auto | yes | no")
    lists.add_argument(
        "--separator", default="auto", help="auto | space | comma | tab | colons | semicolon | pipe"
    )
    lists.add_argument(
        "--class-names", metavar="FILE", default="", help="a name a line, or SSv2's labels JSON"
    )
    neighbours = parser.add_argument_group("nearest neighbours")
    neighbours.add_argument(
        "--knn", metavar="TRAIN_LIST", help="classify by the most similar videos of this list; any weights"
    )
    neighbours.add_argument("--k", type=int, default=20, help="how many of them vote (default: %(default)s)")
    neighbours.add_argument(
        "--temperature", type=float, default=0.07, help="of their weights (default: %(default)s)"
    )
    _add_machine(parser)


def run_evaluate(options: argparse.Namespace) -> int:
    """Run ``evaluate``."""
    from videomaskfeat.console import progress
    from videomaskfeat.tasks.classification.evaluate import (
        ListChoice,
        MachineChoice,
        Neighbours,
        ViewChoice,
        evaluate,
    )

    with progress("scoring videos") as update:
        result = evaluate(
            options.weights,
            options.list,
            options.out,
            views=ViewChoice(
                views=options.views,
                crops=options.crops,
                sampling=options.sampling,
                short_side=options.short_side,
                average=options.average,
            ),
            lists=ListChoice(
                format=options.format,
                labels=options.labels,
                separator=options.separator,
                prefix=options.prefix,
                class_names=options.class_names,
            ),
            neighbours=Neighbours(options.knn, options.k, options.temperature) if options.knn else None,
            machine=MachineChoice(
                device=options.device,
                precision=options.precision,
                reader=options.reader,
                workers=options.workers,
                videos_per_batch=options.videos_per_batch,
                clips_at_once=options.clips_at_once,
            ),
            submission=options.submission,
            progress=update,
        )
    return _tell(result, "evaluate")


def add_average_scores(verbs: Any) -> None:
    """``average-scores``: an ensemble from files of scores."""
    parser = add_verb(
        verbs,
        "average-scores",
        run_average_scores,
        summary="average what two or more evaluations of one list have left: an ensemble, and its accuracy",
        examples="""\
  videomaskfeat average-scores runs/a/evaluation runs/b/evaluation --out ensemble""",
    )
    parser.add_argument(
        "scores", nargs="+", metavar="SCORES", help="folder of an evaluation, or its scores.npz"
    )
    _add_out(parser, default="ensemble")


def run_average_scores(options: argparse.Namespace) -> int:
    """Run ``average-scores``."""
    from videomaskfeat.tasks.classification.evaluate import average_files

    result = average_files(options.scores, options.out, submission=options.submission)
    return _tell(result, "average-scores")


def _tell(result: Any, verb: str) -> int:
    """Print what was found, and on stderr what could not be read; the exit code."""
    if not result.text:  # not the first rank: torchrun would end all of them at a code that is not 0
        return DONE
    print(printable(result.text))
    for failure in result.failures:
        print(one_line(f"videomaskfeat {verb}: {failure.path}: {failure.cause}"), file=sys.stderr)
    return SOME_FAILED if result.failures else DONE


def _add_out(parser: argparse.ArgumentParser, *, default: str) -> None:
    parser.add_argument(
        "--out", metavar="FOLDER", default=default, help="folder to write (default: %(default)s)"
    )
    parser.add_argument(
        "--submission", metavar="FILE", default="", help="also write a Something-Something-v2 submission"
    )


def _add_machine(parser: argparse.ArgumentParser) -> None:
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:N (default: %(default)s)")
    machine.add_argument(
        "--precision", default="auto", help="auto (bf16 on a GPU) | fp32 | bf16 (default: %(default)s)"
    )
    machine.add_argument("--reader", default="auto", help="auto | decord | pyav (default: %(default)s)")
    machine.add_argument(
        "--workers", type=int, default=2, help="processes that read videos, a rank (default: %(default)s)"
    )
    machine.add_argument(
        "--videos-per-batch", type=int, help="videos that a worker reads at a time (default: some 32 clips)"
    )
    machine.add_argument(
        "--clips-at-once", type=int, default=8, help="through the network (default: %(default)s)"
    )
