"""Batches as a step receives them, and how the clips of several videos are joined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from videomaskfeat.data.workers import allocation_error, in_worker

MovedT = TypeVar("MovedT", bound="Movable")


@dataclass(frozen=True)
class Failure:
    """A record that could not be read.

    index: its row in the list, from 0.
    path: its path.
    cause: a short phrase.
    lost_in_epoch: training epoch in which its reading crashed or stopped two workers; None if it failed in
        another way.
    """

    index: int
    path: str
    cause: str
    lost_in_epoch: int | None = None


class Movable:
    """Base of batches: ``device_fields`` move to a device, which changes uncropped clips into clips.

    The other fields stay on the CPU: ``index``, int64, the record of each clip, and ``failures``, the records
    that could not be read. In training a batch contains replacements for these; in testing it does not.
    """

    device_fields: ClassVar[tuple[str, ...]]

    def to(self: MovedT, device: torch.device | str) -> MovedT:
        """Copy to a device, asynchronously if the batch is pinned."""
        return self._moved(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self: MovedT) -> MovedT:
        """Copy into page-locked memory."""
        return self._moved(lambda tensor: tensor.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory of all tensors on the device until the stream's present work ends, as torch's."""

        def record(tensor: Tensor) -> Tensor:
            tensor.record_stream(stream)
            return tensor

        self._moved(record)

    def _moved(self: MovedT, move: Callable[[Tensor], Tensor]) -> MovedT:
        def move_value(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(batch._moved(move) for batch in value)
            return None if value is None else move(value)

        changes = {name: move_value(getattr(self, name)) for name in self.device_fields}
        return replace(self, **changes)  # type: ignore[type-var]


@dataclass(frozen=True)
class PretrainBatch(Movable):
    """A micro-batch of one rank.

    clips: uint8 [B, T, H, W, C].
    mask: bool [B, t', h', w'], True = hidden.
    hidden_cells: number of hidden cells of each mask; None if it differs or is unknown.
    """

    clips: Tensor
    mask: Tensor
    index: Tensor
    failures: tuple[Failure, ...] = ()
    hidden_cells: int | None = None
    device_fields = ("clips", "mask")


@dataclass(frozen=True)
class PairBatch(Movable):
    """A micro-batch of one rank, with two clips per video.

    clips: uint8 [2V, T, H, W, C]; the two clips of a video are adjacent.
    mask: bool [2V, t', h', w'], True = hidden; None: nothing is hidden.
    local: uint8 [V*L, T, H', W', C], L adjacent small crops per video; None: no small crops.
    """

    clips: Tensor
    mask: Tensor | None
    local: Tensor | None
    index: Tensor
    failures: tuple[Failure, ...] = ()
    device_fields = ("clips", "mask", "local")


@dataclass(frozen=True)
class LabeledBatch(Movable):
    """A micro-batch of one rank, with the labels of each clip.

    clips: uint8 [B, T, H, W, C].
    labels: int64 [B], or bool [B, L] of a multi-label list.
    """

    clips: Tensor
    labels: Tensor
    index: Tensor
    failures: tuple[Failure, ...] = ()
    device_fields = ("clips", "labels")


@dataclass(frozen=True)
class ViewsBatch(Movable):
    """All views of some videos, for testing; unreadable videos are missing.

    clips: uint8 [n*V*S, T, H, W, C]; the views of a video are adjacent, view v of crop s at v*S + s.
    index, labels: int64 [n]; the label is -1 for a record without a label. n is 0 if no video could be read.
    """

    clips: Tensor
    index: Tensor
    labels: Tensor
    failures: tuple[Failure, ...] = ()
    device_fields = ("clips",)


def count_hidden(masks: np.ndarray) -> int | None:
    """The number of hidden cells of each mask, bool [B, t, h, w]; None if it differs, or is 0 or all."""
    counts = masks.reshape(len(masks), -1).sum(axis=1)
    count = int(counts[0])
    return count if 0 < count < masks[0].size and (counts == count).all() else None


class SharedClips:
    """Shared memory of a worker, reused for its batches of clips in turn.

    Fresh shared memory is mapped and cleared page by page for every batch, which takes three times as long as
    writing it (3.1 ms against 1 ms for two clips of 16 frames of 224x224).

    Args:
        slots: number of batches that keep their content; the next batch overwrites the oldest.
    """

    def __init__(self, slots: int) -> None:
        self._slots: list[Tensor | None] = [None] * slots
        self._next = 0

    def take(self, shape: tuple[int, ...]) -> Tensor:
        """Memory for a batch, uint8 of this shape; may contain pixels of an earlier batch."""
        size = int(np.prod(shape))
        slot = self._slots[self._next]
        if slot is None or slot.numel() < size:
            slot = _shared(size)
        self._slots[self._next] = slot
        self._next = (self._next + 1) % len(self._slots)
        return slot[:size].view(shape)


def join_clips(samples: Sequence[Any], memory: SharedClips | None = None) -> Any:
    """Join uint8 [S, T, H, W, C] to [B, T, H, W, C], or lists of `UncroppedClip` to `UncroppedClips`.

    Pixels are copied directly into shared memory if it is given.
    """
    if not isinstance(samples[0], np.ndarray):
        from videomaskfeat.data.uncropped import UncroppedClips

        uncropped = [clip for sample in samples for clip in sample]
        return UncroppedClips.join(uncropped, empty_clips if memory is None else memory.take)
    shape = (sum(map(len, samples)), *samples[0].shape[1:])
    clips = empty_clips(shape) if memory is None else memory.take(shape)
    np.concatenate(samples, out=clips.numpy())
    return clips


def empty_clips(shape: tuple[int, ...]) -> Tensor:
    """uint8 memory; in a worker it is shared from the start, as in torch's collate, which saves a copy."""
    size = int(np.prod(shape))
    if not in_worker() or not size:
        return torch.from_numpy(
            np.empty(shape, np.uint8)
        )  # numpy requests large pages: many fewer page faults
    return _shared(size).view(shape)


def _shared(size: int) -> Tensor:
    """Fresh shared memory, uint8 [size]; RunFailed if it cannot be allocated."""
    try:
        storage = torch.UntypedStorage._new_shared(size)
    except RuntimeError as error:
        raise allocation_error(f"{size / 2**20:.1f} MB of shared memory for a batch", error) from error
    return torch.empty(0, dtype=torch.uint8).set_(storage)
