"""RoIAlign as two small matrices per box.

Bilinear sampling is separable, so the mean over a bin's samples is a weighted mean over rows and then over
columns: output = rows @ features @ columns^T. The matrices contain the weights of all samples, and no shape
depends on the number of samples.

A GPU computes two batched products. On the CPU, where copying a map per box costs more than the arithmetic,
`embedding_bag` sums only the cells with a nonzero weight; the gradient is the transposed sum.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_compiling, is_exporting

from videomaskfeat.errors import UserError

_NEAR = 5  # samples of an adaptive grid to consider per cell: three, and one on each side for rounding


def roi_align(
    features: Tensor,
    boxes: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """Average the bilinear samples in each bin of each box, with the numbers of torchvision's ``roi_align``.

    See https://arxiv.org/abs/1703.06870, section 3. Computed in float32 (float64 stays), under autocast too.
    As in torchvision, boxes get no gradient.

    Args:
        features: float [B, C, H, W]; channels-last memory is fastest.
        boxes: float [R, 5]: index in the batch, then x1, y1, x2, y2 in pixels. Boxes may extend beyond the
            features: samples up to one cell outside use the border value, others are zero. A box without area
            gives zeros if ``aligned`` is True and the sampling is adaptive.
        output_size: bins (height, width), or one number for both.
        spatial_scale: cells per pixel: 1/16 for features at stride 16.
        sampling_ratio: samples per bin along each axis; 0 or less for the smallest number that places them at
            most one cell apart.
        aligned: True (correct) puts the center of cell i at i + 0.5. False puts it at i and makes boxes at
            least one cell long, as older networks were trained.

    Returns:
        [R, C, height, width] in the type of ``features``.

    Raises:
        UserError: a wrong shape or size, or (in eager mode on the CPU) a box index outside the batch.
    """
    height, width = (output_size, output_size) if isinstance(output_size, int) else output_size
    _check(features, boxes, (height, width), spatial_scale)
    with torch.autocast(features.device.type, enabled=False):
        precise = features.to(torch.promote_types(features.dtype, torch.float32))
        edges = (boxes[:, 1:].detach().to(precise.dtype) * spatial_scale).unbind(1)
        if aligned:
            edges = tuple(edge - 0.5 for edge in edges)
        left, top, right, bottom = edges
        rows = _weights(top, bottom, height, precise.shape[2], sampling_ratio, aligned)  # [R, height, H]
        columns = _weights(left, right, width, precise.shape[3], sampling_ratio, aligned)  # [R, width, W]
        maps = precise.permute(0, 2, 3, 1).contiguous()  # [B, H, W, C]: channels are contiguous in sums
        pool = _pool_sparse if maps.device.type == "cpu" and not is_exporting() else _pool_dense
        pooled = pool(maps, boxes[:, 0].detach().long(), rows, columns)  # [R, height, width, C]
    return pooled.permute(0, 3, 1, 2).to(features.dtype)


def _pool_dense(maps: Tensor, indices: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Maps [B, H, W, C], indices int64 [R], rows [R, h, H], columns [R, w, W] -> [R, h, w, C]."""
    (count, height, cells_high), (width, cells_wide), channels = rows.shape, columns.shape[1:], maps.shape[3]
    box_maps = maps.index_select(0, indices).view(count, cells_high, cells_wide * channels)
    strips = torch.bmm(rows, box_maps).view(count * height, cells_wide, channels)
    columns = columns[:, None].expand(-1, height, -1, -1).reshape(count * height, width, cells_wide)
    return torch.bmm(columns, strips).view(count, height, width, channels)


@torch.library.custom_op("videomaskfeat::pool_boxes", mutates_args=(), device_types="cpu")
def _pool_sparse(maps: Tensor, indices: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """See :func:`_pool_dense`."""
    bins, cells, weights = _taps(indices, rows, columns)
    shape = (rows.shape[0], rows.shape[1], columns.shape[1])
    sums = _weighted_sums(maps.flatten(0, 2), cells, weights, bins, math.prod(shape))
    return sums.view(*shape, maps.shape[3])


@torch.library.custom_op("videomaskfeat::pool_boxes_backward", mutates_args=(), device_types="cpu")
def _pool_sparse_backward(grad: Tensor, indices: Tensor, rows: Tensor, columns: Tensor, batch: int) -> Tensor:
    """Gradient of the maps [B, H, W, C] from that of the output [R, height, width, C]."""
    bins, cells, weights = _taps(indices, rows, columns)
    cells, order = cells.sort(stable=True)
    shape = (batch, rows.shape[2], columns.shape[2])
    grad = grad.contiguous().flatten(0, 2)
    sums = _weighted_sums(grad, bins[order], weights[order], cells, math.prod(shape))
    return sums.view(*shape, grad.shape[1])


@_pool_sparse.register_fake
def _(maps: Tensor, indices: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return maps.new_empty(rows.shape[0], rows.shape[1], columns.shape[1], maps.shape[3])


@_pool_sparse_backward.register_fake
def _(grad: Tensor, indices: Tensor, rows: Tensor, columns: Tensor, batch: int) -> Tensor:
    return grad.new_empty(batch, rows.shape[2], columns.shape[2], grad.shape[3])


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor], output: Tensor) -> None:
    maps, *weights = inputs
    ctx.batch = maps.shape[0]
    ctx.save_for_backward(*weights)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    return _pool_sparse_backward(grad, *ctx.saved_tensors, ctx.batch), None, None, None


