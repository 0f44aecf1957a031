"""What became of the weights of a file, by name and as a short table."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn

from videomaskfeat.errors import UserError, check_name
from videomaskfeat.grid import TokenGrid
from videomaskfeat.io import local_path
from videomaskfeat.models import create_unset
from videomaskfeat.models.encoder_base import Encoder, joint_positions, resize_table
from videomaskfeat.models.heads import Classifier
from videomaskfeat.models.maskfeat import MaskedModel
from videomaskfeat.models.vit import ViT
from videomaskfeat.models.zoo import MODELS, NamedModel
from videomaskfeat.tensor_files import (
    PickledCode,
    read_metadata,
    read_safetensors,
    read_torch_file,
    write_safetensors,
)
from videomaskfeat.texts import parse_json, show_text

_INDEX = re.compile(r"\.\d+(?=\.|$)")
_WIDTH = 100  # characters of a row


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
        inflation: how that kernel was made, "repeated" or "centred"; empty where nothing was inflated.
        prefix: what all names in the file begin with and the model's do not, such as "module."; removed.
        key: where in a checkpoint the weights stand; empty if the file holds nothing else.
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
        """A row a kind: how many weights, and which, the members of lists together.

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


# Weights of a model for images brought into the shapes of a model for clips.
Inflate = Literal["repeated", "centred"]
INFLATIONS: tuple[Inflate, ...] = get_args(Inflate)
_STEM = "patch_embed.proj.weight"
_TABLE = "pos_embed"
_SPACE, _TIME, _CLASS = "pos_embed_spatial", "pos_embed_temporal", "pos_embed_class"


def inflated(
    model: nn.Module, state: Mapping[str, Tensor], how: Inflate
) -> tuple[Mapping[str, Tensor], tuple[str, ...]]:
    """An image model's stem and positions in the shapes of a clip model's; anything else is left as it is.

    The stem's kernel is "repeated" over the frames of a cube and divided by their number, so that a still
    clip gives the tokens of its picture (I3D, arXiv 1705.07750, section 2.4), or "centred": it stands in the
    middle frame, frames // 2, and the others are 0 (ViViT, arXiv 2103.15691, section 3.4). Positions are
    repeated over time; a table of times of their own, where the model has one, starts at 0.

    Args:
        model: the model that the weights go into.
        state: name -> tensor; a stem of one frame [D, C, 1, h, w] or [D, C, h, w] makes it an image model's.
        how: see above.

    Returns:
        The weights, and the names of the model's that were made so.

    Raises:
        UserError: an unknown way.
    """
    check_name("inflate", how, INFLATIONS)
    if not isinstance(model, Encoder) or _STEM not in state or state[_STEM].ndim not in (4, 5):
        return state, ()
    kernel = state[_STEM] if state[_STEM].ndim == 5 else state[_STEM].unsqueeze(2)  # [D, C, kt, h, w]
    frames = model.patch_embed.proj.weight.shape[2]
    changed = {_STEM: kernel}
    tables = [state[name] for name in (_TABLE, _SPACE, _TIME, _CLASS) if name in state]
    if any(table.ndim != 3 or not table.numel() for table in tables):
        return state, ()  # not positions at all: the loader reports the shapes
    if kernel.shape[2] != 1 or frames == 1:
        return {**state, **changed}, ()
    changed[_STEM] = _inflated_kernel(kernel, frames, how)
    positions = _repeated_positions(model, state)
    # Where the image's tables are others than the clip's they have gone into these.
    gone = {_TABLE, _SPACE, _TIME, _CLASS} if positions else set()
    kept = {name: value for name, value in state.items() if name not in gone}
    return {**kept, **changed, **positions}, (*changed, *positions)


