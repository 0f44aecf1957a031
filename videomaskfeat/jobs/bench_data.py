"""``bench-data``: clips per second of each stage of loading, and the workers that a training needs."""

from __future__ import annotations

import json
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import torch

from videomaskfeat.data.clips import SampleKey
from videomaskfeat.data.loader import copy_shared_clips
from videomaskfeat.data.memory import VideoMemory, decode_videos
from videomaskfeat.data.stages import STAGES, MeasuredBatch, StageMeasurement
from videomaskfeat.data.uncropped import UncroppedClips
from videomaskfeat.data.worker_pool import WorkerPool
from videomaskfeat.durations import duration_text
from videomaskfeat.engine import distributed
from videomaskfeat.engine.run import Run, check_config
from videomaskfeat.errors import UserError, counted
from videomaskfeat.io import check_outputs, make_parent, whole_file
from videomaskfeat.machine import available_cores
from videomaskfeat.texts import printable_name

logger = logging.getLogger(__name__)
_VIDEOS_PER_BATCH = 8  # at most, so that several batches are measured in a short time
_MEANINGS = {
    **STAGES,
    "copy": "copy the batch to the device (main process)",
    "device": "crop, resize, flip and augment on the device (main process)",
}
_SHOWN = 5  # failures in the text


@dataclass(frozen=True)
class DataBenchmark:
    """Seconds of each stage, and the step that the loader must keep up with.

    Attributes:
        source: the list.
        device: device of the training.
        seconds: stage -> seconds per clip; all except copy and device are those of one worker process. The
            stage device, with ``data.augment_on=device`` only, is part of the step.
        clips: number of measured clips.
        failures: path and cause of each record that could not be read.
        decode_seconds: with ``data.cache=memory`` seconds per video to decode it into memory, once per run.
        step_clips: clips per step of this process.
        step_seconds: seconds per step without the wait for data, with the stage device.
        workers: ``data.workers`` of the config.
        cores: processor cores that this process may use.
    """

    source: str
    device: str
    seconds: dict[str, float]
    clips: int
    failures: list[tuple[str, str]]
    decode_seconds: float | None
    step_clips: int
    step_seconds: float
    workers: int
    cores: int

    @property
    def worker_seconds(self) -> float:
        """Seconds per clip of one worker process."""
        return sum(self.seconds[stage] for stage in STAGES)

    @property
    def needed_workers(self) -> int:
        """Least number of workers that make as many clips per second as the step uses."""
        return max(math.ceil(self.worker_seconds * self.step_clips / self.step_seconds), 1)

    def text(self) -> str:
        """The table of stages, and the number of workers."""
        total = self.worker_seconds
        lines = [
            f"data      {self.source}: {counted(self.clips, 'clip')} measured in one worker process",
            f"{'stage':<10}{'ms per clip':>12}{'clips per s':>13}{'share':>8}",
        ]
        for stage, seconds in self.seconds.items():
            share = f"{100 * seconds / total:.0f} %" if stage in STAGES else ""
            lines.append(f"{stage:<10}{_columns(seconds)}{share:>8}  {_MEANINGS[stage]}")
        lines.append(f"{'worker':<10}{_columns(total)}{'100 %':>8}  all stages of a worker")
        if self.decode_seconds is not None:
            lines.append(
                f"cache     {duration_text(self.decode_seconds)} per video to decode it into memory, once "
                "per run; not included above"
            )
        lines += [
            f"step      {duration_text(self.step_seconds)} per step of {self.step_clips} on {self.device} "
            f"without the wait for data: {self.step_clips / self.step_seconds:.4g} clips per s",
            f"workers   at least {self.needed_workers} (data.workers is {self.workers}, "
            f"{counted(self.cores, 'core')})",
        ]
        if self.device == "cpu":
            lines.append("note      on a CPU, steps and workers share the cores")
        lines += [f"unreadable {printable_name(path)}: {cause}" for path, cause in self.failures[:_SHOWN]]
        if len(self.failures) > _SHOWN:
            lines.append(f"unreadable {len(self.failures) - _SHOWN} more")
        return "\n".join(lines)

    def to_json(self) -> str:
        """All figures as JSON."""
        per_second = {stage: 1 / seconds if seconds else None for stage, seconds in self.seconds.items()}
        content = {
            "list": self.source,
            "device": self.device,
            "clips": self.clips,
            "seconds_per_clip": self.seconds,
            "clips_per_second": per_second,
            "worker_clips_per_second": 1 / self.worker_seconds,
            "decode_seconds_per_video": self.decode_seconds,
            "step_clips": self.step_clips,
            "step_seconds": self.step_seconds,
            "step_clips_per_second": self.step_clips / self.step_seconds,
            "workers": self.workers,
            "needed_workers": self.needed_workers,
            "cores": self.cores,
            "failures": [{"path": path, "cause": cause} for path, cause in self.failures],
        }
        return json.dumps(content, indent=2)


