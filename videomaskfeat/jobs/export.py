"""``export``: write a model as safetensors, PySlowFast, torch.export or ONNX, and check its outputs."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from torch import Tensor, nn

from videomaskfeat.engine.threads import choose_threads
from videomaskfeat.errors import RunFailed, UserError, check_name
from videomaskfeat.grid import TokenGrid
from videomaskfeat.interop.export import (
    Graph,
    Run,
    load_onnx,
    load_program,
    require_onnx,
    save_onnx,
    save_program,
)
from videomaskfeat.interop.slowfast import load_slowfast
from videomaskfeat.interop.slowfast_export import slowfast_clip_options, slowfast_options, slowfast_state
from videomaskfeat.io import check_outputs, make_folder
from videomaskfeat.models import create_model
from videomaskfeat.models.detector import Detector
from videomaskfeat.models.encoder_base import Encoder, on_grid
from videomaskfeat.models.heads import Classifier
from videomaskfeat.models.loading import load_into, load_model
from videomaskfeat.models.maskfeat import MaskedModel
from videomaskfeat.models.saving import save_model
from videomaskfeat.models.weights import read_state
from videomaskfeat.models.zoo import encoder_of
from videomaskfeat.recipe import METADATA_KEY, ClipRecipe
from videomaskfeat.stored_recipe import (
    ENCODER_KEY,
    ClassifyRecipe,
    read_recipe,
    read_testing_recipe,
    recipe_texts,
)

logger = logging.getLogger(__name__)

FORMATS = {"safetensors": ".safetensors", "slowfast": ".pyth", "torch": ".pt2", "onnx": ".onnx"}
GRAPHS = ("torch", "onnx")
MODEL_PARTS = ("model", "encoder")
INPUTS = ("uint8", "float")
OPSET = 20  # the first one with GELU, and torch's default
TOLERANCE = 1e-4
"""Maximum relative difference. Another order of sums causes 1e-6 in float32, and 5e-5 in a network of 16
blocks with four times the initial weights."""
_EXAMPLE_SEED, _TEST_SEED = 0, 1  # inputs for tracing and for the comparison


@dataclass(frozen=True)
class Difference:
    """The difference between the outputs of a file and of the model.

    Attributes:
        output: name of the output.
        largest: largest absolute difference.
        value: largest absolute value of the model's output.
    """

    output: str
    largest: float
    value: float

    @property
    def relative(self) -> float:
        """The difference relative to the value."""
        if self.largest == 0:
            return 0.0
        return self.largest / self.value if self.value else math.inf


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
        paths: the file, and for PySlowFast its YAML.
        inputs: name -> type and shape of each input of a graph; empty for weights.
        outputs: the same for outputs.
        difference: the largest relative difference, on other inputs than those of the tracing.
        batches: batch sizes of the comparison.
    """

    paths: tuple[Path, ...]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    difference: Difference
    batches: tuple[int, ...]

    def text(self) -> str:
        """The result as text."""
        lines = list(map(str, self.paths))
        lines[0] += f"  ({self.paths[0].stat().st_size / 1e6:.1f} MB)"
        lines += [f"  input   {name}: {shape}" for name, shape in self.inputs.items()]
        lines += [f"  output  {name}: {shape}" for name, shape in self.outputs.items()]
        difference, batches = self.difference, " and ".join(map(str, self.batches))
        lines.append(
            f"  largest difference from the model: {difference.largest:.2g} in {difference.output}, relative "
            f"to values up to {difference.value:.3g} (batches of {batches})"
        )
        return "\n".join(lines)


