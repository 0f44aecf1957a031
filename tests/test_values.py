"""Conversion of values from files to declared types."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from videomaskfeat.errors import UserError
from videomaskfeat.values import build_dataclass, conform


@dataclass(frozen=True)
class Inner:
    frames: int
    rate: float | None = 30.0


@dataclass(frozen=True)
class Outer:
    inner: Inner
    cell: tuple[int, int, int] = (1, 2, 3)
    names: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (3, int, 3),
        (3, float, 3),
        ([1, 2], tuple[int, ...], (1, 2)),
        (None, int | None, None),
        ([0.5, 1], float | tuple[float, ...], (0.5, 1)),
        ({"1": "a"}, Mapping[int, str], {1: "a"}),
        ("b", Literal["a", "b"], "b"),
        ({"x": [None]}, Any, {"x": [None]}),
    ],
)
def test_value_of_the_right_type_is_converted(value: object, kind: Any, expected: object) -> None:
    assert conform(value, kind, "x") == expected


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        (0.5, int, "x 0.5 must be an integer"),
        (True, int, "x True must be an integer"),
        (10**30, int, "must be an integer"),
        pytest.param(10**6000, int, r"^x of type int must be an integer$", id="digits"),
        (math.nan, float, "x nan must be a finite number"),
        (10**400, float, "must be a finite number"),
        ("3", float, "x '3' must be a finite number"),
        (1, bool, "x 1 must be true or false"),
        ([1, 2], tuple[int, int, int], r"x \[1, 2\] must be 3 values, each an integer"),
        ([1, "a"], tuple[int, ...], r"x 'a' must be an integer \(in \[1, 'a'\]\)"),
        ("abc", tuple[str, ...], "x 'abc' must be a list of values, each a string"),
        ("ab", Literal["abc", "d"], "x 'ab' is unknown; did you mean 'abc'?"),
        ([], int | None, r"x \[\] must be an integer or none"),
        ({"a": 1}, Mapping[int, str], "a key of x 'a' must be an integer"),
        ("a\n" * 200, int, r"^x 'a\\n[^\n]*\.\.\.[^\n]* must be an integer$"),
    ],
)
def test_wrong_value_is_named_with_the_rule(value: object, kind: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        conform(value, kind, "x")
    assert len(str(caught.value)) < 300


def test_limits_apply_to_the_last_component_of_a_name() -> None:
    limits = {"frames": (1, 9), "names": ("a", "b")}
    assert build_dataclass(Inner, {"frames": 9}, limits=limits) == Inner(9)
    with pytest.raises(UserError, match=r"inner\.frames 10 must be an integer from 1 to 9"):
        build_dataclass(Outer, {"inner": {"frames": 10}}, limits=limits)
    with pytest.raises(UserError, match="names 'c' is unknown; choose from a, b"):
        build_dataclass(Outer, {"inner": {"frames": 1}, "names": ["a", "c"]}, limits=limits)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ([], r"value \[\] must be a mapping of names to values"),
        ({}, "inner is missing"),
        ({"inner": {}}, "inner.frames is missing"),
        ({"inner": {"frames": 1}, "cel": [1, 1, 1]}, "key 'cel' is unknown; did you mean 'cell'?"),
        ({"inner": 3}, "inner 3 must be a mapping of names to values"),
    ],
)
def test_wrong_fields_are_named(fields: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_dataclass(Outer, fields)
