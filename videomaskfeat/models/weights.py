"""Weights on disk: what we publish (safetensors with the model's name inside), and what others saved.

Loading reports what became of every weight, and refuses whatever does not match unless it is allowed by name.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from videomaskfeat.errors import UserError
from videomaskfeat.io import local_path
from videomaskfeat.models.encoder_base import Encoder
from videomaskfeat.models.positions import Inflate, inflate_images
from videomaskfeat.models.zoo import CLASSIFIER, MAE, MASKFEAT, MODELS, create_unset, encoder_arguments
from videomaskfeat.tensor_files import (
    PickledCode,
    read_metadata,
    read_safetensors,
    read_torch_file,
    write_safetensors,
)
from videomaskfeat.texts import parse_json, show_text

__all__ = [
    "Inflate",
    "LoadReport",
    "PickledCode",
    "Weights",
    "created_as",
    "load_into",
    "load_model",
    "load_pretrained",
    "load_weights",
    "read_metadata",
    "read_state",
    "read_weights",
    "save_weights",
    "without_prefix",
]
_INDEX = re.compile(r"\.\d+(?=\.|$)")
_BLOCK = re.compile(r"blocks\.([0-9]{1,6})\.")
_WIDTH = 100  # characters of a row
# Where others keep the weights inside their checkpoints; the first that is there is taken.
_STATE_KEYS = ("model_state", "state_dict", "model", "module")
# What pre-training weights have and a classifier or detector lacks, and the other way round.
_NEW_IN_A_CLASSIFIER = ("head.*", "norm.*")
_LEFT_FROM_PRETRAINING = ("mask_token", "pred_head.*", "decoder_*", "hogs.*")
_OTHER_CLASSES = ("head.projection.*",)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class LoadReport:
    """What became of every weight, by name.

    Attributes:
        loaded: taken as they were.
        resized: position tables that were interpolated to the model's length.
        new: the model's own initial values stay: the file lacks them, or has them in another shape.
        unused: weights in the file that the model does not have.
        reset: those of ``new`` that the file has in another shape, such as the layer for other classes.
        inflated: made of an image model's: the stem's kernel, and positions repeated over time.
        inflation: how that kernel was made, "repeated" or "centred"; empty if nothing was inflated.
        prefix: what all names in the file begin with and the model's do not, such as "module."; removed.
        key: of the weights in a checkpoint; empty if the file holds nothing else.
        beside: keys of other weights in it, which were not taken.
    """

    loaded: tuple[str, ...]
    resized: tuple[str, ...]
    new: tuple[str, ...]
    unused: tuple[str, ...]
    reset: tuple[str, ...] = ()
    inflated: tuple[str, ...] = ()
    inflation: str = ""
    prefix: str = ""
    key: str = ""
    beside: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} weights loaded"]
        if self.inflated:
            what = f"{len(self.inflated)} inflated from images, the kernel {self.inflation}"
            parts.append(f"{what} ({some(self.inflated)})")
        for kind in ("resized", "new", "unused"):
            names = getattr(self, kind)
            if names:
                parts.append(f"{len(names)} {kind} ({some(names)})")
        return ", ".join([*parts, *self._origin()])

    def table(self) -> str:
        """A row per kind: how many weights, and which, the members of lists together.

        ::

            loaded     395  blocks.*.attn.norm_k.bias (16), blocks.*.attn.norm_k.weight (16) and 27 kinds more
            resized      2  blocks.*.attn.rel_pos_h, blocks.*.attn.rel_pos_w
            new          4  head.projection.weight (other shape), norm.bias, norm.weight ...
            unused       0
        """
        rows = []
        for kind in ("loaded", "resized", "new", "unused"):
            names = getattr(self, kind)
            rows.append(f"{kind:8s} {len(names):5d}  {self._grouped(names)}".rstrip())
        if self.inflated:
            how = f"from images: the kernel {self.inflation} over the frames, positions repeated over time"
            rows.insert(1, f"inflated {len(self.inflated):5d}  {self._grouped(self.inflated)}, {how}")
        return "\n".join([*rows, *self._origin()])

    def to_dict(self) -> dict[str, list[str]]:
        """Kind -> names, for JSON."""
        kinds = ("loaded", "resized", "new", "unused", "reset", *["inflated"] * bool(self.inflated))
        origin = {"prefix": [self.prefix] * bool(self.prefix), "key": [self.key] * bool(self.beside)}
        return {kind: list(getattr(self, kind)) for kind in kinds} | {k: v for k, v in origin.items() if v}

    def _origin(self) -> list[str]:
        """Sentences on what was taken from the file, unless that goes without saying."""
        sentences = []
        if self.prefix:
            sentences.append(f"names taken without the prefix {show_text(self.prefix)!r} that all share")
        if self.beside:
            others = ", ".join(map(show_text, self.beside))
            sentences.append(
                f"weights taken from {show_text(self.key)!r}; the file also holds {others} "
                "(weights_key chooses)"
            )
        return sentences

    def _grouped(self, names: Iterable[str]) -> str:
        """The kinds of names, as many as fit a row."""
        counts = Counter(_INDEX.sub(".*", name) for name in names)
        reset = {_INDEX.sub(".*", name) for name in self.reset}
        row = ""
        for place, (name, count) in enumerate(counts.items()):
            entry = f"{', ' if row else ''}{name}{f' ({count})' if count > 1 else ''}"
            entry += " (other shape)" if name in reset else ""
            if len(row) + len(entry) > _WIDTH and place:
                left = len(counts) - place
                return f"{row} and {left} {'kinds' if left > 1 else 'kind'} more"
            row += entry
        return row


def some(names: Iterable[str], count: int = 3) -> str:
    """The first names, and how many more there are."""
    names = [show_text(name, _WIDTH) for name in names]
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def save_weights(
    path: str | os.PathLike[str], model: nn.Module, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a model's weights as safetensors, with its name and arguments inside.

    The file is written whole or not at all (:func:`~videomaskfeat.io.whole_path`).

    Args:
        path: a local file; ``.safetensors`` by custom.
        model: made by :func:`~videomaskfeat.models.zoo.create_model`.
        metadata: further texts to keep in the file, by key; not "model" or "arguments".

    Raises:
        UserError: the model was not made by ``create_model``, so that nobody could build it again.
        RunFailed: the file cannot be written.
    """
    created_as = getattr(model, "created_as", None)
    if created_as is None:
        raise UserError(
            f"{os.fspath(path)}: a {type(model).__name__} that create_model did not make has no name to "
            "save; build the model with create_model, or save its state_dict yourself"
        )
    name, arguments = created_as
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    own = {"format": "pt", "model": name, "arguments": json.dumps(arguments)}
    write_safetensors(Path(path), state, {**(metadata or {}), **own})


