"""Mixed clips and targets: what the pixels hold is what the targets say, drawn as often as it should be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.reference.mixing import cutmix_shares
from videomaskfeat.data.augment import Mixing
from videomaskfeat.errors import UserError

RECIPE: dict[str, Any] = {
    "classes": 5,
    "mixup": 0.8,
    "cutmix": 1.0,
    "probability": 1.0,
    "switch": 0.5,
    "smoothing": 0.0,
}


def numbered(batch: int, height: int = 12, width: int = 20) -> torch.Tensor:
    """Clips of which all pixels hold the clip's number: float [B, 3, 2, H, W]."""
    numbers = torch.arange(batch, dtype=torch.float32)
    return numbers[:, None, None, None, None].expand(batch, 3, 2, height, width).contiguous()


@pytest.mark.parametrize("batch", [2, 4, 7])
def test_mixup_blends_clips_and_labels_by_one_share(batch: int) -> None:
    torch.manual_seed(0)
    mixing = Mixing(**{**RECIPE, "cutmix": 0.0})
    labels = torch.arange(batch) % 5
    for _ in range(20):
        clips, targets = mixing(numbered(batch), labels)
        # The first clip holds 0 and its partner batch - 1, so its pixels give the partner's share.
        other = float(clips[0, 0, 0, 0, 0]) / (batch - 1)
        assert 0 < other < 1
        partners = torch.arange(batch - 1, -1, -1)
        values = ((1 - other) * torch.arange(batch) + other * partners)[:, None, None, None, None]
        # float32 on numbers up to 6.
        torch.testing.assert_close(clips, values.expand_as(clips), atol=1e-5, rtol=0)
        expected = (1 - other) * F.one_hot(labels, 5) + other * F.one_hot(labels[partners], 5)
        torch.testing.assert_close(targets, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("batch", [2, 5])
def test_cutmix_fills_one_box_in_all_frames_and_counts_its_pixels(batch: int) -> None:
    torch.manual_seed(1)
    mixing = Mixing(**{**RECIPE, "mixup": 0.0})
    labels = torch.arange(batch)
    sizes = set()
    for _ in range(50):
        before = numbered(batch)
        clips, targets = mixing(before, labels)
        partner = clips[0, 0, 0] == batch - 1  # [H, W]
        rows, columns = partner.any(1).nonzero(), partner.any(0).nonzero()
        if len(rows):
            box = partner[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert box.all()
        sizes.add(int(partner.sum()))
        assert torch.equal(clips, torch.where(partner, before.flip(0), before))
        own = 1 - partner.float().mean()
        expected = own * F.one_hot(labels, 5) + (1 - own) * F.one_hot(labels.flip(0), 5)
        torch.testing.assert_close(targets, expected, atol=1e-6, rtol=0)
    assert len(sizes) > 10


def test_cutmix_boxes_leave_the_shares_that_the_slow_version_leaves() -> None:
    torch.manual_seed(2)
    mixing = Mixing(**{**RECIPE, "mixup": 0.0})
    ours = np.array([mixing.draw(20, 32).own for _ in range(3000)])
    slow = cutmix_shares(alpha=1.0, height=20, width=32, draws=3000, rng=np.random.default_rng(2))
    # Means of 3000 draws of a spread of 0.27: four standard errors of the difference are 0.028.
    assert abs(ours.mean() - slow.mean()) < 0.028
    assert np.abs(np.quantile(ours, [0.2, 0.5, 0.8]) - np.quantile(slow, [0.2, 0.5, 0.8])).max() < 0.05


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 4.0])
def test_mixup_shares_follow_the_beta_distribution(alpha: float) -> None:
    torch.manual_seed(3)
    mixing = Mixing(**{**RECIPE, "mixup": alpha, "cutmix": 0.0})
    shares = np.array([mixing.draw(8, 8).own for _ in range(4000)])
    # Beta(a, a): mean 1/2, variance 1 / (4 (2a + 1)). Both to within five standard errors.
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(shares.mean() - 0.5) < 5 * np.sqrt(variance / 4000)
    spread = ((shares - 0.5) ** 2).std() / np.sqrt(4000)
    assert abs(shares.var() - variance) < 5 * spread


