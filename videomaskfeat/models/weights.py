"""Weights on disk: what we publish (safetensors with the model's name inside), and what others saved."""

from __future__ import annotations

import errno
import json
import os
import pickle
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from videomaskfeat.errors import RunFailed, UserError
from videomaskfeat.grid import TokenGrid
from videomaskfeat.io import is_file, is_folder, local_path, open_file, whole_path
from videomaskfeat.models import create_unset
from videomaskfeat.models.encoder_base import Encoder
from videomaskfeat.models.inflate import Inflate, inflated
from videomaskfeat.models.likely import other_encoder
from videomaskfeat.models.load_report import LoadReport, some
from videomaskfeat.models.positions import joint_positions, resize_table

_RELATIVE_TABLES = ("rel_pos_t", "rel_pos_h", "rel_pos_w")
# Where others keep the weights inside their checkpoints.
_STATE_KEYS = ("model_state", "state_dict", "model")
_TORCH_STARTS = (b"PK", b"\x80")  # a zip archive, and a pickle of protocol 2 or later


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
    try:
        with whole_path(path) as temporary:
            save_file(state, temporary, {**(metadata or {}), **own})
    except SafetensorError as error:
        raise RunFailed(f"{os.fspath(path)}: the weights could not be written: {error}") from error


def load_model(path: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> nn.Module:
    """Build the model that a file of :func:`save_weights` describes, and load its weights.

    Args:
        path: a safetensors file; remote paths are fetched.
        device: where the model goes.

    Returns:
        The model, in evaluation mode.

    Raises:
        UserError: no such file, a damaged one, one without model name, or weights that do not fit.
    """
    text = os.fspath(path)
    metadata = read_metadata(text)
    if "model" not in metadata:
        raise UserError(
            f"{text}: has no model name inside, so it was not written by save_weights; "
            "build the model with create_model and use load_into"
        )
    model = create_unset(metadata["model"], **json.loads(metadata.get("arguments", "{}")))
    load_into(model, read_state(text), source=text)
    return model.to(device).eval()


def read_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the weights in a file without running any code that it may hold.

    Args:
        path: ``.safetensors``, or a torch file (``.pyth``, ``.pt``, ``.pth``): a state dict, or a checkpoint
            that holds one under "model_state" (PySlowFast), "state_dict" or "model".

    Returns:
        Name -> tensor, on the CPU.

    Raises:
        UserError: no such file, a damaged or cut one, pickled code, or no weights inside.
    """
    text = os.fspath(path)
    _require_file(text)
    if text.endswith(".safetensors"):
        try:
            return load_file(local_path(text))
        except SafetensorError as error:
            raise _damaged(text, error) from error
    checkpoint = _read_torch_file(text)
    for key in _STATE_KEYS:
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
            break
    if not isinstance(checkpoint, Mapping) or not checkpoint:
        raise UserError(f"{text}: holds no weights (a state dict, alone or under {', '.join(_STATE_KEYS)})")
    strangers = [key for key, value in checkpoint.items() if not isinstance(value, Tensor)]
    if strangers:
        raise UserError(
            f"{text}: {strangers[0]!r} is not a tensor, so this is no state dict; "
            f"weights are looked for at the top and under {', '.join(_STATE_KEYS)}"
        )
    return dict(checkpoint)


def load_into(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    allow_missing: Iterable[str] = (),
    allow_unused: Iterable[str] = (),
    allow_reset: Iterable[str] = (),
    inflate: Inflate = "repeated",
    source: str = "the weights",
) -> LoadReport:
    """Load weights into a model; whatever does not match must be allowed by name.

    Relative position tables of another length are linearly interpolated, as the model itself does for
    another clip size, and so are separable absolute ones. Weights of a model for images are inflated for one
    for clips. Nothing is loaded when an error is raised.

    Args:
        model: the model; changed in place.
        state: name -> tensor.
        allow_missing: names or patterns (``head.*``) that the model may have and ``state`` lacks.
        allow_unused: names or patterns that ``state`` may have and the model lacks.
        allow_reset: names or patterns that may have another shape in ``state``: the model keeps its own
            initial values, such as those of a layer for other classes.
        inflate: "repeated" or "centred": how the kernel of an image's stem becomes one of several frames; see
            :func:`~videomaskfeat.models.inflate.inflated`.
        source: what to call ``state`` in error messages, such as its path.

    Returns:
        What was loaded, inflated, resized, new and unused.

    Raises:
        UserError: a name is missing or unused without permission, or a shape differs.
    """
    own = model.state_dict()
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
    )


class PickledCode(UserError):
    """A file of weights holds code besides tensors, which is never run."""


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
        if value.shape == wanted.shape:
            fitted[name] = value
            continue
        if _matches(name, allow_reset):
            reset.append(name)
            continue
        fitted[name] = _resized(model, name, value, wanted.shape)
        resized.append(name)
    return fitted, tuple(resized), tuple(reset)


def _resized(model: nn.Module, name: str, value: Tensor, wanted: torch.Size) -> Tensor:
    """A position table in the length that the model needs.

    Raises:
        _Misfit: another kind of weight, or a table whose own grid cannot be known.
    """
    kind = name.rpartition(".")[2]
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
    first, places = value.split([model.prefix * prefix, value.shape[1] - model.prefix * prefix], dim=1)
    grid = TokenGrid(1, height, width)
    factor = (places.shape[1] / grid.size) ** 0.5
    native = TokenGrid(1, round(height * factor), round(width * factor))
    if native.size != places.shape[1] or (prefix and frames != 1):
        return None
    return torch.cat([first, joint_positions(places.float(), native, grid).to(value.dtype)], dim=1)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _read_torch_file(path: str) -> object:
    with open_file(path, "rb") as file:
        start: bytes = file.read(2)
    if start and not start.startswith(_TORCH_STARTS):
        raise UserError(
            f"{path}: is no checkpoint: neither a zip archive nor a pickle, as torch writes them; give a "
            ".pyth, .pt, .pth or .safetensors file of weights"
        )
    try:
        return torch.load(local_path(path), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "unsupported" in str(error).lower():  # a global or an operation that is not plain data
            raise PickledCode(
                f"{path}: holds pickled code besides tensors, which is never run here; load it where you "
                "trust it, keep only the tensors (torch.save({'model_state': state}, ...)), use that file"
            ) from error
        raise _damaged(path, error) from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # what torch's reader says of a zip archive without its end
            raise
        raise _damaged(path, error) from error


def read_metadata(path: str) -> dict[str, str]:
    """The texts in a safetensors file of weights, by key.

    Raises:
        UserError: no such file, a damaged one, or one of another format.
    """
    _require_file(path)
    try:
        with safe_open(local_path(path), "pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise _damaged(path, error) from error


def _require_file(path: str) -> None:
    if is_file(path):
        return
    if is_folder(path):
        inside = os.path.join(path, "weights.safetensors")
        what = f"the weights in it, {inside}" if is_file(inside) else "the file of weights itself"
        raise UserError(f"{path}: is a folder; give {what}")
    raise UserError(f"{path}: no such file of weights; check the path")


def _damaged(path: str, error: Exception) -> UserError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(f"{path}: is cut or damaged and cannot be read ({reason}); copy or download it again")
