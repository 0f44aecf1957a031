"""``extract-features``: write features of the videos in a list, or of their windows; resumable, on any number
of ranks."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from videomaskfeat.data.batches import ViewsBatch
from videomaskfeat.data.cluster import call_on_cluster
from videomaskfeat.data.folders import VIDEO_SUFFIXES
from videomaskfeat.data.loader import ViewLoader
from videomaskfeat.data.records import Records
from videomaskfeat.data.video import VideoReadError
from videomaskfeat.engine import distributed
from videomaskfeat.engine.lock import LOCK_NAME, lock_for_all_ranks
from videomaskfeat.errors import RunFailed, UserError, check_name
from videomaskfeat.inference.classifiers import VideoEncoder, load_encoder
from videomaskfeat.inference.features import FeatureFolder, Shard
from videomaskfeat.inference.lists import DETECTED_FORMAT, ListChoice
from videomaskfeat.inference.multiview import (
    Machine,
    Progress,
    build_views,
    refuse_ranks_on_ray,
    run_on_every_rank,
)
from videomaskfeat.inference.results import describe_views, describe_weights, hash_records
from videomaskfeat.inference.threads import choose_inference_threads
from videomaskfeat.inference.window_features import WindowFolder
from videomaskfeat.inference.windows import Windows, check_windows, iter_window_clips
from videomaskfeat.io import is_file
from videomaskfeat.stored_recipe import ClassifyRecipe

DTYPES = ("float32", "float16")
FORMS = ("npz", "npy")
THIS_MACHINE = Machine()


@dataclass(frozen=True)
class Extracted:
    """The result of ``extract_features``.

    Attributes:
        folder: folder of the features, for :func:`~videomaskfeat.inference.features.read_features`.
        shape: shape of the array, videos first; with windows [windows of all videos, D].
        failures: one error, with path and cause, for each unreadable video.
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
    videos_per_shard: int = 128,
    window: float | None = None,
    every: float | None = None,
    form: str = "npz",
    lists: ListChoice = DETECTED_FORMAT,
    machine: Machine = THIS_MACHINE,
    ray: str = "",
    progress: Progress | None = None,
) -> Extracted:
    """Write the features of all videos in a list; shards of an interrupted call are kept.

    The bytes do not depend on interruptions. Another device or ``clips_at_once`` changes only the rounding.

    Args:
        weights: safetensors file of any run, or of ``import-slowfast``.
        list_path: list or folder of videos.
        out: folder to write, see :mod:`~videomaskfeat.inference.features`.
        depth: number of blocks, from 1, after which features are taken; None: all, and the final norm.
        grid: one feature per token instead of their average.
        views: temporal views per video, over which features are averaged.
        crops: crops per view, 1 or 3, over which features are averaged.
        dtype: type on disk: float32 or float16.
        videos_per_shard: videos per shard; an interruption loses at most one shard per rank.
        window: length of a window [seconds]: features of one clip in the middle of each window, one file per
            video, see :mod:`~videomaskfeat.inference.window_features`; None: of the whole video.
        every: distance of the starts of two windows [seconds]; None: ``window``.
        form: files of windows: npz or npy.
        lists: how the list is read.
        machine: device and loading options.
        ray: address of a Ray cluster whose nodes compute the features and write into the same folder; empty:
            this process, or the ranks.
        progress: called with the number of finished videos, and the total.

    Raises:
        UserError: an argument, the list or the weights are wrong, the folder has other content, or no video
            could be read.
        RunFailed: a feature is not finite, or too large for float16.
    """
    check_name("dtype", dtype, DTYPES)
    check_name("form", form, FORMS)
    windows = check_windows(window, every, views=views)
    _check_arguments(list_path, pooled=not grid, videos_per_shard=videos_per_shard, windows=windows)
    arguments = _Arguments(
        weights=os.fspath(weights),
        list_path=list_path,
        depth=depth,
        pooled=not grid,
        views=views,
        crops=crops,
        stills=windows is None,
        lists=lists,
        machine=machine,
    )
    with distributed.process_group(machine.torch_device):
        refuse_ranks_on_ray(ray)
        source = arguments.load()
        if windows is not None:
            files = WindowFolder(out, source.records, dtype=dtype, form=form, ignored=LOCK_NAME)
            return _WindowExtraction(arguments, files, windows).run(source, ray, progress)
        folder = FeatureFolder(out, dtype=dtype, ignored=LOCK_NAME)
        return _extract_videos(arguments, folder, source, videos_per_shard, ray, progress)


def _check_arguments(list_path: str, *, pooled: bool, videos_per_shard: int, windows: Windows | None) -> None:
    if windows is not None and not pooled:
        raise UserError("grid with window: windows have pooled features; leave one of the two out")
    if videos_per_shard < 1:
        raise UserError(f"videos_per_shard={videos_per_shard}: must be at least 1")
    if os.path.splitext(list_path)[1].lower() in VIDEO_SUFFIXES and is_file(list_path):
        raise UserError(f"{list_path} is a video; give a list or a folder of videos")


