"""Limits of models: types and ranges of their arguments, and the memory of the machine."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar, get_type_hints

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from videomaskfeat.errors import UserError, check_name
from videomaskfeat.machine import machine_memory
from videomaskfeat.values import Limits, conform

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)

TRAINED = 4
"""Memory of a training as a multiple of the weights: weights, gradients, and the two moments of AdamW."""

_ANY = -math.inf  # the model itself refuses numbers that are too small
_BLOCKS = ("depth", "blocks", "decoder_depth", "predictor_depth", "layers", "widen_at", "q_pool_at")
_WIDTHS = (
    "width",
    "decoder_width",
    "code_width",
    "hidden_width",
    "bottleneck",
    "projection",
    "predictor_width",
)
_SHAPES = ("q_pool_stride", "kv_stride", "cube_kernel", "cube_stride", "in_channels", "channels")
LIMITS: Limits = {
    **dict.fromkeys(_BLOCKS, (_ANY, 1000)),
    **dict.fromkeys((*_WIDTHS, "clip_size"), (_ANY, 2**17)),
    **dict.fromkeys(("heads", "decoder_heads", "predictor_heads"), (_ANY, 2**12)),
    **dict.fromkeys(("classes", "values_per_token", "vocabulary"), (_ANY, 10**8)),
    **dict.fromkeys(("stride", "cell", "output_stride"), (_ANY, 1024)),
    **dict.fromkeys(_SHAPES, (1, 1024)),
    **dict.fromkeys(("layer_scale", "mean"), (-1e3, 1e3)),
    "prototypes": (_ANY, 10**7),
    "bins": (_ANY, 256),
    "mlp_ratio": (0.01, 100),
    "drop_path": (0, 1),
    "linear_std": (0, 1e3),
    "head_scale": (-1e6, 1e6),
    "pool_kernel": (1, 31),
    "cube_padding": (0, 1024),
}
"""Smallest and largest numbers in the arguments of models and tokenizers; each is far beyond any published
one. The memory that they need together is compared with the machine's."""

_MAKERS = frozenset(
    [torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.eye, torch.arange]
)


def argument_types(build: Callable[..., Any]) -> dict[str, Any]:
    """Types of the keyword arguments of a class and, if it passes the rest on, of its parents."""
    types: dict[str, Any] = {}
    for function, _ in _constructors(build):
        hints = get_type_hints(function)
        types = {
            **{name: hints[name] for name in inspect.signature(function).parameters if name in hints},
            **types,
        }
    return types


def argument_defaults(build: type) -> dict[str, Any]:
    """Defaults of the keyword arguments of a class and, if it passes the rest on, of its parents."""
    defaults: dict[str, Any] = {}
    for _, parameters in _constructors(build):
        own = {found.name: found.default for found in parameters if found.kind is found.KEYWORD_ONLY}
        defaults = {**own, **defaults}
    return defaults


def _constructors(
    build: Callable[..., Any],
) -> Iterator[tuple[Callable[..., Any], list[inspect.Parameter]]]:
    """The constructor of a class, or a function, then those of parents that get the remaining arguments."""
    for cls in inspect.getmro(build) if inspect.isclass(build) else (build,):
        function = vars(cls).get("__init__") if inspect.isclass(cls) else cls
        if function is None:
            continue
        parameters = list(inspect.signature(function).parameters.values())
        yield function, parameters
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            return


