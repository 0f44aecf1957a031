"""The parts of a pre-training run, each built from the keys of the config that concern it, and checked."""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn

from videomaskfeat.data.clips import FrameSampler, PretrainClips
from videomaskfeat.data.formats import load_records
from videomaskfeat.data.loader import ClipLoader
from videomaskfeat.data.records import Records, check_frames
from videomaskfeat.data.sampling import ShortVideo, clip_indices_random, clip_indices_view
from videomaskfeat.data.transforms import ClipTransform, RandomResizedCrop, UniformCrop
from videomaskfeat.errors import UserError, check_name
from videomaskfeat.grid import TokenGrid
from videomaskfeat.masking import EXACT, MASKS, Mask, MaskFunction
from videomaskfeat.models import arguments_of, create_model_from
from videomaskfeat.models.zoo import MODELS
from videomaskfeat.recipe import ClipRecipe, MaskRecipe, PretrainRecipe
from videomaskfeat.schemas import ClipConfig, MaskConfig, PretrainConfig
from videomaskfeat.targets.target import Target

HELDOUT_BATCH = 16  # held-out clips that go through the network together, at most


def recipe_of(config: PretrainConfig) -> PretrainRecipe:
    """What the weights file will know of clip, mask and target."""
    mask = config.mask
    return PretrainRecipe(
        clip=ClipRecipe.of(config.clip),
        mask=MaskRecipe(kind=mask.kind, ratio=mask.ratio, cell=(mask.cell[0], mask.cell[1], mask.cell[2])),
        target=config.target.name,
        target_arguments=dict(config.target.arguments),
        method=config.method.name,
    )


def build_model(config: PretrainConfig, target: Target) -> nn.Module:
    """The model by its name, made for the config's clips, and checked against mask and target.

    Raises:
        UserError: an unknown name or argument, a model that predicts nothing, a clip that the cubes do not
            tile, a mask grid that does not divide the output grid, or a target on another grid.
    """
    clip, name = config.clip, config.model.name
    if name in MODELS and "values_per_token" not in arguments_of(name):
        known = [other for other in MODELS if "values_per_token" in arguments_of(other)]
        raise UserError(
            f"model.name {name!r} predicts no target, so it cannot learn {config.target.name!r}; "
            f"take one of {', '.join(known)}"
        )
    size = (clip.frames, clip.crop, clip.crop)
    arguments: dict[str, Any] = {
        "clip_size": size,
        "values_per_token": target.values_per_token,
        "checkpoint_blocks": config.run.activation_checkpointing,
    }
    model = create_model_from(name, {**arguments, **config.model.arguments})
    output = model.output_grid((1, 3, *size))  # type: ignore[operator]
    try:
        wanted = TokenGrid.from_clip(
            frames=clip.frames, height=clip.crop, width=clip.crop, stride=target.output_stride
        )
    except UserError as error:
        raise UserError(f"target.name {config.target.name!r}: {error}; or {target.grid_remedy}") from error
    if wanted != output:
        argument = getattr(model, "grid_argument", "")
        pools = f", or the model's {argument}" if argument else ""
        raise UserError(
            f"target.name {config.target.name!r} gives values on a grid of {wanted}, and {name} predicts on "
            f"{output}; {target.grid_remedy}{pools}"
        )
    check_mask_grid(config, output)
    if getattr(model, "equal_masks", False) and config.mask.kind not in EXACT:
        raise UserError(
            f"mask.kind {config.mask.kind!r} does not hide equally many places of every clip, and {name} "
            f"computes the visible ones alone, equally many of each; take one of {', '.join(EXACT)}"
        )
    return model


def check_mask_grid(config: PretrainConfig, output: TokenGrid) -> None:
    """Refuse masks that do not fit the grid of a network's output.

    Raises:
        UserError: the mask grid does not divide it.
    """
    mask = mask_grid(config.clip, config.mask)
    if not mask.divides(output):
        raise UserError(
            f"mask.cell {list(config.mask.cell)} gives a mask of {mask} cells, which does not divide the "
            f"{output} positions that {config.model.name} predicts; each axis of the positions must be a "
            "multiple of the mask's"
        )


