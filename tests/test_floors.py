"""The counts of `benchmarks/floors.py`, against a count by hand."""

from __future__ import annotations

import pytest

from benchmarks.floors import BYTES_PER_WEIGHT, Floor, count


def test_floor_is_the_larger_one_of_operations_and_bytes() -> None:
    floor = Floor(weights=1000, operations=790e9, bytes=2.15e9)
    operations, moved = floor.seconds(4)
    assert operations == pytest.approx(4e-3)
    assert moved == pytest.approx(2e-3 + BYTES_PER_WEIGHT * 1000 / 4.3e12)
    assert floor.clips_per_second(4) == pytest.approx(1000)


def test_operations_of_a_vit_are_six_per_weight_and_token() -> None:
    """A ViT-pico on 4x32x32: attention, norms and positions add little to 6 per weight and token."""
    floor = count("maskfeat_vit_pico", 0.5, clip=(4, 32, 32))
    tokens = 2 * 4 * 4
    assert floor.operations == pytest.approx(6 * floor.weights * tokens, rel=0.15)
    assert floor.bytes > 0
