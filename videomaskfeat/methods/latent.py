"""``method: latent``: predict the teacher's features of the whole clip at the hidden positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videomaskfeat.data.batches import PretrainBatch
from videomaskfeat.engine.optim import LinearRamp
from videomaskfeat.engine.teacher import Monitor
from videomaskfeat.errors import UserError, check_name
from videomaskfeat.grid import TokenGrid, resize_mask
from videomaskfeat.losses.masked import masked_l1, masked_smooth_l1, visible_smooth_l1
from videomaskfeat.masking import EXACT, is_exact
from videomaskfeat.methods.method import check_mask_grid
from videomaskfeat.methods.teaching import Comparison, TeacherMethod
from videomaskfeat.metrics.accuracy import directions
from videomaskfeat.models.encoder_base import Encoder
from videomaskfeat.models.limits import build_within_memory
from videomaskfeat.models.mae import hidden_count, visible_places
from videomaskfeat.models.maskfeat import MaskedEncoder, check_last_blocks, last_blocks
from videomaskfeat.models.norms import LayerNorm
from videomaskfeat.models.projection import MlpPredictor, TransformerPredictor, VisiblePredictor
from videomaskfeat.models.vit import ViT
from videomaskfeat.recipe import PretrainRecipe

PREDICTORS = ("transformer", "mlp")
CONTEXTS = {"masked": "a mask token at the hidden positions", "visible": "the visible positions only"}


class DepthFeatures(nn.Module):
    """The outputs of several blocks of an encoder, each with a layer norm, side by side (V-JEPA 2.1).

    The last norm is the encoder's own.

    Args:
        encoder: the encoder, which is not part of this module.
        depths: numbers of blocks, ascending to the last one.
    """

    def __init__(self, encoder: Encoder, depths: Sequence[int]) -> None:
        super().__init__()
        self.depths = tuple(depths)
        widths = [encoder.block_widths[depth - 1] for depth in depths[:-1]]
        self.norms = nn.ModuleList(LayerNorm(width, eps=1e-6) for width in widths)

    def forward(self, encoder: Encoder, tokens: Tensor, grid: TokenGrid, at: Tensor | None = None) -> Tensor:
        """Tokens before the first block -> [B, N', sum of the widths], without class token.

        ``grid`` and ``at``: see :meth:`~videomaskfeat.models.encoder_base.Encoder.run_blocks`.
        """
        outputs = encoder.outputs_at(tokens, grid, self.depths, at=at)
        norms = [*self.norms, encoder.norm]
        cells = [norm(tokens[:, encoder.prefix :]) for norm, (tokens, _) in zip(norms, outputs, strict=True)]
        return torch.cat(cells, dim=-1)


class LatentStudent(nn.Module):
    """An encoder that sees the masked clip, and a predictor.

    Args:
        masked: clips and mask -> features.
        predictor: features of the cells [B, t, h, w, D'] -> predictions of the same shape.
        depth_features: its input has several depths; None for the last block with the final norm.
    """

    depth_features: DepthFeatures | None

    def __init__(
        self, masked: MaskedEncoder, predictor: nn.Module, depth_features: DepthFeatures | None = None
    ) -> None:
        super().__init__()
        self.masked = masked
        self.predictor = predictor
        self.depth_features = depth_features

    def forward(self, clips: Tensor, mask: Tensor) -> Tensor:
        """Clips float [B, C, T, H, W], mask bool [B, t', h', w'] -> predictions [B, t, h, w, D']."""
        if self.depth_features is None:
            return self.predictor(self.masked(clips, mask).cells)
        encoder = self.masked.encoder
        cells = self.depth_features(encoder, *self.masked.hide(clips, mask))
        return self.predictor(cells.unflatten(1, encoder.output_grid(clips.shape).shape))


class VisibleStudent(nn.Module):
    """A ViT that sees the visible cubes only, and a predictor with its own mask token.

    Args:
        encoder: the encoder.
        predictor: predicts all cells from the visible ones.
        depth_features: see :class:`LatentStudent`.
    """

    depth_features: DepthFeatures | None

    def __init__(
        self, encoder: ViT, predictor: VisiblePredictor, depth_features: DepthFeatures | None = None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.predictor = predictor
        self.depth_features = depth_features

    def forward(self, clips: Tensor, mask: Tensor, hidden_cells: int | None = None) -> Tensor:
        """Clips float [B, C, T, H, W], mask bool [B, t', h', w'] -> predictions [B, t, h, w, D'].

        ``hidden_cells``: see :meth:`~videomaskfeat.models.maskfeat.MaskedModel.forward`.

        Raises:
            UserError: the masks hide different numbers of cubes, all cubes, or none.
        """
        self.encoder.patch_embed.check(clips)
        grid = self.encoder.token_grid(clips.shape)
        places = visible_places(resize_mask(mask, grid), hidden_count(mask, hidden_cells, grid))  # [B, V]
        if self.depth_features is None:
            cells = self.encoder.encode_visible(clips, places)[:, self.encoder.prefix :]  # [B, V, D]
        else:
            tokens = self.encoder.place_visible(clips, places)  # [B, P+V, D]
            cells = self.depth_features(self.encoder, tokens, grid, places)  # [B, V, D']
        return self.predictor(cells, places, grid)


class Latent(TeacherMethod):
    """Features of the encoder's own moving average as target, as in data2vec and V-JEPA.

    The teacher sees the whole clip. The outputs of its last blocks are layer-normalized without scale and
    shift, and averaged (data2vec, arXiv 2202.03555, section 3.3: the last 6 of 12 blocks of ViT-B for images;
    V-JEPA, arXiv 2404.08471: the last block). The student sees mask tokens at the hidden positions
    (data2vec), or the visible positions only (V-JEPA), and a predictor maps its features to the teacher's.

    V-JEPA 2.1 (arXiv 2603.14482) predicts the outputs of several blocks instead, each normalized, side by
    side (``depths``), from those of the student, and adds a loss at visible positions (``visible_weight``)
    with weight d^(-1/2) at a distance of d cells from the nearest hidden one.

    Deviation from the published code: the teacher's outputs are used without the encoder's learned norms.

    Args:
        recipe, compiled: see :class:`~videomaskfeat.methods.method.Method`.
        encoder: the student's encoder with initial weights.
        blocks: number of the teacher's last blocks to average; all must have the same output size.
        depths: numbers of blocks, from 1, whose outputs are predicted instead: ascending to the last block,
            and all with its grid. In V-JEPA 2.1 every fourth of the depth, such as [3, 6, 9, 12].
        visible_weight: weight of the loss at visible positions; 0.5 in V-JEPA 2.1.
        visible_ramp: shares of the run, 0..1, between which this weight rises from 0 on a line.
        context: input of the student: "masked" (with mask tokens at the hidden positions) or "visible" (only
            the visible positions; needs a ViT, a transformer as predictor, and a mask of constant size).
        predictor: "transformer" or "mlp".
        predictor_width: hidden width of the predictor.
        predictor_depth: number of blocks of the transformer.
        predictor_heads: number of attention heads of the transformer.
        beta: difference at which smooth L1 becomes linear (data2vec: 2 for images); 0: L1 (V-JEPA).
        momentum: momentum of the teacher at the start; follows a line. null: 0.998, or less for few steps.
        momentum_end: momentum of the teacher at the end.
        saved: encoder in weights.safetensors, "student" or "teacher".
        collapse_std: minimum standard deviation of the targets over cells and clips, 0..1; 0 never stops the
            run.
        collapse_grace: share of the run without this limit.

    Raises:
        UserError: a value is out of range, the blocks differ in size, or the mask does not fit.
    """

    loss_name = "error of latents"
    student: LatentStudent | VisibleStudent

    def __init__(
        self,
        *,
        recipe: PretrainRecipe,
        encoder: Encoder,
        compiled: str = "",
        blocks: int = 1,
        depths: Sequence[int] = (),
        visible_weight: float = 0.0,
        visible_ramp: Sequence[float] = (0.05, 0.1),
        context: str = "masked",
        predictor: str = "transformer",
        predictor_width: int = 384,
        predictor_depth: int = 4,
        predictor_heads: int = 6,
        beta: float = 0.0,
        momentum: float | None = None,
        momentum_end: float = 1.0,
        saved: str = "teacher",
        collapse_std: float = 0.01,
        collapse_grace: float = 0.1,
    ) -> None:
        example = recipe.draw_mask(np.random.default_rng(0))  # refuses an impossible mask
        check_name("method.arguments.predictor", predictor, PREDICTORS)
        check_name("method.arguments.context", context, CONTEXTS)
        if not beta >= 0:
            raise UserError(f"method.arguments.beta {beta:g} must not be negative; 0 is plain L1")
        size = recipe.clip.size
        grid = encoder.output_grid(size)
        check_mask_grid(recipe, grid)
        check_last_blocks(encoder, blocks, size)
        self.depths, self.blocks, self.beta = _check_depths(encoder, depths, blocks), blocks, beta
        self.visible_weight = _visible_weight(visible_weight, visible_ramp)
        if context == "visible":
            _check_visible(encoder, predictor, recipe)
            predictor = "visible"
        student = _build_student(
            encoder,
            self.depths,
            predictor,
            grid=grid,
            width=predictor_width,
            depth=predictor_depth,
            heads=predictor_heads,
            predict_visible=visible_weight > 0,
        )
        self._example_mask = torch.from_numpy(example)
        super().__init__(
            recipe=recipe,
            student=student,
            encoder=encoder,
            compiled=compiled,
            followed=encoder,
            momentum=momentum,
            momentum_end=momentum_end,
            saved=saved,
            published_momentum=0.998,
            ramp=LinearRamp,
            monitors=(
                Monitor("feature_std", collapse_std, "all cells of all clips have nearly the same target"),
            ),
            grace=collapse_grace,
        )

    @property
    def description(self) -> str:
        return f"the teacher's features {self.masked_positions}, {self.recipe.mask.share}"

    def example_mask(self) -> Tensor:
        """A mask of the recipe's ratio, since the student may compute only visible positions."""
        return self._example_mask

    def compare(self, network: nn.Module, batch: PretrainBatch, *, progress: float) -> Comparison:
        """Predict the teacher's features at the hidden cells."""
        pixels = self.pixels(batch.clips)
        target = self.target(pixels)
        # A number that the batch knows spares the host a wait for the device.
        visible = isinstance(self.student, VisibleStudent) and batch.hidden_cells is not None
        known = (batch.hidden_cells,) if visible else ()
        predictions = self._forward(network, pixels, batch.mask, *known)
        if self.beta:
            loss = masked_smooth_l1(predictions, target, batch.mask, beta=self.beta)
        else:
            loss = masked_l1(predictions, target, batch.mask)
        rows = {"feature_std": directions(target), "clip_std": directions(target.flatten(1, 3).mean(dim=1))}
        if self.visible_weight is None:
            return Comparison(loss, {}, rows)
        visible_loss = visible_smooth_l1(predictions, target, batch.mask, beta=self.beta)
        total = loss + self.visible_weight(progress) * visible_loss
        return Comparison(total, {"hidden_loss": loss, "visible_loss": visible_loss}, rows)

    def make_target(self, batch: PretrainBatch) -> Tensor:
        return self.target(self.pixels(batch.clips))

    @torch.no_grad()
    def target(self, pixels: Tensor) -> Tensor:
        """Whole clips float [B, C, T, H, W] -> the teacher's features, float32 [B, t, h, w, D']."""
        encoder = self.teacher_encoder
        if self.depths:
            outputs = encoder.features_at(pixels, self.depths)
        else:
            outputs = last_blocks(encoder, pixels, self.blocks)
        normed = [F.layer_norm(output.float(), output.shape[-1:]) for output in outputs]
        return torch.cat(normed, dim=-1) if self.depths else torch.stack(normed).mean(dim=0)

    @property
    def teacher_encoder(self) -> Encoder:
        module = self.teacher.module
        assert isinstance(module, Encoder)
        return module


def _check_depths(encoder: Encoder, depths: Sequence[int], blocks: int) -> tuple[int, ...]:
    """Refuse depths that do not ascend to the last block, or that have other grids than its output."""
    where, strides = f"method.arguments.depths {list(depths)}", encoder.strides()
    if depths and blocks != 1:
        raise UserError(f"{where} and method.arguments.blocks {blocks} exclude each other; remove one")
    last = len(strides) - 1
    if depths and (list(depths) != sorted(set(depths)) or depths[0] < 1 or depths[-1] != last):
        raise UserError(
            f"{where} must be ascending numbers of blocks from 1 to the last one, {last}, such as "
            f"[{max(last // 2, 1)}, {last}]"
        )
    for depth in depths:
        if strides[depth] != strides[-1]:
            first = next(number for number in range(len(strides)) if strides[number] == strides[-1])
            raise UserError(
                f"{where}: block {depth} has another grid than the last block; use blocks from {first} on"
            )
    return tuple(depths)


def _visible_weight(weight: float, ramp: Sequence[float]) -> Callable[[float], float] | None:
    """Completed share of the run -> weight of the loss at visible positions; None without this loss."""
    if not weight >= 0:
        raise UserError(f"method.arguments.visible_weight {weight:g} must not be negative; 0 turns it off")
    if len(ramp) != 2 or not 0 <= ramp[0] <= ramp[1] <= 1:
        raise UserError(
            f"method.arguments.visible_ramp {list(ramp)} must be two shares of the run, ascending in 0..1, "
            "such as [0.05, 0.1]"
        )
    if not weight:
        return None
    return lambda progress: float(np.interp(progress, ramp, (0.0, weight)))


def _build_student(
    encoder: Encoder,
    depths: Sequence[int],
    predictor: str,
    *,
    grid: TokenGrid,
    width: int,
    depth: int,
    heads: int,
    predict_visible: bool,
) -> LatentStudent | VisibleStudent:
    """The encoder with a predictor.

    Args:
        encoder: the encoder.
        depths: numbers of the blocks whose outputs are predicted; empty: the last one.
        predictor: "mlp", "transformer", or "visible", for an encoder that sees no hidden positions.
        grid: grid of the predictions.
        width, depth, heads: sizes of the predictor; "mlp" has only the width.
        predict_visible: whether "visible" predicts the visible positions too.
    """
    out_width = sum(encoder.block_widths[depth - 1] for depth in depths) or encoder.out_width
    build: Callable[[], nn.Module] = partial(MlpPredictor, out_width, hidden_width=width)
    sizes: dict[str, Any] = {
        "hidden_width": width,
        "depth": depth,
        "heads": heads,
        "grid": grid,
        "fused_width": encoder.out_width if depths else None,
        "rotary": getattr(encoder, "rotary", False),
    }
    if predictor == "transformer":
        build = partial(TransformerPredictor, out_width, **sizes)
    elif predictor == "visible":
        build = partial(VisiblePredictor, out_width, predict_visible=predict_visible, **sizes)
    head = build_within_memory(build, "the predictor of method.arguments")
    depth_features = DepthFeatures(encoder, depths) if depths else None
    if isinstance(head, VisiblePredictor):
        return VisibleStudent(cast(ViT, encoder), head, depth_features)
    return LatentStudent(MaskedEncoder(encoder, summary="mean"), head, depth_features)


def _check_visible(encoder: Encoder, predictor: str, recipe: PretrainRecipe) -> None:
    """Refuse what the context "visible" cannot have."""
    where = "method.arguments.context 'visible'"
    if not isinstance(encoder, ViT):
        raise UserError(
            f"{where}: the pooling of MViTv2 needs the whole grid; use a ViT (model.name=maskfeat_vit_...), "
            "or context 'masked'"
        )
    if predictor != "transformer":
        raise UserError(f"{where} needs method.arguments.predictor 'transformer', not {predictor!r}")
    if not is_exact(recipe.mask.kind):
        raise UserError(
            f"{where}: mask.kind {recipe.mask.kind!r} does not hide the same number of positions in every "
            f"clip; use one of {', '.join(EXACT)}"
        )
