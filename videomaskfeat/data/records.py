"""List files of every format, kept as arrays: a million videos cost some 60 MB once, nothing a worker."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from videomaskfeat.data.frames import PICTURE_SUFFIXES
from videomaskfeat.errors import UserError


@dataclass(frozen=True)
class Record:
    """One row of a list: a video file, a folder with a picture a frame, or a picture."""

    path: str
    label: int | None = None


class Records(Sequence[Record]):
    """The rows of a list.

    The paths lie in one byte buffer. It and the other arrays are tensors because torch hands a tensor to a
    worker process as shared memory: a worker adds no copy of the list, whichever way it is started.

    Attributes:
        source: the list file or folder, for messages.
        root: folder that relative paths start from.
        class_names: a name a class, of a list that names classes in words (Kinetics' own CSV) or of class
            folders; else none.
    """

    def __init__(
        self,
        buffer: np.ndarray,
        starts: np.ndarray,
        ends: np.ndarray,
        labels: np.ndarray | None,
        *,
        source: str,
        root: str = "",
        class_names: Sequence[str] = (),
    ) -> None:
        """Keep the rows: ``buffer`` uint8 holds every path, from ``starts`` to ``ends``, int64 [n].

        Labels are int32 [n], -1 for a row without one, or None if no row has one. See the class for the rest.
        """
        self.source, self.root = source, root
        self.class_names = tuple(class_names)
        self._buffer = torch.from_numpy(np.array(buffer, np.uint8))  # its own memory, and writable for torch
        self._starts = torch.from_numpy(starts.astype(np.int64))
        self._lengths = torch.from_numpy((ends - starts).astype(np.int32))
        self._labels: Tensor | None = None if labels is None else torch.from_numpy(labels.astype(np.int32))

    @classmethod
    def from_paths(
        cls,
        paths: Sequence[str],
        labels: Sequence[int] | None,
        *,
        source: str,
        root: str = "",
        class_names: Sequence[str] = (),
    ) -> Records:
        """Records of a few paths in Python's own form; UserError if there are none."""
        if not paths:
            raise UserError(f"{source}: holds no video")
        encoded = [os.fsencode(path) for path in paths]
        ends = np.cumsum([len(path) for path in encoded])
        starts = np.concatenate([[0], ends[:-1]])
        buffer = np.frombuffer(b"".join(encoded), np.uint8)
        numbers = None if labels is None else np.asarray(labels)
        return cls(buffer, starts, ends, numbers, source=source, root=root, class_names=class_names)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]
        """Row ``index``, an integer from 0 (or from -1 backwards); no slices."""
        start = int(self._starts[index])
        name = os.fsdecode(self._buffer[start : start + int(self._lengths[index])].numpy().tobytes())
        path = name if "://" in name else os.path.join(self.root, name)
        label = -1 if self._labels is None else int(self._labels[index])
        return Record(path, None if label < 0 else label)

    @property
    def labels(self) -> np.ndarray | None:
        """int32 [n], -1 for a row without a label, or None where the list has none."""
        return None if self._labels is None else self._labels.numpy()

    def ends_with(self, suffixes: Collection[str]) -> np.ndarray:
        """Which paths end with one of these suffixes (``.jpg``) in upper or lower case, bool [n]."""
        buffer, lengths = self._buffer.numpy(), self._lengths.numpy()
        ends = self._starts.numpy() + lengths
        # The last letters of each path, the last one first. Those of a short one reach into the path before.
        letters = [buffer[np.maximum(ends - back, 0)] | 32 for back in range(1, max(map(len, suffixes)) + 1)]
        found = np.zeros(len(self), np.bool_)
        for suffix in suffixes:
            codes = os.fsencode(suffix.lower())[::-1]
            same = [places == code | 32 for places, code in zip(letters, codes, strict=False)]
            found |= np.logical_and.reduce(same) & (lengths >= len(codes))
        return found

    def __repr__(self) -> str:
        return f"Records({len(self)} rows of {self.source}, labels={self._labels is not None})"


def check_frames(records: Records, frames: int) -> None:
    """UserError if clips have more than one frame and a row is a picture."""
    if frames == 1:
        return
    pictures = records.ends_with(PICTURE_SUFFIXES)
    if pictures.any():
        row = int(pictures.argmax())
        raise UserError(
            f"{records.source}: row {row + 1} ({records[row].path}) is a picture, which is one frame, and "
            f"clips have {frames} ({pictures.sum()} of {len(records)} rows are pictures); take clip.frames=1 "
            "and a network for pictures, as configs/pretrain/sample_images.yaml, or give a list of videos"
        )
