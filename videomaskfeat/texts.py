"""Text from outside: lists, configs, JSON, label maps. Its size, encoding and nesting are checked first."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import yaml

from videomaskfeat.errors import UserError
from videomaskfeat.io import open_file

YAML_BYTES = 1 << 18
"""Largest YAML file in bytes; the longest config of the package has some 10,000."""
JSON_BYTES = 1 << 28
"""Largest JSON file in bytes; the list of Something-Something-v2 has 30 million."""
LIST_BYTES = 1 << 31
"""Largest list in bytes; ten million rows have some 10^9."""
_YAML_DEPTH, _JSON_DEPTH = 16, 64  # levels of nesting
_YAML_NODES = 10_000  # after the expansion of aliases
_LARGEST_INTEGER = 2**63

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
        what: noun phrase of what is expected, for messages: ``a label map``.
        limit: largest size in bytes.

    Raises:
        UserError: no such file, one that is not regular, too large, or not text.
    """
    name = os.fspath(path)
    text = decode_text(_read(path, what, limit), name, what=what)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_rows(path: str | os.PathLike[str], *, what: str = "a list", remedy: str = "") -> bytes:
    """The bytes of a list, in UTF-8 if its encoding is known by its mark, with ``\\n`` as the only line end.

    Bytes that are not UTF-8 stay as they are, since file names may have any.

    Raises:
        UserError: as :func:`read_text`.
    """
    return plain_rows(_read(path, what, LIST_BYTES, remedy), os.fspath(path), what=what)


@contextmanager
def open_rows(path: str | os.PathLike[str], *, what: str) -> Iterator[IO[str]]:
    """A large list, to be read line by line; bytes that are not UTF-8 become lone surrogates.

    Raises:
        UserError: as :func:`read_text`.
    """
    name = os.fspath(path)
    with open_file(name, "rb") as file:
        start: bytes = file.read(1 << 16)
        size = file.seek(0, os.SEEK_END)
    _check_start(start, name, what)
    if size > LIST_BYTES:
        raise UserError(f"{name}: has more than {LIST_BYTES} bytes, too many for {what}")
    encoding = _marked_encoding(start) or "utf-8"
    errors = "surrogateescape" if encoding.startswith("utf-8") else "replace"
    with open_file(name, encoding=encoding, errors=errors) as text:
        yield text


def plain_rows(data: bytes, name: str, *, what: str = "a list") -> bytes:
    """Bytes of a list as :func:`read_rows` returns them."""
    refuse_other_kinds(data, name, what=what)
    encoding = _marked_encoding(data)
    if encoding and encoding != "utf-8-sig":
        data = decode_text(data, name, what=what).encode()
    elif encoding:
        data = data[3:]
    _refuse_nul(data, name, what)
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in data else data


def decode_text(data: bytes, name: str, *, what: str) -> str:
    """Bytes as text, in the encoding of their byte order mark, else UTF-8.

    Raises:
        UserError: they are another kind of file, or not in that encoding; names the probable one.
    """
    refuse_other_kinds(data, name, what=what)
    encoding = _marked_encoding(data)
    if not encoding:
        _refuse_nul(data, name, what)
    try:
        text = data.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        if encoding and encoding != "utf-8-sig":
            raise UserError(
                f"{name}: begins as {encoding.upper()} and is not valid {encoding.upper()} (byte "
                f"{error.start}); write {what} in UTF-8"
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


def refuse_other_kinds(data: bytes, name: str, *, what: str, remedy: str = "") -> None:
    """Refuse a file that begins as an archive, a checkpoint, a video or another known kind does.

    Raises:
        UserError: names the kind.
    """
    kind = file_kind(data[:512])
    if kind:
        raise UserError(f"{name}: is {kind[0]}, not {what}; {kind[1] or remedy or f'give {what}'}")


def file_kind(start: bytes) -> tuple[str, str] | None:
    """The kind of a file by its first bytes, and a remedy (or an empty text); None if it may be text."""
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
    """JSON as plain data.

    Args:
        text: of the file; bytes are decoded as :func:`decode_text` does.
        name: of the file, for messages.
        remedy: end of the message if it is not JSON.
        allow_nan: accept NaN and infinite numbers.

    Raises:
        UserError: not JSON; a key twice in one object; an integer beyond 64 bits; more than 64 levels.
    """
    if isinstance(text, bytes):
        text = decode_text(text, name, what="JSON")
    finite: dict[str, Any] = {} if allow_nan else {"parse_constant": _refuse_nan, "parse_float": _finite}
    tail = f"; {remedy}" if remedy else ""
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_int=_integer, **finite)
    except RecursionError as error:
        raise UserError(f"{name}: its JSON is nested more than {_JSON_DEPTH} levels deep{tail}") from error
    except ValueError as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{name}{line}: is not JSON ({error}){tail}") from error
    if _deeper_than(value, _JSON_DEPTH):
        raise UserError(f"{name}: its JSON is nested more than {_JSON_DEPTH} levels deep{tail}")
    return value