_pool_sparse.register_autograd(_differentiate, setup_context=_save)


def _taps(indices: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bin number, cell number and weight of each nonzero weight, ordered by bin, each [n]."""
    weights = rows[:, :, None, :, None] * columns[:, None, :, None, :]  # [R, height, width, H, W]
    weights = weights.flatten(3).flatten(0, 2)  # [R * height * width, H * W]
    bins, cells = weights.nonzero(as_tuple=True)
    box = bins // (rows.shape[1] * columns.shape[1])
    return bins, cells + indices[box] * weights.shape[1], weights[bins, cells]


def _weighted_sums(table: Tensor, rows: Tensor, weights: Tensor, bags: Tensor, count: int) -> Tensor:
    """Weighted sums of rows of a table [m, C], one per bag, [count, C]; an empty bag gives zeros.

    ``rows`` int64 [n] and ``weights`` [n] belong to ``bags`` int64 [n], which ascend.
    """
    if not len(rows):
        return table.new_zeros(count, table.shape[1])
    starts = torch.searchsorted(bags, torch.arange(count))
    return F.embedding_bag(rows, table, starts, mode="sum", per_sample_weights=weights)


def _weights(start: Tensor, end: Tensor, bins: int, cells: int, ratio: int, aligned: bool) -> Tensor:
    """Weight of each cell along one axis in each bin of each box, [R, bins, cells].

    Args:
        start, end: [R], edges of the box in cells.
        bins, cells: numbers along the axis.
        ratio: samples per bin; 0 or less for the bin's length in cells, rounded up.
        aligned: False makes boxes at least one cell long.
    """
    length = end - start
    if not aligned:
        length = length.clamp(min=1.0)
    bin_length = length / bins
    samples = torch.full_like(length, ratio) if ratio > 0 else bin_length.ceil()  # per bin, [R]
    start, bin_length, samples = (value[:, None, None, None] for value in (start, bin_length, samples))
    count = torch.arange(max(bins, cells, ratio, _NEAR), device=start.device, dtype=start.dtype)
    cell = count[:cells, None]
    first = start + count[:bins, None, None] * bin_length  # first edge of the bin, [R, bins, 1, 1]
    if ratio > 0:
        sample = count[:ratio]
    else:
        # n = ceil(bin) samples are more than (n - 1) / n of a cell apart. So at most three samples of a bin
        # lie within one cell of any cell; start with the last sample below it.
        below = ((cell - 1 - first) * samples / bin_length - 0.5).floor().clamp(min=0)
        sample = below + count[:_NEAR]  # [R, bins, cells, S]
    place = first + (sample + 0.5) * bin_length / samples
    counted = (place >= -1) & (place <= cells) & (sample < samples)
    weights = (1 - (place.clamp(0, cells - 1) - cell).abs()).clamp(min=0)  # bilinear, [R, bins, cells, S]
    # A box of length 0 has no samples (their positions are 0 / 0).
    return torch.where(counted, weights, 0).sum(3) / samples[..., 0].clamp(min=1)


def _check(features: Tensor, boxes: Tensor, output_size: tuple[int, int], spatial_scale: float) -> None:
    if features.ndim != 4 or not features.is_floating_point():
        raise UserError(
            f"features {list(features.shape)} of {features.dtype} are not float [B, C, H, W]; "
            "average features of a clip over time first"
        )
    if boxes.ndim != 2 or boxes.shape[1] != 5:
        raise UserError(
            f"boxes {list(boxes.shape)} are not [R, 5]: each row is index in the batch, x1, y1, x2, y2"
        )
    if min(output_size) < 1 or spatial_scale <= 0:
        raise UserError(
            f"output_size={output_size} and spatial_scale={spatial_scale} must be positive; "
            "7 and 1/16 are usual"
        )
    # On a GPU, reading a value would synchronize; index_select raises its own error there.
    if not is_compiling() and boxes.device.type == "cpu" and len(boxes):
        low, high = boxes[:, 0].min().item(), boxes[:, 0].max().item()
        if not (low >= 0 and high < len(features)):
            raise UserError(
                f"boxes have batch indices {low:g} to {high:g} in a batch of {len(features)}; their first "
                f"column must be in 0..{len(features) - 1}"
            )
