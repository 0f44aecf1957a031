"""The command line ``videomaskfeat VERB ...``: reads the arguments, runs the verb, explains its errors.

Every option of a verb is a key of its schema, written ``--option VALUE`` or ``option=VALUE``.
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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import field, make_dataclass
from typing import Any, NoReturn

from videomaskfeat import __version__
from videomaskfeat.config import Override, load_config, locate_config
from videomaskfeat.config_keys import Key, current_name, keys_of
from videomaskfeat.errors import PlugInFailed, RunFailed, Stopped, UserError, check_name, nearest
from videomaskfeat.io import open_file
from videomaskfeat.openmp import set_wait_policy, yielding_threads
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
from videomaskfeat.verbs import VERBS
from videomaskfeat.verbs.training import choose_size, inherit_clip

logger = logging.getLogger(__name__)
_OVERVIEW = "Masked video pre-training: hide spacetime cubes of a video, predict their content."
_LONGEST_HEADER = 4000  # characters of a config that may contain the line of its command
_OPTION_WORD = "--\0"  # argparse's name of a word ``option=VALUE``; no user can type it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code."""
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
    with Interrupts(line.verb) as interrupts:
        try:
            end_with_parent()
            with yielding_threads():
                config = line.read(arguments)
                if line.verb == "launch" and config is not None:
                    _check_launched(config.command)
                return DONE if config is None else VERBS[line.verb].run(config)
        except BaseException as error:
            if interrupts.came:  # an import may turn Ctrl-C into another error
                raise KeyboardInterrupt from error
            raise


def _check_launched(command: Sequence[str]) -> None:
    """Report a mistake in a launched command here, instead of in the log of its job."""
    verb, *arguments = command
    check_name("the verb after --", verb, [name for name, one in VERBS.items() if one.ranks])
    if CommandLine(verb).read(arguments) is None:
        raise UserError(f"--keys lists the keys of {verb}; use it without launch")


def _explain(verb: str, error: BaseException) -> int:
    """Print one line about an error and return the exit code; raise it if it is a fault of the program."""
    if isinstance(error, BrokenPipeError):  # the reader of the output, such as `head`, has ended
        sys.stderr.close()
        return DONE
    if not isinstance(error, UserError | RunFailed | OSError):  # OSError: a folder that is not writable
        raise error
    print(f"videomaskfeat {verb}: {one_line(error)}", file=sys.stderr)
    if isinstance(error, UserError):
        return MISTAKE
    if isinstance(error, PlugInFailed):
        traceback.print_exception(error.__cause__)
    return error.exit_code if isinstance(error, Stopped) else FAILED


def overview() -> str:
    """The help of the whole command: every verb with its summary."""
    lines = [f"  {name:<17} {_help(name)[0]}" for name in VERBS]
    hint = "`videomaskfeat VERB --help` explains a command, with examples; --version prints the version."
    return "\n".join(["usage: videomaskfeat VERB ...", "", _OVERVIEW, "", "verbs:", *lines, "", hint])


