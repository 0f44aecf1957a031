"""Writing of weights files: safetensors with the model's name and arguments inside."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Protocol

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from videomaskfeat import import_object
from videomaskfeat.errors import RunFailed, UserError
from videomaskfeat.io import whole_path


class Recipe(Protocol):
    """How the clips of a model are cut, such as :class:`~videomaskfeat.stored_recipe.ClassifyRecipe`."""

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

    Adapters of :func:`~videomaskfeat.models.lora.add_lora` are merged into the weights.
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
    state = model.state_dict()
    if any(".lora_" in key for key in state):
        state = import_object("videomaskfeat.models.lora:merged_state")(model)
    state = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    own = {"format": "pt", "model": name, "arguments": json.dumps(arguments)}
    if recipe is not None:
        own[recipe.key] = recipe.to_json()
    write_safetensors(Path(path), state, {**(metadata or {}), **own})


def write_safetensors(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata as a whole file (see `whole_path`); equal content makes equal bytes.

    Raises:
        RunFailed: the file cannot be written.
        UserError: its folder does not exist.
    """
    try:
        with whole_path(path) as temporary:
            save_file(dict(state), temporary, dict(metadata))
            _sort_header(temporary)
    except (SafetensorError, OSError) as error:
        raise RunFailed(f"{path}: the weights could not be written: {error}") from error


def _sort_header(path: Path) -> None:
    """Sort the metadata in a safetensors header by key, in place.

    safetensors writes it in the order of a hash table, which differs from process to process. The order does
    not change the length, so the tensors stay in place.
    """
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header = {"__metadata__": dict(sorted(header.pop("__metadata__", {}).items())), **header}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
        assert len(text) <= length
        file.seek(8)
        file.write(text.ljust(length))
