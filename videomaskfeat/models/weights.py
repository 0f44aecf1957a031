"""Weights files: our own (safetensors with the model's name inside) and those of other projects.

Names and shapes of other projects are converted by :mod:`videomaskfeat.interop.other_projects`.

Loading reports the use of every weight, and refuses every mismatch that is not allowed by name.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from videomaskfeat import import_object
from videomaskfeat.errors import UserError
from videomaskfeat.grid import TokenGrid
from videomaskfeat.io import is_file, is_folder, local_path
from videomaskfeat.models.encoder_base import Encoder, as_triple
from videomaskfeat.models.positions import (
    CLASS,
    FIXED,
    SPACE,
    TABLE,
    TIME,
    Inflate,
    fixed_positions,
    inflate_images,
    joint_positions,
)
from videomaskfeat.models.zoo import (
    CLASSIFIER,
    MAE,
    MASKFEAT,
    MODELS,
    arguments_of,
    create_unset,
    encoder_arguments,
)
from videomaskfeat.tensor_files import (
    read_metadata,
    read_safetensors,
    read_torch_file,
    write_safetensors,
)
from videomaskfeat.texts import parse_json, show_text

logger = logging.getLogger(__name__)

_INDEX = re.compile(r"\.\d+(?=\.|$)")
_BLOCK = re.compile(r"blocks\.([0-9]{1,6})\.")
_WIDTH = 100  # characters per row
# Usual keys of the weights in a checkpoint; the first that exists is used.
_STATE_KEYS = ("model_state", "state_dict", "model", "module", "target_encoder", "ema_encoder", "encoder")
# Weights in a folder of transformers or timm.
_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
_CONVERT = "videomaskfeat.interop.other_projects:convert"
# Weights that only a classifier or detector has, that only pre-training has, and that depend on the classes.
_HEAD_ONLY = ("head.*", "norm.*")
_PRETRAINING_ONLY = ("mask_token", "pred_head.*", "decoder_*", "hogs.*")
_CLASS_DEPENDENT = ("head.projection.*",)
_HEADS = ("heads", "decoder_heads")  # arguments without a trace in the shapes of weights
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class LoadReport:
    """The use of every weight, by name.

    Attributes:
        loaded: loaded unchanged.
        resized: position tables interpolated to the model's length.
        new: weights of the model that keep their initial values: missing in the file, or of another shape.
        unused: weights in the file that the model does not have.
        reset: those of ``new`` that have another shape in the file, such as a layer for other classes.
        inflated: made from an image model's stem and positions.
        inflation: "repeated" or "centered": see :func:`~videomaskfeat.models.positions.inflate_images`; empty
            if nothing was inflated.
        prefix: common prefix of all names in the file, such as "module.", that was removed.
        key: key of the weights in a checkpoint; empty if the file contains only weights.
        beside: keys of other weights in the file.
        format: name of another project's format from which the weights were converted; empty for our names.
        normalization: mean and standard deviation of the pixels of a converted model; None if unknown.
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
    format: str = ""
    normalization: tuple[Any, Any] | None = None

    def __str__(self) -> str:
        counts = [f"{len(self.loaded)} weights loaded"]
        if self.inflated:
            count = f"{len(self.inflated)} inflated from an image model, kernel {self.inflation}"
            counts.append(f"{count} ({list_names(self.inflated)})")
        for kind in ("resized", "new", "unused"):
            names = getattr(self, kind)
            if names:
                counts.append(f"{len(names)} {kind} ({list_names(names)})")
        return ", ".join([*counts, *self._origin()])

    def table(self) -> str:
        """A row per kind of use, with the number and names of weights; numbered names are grouped.

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
            how = (
                f"from an image model: kernel {self.inflation} over the frames, positions repeated over time"
            )
            rows.insert(1, f"inflated {len(self.inflated):5d}  {self._grouped(self.inflated)}, {how}")
        return "\n".join([*rows, *self._origin()])

    def to_dict(self) -> dict[str, list[str]]:
        """Names by kind of use, for JSON."""
        kinds = ("loaded", "resized", "new", "unused", "reset", *["inflated"] * bool(self.inflated))
        origin = {
            "prefix": [self.prefix] * bool(self.prefix),
            "key": [self.key] * bool(self.beside),
            "format": [self.format] * bool(self.format),
        }
        return {kind: list(getattr(self, kind)) for kind in kinds} | {k: v for k, v in origin.items() if v}

    def _origin(self) -> list[str]:
        """Sentences about format, prefix and key, if they are not obvious."""
        sentences = []
        if self.format:
            sentences.append(f"converted from {self.format}")
        if self.prefix:
            sentences.append(f"common prefix {show_text(self.prefix)!r} removed from all names")
        if self.beside:
            others = ", ".join(map(show_text, self.beside))
            sentences.append(
                f"weights read from {show_text(self.key)!r}; the file also contains {others} "
                "(set weights_key to choose)"
            )
        return sentences

    def _grouped(self, names: Iterable[str]) -> str:
        """Groups of names, as many as fit in a row."""
        counts = Counter(_INDEX.sub(".*", name) for name in names)
        reset = {_INDEX.sub(".*", name) for name in self.reset}
        row = ""
        for index, (name, count) in enumerate(counts.items()):
            entry = f"{', ' if row else ''}{name}{f' ({count})' if count > 1 else ''}"
            entry += " (other shape)" if name in reset else ""
            if len(row) + len(entry) > _WIDTH and index:
                left = len(counts) - index
                return f"{row} and {left} more {'groups' if left > 1 else 'group'} of names"
            row += entry
        return row


def list_names(names: Iterable[str], count: int = 3) -> str:
    """The first names, and the number of the others."""
    names = [show_text(name, _WIDTH) for name in names]
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


class Recipe(Protocol):
    """How the clips of a model are cut, such as :class:`~videomaskfeat.recipe.ClassifyRecipe`."""

    key: ClassVar[str]

    def to_json(self) -> str:
        """JSON for the metadata key ``key``."""
        ...


def save_model(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    recipe: Recipe | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a model's weights as safetensors, with its name and arguments; :func:`load_model` reads it.

    The file is written completely or not at all (:func:`~videomaskfeat.io.whole_path`).

    Args:
        model: created by :func:`~videomaskfeat.models.zoo.create_model`.
        path: a local file, usually ``.safetensors``.
        recipe: how clips are cut, so that ``load_classifier``, ``load_encoder`` or ``load_detector`` read the
            file, such as ``VideoDataset.recipe``.
        metadata: more texts for the file, by key; not "model" or "arguments".

    Raises:
        UserError: the model was not created by ``create_model``, so it could not be built from the file.
        RunFailed: the file cannot be written.
    """
    created_as = getattr(model, "created_as", None)
    if created_as is None:
        raise UserError(
            f"{os.fspath(path)}: cannot save a {type(model).__name__} that create_model did not create; "
            "create the model with create_model, or save its state_dict yourself"
        )
    name, arguments = created_as
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    own = {"format": "pt", "model": name, "arguments": json.dumps(arguments)}
    if recipe is not None:
        own[recipe.key] = recipe.to_json()
    write_safetensors(Path(path), state, {**(metadata or {}), **own})


