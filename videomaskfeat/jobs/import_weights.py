"""``import-slowfast`` and ``import-weights``: from other checkpoints to a weights file and a config."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from videomaskfeat.errors import UserError
from videomaskfeat.inference.lists import read_class_names
from videomaskfeat.inference.results import write_json
from videomaskfeat.interop.formats import Converted
from videomaskfeat.interop.other_projects import FORMATS, add_probe
from videomaskfeat.interop.slowfast import ImageTarget, Imported, describe_slowfast, load_slowfast
from videomaskfeat.interop.slowfast_clips import ClipFacts, MaskFacts
from videomaskfeat.io import exists, make_folder, whole_file
from videomaskfeat.models import arguments_of
from videomaskfeat.models.detector import Detector
from videomaskfeat.models.loading import build_converted, convert_weights
from videomaskfeat.models.saving import save_model
from videomaskfeat.models.vit import ViT
from videomaskfeat.models.weights import read_weights, weights_file
from videomaskfeat.recipe import METADATA_KEY, ClipRecipe, PretrainRecipe
from videomaskfeat.schemas.detect import DetectConfig
from videomaskfeat.schemas.finetune import FinetuneConfig
from videomaskfeat.schemas.pretrain import PretrainConfig
from videomaskfeat.stored_recipe import CLASSIFY_KEY, DETECT_KEY, ClassifyRecipe, DetectRecipe
from videomaskfeat.targets.hog import HogTarget
from videomaskfeat.targets.pixels import PixelTarget

DATASETS = {"kinetics": "kinetics", "ssv2": "ssv2", "imagenet": "images"}
"""Formats of lists by the names of data sets in PySlowFast."""
Config = FinetuneConfig | PretrainConfig | DetectConfig
# Arguments of a model that are set by other keys of the config.
_OTHER_KEYS = ("clip_size", "classes", "head", "drop_path", "dropout", "head_scale", "checkpoint_blocks")


@dataclass(frozen=True)
class WeightsImport:
    """The result of an import.

    Attributes:
        weights: the safetensors file; None without a checkpoint.
        config: the config file; None for an image classifier of :func:`import_weights`.
        kind: kind of the model.
        table: how each weight of the checkpoint is used; empty without one.
        unequal: keys of the YAML that are not translated, or only nearly, and the reasons.
        notes: sentences on changes and on ambiguous keys.
    """

    weights: Path | None
    config: Path | None
    kind: str
    table: str
    unequal: Mapping[str, str]
    notes: tuple[str, ...]

    def text(self) -> str:
        """The result as text."""
        lines = [self.kind, *filter(None, [self.table])]
        reasons: dict[str, list[str]] = {}
        for key, reason in self.unequal.items():
            reasons.setdefault(reason, []).append(key)
        if reasons:
            lines.append("keys without an equal here:")
            lines += [f"  {', '.join(keys)}: {reason}" for reason, keys in reasons.items()]
        lines += self.notes
        files = (("weights", self.weights), ("config", self.config))
        return "\n".join([*lines, *(f"{name:8s} {path}" for name, path in files if path)])


def import_slowfast(
    config_path: str | os.PathLike[str],
    checkpoint_path: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    *,
    class_names: str | os.PathLike[str] | None = None,
    weights_key: str = "",
) -> WeightsImport:
    """Write ``weights.safetensors``, ``config.yaml`` and ``import.json`` into a folder.

    The weights file contains the recipe (how videos are cut, normalized and scored), so ``evaluate``,
    ``predict`` and ``finetune`` need no other file. The config has the same values as keys, and the training
    of the YAML; see :mod:`~videomaskfeat.interop.slowfast_training`.

    Args:
        config_path: the YAML.
        checkpoint_path: its checkpoint, loaded without unpickling code; None: no weights file, and the config
            trains from scratch, or from ``TRAIN.CHECKPOINT_FILE_PATH``.
        out: folder to write.
        class_names: file of class names, see :func:`~videomaskfeat.inference.lists.read_class_names`.
        weights_key: which weights of a checkpoint with several, such as "model_ema".

    Raises:
        UserError: as :func:`~videomaskfeat.interop.load_slowfast`; the testing is not supported, the folder
            already has an import, or the number of class names is wrong.
    """
    folder, weights = _new_folder(out)
    source = os.fspath(config_path)
    if checkpoint_path is None:
        imported = describe_slowfast(config_path)
    else:
        imported = load_slowfast(config_path, checkpoint_path, weights_key=weights_key)
    config, metadata = _build_config(source, imported, class_names)
    if checkpoint_path is not None and not isinstance(config, PretrainConfig):
        config.model.weights = str(weights)
    notes = _note_views(imported)
    if checkpoint_path is not None:
        notes = _flip_channels(imported) + notes
    report, unequal = imported.report, imported.training.unequal
    header = [
        f"# {_name_and_arguments(imported.model)[0]}, {report.kind}, from PySlowFast.",
        f"# Source:   {source}" + (f", {os.fspath(checkpoint_path)}" if checkpoint_path is not None else ""),
        *(f"# No equal: {key}: {reason}" for key, reason in unequal.items()),
    ]
    facts = {
        "kind": report.kind,
        "config": source,
        "checkpoint": None if checkpoint_path is None else os.fspath(checkpoint_path),
        "weights": report.weights.to_dict(),
        "unequal": unequal,
        "notes": notes,
    }
    model = imported.model if checkpoint_path is not None else None
    config_file = _write(folder, model, metadata, facts, config, header)
    table = report.weights.table() if checkpoint_path is not None else ""
    return WeightsImport(None if model is None else weights, config_file, report.kind, table, unequal, notes)


def import_weights(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    format: str = "auto",
    probe: str | os.PathLike[str] | None = None,
    class_names: str | os.PathLike[str] | None = None,
    weights_key: str = "",
    **choices: Any,
) -> WeightsImport:
    """Write ``weights.safetensors``, ``config.yaml`` and ``import.json`` of another project's weights.

    Args:
        path: weights file, or a folder of transformers or timm.
        out: folder to write.
        format: a name in :data:`~videomaskfeat.interop.other_projects.FORMATS`, or "auto".
        probe: file of an attentive probe of V-JEPA, which makes its encoder a classifier.
        class_names, weights_key: see :func:`import_slowfast`.
        choices: see :func:`~videomaskfeat.interop.other_projects.convert`.

    Raises:
        UserError: the format is not recognized or not supported, the weights do not fit, the folder already
            has an import, or the number of class names is wrong.
    """
    folder, weights = _new_folder(out)
    source = weights_file(path)
    converted = convert_weights(source, key=weights_key, format=format, **choices)
    if converted is None:
        titles = ", ".join(one.title for one in FORMATS.values() if one.convert is not None)
        raise UserError(
            f"{source}: the format of these weights is not recognized; known formats: {titles}. A checkpoint "
            "of PySlowFast needs its YAML: use `videomaskfeat import-slowfast`. Weights of this package need "
            "no import"
        )
    if probe is not None:
        weights_of_probe = read_weights(probe)
        converted = add_probe(converted, os.fspath(probe), weights_of_probe.state, heads=choices.get("heads"))
    recipe, classes = converted.recipe, converted.arguments.get("classes")
    if class_names is not None:
        names = read_class_names(class_names)
        if not isinstance(recipe, ClassifyRecipe) or len(names) != classes:
            raise UserError(
                f"{os.fspath(class_names)}: {len(names)} class names for {classes or 'no'} classes"
            )
        converted = dataclasses.replace(converted, recipe=dataclasses.replace(recipe, class_names=names))
    model, report = build_converted(source, converted)
    config = _config_of(converted, weights)
    notes = tuple(f"not in the file, assumed: {value}" for value in converted.assumed)
    header = [
        f"# {converted.name}, from {converted.title}.",
        f"# Source:   {source}",
        *(f"# {note}" for note in notes),
        "# Training: configs/ has the published recipes.",
    ]
    facts = {
        "format": converted.title,
        "checkpoint": source,
        "weights": report.to_dict(),
        "assumed": converted.assumed,
    }
    config_file = _write(folder, model, converted.metadata, facts, config, header)
    return WeightsImport(weights, config_file, converted.title, report.table(), {}, notes)


def _new_folder(out: str | os.PathLike[str]) -> tuple[Path, Path]:
    """The folder of an import and its weights file; raises UserError if it already has an import."""
    folder = Path(out)
    for path in (folder / "weights.safetensors", folder / "config.yaml"):
        if exists(path):
            raise UserError(f"{path} exists already; give another folder, or remove it")
    return folder, folder / "weights.safetensors"


def _write(
    folder: Path,
    model: nn.Module | None,
    metadata: Mapping[str, str],
    facts: Mapping[str, Any],
    config: Config | None,
    header: list[str],
) -> Path | None:
    """Write weights (if any), facts and config; returns the path of the config."""
    make_folder(folder)
    if model is not None:
        save_model(model, folder / "weights.safetensors", metadata=metadata)
    if config is not None:
        keys = yaml.safe_dump(_differences(config), sort_keys=False)
        with whole_file(folder / "config.yaml") as file:
            file.write("\n".join([*header, "", keys]))
    write_json(folder / "import.json", facts)
    return None if config is None else folder / "config.yaml"


def _config_of(converted: Converted, weights: Path) -> FinetuneConfig | PretrainConfig | None:
    """A config that continues with converted weights: pre-training or fine-tuning; None for images."""
    recipe, arguments = converted.recipe, arguments_of(converted.name, converted.arguments)
    config: FinetuneConfig | PretrainConfig
    if isinstance(recipe, PretrainRecipe):
        config = PretrainConfig()
        _set_clip_keys(config.clip, recipe.clip)
        config.mask.kind, config.mask.ratio, config.mask.cell = (
            recipe.mask.kind,
            recipe.mask.ratio,
            list(recipe.mask.cell),
        )
        config.target.name, config.target.arguments = recipe.target, dict(recipe.target_arguments)
        config.model.name, config.model.weights = converted.name, str(weights)
        config.model.initialization = "slowfast"
        config.model.arguments = _changed_arguments(
            converted.name, arguments, ("clip_size", "values_per_token", "checkpoint_blocks")
        )
        return config
    if recipe.clip.frames == 1:
        return None
    config = FinetuneConfig()
    _set_clip_keys(config.clip, recipe.clip)
    config.clip.sampling = recipe.sampling
    name = converted.name
    if name.endswith("_encoder"):
        name = "vit_b" if name.startswith("vit") else "mvitv2_s"
        arguments = {
            key: value for key, value in arguments.items() if key not in ("final_norm", "mean_first")
        }
    else:
        config.data.classes = arguments["classes"]
        config.model.head = "" if arguments["head"] == arguments_of(name)["head"] else arguments["head"]
    config.model.name, config.model.weights = name, str(weights)
    config.model.arguments = _changed_arguments(name, arguments, _OTHER_KEYS)
    for key in ("views", "crops", "short_side", "average"):
        setattr(config.evaluate, key, getattr(recipe, key))
    return config


def _build_config(
    path: str, imported: Imported, class_names: str | os.PathLike[str] | None
) -> tuple[Config, dict[str, str]]:
    """The config, and the recipe as metadata of the weights file."""
    clip, metadata = imported.clip, dict[str, str]()
    config: Config
    if imported.mask is not None or isinstance(imported.model, Detector):
        if class_names is not None:
            raise UserError(
                f"{os.fspath(class_names)}: class names are for classifiers only, but {path} "
                f"describes another model; leave them out"
            )
        config = _detect_config(imported) if imported.mask is None else _pretrain_config(path, imported)
    else:
        _check_testing(path, clip)
        names = read_class_names(class_names) if class_names is not None else ()
        if class_names is not None and len(names) != clip.classes:
            raise UserError(f"{os.fspath(class_names)}: {len(names)} class names for {clip.classes} classes")
        metadata[CLASSIFY_KEY] = dataclasses.replace(clip.recipe, class_names=names).to_json()
        config = _finetune_config(imported)
    for key, value in imported.training.keys.items():
        section, _, name = key.partition(".")
        setattr(getattr(config, section), name, value)
    if isinstance(config, PretrainConfig):
        metadata[METADATA_KEY] = PretrainRecipe.of(config).to_json()
    if isinstance(config, DetectConfig):
        evaluate, classes = config.evaluate, config.data.classes
        metadata[DETECT_KEY] = DetectRecipe(
            ClipRecipe.of(config.clip),
            {},
            classes,
            (),
            evaluate.short_side,
            evaluate.area,
            config.boxes.score,
        ).to_json()
    return config, metadata


def _check_testing(path: str, clip: ClipFacts) -> None:
    """Check that our evaluation supports the testing of the YAML."""
    crops, segments = clip.recipe.crops, clip.recipe.sampling == "segments"
    stills = clip.recipe.clip.frames == 1
    for key, value, supported, choices in (
        ("TEST.DATASET", clip.dataset, clip.dataset in DATASETS, ", ".join(DATASETS)),
        ("DATA.MULTI_LABEL", clip.multi_label, not clip.multi_label, "False"),
        ("DATA.ENSEMBLE_METHOD", clip.ensemble, clip.ensemble == "sum", "'sum'"),
        ("DATA.USE_OFFSET_SAMPLING", clip.offset, clip.offset or segments or stills, "True"),
        # A single crop of PySlowFast is the left one for SSv2, probably by mistake, and else the center one.
        ("TEST.NUM_SPATIAL_CROPS", crops, crops == 3 or (crops == 1 and not segments), "3"),
    ):
        if not supported:
            raise UserError(
                f"{path}: {key} {value!r} is not supported, only {choices}; use load_slowfast to load the "
                "model alone"
            )


def _finetune_config(imported: Imported) -> FinetuneConfig:
    """The keys of clips, model and testing."""
    facts, config = imported.clip, FinetuneConfig()
    name, arguments = _name_and_arguments(imported.model)
    config.data.format = DATASETS[facts.dataset]
    assert facts.classes is not None
    config.data.classes = facts.classes
    config.clip.sampling = facts.recipe.sampling
    _set_clip(config.clip, facts)
    config.model.name = name
    config.model.arguments = _changed_arguments(name, arguments, _OTHER_KEYS)
    config.model.head = "" if arguments["head"] == arguments_of(name)["head"] else arguments["head"]
    for key in ("drop_path", "dropout", "head_scale"):
        setattr(config.model, key, arguments[key])
    for key in ("views", "crops", "short_side", "average"):
        setattr(config.evaluate, key, getattr(facts.recipe, key))
    config.run.activation_checkpointing = arguments["checkpoint_blocks"]
    return config


def _detect_config(imported: Imported) -> DetectConfig:
    """The keys of clips, model and testing of a detector.

    PySlowFast's MViT accepts square clips only, so its tests use the center of the frame.
    """
    config = DetectConfig()
    name, arguments = _name_and_arguments(imported.model)
    _set_clip(config.clip, imported.clip)
    config.data.classes = arguments["classes"]
    config.model.name = name
    for key in ("drop_path", "dropout", "head_scale"):
        setattr(config.model, key, arguments[key])
    config.model.arguments = _changed_arguments(name, arguments, _OTHER_KEYS)
    config.evaluate.area, config.evaluate.short_side = "center", imported.clip.recipe.clip.short_side
    config.run.activation_checkpointing = arguments["checkpoint_blocks"]
    return config


def _pretrain_config(path: str, imported: Imported) -> PretrainConfig:
    """The keys of clips, mask, model and target."""
    clip, config = imported.clip, PretrainConfig()
    name, arguments = _name_and_arguments(imported.model)
    assert imported.mask is not None
    target = imported.target
    _set_clip(config.clip, clip)
    if isinstance(target, ImageTarget):
        target, config.data.format, config.clip.stride = target.of_clips, "images", 1
    config.mask.kind = imported.mask.kind
    config.mask.ratio = imported.mask.ratio
    config.mask.cell = _mask_cell(path, imported.mask, clip.recipe.clip)
    config.model.name = name
    if isinstance(imported.model, ViT):
        config.model.initialization = "slowfast"
    config.model.arguments = _changed_arguments(
        name, arguments, ("clip_size", "values_per_token", "checkpoint_blocks")
    )
    if isinstance(target, PixelTarget):
        config.target.name = "pixels"
        config.target.arguments = _pixel_arguments(target)
    elif isinstance(target, HogTarget) and target.output_stride != HogTarget().output_stride:
        config.target.arguments = {
            "cube_stride": list(arguments["cube_stride"]),
            "output_stride": list(target.output_stride),
        }
    config.run.activation_checkpointing = arguments["checkpoint_blocks"]
    return config


def _pixel_arguments(target: PixelTarget) -> dict[str, Any]:
    """The arguments that differ from the defaults of the target."""
    default, arguments = PixelTarget(), dict[str, Any]()
    if target.normalized != default.normalized:
        arguments["normalized"] = target.normalized
    if target.frames_read != default.frames_read:
        arguments["frames"] = "all"
    if target.output_stride != default.output_stride:
        arguments["output_stride"] = list(target.output_stride)
    return arguments


def _set_clip(config: Any, facts: ClipFacts) -> None:
    """Set the keys of a clip that all trainings have."""
    _set_clip_keys(config, facts.recipe.clip)
    config.flip = 0.5 if facts.flip else 0.0


def _set_clip_keys(config: Any, clip: ClipRecipe) -> None:
    for key in ("frames", "stride", "target_fps", "crop"):
        setattr(config, key, getattr(clip, key))
    config.mean, config.std = (
        list(values) if isinstance(values, tuple) else values for values in (clip.mean, clip.std)
    )


def _mask_cell(path: str, mask: MaskFacts, clip: ClipRecipe) -> list[int]:
    """Frames, rows and columns of pixels of a mask cell."""
    if not 0 < mask.ratio < 1:
        raise UserError(f"{path}: AUG.MASK_RATIO {mask.ratio:g}: must be above 0 and below 1")
    if any(cells < 1 or length % cells for length, cells in zip(clip.size, mask.window, strict=True)):
        raise UserError(
            f"{path}: AUG.MASK_WINDOW_SIZE {list(mask.window)} does not divide a clip of {clip.frames} "
            f"frames and {clip.crop}x{clip.crop} pixels into cells"
        )
    return [length // cells for length, cells in zip(clip.size, mask.window, strict=True)]


def _flip_channels(imported: Imported) -> tuple[str, ...]:
    """Convert a model for BGR input to RGB, the order of our clips, and note that."""
    if imported.clip.channels != "bgr":
        return ()
    stem = imported.model.get_parameter("patch_embed.proj.weight")
    with torch.no_grad():
        stem.copy_(stem.flip(1))  # [D, C, t, h, w]
    return ("the weights of the stem are flipped from BGR to RGB",)


def _note_views(imported: Imported) -> tuple[str, ...]:
    clip = imported.clip
    if imported.clip.classes is None or isinstance(imported.model, Detector) or len(clip.view_counts) < 2:
        return ()
    counts = ", ".join(map(str, clip.view_counts))
    return (f"of the numbers of views ({counts}) the config has the largest, {clip.recipe.views}",)


def _name_and_arguments(model: nn.Module) -> tuple[str, dict[str, Any]]:
    """The name of a created model, and all its arguments."""
    name, arguments = model.created_as  # type: ignore[misc]
    return name, arguments_of(name, arguments)


def _changed_arguments(name: str, arguments: Mapping[str, Any], excluded: tuple[str, ...]) -> dict[str, Any]:
    """The arguments that differ from those of the named model, without those that other keys set."""
    defaults = arguments_of(name)
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in arguments.items()
        if key not in excluded and value != defaults[key]
    }


def _differences(config: Config) -> dict[str, dict[str, Any]]:
    """Section -> key -> value, for all values that differ from the defaults."""
    tree: dict[str, dict[str, Any]] = {}
    values, defaults = dataclasses.asdict(config), dataclasses.asdict(type(config)())
    for section, keys in values.items():
        changed = {key: value for key, value in keys.items() if value != defaults[section][key]}
        if changed:
            tree[section] = changed
    return tree
