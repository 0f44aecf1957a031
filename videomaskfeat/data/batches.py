"""Batches as they reach a step, and how the clips of several videos are joined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from videomaskfeat.data.workers import in_worker, no_shared_memory

MovedT = TypeVar("MovedT", bound="_Movable")


@dataclass(frozen=True)
class Failure:
    """A record that could not be read.

    index: its row in the list, from 0.
    path: its path.
    cause: in a few words.
    lost_in_epoch: the epoch of training in which its reading has ended or stopped two workers; None if it
        failed in another way.
    """

    index: int
    path: str
    cause: str
    lost_in_epoch: int | None = None


class _Movable:
    """What moves to a device.

    The fields that are not named stay on the CPU: ``index``, int64, the record each clip comes from, and
    ``failures``, records that could not be read. In training these are replaced in the batch, in testing
    nothing stands in for them.
    """

    device_fields: ClassVar[tuple[str, ...]]

    def to(self: MovedT, device: torch.device | str) -> MovedT:
        """The same on a device; without waiting, where it is pinned."""
        return self._moved(lambda part: part.to(device, non_blocking=True))

    def pin_memory(self: MovedT) -> MovedT:
        """The same in page-locked memory."""
        return self._moved(lambda part: part.pin_memory())

    def _moved(self: MovedT, move: Callable[[Tensor], Tensor]) -> MovedT:
        def moved(part: Any) -> Any:
            if isinstance(part, tuple):
                return tuple(one._moved(move) for one in part)
            return None if part is None else move(part)

        changes = {name: moved(getattr(self, name)) for name in self.device_fields}
        return replace(self, **changes)  # type: ignore[type-var]


@dataclass(frozen=True)
class PretrainBatch(_Movable):
    """A micro-batch of one rank.

    clips: uint8 [B, T, H, W, C].
    mask: bool [B, t', h', w'], True = hidden.
    """

    clips: Tensor
    mask: Tensor
    index: Tensor
    failures: tuple[Failure, ...] = ()
    device_fields = ("clips", "mask")


@dataclass(frozen=True)
class PairBatch(_Movable):
    """A micro-batch of one rank, two clips of each video.

    clips: uint8 [2V, T, H, W, C]; the two of a video stand together.
    mask: bool [2V, t', h', w'], True = hidden; None: nothing is hidden.
    local: uint8 [V*L, T, H', W', C], L small crops of each video, which stand together; None: none.
    """

    clips: Tensor
    mask: Tensor | None
    local: Tensor | None
    index: Tensor
    failures: tuple[Failure, ...] = ()
    device_fields = ("clips", "mask", "local")


@dataclass(frozen=True)
class LabelledBatch(_Movable):
    """A micro-batch of one rank, with the class of each clip.

    clips: uint8 [B, T, H, W, C].
    labels: int64 [B].
    """

    clips: Tensor
    labels: Tensor
    index: Tensor
    failures: tuple[Failure, ...] = ()
    device_fields = ("clips", "labels")


@dataclass(frozen=True)
class ViewsBatch(_Movable):
    """All views of some videos, for testing; those that could not be read are missing.

    clips: uint8 [n*V*S, T, H, W, C]; the views of one video stand together, view v of crop s at v*S + s.
    index, labels: int64 [n]; the label is -1 for a record without one. n is 0 if no video could be read.
    """

    clips: Tensor
    index: Tensor
    labels: Tensor
    failures: tuple[Failure, ...] = ()
    device_fields = ("clips",)


@dataclass(frozen=True)
class ActionBatch(_Movable):
    """A micro-batch of one rank: clips around key frames, with persons' boxes and what they do.

    clips: uint8 [B, T, H, W, C].
    boxes: float32 [R, 5], of all clips: number of the clip in the batch, x1, y1, x2, y2 in its pixels.
    labels: bool [R, L]; column i is the action with the id i + 1, and a row may have none.
    """

    clips: Tensor
    boxes: Tensor
    labels: Tensor
    index: Tensor
    failures: tuple[Failure, ...] = ()
    device_fields = ("clips", "boxes", "labels")


@dataclass(frozen=True)
class BoxedClips(_Movable):
    """One view of some key frames.

    clips: uint8 [B, T, H, W, C].
    boxes: float32 [R, 5], of all clips: number of the clip in the batch, x1, y1, x2, y2 in its pixels.
    """

    clips: Tensor
    boxes: Tensor
    device_fields = ("clips", "boxes")


@dataclass(frozen=True)
class KeyFrameBatch(_Movable):
    """All views of some key frames of one video, for testing; those that could not be read are missing.

    views: a `BoxedClips` for each scale and mirror image, of equal B and R: row r is the same box in all.
    rows: int64 [R], which row each box is among those of all key frames (``KeyFrames.boxes``, ``.scores``,
        ``.labels``), where it stands as the file has it; stays on the CPU.
    index: int64 [B], which key frames these are; B is 0, and there is no view, if none could be read.
    """

    views: tuple[BoxedClips, ...]
    index: Tensor
    rows: Tensor
    failures: tuple[Failure, ...] = ()
    device_fields = ("views",)


class SharedClips:
    """Shared memory of a worker that its batches of clips lie in by turns.

    Fresh shared memory would be mapped and cleared page by page for every batch, which takes three times as
    long as writing it (3.1 ms against 1 for two clips of 16 frames of 224x224).

    Args:
        slots: batches that keep what they hold; the next one overwrites the oldest.
    """

    def __init__(self, slots: int) -> None:
        self._slots: list[Tensor | None] = [None] * slots
        self._next = 0

    def take(self, shape: tuple[int, ...]) -> Tensor:
        """Memory for a batch, uint8 of this shape, with whatever an earlier batch left in it."""
        size = int(np.prod(shape))
        slot = self._slots[self._next]
        if slot is None or slot.numel() < size:
            slot = _shared(size)
        self._slots[self._next] = slot
        self._next = (self._next + 1) % len(self._slots)
        return slot[:size].view(shape)


def join_clips(parts: Sequence[np.ndarray], memory: SharedClips | None = None) -> Tensor:
    """Join uint8 [S, T, H, W, C] to [B, T, H, W, C]; in a worker straight into its shared memory."""
    shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
    clips = empty_clips(shape) if memory is None else memory.take(shape)
    np.concatenate(parts, out=clips.numpy())
    return clips


def empty_clips(shape: tuple[int, ...]) -> Tensor:
    """uint8 memory; in a worker shared from the start, as torch's own collate has it, which saves a copy."""
    size = int(np.prod(shape))
    if not in_worker() or not size:
        return torch.from_numpy(np.empty(shape, np.uint8))  # numpy asks for large pages: many fewer faults
    return _shared(size).view(shape)


def _shared(size: int) -> Tensor:
    """Fresh shared memory, uint8 [size]; RunFailed if there is none left."""
    try:
        storage = torch.UntypedStorage._new_shared(size)
    except RuntimeError as error:
        raise no_shared_memory(f"{size / 2**20:.1f} MB of shared memory for a batch", error) from error
    return torch.empty(0, dtype=torch.uint8).set_(storage)
