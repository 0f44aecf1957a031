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


def one_line(error: Exception | str) -> str:
    """The message on one line that any stream can print, however the user's paths and values are spelt."""
    return printable(" ".join(str(error).split()))


def printable(text: str) -> str:
    """Text that neither fails nor controls a terminal, whatever names of files it holds.

    Bytes that are not UTF-8 become ``\\xe9``, control characters besides line ends and tabs ``\\x1b``.
    """
    return "".join(map(_printable_letter, text)) if not text.isprintable() else text


def _printable_letter(letter: str) -> str:
    if letter.isprintable() or letter in "\n\t":
        return letter
    if "\udc80" <= letter <= "\udcff":  # a byte that is not UTF-8
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode()
