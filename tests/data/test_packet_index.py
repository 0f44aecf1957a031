"""Rates, durations and times follow from the packets and not from the header."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np
import pytest

from tests.data.make_videos import (
    FRAMES,
    VP9,
    copy_packets,
    copy_to_avi,
    read_number,
    uneven_times,
    write_video,
)
from tests.reference.decode import decode_all_timed
from videomaskfeat.data.packet_index import complete_times
from videomaskfeat.data.reader import VideoReadError
from videomaskfeat.data.readers_seeking import SeekingReader, open_timed
from videomaskfeat.data.timing import measure_timing
from videomaskfeat.data.video import open_video, probe

READERS = ["pyav", "auto"]


def numbers_at(path: Path, seconds: Sequence[float] | np.ndarray) -> list[int]:
    with open_timed(path) as reader:
        return [read_number(picture) for picture in reader.read_at(seconds)]


def numbers(path: Path, reader: str = "auto") -> list[int]:
    with open_video(path, reader) as video:
        return [read_number(picture) for picture in video.read(range(video.frames))]


def test_stated_rate_is_kept_if_the_times_agree() -> None:
    ntsc = 30000 / 1001
    timing = measure_timing(np.round(np.arange(300) / ntsc, 3), stated_fps=ntsc, tick=0.001)
    assert (timing.fps, timing.is_variable) == (ntsc, False)
    assert timing.duration_seconds == pytest.approx(300 / ntsc, abs=0.001)
    assert measure_timing(np.arange(48) / 30, stated_fps=60.0).fps == pytest.approx(30)
    assert measure_timing(np.arange(48) / 30, stated_fps=0.0).duration_seconds == pytest.approx(1.6)


def test_timing_of_a_single_frame_and_of_a_stored_pause() -> None:
    assert measure_timing(np.zeros(1), stated_fps=25.0) == measure_timing(
        np.zeros(1), stated_fps=25.0, last=0.04
    )
    assert measure_timing(np.zeros(1), stated_fps=25.0).duration_seconds == 0.04
    assert measure_timing(np.zeros(1), stated_fps=0.0).fps == 0
    pause = measure_timing(np.arange(10) / 10, stated_fps=10.0, last=2.1, last_is_stored=True)
    assert pause.duration_seconds == pytest.approx(3.0)
    assert pause.fps == pytest.approx(10 / 3)


def test_times_that_go_back_or_are_missing_are_replaced() -> None:
    for times, expected in (
        ([5, 7, 9, 5, 7, 7], [0, 2, 4, 6, 8, 10]),
        ([None, None, 7, 9, None, None, 15, None], [0, 2, 4, 6, 8, 10, 12, 14]),
        ([3], [0]),
    ):
        ticks = complete_times(times)
        assert ticks is not None
        assert ticks.tolist() == expected
    assert complete_times([None, 3]) is None
    assert complete_times([]) is None


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("ending", ["webm", "mkv", "avi", "ts", "flv", "mp4"])
def test_rate_of_uneven_frames_is_their_number_per_time(tmp_path: Path, ending: str, reader: str) -> None:
    """Matroska, WebM and AVI state 30 frames per second here."""
    options = VP9 if ending == "webm" else {"b_frames": 0}
    path = write_video(tmp_path / f"vfr.{ending}", milliseconds=uneven_times(), **options)
    times = (np.array(uneven_times()) - uneven_times()[0]) / 1000
    info = probe(path, reader)
    # The duration of the last frame is unknown, or stated as that of the frame before.
    assert info.fps == pytest.approx((FRAMES - 1) / times[-1], rel=1 / FRAMES)
    assert info.duration_seconds == pytest.approx(times[-1] + 1 / info.fps, abs=0.02)
    assert info.variable_frame_rate
    with open_video(path, reader) as video:
        assert video.fps == pytest.approx(info.fps, rel=1e-4)
    with open_timed(path) as timed:
        assert timed.fps == pytest.approx(info.fps, rel=1e-4)
        assert timed.duration_seconds == pytest.approx(info.duration_seconds, abs=0.1)


@pytest.mark.parametrize("b_frames", [0, 2])
def test_avi_that_states_twice_the_rate(tmp_path: Path, b_frames: int) -> None:
    """Copied from mp4, every other slot of the file is empty: 60 slots per second, and 30 frames."""
    source = write_video(tmp_path / "a.mp4", b_frames=b_frames)
    path = copy_to_avi(source, tmp_path / "a.avi")
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 60
    info = probe(path)
    assert (info.frames, info.fps) == (FRAMES, pytest.approx(30))
    assert info.duration_seconds == pytest.approx(1.6, abs=0.001)
    with open_timed(path) as reader:  # detect computes its key frames from these
        assert reader.duration_seconds == pytest.approx(1.6, abs=0.001)
        assert reader.fps == pytest.approx(30)
    assert numbers_at(path, np.arange(FRAMES) / 30 + 0.005) == list(range(FRAMES))


def with_edits(source: Path, target: Path, edits: Sequence[tuple[int, int]]) -> Path:
    """Write an mp4 file with other edits: (duration in movie ticks, start in media ticks) each."""
    data = source.read_bytes()

    def boxes(start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
        while start + 8 <= end:
            size, kind = struct.unpack_from(">I4s", data, start)
            yield kind, start, start + size
            start += size

    def box(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I4s", 8 + len(content), kind) + content

    moov = next(own for own in boxes(0, len(data)) if own[0] == b"moov")
    assert moov[2] == len(data)  # at the end, so that no offset changes
    movie = b""
    for kind, start, end in boxes(moov[1] + 8, moov[2]):
        if kind != b"trak":
            movie += data[start:end]
            continue
        track = b""
        for own, first, last in boxes(start + 8, end):
            if own == b"mdia":
                rows = b"".join(struct.pack(">IiI", *edit, 0x10000) for edit in edits)
                track += box(b"edts", box(b"elst", struct.pack(">II", 0, len(edits)) + rows))
            track += b"" if own == b"edts" else data[first:last]
        movie += box(b"trak", track)
    target.write_bytes(data[: moov[1]] + box(b"moov", movie))
    return target


@pytest.mark.parametrize("b_frames", [0, 2])
def test_several_edits_are_read_by_number_and_by_time(tmp_path: Path, b_frames: int) -> None:
    """Half a second from the start, and half a second from second 1."""
    source = write_video(tmp_path / "a.mp4", b_frames=b_frames)
    with av.open(str(source)) as container:
        stream = container.streams.video[0]
        second = int(1 / stream.time_base)
        start = -min(packet.dts for packet in container.demux(stream) if packet.size)
    path = with_edits(source, tmp_path / "two.mp4", [(500, start), (500, start + second)])
    expected = [*range(15), *range(30, 45)]
    for reader in READERS:
        assert numbers(path, reader) == expected
        with open_video(path, reader) as video:
            assert [read_number(picture) for picture in video.read([29, 3, 15])] == [44, 3, 30]
    with open_timed(path) as timed:
        assert not isinstance(timed, SeekingReader)
        assert timed.duration_seconds == pytest.approx(1.0, abs=0.1)
    times, pictures = decode_all_timed(path)  # FFmpeg leaves a gap at the join where frames are reordered
    assert [read_number(picture) for picture in pictures] == expected
    assert numbers_at(path, times + 0.005) == expected
    empty = with_edits(source, tmp_path / "empty.mp4", [(5000, -1), (1500, start)])
    with open_timed(
        empty
    ) as timed:  # a pause before the frames is not part of their times, and hides no frame
        assert timed.duration_seconds == pytest.approx(1.5, abs=0.04)
    assert numbers_at(empty, [0.005, 1.405]) == [0, 42]


def joined(target: Path, *recordings: bytes) -> Path:
    target.write_bytes(b"".join(recordings))
    return target


@pytest.mark.parametrize("ending", ["ts", "mpg"])
def test_joined_streams_are_read_to_their_end(tmp_path: Path, ending: str) -> None:
    codec = {"codec": "mpeg2video"} if ending == "mpg" else {}
    whole = write_video(tmp_path / f"a.{ending}", **codec).read_bytes()
    path = joined(tmp_path / f"twice.{ending}", whole, whole)
    for reader in READERS:
        assert numbers(path, reader) == [*range(FRAMES), *range(FRAMES)]
    with open_video(path) as video:
        assert [read_number(picture) for picture in video.read([95, 0, 50, 40])] == [47, 0, 2, 40]
    info = probe(path)
    assert (info.fps, info.variable_frame_rate) == (pytest.approx(30), False)
    assert info.duration_seconds == pytest.approx(3.2, abs=0.01)
    with open_timed(path) as reader:
        assert reader.duration_seconds == pytest.approx(3.2, abs=0.01)
    assert numbers_at(path, np.array([3.0, 1.7, 0.1, 3.19]) + 0.005) == [42, 3, 3, 47]


def test_second_recording_may_have_another_rate_or_start(tmp_path: Path) -> None:
    first = write_video(tmp_path / "a.ts", frames=24).read_bytes()
    slow = write_video(tmp_path / "b.ts", frames=24, milliseconds=[40 * n for n in range(24)]).read_bytes()
    assert numbers(joined(tmp_path / "slow.ts", first, slow)) == [*range(24)] * 2
    assert numbers_at(tmp_path / "slow.ts", [0.8 + 0.04 * 20 + 0.005]) == [20]
    late = write_video(tmp_path / "c.ts", frames=24, container_options={"output_ts_offset": "100"})
    path = joined(tmp_path / "late.ts", first, late.read_bytes())
    assert probe(path).duration_seconds < 2  # FFmpeg closes gaps of more than 10 s, too
    cut = copy_packets(tmp_path / "a.ts", tmp_path / "cut.ts", lambda number: number >= 5)
    assert numbers(joined(tmp_path / "cut_join.ts", first, cut.read_bytes())) == [*range(24), *range(12, 24)]


def test_damage_in_a_transport_stream_is_an_error(tmp_path: Path) -> None:
    """Packets are missing within a group; a join is followed by a key frame."""
    data = write_video(tmp_path / "a.ts", group=250).read_bytes()
    middle = len(data) // 376 * 188
    path = joined(tmp_path / "lost.ts", data[:middle], data[middle + 188 * 3 :])
    with pytest.raises(VideoReadError, match=r"truncated or damaged after frame \d+"):
        open_video(path)


@pytest.mark.parametrize("ending", ["mkv", "webm"])
def test_joined_matroska_is_read_by_time_and_by_number(tmp_path: Path, ending: str) -> None:
    options = VP9 if ending == "webm" else {}
    whole = write_video(tmp_path / f"a.{ending}", **options).read_bytes()
    path = joined(tmp_path / f"twice.{ending}", whole, whole)
    for reader in READERS:
        assert numbers(path, reader) == [*range(FRAMES), *range(FRAMES)]
    assert numbers_at(path, [0.005, 3.105]) == [0, 45]


def test_raw_streams_have_the_rate_of_their_codec_header(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.h264")
    assert probe(path).fps == 30
    assert (
        numbers(joined(tmp_path / "twice.h264", path.read_bytes(), path.read_bytes())) == [*range(FRAMES)] * 2
    )


def test_duration_of_a_gif_includes_its_final_pause(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    with av.open(str(path), "w", options={"final_delay": "200"}) as container:
        stream = container.add_stream("gif", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "rgb8"
        for _ in range(10):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 96, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame.reformat(format="rgb8")))
        container.mux(stream.encode(None))
    info = probe(path)
    assert info.frames == 10
    assert info.duration_seconds == pytest.approx(2.9, abs=0.01)
    with open_timed(path) as reader:
        assert reader.duration_seconds == pytest.approx(2.9, abs=0.01)
        assert reader.read_at([2.8]).shape == (1, 64, 96, 3)


@pytest.mark.parametrize("factor", [0.5, 3.0])
@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_stated_duration_is_ignored(tmp_path: Path, ending: str, factor: float) -> None:
    path = write_video(tmp_path / f"a.{ending}")
    data = bytearray(path.read_bytes())
    if ending == "mp4":
        for kind, offset in ((b"mvhd", 20), (b"mdhd", 20), (b"tkhd", 24)):
            place = data.index(kind) + offset
            struct.pack_into(">I", data, place, int(struct.unpack_from(">I", data, place)[0] * factor))
    else:
        place = data.index(b"\x44\x89\x88") + 3  # the element Duration, of 8 bytes
        struct.pack_into(">d", data, place, struct.unpack_from(">d", data, place)[0] * factor)
    path.write_bytes(bytes(data))
    for reader in READERS:
        assert probe(path, reader).duration_seconds == pytest.approx(1.6, abs=0.002)
    with open_timed(path) as timed:
        assert timed.duration_seconds == pytest.approx(1.6, abs=0.002)
    assert numbers_at(path, [1.505]) == [45]
