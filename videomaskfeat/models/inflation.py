"""Weights of image models in models of clips."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from videomaskfeat.errors import check_name
from videomaskfeat.grid import TokenGrid
from videomaskfeat.models.positions import CLASS, SPACE, STEM, TABLE, TABLES, TIME, resize_frame

Inflate = Literal["repeated", "centered"]


def inflate_images(
    own: Mapping[str, Tensor], grid: TokenGrid, state: Mapping[str, Tensor], how: Inflate
) -> tuple[Mapping[str, Tensor], tuple[str, ...]]:
    """Inflate the stem and positions of an image model to those of a clip model; other weights are unchanged.

    The stem's kernel is either "repeated" over the frames of a cube and divided by their number, so that a
    clip of identical frames has the image's tokens (I3D, arXiv 1705.07750, section 2.4), or "centered": at
    frame frames // 2, with zeros elsewhere (ViViT, arXiv 2103.15691, section 3.4). Positions are repeated
    over time; a separate temporal table starts at 0.

    Args:
        own: state dict of the clip model.
        grid: its native token grid.
        state: weights by name; a stem of one frame, [D, C, 1, h, w] or [D, C, h, w], marks an image model.
        how: see above.

    Returns:
        The weights, and the names of the inflated ones.

    Raises:
        UserError: unknown ``how``.
    """
    check_name("inflate", how, get_args(Inflate))
    if STEM not in own or STEM not in state or state[STEM].ndim not in (4, 5):
        return state, ()
    kernel = state[STEM] if state[STEM].ndim == 5 else state[STEM].unsqueeze(2)  # [D, C, kt, h, w]
    tables = [state[name] for name in TABLES if name in state]
    if any(table.ndim != 3 or not table.numel() for table in tables):
        return state, ()  # these are not positions; the loader reports the shapes
    frames = own[STEM].shape[2]
    if kernel.shape[2] != 1 or frames == 1:
        return {**state, STEM: kernel}, ()
    if how == "repeated":
        stem = (kernel.float() / frames).to(kernel.dtype).repeat(1, 1, frames, 1, 1)  # [D, C, frames, h, w]
    else:
        stem = torch.zeros_like(kernel).repeat(1, 1, frames, 1, 1)
        stem[:, :, frames // 2] = kernel[:, :, 0]
    positions = _repeat_positions(own, grid, state)
    # The image model's tables are now part of the clip model's, under their names.
    other = {name: value for name, value in state.items() if not (positions and name in TABLES)}
    inflated = {STEM: stem, **positions}
    return {**other, **inflated}, tuple(inflated)


def _repeat_positions(
    own: Mapping[str, Tensor], grid: TokenGrid, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The clip model's position tables made from an image model's; empty if none fits."""
    if TABLE in state:
        table = state[TABLE]
        prefix = int("cls_token" in state)
    elif {SPACE, TIME} <= set(state) and state[TIME].shape[1] == 1:
        table = state[SPACE] + state[TIME]
        prefix = int(CLASS in state)
        table = torch.cat([state[CLASS], table], dim=1) if prefix else table
    else:
        return {}
    own_prefix = int("cls_token" in own)
    first, places = table[:, : min(prefix, own_prefix)], table[:, prefix:]  # [1, P, D], [1, h0*w0, D]
    resized = resize_frame(places, grid)
    if resized is None:
        return {}  # the loader reports the shapes
    if TABLE in own:
        if prefix < own_prefix:  # the image model has no class token: keep the clip model's position
            first = own[TABLE][:, :own_prefix].to(table.dtype)
        return {TABLE: torch.cat([first, resized.repeat(1, grid.t, 1)], dim=1)}
    if SPACE not in own:
        return {}
    positions = {SPACE: resized, TIME: torch.zeros_like(resized[:, :1]).repeat(1, grid.t, 1)}
    return positions | ({CLASS: first} if first.shape[1] else {})
