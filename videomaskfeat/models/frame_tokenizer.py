"""What every tokenizer of frames has in common: pictures in, numbers of codes out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from videomaskfeat.errors import UserError


def channel_levels(value: float | Sequence[float]) -> Tensor:
    """A number, or one a channel, float32 in the shape that meets pictures [B, C, H, W]."""
    return torch.as_tensor(value, dtype=torch.float32).reshape(-1, 1, 1)


class FrameTokenizer(nn.Module):
    """A module that names each cell of a frame by one of ``vocabulary`` numbers.

    Args:
        vocabulary: how many numbers there are, V.
        stride: pixels behind a cell.
    """

    def __init__(self, *, vocabulary: int, stride: int) -> None:
        super().__init__()
        if vocabulary < 2:
            raise UserError(f"vocabulary={vocabulary}: must be 2 or more, or there is nothing to tell apart")
        self.vocabulary = vocabulary
        self.stride = stride

    @abstractmethod
    def tokens(self, pictures: Tensor) -> Tensor:
        """Pictures float32 [B, C, H, W] in 0..1 -> int64 [B, H/stride, W/stride], each in 0..V-1."""


class TrainedTokenizer(FrameTokenizer):
    """A tokenizer with a decoder, which is trained by what it can make again of its numbers.

    Args:
        vocabulary: how many numbers there are, V.
        stride: pixels behind a cell.
        code_width: numbers a code.
        channels: colour channels.
        mean: subtracted from pixels in 0..1: of every channel, or one a channel.
        std: divides them after that, likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        vocabulary: int,
        stride: int,
        code_width: int,
        channels: int,
        mean: float | Sequence[float] = 0.45,
        std: float | Sequence[float] = 0.225,
    ) -> None:
        super().__init__(vocabulary=vocabulary, stride=stride)
        if code_width < 1:
            raise UserError(f"code_width={code_width}: must be 1 or more")
        # Not among the weights: a weights file holds them as arguments.
        self.register_buffer("mean", channel_levels(mean), persistent=False)
        self.register_buffer("std", channel_levels(std), persistent=False)
        for name, levels in (("mean", self.mean), ("std", self.std)):
            if levels.numel() not in (1, channels):
                raise UserError(
                    f"{name} of {levels.numel()} numbers: must be one, or one for each of {channels}"
                )
        if not min(std if isinstance(std, Sequence) else (std,)) > 0:
            raise UserError(f"std={std}: must be above 0: pixels are divided by it")

    @abstractmethod
    def decode(self, tokens: Tensor) -> Tensor:
        """Numbers int64 [B, h, w] -> normalised pictures float32 [B, C, h*stride, w*stride]."""

    def normalise(self, pictures: Tensor) -> Tensor:
        """Pictures in 0..1 [B, C, H, W] -> as encoder and decoder see them.

        Raises:
            UserError: height or width is not a multiple of the stride.
        """
        height, width = pictures.shape[-2:]
        if height % self.stride or width % self.stride:
            raise UserError(
                f"frames of {height}x{width} pixels are no multiple of the tokenizer's stride {self.stride}"
            )
        return (pictures - self.mean) / self.std

    def denormalise(self, pictures: Tensor) -> Tensor:
        """The way back: what a decoder gives, as pixels that are meant to lie in 0..1."""
        return pictures.float() * self.std + self.mean
