"""Rotary positions of a token grid: one vector at a time, as products of complex numbers."""

from __future__ import annotations

import cmath
from collections.abc import Sequence


def rotated(vector: Sequence[float], place: tuple[int, int, int]) -> list[float]:
    """A query or key [d] at (time, row, column); an even third of its values belongs to each axis."""
    channels = len(vector) // 3 // 2 * 2
    result = list(vector)
    for axis, index in enumerate(place):
        for pair in range(channels // 2):
            first = axis * channels + 2 * pair
            turn = cmath.exp(1j * index * 10000 ** (-2 * pair / channels))
            number = complex(vector[first], vector[first + 1]) * turn
            result[first : first + 2] = [number.real, number.imag]
    return result