def load_model(path: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> nn.Module:
    """Build the model that a file of :func:`save_weights` describes, and load its weights.

    Args:
        path: a safetensors file; remote paths are fetched.
        device: of the model.

    Returns:
        The model, in evaluation mode.

    Raises:
        UserError: no such file, a damaged one, one without model name or with impossible arguments, or
            weights that do not fit.
    """
    text = os.fspath(path)
    name, arguments = created_as(text)
    try:
        model = create_unset(name, **arguments)
    except UserError as error:
        raise UserError(f"{text}: the model that its metadata describes cannot be built: {error}") from error
    load_into(model, read_state(text), source=text)
    return model.to(device).eval()


def created_as(path: str) -> tuple[str, dict[str, Any]]:
    """Name and arguments in a file of :func:`save_weights`, unchecked; errors as :func:`load_model`."""
    metadata = read_metadata(path)
    if "model" not in metadata:
        raise UserError(
            f"{path}: has no model name inside, so it was not written by save_weights; "
            "build the model with create_model and use load_into"
        )
    try:
        arguments = parse_json(metadata.get("arguments", "{}"), "arguments")
        expected = "an object of names and values"
    except UserError as error:
        arguments, expected = None, f"JSON ({error})"
    if not isinstance(arguments, dict):
        raise UserError(
            f"{path}: its metadata key 'arguments' is not {expected}; use the file that the run wrote"
        )
    return metadata["model"], arguments


@dataclass(frozen=True)
class Weights:
    """The weights in a file.

    Attributes:
        state: name -> tensor, on the CPU.
        key: of the weights in a checkpoint; empty: the file holds nothing else.
        beside: keys of other weights in it, such as a moving average.
    """

    state: dict[str, Tensor]
    key: str = ""
    beside: tuple[str, ...] = ()


def read_state(path: str | os.PathLike[str], *, key: str = "") -> dict[str, Tensor]:
    """The weights alone of :func:`read_weights`, name -> tensor, on the CPU."""
    return read_weights(path, key=key).state


def read_weights(path: str | os.PathLike[str], *, key: str = "") -> Weights:
    """Read the weights in a file without running any code that it may hold.

    Args:
        path: ``.safetensors``, or a torch file (``.pyth``, ``.pt``, ``.pth``): a state dict, or a checkpoint
            that holds several things by key.
        key: of the weights in such a checkpoint, levels separated by dots. Empty: "model_state" (PySlowFast),
            "state_dict", "model" or "module", the first that is there; else the only one that holds weights.

    Raises:
        UserError: no such file, a damaged or cut one, pickled code, no weights inside, or several and
            no key.
    """
    text = os.fspath(path)
    if text.endswith(".safetensors"):
        if key:
            raise UserError(f"{text}: a safetensors file holds one set of weights; leave the key {key!r} out")
        return Weights(read_safetensors(text))
    checkpoint = read_torch_file(text)
    held = checkpoint if isinstance(checkpoint, Mapping) else {}
    sets = tuple(name for name, value in held.items() if isinstance(name, str) and _is_state(value))
    if key:
        value = held.get(key) if key in held else _nested(held, key.split("."))
        if not _is_state(value):
            there = f"it holds {', '.join(map(show_text, sets))}" if sets else "it holds none by key"
            raise UserError(f"{text}: there are no weights under the key {key!r}; {there}")
    else:
        key, value = _main_weights(text, held, sets)
    state = dict(cast(Mapping[str, Tensor], value))
    size = os.path.getsize(local_path(text))
    for name, tensor in state.items():
        if tensor.numel() * tensor.element_size() > size:
            raise UserError(
                f"{text}: {show_text(name)} is declared in shape {tuple(tensor.shape)}, more than the whole "
                "file holds; it is damaged: copy or download it again"
            )
    return Weights(state, key, tuple(name for name in sets if name != key))


def _main_weights(
    path: str, held: Mapping[Any, Any], sets: tuple[str, ...]
) -> tuple[str, Mapping[str, Tensor]]:
    """Key and weights of a checkpoint if no key is given; see :func:`read_weights`."""
    taken = next((name for name in _STATE_KEYS if isinstance(held.get(name), Mapping)), None)
    if taken is None and len(sets) == 1 and not _is_state(held):
        taken = sets[0]
    if taken is None and len(sets) > 1:
        raise UserError(
            f"{path}: holds several sets of weights, under {', '.join(map(show_text, sets))}; choose one by "
            f"its key (model.weights_key={sets[0]})"
        )
    state = held if taken is None else held[taken]
    if not state:
        raise UserError(f"{path}: holds no weights (a state dict, alone or under {', '.join(_STATE_KEYS)})")
    if not _is_state(state):
        names = (name for name, value in state.items() if not (isinstance(name, str) and _is_tensor(value)))
        stranger = next(names)
        shown = repr(stranger if isinstance(stranger, str | int) else type(stranger).__name__)[:100]
        raise UserError(
            f"{path}: {shown} is not a tensor, so this is not a state dict; "
            f"weights are looked for at the top and under {', '.join(_STATE_KEYS)}"
        )
    return taken or "", state


def _nested(value: object, levels: Iterable[str]) -> object:
    for level in levels:
        value = value.get(level) if isinstance(value, Mapping) else None
    return value


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def _is_state(value: object) -> bool:
    """Whether something is a mapping of names to tensors that holds any."""
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(name, str) and _is_tensor(entry) for name, entry in value.items())
    )


