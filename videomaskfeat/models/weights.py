"""Reading of weights files: our own (safetensors with the model's name inside), state dicts and checkpoints.

:mod:`videomaskfeat.models.loading` loads them into models; :mod:`videomaskfeat.models.saving` writes ours.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from videomaskfeat.errors import UserError
from videomaskfeat.io import is_file, is_folder, local_path
from videomaskfeat.tensor_files import (
    read_metadata,
    read_safetensors,
    read_torch_file,
)
from videomaskfeat.texts import parse_json, show_text

# Usual keys of the weights in a checkpoint; the first that exists is used.
_STATE_KEYS = ("model_state", "state_dict", "model", "module", "target_encoder", "ema_encoder", "encoder")
# Weights in a folder of transformers or timm.
_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")


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


def is_own(path: str) -> bool:
    """Whether the file is a safetensors file with the name of one of our models."""
    return path.endswith(".safetensors") and "model" in read_metadata(path)


def created_as(path: str) -> tuple[str, dict[str, Any]]:
    """Name and arguments in a file of :func:`save_model`, unchecked; raises as :func:`load_model`."""
    metadata = read_metadata(path)
    if "model" not in metadata:
        raise UserError(
            f"{path} contains no model name, so save_model did not write it; create the model with "
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
    checkpoint = _with_lists(content) if isinstance(content, Mapping) else {}
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


def _with_lists(checkpoint: Mapping[Any, Any]) -> dict[Any, Any]:
    """A checkpoint whose lists of state dicts have a key per entry, such as V-JEPA's "classifiers.0"."""
    entries = {
        f"{name}.{index}": value
        for name, values in checkpoint.items()
        if isinstance(values, list)
        for index, value in enumerate(values[:100])
        if _is_state(value)
    }
    return {**checkpoint, **entries}


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
