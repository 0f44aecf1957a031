"""The token targets: what BEiT predicts at hidden positions, the tokens of a discrete VAE."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from videomaskfeat.errors import UserError
from videomaskfeat.grid import TokenGrid
from videomaskfeat.models.layers import per_channel
from videomaskfeat.models.published_dvae import load_published_encoder
from videomaskfeat.models.tokenizers import FrameTokenizer, load_tokenizer
from videomaskfeat.targets.target import CrossEntropyTally, LossTally, Target, Triple
from videomaskfeat.tensor_files import read_metadata


class TokenTarget(Target):
    """Tokens of a frozen tokenizer for the first frame of each cube, on the model's output grid.

    The frame is resized so that the tokenizer's cells match the output positions: for 8-pixel cells and
    16-pixel positions from 224 to 112 pixels, as in BEiT. Deviation from BEiT: there, the smaller picture is
    cropped from the original with a Lanczos filter; here, the clip's own pixels are resized with antialiased
    bicubic interpolation.

    Args:
        weights: the tokenizer's file.
        vocabulary: required vocabulary size of the tokenizer; None for any.
        output_stride: frames, rows and columns per output position; 1 frame for images.
        clip_mean: mean of the clips' normalization, one number or one per channel.
        clip_std: standard deviation, likewise.

    Raises:
        UserError: the file is missing, damaged or of another kind, the tokenizer has another vocabulary, or
            its cells are larger than the output positions.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        weights: str,
        vocabulary: int | None = None,
        output_stride: Triple = (2, 16, 16),
        clip_mean: float | Sequence[float] = 0.45,
        clip_std: float | Sequence[float] = 0.225,
    ) -> None:
        tokenizer = self.load(weights)
        if vocabulary is not None and tokenizer.vocabulary != vocabulary:
            raise UserError(
                f"{weights}: the tokenizer has a vocabulary of {tokenizer.vocabulary}, but "
                f"target.arguments.vocabulary is {vocabulary}; use another tokenizer, or change the number"
            )
        frames, rows, columns = output_stride
        if frames < 1 or rows != columns:
            raise UserError(
                f"output_stride {tuple(output_stride)}: tokens need at least 1 frame, and equal numbers of "
                "rows and columns"
            )
        if rows < tokenizer.stride:
            raise UserError(
                f"{weights}: a token covers {tokenizer.stride}x{tokenizer.stride} pixels, more than the "
                f"model's positions of {rows}x{columns} pixels; train a tokenizer with "
                f"model.arguments.stride={rows} or less"
            )
        super().__init__(
            output_stride=output_stride,
            values_per_token=tokenizer.vocabulary,
            loss="cross_entropy",
            files=(weights,),
        )
        self.tokenizer = tokenizer.eval().requires_grad_(False)
        self.register_buffer("mean", per_channel(clip_mean), persistent=False)
        self.register_buffer("std", per_channel(clip_std), persistent=False)

    @staticmethod
    @abstractmethod
    def load(path: str) -> FrameTokenizer:
        """Load the tokenizer in a file."""

    @torch.no_grad()
    def forward(self, clips: Tensor) -> Tensor:
        """Clips float [B, C, T, H, W], normalized -> tokens int64 [B, t, h, w]."""
        batch, _, frames, height, width = clips.shape
        grid = TokenGrid.from_clip(frames=frames, height=height, width=width, stride=self.output_stride)
        first_frames = clips[:, :, :: self.output_stride[0]].transpose(1, 2).flatten(0, 1)  # [B*t, C, H, W]
        pictures = (first_frames.float() * self.std + self.mean).clamp(0, 1)
        size = (grid.h * self.tokenizer.stride, grid.w * self.tokenizer.stride)
        if size != (height, width):
            pictures = F.interpolate(pictures, size, mode="bicubic", antialias=True).clamp(0, 1)
        return self.tokenizer.tokens(pictures).view(batch, *grid.shape)

    def tally(self) -> LossTally:
        """See :meth:`Target.tally`; the best constant is the distribution of the tokens."""
        return CrossEntropyTally(self.loss, vocabulary=self.values_per_token)


class DvaeTarget(TokenTarget):
    """Tokens of a discrete VAE (BEiT, arXiv 2106.08254), the published one or our own.

    ``weights`` is the ``weights.safetensors`` of a ``train-tokenizer`` run of kind dvae, or the state dict of
    the published 8192-token encoder (:mod:`videomaskfeat.models.published_dvae`) in any other file.
    """

    @staticmethod
    def load(path: str) -> FrameTokenizer:
        if path.endswith(".safetensors") and "model" in read_metadata(path):
            return load_tokenizer(path, kind="dvae")
        return load_published_encoder(path)


class CodebookTarget(TokenTarget):
    """Code indices of a VQ tokenizer (PeCo, arXiv 2111.12710).

    ``weights`` is the ``weights.safetensors`` of a ``train-tokenizer`` run of kind vq. A codebook is
    perceptual if it was trained with ``perceptual.weights``.
    """

    @staticmethod
    def load(path: str) -> FrameTokenizer:
        if not path.endswith(".safetensors"):
            raise UserError(
                f"{path} is not a safetensors file; use the weights.safetensors of a train-tokenizer run "
                "with model.name=vq"
            )
        return load_tokenizer(path, kind="vq")