def read_json(path: str | os.PathLike[str], *, what: str, remedy: str = "") -> Any:
    """The data of a JSON file; see :func:`read_text` and :func:`parse_json`."""
    return parse_json(read_text(path, what=what), os.fspath(path), remedy=remedy)


def json_rows(path: str | os.PathLike[str], *, what: str) -> Iterator[dict[str, Any] | None]:
    """The objects of a JSON-lines file; None for a line that is not one, as a killed process leaves."""
    data = _read(path, what, LIST_BYTES)
    for line in data.decode("utf-8", "replace").split("\n"):
        if not line.strip():
            continue
        try:
            row = parse_json(line, os.fspath(path), allow_nan=True)
        except UserError:
            row = None
        yield row if isinstance(row, dict) else None


def parse_yaml(text: str, name: str) -> Any:
    """YAML as plain data: mappings with text as keys, lists, text, numbers, booleans and None.

    Depth and aliases are counted before anything is built: libyaml crashes on deep nesting.

    Args:
        text: one document.
        name: of the file or argument, for messages.

    Raises:
        UserError: not YAML, a tag of another type, a key twice or one that is not text, more than 16 levels,
            an anchor that contains itself, or aliases that expand to more than 10,000 values.
    """
    if len(text) > YAML_BYTES:
        raise UserError(f"{name}: has {len(text)} characters; YAML may have {YAML_BYTES} at most")
    # libyaml refuses the escapes of lone surrogates, which stand for bytes of file names that are not UTF-8
    loader = _PlainLoader if re.search(r"\\[uU](?:0000)?[dD][89a-fA-F]", text) else _FastLoader
    try:
        _check_events(text, name, loader)
        return yaml.load(text, Loader=loader)
    except UserError:
        raise
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).strip().splitlines()[0]
        raise UserError(f"{name}{line}: not valid YAML: {problem}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{name}: not valid YAML: {str(error).strip().splitlines()[0]}") from error


def read_yaml(path: str | os.PathLike[str], *, what: str = "a YAML file") -> Any:
    """The data of a YAML file; see :func:`read_text` and :func:`parse_yaml`."""
    return parse_yaml(read_text(path, what=what, limit=YAML_BYTES), os.fspath(path))


def dump_yaml(plain: Any) -> str:
    """Plain data as YAML from which :func:`parse_yaml` restores it, bytes of file names included."""
    return str(yaml.dump(plain, Dumper=_PlainDumper, allow_unicode=True, sort_keys=False))


def show_text(value: object, longest: int = 80) -> str:
    """A value for a message: on one line, without control characters, and shortened in the middle."""
    text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in str(value)[: 1 << 12])
    return text if len(text) <= longest else f"{text[: longest // 2]}...{text[-(longest // 2 - 3) :]}"


def printable(text: str) -> str:
    """Text that neither fails nor controls a terminal, whatever names of files it holds.

    Bytes that are not UTF-8 become ``\\xe9``, control characters besides line ends and tabs ``\\x1b``.
    """
    return "".join(map(_printable_letter, text)) if not text.isprintable() else text


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
    """The bytes of a file; what is not text is refused before all of it is read."""
    name = os.fspath(path)
    with open_file(name, "rb") as file:
        start: bytes = file.read(1 << 16)
        _check_start(start, name, what, remedy)
        data = start + file.read(limit - len(start) + 1)
    if len(data) > limit:
        raise UserError(f"{name}: has more than {limit} bytes, too many for {what}")
    return data


def _check_start(start: bytes, name: str, what: str, remedy: str = "") -> None:
    refuse_other_kinds(start, name, what=what, remedy=remedy)
    if not _marked_encoding(start):
        _refuse_nul(start, name, what)


def _marked_encoding(data: bytes) -> str:
    return next((encoding for mark, encoding in _BOMS if data.startswith(mark)), "")


