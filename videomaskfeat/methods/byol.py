"""``method: byol``: predict the teacher's projection of another clip of the same video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from videomaskfeat.data.batches import PairBatch
from videomaskfeat.engine.teacher import Monitor
from videomaskfeat.errors import UserError
from videomaskfeat.losses.distillation import direction_error
from videomaskfeat.methods.teaching import Colors, Comparison, PairMethod, build_group
from videomaskfeat.metrics.accuracy import directions
from videomaskfeat.models.encoder_base import Encoder
from videomaskfeat.models.limits import build_within_memory
from videomaskfeat.models.maskfeat import ClipEncoder
from videomaskfeat.models.projection import Projector
from videomaskfeat.recipe import PretrainRecipe

PUBLISHED_MOMENTA = ((1000, 0.996), (100, 0.99), (0, 0.97))
"""Minimum length in epochs, and momentum at the start: the presets of BYOL's code for 1000, 100 and 40 epochs
(deepmind-research, byol/configs/byol.py)."""


class Projecting(nn.Module):
    """Encoder and projector, the part of the student that has a teacher.

    Args:
        encoder: clips -> features.
        projector: features of clips [B, D'] -> projections [B, P].
    """

    def __init__(self, encoder: ClipEncoder, projector: Projector) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector

    def forward(self, clips: Tensor, views: int = 1) -> tuple[Tensor, Tensor]:
        """Clips of several views, view after view -> features [B, D'] and projections [B, P].

        Batch normalization is separate for each view.
        """
        features = self.encoder(clips).clip
        return features, torch.cat([self.projector(view) for view in features.chunk(views)])


class ByolStudent(nn.Module):
    """Encoder, projector and predictor.

    Args:
        online: encoder and projector.
        predictor: projections [B, P] -> predictions [B, P].
    """

    def __init__(self, online: Projecting, predictor: Projector) -> None:
        super().__init__()
        self.online = online
        self.predictor = predictor

    def forward(self, clips: Tensor, views: int = 1) -> Tensor:
        """Clips float [B, C, T, H, W] of several views, view after view -> predictions [B, P]."""
        _, projections = self.online(clips, views)
        return torch.cat([self.predictor(view) for view in projections.chunk(views)])


class Byol(PairMethod):
    """Bootstrap your own latent (arXiv 2006.07733) on two clips of each video, at two times.

    The loss is the sum of both directions, 0 to 8. Deviation from the paper: for held-out
    losses the teacher's projector normalizes with the student's running statistics. The paper's optimizer is
    LARS (``optim.optimizer: lars``). The student's encoder is saved.

    Args:
        recipe, compiled: see :class:`~videomaskfeat.methods.method.Method`.
        encoder: the student's encoder with initial weights.
        epochs: length of the run.
        projection: width of the projections, P.
        hidden_width: hidden width of projector and predictor.
        summary: feature of a clip: "mean" (over the grid's tokens) or "token" (the class token).
        momentum: momentum of the teacher at the start; follows a cosine. null: the published one for the
            length of the run (0.97 below 100 epochs, 0.99 below 1000, then 0.996), or less for few steps.
        momentum_end: momentum of the teacher at the end.
        saved: encoder in weights.safetensors, "student" or "teacher".
        crop_area: minimum and maximum share of the frame of both clips; null: clip.crop_area, or 0.08..1 if
            it has its default.
        color: see :class:`~videomaskfeat.methods.teaching.Colors`.
        collapse_std: minimum standard deviation of projections and features, 0..1; 0 never stops the run.
        collapse_grace: share of the run without this limit.

    Raises:
        UserError: a value is out of range.
    """

    published_area = (0.08, 1.0)
    loss_name = "2 - 2 cos, both directions"
    student: ByolStudent
    unused = ("target", "mask")

    def __init__(
        self,
        *,
        recipe: PretrainRecipe,
        encoder: Encoder,
        epochs: float,
        compiled: str = "",
        projection: int = 256,
        hidden_width: int = 4096,
        summary: str = "mean",
        momentum: float | None = None,
        momentum_end: float = 1.0,
        saved: str = "student",
        crop_area: Sequence[float] | None = None,
        color: Mapping[str, Any] | None = None,
        collapse_std: float = 0.01,
        collapse_grace: float = 0.1,
    ) -> None:
        colors = build_group(Colors, "color", color)
        width = encoder.out_width
        features = ClipEncoder(encoder, summary=summary)
        heads = [
            build_within_memory(
                partial(Projector, before, hidden_width=hidden_width, out_width=projection),
                "a head of method.arguments",
            )
            for before in (width, projection)
        ]
        online, predictor = Projecting(features, heads[0]), heads[1]
        meaning = "it is nearly the same for all clips"
        super().__init__(
            recipe=recipe,
            student=ByolStudent(online, predictor),
            encoder=encoder,
            masked=False,
            compiled=compiled,
            colors=colors,
            crop_area=crop_area,
            followed=online,
            momentum=momentum,
            momentum_end=momentum_end,
            saved=saved,
            published_momentum=next(m for length, m in PUBLISHED_MOMENTA if epochs >= length),
            monitors=(
                Monitor("feature_std", collapse_std, meaning),
                Monitor("projection_std", collapse_std, meaning),
            ),
            grace=collapse_grace,
        )
        self.train(self.student, True)

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        return {"the bias of the heads' last layers": "none"}  # earlier versions had one

    @property
    def description(self) -> str:
        return "the teacher's projection of another clip of the same video (BYOL)"

    def check_batch(self, batch_size: int, *, accumulate: int, world_size: int) -> None:
        """Refuse micro-batches of one video, which batch normalization turns into constants."""
        if world_size == 1 and batch_size // accumulate == 2:
            raise UserError(
                f"optim.batch_size {batch_size} with optim.accumulate {accumulate} leaves one video per "
                "micro-batch, which batch normalization cannot normalize; a batch has two clips per video, "
                f"so use at least {4 * accumulate}"
            )

    def compare(self, network: nn.Module, batch: PairBatch, *, progress: float) -> Comparison:
        """Predict the projection of the other clip of each video."""
        pixels = self._by_view(batch)
        features, projections = self.teach(pixels)
        predictions = self._forward(network, pixels, 2)
        targets = torch.cat(projections.chunk(2)[::-1])
        loss = 2.0 * direction_error(predictions, targets)  # the mean of both directions, twice
        return Comparison(
            loss, {}, {"feature_std": directions(features), "projection_std": directions(projections)}
        )

    @torch.no_grad()
    def teach(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Clips float [2V, C, T, H, W], view after view -> the teacher's features and projections."""
        features, projections = self.teacher.module(pixels, 2)
        return features, projections

    def make_target(self, batch: PairBatch) -> Tensor:
        return self.teach(self._by_view(batch))[1]

    def constant_rows(self, batch: PairBatch, rows: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The directions of the projections."""
        return {"direction": rows["projection_std"]}

    def best_constant(self, means: Mapping[str, Tensor]) -> float:
        """The mean of 2 - 2 c.u over unit vectors u has its minimum 2 - 2 |mean| for c along their mean."""
        return 2 * (2 - 2 * float(means["direction"].norm()))

    @property
    def teacher_encoder(self) -> Encoder:
        module = self.teacher.module
        assert isinstance(module, Projecting)
        return module.encoder.encoder

    def _by_view(self, batch: PairBatch) -> Tensor:
        """The pixels of a batch of pairs, view after view, float [2V, C, T, H, W]."""
        return self.pixels(batch.clips.unflatten(0, (-1, 2)).transpose(0, 1).flatten(0, 1))

    def train(self, network: nn.Module, mode: bool) -> None:
        """In training the teacher's projector normalizes over the batch, as the student's does."""
        super().train(network, mode)
        module = self.teacher.module
        assert isinstance(module, Projecting)
        module.projector.train(mode)
