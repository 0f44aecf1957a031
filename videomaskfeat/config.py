"""Config keys: how they are declared, checked, and read from YAML and the command line.

A config is a dataclass of sections, and a section a dataclass whose fields are made by :func:`key`. All of
them stand in :mod:`videomaskfeat.schemas`.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import re
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from videomaskfeat.errors import UserError, nearest, unknown_name
from videomaskfeat.texts import dump_yaml, parse_yaml, read_yaml, show_text

T = TypeVar("T")
_DEEPEST_KEY = 16  # parts of an override's key, ``section.key.name``
_LONGEST_INTERPOLATION = 1000  # characters; omegaconf's grammar is recursive
_BOOLS = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}
_WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}
# What omegaconf raises for trees that fit nowhere, besides its own errors.
_MISFITS = (OmegaConfBaseException, TypeError, AttributeError, ValueError, AssertionError, RecursionError)


@dataclass(frozen=True)
class Rules:
    """What a key declares besides its default. A value of null breaks no rule of choices and range.

    Attributes:
        meaning: one line for ``--keys`` and ``--help``.
        unit: unit of the value, printed after the meaning.
        choices: allowed values; a mapping explains each.
        least: smallest allowed number; like the other bounds, it holds for each value of a list.
        greatest: largest allowed number.
        above: number that the value must exceed.
        below: number that the value must stay below.
        required: example of a value, if a job cannot run without one.
        free: whether a run that is resumed may change the value.
        null: what null stands for, printed instead of it.
        positional: whether a verb takes the value without a name as well.
        flag: name of the verb's ``--flag``, if it is not the key's own.
    """

    meaning: str
    unit: str = ""
    choices: Collection[Any] = ()
    least: float | None = None
    greatest: float | None = None
    above: float | None = None
    below: float | None = None
    required: str = ""
    free: bool = False
    null: str = ""
    positional: bool = False
    flag: str = ""

    def broken_by(self, name: str, value: Any) -> str:
        """What is wrong with the value of the key ``name``, or an empty string."""
        for one in value if isinstance(value, list) else [value]:
            if self.choices and one not in self.choices:
                if isinstance(one, str):
                    return str(unknown_name(name, one, [choice for choice in self.choices if choice]))
                return f"{name} {_show(value)} must be {' or '.join(map(str, self.choices))}"
            if isinstance(one, int | float) and not self._contains(one):
                return f"{name} {_show(value)} must be {self.span()}"
        return ""

    def _contains(self, number: float) -> bool:
        return (
            (self.least is None or number >= self.least)
            and (self.greatest is None or number <= self.greatest)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
        )

    def span(self) -> str:
        """The allowed numbers in words, such as ``at least 0 and below 1``, or an empty string."""
        if self.least is not None and self.greatest is not None:
            return f"between {self.least:g} and {self.greatest:g}"
        bounds = {"at least": self.least, "above": self.above, "at most": self.greatest, "below": self.below}
        return " and ".join(f"{words} {bound:g}" for words, bound in bounds.items() if bound is not None)

    def explain(self) -> str:
        """Meaning, choices, unit and range in one line."""
        words = self.choices if isinstance(self.choices, Mapping) else dict.fromkeys(self.choices, "")
        named = " | ".join(f"{name} ({word})" if word else str(name) or '""' for name, word in words.items())
        notes = ", ".join(filter(None, ("required" * bool(self.required), self.unit, self.span())))
        return f"{self.meaning}{f': {named}' if named else ''}{f' [{notes}]' if notes else ''}"


def key(default: Any, meaning: str, **rules: Any) -> Any:
    """A config key: a dataclass field with its default, its meaning and its :class:`Rules`."""
    metadata = {"rules": Rules(meaning, **rules)}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Key:
    """A key of a schema with its value in a config.

    Attributes:
        name: ``section.key``.
        section: class that declares the key.
        kind: type of the value.
        value: in the config; the default, if the config is the schema's own.
        rules: of the key.
    """

    name: str
    section: type
    kind: Any
    value: Any
    rules: Rules

    @property
    def shown(self) -> str:
        """The value as YAML has it, or what null stands for."""
        return self.rules.null or "null" if self.value is None else str(self.value) or '""'


def keys_of(config: Any) -> Iterator[Key]:
    """Every key of a config, or of a schema with its defaults."""
    config = config() if isinstance(config, type) else config
    for section in fields(config):
        values = getattr(config, section.name)
        kinds = typing.get_type_hints(type(values))
        for item in fields(values):
            owner = next(
                one for one in type(values).__mro__ if item.name in vars(one).get("__annotations__", ())
            )
            value = getattr(values, item.name)
            yield Key(f"{section.name}.{item.name}", owner, kinds[item.name], value, item.metadata["rules"])


def free_keys(schema: type) -> frozenset[str]:
    """The keys, ``section.key``, that a run that is resumed may change."""
    return frozenset(one.name for one in keys_of(schema) if one.rules.free)


def check_config(
    config: Any, where: Callable[[str], str] = lambda name: "", *, complete: bool = True
) -> None:
    """Hold every value to the rules of its key.

    Args:
        config: a config, such as a ``PretrainConfig``.
        where: ``section.key`` -> place that set it, such as ``x.yaml: ``, which begins the message.
        complete: whether the keys that a job needs must be set.

    Raises:
        UserError: a required key is empty, or a value is not among the choices of its key or out of range.
    """
    for one in keys_of(config):
        if one.value is not None and (broken := one.rules.broken_by(one.name, one.value)):
            raise UserError(f"{where(one.name)}{broken}")
        if complete and one.rules.required and not one.value:
            raise UserError(f"{one.name} is not set: give it, such as {one.name}={one.rules.required}")


def config_text(config: Any) -> str:
    """The whole config as YAML, as it is written into the run folder."""
    tree = OmegaConf.structured(config)
    try:
        return OmegaConf.to_yaml(tree)
    except UnicodeEncodeError:  # a file name whose bytes are not UTF-8
        return dump_yaml(OmegaConf.to_container(tree))


def flat(config: Any) -> dict[str, Any]:
    """The config as one flat dict, ``section.key`` -> plain value."""
    return dict(_leaves(dataclasses.asdict(config), ""))


def _leaves(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


@dataclass(frozen=True)
class Override:
    """A value from the command line.

    Attributes:
        name: ``section.key``, or a section, or a name inside a key.
        value: YAML; a list is taken as it is, and so is any value that is ``literal``.
        spelling: what the user wrote, for messages.
        literal: whether the value is text that is not read as YAML, such as a path.
    """

    name: str
    value: Any
    spelling: str
    literal: bool = False

    @classmethod
    def parse(cls, argument: str) -> Override:
        """Read ``section.key=value``.

        Raises:
            UserError: an argument of another form.
        """
        name, equals, value = argument.partition("=")
        if not equals or not name.strip():
            raise UserError(
                f"argument {show_text(repr(argument), 120)} is not of the form section.key=value, such as "
                "run.seed=1 (see --keys for every key)"
            )
        return cls(name.strip(), value, argument)

    @property
    def where(self) -> str:
        """The place of this value, for messages."""
        return f"argument {show_text(repr(self.spelling), 120)}"

    def tree(self) -> dict[str, Any]:
        """The value in its section, as a file would have it.

        Raises:
            UserError: a value that is not YAML, or too many parts.
        """
        parts = self.name.split(".")
        if len(parts) > _DEEPEST_KEY:
            raise UserError(f"argument {show_text(self.name, 40)!r}: a key has at most {_DEEPEST_KEY} parts")
        tree = self._plain()
        for part in reversed(parts):
            tree = {part: tree}
        return typing.cast(dict[str, Any], tree)

    def _plain(self) -> Any:
        # `key=` is the empty text, as in a shell; `key=null` is None. A file name whose bytes are not UTF-8
        # cannot be YAML.
        if not isinstance(self.value, str) or not self.value or re.search("[\udc80-\udcff]", self.value):
            return self.value
        try:
            return parse_yaml(self.value, "")
        except UserError as error:
            problem = re.sub(r"^(, line \d+)?: (not valid YAML: )?", "", str(error))
            raise UserError(f"{self.where}: the value is not YAML: {problem}") from error


def load_config(
    schema: type[T],
    path: str | None,
    overrides: Iterable[str | Override] = (),
    *,
    say: Callable[[str], None] | None = None,
) -> T:
    """Read a config: the schema's defaults, then the YAML file, then ``section.key=value`` overrides.

    A section with a ``name`` may be given as that name alone: ``target: pixels``. The file's ``arguments``
    belong to the name in the file: if an override sets another name, they are dropped, and ``say`` gets
    a line about it.

    Raises:
        UserError: a file that is missing or no YAML, an unknown key (with the nearest known one), a value of
            the wrong type, a number that is not finite or an integer beyond 64 bits, a value that breaks the
            rules of its key, an interpolation such as ``${oc.env:HOME}`` that cannot be resolved, an override
            without ``=``.
    """
    known = {one.name: one for one in keys_of(schema)}
    tree: dict[str, dict[str, Any]] = {}
    for name, one in known.items():
        tree.setdefault(name.partition(".")[0], {})[name.partition(".")[2]] = one.value
    given = [Override.parse(one) if isinstance(one, str) else one for one in overrides]
    layers = [(one.where, _expand(one.tree(), tree, one.where)) for one in given if not one.literal]
    if path:
        _merge(tree, _expand(_read_file(path), tree, path))
        for dropped in _drop_arguments_of_others(tree, [layer for _, layer in layers]):
            if say is not None:
                say(f"{path}: {dropped}")
    for _, layer in layers:
        _merge(tree, layer)

    def setter(name: str) -> str:
        places = [(one.where, f"{one.name}.") for one in given]
        setters = [where for where, key in places if f"{name}.".startswith(key) or key.startswith(f"{name}.")]
        return setters[-1] if setters else path or "the arguments"

    config = schema()
    for name, value in _resolve(tree, setter):
        try:
            rules = known[name].rules
            value = None if rules.null.isalpha() and value == rules.null else value
            _set(config, name, _convert(value, known[name].kind, known[name].value))
        except ValueError as error:
            either = f", or {rules.null}" if rules.null.isalpha() else ""
            raise UserError(f"{setter(name)}: {name} {_show(value)} must be {error}{either}") from None
    for override in given:
        if override.literal:
            _set(config, override.name, override.value)
    check_config(config, lambda name: f"{setter(name)}: ", complete=False)
    return config


def _set(config: Any, name: str, value: Any) -> None:
    section, _, key = name.partition(".")
    setattr(getattr(config, section), key, value)


def _read_file(path: str) -> dict[str, Any]:
    plain = read_yaml(path, what="a config")
    if plain is None:  # empty, or only comments
        return {}
    if not isinstance(plain, dict):
        found = "a list" if isinstance(plain, list) else f"the value {show_text(plain, 40)!r}"
        raise UserError(f"{path}: holds {found}, and a config is a mapping of sections (see --keys)")
    return plain


def _expand(layer: dict[str, Any], known: Mapping[str, Mapping[str, Any]], where: str) -> dict[str, Any]:
    """Write out sections that are given as a name alone, and refuse unknown sections and keys."""
    elsewhere = {item: f"{name}.{item}" for name, items in known.items() for item in items}
    for name, items in layer.items():
        if name not in known:
            close = nearest(str(name), known) or _nearest_elsewhere(str(name), elsewhere)
            close = close or f"; there are {', '.join(known)}"
            raise UserError(f"{where}: unknown section {show_text(str(name))!r}{close}")
        if isinstance(items, str) and "name" in known[name] and "${" not in items:
            items = layer[name] = {"name": items}
        if not isinstance(items, dict):
            raise UserError(
                f"{where}: {name} is a section of keys, and got {_show(items)}; set {name}.KEY instead"
            )
        for item in map(str, items):
            if item not in known[name]:
                close = nearest(item, known[name]) or _nearest_elsewhere(item, elsewhere)
                there = f"; {name} has {', '.join(known[name])} (--keys explains them)"
                raise UserError(f"{where}: unknown key '{name}.{show_text(item)}'{close or there}")
    return layer


def _nearest_elsewhere(item: str, elsewhere: Mapping[str, str]) -> str:
    """The same or the nearest word in another section, as the tail of an error message."""
    hint = nearest(item, elsewhere)
    return f"; did you mean {elsewhere[hint.split(chr(39))[1]]!r}?" if hint else ""


def _merge(tree: dict[str, Any], layer: dict[str, Any]) -> None:
    """Put a layer on top: mappings are merged, everything else is replaced."""
    for name, value in layer.items():
        if isinstance(value, dict) and isinstance(tree.get(name), dict):
            _merge(tree[name], value)
        else:
            tree[name] = value


def _drop_arguments_of_others(
    tree: dict[str, dict[str, Any]], layers: Iterable[dict[str, Any]]
) -> Iterator[str]:
    """Empty the ``arguments`` of each section that a layer gives another name; yield a line about each."""
    for layer in layers:
        for section, items in layer.items():
            own = tree[section]
            if items.get("name") not in (None, own.get("name")) and own.get("arguments"):
                dropped = f"{section}.arguments ({', '.join(map(str, own['arguments']))})"
                yield f"{dropped} are those of {own['name']}, and not given to {items['name']}"
                own["arguments"] = {}


def _resolve(tree: dict[str, Any], setter: Callable[[str], str]) -> Iterator[tuple[str, Any]]:
    """Name and value of every key, with its interpolations resolved."""
    names = [(section, item) for section, items in tree.items() for item in items]
    interpolated = [_check_plain(tree[section][item], f"{section}.{item}", setter) for section, item in names]
    if not any(interpolated):
        yield from ((f"{section}.{item}", tree[section][item]) for section, item in names)
        return
    where = setter(".".join(names[interpolated.index(True)]))
    try:
        parsed = OmegaConf.create(tree)
    except _MISFITS as error:
        raise UserError(f"{where}: {_first_line(error)}") from error
    for section, item in names:
        yield f"{section}.{item}", _resolved(parsed[section], item, f"{section}.{item}", setter)


def _resolved(parent: Any, key: Any, name: str, setter: Callable[[str], str]) -> Any:
    written = parent._get_node(key)._value() if OmegaConf.is_interpolation(parent, key) else ""
    place = f"{setter(name)}: {name}: the interpolation {show_text(written)!r}"
    try:
        value = parent[key]
    except _MISFITS as error:
        raise UserError(
            f"{place} cannot be resolved ({_first_line(error)}); write the value, or correct the name in it"
        ) from error
    if isinstance(value, DictConfig | ListConfig) and written:
        raise UserError(f"{place} is a mapping or list; write it out")
    if isinstance(value, DictConfig):
        return {inner: _resolved(value, inner, f"{name}.{inner!s}", setter) for inner in value}
    if isinstance(value, ListConfig):
        return [_resolved(value, inner, f"{name}.{inner}", setter) for inner in range(len(value))]
    _check_plain(value, name, setter)
    return value


def _check_plain(value: Any, name: str, setter: Callable[[str], str]) -> bool:
    """Refuse what no key may hold; return whether the value holds an interpolation."""
    if isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        found = [_check_plain(one, f"{name}.{key}", setter) for key, one in inner]  # checks all of them
        return any(found)
    place = f"{setter(name)}: {show_text(name)}"
    if value == "???":
        raise UserError(f"{place} is ???, which stands for a missing value; give {show_text(name)}=VALUE")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{place} is {value}; a finite number is needed")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise UserError(f"{place} has more than 64 bits; give a smaller integer")
    if not isinstance(value, str):
        return False
    if "\0" in value or re.search("[\ud800-\udc7f\udd00-\udfff]", value):
        raise UserError(f"{place} is {_show(value)}, which holds a character that no text may have")
    if "${" in value and len(value) > _LONGEST_INTERPOLATION:
        raise UserError(
            f"{place}: an interpolation of {len(value)} characters ({show_text(value, 40)}); "
            f"at most {_LONGEST_INTERPOLATION} are read"
        )
    return "${" in value


def _convert(value: Any, kind: Any, default: Any) -> Any:
    """The value as the type of its key.

    Raises:
        ValueError: what the value must be, in words.
    """
    origin, kinds = typing.get_origin(kind), typing.get_args(kind)
    if type(None) in kinds:
        return None if value is None else _convert(value, kinds[0], default)
    if kind is Any:
        return value
    if origin is list:
        if not isinstance(value, list) or len(value) != len(default or value):
            raise ValueError(
                f"a list of {len(default)} values, such as {default}" if default else "a list of values"
            )
        try:
            return [_convert(one, kinds[0], None) for one in value]
        except ValueError:
            raise ValueError(f"a list of {_WORDS[kinds[0]].split()[-1]}s") from None
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError("a mapping of names to values")
        return value
    return _convert_plain(value, kind)


def _convert_plain(value: Any, kind: type) -> Any:
    text = str(value).strip().lower()
    if kind is bool and text in _BOOLS:
        return _BOOLS[text]
    if kind is str and value is not None and not isinstance(value, dict | list):
        return str(value)
    if kind in (int, float) and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = kind(text if isinstance(value, str) else value)
        except ValueError:
            number = None
        if number is not None and (kind is float or not isinstance(value, float)) and math.isfinite(number):
            return number
    raise ValueError(_WORDS[kind])


def _show(value: Any) -> str:
    return show_text(f"{value:g}" if isinstance(value, float) else repr(value))


def _first_line(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it refers to itself, or is nested too deeply"
    return show_text(next(iter(str(error).strip().splitlines()), type(error).__name__), 200)
