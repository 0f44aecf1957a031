"""Detectors of actions: an encoder, the features of each person's box, and a linear layer."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from videomaskfeat.errors import UserError, check_name
from videomaskfeat.models.encoder_base import Encoder, on_grid
from videomaskfeat.models.heads import LinearHead
from videomaskfeat.models.roi_align import roi_align

Temporal = Literal["early_mean", "late_mean", "late_max"]
TEMPORAL: tuple[Temporal, ...] = get_args(Temporal)


class Detector(Encoder):
    """A clip and boxes of persons to a logit per box and action: AVA's usual head on an encoder
    (:func:`~videomaskfeat.models.zoo.with_head`).

    The last block's tokens are normalized and laid out as maps without the class token; of each box
    `roi_align` (aligned, as many samples as a bin has cells) takes bins x bins cells, whose maximum goes
    through dropout and a linear layer. Parameter names are PySlowFast's.

    ============ ======================================================================================
    temporal     how the time steps become one
    ============ ======================================================================================
    "early_mean" the maps are averaged over time before the boxes are cut from them (published)
    "late_mean"  the boxes are cut from the map of each step; mean over the steps of their maxima
    "late_max"   likewise; maximum over steps and cells
    ============ ======================================================================================

    On MViTv2 ``q_pool_at`` decides how fine the maps are: with the last query pooling they have a cell every
    32 pixels, without it (as the named detectors have it) every 16.

    Args:
        classes: number of actions, L.
        temporal: see the table.
        scene: append the mean of the whole map to the features of each box.
        bins: cells along each side of a box.
        dropout: chance of dropping a feature before the linear layer in training.
        head_scale: factor on the linear layer's initial weight and bias.
        encoder: the arguments of the encoder, except ``final_norm`` and ``mean_first``.

    Raises:
        UserError: an unknown name, or a value outside its range.
    """

    def __init__(
        self,
        *,
        classes: int = 80,
        temporal: Temporal = "early_mean",
        scene: bool = False,
        bins: int = 7,
        dropout: float = 0.5,
        head_scale: float = 1.0,
        **encoder: Any,
    ) -> None:
        check_name("temporal", temporal, TEMPORAL)
        if classes < 1 or bins < 1 or not 0 <= dropout < 1:
            raise UserError(
                f"classes {classes} and bins {bins} must be positive, dropout {dropout} in 0..1, 1 excluded"
            )
        if "final_norm" in encoder or "mean_first" in encoder:
            raise UserError(
                "final_norm cannot be set on a detector, nor mean_first: boxes are cut from normalized maps"
            )
        super().__init__(**encoder)
        _, rows, columns = self.output_stride
        if rows != columns:
            raise UserError(
                f"cubes and poolings leave a cell every {rows} rows and {columns} columns of pixels; a "
                "detector needs as many of both"
            )
        self.classes = classes
        self.temporal = temporal
        self.scene = scene
        self.bins = bins
        self.head = LinearHead(
            self.out_width * (2 if scene else 1), classes, dropout=dropout, scale=head_scale
        )

    def forward(self, clips: Tensor, boxes: Tensor) -> Tensor:  # type: ignore[override]
        """Say what the person in each box does.

        Args:
            clips: float [B, C, T, H, W], normalized.
            boxes: float [R, 5]: place in the batch, then x1, y1, x2, y2 in pixels of the clip. There may be
                none.

        Returns:
            Logits [R, L], before any sigmoid.

        Raises:
            UserError: the clip is not a multiple of the cube, or a box's place is not in the batch.
        """
        maps = self.maps(clips)  # [B, t, h, w, D]
        features = self._of_boxes(maps, boxes)  # [R, D]
        if self.scene:
            whole = maps.mean(dim=(1, 2, 3))[boxes[:, 0].long()]  # [R, D]
            features = torch.cat([features, whole], dim=1)
        return self.head(features)

    def maps(self, clips: Tensor) -> Tensor:
        """The encoder's normalized output as maps, [B, t, h, w, D]."""
        tokens, grid = self.through_blocks(*self.patch_embed(clips))
        return self.norm(on_grid(tokens, grid)).unflatten(1, grid.shape)

    def _of_boxes(self, maps: Tensor, boxes: Tensor) -> Tensor:
        """The features of each box, [R, D], from maps [B, t, h, w, D]."""
        if self.temporal == "early_mean":
            return self._cut(maps.mean(dim=1), boxes)
        steps = maps.shape[1]
        step = torch.arange(steps, device=boxes.device, dtype=boxes.dtype)
        places = boxes[:, :1] * steps + step  # [R, t], in the batch of single steps
        each = torch.cat([places[..., None], boxes[:, None, 1:].expand(-1, steps, -1)], dim=-1)
        cut = self._cut(maps.flatten(0, 1), each.flatten(0, 1)).unflatten(0, (boxes.shape[0], steps))
        return cut.amax(dim=1) if self.temporal == "late_max" else cut.mean(dim=1)

    def _cut(self, maps: Tensor, boxes: Tensor) -> Tensor:
        """The maximum over the cells of each box, [R, D], from maps [B, h, w, D].

        Where an axis of the clip is no multiple of the stride, the last cells reach beyond its end, and cell
        i still begins at pixel i * stride: poolings start at the first token.
        """
        cells = roi_align(
            maps.permute(0, 3, 1, 2),  # channels-last in memory
            boxes,
            self.bins,
            spatial_scale=1 / self.output_stride[1],
            aligned=True,
        )
        return cells.amax(dim=(2, 3))
