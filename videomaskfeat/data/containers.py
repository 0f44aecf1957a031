"""Check by the header whether decord can read a file: exact frame indices and an intact header.

decord 0.6 returns wrong frames, without an error, for: files that do not begin with a key frame, open groups
of pictures, edit lists that hide frames, transport and program streams, AVI with B-frames. Its colors differ
for odd heights and for 10 bits. It ignores mirrors, crops and the rotation of WebM, fails on rotated pictures
under 64 pixels wide, and has no decoder for AV1. It sizes its memory by numbers in the header, and aborts the
process if these are damaged.

So decord reads only files that pass every check here: mp4 with closed groups of 8-bit progressive H.264 or
with VP9, and WebM with 8-bit VP8 or VP9. Every table must fit into its box, all tables must agree on the
number of samples, all samples must lie inside the file, and the picture size must be equal in the container
and in the codec's header. No allocation is larger than the box that it is read from. PyAV reads all other
files. The checks need 0.3 ms per file; opening the file in a second library would need 2 ms, a tenth of the
time to decode a clip.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import BinaryIO, TypeVar

import numpy as np

from videomaskfeat.io import is_file

_UPRIGHT = (1, 0, 0, 0, 1, 0, 0, 0, 1)
_TURNED = ((0, 1, 0, -1, 0, 0, 0, 0, 1), (-1, 0, 0, 0, -1, 0, 0, 0, 1), (0, -1, 0, 1, 0, 0, 0, 0, 1))
_TOP_BOXES = frozenset((b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"uuid", b"udta"))
_REPEATED_BOXES = frozenset((b"trak", b"mdat", b"free", b"skip", b"wide", b"uuid", b"udta", b"sgpd", b"sbgp"))
_PARENT_BOXES = frozenset((b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf"))  # of counts
_DEEPEST = 6  # nested boxes
_SMALLEST_WIDTH = 64  # below, decord reads the padding of rows as pixels
_LARGEST_SIDE = 8192  # pixels
_MOST_UNITS = 16  # parameter sets and messages before the first slice of a picture
MOST_BOXES = 1000  # adjacent boxes or elements
_MOST_SAMPLES = 4_000_000  # 18 hours at 60 frames per second

Span = tuple[int, int]  # first byte and one past the last
KindT = TypeVar("KindT", bytes, int)


def is_exact_in_decord(path: str) -> bool:
    """Whether decord's index i is the i-th displayed frame, with the same RGB as in FFmpeg."""
    if not is_file(path):
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(12)
            size = file.seek(0, 2)
            if head[4:8] == b"ftyp":
                return _is_plain_mp4(file, size)
            if head[:4] == b"\x1aE\xdf\xa3":
                from videomaskfeat.data.webm import is_plain_webm

                return is_plain_webm(file, size)
    except (OSError, struct.error, ValueError, LookupError, OverflowError, MemoryError):
        pass  # no file, or an unusual or damaged header, which might crash decord
    return False


def read_content(file: BinaryIO, span: Span) -> bytes:
    file.seek(span[0])
    data = file.read(span[1] - span[0])
    if len(data) != span[1] - span[0]:
        raise ValueError("the file ends inside a table")
    return data


def plain_size(width: int, height: int, *, turned: bool) -> bool:
    """Whether colors are equal (even height, also of a rotated picture) and decord copies rows correctly."""
    if not 0 < max(width, height) <= _LARGEST_SIDE:
        return False
    if turned:
        return width % 2 == 0 and height % 2 == 0 and height >= _SMALLEST_WIDTH
    return height % 2 == 0 and width >= _SMALLEST_WIDTH


# mp4: boxes of (size, type, content), ISO/IEC 14496-12


def _boxes(file: BinaryIO, span: Span, *, cut: bool = False) -> Iterator[tuple[bytes, Span]]:
    """The boxes in a span; ValueError if there are too many or one does not fit (``cut``: it ends there)."""
    position, end = span
    for _ in range(MOST_BOXES):
        if position + 8 > end:
            return
        file.seek(position)
        size, kind = struct.unpack(">I4s", file.read(8))
        start = position + 8
        if size == 1:
            size = struct.unpack(">Q", file.read(8))[0]
            start += 8
        elif size == 0:
            size = end - position
        if cut:
            size = min(size, end - position)
        if size < start - position or size > end - position:
            raise ValueError("a box that does not fit")
        yield kind, (start, position + size)
        position += size
    raise ValueError("too many boxes")


