"""The parts of ``export``: a model behind the preparation of its clips, with named inputs and outputs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from videomaskfeat.errors import UserError
from videomaskfeat.grid import TokenGrid
from videomaskfeat.interop.export import Graph
from videomaskfeat.models.cubes import as_triple
from videomaskfeat.models.detector import Detector
from videomaskfeat.models.encoder import encoder_of
from videomaskfeat.models.encoder_base import Encoder, on_grid
from videomaskfeat.models.heads import Classifier
from videomaskfeat.models.mae import MAE
from videomaskfeat.models.masked import MaskedModel
from videomaskfeat.models.weights import load_model
from videomaskfeat.tasks.recipe import (
    METADATA_KEY,
    ClassifyRecipe,
    Levels,
    normalise,
    read_recipe,
    read_testing_recipe,
    recipe_texts,
)


@dataclass(frozen=True)
class Subject:
    """A model and its input.

    Attributes:
        model: in evaluation mode, on the CPU.
        part: "model" or "encoder".
        input: "uint8" or "float"; see :func:`~videomaskfeat.tasks.conversion.export.export`.
        recipe: which clips the model wants; None where the weights do not say.
        mask: the grid on which the mask of a pre-training model is given.
    """

    model: Encoder
    part: str
    input: str
    recipe: ClassifyRecipe | None
    mask: TokenGrid

    @property
    def clip(self) -> tuple[int, int, int]:
        """Frames, height and width: the recipe's, or those that the model was made for."""
        return _clip_size(self.model, self.recipe)

    def graph(self) -> Graph:
        """What goes in and out, and what happens between."""
        prepare: nn.Module = nn.Identity()
        if self.input == "uint8":
            assert self.recipe is not None
            prepare = _Normalise(self.recipe.clip.mean, self.recipe.clip.std)
        if self.part == "model" and isinstance(self.model, MaskedModel):
            return Graph(_Predict(prepare, self.model).eval(), ("clips", "mask"), ("predictions",))
        if self.part == "model" and isinstance(self.model, Classifier):
            return Graph(_Classify(prepare, self.model).eval(), ("clips",), ("logits",))
        if self.part == "model" and isinstance(self.model, Detector):
            detect = _Detect(prepare, self.model).eval()
            return Graph(detect, ("clips", "boxes"), ("logits",), boxes=("boxes", "logits"))
        return Graph(_Encode(prepare, self.model).eval(), ("clips",), ("features", "tokens"))

    def inputs(self, batch: int, seed: int) -> tuple[Tensor, ...]:
        """Random inputs of the graph."""
        generator = torch.Generator().manual_seed(seed)
        channels = self.model.patch_embed.in_channels
        if self.input == "uint8":
            shape = (batch, *self.clip, channels)
            clips = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        else:
            clips = torch.randn(batch, channels, *self.clip, generator=generator)
        if isinstance(self.model, Detector):
            # Never one box, which a tracer takes for a constant, and other numbers than it was traced with.
            boxes = self._boxes(batch, 2 * batch + 1 + seed, generator)
            return (clips, boxes)[: len(self.graph().inputs)]
        draws = torch.rand(batch, self.mask.size, generator=generator)
        # Of an MAE each sample hides equally many, not all and not none.
        ranks = draws.argsort(dim=1).argsort(dim=1)
        exact = ranks < min(max(round(0.4 * self.mask.size), 1), max(self.mask.size - 1, 1))
        mask = (exact if isinstance(self.model, MAE) else draws < 0.4).unflatten(1, self.mask.shape)
        return (clips, mask)[: len(self.graph().inputs)]

    def _boxes(self, batch: int, count: int, generator: torch.Generator) -> Tensor:
        """Random boxes [R, 5] in the clips of a batch."""
        _, height, width = self.clip
        corners = torch.rand(count, 2, 2, generator=generator).sort(dim=1).values  # first and second, x and y
        corners = corners * torch.tensor([width, height])
        places = torch.arange(count) % batch
        return torch.cat([places[:, None].float(), corners.flatten(1)], dim=1)

    def signature(self, batch: int | None) -> tuple[dict[str, str], dict[str, str]]:
        """The inputs and the outputs of the graph, name -> such as "float32 [batch, 400]"."""
        graph, inputs = self.graph(), self.inputs(1, seed=0)
        outputs = graph.run(inputs)
        words = [
            _in_words(graph, names, tensors, batch)
            for names, tensors in ((graph.inputs, inputs), (graph.outputs, outputs))
        ]
        return words[0], words[1]

    def alone(self) -> Encoder:
        """The part itself: the model, or a copy of its encoder."""
        return self.model if self.part == "model" else encoder_of(self.model)


class _Normalise(nn.Module):
    """uint8 [B, T, H, W, C] -> float32 [B, C, T, H, W]."""

    def __init__(self, mean: Levels, std: Levels) -> None:
        super().__init__()
        self.mean = mean
        self.std = std

    def forward(self, clips: Tensor) -> Tensor:
        return normalise(clips, mean=self.mean, std=self.std)


