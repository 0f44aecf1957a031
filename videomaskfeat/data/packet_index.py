"""The pictures of a file, told from its packets: which they are, when they are shown, and how fast.

A header can state any frame rate and any duration, and a file can be several recordings one after the other.
The packets say what is there, so everything here follows from the times of the packets.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Literal

import numpy as np
from av.packet import Packet

_CLOCK_SECONDS = 0.002  # a clock of milliseconds, such as Matroska's, rounds both ends of a video
_LONGEST_GAP = 10.0  # seconds; FFmpeg closes longer gaps in transport and program streams
_UNKNOWN = -(2**63)  # a packet without a time
_SHORTEST_RETURN = 0.1  # seconds by which times must go back between key frames to begin another recording


Joins = Literal["recordings", "edits", "segments", "none"]
"""How times repeat in a container: as transport and program streams, mp4, Matroska, or not at all."""


@dataclass(frozen=True)
class PacketIndex:
    """The frames of a file and the key frames to decode them from.

    A file is one or more recordings: joined transport streams, or the edits of an edit list. Marks are the
    packets' presentation times, shifted from the second recording on so that no two recordings overlap.

    Attributes:
        marks: int64 [N], of the frames, ascending.
        key_marks: int64 [K], of the key frames, ascending.
        key_times: int64 [K], presentation times of their packets.
        key_packets: int64 [K], their places among the packets of the file.
        packet_marks: int64 [P], of all packets in file order; None for a single recording, where a mark is
            the packet's own time.
        positions: int64 [P], where in the file each packet begins, -1 if unknown.
        ticks: int64 [N], when each frame is shown, after the first packet's.
    """

    marks: np.ndarray
    key_marks: np.ndarray
    key_times: np.ndarray
    key_packets: np.ndarray
    packet_marks: np.ndarray | None
    positions: np.ndarray
    ticks: np.ndarray


class PacketLog:
    """What the packets of a file say, noted one after the other in file order."""

    def __init__(self, *, second: float, joins: Joins) -> None:
        """Start empty.

        Args:
            second: ticks per second.
            joins: what a file may consist of: joined recordings; edits, which overlap in hidden packets;
                joined segments, whose decoding times are guesses from the join on.
        """
        self._second, self._joins = second, joins
        self._times, self._decoding = array("q"), array("q")  # 64 bits each, since a film has 200,000 packets
        self._durations, self._positions = array("q"), array("q")
        self._keys, self._hidden = array("b"), array("b")
        self._starts = [0]  # the first packet of each recording
        self._last_key = _UNKNOWN

    def __len__(self) -> int:
        return len(self._times)

    def add(self, packet: Packet) -> bool:
        """Note the next packet; whether another recording or edit begins with it."""
        time = _UNKNOWN if packet.pts is None else packet.pts
        due = _UNKNOWN if packet.dts is None else packet.dts
        key = packet.is_keyframe
        begins = bool(self._times) and self._begins_recording(time, due, key=key)
        if begins:
            self._starts.append(len(self._times))
        if key:
            self._last_key = time
        self._times.append(time)
        self._decoding.append(due)
        self._durations.append(packet.duration or 0)
        self._positions.append(-1 if packet.pos is None else packet.pos)
        self._keys.append(key)
        self._hidden.append(packet.is_discard)
        return begins

    def _begins_recording(self, time: int, due: int, *, key: bool) -> bool:
        if self._joins == "segments":
            return key and _UNKNOWN < time < self._last_key
        if self._joins == "none" or _UNKNOWN in (due, self._decoding[-1]):
            return False
        step = due - self._decoding[-1]
        if self._joins == "edits":
            return step < 0
        back = 0 if key else -_SHORTEST_RETURN * self._second
        return step < back or (key and step > _LONGEST_GAP * self._second)

    @property
    def has_key(self) -> bool:
        """Whether there is a key frame."""
        return any(self._keys)

    def due_ticks(self) -> np.ndarray | None:
        """When the shown pictures are due by their decoding times, in order: int64 [n], from 0.

        For containers that store no other times. None if a packet has none, or two have the same.
        """
        ticks = np.sort(np.array(self._decoding)[np.array(self._hidden) == 0])
        if not len(ticks) or ticks[0] == _UNKNOWN or (np.diff(ticks) <= 0).any():
            return None
        return ticks - ticks[0]

    def last_duration(self) -> int:
        """Ticks for which the last picture is shown, by its packet; 0 if unknown."""
        shown = np.flatnonzero(np.array(self._hidden) == 0)
        if len(self._starts) > 1 or not len(shown):
            return 0
        return int(self._durations[shown[np.argmax(np.array(self._times)[shown])]])

    def index(self) -> PacketIndex | None:
        """The index; None if the times do not tell the pictures apart."""
        hidden, keys = np.array(self._hidden, np.bool_), np.array(self._keys, np.bool_)
        if not keys.any() or (np.array(self._times)[keys | ~hidden] == _UNKNOWN).any():
            return None
        places = np.arange(len(keys))
        recording = np.searchsorted(self._starts, places, side="right") - 1
        marks, shown_at = self._separated(recording, hidden)
        # Pictures before the first key frame of their recording, in the file or as shown, lean on lost ones.
        first_place = np.full(len(self._starts), len(keys))
        np.minimum.at(first_place, recording[keys], places[keys])
        first_mark = np.full(len(self._starts), np.iinfo(np.int64).max)
        np.minimum.at(first_mark, recording[keys], marks[keys])
        frames = places[~hidden & (places >= first_place[recording]) & (marks >= first_mark[recording])]
        frames = frames[np.argsort(marks[frames], kind="stable")]
        if not len(frames) or (np.diff(marks[frames]) <= 0).any():
            return None
        key_packets = places[keys][np.argsort(marks[keys], kind="stable")]
        return PacketIndex(
            marks=marks[frames],
            key_marks=marks[key_packets],
            key_times=np.array(self._times)[key_packets],
            key_packets=key_packets,
            packet_marks=marks if len(self._starts) > 1 else None,
            positions=np.array(self._positions, np.int64),
            # The first pictures after a join may be due before the last ones before it.
            ticks=np.maximum.accumulate(shown_at[frames]) - shown_at[~hidden].min(),
        )

    def _separated(self, recording: np.ndarray, hidden: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(marks, ticks at which they are shown) of all packets, int64 [P] each."""
        times = np.array(self._times)
        if len(self._starts) == 1:
            return times, times
        marks, shown_at = times.copy(), times.copy()
        for number in range(1, len(self._starts)):
            before, own = recording == number - 1, recording == number
            marks[own] += marks[before].max() + 1 - times[own].min()
            shown_before, shown_own = before & ~hidden, own & ~hidden
            if self._joins == "recordings":  # go on as in FFmpeg: by the decoding times
                first = self._starts[number]
                due = self._decoding[first - 1] + int(shown_at[first - 1] - times[first - 1])
                shown_at[own] += due + self._durations[first - 1] - self._decoding[first]
            elif self._joins == "segments" and shown_before.any() and shown_own.any():
                gap = self._durations[self._starts[number] - 1]
                shown_at[own] += shown_at[shown_before].max() + gap - times[shown_own].min()
        return marks, shown_at


