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
from collections.abc import Iterator

import av
import numpy as np
from av.packet import Packet

from videomaskfeat import io
from videomaskfeat.data.pyav_file import FAILURES, PyAvFile
from videomaskfeat.data.reader import VideoReadError
from videomaskfeat.data.readers_pyav import PyAvReader
from videomaskfeat.data.readers_timed import CountedReader, TimedReader

_FURTHER_BACK = (0.0, 1.0, 4.0, 16.0, 64.0)  # seconds before the wanted time at which to look for a key frame
_LONGEST_GAP = 10.0  # seconds between two wanted times over which packets are read rather than jumped
_EARLIER_KEYS = 3  # key frames to go back where pictures do not come out
_LATER = 0.48  # from which part of the way between two pictures on the later one is taken: see _nearest
_MISSING_END = 1.0  # seconds of pictures that a whole file may lack against what it says


class UntimedError(Exception):
    """A file whose packets carry no trustworthy times: its frames can only be counted."""


def open_timed(path: str | os.PathLike[str], *, threads: int = 1) -> TimedReader:
    """Open a video file for reading by time.

    Files without trustworthy times (raw streams, AVI with B-frames) are counted from their start, at the
    frame rate that they state.

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
        return CountedReader(PyAvReader(local, threads=threads))


class SeekingReader(PyAvFile, TimedReader):
    """Reads by time any file whose packets have times.

    The first picture's time is that which the file states for the start of its stream.
    """

    def __init__(self, path: str, *, threads: int = 1) -> None:
        """Open a local file; no more than its header is read.

        Args:
            path: of the file.
            threads: for decoding; 1 suits loader workers, which are processes already. 0 = all cores.

        Raises:
            VideoReadError: the file is missing, empty, damaged, or holds no pictures.
            UntimedError: its times cannot be trusted.
        """
        super().__init__(path, threads=threads)
        start, base = self._stream.start_time, self._stream.time_base
        if start is None or not base or self._guesses_times():
            self.close()
            raise UntimedError(path)
        self._start, self._second = start, float(1 / base)  # ticks
        self.fps = float(self._stream.average_rate or self._stream.guessed_rate or 0)
        # None in Matroska, which knows the length of the whole alone, sound included.
        self._stated = None if self._stream.duration is None else self._stream.duration / self._second
        whole = self._container.duration
        self.duration_seconds = self._stated or (whole / av.time_base if whole else None)

    def _each_at(self, seconds: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        ticks = self._start + seconds * self._second
        groups = np.cumsum(np.diff(ticks, prepend=ticks[0]) > _LONGEST_GAP * self._second)
        for group in np.unique(groups):
            places = np.flatnonzero(groups == group)
            for part, picture in self._each_in(ticks[places]):
                yield places[part], picture

    def _each_in(self, ticks: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """As ``_each_at``, for times that lie close together, in ticks."""
        places = np.arange(len(ticks))
        landing = ticks[0]
        for _ in range(1 + _EARLIER_KEYS):
            packets, ended = self._window(landing, ticks[-1])
            nearest = self._nearest(packets, ticks[places], ended)
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
        keys_beyond = 0
        try:
            for packet in self._packets():
                if not packets and not packet.is_keyframe:
                    continue
                time = _time(packet)
                if packet.is_corrupt:
                    at = (time - self._start) / self._second
                    raise VideoReadError(self.path, f"truncated or damaged at {at:.2f} s")
                packets.append(packet)
                if time >= last and not packet.is_discard:
                    beyond = time if beyond is None else min(beyond, time)
                if beyond is not None:
                    keys_beyond += packet.is_keyframe and time > beyond
                    # Nothing is shown before it is decoded: no later packet has a time before this one's dts.
                    # After a jump some have none; then the second key frame ends all that came before.
                    if keys_beyond > 1 or (packet.dts is not None and packet.dts >= beyond):
                        return packets, False
        except _NoTimeError as error:
            raise VideoReadError(self.path, "a picture without a time") from error
        return packets, beyond is None

    def _nearest(self, packets: list[Packet], ticks: np.ndarray, ended: bool) -> np.ndarray:
        """The times of the pictures nearest to ascending ticks, int64 [n].

        Where two are equally near, the later one, as in ``key_frame_indices``; a little before the middle
        too, because containers round times to their clock (Matroska's is a millisecond).
        """
        shown = [_time(packet) for packet in packets if not packet.is_discard]
        # Pictures stored after the first key frame and shown before it lean on ones that were not read.
        times = np.unique([time for time in shown if time >= _time(packets[0])])
        if not len(times):
            raise VideoReadError(self.path, "no picture is shown here")
        if ended:
            self._check_end(max(_time(packet) for packet in packets), ticks)
        later = np.searchsorted(times, ticks).clip(0, len(times) - 1)
        earlier = np.maximum(later - 1, 0)
        middle = times[earlier] + _LATER * (times[later] - times[earlier])
        return times[np.where(ticks >= middle, later, earlier)]

    def _check_end(self, last: int, ticks: np.ndarray) -> None:
        """The pictures end where the file says; else what lies beyond is missing, and not over."""
        found = (last - self._start) / self._second
        if self._stated is None:
            # The whole may be longer for its sound: only what lies wholly beyond the pictures is refused.
            if (ticks[0] - last) / self._second > _MISSING_END:
                at = (ticks[0] - self._start) / self._second
                raise VideoReadError(self.path, f"the pictures end at {found:.2f} s, before {at:.2f} s")
        elif self._stated - found > _MISSING_END + (1 / self.fps if self.fps else 0):
            raise VideoReadError(
                self.path,
                f"truncated or damaged: the pictures end at {found:.2f} s, not at {self._stated:.2f} s",
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


class _NoTimeError(Exception):
    """A packet without a time."""


def _time(packet: Packet) -> int:
    if packet.pts is None:
        raise _NoTimeError
    return packet.pts
