"""Config keys: how they are declared, checked, and read from YAML and the command line.

A config is a dataclass of sections. A section is a dataclass with fields from :func:`key`. The configs of all
trainings are in :mod:`videomaskfeat.schemas`.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import os
import re
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from videomaskfeat.errors import UserError, nearest, unknown_name
from videomaskfeat.io import exists
from videomaskfeat.plugins import is_plugin
from videomaskfeat.texts import dump_yaml, parse_yaml, read_yaml, show_text

T = TypeVar("T")
_DEEPEST_KEY = 16  # maximum number of names in an override's key, ``section.key.name``
_LONGEST_INTERPOLATION = 1000  # characters; omegaconf's grammar is recursive
_BOOLS = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(("false", "no", "off", "0"), False)
SPELLINGS = {
    "centre": "center",
    "centre_momentum": "center_momentum",
    "centred": "centered",
    "colour": "color",
    "grey": "gray",
    "normalise": "normalize",
    "normalised": "normalized",
}
"""British spelling of names and choices in earlier configs and saved files -> the present one."""
_WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}
# Errors of omegaconf for trees of the wrong form, besides its own.
_MISFITS = (OmegaConfBaseException, TypeError, AttributeError, ValueError, AssertionError, RecursionError)


@dataclass(frozen=True)
class Rules:
    """Meaning and limits of a key. The limits do not apply to null.

    Attributes:
        meaning: one line for ``--keys`` and ``--help``.
        unit: unit of the value, printed after the meaning.
        choices: allowed values; a mapping explains each.
        least: smallest allowed number; like the other bounds, it applies to each value of a list.
        greatest: largest allowed number.
        above: exclusive lower bound.
        below: exclusive upper bound.
        required: example of a value, if the key must be set.
        free: whether the value may change when a run is resumed.
        null: meaning of null, printed instead of it.
        positional: whether the value may be a positional argument of the verb.
        flag: name of the verb's ``--flag``, if it differs from the key's.
        plugin: what a plug-in ``package.module:name`` must be, if one may be given instead of a choice.
        former: name of the key in earlier versions, which is still accepted.
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
    plugin: str = ""
    former: str = ""

    def present_choice(self, value: Any) -> Any:
        """The value, or the present spelling of a choice."""
        present = SPELLINGS.get(value) if isinstance(value, str) else None
        return present if present in self.choices and value not in self.choices else value

    def broken_by(self, name: str, value: Any) -> str:
        """The error in the value of the key ``name``, or an empty string."""
        for one in value if isinstance(value, list) else [value]:
            if self.choices and one not in self.choices and not (self.plugin and is_plugin(one)):
                if isinstance(one, str):
                    return str(unknown_name(name, one, [choice for choice in self.choices if choice]))
                return f"{name} {_show(value)} must be {' or '.join(map(str, self.choices))}"
            if isinstance(one, int | float) and not (
                (self.least is None or one >= self.least)
                and (self.greatest is None or one <= self.greatest)
                and (self.above is None or one > self.above)
                and (self.below is None or one < self.below)
            ):
                return f"{name} {_show(value)} must be {self.span()}"
        return ""

    def span(self) -> str:
        """The allowed numbers in words, such as ``at least 0 and below 1``, or an empty string."""
        if self.least is not None and self.greatest is not None:
            return f"between {self.least:g} and {self.greatest:g}"
        bounds = {"at least": self.least, "above": self.above, "at most": self.greatest, "below": self.below}
        return " and ".join(f"{words} {bound:g}" for words, bound in bounds.items() if bound is not None)

    def explain(self) -> str:
        """Meaning, choices, unit and range in one line."""
        words = self.choices if isinstance(self.choices, Mapping) else dict.fromkeys(self.choices, "")
        words = {**words, "module:name": self.plugin} if self.plugin else words
        named = " | ".join(f"{name} ({word})" if word else str(name) or '""' for name, word in words.items())
        notes = ", ".join(filter(None, ("required" * bool(self.required), self.unit, self.span())))
        return f"{self.meaning}{f': {named}' if named else ''}{f' [{notes}]' if notes else ''}"


