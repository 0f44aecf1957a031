"""Frames by time: the nearest of all decoded frames, on every kind of file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from av.packet import Packet
from av.video.frame import VideoFrame

from tests.data.make_videos import (
    FRAMES,
    copy_packets,
    numbered_picture,
    read_number,
    uneven_times,
    write_video,
    write_with_damage,
)
from tests.reference.decode import decode_all, decode_all_timed
from tests.reference.key_frames import key_frame_indices
from videomaskfeat.data.reader import VideoReadError
from videomaskfeat.data.readers_pyav import PyAvFile
from videomaskfeat.data.readers_seeking import SeekingReader, open_timed
from videomaskfeat.data.sampling import key_frame_seconds
from videomaskfeat.data.timed_reader import CountedReader
from videomaskfeat.data.video import MemoryReader
from videomaskfeat.mp4 import write_mp4

COUNTED = {"raw.h264", "mpeg4_b.avi", "h264_b.avi"}  # their packets carry no trustworthy times


def nearest(seconds: np.ndarray, times: np.ndarray) -> np.ndarray:
    """The index of the frame nearest to each time."""
    return np.array([int(np.abs(times - second).argmin()) for second in seconds])


def clear_times(times: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Random times, some beyond both ends, none of them near the middle between two frames."""
    seconds = rng.uniform(times[0] - 0.2, times[-1] + 0.2, 4 * count)
    distances = np.sort(np.abs(times[:, None] - seconds), axis=0)[:2]
    if len(times) > 1:
        seconds = seconds[distances[0] < 0.9 * distances[1]]
    return seconds[:count]


def test_pictures_are_the_nearest_in_every_kind_of_file(files: dict[str, Path]) -> None:
    rng = np.random.default_rng(1)
    for name, path in files.items():
        with open_timed(path) as reader:
            assert isinstance(reader, CountedReader) == (name in COUNTED), name
            if name in COUNTED:
                pictures = decode_all(path)
                times = np.arange(len(pictures)) / reader.fps
            else:
                times, pictures = decode_all_timed(path)
            for count in (1, 5, 12, 3):
                seconds = clear_times(times, count, rng)
                expected = pictures[nearest(seconds, times)]
                clip = reader.read_at(seconds)
                assert clip.dtype == np.uint8
                assert clip.shape == expected.shape, name
                # Bit-equal on H.264; VP9 and MPEG decoders of different years may round a level or two apart.
                tolerance = 2 if "vp9" in name or "mpeg" in name else 0
                assert np.abs(clip.astype(int) - expected).max() <= tolerance, (name, seconds)


@pytest.mark.parametrize("fps", [24.0, 25.0, 30.0, 60.0])
@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_clip_by_time_is_the_clip_by_number(tmp_path: Path, fps: float, ending: str) -> None:
    """At a steady rate; Matroska rounds its times to milliseconds."""
    frames = 220  # numbers up to 255 can be read
    pictures = [numbered_picture(number, 96, 64) for number in range(frames)]
    write_mp4(tmp_path / "v.mp4", pictures, fps=fps, keyframe_interval=25)
    path = copy_packets(tmp_path / "v.mp4", tmp_path / f"copy.{ending}", lambda _: True)
    with open_timed(path) as reader:
        assert reader.fps == pytest.approx(fps, rel=1e-3)
        for at in (0.0, 1.0, 2.0, 3.0):
            for target in (30.0, None):
                clip = {"frames": 6, "stride": 5, "target_fps": target}
                (seconds,) = key_frame_seconds(fps, seconds=np.array([at]), **clip)
                expected = key_frame_indices(frames, fps, seconds=at, **clip)
                assert [read_number(picture) for picture in reader.read_at(seconds)] == expected.tolist()


def test_later_of_two_equally_near_frames_is_chosen() -> None:
    """15 frames per second, requested at 30: every other time is in the middle."""
    pictures = np.stack([numbered_picture(number, 96, 64) for number in range(20)])
    with CountedReader(MemoryReader(pictures, fps=15.0)) as reader:
        clip = reader.read_at(np.arange(8) / 30)
        assert [read_number(picture) for picture in clip] == [0, 1, 1, 2, 2, 3, 3, 4]


def test_times_of_uneven_frames_are_those_written(tmp_path: Path) -> None:
    times = np.array(uneven_times()) / 1000
    write_video(tmp_path / "vfr.mp4", milliseconds=uneven_times())
    indices = [3, 4, 17, 30, 45]
    with open_timed(tmp_path / "vfr.mp4") as reader:
        clip = reader.read_at((times - times[0])[indices] + 0.002)
    assert [read_number(picture) for picture in clip] == indices


def test_each_frame_is_yielded_once_with_all_its_places(files: dict[str, Path]) -> None:
    with open_timed(files["plain.mp4"]) as reader:
        frames = reader.iter_frames_at([0.5, 0, 0.51])
        got = [(places.tolist(), read_number(picture)) for places, picture in frames]
    assert got == [([1], 0), ([0, 2], 15)]


