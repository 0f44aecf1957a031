"""A vision transformer with the weights' names of DINO's torch hub models: one head and picture at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def layer_norm(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centered = tokens - tokens.mean(dim=-1, keepdim=True)
    return centered / (centered.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * weight + bias


def dino_features(state: Mapping[str, Tensor], picture: Tensor) -> tuple[list[Tensor], Tensor]:
    """Tokens [1+N, D] after each block, and the last ones after the final norm; ``picture`` [C, H, W]."""
    kernel, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    side = kernel.shape[-1]
    rows, columns = picture.shape[1] // side, picture.shape[2] // side
    patches = [
        picture[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
        for row in range(rows)
        for column in range(columns)
    ]
    tokens = torch.stack([(kernel * patch).sum(dim=(1, 2, 3)) + bias for patch in patches])
    tokens = torch.cat([state["cls_token"][0], tokens]) + state["pos_embed"][0]
    outputs, number = [], 0
    while f"blocks.{number}.norm1.weight" in state:
        block = {
            name.removeprefix(f"blocks.{number}."): value
            for name, value in state.items()
            if name.startswith(f"blocks.{number}.")
        }
        tokens = tokens + _attention(layer_norm(tokens, block["norm1.weight"], block["norm1.bias"]), block)
        hidden = layer_norm(tokens, block["norm2.weight"], block["norm2.bias"])
        hidden = hidden @ block["mlp.fc1.weight"].T + block["mlp.fc1.bias"]
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        branch = hidden @ block["mlp.fc2.weight"].T + block["mlp.fc2.bias"]
        tokens = tokens + branch * block.get("ls2.gamma", torch.ones(()))
        outputs.append(tokens)
        number += 1
    return outputs, layer_norm(tokens, state["norm.weight"], state["norm.bias"])


def _attention(tokens: Tensor, block: Mapping[str, Tensor]) -> Tensor:
    width = tokens.shape[-1]
    q, k, v = (tokens @ block["attn.qkv.weight"].T + block["attn.qkv.bias"]).split(width, dim=-1)
    heads = []
    for start in range(0, width, 64):
        part = slice(start, start + 64)
        heads.append(torch.softmax(q[:, part] @ k[:, part].T / 8, dim=-1) @ v[:, part])
    attended = torch.cat(heads, dim=-1) @ block["attn.proj.weight"].T + block["attn.proj.bias"]
    return attended * block.get("ls1.gamma", torch.ones(()))