def key(default: Any, meaning: str, **rules: Any) -> Any:
    """A config key: a dataclass field with a default, a meaning and the other :class:`Rules`."""
    metadata = {"rules": Rules(meaning, **rules)}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def section(kind: type[T], *, former: str = "", **defaults: Any) -> Any:
    """A section of a config.

    Args:
        kind: class of the section.
        former: name of the section in configs written before, which is still accepted.
        defaults: defaults that differ from those of the class.
    """
    return field(default_factory=lambda: kind(**copy.deepcopy(defaults)), metadata={"former": former})


@dataclass(frozen=True)
class Key:
    """A key of a schema with its value in a config.

    Attributes:
        name: ``section.key``.
        section: class that declares the key.
        kind: type of the value.
        value: its value, or the default in a schema.
        rules: its rules.
    """

    name: str
    section: type
    kind: Any
    value: Any
    rules: Rules

    @property
    def shown(self) -> str:
        """The value as text; for null, its meaning."""
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
    """The keys, ``section.key``, that may change when a run is resumed."""
    return frozenset(one.name for one in keys_of(schema) if one.rules.free)


def check_config(
    config: Any, where: Callable[[str], str] = lambda name: "", *, complete: bool = True
) -> None:
    """Check every value against the rules of its key.

    Args:
        config: a config, such as a ``PretrainConfig``.
        where: maps ``section.key`` to the place that set it, such as ``x.yaml: ``, for the message.
        complete: whether required keys must be set.

    Raises:
        UserError: a required key is empty, or a value is not among the choices of its key or out of range.
    """
    for one in keys_of(config):
        if one.value is not None and (broken := one.rules.broken_by(one.name, one.value)):
            raise UserError(f"{where(one.name)}{broken}")
        if complete and one.rules.required and not one.value:
            example = f"{one.name}={one.rules.required}"
            raise UserError(f"{one.name} is not set: {one.rules.meaning}; set it, such as {example}")


def config_text(config: Any) -> str:
    """The whole config as YAML, for the run folder."""
    tree = OmegaConf.structured(config)
    try:
        return OmegaConf.to_yaml(tree)
    except UnicodeEncodeError:  # a file name whose bytes are not UTF-8
        return dump_yaml(OmegaConf.to_container(tree))


def flat(config: Any) -> dict[str, Any]:
    """The config as one flat dict, ``section.key`` -> plain value."""
    return flat_values(dataclasses.asdict(config))


