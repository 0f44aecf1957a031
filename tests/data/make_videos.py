"""Writers of small video files of every kind.

Each frame shows its number as eight black or white patches, so that a test can identify it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext

from videomaskfeat.data.video import available_readers

FRAMES = 48
HAS_DECORD = not available_readers()["decord"].startswith("missing")
needs_decord = pytest.mark.skipif(not HAS_DECORD, reason="decord has no wheel for this machine")
TORCHCODEC = available_readers()["torchcodec"]
needs_torchcodec = pytest.mark.skipif(TORCHCODEC.startswith("missing"), reason=f"torchcodec is {TORCHCODEC}")
READERS = [
    "pyav",
    "auto",
    pytest.param("decord", marks=needs_decord),
    pytest.param("torchcodec", marks=needs_torchcodec),
]


def numbered_picture(number: int, width: int, height: int) -> np.ndarray:
    """uint8 [H, W, 3]: eight patches with ``number`` in binary, a moving disc, one marked corner."""
    picture = np.full((height, width, 3), (60, 120, 90), np.uint8)
    picture[:, : width // 2, 0] += np.uint8(number % 40)
    for bit in range(8):
        level = 235 if number >> bit & 1 else 20
        picture[height // 2 : height * 3 // 4, bit * width // 8 : (bit + 1) * width // 8] = level
    cv2.circle(picture, (width * (number % 30) // 30, height // 4), max(3, height // 8), (220, 30, 30), -1)
    picture[: height // 8, : width // 8] = (30, 30, 220)
    return picture


def read_number(picture: np.ndarray) -> int:
    """The number in an upright picture, uint8 [H, W, 3]."""
    height, width = picture.shape[:2]
    row = picture[height * 9 // 16 : height * 11 // 16].mean(axis=(0, 2))
    centers = (np.arange(8) * 2 + 1) * width // 16
    return int(sum(1 << bit for bit in range(8) if row[centers[bit] - 1 : centers[bit] + 2].mean() > 128))


def write_video(
    path: Path,
    *,
    frames: int = FRAMES,
    width: int = 96,
    height: int = 64,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    group: int = 12,
    b_frames: int = 2,
    milliseconds: Sequence[int] | None = None,
    rotation: float | None = None,
    matrix: Sequence[int] | None = None,
    audio: bool = False,
    container_options: dict[str, str] | None = None,
    **options: str,
) -> Path:
    """Write numbered frames at 30 fps, or at the given times; ``options`` go to the encoder.

    The display matrix is (a, b, c, d) in whole numbers; a rotation, in degrees, is counter-clockwise.
    """
    if codec == "libx264":
        options = {"preset": "veryfast", "sc_threshold": "0", **options}  # key frames at fixed distances
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream: Any = container.add_stream(codec, rate=30, options={"threads": "1", **options})
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = group, b_frames
        if milliseconds is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if matrix is not None:
            a, b, c, d = (value << 16 for value in matrix)
            stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        sound: Any = container.add_stream("aac", rate=16000, layout="mono") if audio else None
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered_picture(number, width, height), format="rgb24")
            if milliseconds is not None:
                frame.pts, frame.time_base = milliseconds[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
            if audio:
                container.mux(sound.encode(_silence(number)))
        container.mux(stream.encode(None))
        if audio:
            container.mux(sound.encode(None))
    return path


def write_audio(path: Path) -> Path:
    """Write a file without pictures."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=16000, layout="mono")
        for number in range(20):
            container.mux(stream.encode(_silence(number)))
        container.mux(stream.encode(None))
    return path


def _silence(number: int) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
    frame.sample_rate, frame.pts = 16000, number * 1024
    return frame


def copy_packets(
    source: Path, target: Path, keep: Callable[[int], bool], options: dict[str, str] | None = None
) -> Path:
    """Copy the packets whose number in the file satisfies ``keep``, without encoding."""
    with av.open(str(source)) as old, av.open(str(target), "w", options=options or {}) as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        for number, packet in enumerate(old.demux(stream)):
            if packet.size and keep(number):
                packet.stream = copy
                new.mux(packet)
    return target


def copy_to_avi(source: Path, target: Path, *, slots: int = 60) -> Path:
    """Copy H.264 packets of an mp4 file into an AVI file with ``slots`` slots per second.

    The header of the AVI file states ``slots`` frames per second. Of a video at 30 fps, every other one of
    60 slots is empty.
    """
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        copy.time_base = Fraction(1, slots)
        annexb = BitStreamFilterContext("h264_mp4toannexb", stream, copy)
        for packet in old.demux(stream):
            for own in annexb.filter(packet if packet.size else None):
                own.stream = copy
                new.mux(own)
    return target


