"""Weights of a model for images brought into the shapes of a model for clips."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from videomaskfeat.errors import UserError, nearest
from videomaskfeat.grid import TokenGrid
from videomaskfeat.models.encoder_base import Encoder
from videomaskfeat.models.positions import joint_positions

Inflate = Literal["repeated", "centred"]
INFLATIONS: tuple[Inflate, ...] = get_args(Inflate)

_STEM = "patch_embed.proj.weight"
_TABLE = "pos_embed"
_SPACE, _TIME, _CLASS = "pos_embed_spatial", "pos_embed_temporal", "pos_embed_class"


def inflated(
    model: nn.Module, state: Mapping[str, Tensor], how: Inflate
) -> tuple[Mapping[str, Tensor], tuple[str, ...]]:
    """An image model's stem and positions in the shapes of a clip model's; anything else is left as it is.

    The stem's kernel is "repeated" over the frames of a cube and divided by their number, so that a still
    clip gives the tokens of its picture (I3D, arXiv 1705.07750, section 2.4), or "centred": it stands in the
    middle frame, frames // 2, and the others are 0 (ViViT, arXiv 2103.15691, section 3.4). Positions are
    repeated over time; a table of times of their own, where the model has one, starts at 0.

    Args:
        model: the model that the weights go into.
        state: name -> tensor; a stem of one frame [D, C, 1, h, w] or [D, C, h, w] makes it an image model's.
        how: see above.

    Returns:
        The weights, and the names of the model's that were made so.

    Raises:
        UserError: an unknown way.
    """
    if how not in INFLATIONS:
        raise UserError(f"inflate {how!r} is not one of {', '.join(INFLATIONS)}{nearest(how, INFLATIONS)}")
    if not isinstance(model, Encoder) or _STEM not in state or state[_STEM].ndim not in (4, 5):
        return state, ()
    kernel = state[_STEM] if state[_STEM].ndim == 5 else state[_STEM].unsqueeze(2)  # [D, C, kt, h, w]
    frames = model.patch_embed.proj.weight.shape[2]
    changed = {_STEM: kernel}
    tables = [state[name] for name in (_TABLE, _SPACE, _TIME, _CLASS) if name in state]
    if any(table.ndim != 3 or not table.numel() for table in tables):
        return state, ()  # not positions at all: the loader reports the shapes
    if kernel.shape[2] != 1 or frames == 1:
        return {**state, **changed}, ()
    changed[_STEM] = _inflated_kernel(kernel, frames, how)
    positions = _repeated_positions(model, state)
    # Where the image's tables are others than the clip's they have gone into these.
    gone = {_TABLE, _SPACE, _TIME, _CLASS} if positions else set()
    kept = {name: value for name, value in state.items() if name not in gone}
    return {**kept, **changed, **positions}, (*changed, *positions)


def _inflated_kernel(kernel: Tensor, frames: int, how: Inflate) -> Tensor:
    """[D, C, 1, h, w] -> [D, C, frames, h, w]."""
    if how == "repeated":
        return (kernel.float() / frames).to(kernel.dtype).repeat(1, 1, frames, 1, 1)
    wide = torch.zeros_like(kernel).repeat(1, 1, frames, 1, 1)
    wide[:, :, frames // 2] = kernel[:, :, 0]
    return wide


def _repeated_positions(model: Encoder, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's position tables from an image's, by name; empty where either has none that fits."""
    own = model.state_dict()
    grid = model.native_grid
    frame = TokenGrid(1, grid.h, grid.w)
    if _TABLE in state:
        table = state[_TABLE]
        prefix = int("cls_token" in state)
    elif {_SPACE, _TIME} <= set(state) and state[_TIME].shape[1] == 1:
        places = state[_SPACE] + state[_TIME]
        table = torch.cat([state[_CLASS], places], dim=1) if _CLASS in state else places
        prefix = int(_CLASS in state)
    else:
        return {}
    first = table[:, : min(prefix, model.prefix)]  # [1, P, D]
    places = table[:, prefix:]  # [1, h0*w0, D]
    factor = (places.shape[1] / frame.size) ** 0.5
    native = TokenGrid(1, round(grid.h * factor), round(grid.w * factor))
    if native.size != places.shape[1]:
        return {}  # another shape of frame: the shapes do not fit, and the loader says so
    places = joint_positions(places.float(), native, frame).to(table.dtype)  # [1, h*w, D]
    if _TABLE in own:
        if prefix < model.prefix:  # the image had no class token: that of the clip stays as it was drawn
            first = own[_TABLE][:, : model.prefix].to(table.dtype)
        return {_TABLE: torch.cat([first, places.repeat(1, grid.t, 1)], dim=1)}
    if _SPACE not in own:
        return {}
    tables = {_SPACE: places, _TIME: torch.zeros_like(places[:, :1]).repeat(1, grid.t, 1)}
    return tables | ({_CLASS: first} if first.shape[1] else {})
