"""Random split of a data set: equal class shares in all subsets, and each group in one part."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from videomaskfeat.errors import UserError


def split_groups(
    classes: Sequence[Sequence[int]], groups: Sequence[Hashable], shares: Sequence[float], *, seed: int
) -> np.ndarray:
    """Assign videos to subsets.

    Groups are assigned in random order, large ones first, each to the part in which it reduces
    ``sum((count - expected)^2 / expected)`` over the classes most. Ties go to the part that lacks more
    videos.

    Args:
        classes: classes of each video, any number.
        groups: group of each video, such as its source video.
        shares: share of each part, at least 0, with the sum 1. A part with the share 0 stays empty.
        seed: random seed.

    Returns:
        Index of the part of each video, int64 [n].

    Raises:
        UserError: a share is out of range.
    """
    expected_share = np.asarray(shares, np.float64)
    if (expected_share < 0).any() or not np.isclose(expected_share.sum(), 1):
        raise UserError(f"shares {list(shares)}: each must be at least 0, and their sum 1")
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    of_group = np.array([numbers[group] for group in groups], np.int64)
    columns = 1 + max((label for labels in classes for label in labels), default=-1)
    counts = np.zeros((len(numbers), columns + 1))  # the last column counts all videos of the group
    for group, labels in zip(of_group, classes, strict=True):
        counts[group, [*labels, columns]] += 1

    subsets = np.flatnonzero(expected_share)
    expected = expected_share[subsets, None] * counts.sum(axis=0)  # [subsets, columns + 1]
    expected[expected == 0] = 1  # a class without videos
    weights = np.ones(columns + 1)
    weights[columns] = 1e-3  # only decides ties of the classes
    assigned = np.zeros_like(expected)
    part_of_group = np.zeros(len(numbers), np.int64)
    order = np.random.default_rng(seed).permutation(len(numbers))
    for group in order[np.argsort(-counts[order, columns], kind="stable")]:
        own = counts[group]
        increase = own * (2 * (assigned - expected) + own) / expected
        best = int((increase @ weights).argmin())
        assigned[best] += own
        part_of_group[group] = subsets[best]
    return part_of_group[of_group]
