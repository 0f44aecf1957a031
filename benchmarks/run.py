"""Run benchmarks: `python benchmarks/run.py [NAMES] [--device cpu|cuda] [--out results.json]`.

Each file `bench_<name>.py` beside this one has a function `run(*, device: str) -> list[Row]`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from rich.console import Console

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from benchmarks.harness import Row, save, show  # noqa: E402  (the repository is not installed)


def main() -> None:
    """Measure what was asked for, print the table, write the JSON."""
    known = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAMES", help=f"some of: {', '.join(known)} (default: all)"
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path, help="JSON file for machine and figures")
    options = parser.parse_args()
    unknown = set(options.names) - set(known)
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    rows: list[Row] = []
    progress = Console(stderr=True)
    for name in options.names or known:
        progress.print(f"measuring {name} ...")
        rows += importlib.import_module(f"benchmarks.bench_{name}").run(device=options.device)
        if options.out is not None:
            save(rows, options.device, options.out)
    show(rows, options.device)


if __name__ == "__main__":
    main()
