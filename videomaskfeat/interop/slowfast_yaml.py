"""Reading a PySlowFast YAML: its options in their types, with defaults, and the keys that have no part."""

from __future__ import annotations

import ast
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from videomaskfeat.errors import UserError, nearest
from videomaskfeat.interop.slowfast_keys import (
    CLASSIFICATION,
    CLIP,
    DECODER,
    ENCODER,
    FIXED,
    IGNORED_SECTIONS,
    NO_EFFECT,
    PRETRAINING,
    ROWS,
)
from videomaskfeat.texts import read_yaml as read_plain_yaml
from videomaskfeat.texts import show_text

_LONGEST_LITERAL, _MOST_BRACKETS = 1000, 100
_LARGEST = 2**63
_KNOWN = {**ENCODER, **PRETRAINING, **DECODER, **CLASSIFICATION, **CLIP}


def read_yaml(path: str) -> Mapping[str, Any]:
    """The keys of a YAML as SECTION.KEY -> value, as they are written.

    Raises:
        UserError: no such file, no YAML, or one without sections.
    """
    content = read_plain_yaml(path, what="a PySlowFast YAML")
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: is not a PySlowFast YAML: it has no sections such as MVIT and MODEL")
    return dict(_flatten(content))


def typed_options(
    path: str, written: Mapping[str, Any], defaults: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The options that count for a kind of model, and the keys that do not.

    Args:
        path: of the YAML, for messages.
        written: result of :func:`read_yaml`.
        defaults: the keys that count, with what they are where the YAML leaves them out.

    Returns:
        Every key of ``defaults`` with its value; the keys of the YAML that cannot change that model.

    Raises:
        UserError: a value that is not built here or of the wrong type, or a key that nobody knows.
    """
    options, ignored = dict(defaults), []
    for key, value in written.items():
        section = key.partition(".")[0]
        if key in FIXED:
            if not any(_plain(value) == allowed for allowed in FIXED[key]):
                expected = " or ".join(map(repr, FIXED[key]))
                raise UserError(f"{path}: {key} {value!r} is not supported; only {expected} is")
        elif key in defaults:
            options[key] = _typed(path, key, _plain(value), defaults[key])
        elif key in _KNOWN or key in NO_EFFECT or key == "MODEL.MODEL_NAME" or section in IGNORED_SECTIONS:
            if key != "MODEL.MODEL_NAME":
                ignored.append(key)
        else:
            known = [*_KNOWN, *FIXED, *NO_EFFECT]
            raise UserError(f"{path}: unknown key {key}{nearest(key, known)}; it may change the model")
    return options, tuple(ignored)


def _flatten(content: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested sections as (SECTION.KEY, value) pairs."""
    pairs: list[tuple[str, Any]] = []
    for key, value in content.items():
        name = f"{prefix}{key}"
        pairs += _flatten(value, f"{name}.") if isinstance(value, Mapping) else [(name, value)]
    return pairs


def _plain(value: Any) -> Any:
    """What PySlowFast reads from a value: ``"(2, 4, 4)"`` is a tuple, ``"1e-6"`` a number, "None" None."""
    if not isinstance(value, str) or len(value) > _LONGEST_LITERAL or value.count("(") > _MOST_BRACKETS:
        return value
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the spelling of numbers
            return ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value


def _typed(path: str, key: str, value: Any, default: Any) -> Any:
    """``value`` in the type of the key's default: a float may be written as an integer, a tuple as a list."""
    if isinstance(default, tuple) and isinstance(value, list | tuple):
        return _as_tuple(path, key, value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{path}: {key} is {value}; a finite number is needed")
    if number and isinstance(default, float) and abs(value) < _LARGEST:
        return float(value)
    if type(value) is type(default) and not (number and abs(value) >= _LARGEST):
        return value
    raise UserError(
        f"{path}: {key} {show_text(repr(value))} should be a {type(default).__name__}, such as {default!r}"
    )


def _as_tuple(path: str, key: str, value: Sequence[Any]) -> tuple[Any, ...]:
    """Numbers as a tuple, or rows of numbers as tuples where the key has rows."""
    rows = value if key in ROWS else [value]
    for row in rows:
        if not isinstance(row, list | tuple) or not all(map(_is_number, row)):
            wanted = "lists of numbers, one per block" if key in ROWS else "numbers"
            raise UserError(f"{path}: {key} {show_text(repr(value))} must be a list of {wanted}")
    return tuple(map(tuple, rows)) if key in ROWS else tuple(value)


def _is_number(value: Any) -> bool:
    """Whether it is a finite number that a model can be built with; not True or False."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST
