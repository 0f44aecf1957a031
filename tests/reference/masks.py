"""Slow, independent block masks: lists of lists, one cell at a time, with Python's own random numbers."""

from __future__ import annotations

import math
import random

Cells = list[list[bool]]


def multi_block(
    rows: int, columns: int, *, count: int, area: float, aspect: tuple[float, float], draw: random.Random
) -> Cells:
    """V-JEPA's union of ``count`` equal blocks of a frame, drawn again while it hides everything."""
    shape = draw.uniform(*aspect)
    cells = math.floor(area * rows * columns)
    height = min(rows, round(math.sqrt(cells * shape)))
    width = min(columns, round(math.sqrt(cells / shape)))
    while True:
        mask = [[False] * columns for _ in range(rows)]
        for _ in range(count):
            top, left = draw.randint(0, rows - height), draw.randint(0, columns - width)
            for row in range(top, top + height):
                for column in range(left, left + width):
                    mask[row][column] = True
        if not all(map(all, mask)):
            return mask


def block_beit(rows: int, columns: int, *, target: int, smallest: int, draw: random.Random) -> Cells:
    """BEiT's block-wise mask of a frame: up to ``target`` cells."""
    mask = [[False] * columns for _ in range(rows)]
    missing = target
    while missing > 0:
        for _ in range(10):
            area = draw.uniform(smallest, missing)
            shape = math.exp(draw.uniform(math.log(0.3), math.log(1 / 0.3)))
            height, width = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
            if height >= rows or width >= columns:
                continue
            top, left = draw.randint(0, rows - height), draw.randint(0, columns - width)
            block = [
                (row, column) for row in range(top, top + height) for column in range(left, left + width)
            ]
            new = [(row, column) for row, column in block if not mask[row][column]]
            if 0 < len(new) <= missing:
                for row, column in new:
                    mask[row][column] = True
                missing -= len(new)
                break
        else:
            break
    return mask
