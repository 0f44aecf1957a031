"""The token targets: what BEiT predicts in the hidden places, the tokens of a discrete VAE."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from videomaskfeat.errors import UserError
from videomaskfeat.grid import TokenGrid
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
        weights: the tokenizer's file.
        vocabulary: how many tokens the file must have; None takes any number.
        output_stride: frames, rows and columns of the clip behind one output position; frames of 1 for
            images.
        clip_mean: what the run's clips are normalized with, one number or one per channel.
        clip_std: likewise.

    Raises:
        UserError: the file is missing, damaged or of another kind, the tokenizer has another vocabulary, or
            its cells are larger than the student's positions.
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
                f"{weights}: a tokenizer with a vocabulary of {tokenizer.vocabulary}, and target.arguments "
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
                f"{weights}: its tokens stand for {tokenizer.stride}x{tokenizer.stride} pixels and the "
                f"model's positions for {rows}x{columns}, so that frames would have to be enlarged; train a "
                f"tokenizer with model.arguments.stride={rows} or less"
            )
        super().__init__(
            output_stride=output_stride,
            values_per_token=tokenizer.vocabulary,
            loss="cross_entropy",
            files=(weights,),
        )
        self.tokenizer = tokenizer.eval().requires_grad_(False)
        self.register_buffer("mean", channel_levels(clip_mean), persistent=False)
        self.register_buffer("std", channel_levels(clip_std), persistent=False)

    @staticmethod
    @abstractmethod
    def load(path: str) -> FrameTokenizer:
        """The tokenizer in a file."""

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

    def tally(self) -> LossTally:
        """The best constant is the distribution of the tokens."""
        return CrossEntropyTally(self.loss, vocabulary=self.values_per_token)


class DvaeTarget(TokenTarget):
    """Tokens of a discrete VAE (BEiT, arXiv 2106.08254): the published one's, or one of our own.

    ``weights`` is the ``weights.safetensors`` of a ``train-tokenizer`` run of kind dvae, or the state dict of
    the published 8192-token encoder (:mod:`videomaskfeat.models.published_dvae`).
    """

    @staticmethod
    def load(path: str) -> FrameTokenizer:
        """Our own from a safetensors file that names its model, the published encoder from any other file."""
        if path.endswith(".safetensors") and "model" in read_metadata(path):
            return load_tokenizer(path, kind="dvae")
        return load_published_encoder(path)


class CodebookTarget(TokenTarget):
    """Numbers of the nearest codes of a VQ tokenizer (PeCo, arXiv 2111.12710).

    ``weights`` is the ``weights.safetensors`` of a ``train-tokenizer`` run of kind vq. What makes a codebook
    perceptual is how it was trained: with ``perceptual.weights``.
    """

    @staticmethod
    def load(path: str) -> FrameTokenizer:
        """A VQ tokenizer from a safetensors file."""
        if not path.endswith(".safetensors"):
            raise UserError(
                f"{path}: is no safetensors file; a codebook comes from the weights.safetensors of a "
                "train-tokenizer run with model.name=vq"
            )
        return load_tokenizer(path, kind="vq")