def load_weights(
    model: nn.Module, path: str | os.PathLike[str], *, key: str = "", **options: Any
) -> LoadReport:
    """Read the weights in a file and load them into a model, changed in place.

    Args:
        path, key: see :func:`read_weights`, which also names the errors.
        options: those of :func:`load_into`, except ``source``.

    Returns:
        The report of :func:`load_into`, with the key that was taken and those beside it.
    """
    weights = read_weights(path, key=key)
    report = load_into(model, weights.state, source=os.fspath(path), **options)
    return dataclasses.replace(report, key=weights.key, beside=weights.beside)


def load_pretrained(model: nn.Module, keys: Any, *, leave_out: Iterable[str] = ()) -> LoadReport:
    """Load the weights that a classifier or detector starts from, with what it may lack and have in excess.

    Args:
        model: the model; changed in place.
        keys: has ``weights`` (the file), ``weights_key``, ``allow_missing``, ``allow_unused``, ``inflate``.
        leave_out: names or patterns in the file that are not loaded.

    Raises:
        UserError: as of :func:`load_weights`.
    """
    return load_weights(
        model,
        keys.weights,
        key=keys.weights_key,
        leave_out=leave_out,
        allow_missing=(*_NEW_IN_A_CLASSIFIER, *keys.allow_missing),
        allow_unused=(*_LEFT_FROM_PRETRAINING, *keys.allow_unused),
        allow_reset=_OTHER_CLASSES,
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
    source: str = "the weights",
) -> LoadReport:
    """Load weights into a model; whatever does not match must be allowed by name.

    A prefix that all names share, such as ``module.``, is removed if the names fit the model better without
    it. Tables of positions of another clip size are interpolated, as the model itself does for another clip
    size. Weights of a model for images are inflated for one for clips. Nothing is loaded if an error is
    raised.

    Args:
        model: the model; changed in place.
        state: name -> tensor.
        allow_missing: names or patterns (``head.*``) that the model may have and ``state`` lacks.
        allow_unused: names or patterns that ``state`` may have and the model lacks.
        allow_reset: names or patterns that may have another shape in ``state``: the model keeps its own
            initial values, such as those of a layer for other classes.
        leave_out: names or patterns in ``state`` that are not used, and not reported.
        inflate: "repeated" or "centred": how the kernel of an image's stem becomes one of several frames; see
            :func:`~videomaskfeat.models.positions.inflate_images`.
        source: name of ``state`` in error messages, such as its path.

    Returns:
        What was loaded, inflated, resized, new and unused.

    Raises:
        UserError: a name is missing or unused without permission, a shape differs, a value is not finite, or
            nothing would be loaded, whatever is allowed.
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
        _refuse_strangers("lacks", "that the model has", missing, allow_missing, "allow_missing")
        _refuse_strangers("has", "that the model does not have", unused, allow_unused, "allow_unused")
        fitted, resized, reset = _fit(model, own, state, tuple(allow_reset))
    except _Misfit as misfit:
        # Weights of another encoder differ in hundreds of names: what they are is worth more than these.
        other = _other_encoder(model, state)
        remedy = f"; {misfit.remedy}" if other is None else f": {other}"
        raise UserError(f"{source} {misfit}{remedy}") from None
    if own and not fitted:
        raise UserError(
            f"{source}: none of its {len(state)} weights ({some(state)}) is one of the model's {len(own)} "
            f"({some(own)}), so nothing would be loaded, whatever is allowed; give weights of this model"
        )
    model.load_state_dict(fitted, strict=False)
    taken = {*resized, *from_image}
    return LoadReport(
        loaded=tuple(name for name in own if name in fitted and name not in taken),
        resized=tuple(name for name in resized if name not in from_image),
        new=tuple(name for name in own if name not in fitted),
        unused=unused,
        reset=reset,
        inflated=from_image,
        inflation=inflate if from_image else "",
        prefix=prefix,
    )


def without_prefix(own: Collection[str], state: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], str]:
    """Remove the prefix that all names share if the names then fit better; returns weights and prefix.

    Args:
        own: the names in the model.
        state: name -> tensor; the names may begin with such as ``module._orig_mod.`` or
            ``student.backbone.``.
    """
    shared = _common_start(min(state, default=""), max(state, default=""))
    best, prefix = sum(name in own for name in state), ""
    for end in itertools.accumulate(len(level) + 1 for level in shared.split(".")[:-1]):
        fitting = sum(name[end:] in own for name in state)
        if fitting > best:
            best, prefix = fitting, shared[:end]
    return {name[len(prefix) :]: value for name, value in state.items()} if prefix else state, prefix


def _common_start(one: str, other: str) -> str:
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return "".join(letter for letter, _ in same)


class _Misfit(Exception):
    """What is wrong with a state dict, and the remedy."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.remedy = remedy


