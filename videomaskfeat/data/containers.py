"""Whether decord's frame index is exact for a file, told from the file's header alone.

decord 0.6 numbers frames by the packets it finds, and seeks by numbers that it takes in file order. Measured
against a decoder that starts at the first frame, it hands out wrong frames, without an error, for: files that
do not begin with a key frame, open groups of pictures, edit lists that hide frames, transport and program
streams, AVI with B-frames; other colours where the height is odd; and it fails on turned pictures under 64
pixels wide. What remains is nearly all that data sets hold: mp4 with closed groups, and WebM with codecs that
never reorder. Reading these headers costs some 0.2 ms; opening the file in a second library would cost 2 ms,
a tenth of decoding a clip.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

_IDENTITY_MATRIX = (1, 0, 0, 1)  # a, b, c, d of the display matrix, in whole numbers
_PLAIN_MP4_CODECS = (b"avc1", b"mp4v", b"vp09", b"av01")
_UNORDERED_CODECS = (b"V_VP8", b"V_VP9", b"V_AV1")  # codecs whose pictures are stored as they are shown
_SMALLEST_WIDTH = 64  # below, decord takes padded rows for whole ones
_MOST_UNITS = 16  # parameter sets and messages before the first slice of a picture

Span = tuple[int, int]  # first byte and one past the last


def is_exact_in_decord(path: str) -> bool:
    """Whether decord's index i is the i-th picture shown, and its RGB the same as FFmpeg's, for this file."""
    try:
        with open(path, "rb") as file:
            head = file.read(12)
            size = file.seek(0, 2)
            if head[4:8] == b"ftyp":
                return _is_plain_mp4(file, size)
            if head[:4] == b"\x1aE\xdf\xa3":
                return _is_plain_webm(file, size)
    except (OSError, struct.error, ValueError, LookupError):
        pass  # no file, or an unusual header: nothing is known, so decord is not trusted with it
    return False


# mp4: boxes of (size, type, content), ISO/IEC 14496-12


def _boxes(file: BinaryIO, span: Span) -> Iterator[tuple[bytes, Span]]:
    position, end = span
    while position + 8 <= end:
        file.seek(position)
        size, kind = struct.unpack(">I4s", file.read(8))
        start = position + 8
        if size == 1:
            size = struct.unpack(">Q", file.read(8))[0]
            start += 8
        elif size == 0:
            size = end - position
        if size < start - position:
            raise ValueError("a box smaller than its head")
        yield kind, (start, min(position + size, end))
        position += size


def _content(file: BinaryIO, span: Span) -> bytes:
    file.seek(span[0])
    return file.read(span[1] - span[0])


def _is_plain_mp4(file: BinaryIO, size: int) -> bool:
    moov = dict(_boxes(file, (0, size)))[b"moov"]
    if any(kind == b"mvex" for kind, _ in _boxes(file, moov)):
        return False  # fragmented: the tables are spread over the file
    movie_ticks = _timescale(_content(file, dict(_boxes(file, moov))[b"mvhd"]))
    videos = []
    for kind, span in _boxes(file, moov):
        if kind == b"trak":
            track = dict(_boxes(file, span))
            media = dict(_boxes(file, track[b"mdia"]))
            if _content(file, media[b"hdlr"])[8:12] == b"vide":
                videos.append((track, media))
    if len(videos) != 1:
        return False
    track, media = videos[0]
    tables = dict(_boxes(file, dict(_boxes(file, media[b"minf"]))[b"stbl"]))
    codec = _plain_codec(_content(file, track[b"tkhd"]), _content(file, tables[b"stsd"]))
    shown, keys = _sample_times(file, tables)
    if codec is None or not _has_closed_groups(shown, keys):
        return False
    if codec == b"avc1" and not _keys_are_idr(file, tables, keys[1:]):
        return False
    if b"edts" not in track:
        return True
    edits = _content(file, dict(_boxes(file, track[b"edts"]))[b"elst"])
    media_ticks = _timescale(_content(file, media[b"mdhd"]))
    return _hides_nothing(edits, shown, media_ticks / movie_ticks)


def _timescale(box: bytes) -> int:
    """Ticks a second, of an mvhd or mdhd box."""
    return int(struct.unpack_from(">I", box, 20 if box[0] == 1 else 12)[0])


def _plain_codec(tkhd: bytes, stsd: bytes) -> bytes | None:
    """The four letters of the codec, or None where codec or picture size is none of the plain ones."""
    codec = stsd[12:16]
    width, height = struct.unpack_from(">HH", stsd, 16 + 24)
    a, b, _, c, d = struct.unpack_from(">5i", tkhd, 52 if tkhd[0] == 1 else 40)
    turned = (a >> 16, b >> 16, c >> 16, d >> 16) != _IDENTITY_MATRIX
    single = struct.unpack_from(">I", stsd, 4)[0] == 1
    if not single or codec not in _PLAIN_MP4_CODECS or not _plain_size(width, height, turned=turned):
        return None
    return codec


def _plain_size(width: int, height: int, *, turned: bool) -> bool:
    """Whether colours are equal (even height, and width where that becomes it) and rows are copied whole."""
    if turned:
        return width % 2 == 0 and height % 2 == 0 and height >= _SMALLEST_WIDTH
    return height % 2 == 0 and width >= _SMALLEST_WIDTH


def _has_closed_groups(shown: np.ndarray, keys: np.ndarray) -> bool:
    """Whether the file starts with a key frame, and none of a key frame's followers is shown before it."""
    rank = np.argsort(np.argsort(shown, kind="stable"), kind="stable")
    return bool(len(shown) and len(keys) and keys[0] == 0 and (rank[keys] == keys).all())


