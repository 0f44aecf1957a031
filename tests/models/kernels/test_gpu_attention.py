"""Attention for GPUs against its plain version; FlexAttention and Triton's interpreter run on a CPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from tests.autograd import assert_same_gradients
from videomaskfeat.models.kernels.attention import Relative, attention, plain_attention
from videomaskfeat.models.kernels.choice import Kernels, using_kernels
from videomaskfeat.models.kernels.gpu_attention import relative_attention

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="the package triton is not installed"
)


def make_inputs(
    grid: tuple[int, int, int] = (2, 5, 9),
    keys: tuple[int, int, int] = (2, 3, 4),
    *,
    width: int = 24,
    prefix: int = 1,
    axes: str = "thw",
    device: str = "cpu",
) -> tuple[Tensor, Tensor, Tensor, Relative, list[Tensor]]:
    """Queries, keys, values, relative positions, and the leaves of the graph."""
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return (0.5 * torch.randn(size, generator=generator)).to(device).requires_grad_()

    rest, first = draw(2, *grid, 3, width), draw(2, prefix, 3, width)
    count = prefix + keys[0] * keys[1] * keys[2]
    k, v = draw(2, count, 3, width), draw(2, count, 3, width)
    offsets = [draw(grid[axis], keys[axis], width) if "thw"[axis] in axes else None for axis in range(3)]
    places = torch.cartesian_prod(*(torch.arange(length) for length in keys)).unbind(1)
    hot = [
        torch.nn.functional.one_hot(place, length)
        for axis, place, length in zip("thw", places, keys, strict=True)
        if axis in axes
    ]
    codes = torch.nn.functional.pad(torch.cat(hot, dim=1), (0, 0, prefix, 0)).float().to(device)
    leaves = [rest, first, k, v, *(offset for offset in offsets if offset is not None)]
    return rest, k, v, Relative(first, offsets, codes), leaves


CASES = [
    {},
    {"prefix": 0},
    {"axes": "hw"},
    {"axes": "t", "grid": (1, 4, 4), "keys": (3, 1, 1)},
    {"grid": (2, 7, 7), "keys": (2, 7, 7), "width": 96},  # more than one tile of queries and of keys
    {"width": 32},
]


@pytest.mark.parametrize("case", CASES)
def test_flex_attention_equals_the_plain_form(case: dict[str, object]) -> None:
    q, k, v, relative, _ = make_inputs(**case)  # type: ignore[arg-type]
    q, k, v, first = (x.detach() for x in (q, k, v, relative.first))
    relative = Relative(first, [x if x is None else x.detach() for x in relative.offsets], relative.codes)
    with torch.no_grad():
        expected = plain_attention(q, k, v, relative)
        actual = relative_attention("flex", relative.first, q, k, v, relative.offsets, relative.codes)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def check_triton_on_the_cpu() -> None:
    """Values and gradients of the Triton kernels; in a process with TRITON_INTERPRET=1."""
    for case in CASES:
        q, k, v, relative, leaves = make_inputs(**case)  # type: ignore[arg-type]
        actual = relative_attention("triton", relative.first, q, k, v, relative.offsets, relative.codes)
        assert_same_gradients(actual, plain_attention(q, k, v, relative), leaves, atol=2e-5, rtol=1e-4)
    print("equal")


@needs_triton
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_triton_equals_the_plain_form_in_the_interpreter() -> None:
    code = "from tests.models.kernels.test_gpu_attention import check_triton_on_the_cpu as c; c()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "equal"


@pytest.mark.cuda
@pytest.mark.parametrize("kernel", ["flex", "triton"])
def test_cuda_kernels_equal_the_widened_form(kernel: str) -> None:
    for case in CASES:
        q, k, v, relative, leaves = make_inputs(**case, device="cuda")  # type: ignore[arg-type]
        with using_kernels(Kernels(gpu_attention=kernel)):  # type: ignore[arg-type]
            actual = attention(q, k, v, relative)
        assert_same_gradients(actual, plain_attention(q, k, v, relative), leaves, atol=1e-3, rtol=1e-3)


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("kernel", "words"),
    [("widened", ("flash", "cudnn")), ("flex", ("flex_attention", "triton_tem")), ("triton", ("_forward",))],
)
def test_cuda_takes_the_fused_kernel(kernel: str, words: tuple[str, ...]) -> None:
    """By the names of the kernels that ran; a score matrix would come with a softmax."""
    q, k, v, relative, _ = make_inputs((8, 14, 14), (8, 7, 7), width=96, device="cuda")
    with using_kernels(Kernels(gpu_attention=kernel)), torch.autocast("cuda", torch.bfloat16):  # type: ignore[arg-type]
        attention(q, k, v, relative)  # compiles
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            attention(q, k, v, relative)
            torch.cuda.synchronize()
    names = [event.key.lower() for event in profile.key_averages()]
    assert any(word in name for name in names for word in words), names
    assert not any("softmax" in name and "flash" not in name for name in names), names
