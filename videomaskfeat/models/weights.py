"""Weights on disk: what we publish (safetensors with the model's name inside), and what others saved."""

from __future__ import annotations

import errno
import json
import os
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from videomaskfeat.errors import RunFailed, UserError
from videomaskfeat.io import is_file, local_path
from videomaskfeat.models import create_model
from videomaskfeat.models.positions import resize_table

_RELATIVE_TABLES = ("rel_pos_t", "rel_pos_h", "rel_pos_w")
# Where others keep the weights inside their checkpoints.
_STATE_KEYS = ("model_state", "state_dict", "model")


@dataclass(frozen=True)
class LoadReport:
    """What became of every weight, by name.

    Attributes:
        loaded: taken as they were.
        resized: relative position tables interpolated to the model's length (also counted in ``loaded``).
        missing: parameters of the model that the file does not have; they keep their values.
        unused: weights in the file that the model does not have.
    """

    loaded: tuple[str, ...]
    resized: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} weights loaded"]
        for kind in ("resized", "missing", "unused"):
            names = getattr(self, kind)
            if names:
                parts.append(f"{len(names)} {kind} ({_some(names)})")
        return ", ".join(parts)


def save_weights(
    path: str | os.PathLike[str], model: nn.Module, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a model's weights as safetensors, with its name and arguments inside.

    The file is written under a temporary name and then renamed.

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
    target = Path(path)
    partial = target.with_name(f".{target.name}.part")
    own = {"format": "pt", "model": name, "arguments": json.dumps(arguments)}
    try:
        save_file(state, partial, {**(metadata or {}), **own})
    except SafetensorError as error:
        partial.unlink(missing_ok=True)
        raise RunFailed(f"{target}: the weights could not be written: {error}") from error
    os.replace(partial, target)


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
    metadata = _read_metadata(text)
    if "model" not in metadata:
        raise UserError(
            f"{text}: has no model name inside, so it was not written by save_weights; "
            "build the model with create_model and use load_into"
        )
    model = create_model(metadata["model"], **json.loads(metadata.get("arguments", "{}")))
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
    source: str = "the weights",
) -> LoadReport:
    """Load weights into a model; whatever does not match must be allowed by name.

    Relative position tables of another length are linearly interpolated, as the model itself does for
    another clip size. Nothing is loaded when an error is raised.

    Args:
        model: the model; changed in place.
        state: name -> tensor.
        allow_missing: names or patterns (``head.*``) that the model may have and ``state`` lacks.
        allow_unused: names or patterns that ``state`` may have and the model lacks.
        source: what to call ``state`` in error messages, such as its path.

    Returns:
        What was loaded, resized, missing and unused.

    Raises:
        UserError: a name is missing or unused without permission, or a shape differs.
    """
    own = model.state_dict()
    missing = tuple(name for name in own if name not in state)
    unused = tuple(name for name in state if name not in own)
    for kind, names, allowed, remedy in (
        ("lacks", missing, tuple(allow_missing), "allow_missing"),
        ("has", unused, tuple(allow_unused), "allow_unused"),
    ):
        refused = [name for name in names if not any(fnmatchcase(name, pattern) for pattern in allowed)]
        if refused:
            other = "that the model has" if kind == "lacks" else "that the model does not have"
            raise UserError(
                f"{source} {kind} {len(refused)} weights {other} ({_some(refused)}); "
                f"build the model that was saved, or name them in {remedy}"
            )
    fitted, resized = {}, []
    for name in (name for name in own if name in state):
        value, wanted = state[name], own[name].shape
        if value.shape != wanted:
            if not _is_relative_table(name, value.shape, wanted):
                raise UserError(
                    f"{source}: {name} has shape {tuple(value.shape)} and the model needs {tuple(wanted)}; "
                    "build the model with the arguments of the one that was saved"
                )
            value = resize_table(value.float(), wanted[0]).to(value.dtype)
            resized.append(name)
        fitted[name] = value
    model.load_state_dict(fitted, strict=False)
    return LoadReport(
        loaded=tuple(name for name in own if name in fitted),
        resized=tuple(sorted(resized)),
        missing=missing,
        unused=unused,
    )


def _is_relative_table(name: str, shape: torch.Size, wanted: torch.Size) -> bool:
    return name.rpartition(".")[2] in _RELATIVE_TABLES and shape[1:] == wanted[1:]


def _read_torch_file(path: str) -> object:
    try:
        return torch.load(local_path(path), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "unsupported" in str(error).lower():  # a global or an operation that is not plain data
            raise UserError(
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


def _read_metadata(path: str) -> dict[str, str]:
    _require_file(path)
    try:
        with safe_open(local_path(path), "pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise _damaged(path, error) from error


def _require_file(path: str) -> None:
    if not is_file(path):
        raise UserError(f"{path}: no such file of weights; check the path")


def _damaged(path: str, error: Exception) -> UserError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(f"{path}: is cut or damaged and cannot be read ({reason}); copy or download it again")


def _some(names: Iterable[str], count: int = 3) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
