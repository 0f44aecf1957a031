"""Reads configs from YAML and from ``section.key=value`` on the command line.

The keys are declared in :mod:`videomaskfeat.config_keys`.
"""

from __future__ import annotations

import math
import os
import re
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from videomaskfeat.config_keys import check_config, current_name, current_word, keys_of, show_value
from videomaskfeat.errors import UserError, nearest
from videomaskfeat.io import exists
from videomaskfeat.texts import show_text
from videomaskfeat.yaml_files import parse_yaml, read_yaml

T = TypeVar("T")
_DEEPEST_KEY = 16  # maximum number of names in an override's key, ``section.key.name``
_LONGEST_INTERPOLATION = 1000  # characters; omegaconf's grammar is recursive
_BOOLS = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(("false", "no", "off", "0"), False)
_WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}
# Errors of omegaconf for trees of the wrong form, besides its own.
_MISFITS = (OmegaConfBaseException, TypeError, AttributeError, ValueError, AssertionError, RecursionError)


@dataclass(frozen=True)
class Override:
    """A value from the command line.

    Attributes:
        name: ``section.key``, or a section, or a name inside a key.
        value: text in YAML, or a list.
        spelling: the user's text, for messages.
        literal: whether the value is plain text instead of YAML, such as a path.
    """

    name: str
    value: Any
    spelling: str
    literal: bool = False

    @classmethod
    def parse(cls, argument: str) -> Override:
        """Read ``section.key=value``.

        Raises:
            UserError: the argument has another form.
        """
        name, equals, value = argument.partition("=")
        if not equals or not name.strip():
            file = argument.endswith((".yaml", ".yml"))
            hint = "write --config before a config file" if file else "see --keys for every key"
            raise UserError(
                f"argument {show_text(repr(argument), 120)} is not of the form section.key=value, such as "
                f"run.seed=1 ({hint})"
            )
        return cls(name.strip(), value, argument)

    @property
    def where(self) -> str:
        """The place of this value, for messages."""
        return f"argument {show_text(repr(self.spelling), 120)}"

    def tree(self) -> dict[str, Any]:
        """The value in its section, as in a file.

        Raises:
            UserError: the value is not YAML, or the name has too many parts.
        """
        names = self.name.split(".")
        if len(names) > _DEEPEST_KEY:
            raise UserError(f"argument {show_text(self.name, 40)!r}: a key has at most {_DEEPEST_KEY} parts")
        tree = self._parse_value()
        for name in reversed(names):
            tree = {name: tree}
        return typing.cast(dict[str, Any], tree)

    def _parse_value(self) -> Any:
        # `key=` is the empty text, as in a shell; `key=null` is None. A file name whose bytes are not UTF-8
        # cannot be YAML.
        if not isinstance(self.value, str) or not self.value or re.search("[\udc80-\udcff]", self.value):
            return self.value
        try:
            return parse_yaml(self.value, "")
        except UserError as error:
            problem = re.sub(r"^(, line \d+)?:? (not valid YAML: )?", "", str(error))
            raise UserError(f"{self.where}: the value is not YAML: {problem}") from error


def shipped_configs() -> dict[str, Path]:
    """Name, such as ``pretrain/sample``, -> file of the configs that come with the package."""
    package = Path(__file__).parent
    folder = next((one for one in (package / "configs", package.parent / "configs") if one.is_dir()), package)
    return {f"{file.parent.name}/{file.stem}": file for file in sorted(folder.glob("*/*.yaml"))}


def locate_config(path: str) -> str:
    """The path, or if there is no such file the config of the package with this name.

    ``configs/pretrain/sample.yaml`` and ``pretrain/sample`` are both names of a config of the package.

    Raises:
        UserError: there is neither, but a config with a similar name.
    """
    if exists(path):
        return path
    name = path.replace(os.sep, "/").removeprefix("configs/").removesuffix(".yaml")
    configs = shipped_configs()
    if name not in configs and (close := nearest(name, configs)):
        raise UserError(f"{path}: no such file or config{close} `videomaskfeat configs` lists all")
    return str(configs.get(name, path))


