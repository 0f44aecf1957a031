"""The start of `python -m videomaskfeat`, of the console command and of tools/*.py."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import Any


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; Ctrl-C ends it at any time with one line and exit code 130."""
    # Torch's warnings about lost connections contain stack traces; our errors name the lost rank.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    signal.signal(signal.SIGINT, end_interrupted)  # while modules are imported, and at the end
    from videomaskfeat.cli import main

    try:
        return main(arguments)
    finally:
        signal.signal(signal.SIGINT, end_interrupted)


def end_interrupted(*_: Any) -> None:
    """End the process at once, since an import could turn a KeyboardInterrupt into another error."""
    os.write(2, b"videomaskfeat: interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    sys.exit(run())