def write_with_damage(path: Path) -> Path:
    """Write a video of key frames alone; the bytes of frame 20 are overwritten with zeros."""
    write_video(path, codec="mjpeg", pixels="yuvj420p", b_frames=0)
    data = bytearray(path.read_bytes())
    frames = [i for i in range(len(data) - 1) if data[i : i + 2] == b"\xff\xd8"]
    data[frames[20] : frames[21] - 12] = bytes(frames[21] - 12 - frames[20])
    path.write_bytes(data)
    return path


def uneven_times(frames: int = FRAMES) -> list[int]:
    """Milliseconds with gaps of 10 to 90."""
    return np.cumsum(np.random.default_rng(0).integers(10, 90, frames)).tolist()


OPEN_GROUPS = {"x264-params": "open-gop=1:keyint=12:bframes=3:b-adapt=0:scenecut=0"}
# Key frames that no earlier picture follows, but that do not reset the decoder.
RECOVERY_POINTS = {
    "x264-params": "open-gop=1:keyint=12:bframes=3:b-adapt=0:scenecut=100:min-keyint=3",
    "sc_threshold": "100",
}
VP9 = {"codec": "libvpx-vp9", "b_frames": 0, "cpu-used": "8", "deadline": "realtime"}


def make_all(folder: Path) -> dict[str, Path]:
    """Write every readable kind of file: name -> path. The extension is the container."""

    def file(name: str, **arguments: Any) -> Path:
        return write_video(folder / name, **arguments)

    paths = {
        path.name: path
        for path in (
            file("plain.mp4"),
            file("sound.mp4", audio=True),
            file("one_frame.mp4", frames=1),
            file("one_group.mp4", group=250),
            file("all_keys.mp4", group=1, b_frames=0),
            file("many_b.mp4", b_frames=5),
            file("vfr.mp4", milliseconds=uneven_times()),
            file("open_groups.mp4", **OPEN_GROUPS),
            file("recovery_points.mp4", **RECOVERY_POINTS),
            file("mpeg4_open.mp4", codec="mpeg4"),
            file("portrait.mp4", width=66, height=98),
            file("turned_90.mp4", rotation=-90),
            file("turned_180.mp4", rotation=180),
            file("turned_270.mp4", rotation=90),
            file("turned_small.mp4", width=64, height=48, rotation=90),
            file("odd_444.mp4", width=97, height=65, pixels="yuv444p", rotation=90),
            file("fragmented.mp4", container_options={"movflags": "frag_keyframe+empty_moov"}),
            file("plain.mkv"),
            file("plain.ts"),
            file("mpeg4.avi", codec="mpeg4", b_frames=0),
            file("mpeg4_b.avi", codec="mpeg4"),
            file("h264_b.avi"),
            file("mpeg2.mpg", codec="mpeg2video"),
            file("raw.h264"),
            file("vp9.webm", **VP9),
            file("vp9_odd_width.webm", width=107, **VP9),
            file("vp9_odd.webm", width=97, height=65, **VP9),
        )
    }
    for source, ending in (
        ("plain.mp4", "mp4"),
        ("plain.mp4", "mkv"),
        ("plain.mp4", "ts"),
        ("open_groups.mp4", "mp4"),
        ("open_groups.mp4", "mkv"),
        ("vp9.webm", "webm"),
    ):
        target = folder / f"cut_{Path(source).stem}.{ending}"
        paths[target.name] = copy_packets(paths[source], target, lambda number: number >= 5)
    return paths


def make_unreadable(folder: Path) -> dict[str, Path]:
    """Write files that cannot be read: cause, as a regular expression -> path."""
    whole = write_video(folder / "whole.mp4").read_bytes()
    front = copy_packets(
        folder / "whole.mp4", folder / "front.mp4", lambda _: True, {"movflags": "faststart"}
    ).read_bytes()
    contents = {
        r"empty file \(0 bytes\)": ("zero.mp4", b""),
        r"truncated or damaged: an mp4 file without its index": ("cut.mp4", whole[: len(whole) // 2]),
        r"truncated or damaged after frame \d+": ("cut_front.mp4", front[: len(front) * 2 // 3]),
        "not a video file": ("text.mp4", b"path label\n" * 200),
    }
    causes = {}
    for cause, (name, content) in contents.items():
        (folder / name).write_bytes(content)
        causes[cause] = folder / name
    causes["no video stream, only audio"] = write_audio(folder / "sound.m4a")
    causes["no such file"] = folder / "nowhere.mp4"
    causes[r"no pictures in it, among \d+ files"] = folder
    return causes