def load_config(
    schema: type[T],
    path: str | None,
    overrides: Iterable[str | Override] = (),
    *,
    log: Callable[[str], None] = lambda line: None,
    inherit: Callable[[Any, Collection[str]], Mapping[str, Any]] = lambda config, names: {},
) -> T:
    """Read a config: the schema's defaults, then the YAML file, then ``section.key=value`` overrides.

    ``target: pixels`` sets the ``name`` of a section. The file's ``arguments`` belong to the file's name and
    are dropped if an override sets another one. ``log`` receives a line about this, and about a former name.

    ``inherit`` receives the config and the names of the keys that the file and the overrides set, and returns
    values for others.

    A config that does not exist is taken from the package, see :func:`locate_config`.

    Raises:
        UserError: a file that is missing or not YAML, an unknown key (with the nearest known one), a value of
            the wrong type, a number that is not finite or an integer beyond 64 bits, a value that breaks the
            rules of its key, an interpolation such as ``${oc.env:HOME}`` that cannot be resolved, or an
            override without ``=``.
    """
    path = path and locate_config(path)
    known = {one.name: one for one in keys_of(schema)}
    tree: dict[str, dict[str, Any]] = {}
    for name, one in known.items():
        tree.setdefault(name.partition(".")[0], {})[name.partition(".")[2]] = one.value
    parsed = [Override.parse(one) if isinstance(one, str) else one for one in overrides]
    layers = [
        (one.where, _expand(_rename(one.tree(), schema, one.where, log), tree, one.where))
        for one in parsed
        if not one.literal
    ]
    parsed = [replace(one, name=current_name(schema, one.name)) for one in parsed]
    own = {one.name for one in parsed}
    if path:
        layer = _expand(_rename(_read_file(path), schema, path, log), tree, path)
        own |= {f"{section}.{item}" for section, items in layer.items() for item in items}
        _merge(tree, layer)
        for line in _drop_arguments_of_others(tree, [layer for _, layer in layers]):
            log(f"{path}: {line}")
    for _, layer in layers:
        _merge(tree, layer)

    def setter(name: str) -> str:
        places = [(one.where, f"{one.name}.") for one in parsed]
        setters = [where for where, key in places if f"{name}.".startswith(key) or key.startswith(f"{name}.")]
        return setters[-1] if setters else path or "the arguments"

    config = schema()
    for name, value in _resolve(tree, setter):
        try:
            rules = known[name].rules
            value = None if rules.null.isalpha() and value == rules.null else rules.present_choice(value)
            _set(config, name, _convert(value, known[name].kind, known[name].value))
        except ValueError as error:
            either = f", or {rules.null}" if rules.null.isalpha() else ""
            raise UserError(f"{setter(name)}: {name} {show_value(value)} must be {error}{either}") from None
    for override in parsed:
        if override.literal:
            _set(config, override.name, known[override.name].rules.present_choice(override.value))
    check_config(config, lambda name: f"{setter(name)}: ", complete=False)
    own |= {f"{section}.{item}" for _, layer in layers for section, items in layer.items() for item in items}
    for name, value in inherit(config, own).items():
        if name not in own:
            _set(config, name, value)
    return config


def _rename(
    tree: Mapping[Any, Any],
    schema: type,
    where: str,
    log: Callable[[str], None],
    parents: tuple[str, ...] = (),
) -> dict[Any, Any]:
    """A tree of sections, keys and arguments under their present names; ``log`` receives a line for each."""
    renamed = {}
    for name, value in tree.items():
        present = current_word(schema, parents, name) if isinstance(name, str) else name
        if present != name:
            kind = f"{'.'.join(parents)}." if parents else "the section "
            log(f"{where}: {kind}{name} is now named {present}")
        if isinstance(value, dict) and len(parents) < _DEEPEST_KEY:
            value = _rename(value, schema, where, log, (*parents, str(present)))
        renamed[present] = value
    return renamed


def _set(config: Any, name: str, value: Any) -> None:
    section, _, key = name.partition(".")
    setattr(getattr(config, section), key, value)


def _read_file(path: str) -> dict[str, Any]:
    plain = read_yaml(path, what="a config")
    if plain is None:  # empty, or only comments
        return {}
    if not isinstance(plain, dict):
        content = "a list" if isinstance(plain, list) else f"the value {show_text(plain, 40)!r}"
        raise UserError(f"{path} contains {content}; a config must be a mapping of sections (see --keys)")
    return plain


def _expand(layer: dict[str, Any], known: Mapping[str, Mapping[str, Any]], where: str) -> dict[str, Any]:
    """Write ``section: name`` as a mapping, and refuse unknown sections and keys."""
    elsewhere = {item: f"{name}.{item}" for name, items in known.items() for item in items}
    for name, items in layer.items():
        if name not in known:
            close = nearest(str(name), known) or _nearest_elsewhere(str(name), elsewhere)
            close = close or f"; the sections are {', '.join(known)}"
            raise UserError(f"{where}: unknown section {show_text(str(name))!r}{close}")
        if isinstance(items, str) and "name" in known[name] and "${" not in items:
            items = layer[name] = {"name": items}
        if not isinstance(items, dict):
            raise UserError(
                f"{where}: {name} is a section and cannot be set to {show_value(items)}; "
                f"set {name}.KEY instead"
            )
        for item in map(str, items):
            if item not in known[name]:
                own = nearest(item, known[name]).replace("mean '", f"mean '{name}.")
                close = own or _nearest_elsewhere(item, elsewhere)
                close = close or f"; the keys of {name} are {', '.join(known[name])} (--keys explains them)"
                raise UserError(f"{where}: unknown key '{name}.{show_text(item)}'{close}")
    return layer


def _nearest_elsewhere(item: str, elsewhere: Mapping[str, str]) -> str:
    """The same or the nearest key of another section, as the tail of an error message."""
    hint = nearest(item, elsewhere)
    return f"; did you mean {elsewhere[hint.split(chr(39))[1]]!r}?" if hint else ""


