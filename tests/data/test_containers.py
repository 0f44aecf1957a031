"""decord reads only plain files; damaged and unusual files neither crash nor allocate much memory."""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from tests.data.make_videos import HAS_DECORD, READERS, VP9, write_video
from tests.reference.decode import decode_all
from videomaskfeat.data.containers import is_exact_in_decord
from videomaskfeat.data.video import VideoReadError, open_video


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files that decord can read: extension -> bytes."""
    folder = tmp_path_factory.mktemp("plain")
    return {
        "mp4": write_video(folder / "a.mp4", frames=20, audio=True).read_bytes(),
        "webm": write_video(folder / "a.webm", frames=20, **VP9).read_bytes(),
        "vp8.webm": write_video(
            folder / "vp8.webm", frames=20, codec="libvpx", b_frames=0, deadline="realtime"
        ).read_bytes(),
    }


def _set(box: bytes, offset: int, form: str, *values: float) -> Callable[[bytearray], None]:
    """Overwrite numbers at an offset after the first occurrence of a box type or an element id."""

    def change(data: bytearray) -> None:
        struct.pack_into(form, data, data.index(box) + len(box) + offset, *values)

    return change


def _mark_second_key(data: bytearray) -> None:
    """List a frame that is not a key frame in the table of key frames."""
    position = data.index(b"stss") + 8
    assert struct.unpack_from(">3I", data, position) == (2, 1, 13)
    struct.pack_into(">I", data, position + 8, 7)


MP4_DAMAGE = {
    "2^32 samples by their durations": _set(b"stts", 8, ">I", 2**32 - 1),
    "a table of durations longer than its box": _set(b"stts", 4, ">I", 2**31),
    "2^31 samples by their offsets in time": _set(b"ctts", 8, ">I", 2**31),
    "a table of offsets in time longer than its box": _set(b"ctts", 4, ">I", 2**32 - 1),
    "2^32 samples by their sizes": _set(b"stsz", 8, ">I", 2**32 - 1),
    "2^31 samples of one byte": _set(b"stsz", 4, ">II", 1, 2**31),
    "one sample fewer by their sizes": _set(b"stsz", 8, ">I", 19),
    "a sample larger than the file": _set(b"stsz", 12, ">I", 2**30),
    "2^31 samples per chunk": _set(b"stsc", 12, ">I", 2**31),
    "a table of chunks longer than its box": _set(b"stsc", 4, ">I", 2**31),
    "chunks outside the file": _set(b"stco", 8, ">I", 2**32 - 1),
    "more chunks than the box holds": _set(b"stco", 4, ">I", 2**30),
    "more key frames than the box holds": _set(b"stss", 4, ">I", 2**28),
    "a key frame after the end": _set(b"stss", 8, ">I", 500),
    "a key frame that is not one": _mark_second_key,
    "more edits than the box holds": _set(b"elst", 4, ">I", 2**31),
    "a box that reaches beyond the file": _set(b"stbl", -8, ">I", 2**31),
    "a timescale of zero": _set(b"mdhd", 12, ">I", 0),
    "another width than the codec's": _set(b"stsd", 40, ">H", 128),
    "an unknown codec": _set(b"stsd", 12, ">4s", b"zzzz"),
    "two descriptions": _set(b"stsd", 4, ">I", 2),
    "a mirror": _set(b"tkhd", 40, ">i", -65536),
    "a mirror of the whole movie": _set(b"mvhd", 36, ">i", -65536),
}
WEBM_DAMAGE = {
    "a duration of 1e12 ms": _set(b"\x44\x89\x88", 0, ">d", 1e12),
    "an endless duration": _set(b"\x44\x89\x88", 0, ">d", np.inf),
    "a negative duration": _set(b"\x44\x89\x88", 0, ">d", -1.0),
    "a clock of another unit": _set(b"\x2a\xd7\xb1\x83", 0, ">3s", b"\x00\x00\x01"),
    "pictures of 1 ns": _set(b"\x23\xe3\x83\x84", 0, ">I", 1),
    "another width than the codec's": _set(b"\xb0\x81", 0, ">B", 100),
    "an element that reaches beyond the file": _set(b"\x1f\x43\xb6\x75", 0, ">Q", 0x01_0F_FF_FF_FF_FF_FF_FF),
}


def test_plain_files_are_exact(plain: dict[str, bytes], tmp_path: Path) -> None:
    for ending, data in plain.items():
        (tmp_path / f"a.{ending}").write_bytes(data)
        assert is_exact_in_decord(str(tmp_path / f"a.{ending}"))


@pytest.mark.parametrize(
    ("ending", "damage"),
    [("mp4", name) for name in MP4_DAMAGE] + [("webm", name) for name in WEBM_DAMAGE],
)
def test_damaged_header_is_not_exact_and_never_crashes(
    plain: dict[str, bytes], tmp_path: Path, ending: str, damage: str
) -> None:
    data = bytearray(plain[ending])
    (MP4_DAMAGE if ending == "mp4" else WEBM_DAMAGE)[damage](data)
    path = tmp_path / f"damaged.{ending}"
    path.write_bytes(data)
    assert not is_exact_in_decord(str(path))
    for reader in ("auto", "pyav"):
        with suppress(VideoReadError), open_video(path, reader) as opened:
            assert opened.decoder == "pyav"
            assert opened.frames <= 20
            opened.read([0])


@pytest.mark.parametrize("count", [2**26, 2**31, 2**32 - 1])
def test_declared_samples_without_a_table_are_refused(
    plain: dict[str, bytes], tmp_path: Path, count: int
) -> None:
    """Two numbers declare them; FFmpeg would allocate 2 to 100 GB."""
    path = tmp_path / "a.mp4"
    for damages in ([MP4_DAMAGE["2^31 samples of one byte"], _set(b"stsz", 8, ">I", count)], []):
        data = bytearray(plain["mp4"])
        if not damages:  # in the sound's track
            struct.pack_into(">II", data, data.rindex(b"stsz") + 8, 1, count)
        for damage in damages:
            damage(data)
        path.write_bytes(data)
        with pytest.raises(VideoReadError, match="it declares more frames than it has bytes"):
            open_video(path)
    fragmented = write_video(path, frames=4, container_options={"movflags": "frag_keyframe+empty_moov"})
    data = bytearray(fragmented.read_bytes())
    _set(b"trun", 4, ">I", count)(data)
    path.write_bytes(data)
    with pytest.raises(VideoReadError, match="it declares more frames than it has bytes"):
        open_video(path)


def test_truncated_file_is_not_exact(plain: dict[str, bytes], tmp_path: Path) -> None:
    for ending, data in plain.items():
        path = tmp_path / f"cut.{ending}"
        for length in (0, 4, 30, len(data) // 2, len(data) - 3):
            path.write_bytes(data[:length])
            assert not is_exact_in_decord(str(path))


def test_stream_with_an_unknown_codec_is_refused(plain: dict[str, bytes], tmp_path: Path) -> None:
    data = bytearray(plain["mp4"])
    MP4_DAMAGE["an unknown codec"](data)
    (tmp_path / "a.mp4").write_bytes(data)
    for reader in ("auto", "pyav"):
        with pytest.raises(VideoReadError, match=r"a video codec that FFmpeg does not support$"):
            open_video(tmp_path / "a.mp4", reader)


@pytest.mark.parametrize("ending", ["webm", "vp8.webm"])
def test_first_picture_of_another_kind_is_not_exact(
    plain: dict[str, bytes], tmp_path: Path, ending: str
) -> None:
    """VP9 with 10 or 12 bits (bit 4 of its first byte), and VP8 and VP9 frames that are not key frames."""
    data = bytearray(plain[ending])
    first = data.index(b"\xa3", data.index(b"\x1f\x43\xb6\x75"))
    size_bytes = 9 - data[first + 1].bit_length()
    picture = first + 1 + size_bytes + 4
    for bit in (0x10, 0x04) if ending == "webm" else (0x01,):
        changed = bytearray(data)
        changed[picture] ^= bit
        (tmp_path / "a.webm").write_bytes(changed)
        assert not is_exact_in_decord(str(tmp_path / "a.webm"))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "options",
    [
        {"pixels": "yuv420p10le"},
        {"pixels": "yuv422p10le"},
        {"x264-params": "interlaced=1"},
        {"x264-params": "fake-interlaced=1"},
        {"height": 68},  # eight rows are cropped by the codec
        {"pixels": "yuv444p"},
        {"pixels": "yuvj420p"},
        {"color_range": "pc", "colorspace": "bt709"},
    ],
    ids=lambda options: "_".join(map(str, options.values())),
)
def test_unusual_pictures_are_equal_from_every_reader(
    tmp_path: Path, options: dict[str, str], reader: str
) -> None:
    path = write_video(tmp_path / "a.mp4", frames=6, **options)
    with open_video(path, reader) as opened:
        np.testing.assert_array_equal(opened.read(range(6)), decode_all(path))
        bits_or_fields = "10le" in str(options) or "interlaced" in str(options)
        chosen = reader if reader == "torchcodec" else "decord" if HAS_DECORD and reader != "pyav" else "pyav"
        assert opened.decoder == ("pyav" if bits_or_fields else chosen)