def _rows(file: BinaryIO, span: Span, columns: int) -> np.ndarray:
    """A table of a version word, a count, and so many rows of 32-bit numbers: uint32 [count, columns]."""
    data = np.frombuffer(_content(file, span), ">u4")
    return data[2 : 2 + int(data[1]) * columns].reshape(-1, columns)


def _sample_times(file: BinaryIO, tables: dict[bytes, Span]) -> tuple[np.ndarray, np.ndarray]:
    """(time at which each sample is shown, numbers of the key samples from 0), both int64, in file order."""
    durations = _rows(file, tables[b"stts"], 2).astype(np.int64)
    steps = np.repeat(durations[:, 1], durations[:, 0])
    shown = np.cumsum(steps) - steps
    if b"ctts" in tables:
        offsets = _rows(file, tables[b"ctts"], 2)
        # Signed in version 1, and by some writers in version 0 too.
        shown = shown + np.repeat(offsets[:, 1].astype(np.int32).astype(np.int64), offsets[:, 0])
    if b"stss" not in tables:
        return shown, np.arange(len(shown))
    return shown, _rows(file, tables[b"stss"], 1)[:, 0].astype(np.int64) - 1


def _sample_offsets(file: BinaryIO, tables: dict[bytes, Span]) -> np.ndarray:
    """Where each sample lies in the file: int64 [N]."""
    head = np.frombuffer(_content(file, tables[b"stsz"]), ">u4").astype(np.int64)
    sizes = head[3 : 3 + head[2]] if head[1] == 0 else np.full(head[2], head[1])
    if b"co64" in tables:
        chunks = np.frombuffer(_content(file, tables[b"co64"])[8:], ">u8").astype(np.int64)
    else:
        chunks = _rows(file, tables[b"stco"], 1)[:, 0].astype(np.int64)
    # Runs of chunks that hold equally many samples: (first chunk from 1, samples a chunk, description).
    runs = _rows(file, tables[b"stsc"], 3).astype(np.int64)
    held = np.repeat(runs[:, 1], np.diff(np.append(runs[:, 0], len(chunks) + 1)))
    before = np.cumsum(sizes) - sizes
    firsts = np.cumsum(held) - held  # the first sample of each chunk
    return before + np.repeat(chunks - before[firsts], held)


def _keys_are_idr(file: BinaryIO, tables: dict[bytes, Span], keys: np.ndarray) -> bool:
    """Whether each H.264 key sample is an IDR picture: only these clear what the decoder remembers."""
    offsets = _sample_offsets(file, tables)
    for key in keys:
        position = int(offsets[key])
        for _ in range(_MOST_UNITS):
            file.seek(position)
            length, kind = struct.unpack(">IB", file.read(5))
            if 1 <= kind & 31 <= 5:  # a slice of the picture; 5 is IDR
                break
            position += 4 + length
        if kind & 31 != 5:
            return False
    return True


def _hides_nothing(elst: bytes, shown: np.ndarray, media_ticks_per_movie_tick: float) -> bool:
    """Whether an edit list shows all pictures: a single edit, from the first picture or before to the end."""
    version, count = elst[0], struct.unpack_from(">I", elst, 4)[0]
    form = ">Qq" if version == 1 else ">Ii"
    width = struct.calcsize(form) + 4  # and the speed
    edits = [struct.unpack_from(form, elst, 8 + i * width) for i in range(count)]
    edits = [edit for edit in edits if edit[1] != -1]  # -1 is a pause before the pictures
    if len(edits) != 1:
        return False
    duration, start = edits[0]
    # The duration is rounded to the movie's coarser clock; 0 means to the end.
    end = start + (duration + 1) * media_ticks_per_movie_tick
    return start <= shown.min() and (duration == 0 or end > shown.max())


# WebM: elements of (id, size, content), RFC 8794 and 9559

_SEGMENT, _TRACKS, _TRACK, _CLUSTER = 0x18538067, 0x1654AE6B, 0xAE, 0x1F43B675
_CODEC, _VIDEO, _WIDTH, _HEIGHT = 0x86, 0xE0, 0xB0, 0xBA


def _elements(file: BinaryIO, span: Span) -> Iterator[tuple[int, Span]]:
    position, end = span
    while position < end:
        file.seek(position)
        head = file.read(12)
        id_length = 9 - head[0].bit_length()
        size_length = 9 - head[id_length].bit_length()
        kind = int.from_bytes(head[:id_length], "big")
        mask = (1 << 7 * size_length) - 1
        size = int.from_bytes(head[id_length : id_length + size_length], "big") & mask
        start = position + id_length + size_length
        # All ones: of unknown length, as live recordings write; it reaches to the end of what holds it.
        stop = end if size == mask else min(start + size, end)
        yield kind, (start, stop)
        position = stop


def _find(file: BinaryIO, span: Span, wanted: int) -> Span:
    for kind, content in _elements(file, span):
        if kind == wanted:
            return content
        if kind == _CLUSTER:
            break  # pictures begin; a header further on would be unusual
    raise KeyError(wanted)


def _is_plain_webm(file: BinaryIO, size: int) -> bool:
    tracks = _find(file, _find(file, (0, size), _SEGMENT), _TRACKS)
    videos = []
    for kind, track in _elements(file, tracks):
        codec = _content(file, _find(file, track, _CODEC)) if kind == _TRACK else b""
        if codec.startswith(b"V_"):
            video = _find(file, track, _VIDEO)
            width, height = (
                int.from_bytes(_content(file, _find(file, video, side)), "big") for side in (_WIDTH, _HEIGHT)
            )
            videos.append(codec.startswith(_UNORDERED_CODECS) and _plain_size(width, height, turned=False))
    return videos == [True]