def export(
    weights: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    format: str = "auto",
    part: str = "model",
    input: str | None = None,
    batch: int | None = None,
    opset: int | None = None,
    tolerance: float = TOLERANCE,
    overwrite: bool = False,
) -> Exported:
    """Write a model in another format, and keep the file if its outputs equal those of the model.

    Args:
        weights: safetensors file of a run or of ``videomaskfeat import-slowfast``.
        out: file to write; its folder is created.
        format: a key of :data:`FORMATS`, or auto: by the suffix of ``out``.
        part: "model", or "encoder": without prediction or classification head.
        input: input of a graph: "uint8" (clips [B, T, H, W, C] as decoded, RGB; normalized inside; default)
            or "float" (normalized clips [B, C, T, H, W]).
        batch: batch size of a graph; None: any.
        opset: ONNX opset; None: 20.
        tolerance: maximum relative difference of an output.
        overwrite: replace ``out`` if it exists.

    Raises:
        UserError: the weights cannot be read, or an argument is wrong or does not apply to the format.
        RunFailed: the outputs differ, or the file cannot be written. ``out`` does not change then.
    """
    target = Path(out)
    format = _resolve_format(target, format)
    _check_options(format, part=part, input=input, batch=batch, opset=opset, tolerance=tolerance)
    paths = (target, target.with_suffix(".yaml")) if format == "slowfast" else (target,)
    for path in paths:
        if path.is_dir():
            raise UserError(f"{path} is a folder; give the name of the file to write")
    check_outputs(paths, overwrite=overwrite)
    if format == "onnx":
        require_onnx(opset or OPSET)
    subject = _load_subject(weights, part=part, input=(input or "uint8") if format in GRAPHS else "float")
    if part == "model" and format in GRAPHS and getattr(subject.model, "equal_masks", False):
        raise UserError(
            f"{os.fspath(weights)}: an MAE model cannot be exported as a graph, since it depends on the "
            "number of visible cubes in the mask; use --part encoder, or a format of weights"
        )
    make_folder(target.absolute().parent)
    graph, example = subject.build_graph(), subject.draw_inputs(1, _EXAMPLE_SEED)
    choice = choose_threads(lambda: graph.run(example))
    if choice.seconds:
        logger.info("threads   %s", choice)
    logger.info("writing %s and comparing it with the model", target)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=target.absolute().parent) as folder:
        metadata = recipe_texts(weights)
        if part == "encoder" and subject.recipe is not None:
            metadata = {ENCODER_KEY: dataclasses.replace(subject.recipe, class_names=()).to_json()}
        temporary = Path(folder, target.name)
        run = _write(temporary, subject, metadata, format=format, batch=batch, opset=opset or OPSET)
        batches = (1, 3) if batch is None else (batch,)
        difference = _compare(target, subject, run, batches, tolerance)
        for path in paths:
            os.replace(Path(folder, path.name), path)
    inputs, outputs = subject.describe_tensors(batch) if format in GRAPHS else ({}, {})
    return Exported(paths, inputs, outputs, difference, batches)


@dataclass(frozen=True)
class _Subject:
    """A model to export, and its inputs.

    Attributes:
        model: the model in evaluation mode, on the CPU.
        part: "model" or "encoder".
        input: "uint8" or "float"; see :func:`export`.
        recipe: how clips are cut; None if unknown.
        mask_grid: grid of the mask of a pre-training model.
    """

    model: Encoder
    part: str
    input: str
    recipe: ClassifyRecipe | None
    mask_grid: TokenGrid

    def build_graph(self) -> Graph:
        """The module to export, with the names of its inputs and outputs."""
        prepare: nn.Module = nn.Identity()
        if self.input == "uint8":
            assert self.recipe is not None
            prepare = _Normalize(self.recipe.clip)
        types = _GRAPHS.items() if self.part == "model" else ()
        build = next((build for kind, build in types if isinstance(self.model, kind)), _Encode)
        return Graph(build(prepare, self.model).eval(), build.inputs, build.outputs, build.boxes)

    def draw_inputs(self, batch: int, seed: int) -> tuple[Tensor, ...]:
        """Random inputs of the graph."""
        generator = torch.Generator().manual_seed(seed)
        channels = self.model.patch_embed.in_channels
        size = _clip_size(self.model, self.recipe)
        if self.input == "uint8":
            clips = torch.randint(256, (batch, *size, channels), dtype=torch.uint8, generator=generator)
        else:
            clips = torch.randn(batch, channels, *size, generator=generator)
        names = self.build_graph().inputs
        if "boxes" in names:
            # Never a single box, which a tracer treats as a constant, and other numbers for other seeds.
            return clips, _draw_boxes(size, batch, 2 * batch + 1 + seed, generator)
        return (clips, self._draw_mask(batch, generator)) if "mask" in names else (clips,)

    def _draw_mask(self, batch: int, generator: torch.Generator) -> Tensor:
        cells = self.mask_grid.size
        draws = torch.rand(batch, cells, generator=generator)
        mask = draws < 0.4
        if getattr(
            self.model, "equal_masks", False
        ):  # the same number of hidden cells per sample, not all and not none
            hidden = min(max(round(0.4 * cells), 1), max(cells - 1, 1))
            mask = draws.argsort(dim=1).argsort(dim=1) < hidden
        return mask.unflatten(1, self.mask_grid.shape)

    def describe_tensors(self, batch: int | None) -> tuple[dict[str, str], dict[str, str]]:
        """Inputs and outputs of the graph, name -> such as "float32 [batch, 400]"."""
        graph, inputs = self.build_graph(), self.draw_inputs(1, seed=0)

        def describe(names: Iterable[str], tensors: Iterable[Tensor]) -> dict[str, str]:
            texts = {}
            for name, tensor in zip(names, tensors, strict=True):
                first = "boxes" if name in graph.boxes else "batch" if batch is None else str(batch)
                shape = ", ".join([first, *map(str, tensor.shape[1:])])
                texts[name] = f"{str(tensor.dtype).removeprefix('torch.')} [{shape}]"
            return texts

        return describe(graph.inputs, inputs), describe(graph.outputs, graph.run(inputs))

    def extract_part(self) -> Encoder:
        """The model, or a copy of its encoder."""
        return self.model if self.part == "model" else encoder_of(self.model)


