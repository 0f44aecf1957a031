"""``extract-features``: features of a list's videos on disk; resumable, on any number of ranks."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from videomaskfeat.data.batches import ViewsBatch
from videomaskfeat.data.folders import VIDEO_SUFFIXES
from videomaskfeat.data.formats import load_records
from videomaskfeat.data.loader import ViewLoader
from videomaskfeat.data.records import Records
from videomaskfeat.engine import distributed
from videomaskfeat.engine.lock import LOCK_NAME, lock_for_all_ranks
from videomaskfeat.errors import RunFailed, UserError, check_name
from videomaskfeat.inference.classifiers import VideoEncoder, load_encoder
from videomaskfeat.inference.features import FeatureFolder, Shard
from videomaskfeat.inference.multiview import (
    Machine,
    Progress,
    build_views,
    run_on_every_rank,
)
from videomaskfeat.inference.results import describe_views, describe_weights, hash_records
from videomaskfeat.inference.threads import choose_inference_threads
from videomaskfeat.io import is_file
from videomaskfeat.recipe import ClassifyRecipe

DTYPES = ("float32", "float16")


@dataclass(frozen=True)
class Extracted:
    """The result of ``extract_features``.

    Attributes:
        folder: of the features; read it with :func:`~videomaskfeat.inference.features.read_features`.
        shape: of the array, videos first.
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
    """Write the features of all videos of a list; the shards that an earlier call wrote are kept.

    However often a call was interrupted and repeated, the bytes are the same, on the same device and with the
    same ``clips_at_once``; other ones change the rounding alone.

    Args:
        weights: safetensors file of any run, or of ``import-slowfast``.
        list_path: list or folder of videos; ``format``, ``labels``, ``prefix`` and ``separator`` as in
            :func:`~videomaskfeat.data.formats.load_records`.
        out: folder to write, see :mod:`~videomaskfeat.inference.features`.
        depth: number of blocks, from 1, after which features are taken; None: all, and the final norm.
        grid: on the token grid instead of averaged over it.
        views: temporal views per video, over which pooled features are averaged.
        crops: crops per view, 1 or 3, over which they are averaged, too.
        dtype: on disk: float32 or float16.
        device: auto, cpu, cuda or cuda:N.
        precision: auto (bf16 on a GPU, fp32 on a CPU), fp32 or bf16.
        reader: auto, decord or pyav.
        workers: processes per rank that read videos; 0 reads in the rank's own.
        clips_at_once: clips that go through the network together.
        videos_per_shard: videos per shard; an interrupted call loses at most these.
        progress: called with the number of videos that are done, and of all.

    Raises:
        UserError: an argument, the list or the weights are wrong, the folder holds something else, or no
            video could be read.
        RunFailed: a feature is not finite.
    """
    _check(list_path, dtype=dtype, videos_per_shard=videos_per_shard)
    machine = Machine(device, precision, reader, workers, clips_at_once=clips_at_once)
    with distributed.process_group(machine.torch_device):
        encoder = load_encoder(
            weights, device=device, precision=precision, reader=reader, clips_at_once=clips_at_once
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
        build_views(records, recipe)  # refuses views and crops that cannot be, before the folder is made
        identity = describe_weights(weights)
        settings = {
            "depth": depth,
            "grid": grid,
            **describe_views(recipe),
            "precision": machine.precision_used,
            "dtype": dtype,
            "videos_per_shard": videos_per_shard,
            "list_sha256": hash_records(records),
            "weights_sha256": identity["weights_sha256"],
        }
        about = {"weights": identity["weights"], "list": list_path, "videos": len(records)}
        folder = FeatureFolder(out, dtype=dtype, ignored=LOCK_NAME)
        count = math.ceil(len(records) / videos_per_shard)
        with lock_for_all_ranks(out, remedy="choose another folder"):
            pending = distributed.run_on_main(lambda: folder.open(settings, about, count))
            choose_inference_threads(encoder.model, recipe.clip, machine, network=encoder.model.features)
            work = _Work(
                encoder, recipe, records, folder, depth=depth, pooled=not grid, size=videos_per_shard
            )
            run_on_every_rank(lambda: work.do(pending, workers=workers, progress=progress))
            shape, failures = distributed.run_on_main(lambda: folder.finish(records, count))
    return Extracted(Path(out), shape, failures)


def _check(list_path: str, *, dtype: str, videos_per_shard: int) -> None:
    check_name("dtype", dtype, DTYPES)
    if videos_per_shard < 1:
        raise UserError(f"videos_per_shard={videos_per_shard}: must be at least 1")
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
        most = max(self.encoder.machine.clips_at_once // clips, 1)
        fitting = max(number for number in range(1, min(most, self.size) + 1) if self.size % number == 0)
        paths = [self.records[row].path for row in rows]
        return ViewLoader(
            build_views(
                Records.from_paths(paths, None, source=self.records.source),
                self.recipe,
                reader=self.encoder.machine.reader,
            ),
            per_batch=fitting,
            workers=workers,
            pin_memory=self.encoder.machine.torch_device.type == "cuda",
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
