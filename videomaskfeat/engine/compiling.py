"""What of a training step torch.compile sees, and with which options.

With one process, network and loss are one function and one graph. With several, the wrapper of the ranks must
stay outside: its bookkeeping cannot be traced. Then the network inside it is compiled, and the loss is not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from videomaskfeat.engine import distributed
from videomaskfeat.errors import UserError

GRAPHS = "reduce-overhead"
"""The mode of torch.compile that records CUDA graphs."""


def check_compile_mode(config: Any, device: torch.device, *, obstacle: str = "") -> None:
    """Refuse CUDA graphs where they cannot work.

    Args:
        config: config of a training.
        device: device of this process.
        obstacle: what in the kind of training prevents them, for the message; empty: nothing.

    Raises:
        UserError: names the key to change.
    """
    run = config.run
    if run.compile_mode != GRAPHS:
        return
    key = f"run.compile_mode={GRAPHS}"
    if not run.compile:
        raise UserError(f"{key} has no effect without run.compile=true; set it")
    if obstacle:
        raise UserError(f"{key}: {obstacle}; leave it at default")
    if device.type != "cuda":
        raise UserError(f"{key} records CUDA graphs, and run.device is {device.type}; leave it at default")
    if distributed.world_size() > 1:
        raise UserError(
            f"{key} with {distributed.world_size()} processes ({run.parallel}): CUDA graphs work "
            "with one process only; leave it at default"
        )
    if config.optim.accumulate > 1:
        raise UserError(
            f"{key} with optim.accumulate={config.optim.accumulate}: the graph of the next micro-batch would "
            "overwrite the gradients of the one before; use optim.accumulate=1 (a smaller optim.batch_size, "
            "or run.memory_gb to recompute activations), or leave it at default"
        )


def compiled_mode(run: Any) -> str:
    """The mode with which network and loss are compiled as one function; empty if they are not."""
    return run.compile_mode if run.compile and distributed.world_size() == 1 else ""


def compile_network(
    run: Any, network: nn.Module, sharded: list[nn.Module], *, backend: str = "inductor"
) -> None:
    """Compile the network of several processes in place, before it is wrapped.

    Args:
        run: section ``run`` of the config.
        network: the network, which DDP wraps as a whole.
        sharded: the parts that are sharded one by one instead; empty with DDP. Their weights are gathered
            outside the compiled code.
        backend: backend of torch.compile.
    """
    if run.compile and distributed.world_size() > 1:
        modules = sharded or [network]
        # Blocks share the code of their class. torch compiles 8 forms of one code and runs others uncompiled.
        config = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, len(modules) + 1)
        for module in modules:
            _compile_training(module, backend)


def _compile_training(module: nn.Module, backend: str) -> None:
    """Compile a module in place in training mode; evaluations have other shapes, and are not worth it.

    Shapes are static. Otherwise blocks of one class are compiled with the sizes of their grids as symbols.
    """
    module.compile(backend=backend, dynamic=False)
    plain: Any = module._call_impl
    compiled: Any = module._compiled_call_impl

    def choose(*arguments: Any, **keywords: Any) -> Any:
        return (compiled if module.training else plain)(*arguments, **keywords)

    module._compiled_call_impl = choose


def compile_function(function: Callable[..., Any], mode: str) -> Callable[..., Any]:
    """A function of a step, compiled in a mode of torch.compile; with an empty mode the function itself."""
    if not mode:  # several processes, whose network is compiled inside its wrapper
        return function
    if mode != GRAPHS:
        return torch.compile(function)
    graphs = torch.compile(function, mode=mode)

    def replay(*arguments: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()  # the results of the last call may be overwritten
        return graphs(*arguments)

    return replay
