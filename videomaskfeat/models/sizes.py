"""The sizes of the named models (sizes.json), and their measurement."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from videomaskfeat.errors import UserError, nearest
from videomaskfeat.models.cost import multiply_adds
from videomaskfeat.models.encoder_base import as_triple
from videomaskfeat.models.maskfeat import MaskedModel
from videomaskfeat.models.zoo import (
    CLASSIFIER,
    DETECTOR,
    HIERA_MAE,
    MAE,
    MASKFEAT,
    MODELS,
    arguments_of,
    create_model,
    list_models,
)


@dataclass(frozen=True)
class ModelFacts:
    """Size and purpose of a named model with its default arguments.

    Attributes:
        name: name of the model.
        parameters: number of parameters.
        multiply_adds: multiply-adds of one forward pass of one clip; of a detector, with one box; of an MAE,
            with :data:`HIDDEN_SHARE` of the cubes hidden.
        clip: frames, height and width.
        purpose: what the model is for.
    """

    name: str
    parameters: int
    multiply_adds: float
    clip: tuple[int, int, int]
    purpose: str


HIDDEN_SHARE = {True: 0.75, False: 0.9}
"""Share of the hidden cubes of an MAE for images (arXiv 2111.06377) and for videos (2205.09113)."""


_PURPOSES = {
    HIERA_MAE: "pre-training; encodes visible mask units only",
    MAE: "pre-training; encodes visible cubes only",
    MASKFEAT: "pre-training",
    DETECTOR: "action detection",
    CLASSIFIER: "classification",
}


def _similar(words: str) -> list[str]:
    """At most four names that contain some of the words between underscores."""
    own = set(words.split("_")) - {""}
    scores = {name: len(own & set(name.split("_"))) for name in MODELS}
    best = max(scores.values())
    return [name for name in sorted(scores) if best and scores[name] == best][:4]


def list_facts(pattern: str = "*") -> list[ModelFacts]:
    """The facts of the models whose names match a pattern, see ``list_models``, from the file sizes.json.

    Raises:
        UserError: no name matches.
    """
    names = list_models(pattern)
    if not names:
        words = pattern.strip("*")
        close = nearest(words, MODELS) or (
            f"; similar names: {', '.join(similar)}" if (similar := _similar(words)) else ""
        )
        raise UserError(f"no model matches {pattern!r}{close}; `videomaskfeat models` lists all")
    with open(Path(__file__).with_name("sizes.json"), encoding="utf-8") as file:
        sizes: dict[str, tuple[int, int]] = json.load(file)
    return [
        ModelFacts(
            name,
            parameters=sizes[name][0],
            multiply_adds=sizes[name][1],
            clip=as_triple(arguments_of(name)["clip_size"]),
            purpose=_PURPOSES.get(MODELS[name].classes[0], "features, without a head"),
        )
        for name in names
    ]


def measure_model(name: str, **arguments: Any) -> tuple[int, float]:
    """Parameters and multiply-adds of a named model, see :class:`ModelFacts`.

    The model is run once on a clip of zeros, which takes minutes for large models.
    """
    model = create_model(name, **arguments).eval()
    inputs = [torch.zeros(1, 3, *model.clip_size)]
    kind = MODELS[name].classes[0]
    if isinstance(model, MaskedModel):
        grid = model.mask_grid(model.clip_size)
        mask = torch.zeros(grid.size, dtype=torch.bool)
        mask[: round(HIDDEN_SHARE[model.clip_size[0] == 1] * grid.size)] = True
        inputs.append(mask.view(1, *grid.shape))
    elif kind == DETECTOR:
        inputs.append(torch.zeros(1, 5))
    with torch.no_grad():
        cost = multiply_adds(model, tuple(inputs))
    return sum(parameter.numel() for parameter in model.parameters()), cost


def facts_text(facts: Sequence[ModelFacts]) -> str:
    """A table of models."""
    rows = [("name", "parameters", "multiply-adds", "clip", "for")]
    for one in facts:
        frames, height, width = one.clip
        size = f"{frames}x{height}x{width}"
        row = (one.name, f"{one.parameters / 1e6:.2f} M", f"{one.multiply_adds / 1e9:.2f} G", size)
        rows.append((*row, one.purpose))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = []
    for name, parameters, cost, size, purpose in rows:
        numbers = f"{parameters:>{widths[1]}}  {cost:>{widths[2]}}"
        lines.append(f"{name:<{widths[0]}}  {numbers}  {size:<{widths[3]}}  {purpose}")
    return "\n".join(lines)


def facts_json(facts: Sequence[ModelFacts]) -> str:
    """The models as a JSON list of objects with the attributes of :class:`ModelFacts`."""
    return json.dumps([asdict(one) for one in facts], indent=2)
