"""Loads weights into models: our own files and those of other projects.

Names and shapes of other projects are converted by :mod:`videomaskfeat.interop.other_projects`.

Loading reports the use of every weight, and refuses every mismatch that is not allowed by name.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from videomaskfeat import import_object
from videomaskfeat.errors import UserError
from videomaskfeat.grid import TokenGrid
from videomaskfeat.models.encoder_base import Encoder, as_triple
from videomaskfeat.models.inflation import Inflate, inflate_images
from videomaskfeat.models.load_report import LoadReport, list_names
from videomaskfeat.models.outlines import other_encoder
from videomaskfeat.models.positions import CLASS, FIXED, SPACE, TABLE, TIME, fixed_positions, joint_positions
from videomaskfeat.models.weights import Weights, created_as, is_own, read_state, read_weights, weights_file
from videomaskfeat.models.zoo import MODELS, arguments_of, create_unset

logger = logging.getLogger(__name__)

CONVERT = "videomaskfeat.interop.other_projects:convert"
# Weights that only a classifier or detector has, that only pre-training has, and that depend on the classes.
_HEAD_ONLY = ("head.*", "norm.*")
_PRETRAINING_ONLY = ("mask_token", "pred_head.*", "decoder_*", "hogs.*")
_CLASS_DEPENDENT = ("head.projection.*",)
_HEADS = ("heads", "decoder_heads")  # arguments without a trace in the shapes of weights
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def load_model(path: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> Encoder:
    """Build the model described in a file of :func:`save_model`, and load its weights.

    The file may also be a checkpoint of another project whose format is recognized; see "Weights of other
    projects" in the documentation.

    Args:
        path: a weights file, local or remote, or a folder of transformers or timm.
        device: device of the model.

    Returns:
        The model, in evaluation mode.

    Raises:
        UserError: the file is missing or damaged, has no model name or has invalid arguments, or the weights
            do not fit.
    """
    text = weights_file(path)
    if not is_own(text):
        converted = convert_weights(text)
        if converted is not None:
            model, _ = build_converted(text, converted)
            return model.to(device)
        if not text.endswith(".safetensors"):
            raise UserError(
                f"{text}: neither weights of this package nor a known format of another project; for a "
                "checkpoint of PySlowFast, use load_slowfast with its YAML; for a state dict, create the "
                "model with create_model and use load_weights"
            )
    name, arguments = created_as(text)
    try:
        model = create_unset(name, **arguments)
    except UserError as error:
        raise UserError(f"{text}: cannot build the model described in its metadata: {error}") from error
    load_into(model, read_state(text), source=text)
    return model.to(device).eval()


def build_converted(path: str, converted: Any) -> tuple[Encoder, LoadReport]:
    """Build the model of converted weights (:class:`~videomaskfeat.interop.formats.Converted`).

    Returns:
        The model, in evaluation mode, and the use of every weight.

    Raises:
        UserError: the weights do not fit the model that their shapes describe.
    """
    try:
        model = create_unset(converted.name, **converted.arguments)
        report = load_into(model, converted.state, allow_unused=converted.unused, source=path)
    except UserError as error:
        raise UserError(
            f"{path}: recognized as {converted.title}, but not a model of this package: {error}"
        ) from error
    return model.eval(), dataclasses.replace(report, format=converted.title)


def convert_weights(path: str, *, key: str = "", format: str = "auto", **choices: Any) -> Any:
    """Convert a weights file of another project; see :func:`videomaskfeat.interop.other_projects.convert`.

    Args:
        path, key: as for :func:`read_weights`.
        format, choices: as for ``convert``.

    Returns:
        The :class:`~videomaskfeat.interop.formats.Converted`; None if no format is recognized.

    Raises:
        UserError: as both.
    """
    path = weights_file(path)
    weights = read_weights(path, key=key)
    return import_object(CONVERT)(
        path, weights.state, key=weights.key, content=weights.content, format=format, choices=choices
    )


def load_weights(
    model: nn.Module, path: str | os.PathLike[str], *, key: str = "", **options: Any
) -> LoadReport:
    """Read the weights in a file, ours or of another project, and load them into a model, in place.

    Args:
        path, key: see :func:`read_weights`, also for the errors.
        options: arguments of :func:`load_into`, except ``source``.

    Returns:
        The report of :func:`load_into`, with the keys and the format.
    """
    return _load(model, _read_for(model, path, key), **options)


@dataclass(frozen=True)
class _Read:
    """Weights in our names, and the model that they are from: name and arguments, or None if unknown."""

    path: str
    weights: Weights
    created_as: tuple[str, dict[str, Any]] | None
    converted: Any = None


def _read_for(model: nn.Module, path: str | os.PathLike[str], key: str) -> _Read:
    """Read weights for a model; those of another project are converted.

    Raises:
        UserError: as :func:`read_weights`, or the other model has another number of heads.
    """
    text = weights_file(path)
    weights = read_weights(text, key=key)
    if is_own(text):
        own = created_as(text)
        return _Read(text, weights, own if own[0] in MODELS else None)
    name, arguments = getattr(model, "created_as", ("", {}))
    arguments = arguments_of(name, arguments) if name in MODELS else {}
    converted = import_object(CONVERT)(
        text,
        weights.state,
        key=weights.key,
        content=weights.content,
        choices={heads: arguments.get(heads) for heads in _HEADS},
    )
    if converted is None:
        return _Read(text, weights, None)
    for heads in _HEADS:
        mine, theirs = arguments.get(heads), converted.arguments.get(heads)
        if mine is not None and theirs not in (None, mine):
            raise UserError(
                f"{text}: {converted.title} with {theirs} {heads.replace('_', ' ')}, but the model has "
                f"{mine}; set model.arguments.{heads}={theirs}"
            )
    weights = dataclasses.replace(weights, state=converted.state)
    return _Read(text, weights, (converted.name, converted.arguments), converted)


def _load(model: nn.Module, read: _Read, **options: Any) -> LoadReport:
    """Load weights that were read from a file."""
    state = _adapt_positions(model, read)
    converted = read.converted
    if converted is None:
        report = load_into(model, state, source=read.path, **options)
        return dataclasses.replace(report, key=read.weights.key, beside=read.weights.beside)
    options["allow_unused"] = (*options.get("allow_unused", ()), *converted.unused)
    try:
        report = load_into(model, state, source=read.path, **options)
    except UserError as error:
        arguments = ", ".join(f"{name} {value}" for name, value in converted.arguments.items())
        raise UserError(
            f"{error}. The file is {converted.title}: model {converted.name} with {arguments}; "
            "`videomaskfeat import-weights` writes a config with them"
        ) from error
    clip = converted.recipe.clip
    return dataclasses.replace(
        report,
        key=read.weights.key,
        beside=read.weights.beside,
        format=converted.title,
        normalization=(clip.mean, clip.std),
    )


def _adapt_positions(model: nn.Module, read: _Read) -> dict[str, Tensor]:
    """The weights with absolute positions in the form and for the grid of the model, if both are known.

    Fixed positions become the initial values of learned ones: fine-tuning learns the positions that MAE
    pre-training fixes, as MAE's code does. A learned table of another grid is interpolated.

    Raises:
        UserError: the positions of VideoMAE in a model with other fixed or separable positions.
    """
    state = read.weights.state
    if not isinstance(model, Encoder) or read.created_as is None:
        return state
    arguments = arguments_of(*read.created_as)
    kind = arguments.get("absolute_positions", "none")
    if kind == "sincos_1d" and (model.pos_embed is None and model.fixed_positions != kind):
        raise UserError(
            f"{read.path}: its fixed positions are those of VideoMAE (sincos_1d), which the model cannot "
            "take; set model.arguments.absolute_positions=sincos_1d, or joint to learn them"
        )
    learned = model.pos_embed is not None or model.pos_embed_spatial is not None
    if not learned or kind not in (*FIXED, "joint"):
        return state
    frames, height, width = arguments["clip_size"]
    stride = as_triple(arguments["cube_stride"])
    grid = TokenGrid.from_clip(frames=frames, height=height, width=width, stride=stride)
    prefix = int(arguments["class_token"])
    if kind == "joint":
        return _resize_joint(model, state, grid, prefix)
    device = torch.device("cpu")
    table = fixed_positions(kind, arguments["width"], grid, prefix=prefix, device=device)  # [1, P+N, D]
    if model.pos_embed is not None:
        return _resize_joint(model, {**state, TABLE: table}, grid, prefix)
    places = table[:, prefix:].unflatten(1, (grid.t, -1))  # [1, t, h*w, D]
    # Every channel depends either on time or on space, so the positions are the sum of two tables.
    tables = {SPACE: places[:, 0], TIME: places[:, :, 0] - places[:, :1, 0]}
    if prefix:
        tables[CLASS] = table[:, :1]
    return {**tables, **state}


def _resize_joint(
    model: Encoder, state: dict[str, Tensor], grid: TokenGrid, prefix: int
) -> dict[str, Tensor]:
    """Interpolate a joint table of a known grid of several time steps to the model's grid."""
    table, native = state.get(TABLE), model.native_grid
    if table is None or native == grid or grid.t == 1 or prefix != model.prefix or model.pos_embed is None:
        return state
    if table.shape[1] != prefix + grid.size or grid.size == native.size:
        return state  # of a length that fits, the grid may only be a guess
    first, places = table.split([prefix, grid.size], dim=1)
    resized = joint_positions(places.float(), grid, native).to(table.dtype)
    return {**state, TABLE: torch.cat([first, resized], dim=1)}


