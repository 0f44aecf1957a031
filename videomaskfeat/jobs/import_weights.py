"""``import-slowfast``: a PySlowFast YAML and checkpoint -> weights and a config of ours."""

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
from videomaskfeat.interop.slowfast import ClipFacts, ImageTarget, Imported, MaskFacts, load_slowfast
from videomaskfeat.io import exists, make_folder, whole_file
from videomaskfeat.models import arguments_of
from videomaskfeat.models.weights import save_weights
from videomaskfeat.recipe import CLASSIFY_KEY, METADATA_KEY, ClipRecipe, PretrainRecipe
from videomaskfeat.schemas import FinetuneConfig, PretrainConfig
from videomaskfeat.targets.hog import HogTarget
from videomaskfeat.targets.pixels import PixelTarget

DATASETS = ("kinetics", "ssv2")
"""PySlowFast's names of data sets, and ours of the formats of their lists."""
# Arguments of a model that other keys of the config hold.
_BY_OTHER_KEYS = ("clip_size", "classes", "head", "drop_path", "dropout", "head_scale", "checkpoint_blocks")


@dataclass(frozen=True)
class SlowFastImport:
    """The result of an import.

    Attributes:
        weights: the safetensors file.
        config: the config file.
        kind: the kind of model, in words.
        table: how each weight of the checkpoint was used.
        ignored_keys: keys of the YAML without effect on the model, its clips and its testing.
        notes: what was changed to keep the model's outputs, and what the YAML leaves open.
    """

    weights: Path
    config: Path
    kind: str
    table: str
    ignored_keys: tuple[str, ...]
    notes: tuple[str, ...]

    def text(self) -> str:
        """The import in a few lines."""
        lines = [self.kind, self.table]
        sections: dict[str, list[str]] = {}
        for name in self.ignored_keys:
            section, dot, key = name.partition(".")
            sections.setdefault(section if dot else "(top)", []).append(key if dot else section)
        if sections:
            lines.append("ignored, because they have no part in it:")
            lines += [f"  {section:12s} {', '.join(keys)}" for section, keys in sections.items()]
        return "\n".join([*lines, *self.notes, f"weights  {self.weights}", f"config   {self.config}"])


def import_slowfast(
    config_path: str | os.PathLike[str],
    checkpoint_path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    class_names: str | os.PathLike[str] | None = None,
    weights_key: str = "",
) -> SlowFastImport:
    """Write ``weights.safetensors``, ``config.yaml`` and ``import.json`` into a folder.

    The weights file holds the recipe by which videos are cut, normalized and scored, so that ``evaluate``,
    ``predict`` and ``finetune`` need nothing else; the config holds the same as keys. Training (``SOLVER``,
    ``AUG``, ``MIXUP``) is not carried over: the configs of this package have the published recipes.

    Args:
        config_path: the YAML.
        checkpoint_path: its checkpoint; no code inside it is run.
        out: a folder, made if it is not there.
        class_names: file of class names, see :func:`~videomaskfeat.inference.lists.read_class_names`.
        weights_key: which weights of a checkpoint that holds several, such as "model_ema".

    Raises:
        UserError: as :func:`~videomaskfeat.interop.load_slowfast`; a way of testing that is not supported; a
            folder that holds an import already; or class names of another number.
    """
    folder = Path(out)
    weights, config_file = folder / "weights.safetensors", folder / "config.yaml"
    for path in (weights, config_file):
        if exists(path):
            raise UserError(f"{path}: is there already; give another folder, or remove it")
    source = os.fspath(config_path)
    imported = load_slowfast(config_path, checkpoint_path, weights_key=weights_key)
    config, metadata = _config_and_recipe(source, imported, weights, class_names)
    notes = _turn_channels(imported) + _testing_notes(imported)
    make_folder(folder)
    save_weights(weights, imported.model, metadata=metadata)
    header = [
        f"# {_name_and_arguments(imported.model)[0]}, {imported.report.kind}, from PySlowFast.",
        f"# Source:   {source}, {os.fspath(checkpoint_path)}",
        "# Training: that of the YAML is not carried over; configs/ has the published recipes.",
    ]
    keys = yaml.safe_dump(_differences(config), sort_keys=False)
    with whole_file(config_file) as file:
        file.write("\n".join([*header, "", keys]))
    found = imported.report
    report = {
        "kind": found.kind,
        "config": source,
        "checkpoint": os.fspath(checkpoint_path),
        "weights": found.weights.to_dict(),
        "ignored_keys": found.ignored_keys,
        "notes": notes,
    }
    write_json(folder / "import.json", report)
    return SlowFastImport(weights, config_file, found.kind, found.weights.table(), found.ignored_keys, notes)


def _config_and_recipe(
    path: str, imported: Imported, weights: Path, class_names: str | os.PathLike[str] | None
) -> tuple[FinetuneConfig | PretrainConfig, dict[str, str]]:
    """The config, and the recipe for the weights file."""
    if imported.mask is None:
        _check_testing(path, imported.clip)
        names = _class_names(class_names, imported.clip)
        recipe = dataclasses.replace(imported.clip.recipe, class_names=names)
        return _finetune_config(imported, weights), {CLASSIFY_KEY: recipe.to_json()}
    if class_names is not None:
        raise UserError(f"{os.fspath(class_names)}: class names, and {path} describes no classifier")
    pretrain = _pretrain_config(path, imported)
    return pretrain, {METADATA_KEY: PretrainRecipe.of(pretrain).to_json()}


