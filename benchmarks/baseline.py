"""The plain implementation of MaskFeat and its fine-tuning, directly from the formulas, as in PySlowFast.

It adds the relative position bias to a materialized attention matrix, pools by `conv3d` in image layout, and
computes HOG by scattering into one histogram per pixel. Its parameter names are close to those of
`videomaskfeat.models`, so the same weights load into both. Their outputs are compared before any timing.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Grid = tuple[int, int, int]


def plain_hog(frames: Tensor, bins: int = 9, cell: int = 8) -> Tensor:
    """HOG of float frames [B, C, H, W] -> [B, C, bins, H/cell, W/cell], through [B, C, bins, H, W]."""
    batch, channels, height, width = frames.shape
    sobel = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]], device=frames.device)
    padded = F.pad(frames.float().flatten(0, 1)[:, None], (1, 1, 1, 1), mode="reflect")
    gx = F.conv2d(padded, sobel[None, None]).view(frames.shape)
    gy = F.conv2d(padded, sobel.t()[None, None]).view(frames.shape)
    gx = torch.where(gx.abs() <= 5e-6, 0.0, gx)
    magnitude = torch.sqrt(gx * gx + gy * gy)
    bin_index = (torch.atan2(gx, gy) / math.pi * bins).floor().long() % bins
    histogram = frames.new_zeros(batch, channels, bins, height, width)
    histogram.scatter_add_(2, bin_index[:, :, None], magnitude[:, :, None])
    cells = F.avg_pool2d(histogram.flatten(0, 1), cell) * cell**2
    return F.normalize(cells.view(batch, channels, bins, height // cell, width // cell), dim=2)


def plain_hog_target(clips: Tensor) -> Tensor:
    """Clips float [B, 3, T, H, W] -> [B, t, h, w, 108]: every second frame, 2x2 cells per position."""
    frames = clips[:, :, ::2].transpose(1, 2)  # [B, t, 3, H, W]
    hog = plain_hog(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])  # [B, t, 3, 9, H/8, W/8]
    hog = hog.unfold(4, 2, 2).unfold(5, 2, 2)  # [B, t, 3, 9, h, w, 2, 2]
    return hog.permute(0, 1, 4, 5, 2, 3, 6, 7).flatten(4)


class PlainAttention(nn.Module):
    """Pooled attention with a materialized matrix [B, M, queries, keys]."""

    pool_q: nn.Module
    pool_k: nn.Module
    pool_v: nn.Module
    norm_q: nn.Module
    norm_k: nn.Module
    norm_v: nn.Module

    def __init__(self, width: int, heads: int, grid: Grid, q_stride: Grid, kv_stride: Grid) -> None:
        super().__init__()
        self.heads, self.q_stride, self.kv_stride = heads, q_stride, kv_stride
        head_width = width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        for name, stride in (("q", q_stride), ("k", kv_stride), ("v", kv_stride)):
            conv = nn.Conv3d(head_width, head_width, 3, stride, 1, groups=head_width, bias=False)
            setattr(self, f"pool_{name}", conv)
            setattr(self, f"norm_{name}", nn.LayerNorm(head_width, eps=1e-6))
        for axis, length, q_step, kv_step in zip("thw", grid, q_stride, kv_stride, strict=True):
            rows = 2 * max(length // q_step, length // kv_step) - 1
            setattr(self, f"rel_pos_{axis}", nn.Parameter(torch.empty(rows, head_width)))

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        """Tokens [B, 1+N, D] -> [B, 1+N', D] and the new grid."""
        batch, tokens, width = x.shape
        qkv = (
            self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        )  # [3, B, M, 1+N, d]
        q, q_grid = self._pool(qkv[0], grid, self.pool_q, self.norm_q)
        k, k_grid = self._pool(qkv[1], grid, self.pool_k, self.norm_k)
        v, _ = self._pool(qkv[2], grid, self.pool_v, self.norm_v)
        matrix = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # [B, M, 1+N', 1+N"]
        matrix[:, :, 1:, 1:] += self._bias(q[:, :, 1:], q_grid, k_grid)
        result = matrix.softmax(dim=-1) @ v
        result[:, :, 1:] += q[:, :, 1:]
        return self.proj(result.transpose(1, 2).reshape(batch, -1, width)), q_grid

    def _pool(self, x: Tensor, grid: Grid, conv: nn.Module, norm: nn.Module) -> tuple[Tensor, Grid]:
        batch, heads, _, head_width = x.shape
        first, rest = x[:, :, :1], x[:, :, 1:]
        image = rest.reshape(batch * heads, *grid, head_width).permute(0, 4, 1, 2, 3).contiguous()
        image = conv(image)  # [B*M, d, t, h, w]
        rest = image.reshape(batch, heads, head_width, -1).transpose(2, 3)
        t, h, w = image.shape[2:]
        return norm(torch.cat([first, rest], dim=2)), (t, h, w)

    def _bias(self, q: Tensor, q_grid: Grid, k_grid: Grid) -> Tensor:
        """[B, M, queries, keys], the sum of the biases of the three axes."""
        tables = [self._table(axis, *sizes) for axis, sizes in enumerate(zip(q_grid, k_grid, strict=True))]
        cells = q.unflatten(2, q_grid)
        along_t = torch.einsum("bmthwd,tkd->bmthwk", cells, tables[0])[..., :, None, None]
        along_h = torch.einsum("bmthwd,hkd->bmthwk", cells, tables[1])[..., None, :, None]
        along_w = torch.einsum("bmthwd,wkd->bmthwk", cells, tables[2])[..., None, None, :]
        return (along_t + along_h + along_w).flatten(5).flatten(2, 4)

    def _table(self, axis: int, queries: int, keys: int) -> Tensor:
        """Relative vectors [queries, keys, d]."""
        table = getattr(self, f"rel_pos_{'thw'[axis]}")
        q_step, k_step = max(keys / queries, 1.0), max(queries / keys, 1.0)
        q_place = torch.arange(queries, device=table.device)[:, None] * q_step
        k_place = torch.arange(keys, device=table.device)[None] * k_step
        return table[(q_place - k_place + (keys - 1) * k_step).long()]


class PlainBlock(nn.Module):
    """One block, which changes the width in its MLP."""

    def __init__(
        self, width: int, out_width: int, heads: int, grid: Grid, q_stride: Grid, kv_stride: Grid
    ) -> None:
        super().__init__()
        self.q_stride = q_stride
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = PlainAttention(width, heads, grid, q_stride, kv_stride)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, out_width)})
        self.proj = nn.Linear(width, out_width) if out_width != width else None

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        """Tokens [B, 1+N, D] -> [B, 1+N', D'] and the new grid."""
        attended, new_grid = self.attn(self.norm1(x), grid)
        if max(self.q_stride) > 1:
            kernel = [step + 1 if step > 1 else 1 for step in self.q_stride]
            image = x[:, 1:].transpose(1, 2).reshape(x.shape[0], x.shape[2], *grid)
            image = F.max_pool3d(image, kernel, self.q_stride, [size // 2 for size in kernel])
            x = torch.cat([x[:, :1], image.flatten(2).transpose(1, 2)], dim=1)
        x = x + attended
        normed = self.norm2(x)
        skip = x if self.proj is None else self.proj(normed)
        return skip + self.mlp["fc2"](F.gelu(self.mlp["fc1"](normed))), new_grid


class PlainEncoder(nn.Module):
    """Stem and blocks of MViTv2-S for clips of 16 frames of 224x224, as in MaskFeat.

    Args:
        q_pool_at: blocks with query pooling.
        depth: number of blocks.
        grid: token grid after the stem.
    """

    def __init__(self, q_pool_at: tuple[int, ...], *, depth: int = 16, grid: Grid = (8, 56, 56)) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(3, 96, (3, 7, 7), (2, 4, 4), (1, 3, 3))})
        self.cls_token = nn.Parameter(torch.empty(1, 1, 96))
        self.blocks = nn.ModuleList()
        width, kv_step = 96, 8
        for index in range(depth):
            q_step = 2 if index in q_pool_at else 1
            kv_step //= q_step
            out_width = width * 2 if index + 1 in (1, 3, 14) else width
            block = PlainBlock(
                width, out_width, width // 96, grid, (1, q_step, q_step), (1, kv_step, kv_step)
            )
            self.blocks.append(block)
            grid = (grid[0], grid[1] // q_step, grid[2] // q_step)
            width = out_width
        self.out_width = width

    def cubes(self, clips: Tensor) -> tuple[Tensor, Grid]:
        """Tokens [B, N, D] and their grid."""
        x = self.patch_embed["proj"](clips)
        return x.flatten(2).transpose(1, 2), (x.shape[2], x.shape[3], x.shape[4])

    def encode(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        """Tokens [B, N, D] through all blocks, [B, 1+N', D'], and the new grid."""
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        for block in self.blocks:
            x, grid = block(x, grid)
        return x, grid


class PlainMaskFeat(PlainEncoder):
    """MViTv2-S pre-training: (clips, mask [B, 8, 7, 7]) -> predictions."""

    def __init__(self, values_per_token: int = 108, *, depth: int = 16, grid: Grid = (8, 56, 56)) -> None:
        super().__init__((1, 3), depth=depth, grid=grid)
        self.mask_token = nn.Parameter(torch.empty(1, 1, 96))
        self.head_norm = nn.Sequential(nn.LayerNorm(self.out_width, eps=1e-6))
        self.head = nn.Linear(self.out_width, values_per_token)

    def load_ours(self, state: dict[str, Tensor]) -> None:
        """Load the weights of `maskfeat_mvitv2_s`, which has other names in its head."""
        names = {"pred_head.transforms.0": "head_norm", "pred_head.projections.0": "head"}
        for theirs, ours in names.items():
            state = {name.replace(theirs, ours): value for name, value in state.items()}
        self.load_state_dict(state)

    def forward(self, clips: Tensor, mask: Tensor) -> Tensor:
        """Predictions [B, t, h, w, 108]."""
        x, grid = self.cubes(clips)
        fine = F.interpolate(mask[:, None].float(), size=grid).flatten(2).transpose(1, 2)  # [B, N, 1]
        x, grid = self.encode(x * (1 - fine) + self.mask_token * fine, grid)
        return self.head(self.head_norm(x[:, 1:])).unflatten(1, grid)


class PlainClassifier(PlainEncoder):
    """MViTv2-S of MaskFeat's fine-tuning: clips -> logits [B, L]."""

    def __init__(self, classes: int = 400, *, depth: int = 16, grid: Grid = (8, 56, 56)) -> None:
        super().__init__((1, 3, 14), depth=depth, grid=grid)
        self.norm = nn.LayerNorm(self.out_width, eps=1e-6)
        self.head = nn.Linear(self.out_width, classes)

    def load_ours(self, state: dict[str, Tensor]) -> None:
        """Load the weights of `maskfeat_mvitv2_s_classifier`, which has another name for its head."""
        self.load_state_dict({name.replace("head.projection", "head"): x for name, x in state.items()})

    def forward(self, clips: Tensor) -> Tensor:
        """Logits [B, L]."""
        x, _ = self.encode(*self.cubes(clips))
        return self.head(self.norm(x[:, 1:].mean(dim=1)))


def plain_loss(predictions: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the gathered hidden positions."""
    hidden = F.interpolate(mask[:, None].float(), size=predictions.shape[1:4])[:, 0] > 0.5
    return F.mse_loss(predictions[hidden].float(), target[hidden])
