"""``python -m tests.fuzz [KIND [SEED]]``: fuzz all kinds or one of them, or repeat one case."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.fuzz.campaign import KINDS, fuzz


def main() -> int:
    """Returns 1 if a case failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("kind", nargs="?", choices=(*KINDS, "known"), help="kind of input (default: all)")
    parser.add_argument("seed", nargs="?", type=int, help="repeat this case alone")
    parser.add_argument("--seconds", type=float, default=600.0, help="for all kinds (default: %(default)s)")
    parser.add_argument("--first", type=int, default=100_000, help="first seed (default: %(default)s)")
    parser.add_argument("--cases", type=int, help="cases per kind (default: as many as there is time for)")
    parser.add_argument("--keep", type=Path, default=Path("runs/fuzz"), help="folder for inputs that failed")
    options = parser.parse_args()
    kinds = [options.kind] if options.kind else KINDS
    failed = False
    for kind in kinds:
        outcome = fuzz(
            kind,
            seconds=options.seconds / len(kinds),
            keep=options.keep.resolve(),
            first=options.first if options.seed is None else options.seed,
            cases=options.cases if options.seed is None else 1,
        )
        print(outcome.report(), flush=True)
        failed |= bool(outcome.findings)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