@dataclass(frozen=True)
class Timing:
    """How fast the pictures of a video follow each other.

    Attributes:
        fps: pictures per second, on average; 0 if unknown.
        duration_seconds: from the first picture to the end of the last.
        is_variable: whether the gaps between pictures differ by more than the rounding of the clock.
    """

    fps: float
    duration_seconds: float
    is_variable: bool


def measure_timing(
    seconds: np.ndarray,
    *,
    stated_fps: float,
    tick: float = 0.0,
    last: float = 0.0,
    last_is_stored: bool = False,
) -> Timing:
    """The timing of pictures whose times are known.

    The stated rate is kept if the last picture, which has no next one, would then be shown for no longer than
    another: it is the exact one, 30000/1001 instead of 29.97. Otherwise the rate is that of the gaps.

    Args:
        seconds: float64 [N], N >= 1, when the pictures are shown, ascending.
        stated_fps: by the header; 0 if it has none.
        tick: seconds between two ticks of the container's clock.
        last: seconds for which the last picture is shown, by its packet; 0 if unknown.
        last_is_stored: the container stores that, as GIF does; others derive it from the stated rate.
    """
    count, span = len(seconds), float(seconds[-1] - seconds[0])
    if span <= 0:
        agrees = last <= 0 or (stated_fps > 0 and abs(1 / stated_fps - last) <= _CLOCK_SECONDS)
        fps = stated_fps if agrees else count / last
        return Timing(fps, count / fps if fps > 0 else 0.0, False)
    gaps = np.diff(seconds)
    usual = float(np.median(gaps))
    is_variable = count > 2 and bool(np.abs(gaps - usual).max() > max(1.01 * tick, 0.1 * usual))
    if last_is_stored and last > 0:
        fps = count / (span + last)
        return Timing(stated_fps if abs(stated_fps - fps) < 1e-3 * fps else fps, span + last, is_variable)
    left = count / stated_fps - span if stated_fps > 0 else 0.0
    fps = stated_fps if 0 < left <= float(gaps.max()) + _CLOCK_SECONDS else (count - 1) / span
    return Timing(fps, span + 1 / fps, is_variable)


def close_gaps(times: np.ndarray) -> np.ndarray:
    """Times int64 [N] in the order of showing as ascending ticks from 0: where they go back, they go on."""
    steps = np.diff(times)
    forward = steps[steps > 0]
    steps = np.where(steps > 0, steps, int(np.median(forward)) if len(forward) else 1)
    return np.concatenate([[0], np.cumsum(steps)])