@dataclass(frozen=True)
class _Source:
    """What features are computed from."""

    encoder: VideoEncoder
    recipe: ClassifyRecipe
    records: Records
    depth: int | None
    pooled: bool
    workers: int


@dataclass(frozen=True)
class _Arguments:
    """The arguments from which every process loads the same source; sent to the nodes of a Ray cluster.

    Attributes:
        stills: whether lists of pictures are accepted by an encoder of single frames.
        others: see `extract_features`.
    """

    weights: str
    list_path: str
    depth: int | None
    pooled: bool
    views: int
    crops: int
    stills: bool
    lists: ListChoice
    machine: Machine

    def load(self) -> _Source:
        """Load weights and list.

        Raises:
            UserError: they are wrong, or do not have such features or views.
        """
        machine = self.machine
        encoder = load_encoder(
            self.weights,
            device=machine.device,
            precision=machine.precision,
            reader=machine.reader,
            clips_at_once=machine.clips_at_once,
        )
        recipe = encoder.recipe.with_views(views=self.views, crops=self.crops)
        encoder.check_output(recipe, depth=self.depth, pooled=self.pooled)
        records = self.lists.load(self.list_path, stills=recipe.clip.frames == 1 and self.stills)
        build_views(records, recipe)  # raises if views or crops are wrong, before the folder is created
        return _Source(encoder, recipe, records, self.depth, self.pooled, machine.workers)

    def describe(
        self, source: _Source, *, dtype: np.dtype[Any], **options: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The options that a continued call must share, with further ones, and facts about the input."""
        identity = describe_weights(self.weights)
        shared = {
            "depth": self.depth,
            "grid": not self.pooled,
            **describe_views(source.recipe),
            "precision": self.machine.precision_used,
            "dtype": dtype.name,
            **options,
            "list_sha256": hash_records(source.records),
            "weights_sha256": identity["weights_sha256"],
        }
        about = {"weights": identity["weights"], "list": self.list_path, "videos": len(source.records)}
        return shared, about

    def choose_threads(self, source: _Source) -> None:
        """Set the number of threads for the encoder."""
        model = source.encoder.model
        choose_inference_threads(model, source.recipe.clip, self.machine, network=model.features)

    def for_nodes(self) -> _Arguments:
        """The arguments with the precision of this machine, since a node may have another device."""
        return replace(self, machine=replace(self.machine, precision=self.machine.precision_used))


@functools.lru_cache(maxsize=1)
def _loaded(arguments: _Arguments) -> _Source:
    """The source, which a node of a Ray cluster keeps for its next task."""
    return arguments.load()


def _extract_videos(
    arguments: _Arguments,
    folder: FeatureFolder,
    source: _Source,
    videos_per_shard: int,
    ray: str,
    progress: Progress | None,
) -> Extracted:
    """Write the features of whole videos, on the ranks or on a Ray cluster."""
    options, about = arguments.describe(source, dtype=folder.dtype, videos_per_shard=videos_per_shard)
    count = math.ceil(len(source.records) / videos_per_shard)
    with lock_for_all_ranks(folder.path, remedy="choose another folder"):
        pending = distributed.run_on_main(lambda: folder.open(options, about, count))
        arguments.choose_threads(source)
        if ray:
            _extract_on_cluster(arguments, folder, pending, count, videos_per_shard, ray, progress)
        else:
            own = _Extraction(source, folder, videos_per_shard)
            run_on_every_rank(lambda: own.run(pending, progress=progress))
        shape, failures = distributed.run_on_main(lambda: folder.finish(source.records, count))
    return Extracted(folder.path, shape, failures)


def _extract_on_cluster(
    arguments: _Arguments,
    folder: FeatureFolder,
    pending: Sequence[int],
    count: int,
    videos_per_shard: int,
    ray: str,
    progress: Progress | None,
) -> None:
    """Write the missing shards of ``count`` shards; each is a task."""
    calls = [(arguments.for_nodes(), folder, videos_per_shard, shard) for shard in pending]
    with closing(call_on_cluster(_extract_shard, calls, ray=ray, device=arguments.machine.device)) as shards:
        for number, _ in enumerate(shards, start=count - len(pending) + 1):
            if progress is not None:
                progress(number, count)


def _extract_shard(arguments: _Arguments, folder: FeatureFolder, videos_per_shard: int, shard: int) -> None:
    _Extraction(_loaded(arguments), folder, videos_per_shard).run([shard], progress=None)


@dataclass(frozen=True)
class _WindowExtraction:
    """Writes the features of windows, one video after another."""

    arguments: _Arguments
    folder: WindowFolder
    windows: Windows

    def run(self, source: _Source, ray: str, progress: Progress | None) -> Extracted:
        """Write the features of the missing videos, on the ranks or on a Ray cluster."""
        options, about = self.arguments.describe(source, dtype=self.folder.dtype)
        seconds = {"window_seconds": self.windows.window, "every_seconds": self.windows.every}
        options |= {**seconds, "form": self.folder.form}
        with lock_for_all_ranks(self.folder.path, remedy="choose another folder"):
            rows = distributed.run_on_main(lambda: self.folder.open(options, about))
            self.arguments.choose_threads(source)
            return self._run(rows, source, ray, progress)

    def _run(self, rows: Sequence[int], source: _Source, ray: str, progress: Progress | None) -> Extracted:
        records = source.records
        finished = len(records) - len(rows)
        if ray:
            nodes = replace(self, arguments=self.arguments.for_nodes())
            calls = [(nodes, row) for row in rows]
            causes = call_on_cluster(_extract_windows, calls, ray=ray, device=self.arguments.machine.device)
            failures = self._collect(rows, causes, finished, 1, progress, len(records))
        else:
            rank, ranks = distributed.rank(), distributed.world_size()
            own, report = rows[rank::ranks], progress if distributed.is_main() else None

            def work() -> dict[int, str]:
                causes = (self.write(row, source) for row in own)
                return self._collect(own, causes, finished, ranks, report, len(records))

            failures = {row: cause for one in run_on_every_rank(work) for row, cause in one.items()}
        count, width = distributed.run_on_main(lambda: self.folder.finish(failures))
        errors = [VideoReadError(records[row].path, cause) for row, cause in sorted(failures.items())]
        return Extracted(self.folder.path, (count, width), errors)

    def write(self, row: int, source: _Source) -> str:
        """Write the features of a video; returns why it cannot be read, or an empty text."""
        encoder, recipe = source.encoder, source.recipe
        path, reader = source.records[row].path, encoder.machine.reader
        try:
            groups = iter_window_clips(path, recipe, self.windows, reader=reader)
            outputs = [
                (encoder.clip_features(clips, depth=source.depth, views=recipe.crops).numpy(), times)
                for times, clips in groups
            ]
        except VideoReadError as error:
            return error.cause
        features, times = (np.concatenate(arrays) for arrays in zip(*outputs, strict=True))
        self.folder.save(row, features, times)
        return ""

    def _collect(
        self,
        rows: Sequence[int],
        causes: Iterable[str],
        finished: int,
        ranks: int,
        progress: Progress | None,
        total: int,
    ) -> dict[int, str]:
        """Row and cause of each unreadable video."""
        failures: dict[int, str] = {}
        for number, (row, cause) in enumerate(zip(rows, causes, strict=True), start=1):
            if cause:
                failures[row] = cause
            if progress is not None:
                progress(min(finished + number * ranks, total), total)
        return failures


def _extract_windows(extraction: _WindowExtraction, row: int) -> str:
    return extraction.write(row, _loaded(extraction.arguments))


@dataclass(frozen=True)
class _Extraction:
    source: _Source
    folder: FeatureFolder
    videos_per_shard: int

    def run(self, pending: Sequence[int], *, progress: Progress | None) -> None:
        """Write the shards of this rank; videos of the next shard are loaded ahead."""
        shards = pending[distributed.rank() :: distributed.world_size()]
        size, total = self.videos_per_shard, len(self.source.records)
        rows = [row for shard in shards for row in range(shard * size, min((shard + 1) * size, total))]
        if not rows:
            return
        finished = total - sum(min(size, total - shard * size) for shard in pending)
        done, first = 0, 0
        features: list[np.ndarray] = []
        readable: list[int] = []
        failures: list[tuple[int, str]] = []
        with closing(iter(self._build_loader(rows))) as batches:
            for batch in batches:
                features += self._compute_features(batch)
                readable += [rows[index] for index in batch.index.tolist()]
                failures += [(rows[failure.index], failure.cause) for failure in batch.failures]
                done += len(batch.index) + len(batch.failures)
                if done % size == 0 or done == len(rows):
                    shape = list(features[0].shape[1:]) if features else []
                    self.folder.save(shards[first // size], Shard(readable, failures, shape), features)
                    features, readable, failures, first = [], [], [], done
                if progress is not None and distributed.is_main():
                    progress(min(finished + done * distributed.world_size(), total), total)

    def _build_loader(self, rows: Sequence[int]) -> ViewLoader:
        """The batch size divides the shard, so that batches are the same after a resume."""
        machine, size = self.source.encoder.machine, self.videos_per_shard
        largest = max(machine.clips_at_once // (self.source.recipe.views * self.source.recipe.crops), 1)
        paths = [self.source.records[row].path for row in rows]
        records = Records.from_paths(paths, None, source=self.source.records.source)
        return ViewLoader(
            build_views(records, self.source.recipe, reader=machine.reader),
            per_batch=max(number for number in range(1, min(largest, size) + 1) if size % number == 0),
            workers=self.source.workers,
            pin_memory=machine.torch_device.type == "cuda",
        )

    def _compute_features(self, batch: ViewsBatch) -> list[np.ndarray]:
        """Features [k, ...] of the readable videos of a batch; an empty list if all are unreadable."""
        if not len(batch.index):
            return []
        clips = self.source.recipe.views * self.source.recipe.crops
        features = self.source.encoder.clip_features(
            batch.clips, depth=self.source.depth, pooled=self.source.pooled, views=clips
        )
        if self.folder.dtype == np.float16:
            features = features.half()
            if not features.isfinite().all():
                raise RunFailed("a feature is too large for float16 (65504); use float32")
        return [features.numpy()]
