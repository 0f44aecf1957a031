"""Apply a model to all views of the videos in a list, on any number of ranks.

Each video is opened once, on one rank, and the outputs of its views are averaged in float64. Clips go through
the network in small batches, so memory does not grow with the number of views. Batch size and number of ranks
change a result only by rounding: about 1e-6 of the largest logit in float32, 1e-2 in bf16.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from videomaskfeat.data.batches import Failure
from videomaskfeat.data.loader import ViewLoader
from videomaskfeat.data.memory import MemoryNeed, StoredVideo, VideoMemory, decode_videos, size_text
from videomaskfeat.data.records import Records
from videomaskfeat.data.views import EvaluationViews
from videomaskfeat.engine import distributed
from videomaskfeat.engine.distributed import stop_if_requested, uses_bf16
from videomaskfeat.errors import RunFailed, UserError, check_name
from videomaskfeat.recipe import ClipRecipe
from videomaskfeat.schemas.sections import ListConfig
from videomaskfeat.stored_recipe import ClassifyRecipe

if TYPE_CHECKING:
    from videomaskfeat.engine.run import Run

T = TypeVar("T")
AVERAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": functools.partial(torch.softmax, dim=-1),
    "logits": lambda logits: logits,
    "sigmoid": torch.sigmoid,
}
"""What is averaged over the views -> logits to it."""
Progress = Callable[[int, int], None]
"""(number done, total)"""
_CLIPS_IN_MEMORY = 32  # 77 MB for 16 frames of 224x224


@dataclass(frozen=True)
class Machine:
    """Device, precision and loading options of inference.

    Attributes:
        device: auto (a GPU if there is one), cpu, cuda or cuda:N.
        precision: auto (bf16 on a GPU, fp32 on a CPU), fp32 or bf16.
        reader: video reader: video reader, see `open_video`.
        workers: loader processes per rank; 0: the main process loads.
        videos_per_batch: videos per worker and batch; None: about 32 clips.
        clips_at_once: clips per forward pass.
        memory: decoded videos, which are not read from their files.

    Raises:
        UserError: a number is out of range.
    """

    device: str = "auto"
    precision: str = "auto"
    reader: str = "auto"
    workers: int = 0
    videos_per_batch: int | None = None
    clips_at_once: int = 8
    memory: VideoMemory | None = None

    def __post_init__(self) -> None:
        for key, least in (("workers", 0), ("videos_per_batch", 1), ("clips_at_once", 1)):
            value = getattr(self, key)
            if value is not None and value < least:
                raise UserError(f"{key}={value}: must be at least {least}")

    @functools.cached_property
    def torch_device(self) -> torch.device:
        """The device; raises UserError if it does not exist."""
        return distributed.choose_device(self.device)

    @functools.cached_property
    def bf16(self) -> bool:
        """Whether networks run under bf16 autocast."""
        return uses_bf16(self.precision, self.torch_device)

    @property
    def precision_used(self) -> str:
        """bf16 or fp32."""
        return "bf16" if self.bf16 else "fp32"


@dataclass(frozen=True)
class VideoScores:
    """Outputs of a model for the readable videos of a list, in the order of the list.

    Attributes:
        scores: float32 [n, L], probabilities or logits, as they were averaged; or features [n, D].
        labels: int64 [n], -1 for a record without a label.
        rows: int64 [n], row of each video in the list, ascending.
        failures: unreadable videos, by row; no other videos replace them.
        listed: number of records in the list: n + len(failures).
    """

    scores: np.ndarray
    labels: np.ndarray
    rows: np.ndarray
    failures: tuple[Failure, ...]
    listed: int


def evaluate_model(
    model: nn.Module,
    records: Records,
    recipe: ClassifyRecipe,
    machine: Machine,
    *,
    progress: Progress | None = None,
) -> VideoScores:
    """Score videos with a classifier, averaged over their views; all ranks call it and get the whole result.

    Args:
        model: clips float [B, C, T, H, W] -> logits [B, L], on the device. It runs in evaluation mode; the
            training mode of each module is restored.
        records: the list.
        recipe: how clips are cut, and what is averaged.
        machine: device and loading options.
        progress: called on rank 0 after each of its batches.

    Raises:
        UserError: a value is out of range, a reader is not installed, or no video could be read.
        RunFailed: a score is not finite.
    """
    with evaluation_mode(model):
        return classifier_scorer(model, records, recipe, machine).score_on_all_ranks(progress)


def classifier_scorer(
    model: nn.Module, records: Records, recipe: ClassifyRecipe, machine: Machine
) -> ListScorer:
    """The scorer of :func:`evaluate_model`, for a model in evaluation mode."""
    check_name("average", recipe.average, AVERAGES)
    activation = AVERAGES[recipe.average]

    def average_views(logits: Tensor) -> Tensor:
        return activation(logits).mean(dim=1)

    network = ClipPass(distributed.unwrap(model), recipe.clip, machine)
    return ListScorer(network, average_views, records, recipe)


def video_features(
    model: nn.Module,
    records: Records,
    recipe: ClassifyRecipe,
    machine: Machine,
    *,
    progress: Progress | None = None,
) -> VideoScores:
    """Compute features float32 [n, D], averaged over tokens and views and scaled to length 1.

    The model has ``features(clips float [B, C, T, H, W]) -> [B, D]``. All else is as in
    :func:`evaluate_model`.

    Raises:
        UserError: the model has no features; or as :func:`evaluate_model`.
        RunFailed: a feature is not finite.
    """
    with evaluation_mode(model):
        return feature_scorer(model, records, recipe, machine).score_on_all_ranks(progress)


def feature_scorer(
    model: nn.Module, records: Records, recipe: ClassifyRecipe, machine: Machine
) -> ListScorer:
    """The scorer of :func:`video_features`, for a model in evaluation mode.

    Raises:
        UserError: the model has no features.
    """
    plain = distributed.unwrap(model)
    features: Any = getattr(plain, "features", None)
    if not callable(features):
        raise UserError(
            f"{type(plain).__name__} has no `features` method, so videos cannot be compared by it"
        )

    def average_views(features: Tensor) -> Tensor:
        return nn.functional.normalize(features.mean(dim=1), dim=-1)

    return ListScorer(ClipPass(features, recipe.clip, machine), average_views, records, recipe)


def build_views(
    records: Records, recipe: ClassifyRecipe, *, reader: str = "auto", memory: VideoMemory | None = None
) -> EvaluationViews:
    """The views of a list's videos at test time.

    Raises:
        UserError: views, crops or another value of the recipe is out of range.
    """
    clip = recipe.clip
    return EvaluationViews(
        records,
        frames=clip.frames,
        stride=clip.stride,
        target_fps=clip.target_fps,
        short=cast(Any, clip.short_video),  # EvaluationViews checks the names
        sampling=cast(Any, recipe.sampling),
        views=recipe.views,
        crops=recipe.crops,
        crop=clip.crop,
        short_side=recipe.short_side,
        reader=reader,
        memory=memory,
    )


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; restores the training mode of each module at the end."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


class ClipPass:
    """Forward passes over any number of clips, in batches of ``machine.clips_at_once``.

    Args:
        network: normalized clips float [B, C, T, H, W] -> [B, ...].
        clip: how clips are normalized.
        machine: device, precision and batch size.
    """

    def __init__(self, network: Callable[[Tensor], Tensor], clip: ClipRecipe, machine: Machine) -> None:
        self.machine = machine
        self._network, self._clip = network, clip

    def __call__(self, clips: Tensor) -> Tensor:
        """Clips uint8 [B, T, H, W, C], B >= 1 -> float64 [B, ...] on the CPU."""
        outputs, device = [], self.machine.torch_device
        for batch in clips.split(self.machine.clips_at_once):
            pixels = self._clip.normalize(batch.to(device, non_blocking=True))
            with torch.autocast(device.type, torch.bfloat16, enabled=self.machine.bf16):
                outputs.append(self._network(pixels).float())
        return torch.cat(outputs).cpu().double()


def run_on_every_rank(work: Callable[[], T]) -> list[T]:
    """Call ``work`` on every rank and return the (picklable) results of all ranks, in order.

    A UserError or RunFailed of one rank is raised on all of them, so that no rank waits for it.
    """
    result: list[T] = []
    failure: UserError | RunFailed | None = None
    try:
        result.append(work())
    except (UserError, RunFailed) as error:
        failure = error
    failures = [error for error in distributed.gather_objects(failure) if error is not None]
    if failures:
        raise failures[0]
    return [own[0] for own in distributed.gather_objects(result)]


def refuse_ranks_on_ray(ray: str) -> None:
    """Raise UserError if a Ray cluster is given to several ranks, which would all use it."""
    if ray and distributed.world_size() > 1:
        raise UserError(
            f"ray={ray} with {distributed.world_size()} ranks: a cluster has its own processes; start the "
            "command without torchrun"
        )


def distinct_paths(lists: Iterable[Records]) -> list[str]:
    """Paths of the videos of lists, each once."""
    return list(dict.fromkeys(record.path for records in lists for record in records))


def hold_videos(run: Run) -> VideoMemory | None:
    """Decode the videos of a training into memory, once per machine; None with ``data.cache=none``.

    The data sets of its loaders read from it. The expected and the used memory are logged on rank 0.

    All ranks must call it. The frames are in a file of the temporary folder (TMPDIR), which stays in the
    system's page cache. Its name is removed as soon as all ranks have opened it.

    Raises:
        UserError: the frames do not fit. It is raised before the first video is decoded if the sizes of the
            files show it.
    """
    data: ListConfig = run.config.data
    if data.cache == "none":
        return None
    paths = distinct_paths(run.video_lists())
    local_rank = int(os.environ.get("LOCAL_RANK", "0")) if distributed.world_size() > 1 else 0

    def decode() -> tuple[str, dict[str, StoredVideo]]:
        if local_rank:
            return "", {}
        need = MemoryNeed.estimate(paths, data.reader)
        if not need.fits:
            raise UserError(need.problem)
        if distributed.is_main():
            run.folder.log(f"cache     {need}")
        with tempfile.NamedTemporaryFile(prefix="videomaskfeat-", delete=False) as file:
            try:
                videos = decode_videos(
                    paths,
                    file,
                    reader=data.reader,
                    workers=data.workers,
                    read_seconds=data.read_seconds,
                    stop=stop_if_requested,
                )
            except BaseException:
                os.unlink(file.name)
                raise
        return file.name, videos

    name, videos = run_on_every_rank(decode)[distributed.rank() - local_rank]
    try:
        memory = VideoMemory(open(name, "rb"), videos)  # noqa: SIM115
        distributed.gather_objects(None)  # all ranks have opened the file
    finally:
        if local_rank == 0:
            os.unlink(name)
    for loader in (run.loader, run.heldout):
        if loader is not None:
            loader.dataset.memory = memory
    if distributed.is_main():
        run.folder.log(f"cache     {len(videos)} of {len(paths)} videos in memory: {size_text(memory.bytes)}")
    return memory


ShareScores = tuple[list[tuple[np.ndarray, ...]], list[Failure]]
"""Scores, labels and rows of each batch of a share of a list, and its unreadable videos."""


@dataclass(frozen=True)
class ListScorer:
    """Scores a list in shares, on any number of processes.

    Attributes:
        network: the network with its machine.
        average_views: averages float64 [n, V*S, K] over the views: [n, K].
        records: the list.
        recipe: how clips are cut.
    """

    network: ClipPass
    average_views: Callable[[Tensor], Tensor]
    records: Records
    recipe: ClassifyRecipe

    @property
    def videos_per_batch(self) -> int:
        """Videos per batch of the loader."""
        per_batch = self.network.machine.videos_per_batch
        return per_batch or max(_CLIPS_IN_MEMORY // max(self.recipe.views * self.recipe.crops, 1), 1)

    def score_on_all_ranks(self, progress: Progress | None = None) -> VideoScores:
        """The scores of the whole list; each rank scores a share, and all ranks call it."""
        rank, ranks = distributed.rank(), distributed.world_size()
        report = progress if distributed.is_main() else None
        shares = run_on_every_rank(lambda: self.score_share(rank, ranks, report))
        return join_shares(shares, self.records)

    def score_share(self, number: int, shares: int, progress: Progress | None = None) -> ShareScores:
        """Score the rows ``number``, ``number + shares``, ... of the list.

        Raises:
            RunFailed: a score is not finite.
        """
        records, machine = self.records, self.network.machine
        loader = ViewLoader(
            build_views(records, self.recipe, reader=machine.reader, memory=machine.memory),
            per_batch=self.videos_per_batch,
            workers=machine.workers,
            rank=number,
            world_size=shares,
            pin_memory=machine.torch_device.type == "cuda",
        )
        results: list[tuple[np.ndarray, ...]] = []
        failures: list[Failure] = []
        with closing(iter(loader)) as batches:
            for done, batch in enumerate(batches, start=1):
                stop_if_requested()
                failures.extend(batch.failures)
                if len(batch.index):
                    outputs = self.network(batch.clips)  # [n*V*S, K]
                    outputs = outputs.view(len(batch.index), -1, outputs.shape[1])  # [n, V*S, K]
                    scores = self.average_views(outputs)  # [n, K]
                    finite = scores.isfinite().all(dim=1)
                    if not finite.all():
                        row = batch.index[~finite].tolist()[0] + 1
                        raise RunFailed(
                            f"the model's output is not finite for the video in row {row} of the list; its "
                            "weights are damaged, or its training diverged"
                        )
                    results.append((scores.float().numpy(), batch.labels.numpy(), batch.index.numpy()))
                if progress is not None:
                    progress(min(done * self.videos_per_batch * shares, len(records)), len(records))
        return results, failures


def join_shares(shares: Sequence[ShareScores], records: Records) -> VideoScores:
    """The scores of a list from those of all its shares.

    Raises:
        UserError: no video could be read.
    """
    batches = [batch for results, _ in shares for batch in results]
    failures = sorted((failure for _, own in shares for failure in own), key=lambda failure: failure.index)
    if not batches:
        raise UserError(
            f"{records.source}: none of its {len(records)} videos could be read; the first: "
            f"{failures[0].path} ({failures[0].cause}); check the folder that the paths start from (prefix)"
        )
    scores, labels, rows = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    order = np.argsort(rows)
    seen = sorted([*rows.tolist(), *(failure.index for failure in failures)])
    assert seen == list(range(len(records))), "every record is scored or has failed, exactly once"
    return VideoScores(scores[order], labels[order], rows[order], tuple(failures), len(records))
