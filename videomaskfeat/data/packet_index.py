"""The frames of a file, derived from the times of its packets: their number, times and rate.

The frame rate and duration in a header can be wrong, and a file can consist of several recordings.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from av.packet import Packet

_LONGEST_GAP = 10.0  # seconds; FFmpeg closes longer gaps in transport and program streams
_UNKNOWN = -(2**63)  # the time of a packet without a time
_KEY, _HIDDEN, _DAMAGED = 1, 2, 4  # flags of a packet
_JOIN_LAG = 2  # packets from one that is marked as damaged to the first of another recording
_SHORTEST_RETURN = 0.1  # seconds by which times go back, between key frames, at the start of a recording


Joins = Literal["recordings", "edits", "segments", "none"]
"""How times repeat: as in transport and program streams, in mp4, in Matroska, or not at all."""


@dataclass(frozen=True)
class PacketIndex:
    """The frames of a file and the key frames to decode them from.

    A file consists of one or more recordings: joined transport streams, or the edits of an edit list. Marks
    are the presentation times of packets, shifted from the second recording on so that recordings do not
    overlap.

    Attributes:
        marks: marks of the frames, int64 [N], ascending.
        key_marks: marks of the key frames, int64 [K], ascending.
        key_times: presentation times of the key frames' packets, int64 [K].
        key_packets: packet numbers of the key frames, int64 [K].
        packet_marks: marks of all packets in file order, int64 [P]; None for a single recording, where a mark
            is the packet's own time.
        positions: byte position of each packet in the file, int64 [P], -1 if unknown.
        ticks: display time of each frame after the first packet's, int64 [N].
    """

    marks: np.ndarray
    key_marks: np.ndarray
    key_times: np.ndarray
    key_packets: np.ndarray
    packet_marks: np.ndarray | None
    positions: np.ndarray
    ticks: np.ndarray


class PacketLog:
    """Collects the packets of a file in file order.

    Args:
        second: ticks per second.
        joins: a file may consist of joined recordings; of edits, which overlap in hidden packets; or of
            joined segments, whose decoding times are guesses after a join.
    """

    def __init__(self, *, second: float, joins: Joins) -> None:
        self._second, self._joins = second, joins
        self._rows = array("q")  # five 64-bit numbers each, since a film has 200,000 packets

    def __len__(self) -> int:
        return len(self._rows) // 5

    def add(self, packet: Packet) -> None:
        """Append the next packet."""
        time, decoding_time, position = packet.pts, packet.dts, packet.pos
        self._rows.extend(
            (
                _UNKNOWN if time is None else time,
                _UNKNOWN if decoding_time is None else decoding_time,
                packet.duration or 0,
                -1 if position is None else position,
                _KEY * packet.is_keyframe + _HIDDEN * packet.is_discard + _DAMAGED * packet.is_corrupt,
            )
        )

    def close(self) -> PacketTable:
        """The table of all packets."""
        table = np.array(self._rows).reshape(-1, 5)
        times, due, durations, positions, flags = (np.ascontiguousarray(column) for column in table.T)
        keys = (flags & _KEY) != 0
        return PacketTable(
            times=times,
            due=due,
            durations=durations,
            positions=positions,
            keys=keys,
            hidden=(flags & _HIDDEN) != 0,
            damaged=(flags & _DAMAGED) != 0,
            starts=np.concatenate([[0], self._joints(times, due, keys)]).astype(np.int64),
            joins=self._joins,
        )

    def _joints(self, times: np.ndarray, due: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """The first packet of each recording or edit after the first one."""
        if self._joins == "none" or len(times) < 2:
            return np.empty(0, np.int64)
        if self._joins == "segments":
            places = np.flatnonzero(keys)
            before, after = times[places[:-1]], times[places[1:]]
            return places[1:][(after < before) & (after != _UNKNOWN)]
        step = np.diff(due)
        begins = step < 0
        if self._joins == "recordings":
            key = keys[1:]
            begins = step < np.where(key, 0, -_SHORTEST_RETURN * self._second)
            begins |= key & (step > _LONGEST_GAP * self._second)
        return 1 + np.flatnonzero(begins & (due[1:] != _UNKNOWN) & (due[:-1] != _UNKNOWN))


@dataclass(frozen=True)
class PacketTable:
    """The packets of a file in file order.

    Attributes:
        times: presentation times, int64 [P]; ``_UNKNOWN`` if a packet has none.
        due: decoding times, int64 [P]; ``_UNKNOWN`` if a packet has none.
        durations: int64 [P], 0 if unknown.
        positions: byte positions in the file, int64 [P], -1 if unknown.
        keys: whether packets are key frames, bool [P].
        hidden: whether packets are hidden by an edit list, bool [P].
        damaged: whether packets are damaged according to the container, bool [P].
        starts: first packet of each recording or edit, int64 [R].
        joins: as in ``PacketLog``.
    """

    times: np.ndarray
    due: np.ndarray
    durations: np.ndarray
    positions: np.ndarray
    keys: np.ndarray
    hidden: np.ndarray
    damaged: np.ndarray
    starts: np.ndarray
    joins: Joins

    def first_damage(self) -> int | None:
        """The first damaged packet, if any.

        The end of a joined transport stream is also marked as damaged, and is not.
        """
        for place in np.flatnonzero(self.damaged).tolist():
            after = slice(place + 1, place + 2 + _JOIN_LAG)
            joined = (
                self.keys[after].any() or np.isin(self.starts[1:], np.arange(place + 1, after.stop)).any()
            )
            if self.joins != "recordings" or not joined:
                return int(place)
        return None

    def due_ticks(self) -> np.ndarray | None:
        """Ascending decoding times of the displayed packets, int64 [n], from 0.

        For containers without presentation times. None if a time is missing or repeated.
        """
        ticks = np.sort(self.due[~self.hidden])
        if not len(ticks) or ticks[0] == _UNKNOWN or (np.diff(ticks) <= 0).any():
            return None
        return ticks - ticks[0]

    def last_duration(self) -> int:
        """Duration of the last frame in ticks, by its packet; 0 if unknown."""
        shown = np.flatnonzero(~self.hidden)
        if len(self.starts) > 1 or not len(shown):
            return 0
        return int(self.durations[shown[np.argmax(self.times[shown])]])

    def index(self) -> PacketIndex | None:
        """The index; None if two frames have the same time."""
        hidden, keys = self.hidden, self.keys
        if not keys.any() or (self.times[keys | ~hidden] == _UNKNOWN).any():
            return None
        places = np.arange(len(keys))
        recording = np.searchsorted(self.starts, places, side="right") - 1
        with np.errstate(over="ignore"):  # times of a damaged file may overflow
            marks, shown_at = self._separate_recordings()
        # Frames before the first key frame of their recording, in file or display order, depend on lost ones.
        first_place = np.full(len(self.starts), len(keys))
        np.minimum.at(first_place, recording[keys], places[keys])
        first_mark = np.full(len(self.starts), np.iinfo(np.int64).max)
        np.minimum.at(first_mark, recording[keys], marks[keys])
        frames = places[~hidden & (places >= first_place[recording]) & (marks >= first_mark[recording])]
        frames = frames[np.argsort(marks[frames], kind="stable")]
        if not len(frames) or (np.diff(marks[frames]) <= 0).any():
            return None
        key_packets = places[keys][np.argsort(marks[keys], kind="stable")]
        return PacketIndex(
            marks=marks[frames],
            key_marks=marks[key_packets],
            key_times=self.times[key_packets],
            key_packets=key_packets,
            packet_marks=marks if len(self.starts) > 1 else None,
            positions=self.positions,
            # The times of the first frames after a join may be before those of the last frames before it.
            ticks=np.maximum.accumulate(shown_at[frames]) - shown_at[~hidden].min(),
        )

    def _separate_recordings(self) -> tuple[np.ndarray, np.ndarray]:
        """(marks, display times in ticks) of all packets, int64 [P] each."""
        if len(self.starts) == 1:
            return self.times, self.times
        marks, shown_at = self.times.copy(), self.times.copy()
        ends = [*self.starts[1:].tolist(), len(marks)]
        for start, first, end in zip(self.starts[:-1].tolist(), ends[:-1], ends[1:], strict=True):
            before, own = slice(start, first), slice(first, end)
            marks[own] += marks[before].max() + 1 - marks[own].min()
            last = first - 1
            if self.joins == "recordings":  # continue as in FFmpeg: by the decoding times
                due = self.due[last] + shown_at[last] - self.times[last]
                shown_at[own] += due + self.durations[last] - self.due[first]
            elif self.joins == "segments":
                shown_at[own] += shown_at[before].max() + self.durations[last] - shown_at[own].min()
        return marks, shown_at


def complete_times(times: Sequence[int | None]) -> np.ndarray | None:
    """Times in display order as ascending ticks from 0, int64 [N]; None if they are unknown.

    A time that goes back is replaced by the usual step; missing times are interpolated.
    """
    known = np.array([place for place, time in enumerate(times) if time is not None], np.int64)
    if len(known) < 2:
        return np.zeros(1, np.int64) if len(times) == len(known) == 1 else None
    values = np.array([time for time in times if time is not None], np.int64)
    pictures, steps = np.diff(known), np.diff(values)
    forward = steps > 0
    usual = float(np.median(steps[forward] / pictures[forward])) if forward.any() else 1.0
    steps = np.where(forward, steps, np.maximum(np.rint(usual * pictures), 1).astype(np.int64))
    ticks = np.concatenate([[0], np.cumsum(steps)])
    places = np.arange(len(times))
    beyond = np.minimum(places - known[0], 0) + np.maximum(places - known[-1], 0)
    filled = np.rint(np.interp(places, known, ticks) + usual * beyond).astype(np.int64)
    return filled - filled[0]
