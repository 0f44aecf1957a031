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


def unknown_name(what: str, name: object, known: Iterable[object]) -> UserError:
    """The error for a name that is none of those known.

    >>> print(unknown_name("target.name", "hogs", ["hog", "pixels"]))
    target.name 'hogs' is unknown; did you mean 'hog'? there are hog, pixels
    """
    names = [str(one) for one in known]
    hint = nearest(name, names) if isinstance(name, str) else ""
    try:
        shown = repr(name)
    except (ValueError, RecursionError):  # an integer of more than 4300 digits; a nest
        shown = f"of type {type(name).__name__}"
    if len(shown) > _LONGEST_NAME:
        shown = f"{shown[:_LONGEST_NAME]}..."
    return UserError(f"{what} {shown} is unknown{hint or ';'} there are {', '.join(names) or 'none'}")


def check_name(what: str, name: object, known: Iterable[object]) -> None:
    """Refuse a name that is none of those known.

    Args:
        what: config key or argument that holds the name.
        name: given by the user.
        known: valid names; of a mapping, its keys.

    Raises:
        UserError: names the nearest known one, and all.
    """
    known = list(known)
    if name not in known:
        raise unknown_name(what, name, known)


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
