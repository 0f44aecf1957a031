"""How a config key is declared."""

from __future__ import annotations

import copy
from dataclasses import field
from typing import Any


def key(default: Any, meaning: str) -> Any:
    """A config key with its default and its meaning, which ``--keys`` prints."""
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: copy.copy(default), metadata={"meaning": meaning})
    return field(default=default, metadata={"meaning": meaning})
