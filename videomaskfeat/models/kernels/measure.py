"""Chooses the kernels of the CPU by a measurement of about two seconds, which is stored per machine."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from videomaskfeat.errors import RunFailed, UserError
from videomaskfeat.io import make_folder, user_cache_folder, whole_file
from videomaskfeat.machine import keep_freed_memory, processor_name
from videomaskfeat.models.kernels.attention import Relative, attention
from videomaskfeat.models.kernels.choice import (
    CHOICES,
    GPU_CHOICES,
    VARIABLE,
    Kernels,
    current_kernels,
    parse_kernels,
    use_kernels,
    using_kernels,
)
from videomaskfeat.models.kernels.dense import outer_sum, product
from videomaskfeat.texts import read_json

logger = logging.getLogger(__name__)

_FAILED = 1e9  # milliseconds
_FORMAT = 1  # of the stored files; raise it if what is measured changes
_ROWS, _KEYS = 1568, 392  # tokens of 8x14x14, where MViTv2-S has 11 of 16 blocks, and keys of 8x7x7
_HEADS = 4  # makes more scores than are computed at once
_LARGE_BLOCK = 2**26  # bytes: above glibc's limit for kept memory
_ROUNDS = 5
_SECONDS = 0.4  # per operation; no further round starts after this time
_WORTH = 0.9  # another kernel than the default must need less than this share of its time


@dataclass(frozen=True)
class Shapes:
    """Sizes of a model's most expensive layers; the defaults are those of MViTv2-S.

    Attributes:
        in_width, out_width: of the linear layers with most weights.
        head_width: width of a head's queries, keys and values.
    """

    in_width: int = 384
    out_width: int = 1536
    head_width: int = 96

    @classmethod
    def of(cls, model: nn.Module) -> Shapes:
        """The sizes of a model; the defaults for what it does not have."""
        sizes = Counter(
            (layer.in_features, layer.out_features)
            for layer in model.modules()
            if isinstance(layer, nn.Linear)
        )
        head_widths = (getattr(layer, "head_width", None) for layer in model.modules())
        widths = Counter(width for width in head_widths if isinstance(width, int))
        in_width, out_width = max(
            sizes, key=lambda size: sizes[size] * size[0] * size[1], default=(cls.in_width, cls.out_width)
        )
        (head_width, _), *_ = widths.most_common(1) or [(cls.head_width, 1)]
        return cls(in_width, out_width, head_width)


@dataclass(frozen=True)
class KernelChoice:
    """Kernels, and the origin of the choice.

    Attributes:
        kernels: the kernels, which are set now.
        milliseconds: measured CPU times per operation and kernel, of the measured operations only.
        reason: text such as ``measured: products onednn 19 ms, mkl 22 ms``.
    """

    kernels: Kernels
    milliseconds: Mapping[str, Mapping[str, float]]
    reason: str

    def __str__(self) -> str:
        return f"{self.kernels} ({self.reason})"


def choose_kernels(
    text: str = "",
    *,
    name: str = "run.kernels",
    bf16: bool = False,
    shapes: Shapes | None = None,
    device: str = "cpu",
) -> KernelChoice:
    """Set the fastest kernels of a device; of the CPU, for this process's number of threads.

    Operations that neither ``text`` nor the environment variable fixes are measured, unless the user's cache
    folder has a measurement for the same processor, number of threads, torch, precision and shapes.

    Args:
        text: see :func:`~videomaskfeat.models.kernels.choice.parse_kernels`.
        name: name of the key that ``text`` comes from, for messages.
        bf16: whether attention computes in bfloat16 and linear layers in torch's own products.
        shapes: sizes of the model; None: those of MViTv2-S.
        device: ``cpu`` or ``cuda``.

    Raises:
        UserError: an operation or a kernel is unknown.
    """
    fixed = parse_kernels(text, name=name) or parse_kernels(os.environ.get(VARIABLE, ""), name=VARIABLE)
    operations = _operations(device)
    open_operations = [operation for operation in operations if operation not in fixed]
    kernels = replace(Kernels(), **fixed)  # type: ignore[arg-type]
    times: dict[str, dict[str, float]] = {}
    reason = "not measured"
    if open_operations:
        key = _key(bf16, shapes or Shapes(), device)
        stored = _load(key, operations)
        measure = _measure if device == "cpu" else _measure_on_gpu
        times = stored or measure(bf16, shapes or Shapes())
        if stored is None:
            _store(key, times)
        reason = "measured" if stored is None else "measured before"
        fastest = {operation: _fastest(operation, times[operation]) for operation in open_operations}
        kernels = replace(kernels, **fastest)  # type: ignore[arg-type]
        times = {operation: times[operation] for operation in open_operations}
        reason = f"{reason}: {'; '.join(_shown(operation, each) for operation, each in times.items())}"
    apply_kernels(kernels)
    return KernelChoice(kernels, times, reason)


def apply_kernels(kernels: Kernels) -> None:
    """Set the kernels of this process, and what happens to its freed memory."""
    use_kernels(kernels)
    keep_freed_memory(kernels.memory == "kept")


def _shown(operation: str, times: Mapping[str, float]) -> str:
    return f"{operation} " + ", ".join(f"{kernel} {value:.3g} ms" for kernel, value in times.items())


def _operations(device: str) -> dict[str, tuple[str, ...]]:
    return CHOICES if device == "cpu" else GPU_CHOICES


def _fastest(operation: str, times: Mapping[str, float]) -> str:
    default, *others = {**CHOICES, **GPU_CHOICES}[operation]
    best = min(others, key=lambda kernel: times[kernel])
    return best if times[best] < _WORTH * times[default] else default


def _key(bf16: bool, shapes: Shapes, device: str = "cpu") -> dict[str, Any]:
    """Everything that a measurement depends on."""
    return {
        "format": _FORMAT,
        "processor": processor_name() if device == "cpu" else torch.cuda.get_device_name(),
        "threads": torch.get_num_threads() if device == "cpu" else 0,
        "torch": torch.__version__,
        "precision": "bf16" if bf16 else "fp32",
        **asdict(shapes),
    }


def _path(key: Mapping[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return user_cache_folder() / "kernels" / f"{digest[:32]}.json"


def _load(
    key: Mapping[str, Any], operations: Mapping[str, tuple[str, ...]] = CHOICES
) -> dict[str, dict[str, float]] | None:
    """The stored times of a key; None if they are missing, or if the file is damaged or of another key."""
    try:
        content = read_json(_path(key), what="kernel times")
        times = content["milliseconds"] if content["key"] == key else None
        if times is None or any(
            not isinstance(times[operation][kernel], float) or not times[operation][kernel] > 0
            for operation, kernels in operations.items()
            for kernel in kernels
        ):
            return None
    except (UserError, RunFailed, OSError, KeyError, TypeError, RuntimeError):
        return None
    return {name: {kernel: times[name][kernel] for kernel in kernels} for name, kernels in operations.items()}


def _store(key: Mapping[str, Any], times: Mapping[str, Mapping[str, float]]) -> None:
    """Write a file per key, whole, so that several processes do not disturb each other."""
    try:
        path = _path(key)
        if path.is_absolute():  # without a home folder it is relative
            make_folder(path.parent)
            with whole_file(path) as file:
                json.dump({"key": key, "milliseconds": times}, file, indent=1)
    except (UserError, RunFailed, OSError, RuntimeError):  # the next process measures again
        return


def _measure(bf16: bool, shapes: Shapes) -> dict[str, dict[str, float]]:
    """Milliseconds of each kernel of each operation."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_ROWS, shapes.in_width, generator=generator)
    weight = torch.randn(shapes.out_width, shapes.in_width, generator=generator)
    grad = torch.randn(_ROWS, shapes.out_width, generator=generator)
    width = shapes.head_width + 22  # of the relative positions of 8 x 7 x 7 keys
    sizes = [(1, _ROWS, _HEADS, width), (1, _KEYS, _HEADS, width), (1, _KEYS, _HEADS, shapes.head_width)]
    dtype = torch.bfloat16 if bf16 else torch.float32
    q, k, v = ((0.1 * torch.randn(size, generator=generator)).to(dtype).requires_grad_() for size in sizes)
    upstream = torch.randn(1, _ROWS, _HEADS, shapes.head_width, generator=generator).to(dtype)

    def attend() -> None:
        with torch.enable_grad():
            torch.autograd.grad(attention(q, k, v), (q, k, v), upstream)

    def fill() -> None:
        torch.empty(_LARGE_BLOCK, dtype=torch.uint8).fill_(1)

    work: dict[str, Callable[[], object]] = {
        "products": lambda: product(x, weight),
        "gradients": lambda: outer_sum(grad, x),
        "attention": attend,
        "memory": fill,
    }
    chosen = current_kernels()
    times = {}
    try:
        with torch.random.fork_rng(devices=[]):
            for operation, run in work.items():
                times[operation] = _times(operation, run, chosen)
                # Attention consists of products, so it is measured with the chosen ones.
                chosen = replace(chosen, **{operation: _fastest(operation, times[operation])})  # type: ignore[arg-type]
    finally:
        keep_freed_memory()
    return times


