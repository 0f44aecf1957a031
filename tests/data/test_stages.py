"""Stages of loading: the samples stay the same, and each second counts for one stage."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.ava_data import AvaData, make_actions, write_numbered, write_truth
from tests.data.clip_data import SAMPLER, equal, make_clips, write_videos
from videomaskfeat.data import stages
from videomaskfeat.data.augment import Augmentation, RandAugment
from videomaskfeat.data.ava_sources import sources_in_folder
from videomaskfeat.data.clips import SampleKey
from videomaskfeat.data.formats import load_records
from videomaskfeat.data.labeled_clips import LabeledClips
from videomaskfeat.data.operations import ColorJitter, RandomColor
from videomaskfeat.data.pair_clips import LocalCrops, PairClips
from videomaskfeat.data.reader import VideoInfo, VideoReader
from videomaskfeat.data.stages import StageClock, StageMeasurement, measured_copy
from videomaskfeat.data.transforms import ClipGeometry, RandomResizedCrop, Rectangle

KEYS = [SampleKey(0, index) for index in (2, 0, 1)]
JITTER = ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4)
OPEN, FRAME, RESIZE = 0.05, 0.02, 0.03  # seconds of the slow stages


class SlowReader(VideoReader):
    """A video of 8 gray frames: opening takes `OPEN`, each frame `FRAME` seconds."""

    decoder = "slow"

    def __init__(self, path: str) -> None:
        time.sleep(OPEN)
        self.path, self.frames, self.fps = path, 8, 30.0

    @property
    def info(self) -> VideoInfo:
        return self._picture_info(np.zeros((32, 32, 3), np.uint8), "slow")

    def close(self) -> None:
        """Nothing is open."""

    def _read(self, indices: np.ndarray) -> np.ndarray:
        time.sleep(FRAME * len(indices))
        return np.full((len(indices), 32, 32, 3), 128, np.uint8)


class SlowCrop:
    """The upper left corner, `RESIZE` seconds per clip."""

    def sample(self, height: int, width: int, rng: np.random.Generator) -> ClipGeometry:
        return ClipGeometry(Rectangle(0, 0, height, width), (16, 16), Rectangle(0, 0, 16, 16))


def test_seconds_count_for_the_innermost_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.0, 3.0, 4.0, 7.0, 10.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(times))
    clock = StageClock()
    with clock.measure("other"):  # from 0 to 10
        with clock.measure("decode"):  # from 1 to 3
            pass
        with clock.measure(None):  # from 4 to 7
            pass
    assert clock.seconds == {**dict.fromkeys(stages.STAGES, 0.0), "decode": 2.0, "other": 5.0}
    clock.move(5.0, "decode", "seek")  # no stage has a negative time
    assert (clock.seconds["decode"], clock.seconds["seek"]) == (0.0, 2.0)


def test_each_slow_part_counts_for_its_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def resize(self: ClipGeometry, frames: np.ndarray) -> np.ndarray:
        time.sleep(RESIZE)
        return frames[:, :16, :16].copy()

    monkeypatch.setattr(ClipGeometry, "apply_clip", resize)
    name = f"{__name__}:SlowReader"
    dataset = make_clips(write_videos(tmp_path, 3), reader=name, transform=SlowCrop())
    result = StageMeasurement(dataset)(KEYS)
    assert (result.clips, result.failures) == (3, [])
    expected = {"open": OPEN, "seek": FRAME, "resize": RESIZE}
    for stage, seconds in expected.items():
        assert 3 * seconds * 0.99 <= result.seconds[stage] < 3 * seconds + 0.3, stage
    reading = result.seconds["seek"] + result.seconds["decode"]  # of the 2 frames of a clip
    assert 6 * FRAME * 0.99 <= reading < 6 * FRAME + 0.3
    # Sleeping is the slow part; the second read of the first frame (60 ms) is in no stage.
    assert result.seconds["other"] < 0.03
    assert result.seconds["augment"] == 0


def _key_frames(folder: Path) -> AvaData:
    key_frames = write_truth(folder / "truth.csv", ["a", "b"], [1, 2])
    return key_frames, sources_in_folder(key_frames, write_numbered(folder / "ava", ["a", "b"]))


def _data_sets(folder: Path) -> dict[str, Any]:
    listed = write_videos(folder, 3)
    labeled: dict[str, Any] = {"sampler": SAMPLER, "transform": RandomResizedCrop(16), "seed": 3}
    augment = Augmentation(randaugment=RandAugment(), color=JITTER, erasing=None)
    color = RandomColor(JITTER, blur=1.0)
    pairs = {"colors": (color, None), "local": LocalCrops(2, RandomResizedCrop(8), color)}
    return {
        "pre-training": make_clips(listed, samples_per_video=2),
        "labels": LabeledClips(load_records(listed), **labeled, augment=augment),
        "pairs": PairClips(load_records(listed), **labeled, **pairs),
        "actions": make_actions(*_key_frames(folder)),
        "actions with colors": make_actions(
            *_key_frames(folder),
            augment=Augmentation(color=JITTER),
        ),
    }


@pytest.mark.parametrize("kind", ["pre-training", "labels", "pairs", "actions", "actions with colors"])
def test_measured_samples_are_those_of_the_training(kind: str, tmp_path: Path) -> None:
    dataset = _data_sets(tmp_path)[kind]
    result = StageMeasurement(dataset)(KEYS)
    assert equal(result.batch, dataset.collate([dataset[key] for key in KEYS]))
    assert result.clips == len(result.batch.clips)
    for stage in ("open", "seek", "resize", "other", "collate"):
        assert result.seconds[stage] > 0, stage
    assert (result.seconds["augment"] > 0) == (kind not in ("pre-training", "actions"))


def test_data_set_itself_is_not_changed(tmp_path: Path) -> None:
    dataset = _data_sets(tmp_path)["labels"]
    before = dict(vars(dataset))
    measured_copy(dataset, StageClock())
    assert vars(dataset) == before


def test_records_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    listed = write_videos(tmp_path, 3)
    (tmp_path / "000.mp4").write_bytes(b"")
    result = StageMeasurement(make_clips(listed))(KEYS)
    assert result.batch.index.tolist() == [2, 1]
    assert result.failures == [(str(tmp_path / "000.mp4"), "empty file (0 bytes)")]
    nothing = StageMeasurement(make_clips(listed))([SampleKey(0, 0)])
    assert (nothing.clips, nothing.batch, sum(nothing.seconds.values())) == (0, None, 0)
