"""The examples of docs/extending.md, as code that tests run."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


def python_blocks(title: str) -> list[str]:
    """The Python code blocks under a heading of the page."""
    section = PAGE.read_text(encoding="utf-8").partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def add_module(code: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``import name`` return a module with this code."""
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(code, f"{name}.py", "exec"), vars(module))
