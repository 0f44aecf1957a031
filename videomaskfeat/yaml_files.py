"""YAML files: the only parser and writer of YAML. Size, depth and aliases are checked first."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

import yaml

from videomaskfeat.errors import UserError
from videomaskfeat.texts import LARGEST_INTEGER, read_text, show_text

YAML_BYTES = 1 << 18
"""Maximum size of a YAML file; the longest config of the package has about 10,000 bytes."""
_DEPTH = 16  # levels of nesting
_NODES = 10_000  # after the expansion of aliases


def parse_yaml(text: str, name: str, *, last_key: bool = False) -> Any:
    """Parse YAML to plain data: mappings with text keys, lists, text, numbers, booleans and None.

    Depth and aliases are counted before the document is built: libyaml crashes on deep nesting.

    Args:
        text: one document.
        name: name of the file or argument, for messages.
        last_key: of a repeated key, take the last value, as PyYAML does, instead of an error.

    Raises:
        UserError: not YAML, a tag of another type, a repeated key or one that is not text, more than 16
            levels, an anchor that contains itself, or aliases that expand to more than 10,000 values.
    """
    if len(text) > YAML_BYTES:
        raise UserError(f"{name} has {len(text)} characters; YAML may have {YAML_BYTES} at most")
    # libyaml rejects the escapes of lone surrogates, which represent bytes of file names that are not UTF-8.
    loader: Any = _PlainLoader if re.search(r"\\[uU](?:0000)?[dD][89a-fA-F]", text) else _FastLoader
    if last_key:
        loader = type(loader.__name__, (loader,), {"last_key": True})
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


def read_yaml(path: str | os.PathLike[str], *, what: str = "a YAML file", last_key: bool = False) -> Any:
    """The data of a YAML file; see :func:`read_text` and :func:`parse_yaml`."""
    return parse_yaml(read_text(path, what=what, limit=YAML_BYTES), os.fspath(path), last_key=last_key)


def dump_yaml(plain: Any) -> str:
    """Write plain data as YAML; :func:`parse_yaml` restores it, including bytes of file names."""
    return str(yaml.dump(plain, Dumper=_PlainDumper, allow_unicode=True, sort_keys=False))


def _check_events(text: str, name: str, loader: Any) -> None:
    """Check the events of a document for the errors of :func:`parse_yaml`, before it is built."""
    open_nodes: list[list[Any]] = [["", 0]]  # anchor, values in it
    sizes: dict[str, int] = {}  # values that an alias stands for
    documents = 0
    for event in yaml.parse(text, Loader=loader):
        where = f"{name}, line {event.start_mark.line + 1}" if event.start_mark else name
        documents += isinstance(event, yaml.DocumentStartEvent)
        if documents > 1:
            raise UserError(f"{where}: a second YAML document begins; only one is allowed")
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
                if len(open_nodes) > _DEPTH + 1:
                    raise UserError(f"{where}: YAML nested more than {_DEPTH} levels deep")
        if sum(size for _, size in open_nodes) > _NODES:
            raise UserError(
                f"{where}: more than {_NODES} values (an alias counts as often as it is used); "
                "make the file smaller"
            )


def _check_tag(tag: str | None, where: str) -> None:
    core = tag is None or tag in ("", "!")
    plain = ("str", "int", "float", "bool", "null", "map", "seq", "merge")
    if not core and str(tag).removeprefix("tag:yaml.org,2002:") not in plain:
        short = str(tag).replace("tag:yaml.org,2002:", "!!")
        raise UserError(f"{where}: the tag {show_text(short)} is not supported; write plain values")


def _constructor_error(problem: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _construct_mapping(loader: Any, node: yaml.Node) -> Iterator[dict[str, Any]]:
    """A mapping with unique text keys; merged keys may be overridden."""
    if not isinstance(node, yaml.MappingNode):
        raise _constructor_error("expected a mapping", node)
    keys: set[str] = set()
    for key, _ in node.value:
        value = key.value if isinstance(key, yaml.ScalarNode) else key.id
        if key.tag == "tag:yaml.org,2002:merge":
            continue
        if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:value"):
            name = show_text(value) or "null"
            raise _constructor_error(
                f"the key {name} is not text; put it in double quotes, or correct it", key
            )
        if value in keys and not getattr(loader, "last_key", False):
            raise _constructor_error(f"the key {show_text(value)!r} is repeated; keep one", key)
        keys.add(value)
    result: dict[str, Any] = {}
    yield result
    loader.flatten_mapping(node)
    for key, inner in node.value:
        result[key.value] = loader.construct_object(inner, deep=True)


def _construct_scalar(loader: Any, node: yaml.Node) -> int | float | bool:
    """A number or a boolean; an error with its line if it is malformed or too long."""
    kind = node.tag.rpartition(":")[2]
    try:
        value: int | float | bool = getattr(loader, f"construct_yaml_{kind}")(node)
        if kind == "int" and abs(value) >= LARGEST_INTEGER:
            raise ValueError
    except (ValueError, KeyError, OverflowError) as error:
        problem = f"{show_text(node.value, 40)!r} is not a valid {kind} of at most 64 bits"
        raise _constructor_error(problem, node) from error
    return value


class _PlainLoader(yaml.SafeLoader):
    """The parser in Python, for escapes that libyaml rejects."""


class _FastLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The parser of libyaml, if PyYAML was built with it."""


class _PlainDumper(yaml.SafeDumper):
    """The writer in Python, which escapes bytes that are not UTF-8 and quotes text like 1e-3."""


# Includes numbers such as 1e-6, which are text in YAML 1.1.
_NUMBER = re.compile(
    r"^(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
for _class in (_PlainDumper, _PlainLoader, _FastLoader):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+0123456789."))
for _loader in (_PlainLoader, _FastLoader):
    _loader.yaml_implicit_resolvers = {  # dates remain text
        first: [(tag, form) for tag, form in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in _loader.yaml_implicit_resolvers.items()
    }
    _loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)
    _loader.add_constructor("tag:yaml.org,2002:value", lambda loader, node: node.value)  # the text "="
    for _kind in ("int", "float", "bool"):
        _loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _construct_scalar)
