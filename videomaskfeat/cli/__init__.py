"""The command line: ``videomaskfeat VERB ...``. Each verb reads its arguments and calls one function.

Exit codes: 0 done; 2 the user's mistake (one line on stderr); 3 finished, but some inputs failed (they are
listed); 130 Ctrl-C; 143 SIGTERM passed on to the runs of a comparison; 1 anything else.
"""

from __future__ import annotations

import argparse
import io
import logging
import sys
import traceback
from collections.abc import Sequence

from videomaskfeat import __version__
from videomaskfeat.cli.comparison import add_compare
from videomaskfeat.cli.data import add_check_data, add_sample_data
from videomaskfeat.cli.detection import add_detect_evaluate, add_detect_train, add_score_ava
from videomaskfeat.cli.evaluation import add_average_scores, add_evaluate
from videomaskfeat.cli.export import add_export
from videomaskfeat.cli.inference import add_detect, add_extract_features, add_predict
from videomaskfeat.cli.interop import add_import_slowfast
from videomaskfeat.cli.machine import add_doctor
from videomaskfeat.cli.pictures import add_report, add_visualize
from videomaskfeat.cli.training import add_finetune, add_pretrain, add_train_tokenizer
from videomaskfeat.cli.verb import DONE, FAILED, INTERRUPTED, MISTAKE, Interrupts, one_line
from videomaskfeat.cpu import set_wait_policy, yielding_threads
from videomaskfeat.errors import PlugInFailed, RunFailed, Stopped, UserError
from videomaskfeat.processes import end_with_parent
from videomaskfeat.texts import printable


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
