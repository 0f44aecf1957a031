"""The records of list files, stored as arrays: a million videos need 60 MB once, and nothing per worker."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from videomaskfeat.data.reader import PICTURE_SUFFIXES
from videomaskfeat.errors import UserError


@dataclass(frozen=True)
class Record:
    """One row of a list: a video file, a folder with one picture per frame, or a picture."""

    path: str
    label: int | None = None
    labels: tuple[int, ...] | None = None
    """Labels in a multi-label list, ascending; empty: none of the classes."""


class Records(Sequence[Record]):
    """The rows of a list.

    All arrays are tensors because torch sends tensors to worker processes as shared memory: a worker has no
    copy of the list, whatever its start method.

    Args:
        buffer: bytes of all paths, uint8.
        starts: start of each path in the buffer, int64 [n].
        ends: end of each path, int64 [n].
        labels: int32 [n], -1 for a row without a label; None if no row has a label.
        label_sets: labels of each row of a multi-label list; None for other lists.

    Attributes:
        source: the list file or folder, for messages.
        root: folder of relative paths.
        class_names: class names, indexed by label, of a list that names its classes (Kinetics' CSV) or of
            class folders; otherwise empty.
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
        label_sets: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.source, self.root = source, root
        self.class_names = tuple(class_names)
        self._buffer = torch.from_numpy(np.array(buffer, np.uint8))  # a copy, which torch can write to
        self._starts = torch.from_numpy(starts.astype(np.int64))
        self._lengths = torch.from_numpy((ends - starts).astype(np.int32))
        self._labels: Tensor | None = None if labels is None else torch.from_numpy(labels.astype(np.int32))
        self._set_ends: Tensor | None = None  # row i has the values set_ends[i]..set_ends[i + 1]
        if label_sets is not None:
            self._set_ends = torch.tensor([0, *np.cumsum([len(one) for one in label_sets])])
            values = [label for one in label_sets for label in sorted(one)]
            self._set_values = torch.tensor(values, dtype=torch.int32)

    @classmethod
    def from_paths(
        cls,
        paths: Sequence[str],
        labels: Sequence[int] | None,
        *,
        source: str,
        root: str = "",
        class_names: Sequence[str] = (),
        label_sets: Sequence[Sequence[int]] | None = None,
    ) -> Records:
        """Records of a few paths; UserError without paths."""
        if not paths:
            raise UserError(f"{source} contains no videos")
        encoded = [os.fsencode(path) for path in paths]
        ends = np.cumsum([len(path) for path in encoded])
        starts = np.concatenate([[0], ends[:-1]])
        buffer = np.frombuffer(b"".join(encoded), np.uint8)
        numbers = None if labels is None else np.asarray(labels)
        return cls(
            buffer,
            starts,
            ends,
            numbers,
            source=source,
            root=root,
            class_names=class_names,
            label_sets=label_sets,
        )

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]
        """Row ``index``, an integer (not a slice), negative from the end."""
        start = int(self._starts[index])
        name = os.fsdecode(self._buffer[start : start + int(self._lengths[index])].numpy().tobytes())
        path = name if "://" in name else os.path.join(self.root, name)
        label = -1 if self._labels is None else int(self._labels[index])
        return Record(path, None if label < 0 else label, self._label_set(index))

    def _label_set(self, index: int) -> tuple[int, ...] | None:
        if self._set_ends is None:
            return None
        row = index % len(self)
        return tuple(self._set_values[self._set_ends[row] : self._set_ends[row + 1]].tolist())

    @property
    def labels(self) -> np.ndarray | None:
        """int32 [n], -1 for a row without a label; None if the list has no labels."""
        return None if self._labels is None else self._labels.numpy()

    @property
    def is_multi_label(self) -> bool:
        """Whether the rows have any number of labels."""
        return self._set_ends is not None

    def multi_hot(self, rows: np.ndarray, classes: int) -> np.ndarray:
        """The labels of rows of a multi-label list, bool [len(rows), classes]."""
        matrix = np.zeros((len(rows), classes), np.bool_)
        for place, row in enumerate(rows.tolist()):
            matrix[place, list(self._label_set(row) or ())] = True
        return matrix

    @property
    def classes(self) -> int:
        """1 + the largest label; 0 without labels."""
        labels = self._set_values if self._set_ends is not None else self._labels
        return 0 if labels is None or not len(labels) else int(labels.max()) + 1

    def ends_with(self, suffixes: Collection[str]) -> np.ndarray:
        """Whether each path ends with one of these suffixes (``.jpg``), ignoring case, bool [n]."""
        buffer, lengths = self._buffer.numpy(), self._lengths.numpy()
        ends = self._starts.numpy() + lengths
        # The last letters of each path, in reverse. Those of a short path reach into the path before.
        letters = [buffer[np.maximum(ends - back, 0)] | 32 for back in range(1, max(map(len, suffixes)) + 1)]
        matches = np.zeros(len(self), np.bool_)
        for suffix in suffixes:
            codes = os.fsencode(suffix.lower())[::-1]
            equal = [column == code | 32 for column, code in zip(letters, codes, strict=False)]
            matches |= np.logical_and.reduce(equal) & (lengths >= len(codes))
        return matches

    def __repr__(self) -> str:
        return f"Records({len(self)} rows of {self.source}, labels={self._labels is not None})"


def check_frames(records: Records, frames: int) -> None:
    """Raise UserError if clips have several frames and a row is a picture."""
    if frames == 1:
        return
    pictures = records.ends_with(PICTURE_SUFFIXES)
    if pictures.any():
        row = int(pictures.argmax())
        raise UserError(
            f"{records.source}: row {row + 1} ({records[row].path}) is a picture (one frame), but clips "
            f"have {frames} frames ({pictures.sum()} of {len(records)} rows are pictures); use clip.frames=1 "
            "and a model for images, as in configs/pretrain/sample_images.yaml, or give a list of videos"
        )
