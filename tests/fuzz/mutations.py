"""Damage to bytes, texts and trees of plain data, drawn from the given generator."""

from __future__ import annotations

import copy
import gzip
import json
import random
import struct
from collections.abc import Callable, Mapping
from typing import Any

LARGE = (2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64, 10**12, 10**30)
"""Integers at the limits of types. None between: a slow case is not a finding."""

RAW = "\u241f"  # marks a text that is inserted into a document without quotes
RAW_VALUES = (
    "!!set {a, b}",
    "!!python/object/apply:os.getcwd []",
    "!!binary aGVsbG8=",
    "!!timestamp 2001-12-14",
    "&a [*a]",
    "&a {x: *a}",
    "*missing",
    "${data.train}",
    "${nowhere}",
    "${oc.env:NOWHERE}",
    "${oc.env:HOME}",
    "${",
    "${${a}}",
    "{? [1, 2] : 3}",
    "{null: 1}",
    "{1: 2, 1.5: 3, true: 4}",
    "9" * 6000,
    "1e400",
    "-.inf",
    ".nan",
    "NaN",
    "Infinity",
    "0x1F",
    "1_000",
    "1:30",
    '"\\ud800"',
    '"\\x00"',
    "{a: 1, a: 2}",
    "[" * 1000 + "]" * 1000,
    "{a: " * 400 + "1" + "}" * 400,
)
_DEEP = 100_000


def strange_value(rng: random.Random) -> Any:
    """An unusual value of a document."""
    kind = rng.randrange(9)
    if kind == 0:
        return rng.choice([None, True, False])
    if kind == 1:
        return rng.choice([0, 1, -1, 2, 3, 7])
    if kind == 2:
        return rng.choice(LARGE) * rng.choice([1, -1])
    if kind == 3:
        return rng.choice([0.5, -0.5, 1.5, 1e308, -1e308, 1e-320, float("nan"), float("inf")])
    if kind == 4:
        return rng.choice(["", " ", "x", "nan", "null", "1", "é", "\u202e", "a\nb", "\ud800", "x" * 70_000])
    if kind == 5:
        return rng.choice([[], {}, [[]], {"": None}, {"name": None}, [None], ["x"] * 5, [1, 2, 3]])
    if kind == 6:
        return rng.choice([{"name": "hog"}, {"name": []}, {"arguments": 3}, {"0": {"1": {"2": {}}}}])
    if kind == 7:
        return [strange_value(rng) for _ in range(rng.randrange(4))]
    return RAW + rng.choice(RAW_VALUES)


def plain_value(rng: random.Random) -> Any:
    """As :func:`strange_value`, without values that only a text can contain."""
    while _is_raw(value := strange_value(rng)):
        pass
    return value


def _is_raw(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_is_raw, value))
    return isinstance(value, str) and value.startswith(RAW)


