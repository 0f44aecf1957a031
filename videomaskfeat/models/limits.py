"""Limits of model arguments: their types and ranges, and the memory of the machine."""

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
"""Memory of training as a multiple of the weights: weights, gradients, and the two moments of AdamW."""

_ANY = -math.inf  # the model itself checks for numbers that are too small
_BLOCKS = (
    "depth",
    "blocks",
    "head_depth",
    "decoder_depth",
    "predictor_depth",
    "layers",
    "widen_at",
    "q_pool_at",
)
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
    "norm_eps": (0, 1),
    "linear_std": (0, 1e3),
    "head_scale": (-1e6, 1e6),
    "pool_kernel": (1, 31),
    "cube_padding": (0, 1024),
}
"""Minimum and maximum of model and tokenizer arguments, far beyond any published model. The memory that the
arguments need together is compared with the machine's."""

_TENSOR_FACTORIES = frozenset(
    [torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.eye, torch.arange]
)


def argument_defaults(build: type) -> dict[str, Any]:
    """Defaults of the keyword arguments of a class, and of its parents if it has ``**kwargs``."""
    defaults: dict[str, Any] = {}
    for function in _constructors(build):
        parameters = inspect.signature(function).parameters.values()
        own = {one.name: one.default for one in parameters if one.kind is one.KEYWORD_ONLY}
        defaults = {**own, **defaults}
    return defaults


def _constructors(build: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """A function, or the constructor of a class, then those of its parents that receive ``**kwargs``."""
    for cls in inspect.getmro(build) if inspect.isclass(build) else (build,):
        function = vars(cls).get("__init__") if inspect.isclass(cls) else cls
        if function is None:
            continue
        yield function
        if inspect.getfullargspec(function).varkw is None:
            return


def checked_arguments(build: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Convert arguments to the types of a constructor, lists to tuples.

    Raises:
        UserError: an argument has the wrong type, or is outside :data:`LIMITS`.
    """
    types: dict[str, Any] = {}
    for function in _constructors(build):
        types = {**get_type_hints(function), **types}
    return {
        name: conform(value, types.get(name, Any), name, limits=LIMITS) for name, value in arguments.items()
    }


def check_arguments(
    where: str,
    build: Callable[..., Any],
    arguments: Mapping[str, Any],
    *,
    name: str = "",
    supplied: Collection[str] = (),
) -> dict[str, Any]:
    """Check the arguments of a constructor: unknown, missing, of a wrong type, or out of range.

    Args:
        where: config key of the arguments.
        build: the constructor.
        arguments: arguments from the config.
        name: name of ``build`` in the config, if any.
        supplied: names of arguments that the caller adds and a config must not set.

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
    """Build a module with checked arguments; ``created_as`` of the result is (name, arguments).

    Args:
        build: its class.
        what, times: see :func:`build_within_memory`.
        name: first entry of ``created_as``.
        arguments: arguments that differ from the defaults of the class.

    Raises:
        UserError: an argument is unknown, has a wrong type or is out of range, or memory is insufficient.
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
        raise UserError(f"{what}: an argument has the wrong type: {error}") from error
    module.created_as = (name, checked)  # type: ignore[assignment]
    return module


def build_within_memory(build: Callable[[], T], what: str, *, times: int = TRAINED) -> T:
    """Call ``build`` unless its result needs more memory than the machine has.

    It is first built on torch's "meta" device, which needs no memory and draws no random numbers.

    Args:
        build: creates a module.
        what: name of the module, for error messages.
        times: required memory as a multiple of the module's tensors; :data:`TRAINED` for training.

    Raises:
        UserError: names the required memory and the machine's.
    """
    memory = machine_memory()
    purpose = " for training (weights, gradients and the two moments of AdamW)" if times == TRAINED else ""
    remedy = "reduce its arguments, or use a machine with more memory"
    try:
        with torch.device("meta"), _SizeLimit(math.inf if memory is None else memory / times):
            planned = build()
    except _TooLarge as error:
        raise UserError(
            f"{what} needs at least {_format_size(error.args[0] * times)}{purpose}, but this machine has "
            f"{_format_size(memory or 0)}; {remedy}"
        ) from None
    except (RuntimeError, OverflowError, TypeError) as error:  # a size beyond 64 bits
        if not any(word in str(error).lower() for word in _SIZE_ERRORS):
            raise
        raise UserError(f"{what} is too large for any machine; {remedy}") from error
    return planned if torch.get_default_device().type == "meta" else build()


_SIZE_ERRORS = ("overflow", "negative dimension", "too large", "storage size", "too big")


class _TooLarge(Exception):
    """The size in bytes."""


class _SizeLimit(TorchFunctionMode):
    """Sums the bytes of new tensors, and raises :class:`_TooLarge` above a limit."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit
        self.size = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _TENSOR_FACTORIES:
            self.size += result.numel() * result.element_size()
            if self.size > self.limit:
                raise _TooLarge(self.size)
        return result


def _format_size(size: float) -> str:
    for unit, factor in (("TB", 1e12), ("GB", 1e9)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size / 1e6:.3g} MB"


def check_positive(**numbers: int) -> None:
    """Raise UserError for the first number below 1, by name."""
    for name, number in numbers.items():
        if number < 1:
            raise UserError(f"{name} {number} must be positive")


def check_transformer(depth: int, width: int, heads: int, *, prefix: str = "") -> None:
    """Raise UserError unless all are positive and the heads divide the width; ``prefix`` of their names."""
    if depth < 1 or width < 1 or heads < 1 or width % heads:
        raise UserError(
            f"{prefix}depth {depth}, {prefix}width {width}, {prefix}heads {heads}: all must be positive, and "
            f"{prefix}heads must divide {prefix}width"
        )
