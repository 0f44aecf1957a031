"""``method: ibot``: self-distillation with an online tokenizer."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from videomaskfeat.data.batches import PairBatch
from videomaskfeat.data.clips import MaskDraw
from videomaskfeat.engine.teacher import Monitor, RunningCenter
from videomaskfeat.errors import UserError
from videomaskfeat.grid import resize_mask
from videomaskfeat.losses.distillation import across_views, masked_teacher_cross_entropy
from videomaskfeat.masking import varied
from videomaskfeat.methods.method import check_mask_grid
from videomaskfeat.methods.teaching import Colors, Comparison, Local, PairMethod, build_group
from videomaskfeat.metrics.accuracy import directions, entropy
from videomaskfeat.models.encoder_base import Encoder
from videomaskfeat.models.limits import build_within_memory, check_arguments
from videomaskfeat.models.maskfeat import MaskedEncoder
from videomaskfeat.models.projection import PrototypeHead
from videomaskfeat.recipe import PretrainRecipe

_KINDS = ("class", "cube")


class IbotNetwork(nn.Module):
    """Encoder and heads of student and teacher.

    Args:
        masked: clips and mask -> features.
        class_head: features of clips -> cosines to the prototypes.
        cube_head: features of cells -> cosines to the prototypes; may be the same module.
    """

    def __init__(self, masked: MaskedEncoder, class_head: PrototypeHead, cube_head: PrototypeHead) -> None:
        super().__init__()
        self.masked = masked
        self.class_head = class_head
        self.cube_head = cube_head

    def forward(
        self, clips: Tensor, mask: Tensor, local: Tensor | None = None, learn_prototypes: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Cosines to the prototypes.

        Args:
            clips: float [B, C, T, H, W], normalized.
            mask: bool [B, t', h', w'], True = hidden.
            local: whole local crops float [S, C, T, H', W'].
            learn_prototypes: see :class:`~videomaskfeat.models.projection.PrototypeHead`.

        Returns:
            Float32: for clips [B, K], cells [B, t, h, w, K] and local crops [S, K] (S = 0 without crops).
        """
        clip, cells = self.masked(clips, mask)
        classes = self.class_head(clip, learn_prototypes=learn_prototypes)
        cubes = self.cube_head(cells, learn_prototypes=learn_prototypes)
        if local is None:
            return classes, cubes, classes[:0]
        small = self.class_head(self.masked(local).clip, learn_prototypes=learn_prototypes)
        return classes, cubes, small


