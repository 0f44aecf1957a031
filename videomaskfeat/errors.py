"""Errors that are meant for people."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable

_LONGEST_NAME = 200  # characters


class UserError(ValueError):
    """A mistake the user can mend: one line with what, where, the rule and the remedy.

    The command line prints the message alone on stderr and exits with code 2, without a traceback.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name closest to ``name`` as the tail of an error message, or an empty string.

    >>> nearest("epoch", ["epochs", "seed"])
    "; did you mean 'epochs'?"
    """
    if len(name) > _LONGEST_NAME:  # no name, and slow to compare
        return ""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {match[0]!r}?" if match else ""


def counted(number: int, noun: str) -> str:
    """A number with its noun, in the plural where it is not one.

    >>> counted(1, "key frame"), counted(2, "video")
    ('1 key frame', '2 videos')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


class RunFailed(RuntimeError):
    """A run that cannot go on and is not the user's mistake to mend: no space left, a non-finite loss.

    The command line prints the message alone on stderr and exits with code 1.
    """


class Stopped(RunFailed):
    """SIGTERM or Ctrl-C ended the work before its end.

    The command line prints the message alone on stderr and exits with ``exit_code``.
    """

    def __init__(self, number: int, message: str = "") -> None:
        """Store the signal.

        Args:
            number: of the signal.
            message: what is saved, and how to go on.
        """
        name = signal.Signals(number).name
        super().__init__(
            message or f"stopped by {name}; what is finished is kept, and the same command goes on"
        )
        self.exit_code = 128 + number


class PlugInFailed(RunFailed):
    """Python code that the user gave raised an error, which is this one's cause.

    The command line prints the message and below it the cause's traceback, and exits with code 1.
    """
