"""A fine-tuning sample (RandAugment, crop, erasing) against Pillow frame by frame, and against decoding.

The recipe is that of MViTv2: RandAugment m7 n4, crops of 8 to 100 % of the frame to 224, random erasing with
probability 0.25; 16 frames of 340x256 from 300 frames of H.264, as in Kinetics. The plain version works like
PySlowFast: Pillow operations frame by frame, then floats, cropped and resized by torch, erased with normal
noise. It omits PySlowFast's conversions of whole frames to floats and back, and its normalization, since ours
normalizes on the device. Both draw the same operations, crops and boxes, with one thread each.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import decord
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks.bench_loader import FPS, KEYFRAME_INTERVALS, SAMPLER, pictures_with_grain
from benchmarks.harness import Row, alternate
from tests.reference.randaugment import pillow_change
from videomaskfeat.data.augment import Augmentation, RandAugment, RandomErasing
from videomaskfeat.data.clips import SampleKey, sample_generator
from videomaskfeat.data.formats import load_records
from videomaskfeat.data.labeled_clips import LabeledClips
from videomaskfeat.data.transforms import ClipGeometry, RandomResizedCrop
from videomaskfeat.data.uncropped import ClipChange, DrawnAugmentation
from videomaskfeat.mp4 import write_mp4

HEIGHT, WIDTH = 256, 340
SAMPLES, ROUNDS = 40, 3
CROP = RandomResizedCrop(224, area=(0.08, 1.0))
OPERATIONS = RandAugment.from_words("rand-m7-n4-mstd0.5-inc1", interpolation="bicubic")
ERASING = RandomErasing(probability=0.25)
OURS = Augmentation(randaugment=OPERATIONS, erasing=ERASING)


def run(*, device: str) -> list[Row]:
    """Time each kind of file; the device has no effect."""
    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        with tempfile.TemporaryDirectory() as folder:
            pictures = pictures_with_grain(HEIGHT, WIDTH)
            rows = _augmentation_alone(np.stack(pictures[: 16 * 4 : 4]))
            for interval in KEYFRAME_INTERVALS:
                path = Path(folder) / f"{interval}.mp4"
                write_mp4(path, pictures, fps=FPS, crf=23, keyframe_interval=interval)
                rows += _whole_sample(path, f"key frame every {interval}")
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])
    return rows


class PillowAugmentation:
    """PySlowFast's augmentation of a clip, with the random draws of ours."""

    def apply(self, frames: np.ndarray, geometry: ClipGeometry, rng: np.random.Generator) -> np.ndarray:
        """uint8 [T, H, W, C], whole frames -> float32 [T, C, h, w] in 0..1."""
        pictures = [Image.fromarray(frame) for frame in frames]
        for step in OPERATIONS.sample(rng):
            change = pillow_change(step.name, step.argument, OPERATIONS.interpolation)
            pictures = [change(picture) for picture in pictures]
        whole = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
        pixels = whole.permute(0, 3, 1, 2).float() / 255  # [T, C, H, W]
        cut = geometry.source
        pixels = pixels[:, :, cut.top : cut.top + cut.height, cut.left : cut.left + cut.width]
        clip = F.interpolate(pixels, geometry.resized, mode="bilinear", align_corners=False)
        if geometry.flip:
            clip = clip.flip(3)
        if rng.random() < ERASING.probability:
            box = ERASING.sample(clip.shape[2], clip.shape[3], rng)
            assert box is not None
            noise = torch.randn(*clip.shape[:2], box.height, box.width) * 0.225 + 0.45
            clip[:, :, box.top : box.top + box.height, box.left : box.left + box.width] = noise
        return clip.numpy()

    def draw(self, geometry: ClipGeometry, rng: np.random.Generator) -> ClipChange:
        """There is no form for another device."""
        raise NotImplementedError


PLAIN = PillowAugmentation()


def _augmentation_alone(frames: np.ndarray) -> list[Row]:
    _check_alike(frames)
    ways: dict[str, Callable[[], object]] = {
        "ours": functools.partial(_augment, OURS, frames),
        "pillow": functools.partial(_augment, PLAIN, frames),
    }
    seconds = alternate(ways, rounds=ROUNDS)
    name = "augmentation and crop alone / the same with Pillow"
    return [_row(name, seconds["ours"], seconds["pillow"], "at least 3x")]


def _check_alike(frames: np.ndarray) -> None:
    """Check that the clips are equal, except for noise (less than half of a clip) and rounding."""
    for index in range(SAMPLES):
        ours, plain = (
            way.apply(frames, CROP.sample(HEIGHT, WIDTH, rng), rng)
            for way, rng in ((OURS, sample_generator(0, 0, index)), (PLAIN, sample_generator(0, 0, index)))
        )
        apart = np.abs(ours.transpose(0, 3, 1, 2) - 255 * plain)
        if np.median(apart) > 2:
            raise RuntimeError(f"clip {index} differs from Pillow's by {np.median(apart):.1f} levels")


def _augment(augmentation: DrawnAugmentation, frames: np.ndarray) -> None:
    for index in range(SAMPLES):
        rng = sample_generator(0, 0, index)
        augmentation.apply(frames, CROP.sample(HEIGHT, WIDTH, rng), rng)


def _whole_sample(video: Path, title: str) -> list[Row]:
    ways: dict[str, Callable[[], object]] = {
        "decode": functools.partial(_decode, video),
        "ours": functools.partial(_load, _data_set(video, OURS)),
        "pyav": functools.partial(_load, _data_set(video, OURS, reader="pyav")),
        "pillow": functools.partial(_load, _data_set(video, PLAIN)),
    }
    seconds = alternate(ways, rounds=ROUNDS)
    name = f"sample, decoded and augmented, {title} / "
    note = "mostly decoding, with decord in both"
    fast = "ours decodes with data.reader=pyav, Pillow's with decord"
    return [
        _row(f"{name}decoding alone", seconds["ours"], seconds["decode"], "under 2x decoding: above 0.5x"),
        _row(f"{name}the same with Pillow", seconds["ours"], seconds["pillow"], note=note),
        _row(f"{name}the same with Pillow", seconds["pyav"], seconds["pillow"], "at least 3x", fast),
    ]


def _row(name: str, ours: float, baseline: float, target: str = "", note: str = "") -> Row:
    return Row(name, 1e3 * ours / SAMPLES, 1e3 * baseline / SAMPLES, "ms per clip", "lower", target, note)


def _data_set(video: Path, augment: DrawnAugmentation, *, reader: str = "auto") -> LabeledClips:
    path = video.with_suffix(".csv")
    path.write_text(f"{video} 0\n" * SAMPLES, encoding="utf-8")
    return LabeledClips(load_records(path), sampler=SAMPLER, transform=CROP, augment=augment, reader=reader)


def _load(dataset: LabeledClips) -> None:
    for index in range(SAMPLES):
        dataset[SampleKey(0, index)]


def _decode(video: Path) -> None:
    """The frames of the same samples, read by decord on one thread, one opening per sample."""
    for index in range(SAMPLES):
        reader = decord.VideoReader(str(video), num_threads=1)
        indices = SAMPLER(len(reader), reader.get_avg_fps(), rng=sample_generator(0, 0, index))
        reader.get_batch(indices).asnumpy()