def _times(operation: str, run: Callable[[], object], others: Kernels) -> dict[str, float]:
    """Milliseconds of CPU time of all threads per kernel, the least of several rounds.

    Rounds in turns and CPU time instead of wall time: other programs take cores, so that wall times on a busy
    machine differ by a factor of ten from one round to the next.
    """
    best = {kernel: float("inf") for kernel in CHOICES[operation]}
    started = time.perf_counter()
    for number in range(1 + _ROUNDS):
        for kernel in best:
            with using_kernels(replace(others, **{operation: kernel})):  # type: ignore[arg-type]
                if operation == "memory":
                    keep_freed_memory(kernel == "kept")
                    run()  # the first block after a change comes from the system in either way
                begun = time.process_time()
                run()
                seconds = time.process_time() - begun
            if number:  # the first round includes one-time work
                best[kernel] = min(best[kernel], 1e3 * seconds)
        if number and time.perf_counter() - started > _SECONDS:
            break
    return best


def _measure_on_gpu(bf16: bool, shapes: Shapes) -> dict[str, dict[str, float]]:
    """Milliseconds of each form of attention on the GPU, forward and backward, on eight clips.

    A form that fails, for example because triton is not installed, counts as infinitely slow.
    """
    dtype = torch.bfloat16 if bf16 else torch.float32
    batch, (t, h, w), step = 8, (8, 14, 14), 2
    generator = torch.Generator("cuda").manual_seed(0)

    def draw(*size: int) -> torch.Tensor:
        x = 0.1 * torch.randn(size, generator=generator, device="cuda", dtype=torch.float32)
        return x.to(dtype).requires_grad_()

    width, lengths = shapes.head_width, (t, h // step, w // step)
    rest, first = draw(batch, t, h, w, _HEADS, width), draw(batch, 1, _HEADS, width)
    keys = 1 + lengths[0] * lengths[1] * lengths[2]
    k, v = draw(batch, keys, _HEADS, width), draw(batch, keys, _HEADS, width)
    offsets = [draw(queries, length, width) for queries, length in zip((t, h, w), lengths, strict=True)]
    places = torch.cartesian_prod(*(torch.arange(length) for length in lengths)).unbind(1)
    hot = [F.one_hot(place, length) for place, length in zip(places, lengths, strict=True)]
    codes = F.pad(torch.cat(hot, dim=1), (0, 0, 1, 0)).to("cuda", dtype)
    inputs = [rest, first, k, v, *offsets]

    def attend() -> None:
        with torch.enable_grad():
            result = attention(rest, k, v, Relative(first, offsets, codes))
            torch.autograd.grad(result, inputs, torch.ones_like(result))

    times = {}
    for kernel in GPU_CHOICES["gpu_attention"]:
        with using_kernels(replace(Kernels(), gpu_attention=kernel)):  # type: ignore[arg-type]
            try:
                times[kernel] = _gpu_milliseconds(attend)
            except Exception as error:  # compilers fail in many ways; the other forms remain
                logger.info("attention %s does not run on this GPU: %s", kernel, str(error).splitlines()[:1])
                times[kernel] = _FAILED
    return {"gpu_attention": times}


def _gpu_milliseconds(run: Callable[[], object]) -> float:
    """The least of several runs after two others, which include compiling."""
    best = float("inf")
    for number in range(2 + _ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        if number >= 2:
            best = min(best, start.elapsed_time(end))
    return best
