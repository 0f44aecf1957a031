"""Random splits: shares of every class, groups in one part, and the same result for a seed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from videomaskfeat.data.split import split_groups
from videomaskfeat.errors import UserError


def test_classes_have_the_shares_to_one_video() -> None:
    classes = [[label] for label, count in enumerate((40, 20, 7, 3)) for _ in range(count)]
    subsets = split_groups(classes, range(len(classes)), (0.7, 0.15, 0.15), seed=3)
    labels = np.array(classes)[:, 0]
    for label, count in enumerate((40, 20, 7, 3)):
        own = np.bincount(subsets[labels == label], minlength=3)
        assert np.abs(own - count * np.array((0.7, 0.15, 0.15))).max() <= 1  # rounding to whole videos
    assert np.bincount(subsets).tolist() == [49, 11, 10]


def test_groups_stay_in_one_part() -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 25, 200)
    classes = [[int(group) % 5] for group in groups]
    subsets = split_groups(classes, groups.tolist(), (0.8, 0.2), seed=0)
    assert all(len(set(subsets[groups == group])) == 1 for group in range(25))
    assert 0.7 < (subsets == 0).mean() < 0.9  # 5 groups of about 8 videos per class


def test_seed_decides_and_empty_shares_stay_empty() -> None:
    classes = [[number % 2] for number in range(40)]
    first, same, other = (split_groups(classes, range(40), (0.5, 0, 0.5), seed=seed) for seed in (1, 1, 2))
    assert (first == same).all()
    assert (first != other).any()
    assert set(first) == {0, 2}
    with pytest.raises(UserError, match="sum 1"):
        split_groups(classes, range(40), (0.5, 0.2), seed=0)


def test_cost_is_near_the_best_of_all_splits() -> None:
    """Against every assignment of 9 groups of several labels; greedy choices may cost a little more."""
    rng = np.random.default_rng(5)
    groups = np.repeat(np.arange(9), rng.integers(1, 4, 9))
    classes = [rng.choice(3, rng.integers(1, 3), replace=False).tolist() for _ in groups]
    shares = np.array((0.6, 0.4))
    counts = np.array([[label in own for label in range(3)] for own in classes], float)
    expected = shares[:, None] * counts.sum(axis=0)

    def cost(subsets: np.ndarray) -> float:
        own = np.stack([counts[subsets == part].sum(axis=0) for part in (0, 1)])
        return float(((own - expected) ** 2 / expected).sum())

    best = min(cost(np.array(one)[groups]) for one in itertools.product((0, 1), repeat=9))
    all_in_one = cost(np.zeros(len(groups)))
    assert cost(split_groups(classes, groups.tolist(), shares.tolist(), seed=0)) < best + 0.1 * all_in_one
