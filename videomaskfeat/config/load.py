"""Reading configs: strict, and with words for people."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    OmegaConfBaseException,
    ValidationError,
)

from videomaskfeat.errors import UserError, nearest
from videomaskfeat.io import open_file

T = TypeVar("T")


def load_config(
    schema: type[T],
    path: str | None,
    overrides: Sequence[str] = (),
    *,
    say: Callable[[str], None] | None = None,
) -> T:
    """Read a config: the schema's defaults, then the YAML file, then ``section.key=value`` overrides.

    A section with a ``name`` takes that name alone as well: ``target: pixels`` is ``target: {name: pixels}``.
    The file's ``arguments`` are those of the name that it gives: an override with another name does not get
    them, which ``say`` is told.

    Raises:
        UserError: a file that is missing or no YAML, an unknown key (with the nearest known one), a value of
            the wrong type, an override without ``=``.
    """
    config = OmegaConf.structured(schema)
    if path:
        config = _merge(config, _with_names(config, _read_yaml(path)), where=path)
    trees = [
        (f"argument {override!r}", _with_names(config, _read_override(override))) for override in overrides
    ]
    for dropped in _drop_arguments_of_others(config, [tree for _, tree in trees]):
        if say is not None:
            say(f"{path}: {dropped}")
    for where, tree in trees:
        config = _merge(config, tree, where=where)
    _check_lengths(config, OmegaConf.structured(schema), where=path or "the arguments")
    return typing.cast(T, OmegaConf.to_object(config))


def config_text(config: Any) -> str:
    """The whole config as YAML, as it is written into the run folder."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def flat(config: Any) -> dict[str, Any]:
    """The config as one flat dict, ``section.key`` -> plain value."""
    return dict(_leaves(dataclasses.asdict(config), ""))


def key_table(schema: type) -> list[tuple[str, str, str]]:
    """Every key of a task: (``section.key``, default as written in YAML, meaning)."""
    rows = []
    for section in fields(schema):
        owner = section.default_factory  # every section is a dataclass, its own factory
        for item in fields(owner):  # type: ignore[arg-type]
            default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
            shown = "null" if default is None else '""' if default == "" else str(default)
            rows.append((f"{section.name}.{item.name}", shown, item.metadata["meaning"]))
    return rows


def _leaves(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _read_yaml(path: str) -> DictConfig:
    with open_file(path) as file:
        text = file.read()
    try:
        tree = OmegaConf.create(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or _first_line(error)
        raise UserError(f"{path}{line}: not valid YAML: {problem}") from error
    if not isinstance(tree, DictConfig):
        raise UserError(f"{path}: holds a list, and a config is a mapping of sections (see --keys)")
    return tree


def _read_override(override: str) -> DictConfig:
    """``section.key=value`` as a tree."""
    name, equals, value = override.partition("=")
    if not equals or not name.strip():
        raise UserError(
            f"argument {override!r} is not of the form section.key=value, such as run.seed=1 "
            "(see --keys for every key)"
        )
    try:
        # `key=` is the empty text, as a shell would have it; `key=null` is none.
        return OmegaConf.from_dotlist([override if value else f"{name}=''"])
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"argument {override!r}: the value is not YAML: {_first_line(error)}") from error


def _drop_arguments_of_others(config: DictConfig, trees: Sequence[DictConfig]) -> list[str]:
    """Empty the ``arguments`` of each section that the trees give another name; says which they were."""
    dropped = []
    for tree in trees:
        for section in map(str, tree):
            given, own = tree[section], config.get(section, {})
            if not isinstance(given, DictConfig) or given.get("name") in (None, own.get("name")):
                continue
            if own.get("arguments"):
                names = ", ".join(map(str, own.arguments))
                dropped.append(
                    f"{section}.arguments ({names}) are those of {own.name}, and not given to {given.name}"
                )
                own.arguments = {}
    return dropped


def _merge(config: DictConfig, tree: DictConfig, *, where: str) -> DictConfig:
    try:
        return typing.cast(DictConfig, OmegaConf.merge(config, tree))
    except (ConfigKeyError, ConfigAttributeError) as error:
        raise UserError(_unknown_key(config, tree, where)) from error
    except ValidationError as error:
        raise UserError(_wrong_type(config, tree, where, error)) from error


def _with_names(config: DictConfig, tree: DictConfig) -> DictConfig:
    """A section that is a name with its arguments may be given as the name alone: ``method: masked``."""
    for section in map(str, tree):
        if section in config and "name" in config[section] and isinstance(tree[section], str):
            tree[section] = {"name": tree[section]}
    return tree


def _wrong_type(config: DictConfig, tree: DictConfig, where: str, error: ValidationError) -> str:
    """Say which key holds a value of the wrong type; omegaconf names it for plain values alone."""
    for section in map(str, tree):
        given = tree[section]
        if section in config and not isinstance(given, DictConfig):
            return f"{where}: {section} is a section of keys, and got {given!r}; set {section}.KEY instead"
        for item in map(str, given or ()):
            default = config[section].get(item) if section in config else None
            if isinstance(default, ListConfig) and not isinstance(given[item], ListConfig):
                return f"{where}: {section}.{item} is a list such as {list(default)}, and got {given[item]!r}"
            if isinstance(default, DictConfig) and not isinstance(given[item], DictConfig):
                return f"{where}: {section}.{item} is a mapping of names to values, and got {given[item]!r}"
    name = getattr(error, "full_key", None)
    return f"{where}: {name + ': ' if name else ''}{_first_line(error)}"


def _check_lengths(config: DictConfig, defaults: DictConfig, *, where: str) -> None:
    """A list has as many values as its default, of which its meaning speaks; an empty one has any number."""
    for section in map(str, defaults):
        for item, default in defaults[section].items():
            given = config[section][item]
            if isinstance(default, ListConfig) and default and len(given) != len(default):
                raise UserError(
                    f"{where}: {section}.{item} has {len(given)} values, and needs {len(default)}, "
                    f"such as {list(default)}"
                )


def _unknown_key(config: DictConfig, tree: DictConfig, where: str) -> str:
    """Name the first key of ``tree`` that ``config`` does not have, and the known one nearest to it."""
    sections = {str(name): [str(item) for item in config[name]] for name in config}
    known = [f"{name}.{item}" for name, items in sections.items() for item in items]
    for name in map(str, tree):
        if name not in sections:
            close = nearest(name, sections) or _elsewhere(name, known)
            return f"{where}: unknown section {name!r}{close or '; there are ' + ', '.join(sections)}"
        for item in map(str, tree[name] if isinstance(tree[name], DictConfig) else ()):
            if item not in sections[name]:
                close = nearest(item, sections[name]) or _elsewhere(item, known)
                there = f"; {name} has {', '.join(sections[name])} (--keys explains them)"
                return f"{where}: unknown key '{name}.{item}'{close or there}"
    return f"{where}: unknown key; --keys lists every key"


def _elsewhere(item: str, known: list[str]) -> str:
    """The same word in another section, or the nearest, as the tail of an error message."""
    by_word: dict[str, str] = {}
    for full in known:
        by_word.setdefault(full.partition(".")[2], full)
    if item in by_word:
        return f"; did you mean {by_word[item]!r}?"
    hint = nearest(item, by_word)
    return hint if not hint else f"; did you mean {by_word[hint.split(chr(39))[1]]!r}?"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