def _unique_boxes(file: BinaryIO, span: Span) -> dict[bytes, Span]:
    """The boxes in a span by type; ValueError if a unique type is repeated."""
    return by_kind(_boxes(file, span), _REPEATED_BOXES)


def by_kind(items: Iterator[tuple[KindT, Span]], repeated: frozenset[KindT]) -> dict[KindT, Span]:
    spans: dict[KindT, Span] = {}
    for kind, content in items:
        if kind in spans and kind not in repeated:
            raise ValueError("a box or an element that is repeated")
        spans[kind] = content
    return spans


def _is_plain_mp4(file: BinaryIO, size: int) -> bool:
    top = _unique_boxes(file, (0, size))
    movie = _unique_boxes(file, top[b"moov"])
    if not top.keys() <= _TOP_BOXES or b"mvex" in movie:
        return False  # fragmented: the tables are spread over the file
    mvhd = read_content(file, movie[b"mvhd"])
    if _matrix(mvhd, 48 if mvhd[0] == 1 else 36) != _UPRIGHT:
        return False
    videos = []
    for kind, span in _boxes(file, top[b"moov"]):
        if kind == b"trak":
            track = _unique_boxes(file, span)
            media = _unique_boxes(file, track[b"mdia"])
            tables = _unique_boxes(file, _unique_boxes(file, media[b"minf"])[b"stbl"])
            samples = _count_samples(file, tables, size)
            if read_content(file, media[b"hdlr"])[8:12] == b"vide":
                videos.append((track, media, tables, samples))
    if len(videos) != 1:
        return False
    track, media, tables, samples = videos[0]
    shown, keys = _sample_times(file, tables, samples)
    if not _has_closed_groups(shown, keys):
        return False
    if not _is_plain_picture(file, read_content(file, track[b"tkhd"]), tables, keys, size):
        return False
    media_ticks = _timescale(read_content(file, media[b"mdhd"]))
    movie_ticks = _timescale(mvhd)
    if b"edts" not in track:
        return True
    edits = read_content(file, _unique_boxes(file, track[b"edts"])[b"elst"])
    return _hides_nothing(edits, shown, media_ticks / movie_ticks)


def _timescale(box: bytes) -> int:
    """Ticks per second, of an mvhd or mdhd box."""
    ticks = int(struct.unpack_from(">I", box, 20 if box[0] == 1 else 12)[0])
    if not 0 < ticks < 2**31:
        raise ValueError("not a timescale")
    return ticks


def _matrix(box: bytes, offset: int) -> tuple[float, ...]:
    """The display matrix of an mvhd or tkhd box, without the translation."""
    a, b, u, c, d, v, _, _, w = struct.unpack_from(">9i", box, offset)
    return a / 2**16, b / 2**16, u / 2**30, c / 2**16, d / 2**16, v / 2**30, 0, 0, w / 2**30


def _rows(file: BinaryIO, span: Span, columns: int) -> np.ndarray:
    """A table of a version, a count, and ``count`` rows of 32-bit numbers: int64 [count, columns]."""
    file.seek(span[0] + 4)
    return _table(file, (span[0] + 8, span[1]), struct.unpack(">I", file.read(4))[0], columns)


def _table(file: BinaryIO, span: Span, count: int, columns: int) -> np.ndarray:
    end = span[0] + 4 * count * columns
    if count > _MOST_SAMPLES or end > span[1]:
        raise ValueError("a table longer than its box")
    return np.frombuffer(read_content(file, (span[0], end)), ">u4").reshape(-1, columns).astype(np.int64)


def _sizes(file: BinaryIO, span: Span) -> tuple[int, np.ndarray | int]:
    """(number of samples, bytes of each: int64 [N], or one number for all), of an stsz box."""
    file.seek(span[0] + 4)
    each, count = struct.unpack(">II", file.read(8))
    return count, each or _table(file, (span[0] + 12, span[1]), count, 1)[:, 0]