class Ibot(PairMethod):
    """Self-distillation with an online tokenizer (iBOT, arXiv 2111.07832) on two clips of each video.

    The teacher sees both clips whole and predicts a distribution over K prototypes for the class token and
    for each cell. The student sees the masked clips and learns to predict the teacher's distributions for the
    class token of the *other* clip and for the hidden cells of its own. Centering and a low temperature of
    the teacher's outputs prevent both one dominant prototype and uniform distributions. The teacher's encoder
    is saved.

    Deviations from the published code: the centers average whole optimizer steps instead of micro-batches;
    the positions of local crops are interpolated without its offset of 0.1 cells.

    Args:
        recipe, compiled: see :class:`~videomaskfeat.methods.method.Method`; ``ratios`` override the mask
            ratio.
        encoder: the student's encoder with initial weights.
        epochs: length of the run.
        head: arguments of :class:`~videomaskfeat.models.projection.PrototypeHead` (prototypes, hidden_width,
            bottleneck, layers).
        shared_head: one head for class token and cells, as published.
        summary: feature of a clip: "token" (the class token) or "mean" (over the grid's tokens).
        ratios: minimum and maximum mask ratio, drawn for each clip; null: always mask.ratio.
        unmasked: probability of a clip without hidden cells, 0..1.
        student_temperature: temperature of the student's softmax.
        teacher_temperature: temperatures of the teacher's softmax, at the start and after the warm-up.
        temperature_warmup_epochs: length of the warm-up, in which the temperature rises with each epoch.
        center_momentum: momentum of the centers.
        momentum: momentum of the teacher at the start; follows a cosine. null: 0.996, or less for few steps.
        momentum_end: momentum of the teacher at the end.
        saved: encoder in weights.safetensors, "student" or "teacher".
        freeze_epochs: epochs at the start with frozen prototypes.
        class_weight: weight of the class token's loss.
        cube_weight: weight of the hidden cells' loss.
        local: see :class:`~videomaskfeat.methods.teaching.Local`.
        crop_area: minimum and maximum share of the frame of both clips; null: clip.crop_area, or 0.25..1 if
            it has its default.
        color: see :class:`~videomaskfeat.methods.teaching.Colors`.
        collapse_std: minimum standard deviation of the teacher's features, 0..1; 0 never stops the run.
        collapse_information: minimum information of the teacher's distributions about their clip or cell, in
            nats; 0 never stops the run.
        collapse_grace: share of the run without these limits.

    Raises:
        UserError: a value is out of range, or the mask does not fit.
    """

    published_area = (0.25, 1.0)
    loss_name = "cross-entropy with the teacher, nats"
    student: IbotNetwork

    def __init__(
        self,
        *,
        recipe: PretrainRecipe,
        encoder: Encoder,
        epochs: float,
        compiled: str = "",
        head: Mapping[str, Any] | None = None,
        shared_head: bool = True,
        summary: str = "token",
        ratios: Sequence[float] | None = (0.1, 0.5),
        unmasked: float = 0.5,
        student_temperature: float = 0.1,
        teacher_temperature: Sequence[float] = (0.04, 0.07),
        temperature_warmup_epochs: float = 30.0,
        center_momentum: float = 0.9,
        momentum: float | None = None,
        momentum_end: float = 1.0,
        saved: str = "teacher",
        freeze_epochs: float = 1.0,
        class_weight: float = 1.0,
        cube_weight: float = 1.0,
        local: Mapping[str, Any] | None = None,
        crop_area: Sequence[float] | None = None,
        color: Mapping[str, Any] | None = None,
        collapse_std: float = 0.01,
        collapse_information: float = 0.001,
        collapse_grace: float = 0.1,
    ) -> None:
        crops, colors = build_group(Local, "local", local), build_group(Colors, "color", color)
        self._mask_draw = _mask_draw(recipe, ratios, unmasked)
        self.temperature = _teacher_temperature(epochs, teacher_temperature, temperature_warmup_epochs)
        if not student_temperature > 0:
            raise UserError(
                f"method.arguments.student_temperature {student_temperature:g} must be above 0, such as 0.1"
            )
        self.student_temperature = student_temperature
        self.epochs, self.freeze_epochs = epochs, freeze_epochs
        self.weights_of_losses = _loss_weights(class_weight, cube_weight)
        _check_sizes(recipe, encoder, crops)
        student = _network(encoder, head or {}, shared_head=shared_head, summary=summary)
        prototypes = student.class_head.prototypes
        super().__init__(
            recipe=recipe,
            student=student,
            encoder=encoder,
            compiled=compiled,
            colors=colors,
            crop_area=crop_area,
            local=crops,
            followed=student,
            momentum=momentum,
            momentum_end=momentum_end,
            saved=saved,
            published_momentum=0.996,
            centers={
                f"{kind}_centre": RunningCenter(prototypes, momentum=center_momentum) for kind in _KINDS
            },
            monitors=_monitors(collapse_std, collapse_information),
            grace=collapse_grace,
        )

    @property
    def description(self) -> str:
        small = self.local
        crops = f"; {small.count} local crops of {small.size}x{small.size} pixels" if small.count else ""
        return (
            f"the teacher's distributions over {self.student.class_head.prototypes} prototypes: of the other "
            f"clip, and {self.masked_positions}{crops}"
        )

    def check_batch(self, batch_size: int, *, accumulate: int, world_size: int) -> None:
        """Refuse steps of one video, in which agreement looks like collapse."""
        if batch_size == 2:
            raise UserError(
                "optim.batch_size 2 is one video per step, where agreement looks like collapse; a batch has "
                "two clips per video, so use at least 4"
            )

    def mask_draw(self) -> MaskDraw:
        return self._mask_draw

    def compare(self, network: nn.Module, batch: PairBatch, *, progress: float) -> Comparison:
        """Predict the teacher's distributions of the other clip, and of the hidden cells."""
        assert batch.mask is not None
        pixels = self.pixels(batch.clips)
        local = None if batch.local is None else self.pixels(batch.local)
        taught, rows = self.teach(pixels, progress=progress)
        learn = self._learns_prototypes(progress)
        classes, cubes, small = self._forward(network, pixels, batch.mask, local, learn)
        class_loss = across_views(
            classes.unflatten(0, (-1, 2)),  # [V, 2, K]
            small.unflatten(0, (len(pixels) // 2, self.local.count)),  # [V, L, K]
            taught["class"].unflatten(0, (-1, 2)),
            temperature=self.student_temperature,
        )
        cube_loss = masked_teacher_cross_entropy(
            cubes, taught["cube"], batch.mask, temperature=self.student_temperature
        )
        weight, cube_weight = self.weights_of_losses
        loss = weight * class_loss + cube_weight * cube_loss
        return Comparison(loss, {"class_loss": class_loss, "cube_loss": cube_loss}, rows)

    def before_step(self) -> None:
        """Freeze prototypes: even a gradient of 0 decays them and changes Adam's averages."""
        if not self._learns_prototypes(self.progress):
            for head in (self.student.class_head, self.student.cube_head):
                head.directions.grad = None

    def _learns_prototypes(self, progress: float) -> bool:
        return progress * self.epochs >= self.freeze_epochs

    def make_target(self, batch: PairBatch) -> dict[str, Tensor]:
        return self.teach(self.pixels(batch.clips), progress=self.progress)[0]

    @torch.no_grad()
    def teach(self, pixels: Tensor, *, progress: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The teacher's distributions for whole clips.

        Args:
            pixels: float [B, C, T, H, W].
            progress: completed share of the run, which determines the temperature.

        Returns:
            Probabilities "class" [B, K] and "cube" [B, t, h, w, K], and the rows of :class:`Comparison`.
        """
        network = self.teacher.module
        assert isinstance(network, IbotNetwork)
        clip, cells = network.masked(pixels)
        cosines = {"class": network.class_head(clip), "cube": network.cube_head(cells)}
        taught, rows = {}, {"feature_std": directions(clip)}
        for kind, outputs in cosines.items():
            centered = outputs - self.centers[f"{kind}_centre"].value
            taught[kind] = torch.softmax(centered / self.temperature(progress), dim=-1)
            rows[f"{kind}_centre"] = outputs.flatten(0, -2)
            rows[f"{kind}_distribution"] = taught[kind].flatten(0, -2)
            rows[f"{kind}_uncertainty"] = entropy(taught[kind]).reshape(-1, 1)
        return taught, rows

    def constant_rows(self, batch: PairBatch, rows: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The distributions of clips, and the mean over their hidden cells (0 without hidden cells)."""
        assert batch.mask is not None
        grid = self.teacher_encoder.output_grid(batch.clips.shape[1:4])  # of [T, H, W]
        hidden = resize_mask(batch.mask, grid).flatten(1).float()  # [B, N]
        share = hidden / hidden.sum(dim=1, keepdim=True).clamp(min=1)
        cells = rows["cube_distribution"].unflatten(0, share.shape)  # [B, N, K]
        return {"class": rows["class_distribution"], "cube": torch.einsum("bn,bnk->bk", share, cells)}

    def best_constant(self, means: Mapping[str, Tensor]) -> float:
        """Cross-entropy has its minimum at the mean distribution of clips, or of clips with hidden cells."""
        hidden = means["cube"].sum().clamp(min=1e-12)  # share of clips with hidden cells
        weight, cube_weight = self.weights_of_losses
        cubes = hidden * torch.special.entr(means["cube"] / hidden).sum()
        return float(weight * torch.special.entr(means["class"]).sum() + cube_weight * cubes)

    @property
    def teacher_encoder(self) -> Encoder:
        module = self.teacher.module
        assert isinstance(module, IbotNetwork)
        return module.masked.encoder

    def figures(self, means: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Standard deviation of the features, and entropy and information of the distributions.

        The entropy is that of the mean distribution. The information of a distribution about its clip or cell
        is this entropy minus the mean entropy of the single distributions.
        """
        figures = super().figures(means)
        for kind in _KINDS:
            whole = entropy(means[f"{kind}_distribution"])
            within = means[f"{kind}_uncertainty"][0]
            figures[f"{kind}_entropy"] = whole
            figures[f"{kind}_information"] = whole - within
        temperature = self.temperature(self.progress)
        figures["teacher_temperature"] = torch.full((), temperature, device=whole.device)
        return figures


def _network(encoder: Encoder, head: Mapping[str, Any], *, shared_head: bool, summary: str) -> IbotNetwork:
    where, width = "method.arguments.head", encoder.out_width
    masked = MaskedEncoder(encoder, summary=summary)
    checked = check_arguments(where, PrototypeHead, head, supplied=("width",))
    build = functools.partial(PrototypeHead, width, **checked)
    class_head = build_within_memory(build, where)
    cube_head = class_head if shared_head else build_within_memory(build, where)
    return IbotNetwork(masked, class_head, cube_head)


def _mask_draw(recipe: PretrainRecipe, ratios: Sequence[float] | None, unmasked: float) -> MaskDraw:
    """A function that draws masks, tried at both ends of the ratios."""
    mask, policy, grid = recipe.mask, recipe.mask_policy, recipe.mask_grid
    if ratios is not None and len(ratios) != 2:
        raise UserError(
            f"method.arguments.ratios {list(ratios)} must be two numbers, the minimum and the maximum ratio, "
            "such as [0.1, 0.5]; or null"
        )
    low, high = (mask.ratio, mask.ratio) if ratios is None else ratios
    if low > high:
        raise UserError(
            f"method.arguments.ratios [{low:g}, {high:g}]: the first must not be above the second"
        )
    if not 0 <= unmasked < 1:
        raise UserError(
            f"method.arguments.unmasked {unmasked:g} must be at least 0 and below 1; at 1 nothing is hidden"
        )
    for ratio in (low, high):
        try:
            policy(grid, ratio, np.random.default_rng(0))
        except UserError as error:
            name = "mask.ratio" if ratios is None else "method.arguments.ratios"
            raise UserError(f"{name} with mask.cell {list(mask.cell)}: {error}") from error
    return functools.partial(varied, policy, grid, ratios=(low, high), unmasked=unmasked)


class EpochRamp:
    """A line in steps of one epoch, from the first to the last epoch of a warm-up.

    iBOT's and DINO's teacher temperature: ``linspace(start, end, warmup_epochs)``, then ``end``.

    Args:
        start, end: values of the first epoch, and from the last epoch of the warm-up on.
        warmup_epochs: length of the warm-up; a fraction of an epoch is left out.
        epochs: length of the run.
    """

    def __init__(self, start: float, end: float, *, warmup_epochs: float, epochs: float) -> None:
        self.start, self.end = start, end
        self._count, self._epochs = int(warmup_epochs), epochs

    def __call__(self, progress: float) -> float:
        """The value at a completed share of the run, 0..1."""
        epoch = int(progress * self._epochs + 1e-6)  # a whole epoch may be rounded down
        if epoch >= self._count:
            return self.end
        return self.start + (self.end - self.start) * epoch / max(self._count - 1, 1)


def _teacher_temperature(epochs: float, ends: Sequence[float], warmup_epochs: float) -> EpochRamp:
    """The teacher's temperature over the run."""
    if len(ends) != 2 or not min(ends) > 0:
        raise UserError(
            f"method.arguments.teacher_temperature {list(ends)} must be two numbers above 0, at the start "
            "and after the warm-up, such as [0.04, 0.07]"
        )
    if not 0 <= warmup_epochs <= epochs:
        raise UserError(
            f"method.arguments.temperature_warmup_epochs {warmup_epochs:g} must lie between 0 and the length "
            f"of the run (optim.epochs {epochs:g}); lower it with the epochs"
        )
    return EpochRamp(ends[0], ends[1], warmup_epochs=warmup_epochs, epochs=epochs)


def _loss_weights(class_weight: float, cube_weight: float) -> tuple[float, float]:
    if min(class_weight, cube_weight) < 0 or class_weight == cube_weight == 0:
        raise UserError(
            f"method.arguments: class_weight {class_weight:g} and cube_weight {cube_weight:g} must not be "
            "negative, nor both 0"
        )
    return class_weight, cube_weight


def _check_sizes(recipe: PretrainRecipe, encoder: Encoder, local: Local) -> None:
    """Refuse masks that do not fit the output grid, and local crops that do not fit the cubes."""
    check_mask_grid(recipe, encoder.output_grid(recipe.clip.size))
    if local.count:
        try:
            encoder.output_grid((recipe.clip.frames, local.size, local.size))
        except UserError as error:
            raise UserError(f"method.arguments.local.size {local.size}: {error}") from error


def _monitors(std: float, information: float) -> tuple[Monitor, ...]:
    return (
        Monitor("feature_std", std, "all clips have nearly the same features"),
        Monitor("class_information", information, "all clips have nearly the same distribution"),
        Monitor("cube_information", information, "all cells have nearly the same distribution"),
    )
