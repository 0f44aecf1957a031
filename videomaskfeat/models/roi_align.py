"""Features of boxes: RoIAlign as two small matrices per box.

Bilinear sampling is separable: the value at (y, x) is a weighted mean over rows, then one over columns, and
the mean over a bin's grid of samples is one over its rows of one over its columns. So two matrices per box,
output = rows @ features @ columns^T, hold the weights of all its samples: no sample is ever gathered, and no
shape depends on how many there are.

On a GPU these are two batched products. On the CPU, where copying a map for each box costs more than all the
arithmetic, only the few cells that weigh something in a bin are summed, by `embedding_bag`; the gradient is
the same sum the other way round.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_compiling, is_exporting

from videomaskfeat.errors import UserError

_NEAR = 5  # samples of an adaptive grid that are looked at for a cell: one too low, three, one for rounding


def roi_align(
    features: Tensor,
    boxes: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """The features of each box on a grid of bins, each the mean of bilinear samples in it.

    The numbers of torchvision's ``roi_align`` (https://arxiv.org/abs/1703.06870, section 3) on any device;
    computed in float32 (float64 stays), under autocast too. As there, boxes get no gradient.

    Args:
        features: float [B, C, H, W]; channels-last memory is the quickest.
        boxes: float [R, 5]: place in the batch, then x1, y1, x2, y2 in pixels of the picture. They may reach
            beyond the features: samples up to one cell outside read the border, others count as zero. A box
            without width or height gives zeros, where ``aligned`` and the sampling adapts to it.
        output_size: bins (height, width), or one number for both.
        spatial_scale: cells per pixel: 1/16 for features at stride 16.
        sampling_ratio: samples per bin along each axis; 0 or less adapts it to the box: the least whole
            number that puts them no more than a cell apart.
        aligned: True puts the centre of cell i at i + 0.5, which is right; False at i, with no box smaller
            than a cell, as older networks were trained.

    Returns:
        [R, C, height, width] in the type of ``features``.

    Raises:
        UserError: a shape or size is impossible, or (eagerly, on the CPU) a box's place is not in the batch.
    """
    height, width = (output_size, output_size) if isinstance(output_size, int) else output_size
    _check(features, boxes, (height, width), spatial_scale)
    with torch.autocast(features.device.type, enabled=False):
        wide = features.to(torch.promote_types(features.dtype, torch.float32))
        edges = (boxes[:, 1:].detach().to(wide.dtype) * spatial_scale).unbind(1)
        if aligned:
            edges = tuple(edge - 0.5 for edge in edges)
        left, top, right, bottom = edges
        rows = _weights(top, bottom, height, wide.shape[2], sampling_ratio, aligned)  # [R, height, H]
        columns = _weights(left, right, width, wide.shape[3], sampling_ratio, aligned)  # [R, width, W]
        maps = wide.permute(0, 2, 3, 1).contiguous()  # [B, H, W, C]: sums run along whole rows of channels
        pool = _pool_sparse if maps.device.type == "cpu" and not is_exporting() else _pool_dense
        pooled = pool(maps, boxes[:, 0].detach().long(), rows, columns)  # [R, height, width, C]
    return pooled.permute(0, 3, 1, 2).to(features.dtype)


def _pool_dense(maps: Tensor, places: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Maps [B, H, W, C] of places int64 [R], rows [R, h, H], columns [R, w, W] -> [R, h, w, C]."""
    (count, height, cells_high), (width, cells_wide), channels = rows.shape, columns.shape[1:], maps.shape[3]
    own = maps.index_select(0, places).view(count, cells_high, cells_wide * channels)
    strips = torch.bmm(rows, own).view(count * height, cells_wide, channels)
    columns = columns[:, None].expand(-1, height, -1, -1).reshape(count * height, width, cells_wide)
    return torch.bmm(columns, strips).view(count, height, width, channels)


@torch.library.custom_op("videomaskfeat::pool_boxes", mutates_args=(), device_types="cpu")
def _pool_sparse(maps: Tensor, places: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """As :func:`_pool_dense`."""
    bins, cells, weights = _taps(places, rows, columns)
    sums = _weighted_sums(
        maps.flatten(0, 2), cells, weights, bins, rows.shape[0] * rows.shape[1] * columns.shape[1]
    )
    return sums.view(rows.shape[0], rows.shape[1], columns.shape[1], maps.shape[3])


@torch.library.custom_op("videomaskfeat::pool_boxes_backward", mutates_args=(), device_types="cpu")
def _pool_sparse_backward(grad: Tensor, places: Tensor, rows: Tensor, columns: Tensor, batch: int) -> Tensor:
    """Gradient of the maps [B, H, W, C] from that of the output [R, height, width, C]."""
    bins, cells, weights = _taps(places, rows, columns)
    cells, order = cells.sort(stable=True)
    shape = (batch, rows.shape[2], columns.shape[2], grad.shape[3])
    count = batch * rows.shape[2] * columns.shape[2]
    return _weighted_sums(grad.contiguous().flatten(0, 2), bins[order], weights[order], cells, count).view(
        shape
    )


@_pool_sparse.register_fake
def _(maps: Tensor, places: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return maps.new_empty(rows.shape[0], rows.shape[1], columns.shape[1], maps.shape[3])


@_pool_sparse_backward.register_fake
def _(grad: Tensor, places: Tensor, rows: Tensor, columns: Tensor, batch: int) -> Tensor:
    return grad.new_empty(batch, rows.shape[2], columns.shape[2], grad.shape[3])


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor], output: Tensor) -> None:
    maps, *weights = inputs
    ctx.batch = maps.shape[0]
    ctx.save_for_backward(*weights)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    return _pool_sparse_backward(grad, *ctx.saved_tensors, ctx.batch), None, None, None


