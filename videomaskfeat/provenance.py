"""What made a result: the command line, its date, and the versions of code and packages."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

from videomaskfeat import __version__


def describe_provenance() -> dict[str, str]:
    """Command line, date and time (UTC), versions, and the git commit if the package runs from a clone."""
    commit = _git_commit()
    return {
        "command": command_line(),
        "date": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        "videomaskfeat": __version__,
        **({"commit": commit} if commit else {}),
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
    }


def command_line() -> str:
    """The command line of this process, quoted as a shell needs it."""
    program, *arguments = sys.argv or [""]
    name = Path(program).name
    if name == "__main__.py":  # python -m PACKAGE
        name = Path(program).parent.name
    return shlex.join([name, *arguments])


@functools.lru_cache(maxsize=1)
def _git_commit() -> str:
    """The commit of the clone that holds the package, with ``-dirty`` if files changed; empty if unknown."""
    clone = Path(__file__).parents[1]
    if not (clone / ".git").exists():
        return ""
    describe = ["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(clone), *describe],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):  # git is missing, or the disk is slow
        return ""
    return done.stdout.strip()
