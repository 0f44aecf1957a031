"""A discrete VAE of frames: a categorical code a cell, learnt through the Gumbel-softmax relaxation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from videomaskfeat.models.frame_layers import FrameDecoder, FrameEncoder
from videomaskfeat.models.frame_tokenizer import TrainedTokenizer


def gumbel_softmax(
    logits: Tensor, noise: Tensor, *, temperature: float, straight_through: bool = False
) -> Tensor:
    """A relaxed draw of one of V numbers: ``softmax((logits + noise) / temperature)`` over axis 1.

    With noise of the standard Gumbel distribution the largest entry is a draw from ``softmax(logits)``; the
    lower the temperature, the closer the result to a single 1 (Jang et al., arXiv 1611.01144; Maddison et
    al., arXiv 1611.00712).

    Args:
        logits: float [B, V, ...].
        noise: float [B, V, ...], see :func:`gumbel_noise`.
        temperature: above 0.
        straight_through: the value is the single 1 itself, the gradient that of the relaxed draw.

    Returns:
        float32 [B, V, ...], sums to 1 over axis 1.
    """
    soft = F.softmax((logits.float() + noise) / temperature, dim=1)
    if not straight_through:
        return soft
    hard = torch.zeros_like(soft).scatter_(1, soft.argmax(1, keepdim=True), 1.0)
    return hard + soft - soft.detach()


def gumbel_noise(like: Tensor) -> Tensor:
    """Standard Gumbel noise float32 in the shape of ``like``, from torch's global generator."""
    return -torch.empty_like(like, dtype=torch.float32).exponential_().log()


class DvaeCoding(NamedTuple):
    """What a discrete VAE makes of pictures in training.

    logits: float [B, V, h, w], of each cell's number.
    reconstruction: float [B, C, H, W], normalised.
    """

    logits: Tensor
    reconstruction: Tensor


class DiscreteVAE(TrainedTokenizer):
    """Encoder, codebook and decoder of a discrete VAE of frames (the tokenizer of BEiT and DALL-E).

    The layers are VQ-VAE's, which cost a small part of the published encoder's
    (:mod:`videomaskfeat.models.published_dvae`).

    Args:
        vocabulary: codes, V.
        stride: pixels behind a cell, a power of two.
        width: channels on the grid.
        blocks: residual blocks of the encoder, and of the decoder.
        code_width: numbers a code.
        straight_through: train on hard draws, with the gradient of the relaxed ones.
        channels: colour channels.
        mean: subtracted from pixels in 0..1: of every channel, or one a channel.
        std: divides them after that, likewise.

    Raises:
        UserError: a value outside its range.
    """

    def __init__(
        self,
        *,
        vocabulary: int = 8192,
        stride: int = 8,
        width: int = 256,
        blocks: int = 2,
        code_width: int = 128,
        straight_through: bool = False,
        channels: int = 3,
        mean: float | Sequence[float] = 0.45,
        std: float | Sequence[float] = 0.225,
    ) -> None:
        super().__init__(
            vocabulary=vocabulary,
            stride=stride,
            code_width=code_width,
            channels=channels,
            mean=mean,
            std=std,
        )
        self.straight_through = straight_through
        self.encoder = FrameEncoder(
            stride=stride, width=width, blocks=blocks, out_width=vocabulary, in_channels=channels
        )
        self.codes = nn.Parameter(torch.empty(vocabulary, code_width).normal_())
        self.decoder = FrameDecoder(
            stride=stride, width=width, blocks=blocks, in_width=code_width, out_channels=channels
        )

    def forward(self, pictures: Tensor, temperature: float) -> DvaeCoding:
        """Pictures float32 [B, C, H, W] in 0..1, coded by relaxed draws at a temperature and decoded."""
        logits = self.encoder(self.normalise(pictures))
        draw = gumbel_softmax(
            logits, gumbel_noise(logits), temperature=temperature, straight_through=self.straight_through
        )
        codes = torch.einsum("bvhw,vd->bdhw", draw, self.codes)
        return DvaeCoding(logits, self.decoder(codes))

    def tokens(self, pictures: Tensor) -> Tensor:
        """The likeliest number of each cell: pictures in 0..1 [B, C, H, W] -> int64 [B, h, w]."""
        return torch.argmax(self.encoder(self.normalise(pictures)), dim=1)

    def decode(self, tokens: Tensor) -> Tensor:
        """Numbers int64 [B, h, w] -> normalised pictures float32 [B, C, H, W]."""
        return self.decoder(F.embedding(tokens, self.codes).permute(0, 3, 1, 2)).float()