def save_weights(
    path: str | os.PathLike[str], model: nn.Module, *, metadata: Mapping[str, str] | None = None
) -> None:
    """:func:`save_model` with the path first."""
    save_model(model, path, metadata=metadata)


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
    if not _is_own(text):
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
    return import_object(_CONVERT)(
        path, weights.state, key=weights.key, content=weights.content, format=format, choices=choices
    )


def weights_file(path: str | os.PathLike[str]) -> str:
    """The path of a weights file, or of the weights in a folder of transformers or timm.

    Raises:
        UserError: the weights in the folder are divided into several files.
    """
    text = os.fspath(path)
    if is_folder(text):
        if is_file(os.path.join(text, "model.safetensors.index.json")):
            raise UserError(
                f"{text}: its weights are divided into several files; save the model again in one, by "
                "save_pretrained(..., max_shard_size='100GB')"
            )
        for name in _FOLDER_FILES:
            if is_file(os.path.join(text, name)):
                return os.path.join(text, name)
    return text


def _is_own(path: str) -> bool:
    """Whether the file is a safetensors file with the name of one of our models."""
    return path.endswith(".safetensors") and "model" in read_metadata(path)


def created_as(path: str) -> tuple[str, dict[str, Any]]:
    """Name and arguments in a file of :func:`save_model`, unchecked; raises as :func:`load_model`."""
    metadata = read_metadata(path)
    if "model" not in metadata:
        raise UserError(
            f"{path} contains no model name, so save_weights did not write it; create the model with "
            "create_model and use load_into"
        )
    try:
        arguments = parse_json(metadata.get("arguments", "{}"), "arguments")
        expected = "an object of names and values"
    except UserError as error:
        arguments, expected = None, f"JSON ({error})"
    if not isinstance(arguments, dict):
        raise UserError(
            f"{path}: metadata key 'arguments' is not {expected}; use the file that the run wrote"
        )
    return metadata["model"], arguments


