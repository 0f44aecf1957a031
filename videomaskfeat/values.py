"""Plain data converted to declared types; an error names the value and the rule."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from videomaskfeat.errors import UserError, unknown_name
from videomaskfeat.texts import show_text

T = TypeVar("T")

Limits = Mapping[str, tuple[float, float] | tuple[str, ...]]
"""Name -> smallest and largest number, or the words that are known."""

_WORDS = {int: "an integer", float: "a finite number", bool: "true or false", str: "a text"}
_LARGEST = 2**53  # larger integers count nothing, and may have thousands of digits


def conform(value: Any, kind: Any, name: str, *, limits: Limits | None = None) -> Any:
    """Convert a value to a type: lists become tuples, integers become floats.

    Args:
        value: plain data, as JSON, YAML or a caller provides it.
        kind: ``int``, ``float``, ``bool``, ``str``, a ``Literal``, a union, a tuple, a ``Sequence``, a
            ``Mapping``, a dataclass, or ``Any``.
        name: of the value, for messages; its last part is looked up in ``limits``.
        limits: of numbers, those in tuples too.

    Raises:
        UserError: names value and rule.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return from_parts(kind, value, name=name, limits=limits)  # type: ignore[arg-type]
    if origin is Literal:
        if not (isinstance(value, str) and value in arguments):
            raise unknown_name(show_text(name), value, arguments)
        return value
    if origin in (Union, types.UnionType):
        return _of_union(value, arguments, name, limits)
    if origin in (tuple, Sequence, list) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return _of_sequence(value, kind, name, limits)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _of_mapping(value, arguments, name, limits)
    if kind not in (int, float, bool, str, None, type(None)):
        return value  # a type that plain data does not have
    return _of_plain(value, kind, name, limits)


def from_parts(cls: type[T], parts: Any, *, name: str = "", limits: Limits | None = None) -> T:
    """A dataclass from a mapping of its fields, as JSON provides it.

    Raises:
        UserError: not a mapping, an unknown or a missing field, or a value of the wrong type or outside its
            limits.
    """
    if not isinstance(parts, Mapping):
        raise _wrong(name or "it", parts, "an object of names and values")
    hints = get_type_hints(cls)
    known = {part.name: part for part in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values = {}
    for key, value in parts.items():
        full = f"{name}.{key}" if name else str(key)
        if key not in known:
            raise unknown_name(f"{show_text(name)}: key" if name else "key", key, known)
        values[key] = conform(value, hints[key], full, limits=limits)
    for key, part in known.items():
        missing = dataclasses.MISSING
        if key not in values and part.default is missing and part.default_factory is missing:
            raise UserError(f"{f'{name}.' if name else ''}{key} is missing")
    return cls(**values)


def describe(kind: Any) -> str:
    """A type in words, such as "an integer" or "3 integers"."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in _WORDS:
        return _WORDS[kind]
    if kind in (None, type(None)):
        return "none"
    if origin in (Union, types.UnionType):
        return " or ".join(map(describe, arguments))
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"{len(arguments)} values, each {describe(arguments[0])}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "an object of names and values"
    if arguments and origin is not Literal:
        return f"a list of values, each {describe(arguments[0])}"
    return "a list"


def _of_plain(value: Any, kind: Any, name: str, limits: Limits | None) -> Any:
    if kind is int:
        fits = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST
    elif kind is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        fits = fits and abs(value) <= 1e300 and math.isfinite(value)
    else:
        fits = value is None if kind in (None, type(None)) else type(value) is kind
    if not fits:
        raise _wrong(name, value, describe(kind))
    rule: tuple[Any, ...] = (limits or {}).get(name.rpartition(".")[2], ())
    if kind is str and rule and value not in rule:
        raise unknown_name(show_text(name), value, rule)
    if kind in (int, float) and rule and not rule[0] <= value <= rule[1]:
        span = f"of at most {rule[1]:g}" if rule[0] == -math.inf else f"from {rule[0]:g} to {rule[1]:g}"
        raise _wrong(name, value, f"{describe(kind)} {span}")
    return value


def _of_union(value: Any, kinds: Sequence[Any], name: str, limits: Limits | None) -> Any:
    if value is None and type(None) in kinds:
        return None
    errors = []
    for kind in kinds:
        try:
            return conform(value, kind, name, limits=limits)
        except UserError as error:
            errors.append(error)
    numbers = [error for error, kind in zip(errors, kinds, strict=True) if kind in (int, float)]
    if isinstance(value, int | float) and not isinstance(value, bool) and numbers:
        raise numbers[0]  # the limit is more specific than the types
    raise _wrong(name, value, " or ".join(map(describe, kinds)))


def _of_sequence(value: Any, kind: Any, name: str, limits: Limits | None) -> tuple[Any, ...]:
    arguments = get_args(kind)
    fixed = get_origin(kind) is tuple and arguments[-1] is not Ellipsis
    if not isinstance(value, list | tuple) or (fixed and len(value) != len(arguments)):
        raise _wrong(name, value, describe(kind))
    kinds = arguments if fixed else (arguments[0],) * len(value)
    try:
        return tuple(
            conform(entry, one, name, limits=limits) for entry, one in zip(value, kinds, strict=True)
        )
    except UserError as error:
        raise UserError(f"{error} (in {show_text(repr(value))})") from error


def _of_mapping(value: Any, kinds: Sequence[Any], name: str, limits: Limits | None) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise _wrong(name, value, "an object of names and values")
    of_key, of_value = kinds
    entries = {}
    for key, entry in value.items():
        if of_key is int and isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) < 16:
            key = int(key)  # JSON's keys are texts
        right = conform(key, of_key, f"a key of {name}", limits=limits)
        entries[right] = conform(entry, of_value, f"{name}.{key}", limits=limits)
    return entries


def _wrong(name: str, value: Any, rule: str) -> UserError:
    return UserError(f"{show_text(name)} {show_text(repr_of(value))} must be {rule}")


def repr_of(value: Any) -> str:
    """A value for a message, even if ``repr`` refuses it."""
    try:
        return repr(value)
    except (ValueError, RecursionError):  # an integer of more than 4300 digits; a nest
        return f"of type {type(value).__name__}"
