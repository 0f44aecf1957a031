"""A training of milliseconds: made-up vectors, a network with dropout, moving average, accumulation."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from videomaskfeat.engine import distributed
from videomaskfeat.engine.average import ExponentialMovingAverage
from videomaskfeat.engine.contracts import LoopOptions, StepResult
from videomaskfeat.engine.loop import Training, TrainResult, train
from videomaskfeat.engine.optim import WarmupCosine, adamw, parameter_groups
from videomaskfeat.engine.sharding import build_mesh, shard

SAMPLES, STEPS_PER_EPOCH, BATCH = 50, 6, 8  # two samples are left over every epoch
CPU = torch.device("cpu")
TIMES = ("data_ms", "step_ms", "samples_per_second", "memory_mb")


@dataclass(frozen=True)
class ToyBatch:
    """Vectors and their numbers."""

    inputs: Tensor
    index: Tensor
    failures: tuple[str, ...] = ()

    def to(self, device: torch.device) -> ToyBatch:
        inputs = self.inputs.pin_memory() if device.type == "cuda" else self.inputs
        return ToyBatch(inputs.to(device, non_blocking=True), self.index, self.failures)

    def record_stream(self, stream: torch.Stream) -> None:
        self.inputs.record_stream(stream)


class ToyLoader:
    """The contract of the real loader: the stream is a pure function of epoch and batch number."""

    def __init__(
        self, *, accumulate: int, failing: tuple[int, ...] = (), poisoned: int | None = None
    ) -> None:
        self.accumulate, self.failing, self.poisoned = accumulate, failing, poisoned
        generator = torch.Generator().manual_seed(7)
        self.data = torch.randn(SAMPLES, 6, generator=generator)

    @property
    def batches_per_epoch(self) -> int:
        return STEPS_PER_EPOCH * self.accumulate

    def epoch(
        self, epoch: int, first_batch: int = 0, stop: Callable[[], bool] = lambda: False
    ) -> Iterator[ToyBatch]:
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(epoch))
        chunks = self.accumulate * distributed.world_size()
        for number in range(first_batch, self.batches_per_epoch):
            step, micro = divmod(number, self.accumulate)
            whole = order[step * BATCH : (step + 1) * BATCH]
            index = whole.chunk(chunks)[distributed.rank() * self.accumulate + micro]
            inputs = self.data[index].clone()
            if self.poisoned is not None:
                inputs[index == self.poisoned] = float("nan")
            yield ToyBatch(inputs, index, tuple(f"bad {i}" for i in index.tolist() if i in self.failing))


class TroubledLoader(ToyLoader):
    """Fails before batch number ``at``, counted over all epochs, or waits there after a signal.

    Args:
        trouble: the error to raise, or the signal to send to this process.
    """

    def __init__(self, *, accumulate: int, at: int, trouble: Exception | signal.Signals) -> None:
        super().__init__(accumulate=accumulate)
        self.at, self.trouble, self.yielded = at, trouble, 0

    def epoch(
        self, epoch: int, first_batch: int = 0, stop: Callable[[], bool] = lambda: False
    ) -> Iterator[ToyBatch]:
        for batch in super().epoch(epoch, first_batch):
            if self.yielded == self.at:
                if isinstance(self.trouble, Exception):
                    raise self.trouble
                os.kill(os.getpid(), self.trouble)
                while not stop():
                    time.sleep(0.01)
                return
            self.yielded += 1
            yield batch


def toy_model(dropout: float = 0.3) -> nn.Module:
    """A network of some 200 parameters, the same every time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.LayerNorm(12), nn.GELU(), nn.Dropout(dropout), nn.Linear(12, 6))


def train_toy(
    folder: Path,
    *,
    accumulate: int = 2,
    dropout: float = 0.3,
    epochs: float = 3,
    loader: ToyLoader | None = None,
    before_forward: Callable[[int], None] | None = None,
    fingerprint: dict[str, Any] | None = None,
    with_ema: bool = True,
    model: nn.Module | None = None,
    save_minutes: float = 1e9,
    milestone_every: int = 4,
    device: torch.device = CPU,
    parallel: str = "ddp",
    **arguments: Any,
) -> TrainResult:
    """Train; ``before_forward`` is called with the number of each forward from 0."""
    plain = toy_model(dropout) if model is None else model
    average = ExponentialMovingAverage(plain, decay=0.9) if with_ema else None
    sharded = parallel != "ddp" and distributed.world_size() > 1
    if sharded:
        mesh = build_mesh(parallel, device)
        for one in (plain, *([] if average is None else [average.module])):
            shard(one, mesh)
    model = plain if sharded else distributed.parallel(plain, device)
    calls = iter(range(10**9))

    def step(batch: ToyBatch) -> StepResult:
        if before_forward is not None:
            before_forward(next(calls))
        error = model(batch.inputs) - batch.inputs
        return StepResult(error.square().mean(), {"absolute_error": error.abs().mean()}, int(batch.index[0]))

    options = {
        name: arguments.pop(name) for name in list(arguments) if name in LoopOptions.__dataclass_fields__
    }
    options = {"loggers": (), "clip_norm": 0.5, **options}
    schedule = WarmupCosine(base_lr=0.02, start_lr=0.001, end_lr=0.0, warmup_epochs=1, epochs=3)
    return train(
        Training(
            model=model,
            step=step,
            loader=loader or ToyLoader(accumulate=accumulate),
            optimizer=adamw(parameter_groups(plain.named_parameters(), base_lr=0.02, weight_decay=0.05)),
            learning_rate=schedule,
            folder=folder,
            device=device,
            ema=average,
            fingerprint={"width": 12} if fingerprint is None else fingerprint,
            options=LoopOptions(
                epochs=epochs,
                accumulate=accumulate,
                save_minutes=save_minutes,
                milestone_every=milestone_every,
                **options,
            ),
            **arguments,
        )
    )


def final_state(folder: Path, step: int = 18) -> dict[str, Any]:
    """The checkpoint of a step without the time it took."""
    state = torch.load(folder / "checkpoints" / f"step_{step:08d}.pt", weights_only=True)
    del state["progress"]["seconds"]
    return dict(state)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without times."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in lines]


def differences(one: Any, two: Any, where: str = "") -> list[str]:
    """The places where two nested states differ in any bit."""
    if isinstance(one, Tensor):
        same = one.dtype == two.dtype and torch.equal(one, two)
        return [] if same else [where]
    if isinstance(one, dict):
        if one.keys() != two.keys():
            return [f"{where} keys"]
        return [bad for key in one for bad in differences(one[key], two[key], f"{where}/{key}")]
    if isinstance(one, (list, tuple)):
        if len(one) != len(two):
            return [f"{where} length"]
        pairs = enumerate(zip(one, two, strict=True))
        return [bad for i, (a, b) in pairs for bad in differences(a, b, f"{where}/{i}")]
    return [] if one == two else [where]


def assert_same_run(folder: Path, reference: Path) -> None:
    """Weights, optimizer, average, random state, progress and every logged number are equal bit for bit."""
    assert differences(final_state(folder), final_state(reference)) == []
    assert metrics(folder) == metrics(reference)