def flat_values(tree: dict[str, Any]) -> dict[str, Any]:
    """Nested mappings, such as the content of a config file, as one flat dict."""
    return dict(_leaves(tree, ""))


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
        value: text in YAML, or a list.
        spelling: the user's text, for messages.
        literal: whether the value is plain text instead of YAML, such as a path.
    """

    name: str
    value: Any
    spelling: str
    literal: bool = False

    @classmethod
    def parse(cls, argument: str) -> Override:
        """Read ``section.key=value``.

        Raises:
            UserError: the argument has another form.
        """
        name, equals, value = argument.partition("=")
        if not equals or not name.strip():
            file = argument.endswith((".yaml", ".yml"))
            hint = "write --config before a config file" if file else "see --keys for every key"
            raise UserError(
                f"argument {show_text(repr(argument), 120)} is not of the form section.key=value, such as "
                f"run.seed=1 ({hint})"
            )
        return cls(name.strip(), value, argument)

    @property
    def where(self) -> str:
        """The place of this value, for messages."""
        return f"argument {show_text(repr(self.spelling), 120)}"

    def tree(self) -> dict[str, Any]:
        """The value in its section, as in a file.

        Raises:
            UserError: the value is not YAML, or the name has too many parts.
        """
        names = self.name.split(".")
        if len(names) > _DEEPEST_KEY:
            raise UserError(f"argument {show_text(self.name, 40)!r}: a key has at most {_DEEPEST_KEY} parts")
        tree = self._parse_value()
        for name in reversed(names):
            tree = {name: tree}
        return typing.cast(dict[str, Any], tree)

    def _parse_value(self) -> Any:
        # `key=` is the empty text, as in a shell; `key=null` is None. A file name whose bytes are not UTF-8
        # cannot be YAML.
        if not isinstance(self.value, str) or not self.value or re.search("[\udc80-\udcff]", self.value):
            return self.value
        try:
            return parse_yaml(self.value, "")
        except UserError as error:
            problem = re.sub(r"^(, line \d+)?:? (not valid YAML: )?", "", str(error))
            raise UserError(f"{self.where}: the value is not YAML: {problem}") from error


def shipped_configs() -> dict[str, Path]:
    """Name, such as ``pretrain/sample``, -> file of the configs that come with the package."""
    package = Path(__file__).parent
    folder = next((one for one in (package / "configs", package.parent / "configs") if one.is_dir()), package)
    return {f"{file.parent.name}/{file.stem}": file for file in sorted(folder.glob("*/*.yaml"))}


def locate_config(path: str) -> str:
    """The path, or if there is no such file the config of the package with this name.

    ``configs/pretrain/sample.yaml`` and ``pretrain/sample`` are both names of a config of the package.

    Raises:
        UserError: there is neither, but a config with a similar name.
    """
    if exists(path):
        return path
    name = path.replace(os.sep, "/").removeprefix("configs/").removesuffix(".yaml")
    configs = shipped_configs()
    if name not in configs and (close := nearest(name, configs)):
        raise UserError(f"{path}: no such file or config{close} `videomaskfeat configs` lists all")
    return str(configs.get(name, path))


def load_config(
    schema: type[T],
    path: str | None,
    overrides: Iterable[str | Override] = (),
    *,
    log: Callable[[str], None] = lambda line: None,
    inherit: Callable[[Any, Collection[str]], Mapping[str, Any]] = lambda config, names: {},
) -> T:
    """Read a config: the schema's defaults, then the YAML file, then ``section.key=value`` overrides.

    ``target: pixels`` sets the ``name`` of a section. The file's ``arguments`` belong to the file's name and
    are dropped if an override sets another one. ``log`` receives a line about this, and about a former name.

    ``inherit`` receives the config and the names of the keys that the file and the overrides set, and returns
    values for others.

    A config that does not exist is taken from the package, see :func:`locate_config`.

    Raises:
        UserError: a file that is missing or not YAML, an unknown key (with the nearest known one), a value of
            the wrong type, a number that is not finite or an integer beyond 64 bits, a value that breaks the
            rules of its key, an interpolation such as ``${oc.env:HOME}`` that cannot be resolved, or an
            override without ``=``.
    """
    path = path and locate_config(path)
    known = {one.name: one for one in keys_of(schema)}
    tree: dict[str, dict[str, Any]] = {}
    for name, one in known.items():
        tree.setdefault(name.partition(".")[0], {})[name.partition(".")[2]] = one.value
    parsed = [Override.parse(one) if isinstance(one, str) else one for one in overrides]
    layers = [
        (one.where, _expand(_rename(one.tree(), schema, one.where, log), tree, one.where))
        for one in parsed
        if not one.literal
    ]
    parsed = [replace(one, name=current_name(schema, one.name)) for one in parsed]
    own = {one.name for one in parsed}
    if path:
        layer = _expand(_rename(_read_file(path), schema, path, log), tree, path)
        own |= {f"{section}.{item}" for section, items in layer.items() for item in items}
        _merge(tree, layer)
        for line in _drop_arguments_of_others(tree, [layer for _, layer in layers]):
            log(f"{path}: {line}")
    for _, layer in layers:
        _merge(tree, layer)

    def setter(name: str) -> str:
        places = [(one.where, f"{one.name}.") for one in parsed]
        setters = [where for where, key in places if f"{name}.".startswith(key) or key.startswith(f"{name}.")]
        return setters[-1] if setters else path or "the arguments"

    config = schema()
    for name, value in _resolve(tree, setter):
        try:
            rules = known[name].rules
            value = None if rules.null.isalpha() and value == rules.null else rules.present_choice(value)
            _set(config, name, _convert(value, known[name].kind, known[name].value))
        except ValueError as error:
            either = f", or {rules.null}" if rules.null.isalpha() else ""
            raise UserError(f"{setter(name)}: {name} {_show(value)} must be {error}{either}") from None
    for override in parsed:
        if override.literal:
            _set(config, override.name, known[override.name].rules.present_choice(override.value))
    check_config(config, lambda name: f"{setter(name)}: ", complete=False)
    own |= {f"{section}.{item}" for _, layer in layers for section, items in layer.items() for item in items}
    for name, value in inherit(config, own).items():
        if name not in own:
            _set(config, name, value)
    return config


def current_name(schema: type, name: str) -> str:
    """``section``, ``section.key`` or a name inside a key's arguments, by its present name."""
    current: list[str] = []
    for word in name.split("."):
        current.append(_current_word(schema, current, word))
    return ".".join(current)