def _count_samples(file: BinaryIO, tables: dict[bytes, Span], size: int) -> int:
    """The number of samples of a track; ValueError unless its tables agree and its data fit into the file."""
    count, sizes = _sizes(file, tables[b"stsz"])
    data = count * sizes if isinstance(sizes, int) else int(sizes.sum())
    times = [b"stts", b"ctts"] if b"ctts" in tables else [b"stts"]
    totals = [int(_rows(file, tables[kind], 2)[:, 0].sum()) for kind in times]
    chunks, runs = _chunks(file, tables), _rows(file, tables[b"stsc"], 3)
    lengths = np.diff(np.append(runs[:, 0], len(chunks) + 1))
    if len(runs) and (runs[0, 0] != 1 or (lengths < 1).any()):
        raise ValueError("chunks out of order")
    totals.append(
        sum(samples * length for samples, length in zip(runs[:, 1].tolist(), lengths.tolist(), strict=True))
    )
    if data > size or any(total != count for total in totals):
        raise ValueError("tables that disagree")
    if len(chunks) and (chunks.min() < 0 or chunks.max() > size):
        raise ValueError("samples outside the file")
    return count


def _chunks(file: BinaryIO, tables: dict[bytes, Span]) -> np.ndarray:
    """Where each chunk of samples begins in the file: int64 [chunks]."""
    if b"co64" not in tables:
        return _rows(file, tables[b"stco"], 1)[:, 0]
    halves = _rows(file, tables[b"co64"], 2)
    if (halves[:, 0] >= 2**31).any():
        raise ValueError("samples outside the file")
    return halves[:, 0] * 2**32 + halves[:, 1]


def _sample_times(file: BinaryIO, tables: dict[bytes, Span], samples: int) -> tuple[np.ndarray, np.ndarray]:
    """(display time of each sample, numbers of the key samples from 0), both int64, in file order."""
    if samples > _MOST_SAMPLES:
        raise ValueError("too many samples")
    durations = _rows(file, tables[b"stts"], 2)
    steps = np.repeat(durations[:, 1], durations[:, 0])
    shown = np.cumsum(steps) - steps
    if b"ctts" in tables:
        offsets = _rows(file, tables[b"ctts"], 2)
        # Signed in version 1, and some writers use signed numbers in version 0 too.
        shown = shown + np.repeat(offsets[:, 1].astype(np.int32).astype(np.int64), offsets[:, 0])
    if b"stss" not in tables:
        return shown, np.arange(samples)
    keys = _rows(file, tables[b"stss"], 1)[:, 0] - 1
    if len(keys) and (keys[0] < 0 or keys[-1] >= samples or (np.diff(keys) < 1).any()):
        raise ValueError("key frames out of order")
    return shown, keys


def _has_closed_groups(shown: np.ndarray, keys: np.ndarray) -> bool:
    """Whether the file starts with a key frame, and no frame after a key frame is displayed before it."""
    rank = np.argsort(np.argsort(shown, kind="stable"), kind="stable")
    return bool(len(shown) and len(keys) and keys[0] == 0 and (rank[keys] == keys).all())


def _sample_spans(file: BinaryIO, tables: dict[bytes, Span], size: int) -> np.ndarray:
    """Start and end of each sample in the file: int64 [N, 2]. `_count_samples` has checked the tables."""
    count, sizes = _sizes(file, tables[b"stsz"])
    if isinstance(sizes, int):
        sizes = np.full(count, sizes)
    if (sizes < 1).any():
        raise ValueError("samples without data")
    chunks, runs = _chunks(file, tables), _rows(file, tables[b"stsc"], 3)
    samples = np.repeat(runs[:, 1], np.diff(np.append(runs[:, 0], len(chunks) + 1)))  # per chunk
    before = np.cumsum(sizes) - sizes
    firsts = np.cumsum(samples) - samples  # the first sample of each chunk
    starts = before + np.repeat(chunks - before[firsts], samples)
    spans = np.stack([starts, starts + sizes], axis=1)
    if spans.max() > size:
        raise ValueError("samples outside the file")
    return spans


