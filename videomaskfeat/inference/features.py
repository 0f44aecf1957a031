"""A folder of features: shards while it grows, one array and its index once it is finished.

=================== =====================================================================================
features.npy        float [n, ...], one row per video that could be read, in the list's order
index.csv           row, path and label of each
failures.csv        path and cause of each video that could not be read
meta.json           what the features depend on: weights, list, protocol
shards/             until it is finished: one file per done shard of consecutive rows of the list
=================== =====================================================================================

A file has its name only once it is whole, so that after a process is killed the next one finds shards that
are done and shards that are not. Joining them takes the space of one shard, not of all.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejson

from videomaskfeat.data.reader import VideoReadError
from videomaskfeat.data.records import Records
from videomaskfeat.errors import UserError
from videomaskfeat.inference.results import write_json
from videomaskfeat.io import (
    flush_folder,
    is_file,
    list_folder,
    make_folder,
    open_file,
    remove_temporary_files,
    whole_file,
)
from videomaskfeat.texts import read_json, show_text

_FORMAT = 1
# Settings that are hashes, in words.
_HASHES = {"weights_sha256": "other weights", "list_sha256": "another list, or one that was changed"}


class Features(NamedTuple):
    """Features of videos, as :func:`read_features` returns them.

    Attributes:
        array: float [n, D], or on the grid [n, t, h, w, D]; mapped into memory, read-only.
        paths: of each row's video.
        labels: int64 [n], -1 if the list had none.
    """

    array: np.ndarray
    paths: list[str]
    labels: np.ndarray


@dataclass(frozen=True)
class Shard:
    """Consecutive rows of the list.

    Attributes:
        rows: of the list, whose videos were read.
        failures: row and cause of each video that could not be read.
        shape: of the features of one video; empty if none could be read.
    """

    rows: list[int]
    failures: list[tuple[int, str]]
    shape: list[int]


def read_features(folder: str | os.PathLike[str]) -> Features:
    """The features that ``videomaskfeat extract-features`` has written.

    Raises:
        UserError: the folder holds none, or they are not finished.
    """
    path = Path(folder)
    meta = _read_meta(path)
    if meta is None:
        raise UserError(f"{path}: holds no features (no meta.json); give what extract-features has written")
    if not meta["finished"]:
        raise UserError(f"{path}: its features are not finished; start the same command again to go on")
    rows = _read_csv(path / "index.csv", ("row", "path", "label"))
    paths = [name for _, name, _ in rows]
    try:
        labels = np.array([int(label or -1) for _, _, label in rows], np.int64)
        array = np.load(path / "features.npy", mmap_mode="r", allow_pickle=False)
        if array.ndim < 2 or array.dtype.kind != "f" or len(array) != len(rows):
            raise ValueError(f"features.npy has {array.shape} {array.dtype}, and index.csv {len(rows)} rows")
    except Exception as error:  # numpy's reader of headers raises the errors of Python's tokenizer, too
        raise UserError(
            f"{path}: its features are damaged ({show_text(error)}); extract them again"
        ) from error
    return Features(array, paths, labels)


class FeatureFolder:
    """Writes the features of one list, with one set of settings, into a local or mounted folder.

    Args:
        path: of the folder.
        dtype: of the array: float32 or float16.
        ignored: name of a file that may be in an empty folder, such as a lock.
    """

    def __init__(self, path: str | os.PathLike[str], *, dtype: str, ignored: str) -> None:
        self.path = Path(path)
        self._ignored = ignored
        self.dtype = np.dtype(dtype)
        self._shards = self.path / "shards"

    def open(self, settings: Mapping[str, Any], about: Mapping[str, Any], count: int) -> list[int]:
        """Start the folder, or continue it; only rank 0 calls it.

        A folder that has no features of any video yet is started anew, whatever its settings.

        Args:
            settings: what the features depend on, as plain data; a folder is continued only with the same.
            about: further facts for ``meta.json``, which may change.
            count: shards in all.

        Returns:
            The shards to do, ascending.

        Raises:
            UserError: the folder holds something else, or features of other settings.
        """
        make_folder(self.path)
        meta = _read_meta(self.path)
        if meta is None:
            remove_temporary_files(self.path)  # of a process killed before the very first file had its name
            if set(list_folder(self.path)) - {self._ignored}:
                raise UserError(
                    f"{self.path}: holds files and no features (no meta.json); choose another folder"
                )
            self._write_meta(**about, settings=settings, finished=False)
        elif not meta["finished"] and not self._holds_features():
            shutil.rmtree(self._shards, ignore_errors=True)  # nothing but failures
            self._write_meta(**about, settings=settings, finished=False)
        else:
            self._compare(meta["settings"], settings)
            if meta["finished"]:
                shutil.rmtree(self._shards, ignore_errors=True)
                return []
        make_folder(self._shards)
        return [number for number in range(count) if not is_file(self._name(number, "json"))]

    def save(self, number: int, shard: Shard, features: Sequence[np.ndarray]) -> None:
        """Write a shard.

        Args:
            number: of the shard.
            shard: what is in it.
            features: float arrays [k, ...] that make up [len(shard.rows), ...].
        """
        if shard.rows:
            content = io.BytesIO()
            np.save(content, np.concatenate(features).astype(self.dtype, copy=False))
            _write(self._name(number, "npy"), content.getbuffer())
        # Last, since it says that the shard is done.
        _write(self._name(number, "json"), simplejson.dumps(asdict(shard)).encode())

    def finish(self, records: Records, count: int) -> tuple[tuple[int, ...], list[VideoReadError]]:
        """Join the shards, once all are done; a folder that is finished stays as it is.

        Args:
            records: the list.
            count: shards in all.

        Returns:
            The array's shape, and an error for each video that could not be read.

        Raises:
            UserError: no video could be read.
        """
        meta = _read_meta(self.path)
        assert meta is not None
        if meta["finished"]:
            return tuple(meta["shape"]), self._read_failures()
        shards = [self._read_shard(number) for number in range(count)]
        failures = [
            VideoReadError(records[row].path, cause) for shard in shards for row, cause in shard.failures
        ]
        rows = [row for shard in shards for row in shard.rows]
        if not rows:
            raise UserError(
                f"{records.source}: none of its {len(records)} videos could be read; the first: "
                f"{failures[0]}; check the folder that the paths start from (--prefix)"
            )
        shape = (len(rows), *next(shard.shape for shard in shards if shard.rows))
        self._join(shards, shape)
        entries = [(row, records[row]) for row in rows]
        labels = ["" if record.label is None else record.label for _, record in entries]
        paths = [record.path for _, record in entries]
        _write_csv(
            self.path / "index.csv",
            ("row", "path", "label"),
            zip(range(len(rows)), paths, labels, strict=True),
        )
        _write_csv(
            self.path / "failures.csv", ("path", "cause"), ((error.path, error.cause) for error in failures)
        )
        self._write_meta(**{**meta, "finished": True, "shape": shape, "failures": len(failures)})
        shutil.rmtree(self._shards, ignore_errors=True)
        return shape, failures

    def _join(self, shards: Sequence[Shard], shape: tuple[int, ...]) -> None:
        """Append each shard to the array and remove it.

        A shard is removed only once its bytes are on the disk, so the bytes of a missing shard are in the
        array, whenever a process was killed.
        """
        target, part = self.path / "features.npy", self.path / "features.npy.part"
        if target.exists():
            return
        header = io.BytesIO()
        description = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": shape,
        }
        np.lib.format.write_array_header_1_0(header, description)
        place = len(header.getvalue())
        row_bytes = int(np.prod(shape[1:])) * self.dtype.itemsize
        with open_file(part, "r+b" if part.exists() else "w+b") as file:
            file.write(header.getvalue())
            flush_folder(self.path)
            for number, shard in enumerate(shards):
                name = self._name(number, "npy")
                if name.exists():
                    features = np.load(name, mmap_mode="r")
                    assert features.shape == (len(shard.rows), *shape[1:])
                    file.seek(place)
                    file.write(features.data)
                    _flush(file)
                    name.unlink()
                place += len(shard.rows) * row_bytes
            _flush(file)
        os.replace(part, target)
        flush_folder(self.path)

    def _holds_features(self) -> bool:
        """Whether a shard or the array has features of a video."""
        joined = [self.path / "features.npy", self.path / "features.npy.part"]
        return any(map(is_file, joined)) or any(self._shards.glob("*.npy"))

    def _compare(self, earlier: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        differences = [
            _HASHES.get(key, f"{key} {earlier.get(key)} there and {now.get(key)} now")
            for key in {**earlier, **now}
            if earlier.get(key) != now.get(key)
        ]
        if differences:
            raise UserError(
                f"{self.path}: holds features made otherwise: {'; '.join(differences)}; choose another "
                "folder, or go on with what it was started with (see its meta.json)"
            )

    def _name(self, number: int, suffix: str) -> Path:
        return self._shards / f"features-{number:05d}.{suffix}"

    def _read_shard(self, number: int) -> Shard:
        name = self._name(number, "json")
        plain = read_json(name, what="a shard's index")
        try:
            shard = Shard(**plain)
            if not all(isinstance(row, int) for row in [*shard.rows, *shard.shape]):
                raise TypeError("rows and shape are integers")
            return Shard(shard.rows, [(int(row), str(cause)) for row, cause in shard.failures], shard.shape)
        except (TypeError, ValueError) as error:
            raise UserError(f"{name}: is damaged ({show_text(error)}); remove it, and start again") from error

    def _read_failures(self) -> list[VideoReadError]:
        return [VideoReadError(*row) for row in _read_csv(self.path / "failures.csv", ("path", "cause"))]

    def _write_meta(self, **meta: Any) -> None:
        write_json(self.path / "meta.json", {"kind": "features", "format": _FORMAT, **meta})


def _read_meta(folder: Path) -> dict[str, Any] | None:
    path = folder / "meta.json"
    if not is_file(path):
        return None
    meta = read_json(path, what="extract-features' meta.json", remedy="choose another folder")
    try:
        if meta["format"] != _FORMAT or not isinstance(meta["settings"], dict) or "finished" not in meta:
            raise ValueError("of another version")
        if meta["finished"] and not all(isinstance(size, int) and size > 0 for size in meta["shape"]):
            raise ValueError("its shape is not a list of sizes")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is not extract-features' ({error}); choose another folder") from error
    return dict(meta)


def _read_csv(path: Path, columns: Sequence[str]) -> list[tuple[str, ...]]:
    """The named columns of a table that :func:`_write_csv` wrote."""
    with open_file(path, newline="", errors="surrogateescape") as file:
        try:
            return [tuple(row[column] for column in columns) for row in csv.DictReader(file, strict=True)]
        except (csv.Error, KeyError, TypeError) as error:
            raise UserError(f"{path}: is damaged ({show_text(error)}); extract the features again") from error


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    # quoted if a name holds a carriage return, which ends a row for the reader
    careful = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:
        (careful if any("\r" in str(field) for field in row) else writer).writerow(row)
    _write(path, text.getvalue().encode(errors="surrogateescape"))


def _write(path: Path, content: bytes | memoryview) -> None:
    with whole_file(path, "wb") as file:
        file.write(content)


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