def test_only_nearby_frames_are_decoded(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    fed = []
    decode = PyAvFile._decode_times

    def count(self: PyAvFile, packets: Iterable[Packet], indices: set[int]) -> Iterator[VideoFrame]:
        return decode(self, (fed.append(packet.pts) or packet for packet in packets), indices)

    monkeypatch.setattr(PyAvFile, "_decode_times", count)
    with open_timed(files["plain.mp4"]) as reader:  # a key frame every 12
        assert read_number(reader.read_at([40 / 30])[0]) == 40
        assert len(fed) <= 8  # from 36 to 40, and frames stored before 40 and displayed later
        fed.clear()
        reader.read_at([1 / 30, 40 / 30])
        assert len(fed) <= 12  # not the frames between


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts bytes as Linux does")
@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_long_file_is_not_read_from_its_start(tmp_path: Path, ending: str) -> None:
    rng = np.random.default_rng(2)
    noise = rng.integers(0, 256, (24, 128, 160, 3), dtype=np.uint8)
    write_mp4(tmp_path / "v.mp4", (noise[i % 24] for i in range(480)), crf=12, preset="ultrafast")
    path = copy_packets(tmp_path / "v.mp4", tmp_path / f"copy.{ending}", lambda _: True)
    size = path.stat().st_size
    assert size > 6_000_000
    before = _bytes_read()
    with open_timed(path) as reader:
        assert reader.duration_seconds == pytest.approx(16, abs=0.1)
        reader.read_at(12.0 + np.arange(4) / 30)
    # One group of 12 pictures and the header; FFmpeg reads ahead by some buffers of 32 kB.
    assert _bytes_read() - before < 0.2 * size  # PyAV 17 reads 0.165


def _bytes_read() -> int:
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def test_beyond_the_ends_the_first_and_the_last_repeat(files: dict[str, Path]) -> None:
    for name in ("plain.mp4", "plain.mkv", "plain.ts", "raw.h264"):
        with open_timed(files[name]) as reader:
            last = (FRAMES - 1) / reader.fps  # raw streams are read at 25 frames per second
            clip = reader.read_at([-1.0, -0.1, 0.0, last, last + 0.1, last + 0.4])
        assert [read_number(picture) for picture in clip] == [0, 0, 0, *[FRAMES - 1] * 3], name


def test_unreadable_file_names_its_cause(unreadable: dict[str, Path]) -> None:
    for cause, path in unreadable.items():
        # The first error occurs when the file is read; the second is a folder.
        if not cause.startswith((r"truncated or damaged after", "no pictures in it")):
            with pytest.raises(VideoReadError, match=cause):
                open_timed(path)


@pytest.mark.parametrize(
    ("inside", "words"),
    [
        (True, r"truncated or damaged at 2\.\d\d s"),
        (False, r"truncated or damaged: the last frame is at 2\.\d\d s, not at 5\.00 s"),
    ],
)
def test_truncated_file_is_an_error_at_missing_frames(tmp_path: Path, inside: bool, words: str) -> None:
    """In the middle of a frame or between two; the last frame is not repeated."""
    pictures = [numbered_picture(number, 96, 64) for number in range(150)]
    write_mp4(tmp_path / "whole.mp4", pictures, keyframe_interval=12)
    front = copy_packets(
        tmp_path / "whole.mp4", tmp_path / "front.mp4", lambda _: True, {"movflags": "faststart"}
    )
    with av.open(str(front)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    path = tmp_path / "cut.mp4"
    path.write_bytes(front.read_bytes()[: places[85] + 20 * inside])
    with open_timed(path) as reader:
        assert read_number(reader.read_at([1.0])[0]) == 30
        for second in (2.9, 4.5):
            with pytest.raises(VideoReadError, match=words):
                reader.read_at([second])
        assert read_number(reader.read_at([1.0])[0]) == 30  # an error leaves the reader usable


def test_damaged_frame_is_an_error_and_not_a_neighbor(tmp_path: Path) -> None:
    with open_timed(write_with_damage(tmp_path / "intra.mkv")) as reader:
        assert read_number(reader.read_at([0.7])[0]) == 21
        with pytest.raises(VideoReadError, match=r"the frame at 0\.67 s cannot be decoded"):
            reader.read_at([0.6, 2 / 3, 0.7])


def test_time_after_the_end_is_an_error(files: dict[str, Path]) -> None:
    """Matroska states only the length of the whole file."""
    with open_timed(files["plain.mkv"]) as reader:
        assert isinstance(reader, SeekingReader)
        with pytest.raises(VideoReadError, match=r"the last frame is at 1\.57 s, before 5\.00 s"):
            reader.read_at([5.0])


def test_video_without_times_or_rate_is_refused() -> None:
    video = MemoryReader(np.zeros((2, 4, 4, 3), np.uint8), fps=1.0)
    video.fps = 0.0
    with pytest.raises(VideoReadError, match="neither frame times nor a frame rate"):
        CountedReader(video)
