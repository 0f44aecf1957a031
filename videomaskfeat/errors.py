"""Errors with a message for users."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable

_LONGEST_NAME = 200  # characters


class UserError(ValueError):
    """A mistake that the user can correct: one line with what is wrong, where, the rule and the remedy.

    The command line prints only the message on stderr, without a traceback, and exits with code 2.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name closest to ``name`` as the end of an error message, or an empty string.

    >>> nearest("epoch", ["epochs", "seed"])
    "; did you mean 'epochs'?"
    """
    if len(name) > _LONGEST_NAME:  # not a name, and slow to compare
        return ""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {match[0]!r}?" if match else ""


def unknown_name(what: str, name: object, known: Iterable[object]) -> UserError:
    """The error for an unknown name.

    >>> print(unknown_name("target.name", "hogs", ["hog", "pixels"]))
    target.name 'hogs' is unknown; did you mean 'hog'? Choose from hog, pixels
    """
    names = [str(one) for one in known]
    hint = nearest(name, names) if isinstance(name, str) else ""
    shown = safe_repr(name)
    if len(shown) > _LONGEST_NAME:
        shown = f"{shown[:_LONGEST_NAME]}..."
    choices = f"choose from {', '.join(names)}" if names else "none is accepted"
    return UserError(f"{what} {shown} is unknown{f'{hint} C{choices[1:]}' if hint else f'; {choices}'}")


def check_name(what: str, name: object, known: Iterable[object]) -> None:
    """Raise UserError unless a name is known.

    Args:
        what: config key or argument of the name.
        name: value from the user.
        known: valid names, which the message lists; of a mapping, its keys.
    """
    known = list(known)
    if name not in known:
        raise unknown_name(what, name, known)


def safe_repr(value: object) -> str:
    """``repr`` of a value, or its type if ``repr`` fails: integers of more than 4300 digits, deep nesting."""
    try:
        return repr(value)
    except (ValueError, RecursionError):
        return f"of type {type(value).__name__}"


def counted(number: int, noun: str) -> str:
    """A number with its noun, in the plural unless the number is 1.

    >>> counted(1, "key frame"), counted(2, "video")
    ('1 key frame', '2 videos')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


class RunFailed(RuntimeError):
    """A run that cannot continue, through no mistake of the user: a full disk, a non-finite loss.

    The command line prints only the message on stderr and exits with code 1.
    """


class Stopped(RunFailed):
    """SIGTERM or Ctrl-C ended the work early.

    The command line prints only the message on stderr and exits with ``exit_code``.

    Args:
        number: number of the signal.
        message: what is saved, and how to continue.
    """

    def __init__(self, number: int, message: str = "") -> None:
        name = signal.Signals(number).name
        super().__init__(
            message or f"stopped by {name}; finished work is kept, and the same command continues"
        )
        self.exit_code = 128 + number


class PlugInFailed(RunFailed):
    """Python code of the user raised an error, which is the cause of this one.

    The command line prints the message and below it the cause's traceback, and exits with code 1.
    """
