"""``method: latent``: predict the teacher's features of the whole clip at the hidden positions."""

from __future__ import annotations

from collections.abc import Callable
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
from videomaskfeat.grid import resize_mask
from videomaskfeat.losses import masked_l1, masked_smooth_l1
from videomaskfeat.masking import EXACT, is_exact
from videomaskfeat.methods.method import check_mask_grid
from videomaskfeat.methods.teaching import Comparison, TeacherMethod
from videomaskfeat.metrics.accuracy import directions
from videomaskfeat.models.encoder_base import Encoder
from videomaskfeat.models.limits import build_within_memory
from videomaskfeat.models.mae import visible_places
from videomaskfeat.models.maskfeat import MaskedEncoder, check_last_blocks, last_blocks
from videomaskfeat.models.projection import MlpPredictor, TransformerPredictor, VisiblePredictor
from videomaskfeat.models.vit import ViT
from videomaskfeat.recipe import PretrainRecipe

PREDICTORS = ("transformer", "mlp")
CONTEXTS = {"masked": "a mask token at the hidden positions", "visible": "the visible positions only"}


class LatentStudent(nn.Module):
    """An encoder that sees the masked clip, and a predictor.

    Args:
        masked: clips and mask -> features.
        predictor: features of the cells [B, t, h, w, D'] -> predictions of the same shape.
    """

    def __init__(self, masked: MaskedEncoder, predictor: nn.Module) -> None:
        super().__init__()
        self.masked = masked
        self.predictor = predictor

    def forward(self, clips: Tensor, mask: Tensor) -> Tensor:
        """Clips float [B, C, T, H, W], mask bool [B, t', h', w'] -> predictions [B, t, h, w, D']."""
        return self.predictor(self.masked(clips, mask).cells)


class VisibleStudent(nn.Module):
    """A ViT that sees the visible cubes only, and a predictor with its own mask token.

    Args:
        encoder: the encoder.
        predictor: predicts all cells from the visible ones.
    """

    def __init__(self, encoder: ViT, predictor: VisiblePredictor) -> None:
        super().__init__()
        self.encoder = encoder
        self.predictor = predictor

    def forward(self, clips: Tensor, mask: Tensor) -> Tensor:
        """Clips float [B, C, T, H, W], mask bool [B, t', h', w'] -> predictions [B, t, h, w, D'].

        Raises:
            UserError: the masks hide different numbers of cubes, all cubes, or none.
        """
        self.encoder.patch_embed.check(clips)
        grid = self.encoder.token_grid(clips.shape)
        places = visible_places(resize_mask(mask, grid))  # [B, V]
        tokens = self.encoder.encode_visible(clips, places)  # [B, P+V, D]
        return self.predictor(tokens[:, self.encoder.prefix :], places, grid)


class Latent(TeacherMethod):
    """Features of the encoder's own moving average as target, as in data2vec and V-JEPA.

    The teacher sees the whole clip. The outputs of its last blocks are layer-normalized without scale and
    shift, and averaged (data2vec, arXiv 2202.03555, section 3.3: the last 6 of 12 blocks of ViT-B for images;
    V-JEPA, arXiv 2404.08471: the last block). The student sees mask tokens at the hidden positions
    (data2vec), or the visible positions only (V-JEPA), and a predictor maps its features to the teacher's.

    Deviation from the published code: the last block's output is used without the encoder's final norm.

    Args:
        recipe, compiled: see :class:`~videomaskfeat.methods.method.Method`.
        encoder: the student's encoder with initial weights.
        blocks: number of the teacher's last blocks to average; all must have the same output size.
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
        compiled: bool = False,
        blocks: int = 1,
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
        width, grid = encoder.out_width, encoder.output_grid(size)
        check_mask_grid(recipe, grid)
        check_last_blocks(encoder, blocks, size)
        build: Callable[[], nn.Module] = partial(MlpPredictor, width, hidden_width=predictor_width)
        sizes: dict[str, Any] = {"depth": predictor_depth, "heads": predictor_heads, "grid": grid}
        if predictor == "transformer":
            build = partial(TransformerPredictor, width, hidden_width=predictor_width, **sizes)
        if context == "visible":
            _check_visible(encoder, predictor, recipe)
            build = partial(VisiblePredictor, width, hidden_width=predictor_width, **sizes)
        head = build_within_memory(build, "the predictor of method.arguments")
        student: nn.Module
        if isinstance(head, VisiblePredictor):
            student = VisibleStudent(cast(ViT, encoder), head)
        else:
            student = LatentStudent(MaskedEncoder(encoder, summary="mean"), head)
        self.blocks, self.beta = blocks, beta
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
        predictions = self._forward(network, pixels, batch.mask)
        if self.beta:
            loss = masked_smooth_l1(predictions, target, batch.mask, beta=self.beta)
        else:
            loss = masked_l1(predictions, target, batch.mask)
        rows = {"feature_std": directions(target), "clip_std": directions(target.flatten(1, 3).mean(dim=1))}
        return Comparison(loss, {}, rows)

    def make_target(self, batch: PretrainBatch) -> Tensor:
        return self.target(self.pixels(batch.clips))

    @torch.no_grad()
    def target(self, pixels: Tensor) -> Tensor:
        """Whole clips float [B, C, T, H, W] -> the teacher's features, float32 [B, t, h, w, D']."""
        outputs = last_blocks(self.teacher_encoder, pixels, self.blocks)
        normed = [F.layer_norm(output.float(), output.shape[-1:]) for output in outputs]
        return torch.stack(normed).mean(dim=0)

    @property
    def teacher_encoder(self) -> Encoder:
        module = self.teacher.module
        assert isinstance(module, Encoder)
        return module


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