def _refuse_nul(data: bytes, name: str, what: str) -> None:
    """Text in UTF-8 has no NUL bytes; in UTF-16 and UTF-32 without a mark they stand in a pattern."""
    place = data.find(b"\0")
    if place < 0:
        return
    start = data[: min(len(data), 4096) // 4 * 4]
    filled = tuple(column for column in range(4) if start[column::4].strip(b"\0"))
    known = {(0, 2): "utf-16le", (1, 3): "utf-16be", (0,): "utf-32le", (3,): "utf-32be"}
    encoding = known.get(filled)
    if encoding and len(start) >= 8:
        raise UserError(
            f"{name}: is probably {encoding.upper()} without a byte order mark; convert it: "
            f"iconv -f {encoding} -t utf-8 {name}"
        )
    line = data.count(b"\n", 0, place) + 1
    raise UserError(f"{name}:{line}: NUL byte, so this is not text (UTF-8); give {what}")


def _likely_encoding(data: bytes) -> str:
    """The probable encoding: letters of one byte mostly stand alone between ASCII, others in runs."""
    if not re.search(rb"[\x81-\xfe]{4}", data):
        return "windows-1252"
    try:
        data.decode("gb18030")
        return "gb18030"
    except UnicodeDecodeError:
        return "shift_jis"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise ValueError(f"the key {show_text(twice)!r} stands twice in one object")
    return result


def _integer(text: str) -> int:
    if len(text) > 20 or abs(int(text)) >= _LARGEST_INTEGER:
        raise ValueError(f"the integer {show_text(text, 20)} has more than 64 bits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {show_text(text, 20)} is too large")
    return value


def _refuse_nan(text: str) -> float:
    raise ValueError(f"{text} is not a finite number")


def _deeper_than(value: Any, depth: int) -> bool:
    """Whether data has more levels of lists and mappings; level by level, without recursion."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(depth):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
    return bool(level)


def _check_events(text: str, name: str, loader: Any) -> None:
    """Refuse, event by event, what a document may not have (see :func:`parse_yaml`)."""
    open_nodes: list[list[Any]] = [["", 0]]  # anchor, values in it
    sizes: dict[str, int] = {}  # values that an alias stands for
    documents = 0
    for event in yaml.parse(text, Loader=loader):
        where = f"{name}, line {event.start_mark.line + 1}" if event.start_mark else name
        documents += isinstance(event, yaml.DocumentStartEvent)
        if documents > 1:
            raise UserError(f"{where}: a second YAML document begins; give one")
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_nodes.pop()
            sizes[anchor] = size
            open_nodes[-1][1] += size
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_nodes):
                raise UserError(f"{where}: the anchor &{show_text(event.anchor)} contains itself")
            open_nodes[-1][1] += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.NodeEvent):
            _check_tag(event.tag, where)
            open_nodes[-1][1] += 1
            if isinstance(event, yaml.ScalarEvent):
                sizes[event.anchor or ""] = 1
            else:
                open_nodes.append([event.anchor or "", 0])
                if len(open_nodes) > _YAML_DEPTH + 1:
                    raise UserError(f"{where}: YAML nested more than {_YAML_DEPTH} levels deep")
        if sum(size for _, size in open_nodes) > _YAML_NODES:
            raise UserError(f"{where}: more than {_YAML_NODES} values (aliases count as what they stand for)")


def _check_tag(tag: str | None, where: str) -> None:
    core = tag is None or tag in ("", "!")
    plain = ("str", "int", "float", "bool", "null", "map", "seq", "merge")
    if not core and str(tag).removeprefix("tag:yaml.org,2002:") not in plain:
        short = str(tag).replace("tag:yaml.org,2002:", "!!")
        raise UserError(f"{where}: the tag {show_text(short)} is not supported; write plain values")


def _construct_mapping(loader: Any, node: yaml.Node) -> Iterator[dict[str, Any]]:
    """A mapping whose keys are text, each once; merged keys may be overridden."""
    if not isinstance(node, yaml.MappingNode):
        raise yaml.constructor.ConstructorError(None, None, "expected a mapping", node.start_mark)
    keys: set[str] = set()
    for key, _ in node.value:
        value = key.value if isinstance(key, yaml.ScalarNode) else key.id
        if key.tag == "tag:yaml.org,2002:merge":
            continue
        if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:value"):
            raise yaml.constructor.ConstructorError(
                None,
                None,
                f"the key {show_text(value) or 'null'} is not text; put it in double quotes, or correct it",
                key.start_mark,
            )
        if value in keys:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {show_text(value)!r} stands twice; keep one", key.start_mark
            )
        keys.add(value)
    result: dict[str, Any] = {}
    yield result
    loader.flatten_mapping(node)
    for key, inner in node.value:
        result[key.value] = loader.construct_object(inner, deep=True)


def _construct_scalar(loader: Any, node: yaml.Node) -> int | float | bool:
    """A number or a boolean; one that is malformed or too long is refused with its line."""
    kind = node.tag.rpartition(":")[2]
    try:
        value: int | float | bool = getattr(loader, f"construct_yaml_{kind}")(node)
        if kind == "int" and abs(value) >= _LARGEST_INTEGER:
            raise ValueError
    except (ValueError, KeyError, OverflowError) as error:
        raise yaml.constructor.ConstructorError(
            None,
            None,
            f"{show_text(node.value, 40)!r} is not a valid {kind} of at most 64 bits",
            node.start_mark,
        ) from error
    return value


# Numbers such as 1e-6, which YAML 1.1 takes for text.
_NUMBER = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
)


class _PlainLoader(yaml.SafeLoader):
    """Python's own parser, for escapes that libyaml refuses."""


class _FastLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """libyaml, if PyYAML was built with it."""


class _PlainDumper(yaml.SafeDumper):
    """Python's own writer, which escapes what is not UTF-8 and quotes text that looks like a number."""


_PlainDumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(f"^(?:{_NUMBER.pattern})$"), list("-+0123456789.")
)
for _loader in (_PlainLoader, _FastLoader):
    _loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(f"^(?:{_NUMBER.pattern})$"), list("-+0123456789.")
    )
    _loader.yaml_implicit_resolvers = {  # dates stay text
        first: [(tag, form) for tag, form in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in _loader.yaml_implicit_resolvers.items()
    }
    _loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)
    _loader.add_constructor("tag:yaml.org,2002:value", lambda loader, node: node.value)  # the text "="
    for _kind in ("int", "float", "bool"):
        _loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _construct_scalar)
