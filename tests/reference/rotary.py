"""Rotary positions of a token grid: one vector at a time, as products of complex numbers."""

from __future__ import annotations

import cmath
import math
from collections.abc import Sequence


def rotated(vector: Sequence[float], place: tuple[int, int, int], *, repeated: bool = False) -> list[float]:
    """A query or key [d] at (time, row, column); an even third of its values belongs to each axis.

    ``repeated``: as in V-JEPA 2's code, where the angles of all pairs of an axis are followed by the same
    angles again, so that the two values of a pair turn by different ones.
    """
    channels = len(vector) // 3 // 2 * 2
    result = list(vector)
    for axis, index in enumerate(place):
        for pair in range(channels // 2):
            first = axis * channels + 2 * pair
            if repeated:
                rates = [10000 ** (-2 * i / channels) for i in range(channels // 2)] * 2
                a, b = (index * rates[2 * pair + side] for side in range(2))
                result[first] = vector[first] * math.cos(a) - vector[first + 1] * math.sin(a)
                result[first + 1] = vector[first + 1] * math.cos(b) + vector[first] * math.sin(b)
                continue
            turn = cmath.exp(1j * index * 10000 ** (-2 * pair / channels))
            number = complex(vector[first], vector[first + 1]) * turn
            result[first : first + 2] = [number.real, number.imag]
    return result
