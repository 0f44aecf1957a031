"""What a detector's weights file knows besides the model: how it sees key frames, which actions it names."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from videomaskfeat.data.ava_views import AREAS
from videomaskfeat.errors import UserError, nearest
from videomaskfeat.tasks.recipe import DETECT_KEY, LIMITS, ClipRecipe, recipe_texts
from videomaskfeat.texts import parse_json
from videomaskfeat.values import from_parts


@dataclass(frozen=True)
class DetectRecipe:
    """How a detector sees key frames, and what it says of each box.

    Attributes:
        clip: see :class:`~videomaskfeat.tasks.recipe.ClipRecipe`; the key frame is in its middle.
        actions: id to name of the actions with a name. The logit in column i is of the action with the id
            i + 1.
        classes: number of actions, L; ids count from 1 to this.
        poses: ids of which a person has exactly one: their scores are a softmax, those of the others
            sigmoids. Empty: all are sigmoids.
        short_side: pixels that a frame's short side is resized to in testing.
        area: "whole" (the frame in its aspect) or "centre" (a square crop, boxes cut to it).
        score_threshold: the least score of a detected box that is tested on.
    """

    clip: ClipRecipe
    actions: Mapping[int, str]
    classes: int
    poses: tuple[int, ...] = ()
    short_side: int = 224
    area: str = "whole"
    score_threshold: float = 0.8

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            UserError: an area or an id that is unknown, or a score that is none.
        """
        if self.area not in AREAS:
            raise UserError(f"area {self.area!r} is not one of {', '.join(AREAS)}{nearest(self.area, AREAS)}")
        if not 0 <= self.score_threshold <= 1:
            raise UserError(
                f"score_threshold={self.score_threshold:g} is not in 0..1; it is a detected box's least score"
            )
        wrong = [number for number in (*self.actions, *self.poses) if not 1 <= number <= self.classes]
        if wrong:
            raise UserError(
                f"the action {wrong[0]} is none of the {self.classes} that the model knows: ids count from 1 "
                f"to {self.classes}"
            )

    @property
    def pose_mask(self) -> Tensor:
        """bool [L], which columns exclude each other."""
        mask = torch.zeros(self.classes, dtype=torch.bool)
        mask[[number - 1 for number in self.poses]] = True
        return mask

    def name_of(self, column: int) -> str:
        """What the action of a column is called."""
        return self.actions.get(column + 1, f"action {column + 1}")

    def to_json(self) -> str:
        """The recipe as the text that belongs under ``DETECT_KEY``."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> DetectRecipe:
        """The recipe in the words of :meth:`to_json`.

        Raises:
            ValueError: no JSON, a part that is missing, or a key that no part has.
        """
        try:
            return from_parts(cls, parse_json(text, "metadata"), limits=LIMITS)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"no detector's recipe: {error}") from error


def read_detect_recipe(path: str | os.PathLike[str]) -> DetectRecipe:
    """The recipe in the metadata of a detector's safetensors file.

    Raises:
        UserError: the file is missing, is no safetensors file, or is no detector's.
    """
    texts, name = recipe_texts(path), os.fspath(path)
    if DETECT_KEY not in texts:
        what = f"weights of another kind ({', '.join(texts)})" if texts else "weights without a recipe"
        raise UserError(
            f"{name}: {what}, and a detector's are needed (metadata key {DETECT_KEY!r}); give the "
            "best.safetensors of a run of detect-train"
        )
    try:
        return DetectRecipe.from_json(texts[DETECT_KEY])
    except ValueError as error:
        raise UserError(f"{name}: its metadata key {DETECT_KEY!r} holds {error}") from error
