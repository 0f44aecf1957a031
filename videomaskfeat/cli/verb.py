"""What the verbs share: exit codes, how one is added, and messages on one line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

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


def one_line(error: Exception) -> str:
    """The message on one line, however the user's paths and values are spelt."""
    return " ".join(str(error).split())


def printable(text: str) -> str:
    """The text with the bytes of a file name that are no UTF-8 as ``\\xe9``, which any stream can print."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")