def current_values(schema: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """A flat config of an earlier version (see :func:`flat`), with the present names and choices."""
    rules = {one.name: one.rules for one in keys_of(schema)}
    renamed = {current_name(schema, name): value for name, value in values.items()}
    return {
        name: rules[name].present_choice(value) if name in rules else value for name, value in renamed.items()
    }


def current_arguments(arguments: Any) -> Any:
    """Arguments from a saved file, with the present spelling of their names at all levels."""
    if not isinstance(arguments, Mapping):
        return arguments
    return {SPELLINGS.get(name, name): current_arguments(value) for name, value in arguments.items()}


def _current_word(schema: type, parents: Sequence[str], name: str) -> str:
    """The present name of a section, of a key (one parent), or of an argument (two or more)."""
    if len(parents) > 1:
        return SPELLINGS.get(name, name) if parents[1] == "arguments" else name
    known = _former_names(schema).get(parents[0] if parents else "", {})
    if name in known or not name:
        return name
    renamed = next((present for present, former in known.items() if former == name), SPELLINGS.get(name))
    return renamed if renamed in known else name


@functools.cache
def _former_names(schema: type) -> dict[str, dict[str, str]]:
    """Section, or "" for the sections themselves -> name -> former name, which may be empty."""
    names = {"": {item.name: item.metadata.get("former", "") for item in fields(schema)}}
    for one in keys_of(schema):
        section, _, key = one.name.partition(".")
        names.setdefault(section, {})[key] = one.rules.former
    return names


def _rename(
    tree: Mapping[Any, Any],
    schema: type,
    where: str,
    log: Callable[[str], None],
    parents: tuple[str, ...] = (),
) -> dict[Any, Any]:
    """A tree of sections, keys and arguments under their present names; ``log`` receives a line for each."""
    renamed = {}
    for name, value in tree.items():
        present = _current_word(schema, parents, name) if isinstance(name, str) else name
        if present != name:
            kind = f"{'.'.join(parents)}." if parents else "the section "
            log(f"{where}: {kind}{name} is now named {present}")
        if isinstance(value, dict) and len(parents) < _DEEPEST_KEY:
            value = _rename(value, schema, where, log, (*parents, str(present)))
        renamed[present] = value
    return renamed


def _set(config: Any, name: str, value: Any) -> None:
    section, _, key = name.partition(".")
    setattr(getattr(config, section), key, value)


def _read_file(path: str) -> dict[str, Any]:
    plain = read_yaml(path, what="a config")
    if plain is None:  # empty, or only comments
        return {}
    if not isinstance(plain, dict):
        content = "a list" if isinstance(plain, list) else f"the value {show_text(plain, 40)!r}"
        raise UserError(f"{path} contains {content}; a config must be a mapping of sections (see --keys)")
    return plain


def _expand(layer: dict[str, Any], known: Mapping[str, Mapping[str, Any]], where: str) -> dict[str, Any]:
    """Write ``section: name`` as a mapping, and refuse unknown sections and keys."""
    elsewhere = {item: f"{name}.{item}" for name, items in known.items() for item in items}
    for name, items in layer.items():
        if name not in known:
            close = nearest(str(name), known) or _nearest_elsewhere(str(name), elsewhere)
            close = close or f"; the sections are {', '.join(known)}"
            raise UserError(f"{where}: unknown section {show_text(str(name))!r}{close}")
        if isinstance(items, str) and "name" in known[name] and "${" not in items:
            items = layer[name] = {"name": items}
        if not isinstance(items, dict):
            raise UserError(
                f"{where}: {name} is a section and cannot be set to {_show(items)}; set {name}.KEY instead"
            )
        for item in map(str, items):
            if item not in known[name]:
                own = nearest(item, known[name]).replace("mean '", f"mean '{name}.")
                close = own or _nearest_elsewhere(item, elsewhere)
                close = close or f"; the keys of {name} are {', '.join(known[name])} (--keys explains them)"
                raise UserError(f"{where}: unknown key '{name}.{show_text(item)}'{close}")
    return layer


def _nearest_elsewhere(item: str, elsewhere: Mapping[str, str]) -> str:
    """The same or the nearest key of another section, as the tail of an error message."""
    hint = nearest(item, elsewhere)
    return f"; did you mean {elsewhere[hint.split(chr(39))[1]]!r}?" if hint else ""


def _merge(tree: dict[str, Any], layer: dict[str, Any]) -> None:
    """Merge mappings, and replace everything else."""
    for name, value in layer.items():
        if isinstance(value, dict) and isinstance(tree.get(name), dict):
            _merge(tree[name], value)
        else:
            tree[name] = value


def _drop_arguments_of_others(
    tree: dict[str, dict[str, Any]], layers: Iterable[dict[str, Any]]
) -> Iterator[str]:
    """Empty the ``arguments`` of each section that a layer renames, and yield a line about it."""
    for layer in layers:
        for section, items in layer.items():
            own = tree[section]
            if items.get("name") not in (None, own.get("name")) and own.get("arguments"):
                dropped = f"{section}.arguments ({', '.join(map(str, own['arguments']))})"
                yield f"{dropped} are arguments of {own['name']}; they are not passed to {items['name']}"
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
            f"{place} cannot be resolved ({_first_line(error)}); write the value, or correct it"
        ) from error
    if isinstance(value, DictConfig | ListConfig) and written:
        raise UserError(f"{place} is a mapping or list; write its values")
    if isinstance(value, DictConfig):
        return {inner: _resolved(value, inner, f"{name}.{inner!s}", setter) for inner in value}
    if isinstance(value, ListConfig):
        return [_resolved(value, inner, f"{name}.{inner}", setter) for inner in range(len(value))]
    _check_plain(value, name, setter)
    return value


