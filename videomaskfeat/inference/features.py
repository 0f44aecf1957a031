"""A folder of features: shards during the extraction, then one array and its index.

=================== =====================================================================================
features.npy        float [n, ...], one row per readable video, in the order of the list
index.csv           row, path and label of each
failures.csv        path and cause of each unreadable video
meta.json           inputs of the features: weights, list, protocol
shards/             during the extraction: one file per finished shard of consecutive rows of the list
=================== =====================================================================================

A file gets its name only when it is complete, so a restart after a kill finds finished and missing shards.
Joining the shards needs the disk space of one shard, not of all.
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
_HASHES = {"weights_sha256": "other weights", "list_sha256": "another or a changed list"}


class Features(NamedTuple):
    """Features of videos, as :func:`read_features` returns them.

    Attributes:
        array: float [n, D], or for token grids [n, t, h, w, D]; memory-mapped, read-only.
        paths: path of each video.
        labels: int64 [n], -1 if the list has no labels.
    """

    array: np.ndarray
    paths: list[str]
    labels: np.ndarray


@dataclass(frozen=True)
class Shard:
    """Consecutive rows of the list.

    Attributes:
        rows: rows of the readable videos.
        failures: row and cause of each unreadable video.
        shape: shape of the features of one video; empty without readable videos.
    """

    rows: list[int]
    failures: list[tuple[int, str]]
    shape: list[int]


def read_features(folder: str | os.PathLike[str]) -> Features:
    """Read the features that ``videomaskfeat extract-features`` wrote.

    Raises:
        UserError: the folder has none, or they are unfinished or damaged.
    """
    path = Path(folder)
    meta = read_meta(path)
    if meta is None:
        raise UserError(f"{path} has no features (no meta.json); give a folder that extract-features wrote")
    if not meta["finished"]:
        raise UserError(f"{path}: its features are not finished; run the same command again to resume")
    rows = _read_csv(path / "index.csv", ("row", "path", "label"))
    paths = [name for _, name, _ in rows]
    try:
        labels = np.array([int(label or -1) for _, _, label in rows], np.int64)
        array = np.load(path / "features.npy", mmap_mode="r", allow_pickle=False)
        if array.ndim < 2 or array.dtype.kind != "f" or len(array) != len(rows):
            raise ValueError(f"features.npy has {array.shape} {array.dtype}, but index.csv {len(rows)} rows")
    except Exception as error:  # numpy raises many types for a damaged header, also SyntaxError
        raise UserError(
            f"{path}: its features are damaged ({show_text(error)}); extract them again"
        ) from error
    return Features(array, paths, labels)


class FeatureFolder:
    """Writes the features of one list into a local or mounted folder.

    Args:
        path: the folder.
        dtype: type of the array: float32 or float16.
        ignored: name of a file that may be in an empty folder, such as a lock.
    """

    def __init__(self, path: str | os.PathLike[str], *, dtype: str, ignored: str) -> None:
        self.path = Path(path)
        self._ignored = ignored
        self.dtype = np.dtype(dtype)
        self._shards = self.path / "shards"

    def open(self, options: Mapping[str, Any], about: Mapping[str, Any], count: int) -> list[int]:
        """Create the folder, or resume it; only rank 0 calls it.

        A folder without features of any video is created again, with any settings.

        Args:
            settings: inputs of the features, as plain data; they must be the same at a resume.
            about: further facts for ``meta.json``, which may change.
            count: number of all shards.

        Returns:
            Numbers of the missing shards, ascending.

        Raises:
            UserError: the folder has other content, or features with other settings.
        """
        make_folder(self.path)
        meta = read_meta(self.path)
        if meta is None:
            remove_temporary_files(self.path)  # of a process that was killed before meta.json was complete
            if set(list_folder(self.path)) - {self._ignored}:
                raise UserError(
                    f"{self.path} has files but no features (no meta.json); choose another folder"
                )
            self._write_meta(**about, settings=options, finished=False)
        elif not meta["finished"] and not self._has_features():
            shutil.rmtree(self._shards, ignore_errors=True)  # only failures
            self._write_meta(**about, settings=options, finished=False)
        else:
            self._compare(meta["settings"], options)
            if meta["finished"]:
                shutil.rmtree(self._shards, ignore_errors=True)
                return []
        make_folder(self._shards)
        return [number for number in range(count) if not is_file(self._shard_path(number, "json"))]

    def save(self, number: int, shard: Shard, features: Sequence[np.ndarray]) -> None:
        """Write a shard; the concatenated ``features`` are [len(shard.rows), ...]."""
        if shard.rows:
            content = io.BytesIO()
            np.save(content, np.concatenate(features).astype(self.dtype, copy=False))
            _write(self._shard_path(number, "npy"), content.getbuffer())
        # Last, since this file marks the shard as finished.
        _write(self._shard_path(number, "json"), simplejson.dumps(asdict(shard)).encode())

    def finish(self, records: Records, count: int) -> tuple[tuple[int, ...], list[VideoReadError]]:
        """Join all shards; a finished folder does not change.

        Args:
            records: the list.
            count: number of all shards.

        Returns:
            The shape of the array, and an error for each unreadable video.

        Raises:
            UserError: no video could be read.
        """
        meta = read_meta(self.path)
        assert meta is not None
        if meta["finished"]:
            failed = _read_csv(self.path / "failures.csv", ("path", "cause"))
            return tuple(meta["shape"]), [VideoReadError(*row) for row in failed]
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
        readable = [records[row] for row in rows]
        index = [
            (row, record.path, "" if record.label is None else record.label)
            for row, record in enumerate(readable)
        ]
        _write_csv(self.path / "index.csv", ("row", "path", "label"), index)
        _write_csv(
            self.path / "failures.csv", ("path", "cause"), ((error.path, error.cause) for error in failures)
        )
        self._write_meta(**{**meta, "finished": True, "shape": shape, "failures": len(failures)})
        shutil.rmtree(self._shards, ignore_errors=True)
        return shape, failures

    def _join(self, shards: Sequence[Shard], shape: tuple[int, ...]) -> None:
        """Append each shard to the array and remove it.

        A shard is removed only after its bytes are on the disk, so at any time each shard is either a file or
        in the array.
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
                path = self._shard_path(number, "npy")
                if path.exists():
                    features = np.load(path, mmap_mode="r")
                    assert features.shape == (len(shard.rows), *shape[1:])
                    file.seek(place)
                    file.write(features.data)
                    _flush(file)
                    path.unlink()
                place += len(shard.rows) * row_bytes
            _flush(file)
        os.replace(part, target)
        flush_folder(self.path)

    def _has_features(self) -> bool:
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
                f"{self.path} has features with other settings: {'; '.join(differences)}; choose another "
                "folder, or the settings in its meta.json"
            )

    def _shard_path(self, number: int, suffix: str) -> Path:
        return self._shards / f"features-{number:05d}.{suffix}"

    def _read_shard(self, number: int) -> Shard:
        path = self._shard_path(number, "json")
        plain = read_json(path, what="the index of a shard")
        try:
            shard = Shard(**plain)
            if not all(isinstance(row, int) for row in [*shard.rows, *shard.shape]):
                raise TypeError("rows and shape are integers")
            return Shard(shard.rows, [(int(row), str(cause)) for row, cause in shard.failures], shard.shape)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{path} is damaged ({show_text(error)}); remove it, and run the command again"
            ) from error

    def _write_meta(self, **meta: Any) -> None:
        write_json(self.path / "meta.json", {"kind": "features", "format": _FORMAT, **meta})