def _merge(tree: dict[str, Any], layer: dict[str, Any]) -> None:
    """Merge mappings, and replace everything else."""
    for name, value in layer.items():
        if isinstance(value, dict) and isinstance(tree.get(name), dict):
            _merge(tree[name], value)
        else:
            tree[name] = value


def _drop_arguments_of_others(
    tree: dict[str, dict[str, Any]], layers: Iterable[dict[str, Any]]
) -> Iterator[str]:
    """Empty the ``arguments`` of each section that a layer renames, and yield a line about it."""
    for layer in layers:
        for section, items in layer.items():
            own = tree[section]
            if items.get("name") not in (None, own.get("name")) and own.get("arguments"):
                dropped = f"{section}.arguments ({', '.join(map(str, own['arguments']))})"
                yield f"{dropped} are arguments of {own['name']}; they are not passed to {items['name']}"
                own["arguments"] = {}


def _resolve(tree: dict[str, Any], setter: Callable[[str], str]) -> Iterator[tuple[str, Any]]:
    """Name and value of every key, with its interpolations resolved."""
    names = [(section, item) for section, items in tree.items() for item in items]
    interpolated = [_check_plain(tree[section][item], f"{section}.{item}", setter) for section, item in names]
    if not any(interpolated):
        yield from ((f"{section}.{item}", tree[section][item]) for section, item in names)
        return
    where = setter(".".join(names[interpolated.index(True)]))
    try:
        parsed = OmegaConf.create(tree)
    except _MISFITS as error:
        raise UserError(f"{where}: {_first_line(error)}") from error
    for section, item in names:
        yield f"{section}.{item}", _resolved(parsed[section], item, f"{section}.{item}", setter)


def _resolved(parent: Any, key: Any, name: str, setter: Callable[[str], str]) -> Any:
    written = parent._get_node(key)._value() if OmegaConf.is_interpolation(parent, key) else ""
    place = f"{setter(name)}: {name}: the interpolation {show_text(written)!r}"
    try:
        value = parent[key]
    except _MISFITS as error:
        raise UserError(
            f"{place} cannot be resolved ({_first_line(error)}); write the value, or correct it"
        ) from error
    if isinstance(value, DictConfig | ListConfig) and written:
        raise UserError(f"{place} is a mapping or list; write its values")
    if isinstance(value, DictConfig):
        return {inner: _resolved(value, inner, f"{name}.{inner!s}", setter) for inner in value}
    if isinstance(value, ListConfig):
        return [_resolved(value, inner, f"{name}.{inner}", setter) for inner in range(len(value))]
    _check_plain(value, name, setter)
    return value


def _check_plain(value: Any, name: str, setter: Callable[[str], str]) -> bool:
    """Refuse values that no key may have; return whether the value contains an interpolation."""
    if isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        interpolated = [
            _check_plain(one, f"{name}.{key}", setter) for key, one in inner
        ]  # checks all of them
        return any(interpolated)
    place = f"{setter(name)}: {show_text(name)}"
    if value == "???":
        raise UserError(f"{place} is ???, which means a missing value; set {show_text(name)}=VALUE")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{place} is {value}; it must be a finite number")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise UserError(f"{place} has more than 64 bits; set a smaller integer")
    if not isinstance(value, str):
        return False
    if "\0" in value or re.search("[\ud800-\udc7f\udd00-\udfff]", value):
        raise UserError(f"{place} is {show_value(value)}, which contains a character that is not valid text")
    if "${" in value and len(value) > _LONGEST_INTERPOLATION:
        raise UserError(
            f"{place}: an interpolation of {len(value)} characters ({show_text(value, 40)}); "
            f"the maximum is {_LONGEST_INTERPOLATION}"
        )
    return "${" in value


def _convert(value: Any, kind: Any, default: Any) -> Any:
    """Convert a value to the type of its key; the message of a ValueError states the rule."""
    origin, kinds = typing.get_origin(kind), typing.get_args(kind)
    if type(None) in kinds:
        return None if value is None else _convert(value, kinds[0], default)
    if kind is Any:
        return value
    if origin is list:
        length = len(default) if default and kinds[0] is not str else None  # names may be added and removed
        if not isinstance(value, list) or length not in (None, len(value)):
            raise ValueError(
                f"a list of {length} values, such as {default}" if length else "a list of values"
            )
        try:
            return [_convert(one, kinds[0], None) for one in value]
        except ValueError:
            raise ValueError(f"a list of {_WORDS[kinds[0]].split()[-1]}s") from None
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError("a mapping of names to values")
        return value
    return _convert_plain(value, kind)


def _convert_plain(value: Any, kind: type) -> Any:
    text = str(value).strip().lower()
    if kind is bool and text in _BOOLS:
        return _BOOLS[text]
    if kind is str and value is not None and not isinstance(value, dict | list):
        return str(value)
    if kind in (int, float) and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = kind(text if isinstance(value, str) else value)
        except ValueError:
            number = None
        if number is not None and (kind is float or not isinstance(value, float)) and math.isfinite(number):
            return number
    raise ValueError(_WORDS[kind])


def _first_line(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it refers to itself, or is nested too deeply"
    return show_text(next(iter(str(error).strip().splitlines()), type(error).__name__), 200)
