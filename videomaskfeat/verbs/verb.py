"""A verb of the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Verb:
    """A verb of the command line.

    Attributes:
        run: function of the config or the options that returns the exit code; its docstring is the help.
        ranks: whether it runs on several ranks, so that ``launch`` accepts it.
        sized: whether it has ``--size``.
        own_configs: whether it has configs of its own.
        arguments: titles and names of arguments, which ``--keys`` prints below the keys.
    """

    run: Callable[[Any], int]
    ranks: bool = False
    sized: bool = False
    own_configs: bool = False
    arguments: Callable[[], Mapping[str, Sequence[str]]] = dict
