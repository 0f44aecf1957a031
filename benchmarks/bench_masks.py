"""Milliseconds per mask on 8x7x7 at ratio 0.4, against a budget."""

from __future__ import annotations

from functools import partial

import numpy as np

from benchmarks.harness import Row, alternate
from videomaskfeat.grid import TokenGrid
from videomaskfeat.masking import MASKS, MaskFunction, build_policy

_DRAWS = 200


def run(*, device: str) -> list[Row]:
    """Time every policy; masks are always drawn on the CPU."""
    rng = np.random.default_rng(0)
    functions = {name: partial(_draw, build_policy(name, {}), rng) for name in MASKS}
    seconds = alternate(functions, rounds=7)
    rows = []
    for name, value in seconds.items():
        budget = 0.3 if name == "cube" else 0.1
        figures = (1e3 * value / _DRAWS, budget, "ms")
        rows.append(Row(f"mask {name}, 8x7x7", *figures, target=f"< {budget} ms", note="against the budget"))
    return rows


def _draw(policy: MaskFunction, rng: np.random.Generator) -> None:
    grid = TokenGrid(8, 7, 7)
    for _ in range(_DRAWS):
        policy(grid, 0.4, rng)