def _draw_boxes(size: tuple[int, int, int], batch: int, count: int, generator: torch.Generator) -> Tensor:
    """Random boxes [R, 5] in the clips of a batch."""
    _, height, width = size
    corners = torch.rand(count, 2, 2, generator=generator).sort(dim=1).values  # [R, first or second, x or y]
    corners = corners * torch.tensor([width, height])
    places = torch.arange(count) % batch
    return torch.cat([places[:, None].float(), corners.flatten(1)], dim=1)


class _Normalize(nn.Module):
    """uint8 [B, T, H, W, C] -> float32 [B, C, T, H, W]."""

    def __init__(self, clip: ClipRecipe) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, clips: Tensor) -> Tensor:
        return self.clip.normalize(clips)


class _Exportable(nn.Module):
    """A model after the normalization of its clips; ``boxes`` are inputs and outputs with one row per box."""

    inputs: tuple[str, ...] = ("clips",)
    outputs: tuple[str, ...] = ("logits",)
    boxes: tuple[str, ...] = ()

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

    inputs, outputs = ("clips", "mask"), ("predictions",)

    def forward(self, clips: Tensor, mask: Tensor) -> Tensor:
        return self.model(self.prepare(clips), mask)


class _Detect(_Exportable):
    """Clips and boxes float [R, 5] (index in the batch, x1, y1, x2, y2 in pixels) -> logits [R, L]."""

    inputs, boxes = ("clips", "boxes"), ("boxes", "logits")

    def forward(self, clips: Tensor, boxes: Tensor) -> Tensor:
        return self.model(self.prepare(clips), boxes)


class _Encode(_Exportable):
    """Clips -> features [B, D] and tokens [B, t, h, w, D], both of `Encoder.features`, in one pass."""

    outputs = ("features", "tokens")

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        tokens, grid = self.model.through_blocks(*self.model.patch_embed(self.prepare(clips)))
        tokens = on_grid(tokens, grid)
        return self.model.pool(tokens), self.model.norm(tokens).unflatten(1, grid.shape)


_GRAPHS: dict[type[nn.Module], type[_Exportable]] = {
    MaskedModel: _Predict,
    Classifier: _Classify,
    Detector: _Detect,
}
"""Type of model -> its graph; all others are exported as encoders."""


def _load_subject(weights: str | os.PathLike[str], *, part: str, input: str) -> _Subject:
    texts = recipe_texts(weights)
    if not texts and input == "uint8":
        raise UserError(
            f"{os.fspath(weights)} contains weights without a recipe, so the normalization of pixels is "
            "unknown; use --input float, and normalize clips as in training"
        )
    model = load_model(weights)
    recipe = read_testing_recipe(weights) if texts else None
    size = _clip_size(model, recipe)
    grid = model.output_grid(size)
    if METADATA_KEY in texts:
        cell = read_recipe(weights).mask.cell
        grid = TokenGrid.from_clip(frames=size[0], height=size[1], width=size[2], stride=cell)
    return _Subject(model, part, input, recipe, grid)


def _clip_size(model: Encoder, recipe: ClassifyRecipe | None) -> tuple[int, int, int]:
    return model.clip_size if recipe is None else recipe.clip.size


def _resolve_format(target: Path, format: str) -> str:
    if format == "auto":
        for name, suffix in FORMATS.items():
            if target.suffix == suffix:
                return name
        suffixes = ", ".join(f"{suffix} ({name})" for name, suffix in FORMATS.items())
        raise UserError(f"{target}: unknown file extension {target.suffix!r}; use one of {suffixes}")
    check_name("format", format, FORMATS)
    if target.suffix != FORMATS[format]:
        raise UserError(
            f"{target}: a file of --format {format} has the extension {FORMATS[format]}; change the name or "
            "the format"
        )
    return format


