"""Reading configs: strict, and with words for people."""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    OmegaConfBaseException,
)

from videomaskfeat.errors import UserError, nearest
from videomaskfeat.texts import dump_yaml, parse_yaml, read_yaml, show_text

T = TypeVar("T")
_DEEPEST_KEY = 16  # parts of an override's key, ``section.key.name``
_LONGEST_INTERPOLATION = 1000  # characters; omegaconf's grammar is recursive
# What omegaconf raises for trees that fit nowhere, besides its own errors.
_MISFITS = (OmegaConfBaseException, TypeError, AttributeError, ValueError, AssertionError, RecursionError)


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
            the wrong type, a number that is not finite or an integer beyond 64 bits, an interpolation such
            as ``${oc.env:HOME}`` that cannot be resolved, an override without ``=``.
    """
    config = OmegaConf.structured(schema)
    if path:
        tree = _with_names(config, _read_yaml(path))
        _check_filled(tree, path, [override.partition("=")[0].strip() for override in overrides])
        config = _merge(config, tree, where=path)
    trees = [(_argument(override), _with_names(config, _read_override(override))) for override in overrides]
    for dropped in _drop_arguments_of_others(config, [tree for _, tree in trees]):
        if say is not None:
            say(f"{path}: {dropped}")
    for where, tree in trees:
        _check_filled(tree, where, ())
        config = _merge(config, tree, where=where)
    source = path or "the arguments"
    _check_values(config, where=source)
    _check_lengths(config, OmegaConf.structured(schema), where=source)
    try:
        return typing.cast(T, OmegaConf.to_object(config))
    except _MISFITS as error:
        raise UserError(f"{source}: {_first_line(error)}") from error


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
    tree = read_yaml(path, what="a config")
    if tree is None:  # empty, or only comments
        return OmegaConf.create({})
    if not isinstance(tree, dict):
        found = "a list" if isinstance(tree, list) else f"the value {show_text(tree, 40)!r}"
        raise UserError(f"{path}: holds {found}, and a config is a mapping of sections (see --keys)")
    return _tree(tree, path)


def _tree(plain: dict[str, Any], where: str) -> DictConfig:
    """Plain data as omegaconf holds it, which parses the interpolations."""
    _check_interpolations(plain, where)
    try:
        return OmegaConf.create(plain)
    except _MISFITS as error:
        raise UserError(f"{where}: {_first_line(error)}") from error


def _check_interpolations(value: Any, where: str) -> None:
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            _check_interpolations(inner, where)
    elif isinstance(value, str) and "${" in value and len(value) > _LONGEST_INTERPOLATION:
        raise UserError(
            f"{where}: an interpolation of {len(value)} characters ({show_text(value, 40)}); "
            f"at most {_LONGEST_INTERPOLATION} are read"
        )


def _read_override(override: str) -> DictConfig:
    """``section.key=value`` as a tree."""
    name, equals, value = override.partition("=")
    if not equals or not name.strip():
        raise UserError(
            f"{_argument(override)} is not of the form section.key=value, such as run.seed=1 "
            "(see --keys for every key)"
        )
    where = _argument(override)
    if name.count(".") + name.count("[") >= _DEEPEST_KEY:
        raise UserError(f"argument {show_text(name, 40)!r}: a key has at most {_DEEPEST_KEY} parts")
    # `key=` is the empty text, as in a shell; `key=null` is None. A file name whose bytes are not UTF-8 is
    # taken as it is, since it cannot be YAML.
    plain = value if not value or _has_bytes(value) else _parse_value(value, where)
    _check_interpolations(plain, where)
    tree = OmegaConf.create({})
    try:
        OmegaConf.update(tree, name, plain)
    except _MISFITS as error:
        raise UserError(f"{where}: {_first_line(error)}") from error
    return tree


def _argument(override: str) -> str:
    return f"argument {show_text(repr(override), 120)}"


def _parse_value(value: str, where: str) -> Any:
    try:
        return parse_yaml(value, "")
    except UserError as error:
        problem = re.sub(r"^(, line \d+)?: (not valid YAML: )?", "", str(error))
        raise UserError(f"{where}: the value is not YAML: {problem}") from error


def _has_bytes(text: str) -> bool:
    return any("\udc80" <= letter <= "\udcff" for letter in text)


def _drop_arguments_of_others(config: DictConfig, trees: Sequence[DictConfig]) -> list[str]:
    """Empty the ``arguments`` of each section that the trees give another name; says which they were."""
    dropped = []
    for tree in trees:
        for section in map(str, tree):
            given, own = _peek(tree, section), _peek(config, section)
            if not isinstance(given, DictConfig) or not isinstance(own, DictConfig):
                continue
            if _peek(given, "name") in (None, _peek(own, "name")):
                continue
            if _peek(own, "arguments"):
                names = ", ".join(map(str, own.arguments))
                dropped.append(
                    f"{section}.arguments ({names}) are those of {own.name}, and not given to {given.name}"
                )
                own.arguments = {}
    return dropped


def _peek(tree: DictConfig, key: str) -> Any:
    """A value, or None if there is none or it cannot be resolved."""
    try:
        return tree.get(key)
    except _MISFITS:
        return None


def _merge(config: DictConfig, tree: DictConfig, *, where: str) -> DictConfig:
    for section in map(str, tree):
        given = _raw(tree, section)
        if section in config and not isinstance(given, DictConfig):
            raise UserError(
                f"{where}: {section} is a section of keys, and got {_show(given)}; set {section}.KEY instead"
            )
    try:
        return typing.cast(DictConfig, OmegaConf.merge(config, tree))
    except (ConfigKeyError, ConfigAttributeError) as error:
        raise UserError(_unknown_key(config, tree, where)) from error
    except _MISFITS as error:
        raise UserError(_wrong_type(config, tree, where, error)) from error


def _with_names(config: DictConfig, tree: DictConfig) -> DictConfig:
    """A section that is a name with its arguments may be given as the name alone: ``method: masked``."""
    for section in map(str, tree):
        given = _raw(tree, section)
        if section in config and "name" in config[section] and isinstance(given, str):
            tree[section] = {"name": given}
    return tree


def _wrong_type(config: DictConfig, tree: DictConfig, where: str, error: Exception) -> str:
    """Say which key holds a value of the wrong type; omegaconf names it for plain values alone."""
    for section in map(str, tree):
        given = _raw(tree, section)
        for item in map(str, given):
            default = config[section].get(item) if section in config else None
            value = _raw(given, item)
            got = f"and got {_show(value)}"
            if isinstance(default, ListConfig) and not isinstance(value, ListConfig):
                return f"{where}: {section}.{item} is a list such as {list(default)}, {got}"
            if isinstance(default, DictConfig) and not isinstance(value, DictConfig):
                return f"{where}: {section}.{item} is a mapping of names to values, {got}"
    name = getattr(error, "full_key", None)
    return f"{where}: {name + ': ' if name else ''}{_first_line(error)}"


def _raw(tree: Any, key: str) -> Any:
    """A value as it is written: an interpolation or ``???`` as text."""
    node = tree._get_node(key)
    value = node if isinstance(node, DictConfig | ListConfig) else node._value()
    special = isinstance(node, DictConfig | ListConfig) and (node._is_interpolation() or node._is_missing())
    return node._value() if special else value


def _show(value: Any) -> str:
    return show_text(repr(value))


def _check_filled(tree: DictConfig, where: str, filled: Sequence[str]) -> None:
    """``???`` stands for a value that an override must give."""
    for name in _missing_keys(OmegaConf.to_container(tree), ""):
        if not any(name.startswith(f"{key}.") for key in filled):
            name = name.removesuffix(".")
            raise UserError(f"{where}: {name} is ???, which stands for a missing value; give {name}=VALUE")


def _missing_keys(plain: Any, prefix: str) -> Iterator[str]:
    """Names of the values that are ``???``, each with a dot at its end."""
    if plain == "???":
        yield prefix
    elif isinstance(plain, dict | list):
        for key, value in plain.items() if isinstance(plain, dict) else enumerate(plain):
            yield from _missing_keys(value, f"{prefix}{key}.")


def _check_values(config: DictConfig, *, where: str) -> None:
    """Every value can be resolved; numbers are finite, and integers have 64 bits at most."""
    for section in map(str, config):
        _check_value(config, section, section, where)


def _check_value(parent: Any, key: Any, name: str, where: str) -> None:
    written = show_text(parent._get_node(key)._value()) if OmegaConf.is_interpolation(parent, key) else ""
    try:
        value = parent[key]
    except _MISFITS as error:
        raise UserError(
            f"{where}: {name}: the interpolation {written!r} cannot be resolved ({_first_line(error)}); "
            "write the value, or correct the name in it"
        ) from error
    if isinstance(value, DictConfig | ListConfig):
        if written:
            raise UserError(
                f"{where}: {name}: the interpolation {written!r} is a mapping or list; write it out"
            )
        for inner in value if isinstance(value, DictConfig) else range(len(value)):
            _check_value(value, inner, f"{name}.{inner!s}", where)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where}: {name} is {value}; a finite number is needed")
    elif isinstance(value, int) and abs(value) >= 2**63:
        raise UserError(f"{where}: {name} has more than 64 bits; give a smaller integer")
    elif isinstance(value, str) and ("\0" in value or re.search("[\ud800-\udc7f\udd00-\udfff]", value)):
        raise UserError(f"{where}: {name} is {_show(value)}, which holds a character that no text may have")


def _check_lengths(config: DictConfig, defaults: DictConfig, *, where: str) -> None:
    """A list has as many values as its default, of which its meaning speaks; an empty one has any number."""
    for section in map(str, defaults):
        for item, default in defaults[section].items():
            given = config[section][item]
            if not isinstance(default, ListConfig):
                continue
            strange = next((one for one in given if isinstance(one, DictConfig | ListConfig)), None)
            if strange is not None and not any(isinstance(one, DictConfig | ListConfig) for one in default):
                raise UserError(
                    f"{where}: {section}.{item} is a list of plain values, and one is {_show(strange)}"
                )
            if default and len(given) != len(default):
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
    if isinstance(error, RecursionError):
        return "it refers to itself, or is nested too deeply"
    return show_text(next(iter(str(error).strip().splitlines()), type(error).__name__), 200)