@dataclass(frozen=True)
class Weights:
    """The weights in a file.

    Attributes:
        state: tensors on the CPU, by name.
        key: key of the weights in a checkpoint; empty if the file contains only weights.
        beside: keys of other weights in the file, such as a moving average.
        content: the whole checkpoint; empty if the file contains only weights.
    """

    state: dict[str, Tensor]
    key: str = ""
    beside: tuple[str, ...] = ()
    content: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)


def read_state(path: str | os.PathLike[str], *, key: str = "") -> dict[str, Tensor]:
    """``state`` of :func:`read_weights`."""
    return read_weights(path, key=key).state


def read_weights(
    path: str | os.PathLike[str], *, key: str = "", keys: Sequence[str] = _STATE_KEYS
) -> Weights:
    """Read the weights in a file without running code that it may contain.

    Args:
        path: ``.safetensors``, or a torch file (``.pyth``, ``.pt``, ``.pth``, ``.bin``) with a state dict or
            a checkpoint; or a folder of transformers or timm.
        key: key of the weights in a checkpoint, levels separated by dots. If empty, the first of ``keys``
            that exists, otherwise the only key with weights.
        keys: usual keys; by default "model_state" (PySlowFast), "state_dict", "model", "module",
            "target_encoder" (V-JEPA), "ema_encoder" and "encoder".

    Raises:
        UserError: the file is missing or damaged, or contains pickled code, no weights, or several sets of
            weights without a ``key``.
    """
    text = weights_file(path)
    if text.endswith(".safetensors"):
        if key:
            raise UserError(f"{text}: a safetensors file contains one set of weights; remove the key {key!r}")
        return Weights(read_safetensors(text))
    content = read_torch_file(text)
    checkpoint = content if isinstance(content, Mapping) else {}
    sets = tuple(name for name, value in checkpoint.items() if isinstance(name, str) and _is_state(value))
    value: object = checkpoint
    if key:
        for level in [key] if key in checkpoint else key.split("."):
            value = value.get(level) if isinstance(value, Mapping) else None
        if not _is_state(value):
            known = f"known keys: {', '.join(map(show_text, sets))}" if sets else "no key has weights"
            raise UserError(f"{text}: there are no weights under the key {key!r}; {known}")
    else:
        key, value = _main_weights(text, checkpoint, sets, keys)
    state = dict(cast(Mapping[str, Tensor], value))
    size = os.path.getsize(local_path(text))
    for name, tensor in state.items():
        if tensor.numel() * tensor.element_size() > size:
            raise UserError(
                f"{text}: {show_text(name)} has shape {tuple(tensor.shape)}, which is larger than the file; "
                "the file is damaged: copy or download it again"
            )
    others = tuple(name for name in sets if name != key)
    return Weights(state, key, others, cast(Mapping[str, Any], checkpoint) if key else {})


