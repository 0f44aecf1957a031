"""Conversion of plain data to declared types; an error names the value and the rule."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from videomaskfeat.errors import UserError, safe_repr, unknown_name
from videomaskfeat.texts import show_text

T = TypeVar("T")

Limits = Mapping[str, tuple[float, float] | tuple[str, ...]]
"""Name -> smallest and largest number, or the valid strings."""

_DESCRIPTIONS = {
    int: "an integer",
    float: "a finite number",
    bool: "true or false",
    str: "a string",
    None: "none",
    type(None): "none",
}
_MAPPING = "a mapping of names to values"
_LARGEST = 2**53  # a larger integer is no count, and may have thousands of digits


def conform(value: Any, kind: Any, name: str, *, limits: Limits | None = None) -> Any:
    """Convert a value to a type: lists become tuples, integers become floats.

    Args:
        value: plain data, as in JSON or YAML.
        kind: ``int``, ``float``, ``bool``, ``str``, a ``Literal``, a union, a tuple, a ``Sequence``, a
            ``Mapping``, a dataclass, or ``Any``.
        name: name of the value, for messages; its last component is looked up in ``limits``.
        limits: limits of numbers and strings, also inside tuples.

    Raises:
        UserError: names the value and the rule.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return build_dataclass(kind, value, name=name, limits=limits)  # type: ignore[arg-type]
    if origin is Literal:
        if not (isinstance(value, str) and value in arguments):
            raise unknown_name(show_text(name), value, arguments)
        return value
    if origin in (Union, types.UnionType):
        return _conform_to_union(value, arguments, name, limits)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return _conform_to_sequence(value, kind, name, limits)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _conform_to_mapping(value, arguments, name, limits)
    if kind not in _DESCRIPTIONS:
        return value  # a type that plain data does not have
    return _conform_to_scalar(value, kind, name, limits)


def build_dataclass(cls: type[T], fields: Any, *, name: str = "", limits: Limits | None = None) -> T:
    """A dataclass from a mapping of its fields.

    Raises:
        UserError: not a mapping, an unknown or a missing field, or a value of the wrong type or outside its
            limits.
    """
    if not isinstance(fields, Mapping):
        raise _wrong_value(name or "value", fields, _MAPPING)
    hints = get_type_hints(cls)
    known = {one.name: one for one in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values = {}
    for key, value in fields.items():
        if key not in known:
            raise unknown_name(f"{show_text(name)}: key" if name else "key", key, known)
        values[key] = conform(value, hints[key], f"{name}.{key}" if name else str(key), limits=limits)
    for key, one in known.items():
        if key not in values and one.default is one.default_factory is dataclasses.MISSING:
            raise UserError(f"{f'{name}.' if name else ''}{key} is missing")
    return cls(**values)


def describe(kind: Any) -> str:
    """A type in words, such as "an integer" or "a list of values, each an integer"."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in _DESCRIPTIONS:
        return _DESCRIPTIONS[kind]
    if origin in (Union, types.UnionType):
        return " or ".join(map(describe, arguments))
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"{len(arguments)} values, each {describe(arguments[0])}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _MAPPING
    if arguments and origin is not Literal:
        return f"a list of values, each {describe(arguments[0])}"
    return "a list"


def _conform_to_scalar(value: Any, kind: Any, name: str, limits: Limits | None) -> Any:
    if kind is int:
        fits = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST
    elif kind is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        fits = fits and abs(value) <= 1e300 and math.isfinite(value)
    else:
        fits = value is None if kind in (None, type(None)) else type(value) is kind
    if not fits:
        raise _wrong_value(name, value, describe(kind))
    limit: tuple[Any, ...] = (limits or {}).get(name.rpartition(".")[2], ())
    if kind is str and limit and value not in limit:
        raise unknown_name(show_text(name), value, limit)
    if kind in (int, float) and limit and not limit[0] <= value <= limit[1]:
        span = f"of at most {limit[1]:g}" if limit[0] == -math.inf else f"from {limit[0]:g} to {limit[1]:g}"
        raise _wrong_value(name, value, f"{describe(kind)} {span}")
    return value


def _conform_to_union(value: Any, kinds: Sequence[Any], name: str, limits: Limits | None) -> Any:
    if value is None and type(None) in kinds:
        return None
    number_error = None
    for kind in kinds:
        try:
            return conform(value, kind, name, limits=limits)
        except UserError as error:
            if kind in (int, float):
                number_error = number_error or error
    if isinstance(value, int | float) and not isinstance(value, bool) and number_error:
        raise number_error  # the limit is more specific than the types
    raise _wrong_value(name, value, " or ".join(map(describe, kinds)))


def _conform_to_sequence(value: Any, kind: Any, name: str, limits: Limits | None) -> tuple[Any, ...]:
    arguments = get_args(kind)
    fixed = get_origin(kind) is tuple and arguments[-1] is not Ellipsis
    if not isinstance(value, list | tuple) or (fixed and len(value) != len(arguments)):
        raise _wrong_value(name, value, describe(kind))
    kinds = arguments if fixed else (arguments[0],) * len(value)
    try:
        return tuple(
            conform(entry, one, name, limits=limits) for entry, one in zip(value, kinds, strict=True)
        )
    except UserError as error:
        raise UserError(f"{error} (in {show_text(repr(value))})") from error


def _conform_to_mapping(value: Any, kinds: Sequence[Any], name: str, limits: Limits | None) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise _wrong_value(name, value, _MAPPING)
    key_kind, value_kind = kinds
    entries = {}
    for key, entry in value.items():
        if key_kind is int and isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) < 16:
            key = int(key)  # the keys of JSON are strings
        valid_key = conform(key, key_kind, f"a key of {name}", limits=limits)
        entries[valid_key] = conform(entry, value_kind, f"{name}.{key}", limits=limits)
    return entries


def _wrong_value(name: str, value: Any, rule: str) -> UserError:
    return UserError(f"{show_text(name)} {show_text(safe_repr(value))} must be {rule}")
