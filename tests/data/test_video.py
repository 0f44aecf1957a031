"""Frames by index: every reader equals decoding from the start, on every kind of file."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.packet import Packet

from tests.data.make_videos import (
    FRAMES,
    READERS,
    VP9,
    needs_decord,
    read_number,
    uneven_times,
    write_video,
    write_with_damage,
)
from tests.reference.decode import decode_all
from videomaskfeat.data import readers_decord, readers_pyav
from videomaskfeat.data.packet_index import PacketIndex
from videomaskfeat.data.readers_pyav import PyAvReader
from videomaskfeat.data.readers_seeking import open_timed
from videomaskfeat.data.video import MemoryReader, VideoReadError, available_readers, open_video, probe
from videomaskfeat.errors import UserError

NAMES = [
    "plain.mp4", "sound.mp4", "one_frame.mp4", "one_group.mp4", "all_keys.mp4", "many_b.mp4", "vfr.mp4",
    "open_groups.mp4", "recovery_points.mp4", "mpeg4_open.mp4", "portrait.mp4",
    "turned_90.mp4", "turned_180.mp4", "turned_270.mp4", "turned_small.mp4", "odd_444.mp4",
    "fragmented.mp4", "plain.mkv", "plain.ts", "mpeg4.avi", "mpeg4_b.avi", "h264_b.avi",
    "mpeg2.mpg", "raw.h264", "vp9.webm", "vp9_odd_width.webm", "vp9_odd.webm", "cut_plain.mp4",
    "cut_plain.mkv", "cut_plain.ts", "cut_open_groups.mp4", "cut_open_groups.mkv",
    "cut_vp9.webm",
]  # fmt: skip
# The files that decord reads; for the others its frame indices or colors are wrong (see containers.py).
DECORD_READS = {
    "plain.mp4", "sound.mp4", "one_frame.mp4", "one_group.mp4", "all_keys.mp4", "many_b.mp4", "vfr.mp4",
    "portrait.mp4", "turned_90.mp4", "turned_180.mp4", "turned_270.mp4", "vp9.webm", "vp9_odd_width.webm",
}  # fmt: skip


def test_every_kind_of_file_is_tested(files: dict[str, Path]) -> None:
    assert set(files) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("reader", READERS)
def test_same_index_gives_same_picture(files: dict[str, Path], name: str, reader: str) -> None:
    expected = decode_all(files[name])
    # Bit-equal on H.264; VP9 and MPEG-4 decoders of different years may round a level or two apart.
    tolerance = 0 if "vp9" not in name and "mpeg" not in name else 2
    rng = np.random.default_rng(0)
    with open_video(files[name], reader) as opened:
        assert opened.frames == len(expected)
        for count in (1, 3, 20, 7):
            indices = rng.integers(0, len(expected), count)  # unordered, with repeats
            clip = opened.read(indices)
            assert clip.dtype == np.uint8
            assert clip.shape == expected[indices].shape
            assert np.abs(clip.astype(int) - expected[indices]).max() <= tolerance
        last = opened.read([len(expected) - 1])
        assert np.abs(last.astype(int) - expected[-1:]).max() <= tolerance


@pytest.mark.parametrize(
    "name",
    ["plain.mp4", "vfr.mp4", "vp9.webm", "recovery_points.mp4", "turned_90.mp4", "plain.ts", "raw.h264"],
)
@pytest.mark.parametrize("reader", READERS)
def test_iter_frames_equals_read(files: dict[str, Path], name: str, reader: str) -> None:
    rng = np.random.default_rng(1)
    with open_video(files[name], reader) as opened:
        for count in (1, 6, 40):
            requested = rng.integers(0, opened.frames, count)  # unordered, with repeats
            pictures = [(index, picture.copy()) for index, picture in opened.iter_frames(requested)]
            indices = [index for index, _ in pictures]
            assert sorted(indices) == np.unique(requested).tolist()
            assert np.array_equal(np.stack([picture for _, picture in pictures]), opened.read(indices))


@pytest.mark.parametrize(
    "name", ["plain.mp4", "vfr.mp4", "vp9.webm", "open_groups.mp4", "plain.ts", "raw.h264"]
)
def test_index_is_the_number_of_the_frame_written(files: dict[str, Path], name: str) -> None:
    with open_video(files[name]) as opened:
        assert opened.frames == FRAMES
        clip = opened.read(range(FRAMES))
    assert [read_number(picture) for picture in clip] == list(range(FRAMES))


@pytest.mark.parametrize("name", ["cut_plain.mp4", "cut_plain.ts", "cut_vp9.webm"])
@pytest.mark.parametrize("reader", READERS)
def test_cut_file_counts_from_the_first_frame_that_can_be_decoded(
    files: dict[str, Path], name: str, reader: str
) -> None:
    # Key frames were written at 0, 12, 24, 36; packets 0 to 4 are gone, so 12 is the first whole picture.
    with open_video(files[name], reader) as opened:
        assert opened.frames == FRAMES - 12
        assert [read_number(picture) for picture in opened.read([0, 5, 35])] == [12, 17, 47]


@needs_decord
@pytest.mark.parametrize("name", NAMES)
def test_decord_reads_what_it_reads_exactly(files: dict[str, Path], name: str) -> None:
    with open_video(files[name], "decord") as opened:
        assert opened.decoder == ("decord" if name in DECORD_READS else "pyav")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("name", "degrees"), [("turned_90", 90), ("turned_180", 180), ("turned_270", 270)])
def test_rotation_is_reported_and_applied(
    files: dict[str, Path], name: str, degrees: int, reader: str
) -> None:
    info = probe(files[f"{name}.mp4"], reader)
    assert info.rotation_degrees == degrees
    assert (info.width, info.height) == ((96, 64) if degrees == 180 else (64, 96))
    with open_video(files[f"{name}.mp4"], reader) as opened:
        picture = opened.read([5])[0]
    stored = np.rot90(picture, degrees // 90)  # numpy rotates counterclockwise: undoes the rotation
    assert read_number(stored) == 5


@pytest.mark.parametrize("reader", READERS)
def test_probe_returns_the_facts(files: dict[str, Path], reader: str) -> None:
    info = probe(files["plain.mp4"], reader)
    assert (info.frames, info.width, info.height, info.codec) == (FRAMES, 96, 64, "h264")
    assert info.fps == 30
    assert info.duration_seconds == pytest.approx(FRAMES / 30, abs=1e-6)
    assert (info.rotation_degrees, info.variable_frame_rate) == (0, False)
    assert probe(files["sound.mp4"], reader).duration_seconds == info.duration_seconds
    assert probe(files["vp9.webm"], reader).codec == "vp9"
    assert not probe(files["vp9.webm"], reader).variable_frame_rate  # only its clock rounds to milliseconds
    assert probe(files["one_frame.mp4"], reader).frames == 1


def test_variable_frame_rate_is_reported(files: dict[str, Path]) -> None:
    info = probe(files["vfr.mp4"])
    assert info.variable_frame_rate
    times = uneven_times()
    # FFmpeg includes the last frame's duration, which the file does not state: within a frame.
    assert info.fps == pytest.approx(1000 * (FRAMES - 1) / (times[-1] - times[0]), rel=1 / FRAMES)
    assert info.duration_seconds == pytest.approx((times[-1] - times[0]) / 1000 + 1 / info.fps, abs=0.001)


@pytest.mark.parametrize("reader", READERS)
def test_unreadable_file_names_its_cause(unreadable: dict[str, Path], reader: str) -> None:
    for cause, path in unreadable.items():
        with pytest.raises(VideoReadError, match=cause) as caught:
            open_video(path, reader)
        assert caught.value.path == str(path)


def test_auto_uses_pyav_if_decord_fails_to_open(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise VideoReadError("plain.mp4", "decord: no")

    with monkeypatch.context() as patched:
        patched.setattr(readers_decord, "DecordReader", refuse)
        with open_video(files["plain.mp4"], "auto") as opened:
            assert opened.decoder == "pyav"
        with pytest.raises(VideoReadError, match="decord: no"):
            open_video(files["plain.mp4"], "decord")


@needs_decord
def test_auto_switches_to_pyav_if_decord_fails_on_a_frame(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers_decord.DecordReader, "_read", _refuse_to_read)
    with open_video(files["plain.mp4"], "auto") as opened:
        assert opened.decoder == "decord"
        assert read_number(opened.read([7])[0]) == 7
        assert opened.decoder == "pyav"


@needs_decord
def test_auto_switches_to_pyav_in_the_middle_of_a_pass(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = readers_decord.DecordReader._read

    def refuse_20(self: readers_decord.DecordReader, indices: np.ndarray) -> np.ndarray:
        return _refuse_to_read(self, indices) if 20 in indices else read(self, indices)

    monkeypatch.setattr(readers_decord.DecordReader, "_read", refuse_20)
    with open_video(files["plain.mp4"], "auto") as opened:
        numbers = [(index, read_number(picture)) for index, picture in opened.iter_frames([3, 40, 20, 11])]
        assert numbers == [(3, 3), (11, 11), (20, 20), (40, 40)]
        assert opened.decoder == "pyav"


def _refuse_to_read(self: object, indices: np.ndarray) -> np.ndarray:
    raise VideoReadError("plain.mp4", "decord: no")


def test_package_works_without_decord(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "decord", None)
    assert available_readers()["decord"].startswith("missing")
    with open_video(files["plain.mp4"], "auto") as opened:
        assert opened.decoder == "pyav"
    with pytest.raises(UserError, match="reader 'decord' is not installed; pip install decord"):
        open_video(files["plain.mp4"], "decord")


def test_unknown_reader_names_the_nearest(files: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="'pyva' is unknown; did you mean 'pyav'"):
        open_video(files["plain.mp4"], "pyva")


@pytest.mark.parametrize("reader", READERS)
def test_index_outside_the_video_is_an_error(files: dict[str, Path], reader: str) -> None:
    with open_video(files["plain.mp4"], reader) as opened:
        for indices, words in (
            ([48], "frame 48 is outside 0..47"),
            ([-1], "frame -1 is"),
            ([], "at least one"),
        ):
            with pytest.raises(IndexError, match=words):
                opened.read(indices)
            with pytest.raises(IndexError, match=words):
                opened.iter_frames(indices)


def test_damaged_frame_is_an_error_and_not_a_neighbor(tmp_path: Path) -> None:
    with open_video(write_with_damage(tmp_path / "intra.mkv")) as opened:
        assert read_number(opened.read([21])[0]) == 21
        for read in (opened.read, lambda indices: list(opened.iter_frames(indices))):
            with pytest.raises(VideoReadError, match="frame 20 of 48 cannot be decoded"):
                read([19, 20, 21])


def test_only_requested_frames_are_converted(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    converted = []
    picture = PyAvReader._picture
    monkeypatch.setattr(
        PyAvReader, "_picture", lambda self, frame: converted.append(1) or picture(self, frame)
    )
    with open_video(files["plain.mp4"], "pyav") as opened:
        opened.read([30, 4, 4, 44])
    assert len(converted) == 3


def test_decoding_starts_at_the_key_frame_before(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = []
    packets_from = PyAvReader._packets_from

    def count(self: PyAvReader, index: PacketIndex, key: int) -> Iterator[Packet]:
        for packet in packets_from(self, index, key):
            fed.append(packet.pts)
            yield packet

    monkeypatch.setattr(PyAvReader, "_packets_from", count)
    with open_video(files["plain.mp4"], "pyav") as opened:
        opened.read([40])
    assert len(fed) <= 8  # from 36 to 40, and frames that H.264 stores before 40 and displays later


def test_nothing_is_written_to_the_terminal(
    files: dict[str, Path], unreadable: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    for path in [*unreadable.values(), files["cut_plain.mp4"], files["cut_vp9.webm"]]:
        for reader in ("auto", "pyav"):
            try:
                with open_video(path, reader) as opened:
                    opened.read([0])
            except VideoReadError:
                pass
    assert capfd.readouterr() == ("", "")


def test_error_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(VideoReadError("a.mp4", "empty file (0 bytes)")))
    assert (error.path, error.cause, str(error)) == (
        "a.mp4",
        "empty file (0 bytes)",
        "a.mp4: empty file (0 bytes)",
    )


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_memory_stays_level_over_many_videos(files: dict[str, Path], reader: str) -> None:
    def resident_megabytes() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

    names = ["plain.mp4", "portrait.mp4", "turned_90.mp4", "vp9.webm", "cut_plain.mp4"]
    after = []
    for round_number in range(400):
        for name in names:
            with open_video(files[name], reader) as opened:
                opened.read([0, 9, 18, 27, 30])
        if round_number in (100, 399):
            after.append(resident_megabytes())
    assert after[1] - after[0] < 5  # 1,500 openings; a leak of one small picture each would be 27 MB


@pytest.fixture
def strange_files(tmp_path: Path) -> dict[str, Path]:
    """Special files, which would block, also in a folder of frames."""
    (tmp_path / "frames").mkdir()
    for name in ("pipe.mp4", "pipe.png", "frames/0001.jpg"):
        os.mkfifo(tmp_path / name)
    for name, target in (("link.webm", "pipe.mp4"), ("zero.mp4", "/dev/zero"), ("zero.jpg", "/dev/zero")):
        (tmp_path / name).symlink_to(target)
    return {path.name: path for path in tmp_path.iterdir()}


@pytest.mark.parametrize("reader", READERS)
def test_only_regular_files_are_read(strange_files: dict[str, Path], reader: str) -> None:
    def stop(*_: object) -> None:
        raise TimeoutError("still waiting for a pipe or a device")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 5)
    try:
        for path in strange_files.values():
            with (
                pytest.raises(VideoReadError, match="not a regular file"),
                open_video(path, reader) as opened,
            ):
                opened.read([0])
            if path.suffix in (".mp4", ".webm"):
                with pytest.raises(VideoReadError, match="not a regular file"):
                    open_timed(path)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_playlist_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    """FFmpeg would read the files in a playlist, and wait for more in a live recording."""
    shutil.copy(files["plain.ts"], tmp_path / "part.ts")
    (tmp_path / "live.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\npart.ts\n")
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile part.ts\n")
    for name in ("live.m3u8", "list.mp4"):
        with pytest.raises(VideoReadError, match="not a video file, or a playlist"):
            open_video(tmp_path / name, "pyav")


def test_sparse_file_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "a.h264"
    shutil.copy(files["raw.h264"], path)
    os.truncate(path, 20 << 30)
    if os.stat(path).st_blocks * 512 > 1 << 30:
        pytest.skip("this file system stores holes")
    with pytest.raises(VideoReadError, match="a sparse file: 21,474,836,480 bytes, but only"):
        open_video(path)


def test_pictures_beyond_the_limit_are_refused(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers_pyav, "MOST_PIXELS", 96 * 64 - 1)
    with pytest.raises(VideoReadError, match="pictures of 96x64; at most 6,143 pixels are read"):
        open_video(files["plain.mp4"], "pyav")


def test_clip_larger_than_the_memory_is_unreadable(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PyAvReader, "_read", lambda self, indices: np.empty((1 << 50, 3), np.uint8))
    with (
        open_video(files["plain.mp4"], "pyav") as opened,
        pytest.raises(VideoReadError, match="2 frames do not fit in memory"),
    ):
        opened.read([0, 1])


def test_size_that_changes_is_scaled_to_the_first(tmp_path: Path) -> None:
    """As in ffmpeg, also if a later picture is read first."""
    small = write_video(tmp_path / "small.mkv", frames=4, **VP9)
    large = write_video(tmp_path / "large.mkv", frames=4, width=128, height=96, **VP9)
    path = tmp_path / "both.mkv"
    with av.open(str(path), "w") as target:
        copy: Any = None
        for part, source in enumerate((small, large)):
            with av.open(str(source)) as opened:
                stream = opened.streams.video[0]
                copy = copy or target.add_stream_from_template(stream)
                for number, packet in enumerate(packet for packet in opened.demux(stream) if packet.size):
                    packet.stream = copy
                    packet.pts = packet.dts = (4 * part + number) * 33
                    target.mux(packet)
    with open_video(path, "pyav") as opened:
        later = opened.read([5])
    with open_video(path, "pyav") as opened:
        clip = opened.read(range(8))
    assert clip.shape == (8, 64, 96, 3)
    np.testing.assert_array_equal(clip[5:6], later)
    assert [read_number(picture) for picture in clip] == [0, 1, 2, 3, 0, 1, 2, 3]


NOISE = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)


def test_frames_in_memory_are_copied() -> None:
    with MemoryReader(NOISE, fps=12.5) as video:
        assert (video.frames, video.fps, video.info.duration_seconds) == (6, 12.5, 0.48)
        assert (video.info.width, video.info.height) == (5, 4)
        read = video.read([4, 0, 4])
        np.testing.assert_array_equal(read, np.stack([NOISE[4], NOISE[0], NOISE[4]]))
        read[:] = 0
        assert NOISE[4].any()
        with pytest.raises(IndexError, match=r"frames in memory: frame 6 is outside 0\.\.5"):
            video.read([6])


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (NOISE / 255.0, r"frames of float64 6x4x5x3: must be uint8 \[T, H, W, 3\]"),
        (NOISE[0], r"frames of uint8 4x5x3: must be"),
        (NOISE.transpose(0, 3, 1, 2), r"frames of uint8 6x3x4x5: must be"),
        (NOISE[:0], r"frames of uint8 0x4x5x3: .*with at least one frame"),
        (np.uint8(3), r"frames of uint8 without shape: must be"),
    ],
)
def test_other_arrays_are_refused(frames: np.ndarray, words: str) -> None:
    with pytest.raises(UserError, match=words):
        MemoryReader(frames, fps=30.0)


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan")])
def test_impossible_frame_rate_is_refused(fps: float) -> None:
    with pytest.raises(UserError, match=r"fps=.*: must be a positive number of frames per second"):
        MemoryReader(NOISE, fps=fps)