def _is_plain_picture(
    file: BinaryIO, tkhd: bytes, tables: dict[bytes, Span], keys: np.ndarray, size: int
) -> bool:
    """Whether codec, orientation and size are plain, and the samples agree with the codec's header."""
    matrix = _matrix(tkhd, 52 if tkhd[0] == 1 else 40)
    stsd = tables[b"stsd"]
    head = read_content(file, (stsd[0], stsd[0] + 94))
    entry_size, codec = struct.unpack_from(">I4s", head, 8)
    width, height = struct.unpack_from(">HH", head, 40)
    if struct.unpack_from(">I", head, 4)[0] != 1 or not 86 <= entry_size <= stsd[1] - stsd[0] - 8:
        return False
    if matrix not in (_UPRIGHT, *_TURNED) or not plain_size(width, height, turned=matrix != _UPRIGHT):
        return False
    extensions = _unique_boxes(file, (stsd[0] + 94, stsd[0] + 8 + entry_size))
    if b"clap" in extensions:
        return False  # a crop
    spans = _sample_spans(file, tables, size)
    if codec == b"avc1":
        parameters = _h264_set(read_content(file, extensions[b"avcC"]))
        return _h264_size(parameters) == (width, height) and _keys_are_idr(file, spans[keys], parameters)
    start, end = spans[0].tolist()
    return codec == b"vp09" and vp9_size(read_content(file, (start, min(end, start + 16)))) == (width, height)


