"""``export``: a model to safetensors, PySlowFast, torch.export or ONNX, compared before the file is kept."""

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
from videomaskfeat.io import make_folder
from videomaskfeat.models import create_model
from videomaskfeat.models.detector import Detector
from videomaskfeat.models.encoder_base import Encoder, on_grid
from videomaskfeat.models.heads import Classifier
from videomaskfeat.models.mae import MAE
from videomaskfeat.models.maskfeat import MaskedModel
from videomaskfeat.models.weights import load_into, load_model, read_state, save_weights
from videomaskfeat.models.zoo import encoder_of
from videomaskfeat.recipe import (
    ENCODER_KEY,
    METADATA_KEY,
    ClassifyRecipe,
    ClipRecipe,
    read_recipe,
    read_testing_recipe,
    recipe_texts,
)

logger = logging.getLogger(__name__)

FORMATS = {"safetensors": ".safetensors", "slowfast": ".pyth", "torch": ".pt2", "onnx": ".onnx"}
GRAPHS = ("torch", "onnx")
PARTS = ("model", "encoder")
INPUTS = ("uint8", "float")
OPSET = 20  # the first with GELU, and torch's own default
TOLERANCE = 1e-4
"""Largest difference that passes, as a share of the largest value. Sums in another order make 1e-6 in float32
and 5e-5 in a network of 16 blocks with weights four times as large as at the start."""
_EXAMPLE, _FRESH = 0, 1  # seeds: what is traced with, and what is compared on


