"""Positions of published code, number by number."""

from __future__ import annotations

import math


def sincos_2d(width: int, *, rows: int, columns: int) -> list[list[float]]:
    """The fixed positions of MAE for images, [rows * columns, width], row by row.

    The first half of the channels belongs to the column, the second to the row; each half has the sines of
    all frequencies, then the cosines.
    """
    quarter = width // 4

    def waves(index: int) -> list[float]:
        angles = [index / 10000 ** (i / quarter) for i in range(quarter)]
        return [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]

    return [waves(column) + waves(row) for row in range(rows) for column in range(columns)]


def relative_rows(rows: int, columns: int) -> list[list[int]]:
    """Row of BEiT's relative position table for each query and key of a picture, the class token first."""
    size = (2 * rows - 1) * (2 * columns - 1)
    places = [(row, column) for row in range(rows) for column in range(columns)]
    index = [[size + 2, *[size] * len(places)]]
    for row, column in places:
        offsets = [(row - r + rows - 1, column - c + columns - 1) for r, c in places]
        index.append([size + 1, *[down * (2 * columns - 1) + right for down, right in offsets]])
    return index


def sincos_1d(width: int, *, tokens: int) -> list[list[float]]:
    """The fixed positions of VideoMAE, [tokens, width]: sine and cosine of the token's index, in turn."""
    table = []
    for index in range(tokens):
        angles = [index / 10000 ** (2 * (channel // 2) / width) for channel in range(width)]
        table.append([math.cos(a) if c % 2 else math.sin(a) for c, a in enumerate(angles)])
    return table
