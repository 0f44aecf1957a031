"""Builds the method of a pre-training config and its loaders; no other module of methods reads the config."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from videomaskfeat.data.clips import VideoClips
from videomaskfeat.data.formats import load_records
from videomaskfeat.data.loader import ClipLoader
from videomaskfeat.data.records import check_frames
from videomaskfeat.data.transforms import RandomResizedCrop
from videomaskfeat.engine import distributed
from videomaskfeat.engine.sections import heldout_loader_options, loader_options
from videomaskfeat.errors import UserError
from videomaskfeat.grid import TokenGrid
from videomaskfeat.masking import EXACT, is_exact
from videomaskfeat.methods import method_class
from videomaskfeat.methods.method import Method, check_mask_grid
from videomaskfeat.models import arguments_of, create_model_from
from videomaskfeat.models.encoder_base import Encoder
from videomaskfeat.models.limits import check_arguments
from videomaskfeat.models.maskfeat import MaskedModel
from videomaskfeat.models.positions import position_channels
from videomaskfeat.models.zoo import HIERA_MAE, MAE, MODELS, VIT, named_model, with_default_head
from videomaskfeat.recipe import ClipRecipe, PretrainRecipe
from videomaskfeat.schemas.pretrain import PretrainConfig
from videomaskfeat.targets import build_target
from videomaskfeat.targets.target import Target

SUPPLIED = ("recipe", "compiled", "epochs", "encoder", "student", "target")
"""Arguments of methods that are built from the config."""
HELDOUT_BATCH = 16
"""Maximum number of clips per held-out batch."""


def build_method(config: PretrainConfig) -> Method:
    """The method of a config, on the CPU; weights are drawn from torch's global generator.

    Raises:
        UserError: a name or argument is unknown, or the components do not fit each other.
    """
    from videomaskfeat.engine.compiling import compiled_mode

    name, model = config.method.name, config.model
    build = method_class(name)
    arguments = check_arguments(
        "method.arguments", build, config.method.arguments, name=name, supplied=SUPPLIED
    )
    accepted = inspect.signature(build).parameters
    recipe = PretrainRecipe.of(config)
    supplied: dict[str, Any] = {
        "recipe": recipe,
        "compiled": compiled_mode(config.run),
        "epochs": config.optim.epochs,
    }
    checkpoint_blocks = config.run.activation_checkpointing
    model_arguments = {**initial_arguments(config), **model.arguments}
    if "target" in accepted:
        target = build_target(config.target.name, config.target.arguments, clip=recipe.clip)
        supplied["target"] = target
        supplied["student"] = build_student(
            model.name, model_arguments, recipe=recipe, target=target, checkpoint_blocks=checkpoint_blocks
        )
    else:
        supplied["encoder"] = build_encoder(
            model.name, model_arguments, clip=recipe.clip, checkpoint_blocks=checkpoint_blocks
        )
    try:
        return build(**{key: value for key, value in supplied.items() if key in accepted}, **arguments)
    except TypeError as error:
        raise UserError(f"method.arguments of {name!r}: {error}") from error


def initial_arguments(config: PretrainConfig) -> dict[str, Any]:
    """Model arguments for the initial weights and the fixed positions that the method's published code has.

    Empty for MViTv2, for targets that have no code of their own, and for ``model.initialization: slowfast``.
    """
    name, arguments = config.model.name, config.model.arguments
    if config.model.initialization == "slowfast" or name not in MODELS:
        return {}
    encoder = MODELS[name].classes[-1]
    if encoder == HIERA_MAE:
        return {"initialization": "mae"}
    if encoder not in (VIT, MAE):
        return {}
    initialization = "mae" if encoder == MAE else _published_initialization(config)
    if initialization is None:
        return {}
    initial: dict[str, Any] = {"initialization": initialization}
    if initialization == "ibot":
        initial["interpolation"] = "bicubic"
    if initialization in ("mae", "jepa"):
        positions = "sincos_2d" if config.clip.frames == 1 else "sincos"
        sizes = {**arguments_of(name), **arguments}
        for width, argument in (("width", "absolute_positions"), ("decoder_width", "decoder_positions")):
            size = sizes.get(width)
            if isinstance(size, int) and size % position_channels(positions) == 0:
                initial[argument] = positions
    return initial


def _published_initialization(config: PretrainConfig) -> str | None:
    """The initialization of a ViT that is not an MAE; BYOL on a ViT has MoCo v3's (arXiv 2104.02057)."""
    method, target = config.method.name, config.target
    if method != "masked":
        return {"ibot": "ibot", "byol": "mae", "latent": "jepa"}.get(method)
    if target.name == "pixels" and not target.arguments.get("normalized", True):
        return "simmim"
    return "beit" if target.name in ("dvae", "codebook") else None


