"""``python -m tests.fuzz [KIND [SEED]]``: fuzz all kinds or one of them, or repeat one case."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.fuzz.campaign import KINDS, fuzz


def main(arguments: list[str] | None = None) -> int:
    """Returns 1 if a case failed, 2 if there is no such case."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("kind", nargs="?", choices=(*KINDS, "known"), help="kind of input (default: all)")
    parser.add_argument("seed", nargs="?", type=int, help="repeat this case alone")
    parser.add_argument("--seconds", type=float, default=600.0, help="for all kinds (default: %(default)s)")
    parser.add_argument("--first", type=int, help="first seed (default: 100,000; of the known files: 0)")
    parser.add_argument("--cases", type=int, help="cases per kind (default: no limit except the time)")
    parser.add_argument("--keep", type=Path, default=Path("runs/fuzz"), help="folder for inputs that failed")
    options = parser.parse_args(arguments)
    kinds = [options.kind] if options.kind else KINDS
    first = 100_000 if options.first is None else options.first
    cases = options.cases
    if options.seed is not None:
        first, cases = options.seed, 1
    elif options.kind == "known":
        first = options.first or 0
    if options.kind == "known":
        from tests.fuzz.known import NUMBER

        if not 0 <= first < NUMBER:
            print(f"case {first} of known is unknown: its cases are 0..{NUMBER - 1}", file=sys.stderr)
            return 2
        cases = min(NUMBER - first, cases or NUMBER)
    failed = False
    for kind in kinds:
        outcome = fuzz(
            kind, seconds=options.seconds / len(kinds), keep=options.keep.resolve(), first=first, cases=cases
        )
        print(outcome.report(), flush=True)
        failed |= bool(outcome.findings)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
