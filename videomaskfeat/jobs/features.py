"""A folder of features: shards while it grows, one array and its index once it is finished.

=================== =====================================================================================
features.npy        float [n, ...], a row a video that could be read, in the list's order
index.csv           row, path and label of each
failures.csv        path and cause of each video that could not be read
meta.json           what the features depend on: weights, list, protocol
shards/             until then: what is done, a shard of consecutive rows of the list at a time
=================== =====================================================================================

A file has its name only once it is whole, so that whatever moment a process is killed at, the next one finds
shards that are done and shards that are not. Joining them takes the room of one shard, not of all.
"""

from __future__ import annotations

import csv
import io
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejson

from videomaskfeat.data.batches import ViewsBatch
from videomaskfeat.data.folders import VIDEO_SUFFIXES
from videomaskfeat.data.formats import load_records
from videomaskfeat.data.reader import VideoReadError
from videomaskfeat.data.records import Records
from videomaskfeat.data.views import ViewLoader
from videomaskfeat.engine import distributed
from videomaskfeat.engine.lock import LOCK_NAME, lock_for_all_ranks
from videomaskfeat.errors import RunFailed, UserError, check_name
from videomaskfeat.inference.classifiers import VideoEncoder, load_encoder
from videomaskfeat.inference.scores import file_sha256, protocol_of, records_sha256, views_of
from videomaskfeat.inference.threads import choose_inference_threads
from videomaskfeat.io import (
    flush_folder,
    is_file,
    list_folder,
    make_folder,
    open_file,
    remove_temporary_files,
    whole_file,
)
from videomaskfeat.recipe import ClassifyRecipe
from videomaskfeat.texts import read_json, show_text

_FORMAT = 1
# Settings that are hashes, in words.
_HASHES = {"weights_sha256": "other weights", "list_sha256": "another list, or one that was changed"}


class Features(NamedTuple):
    """What :func:`read_features` reads.

    Attributes:
        array: float [n, D], or on the grid [n, t, h, w, D]; mapped into memory, read-only.
        paths: of each row's video.
        labels: int64 [n], -1 where the list had none.
    """

    array: np.ndarray
    paths: list[str]
    labels: np.ndarray


@dataclass(frozen=True)
class Shard:
    """Consecutive rows of the list.

    Attributes:
        rows: of the list, whose videos were read.
        failures: row and cause of each that could not be.
        shape: of the features of one video; empty where none could be read.
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
    """One folder, one list, one set of settings; local, or mounted.

    Args:
        path: of the folder.
        dtype: of the array: float32 or float16.
    """

    def __init__(self, path: str | os.PathLike[str], *, dtype: str) -> None:
        self.path = Path(path)
        self.dtype = np.dtype(dtype)
        self._shards = self.path / "shards"

    def open(self, settings: Mapping[str, Any], about: Mapping[str, Any], count: int) -> list[int]:
        """Start the folder, or go on with it; only rank 0 calls it.

        A folder that was started and holds no video's features yet is started anew, whatever its settings.

        Args:
            settings: what the features depend on, as plain data; must be those that the folder was started
                with.
            about: further facts for ``meta.json``, which may change.
            count: shards in all.

        Returns:
            The shards that are to be done, ascending.

        Raises:
            UserError: the folder holds something else, or features of other settings.
        """
        make_folder(self.path)
        meta = _read_meta(self.path)
        if meta is None:
            remove_temporary_files(self.path)  # of a process killed before the very first file had its name
            if set(list_folder(self.path)) - {LOCK_NAME}:
                raise UserError(
                    f"{self.path}: holds files and no features (no meta.json); choose another folder"
                )
            self._write_meta({**about, "settings": settings, "finished": False})
        elif not meta["finished"] and not self._holds_features():
            shutil.rmtree(self._shards, ignore_errors=True)  # nothing but failures
            self._write_meta({**about, "settings": settings, "finished": False})
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
        self._write_meta({**meta, "finished": True, "shape": shape, "failures": len(failures)})
        shutil.rmtree(self._shards, ignore_errors=True)
        return shape, failures

    def _join(self, shards: Sequence[Shard], shape: tuple[int, ...]) -> None:
        """Append each shard to the array and remove it.

        A shard is removed only when its bytes are on the disk, so one that is not there any more has its
        bytes in the array: a process that was killed on the way leaves nothing to find out.
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
        """Whether a video's features are there, in a shard or in the array that the shards are joined to."""
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

    def _write_meta(self, meta: Mapping[str, Any]) -> None:
        text = simplejson.dumps({"format": _FORMAT, **meta}, indent=2) + "\n"
        _write(self.path / "meta.json", text.encode())


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