def load_initial(model: nn.Module, path: str | os.PathLike[str]) -> LoadReport:
    """Load initial weights; those outside the encoder may be missing, unused or of another shape.

    A line of the log has the report.

    Raises:
        UserError: as :func:`load_weights`.
    """
    heads = (*_HEAD_ONLY, *_PRETRAINING_ONLY)
    report = load_weights(model, path, allow_missing=heads, allow_unused=heads, allow_reset=heads)
    logger.info("%s: %s", os.fspath(path), report)
    return report


def load_pretrained(model: nn.Module, keys: Any, *, leave_out: Iterable[str] = ()) -> LoadReport:
    """Load the weights from which a classifier or detector starts; heads may be missing or unused.

    Args:
        model: changed in place.
        keys: has ``weights`` (the file), ``weights_key``, ``allow_missing``, ``allow_unused``, ``inflate``.
        leave_out: names or patterns in the file that are not loaded.

    Raises:
        UserError: as :func:`load_weights`.
    """
    return load_weights(
        model,
        keys.weights,
        key=keys.weights_key,
        leave_out=leave_out,
        allow_missing=(*_HEAD_ONLY, *keys.allow_missing),
        allow_unused=(*_PRETRAINING_ONLY, *keys.allow_unused),
        allow_reset=_CLASS_DEPENDENT,
        inflate=keys.inflate,
    )