def test_batches_are_mixed_and_cut_as_often_as_asked() -> None:
    torch.manual_seed(4)
    mixing = Mixing(**{**RECIPE, "probability": 0.6, "switch": 0.25})
    draws = [mixing.draw(64, 64) for _ in range(4000)]
    mixed = [draw for draw in draws if draw.own != 1]
    # Shares of 4000: five standard errors are at most 0.04 (a box without a pixel counts as not mixed).
    assert len(mixed) / 4000 == pytest.approx(0.6, abs=0.04)
    assert sum(draw.box is not None for draw in mixed) / len(mixed) == pytest.approx(0.25, abs=0.045)


@pytest.mark.parametrize("off", [{"probability": 0.0}, {"mixup": 0.0, "cutmix": 0.0}])
def test_without_mixing_labels_alone_are_smoothed(off: dict[str, float]) -> None:
    mixing = Mixing(**{**RECIPE, "smoothing": 0.1, **off})
    clips, labels = torch.randn(3, 3, 2, 4, 4), torch.tensor([4, 0, 0])
    for _ in range(20):
        mixed, targets = mixing(clips, labels)
        assert torch.equal(mixed, clips)
        # Off s/L = 0.02, on 1 - s + s/L = 0.92.
        expected = torch.full((3, 5), 0.02).scatter_(1, labels[:, None], 0.92)
        torch.testing.assert_close(targets, expected, atol=1e-7, rtol=0)


def test_mixed_targets_are_smoothed_as_the_reference_smooths_them() -> None:
    torch.manual_seed(5)
    mixing = Mixing(**{**RECIPE, "smoothing": 0.2})
    labels = torch.tensor([0, 3])
    own = mixing.draw(12, 20).own
    torch.manual_seed(5)
    _, targets = mixing(numbered(2), labels)
    off, on = 0.2 / 5, 1 - 0.2 + 0.2 / 5
    hard = torch.full((2, 5), off).scatter_(1, labels[:, None], on)
    torch.testing.assert_close(targets, own * hard + (1 - own) * hard.flip(0), atol=1e-6, rtol=0)
    torch.testing.assert_close(targets.sum(1), torch.ones(2))
    assert targets.dtype == torch.float32


def test_a_batch_of_one_is_its_own_partner() -> None:
    torch.manual_seed(6)
    mixing = Mixing(**RECIPE)
    clips = torch.randn(1, 3, 2, 8, 8)
    for _ in range(10):
        mixed, targets = mixing(clips, torch.tensor([2]))
        torch.testing.assert_close(mixed, clips, atol=1e-6, rtol=0)
        torch.testing.assert_close(targets, torch.tensor([[0.0, 0, 1, 0, 0]]), atol=1e-6, rtol=0)


def test_clips_of_the_caller_stay_as_they_are() -> None:
    torch.manual_seed(7)
    mixing = Mixing(**RECIPE)
    clips = torch.randn(4, 3, 2, 8, 8)
    before = clips.clone()
    for _ in range(10):
        mixing(clips, torch.arange(4))
        assert torch.equal(clips, before)


def test_the_global_generator_alone_decides() -> None:
    mixing = Mixing(**RECIPE)
    clips, labels = torch.randn(4, 3, 2, 8, 8), torch.arange(4)
    torch.manual_seed(8)
    mixing(clips, labels)
    state = torch.get_rng_state()
    first = [mixing(clips, labels) for _ in range(5)]
    torch.set_rng_state(state)
    # Another object, as a resumed run has.
    second = [Mixing(**RECIPE)(clips, labels) for _ in range(5)]
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
    assert not torch.equal(first[0][1], first[1][1])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"classes": 0}, "classes=0: there must be at least 1"),
        ({"mixup": -0.1}, "mixup=-0.1: its alpha must be a finite number, at least 0; 0 switches it off"),
        ({"cutmix": float("inf")}, "cutmix=inf: its alpha must be a finite number"),
        ({"probability": 1.5}, r"probability=1.5: a chance lies in 0\.\.1"),
        ({"switch": -1.0}, r"switch=-1.0: a chance lies in 0\.\.1"),
        ({"smoothing": 1.0}, "smoothing=1.0: must be at least 0 and below 1"),
        ({"smoothing": float("nan")}, "smoothing=nan: must be at least 0"),
    ],
)
def test_values_out_of_range_are_named(wrong: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Mixing(**{**RECIPE, **wrong})