def _check_options(
    format: str, *, part: str, input: str | None, batch: int | None, opset: int | None, tolerance: float
) -> None:
    check_name("part", part, MODEL_PARTS)
    if input is not None:
        check_name("input", input, INPUTS)
    if batch is not None and batch < 1:
        raise UserError(f"batch {batch}: must be at least 1, or dynamic for any number")
    if not 0 < tolerance < 1:
        raise UserError(f"tolerance {tolerance:g}: must be above 0 and below 1")
    for name, value, formats in (
        ("input", input, GRAPHS),
        ("batch", batch, GRAPHS),
        ("opset", opset, ("onnx",)),
    ):
        if value is not None and format not in formats:
            raise UserError(
                f"--{name} has no effect with --format {format}: leave it out, or use {' or '.join(formats)}"
            )


def _write(
    path: Path, subject: _Subject, metadata: Mapping[str, str], *, format: str, batch: int | None, opset: int
) -> Run:
    """Write the file and read it again; returns the function from inputs to outputs of the file."""
    if format == "safetensors":
        save_model(subject.extract_part(), path, metadata=metadata)
        return dataclasses.replace(subject, model=load_model(path)).build_graph().run
    if format == "slowfast":
        return _write_slowfast(path, subject)
    name, arguments = _created_as(subject.model)
    metadata = {
        **metadata,
        "model": name,
        "arguments": json.dumps(arguments),
        "part": subject.part,
        "input": subject.input,
    }
    graph, example = subject.build_graph(), subject.draw_inputs(batch or 2, _EXAMPLE_SEED)
    if format == "torch":
        save_program(path, graph, example, any_batch=batch is None, metadata=metadata)
        return load_program(path)
    save_onnx(path, graph, example, any_batch=batch is None, opset=opset, metadata=metadata)
    return load_onnx(path)


def _write_slowfast(path: Path, subject: _Subject) -> Run:
    """Write a checkpoint and a YAML with the keys of the model and its clips."""
    model = subject.extract_part()
    options = slowfast_options(model)
    for section, keys in (slowfast_clip_options(subject.recipe) if subject.recipe else {}).items():
        options[section] = {**options.get(section, {}), **keys}
    config = path.with_suffix(".yaml")
    config.write_text(
        "# The model and its clips. Add the keys of data, training and machine.\n"
        + yaml.safe_dump(options, sort_keys=False),
        encoding="utf-8",
    )
    # Without "epoch", so that PySlowFast does not resume it as a run.
    content = io.BytesIO()
    torch.save({"model_state": slowfast_state(model)}, content)
    path.write_bytes(content.getbuffer())
    if isinstance(model, Classifier | MaskedModel):
        loaded = load_slowfast(config, path).model
    else:  # PySlowFast has no config for an encoder alone
        name, arguments = _created_as(model)
        loaded = create_model(name, **arguments).eval()
        load_into(loaded, read_state(path), source=path.name)
    return dataclasses.replace(subject, model=cast(Encoder, loaded)).build_graph().run


def _created_as(model: Encoder) -> tuple[str, dict[str, Any]]:
    return cast("tuple[str, dict[str, Any]]", model.created_as)


def _compare(
    target: Path, subject: _Subject, run: Run, batches: Iterable[int], tolerance: float
) -> Difference:
    """The largest difference between file and model on new inputs; raises RunFailed above the tolerance."""
    graph, differences = subject.build_graph(), []
    for batch in batches:
        inputs = subject.draw_inputs(batch, _TEST_SEED)
        for name, own, expected in zip(graph.outputs, run(inputs), graph.run(inputs), strict=True):
            if not expected.isfinite().all():
                raise RunFailed(
                    f"{target} was not written, since the model's {name} of random clips are not finite; its "
                    "weights are damaged, or its training diverged"
                )
            assert own.shape == expected.shape
            largest = float((own.double() - expected.double()).abs().max())
            differences.append(Difference(name, largest, float(expected.abs().max())))
    for difference in differences:
        if not difference.relative <= tolerance:  # also refuses NaN
            raise RunFailed(
                f"{target} was not written, since its {difference.output} differ from the model's by "
                f"{difference.largest:.2g} relative to values up to {difference.value:.3g}; the tolerance is "
                f"{tolerance:g} (--tolerance)"
            )
    return max(differences, key=lambda difference: difference.relative)
