"""The rooms of the package import each other in one direction only (docs/design.md, "Package")."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "videomaskfeat"
GROUND = {"errors", "io", "texts", "grid", "mp4", "memory", "csv_columns", "ava", "boxes", "tracking"}
ROOMS = {"data", "masking", "targets", "models", "interop", "losses", "metrics", "engine", "viz"}
SIDEWAYS = {
    ("interop", "models"),
    ("interop", "targets"),
    ("targets", "models"),
    ("targets", "losses"),
    ("data", "masking"),
    ("viz", "targets"),
}
ABOVE = {
    "cli": {"tasks", "config", "data", "console", *GROUND},
    "tasks": {"config", *ROOMS, *GROUND},
    "config": {"errors", "io", "texts"},
    "console": {"errors"},
    "errors": set(),
    "io": {"errors"},
    "texts": {"errors", "io"},
    "mp4": {"errors", "io"},
    "csv_columns": {"errors", "io", "texts"},
    "ava": {"errors", "io", "texts", "csv_columns"},
    "boxes": set(),
    "tracking": {"errors", "boxes"},
    "grid": {"errors"},
    "memory": set(),
}


def room_of(path: Path) -> str:
    """The first part of a module's path below the package, without its suffix."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> Iterator[tuple[str, int]]:
    """Rooms of the package that a file imports, with the line, imports inside functions included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "videomaskfeat" and len(parts) > 1 and parts[1] != "__version__":
                yield parts[1], node.lineno


def allowed(room: str) -> set[str]:
    """What a room may import besides itself."""
    if room in ABOVE:
        return ABOVE[room]
    return GROUND | {other for owner, other in SIDEWAYS if owner == room}


def test_rooms_import_in_one_direction() -> None:
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        room = room_of(path)
        if room in {"__init__", "__main__"}:
            continue
        for other, line in imported_rooms(path):
            if other != room and other not in allowed(room):
                wrong.append(f"{path.relative_to(PACKAGE)}:{line} imports {other}")
    assert not wrong, "\n".join(wrong)


def test_package_import_is_quick() -> None:
    """Importing the package pulls in neither torch nor a video reader."""
    code = (
        "import sys, videomaskfeat; print([m for m in ('torch', 'av', 'decord', 'cv2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_drawer_modules() -> None:
    names = {path.stem for path in PACKAGE.rglob("*.py")}
    assert not names & {"utils", "util", "helper", "helpers", "misc", "common"}
