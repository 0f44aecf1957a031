"""Clips around key frames of a video of half an hour, against only decoding the same frames.

The video: 854x480, 30 frames per second, H.264 with B-frames and a key frame every five seconds. Ten seconds
are encoded, and their packets are repeated 180 times. The video stays in the temporary folder. The speed
baseline is PyAV: it opens the video once, seeks to the key frame before a clip, decodes on one thread to its
last frame and converts the frames of the clip to RGB. Ours also crops and resizes the frames and their boxes.
The baseline of the bytes is decord, which reads the whole file when it opens it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import decord
import numpy as np

from benchmarks.bench_loader import pictures_with_grain
from benchmarks.harness import Row, alternate
from videomaskfeat.data.ava import ActionClips, KeyFrameViews
from videomaskfeat.data.ava_lists import KeyFrames
from videomaskfeat.data.ava_sources import sources_in_folder
from videomaskfeat.data.clips import SampleKey
from videomaskfeat.data.transforms import RandomResizedCrop
from videomaskfeat.mp4 import write_mp4

SECONDS, FPS, HEIGHT, WIDTH = 1800, 30, 480, 854
CLIPS = {(16, 4): 8, (40, 3): 4}  # (frames, stride) -> number of timed key frames
ROUNDS = 3
RUN = 4  # consecutive key frames per test batch


def run(*, device: str) -> list[Row]:
    """Time training and test clips, and count bytes; the device has no effect."""
    cv2.setNumThreads(0)  # as in a worker process
    film = _film(Path(tempfile.gettempdir()) / "videomaskfeat_film_480p")
    rows = []
    for (frames, stride), count in CLIPS.items():
        rows += _speeds(film, frames, stride, count)
    return [*rows, *_bytes(film)]


def _film(folder: Path) -> Path:
    """The video, which is created if it is missing."""
    path = folder / "film.mp4"
    if path.exists():
        return path
    folder.mkdir(exist_ok=True)
    part, partial = folder / "part.mp4", folder / "film.part"
    write_mp4(part, pictures_with_grain(HEIGHT, WIDTH), fps=FPS, crf=23, keyframe_interval=5 * FPS)
    with av.open(str(part)) as source:
        stream = source.streams.video[0]
        packets = [(bytes(p), p.pts, p.dts, p.is_keyframe) for p in source.demux(stream) if p.size]
        ticks = round(len(packets) / FPS / float(stream.time_base or 1))
        with av.open(str(partial), "w", format="mp4") as target:
            copy = target.add_stream_from_template(stream)
            for repeat in range(SECONDS * FPS // len(packets)):
                for data, pts, dts, key in packets:
                    packet = av.Packet(data)
                    packet.stream, packet.time_base, packet.is_keyframe = copy, stream.time_base, key
                    packet.pts, packet.dts = (time + repeat * ticks for time in (pts, dts))
                    target.mux(packet)
    part.unlink()
    os.replace(partial, path)
    return path


def _key_frames(seconds: np.ndarray) -> KeyFrames:
    """Three boxes at each second."""
    boxes = np.array([[0.1, 0.2, 0.4, 0.9], [0.5, 0.1, 0.7, 0.8], [0.3, 0.3, 0.9, 0.9]])
    return KeyFrames(
        source="benchmark",
        videos=["film"],
        video=np.zeros(len(seconds)),
        seconds=seconds.astype(float),
        starts=3 * np.arange(len(seconds) + 1),
        boxes=np.tile(boxes, (len(seconds), 1)),
        labels=np.ones((3 * len(seconds), 80), bool),
        scores=np.ones(3 * len(seconds)),
    )


def _speeds(film: Path, frames: int, stride: int, count: int) -> list[Row]:
    scattered = np.sort(np.random.default_rng(0).choice(np.arange(10, SECONDS - 10), count, replace=False))
    key_frames = _key_frames(scattered)
    sources = sources_in_folder(key_frames, film.parent)
    training = ActionClips(
        key_frames, sources, frames=frames, stride=stride, transform=RandomResizedCrop(224)
    )
    together = _key_frames(np.arange(600, 600 + count // RUN * RUN))
    testing = KeyFrameViews(together, sources, frames=frames, stride=stride, short_sides=(224,))

    def train() -> None:
        for index in np.random.default_rng(1).permutation(count):
            training.collate([training[SampleKey(0, int(index))]])

    def test() -> None:
        for run in testing.tasks(RUN):
            testing.batch(run)

    def train_opening() -> None:
        for index in np.random.default_rng(1).permutation(count):
            training._open.close(sources[0])
            training.collate([training[SampleKey(0, int(index))]])

    ways: dict[str, Callable[[], object]] = {
        "train": train,
        "train_opening": train_opening,
        "decode": lambda: _decode(film, scattered, frames, stride),
        "test": test,
        "decode_together": lambda: _decode(film, together.seconds, frames, stride),
    }
    seconds = alternate(ways, rounds=ROUNDS)
    return [
        Row(
            f"{what} {frames}x{stride} / decoding the same frames in PyAV",
            clips / seconds[ours],
            clips / seconds[baseline],
            "clips/s",
            better="higher",
            target="at least 0.9x",
        )
        for what, ours, baseline, clips in (
            ("training clips around scattered key frames,", "train", "decode", count),
            ("the same, with one opening of the video per clip,", "train_opening", "decode", count),
            (f"test clips around {RUN} consecutive key frames,", "test", "decode_together", len(together)),
        )
    ]


def _decode(film: Path, seconds: np.ndarray, frames: int, stride: int) -> None:
    """Decode the frames of each clip as RGB arrays, with one opening."""
    with av.open(str(film)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        ticks = 1 / float(stream.time_base or 1) / FPS
        for second in seconds:
            first = int(second) * FPS - frames * stride // 2
            missing = {round((first + stride * index) * ticks) for index in range(frames)}
            container.seek(min(missing), stream=stream)
            for frame in container.decode(stream):
                if frame.pts in missing:
                    frame.to_ndarray(format="rgb24")
                    missing.discard(frame.pts)
                    if not missing:
                        break
            assert not missing


def _bytes(film: Path) -> list[Row]:
    """Bytes read to open the video and to read one clip."""
    key_frames = _key_frames(np.array([1234]))

    def clip() -> None:
        sources = sources_in_folder(key_frames, film.parent, start=0)
        ActionClips(key_frames, sources, frames=16, stride=4, transform=RandomResizedCrop(224))[
            SampleKey(0, 0)
        ]

    ours, theirs = _megabytes(clip), _megabytes(lambda: decord.VideoReader(str(film), num_threads=1))
    size = film.stat().st_size / 1e6
    note = f"of a file of {size:.0f} MB; ours opens it twice: for its length, and to read"
    return [Row("bytes read for one clip 16x4 / decord's opening alone", ours, theirs, "MB", note=note)]


def _megabytes(function: Callable[[], object]) -> float:
    before = _read()
    function()
    return (_read() - before) / 1e6


def _read() -> int:
    """Bytes that this process has read from disk or from the page cache."""
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])
