"""Plug-ins: classes and functions of the user, named ``package.module:name`` in a config or a weights file.

The module is an installed one, or in the current folder.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Mapping
from typing import Any

from videomaskfeat import import_object
from videomaskfeat.errors import UserError, check_name, nearest

_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_plugin(name: object) -> bool:
    """Whether a name has the form ``package.module:name``."""
    return isinstance(name, str) and ":" in name


def find_class(what: str, name: str, registry: Mapping[str, str], base: type[Any]) -> Any:
    """The class of an entry of a registry, or of a plug-in.

    Args:
        what: config key of the name, for messages.
        name: a key of the registry, or ``package.module:Class``.
        registry: name -> "module:class".
        base: class that a plug-in must inherit from.

    Raises:
        UserError: the name is unknown, or the plug-in is missing, cannot be imported or is no such class.
    """
    if is_plugin(name):
        return import_class(what, name, base)
    check_name(what, name, registry)
    return import_object(registry[name])


def import_class(what: str, name: str, base: type[Any]) -> Any:
    """The class of a plug-in, which must inherit from ``base`` and implement its abstract methods.

    Raises:
        UserError: as :func:`find_class`.
    """
    cls = import_plugin(what, name)
    expected = f"a subclass of {base.__module__}.{base.__qualname__}"
    if not isinstance(cls, type) or not issubclass(cls, base):
        raise UserError(f"{what} {name!r} is {_kind_of(cls)}; it must be {expected}")
    missing = sorted(getattr(cls, "__abstractmethods__", ()))
    if missing:
        raise UserError(f"{what} {name!r} lacks the method {missing[0]}; {expected} must implement it")
    return cls


def import_plugin(what: str, name: str, *, example: str = "my_code:MyClass", rule: str = "") -> Any:
    """The object that ``package.module:name`` names; the part after the colon may have dots.

    The current folder stays on ``sys.path``, behind all others, so that worker processes find the module.

    Args:
        what: config key or option of the name, for messages.
        name: the name.
        example: a name, for messages.
        rule: what the object must be, for messages.

    Raises:
        UserError: the name has another form, the module or the object is missing, or the import fails.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"{what} {name!r} must have the form package.module:name, such as {example}")
    module_name, _, attribute = name.partition(":")
    folder = os.getcwd()
    if folder not in sys.path and "" not in sys.path:  # an installed command does not search it
        sys.path.append(folder)
    try:
        value: Any = importlib.import_module(module_name)
    except UserError:
        raise
    except ModuleNotFoundError as error:
        names = module_name.split(".")
        if error.name in {".".join(names[: count + 1]) for count in range(len(names))}:
            raise UserError(
                f"{what} {name!r}: there is no module {error.name}, neither installed nor in {folder}"
            ) from error
        raise UserError(
            f"{what} {name!r}: {module_name} needs the module {error.name}, which is not installed"
        ) from error
    except Exception as error:  # the user's own module can raise anything
        raise UserError(
            f"{what} {name!r}: importing {module_name} failed: {type(error).__name__}: {error}"
        ) from error
    for part in attribute.split("."):
        if not hasattr(value, part):
            known = [word for word in dir(value) if not word.startswith("_")]
            close = nearest(part, known) + (f"; {rule}" if rule else "")
            raise UserError(f"{what} {name!r}: {module_name} has no {attribute}{close}")
        value = getattr(value, part)
    return value


def _kind_of(value: object) -> str:
    if isinstance(value, type):
        return f"the class {value.__qualname__}"
    if inspect.isroutine(value):
        return "a function"
    return f"of type {type(value).__name__}"