def mask_grid(clip: ClipConfig, mask: MaskConfig) -> TokenGrid:
    """The grid on which masks are drawn: the clip cut into mask cells.

    Raises:
        UserError: the cells do not tile the clip.
    """
    size = (clip.frames, clip.crop, clip.crop)
    if any(step < 1 or length % step for length, step in zip(size, mask.cell, strict=True)):
        raise UserError(
            f"mask.cell {list(mask.cell)} does not tile a clip of {size[0]} frames and {size[1]}x{size[2]} "
            "pixels: each of its sizes must divide the clip's (clip.frames, clip.crop, clip.crop)"
        )
    return TokenGrid(*(length // step for length, step in zip(size, mask.cell, strict=True)))


def draw_mask(config: PretrainConfig) -> Mask:
    """One mask, always the same, so that what cannot be is known before the run starts.

    Raises:
        UserError: an unknown kind, cells that do not tile the clip, or a ratio that would leave nothing
            visible or nothing hidden.
    """
    mask = config.mask
    draw, grid = mask_function(mask.kind), mask_grid(config.clip, mask)
    try:
        return draw(grid, mask.ratio, np.random.default_rng(0))
    except UserError as error:
        raise UserError(f"mask.ratio {mask.ratio:g} with mask.cell {list(mask.cell)}: {error}") from error


def mask_function(name: str) -> MaskFunction:
    """The mask policy by its name.

    Raises:
        UserError: an unknown name.
    """
    check_name("mask.kind", name, MASKS)
    return MASKS[name]


def records_of(config: PretrainConfig, path: str) -> Records:
    """The rows of a list of the run.

    Raises:
        UserError: the list is wrong, or holds pictures and clips have more than one frame.
    """
    data, frames = config.data, config.clip.frames
    records = load_records(
        path,
        format=data.format,
        labels=data.labels,
        prefix=data.prefix,
        separator=data.separator,
        stills=frames == 1,
    )
    check_frames(records, frames)
    return records


def frame_sampler(config: PretrainConfig, choose: Callable[..., np.ndarray]) -> FrameSampler:
    """Which frames make a clip; ``choose`` draws them, as clip_indices_random does."""
    clip = config.clip
    return functools.partial(
        choose,
        frames=clip.frames,
        stride=clip.stride,
        target_fps=clip.target_fps,
        short=typing.cast(ShortVideo, clip.short_video),
    )


def training_crop(clip: ClipConfig) -> RandomResizedCrop:
    """The random crop of a training clip."""
    return RandomResizedCrop(
        clip.crop,
        area=(clip.crop_area[0], clip.crop_area[1]),
        aspect=(clip.crop_aspect[0], clip.crop_aspect[1]),
        flip=clip.flip,
    )


def _dataset(
    config: PretrainConfig,
    path: str,
    *,
    choose: Callable[..., np.ndarray],
    transform: ClipTransform,
    samples: int,
) -> PretrainClips:
    """The clips of a list; ``choose`` says which frames, as clip_indices_random does."""
    mask = config.mask
    grid = mask_grid(config.clip, mask)
    return PretrainClips(
        records_of(config, path),
        sampler=frame_sampler(config, choose),
        transform=transform,
        mask=functools.partial(mask_function(mask.kind), grid, mask.ratio),
        reader=config.data.reader,
        seed=config.run.seed,
        samples_per_video=samples,
    )


def training_loader(config: PretrainConfig, *, rank: int, world_size: int) -> ClipLoader:
    """Random clips and crops of the training list.

    Raises:
        UserError: the list, the batch or a clip setting is wrong.
    """
    dataset = _dataset(
        config,
        config.data.train,
        choose=clip_indices_random,
        transform=training_crop(config.clip),
        samples=config.clip.samples_per_video,
    )
    return ClipLoader(
        dataset,
        batch_size=config.optim.batch_size,
        accumulate=config.optim.accumulate,
        workers=config.data.workers,
        read_seconds=config.data.read_seconds,
        rank=rank,
        world_size=world_size,
        pin_memory=config.run.device != "cpu",
    )


def heldout_loader(config: PretrainConfig) -> ClipLoader | None:
    """The middle clip and centre crop of each held-out video, in the list's order, always the same masks.

    Raises:
        UserError: the list is wrong.
    """
    if not config.data.validation:
        return None
    clip = config.clip
    transform = UniformCrop(clip.crop, clip.crop)
    dataset = _dataset(config, config.data.validation, choose=middle_clip, transform=transform, samples=1)
    check_heldout_clips(config)
    clips = min(config.run.evaluate_clips, len(dataset))
    return ClipLoader(
        dataset,
        # A loader leaves out what does not fill a batch, so take one that divides the number of clips.
        batch_size=max(size for size in range(1, HELDOUT_BATCH + 1) if clips % size == 0),
        workers=config.data.workers,
        read_seconds=config.data.read_seconds,
        shuffle=False,
        read_ahead=False,
    )


def check_heldout_clips(config: PretrainConfig) -> None:
    """Refuse a held-out loss over no clips.

    Raises:
        UserError: there are none.
    """
    if config.run.evaluate_clips < 1:
        raise UserError(
            f"run.evaluate_clips {config.run.evaluate_clips} must be at least 1; "
            "empty data.validation to do without a held-out loss"
        )


def middle_clip(num_frames: int, fps: float, *, rng: np.random.Generator, **clip: Any) -> np.ndarray:
    """The one clip in the middle of a video, with the signature of a random one; ``rng`` is not used."""
    return clip_indices_view(num_frames, fps, view=0, views=1, **clip)
