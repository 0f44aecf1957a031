"""List files of every format, kept as arrays: a million videos cost some 60 MB once, nothing a worker."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from videomaskfeat.data.frames import PICTURE_SUFFIXES
from videomaskfeat.data.records_folder import find_videos, report_left_out
from videomaskfeat.data.records_images import image_names
from videomaskfeat.data.records_kinetics import is_kinetics_header, kinetics_names
from videomaskfeat.data.records_ssv2 import ssv2_names
from videomaskfeat.data.records_table import LABELS, first_row, parse_table
from videomaskfeat.errors import UserError, check_name, counted
from videomaskfeat.io import is_folder
from videomaskfeat.texts import read_rows

logger = logging.getLogger(__name__)

FORMATS = ("auto", "kinetics", "ssv2", "folder", "frames", "images")
_FOLDERS = ("folder", "frames", "images")  # formats of folders


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
        """Keep the rows.

        Args:
            buffer: uint8, holds every path.
            starts: int64 [n], where in the buffer each path begins.
            ends: int64 [n], and where it ends.
            labels: int32 [n], -1 for a row without one, or None where no row has one.
            source: the list file or folder, for messages.
            root: folder that relative paths start from.
            class_names: a name a class, or none.
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
        """Records of a few paths in Python's own form.

        Raises:
            UserError: there are none.
        """
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


def load_records(
    path: str | os.PathLike[str],
    *,
    format: str = "auto",
    labels: str = "auto",
    prefix: str | os.PathLike[str] = "",
    separator: str = "auto",
    classes: str | os.PathLike[str] | None = None,
    known_classes: Sequence[str] = (),
    stills: bool = False,
) -> Records:
    """Read a list of videos or pictures, or look through a folder for them.

    Args:
        path: a list file or a folder.
        format: ``kinetics`` (a row `path label`, or Kinetics' own CSV with its header), ``ssv2`` (Something-
            Something-v2's JSON), ``folder`` (of videos, at any depth), ``frames`` (a folder of folders of
            pictures, each a video), ``images`` (a folder of class folders of pictures, each by itself), or
            ``auto``: by what the path is and how its first row looks.
        labels: ``auto`` (as the first row, and every row must agree), ``yes`` or ``no``.
        prefix: folder before relative paths (and before Something-Something's ids); default the list's own.
        separator: of a Kinetics list's columns: auto, space, comma, tab, colons (``::``), semicolon or pipe.
        classes: file of class names for lists that name classes in words: Something-Something's labels JSON
            (default: the one beside the list), or one name a line for Kinetics' own CSV (default: the list's
            own names, sorted).
        known_classes: the names themselves in the order of their numbers, for Kinetics' own CSV where no file
            is given, and for class folders; a network that was trained on them knows them.
        stills: clips are of one frame, so with ``auto`` the pictures in a folder are ``images``; otherwise
            they are ``frames``.

    Raises:
        UserError: the list is missing, empty or wrong in a row, which is named by file and line.
    """
    source = os.fspath(path)
    for argument, value, known in (("format", format, FORMATS), ("labels", labels, LABELS)):
        check_name(argument, value, known)
    if is_folder(source):
        return load_folder(source, format=format, labels=labels, known_classes=known_classes, stills=stills)
    if format in _FOLDERS:
        raise UserError(f"{source}: format={format} needs a folder, and this is a file or missing")
    root = os.fspath(prefix) or os.path.dirname(source)
    data = read_rows(source, remedy="give a list file or a folder of videos")
    class_file = None if classes is None else os.fspath(classes)
    if format == "ssv2" or (format == "auto" and source.endswith(".json")):
        names, numbers = ssv2_names(data, source, root, labels=labels, classes=class_file)
        return Records.from_paths(names, numbers, source=source, root=root)
    if is_kinetics_header(first_row(data), source):
        names, numbers, words = kinetics_names(
            data, source, root, labels=labels, classes=class_file, known_classes=known_classes
        )
        return Records.from_paths(names, numbers, source=source, root=root, class_names=words)
    rows = parse_table(data, source, labels=labels, separator=separator)
    return Records(rows.buffer, rows.starts, rows.ends, rows.labels, source=source, root=root)


def expand_folders(paths: Iterable[str], *, stills: bool) -> list[str]:
    """The paths, each folder replaced by the videos below it; for ``stills`` see :func:`load_records`."""
    expanded: list[str] = []
    for path in paths:
        if is_folder(path):
            # A folder that holds the pictures of one video lists itself, as ".".
            records = load_records(path, labels="no", stills=stills)
            expanded += [record.path.removesuffix(f"{os.sep}.") for record in records]
        else:
            expanded.append(path)
    return expanded


def check_frames(records: Records, frames: int) -> None:
    """Pictures make clips of one frame only.

    Args:
        records: the list.
        frames: of a clip, T.

    Raises:
        UserError: clips have more frames, and a row is a picture.
    """
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


def load_folder(
    path: str | os.PathLike[str],
    *,
    format: str = "auto",
    labels: str = "auto",
    known_classes: Sequence[str] = (),
    stills: bool = False,
) -> Records:
    """Every video, folder of pictures or picture below a folder, sorted by path; see `load_records`.

    Pictures by themselves have the classes that their folders are; all else is without labels.

    Raises:
        UserError: the folder holds none, or (with ``auto``) both videos and pictures, or labels are asked for
            where there are none.
    """
    source = os.fspath(path)
    if format not in ("auto", *_FOLDERS):
        raise UserError(
            f"{source}: format={format} needs a list file, and this is a folder; take {', '.join(_FOLDERS)}"
        )
    if format == "images":
        return _load_images(source, labels, known_classes)
    all_found = find_videos(source)
    videos, frames = all_found.videos, all_found.frames
    if format == "auto" and videos and frames:
        raise UserError(
            f"{source}: holds videos ({videos[0]}, ...) and pictures ({frames[0]}/, ...); "
            f"say which to take: format=folder or format={'images' if stills else 'frames'}"
        )
    if format == "auto" and stills and not videos:
        return _load_images(source, labels, known_classes)
    if labels == "yes":
        raise UserError(
            f"{source}: a folder has no labels (labels=yes); write a list with "
            "datasets/kinetics/make_list.py, which takes class folders, or, of class folders of pictures, "
            "take format=images"
        )
    found, wanted = {
        "folder": (videos, "videos"),
        "frames": (frames, "folders of pictures"),
        "auto": (videos or frames, "videos or pictures"),
    }[format]
    if not found:
        raise UserError(
            f"{source}: holds no {wanted} ({counted(len(all_found.left_out), 'other file')}); check the path "
            "and the format"
        )
    report_left_out(source, all_found.left_out)
    if format == "auto" and not videos:
        logger.info(
            "%s: %d folders of pictures, each taken for the frames of a video; format=images takes them for "
            "classes of pictures",
            source,
            len(found),
        )
    return Records.from_paths(found, None, source=source, root=source)


def _load_images(source: str, labels: str, known_classes: Sequence[str]) -> Records:
    names, numbers, words = image_names(source, labels=labels, known_classes=known_classes)
    return Records.from_paths(names, numbers, source=source, root=source, class_names=words)
