"""Progress of the verbs that only count: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import argparse
import inspect
import io
import logging
import os
import signal
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from videomaskfeat import __version__
from videomaskfeat.errors import PlugInFailed, RunFailed, Stopped, UserError
from videomaskfeat.machine import set_wait_policy, yielding_threads
from videomaskfeat.methods import METHODS
from videomaskfeat.models.tokenizers import TOKENIZERS
from videomaskfeat.processes import end_with_parent, started_by_verbs
from videomaskfeat.targets import TARGETS
from videomaskfeat.texts import printable, printable_name

logger = logging.getLogger(__name__)

Update = Callable[[int, int], None]  # (done, total)
PLAIN_SECONDS = 5.0  # between two lines of a log


@contextmanager
def progress(title: str) -> Iterator[Update]:
    """Show ``title`` and how much is done, on stderr, so that stdout stays the verb's own."""
    if sys.stderr.isatty():
        yield from _bar(title)
    else:
        yield from _lines(title)


def _bar(title: str) -> Iterator[Update]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield update


def _lines(title: str) -> Iterator[Update]:
    last = time.monotonic()

    def update(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done == total or now - last >= PLAIN_SECONDS:
            last = now
            print(f"{title}: {done} of {total}", file=sys.stderr, flush=True)

    yield update


# What the verbs share: exit codes, how one is added, and messages on one line.
_END_SECONDS = 20.0  # for an end in order after Ctrl-C
DONE, FAILED, MISTAKE, SOME_FAILED, INTERRUPTED = 0, 1, 2, 3, 130


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


class Interrupts:
    """Raises KeyboardInterrupt at Ctrl-C and remembers that it came; a second one is the earlier handler's.

    While a module is being imported, Ctrl-C ends the process at once with one line and 130: the import would
    pass the exception over, or turn it into an error of its own. Elsewhere the process has 20 seconds to end:
    an exception in a finalizer, which can run at any moment, is lost.
    """

    def __init__(self, verb: str) -> None:
        self.came = False
        self._verb = verb
        self._earlier: Any = None
        self._last_resort = threading.Timer(_END_SECONDS, self._end)
        self._last_resort.daemon = True

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._earlier = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._last_resort.cancel()
        if self._earlier is not None:
            signal.signal(signal.SIGINT, self._earlier)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if _is_importing(frame):
            self._end()
        if not self.came:
            self._last_resort.start()
        if self.came and callable(self._earlier):
            self._earlier(number, frame)
        self.came = True
        raise KeyboardInterrupt

    def _end(self) -> None:
        os.write(2, f"videomaskfeat {self._verb}: interrupted\n".encode())
        os._exit(INTERRUPTED)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def one_line(error: Exception | str) -> str:
    """The message on one line that any stream can print, however the user's paths and values are spelt."""
    return printable(" ".join(str(error).split()))


# What may stand in the ``arguments`` of a config's targets, methods and tokenizers.
_SUPPLIED = ("config", "build", "clip_mean", "clip_std")
"""By the run itself."""


def pretrain_arguments() -> dict[str, list[str]]:
    """Title of each target and method -> what it takes: ``name=default``, or the name of what it needs."""
    return _arguments("target.arguments", TARGETS) | _arguments("method.arguments", METHODS)


def tokenizer_arguments() -> dict[str, list[str]]:
    """Likewise of the tokenizers that ``train-tokenizer`` trains."""
    return _arguments("model.arguments", TOKENIZERS)


def _arguments(where: str, builders: Mapping[str, Callable[..., object]]) -> dict[str, list[str]]:
    return {
        f"{where} of {name}": [
            argument.name if argument.default is argument.empty else f"{argument.name}={argument.default}"
            for argument in inspect.signature(build).parameters.values()
            if argument.name not in _SUPPLIED
        ]
        for name, build in builders.items()
    }


# Verbs about videos and lists.


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
    from videomaskfeat.jobs.check_data import check_data

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


# Verbs that train.


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
    add_config_arguments(parser)


def run_pretrain(options: argparse.Namespace) -> int:
    """Run ``pretrain``."""
    from videomaskfeat.config import PretrainConfig, load_config

    if options.keys:
        pass

        print_keys(PretrainConfig)
        return _print_arguments(pretrain_arguments())
    config = load_config(PretrainConfig, options.config, options.overrides, say=logger.info)
    from videomaskfeat.jobs.pretrain import pretrain

    outcome = pretrain(config)
    return exit_code(outcome)


def add_finetune(verbs: Any) -> None:
    """``finetune``: train a classifier, from pre-trained weights or from scratch."""
    parser = add_verb(
        verbs,
        "finetune",
        run_finetune,
        summary="train a classifier from pre-trained weights, ours or PySlowFast's, or from scratch",
        examples="""\
  videomaskfeat finetune --config configs/finetune/sample.yaml model.weights=demo/run/weights.safetensors
  videomaskfeat finetune --config configs/finetune/k400_maskfeat_mvitv2_s.yaml \\
      data.train=k400/train.csv data.validation=k400/val.csv model.weights=runs/s/weights.safetensors \\
      run.folder=runs/s_k400
  videomaskfeat finetune --config ... model.head=linear        a linear probe: the encoder stays frozen
  torchrun --nproc-per-node=8 -m videomaskfeat finetune --config ... run.folder=runs/s_k400
  videomaskfeat finetune --keys        every key, its default and its meaning""",
    )
    add_config_arguments(parser)


def run_finetune(options: argparse.Namespace) -> int:
    """Run ``finetune``."""
    from videomaskfeat.config import FinetuneConfig, load_config

    if options.keys:
        return print_keys(FinetuneConfig)
    config = load_config(FinetuneConfig, options.config, options.overrides, say=logger.info)
    from videomaskfeat.jobs.finetune import finetune

    outcome = finetune(config)
    return exit_code(outcome)


def add_train_tokenizer(verbs: Any) -> None:
    """``train-tokenizer``: train what names frames by tokens, for the targets dvae and codebook."""
    parser = add_verb(
        verbs,
        "train-tokenizer",
        run_train_tokenizer,
        summary="train a tokenizer of frames on videos, whose tokens a pre-training can predict (BEiT, PeCo)",
        examples="""\
  videomaskfeat train-tokenizer --config configs/tokenizer/sample_dvae.yaml
  videomaskfeat train-tokenizer --config configs/tokenizer/sample_vq.yaml \\
      perceptual.weights=demo/run/weights.safetensors perceptual.depths=[2,4]
  videomaskfeat pretrain --config configs/pretrain/sample_dvae.yaml      predicts its tokens
  videomaskfeat train-tokenizer --keys        every key, its default and its meaning""",
    )
    add_config_arguments(parser)


def run_train_tokenizer(options: argparse.Namespace) -> int:
    """Run ``train-tokenizer``."""
    from videomaskfeat.config import TokenizerConfig, load_config

    if options.keys:
        pass

        print_keys(TokenizerConfig)
        return _print_arguments(tokenizer_arguments())
    config = load_config(TokenizerConfig, options.config, options.overrides, say=logger.info)
    from videomaskfeat.jobs.tokenizer import train_tokenizer

    outcome = train_tokenizer(config)
    return exit_code(outcome)


def exit_code(outcome: Any) -> int:
    """Of a training that ended without an error.

    One that a signal stopped has saved its last step and ends with 0; as a part of a longer command it must
    be distinguished from a finished one.
    """
    if not outcome.finished and started_by_verbs():
        return INTERRUPTED
    return SOME_FAILED if outcome.failures else DONE


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """What every verb takes that is run by a config."""
    parser.add_argument("--config", metavar="YAML", help="config file; only what differs from the defaults")
    parser.add_argument("--keys", action="store_true", help="list every config key and stop")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="on top of the config")


