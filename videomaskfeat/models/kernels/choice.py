"""Which of several kernels with equal results, up to rounding, are used; ``measure.py`` measures them.

A training writes its kernels into its run folder and takes them again when it is resumed, since another
kernel rounds differently.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Literal

from videomaskfeat.errors import UserError, check_name

AUTO, DEFAULT = "auto", "default"
VARIABLE = "VIDEOMASKFEAT_KERNELS"
"""Environment variable with the form of the key ``run.kernels``; used if the key is ``auto``."""
CHOICES: dict[str, tuple[str, ...]] = {
    "products": ("onednn", "mkl"),
    "gradients": ("onednn", "mkl"),
    "attention": ("blocked", "fused"),
    "memory": ("kept", "returned"),
}
"""The kernels of each operation of the CPU; the first is the default."""
GPU_CHOICES: dict[str, tuple[str, ...]] = {"gpu_attention": ("widened", "flex", "triton")}
"""The same for a GPU."""


@dataclass(frozen=True)
class Kernels:
    """A kernel per operation.

    Attributes:
        products: library of float32 matrix products with a weight: forward pass, and gradients of inputs.
        gradients: library of the float32 products that are gradients of weights.
        attention: ``blocked``: blocks of queries in the caches of two cores; ``fused``: torch's fused
            attention. Few scores are always computed at once.
        memory: ``kept``: freed memory is reused; ``returned``: large blocks go back to the system. Without
            effect on results.
        gpu_attention: attention with relative positions on a GPU: ``widened``: queries and keys carry the
            bias through torch's fused attention; ``flex``: FlexAttention; ``triton``: a kernel in Triton.
    """

    products: Literal["onednn", "mkl"] = "onednn"
    gradients: Literal["onednn", "mkl"] = "onednn"
    attention: Literal["blocked", "fused"] = "blocked"
    memory: Literal["kept", "returned"] = "kept"
    gpu_attention: Literal["widened", "flex", "triton"] = "widened"

    def __str__(self) -> str:
        """The form that :func:`parse_kernels` reads, such as ``products=onednn, gradients=mkl``."""
        return ", ".join(f"{name}={value}" for name, value in asdict(self).items())


_current = [Kernels()]  # a list, so that compiled code sees a change


def current_kernels() -> Kernels:
    """The kernels of this process."""
    return _current[0]


def use_kernels(kernels: Kernels) -> None:
    """Set the kernels of this process."""
    _current[0] = kernels


@contextmanager
def using_kernels(kernels: Kernels) -> Iterator[None]:
    """A context with other kernels."""
    before = current_kernels()
    use_kernels(kernels)
    try:
        yield
    finally:
        use_kernels(before)


def parse_kernels(text: str, *, name: str) -> dict[str, str]:
    """The operations that a text fixes, with their kernels; the others are to be measured.

    >>> parse_kernels("products=mkl, attention=fused", name="run.kernels")
    {'products': 'mkl', 'attention': 'fused'}

    Args:
        text: ``auto`` or empty: none; ``default``: all; or ``operation=kernel, ...``.
        name: name of the key or variable, for messages.

    Raises:
        UserError: an operation or a kernel is unknown.
    """
    if text.strip() in ("", AUTO):
        return {}
    if text.strip() == DEFAULT:
        return asdict(Kernels())
    fixed = {}
    for part in text.replace(",", " ").split():
        operation, equals, kernel = part.partition("=")
        if not equals:
            raise UserError(
                f"{name} {text!r}: must be {AUTO}, {DEFAULT}, or a kernel per operation, such as "
                f"'{fields(Kernels)[0].name}=mkl, attention=fused'"
            )
        known = {**CHOICES, **GPU_CHOICES}
        check_name(f"{name}: operation", operation, known)
        check_name(f"{name}: kernel of {operation}", kernel, known[operation])
        fixed[operation] = kernel
    return fixed