def _check_testing(path: str, clip: ClipFacts) -> None:
    """Refuse a way of testing that our evaluation does not have."""
    recipe = clip.recipe
    segments = recipe.sampling == "segments"
    for key, value, fits, known in (
        ("TEST.DATASET", clip.dataset, clip.dataset in DATASETS, " and ".join(DATASETS)),
        ("DATA.MULTI_LABEL", clip.multi_label, not clip.multi_label, "False"),
        ("DATA.ENSEMBLE_METHOD", clip.ensemble, clip.ensemble == "sum", "'sum'"),
        ("DATA.USE_OFFSET_SAMPLING", clip.offset, clip.offset or segments, "True"),
        # With one crop PySlowFast takes the left one of SSv2, by an oversight, and the middle one of others.
        (
            "TEST.NUM_SPATIAL_CROPS",
            recipe.crops,
            recipe.crops == 3 or (recipe.crops == 1 and not segments),
            "3",
        ),
    ):
        if not fits:
            raise UserError(
                f"{path}: {key} {value!r} is not carried over, only {known}; "
                "load_slowfast gives the model alone"
            )


def _class_names(path: str | os.PathLike[str] | None, clip: ClipFacts) -> tuple[str, ...]:
    if path is None:
        return ()
    names = read_class_names(path)
    if len(names) != clip.classes:
        raise UserError(f"{os.fspath(path)}: holds {len(names)} class names for {clip.classes} classes")
    return names


def _finetune_config(imported: Imported, weights: Path) -> FinetuneConfig:
    """The keys about how the model sees videos and is scored on them."""
    facts, config = imported.clip, FinetuneConfig()
    name, arguments = _name_and_arguments(imported.model)
    config.data.format = facts.dataset
    assert facts.classes is not None
    config.data.classes = facts.classes
    config.clip.sampling = facts.recipe.sampling
    _set_clip(config.clip, facts)
    config.model.name = name
    config.model.arguments = _own_arguments(name, arguments, _BY_OTHER_KEYS)
    config.model.head = "" if arguments["head"] == arguments_of(name)["head"] else arguments["head"]
    for key in ("drop_path", "dropout", "head_scale"):
        setattr(config.model, key, arguments[key])
    config.model.weights = str(weights)
    for key in ("views", "crops", "short_side", "average"):
        setattr(config.evaluate, key, getattr(facts.recipe, key))
    config.run.activation_checkpointing = arguments["checkpoint_blocks"]
    return config


def _pretrain_config(path: str, imported: Imported) -> PretrainConfig:
    """The keys about what the model sees, what is hidden and what is predicted."""
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
    config.model.arguments = _own_arguments(
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
    """What differs from the target's defaults."""
    default, arguments = PixelTarget(), dict[str, Any]()
    if target.normalised != default.normalised:
        arguments["normalised"] = target.normalised
    if target.frames_read != default.frames_read:
        arguments["frames"] = "all"
    if target.output_stride != default.output_stride:
        arguments["output_stride"] = list(target.output_stride)
    return arguments


def _set_clip(config: Any, facts: ClipFacts) -> None:
    """The keys of a clip that every task has."""
    clip = facts.recipe.clip
    for key in ("frames", "stride", "target_fps", "crop"):
        setattr(config, key, getattr(clip, key))
    config.flip = 0.5 if facts.flip else 0.0
    config.mean, config.std = (
        list(levels) if isinstance(levels, tuple) else levels for levels in (clip.mean, clip.std)
    )


def _mask_cell(path: str, mask: MaskFacts, clip: ClipRecipe) -> list[int]:
    """Frames, rows and columns of pixels behind a cell of the mask."""
    if not 0 < mask.ratio < 1:
        raise UserError(
            f"{path}: AUG.MASK_RATIO {mask.ratio:g} hides nothing or all; it lies between 0 and 1"
        )
    size = (clip.frames, clip.crop, clip.crop)
    if any(cells < 1 or length % cells for length, cells in zip(size, mask.window, strict=True)):
        raise UserError(
            f"{path}: AUG.MASK_WINDOW_SIZE {list(mask.window)} does not divide a clip of {clip.frames} "
            f"frames and {clip.crop}x{clip.crop} pixels into cells"
        )
    return [length // cells for length, cells in zip(size, mask.window, strict=True)]


def _turn_channels(imported: Imported) -> tuple[str, ...]:
    """Make a model that takes blue, green, red take red, green, blue, as our clips are, and note that."""
    if imported.clip.channels != "bgr":
        return ()
    stem = imported.model.get_parameter("patch_embed.proj.weight")
    with torch.no_grad():
        stem.copy_(stem.flip(1))  # [D, C, t, h, w]
    return ("the stem's weights were turned from blue, green, red to red, green, blue",)


def _testing_notes(imported: Imported) -> tuple[str, ...]:
    clip = imported.clip
    if imported.mask is not None or len(clip.view_counts) < 2:
        return ()
    counts = ", ".join(map(str, clip.view_counts))
    return (f"of the tested numbers of views ({counts}) the config has the greatest, {clip.recipe.views}",)


def _name_and_arguments(model: nn.Module) -> tuple[str, dict[str, Any]]:
    """The name by which a model was created, and all arguments."""
    name, arguments = model.created_as  # type: ignore[misc]
    return name, arguments_of(name, arguments)


def _own_arguments(name: str, arguments: Mapping[str, Any], given: tuple[str, ...]) -> dict[str, Any]:
    """The arguments that differ from the named model's, without those that other keys hold."""
    named = arguments_of(name)
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in arguments.items()
        if key not in given and value != named[key]
    }


def _differences(config: FinetuneConfig | PretrainConfig) -> dict[str, dict[str, Any]]:
    """Section -> key -> value, of what differs from the defaults."""
    tree: dict[str, dict[str, Any]] = {}
    mine, defaults = dataclasses.asdict(config), dataclasses.asdict(type(config)())
    for section, keys in mine.items():
        own = {key: value for key, value in keys.items() if value != defaults[section][key]}
        if own:
            tree[section] = own
    return tree