def _refuse_strangers(
    verb: str, which: str, names: Iterable[str], allowed: Iterable[str], remedy: str
) -> None:
    refused = [name for name in names if not _matches(name, tuple(allowed))]
    if refused:
        raise _Misfit(
            f"{verb} {len(refused)} weights {which} ({some(refused)})",
            f"build the model that was saved, or name them in {remedy}",
        )


def _fit(
    model: nn.Module, own: Mapping[str, Tensor], state: Mapping[str, Tensor], allow_reset: tuple[str, ...]
) -> tuple[dict[str, Tensor], tuple[str, ...], tuple[str, ...]]:
    """The weights in the model's shapes, the names of those resized for it, and of those left out."""
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
    """Refuse anything but plain, finite numbers of the kind that the model has there."""
    remedy = "the file is damaged or comes from a failed training: use another checkpoint"
    kind = str(value.dtype).removeprefix("torch.")
    plain = value.layout is torch.strided and not value.is_quantized and not value.is_meta
    fits = value.dtype in _FLOATS if mine.dtype.is_floating_point else value.dtype == mine.dtype
    if not plain or not fits:
        what = kind if plain else f"{kind} that is sparse, quantized or without values"
        needed = str(mine.dtype).removeprefix("torch.")
        raise _Misfit(f"has {name} as {what} and the model needs plain {needed}", remedy)
    if value.dtype.is_floating_point and not bool(value.isfinite().all()):
        raise _Misfit(f"has values in {name} that are not finite (NaN or infinity)", remedy)


