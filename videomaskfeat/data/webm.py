"""Check by the header of a WebM file whether decord can read it; see `containers`.

A file has elements of (id, size, content), RFC 8794 and 9559.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

from videomaskfeat.data.containers import MOST_BOXES, Span, by_kind, plain_size, read_content, vp9_size

_LONGEST_WEBM = 36_000_000.0  # milliseconds; decord allocates memory for the declared duration
_SEGMENT, _INFO, _TRACKS, _TRACK, _CLUSTER = 0x18538067, 0x1549A966, 0x1654AE6B, 0xAE, 0x1F43B675
_TICK, _DURATION = 0x2AD7B1, 0x4489
_NUMBER, _CODEC, _VIDEO, _DEFAULT_DURATION, _ENCODINGS = 0xD7, 0x86, 0xE0, 0x23E383, 0x6D80
_WIDTH, _HEIGHT, _INTERLACED, _PROJECTION = 0xB0, 0xBA, 0x9A, 0x7670
_CROPS = (0x54AA, 0x54BB, 0x54CC, 0x54DD)
_SIMPLE_BLOCK, _BLOCK_GROUP, _BLOCK = 0xA3, 0xA0, 0xA1
_REPEATED_ELEMENTS = frozenset((0xEC, 0xFB))  # padding, references


def _vp8_size(frame: bytes) -> tuple[int, int] | None:
    """(width, height) of a VP8 key frame, by its first 10 bytes."""
    if frame[0] & 1 or frame[3:6] != b"\x9d\x01\x2a":
        return None
    width, height = struct.unpack_from("<HH", frame, 6)
    return width & 0x3FFF, height & 0x3FFF


_SIZES = {b"V_VP8": _vp8_size, b"V_VP9": vp9_size}  # codecs that store pictures in display order


def _elements(file: BinaryIO, span: Span) -> Iterator[tuple[int, Span]]:
    """The elements in a span; ValueError if one does not fit, or if there are too many."""
    position, end = span
    for _ in range(MOST_BOXES):
        if position >= end:
            return
        file.seek(position)
        head = file.read(12)
        id_length = 9 - head[0].bit_length()
        size_length = 9 - head[id_length].bit_length()
        if id_length > 4 or size_length > 8:
            raise ValueError("not an element")
        kind = int.from_bytes(head[:id_length], "big")
        mask = (1 << 7 * size_length) - 1
        size = int.from_bytes(head[id_length : id_length + size_length], "big") & mask
        start = position + id_length + size_length
        # All ones: unknown length, as in live recordings; the element ends with its parent.
        stop = end if size == mask and kind in (_SEGMENT, _CLUSTER) else start + size
        if stop > end:
            raise ValueError("an element that does not fit")
        yield kind, (start, stop)
        position = stop
    raise ValueError("too many elements")


def _leaves(file: BinaryIO, span: Span) -> dict[int, Span]:
    """The elements in a span by id; ValueError if one is repeated."""
    return by_kind(_elements(file, span), _REPEATED_ELEMENTS)


def _number(file: BinaryIO, elements: dict[int, Span], kind: int, default: int) -> int:
    if kind not in elements:
        return default
    start, end = elements[kind]
    return int.from_bytes(read_content(file, (start, min(end, start + 8))), "big")


def is_plain_webm(file: BinaryIO, size: int) -> bool:
    elements: dict[int, Span] = {}
    for kind, span in _elements(file, (0, size)):
        if kind == _SEGMENT:
            if span[1] != size:
                return False  # another file is joined to it
            for child, content in _elements(file, span):
                elements.setdefault(child, content)
                if child == _CLUSTER:
                    break  # frames begin; a header after them is unusual
            break
    if not _has_plain_clock(file, _leaves(file, elements[_INFO])):
        return False
    videos = []
    for kind, span in _elements(file, elements[_TRACKS]):
        track = _leaves(file, span) if kind == _TRACK else {}
        if _CODEC in track and read_content(file, track[_CODEC]).startswith(b"V_"):
            videos.append(track)
    return len(videos) == 1 and _is_plain_track(file, videos[0], elements[_CLUSTER])


def _has_plain_clock(file: BinaryIO, info: dict[int, Span]) -> bool:
    """Whether times are in milliseconds and the duration is known and at most `_LONGEST_WEBM`."""
    length = info[_DURATION][1] - info[_DURATION][0]
    duration = struct.unpack(">d" if length == 8 else ">f", read_content(file, info[_DURATION]))[0]
    return _number(file, info, _TICK, 1_000_000) == 1_000_000 and 0 < duration <= _LONGEST_WEBM


def _is_plain_track(file: BinaryIO, track: dict[int, Span], cluster: Span) -> bool:
    """Whether frames are displayed as stored, and the track has the size of its first frame."""
    video = _leaves(file, track[_VIDEO])
    codec = read_content(file, track[_CODEC])
    each = _number(file, track, _DEFAULT_DURATION, 10**9)  # nanoseconds per picture
    if codec not in _SIZES or _ENCODINGS in track or not 10**6 <= each <= 10**11:
        return False
    # 2 is progressive, 0 undetermined.
    if _PROJECTION in video or _number(file, video, _INTERLACED, 0) == 1:
        return False
    if any(_number(file, video, side, 0) for side in _CROPS):
        return False
    size = _number(file, video, _WIDTH, 0), _number(file, video, _HEIGHT, 0)
    number = _number(file, track, _NUMBER, 0)
    return plain_size(*size, turned=False) and _SIZES[codec](_first_picture(file, cluster, number)) == size


def _first_picture(file: BinaryIO, cluster: Span, number: int) -> bytes:
    """The first 16 bytes of a track's first frame; LookupError if it is not in this cluster."""
    for kind, span in _elements(file, cluster):
        if kind == _BLOCK_GROUP:
            span = _leaves(file, span)[_BLOCK]
        if kind in (_SIMPLE_BLOCK, _BLOCK_GROUP):
            start, end = span
            head = read_content(file, (start, min(end, start + 20)))
            if head[0] == number | 0x80 and not head[3] & 6:  # without lacing
                return head[4:]
    raise LookupError(number)
