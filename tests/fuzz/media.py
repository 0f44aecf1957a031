"""Videos, pictures and folders of frames."""

from __future__ import annotations

import os
import random
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from tests.data.make_videos import VP9, numbered_picture, write_video
from tests.fuzz.mutations import mutate_bytes
from tests.fuzz.victim import Case, verb
from tests.jobs.action_set import write_detector
from tests.jobs.weights_files import write_classifier, write_pretrained

_EXACT = {"container_options": {"fflags": "+bitexact"}}  # no random identifiers
_FRAGMENTS = {"container_options": {"fflags": "+bitexact", "movflags": "frag_keyframe+empty_moov"}}
_VIDEOS = {
    "plain.mp4": {},
    "fragments.mp4": _FRAGMENTS,
    "turned.mov": {"rotation": 90},
    "uneven.mp4": {"milliseconds": np.cumsum(np.random.default_rng(0).integers(10, 90, 14)).tolist()},
    "sound.mp4": {"audio": True},
    "vp8.webm": {"codec": "libvpx", "b_frames": 0, "cpu-used": "8", "deadline": "realtime"},
    "vp9.webm": VP9,
    "plain.mkv": {},
    "mpeg4.avi": {"codec": "mpeg4", "b_frames": 0},
    "plain.ts": {},
    "mpeg2.mpg": {"codec": "mpeg2video"},
    "raw.h264": {},
    "moving.gif": {"codec": "gif", "pixels": "rgb8", "b_frames": 0},
}
_PICTURES = ("still.jpg", "still.png", "still.webp", "still.bmp")
_STEMS = ("input", "input", "input", "2024-01-01T12:00:00", "caf\udce9")
_READERS = ("auto", "auto", "pyav", "decord")
_NUMBERS = (0, 1, 2, 0x7FFF, 0xFFFF, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


def prepare(material: Path) -> None:
    """Write one small file of each kind, and weights for the verbs."""
    for name, options in _VIDEOS.items():
        write_video(material / name, frames=14, width=64, height=48, **{**_EXACT, **options})
    for name in _PICTURES:
        cv2.imwrite(str(material / name), numbered_picture(5, 64, 48))
    frames = material / "frames"
    frames.mkdir()
    for number in range(1, 7):
        cv2.imwrite(str(frames / f"img_{number:05d}.jpg"), numbered_picture(number, 64, 48))
    write_classifier(material / "classifier.safetensors")
    write_pretrained(material / "pretrained.safetensors")
    write_detector(material / "detector.safetensors")


def make_case(seed: int, material: Path, folder: Path) -> Case:
    """A damaged video, picture or folder of frames, and its reader."""
    rng = random.Random(f"media {seed}")
    name = rng.choice([*_VIDEOS, *_VIDEOS, *_PICTURES, "frames"])
    path = folder / f"{rng.choice(_STEMS)}.{name}"
    if name == "frames":
        shutil.copytree(material / name, path)
        _damage_frames(path, rng)
    else:
        path.write_bytes(_damaged((material / name).read_bytes(), name, rng))
        if rng.random() < 0.03:
            _replace_by_special(path, rng)
    return _entry(rng, material, path)


def _entry(rng: random.Random, material: Path, path: Path) -> Case:
    from videomaskfeat.data.video import VideoReadError, probe

    reader, file = rng.choice(_READERS), path.name  # relative to the current folder
    choice = rng.random()
    if choice < 0.7:
        return Case(
            f"open_video {file!a} {reader}", lambda: read_video(file, reader), allowed=(VideoReadError,)
        )
    if choice < 0.75:
        return Case(f"probe {file!a} {reader}", lambda: probe(file, reader), allowed=(VideoReadError,))
    if choice < 0.82:
        return verb("predict", material / "classifier.safetensors", file, "--reader", reader)
    if choice < 0.87:
        return verb("visualize", material / "pretrained.safetensors", file, "--out", "pictures")
    if choice < 0.94:
        stem = path.stem.encode(errors="surrogateescape")
        rows = b"".join(b"%s,%d,0.1,0.1,0.9,0.9,,0.9\n" % (stem, second) for second in range(2))
        Path("boxes.csv").write_bytes(rows)
        return verb(
            "detect", material / "detector.safetensors", file, "--boxes", "boxes.csv", "--every", "0.1"
        )
    Path("list.txt").write_bytes(os.fsencode(file) + b"\n")
    return verb("check-data", "list.txt", "--workers", "0", "--reader", reader, "--clean", "clean.txt")


def read_video(path: str, reader: str) -> None:
    """Open a video, read some of its frames twice, and check their shape."""
    from videomaskfeat.data.video import open_video

    with open_video(path, reader) as video:
        info = video.info
        assert info.frames == video.frames > 0, (info, video.frames)
        indices = np.unique(np.linspace(0, video.frames - 1, 5).astype(np.int64))
        frames = video.read(indices)
        assert frames.shape == (len(indices), info.height, info.width, 3), (frames.shape, info)
        assert frames.dtype == np.uint8
        assert np.array_equal(video.read(indices[:1]), frames[:1])


def _damaged(data: bytes, name: str, rng: random.Random) -> bytes:
    """The file damaged with or without knowledge of its structure."""
    suffix = name.rpartition(".")[2]
    places = _PLACES.get(suffix)
    if places is None or rng.random() < 0.35:
        return mutate_bytes(data, rng)
    changed = bytearray(data)
    known = list(places(data))
    for _ in range(rng.choice([1, 1, 2, 3])):
        start, size = rng.choice(known)
        number = rng.choice([*_NUMBERS, rng.randrange(256), rng.randrange(2**16)])
        changed[start : start + size] = (number % (1 << 8 * size)).to_bytes(size, "big")
    result = bytes(changed)
    if suffix == "png":
        result = _with_checksums(result)
    return result if rng.random() < 0.8 else mutate_bytes(result, rng)


def _mp4_places(data: bytes) -> Iterator[tuple[int, int]]:
    """(start, size) of the fields of an mp4's boxes: sizes, counts, times and table entries."""
    inner = frozenset(b"moov trak mdia minf stbl edts moof traf mvex dinf udta".split())

    def walk(start: int, end: int) -> Iterator[tuple[int, int]]:
        while start + 8 <= end:
            size, kind = struct.unpack(">I4s", data[start : start + 8])
            if size < 8 or start + size > end:
                return
            yield start, 4
            if kind in inner:
                yield from walk(start + 8, start + size)
            elif kind == b"stsd":
                yield start + 12, 4
                for place in range(start + 16, start + size - 1, 2):
                    yield place, 2
            elif kind != b"mdat":
                for place in range(start + 8, min(start + size - 3, start + 96), 4):
                    yield place, 4
            start += size

    yield from walk(0, len(data))


def _ebml_places(data: bytes) -> Iterator[tuple[int, int]]:
    """(start, size) of the sizes and short values of a Matroska file's elements."""
    inner = {0x18538067, 0x1549A966, 0x1654AE6B, 0xAE, 0xE0, 0x1F43B675, 0x1C53BB6B, 0xBB, 0xB7, 0xA0}
    inner.add(0x1A45DFA3)

    def number(place: int, *, keep: bool) -> tuple[int, int]:
        width = 9 - data[place].bit_length() if data[place] else 9
        value = int.from_bytes(data[place : place + width], "big")
        return (value if keep else value & (1 << 7 * width) - 1), width

    def walk(start: int, end: int) -> Iterator[tuple[int, int]]:
        while start + 2 < end:
            kind, width = number(start, keep=True)
            size_place = start + width
            if size_place >= end:
                return
            size, width = number(size_place, keep=False)
            yield size_place, width
            start = size_place + width
            if kind in inner:
                yield from walk(start, min(start + size, end))
            elif size <= 8:
                yield start, size
            start += size

    yield from walk(0, len(data))


def _start_places(data: bytes) -> Iterator[tuple[int, int]]:
    """Words of the first 400 bytes, which contain the numbers of AVI, BMP, GIF and WebP."""
    for place in range(min(len(data) - 4, 400)):
        yield place, (1, 2, 4, 2)[place % 4]


def _png_places(data: bytes) -> Iterator[tuple[int, int]]:
    """Width, height and color type of a PNG, and the sizes of its chunks."""
    yield from [(16, 4), (16, 4), (20, 4), (20, 4), (24, 1), (25, 1), (8, 4), (33, 4)]


def _jpg_places(data: bytes) -> Iterator[tuple[int, int]]:
    """Height, width and components of a JPEG, and the sizes of its segments."""
    place = 2
    while place + 4 < len(data) and data[place] == 0xFF and data[place + 1] != 0xDA:
        size = int.from_bytes(data[place + 2 : place + 4], "big")
        yield place + 2, 2
        if data[place + 1] in (0xC0, 0xC2):
            yield from [(place + 4, 1), (place + 5, 2), (place + 5, 2), (place + 7, 2), (place + 9, 1)]
        place += 2 + size


_PLACES: dict[str, Callable[[bytes], Iterator[tuple[int, int]]]] = {
    "mp4": _mp4_places,
    "mov": _mp4_places,
    "webm": _ebml_places,
    "mkv": _ebml_places,
    "avi": _start_places,
    "gif": _start_places,
    "bmp": _start_places,
    "webp": _start_places,
    "png": _png_places,
    "jpg": _jpg_places,
}


def _with_checksums(data: bytes) -> bytes:
    """A PNG with a correct check sum of its first chunk, so that its numbers are used."""
    return data[:29] + struct.pack(">I", zlib.crc32(data[12:29])) + data[33:]


def _replace_by_special(path: Path, rng: random.Random) -> None:
    """Replace a file by a special file, a sparse file or another content."""
    content = path.read_bytes()
    choice = rng.randrange(5)
    if choice == 0:
        path.unlink()
        os.mkfifo(path)
    elif choice == 1:
        path.unlink()
        path.mkdir()
    elif choice == 2:
        path.unlink()
        path.symlink_to(path.name)
    elif choice == 3:
        os.truncate(path, 20 << 30)
    else:
        path.write_bytes(b"" if content[:1] == b"\x00" else b"path label\n" * 100)


def _damage_frames(folder: Path, rng: random.Random) -> None:
    """Damage, remove, rename or replace some files of a folder of frames."""
    for _ in range(rng.choice([1, 2, 4])):
        path = rng.choice(sorted(folder.iterdir()))
        choice = rng.randrange(6)
        if choice == 0 and path.is_file():
            path.write_bytes(_damaged(path.read_bytes() or b"\x00", path.name, rng))
        elif choice == 1:
            path.rename(
                folder / rng.choice(["flow_x_00001.jpg", "img_9.jpg", "x.jpg", "img_0\udce9.jpg", "a.txt"])
            )
        elif choice == 2 and path.is_file():
            path.unlink()
            os.mkfifo(path)
        elif choice == 3:
            (folder / "img_99999999999999999999.jpg").write_bytes(
                path.read_bytes() if path.is_file() else b""
            )
        elif choice == 4 and path.is_file():
            path.unlink()
            path.symlink_to(rng.choice([path.name, ".", "nowhere.jpg"]))
        elif choice == 5:
            other = folder / "img_00003.jpg"
            other.unlink(missing_ok=True)
            other.write_bytes(cv2.imencode(".jpg", numbered_picture(3, 32, 100))[1].tobytes())
        if not any(folder.iterdir()):
            return