def print_keys(schema: type) -> int:
    """Every key of a config with its default and its meaning, in columns."""
    from videomaskfeat.config import key_table

    rows = key_table(schema)
    width = max(len(name) for name, _, _ in rows)
    default_width = max(len(default) for _, default, _ in rows)
    for name, default, meaning in rows:
        print(f"{name:<{width}}  {default:<{default_width}}  {meaning}")
    return DONE


def _print_arguments(arguments: Mapping[str, Sequence[str]]) -> int:
    """What may be set below a key that holds arguments, a title and its names each."""
    for title, names in arguments.items():
        print(f"\n{title}")
        print(textwrap.indent(textwrap.fill(", ".join(names) or "none", 100), "  "))
    return DONE


# Verbs that score: a network on a list, and the mean of several networks.


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
    from videomaskfeat.inference.lists import ListChoice
    from videomaskfeat.inference.multiview import Machine
    from videomaskfeat.jobs.evaluate import Neighbours, ViewChoice, evaluate

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
            machine=Machine(
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
    from videomaskfeat.jobs.average_scores import average_files

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


# Verbs about boxes of persons and what they do.


def add_score_ava(verbs: Any) -> None:
    """``score-ava``: the official frame mAP of a file of detections."""
    parser = add_verb(
        verbs,
        "score-ava",
        run_score_ava,
        summary="score a file of detections by AVA's official rules: frame mAP, each action, and why",
        examples="""\
  videomaskfeat score-ava --groundtruth ava/annotations/ava_val_v2.2.csv --detections detections.csv \\
      --labels ava/annotations/ava_action_list_v2.2_for_activitynet_2019.pbtxt \\
      --exclusions ava/annotations/ava_val_excluded_timestamps_v2.2.csv --out runs/ava/score""",
    )
    files = parser.add_argument_group("files")
    files.add_argument(
        "--groundtruth", metavar="FILE", required=True, help="rows video,second,x1,y1,x2,y2,action,person"
    )
    files.add_argument(
        "--detections", metavar="FILE", required=True, help="rows video,second,x1,y1,x2,y2,action,score"
    )
    files.add_argument(
        "--labels", metavar="FILE", required=True, help="label map (pbtxt): the actions that count"
    )
    files.add_argument("--exclusions", metavar="FILE", help="rows video,second that do not count")
    files.add_argument(
        "--out", metavar="FOLDER", help="write result.json, per_class.csv and report.html (default: nothing)"
    )
    _add_rules(parser)


def run_score_ava(options: argparse.Namespace) -> int:
    """Run ``score-ava``."""
    from videomaskfeat.jobs.score_ava import score_ava

    scored = score_ava(
        options.groundtruth,
        options.detections,
        options.labels,
        options.exclusions,
        options.out,
        iou_threshold=options.iou,
        rows_per_frame=options.rows_per_frame,
    )
    print(printable(scored.text))
    return DONE


def add_detect_train(verbs: Any) -> None:
    """``detect-train``: train a detector of actions."""
    parser = add_verb(
        verbs,
        "detect-train",
        run_detect_train,
        summary="train a detector of actions: what each person in a box does, from pre-trained weights",
        examples="""\
  videomaskfeat detect-train --config configs/detect/sample.yaml model.weights=demo/run/weights.safetensors
  videomaskfeat detect-train --config configs/detect/ava_v22_maskfeat_mvitv2_s.yaml \\
      data.videos=ava/videos model.weights=runs/s_k400/best.safetensors run.folder=runs/s_ava
  torchrun --nproc-per-node=8 -m videomaskfeat detect-train --config ... run.folder=runs/s_ava
  videomaskfeat detect-train --keys        every key, its default and its meaning""",
    )
    add_config_arguments(parser)


def run_detect_train(options: argparse.Namespace) -> int:
    """Run ``detect-train``."""
    from videomaskfeat.config import DetectConfig, load_config

    if options.keys:
        return print_keys(DetectConfig)
    config = load_config(DetectConfig, options.config, options.overrides, say=logger.info)
    from videomaskfeat.jobs.detect import detect_train

    return exit_code(detect_train(config))


def add_detect_evaluate(verbs: Any) -> None:
    """``detect-evaluate``: the frame mAP of a detector of actions."""
    parser = add_verb(
        verbs,
        "detect-evaluate",
        run_detect_evaluate,
        summary="score a detector of actions on key frames by AVA's official rules",
        examples="""\
  videomaskfeat detect-evaluate runs/s_ava/best.safetensors --videos ava/videos \\
      --groundtruth ava/annotations/ava_val_v2.2.csv \\
      --boxes ava/annotations/ava_val_predicted_boxes.csv \\
      --labels ava/annotations/ava_action_list_v2.2_for_activitynet_2019.pbtxt \\
      --exclusions ava/annotations/ava_val_excluded_timestamps_v2.2.csv --out runs/s_ava/whole
  videomaskfeat detect-evaluate ... --area centre --short-side 224
  videomaskfeat detect-evaluate ... --scales 224 256 312 --flip
  torchrun --nproc-per-node=8 -m videomaskfeat detect-evaluate ...""",
    )
    parser.add_argument("weights", help="weights (safetensors) of a run of detect-train")
    files = parser.add_argument_group("files")
    files.add_argument(
        "--groundtruth", metavar="FILE", required=True, help="rows video,second,x1,y1,x2,y2,action,person"
    )
    files.add_argument("--labels", metavar="FILE", required=True, help="label map (pbtxt): what is scored")
    files.add_argument(
        "--boxes",
        metavar="FILE",
        nargs="+",
        default=[],
        help="a detector's boxes of persons, rows video,second,x1,y1,x2,y2,,score (default: those of the "
        "ground truth)",
    )
    files.add_argument("--exclusions", metavar="FILE", default="", help="rows video,second: not scored")
    _add_places(parser)
    parser.add_argument(
        "--out", metavar="FOLDER", default="evaluation", help="folder to write (default: %(default)s)"
    )
    frames = parser.add_argument_group("frames", "default: as the weights were tested")
    frames.add_argument("--area", help="whole (the frame in its aspect) | centre (a square, boxes cut to it)")
    frames.add_argument("--short-side", type=int, help="pixels that a frame's short side is resized to")
    frames.add_argument(
        "--scales", type=int, nargs="+", default=[], help="average the scores of these short sides instead"
    )
    frames.add_argument("--flip", action="store_true", help="average over each clip and its mirror image")
    frames.add_argument("--score-threshold", type=float, help="least score of a detected box")
    _add_rules(parser)
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:N (default: %(default)s)")
    machine.add_argument("--precision", default="auto", help="auto (bf16 on a GPU) | fp32 | bf16")
    machine.add_argument(
        "--workers", type=int, default=2, help="processes that read videos, a rank (default: %(default)s)"
    )
    machine.add_argument(
        "--clips-at-once", type=int, default=8, help="through the network (default: %(default)s)"
    )


def run_detect_evaluate(options: argparse.Namespace) -> int:
    """Run ``detect-evaluate``."""
    from videomaskfeat.inference.ava_scores import ScoredFiles
    from videomaskfeat.inference.key_frames import VideoPlaces, lines_on
    from videomaskfeat.inference.multiview import Machine
    from videomaskfeat.jobs.detect_evaluate import FrameChoice, detect_evaluate

    with progress("scoring key frames") as update:
        result = detect_evaluate(
            options.weights,
            ScoredFiles(options.groundtruth, options.labels, options.exclusions, tuple(options.boxes)),
            VideoPlaces(
                videos=options.videos,
                frame_lists=tuple(options.frame_lists),
                frames=options.frames,
                frames_fps=options.frames_fps,
                start_second=options.start_second,
            ),
            options.out,
            frames=FrameChoice(
                area=options.area,
                short_side=options.short_side,
                scales=tuple(options.scales),
                flip=options.flip,
                score_threshold=options.score_threshold,
            ),
            machine=Machine(
                device=options.device,
                precision=options.precision,
                workers=options.workers,
                clips_at_once=options.clips_at_once,
            ),
            iou_threshold=options.iou,
            rows_per_frame=options.rows_per_frame,
            progress=update,
        )
    if not result.text:  # not the first rank: torchrun would end all of them at a code that is not 0
        return DONE
    print(printable(result.text))
    for line in lines_on(result.failures):
        print(one_line(f"videomaskfeat detect-evaluate: {line}"), file=sys.stderr)
    return SOME_FAILED if result.failures else DONE


def _add_places(parser: argparse.ArgumentParser) -> None:
    places = parser.add_argument_group("videos")
    places.add_argument(
        "--videos", metavar="FOLDER", default="", help="of a file a video, or of a folder of frames each"
    )
    places.add_argument(
        "--frame-lists", metavar="FILE", nargs="+", default=[], help="instead: lists of extracted frames"
    )
    places.add_argument("--frames", metavar="FOLDER", default="", help="before the paths of these lists")
    places.add_argument(
        "--frames-fps", type=float, default=30.0, help="of extracted frames (default: %(default)s)"
    )
    places.add_argument(
        "--start-second", type=float, help="of each video's first frame (AVA: 0 or 900; default: found out)"
    )


def _add_rules(parser: argparse.ArgumentParser) -> None:
    """What a score depends on."""
    rules = parser.add_argument_group("rules")
    rules.add_argument("--iou", type=float, default=0.5, help="least overlap of a hit (default: %(default)s)")
    rules.add_argument(
        "--rows-per-frame",
        metavar="N",
        type=int,
        help="judge the N best rows of a key frame alone, as the official script does with 50 (default: all)",
    )


# Verbs that apply a trained network to anybody's videos.


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
    _add_machine_inference(parser, workers=0)


def run_predict(options: argparse.Namespace) -> int:
    """Run ``predict``."""
    from videomaskfeat.jobs.predict import Predictions, as_json, as_text, predict

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
        pass
        from videomaskfeat.config import DetectVideoConfig

        parser.exit(print_keys(DetectVideoConfig))


def run_detect(options: argparse.Namespace) -> int:
    """Run ``detect``."""
    from pathlib import Path

    from videomaskfeat.config import DetectVideoConfig, load_config

    pass

    overrides = [
        f"{section}.{name}={value}"
        for section, keys in vars(DetectVideoConfig()).items()
        for name in vars(keys)
        if (value := getattr(options, name, None)) is not None
    ]
    overrides += [f"persons.detector_options.{option}" for option in options.detector_option]
    settings = vars(load_config(DetectVideoConfig, options.config, overrides))
    from videomaskfeat.jobs.detect_video import detect_videos

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
    _add_machine_inference(parser, workers=2)


def run_extract_features(options: argparse.Namespace) -> int:
    """Run ``extract-features``."""
    pass
    from videomaskfeat.jobs.features import extract_features

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


def _add_machine_inference(parser: argparse.ArgumentParser, *, workers: int) -> None:
    parser.add_argument("--reader", default="auto", help="auto | decord | pyav (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:N (default: %(default)s)")
    parser.add_argument(
        "--precision", default="auto", help="auto (bf16 on a GPU) | fp32 | bf16 (default: %(default)s)"
    )
    parser.add_argument(
        "--workers", type=int, default=workers, help="processes that read videos (default: %(default)s)"
    )


# Verbs that show: pictures of videos, the page of a run.


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
    from videomaskfeat.jobs.visualize import visualize

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
    from videomaskfeat.jobs.report import report

    print(printable(str(report(options.folder, options.out, beside=options.beside))))
    return DONE


# Verbs that bring other projects' files along.


def add_import_slowfast(verbs: Any) -> None:
    """``import-slowfast``: PySlowFast's YAML and checkpoint to ours."""
    parser = add_verb(
        verbs,
        "import-slowfast",
        run_import_slowfast,
        summary="turn a PySlowFast YAML and checkpoint (MaskFeat, MViTv2) into weights and a config of ours",
        examples="""\
  videomaskfeat import-slowfast --config MVITv2_S_16x4.yaml --checkpoint MViTv2_S_16x4_k400.pyth zoo/s
  videomaskfeat import-slowfast --config k400_MVITv2_S_16x4_FT.yaml --checkpoint s.pyth zoo/s_ft \\
      --class-names kinetics400_names.txt
  videomaskfeat predict zoo/s_ft/weights.safetensors my_video.mp4""",
    )
    parser.add_argument("--config", required=True, metavar="YAML", help="PySlowFast's config")
    parser.add_argument("--checkpoint", required=True, metavar="PYTH", help="its checkpoint")
    parser.add_argument("out", metavar="OUT", help="folder for weights.safetensors, config.yaml, import.json")
    parser.add_argument(
        "--class-names",
        metavar="FILE",
        help="a name a line in the order of the labels, or SSv2's labels JSON",
    )
    parser.add_argument(
        "--weights-key",
        default="",
        metavar="KEY",
        help="which weights of a checkpoint that holds several, such as model_ema (default: model_state, "
        "state_dict, model or module, the first that is there)",
    )


def run_import_slowfast(options: argparse.Namespace) -> int:
    """Run ``import-slowfast``."""
    from videomaskfeat.jobs.import_weights import import_slowfast

    outcome = import_slowfast(
        options.config,
        options.checkpoint,
        options.out,
        class_names=options.class_names,
        weights_key=options.weights_key,
    )
    print(printable(outcome.text()))
    return DONE


# The verb that takes models to other programs.


def add_export(verbs: Any) -> None:
    """``export``: a weights file in another format."""
    parser = add_verb(
        verbs,
        "export",
        run_export,
        summary="write a model as ONNX, as a torch.export program, in PySlowFast's names or as safetensors; "
        "the file is read afresh and compared with the model before it is kept",
        examples="""\
  videomaskfeat export runs/s_k400/best.safetensors s_k400.onnx
  videomaskfeat export runs/s_k400/best.safetensors s_k400.pt2 --batch 8 --input float
  videomaskfeat export runs/s_k400/best.safetensors s_k400.pyth        PySlowFast's names, and a YAML beside
  videomaskfeat export runs/s/weights.safetensors encoder.onnx --part encoder --opset 18
  videomaskfeat export runs/s_k400/best.safetensors encoder.safetensors --part encoder""",
    )
    parser.add_argument("weights", help="weights (safetensors) of any run of ours, or of import-slowfast")
    parser.add_argument("out", metavar="OUT", help="file to write")
    parser.add_argument(
        "--format",
        default="auto",
        help="safetensors | slowfast (.pyth and .yaml) | torch (.pt2) | onnx (default: as OUT ends)",
    )
    parser.add_argument(
        "--part", default="model", help="model | encoder: without its head (default: %(default)s)"
    )
    parser.add_argument(
        "--input",
        help="of a graph: uint8 (frames as decoded, [B,T,H,W,C]; normalised inside) | float (clips that the "
        "caller has normalised, [B,C,T,H,W]) (default: uint8)",
    )
    parser.add_argument(
        "--batch",
        type=_batch,
        metavar="N",
        help="of a graph: clips at a time, or dynamic: any number (default: dynamic)",
    )
    parser.add_argument("--opset", type=int, help="version of ONNX's operators, 18 to 23 (default: 20)")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        help="largest difference that passes, as a share of the largest value (default: %(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT where it exists")