def read_meta(folder: Path, kind: str = "features") -> dict[str, Any] | None:
    """The content of meta.json; None without the file.

    Raises:
        UserError: it is damaged, or of another kind.
    """
    path = folder / "meta.json"
    if not is_file(path):
        return None
    meta = read_json(path, what="extract-features' meta.json", remedy="choose another folder")
    try:
        if meta["format"] != _FORMAT or not isinstance(meta["settings"], dict) or "finished" not in meta:
            raise ValueError("of another version")
        written = meta.get("kind", "features")  # earlier versions wrote features only, without their kind
        if written != kind:
            raise ValueError(f"these are {written}, not {kind}")
        if (
            meta["finished"]
            and kind == "features"
            and not all(isinstance(size, int) and size > 0 for size in meta["shape"])
        ):
            raise ValueError("its shape is not a list of sizes")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: was not written by extract-features ({error}); choose another folder"
        ) from error
    return dict(meta)


def _read_csv(path: Path, columns: Sequence[str]) -> list[tuple[str, ...]]:
    with open_file(path, newline="", errors="surrogateescape") as file:
        try:
            return [tuple(row[column] for column in columns) for row in csv.DictReader(file, strict=True)]
        except (csv.Error, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({show_text(error)}); extract the features again") from error


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    # Quoted if a name contains a carriage return, which would end the row for the reader.
    quoting_writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:
        (quoting_writer if any("\r" in str(field) for field in row) else writer).writerow(row)
    _write(path, text.getvalue().encode(errors="surrogateescape"))


def _write(path: Path, content: bytes | memoryview) -> None:
    with whole_file(path, "wb") as file:
        file.write(content)


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