# ``extract-features``: what an encoder makes of a list's videos, on disk; resumable, on any ranks.
Progress = Callable[[int, int], None]
DTYPES = ("float32", "float16")


@dataclass(frozen=True)
class Extracted:
    """What ``extract_features`` did.

    Attributes:
        folder: of the features; read it with
            :func:`~videomaskfeat.jobs.features.read_features`.
        shape: of the array: videos first.
        failures: one error, with path and cause, for each video that could not be read.
    """

    folder: Path
    shape: tuple[int, ...]
    failures: Sequence[Exception]


def extract_features(
    weights: str | os.PathLike[str],
    list_path: str,
    out: str | os.PathLike[str],
    *,
    depth: int | None = None,
    grid: bool = False,
    views: int = 1,
    crops: int = 1,
    dtype: str = "float32",
    format: str = "auto",
    labels: str = "auto",
    prefix: str = "",
    separator: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    reader: str = "auto",
    workers: int = 0,
    clips_at_once: int = 8,
    videos_per_shard: int = 128,
    progress: Progress | None = None,
) -> Extracted:
    """Write the features of every video of a list; what an earlier call has done is kept.

    A call that goes on, after whatever end, gives the same bytes as one that was left alone, on the same
    device and with the same ``clips_at_once``; other ones change the rounding alone.

    Args:
        weights: safetensors file of a pre-training or fine-tuning run, or of ``import-slowfast``.
        list_path: list or folder of videos; ``format``, ``labels``, ``prefix`` and ``separator`` as in
            :func:`~videomaskfeat.data.records.load_records`.
        out: folder to write, see :mod:`~videomaskfeat.jobs.features`.
        depth: after how many blocks, from 1; None: after the last, with the final norm.
        grid: on the token grid instead of averaged over it.
        views: clips a video, over which pooled features are averaged.
        crops: crops a clip, 1 or 3, likewise.
        dtype: on disk: float32 or float16.
        device: auto, cpu, cuda or cuda:N.
        precision: auto (bf16 on a GPU, fp32 on a CPU), fp32 or bf16.
        reader: auto, decord or pyav.
        workers: processes of each rank that read videos; 0 reads in the rank's own.
        clips_at_once: clips that go through the network together.
        videos_per_shard: videos after which what is done is safe.
        progress: told how many videos are done, of how many.

    Raises:
        UserError: an argument, the list or the weights are wrong, the folder holds something else, or no
            video could be read.
        RunFailed: a feature is not finite.
    """
    _check(list_path, dtype=dtype, clips_at_once=clips_at_once, videos_per_shard=videos_per_shard)
    place = distributed.choose_device(device)
    with distributed.process_group(place):
        encoder = load_encoder(
            weights, device=str(place), precision=precision, reader=reader, clips_at_once=clips_at_once
        )
        recipe = encoder.recipe.with_views(views=views, crops=crops)
        encoder.check_output(recipe, depth=depth, pooled=not grid)
        records = load_records(
            list_path,
            format=format,
            labels=labels,
            prefix=prefix,
            separator=separator,
            stills=recipe.clip.frames == 1,
        )
        views_of(records, recipe)  # refuses views and crops that cannot be, before the folder is made
        settings = {
            "depth": depth,
            "grid": grid,
            **protocol_of(recipe),
            "precision": "bf16" if encoder.bf16 else "fp32",
            "dtype": dtype,
            "videos_per_shard": videos_per_shard,
            "list_sha256": records_sha256(records),
            "weights_sha256": file_sha256(weights),
        }
        about = {"weights": os.fspath(weights), "list": list_path, "videos": len(records)}
        folder = FeatureFolder(out, dtype=dtype)
        count = math.ceil(len(records) / videos_per_shard)
        with lock_for_all_ranks(out, remedy="choose another folder"):
            pending = distributed.run_on_main(lambda: folder.open(settings, about, count))
            choose_inference_threads(
                encoder.model,
                recipe.clip,
                device=place,
                bf16=encoder.bf16,
                workers=workers,
                network=encoder.model.features,
            )
            work = _Work(
                encoder, recipe, records, folder, depth=depth, pooled=not grid, size=videos_per_shard
            )
            _in_step(lambda: work.do(pending, workers=workers, progress=progress))
            shape, failures = distributed.run_on_main(lambda: folder.finish(records, count))
    return Extracted(Path(out), shape, failures)


