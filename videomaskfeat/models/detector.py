"""Action detectors: an encoder, RoIAlign of each person's box, and a linear layer."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from videomaskfeat.errors import UserError, check_name
from videomaskfeat.models.encoder_base import Encoder, on_grid
from videomaskfeat.models.heads import LinearHead, check_head_arguments, reset_classes
from videomaskfeat.models.limits import check_positive
from videomaskfeat.models.roi_align import roi_align

Temporal = Literal["early_mean", "late_mean", "late_max"]
TEMPORAL: tuple[Temporal, ...] = get_args(Temporal)


class Detector(Encoder):
    """AVA's usual detection head on an encoder: from a clip and person boxes to logits per box and action.

    Built by :func:`~videomaskfeat.models.zoo.with_head`. The normalized tokens of the last block form a map;
    `roi_align` (aligned, adaptive sampling) crops bins x bins cells from it for each box. Their maximum goes
    through dropout and a linear layer. Parameter names are PySlowFast's.

    ============ ===========================================================================
    temporal     reduction over time
    ============ ===========================================================================
    "early_mean" average the maps over time, then crop the boxes (the published method)
    "late_mean"  crop the boxes at each time step; mean over steps of the maxima over cells
    "late_max"   crop the boxes at each time step; maximum over steps and cells
    ============ ===========================================================================

    The named MViTv2 detectors omit the last query pooling (``q_pool_at``): one cell per 16 pixels, not 32.

    Args:
        classes: number of actions, L.
        temporal: see the table.
        scene: append the mean of the whole map to the features of each box.
        bins: cells along each side of a box.
        dropout: dropout rate before the linear layer.
        head_scale: factor on the initial weight and bias of the linear layer.
        encoder: arguments of the encoder, except ``final_norm`` and ``mean_first``.

    Raises:
        UserError: an unknown name, or a value out of range.
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
        check_positive(bins=bins)
        check_head_arguments("a detector", encoder, classes=classes, dropout=dropout)
        super().__init__(**encoder)
        _, rows, columns = self.output_stride
        if rows != columns:
            raise UserError(
                f"one cell of the output grid covers {rows} rows and {columns} columns of pixels; a "
                f"detector needs "
                "square cells: change cube_stride or q_pool_stride"
            )
        self.classes = classes
        self.temporal = temporal
        self.scene = scene
        self.bins = bins
        self.head = LinearHead(
            self.out_width * (2 if scene else 1), classes, dropout=dropout, scale=head_scale
        )

    def forward(self, clips: Tensor, boxes: Tensor) -> Tensor:  # type: ignore[override]
        """Compute the action logits of each box.

        Args:
            clips: float [B, C, T, H, W], normalized.
            boxes: float [R, 5]: index in the batch, then x1, y1, x2, y2 in pixels of the clip; R may be 0.

        Returns:
            Logits [R, L], before the sigmoid.

        Raises:
            UserError: the clip is not a multiple of the cube, or a box index is outside the batch.
        """
        maps = self.maps(clips)  # [B, t, h, w, D]
        features = self._box_features(maps, boxes)  # [R, D]
        if self.scene:
            scene = maps.mean(dim=(1, 2, 3))[boxes[:, 0].long()]  # [R, D]
            features = torch.cat([features, scene], dim=1)
        return self.head(features)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last linear layer by a new one for other actions; see ``Classifier``."""
        reset_classes(self, num_classes)

    def maps(self, clips: Tensor) -> Tensor:
        """The encoder's normalized output on its grid, [B, t, h, w, D]."""
        tokens, grid = self.through_blocks(*self.patch_embed(clips))
        return self.norm(on_grid(tokens, grid)).unflatten(1, grid.shape)

    def _box_features(self, maps: Tensor, boxes: Tensor) -> Tensor:
        """Features of each box, [R, D], from maps [B, t, h, w, D]."""
        if self.temporal == "early_mean":
            return self._crop_boxes(maps.mean(dim=1), boxes)
        steps = maps.shape[1]
        step = torch.arange(steps, device=boxes.device, dtype=boxes.dtype)
        index = boxes[:, :1] * steps + step  # [R, t], in the batch of single time steps
        step_boxes = torch.cat([index[..., None], boxes[:, None, 1:].expand(-1, steps, -1)], dim=-1)
        features = self._crop_boxes(maps.flatten(0, 1), step_boxes.flatten(0, 1))  # [R*t, D]
        features = features.unflatten(0, (boxes.shape[0], steps))
        return features.amax(dim=1) if self.temporal == "late_max" else features.mean(dim=1)

    def _crop_boxes(self, maps: Tensor, boxes: Tensor) -> Tensor:
        """Maximum over the cells of each box, [R, D], from maps [B, h, w, D].

        If a clip axis is not a multiple of the stride, the last cell reaches beyond the clip. Cell i still
        starts at pixel i * stride, because poolings start at the first token.
        """
        cells = roi_align(
            maps.permute(0, 3, 1, 2),  # channels-last in memory
            boxes,
            self.bins,
            spatial_scale=1 / self.output_stride[1],
            aligned=True,
        )
        return cells.amax(dim=(2, 3))
