"""Config keys: how they are declared and checked, and their former names.

A config is a dataclass of sections. A section is a dataclass with fields from :func:`key`. The configs of all
trainings are in :mod:`videomaskfeat.schemas`; :mod:`videomaskfeat.config` reads them from files.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from omegaconf import OmegaConf

from videomaskfeat.errors import UserError, unknown_name
from videomaskfeat.plugins import is_plugin
from videomaskfeat.texts import show_text

T = TypeVar("T")
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
                return f"{name} {show_value(value)} must be {' or '.join(map(str, self.choices))}"
            if isinstance(one, int | float) and not (
                (self.least is None or one >= self.least)
                and (self.greatest is None or one <= self.greatest)
                and (self.above is None or one > self.above)
                and (self.below is None or one < self.below)
            ):
                return f"{name} {show_value(value)} must be {self.span()}"
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
        from videomaskfeat.yaml_files import dump_yaml

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


def current_name(schema: type, name: str) -> str:
    """``section``, ``section.key`` or a name inside a key's arguments, by its present name."""
    current: list[str] = []
    for word in name.split("."):
        current.append(current_word(schema, current, word))
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


def current_word(schema: type, parents: Sequence[str], name: str) -> str:
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


def show_value(value: Any) -> str:
    """A value as messages show it."""
    return show_text(f"{value:g}" if isinstance(value, float) else repr(value))
