"""Pairs of clips: what decides about them, their local crops and colours, and masks of changing ratios."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.clip_parts import MASK, SAMPLER, write_videos
from videomaskfeat.data.clips import LocalCrops, PairClips, SampleKey, sample_generator
from videomaskfeat.data.formats import load_records
from videomaskfeat.data.loader import ClipLoader
from videomaskfeat.data.operations import ColourJitter, RandomColour, saturation
from videomaskfeat.data.transforms import RandomResizedCrop
from videomaskfeat.data.video import open_video
from videomaskfeat.errors import UserError
from videomaskfeat.grid import TokenGrid
from videomaskfeat.masking import MASKS, varied

JITTER = ColourJitter(brightness=0.4, contrast=0.4, saturation=0.2)
COLOUR = RandomColour(JITTER)
LOCAL = LocalCrops(3, RandomResizedCrop(8, area=(0.05, 0.4)))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_videos(tmp_path_factory.mktemp("videos"), 9)


def make_pairs(videos: Path, **arguments: object) -> PairClips:
    parts = {"sampler": SAMPLER, "transform": RandomResizedCrop(16), "seed": 11, **arguments}
    return PairClips(load_records(videos), **parts)  # type: ignore[arg-type]


def test_sample_is_drawn_by_its_own_generator(videos: Path) -> None:
    """Against the same drawing by hand: frames of both clips, crop and colour of each, masks, local crops."""
    sample = make_pairs(videos, colour=COLOUR, mask=MASK, local=LOCAL)[SampleKey(3, 5)]
    rng = sample_generator(11, 3, 5)
    with open_video(videos.parent / "005.mp4") as video:
        frames = [
            video.read(index) for index in [SAMPLER(video.frames, video.fps, rng=rng) for _ in range(2)]
        ]

    def cut(part: np.ndarray, transform: RandomResizedCrop) -> np.ndarray:
        return COLOUR.apply(transform.sample(32, 32, rng).apply_clip(part), rng)

    clips = [cut(part, RandomResizedCrop(16)) for part in frames]
    masks = [MASK(rng=rng) for _ in range(2)]
    local = [cut(frames[number], LOCAL.transform) for number in (0, 1, 0)]
    assert np.array_equal(sample.clips, np.stack(clips))
    assert sample.masks is not None
    assert np.array_equal(sample.masks, np.stack(masks))
    assert sample.local is not None
    assert np.array_equal(sample.local, np.stack(local))
    assert not np.array_equal(sample.clips[0], sample.clips[1])


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_keep_the_pairs_together(videos: Path, workers: int) -> None:
    dataset = make_pairs(videos, colour=COLOUR, mask=MASK, local=LOCAL)
    loader = ClipLoader(dataset, batch_size=4, workers=workers)
    assert loader.batches_per_epoch == 4
    batches = [batch.to("cpu") for batch in loader.epoch(1)]
    loader.close()
    for number, batch in enumerate(batches):
        assert batch.mask is not None
        assert batch.local is not None
        assert batch.clips.shape == (4, 2, 16, 16, 3)
        assert batch.local.shape == (6, 2, 8, 8, 3)
        rows = dataset.order(1)[2 * number : 2 * number + 2]
        assert batch.index.tolist() == np.repeat(rows, 2).tolist()
        for place, row in enumerate(rows):
            sample = dataset[SampleKey(1, int(row))]
            assert torch.equal(batch.clips[2 * place : 2 * place + 2], torch.from_numpy(sample.clips))
            assert torch.equal(batch.mask[2 * place : 2 * place + 2], torch.from_numpy(sample.masks))
            assert torch.equal(batch.local[3 * place : 3 * place + 3], torch.from_numpy(sample.local))


def test_masks_and_local_crops_may_be_left_out(videos: Path) -> None:
    batch = next(ClipLoader(make_pairs(videos), batch_size=2).epoch(0))
    assert batch.mask is None
    assert batch.local is None
    assert batch.to("cpu").clips.shape == (2, 2, 16, 16, 3)
    with pytest.raises(UserError, match="local crops 0: must be at least 1"):
        LocalCrops(0, RandomResizedCrop(8))
    with pytest.raises(UserError, match=r"batch_size=3 must be a positive multiple of .* = 2"):
        ClipLoader(make_pairs(videos), batch_size=3)


def test_colour_changes_the_share_of_clips_that_it_is_to() -> None:
    """Of 400 clips 0.8 are changed by jitter and 0.2 are grey, within 5 standard deviations (0.1)."""
    rng = np.random.default_rng(0)
    frames = np.random.default_rng(1).integers(0, 256, size=(1, 4, 4, 3), dtype=np.uint8)
    changed = [RandomColour(JITTER, grey=0.0).apply(frames, rng) for _ in range(400)]
    assert np.mean([not np.array_equal(frames, clip) for clip in changed]) == pytest.approx(0.8, abs=0.1)
    grey = [RandomColour(JITTER, chance=0.0).apply(frames, rng) for _ in range(400)]
    same = np.array([np.array_equal(clip, saturation(frames, 0.0)) for clip in grey])
    assert same.mean() == pytest.approx(0.2, abs=0.1)
    assert all(np.array_equal(clip, frames) for clip, is_grey in zip(grey, same, strict=True) if not is_grey)
    with pytest.raises(UserError, match=r"grey=2: a chance lies in 0\.\.1"):
        RandomColour(JITTER, grey=2)


def test_varied_masks_hide_between_the_ratios_or_nothing() -> None:
    """Of 400 masks half hide nothing (5 standard deviations: 0.13); the others' ratios fill the range."""
    grid = TokenGrid(4, 10, 10)
    draw = functools.partial(varied, MASKS["random"], grid, ratios=(0.1, 0.5), unmasked=0.5)
    rng = np.random.default_rng(0)
    shares = np.array([draw(rng=rng).mean() for _ in range(400)])
    assert np.mean(shares == 0) == pytest.approx(0.5, abs=0.13)
    drawn = shares[shares > 0]
    assert 0.1 <= drawn.min() < 0.13
    assert 0.47 < drawn.max() <= 0.5
    assert drawn.mean() == pytest.approx(0.3, abs=0.05)
