"""The codebook target: what PeCo predicts in the hidden places, the codes of a perceptual codebook."""

from __future__ import annotations

from collections.abc import Sequence

from videomaskfeat.errors import UserError
from videomaskfeat.models.tokenizers import load_tokenizer
from videomaskfeat.targets.target import Triple
from videomaskfeat.targets.tokens import TokenTarget


class CodebookTarget(TokenTarget):
    """Numbers of the nearest codes of a VQ tokenizer (PeCo, arXiv 2111.12710).

    What makes a codebook perceptual is how it was trained: ``train-tokenizer`` with ``perceptual.weights``.

    Args:
        weights: ``weights.safetensors`` of a ``train-tokenizer`` run of kind vq.
        vocabulary: how many codes the file must have; None takes any number.
        output_stride: see :class:`~videomaskfeat.targets.tokens.TokenTarget`.
        clip_mean: see there.
        clip_std: see there.

    Raises:
        UserError: see :class:`~videomaskfeat.targets.tokens.TokenTarget`; or the file is missing, damaged or
            of another kind.
    """

    def __init__(
        self,
        *,
        weights: str,
        vocabulary: int | None = None,
        output_stride: Triple = (2, 16, 16),
        clip_mean: float | Sequence[float] = 0.45,
        clip_std: float | Sequence[float] = 0.225,
    ) -> None:
        if not weights.endswith(".safetensors"):
            raise UserError(
                f"{weights}: is no safetensors file; a codebook comes from the weights.safetensors of a "
                "train-tokenizer run with model.name=vq"
            )
        super().__init__(
            load_tokenizer(weights, kind="vq"),
            source=weights,
            output_stride=output_stride,
            vocabulary=vocabulary,
            clip_mean=clip_mean,
            clip_std=clip_std,
        )