def _check_plain(value: Any, name: str, setter: Callable[[str], str]) -> bool:
    """Refuse values that no key may have; return whether the value contains an interpolation."""
    if isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        interpolated = [
            _check_plain(one, f"{name}.{key}", setter) for key, one in inner
        ]  # checks all of them
        return any(interpolated)
    place = f"{setter(name)}: {show_text(name)}"
    if value == "???":
        raise UserError(f"{place} is ???, which means a missing value; set {show_text(name)}=VALUE")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{place} is {value}; it must be a finite number")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise UserError(f"{place} has more than 64 bits; set a smaller integer")
    if not isinstance(value, str):
        return False
    if "\0" in value or re.search("[\ud800-\udc7f\udd00-\udfff]", value):
        raise UserError(f"{place} is {_show(value)}, which contains a character that is not valid text")
    if "${" in value and len(value) > _LONGEST_INTERPOLATION:
        raise UserError(
            f"{place}: an interpolation of {len(value)} characters ({show_text(value, 40)}); "
            f"the maximum is {_LONGEST_INTERPOLATION}"
        )
    return "${" in value


def _convert(value: Any, kind: Any, default: Any) -> Any:
    """Convert a value to the type of its key; the message of a ValueError states the rule."""
    origin, kinds = typing.get_origin(kind), typing.get_args(kind)
    if type(None) in kinds:
        return None if value is None else _convert(value, kinds[0], default)
    if kind is Any:
        return value
    if origin is list:
        length = len(default) if default and kinds[0] is not str else None  # names may be added and removed
        if not isinstance(value, list) or length not in (None, len(value)):
            raise ValueError(
                f"a list of {length} values, such as {default}" if length else "a list of values"
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