@dataclass(frozen=True)
class Difference:
    """The difference between a file's output and the model's.

    Attributes:
        output: its name.
        largest: absolute difference.
        value: the model's largest absolute value there.
    """

    output: str
    largest: float
    value: float

    @property
    def relative(self) -> float:
        """The difference as a share of the value."""
        if self.largest == 0:
            return 0.0
        return self.largest / self.value if self.value else math.inf


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
        paths: the file, and for PySlowFast its YAML.
        inputs: of a graph, name -> type and shape in words; of weights empty.
        outputs: of a graph, as ``inputs``.
        difference: the largest one, as a share, on inputs that the file was not traced with.
        batches: the batch sizes on which it was measured.
    """

    paths: tuple[Path, ...]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    difference: Difference
    batches: tuple[int, ...]

    def text(self) -> str:
        """For people."""
        lines = list(map(str, self.paths))
        lines[0] += f"  ({self.paths[0].stat().st_size / 1e6:.1f} MB)"
        for kind, tensors in (("takes", self.inputs), ("gives", self.outputs)):
            lines += [f"  {kind}  {name}: {shape}" for name, shape in tensors.items()]
        found = self.difference
        lines.append(
            f"  largest difference from the model: {found.largest:.2g} in {found.output}, where values reach "
            f"{found.value:.3g} (batches of {' and '.join(map(str, self.batches))})"
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
    """Write a model in another format, read the file, compare it with the model, and keep it if it is equal.

    Args:
        weights: safetensors file of a run or of ``videomaskfeat import-slowfast``.
        out: the file to write; its folder is made.
        format: one of :data:`FORMATS`, or auto: by the suffix of ``out``.
        part: "model", or "encoder": without prediction or classification head.
        input: of a graph: "uint8" (clips [B, T, H, W, C] as decoded, RGB; normalized inside; the default) or
            "float" (clips [B, C, T, H, W], normalized by the caller).
        batch: of a graph: batch size; None: any.
        opset: version of ONNX's operators; None: 20.
        tolerance: largest difference that passes, as a share of the largest value of an output.
        overwrite: replace ``out`` if it exists.

    Raises:
        UserError: the weights cannot be read, or an argument is wrong or does not go with the format.
        RunFailed: the file does not do what the model does, or cannot be written. ``out`` is then untouched.
    """
    target = Path(out)
    format = _format_of(target, format)
    _check_options(format, part=part, input=input, batch=batch, opset=opset, tolerance=tolerance)
    names = [target.name] + ([target.with_suffix(".yaml").name] if format == "slowfast" else [])
    paths = tuple(target.with_name(name) for name in names)
    _check_paths(paths, overwrite)
    if format == "onnx":
        require_onnx(opset or OPSET)
    subject = read_subject(weights, part=part, input=(input or "uint8") if format in GRAPHS else "float")
    if part == "model" and format in GRAPHS and isinstance(subject.model, MAE):
        raise UserError(
            f"{os.fspath(weights)}: an MAE model counts the visible cubes of its mask while it runs, which "
            "no graph can; take --part encoder, or a format of weights"
        )
    make_folder(target.absolute().parent)
    graph, example = subject.graph(), subject.inputs(1, _EXAMPLE)
    choice = choose_threads(lambda: graph.run(example))
    if choice.seconds:
        logger.info("threads   %s", choice)
    logger.info("writing %s and comparing it with the model", target)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=target.absolute().parent) as folder:
        run = _write(
            Path(folder, target.name),
            subject,
            _metadata(weights, subject),
            format=format,
            batch=batch,
            opset=opset or OPSET,
        )
        batches = (1, 3) if batch is None else (batch,)
        difference = _largest_difference(target, subject, run, batches, tolerance)
        for path in paths:
            os.replace(Path(folder, path.name), path)
    inputs, outputs = subject.signature(batch) if format in GRAPHS else ({}, {})
    return Exported(paths, inputs, outputs, difference, batches)


@dataclass(frozen=True)
class Subject:
    """A model and its input.

    Attributes:
        model: in evaluation mode, on the CPU.
        part: "model" or "encoder".
        input: "uint8" or "float"; see :func:`export`.
        recipe: which clips the model takes; None if the weights have no recipe.
        mask: the grid on which the mask of a pre-training model is given.
    """

    model: Encoder
    part: str
    input: str
    recipe: ClassifyRecipe | None
    mask: TokenGrid

    @property
    def clip(self) -> tuple[int, int, int]:
        """Frames, height and width."""
        return _clip_size(self.model, self.recipe)

    def graph(self) -> Graph:
        """Inputs, outputs and what is computed between them."""
        prepare: nn.Module = nn.Identity()
        if self.input == "uint8":
            assert self.recipe is not None
            prepare = _Normalize(self.recipe.clip)
        kinds = _GRAPHS.items() if self.part == "model" else ()
        build = next((build for kind, build in kinds if isinstance(self.model, kind)), _Encode)
        return Graph(build(prepare, self.model).eval(), build.inputs, build.outputs, build.boxes)

    def inputs(self, batch: int, seed: int) -> tuple[Tensor, ...]:
        """Random inputs of the graph."""
        generator = torch.Generator().manual_seed(seed)
        channels = self.model.patch_embed.in_channels
        if self.input == "uint8":
            shape = (batch, *self.clip, channels)
            clips = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        else:
            clips = torch.randn(batch, channels, *self.clip, generator=generator)
        names = self.graph().inputs
        if "boxes" in names:
            # Never one box, which a tracer takes for a constant, and other numbers than it was traced with.
            return clips, self._boxes(batch, 2 * batch + 1 + seed, generator)
        return (clips, self._mask(batch, generator)) if "mask" in names else (clips,)

    def _mask(self, batch: int, generator: torch.Generator) -> Tensor:
        draws = torch.rand(batch, self.mask.size, generator=generator)
        mask = draws < 0.4
        if isinstance(self.model, MAE):  # each sample hides equally many, not all and not none
            hidden = min(max(round(0.4 * self.mask.size), 1), max(self.mask.size - 1, 1))
            mask = draws.argsort(dim=1).argsort(dim=1) < hidden
        return mask.unflatten(1, self.mask.shape)

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

        def in_words(names: Iterable[str], tensors: Iterable[Tensor]) -> dict[str, str]:
            words = {}
            for name, tensor in zip(names, tensors, strict=True):
                first = "boxes" if name in graph.boxes else "batch" if batch is None else str(batch)
                shape = ", ".join([first, *map(str, tensor.shape[1:])])
                words[name] = f"{str(tensor.dtype).removeprefix('torch.')} [{shape}]"
            return words

        return in_words(graph.inputs, inputs), in_words(graph.outputs, graph.run(inputs))

    def alone(self) -> Encoder:
        """The part itself: the model, or a copy of its encoder."""
        return self.model if self.part == "model" else encoder_of(self.model)


class _Normalize(nn.Module):
    """uint8 [B, T, H, W, C] -> float32 [B, C, T, H, W]."""

    def __init__(self, clip: ClipRecipe) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, clips: Tensor) -> Tensor:
        return self.clip.normalize(clips)


class _Exportable(nn.Module):
    """A model behind the preparation of its clips; ``boxes`` are the inputs and outputs that count boxes."""

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
    """Clips and boxes float [R, 5] (place in the batch, x1, y1, x2, y2 in pixels) -> logits [R, L]."""

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
"""Kind of model -> its graph; all others are exported as encoders."""


def read_subject(weights: str | os.PathLike[str], *, part: str, input: str) -> Subject:
    """Load a model with its recipe.

    Raises:
        UserError: the weights cannot be read, or have no recipe to normalize pixels by.
    """
    texts = recipe_texts(weights)
    if not texts and input == "uint8":
        raise UserError(
            f"{os.fspath(weights)}: weights without a recipe, so nothing says how pixels are normalized; "
            "take --input float, and normalize clips as in training"
        )
    model = cast(Encoder, load_model(weights))
    recipe = read_testing_recipe(weights) if texts else None
    clip = _clip_size(model, recipe)
    mask = model.output_grid(clip)
    if METADATA_KEY in texts:
        cell = read_recipe(weights).mask.cell
        mask = TokenGrid.from_clip(frames=clip[0], height=clip[1], width=clip[2], stride=cell)
    return Subject(model, part, input, recipe, mask)


def _clip_size(model: Encoder, recipe: ClassifyRecipe | None) -> tuple[int, int, int]:
    if recipe is not None:
        return recipe.clip.frames, recipe.clip.crop, recipe.clip.crop
    return model.clip_size


def _format_of(target: Path, format: str) -> str:
    if format == "auto":
        found = [name for name, ending in FORMATS.items() if target.suffix == ending]
        if not found:
            endings = ", ".join(f"{ending} ({name})" for name, ending in FORMATS.items())
            raise UserError(f"{target}: its ending says no format; give it one of {endings}")
        return found[0]
    check_name("format", format, FORMATS)
    if target.suffix != FORMATS[format]:
        raise UserError(
            f"{target}: a file of --format {format} ends in {FORMATS[format]}; change name or format"
        )
    return format


def _check_options(
    format: str, *, part: str, input: str | None, batch: int | None, opset: int | None, tolerance: float
) -> None:
    check_name("part", part, PARTS)
    if input is not None:
        check_name("input", input, INPUTS)
    if batch is not None and batch < 1:
        raise UserError(f"batch {batch}: must be at least 1, or dynamic for any number")
    if not 0 < tolerance < 1:
        raise UserError(f"tolerance {tolerance:g}: a share of the largest value, above 0 and below 1")
    given = {"input": input is not None, "batch": batch is not None} if format not in GRAPHS else {}
    if format != "onnx":
        given["opset"] = opset is not None
    for name, there in given.items():
        if there:
            formats = "onnx" if name == "opset" else " or ".join(GRAPHS)
            raise UserError(f"--{name} means nothing to --format {format}: leave it out, or take {formats}")


def _check_paths(paths: Iterable[Path], overwrite: bool) -> None:
    for path in paths:
        if path.is_dir():
            raise UserError(f"{path}: is a folder; give the name of the file to write")
        if path.exists() and not overwrite:
            raise UserError(f"{path}: exists already; give another name, or --overwrite to replace it")


def _metadata(weights: str | os.PathLike[str], subject: Subject) -> dict[str, str]:
    """The recipe that goes into the file: the weights' own, or that of an encoder."""
    if subject.part == "model" or subject.recipe is None:
        return recipe_texts(weights)
    return {ENCODER_KEY: dataclasses.replace(subject.recipe, class_names=()).to_json()}