def run_export(options: argparse.Namespace) -> int:
    """Run ``export``."""
    from videomaskfeat.jobs.export import export

    exported = export(
        options.weights,
        options.out,
        format=options.format,
        part=options.part,
        input=options.input,
        batch=options.batch,
        opset=options.opset,
        tolerance=options.tolerance,
        overwrite=options.overwrite,
    )
    print(printable(exported.text()))
    return DONE


def _batch(text: str) -> int | None:
    """A number of clips, or None for "dynamic"."""
    if text == "dynamic":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of clips nor dynamic") from None


# The verb about this machine.


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
    from videomaskfeat.environment import diagnose

    diagnosis = diagnose(options.folder, measure=True)
    print(diagnosis.to_json() if options.json else diagnosis.text())
    return DONE if diagnosis.healthy else FAILED


# The verb that compares targets.


def add_compare(verbs: Any) -> None:
    """``compare``: several targets under one budget."""
    parser = add_verb(
        verbs,
        "compare",
        run_compare,
        summary="pre-train with several targets under one budget, probe and fine-tune each; one page",
        examples="""\
  videomaskfeat compare --config configs/compare/sample.yaml
  videomaskfeat compare --config configs/compare/sample.yaml --targets hog,pixels,ibot --seeds 3
  videomaskfeat compare --config ... compare.folder=runs/targets     the same command goes on after a stop
  videomaskfeat compare --keys        every key, its default and its meaning""",
    )
    add_config_arguments(parser)
    parser.add_argument("--targets", metavar="A,B,...", help="entries to run (default: all of the config)")
    parser.add_argument("--seeds", type=int, help="runs of each, instead of compare.seeds")