def _resize(model: nn.Module, name: str, value: Tensor, shape: torch.Size) -> Tensor:
    """A position table in the shape that the model needs; refuses other weights and unknown grids."""
    differ = [has != needs for has, needs in zip(value.shape, shape, strict=False)]
    what = f"has {name} in shape {tuple(value.shape)} and the model needs {tuple(shape)}"
    same_kind = value.ndim == len(shape) and value.numel() and sum(differ) == 1
    if not (same_kind and isinstance(model, Encoder) and model.is_table(name)):
        raise _Misfit(what, "build the model with the arguments of the one that was saved")
    table = model.resize_table(name, value)
    if table is None or table.shape != shape:
        raise _Misfit(
            f"{what}: the grid that it was made for cannot be known from that",
            "build the model with the clip_size of the one that was saved: it takes clips of other sizes",
        )
    return table


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


class _Outline(NamedTuple):
    """What tells encoders apart: number of blocks, width of the stem, and the widths of each block."""

    depth: int
    width: int
    widths: tuple[torch.Size, ...]

    def __str__(self) -> str:
        return f"{self.depth} blocks from width {self.width}"


def _outline_of(state: Mapping[str, Tensor], width_weight: str) -> _Outline | None:
    """The outline of an encoder by its weights' shapes, or None for what is none."""
    stem = state.get("patch_embed.proj.weight")
    blocks = {int(found.group(1)) for name in state if (found := _BLOCK.match(name))}
    weights = [state.get(f"blocks.{block}.{width_weight}") for block in range(len(blocks))]
    if stem is None or not stem.ndim or blocks != set(range(len(blocks))) or not blocks:
        return None
    widths = tuple(weight.shape for weight in weights if weight is not None and weight.ndim == 2)
    return _Outline(len(blocks), stem.shape[0], widths) if len(widths) == len(blocks) else None


def _other_encoder(model: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """For an error, how weights of another depth or other widths differ, and their likely name.

    None if the encoders are alike or one is none of ours.
    """
    if not isinstance(model, Encoder):
        return None
    own, theirs = (_outline_of(weights, model.width_weight) for weights in (model.state_dict(), state))
    if own is None or theirs is None or own == theirs:
        return None
    differ = f"it holds {theirs} and the model has {own}"
    if own[:2] == theirs[:2]:
        at = next(index for index, pair in enumerate(own.widths) if pair != theirs.widths[index])
        differ = f"both have {theirs}, but other widths from block {at} on"
    alike = {name: named.build for name, named in MODELS.items() if _outline_of_named(name) == theirs}
    if not alike:
        return (
            f"{differ}; no named model is like that: build one with the arguments of the model that was saved"
        )
    heads = (MASKFEAT, MAE) if "mask_token" in state else (CLASSIFIER,)
    likely = [name for name in alike if MODELS[name].classes[0] in heads] or alike
    build = [name for name, build in alike.items() if issubclass(build, type(model))]
    advice = f"{differ}; it is likely {' or '.join(likely)}"
    return f"{advice}: build {' or '.join(build)}" if build else advice


def _outline_of_named(name: str) -> _Outline | None:
    named = MODELS[name]
    arguments = encoder_arguments(named.build, named.arguments)
    return _outline_of_built(named.build.encoder_name, tuple(sorted(arguments.items())))


@functools.cache
def _outline_of_built(encoder_name: str, arguments: tuple[tuple[str, Any], ...]) -> _Outline | None:
    build = MODELS[encoder_name].build
    with torch.device("meta"):  # shapes alone
        return _outline_of(build(**dict(arguments)).state_dict(), build.width_weight)
