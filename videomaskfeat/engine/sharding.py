"""Networks whose weights, gradients and optimizer states are divided over the ranks (FSDP2 of torch).

What follows a weight element by element is sharded as the weight: its gradient, the moments of the optimizer,
the moving average, teachers. Everything else is replicated: buffers, centers, codebooks and counters are
computed from statistics of all ranks, and are equal on every rank.
"""

from __future__ import annotations

import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from videomaskfeat.engine import distributed
from videomaskfeat.engine.distributed import SHARD
from videomaskfeat.errors import UserError

_CONTAINERS = (nn.ModuleList, nn.Sequential)
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def build_mesh(kind: str, device: torch.device) -> DeviceMesh:
    """The ranks as a mesh: ``fsdp`` divides over all of them, ``hybrid`` over those of each machine.

    Args:
        kind: fsdp or hybrid.
        device: device of this rank.

    Raises:
        UserError: hybrid, and the machines do not have equal numbers of ranks.
    """
    ranks = distributed.world_size()
    if kind == "fsdp":
        return init_device_mesh(device.type, (ranks,), mesh_dim_names=(SHARD,))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    counts = sorted(set(distributed.gather_objects(here)))
    if len(counts) > 1 or ranks % here:
        raise UserError(
            f"run.parallel=hybrid with {ranks} ranks in groups of {' and '.join(map(str, counts))} per "
            "machine: every machine must have the same number; start torchrun with the same "
            "--nproc-per-node everywhere, or use run.parallel=fsdp"
        )
    return init_device_mesh(device.type, (ranks // here, here), mesh_dim_names=("replicate", SHARD))


def shard(module: nn.Module, mesh: DeviceMesh) -> None:
    """Divide the weights of a network over the ranks, in place; all ranks get those of rank 0.

    Blocks are gathered one by one for their forward and backward pass, everything else (embeddings, norms,
    heads) once per step. The network must then be called as a whole; parts of it may be called inside
    :func:`~videomaskfeat.engine.distributed.gathered`.

    Args:
        module: the network, on its device.
        mesh: from :func:`build_mesh`.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        dist.broadcast(tensor.detach(), src=0)
    # Weights are gathered in float32, and autocast converts them as it does without sharding, since norms and
    # pooling take no bfloat16 weights on a CPU. Gradients are summed in float32.
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    # The warning is of in-place changes of an output that is a view; no network here makes any.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    for block in blocks_of(module):
        # Not the default, which keeps the weights of a block that is called without its network.
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    fully_shard(module, mesh=mesh, mp_policy=policy)


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The elements of lists and sequences that consist of several modules, the inner ones first."""
    blocks = [
        child
        for container in module.modules()
        if isinstance(container, _CONTAINERS)
        for child in container.children()
        if not isinstance(child, _CONTAINERS) and any(True for _ in child.children())
    ]
    return list(dict.fromkeys(reversed(blocks)))


@contextmanager
def whole(*modules: nn.Module) -> Iterator[None]:
    """A context in which sharded networks are ordinary ones with all of their weights on every rank.

    There each rank may call, save and change them without the others. Changes are lost at the end of the
    context. All ranks must enter it. Networks that are not sharded are not changed.
    """
    undo: list[Callable[[], None]] = []
    try:
        for module in modules:
            if isinstance(module, FSDPModule):
                for part in module.modules():
                    if isinstance(part, FSDPModule):
                        part.reshard()
                for part in module.modules():
                    undo.append(_make_whole(part))
        yield
    finally:
        for restore in reversed(undo):
            restore()


def _make_whole(module: nn.Module) -> Callable[[], None]:
    """Make one module an ordinary one, without its children; returns the function that undoes it."""
    kind = type(module)
    hooks = {name: getattr(module, name) for name in _HOOKS}
    sharded = {name: one for name, one in module._parameters.items() if isinstance(one, DTensor)}
    for name in _HOOKS:
        setattr(module, name, OrderedDict())
    if isinstance(module, FSDPModule):
        # fully_shard made a class that derives from FSDPModule and from the class of the network.
        cast(Any, module).__class__ = next(one for one in kind.__bases__ if one is not FSDPModule)
    for name, parameter in sharded.items():
        full = cast(Any, parameter).full_tensor().detach()
        module._parameters[name] = nn.Parameter(full, requires_grad=cast(Any, parameter).requires_grad)

    def undo() -> None:
        cast(Any, module).__class__ = kind
        for name, value in hooks.items():
            setattr(module, name, value)
        module._parameters.update(cast(Any, sharded))

    return undo


def shard_like(value: Tensor, example: Tensor) -> Tensor:
    """This rank's part of a whole tensor that every rank has, sharded as the example.

    Args:
        value: the whole tensor; one that is sharded already is returned.
        example: if it is not sharded, the value is returned.
    """
    if not isinstance(example, DTensor) or isinstance(value, DTensor):
        return value
    return distribute_tensor(
        value.to(example.device), example.device_mesh, example.placements, src_data_rank=None
    )


def shard_all(
    content: Any,
    example: Callable[[tuple[Any, ...], torch.Size], Tensor | None],
    path: tuple[Any, ...] = (),
) -> Any:
    """A checkpoint with this rank's parts of the tensors that have an example; see :func:`shard_like`.

    Args:
        content: the checkpoint, or what is at the path in it.
        example: see :data:`~videomaskfeat.engine.checkpoint.Example`.
        path: keys from the root of the checkpoint to the content.
    """
    if isinstance(content, Tensor):
        like = example(path, content.shape)
        return content if like is None else shard_like(content, like)
    if isinstance(content, Mapping):
        return {key: shard_all(value, example, (*path, key)) for key, value in content.items()}
    return content
