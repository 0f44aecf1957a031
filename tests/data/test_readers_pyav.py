"""A path is one local file whatever its name and content; frames have the orientation of ffmpeg."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from tests.data.make_videos import HAS_DECORD, READERS, VP9, read_number, write_video
from videomaskfeat.data import readers_pyav
from videomaskfeat.data.readers_pyav import PyAvReader
from videomaskfeat.data.readers_seeking import open_timed
from videomaskfeat.data.video import VideoReadError, open_video, probe
from videomaskfeat.mp4 import write_mp4


def damage_last_packets(path: Path) -> Path:
    """Overwrite frame 6 and later frames; the index remains."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for packet in packets[6:]:
        assert packet.pos is not None
        data[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    path.write_bytes(data)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("videos")
    return {
        "one_frame.mp4": write_video(folder / "one_frame.mp4", frames=1),
        "damaged.mp4": damage_last_packets(write_video(folder / "damaged.mp4", frames=12)),
        "plain.ts": write_video(folder / "plain.ts", frames=12),
    }


FILE_NAMES = [
    "2024-01-01T12:00:00.mp4", "-x.mp4", "a%03d.mp4", "concat:x.mp4", "pipe:0", "@a.mp4", "#1.mp4", "q?.mp4",
    "new\nline.mp4", "caf\udce9.mp4", "x" * 251 + ".mp4", "file:a.mp4", "http:a.mp4",
]  # fmt: skip


@pytest.mark.parametrize("name", FILE_NAMES, ids=ascii)
def test_any_name_is_a_local_file(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(files["one_frame.mp4"].read_bytes())
    for reader in ("auto", "decord", "pyav") if HAS_DECORD and name.isprintable() else ("auto", "pyav"):
        assert probe(name, reader).frames == 1
    with open_timed(name) as timed:
        assert read_number(timed.read_at([0.0])[0]) == 0


def test_videos_are_written_under_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_mp4("10:00:00.mp4", np.zeros((2, 32, 64, 3), np.uint8))
    assert [path.name for path in tmp_path.iterdir()] == ["10:00:00.mp4"]
    assert probe("10:00:00.mp4").frames == 2


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile one.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2.0,\none.ts\n#EXT-X-ENDLIST\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n",
    ],
    ids=["concat", "hls", "sdp"],
)
@pytest.mark.parametrize("suffix", ["mp4", "m3u8"])
def test_file_that_refers_to_others_is_refused(
    files: dict[str, Path], tmp_path: Path, text: str, suffix: str
) -> None:
    (tmp_path / "one.mp4").write_bytes(files["one_frame.mp4"].read_bytes())
    (tmp_path / "one.ts").write_bytes(files["plain.ts"].read_bytes())
    path = tmp_path / f"list.{suffix}"
    path.write_text(text)
    for reader in ("auto", "pyav"):
        with pytest.raises(VideoReadError, match="not a video file"):
            open_video(path, reader)


def test_number_in_a_name_is_not_a_pattern(tmp_path: Path) -> None:
    for number, name in enumerate(("a001.jp2", "a002.jp2", "a%03d.jp2")):
        assert cv2.imwrite(str(tmp_path / name), np.full((64, 64, 3), 50 * number, np.uint8))
    with open_video(tmp_path / "a%03d.jp2") as opened:
        assert opened.frames == 1
        assert opened.read([0]).mean() == pytest.approx(100, abs=2)


def test_error_of_a_remote_path_names_the_cause() -> None:
    with pytest.raises(
        VideoReadError, match=r"s3://a/b\.mp4: no handler for s3://, only local files are read"
    ):
        open_video("s3://a/b.mp4")
    with pytest.raises(VideoReadError, match=r"1:2\.mp4: no such file"):
        open_video("1:2.mp4")


class Clock:
    """``time.monotonic``, the clock of FFmpeg's limit, with jumps, as if the process was stopped."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._real = time.monotonic
        self.calls, self.jumps, self._jumped = 0, range(0), 0
        monkeypatch.setattr(time, "monotonic", self)

    def __call__(self) -> float:
        self.calls += 1
        self._jumped += self.calls in self.jumps
        return self._real() + 5 * self._jumped

    def start(self, jumps: range) -> None:
        """Restart counting calls at 0."""
        self.calls, self.jumps = 0, jumps


@pytest.mark.parametrize("ending", ["mp4", "ts", "avi", "h264"])
def test_stopped_process_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    """Stopped for longer than the limit of 4 s, at any call into FFmpeg."""
    path = write_video(tmp_path / f"a.{ending}", frames=6)

    def read() -> tuple[list[float], list[int]]:
        with open_video(path, "pyav") as counted, open_timed(path) as timed:
            facts = [counted.frames, counted.fps, timed.duration_seconds]
            frames = [*counted.read([0, 3, 5]), *timed.read_at([0.0, 0.1])]
        return facts, [read_number(frame) for frame in frames]

    clock = Clock(monkeypatch)
    expected = read()
    calls = clock.calls
    for place in range(1, calls + 1, 1 + calls // 20):
        clock.start(range(place, place + 1))
        assert read() == expected


def test_process_that_is_always_stopped_raises(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    Clock(monkeypatch).start(range(1_000_000))
    with pytest.raises(VideoReadError, match="a disk that is too slow: nothing to read within 4 s"):
        open_video(files["one_frame.mp4"], "pyav")


def test_file_that_keeps_the_processor_busy_is_not_retried(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    clock.start(range(2, 3))
    monkeypatch.setattr(time, "thread_time", lambda: 3.0 * clock.calls)
    with pytest.raises(VideoReadError, match="nothing to read within 4 s"):
        open_video(files["one_frame.mp4"], "pyav")


def test_failed_decoder_is_replaced_before_the_next_read(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may keep parts of a damaged packet, which would change later frames."""
    reopened = []
    reopen = PyAvReader._reopen
    monkeypatch.setattr(PyAvReader, "_reopen", lambda self: (reopened.append(self.path), reopen(self))[1])
    with PyAvReader(str(files["damaged.mp4"])) as video:
        for index in (0, 11):
            with contextlib.suppress(VideoReadError):
                video.read([index])
        before = len(reopened)
        assert read_number(video.read([0])[0]) == 0
        assert len(reopened) == before + 1
        video.read([0])
        assert len(reopened) == before + 1