def _check(list_path: str, *, dtype: str, **positive: int) -> None:
    check_name("dtype", dtype, DTYPES)
    for argument, value in positive.items():
        if value < 1:
            raise UserError(f"{argument}={value}: must be at least 1")
    if os.path.splitext(list_path)[1].lower() in VIDEO_SUFFIXES and is_file(list_path):
        raise UserError(f"{list_path}: is a video, and a list or a folder of videos is needed here")


@dataclass(frozen=True)
class _Work:
    """What the shards of one call share."""

    encoder: VideoEncoder
    recipe: ClassifyRecipe
    records: Records
    folder: FeatureFolder
    depth: int | None
    pooled: bool
    size: int

    def do(self, pending: Sequence[int], *, workers: int, progress: Progress | None) -> None:
        """Fill this rank's part of the shards, reading ahead from one to the next."""
        shards = pending[distributed.rank() :: distributed.world_size()]
        total = len(self.records)
        rows = [
            row for shard in shards for row in range(shard * self.size, min((shard + 1) * self.size, total))
        ]
        if not rows:
            return
        already = total - sum(min(self.size, total - shard * self.size) for shard in pending)
        done, first = 0, 0
        features: list[np.ndarray] = []
        good: list[int] = []
        failures: list[tuple[int, str]] = []
        with closing(iter(self._loader(rows, workers))) as batches:
            for batch in batches:
                features += self._features(batch)
                good += [rows[index] for index in batch.index.tolist()]
                failures += [(rows[failure.index], failure.cause) for failure in batch.failures]
                done += len(batch.index) + len(batch.failures)
                if done % self.size == 0 or done == len(rows):
                    shape = list(features[0].shape[1:]) if features else []
                    self.folder.save(shards[first // self.size], Shard(good, failures, shape), features)
                    features, good, failures, first = [], [], [], done
                if progress is not None and distributed.is_main():
                    progress(min(already + done * distributed.world_size(), total), total)

    def _loader(self, rows: Sequence[int], workers: int) -> ViewLoader:
        """Batches that never reach over a shard's end: then what is in a batch is the same after a resume."""
        clips = self.recipe.views * self.recipe.crops
        most = max(self.encoder.clips_at_once // clips, 1)
        fitting = max(number for number in range(1, min(most, self.size) + 1) if self.size % number == 0)
        paths = [self.records[row].path for row in rows]
        return ViewLoader(
            views_of(
                Records.from_paths(paths, None, source=self.records.source),
                self.recipe,
                reader=self.encoder.reader,
            ),
            videos_per_batch=fitting,
            workers=workers,
            pin_memory=self.encoder.device.type == "cuda",
        )

    def _features(self, batch: ViewsBatch) -> list[np.ndarray]:
        """Of the videos of a batch that could be read, [k, ...]; of none, none."""
        if not len(batch.index):
            return []
        clips = self.recipe.views * self.recipe.crops
        found = self.encoder.clip_features(batch.clips, depth=self.depth, pooled=self.pooled, views=clips)
        if self.folder.dtype == np.float16:
            found = found.half()
            if not found.isfinite().all():
                raise RunFailed("a feature is too large for float16 (65504); take float32")
        return [found.numpy()]


def _in_step(work: Callable[[], None]) -> None:
    """Do a rank's part; where one rank's ends in a mistake, all ranks end, and none waits for it."""
    mistake: UserError | RunFailed | None = None
    try:
        work()
    except (UserError, RunFailed) as error:
        mistake = error
    mistakes = [error for error in distributed.gather_objects(mistake) if error is not None]
    if mistakes:
        raise mistakes[0]
