"""Attention of an encoder over the positions of a clip: of one block, or rolled out over several."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from videomaskfeat.errors import UserError
from videomaskfeat.grid import TokenGrid
from videomaskfeat.models.encoder_base import Encoder, as_clips


class BlockAttention(NamedTuple):
    """The attention weights of a block.

    weights: float32 [B, M, P + N', P + N"], the shares of each query and head; each row has the sum 1. P is 1
        with a class token, which comes first.
    queries, keys: grids of the N' queries and of the N" keys, which blocks of MViTv2 pool.
    inputs: grid of the tokens that enter the block.
    """

    weights: Tensor
    queries: TokenGrid
    keys: TokenGrid
    inputs: TokenGrid


@torch.no_grad()
def block_attention(model: Encoder, clips: Tensor, *, block: int | None = None) -> BlockAttention:
    """The attention weights of a block.

    Args:
        model: in evaluation mode.
        clips: float [B, C, T, H, W], normalized.
        block: number of the block, from 1; None: the last.

    Raises:
        UserError: there is no such block, or it has no attention weights.
    """
    tokens, grid, layer = _inputs_of_blocks(model, clips, block)[-1]
    weights, queries, keys = layer.attention_weights(tokens, grid)
    return BlockAttention(weights.float(), queries, keys, grid)


@torch.no_grad()
def attention_maps(
    model: Encoder, clips: Tensor, *, block: int | None = None, rollout: bool = False
) -> Tensor:
    """The attention that the output of a block pays to each position of the clip, averaged over heads.

    The queries are those that the model's head reads: the class token for the head "token", otherwise the
    mean over the grid's tokens. The share of a class token among the keys is left out.

    Args:
        model: in evaluation mode.
        clips: float [B, C, T, H, W], normalized.
        block: number of the block, from 1; None: the last.
        rollout: attention rollout (arXiv 2005.00928): the product of ``(weights + identity) / 2`` over all
            blocks up to ``block``, instead of the weights of that block. If a block pools, each key and each
            skipped query stands for equal shares of the tokens from which it is pooled.

    Returns:
        float32 [B, t, h, w] on the grid of the clip's cubes. The weights of pooled keys are interpolated to
        it; a rollout is distributed over it and has, with the class token, the sum 1.

    Raises:
        UserError: as :func:`block_attention`.
    """
    inputs = _inputs_of_blocks(model, clips, block)
    stem, prefix = inputs[0][1], model.prefix
    shares: Tensor | None = None
    for tokens, grid, layer in reversed(inputs):
        if hasattr(layer, "attend_shares"):  # attends within units, without a matrix of all tokens
            queries, keys = layer.query_grid(grid), grid
            if shares is None:
                shares = _first_queries(model, tokens, prefix + queries.size)  # [B, P+N']
            attended = layer.attend_shares(tokens, grid, shares)  # [B, P+N"]
        else:
            weights, queries, keys = layer.attention_weights(tokens, grid)
            if shares is None:
                shares = _first_queries(model, tokens, weights.shape[2])
            attended = (shares[:, None] @ weights.float().mean(dim=1))[:, 0]
        if not rollout:
            return _interpolate(attended[:, prefix:], keys, stem)
        attended = _distribute(attended, keys, grid, prefix)  # [B, P+N]
        shares = (attended + _distribute(shares, queries, grid, prefix)) / 2
    assert shares is not None  # an encoder has a block
    return shares[:, prefix:].unflatten(1, stem.shape)


def _inputs_of_blocks(
    model: Encoder, clips: Tensor, block: int | None
) -> list[tuple[Tensor, TokenGrid, Any]]:
    """The tokens [B, P+N, D] and the grid that enter each block up to a number, and the block."""
    count = len(model.blocks)
    if block is not None and not 1 <= block <= count:
        raise UserError(f"block {block}: the encoder has blocks 1..{count}")
    tokens, grid = model.patch_embed(as_clips(clips))
    tokens = model.placed(tokens, grid)
    inputs: list[tuple[Tensor, TokenGrid, Any]] = []
    for number, layer in enumerate(model.blocks[:block], start=1):
        if not hasattr(layer, "attention_weights"):
            raise UserError(
                f"block {number} is a {type(layer).__name__}, which has no attention weights; the maps "
                "attention and rollout need its method attention_weights(tokens, grid), as in MViT, ViT and "
                "Hiera"
            )
        inputs.append((tokens, grid, layer))
        if number < (block or count):
            tokens, grid = layer(tokens, grid)
    return inputs


def _first_queries(model: Encoder, tokens: Tensor, queries: int) -> Tensor:
    """The share of each query, float32 [B, P+N'], in what the head reads."""
    shares = torch.zeros(len(tokens), queries, device=tokens.device)
    if getattr(model, "head_kind", "") == "token":
        shares[:, 0] = 1
    else:
        shares[:, model.prefix :] = 1 / (queries - model.prefix)
    return shares


def _interpolate(values: Tensor, source: TokenGrid, target: TokenGrid) -> Tensor:
    """Values [B, N"] on a grid -> [B, t, h, w] on a finer one, trilinear."""
    volume = values.unflatten(1, source.shape)[:, None]
    return F.interpolate(volume, target.shape, mode="trilinear", align_corners=False)[:, 0]


def _distribute(shares: Tensor, source: TokenGrid, target: TokenGrid, prefix: int) -> Tensor:
    """Divide the share of each pooled token equally among the tokens of a finer grid nearest to it.

    [B, P + N"] -> [B, P + N], with the same sum.
    """
    if source == target:
        return shares
    place = torch.arange(source.size, device=shares.device).view(1, 1, *source.shape)
    nearest = F.interpolate(place.double(), target.shape, mode="nearest").long().flatten()  # [N]
    counts = nearest.bincount(minlength=source.size)
    return torch.cat([shares[:, :prefix], (shares[:, prefix:] / counts)[:, nearest]], dim=1)