def _inflated_kernel(kernel: Tensor, frames: int, how: Inflate) -> Tensor:
    """[D, C, 1, h, w] -> [D, C, frames, h, w]."""
    if how == "repeated":
        return (kernel.float() / frames).to(kernel.dtype).repeat(1, 1, frames, 1, 1)
    wide = torch.zeros_like(kernel).repeat(1, 1, frames, 1, 1)
    wide[:, :, frames // 2] = kernel[:, :, 0]
    return wide


def _repeated_positions(model: Encoder, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's position tables from an image's, by name; empty where either has none that fits."""
    own = model.state_dict()
    grid = model.native_grid
    frame = TokenGrid(1, grid.h, grid.w)
    if _TABLE in state:
        table = state[_TABLE]
        prefix = int("cls_token" in state)
    elif {_SPACE, _TIME} <= set(state) and state[_TIME].shape[1] == 1:
        places = state[_SPACE] + state[_TIME]
        table = torch.cat([state[_CLASS], places], dim=1) if _CLASS in state else places
        prefix = int(_CLASS in state)
    else:
        return {}
    first = table[:, : min(prefix, model.prefix)]  # [1, P, D]
    places = table[:, prefix:]  # [1, h0*w0, D]
    factor = (places.shape[1] / frame.size) ** 0.5
    native = TokenGrid(1, round(grid.h * factor), round(grid.w * factor))
    if native.size != places.shape[1]:
        return {}  # another shape of frame: the shapes do not fit, and the loader says so
    places = joint_positions(places.float(), native, frame).to(table.dtype)  # [1, h*w, D]
    if _TABLE in own:
        if prefix < model.prefix:  # the image had no class token: that of the clip stays as it was drawn
            first = own[_TABLE][:, : model.prefix].to(table.dtype)
        return {_TABLE: torch.cat([first, places.repeat(1, grid.t, 1)], dim=1)}
    if _SPACE not in own:
        return {}
    tables = {_SPACE: places, _TIME: torch.zeros_like(places[:, :1]).repeat(1, grid.t, 1)}
    return tables | ({_CLASS: first} if first.shape[1] else {})


# Which named model a state dict belongs to, for messages about weights that do not fit.
_BLOCK = re.compile(r"^blocks\.([0-9]{1,6})\.")


class Outline(NamedTuple):
    """What tells encoders apart.

    ``widths`` are those of the tokens that enter each block, and of those inside its attention.
    """

    depth: int
    width: int
    widths: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        return f"{self.depth} blocks from width {self.width}"


def outline_of(shapes: Mapping[str, torch.Size]) -> Outline | None:
    """The outline of an encoder by its weights' shapes, or None for what is none."""
    stem = shapes.get("patch_embed.proj.weight")
    blocks = {int(found.group(1)) for name in shapes if (found := _BLOCK.match(name))}
    if stem is None or blocks != set(range(len(blocks))) or not blocks:
        return None
    widths = []
    for block in range(len(blocks)):
        qkv = shapes.get(f"blocks.{block}.attn.qkv.weight")
        if qkv is None or len(qkv) != 2:
            return None
        widths.append((qkv[1], qkv[0] // 3))
    return Outline(len(blocks), stem[0], tuple(widths))


def other_encoder(model: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """Where a state dict is of another depth or other widths than the model: how they differ, and its name.

    Returns:
        A clause for an error message; None where the encoders are alike or one is none of ours.
    """
    own = outline_of({name: value.shape for name, value in model.state_dict().items()})
    theirs = outline_of({name: value.shape for name, value in state.items()})
    if own is None or theirs is None or own == theirs:
        return None
    differ = f"it holds {theirs} and the model has {own}"
    if (own.depth, own.width) == (theirs.depth, theirs.width):
        at = next(index for index, pair in enumerate(own.widths) if pair != theirs.widths[index])
        differ = f"both have {theirs}, but other widths from block {at} on"
    return differ + _advice(type(model), theirs, pretrained="mask_token" in state)


def _advice(kind: type[nn.Module], outline: Outline, *, pretrained: bool) -> str:
    """The names whose encoder has this outline: what the weights are, and what to build for them."""
    alike = {name: named for name, named in MODELS.items() if _outline_of_named(named) == outline}
    if not alike:
        return "; no named model is like that: build one with the arguments of the model that was saved"
    theirs = [
        name
        for name, named in alike.items()
        if issubclass(named.build, MaskedModel if pretrained else Classifier)
    ]
    build = [name for name, named in alike.items() if issubclass(named.build, kind)]
    likely = f"; it is likely {_either(theirs or alike)}"
    return f"{likely}: build {_either(build)}" if build else likely


def _outline_of_named(named: NamedModel) -> Outline:
    """From the arguments alone: building a large model takes seconds."""
    arguments = named.arguments
    width, widths = arguments["width"], []
    if issubclass(named.build, ViT):
        return Outline(arguments["depth"], width, ((width, width),) * arguments["depth"])
    for block in range(arguments["depth"]):
        inner = width * 2 if block in arguments["widen_at"] else width
        # In the perceptron a width changes before the block, in attention within it.
        widths.append((inner if arguments["widen_in"] == "mlp" else width, inner))
        width = inner
    return Outline(arguments["depth"], arguments["width"], tuple(widths))


def _either(names: Iterable[str]) -> str:
    return " or ".join(names)


# Weights on disk: what we publish (safetensors with the model's name inside), and what others saved.
__all__ = [
    "LoadReport",
    "PickledCode",
    "Weights",
    "created_as",
    "load_into",
    "load_model",
    "load_weights",
    "read_metadata",
    "read_state",
    "read_weights",
    "save_weights",
    "without_prefix",
]
_RELATIVE_TABLES = ("rel_pos_t", "rel_pos_h", "rel_pos_w")
# Where others keep the weights inside their checkpoints; the first that is there is taken.
_STATE_KEYS = ("model_state", "state_dict", "model", "module")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def save_weights(
    path: str | os.PathLike[str], model: nn.Module, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a model's weights as safetensors, with its name and arguments inside.

    The file is written whole or not at all (:func:`~videomaskfeat.io.whole_path`).

    Args:
        path: a local file; ``.safetensors`` by custom.
        model: made by :func:`~videomaskfeat.models.create_model`.
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
        device: where the model goes.

    Returns:
        The model, in evaluation mode.

    Raises:
        UserError: no such file, a damaged one, one without model name or with arguments that cannot be, or
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
    """The name and the arguments in a file of :func:`save_weights`, as they stand there.

    Raises:
        UserError: no such file, a damaged one, or one without model name.
    """
    metadata = read_metadata(path)
    if "model" not in metadata:
        raise UserError(
            f"{path}: has no model name inside, so it was not written by save_weights; "
            "build the model with create_model and use load_into"
        )
    try:
        arguments = parse_json(metadata.get("arguments", "{}"), "arguments")
    except UserError as error:
        raise UserError(
            f"{path}: its metadata key 'arguments' is not JSON ({error}); take the file that the run wrote"
        ) from error
    if not isinstance(arguments, dict):
        raise UserError(
            f"{path}: its metadata key 'arguments' is not an object of names and values; take the file that "
            "the run wrote"
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
    weights = _chosen(text, read_torch_file(text), key)
    size = os.path.getsize(local_path(text))
    for name, value in weights.state.items():
        if value.numel() * value.element_size() > size:
            raise UserError(
                f"{text}: {show_text(name)} is declared in shape {tuple(value.shape)}, more than the whole "
                "file holds; it is damaged: copy or download it again"
            )
    return weights


def _chosen(path: str, checkpoint: object, key: str) -> Weights:
    """The weights under a key, or without one those that :func:`read_weights` documents."""
    held = checkpoint if isinstance(checkpoint, Mapping) else {}
    sets = tuple(name for name, value in held.items() if isinstance(name, str) and _is_state(value))
    if key:
        value: object = held.get(key)
        if key not in held:
            value = held
            for level in key.split("."):
                value = value.get(level) if isinstance(value, Mapping) else None
        if not _is_state(value):
            there = f"it holds {', '.join(map(show_text, sets))}" if sets else "it holds none by key"
            raise UserError(f"{path}: there are no weights under the key {key!r}; {there}")
        return Weights(_named(value), key, tuple(name for name in sets if name != key))
    taken = next((name for name in _STATE_KEYS if isinstance(held.get(name), Mapping)), None)
    if taken is None and len(sets) == 1 and not _is_state(held):
        taken = sets[0]
    if taken is None and len(sets) > 1:
        raise UserError(
            f"{path}: holds several sets of weights, under {', '.join(map(show_text, sets))}; choose one by "
            f"its key (model.weights_key={sets[0]})"
        )
    state = held if taken is None else held[taken]
    if not isinstance(state, Mapping) or not state:
        raise UserError(f"{path}: holds no weights (a state dict, alone or under {', '.join(_STATE_KEYS)})")
    if not _is_state(state):
        stranger = next(
            name for name, value in state.items() if not (isinstance(name, str) and isinstance(value, Tensor))
        )
        raise UserError(
            f"{path}: {_repr(stranger)} is not a tensor, so this is not a state dict; "
            f"weights are looked for at the top and under {', '.join(_STATE_KEYS)}"
        )
    return Weights(_named(state), taken or "", tuple(name for name in sets if name != taken))


def _is_state(value: object) -> bool:
    """Whether something is a mapping of names to tensors that holds any."""
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(name, str) and isinstance(entry, Tensor) for name, entry in value.items())
    )


def _named(state: object) -> dict[str, Tensor]:
    return dict(cast(Mapping[str, Tensor], state))


def _repr(value: object) -> str:
    return repr(value if isinstance(value, str | int) else type(value).__name__)[:100]


def load_weights(
    model: nn.Module, path: str | os.PathLike[str], *, key: str = "", **options: Any
) -> LoadReport:
    """Read the weights in a file and load them into a model.

    Args:
        model: the model; changed in place.
        path: see :func:`read_weights`.
        key: likewise.
        options: those of :func:`load_into`, except ``source``.

    Returns:
        What :func:`load_into` returns, with the key that was taken and those beside it.

    Raises:
        UserError: as of both.
    """
    weights = read_weights(path, key=key)
    report = load_into(model, weights.state, source=os.fspath(path), **options)
    return dataclasses.replace(report, key=weights.key, beside=weights.beside)


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
    it. Relative position tables of another length are linearly interpolated, as the model itself does for
    another clip size, and so are separable absolute ones. Weights of a model for images are inflated for one
    for clips. Nothing is loaded when an error is raised.

    Args:
        model: the model; changed in place.
        state: name -> tensor.
        allow_missing: names or patterns (``head.*``) that the model may have and ``state`` lacks.
        allow_unused: names or patterns that ``state`` may have and the model lacks.
        allow_reset: names or patterns that may have another shape in ``state``: the model keeps its own
            initial values, such as those of a layer for other classes.
        leave_out: names or patterns in ``state`` that are not used, and not reported.
        inflate: "repeated" or "centred": how the kernel of an image's stem becomes one of several frames; see
            :func:`~videomaskfeat.models.weights.inflated`.
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
    state, from_image = inflated(model, state, inflate)
    missing = tuple(name for name in own if name not in state)
    unused = tuple(name for name in state if name not in own)
    try:
        _refuse_strangers("lacks", "that the model has", missing, allow_missing, "allow_missing")
        _refuse_strangers("has", "that the model does not have", unused, allow_unused, "allow_unused")
        fitted, resized, reset = _fitted(model, state, tuple(allow_reset))
    except _Misfit as misfit:
        # Weights of another encoder differ in hundreds of names: what they are is worth more than these.
        other = other_encoder(model, state)
        if other is not None:
            raise UserError(f"{source} {misfit.what}: {other}") from None
        raise UserError(f"{source} {misfit.what}; {misfit.remedy}") from None
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
    pairs = zip(min(state, default=""), max(state, default=""), strict=False)
    shared = "".join(one for one, other in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    best, prefix = sum(name in own for name in state), ""
    end = shared.find(".") + 1
    while end:
        fitting = sum(name[end:] in own for name in state)
        if fitting > best:
            best, prefix = fitting, shared[:end]
        end = shared.find(".", end) + 1
    return {name[len(prefix) :]: value for name, value in state.items()} if prefix else state, prefix


class _Misfit(Exception):
    """What is wrong with a state dict, and the remedy."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.what = what
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


def _fitted(
    model: nn.Module, state: Mapping[str, Tensor], allow_reset: tuple[str, ...]
) -> tuple[dict[str, Tensor], tuple[str, ...], tuple[str, ...]]:
    """The weights in the model's shapes, the names of those resized for it, and of those left out."""
    fitted, resized, reset = {}, [], []
    for name, wanted in model.state_dict().items():
        if name not in state:
            continue
        value = state[name]
        if value.shape != wanted.shape and _matches(name, allow_reset):
            reset.append(name)
            continue
        _check_values(name, value, wanted)
        if value.shape == wanted.shape:
            fitted[name] = value
            continue
        fitted[name] = _resized(model, name, value, wanted.shape)
        resized.append(name)
    return fitted, tuple(resized), tuple(reset)


def _check_values(name: str, value: Tensor, wanted: Tensor) -> None:
    """Refuse a tensor that no model could have learned.

    Raises:
        _Misfit: not plain numbers of the kind that the model has there, or numbers that are not finite.
    """
    remedy = "the file is damaged or comes from a failed training: take another checkpoint"
    kind = str(value.dtype).removeprefix("torch.")
    plain = value.layout is torch.strided and not value.is_quantized and not value.is_meta
    fits = value.dtype in _FLOATS if wanted.dtype.is_floating_point else value.dtype == wanted.dtype
    if not plain or not fits:
        what = kind if plain else f"{kind} that is sparse, quantized or without values"
        needed = str(wanted.dtype).removeprefix("torch.")
        raise _Misfit(f"has {name} as {what} and the model needs plain {needed}", remedy)
    if value.dtype.is_floating_point and not bool(value.isfinite().all()):
        raise _Misfit(f"has values in {name} that are not finite (NaN or infinity)", remedy)


def _resized(model: nn.Module, name: str, value: Tensor, wanted: torch.Size) -> Tensor:
    """A position table in the length that the model needs.

    Raises:
        _Misfit: another kind of weight, or a table whose own grid cannot be known.
    """
    kind = name.rpartition(".")[2]
    if value.ndim != len(wanted) or not value.numel():
        kind = ""  # nothing to resize
    if kind in _RELATIVE_TABLES and value.shape[1:] == wanted[1:]:
        return resize_table(value.float(), wanted[0]).to(value.dtype)
    if kind == "pos_embed_temporal" and value.shape[::2] == wanted[::2]:
        return resize_table(value[0].float(), wanted[1])[None].to(value.dtype)
    has, needs = tuple(value.shape), tuple(wanted)
    if kind in ("pos_embed_spatial", "pos_embed") and value.shape[::2] == wanted[::2]:
        table = _resized_in_space(cast(Encoder, model), value, prefix=kind == "pos_embed")
        if table is not None:
            return table
    if kind.startswith("pos_embed"):
        raise _Misfit(
            f"has {name} in shape {has} and the model needs {needs}: the grid that it was made for cannot be "
            "told from that",
            "build the model with the clip_size of the one that was saved: it takes clips of other sizes",
        )
    raise _Misfit(
        f"has {name} in shape {has} and the model needs {needs}",
        "build the model with the arguments of the one that was saved",
    )


def _resized_in_space(model: Encoder, value: Tensor, *, prefix: bool) -> Tensor | None:
    """A table over the places of a frame, of the same shape of frame, or None: nothing tells its grid.

    Args:
        model: its native grid is the wanted one.
        value: float [1, P+N0, D].
        prefix: whether P is the model's number of class tokens; else it is 0. Such a table is over time, too,
            so that only an image's can be told.
    """
    frames, height, width = model.native_grid.shape
    if value.shape[1] <= model.prefix * prefix:
        return None
    first, places = value.split([model.prefix * prefix, value.shape[1] - model.prefix * prefix], dim=1)
    grid = TokenGrid(1, height, width)
    factor = (places.shape[1] / grid.size) ** 0.5
    native = TokenGrid(1, round(height * factor), round(width * factor))
    if native.size != places.shape[1] or (prefix and frames != 1):
        return None
    return torch.cat([first, joint_positions(places.float(), native, grid).to(value.dtype)], dim=1)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


# What pre-training weights have and a classifier or detector lacks, and the other way round.
_NEW_IN_A_CLASSIFIER = ("head.*", "norm.*")
_LEFT_FROM_PRETRAINING = ("mask_token", "pred_head.*", "decoder_*", "hogs.*")
_OTHER_CLASSES = ("head.projection.*",)


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