def mutate_tree(tree: Any, rng: random.Random, value: Callable[[random.Random], Any] = strange_value) -> Any:
    """A copy of mappings and lists with one to three nodes replaced, removed, renamed or moved."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        places = list(_places(tree))
        if not places or rng.random() < 0.03:
            return value(rng)
        parent, key = rng.choice(places)
        action = rng.randrange(10)
        if action == 0:
            del parent[key]
        elif action == 1 and isinstance(parent, dict):
            name = rng.choice(["", "name", "naem", "x" * 300, str(key).upper(), str(key)[:-1]])
            parent[name] = parent.pop(key)
        elif action == 2:
            parent[key] = [parent[key]]
        elif action == 3:
            parent[key] = {"name": parent[key]}
        elif action == 4:
            other, name = rng.choice(places)
            parent[key] = copy.deepcopy(other[name]) if name in _keys(other) else None
        else:
            parent[key] = value(rng)
    return tree


def _places(tree: Any) -> Any:
    for key in _keys(tree):
        yield tree, key
        yield from _places(tree[key])


def _keys(tree: Any) -> list[Any]:
    return list(tree) if isinstance(tree, dict) else list(range(len(tree))) if isinstance(tree, list) else []


def to_text(tree: Any, *, indent: int | None = None) -> bytes:
    """A tree as JSON, which is also YAML, with marked texts inserted without quotes.

    Lone surrogates become the bytes that they represent in file names, which are not UTF-8.
    """
    text = json.dumps(tree, indent=indent, ensure_ascii=False)
    for raw in RAW_VALUES:
        text = text.replace(json.dumps(RAW + raw, ensure_ascii=False), raw)
    return text.encode("utf-8", "surrogatepass")


def nested(rng: random.Random) -> bytes:
    """A document with very many levels, possibly truncated."""
    opening, closing = rng.choice([("[", "]"), ('{"a": ', "}"), ("- ", ""), ("a:\n", "")])
    depth = rng.choice([1000, _DEEP])
    return (opening * depth + "1" + closing * rng.choice([depth, 0])).encode()


def reencode(data: bytes, rng: random.Random) -> bytes:
    """The text in an unexpected encoding, or bytes that are not text."""
    text = data.decode("utf-8", "surrogateescape")
    return rng.choice(
        [
            lambda: text.encode("utf-16", "replace"),
            lambda: text.encode("utf-16-le", "replace"),
            lambda: text.encode("utf-32", "replace"),
            lambda: b"\xef\xbb\xbf" + data,
            lambda: data.replace(b"a", b"\xe9"),
            lambda: data.replace(b"a", b"\x00"),
            lambda: gzip.compress(data, mtime=0),
            lambda: b"\x7fELF\x02\x01\x01" + data,
            lambda: data.replace(b"\n", b"\r"),
            lambda: data.replace(b"\n", b"\r\n"),
            lambda: data.replace(b"\n", b"\xe2\x80\xa8"),
            lambda: b"\xff\xfe" + data,
        ]
    )()


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to four random changes to any kind of file, half of them near its start."""
    for _ in range(rng.choice([1, 1, 2, 4])):
        if not data:
            return bytes(rng.randrange(256) for _ in range(rng.randrange(20)))
        start = rng.randrange(min(len(data), rng.choice([64, 1024, len(data)])) or 1)
        length = rng.choice([1, 1, 2, 4, 8, 64, 1000])
        span = data[start : start + length]
        action = rng.randrange(9)
        if action == 0:
            new = bytes(byte ^ 1 << rng.randrange(8) for byte in span)
        elif action == 1:
            new = bytes(rng.randrange(256) for _ in span)
        elif action == 2:
            new = bytes([rng.choice([0, 0xFF, 0x7F, 0x80])]) * len(span)
        elif action == 3:
            new = b""
        elif action == 4:
            new = span * rng.choice([2, 3, 20])
        elif action == 5:
            new = span + bytes(rng.randrange(256) for _ in range(rng.choice([1, 4, 100])))
        elif action == 6:
            other = rng.randrange(len(data))
            new = data[other : other + length]
        elif action == 7:
            number = rng.choice([0, 1, 2**31 - 1, 2**32 - 1, 2**31, 2**24])
            new = struct.pack(rng.choice("<>") + "I", number)
        else:
            data, new, span = data[:start] if rng.random() < 0.5 else data[: -start or None], b"", b""
        data = data[:start] + new + data[start + len(span) :]
    return data


def mutate_rows(data: bytes, rng: random.Random, separator: bytes) -> bytes:
    """A table with changed fields, rows or separators."""
    rows = [row.split(separator) for row in data.split(b"\n") if row]
    ends = b"\n"
    for _ in range(rng.choice([1, 1, 2, 5])):
        if not rows:
            break
        row = rng.randrange(len(rows))
        column = rng.randrange(len(rows[row]) or 1)
        action = rng.randrange(8)
        if action < 4 and rows[row]:
            rows[row][column] = rng.choice(_FIELDS)
        elif action == 4:
            rows.insert(rng.randrange(len(rows)), rows[row][: rng.randrange(6)] + [b"0"] * rng.randrange(3))
        elif action == 5:
            del rows[row][column:]
        elif action == 6:
            separator = rng.choice([b" ", b",", b"\t", b";", b"|", b"::", b"  ", b"\x0b", b","])
        else:
            ends = rng.choice([b"\r", b"\r\n", b"\n\n", b"\n\r", b"\x0c", b",\n", b" \n", b"\x1a\n"])
    return ends.join(separator.join(row) for row in rows) + rng.choice([ends, b"", b"\n"])


_FIELDS = (
    b"", b" ", b"-1", b"0", b"1.0", b"1e400", b"-1e400", b"inf", b"nan", b"NaN", b"9" * 6000, b"x" * 140_000,
    b"2147483648", b"9223372036854775808", b"-9223372036854775809", b'"unclosed', b'"a""b"', b"'", b"\x00",
    b"\xff\xfe", b"\xed\xa0\x80", "\u0663".encode(), "\u2028".encode(), b"0x10", b"1_0", b"+1", b"1,5", b"#",
    b"\r", b"None", b"true", b"../../x", b"~", b"file:x.mp4", b"http://127.0.0.1:9/x.mp4", b"s3://b/x", b"%s",
    b"a:b.mp4", b"-", b"00000000000000000001", b"1e5", b"1e-400", "\ufeff".encode(),
)  # fmt: skip


def mutate_document(tree: Any, rng: random.Random) -> bytes:
    """A JSON or YAML document from a tree, damaged as a tree, a text or bytes."""
    choice = rng.random()
    if choice < 0.7:
        return to_text(mutate_tree(tree, rng), indent=rng.choice([None, 1]))
    whole = to_text(tree, indent=rng.choice([None, 1]))
    if choice < 0.8:
        return mutate_bytes(whole, rng)
    if choice < 0.92:
        return reencode(whole, rng)
    return nested(rng)


def merged(tree: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two trees of mappings; values of the second one win."""
    both = dict(tree)
    for key, value in more.items():
        own = both.get(key)
        both[key] = merged(own, value) if isinstance(own, dict) and isinstance(value, dict) else value
    return both
