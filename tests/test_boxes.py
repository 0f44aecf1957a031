"""Areas and overlaps of boxes."""

from __future__ import annotations

import numpy as np

from videomaskfeat.boxes import areas, best_overlaps, overlaps

SQUARE = [0.0, 0.0, 2.0, 2.0]


def test_overlap_is_the_shared_part_of_both_together() -> None:
    others = np.array(
        [SQUARE, [1.0, 1, 3, 3], [2.0, 0, 3, 2], [5.0, 5, 6, 6], [0.5, 0.5, 1, 1.5], [1.0, 1, 1, 1]]
    )
    actual = overlaps(np.tile(np.array(SQUARE), (6, 1)), others)
    np.testing.assert_allclose(actual, [1, 1 / 7, 0, 0, 0.5 / 4, 0], atol=1e-15)
    assert areas(others).tolist() == [4, 4, 2, 1, 0.5, 0]
    point = np.array([[1.0, 1, 1, 1]])
    assert overlaps(point, point).tolist() == [0]  # no area: nothing over nothing


def test_best_overlap_is_the_first_of_the_best_candidates() -> None:
    boxes = np.array([SQUARE, SQUARE, SQUARE, SQUARE])
    others = np.array(
        [[1.0, 0, 2, 2], [0.0, 0, 1, 2], [0.0, 0, 2, 1.5], [9.0, 9, 10, 10]]
    )  # 1/2, 1/2, 3/4, 0
    first, last = np.array([0, 0, 3, 2]), np.array([2, 4, 4, 2])
    assert best_overlaps(boxes, others, first, last, threshold=0.5).tolist() == [0, 2, -1, -1]
    assert best_overlaps(boxes, others, first, last, threshold=0.75).tolist() == [-1, 2, -1, -1]
    assert best_overlaps(boxes, others, first, last, threshold=0.76).tolist() == [-1, -1, -1, -1]
    none = np.empty(0, np.int64)
    assert len(best_overlaps(boxes[:0], others, none, none, threshold=0.5)) == 0