class CommandLine:
    """Reads the arguments of a verb into its config.

    A schema without sections becomes the only section of a config, under the verb's name. Such a verb, and
    one with positional arguments, has a ``--flag`` for each key. A training has too many keys for that.
    """

    def __init__(self, verb: str, schema: type | None = None) -> None:
        self.verb = verb
        hints = typing.get_type_hints(VERBS[verb].run)
        (kind,) = [kind for name, kind in hints.items() if name != "return"]
        self.schemas: tuple[type, ...] = typing.get_args(kind) or (kind,)
        """Kinds of configs that the verb accepts; the file of ``--config`` decides."""
        schema = schema or self.schemas[0]
        self.section = "" if schema.__name__.endswith("Config") else verb.replace("-", "_")
        if self.section:
            schema = make_dataclass(schema.__name__, [(self.section, schema, field(default_factory=schema))])
        self.schema: type = schema
        self.names = {one.name: one for one in keys_of(schema)}
        self.positional = [one for one in self.names.values() if one.rules.positional]
        self.flagged = bool(self.section or self.positional)
        self.keys = {
            name.partition(".")[2]: one for name, one in self.names.items() if self.flagged or one.rules.flag
        }
        """Name without its section -> key with a flag."""
        self.former = {one.rules.former: name for name, one in self.keys.items() if one.rules.former}
        """Former name of such a key -> its present name."""

    def read(self, arguments: Sequence[str]) -> Any:
        """The config or the options of the verb; None if ``--keys`` is among the arguments, which is done.

        If an option is given twice, the last one wins.

        Raises:
            UserError: an option or a value is wrong or missing.
            SystemExit: after the help is printed.
        """
        # argparse would read ``-x`` after -- as an option
        cut = arguments.index("--") if "--" in arguments else len(arguments)
        marked = self._mark_options(arguments[:cut])
        options, unknown = self.parser().parse_known_intermixed_args(marked)
        if unknown:
            raise UserError(f"unknown option {show_text(unknown[0])!r}{self._hint(unknown[0])}")
        if options.keys:
            self.print_keys()
            return None
        overrides = {one.name: one for one in options.overrides}
        for one in self._loose_overrides([*options.words, *arguments[cut + 1 :]], set(overrides)):
            overrides[one.name] = one
        path, line = getattr(options, "yaml", None), self
        if path:
            schema = next(filter(lambda one: _accepts(one, path), self.schemas), self.schema)
            if schema is not self.schema and not self.section:
                line = CommandLine(self.verb, schema)
        config = line.read_config(path, overrides)
        if size := getattr(options, "size", None):
            name, text = choose_size(config, size)
            logger.info(text)
            overrides["model.name"] = Override("model.name", name, f"--size {size}")
            config = line.read_config(path, overrides)
        return config

    def read_config(self, path: str | None, overrides: dict[str, Override]) -> Any:
        """The config of a file and overrides by name."""
        stated = _stated_verb(path) if path else ""
        if stated and stated != self.verb and VERBS[self.verb].own_configs:
            raise UserError(
                f"{path} is a config of {stated}: use `videomaskfeat {stated}`, another config, or correct "
                "its line `# Command`"
            )
        try:
            config: Any = load_config(
                self.schema, path, overrides.values(), log=logger.info, inherit=inherit_clip
            )
        except UserError as error:
            # A misspelled key of the command line is no reason to doubt the file.
            is_of_other = path and ": unknown " in str(error) and not _accepts(self.schema, path)
            other = self._verb_of_config(path) if path and is_of_other else ""
            if not other:
                raise
            raise UserError(
                f"{path} is a config of {other}: use `videomaskfeat {other}`, or another config"
            ) from error
        if self.flagged:
            self._check_complete(config)
        return getattr(config, self.section) if self.section else config

    def _verb_of_config(self, path: str) -> str:
        """The other verb that accepts a config file; empty if no verb does."""
        for verb in VERBS:
            line = CommandLine(verb)
            if verb != self.verb and not line.section and _accepts(line.schema, path):
                return verb
        return ""

    def _mark_options(self, arguments: Sequence[str]) -> Iterator[str]:
        """Mark the words ``option=VALUE``, so that argparse keeps the order of words and flags."""
        single = [
            "--config",
            "--size",
            *(flag for flag, one in self._flags().items() if _kind(one) not in (bool, list)),
        ]
        for before, word in zip(["", *arguments], arguments, strict=False):
            is_value = len(before) > 2 and any(flag.startswith(before) for flag in single)
            yield word if is_value or not self._is_option(word) else f"{_OPTION_WORD}={word}"

    def _is_option(self, word: str) -> bool:
        """Whether a word is ``option=VALUE``; a file may have such a name, too."""
        if not self.flagged:
            return "=" in word and not word.startswith("-")
        if self._full_name(word):
            if self.positional and os.path.lexists(word):
                name, _, value = word.partition("=")
                raise UserError(
                    f"argument {show_text(word)!r} is both an option and a file; write "
                    f"--{name} {show_text(value)} for the option, or put the file after --"
                )
            return True
        if re.match(r"[a-z][a-z_.-]*=", word) and not os.path.lexists(word):
            close = nearest(word.partition("=")[0], self.keys) or self._see_help
            raise UserError(f"argument {show_text(word)!r} is neither an option nor a file{close}")
        return False

    def _check_complete(self, config: Any) -> None:
        for one in keys_of(config):
            name = one.name.partition(".")[2]
            if one.rules.positional and not one.value:
                note = " (a file with = in its name goes after --)"
                raise UserError(f"{name.upper()} is missing: {one.rules.meaning}{note}{self._see_help}")
            if one.rules.required and not one.value:
                raise UserError(f"{_flag(name, one)} is missing: {one.rules.meaning}{self._see_help}")

    def _flags(self) -> dict[str, Key]:
        return {_flag(name, one): one for name, one in self.keys.items() if not one.rules.positional}

    def _hint(self, unknown: str) -> str:
        """The tail of the error about an unknown option."""
        name = unknown.lstrip("-").partition("=")[0]
        if name in self.names and not self.flagged:
            return f"; write {name}=VALUE"
        flags = [*self._flags(), "--help", "--keys", *([] if self.section else ["--config"])]
        flags += ["--size"] if VERBS[self.verb].sized else []
        close = nearest(name, [flag.removeprefix("--") for flag in flags]).replace("'", "'--", 1)
        return f"{close}{self._see_help}"

    @property
    def _see_help(self) -> str:
        return f"; see videomaskfeat {self.verb} --help"

    def parser(self) -> argparse.ArgumentParser:
        """The parser; it collects the options as ``overrides`` and all other arguments as ``words``."""
        summary, examples = _help(self.verb)
        names = [one.name.partition(".")[2].upper() for one in self.positional]
        optional = [
            f"[{name}]" if one.value else name for name, one in zip(names, self.positional, strict=True)
        ]
        spelling = "--option VALUE | option=VALUE" if self.flagged else "section.key=VALUE"
        config = [] if self.section else ["[--config YAML]"]
        parser = _Parser(
            prog=f"videomaskfeat {self.verb}",
            usage=" ".join(["%(prog)s", *config, *optional, f"[{spelling} ...]"]),
            description=f"{summary}\n\nIf an option is set twice, the last one wins.",
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.set_defaults(overrides=[])
        parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
        parser.add_argument(
            _OPTION_WORD,
            dest="words",
            action=_Collect,
            to_overrides=self._word_overrides,
            help=argparse.SUPPRESS,
        )
        if names:
            lines = [
                f"{name:<22}{one.rules.meaning}" for name, one in zip(names, self.positional, strict=True)
            ]
            parser.add_argument_group("arguments", "\n".join(lines))
        flags = self._flags()
        sections = dict.fromkeys(one.section for one in flags.values())
        for section in reversed(sections) if self.section else sections:  # a class before its bases
            title = (section.__doc__ or "").partition("\n")[0].rstrip(".")
            group = parser if title == "options" else parser.add_argument_group(title)
            for flag, one in flags.items():
                if one.section is section:
                    _add_flag(group, flag, one)
        if not self.section:
            parser.add_argument(
                "--config",
                dest="yaml",
                metavar="YAML",
                help="config file: keys that differ from the defaults",
            )
        if VERBS[self.verb].sized:
            parser.add_argument(
                "--size",
                metavar="SIZE",
                help="size of the model within its family: pico, nano, s, b, l, ...; replaces model.name",
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
        for title, names in VERBS[self.verb].arguments().items():
            print(f"\n{title}")
            print(textwrap.indent(textwrap.fill(", ".join(names) or "none", 100), "  "))

    def _loose_overrides(self, words: Sequence[str], set_names: set[str]) -> Iterator[Override]:
        """The positional arguments that no option sets, in their order; of a training, the other keys."""
        if not self.flagged:
            yield from map(Override.parse, words)
            return
        for one in self.positional:
            if one.name not in set_names and words:
                value, words = (words, []) if _kind(one) is list else (words[0], words[1:])
                yield Override(one.name, value, one.name.partition(".")[2].upper(), literal=True)
        if words:
            raise UserError(f"unexpected argument {show_text(words[0])!r}{self._see_help}")

    def _word_overrides(self, word: str) -> Iterator[Override]:
        """Text without quotes is literal, as it is in a flag; other values are YAML."""
        if not self.flagged:
            yield Override.parse(word)
            return
        name, value = self._full_name(word), word.partition("=")[2]
        one = self.names.get(current_name(self.schema, name))
        if one and _kind(one) is str and not value.startswith(("'", '"')):
            nulls = ("null", one.rules.null) if type(None) in typing.get_args(one.kind) else ()
            yield Override(name, value, word, literal=value not in nulls)
        elif one and one.kind == list[str] and value and not value.startswith("["):
            yield Override(name, [value], word, literal=True)
        else:
            yield Override(name, value, word)

    def _full_name(self, word: str) -> str:
        """``section.key`` of ``key=value`` or ``section.key=value``; empty if there is no such key."""
        name, equals, _ = word.partition("=")
        first, dot, rest = name.partition(".")
        first = self.former.get(first, first)
        if equals and self.flagged and first in self.keys:
            return f"{self.keys[first].name}{dot}{rest}"
        current = f"{current_name(self.schema, name)}."
        return name if equals and any(current.startswith(f"{one}.") for one in self.names) else ""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


class _Collect(argparse.Action):
    """Appends what a value sets to the ``overrides``."""

    def __init__(
        self, *arguments: Any, to_overrides: Callable[[Any], Iterator[Override]], **rest: Any
    ) -> None:
        super().__init__(*arguments, **rest)
        self._to_overrides = to_overrides

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        namespace.overrides += self._to_overrides(values)


def _help(verb: str) -> tuple[str, str]:
    """Summary and examples of a verb: the paragraphs of its docstring."""
    summary, _, examples = inspect.cleandoc(VERBS[verb].run.__doc__ or "").partition("\n\n")
    indent = "" if examples.startswith("  ") else "  "
    return summary.replace("\n", " "), f"examples:\n{textwrap.indent(examples, indent)}"


def _stated_verb(path: str) -> str:
    """The last verb with a config in the line ``# Command`` of a config; empty without such a line."""
    try:
        with open_file(locate_config(path)) as file:
            head = file.read(_LONGEST_HEADER)
    except (UserError, UnicodeDecodeError, OSError):  # reading the config reports it
        return ""
    match = re.search(r"^# Command:.*videomaskfeat ([a-z-]+) --config ", head, re.MULTILINE)
    return match.group(1) if match and match.group(1) in VERBS else ""


def _accepts(schema: type, path: str) -> bool:
    """Whether a config file has only keys of a schema."""
    try:
        load_config(schema, path)
    except UserError:
        return False
    return True


def _kind(one: Key) -> Any:
    """The type of a key's values: the element of a union, and list or dict without their elements."""
    origin = typing.get_origin(one.kind)
    kinds = [kind for kind in typing.get_args(one.kind) if kind is not type(None)]
    return origin if origin in (list, dict) else [*kinds, one.kind][0]


def _flag(name: str, one: Key) -> str:
    return f"--{'no-' if one.value is True else ''}{one.rules.flag or name.replace('_', '-')}"


def _add_flag(group: Any, flag: str, one: Key) -> None:
    kind, meaning = _kind(one), one.rules.explain().replace("%", "%%")
    metavar = "N" if kind in (int, float) else (one.rules.flag or one.name.partition(".")[2]).upper()
    if one.value is True:
        meaning = f"no {meaning}"
    elif one.value or (one.value is not False and kind in (int, float)) or one.rules.null:
        meaning += f" (default: {one.shown})"
    group.add_argument(
        flag,
        dest=one.name,
        action=_Collect,
        to_overrides=lambda value: _flag_overrides(flag, one, value),
        nargs={bool: 0, list: "+"}.get(kind),
        metavar="KEY=VALUE" if kind is dict else metavar,
        help=meaning,
    )


def _flag_overrides(flag: str, one: Key, value: Any) -> Iterator[Override]:
    kind = _kind(one)
    spelling = f"{flag} {value if isinstance(value, str) else ' '.join(value)}".rstrip()
    if kind is bool:
        yield Override(one.name, str(not one.value).lower(), spelling)
    elif kind is dict:
        parsed = Override.parse(f"{one.name}.{value}")
        yield Override(parsed.name, parsed.value, spelling)
    elif one.kind == list[str]:
        yield Override(one.name, value, spelling, literal=True)
    elif kind is list:
        yield Override(one.name, f"[{','.join(map(_quoted, value))}]", spelling)
    elif kind in (int, float):
        yield Override(one.name, _quoted(value), spelling)
    else:
        yield Override(one.name, value, spelling, literal=kind is str and value != one.rules.null)


def _quoted(number: str) -> str:
    """Text that YAML does not interpret: it would read 010 as 8, and 1:30 as 90."""
    return json.dumps(number)