def _write(
    path: Path, subject: Subject, metadata: Mapping[str, str], *, format: str, batch: int | None, opset: int
) -> Run:
    """Write the file, and read it again: what it makes of inputs."""
    if format == "safetensors":
        save_weights(path, subject.alone(), metadata=metadata)
        return dataclasses.replace(subject, model=cast(Encoder, load_model(path))).graph().run
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
    graph, example = subject.graph(), subject.inputs(batch or 2, _EXAMPLE)
    if format == "torch":
        save_program(path, graph, example, any_batch=batch is None, metadata=metadata)
        return load_program(path)
    save_onnx(path, graph, example, any_batch=batch is None, opset=opset, metadata=metadata)
    return load_onnx(path)


def _write_slowfast(path: Path, subject: Subject) -> Run:
    """Write a checkpoint and a YAML with what can be said of model and clips."""
    model = subject.alone()
    options = slowfast_options(model)
    for section, keys in (slowfast_clip_options(subject.recipe) if subject.recipe else {}).items():
        options[section] = {**options.get(section, {}), **keys}
    config = path.with_suffix(".yaml")
    config.write_text(
        "# The model and its clips. Data, training and the machine are yours to add.\n"
        + yaml.safe_dump(options, sort_keys=False),
        encoding="utf-8",
    )
    # Without "epoch", which PySlowFast would take for a run to go on with.
    content = io.BytesIO()
    torch.save({"model_state": slowfast_state(model)}, content)
    path.write_bytes(content.getbuffer())
    if isinstance(model, Classifier | MaskedModel):
        loaded = load_slowfast(config, path).model
    else:  # an encoder alone, which no YAML of PySlowFast means
        name, arguments = _created_as(model)
        loaded = create_model(name, **arguments).eval()
        load_into(loaded, read_state(path), source=path.name)
    return dataclasses.replace(subject, model=cast(Encoder, loaded)).graph().run


