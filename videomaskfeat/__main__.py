"""`python -m videomaskfeat`, the console command and tools/*.py start here."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import Any


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; Ctrl-C ends it with one line and 130, whenever it comes."""
    # Torch's warnings about lost connections hold stack traces, and our own errors name the lost rank.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    signal.signal(signal.SIGINT, end_interrupted)  # while modules are imported, and at the end
    from videomaskfeat.cli import main

    try:
        return main(arguments)
    finally:
        signal.signal(signal.SIGINT, end_interrupted)


def end_interrupted(*_: Any) -> None:
    """End the process at once: a KeyboardInterrupt in an import may come out as another error."""
    os.write(2, b"videomaskfeat: interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    sys.exit(run())
