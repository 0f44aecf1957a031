"""Tensors without data ("meta") in place of those of a GPU: to read one is an error, and copies are noted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE: Any = torch.device("meta")


def act_as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let autocast and fused optimizers, which torch refuses without data, do as on other devices."""
    known = optimizer._get_fused_kernels_supported_devices
    monkeypatch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: [*known(), "meta"])
    for function in ("autocast", "is_autocast_enabled", "get_autocast_dtype"):
        real: Any = getattr(torch, function)

        def as_on_cpu(kind: str, *arguments: Any, _real: Any = real, **keywords: Any) -> Any:
            return _real("cpu" if kind == "meta" else kind, *arguments, **keywords)

        monkeypatch.setattr(torch, function, as_on_cpu)


class _Operations(TorchDispatchMode):
    """Notes operations that read tensors of the host for tensors of the device."""

    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self._note = note

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        result = function(*arguments, **(keywords or {}))
        tensors = [one for one in tree_leaves((arguments, keywords, result)) if isinstance(one, Tensor)]
        # A kernel gets a 0-d tensor of the host as a number, unless it is copied.
        copies = function in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        host = [one for one in tensors if not one.is_meta and (one.ndim or copies)]
        if host and any(one.is_meta for one in tensors):
            self._note(f"{function} with {list(host[0].shape)} of the host")
        return result


class _Functions(TorchFunctionMode):
    """Notes tensors made from numbers of the host, since torch copies nothing if they have no data."""

    _MAKE = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)

    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self._note = note

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        result = function(*arguments, **(keywords or {}))
        if function in self._MAKE and result.is_meta:
            self._note(f"{function.__name__} with {list(result.shape)} of the host")
        return result


@contextmanager
def host_waits() -> Iterator[list[str]]:
    """Descriptions of the operations in the context for which the host would wait for a GPU."""
    noted: list[str] = []
    with _Operations(noted.append), _Functions(noted.append):
        yield noted