def build_student(
    name: str,
    arguments: Mapping[str, Any],
    *,
    recipe: PretrainRecipe,
    target: Target,
    checkpoint_blocks: bool = False,
) -> nn.Module:
    """A named model for the recipe's clips, checked against mask and target.

    Args:
        name: a model that predicts at hidden positions.
        arguments: differences from the named model.
        recipe: clip and mask.
        target: the target.
        checkpoint_blocks: recompute activations in the backward pass.

    Raises:
        UserError: the name or an argument is unknown, the model has no predictions, the cubes do not tile the
            clip, the mask grid does not divide the output grid, or the target has another grid.
    """
    name = with_default_head(name, "maskfeat")
    if name in MODELS and "values_per_token" not in arguments_of(name):
        known = [other for other in MODELS if "values_per_token" in arguments_of(other)]
        raise UserError(
            f"model.name {name!r} predicts no target, so it cannot learn {recipe.target!r}; "
            f"use one of {', '.join(known)}"
        )
    size = recipe.clip.size
    sizes = {
        "clip_size": size,
        "values_per_token": target.values_per_token,
        "checkpoint_blocks": checkpoint_blocks,
    }
    model = create_model_from(name, {**sizes, **arguments})
    output = model.output_grid((1, 3, *size))
    try:
        grid = TokenGrid.from_clip(frames=size[0], height=size[1], width=size[2], stride=target.output_stride)
    except UserError as error:
        raise UserError(f"target.name {recipe.target!r}: {error}; or {target.grid_remedy}") from error
    if grid != output:
        argument = getattr(model, "grid_argument", "")
        grid_argument = f", or the model's {argument}" if argument else ""
        raise UserError(
            f"target.name {recipe.target!r} has values on a grid of {grid}, but {name} predicts on "
            f"{output}; {target.grid_remedy}{grid_argument}"
        )
    finest = model.mask_grid((1, 3, *size)) if isinstance(model, MaskedModel) else output
    check_mask_grid(recipe, finest, model=name)
    if getattr(model, "equal_masks", False) and not is_exact(recipe.mask.kind):
        raise UserError(
            f"mask.kind {recipe.mask.kind!r} does not hide the same number of positions in every clip, and "
            f"{name}, which computes only visible positions, needs that; use one of {', '.join(EXACT)}"
        )
    return model


def build_encoder(
    name: str, arguments: Mapping[str, Any], *, clip: ClipRecipe, checkpoint_blocks: bool = False
) -> Encoder:
    """The encoder of a named model, with a final norm and without a head.

    Args:
        name: any model.
        arguments: differences from the named model.
        clip: the clips.
        checkpoint_blocks: recompute activations in the backward pass.

    Raises:
        UserError: the name or an argument is unknown, or the cubes do not tile the clip.
    """
    encoder_name = named_model(name).build.encoder_name
    known = arguments_of(encoder_name)
    own_arguments = {key: value for key, value in arguments_of(name).items() if key in known}
    own_arguments |= {
        "clip_size": clip.size,
        "final_norm": True,
        "mean_first": False,
        "checkpoint_blocks": checkpoint_blocks,
    }
    encoder = create_model_from(encoder_name, {**own_arguments, **arguments})
    assert isinstance(encoder, Encoder)
    return encoder


def training_loader(config: PretrainConfig, method: Method) -> ClipLoader[Any]:
    """The training batches of this rank.

    Raises:
        UserError: the list, the batch size or a clip key is wrong.
    """
    optim = config.optim
    method.check_batch(optim.batch_size, accumulate=optim.accumulate, world_size=distributed.world_size())
    return ClipLoader(_dataset(config, method, config.data.train), **loader_options(config))


def heldout_loader(config: PretrainConfig, method: Method) -> ClipLoader[Any] | None:
    """The held-out clips, always the same, in the order of the list; None if the config has no list.

    Raises:
        UserError: the list is wrong, or there is nothing to evaluate.
    """
    if not config.data.validation:
        return None
    if config.run.evaluate_clips < 1:
        raise UserError(
            f"run.evaluate_clips {config.run.evaluate_clips} must be at least 1; "
            "or leave data.validation empty"
        )
    dataset = _dataset(config, method, config.data.validation, heldout=True)
    clips = method.clips_per_video
    videos = min(max(config.run.evaluate_clips // clips, 1), len(dataset))
    options = heldout_loader_options(config, videos, largest_batch=HELDOUT_BATCH // clips)
    return ClipLoader(dataset, **{**options, "batch_size": clips * options["batch_size"]})


def _dataset(
    config: PretrainConfig, method: Method, path: str, *, heldout: bool = False
) -> VideoClips[Any, Any]:
    """The clips of a list.

    Raises:
        UserError: the list is wrong, or lists pictures although clips have several frames.
    """
    data, clip = config.data, config.clip
    records = load_records(
        path,
        format=data.format,
        labels=data.labels,
        prefix=data.prefix,
        separator=data.separator,
        stills=clip.frames == 1,
    )
    check_frames(records, clip.frames)
    crop = RandomResizedCrop(
        method.recipe.clip.crop,
        area=(clip.crop_area[0], clip.crop_area[1]),
        aspect=(clip.crop_aspect[0], clip.crop_aspect[1]),
        flip=clip.flip,
    )
    dataset = method.dataset(
        records,
        crop=crop,
        heldout=heldout,
        samples_per_video=clip.samples_per_video,
        reader=data.reader,
        seed=config.run.seed,
    )
    if data.augment_on == "device" and not heldout:
        from videomaskfeat.data.uncropped import leave_uncropped

        leave_uncropped(dataset)
    return dataset