def test_number_of_frames_is_bounded(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers_pyav, "_MOST_PACKETS", 11)
    with pytest.raises(VideoReadError, match=r"plain\.ts: more than 11 frames$"):
        open_video(files["plain.ts"], "pyav")
    monkeypatch.setattr(readers_pyav, "_MOST_PACKETS", 12)
    with open_video(files["plain.ts"], "pyav") as video:
        assert video.frames == 12


SHORT = 4

# Display matrix (a, b, c, d) of ISO/IEC 14496-12: (x, y) is displayed at (ax + cy, bx + dy), y downwards ->
# degrees clockwise, mirrored before, and the same in numpy, which rotates counterclockwise.
ORIENTATIONS: dict[tuple[int, int, int, int], tuple[int, bool, Callable[[np.ndarray], np.ndarray]]] = {
    (1, 0, 0, 1): (0, False, lambda stored: stored),
    (0, 1, -1, 0): (90, False, lambda stored: np.rot90(stored, -1)),
    (-1, 0, 0, -1): (180, False, lambda stored: stored[::-1, ::-1]),
    (0, -1, 1, 0): (270, False, lambda stored: np.rot90(stored)),
    (-1, 0, 0, 1): (0, True, lambda stored: stored[:, ::-1]),
    (1, 0, 0, -1): (180, True, lambda stored: stored[::-1]),
    (0, 1, 1, 0): (270, True, lambda stored: stored.transpose(1, 0, 2)),
    (0, -1, -1, 0): (90, True, lambda stored: stored[::-1, ::-1].transpose(1, 0, 2)),
}
KINDS = {"mp4": {}, "mov": {}, "mkv": {}, "webm": VP9}


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[object, str], Path]:
    folder = tmp_path_factory.mktemp("turned")
    return {
        (matrix, kind): write_video(
            folder / f"{place}.{kind}", frames=SHORT, width=100, height=66, matrix=matrix, **options
        )
        for kind, options in KINDS.items()
        for place, matrix in enumerate(ORIENTATIONS)
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reader", READERS)
def test_every_orientation_follows_the_display_matrix(
    turned: dict[tuple[object, str], Path], kind: str, reader: str
) -> None:
    with open_video(turned[(1, 0, 0, 1), kind], reader) as upright:
        stored = upright.read(range(SHORT))
    for matrix, (degrees, mirrored, turn) in ORIENTATIONS.items():
        path = turned[matrix, kind]
        expected = np.stack([turn(picture) for picture in stored])
        with open_video(path, reader) as opened:
            np.testing.assert_array_equal(opened.read(range(SHORT)), expected, err_msg=f"{matrix} in {kind}")
        info = probe(path, reader)
        assert (info.rotation_degrees, info.mirrored) == (degrees, mirrored)
        assert (info.height, info.width) == expected.shape[1:3]


@pytest.mark.parametrize("kind", KINDS)
def test_frames_by_time_have_the_same_orientation(turned: dict[tuple[object, str], Path], kind: str) -> None:
    for matrix in ((0, 1, -1, 0), (-1, 0, 0, 1), (0, 1, 1, 0)):
        path = turned[matrix, kind]
        with open_video(path) as by_number, open_timed(path) as by_time:
            np.testing.assert_array_equal(by_time.read_at([0.0]), by_number.read([0]))


def test_odd_angle_is_rotated_within_the_same_size(tmp_path: Path) -> None:
    """As in ffmpeg: corners are cropped, and pixels outside the picture are black."""
    path = write_video(tmp_path / "30.mkv", frames=2, rotation=-30)
    info = probe(path)
    assert (info.rotation_degrees, info.width, info.height) == (30, 96, 64)
    with open_video(path) as opened, open_video(write_video(tmp_path / "0.mkv", frames=2)) as upright:
        turned, stored = opened.read([0])[0].astype(int), upright.read([0])[0].astype(int)
    assert turned[0, 0].max() < 20  # a corner that no stored pixel reaches
    assert np.abs(turned[32, 48] - stored[32, 48]).max() < 50  # the center stays, between dark and bright