def run_compare(options: argparse.Namespace) -> int:
    """Run ``compare``."""
    from videomaskfeat.config import CompareConfig, load_config

    if options.keys:
        return print_keys(CompareConfig)
    seeds = [] if options.seeds is None else [f"compare.seeds={options.seeds}"]
    config = load_config(CompareConfig, options.config, [*options.overrides, *seeds])
    from videomaskfeat.jobs.compare import compare

    targets = [name.strip() for name in (options.targets or "").split(",") if name.strip()]
    print(printable(f"report  {compare(config, targets=targets)}"))
    return DONE


# The command line: ``videomaskfeat VERB ...``. Each verb reads its arguments and calls one function.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, force=True)
    logging.getLogger().handlers[0].setFormatter(_Printable("%(message)s"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8
    options = build_parser().parse_args(arguments)
    set_wait_policy()
    try:
        return _run(options)
    except KeyboardInterrupt:  # also one that comes while its handler is set or removed
        print(f"videomaskfeat {options.verb}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BaseException as error:
        return _explain(options.verb, error)


def _run(options: argparse.Namespace) -> int:
    """Run the verb.

    Raises:
        KeyboardInterrupt: Ctrl-C came, and nothing in the verb took it as a wish to stop.
    """
    with Interrupts(options.verb) as interrupts:
        try:
            end_with_parent()
            with yielding_threads():
                return int(options.run(options))
        except BaseException as error:
            if interrupts.came:  # a module that is being imported may turn it into an error of its own
                raise KeyboardInterrupt from error
            raise


def _explain(verb: str, error: BaseException) -> int:
    """Print what a person needs of an error, and return the exit code; errors of the program are raised."""
    if isinstance(error, BrokenPipeError):  # the reader of the output, such as `head`, has ended
        sys.stderr.close()
        return DONE
    if not isinstance(error, UserError | RunFailed | OSError):  # OSError: a folder that may not be written
        raise error
    print(f"videomaskfeat {verb}: {one_line(error)}", file=sys.stderr)
    if isinstance(error, UserError):
        return MISTAKE
    if isinstance(error, PlugInFailed):  # the user's own code: where in it is theirs to see
        traceback.print_exception(error.__cause__)
    return error.exit_code if isinstance(error, Stopped) else FAILED


class _Printable(logging.Formatter):
    """Messages hold names of files, which may have any bytes."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


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
    add_finetune(verbs)
    add_train_tokenizer(verbs)
    add_compare(verbs)
    add_evaluate(verbs)
    add_average_scores(verbs)
    add_detect_train(verbs)
    add_detect_evaluate(verbs)
    add_score_ava(verbs)
    add_predict(verbs)
    add_detect(verbs)
    add_extract_features(verbs)
    add_import_slowfast(verbs)
    add_export(verbs)
    add_visualize(verbs)
    add_report(verbs)
    add_sample_data(verbs)
    add_check_data(verbs)
    add_doctor(verbs)
    return parser
