"""The token targets: what BEiT predicts in the hidden places, the tokens of a discrete VAE."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from videomaskfeat.errors import UserError
from videomaskfeat.grid import TokenGrid
from videomaskfeat.losses import masked_cross_entropy
from videomaskfeat.models.published_dvae import load_published_encoder
from videomaskfeat.models.tokenizers import FrameTokenizer, channel_levels, load_tokenizer
from videomaskfeat.models.weights import read_metadata
from videomaskfeat.targets.target import CrossEntropyTally, LossTally, Target, Triple


class TokenTarget(Target):
    """Tokens that a frozen tokenizer gives the first frame of each cube, on the student's grid.

    The frame is made smaller until the tokenizer's cells are the student's positions: with 8-pixel tokens and
    16-pixel positions 224 become 112, as in BEiT. Deviation from BEiT: there the smaller picture is cut from
    the original by a Lanczos filter; here it is made of the clip's own pixels by an antialiased bicubic one.

    Args:
        tokenizer: frozen here.
        source: its file.
        output_stride: frames, rows and columns of the clip behind one output position; frames of 1 for
            images.
        vocabulary: how many tokens the file must have; None takes any number.
        clip_mean: what the run's clips are normalised with, of every channel or one a channel.
        clip_std: likewise.

    Raises:
        UserError: the tokenizer has another vocabulary, or its cells are larger than the student's positions.
    """

    loss_name = "cross-entropy in nats"
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        tokenizer: FrameTokenizer,
        *,
        source: str,
        output_stride: Triple,
        vocabulary: int | None,
        clip_mean: float | Sequence[float],
        clip_std: float | Sequence[float],
    ) -> None:
        super().__init__()
        if vocabulary is not None and tokenizer.vocabulary != vocabulary:
            raise UserError(
                f"{source}: a tokenizer with a vocabulary of {tokenizer.vocabulary}, and target.arguments "
                f"want {vocabulary}; give the tokenizer that was meant, or its own vocabulary"
            )
        frames, rows, columns = output_stride
        if frames < 1 or rows != columns:
            raise UserError(
                f"output_stride {tuple(output_stride)}: tokens need at least one frame, and as many rows as "
                "columns"
            )
        if rows < tokenizer.stride:
            raise UserError(
                f"{source}: its tokens stand for {tokenizer.stride}x{tokenizer.stride} pixels and the "
                f"model's positions for {rows}x{columns}, so that frames would have to be enlarged; train a "
                f"tokenizer with model.arguments.stride={rows} or less"
            )
        self.tokenizer = tokenizer.eval().requires_grad_(False)
        self.files = (source,)
        self.output_stride = output_stride
        self.values_per_token = tokenizer.vocabulary
        self.register_buffer("mean", channel_levels(clip_mean), persistent=False)
        self.register_buffer("std", channel_levels(clip_std), persistent=False)

    @torch.no_grad()
    def forward(self, clips: Tensor) -> Tensor:
        """Clips float [B, C, T, H, W], normalised -> tokens int64 [B, t, h, w].

        Raises:
            UserError: an axis of the clip is not a multiple of the output stride.
        """
        batch, _, frames, height, width = clips.shape
        grid = TokenGrid.from_clip(frames=frames, height=height, width=width, stride=self.output_stride)
        read = clips[:, :, :: self.output_stride[0]].transpose(1, 2).flatten(0, 1)  # [B*t, C, H, W]
        pictures = (read.float() * self.std + self.mean).clamp(0, 1)
        size = (grid.h * self.tokenizer.stride, grid.w * self.tokenizer.stride)
        if size != (height, width):
            pictures = F.interpolate(pictures, size, mode="bicubic", antialias=True).clamp(0, 1)
        return self.tokenizer.tokens(pictures).view(batch, *grid.shape)

    def train(self, mode: bool = True) -> TokenTarget:
        """The tokenizer stays in evaluation mode."""
        super().train(mode)
        self.tokenizer.eval()
        return self

    def loss(self, predictions: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Cross-entropy of the right tokens over the hidden positions."""
        return masked_cross_entropy(predictions, target, mask)

    def tally(self) -> LossTally:
        """Its account over held-out batches; the best constant is the distribution of the tokens."""
        return CrossEntropyTally(self.loss, vocabulary=self.values_per_token)

    def extra_repr(self) -> str:
        return f"vocabulary={self.values_per_token}, output_stride={tuple(self.output_stride)}"


class DvaeTarget(TokenTarget):
    """Tokens of a discrete VAE (BEiT, arXiv 2106.08254): the published one's, or one of our own.

    Args:
        weights: ``weights.safetensors`` of a ``train-tokenizer`` run of kind dvae, or the state dict of the
            published 8192-token encoder (:mod:`videomaskfeat.models.published_dvae`).
        vocabulary: how many tokens the file must have; None takes any number.
        output_stride: see :class:`TokenTarget`.
        clip_mean: see :class:`TokenTarget`.
        clip_std: see :class:`TokenTarget`.

    Raises:
        UserError: see :class:`TokenTarget`; or the file is missing, damaged or of another kind.
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
        super().__init__(
            load_dvae(weights),
            source=weights,
            output_stride=output_stride,
            vocabulary=vocabulary,
            clip_mean=clip_mean,
            clip_std=clip_std,
        )


def load_dvae(path: str) -> FrameTokenizer:
    """Our own dvae from a safetensors file that names its model, the published encoder from any other file.

    Raises:
        UserError: no such file, a damaged one, or one of something else.
    """
    if path.endswith(".safetensors") and not _is_bare(path):
        return load_tokenizer(path, kind="dvae")
    return load_published_encoder(path)


def _is_bare(path: str) -> bool:
    """Whether a safetensors file says nothing of a model: tensors alone, such as a converted state dict."""
    return "model" not in read_metadata(path)


# The codebook target: what PeCo predicts in the hidden places, the codes of a perceptual codebook.


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
