"""Clips that the device crops and augments: parameters and pixels of those of the workers."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.clip_data import MASK, SAMPLER, equal, make_clips, write_videos
from tests.data.pictures import smooth_frames
from videomaskfeat.data.augment import Augmentation, RandAugment, RandomErasing
from videomaskfeat.data.clips import RecordClips, SampleKey
from videomaskfeat.data.formats import load_records
from videomaskfeat.data.labeled_clips import LabeledClips
from videomaskfeat.data.loader import ClipLoader
from videomaskfeat.data.operations import ColorJitter, RandomColor
from videomaskfeat.data.pair_clips import LocalCrops, PairClips
from videomaskfeat.data.transforms import ClipGeometry, RandomResizedCrop, Rectangle
from videomaskfeat.data.uncropped import ClipChange, UncroppedClip, UncroppedClips, leave_uncropped
from videomaskfeat.errors import UserError

JITTER = ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve videos; one cannot be read."""
    path = write_videos(tmp_path_factory.mktemp("videos"), 12)
    (path.parent / "004.mp4").write_bytes(b"")
    return path


def _differences(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    assert one.shape == other.shape
    return (one.int() - other.int()).abs()


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_equal_those_of_workers_to_a_level(videos: Path, workers: int) -> None:
    """Three times the bytes of the largest crop: the shared memory of a worker grows."""
    plain = list(ClipLoader(make_clips(videos, samples_per_video=2), batch_size=4).epoch(1))
    dataset = make_clips(videos, samples_per_video=2, uncropped=True)
    loader = ClipLoader(dataset, batch_size=4, workers=workers)
    with loader:
        batches = list(loader.epoch(1))
    assert len(batches) == len(plain) == 6
    for uncropped, expected in zip(batches, plain, strict=True):
        assert isinstance(uncropped.clips, UncroppedClips)
        assert len(uncropped.clips) == 4
        moved = uncropped.to("cpu")
        assert _differences(moved.clips, expected.clips).max() <= 1
        assert torch.equal(moved.mask, expected.mask)
        assert torch.equal(moved.index, expected.index)
        assert moved.failures == expected.failures
    assert any(batch.failures for batch in batches)


def test_batches_do_not_depend_on_workers_and_position(videos: Path) -> None:
    """Noise included: a resumed run has the same clips."""
    augment = Augmentation(
        randaugment=RandAugment(layers=3, probability=0.8),
        color=JITTER,
        erasing=RandomErasing(probability=1.0),
    )
    dataset = LabeledClips(
        load_records(videos),
        sampler=SAMPLER,
        transform=RandomResizedCrop(16),
        augment=augment,
        uncropped=True,
    )
    whole = [batch.to("cpu") for batch in ClipLoader(dataset, batch_size=3).epoch(0)]
    torch.rand(7)  # torch's global generator has no effect
    with ClipLoader(dataset, batch_size=3, workers=2) as loader:
        later = [batch.to("cpu") for batch in loader.epoch(0, 2)]
    assert all(map(equal, whole[2:], later))
    assert len(later) == 2
    assert not torch.equal(whole[0].clips, whole[1].clips)


def test_augmented_clips_have_the_parameters_of_workers(videos: Path) -> None:
    """Most pixels, not all, agree to two levels: solarize, equalize, posterize and contrast enlarge a
    difference of one level."""
    keywords: dict[str, Any] = {
        "sampler": functools.partial(_first_frames, count=2),
        "transform": RandomResizedCrop(16),
        "augment": Augmentation(randaugment=RandAugment(layers=2, probability=0.7), color=JITTER),
    }
    records = load_records(videos)
    uncropped, plain = LabeledClips(records, uncropped=True, **keywords), LabeledClips(records, **keywords)
    shares, changed = [], 0
    for epoch in range(30):
        key = SampleKey(epoch, 0)
        one, expected = uncropped[key], plain[key]
        frames = smooth_frames(2, 32, 32, seed=epoch)
        clips = [dataset._sample([frames], 0, np.random.default_rng(epoch)) for dataset in (uncropped, plain)]
        for left, right in ((one, expected), clips):
            apart = _differences(uncropped.collate([left]).clips.to("cpu"), torch.from_numpy(right.clips))
            shares.append(float((apart > 2).float().mean()))
        changed += len(uncropped.collate([one]).clips.changes[0].steps) > 3  # color jitter has 4
    assert changed > 10
    assert np.mean(shares) < 0.01
    assert sum(share > 0.05 for share in shares) <= 4


def _first_frames(num_frames: int, fps: float, *, count: int, rng: np.random.Generator) -> np.ndarray:
    return np.arange(count)


def test_drawn_parameters_have_the_distribution_of_workers() -> None:
    """The second clip of a video follows other random numbers, since the noise of the first is drawn
    elsewhere: Kolmogorov-Smirnov distances of 2000 against 2000 draws, below 1.95 sqrt(2 / 2000) = 0.062,
    which equal distributions exceed once in 1000 cases."""
    number, rng, erasing = 2000, np.random.default_rng(5), RandomErasing(probability=0.6)
    augment = Augmentation(randaugment=RandAugment(noise=0.5), color=JITTER, erasing=erasing)
    crop = RandomResizedCrop(24, area=(0.08, 1.0))
    drawn: dict[bool, list[list[float]]] = {True: [], False: []}
    frames = np.zeros((1, 40, 60, 3), np.uint8)
    for on_device in (True, False):
        for _ in range(number):
            first = crop.sample(40, 60, rng)
            if on_device:
                augment.draw(first, rng)
            else:
                augment.apply(frames, first, rng)
            change = augment.draw(crop.sample(40, 60, rng), rng)
            source, steps = change.geometry.source, [*change.steps, *[None] * 6]
            box = change.erasure.box if change.erasure else Rectangle(-1, -1, 0, 0)
            row = [source.top, source.left, source.height, source.width, change.geometry.flip, box.top]
            row += [box.left, box.height, box.width, len(change.steps)]
            drawn[on_device].append([*row, *((step.argument or 0) if step else 0 for step in steps[:6])])
    for one, other in zip(*(np.array(rows).T for rows in drawn.values()), strict=True):
        values = np.union1d(one, other)
        shares = [np.searchsorted(np.sort(x), values, side="right") / number for x in (one, other)]
        assert np.abs(shares[0] - shares[1]).max() < 0.062
    means = np.array(drawn[True]).mean(0)
    assert means[4] == pytest.approx(0.5, abs=0.045)  # flips; four standard errors
    assert (np.array(drawn[True])[:, 7] > 0).mean() == pytest.approx(0.6, abs=0.045)  # erasures


def test_pairs_and_local_crops_equal_those_of_workers(tmp_path: Path) -> None:
    """Colors after the crop change a difference of one level of a crop to a few."""
    videos = load_records(write_videos(tmp_path, 4))
    color = RandomColor(JITTER, chance=1.0, gray=0.2, blur=0.5, solarize=0.0)
    keywords: dict[str, Any] = {
        "sampler": SAMPLER,
        "transform": RandomResizedCrop(16),
        "colors": (color, None),
        "mask": MASK,
        "local": LocalCrops(3, RandomResizedCrop(8), color),
    }
    one, other = PairClips(videos, uncropped=True, **keywords), PairClips(videos, **keywords)
    keys = [SampleKey(2, index) for index in range(4)]
    uncropped = one.collate([one[key] for key in keys])
    batch, expected = uncropped.to("cpu"), other.collate([other[key] for key in keys])
    for left, right in ((batch.clips, expected.clips), (batch.local, expected.local)):
        apart = _differences(left, right)
        assert apart.float().mean() < 0.5
        assert apart.max() <= 12
    assert torch.equal(batch.mask, expected.mask)
    assert isinstance(uncropped.local, UncroppedClips)


def test_only_the_used_pixels_cross_to_the_device() -> None:
    frames = np.arange(2 * 30 * 40 * 3, dtype=np.uint8).reshape(2, 30, 40, 3)
    geometry = ClipGeometry(Rectangle(4, 6, 10, 20), (8, 8), Rectangle(0, 0, 8, 8), flip=True)
    cut = UncroppedClip.of(frames, ClipChange(geometry=geometry))
    assert cut.frames.shape == (2, 10, 20, 3)
    clips = UncroppedClips.join([cut], lambda shape: torch.empty(shape, dtype=torch.uint8))
    assert clips.pixels.shape == (2 * 10 * 20 * 3,)
    assert _differences(clips.to("cpu")[0], torch.from_numpy(geometry.apply_clip(frames))).max() <= 1
    steps = Augmentation(color=ColorJitter(brightness=0.4, contrast=0, saturation=0))
    whole = UncroppedClip.of(frames, steps.draw(geometry, np.random.default_rng(0)))
    assert whole.frames.shape == frames.shape  # an operation may read all pixels


def test_clips_under_autocast_are_the_same() -> None:
    frames = smooth_frames(2, 40, 50)
    geometry = ClipGeometry(Rectangle(4, 6, 30, 40), (24, 24), Rectangle(0, 0, 24, 24))
    augment = Augmentation(randaugment=RandAugment(layers=15, probability=1.0), color=JITTER)
    clip = UncroppedClip.of(frames, augment.draw(geometry, np.random.default_rng(1)))
    clips = UncroppedClips.join([clip], lambda shape: torch.empty(shape, dtype=torch.uint8))
    with torch.autocast("cpu", torch.bfloat16):
        under = clips.to("cpu")
    assert torch.equal(under, clips.to("cpu"))


@pytest.mark.cuda
def test_clips_on_a_gpu_equal_those_on_a_cpu() -> None:
    """To one level per operation, since a GPU adds in another order; the noise has other random numbers."""
    frames = smooth_frames(4, 60, 80)
    geometry = ClipGeometry(Rectangle(4, 6, 50, 60), (32, 32), Rectangle(0, 0, 32, 32), flip=True)
    for seed in range(20):
        augment = Augmentation(randaugment=RandAugment(layers=1, probability=1.0))
        clip = UncroppedClip.of(frames, augment.draw(geometry, np.random.default_rng(seed)))
        clips = UncroppedClips.join([clip], lambda shape: torch.empty(shape, dtype=torch.uint8))
        on_gpu = clips.pin_memory().to("cuda", non_blocking=True)
        assert on_gpu.is_cuda
        assert (_differences(on_gpu.cpu(), clips.to("cpu")) > 2).float().mean() < 0.01


def test_other_data_sets_are_refused() -> None:
    class KeyFrames(RecordClips[Any, Any]):
        """Records that are not videos."""

    with pytest.raises(
        UserError, match=r"clips of KeyFrames are cropped by their workers; set data\.augment_on"
    ):
        leave_uncropped(KeyFrames.__new__(KeyFrames))