def _edits(elst: bytes, most: int) -> list[tuple[int, int]]:
    """(duration, start) of the edits of an edit list that display frames."""
    layout = ">Qq" if elst[0] == 1 else ">Ii"
    width = struct.calcsize(layout) + 4  # and the speed
    count = min(struct.unpack_from(">I", elst, 4)[0], most, (len(elst) - 8) // width)
    edits = [struct.unpack_from(layout, elst, 8 + number * width) for number in range(count)]
    return [edit for edit in edits if edit[1] != -1]  # -1 is a pause before the frames


def _hides_nothing(elst: bytes, shown: np.ndarray, media_ticks_per_movie_tick: float) -> bool:
    """Whether an edit list displays all frames: a single edit, from the first frame or earlier to the end."""
    edits = _edits(elst, _MOST_UNITS)
    if struct.unpack_from(">I", elst, 4)[0] > _MOST_UNITS or len(edits) != 1:
        return False
    duration, start = edits[0]
    # The duration is rounded to the movie's coarser clock; 0 means to the end.
    end = start + (duration + 1) * media_ticks_per_movie_tick
    return bool(start <= shown.min() and (duration == 0 or end > shown.max()))


def has_several_edits(path: str) -> bool:
    """Whether an edit list of an mp4 file, which may be truncated, has several edits that display frames."""

    def readable_boxes(span: Span) -> Iterator[tuple[bytes, Span]]:
        with suppress(struct.error, ValueError):
            yield from _boxes(file, span, cut=True)

    with open(path, "rb") as file:
        spans = [(0, file.seek(0, 2))]
        for parent in (b"moov", b"trak", b"edts", b"elst"):
            spans = [own for span in spans for kind, own in readable_boxes(span) if kind == parent]
        return any(
            len(_edits(read_content(file, span), MOST_BOXES)) > 1 for span in spans if span[1] - span[0] >= 8
        )


def declares_too_much(path: str) -> bool:
    """Whether an mp4 file declares more samples than it has bytes, where FFmpeg does not check it.

    Samples of equal size, and fragments without a list of samples, need no table: FFmpeg allocates at least
    24 bytes for each declared sample, up to 100 GB.
    """
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        try:
            return _declares_too_much(file, (0, size), size, 0)
        except (OSError, struct.error, ValueError, LookupError):
            return False  # FFmpeg stops there too


def _declares_too_much(file: BinaryIO, span: Span, size: int, depth: int) -> bool:
    for kind, (start, end) in _boxes(file, span):
        if kind in _PARENT_BOXES and depth < _DEEPEST:
            if _declares_too_much(file, (start, end), size, depth + 1):
                return True
        elif kind == b"stsz" and end - start >= 12:
            each, count = struct.unpack(">II", read_content(file, (start + 4, start + 12)))
            if each and count * each > size:
                return True
        elif kind == b"trun" and int.from_bytes(read_content(file, (start + 4, start + 8)), "big") > size:
            return True
    return False


# Headers of the codecs: ITU-T H.264 sections 7.3.1 and 7.3.2.1, the VP9 bitstream 6.2, RFC 6386 section 9.1


def _keys_are_idr(file: BinaryIO, spans: np.ndarray, parameters: bytes) -> bool:
    """Whether each H.264 key sample is an IDR picture with the known parameter sets.

    Only IDR pictures reset the decoder; other parameter sets may change the size in mid-stream.
    """
    for position, end in spans.tolist():
        for _ in range(_MOST_UNITS):
            file.seek(position)
            length, kind = struct.unpack(">IB", file.read(5))
            position += 4 + length
            if position > end:
                return False
            if kind & 31 == 7 and read_content(file, (position - length, position)) != parameters:
                return False
            if 1 <= kind & 31 <= 5:  # a slice of the picture; 5 is IDR
                break
        if kind & 31 != 5:
            return False
    return True


def _h264_set(avcc: bytes) -> bytes:
    """The only sequence parameter set of an avcC box; ValueError unless lengths have 4 bytes."""
    if avcc[0] != 1 or avcc[4] & 3 != 3:
        raise ValueError("an unusual avcC box")
    length = struct.unpack_from(">H", avcc, 6)[0]
    if avcc[5] & 31 != 1 or 8 + length >= len(avcc):
        raise ValueError("not one parameter set")
    return avcc[8 : 8 + length]


class _Bits:
    """Reads single bits and exponential Golomb codes."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def read(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise ValueError("a header that ends early")
        return self._value >> self._left & (1 << count) - 1

    def golomb(self) -> int:
        zeros = 0
        while not self.read(1):
            zeros += 1
        return (1 << zeros) - 1 + self.read(zeros)


def _h264_size(unit: bytes) -> tuple[int, int] | None:
    """(width, height) in a sequence parameter set; None unless 8 bits, progressive and without an offset."""
    if not 8 <= len(unit) <= 256 or unit[0] & 31 != 7:
        return None
    bits = _Bits(unit[1:].replace(b"\0\0\3", b"\0\0"))
    profile = bits.read(8)
    bits.read(16)
    bits.golomb()
    chroma = 1
    if profile not in (66, 77, 88):
        chroma = bits.golomb()
        if chroma == 3:
            bits.read(1)
        depths = bits.golomb() + bits.golomb()  # above 8 bits
        bits.read(1)
        if depths or bits.read(1):  # the second are scaling lists, which are not parsed
            return None
    bits.golomb()
    order = bits.golomb()
    if order == 0:
        bits.golomb()
    elif order == 1:
        bits.read(1)
        for _ in range(2):
            bits.golomb()
        for _ in range(bits.golomb()):
            bits.golomb()
    bits.golomb()
    bits.read(1)
    width, height = 16 * (bits.golomb() + 1), 16 * (bits.golomb() + 1)
    progressive, _ = bits.read(1), bits.read(1)
    left, right, top, bottom = [bits.golomb() for _ in range(4)] if bits.read(1) else [0] * 4
    if not progressive or left or top:
        return None
    return width - right * (2 if chroma in (1, 2) else 1), height - bottom * (2 if chroma == 1 else 1)


def vp9_size(frame: bytes) -> tuple[int, int] | None:
    """(width, height) of a VP9 key frame, by its first 16 bytes; None unless 8 bits and displayed."""
    bits = _Bits(frame)
    marker, low, high = bits.read(2), bits.read(1), bits.read(1)
    repeated_or_inter = bits.read(2)
    bits.read(2)  # shown or not, error resilient or not
    if marker != 2 or high or repeated_or_inter or bits.read(24) != 0x498342:
        return None
    if bits.read(3) != 7:  # the color space; 7 is RGB, which has no range and no subsampling
        bits.read(1 + 3 * low)
    else:
        bits.read(low)
    return bits.read(16) + 1, bits.read(16) + 1