def _main_weights(
    path: str, checkpoint: Mapping[Any, Any], sets: tuple[str, ...], keys: Sequence[str]
) -> tuple[str, Mapping[str, Tensor]]:
    """Key and weights of a checkpoint if no key is given; see :func:`read_weights`."""
    key = next((name for name in keys if isinstance(checkpoint.get(name), Mapping)), None)
    if key is None and len(sets) == 1 and not _is_state(checkpoint):
        key = sets[0]
    if key is None and len(sets) > 1:
        raise UserError(
            f"{path} contains several sets of weights, under {', '.join(map(show_text, sets))}; choose one "
            f"by its key (model.weights_key={sets[0]})"
        )
    state = checkpoint if key is None else checkpoint[key]
    if not state:
        raise UserError(f"{path} contains no weights (a state dict, alone or under {', '.join(keys)})")
    if not _is_state(state):
        other = next(name for name, value in state.items() if not _is_entry(name, value))
        shown = repr(other if isinstance(other, str | int) else type(other).__name__)[:100]
        raise UserError(
            f"{path}: {shown} is not a tensor, so this is not a state dict; weights must be at the top level "
            f"or under {', '.join(keys)}"
        )
    return key or "", state


def _is_entry(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor)


def _is_state(value: object) -> bool:
    """Whether a value is a non-empty mapping of names to tensors."""
    return isinstance(value, Mapping) and bool(value) and all(map(_is_entry, value.keys(), value.values()))


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
    if _is_own(text):
        own = created_as(text)
        return _Read(text, weights, own if own[0] in MODELS else None)
    name, arguments = getattr(model, "created_as", ("", {}))
    arguments = arguments_of(name, arguments) if name in MODELS else {}
    converted = import_object(_CONVERT)(
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
        inflate: "repeated" or "centered"; see :func:`~videomaskfeat.models.positions.inflate_images`.
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
        other = _other_encoder(model, state)
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


class _Outline(NamedTuple):
    """Properties that identify an encoder: number of blocks, width of the stem, and widths of the blocks."""

    depth: int
    width: int
    widths: tuple[torch.Size, ...]

    def __str__(self) -> str:
        return f"{self.depth} blocks and stem width {self.width}"


def _outline_of(state: Mapping[str, Tensor], width_weight: str) -> _Outline | None:
    """The outline of an encoder from its weights' shapes; None if the weights are not an encoder's."""
    stem = state.get("patch_embed.proj.weight")
    blocks = {int(match.group(1)) for name in state if (match := _BLOCK.match(name))}
    weights = [state.get(f"blocks.{block}.{width_weight}") for block in range(len(blocks))]
    if stem is None or not stem.ndim or blocks != set(range(len(blocks))) or not blocks:
        return None
    widths = tuple(weight.shape for weight in weights if weight is not None and weight.ndim == 2)
    return _Outline(len(blocks), stem.shape[0], widths) if len(widths) == len(blocks) else None


def _other_encoder(model: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """For an error message: how weights of another encoder differ, and their likely named model.

    None if the encoders are alike or one is unknown.
    """
    if not isinstance(model, Encoder):
        return None
    own, theirs = (_outline_of(weights, model.width_weight) for weights in (model.state_dict(), state))
    if own is None or theirs is None or own == theirs:
        return None
    differ = f"it has {theirs}, but the model has {own}"
    if own[:2] == theirs[:2]:
        first = next(index for index, pair in enumerate(own.widths) if pair != theirs.widths[index])
        differ = f"both have {theirs}, but different widths from block {first} on"
    alike = {name: named.build for name, named in MODELS.items() if _outline_of_named(name) == theirs}
    if not alike:
        return f"{differ}; no named model matches: build the model with the arguments of the saved model"
    heads = (MASKFEAT, MAE) if "mask_token" in state else (CLASSIFIER,)
    likely = [name for name in alike if MODELS[name].classes[0] in heads] or alike
    build = [name for name, build in alike.items() if issubclass(build, type(model))]
    advice = f"{differ}; it is probably {' or '.join(likely)}"
    return f"{advice}: set model.name={build[0]}" if build else advice


def _outline_of_named(name: str) -> _Outline | None:
    named = MODELS[name]
    arguments = encoder_arguments(named.build, named.arguments)
    return _outline_of_built(named.build.encoder_name, tuple(sorted(arguments.items())))


@functools.cache
def _outline_of_built(encoder_name: str, arguments: tuple[tuple[str, Any], ...]) -> _Outline | None:
    build = MODELS[encoder_name].build
    with torch.device("meta"):  # shapes alone
        return _outline_of(build(**dict(arguments)).state_dict(), build.width_weight)
