"""Numbers that move from one value to another while a training goes on: momentum, temperatures."""

from __future__ import annotations

import math
from dataclasses import dataclass

from videomaskfeat.errors import UserError


@dataclass(frozen=True)
class CosineRamp:
    """Half a cosine from ``start`` to ``end`` over the whole training.

    As BYOL raises its teacher's momentum (arXiv 2006.07733, section 3.2), and DINO and iBOT after it.

    Args:
        start: the value at the very start.
        end: the value at the end.
    """

    start: float
    end: float

    def __call__(self, progress: float) -> float:
        """The value at a share of the training, 0..1."""
        return self.end + (self.start - self.end) * (math.cos(math.pi * progress) + 1.0) / 2.0


@dataclass(frozen=True)
class LinearRamp:
    """A line from ``start`` to ``end`` over the first part of the training, then ``end``.

    Args:
        start: the value at the very start.
        end: the value after ``length``.
        length: share of the training that the line takes, 0..1; 0: ``end`` from the start.

    Raises:
        UserError: a length outside 0..1.
    """

    start: float
    end: float
    length: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.length <= 1:
            raise UserError(
                f"a warm-up of {self.length:g} of the training is not between 0 and 1; shorten it"
            )

    def __call__(self, progress: float) -> float:
        """The value at a share of the training, 0..1."""
        part = 1.0 if progress >= self.length else progress / self.length
        return self.start + (self.end - self.start) * part
