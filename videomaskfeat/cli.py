"""The command line ``videomaskfeat VERB ...``: reads the arguments, runs the verb, explains its errors.

Every option of a verb is a key of its schema; it is given as ``--option VALUE`` or as ``option=VALUE``.
"""

from __future__ import annotations

import argparse
import inspect
import io
import json
import logging
import os
import re
import sys
import textwrap
import traceback
import typing
from collections.abc import Iterator, Sequence
from dataclasses import field, make_dataclass
from typing import Any, NoReturn

from videomaskfeat import __version__
from videomaskfeat.config import Key, Override, keys_of, load_config
from videomaskfeat.errors import PlugInFailed, RunFailed, Stopped, UserError, nearest
from videomaskfeat.machine import set_wait_policy, yielding_threads
from videomaskfeat.processes import end_with_parent
from videomaskfeat.terminal import (
    DONE,
    FAILED,
    INTERRUPTED,
    MISTAKE,
    Interrupts,
    PrintableFormatter,
    one_line,
)
from videomaskfeat.texts import show_text
from videomaskfeat.verbs import TAKES, VERBS

logger = logging.getLogger(__name__)
_OVERVIEW = "Masked video pre-training: hide spacetime cubes, predict what they held."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, force=True)
    logging.getLogger().handlers[0].setFormatter(PrintableFormatter("%(message)s"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    if name in ("-h", "--help", "--version"):
        print(f"videomaskfeat {__version__}" if name == "--version" else overview())
        return DONE
    if name not in VERBS:
        problem = f"unknown verb {name!r}{nearest(name, VERBS)}" if name else "the verb is missing"
        print(one_line(f"videomaskfeat: {problem}; see --help"), file=sys.stderr)
        return MISTAKE
    set_wait_policy()
    try:
        return _run(CommandLine(name), rest)
    except KeyboardInterrupt:  # also one that comes while its handler is set or removed
        print(f"videomaskfeat {name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BaseException as error:
        return _explain(name, error)


def _run(line: CommandLine, arguments: Sequence[str]) -> int:
    """Run the verb.

    Raises:
        KeyboardInterrupt: Ctrl-C came, and nothing in the verb took it as a wish to stop.
    """
    with Interrupts(line.verb) as interrupts:
        try:
            end_with_parent()
            with yielding_threads():
                config = line.read(arguments)
                return DONE if config is None else VERBS[line.verb](config)
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


def overview() -> str:
    """The help of the whole command: every verb with its summary."""
    lines = [f"  {name:<17} {_help(name)[0]}" for name in VERBS]
    hint = "`videomaskfeat VERB --help` explains a verb, with examples; --version prints the version."
    return "\n".join(["usage: videomaskfeat VERB ...", "", _OVERVIEW, "", "verbs:", *lines, "", hint])


class CommandLine:
    """Reads the arguments of a verb into its config.

    A schema without sections becomes the only section of a config, under the verb's name. Such a verb, and
    one with positional arguments, has a ``--flag`` for each key; those of a training are too many.
    """

    def __init__(self, verb: str) -> None:
        self.verb = verb
        hints = typing.get_type_hints(VERBS[verb])
        (schema,) = [kind for name, kind in hints.items() if name != "return"]
        self.section = "" if schema.__name__.endswith("Config") else verb.replace("-", "_")
        if self.section:
            schema = make_dataclass(schema.__name__, [(self.section, schema, field(default_factory=schema))])
        self.schema: type = schema
        self.names = {one.name: one for one in keys_of(schema)}
        self.positional = [one for one in self.names.values() if one.rules.positional]
        self.flagged = bool(self.section or self.positional)
        self.keys = {name.partition(".")[2]: one for name, one in self.names.items()}
        """Name without its section -> key with a flag."""
        if not self.flagged:
            self.keys = {name: one for name, one in self.keys.items() if one.rules.flag}

    def read(self, arguments: Sequence[str]) -> Any:
        """The config or the options, or None if the keys were asked for and are printed.

        Raises:
            UserError: a wrong option or value, or a missing one.
            SystemExit: the help was asked for and is printed.
        """
        arguments, files = _split_at_dashes(arguments)
        options, unknown = self.parser().parse_known_intermixed_args(arguments)
        if unknown:
            known = [_flag(name, one) for name, one in self.keys.items()]
            close = nearest(unknown[0].partition("=")[0], known)
            raise UserError(f"unknown option {show_text(unknown[0])!r}{close}{self._see_help}")
        if options.keys:
            self.print_keys()
            return None
        words = options.words
        for name, value in vars(options).items():
            if isinstance(value, list) and name != "words":  # ``--beside a b out=c``
                words += [word for word in value if self._full_name(word)]
                setattr(options, name, [word for word in value if word not in words])
        overrides = [one for name in self.keys for one in self._of_flag(name, getattr(options, name, None))]
        overrides += self._of_words(words, files)
        config: Any = load_config(self.schema, getattr(options, "yaml", None), overrides, say=logger.info)
        if not self.flagged:
            return config
        for one in keys_of(config):
            if (one.rules.required or one.rules.positional) and not one.value:
                name = one.name.partition(".")[2]
                shown = name.upper() if one.rules.positional else _flag(name, one)
                raise UserError(f"{shown} is missing: {one.rules.meaning}{self._see_help}")
        return getattr(config, self.section) if self.section else config

    @property
    def _see_help(self) -> str:
        return f"; see videomaskfeat {self.verb} --help"

    def parser(self) -> argparse.ArgumentParser:
        """The parser of the flags; all other arguments are its ``words``."""
        summary, examples = _help(self.verb)
        names = [one.name.partition(".")[2].upper() for one in self.positional]
        parser = _Parser(
            prog=f"videomaskfeat {self.verb}",
            usage=" ".join(["%(prog)s", *names, "[--option VALUE | option=VALUE ...]"]),
            description=summary,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
        meanings = [
            f"{name:<22}{one.rules.meaning}" for name, one in zip(names, self.positional, strict=True)
        ]
        if names:
            parser.add_argument_group("arguments", "\n".join(meanings))
        flags = {name: one for name, one in self.keys.items() if not one.rules.positional}
        sections = dict.fromkeys(one.section for one in flags.values())
        for section in reversed(sections) if self.section else sections:  # a class before its bases
            group = parser.add_argument_group((section.__doc__ or "").partition("\n")[0].rstrip("."))
            for name, one in flags.items():
                if one.section is section:
                    _add_flag(group, name, one)
        if not self.section:
            parser.add_argument(
                "--config", dest="yaml", metavar="YAML", help="config file: only what differs"
            )
        parser.add_argument("--keys", action="store_true", help="list every key with its default, and stop")
        return parser

    def print_keys(self) -> None:
        """Print every key with its default and its meaning, in columns."""
        rows = [
            (one.name, "null", f"{one.rules.explain()} [null: {one.rules.null}]")
            if one.value is None and one.rules.null
            else (one.name, one.shown, one.rules.explain())
            for one in keys_of(self.schema)
        ]
        width, default_width = (max(len(row[column]) for row in rows) for column in (0, 1))
        for name, default, meaning in rows:
            print(f"{name:<{width}}  {default:<{default_width}}  {meaning}")
        for title, names in TAKES[self.verb]().items() if self.verb in TAKES else ():
            print(f"\n{title}")
            print(textwrap.indent(textwrap.fill(", ".join(names) or "none", 100), "  "))

    def _of_flag(self, name: str, value: Any) -> Iterator[Override]:
        one = self.keys[name]
        if value is None:
            return
        kind, spelling = (
            _kind(one),
            f"{_flag(name, one)} {value if isinstance(value, str) else ' '.join(value)}",
        )
        if kind is dict:
            for item in value:
                parsed = Override.parse(f"{one.name}.{item}")
                yield Override(parsed.name, parsed.value, f"{_flag(name, one)} {item}")
        elif kind is list:
            numbers = None if one.kind == list[str] else f"[{','.join(map(_quoted, value))}]"
            yield Override(one.name, numbers or value, spelling, literal=numbers is None)
        elif kind in (int, float):
            yield Override(one.name, _quoted(value), spelling)
        else:
            yield Override(one.name, value, spelling, literal=kind is str and value != one.rules.null)

    def _of_words(self, words: Sequence[str], files: Sequence[str]) -> Iterator[Override]:
        """``key=value``, and the positional arguments in their order; those after ``--`` are never keys."""
        loose, given = [], set()
        if not self.flagged:
            words, files = [*words, *files], []
        for word in words:
            name, _, value = word.partition("=")
            full = self._full_name(word)
            if not self.flagged:
                yield Override.parse(word)
            elif full:
                given.add(full)
                yield self._of_word(full, value, word)
            elif re.match(r"[a-z][a-z_.-]*=", word) and not os.path.lexists(word):
                close = nearest(name, self.keys) or self._see_help
                raise UserError(f"argument {show_text(word)!r} is neither an option nor a file{close}")
            else:
                loose.append(word)
        loose += files
        for one in self.positional:
            if one.name not in given and loose:
                taken = loose if _kind(one) is list else loose[0]
                loose = [] if _kind(one) is list else loose[1:]
                yield Override(one.name, taken, one.name.partition(".")[2].upper(), literal=True)
        if loose:
            raise UserError(f"unexpected argument {show_text(loose[0])!r}{self._see_help}")

    def _of_word(self, name: str, value: str, word: str) -> Override:
        """Text without quotes is taken as it is, like that of a flag; other values are YAML."""
        one = self.names.get(name)
        if one and _kind(one) is str and not value.startswith(("'", '"')):
            nulls = ("null", one.rules.null) if type(None) in typing.get_args(one.kind) else ()
            return Override(name, value, word, literal=value not in nulls)
        if one and one.kind == list[str] and value and not value.startswith("["):
            return Override(name, [value], word, literal=True)
        return Override(name, value, word)

    def _full_name(self, word: str) -> str:
        """``section.key`` of ``key=value`` or ``section.key=value``; empty if there is no such key."""
        name, equals, _ = word.partition("=")
        first, dot, rest = name.partition(".")
        if equals and self.flagged and first in self.keys:
            return f"{self.keys[first].name}{dot}{rest}"
        return name if equals and any(f"{name}.".startswith(f"{one}.") for one in self.names) else ""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def _split_at_dashes(arguments: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """The arguments before and after the first ``--``; argparse takes ``-x`` after it for an option."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:cut], arguments[cut + 1 :]


def _quoted(number: str) -> str:
    """Text that YAML leaves as it is: by its rules 010 would be 8, and 1:30 would be 90."""
    return json.dumps(number)


def _help(verb: str) -> tuple[str, str]:
    """Summary and examples of a verb: the paragraphs of its docstring."""
    summary, _, examples = inspect.cleandoc(VERBS[verb].__doc__ or "").partition("\n\n")
    indent = "" if examples.startswith("  ") else "  "
    return summary.replace("\n", " "), f"examples:\n{textwrap.indent(examples, indent)}"


def _kind(one: Key) -> Any:
    """The type of a key's values: the element of a union, and list or dict without their elements."""
    kinds = [kind for kind in typing.get_args(one.kind) if kind is not type(None)]
    return (
        typing.get_origin(one.kind) if typing.get_origin(one.kind) in (list, dict) else [*kinds, one.kind][0]
    )


def _flag(name: str, one: Key) -> str:
    return f"--{'no-' if one.value is True else ''}{one.rules.flag or name.replace('_', '-')}"


def _add_flag(group: Any, name: str, one: Key) -> None:
    kind, meaning = _kind(one), one.rules.explain().replace("%", "%%")
    shape: dict[str, Any] = {"metavar": "N" if kind in (int, float) else (one.rules.flag or name).upper()}
    if kind is bool:
        shape = {"action": "store_const", "const": str(not one.value).lower()}
        meaning = f"do not: {meaning}" if one.value else meaning
    elif kind is list:
        shape["nargs"] = "+"
    elif kind is dict:
        shape = {"metavar": "KEY=VALUE", "action": "append"}
    if one.value or (one.value is not False and kind in (int, float)) or one.rules.null:
        meaning += "" if one.value is True else f" (default: {one.shown})"
    group.add_argument(_flag(name, one), dest=name, help=meaning, **shape)
