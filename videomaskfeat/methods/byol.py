"""``method: byol``: predict the teacher's projection of another clip of the same video."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from videomaskfeat.data.batches import PairBatch
from videomaskfeat.engine.optim import CosineRamp
from videomaskfeat.engine.teacher import Monitor
from videomaskfeat.errors import UserError
from videomaskfeat.losses import direction_error
from videomaskfeat.methods.teaching import Colours, Comparison, PairMethod, build_group
from videomaskfeat.metrics.accuracy import directions
from videomaskfeat.models.encoder_base import Encoder
from videomaskfeat.models.limits import build_within_memory
from videomaskfeat.models.maskfeat import ClipEncoder
from videomaskfeat.models.projection import Projector
from videomaskfeat.recipe import PretrainRecipe


class Projecting(nn.Module):
    """Encoder and projector: the part of the student that has a teacher.

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

        Batch normalization takes each view by itself.
        """
        features = self.encoder(clips).clip
        return features, torch.cat([self.projector(part) for part in features.chunk(views)])


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
        return torch.cat([self.predictor(part) for part in projections.chunk(views)])


class Byol(PairMethod):
    """Bootstrap your own latent (arXiv 2006.07733) on two clips of each video, at two times.

    The loss is the sum of both directions, 0 to 8. Deviations from the paper: AdamW instead of LARS, no hue,
    blur and solarisation among the colours; in evaluation, which only held-out losses are, the teacher's
    projector normalizes by the student's running statistics. The teacher's encoder is what is saved.

    Args:
        recipe: see :class:`~videomaskfeat.methods.method.Method`.
        encoder: the student's, with fresh weights.
        compiled: see :class:`~videomaskfeat.methods.method.Method`.
        projection: width of what is compared, P.
        hidden_width: of projector and predictor.
        summary: the clip's feature: "mean" (over the grid's tokens) or "token" (the class token).
        momentum: the teacher's, at the start; a cosine takes it to ``momentum_end``.
        momentum_end: at the end.
        colour: see :class:`~videomaskfeat.methods.teaching.Colours`.
        collapse_std: the run stops where projections or features spread less than this, 0..1; 0: never.
        collapse_grace: share of the run that is not judged.

    Raises:
        UserError: a value out of its range.
    """

    loss_name = "2 - 2 cos, both directions"
    student: ByolStudent
    unused = ("target", "mask")

    def __init__(
        self,
        *,
        recipe: PretrainRecipe,
        encoder: Encoder,
        compiled: bool = False,
        projection: int = 256,
        hidden_width: int = 4096,
        summary: str = "mean",
        momentum: float = 0.996,
        momentum_end: float = 1.0,
        colour: Mapping[str, Any] | None = None,
        collapse_std: float = 0.01,
        collapse_grace: float = 0.1,
    ) -> None:
        colours = build_group(Colours, "colour", colour)
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
        meaning = "all clips get nearly the same one"
        super().__init__(
            recipe=recipe,
            student=ByolStudent(online, predictor),
            encoder=encoder,
            masked=False,
            compiled=compiled,
            colours=colours,
            followed=online,
            momentum=CosineRamp(momentum, momentum_end),
            monitors=(
                Monitor("feature_std", collapse_std, meaning),
                Monitor("projection_std", collapse_std, meaning),
            ),
            grace=collapse_grace,
        )
        self.train(self.student, True)

    @property
    def description(self) -> str:
        """What is compared."""
        return "the teacher's projection of another clip of the same video (BYOL)"

    def check_batch(self, batch_size: int, *, accumulate: int, world_size: int) -> None:
        """Refuse micro-batches of one video in one process, of which batch normalization leaves nothing.

        Raises:
            UserError: names the batch and the smallest one.
        """
        if world_size == 1 and batch_size // accumulate == 2:
            raise UserError(
                f"optim.batch_size {batch_size} with optim.accumulate {accumulate} leaves one video per "
                "micro-batch, which batch normalization cannot take; a batch counts two clips per video, "
                f"take at least {4 * accumulate}"
            )

    def compare(self, network: nn.Module, batch: PairBatch, *, progress: float) -> Comparison:
        """Predict the projection of each clip's partner."""
        pixels = self._by_view(batch)
        features, projections = self.teach(pixels)
        predictions = self._forward(network, pixels, 2)
        partners = torch.cat(projections.chunk(2)[::-1])
        loss = 2.0 * direction_error(predictions, partners)  # the mean of both directions, twice
        return Comparison(
            loss, {}, {"feature_std": directions(features), "projection_std": directions(projections)}
        )

    @torch.no_grad()
    def teach(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Clips float [2V, C, T, H, W], view after view -> the teacher's features and projections."""
        features, projections = self.teacher.module(pixels, 2)
        return features, projections

    def make_target(self, batch: PairBatch) -> Tensor:
        """The teacher's projections, float [2V, P]."""
        return self.teach(self._by_view(batch))[1]

    def constant_rows(self, batch: PairBatch, rows: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The directions of the projections."""
        return {"direction": rows["projection_std"]}

    def best_constant(self, means: Mapping[str, Tensor]) -> float:
        """The mean of 2 - 2 c.u over unit vectors u is least for c along their mean: 2 - 2 |mean|."""
        return 2 * (2 - 2 * float(means["direction"].norm()))

    @property
    def teacher_encoder(self) -> Encoder:
        """See :attr:`TeacherMethod.teacher_encoder`."""
        module = self.teacher.module
        assert isinstance(module, Projecting)
        return module.encoder.encoder

    def _by_view(self, batch: PairBatch) -> Tensor:
        """The pixels of a batch, whose clips come pair by pair, view by view: float [2V, C, T, H, W]."""
        return self.pixels(batch.clips.unflatten(0, (-1, 2)).transpose(0, 1).flatten(0, 1))

    def train(self, network: nn.Module, mode: bool) -> None:
        """The teacher's projector normalizes by the batch in training, as the student's does."""
        super().train(network, mode)
        module = self.teacher.module
        assert isinstance(module, Projecting)
        module.projector.train(mode)