_pool_sparse.register_autograd(_differentiate, setup_context=_save)


def _taps(places: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The cells that weigh something in a bin, by bin: number of bin, number of cell, weight, each [n]."""
    weights = rows[:, :, None, :, None] * columns[:, None, :, None, :]  # [R, height, width, H, W]
    weights = weights.flatten(3).flatten(0, 2)  # [R * height * width, H * W]
    bins, cells = weights.nonzero(as_tuple=True)
    box = bins // (rows.shape[1] * columns.shape[1])
    return bins, cells + places[box] * weights.shape[1], weights[bins, cells]


def _weighted_sums(table: Tensor, taken: Tensor, weights: Tensor, bags: Tensor, count: int) -> Tensor:
    """For each of ``count`` bags the sum of its rows of a table [m, C], each times its weight: [count, C].

    Rows ``taken`` int64 [n], their ``weights`` [n] and ``bags`` int64 [n], ascending; an empty bag gives
    zeros.
    """
    if not len(taken):
        return table.new_zeros(count, table.shape[1])
    starts = torch.searchsorted(bags, torch.arange(count))
    return F.embedding_bag(taken, table, starts, mode="sum", per_sample_weights=weights)


def _weights(start: Tensor, end: Tensor, bins: int, cells: int, ratio: int, aligned: bool) -> Tensor:
    """The weight of each cell along one axis in each bin of each box, [R, bins, cells].

    Args:
        start, end: [R], the box's edges in cells.
        bins, cells: numbers along the axis.
        ratio: samples per bin; 0 or less for as many as a bin has cells, rounded up.
        aligned: False makes every box at least one cell long.
    """
    length = end - start
    if not aligned:
        length = length.clamp(min=1.0)
    bin_length = length / bins
    samples = torch.full_like(length, ratio) if ratio > 0 else bin_length.ceil()  # a bin, [R]
    start, bin_length, samples = (value[:, None, None, None] for value in (start, bin_length, samples))
    count = torch.arange(max(bins, cells, ratio, _NEAR), device=start.device, dtype=start.dtype)
    cell = count[:cells, None]
    first = start + count[:bins, None, None] * bin_length  # the bin's edge, [R, bins, 1, 1]
    if ratio > 0:
        sample = count[:ratio]
    else:
        # n = ceil(bin) samples are more than (n - 1) / n of a cell apart. So at most three of a bin, however
        # many it has, lie within a cell of any cell: start with the last one below.
        below = ((cell - 1 - first) * samples / bin_length - 0.5).floor().clamp(min=0)
        sample = below + count[:_NEAR]  # [R, bins, cells, S]
    place = first + (sample + 0.5) * bin_length / samples
    counted = (place >= -1) & (place <= cells) & (sample < samples)
    weights = (1 - (place.clamp(0, cells - 1) - cell).abs()).clamp(min=0)  # bilinear, [R, bins, cells, S]
    # A box without length has no samples (and no places: 0 / 0).
    return torch.where(counted, weights, 0).sum(3) / samples[..., 0].clamp(min=1)


def _check(features: Tensor, boxes: Tensor, output_size: tuple[int, int], spatial_scale: float) -> None:
    """Refuse what cannot be pooled, in words."""
    if features.ndim != 4 or not features.is_floating_point():
        raise UserError(
            f"features {list(features.shape)} of {features.dtype} are not float [B, C, H, W]; "
            "average those of a clip over its time first"
        )
    if boxes.ndim != 2 or boxes.shape[1] != 5:
        raise UserError(
            f"boxes {list(boxes.shape)} are not [R, 5]: a row is the place in the batch, x1, y1, x2, y2"
        )
    if min(output_size) < 1 or spatial_scale <= 0:
        raise UserError(
            f"output_size={output_size} and spatial_scale={spatial_scale} must be positive; "
            "7 and 1/16 are usual"
        )
    # On a GPU looking at a value would wait for the queue; there index_select refuses it, in its own words.
    if not is_compiling() and boxes.device.type == "cpu" and len(boxes):
        low, high = boxes[:, 0].min().item(), boxes[:, 0].max().item()
        if not (low >= 0 and high < len(features)):
            raise UserError(
                f"boxes name places {low:g} to {high:g} in a batch of {len(features)}: their first column "
                f"counts from 0 to {len(features) - 1}"
            )
