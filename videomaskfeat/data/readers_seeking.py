"""Frames by time from long files, without reading the files from the start.

Readers of frames by index must count all frames first, and so read a whole file before the first clip. Here
the container's index leads to the key frame before the first requested time. From there, packets are read
without decoding until the last requested time has passed. Their times determine the nearest frames, whatever
their storage order and spacing. Cutting a clip from a file of half an hour reads little more than its header
and that clip.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from functools import cached_property, partial

import av
import numpy as np
from av.format import Flags
from av.packet import Packet

from videomaskfeat import io
from videomaskfeat.data.containers import has_several_edits
from videomaskfeat.data.reader import VideoReadError
from videomaskfeat.data.readers_pyav import (
    DECODING_TIMES_ALONE,
    FAILURES,
    STORED_DURATIONS,
    PyAvFile,
    PyAvReader,
)
from videomaskfeat.data.timed_reader import (
    MISSING_END,
    CountedReader,
    IndexedReader,
    TimedReader,
    check_inside,
    nearest_places,
)

_FURTHER_BACK = (0.0, 1.0, 4.0, 16.0, 64.0)  # seconds before the first time, to search for a key frame
_LONGEST_GAP = 10.0  # seconds between two requested times; across a longer gap, packets are not read
_EARLIER_KEYS = 3  # key frames to go back if frames are not decoded
_COMPLETE_INDEX = ("mov", "matroska")  # a file with fewer pictures than its index is truncated
_MOST_REORDERED = 32  # packets between pictures that are displayed one after the other


class UntimedError(Exception):
    """Times do not identify the frames of a file: its packets must be read from the start."""


def open_timed(path: str | os.PathLike[str], *, threads: int = 1) -> TimedReader:
    """Open a video file for reading by time.

    mp4, Matroska, WebM, AVI and FLV files are not read from their start. Others are: transport and program
    streams have no index and may consist of several recordings, several edits of an mp4 file repeat times,
    and in AVI and ASF files with B-frames times follow only from the order of the pictures. Raw streams have
    no times: their frames are counted, at the rate stated by the stream, or at 25 per second without one.

    Args:
        path: a video file, opened through the path manager.
        threads: decoding threads. 1 suits loader workers, which are processes already; 0 uses all cores.

    Raises:
        VideoReadError: the file cannot be read; see its ``cause``.
    """
    local = io.local_path(path)
    try:
        return SeekingReader(local, threads=threads)
    except UntimedError:
        return _open_indexed(local, threads)


def _open_indexed(path: str, threads: int) -> TimedReader:
    """Read all packets of a file and derive the times of its frames."""
    video = PyAvReader(path, threads=threads)
    if video.seconds is None or video.counts_steadily:
        return CountedReader(video)
    return IndexedReader(
        video, video.seconds, end_seconds=float(video.seconds[0]) + video.timing.duration_seconds
    )


class SeekingReader(PyAvFile, TimedReader):
    """Reads by time any file with an index and with times in its packets; see `PyAvFile`.

    Times are relative to the first packet. Opening reads only the header and the first packets. If the index
    turns out to be wrong, the file is read from its start.

    Raises:
        UntimedError: its times cannot be trusted.
    """

    def __init__(self, path: str, *, threads: int = 1) -> None:
        super().__init__(path, threads=threads)
        self._indexed: TimedReader | None = None
        try:
            base, container_format = self._stream.time_base, self._container.format
            joined = Flags.ts_discont in Flags(container_format.flags)
            if joined or not base or self._stream.start_time is None or self._guesses_times():
                raise UntimedError(path)
            if container_format.name.startswith("mov") and has_several_edits(path):
                raise UntimedError(path)
            self._second = float(1 / base)  # ticks
            self._start = self._stream.start_time
            if container_format.name in DECODING_TIMES_ALONE:
                self._start = self._first_decoding_time()
        except BaseException:
            self.close()
            raise

    @cached_property
    def fps(self) -> float:
        """Average frames per second; reads all packets of the file once."""
        with PyAvReader(self.path) as reader:
            return reader.fps

    @cached_property
    def duration_seconds(self) -> float:
        """From the first packet's time to the end of the last frame; reads the end of the file."""
        try:
            last, shown_for = self._end
        except UntimedError:
            return self._by_index().duration_seconds
        return (last + shown_for - self._start) / self._second

    def close(self) -> None:
        """Release the file and the decoder; may be called twice."""
        super().close()
        if self._indexed is not None:
            self._indexed.close()

    def _by_index(self) -> TimedReader:
        """A reader of the same file that has read all packets."""
        if self._indexed is None:
            self._indexed = _open_indexed(self.path, self._threads)
        return self._indexed

    def _first_decoding_time(self) -> int:
        """The first packet's time, if it is its decoding time; FFmpeg guesses another one for H.264."""
        first = next(self._retry_stalls(self._packets), None)
        if first is None or first.pts is None or first.pts != first.dts:
            raise UntimedError(self.path)
        return first.pts

    @cached_property
    def _end(self) -> tuple[int, float]:
        """Time and duration of the last frame, in ticks."""
        return next(self._retry_stalls(self._find_end))

    def _find_end(self) -> Iterator[tuple[int, float]]:
        for target in (self._stated_end(), self._start):
            if not self._seek(target):
                self._reopen()
            times, last = self._times_to_end()
            if times:
                self._check_complete(max(times))
                yield max(times), self._shown_for(np.unique(times), last)
                return
        raise VideoReadError(self.path, "no frame is displayed")

    def _stated_end(self) -> int:
        """The end by the header and the index, in ticks."""
        entries, duration = self._stream.index_entries, self._container.duration
        ends = [self._start, self._start + (self._stream.duration or 0)]
        ends += [int(entries[-1].timestamp)] if len(entries) else []
        ends += [self._start + int(duration / av.time_base * self._second)] if duration else []
        return max(ends)  # a jump beyond the end leads to the last key frame

    def _times_to_end(self) -> tuple[list[int], int]:
        """The times of the last displayed packets from here on, and the duration of the last one in ticks."""
        times: deque[int] = deque(maxlen=_MOST_REORDERED)
        last_key, shown_for = None, 0
        for packet in self._packets():
            self._check_packet(packet)
            if packet.is_keyframe:
                last_key = _later_key(packet, last_key)
            if not packet.is_discard:
                if not times or _time(packet) > max(times):
                    shown_for = packet.duration or 0
                times.append(_time(packet))
        return list(times), shown_for

    def _check_packet(self, packet: Packet) -> None:
        if packet.is_corrupt:
            seconds = (_time(packet) - self._start) / self._second
            raise VideoReadError(self.path, f"truncated or damaged at {seconds:.2f} s")

    def _shown_for(self, times: np.ndarray, stated: int) -> float:
        """Duration of the last frame in ticks, from ascending times."""
        if len(times) < 2 or (stated and self._container.format.name in STORED_DURATIONS):
            return float(stated)
        gap = float(np.median(np.diff(times)))
        rate = float(self._stream.average_rate or 0)
        # The exact gap, if the clock rounds it.
        return self._second / rate if rate and abs(self._second / rate - gap) <= 1 else gap

    def _iter_frames_at(self, seconds: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if self._indexed is not None:
            yield from self._indexed._iter_frames_at(seconds)
            return
        ticks = self._start + seconds * self._second
        groups = np.cumsum(np.diff(ticks, prepend=ticks[0]) > _LONGEST_GAP * self._second)
        for group in np.unique(groups):
            places = np.flatnonzero(groups == group)
            for own, picture in self._retry_stalls(partial(self._iter_group, ticks[places])):
                yield places[own], picture

    def _iter_group(self, ticks: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """``_iter_frames_at`` for times in ticks, without long gaps."""
        places = np.arange(len(ticks))
        landing = ticks[0]
        for _ in range(1 + _EARLIER_KEYS):
            try:
                packets, ended = self._window(landing, ticks[-1])
                nearest = self._nearest(packets, ticks[places], ended)
            except UntimedError:
                seconds = (ticks[places] - self._start) / self._second
                for own, picture in self._by_index()._iter_frames_at(seconds):
                    yield places[own], picture
                return
            missing = set(nearest.tolist())
            for time, picture in self._pictures(packets, nearest):
                missing.discard(time)
                yield places[nearest == time], picture
            if not missing:
                return
            # With intra refresh, a key frame yields complete pictures only later: then use the one before it.
            places = places[np.isin(nearest, list(missing))]
            landing = float(_time(packets[0]) - 1)
        second = (ticks[places[0]] - self._start) / self._second
        raise VideoReadError(self.path, f"the frame at {second:.2f} s cannot be decoded")

    def _window(self, first: float, last: float) -> tuple[list[Packet], bool]:
        """The packets from the key frame at or before ``first`` to all that are displayed up to ``last``.

        Returns:
            Packets in file order, at least one, starting with a key frame; and whether the file ended
            before ``last``.

        Raises:
            VideoReadError: the file is damaged here.
        """
        for seconds in _FURTHER_BACK:
            target = first - seconds * self._second
            if target <= self._start and seconds:
                break
            if not self._seek(target):
                break
            packets, ended = self._collect(last)
            if packets and _time(packets[0]) <= max(first, self._start):
                return packets, ended
            if target <= self._start:
                break
        # Not seekable, or every jump lands too late, as in some transport streams.
        self._reopen()
        packets, ended = self._collect(last)
        if not packets:
            raise VideoReadError(self.path, "no key frame, so no frame can be decoded")
        return packets, ended

    def _seek(self, target: float) -> bool:
        try:
            self._container.seek(max(int(target), self._start), stream=self._stream)
        except FAILURES:
            return False
        return True

    def _collect(self, last: float) -> tuple[list[Packet], bool]:
        """The packets from the next key frame on, as in `_window`; may be empty."""
        packets: list[Packet] = []
        beyond: int | None = None  # the earliest time so far at or after ``last``
        keys_beyond, last_key = 0, None
        for packet in self._packets():
            if not packets and not packet.is_keyframe:
                continue
            time = _time(packet)
            self._check_packet(packet)
            packets.append(packet)
            if packet.is_keyframe:
                last_key = _later_key(packet, last_key)
            if time >= last and not packet.is_discard:
                beyond = time if beyond is None else min(beyond, time)
            if beyond is not None:
                keys_beyond += packet.is_keyframe and time > beyond
                # No frame is displayed before it is decoded: no later packet has a time before this dts.
                # After a jump some packets have no dts; then the second key frame ends all earlier frames.
                if keys_beyond > 1 or (packet.dts is not None and packet.dts >= beyond):
                    return packets, False
        return packets, beyond is None

    def _nearest(self, packets: list[Packet], ticks: np.ndarray, ended: bool) -> np.ndarray:
        """The times of the frames nearest to ascending ticks, int64 [n]."""
        shown = [_time(packet) for packet in packets if not packet.is_discard]
        # Frames stored after the first key frame and displayed before it depend on frames that were not read.
        times = np.unique([time for time in shown if time >= _time(packets[0])])
        if not len(times):
            raise VideoReadError(self.path, "no frame is displayed here")
        if ended:
            self._check_complete(max(_time(packet) for packet in packets))
            if (ticks[0] - times[-1]) / self._second > MISSING_END:
                last, shown_for = self._end  # searches for another recording after this one
                first, latest, end = (
                    (tick - self._start) / self._second for tick in (ticks[0], last, last + shown_for)
                )
                check_inside(self.path, first, last=latest, end=end)
        return times[nearest_places(times, ticks)]

    def _check_complete(self, last: int) -> None:
        """Raise VideoReadError if frames of the file's index are missing at its end."""
        entries = self._stream.index_entries
        if not self._container.format.name.startswith(_COMPLETE_INDEX) or not len(entries):
            return
        listed = int(entries[-1].timestamp)
        if (listed - last) / self._second > MISSING_END:
            actual = (last - self._start) / self._second
            stated = (max(listed, self._start + (self._stream.duration or 0)) - self._start) / self._second
            raise VideoReadError(
                self.path, f"truncated or damaged: the last frame is at {actual:.2f} s, not at {stated:.2f} s"
            )

    def _pictures(self, packets: list[Packet], times: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """The decodable frames with these times, int64 [n] ascending; yields (time, picture)."""
        keys = [place for place, packet in enumerate(packets) if packet.is_keyframe]
        key_times = np.array([_time(packets[place]) for place in keys])
        order = np.argsort(key_times, kind="stable")
        starts = order[np.searchsorted(key_times[order], times, side="right") - 1]
        for start in np.unique(starts):
            self._stream.codec_context.flush_buffers()
            own_times = set(times[starts == start].tolist())
            for frame in self._decode_times(packets[keys[start] :], own_times):
                assert frame.pts is not None  # one of these times
                yield frame.pts, self._picture(frame)


def _time(packet: Packet) -> int:
    if packet.pts is None:
        raise UntimedError
    return packet.pts


def _later_key(packet: Packet, before: int | None) -> int:
    """The time of a key frame; UntimedError if it is earlier than the previous key frame."""
    time = _time(packet)
    if before is not None and time < before:
        raise UntimedError  # another recording begins
    return time
