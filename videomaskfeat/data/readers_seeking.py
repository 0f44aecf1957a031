"""Pictures by their time out of long files, without reading them from the start.

The readers of frames by number must know all frames before they can count them, and so read a file of hours
from end to end before the first clip. Here the container's own index leads to the key frame before the first
wanted time; from there the packets are read, not decoded, until the last wanted time is passed, and their
times say exactly which pictures are the nearest, whatever the order in which they are stored and however
uneven their times. Opening a file of half an hour and cutting a clip out of it reads about its header and
that clip.
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
from videomaskfeat.data.reader import (
    MISSING_END,
    CountedReader,
    IndexedReader,
    TimedReader,
    VideoReadError,
    check_inside,
    nearest_places,
)
from videomaskfeat.data.readers_pyav import (
    DECODING_TIMES_ALONE,
    FAILURES,
    STORED_DURATIONS,
    PyAvFile,
    PyAvReader,
)

_FURTHER_BACK = (0.0, 1.0, 4.0, 16.0, 64.0)  # seconds before the wanted time at which to look for a key frame
_LONGEST_GAP = 10.0  # seconds between two wanted times over which packets are read rather than jumped
_EARLIER_KEYS = 3  # key frames to go back where pictures do not come out
_WHOLE_INDEX = ("mov", "matroska")  # their index lists no more than the file holds, unless it is cut short
_REORDERED = 32  # packets in which pictures that are shown one after the other are stored, at most


class UntimedError(Exception):
    """A file of which a time alone does not lead to the picture: its packets must be read from the start."""


def open_timed(path: str | os.PathLike[str], *, threads: int = 1) -> TimedReader:
    """Open a video file for reading by time.

    mp4, Matroska, WebM, AVI and FLV files are not read from their start. Others are: transport and program
    streams have no index and may be several recordings joined, several edits of an mp4 file repeat times,
    and in AVI and ASF files with B-frames times follow only from the order of the pictures. Raw streams have
    no times at all: their frames are counted, at the rate that the stream states, or else at 25 per second.

    Args:
        path: of the file, through the path manager.
        threads: for decoding. 1 suits loader workers, which are processes already; 0 takes all cores.

    Raises:
        VideoReadError: the file cannot be read; its ``cause`` says why.
    """
    local = io.local_path(path)
    try:
        return SeekingReader(local, threads=threads)
    except UntimedError:
        return _open_indexed(local, threads)


def _open_indexed(path: str, threads: int) -> TimedReader:
    """Read all packets of a file and derive the times of its pictures."""
    video = PyAvReader(path, threads=threads)
    if video.seconds is None or video.counts_steadily:
        return CountedReader(video)
    return IndexedReader(
        video, video.seconds, end_seconds=float(video.seconds[0]) + video.timing.duration_seconds
    )


class SeekingReader(PyAvFile, TimedReader):
    """Reads by time any file whose packets have times and whose container has an index.

    Times count from the first packet's. Where the index leads astray after all, the file is read from its
    start.
    """

    def __init__(self, path: str, *, threads: int = 1) -> None:
        """Open a local file; no more than its header and its first packets are read. See `PyAvFile`.

        Raises:
            UntimedError: its times cannot be trusted.
        """
        super().__init__(path, threads=threads)
        self._indexed: TimedReader | None = None
        try:
            base, form = self._stream.time_base, self._container.format
            joined = Flags.ts_discont in Flags(form.flags)
            if joined or not base or self._stream.start_time is None or self._guesses_times():
                raise UntimedError(path)
            if form.name.startswith("mov") and has_several_edits(path):
                raise UntimedError(path)
            self._second = float(1 / base)  # ticks
            self._start = self._stream.start_time
            if form.name in DECODING_TIMES_ALONE:
                self._start = self._check_due()
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
        """From the first packet's time to the end of the last picture; reads the end of the file."""
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
        """The same file, read from its start."""
        if self._indexed is None:
            self._indexed = _open_indexed(self.path, self._threads)
        return self._indexed

    def _check_due(self) -> int:
        """The first packet's time, if it is its decoding time; FFmpeg guesses another for H.264."""
        first = next(self._despite_stalls(self._packets), None)
        if first is None or first.pts is None or first.pts != first.dts:
            raise UntimedError(self.path)
        return first.pts

    @cached_property
    def _end(self) -> tuple[int, float]:
        """The time of the last picture, and for how long it is shown, in ticks."""
        return next(self._despite_stalls(self._find_end))

    def _find_end(self) -> Iterator[tuple[int, float]]:
        for target in (self._stated_end(), self._start):
            if not self._seek(target):
                self._reopen()
            times, last = self._times_to_end()
            if times:
                self._check_complete(max(times))
                yield max(times), self._shown_for(np.unique(times), last)
                return
        raise VideoReadError(self.path, "no picture is shown")

    def _stated_end(self) -> int:
        """Where the header and the index put the end of the pictures, in ticks: where to look for it."""
        entries, whole = self._stream.index_entries, self._container.duration
        ends = [self._start, self._start + (self._stream.duration or 0)]
        ends += [int(entries[-1].timestamp)] if len(entries) else []
        ends += [self._start + int(whole / av.time_base * self._second)] if whole else []
        return max(ends)  # a jump beyond the end leads to the last key frame

    def _times_to_end(self) -> tuple[list[int], int]:
        """The times of the last shown packets from here on, and the ticks for which the last one is shown."""
        times: deque[int] = deque(maxlen=_REORDERED)
        last_key, shown_for = None, 0
        for packet in self._packets():
            if packet.is_corrupt:
                at = (_time(packet) - self._start) / self._second
                raise VideoReadError(self.path, f"truncated or damaged at {at:.2f} s")
            if packet.is_keyframe:
                last_key = _later_key(packet, last_key)
            if not packet.is_discard:
                if not times or _time(packet) > max(times):
                    shown_for = packet.duration or 0
                times.append(_time(packet))
        return list(times), shown_for

    def _shown_for(self, times: np.ndarray, stated: int) -> float:
        """For how many ticks the last picture is shown, of ascending times."""
        if len(times) < 2 or (stated and self._container.format.name in STORED_DURATIONS):
            return float(stated)
        gap = float(np.median(np.diff(times)))
        rate = float(self._stream.average_rate or 0)
        # The exact gap, where the clock rounds it.
        return self._second / rate if rate and abs(self._second / rate - gap) <= 1 else gap

    def _each_at(self, seconds: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if self._indexed is not None:
            yield from self._indexed._each_at(seconds)
            return
        ticks = self._start + seconds * self._second
        groups = np.cumsum(np.diff(ticks, prepend=ticks[0]) > _LONGEST_GAP * self._second)
        for group in np.unique(groups):
            places = np.flatnonzero(groups == group)
            read = partial(self._each_in, ticks[places])
            for part, picture in self._despite_stalls(read):
                yield places[part], picture

    def _each_in(self, ticks: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """As ``_each_at``, for times that lie close together, in ticks."""
        places = np.arange(len(ticks))
        landing = ticks[0]
        for _ in range(1 + _EARLIER_KEYS):
            try:
                packets, ended = self._window(landing, ticks[-1])
                nearest = self._nearest(packets, ticks[places], ended)
            except UntimedError:
                for own, picture in self._by_index()._each_at((ticks[places] - self._start) / self._second):
                    yield places[own], picture
                return
            missing = set(nearest.tolist())
            for time, picture in self._pictures(packets, nearest):
                missing.discard(time)
                yield places[nearest == time], picture
            if not missing:
                return
            # A key frame of an intra refresh gives whole pictures only later: then from the one before.
            places = places[np.isin(nearest, list(missing))]
            landing = float(_time(packets[0]) - 1)
        at = (ticks[places[0]] - self._start) / self._second
        raise VideoReadError(self.path, f"the picture at {at:.2f} s cannot be decoded")

    def _window(self, first: float, last: float) -> tuple[list[Packet], bool]:
        """The packets from the key frame at or before a time until all that are shown up to another are in.

        Returns:
            Packets in the order of the file, at least one and the first a key frame; and whether the file
            ended before the second time.

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
            raise VideoReadError(self.path, "no key frame, so nothing can be decoded")
        return packets, ended

    def _seek(self, target: float) -> bool:
        try:
            self._container.seek(max(int(target), self._start), stream=self._stream)
        except FAILURES:
            return False
        return True

    def _collect(self, last: float) -> tuple[list[Packet], bool]:
        """The packets from the next key frame on, as `_window` returns them; there may be none."""
        packets: list[Packet] = []
        beyond: int | None = None  # the first time met that is at or after the last wanted one
        keys_beyond, last_key = 0, None
        for packet in self._packets():
            if not packets and not packet.is_keyframe:
                continue
            time = _time(packet)
            if packet.is_corrupt:
                at = (time - self._start) / self._second
                raise VideoReadError(self.path, f"truncated or damaged at {at:.2f} s")
            packets.append(packet)
            if packet.is_keyframe:
                last_key = _later_key(packet, last_key)
            if time >= last and not packet.is_discard:
                beyond = time if beyond is None else min(beyond, time)
            if beyond is not None:
                keys_beyond += packet.is_keyframe and time > beyond
                # Nothing is shown before it is decoded: no later packet has a time before this one's dts.
                # After a jump some have none; then the second key frame ends all that came before.
                if keys_beyond > 1 or (packet.dts is not None and packet.dts >= beyond):
                    return packets, False
        return packets, beyond is None

    def _nearest(self, packets: list[Packet], ticks: np.ndarray, ended: bool) -> np.ndarray:
        """The times of the pictures nearest to ascending ticks, int64 [n]."""
        shown = [_time(packet) for packet in packets if not packet.is_discard]
        # Pictures stored after the first key frame and shown before it lean on ones that were not read.
        times = np.unique([time for time in shown if time >= _time(packets[0])])
        if not len(times):
            raise VideoReadError(self.path, "no picture is shown here")
        if ended:
            self._check_complete(max(_time(packet) for packet in packets))
            if (ticks[0] - times[-1]) / self._second > MISSING_END:
                last, shown_for = self._end  # looks for another recording behind this one
                first, latest, end = (
                    (tick - self._start) / self._second for tick in (ticks[0], last, last + shown_for)
                )
                check_inside(self.path, first, last=latest, end=end)
        return times[nearest_places(times, ticks)]

    def _check_complete(self, last: int) -> None:
        """The file holds all pictures that its index lists; else some are missing, and it is not over."""
        entries = self._stream.index_entries
        if not self._container.format.name.startswith(_WHOLE_INDEX) or not len(entries):
            return
        listed = int(entries[-1].timestamp)
        if (listed - last) / self._second > MISSING_END:
            found = (last - self._start) / self._second
            stated = (max(listed, self._start + (self._stream.duration or 0)) - self._start) / self._second
            raise VideoReadError(
                self.path,
                f"truncated or damaged: the pictures end at {found:.2f} s, not at {stated:.2f} s",
            )

    def _pictures(self, packets: list[Packet], times: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """The pictures with some times, int64 [n] ascending, and their times; those that can be decoded."""
        keys = [place for place, packet in enumerate(packets) if packet.is_keyframe]
        key_times = np.array([_time(packets[place]) for place in keys])
        order = np.argsort(key_times, kind="stable")
        starts = order[np.searchsorted(key_times[order], times, side="right") - 1]
        for start in np.unique(starts):
            self._stream.codec_context.flush_buffers()
            wanted = set(times[starts == start].tolist())
            for frame in self._decode_wanted(packets[keys[start] :], wanted):
                assert frame.pts is not None  # one of those wanted
                yield frame.pts, self._picture(frame)


def _time(packet: Packet) -> int:
    if packet.pts is None:
        raise UntimedError
    return packet.pts


def _later_key(packet: Packet, before: int | None) -> int:
    """The time of a key frame, which comes after the key frame before; UntimedError if it does not."""
    time = _time(packet)
    if before is not None and time < before:
        raise UntimedError  # another recording begins
    return time
