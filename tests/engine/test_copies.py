"""Copies that a GPU makes beside its computation: their order, and equal results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from videomaskfeat.data.batches import PretrainBatch
from videomaskfeat.engine.copies import BatchCopies, HostCopy, copy_numbers

GPU = torch.device("cuda", 0)


@dataclass
class FakeStream:
    """Stands for a CUDA stream; notes its waits."""

    name: str
    events: list[str]

    def wait_stream(self, other: FakeStream) -> None:
        self.events.append(f"{self.name} waits for {other.name}")


@dataclass
class FakeBatch:
    """A batch that notes on which stream it is copied."""

    events: list[str]
    stream: list[FakeStream]
    index: torch.Tensor
    failures: tuple[str, ...] = ()

    def to(self, device: torch.device) -> FakeBatch:
        self.events.append(f"copy to {device} on {self.stream[-1].name}")
        return self

    def record_stream(self, stream: FakeStream) -> None:
        self.events.append(f"keep until {stream.name} is done")


def test_batch_is_copied_on_a_stream_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps' stream waits for the copy, and the memory is kept until the step has read it."""
    events: list[str] = []
    steps = FakeStream("steps", events)
    active = [steps]

    @contextmanager
    def use(stream: FakeStream) -> Iterator[None]:
        active.append(stream)
        yield
        active.pop()

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream("copies", events))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: active[-1])
    monkeypatch.setattr(torch.cuda, "stream", use)
    copy = BatchCopies(GPU)
    for _ in range(2):
        copy(FakeBatch(events, active, torch.zeros(1)))
    once = ["copy to cuda:0 on copies", "steps waits for copies", "keep until steps is done"]
    assert events == 2 * once


def test_host_waits_for_the_stream_of_the_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``run.device=cuda:1`` the current device may be another one, whose stream makes no copy."""
    recorded: list[Any] = []

    class FakeEvent:
        """Stands for a CUDA event; notes the stream on which it is recorded, and waits."""

        def record(self, stream: Any = "that of the current device") -> None:
            recorded.append(stream)

        def synchronize(self) -> None:
            recorded.append("wait")

    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *sizes, pin_memory, **keywords: empty(*sizes, **keywords))
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    copied = HostCopy(torch.tensor([1.0, 2.0]))
    assert recorded == ["stream of cpu"]
    assert copied.tolist() == [1.0, 2.0]
    assert recorded == ["stream of cpu", "wait"]


@pytest.mark.cuda
def test_side_stream_copies_equal_plain_ones() -> None:
    """While the steps' stream is busy; without record_stream, later copies would overwrite earlier ones."""
    generator = torch.Generator().manual_seed(0)
    copy = BatchCopies(GPU)
    matrix = torch.randn(4096, 4096, device=GPU)
    sums: list[torch.Tensor] = []
    batches = [
        PretrainBatch(
            torch.randint(0, 256, (4, 16, 64, 64, 3), dtype=torch.uint8, generator=generator),
            torch.rand(4, 8, 4, 4, generator=generator) < 0.5,
            torch.arange(4),
        ).pin_memory()
        for _ in range(20)
    ]
    for batch in batches:
        moved: Any = copy(batch)
        for _ in range(5):  # the steps' stream is far behind the copies
            matrix = (matrix @ matrix) * 1e-4
        sums.append(torch.stack([moved.clips.long().sum(), moved.mask.sum()]))
        del moved
    expected = [[int(batch.clips.long().sum()), int(batch.mask.sum())] for batch in batches]
    assert torch.stack(sums).tolist() == expected


@pytest.mark.cuda
def test_host_copy_and_numbers_do_not_wait() -> None:
    """torch raises if a copy or a read makes the host wait for the device."""
    torch.zeros(1, device=GPU)
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        numbers = copy_numbers([1.0, 2.0], GPU)
        copied = HostCopy(numbers * 3)
        batch = PretrainBatch(
            torch.zeros(2, 2, 8, 8, 3, dtype=torch.uint8).pin_memory(),
            torch.zeros(2, 1, 1, 1, dtype=torch.bool).pin_memory(),
            torch.arange(2),
        )
        BatchCopies(GPU)(batch)
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    assert copied.tolist() == [3.0, 6.0]