def bench_data(
    config: Any,
    build: Callable[[Any, torch.device], Run],
    measure_step: Callable[[], tuple[int, float]],
    *,
    clips: int = 64,
    seconds: float = 20.0,
    json_path: str | None = None,
    overwrite: bool = False,
) -> DataBenchmark:
    """Measure the stages of loading, and compare them with a step; no run folder is written.

    Args:
        config: config of the training.
        build: the job's class of `Run`.
        measure_step: returns clips and seconds per step of this process, without the wait for data, but with
            the copy to the device and the stage device.
        clips: number of clips to measure, at least 1; the first batch is a warm-up if there are others.
        seconds: no further batch is measured after this time.
        json_path: JSON file for the figures; None: none.
        overwrite: replace this file if it exists.

    Raises:
        UserError: the config, the list or an argument is wrong, or no video can be read.
    """
    if json_path is not None:
        check_outputs([json_path], overwrite=overwrite)
        make_parent(json_path)
    check_config(config)
    device = distributed.choose_device(config.run.device)
    with closing(build(config, device).loader) as loader:
        dataset = loader.dataset
    decode_seconds = None
    keys = list(_keys(dataset, clips))
    if getattr(config.data, "cache", "none") == "memory":
        decode_seconds = _hold(dataset, [dataset.records[key.index].path for group in keys for key in group])
    measured, outside = _measure(dataset, keys, device, seconds, config.data.read_seconds)
    failures = [failure for batch in measured for failure in batch.failures]
    counted_batches = [place for place, batch in enumerate(measured) if batch.clips]
    if not counted_batches:
        path, cause = failures[0]
        raise UserError(
            f"{dataset.records.source}: no {dataset.unit} can be read; the first: {path}: {cause}"
        )
    used = counted_batches[1:] or counted_batches
    total = sum(measured[place].clips for place in used)
    per_clip = {stage: sum(measured[place].seconds[stage] for place in used) / total for stage in STAGES}
    for stage in outside[used[0]]:
        per_clip[stage] = sum(outside[place][stage] for place in used) / total
    step_clips, step_seconds = measure_step()
    result = DataBenchmark(
        source=dataset.records.source,
        device=str(device),
        seconds=per_clip,
        clips=total,
        failures=failures,
        decode_seconds=decode_seconds,
        step_clips=step_clips,
        step_seconds=step_seconds,
        workers=config.data.workers,
        cores=available_cores(),
    )
    if json_path is not None:
        with whole_file(json_path, errors="backslashreplace") as file:
            file.write(result.to_json() + "\n")
    return result


def _columns(seconds: float) -> str:
    rate = f"{1 / seconds:.4g}" if seconds else "-"
    return f"{1e3 * seconds:>12.3f}{rate:>13}"


def _keys(dataset: Any, clips: int) -> Iterator[list[SampleKey]]:
    """Records of the first epoch, in its order, in small batches; the first batch is the warm-up."""
    size = min(_VIDEOS_PER_BATCH, len(dataset))
    videos = min(math.ceil(clips / dataset.samples_per_video) + size, len(dataset))
    order = [int(index) for index in dict.fromkeys(dataset.order(0).tolist())][:videos]
    for start in range(0, len(order), size):
        yield [SampleKey(0, index) for index in order[start : start + size]]


def _hold(dataset: Any, paths: Sequence[str]) -> float:
    """Decode the videos into memory, as the training does with all; returns the seconds per video."""
    distinct = list(dict.fromkeys(paths))
    started = time.perf_counter()
    with tempfile.NamedTemporaryFile(prefix="videomaskfeat-") as file:
        videos = decode_videos(distinct, file, reader=dataset.reader, workers=1)
        seconds = time.perf_counter() - started
        dataset.memory = VideoMemory(open(file.name, "rb"), videos)  # noqa: SIM115
    return seconds / len(distinct)


def _measure(
    dataset: Any,
    keys: Sequence[list[SampleKey]],
    device: torch.device,
    limit_seconds: float,
    read_seconds: float,
) -> tuple[list[MeasuredBatch], list[dict[str, float]]]:
    """The batches without their tensors, and the seconds of the other stages of each: copy, and device."""
    pool: WorkerPool[list[SampleKey], MeasuredBatch] = WorkerPool(
        StageMeasurement(dataset),
        iter(keys),
        path_of=lambda reading: dataset.records[reading[-1]].path,
        workers=1,
        ahead=1,
        read_seconds=read_seconds,
    )
    measured, outside = list[MeasuredBatch](), list[dict[str, float]]()
    started = time.perf_counter()
    try:
        while (result := pool.take()) is not None:
            outside.append(_copy(result.batch, device) if result.clips else {})
            measured.append(MeasuredBatch(result.seconds, result.clips, result.failures, None))
            if len(measured) > 1 and time.perf_counter() - started > limit_seconds:
                break
    finally:
        pool.close()
    return measured, outside


def _copy(batch: Any, device: torch.device) -> dict[str, float]:
    """Seconds to copy a batch out of a worker's memory to the device, and to change uncropped clips there."""
    started = time.perf_counter()
    own = copy_shared_clips(batch)
    if device.type == "cuda":
        own = own.pin_memory()
    uncropped = [value for value in vars(own).values() if isinstance(value, UncroppedClips)]
    if not uncropped:
        own.to(device)
        _synchronize(device)
        return {"copy": time.perf_counter() - started}
    copied = [replace(clips, pixels=clips.pixels.to(device, non_blocking=True)) for clips in uncropped]
    _synchronize(device)
    changing = time.perf_counter()
    for clips in copied:
        clips.apply()
    _synchronize(device)
    return {"copy": changing - started, "device": time.perf_counter() - changing}


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