def load_student(student: nn.Module, encoder: nn.Module, keys: Any) -> LoadReport:
    """Load the weights from which a pre-training starts; the encoder must be complete.

    A file with the names of the whole student, such as a checkpoint of the same method, is loaded into the
    student, any other one into its encoder. Weights outside the encoder may be missing, unused, or of another
    shape; they then keep their initial values.

    Args:
        student: changed in place.
        encoder: the student, or a module in it.
        keys: as for :func:`load_pretrained`.

    Raises:
        UserError: as :func:`load_weights`.
    """
    read, model = _read_for(encoder, keys.weights, keys.weights_key), encoder
    weights = read.weights
    heads: Collection[str] = (*_HEAD_ONLY, *_PRETRAINING_ONLY)
    learned = without_prefix(encoder.state_dict(), weights.state)[0].keys() & {TABLE, SPACE, TIME}
    if learned and getattr(encoder, "fixed_positions", None):
        raise UserError(
            f"{keys.weights} has learned positions ({list_names(sorted(learned))}), but the model has fixed "
            "ones; set model.initialization=slowfast, or model.arguments.absolute_positions to those of the "
            "saved model"
        )
    if student is not encoder:
        prefix = next(f"{name}." for name, module in student.named_modules() if module is encoder)
        state, _ = without_prefix(student.state_dict(), weights.state)
        if any(name.startswith(prefix) for name in state):
            model = student
            heads = {name for name in (*state, *student.state_dict()) if not name.startswith(prefix)}
    return _load(
        model,
        read,
        allow_missing=(*heads, *keys.allow_missing),
        allow_unused=(*heads, *keys.allow_unused),
        allow_reset=heads,
        inflate=keys.inflate,
    )


def load_into(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    allow_missing: Iterable[str] = (),
    allow_unused: Iterable[str] = (),
    allow_reset: Iterable[str] = (),
    leave_out: Iterable[str] = (),
    inflate: Inflate = "repeated",
    source: str = "the state dict",
) -> LoadReport:
    """Load weights into a model; every mismatch must be allowed by name.

    A common prefix of all names, such as ``module.``, is removed if more names then match. Position tables of
    another clip size are interpolated. Weights of an image model are inflated for a clip model. If an error
    is raised, nothing is loaded.

    Args:
        model: changed in place.
        state: tensors by name.
        allow_missing: names or patterns (``head.*``) that ``state`` may lack.
        allow_unused: names or patterns that the model may lack.
        allow_reset: names or patterns that may have another shape in ``state``: the model keeps its initial
            values, for example of a layer for other classes.
        leave_out: names or patterns in ``state`` that are neither used nor reported.
        inflate: "repeated" or "centered"; see :func:`~videomaskfeat.models.inflation.inflate_images`.
        source: name of ``state`` in error messages, such as its path.

    Raises:
        UserError: a name is missing or unused without permission, a shape differs, a value is not finite, or
            nothing would be loaded.
    """
    own = model.state_dict()
    state, prefix = without_prefix(own, state)
    state = {name: value for name, value in state.items() if not _matches(name, tuple(leave_out))}
    from_image: tuple[str, ...] = ()
    if isinstance(model, Encoder):
        state, from_image = inflate_images(own, model.native_grid, state, inflate)
    missing = tuple(name for name in own if name not in state)
    unused = tuple(name for name in state if name not in own)
    try:
        _check_names("lacks", "that the model has", missing, allow_missing, "allow_missing")
        _check_names("has", "that the model does not have", unused, allow_unused, "allow_unused")
        fitted, resized, reset = _fit(model, own, state, tuple(allow_reset))
    except _Mismatch as mismatch:
        # Weights of another encoder differ in hundreds of names: naming the encoder is more useful.
        problem, remedy = mismatch.args
        other = other_encoder(model, state)
        raise UserError(f"{source} {problem}" + (f"; {remedy}" if other is None else f": {other}")) from None
    if own and not fitted:
        raise UserError(
            f"{source}: none of its {len(state)} weights ({list_names(state)}) is one of the model's "
            f"{len(own)} ({list_names(own)}), so nothing would be loaded; use weights of this model"
        )
    model.load_state_dict(fitted, strict=False)
    changed = {*resized, *from_image}
    return LoadReport(
        loaded=tuple(name for name in own if name in fitted and name not in changed),
        resized=tuple(name for name in resized if name not in from_image),
        new=tuple(name for name in own if name not in fitted),
        unused=unused,
        reset=reset,
        inflated=from_image,
        inflation=inflate if from_image else "",
        prefix=prefix,
    )