def checked_arguments(build: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments in the types of a class, lists as tuples.

    Raises:
        UserError: one of another type, or outside :data:`LIMITS`.
    """
    kinds = argument_types(build)
    return {
        name: conform(value, kinds.get(name, Any), name, limits=LIMITS) for name, value in arguments.items()
    }


def check_arguments(
    where: str,
    build: Callable[..., Any],
    arguments: Mapping[str, Any],
    *,
    name: str = "",
    supplied: Collection[str] = (),
) -> dict[str, Any]:
    """Refuse arguments that a constructor does not take, also by type or size, and the lack of one it needs.

    Args:
        where: config key that holds the arguments.
        build: takes them.
        arguments: given by the user.
        name: name of ``build`` in the config, if it has one.
        supplied: names of arguments that are not the user's to give.

    Returns:
        The arguments, lists as tuples.

    Raises:
        UserError: names the first wrong argument.
    """
    parameters = inspect.signature(build).parameters
    own = [key for key in parameters if key not in supplied]
    owner = f" of {name!r}" if name else ""
    for key in arguments:
        check_name(f"{where}{owner}: argument", key, own)
    for key in own:
        if parameters[key].default is inspect.Parameter.empty and key not in arguments:
            raise UserError(f"{where}{owner}: argument {key!r} is missing; set {where}.{key}")
    try:
        return checked_arguments(build, arguments)
    except UserError as error:
        raise UserError(f"{where}.{error}") from None


def build_checked(
    build: Callable[..., M], what: str, name: str, arguments: Mapping[str, Any], *, times: int = TRAINED
) -> M:
    """A module with arguments from a user, checked; its ``created_as`` holds name and arguments.

    Args:
        build: its class.
        name: kept in ``created_as``.
        arguments: what differs from the defaults of the class.
        what, times: see :func:`build_within_memory`.

    Raises:
        UserError: an unknown argument, one of a wrong type or outside its range, or too little memory.
    """
    known = argument_defaults(build)  # type: ignore[arg-type]
    for key in arguments:
        check_name(f"{what}: argument", key, known)
    try:
        checked = checked_arguments(build, arguments)
    except UserError as error:
        raise UserError(f"{what}: {error}") from None
    try:
        module = build_within_memory(functools.partial(build, **checked), what, times=times)
    except TypeError as error:
        raise UserError(f"{what}: an argument of the wrong type: {error}") from error
    module.created_as = (name, checked)  # type: ignore[assignment]
    return module


def build_within_memory(build: Callable[[], T], what: str, *, times: int = TRAINED) -> T:
    """The result of ``build``, unless it needs more memory than the machine has.

    It is built on torch's device "meta" first, which takes no memory and draws no random numbers, and then
    again, unless "meta" is the default device.

    Args:
        build: makes a module.
        what: name of the module, for the message.
        times: memory as a multiple of its tensors'; :data:`TRAINED` for what is trained.

    Raises:
        UserError: names the memory needed and that of the machine.
    """
    memory = machine_memory()
    purpose = " to be trained (weights, gradients and the two moments of AdamW)" if times == TRAINED else ""
    remedy = "make its arguments smaller, or use a machine with more memory"
    try:
        with torch.device("meta"), _Counted(math.inf if memory is None else memory / times):
            planned = build()
    except _TooLarge as error:
        raise UserError(
            f"{what} needs {_in_words(error.size * times)} or more{purpose}, and this machine has "
            f"{_in_words(memory or 0)}; {remedy}"
        ) from None
    except (RuntimeError, OverflowError, TypeError) as error:  # a size beyond 64 bits
        if not any(word in str(error).lower() for word in _SIZES):
            raise
        raise UserError(f"{what} has a size that no machine can hold; {remedy}") from error
    return planned if torch.get_default_device().type == "meta" else build()


_SIZES = ("overflow", "negative dimension", "too large", "storage size", "too big")


class _TooLarge(Exception):
    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class _Counted(TorchFunctionMode):
    """Adds up the bytes of new tensors, which have no memory yet, and raises at those beyond a limit."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit
        self.size = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in _MAKERS:
            self.size += made.numel() * made.element_size()
            if self.size > self.limit:
                raise _TooLarge(self.size)
        return made


def _in_words(size: float) -> str:
    for unit, factor in (("TB", 1e12), ("GB", 1e9)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size / 1e6:.3g} MB"
