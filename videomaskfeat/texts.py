"""Reading of text files: lists, configs, JSON, label maps. Size, encoding and nesting are checked first."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from videomaskfeat.errors import UserError
from videomaskfeat.io import open_file

JSON_BYTES = 1 << 28
"""Maximum size of a JSON file; the list of Something-Something-v2 has 30 million bytes."""
LIST_BYTES = 1 << 31
"""Maximum size of a list; ten million rows have about 10^9 bytes."""
_JSON_DEPTH = 64  # levels of nesting
LARGEST_INTEGER = 2**63
"""Bound of the integers in JSON and YAML."""

_BOMS = (  # the longer ones first: UTF-32 begins like UTF-16
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_UNPACK = "unpack it first"
_KINDS = (  # first bytes, kind, remedy (empty: another file is needed)
    (b"\x1f\x8b", "a gzip file", _UNPACK),
    (b"PK\x03\x04", "a zip file, as PyTorch's checkpoints are", ""),
    (b"BZh", "a bzip2 file", _UNPACK),
    (b"\xfd7zXZ\x00", "an xz file", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd file", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z file", _UNPACK),
    (b"\x7fELF", "an executable (ELF)", ""),
    (b"\x93NUMPY", "a NumPy array", ""),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", ""),
    (b"SQLite format 3\x00", "an SQLite database", ""),
    (b"%PDF-", "a PDF file", ""),
    (b"\x1aE\xdf\xa3", "a video", ""),
    (b"\xff\xd8\xff", "a picture", ""),
    (b"\x89PNG", "a picture", ""),
    (b"GIF8", "a picture", ""),
    (b"version https://git-lfs", "a Git LFS pointer", "fetch the file itself with `git lfs pull`"),
)


def read_text(path: str | os.PathLike[str], *, what: str, limit: int = JSON_BYTES) -> str:
    """The text of a file, with ``\\n`` as its only line end.

    Args:
        path: a regular file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.
        what: noun phrase for the expected content, for messages: ``a label map``.
        limit: maximum size in bytes.

    Raises:
        UserError: the file does not exist, is not regular, is too large, or is not text.
    """
    name = os.fspath(path)
    text = decode_text(_read(path, what, limit), name, what=what)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_rows(path: str | os.PathLike[str], *, what: str = "a list", remedy: str = "") -> bytes:
    """The bytes of a list with ``\\n`` as the only line end, in UTF-8 if it has a byte order mark.

    Bytes that are not UTF-8 do not change, since file names may contain any bytes.

    Raises:
        UserError: as :func:`read_text`.
    """
    return plain_rows(_read(path, what, LIST_BYTES, remedy), os.fspath(path), what=what)


@contextmanager
def open_rows(path: str | os.PathLike[str], *, what: str) -> Iterator[IO[str]]:
    """Open a large list, to read it line by line; bytes that are not UTF-8 become lone surrogates.

    Raises:
        UserError: as :func:`read_text`.
    """
    name = os.fspath(path)
    with open_file(name, "rb") as file:
        start: bytes = file.read(1 << 16)
        size = file.seek(0, os.SEEK_END)
    _check_start(start, name, what)
    _check_length(size, name, what, LIST_BYTES)
    encoding = _marked_encoding(start) or "utf-8"
    errors = "surrogateescape" if encoding.startswith("utf-8") else "replace"
    with open_file(name, encoding=encoding, errors=errors) as text:
        yield text


def plain_rows(data: bytes, name: str, *, what: str = "a list") -> bytes:
    """The bytes of a list, converted as in :func:`read_rows`."""
    _check_kind(data, name, what)
    encoding = _marked_encoding(data)
    if encoding and encoding != "utf-8-sig":
        data = decode_text(data, name, what=what).encode()
    elif encoding:
        data = data[3:]
    _check_nul_bytes(data, name, what)
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def decode_text(data: bytes, name: str, *, what: str) -> str:
    """Decode bytes in the encoding of their byte order mark, in UTF-8 without one.

    Raises:
        UserError: another kind of file or another encoding; names the probable one.
    """
    _check_start(data, name, what)
    encoding = _marked_encoding(data)
    try:
        text = data.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        if encoding and encoding != "utf-8-sig":
            raise UserError(
                f"{name} has the byte order mark of {encoding.upper()} and is not valid {encoding.upper()} "
                f"(byte {error.start}); write {what} in UTF-8"
            ) from error
        line = data.count(b"\n", 0, error.start) + 1
        likely = _likely_encoding(data)
        raise UserError(
            f"{name}:{line}: byte 0x{data[error.start]:02x} is not UTF-8, the encoding is probably {likely}; "
            f"convert it: iconv -f {likely} -t utf-8 {name}"
        ) from error
    if "\0" in text:
        raise UserError(f"{name}:{text.count(chr(10), 0, text.index(chr(0))) + 1}: NUL character in {what}")
    return text


def _check_kind(data: bytes, name: str, what: str, remedy: str = "") -> None:
    """Raise UserError if the first bytes are those of an archive, a checkpoint, a video or another kind."""
    kind = _file_kind(data[:512])
    if kind:
        raise UserError(f"{name} is {kind[0]}, not {what}; {kind[1] or remedy or f'give {what}'}")


def _file_kind(start: bytes) -> tuple[str, str] | None:
    """The kind of a file by its first bytes, and a remedy (may be empty); None if it may be text."""
    for mark, kind, remedy in _KINDS:
        if start.startswith(mark):
            return kind, remedy
    if start[4:8] == b"ftyp" or (start[:4] == b"RIFF" and start[8:11] == b"AVI"):
        return "a video", ""
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "a picture", ""
    if len(start) > 1 and start[0] == 0x80 and 2 <= start[1] <= 5:
        return "a pickle file", ""
    if start[257:262] == b"ustar":
        return "a tar file", _UNPACK
    if start[8:10] == b'{"' and int.from_bytes(start[:8], "little") < 1 << 32 and b"\0" in start[:8]:
        return "a safetensors file", ""
    return None


def parse_json(text: str | bytes, name: str, *, remedy: str = "", allow_nan: bool = False) -> Any:
    """Parse JSON to plain data.

    Args:
        text: content of the file; bytes are decoded by :func:`decode_text`.
        name: name of the file, for messages.
        remedy: end of the message if it is not JSON.
        allow_nan: accept NaN and infinite numbers.

    Raises:
        UserError: not JSON; a repeated key in one object; an integer beyond 64 bits; more than 64 levels.
    """
    if isinstance(text, bytes):
        text = decode_text(text, name, what="JSON")
    finite: dict[str, Any] = {} if allow_nan else {"parse_constant": _refuse_nan, "parse_float": _parse_float}
    tail = f"; {remedy}" if remedy else ""
    too_deep = UserError(f"{name}: its JSON is nested more than {_JSON_DEPTH} levels deep{tail}")
    try:
        value = json.loads(text, object_pairs_hook=_build_object, parse_int=_parse_integer, **finite)
    except RecursionError as error:
        raise too_deep from error
    except ValueError as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{name}{line}: not valid JSON ({error}){tail}") from error
    if _is_deeper_than(value, _JSON_DEPTH):
        raise too_deep
    return value


def read_json(path: str | os.PathLike[str], *, what: str, remedy: str = "") -> Any:
    """The data of a JSON file; see :func:`read_text` and :func:`parse_json`."""
    return parse_json(read_text(path, what=what), os.fspath(path), remedy=remedy)


def json_rows(path: str | os.PathLike[str], *, what: str) -> Iterator[dict[str, Any] | None]:
    """The objects of a JSON-lines file; None for any other line, as a killed process leaves."""
    data = _read(path, what, LIST_BYTES)
    for line in data.decode("utf-8", "replace").split("\n"):
        if not line.strip():
            continue
        try:
            row = parse_json(line, os.fspath(path), allow_nan=True)
        except UserError:
            row = None
        yield row if isinstance(row, dict) else None


def show_text(value: object, longest: int = 80) -> str:
    """A value for a message: on one line, without control characters, shortened in the middle."""
    text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in str(value)[: 1 << 12])
    return text if len(text) <= longest else f"{text[: longest // 2]}...{text[-(longest // 2 - 3) :]}"


def printable(text: str) -> str:
    """Text that is safe to print on any terminal.

    Bytes that are not UTF-8 become ``\\xe9``, control characters except line ends and tabs ``\\x1b``.
    """
    return text if text.isprintable() else "".join(map(_printable_letter, text))


def printable_name(name: str) -> str:
    """A name as :func:`printable` text on one line: line ends become ``\\n``, tabs ``\\t``."""
    return printable(name).replace("\n", "\\n").replace("\t", "\\t")


def _printable_letter(letter: str) -> str:
    if letter.isprintable() or letter in "\n\t":
        return letter
    if "\udc80" <= letter <= "\udcff":  # a byte that is not UTF-8
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode()


def _read(path: str | os.PathLike[str], what: str, limit: int, remedy: str = "") -> bytes:
    """The bytes of a file, whose start is checked before the rest is read."""
    name = os.fspath(path)
    with open_file(name, "rb") as file:
        start: bytes = file.read(1 << 16)
        _check_start(start, name, what, remedy)
        data = start + file.read(limit - len(start) + 1)
    _check_length(len(data), name, what, limit)
    return data


def _check_start(start: bytes, name: str, what: str, remedy: str = "") -> None:
    _check_kind(start, name, what, remedy)
    if not _marked_encoding(start):
        _check_nul_bytes(start, name, what)


def _check_length(length: int, name: str, what: str, limit: int) -> None:
    if length > limit:
        raise UserError(f"{name} has more than {limit} bytes, too many for {what}")


def _marked_encoding(data: bytes) -> str:
    return next((encoding for mark, encoding in _BOMS if data.startswith(mark)), "")


def _check_nul_bytes(data: bytes, name: str, what: str) -> None:
    """Raise UserError for NUL bytes; in UTF-16 and UTF-32 without a byte order mark they form a pattern."""
    place = data.find(b"\0")
    if place < 0:
        return
    start = data[: min(len(data), 4096) // 4 * 4]
    filled = tuple(column for column in range(4) if start[column::4].strip(b"\0"))
    known = {(0, 2): "utf-16le", (1, 3): "utf-16be", (0,): "utf-32le", (3,): "utf-32be"}
    encoding = known.get(filled)
    if encoding and len(start) >= 8:
        raise UserError(
            f"{name} is probably {encoding.upper()} without a byte order mark; convert it: "
            f"iconv -f {encoding} -t utf-8 {name}"
        )
    line = data.count(b"\n", 0, place) + 1
    raise UserError(f"{name}:{line}: NUL byte, so this is not text (UTF-8); give {what}")


def _likely_encoding(data: bytes) -> str:
    """The probable encoding: one-byte letters mostly occur alone between ASCII, multi-byte ones in runs."""
    if not re.search(rb"[\x81-\xfe]{4}", data):
        return "windows-1252"
    try:
        data.decode("gb18030")
        return "gb18030"
    except UnicodeDecodeError:
        return "shift_jis"


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"the key {show_text(name)!r} is repeated in one object")
        result[name] = value
    return result


def _parse_integer(text: str) -> int:
    if len(text) > 20 or abs(int(text)) >= LARGEST_INTEGER:
        raise ValueError(f"the integer {show_text(text, 20)} has more than 64 bits")
    return int(text)


def _parse_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {show_text(text, 20)} is too large")
    return value


def _refuse_nan(text: str) -> float:
    raise ValueError(f"{text} is not a finite number")


def _is_deeper_than(value: Any, depth: int) -> bool:
    """Whether data has more levels of lists and mappings; without recursion."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(depth):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
    return bool(level)