def without_prefix(own: Collection[str], state: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], str]:
    """Remove the common prefix of all names if more names then match; returns weights and prefix.

    Args:
        own: names in the model.
        state: tensors by name, for example with the prefix ``module._orig_mod.`` or ``student.backbone.``.
    """
    shared = os.path.commonprefix(list(state))  # noqa: RUF071, cut at a dot below
    best, prefix = sum(name in own for name in state), ""
    for end in itertools.accumulate(len(level) + 1 for level in shared.split(".")[:-1]):
        fitting = sum(name[end:] in own for name in state)
        if fitting > best:
            best, prefix = fitting, shared[:end]
    return {name[len(prefix) :]: value for name, value in state.items()} if prefix else state, prefix


class _Mismatch(Exception):
    """A mismatch of weights and model: problem and remedy."""


def _check_names(verb: str, which: str, names: Iterable[str], allowed: Iterable[str], argument: str) -> None:
    refused = [name for name in names if not _matches(name, tuple(allowed))]
    if refused:
        raise _Mismatch(
            f"{verb} {len(refused)} weights {which} ({list_names(refused)})",
            f"build the model that was saved, or list them in {argument}",
        )


def _fit(
    model: nn.Module, own: Mapping[str, Tensor], state: Mapping[str, Tensor], allow_reset: tuple[str, ...]
) -> tuple[dict[str, Tensor], tuple[str, ...], tuple[str, ...]]:
    """The weights in the model's shapes, the names of the resized ones, and of those to reset."""
    fitted, resized, reset = {}, [], []
    for name, mine in own.items():
        if name not in state:
            continue
        value = state[name]
        if value.shape != mine.shape and _matches(name, allow_reset):
            reset.append(name)
            continue
        _check_values(name, value, mine)
        if value.shape != mine.shape:
            value = _resize(model, name, value, mine.shape)
            resized.append(name)
        fitted[name] = value
    return fitted, tuple(resized), tuple(reset)


def _check_values(name: str, value: Tensor, mine: Tensor) -> None:
    """Check that a weight has plain, finite numbers of the model's kind."""
    remedy = "the file is damaged or from a failed training run: use another checkpoint"
    kind = str(value.dtype).removeprefix("torch.")
    plain = value.layout is torch.strided and not value.is_quantized and not value.is_meta
    fits = value.dtype in _FLOATS if mine.dtype.is_floating_point else value.dtype == mine.dtype
    if not plain or not fits:
        actual = kind if plain else f"{kind} that is sparse, quantized or without values"
        needed = str(mine.dtype).removeprefix("torch.")
        raise _Mismatch(f"has {name} as {actual}, but the model needs plain {needed}", remedy)
    if value.dtype.is_floating_point and not bool(value.isfinite().all()):
        raise _Mismatch(f"has values in {name} that are not finite (NaN or infinity)", remedy)


def _resize(model: nn.Module, name: str, value: Tensor, shape: torch.Size) -> Tensor:
    """Resize a position table to the model's shape; refuse other weights and unknown grids."""
    differ = [has != needs for has, needs in zip(value.shape, shape, strict=False)]
    problem = f"has {name} in shape {tuple(value.shape)}, but the model needs {tuple(shape)}"
    same_kind = value.ndim == len(shape) and value.numel() and sum(differ) == 1
    if not (same_kind and isinstance(model, Encoder) and model.is_table(name)):
        raise _Mismatch(problem, "build the model with the arguments of the saved model")
    table = model.resize_table(name, value)
    if table is None or table.shape != shape:
        raise _Mismatch(
            f"{problem}: the original grid of the table is unknown",
            "build the model with the clip_size of the saved model; it accepts clips of other sizes",
        )
    return table


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