class _Exportable(nn.Module):
    """A model behind the preparation of its clips."""

    def __init__(self, prepare: nn.Module, model: Encoder) -> None:
        super().__init__()
        self.prepare = prepare
        self.model = model


class _Classify(_Exportable):
    """Clips -> logits [B, L]."""

    def forward(self, clips: Tensor) -> Tensor:
        return self.model(self.prepare(clips))


class _Predict(_Exportable):
    """Clips and mask bool [B, t', h', w'] -> predictions [B, t, h, w, K]."""

    def forward(self, clips: Tensor, mask: Tensor) -> Tensor:
        return self.model(self.prepare(clips), mask)


class _Detect(_Exportable):
    """Clips and boxes float [R, 5] (place in the batch, x1, y1, x2, y2 in pixels) -> logits [R, L]."""

    def forward(self, clips: Tensor, boxes: Tensor) -> Tensor:
        return self.model(self.prepare(clips), boxes)


class _Encode(_Exportable):
    """Clips -> features [B, D] and tokens [B, t, h, w, D], both of `Encoder.features`, in one pass."""

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        tokens, grid = self.model.through_blocks(*self.model.patch_embed(self.prepare(clips)))
        tokens = on_grid(tokens, grid)
        return self.model.pool(tokens), self.model.norm(tokens).unflatten(1, grid.shape)


def read_subject(weights: str | os.PathLike[str], *, part: str, input: str) -> Subject:
    """Load a model, and find out from its recipe what it takes.

    Raises:
        UserError: the weights cannot be read, or have no recipe and pixels are to be normalised.
    """
    texts = recipe_texts(weights)
    if not texts and input == "uint8":
        raise UserError(
            f"{os.fspath(weights)}: weights without a recipe, so nothing says how pixels are normalised; "
            "take --input float, and normalise clips as in training"
        )
    model = cast(Encoder, load_model(weights))
    recipe = read_testing_recipe(weights) if texts else None
    clip = _clip_size(model, recipe)
    mask = model.output_grid(clip)
    if METADATA_KEY in texts:
        cell = read_recipe(weights).mask.cell
        mask = TokenGrid.from_clip(frames=clip[0], height=clip[1], width=clip[2], stride=cell)
    return Subject(model, part, input, recipe, mask)


def slowfast_clip_keys(recipe: ClassifyRecipe) -> dict[str, dict[str, Any]]:
    """The keys of a PySlowFast YAML about clips and views, as far as it can say the same."""
    clip, segments = recipe.clip, recipe.sampling == "segments"
    data: dict[str, Any] = {}
    for key, value in (("MEAN", clip.mean), ("STD", clip.std)):
        colours = value if isinstance(value, tuple) else (value,) * 3
        # Its frames of SSv2 are blue, green, red: normalised so, and then reversed for a model of ours.
        data[key] = list(colours[::-1] if segments else colours)
    if segments:
        data["REVERSE_INPUT_CHANNEL"] = True
    else:
        data["USE_OFFSET_SAMPLING"] = True  # or its views would not reach from the first frame to the last
        if recipe.crops == 1:  # one crop is cut from a frame of the smallest scale of training, three are not
            data["TRAIN_JITTER_SCALES"] = [recipe.short_side, recipe.short_side * 5 // 4]
    for key, number in (("SAMPLING_RATE", clip.stride), ("TARGET_FPS", clip.target_fps)):
        if number is not None and number == int(number):  # it takes whole numbers
            data[key] = int(number)
    dataset = {"DATASET": "ssv2" if segments else "kinetics"}
    views = {"NUM_ENSEMBLE_VIEWS": recipe.views, "NUM_SPATIAL_CROPS": recipe.crops}
    keys = {"DATA": data, "TRAIN": dataset, "TEST": {**dataset, **views}}
    return keys | ({"MODEL": {"HEAD_ACT": "none"}} if recipe.average == "logits" else {})


def _clip_size(model: Encoder, recipe: ClassifyRecipe | None) -> tuple[int, int, int]:
    if recipe is not None:
        return recipe.clip.frames, recipe.clip.crop, recipe.clip.crop
    cubes, steps = model.native_grid.shape, model.patch_embed.stride
    return as_triple(count * step for count, step in zip(cubes, steps, strict=True))


def _in_words(
    graph: Graph, names: Iterable[str], tensors: Iterable[Tensor], batch: int | None
) -> dict[str, str]:
    """Name -> type and shape, such as "float32 [batch, 400]"."""
    words = {}
    for name, tensor in zip(names, tensors, strict=True):
        first = "boxes" if name in graph.boxes else "batch" if batch is None else str(batch)
        shape = [first, *map(str, tensor.shape[1:])]
        words[name] = f"{str(tensor.dtype).removeprefix('torch.')} [{', '.join(shape)}]"
    return words
