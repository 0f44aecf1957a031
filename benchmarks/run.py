"""Run benchmarks: `python benchmarks/run.py [NAMES] [--device cpu|cuda] [--out results.json]`.

Each file `bench_<name>.py` in this folder has a function `run(*, device: str) -> list[Row]`; those of
GPU_NAMES also take `dry: bool`. A benchmark that fails does not stop the others; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import traceback
from pathlib import Path
from typing import Any

from rich.console import Console

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from benchmarks.harness import Row, other_load, save, show  # noqa: E402  (the repository is not installed)

GPU_NAMES = (
    "attention",
    "augment_on",
    "finetune_step",
    "hog",
    "mae_step",
    "roi_align",
    "step",
    "targets",
    "videomae",
)
"""What depends on the device, and has a dry run."""


def main() -> int:
    """Run the named benchmarks, print the table, write the JSON, and return the exit code."""
    known = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAMES",
        help=f"some of: {', '.join(known)} (default: all, or those that depend on the device)",
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("--dry", action="store_true", help="tiny inputs; the results have no meaning")
    options = parser.parse_args()
    unknown = set(options.names) - set(known)
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    names = options.names or (GPU_NAMES if options.dry or options.device == "cuda" else known)
    if options.dry and not set(names) <= set(GPU_NAMES):
        parser.error(f"--dry: only {', '.join(GPU_NAMES)} have a dry run")
    rows: list[Row] = []
    failed: dict[str, str] = {}
    progress = Console(stderr=True)
    other = other_load(options.device)
    arguments: dict[str, Any] = {"device": options.device, **({"dry": True} if options.dry else {})}
    for name in names:
        progress.print(f"measuring {name} ...")
        try:
            rows += importlib.import_module(f"benchmarks.bench_{name}").run(**arguments)
        except Exception as error:  # reported below; the other benchmarks still run
            traceback.print_exc()
            failed[name] = f"{type(error).__name__}: {error}"
        if options.out is not None:
            save(rows, options.device, options.out, other=other, failed=failed, dry=options.dry)
    show(rows, options.device)
    for name, cause in failed.items():
        progress.print(f"{name} failed: {cause}", markup=False)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