def _created_as(model: Encoder) -> tuple[str, dict[str, Any]]:
    return cast("tuple[str, dict[str, Any]]", model.created_as)


def _largest_difference(
    target: Path, subject: Subject, run: Run, batches: Iterable[int], tolerance: float
) -> Difference:
    """Compare a file with the model on input that neither had seen.

    Raises:
        RunFailed: they differ by more than the tolerance, or the model gives no finite numbers.
    """
    graph, found = subject.graph(), []
    for batch in batches:
        inputs = subject.inputs(batch, _FRESH)
        pairs = zip(graph.outputs, run(inputs), graph.run(inputs), strict=True)
        for name, own, expected in pairs:
            if not expected.isfinite().all():
                raise RunFailed(
                    f"{target}: the model's {name} of random clips are not finite and nothing was kept; its "
                    "weights are damaged, or its training went wrong"
                )
            assert own.shape == expected.shape
            largest = float((own.double() - expected.double()).abs().max())
            found.append(Difference(name, largest, float(expected.abs().max())))
    for difference in found:
        if not difference.relative <= tolerance:  # a NaN does not pass either
            raise RunFailed(
                f"{target}: its {difference.output} differ from the model's by {difference.largest:.2g} "
                f"where values reach {difference.value:.3g}, and {tolerance:g} of that is allowed; nothing "
                "was kept (--tolerance allows more)"
            )
    return max(found, key=lambda difference: difference.relative)
